#!/bin/sh
# Debian packages of what a build installs. Usage: tools/deb.sh BUILD OUT
#   walsh         the program, its manual pages, shell completion
#   libwalsh0     the shared library, and the CUDA module where it was built
#   libwalsh-dev  headers, archive, pkg-config file, CMake package
#   walsh-data    texts and models, the same on every machine
# DEB_MAINTAINER ("NAME <ADDRESS>") and DEB_REVISION (0walsh1: a revision that Debian itself never uses) may be in the
# environment. Needs dpkg-dev and binutils.
set -eu
export LC_ALL=C TZ=UTC
source=$(cd "$(dirname "$0")/.." && pwd)
[ $# -eq 2 ] || { echo "usage: tools/deb.sh BUILD OUT" >&2 && exit 2; }
command -v dpkg-shlibdeps >/dev/null || { echo "tools/deb.sh needs dpkg-dev" >&2 && exit 1; }
build=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
define() { sed -n "s/^#define WALSH_VERSION_$1 \"\\([^\"]*\\)\".*/\\1/p" "$source/include/walsh_version.h"; }
version=$(define STRING)-${DEB_REVISION:-0walsh1}
maintainer=${DEB_MAINTAINER:-walsh developers <developers@walsh.invalid>}
date=$(date -d "$(define DATE)" '+%a, %d %b %Y 00:00:00 +0000')
machine=$(dpkg --print-architecture)
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
umask 022
export SOURCE_DATE_EPOCH="$(date -d "$(define DATE)" +%s)"

# package component architecture section summary: the files that the component installs, and what policy wants beside them;
# then `pack` with the rest of the control file.
stage() {
    package=$1 architecture=$3 section=$4 summary=$5
    tree=$work/$package
    DESTDIR=$tree cmake --install "$build" --prefix /usr --component "$2" >"$work/log" || { cat "$work/log" && exit 1; }
    [ -d "$tree/usr" ] || { echo "the build has no component $2" >&2 && exit 1; }
    doc=$tree/usr/share/doc/$package
    mkdir -p "$doc" "$tree/DEBIAN"
    gzip -9nc "$source/CHANGELOG.md" >"$doc/changelog.gz"
    printf '%s (%s) unstable; urgency=medium\n\n  * The release of walsh %s; changelog.gz says what changed.\n\n -- %s  %s\n' \
        "$package" "$version" "${version%-*}" "$maintainer" "$date" | gzip -9nc >"$doc/changelog.Debian.gz"
    cat >"$doc/copyright" <<'END'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: walsh

Files: *
Copyright: 2026 the walsh developers
License: Apache-2.0

Files: usr/share/walsh/*.txt
Copyright: Arthur Conan Doyle, William Shakespeare and other authors who died more than seventy years ago
License: public-domain
 The texts are in the public domain wherever copyright ends seventy years after
 an author's death; docs/provenance.md of the source has the list.

License: Apache-2.0
 On Debian systems the text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
END
}

# Which packages the objects need, as "Depends: ...".
needs() { # files
    mkdir -p "$work/shlibdeps/debian"
    : >"$work/shlibdeps/debian/control"
    (cd "$work/shlibdeps" && dpkg-shlibdeps -O "$@" 2>"$work/log") | sed -n 's/^shlibs:Depends=/Depends: /p'
}

pack() { # further lines of the control file; standard input: the description
    find "$tree" -type d -exec chmod 755 {} +
    find "$tree" -type f -path '*/man1/*.1' -exec gzip -9n {} +
    {
        printf 'Package: %s\nSource: walsh\nVersion: %s\nArchitecture: %s\nMaintainer: %s\n' "$package" "$version" \
            "$architecture" "$maintainer"
        printf 'Installed-Size: %s\n' "$(du -k -s --apparent-size "$tree/usr" | cut -f 1)"
        [ -z "$1" ] || printf '%s\n' "$1"
        printf 'Section: %s\nPriority: optional\nDescription: %s\n' "$section" "$summary"
        sed 's/^$/./; s/^/ /'
    } >"$tree/DEBIAN/control"
    (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
    # the model is most of it, and hardly compressible
    dpkg-deb --root-owner-group -Zgzip -z6 --build "$tree" "$out" | sed "s|.*in '\(.*\)'.*|\1|"
}

what='walsh makes language models small and runs them on the CPU. It rotates the
weights of a Hugging Face checkpoint with a randomized Hadamard transform,
rounds them to 2 to 8 bits with the E8P lattice code, and multiplies with the
packed codes directly.
'
stage walsh program "$machine" science "quantize and run language models of rotated low-bit weights"
strip --strip-unneeded --remove-section=.comment "$tree/usr/bin/walsh"
pack "$(needs "$tree/usr/bin/walsh")
Recommends: walsh-data
Suggests: libwalsh0" <<END
$what
This package has the program: it quantizes, runs, evaluates, finetunes,
measures, and serves models over HTTP as the OpenAI API has them.
END

stage libwalsh0 library_debian "$machine" libs "language models of rotated low-bit weights - shared library"
objects=$(find "$tree" -name '*.so*' -type f)
# shellcheck disable=SC2086 # names without spaces
strip --strip-unneeded --remove-section=.comment $objects
printf 'libwalsh 0 libwalsh0 (>= %s)\n' "${version%-*}" >"$tree/DEBIAN/shlibs"
printf 'activate-noawait ldconfig\n' >"$tree/DEBIAN/triggers"
# shellcheck disable=SC2086
pack "$(needs $objects)" <<END
$what
This package has the shared library for programs that use walsh.
END

stage libwalsh-dev development_debian "$machine" libdevel "language models of rotated low-bit weights - development files"
find "$tree" -name '*.a' -exec strip --strip-debug --enable-deterministic-archives {} +
pack "Depends: libwalsh0 (= $version)
Suggests: libjansson-dev, libpcre2-dev, libutf8proc-dev, libxxhash-dev, libssl-dev, liblapacke-dev, libopenblas-dev" <<END
$what
This package has the headers, the static library, a pkg-config file and a
CMake package for programs that use walsh.
END

stage walsh-data data all misc "language models of rotated low-bit weights - texts and a small model"
pack "" <<END
$what
This package has the text that models are calibrated on by default, a model of
8 million parameters to try things with, and a LoRA adapter of it.
END

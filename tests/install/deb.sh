# deb.sh SOURCE BUILD: the Debian packages are built, hold what they should, and lintian accepts them without an error or a
# warning; unpacked, the program runs. 77: skipped.
set -eu
export LC_ALL=C
source=$1 build=$2
for tool in dpkg-deb dpkg-shlibdeps lintian; do
    command -v $tool >/dev/null || { echo "skipped: the Debian packages need $tool (tools/setup.sh deb installs it)" && exit 77; }
done
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-deb-test.XXXXXX")
trap 'rm -rf "$work"' EXIT
failed() { echo "FAILED: $1" && exit 1; }
unset DEB_MAINTAINER DEB_REVISION
"$source/tools/deb.sh" "$build" "$work" >"$work/log" 2>&1 || { cat "$work/log" && failed "tools/deb.sh"; }
[ "$(ls "$work" | grep -c '\.deb$')" -eq 4 ] || failed "not four packages"
holds() { # package paths...
    dpkg-deb --fsys-tarfile "$work/$1"_*.deb | tar -t >"$work/list"
    shift
    for path in "$@"; do grep -q "^\./$path\$" "$work/list" || failed "no $path in: $(cat "$work/list")"; done
}
holds walsh usr/bin/walsh usr/share/man/man1/walsh.1.gz usr/share/man/man1/walsh-serve.1.gz \
    usr/share/bash-completion/completions/walsh usr/share/doc/walsh/copyright
holds libwalsh0 'usr/lib/[a-z0-9_-]*/libwalsh\.so\.0'
! grep -q 'libwalsh\.so$' "$work/list" || failed "the link for linking is in libwalsh0"
holds libwalsh-dev usr/include/walsh.h usr/include/walsh_jobs.h usr/include/walsh_ops.h 'usr/lib/[a-z0-9_-]*/libwalsh\.so' 'usr/lib/[a-z0-9_-]*/libwalsh\.a' \
    'usr/lib/[a-z0-9_-]*/pkgconfig/walsh\.pc' 'usr/lib/[a-z0-9_-]*/cmake/walsh/walshConfig\.cmake'
holds walsh-data usr/share/walsh/calibration.txt usr/share/walsh/models/bookworm-8m/config.json
dpkg-deb -f "$work"/walsh_*.deb Depends | grep -q 'libc6 ' || failed "walsh depends on nothing"
dpkg-deb -I "$work"/libwalsh0_*.deb shlibs | grep -q '^libwalsh 0 libwalsh0 ' || failed "no shlibs"
mkdir "$work/root"
for package in walsh walsh-data; do dpkg-deb -x "$work/${package}"_*.deb "$work/root"; done
(cd "$work" && HF_HOME=$work/none "$work/root/usr/bin/walsh" inspect bookworm-8m --json >/dev/null) || failed "the unpacked program"
lintian --allow-root --fail-on error,warning "$work"/*.deb >"$work/log" 2>&1 || { cat "$work/log" && failed "lintian"; }

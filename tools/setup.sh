#!/bin/sh
# Install the packages that walsh needs and that are missing. Usage: tools/setup.sh [build|test|ci|deb|aarch64]
# On Debian and its children: apt-get, with sudo only where the user is not root; no call at all where nothing is missing.
# Elsewhere: say what is needed, and go on where it is there.
set -eu

# package | how to see that it is there elsewhere than on Debian: a command, or "pkg:" and a pkg-config name | why
build_packages='
gcc|gcc|the C compiler
libc6-dev||the C library headers
cmake|cmake|the build system
ninja-build|ninja|runs the build
pkg-config|pkg-config|finds the libraries
libjansson-dev|pkg:jansson|JSON of checkpoints and of the command line
libpcre2-dev|pkg:libpcre2-8|regular expressions of tokenizers
libutf8proc-dev|pkg:libutf8proc|Unicode of tokenizers
libxxhash-dev|pkg:libxxhash|checksums
libssl-dev|pkg:libcrypto|SHA-256 of prefix stores
libmicrohttpd-dev|pkg:libmicrohttpd|HTTP and TLS of walsh serve
libopenblas-dev|pkg:openblas|matrix products while quantizing
liblapacke-dev|pkg:lapacke|Cholesky factorization while quantizing
'
test_packages='
libcmocka-dev|pkg:cmocka|the unit tests
python3|python3|the clients in the tests of walsh serve
'
ci_packages='
clang|clang|the second compiler
libclang-rt-14-dev||sanitizers of clang
clang-format|clang-format|the format check
g++|g++|the headers as C++
mandoc|mandoc|the lint of the manual pages
'
aarch64_packages='
gcc-aarch64-linux-gnu|aarch64-linux-gnu-gcc|the compiler for aarch64
qemu-user|qemu-aarch64|runs programs for aarch64
'
deb_packages='
dpkg-dev|dpkg-shlibdeps|what packages depend on
lintian|lintian|the check of packages
'

packages=$build_packages
case ${1:-build} in
build) ;;
test) packages=$packages$test_packages ;;
ci) packages=$packages$test_packages$ci_packages$deb_packages ;;
deb) packages=$packages$deb_packages ;;
aarch64) packages=$aarch64_packages ;;
*)
    echo "usage: tools/setup.sh [build|test|ci|deb|aarch64]" >&2
    exit 2
    ;;
esac

installed_by_dpkg() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

there_elsewhere() {
    case $1 in
    '') true ;;
    pkg:*) command -v pkg-config >/dev/null && pkg-config --exists "${1#pkg:}" ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

debian=no
if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then debian=yes; fi

# The lines of $packages that are not there.
missing=$(echo "$packages" | while IFS='|' read -r package probe why; do
    [ -n "$package" ] || continue
    if [ $debian = yes ]; then
        installed_by_dpkg "$package" || echo "$package|$why"
    else
        there_elsewhere "$probe" || echo "$package|$why"
    fi
done)
[ -n "$missing" ] || exit 0

show() { echo "$missing" | while IFS='|' read -r package why; do printf '  %-20s %s\n' "$package" "$why"; done; }
names=$(echo "$missing" | cut -d'|' -f1)

if [ $debian = no ]; then
    echo "walsh needs these; install what your system calls them (the names are Debian's), then try again:" >&2
    show >&2
    exit 1
fi

echo "Installing Debian packages that walsh needs:"
show
sudo=
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "You are not root and there is no sudo. As root:" >&2
        echo "  apt-get install" $names >&2
        exit 1
    fi
    sudo=sudo
fi

install() {
    # shellcheck disable=SC2086 # a list of names
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install $names >/dev/null
}
known() {
    for name in $names; do
        apt-cache show "$name" >/dev/null 2>&1 || return 1
    done
}
if ! known; then
    $sudo apt-get -qq update
    install
elif ! install; then
    # Package lists of another day name versions that are gone.
    $sudo apt-get -qq update
    install
fi

#!/bin/sh
# The libraries that walsh needs, for aarch64, in a directory: tools/aarch64_sysroot.sh DIRECTORY
# Debian's packages of that architecture are fetched with a package state of their own and unpacked; nothing is installed
# and no root is needed. cmake/aarch64.cmake compiles against the directory, qemu-user runs programs in it.
# Exit 0: it is there. Exit 3: it cannot be made here, with the reason on standard output. Needs apt and dpkg-deb.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
packages='libc6-dev libjansson-dev libpcre2-dev libutf8proc-dev libxxhash-dev libssl-dev libmicrohttpd-dev libopenblas-pthread-dev
liblapacke-dev libcmocka-dev'
absent() {
    echo "$*"
    exit 3
}

if [ -f "$1/complete" ]; then exit 0; fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || absent "no apt-get and dpkg-deb to fetch packages with"
rm -rf "$1"
mkdir -p "$1/apt/state/lists/partial" "$1/apt/cache/archives/partial"
root=$(cd "$1" && pwd)
: >"$root/apt/status"
apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$root/apt/state" \
        -o Dir::State::status="$root/apt/status" -o Dir::Cache="$root/apt/cache" -o Debug::NoLocking=true \
        -o APT::Get::List-Cleanup=false "$@"
}
# A source that has no packages of this architecture is of no use here; what is missing shows in the next step.
apt update >"$root/log" 2>&1 || true
# shellcheck disable=SC2086 # a list of names
apt -y --no-install-recommends --download-only install $packages >>"$root/log" 2>&1 ||
    absent "the packages of arm64 cannot be fetched: $(grep -m 1 '^E:' "$root/log" || tail -n 1 "$root/log")"
for package in "$root"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
rm -rf "$root/apt"

# What update-alternatives would have linked.
cd "$root/usr/lib/aarch64-linux-gnu"
for file in openblas-pthread/lib*.so*; do [ -e "${file#*/}" ] || ln -s "$file" "${file#*/}"; done
ln -s ../openblas-pthread/pkgconfig/openblas.pc pkgconfig/openblas.pc
ln -s ../openblas-pthread/pkgconfig/lapack-openblas.pc pkgconfig/lapack.pc
ln -s ../openblas-pthread/pkgconfig/blas-openblas.pc pkgconfig/blas.pc
# Links that lead to the root directory lead out of this one.
find "$root" -type l -lname '/*' | while read -r link; do
    ln -sfn "$root$(readlink "$link")" "$link"
done
: >"$root/complete"

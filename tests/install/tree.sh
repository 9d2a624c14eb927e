# tree.sh CC SOURCE BUILD: install into temporary prefixes; the installed program finds what ships with it, from anywhere and
# under DESTDIR; the examples build against it through pkg-config and through find_package and say what they should; what was
# installed can be removed.
set -eu
export LC_ALL=C
cc=$1 source=$2 build=$3
for name in $(env | sed -n 's/^\(WALSH_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
unset DESTDIR LD_LIBRARY_PATH PKG_CONFIG_PATH CMAKE_PREFIX_PATH
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-install.XXXXXX")
trap 'rm -rf "$work"' EXIT
export HF_HOME="$work/no-cache"
failed() { echo "FAILED: $1" && exit 1; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" && failed "$*"; }; }

prefix=$work/prefix
quietly cmake --install "$build" --prefix "$prefix"
for file in bin/walsh lib*/libwalsh.so.0 lib*/libwalsh.so lib*/libwalsh.a include/walsh.h include/walsh_jobs.h include/walsh_ops.h include/walsh_status.h \
    lib*/pkgconfig/walsh.pc lib*/cmake/walsh/walshConfig.cmake share/man/man1/walsh.1 share/man/man1/walsh-quantize.1 \
    share/bash-completion/completions/walsh share/zsh/vendor-completions/_walsh share/fish/vendor_completions.d/walsh.fish \
    share/walsh/calibration.txt share/walsh/models/bookworm-8m/config.json; do
    # shellcheck disable=SC2086 # a pattern of lib directories
    ls "$prefix"/$file >/dev/null 2>&1 || failed "$file is not installed"
done
grep -rl "$work" "$prefix" >"$work/names" || true
[ ! -s "$work/names" ] || failed "the prefix is written into $(cat "$work/names")"
library=$(echo "$prefix"/lib*/libwalsh.so.0)
readelf -d "$library" | grep -q 'SONAME.*\[libwalsh\.so\.0\]' || failed "the SONAME is not libwalsh.so.0"

# --- the program, far from the source tree, under another name of its prefix
mv "$prefix" "$work/moved"
prefix=$work/moved
cd "$work"
"$prefix/bin/walsh" run bookworm-8m "It was late in the evening" -n 8 --seed 1 --quiet >"$work/text" || failed "walsh run bookworm-8m"
[ -s "$work/text" ] || failed "no text"
"$prefix/bin/walsh" quantize bookworm-8m "$work/small" --bits 2 --samples 1 --sample-tokens 32 --passes 0 >"$work/log" 2>&1 ||
    { cat "$work/log" && failed "walsh quantize"; }
grep -qF "($prefix/bin/../share/walsh/calibration.txt)" "$work/log" || failed "another calibration text: $(cat "$work/log")"
mv "$prefix/share/walsh/models/bookworm-8m/config.json" "$work/"
! "$prefix/bin/walsh" inspect bookworm-8m 2>"$work/log" >/dev/null || failed "another model than the installed one"
grep -qF "$prefix/bin/../share/walsh/models/bookworm-8m" "$work/log" || failed "another model: $(cat "$work/log")"
mv "$work/config.json" "$prefix/share/walsh/models/bookworm-8m/"
model=$prefix/share/walsh/models/bookworm-8m

# --- the examples. What they print with the installed library, however they were built
check_examples() { # directory of programs, suffix of their names
    "$1/generate$2" "$model" "It was late in the evening" >"$work/out" || failed "$1/generate$2"
    "$prefix/bin/walsh" run "$model" "It was late in the evening" -n 24 --temp 0 --quiet >"$work/expected"
    [ "$(cat "$work/out")" = "$(cat "$work/expected")" ] || failed "$1/generate$2 says: $(cat "$work/out")"
}
check_more_examples() { # directory
    "$1/batch" "$model" "It was late in the evening" "It was early" >"$work/out" || failed "$1/batch"
    [ "$(wc -l <"$work/out")" -ge 2 ] || failed "$1/batch says: $(cat "$work/out")"
    "$1/quantize_tensor" >"$work/out" || failed "$1/quantize_tensor"
    grep -q "^4 bits: .*relative error 0\.0" "$work/out" || failed "$1/quantize_tensor says: $(cat "$work/out")"
    "$1/packed_linear" >"$work/out" || failed "$1/packed_linear"
    grep -q "^96 x 320 by 4 bits, relative error 0\.0" "$work/out" || failed "$1/packed_linear says: $(cat "$work/out")"
    "$1/experts" >"$work/out" || failed "$1/experts"
    grep -q "^2 of 8 experts in MXFP4, 5 rows, relative error 0\.0" "$work/out" || failed "$1/experts says: $(cat "$work/out")"
}
export PKG_CONFIG_PATH="$(echo "$prefix"/lib*/pkgconfig)"
libraries=$(dirname "$PKG_CONFIG_PATH")
version=$(sed -n 's/^#define WALSH_VERSION_STRING "\(.*\)"/\1/p' "$source/include/walsh_version.h")
[ "$(pkg-config --modversion walsh)" = "$version" ] || failed "pkg-config's version"
mkdir "$work/pkg"
for example in "$source"/examples/*.c; do
    name=$(basename "$example" .c)
    # shellcheck disable=SC2046 # words of pkg-config
    quietly "$cc" -std=c11 -pedantic -Wall -Wextra -Werror "$example" $(pkg-config --cflags --libs walsh) \
        -Wl,-rpath,"$libraries" -o "$work/pkg/$name" -lm
done
check_examples "$work/pkg" ""
check_more_examples "$work/pkg"

quietly cmake -S "$source/tests/install/project" -B "$work/project" -G Ninja -DCMAKE_C_COMPILER="$cc" -DEXAMPLES="$source/examples" \
    -DCMAKE_PREFIX_PATH="$prefix"
quietly cmake --build "$work/project" -j 2
check_examples "$work/project" ""
check_more_examples "$work/project"
check_examples "$work/project" _static
! ldd "$work/project/generate_static" | grep -q libwalsh || failed "generate_static is linked with libwalsh.so"
ldd "$work/project/generate" | grep -qF "$prefix" || failed "generate is not linked with the installed library"

# --- DESTDIR, and the way back
DESTDIR=$work/stage quietly cmake --install "$build" --prefix /opt/walsh
[ ! -e /opt/walsh/bin/walsh ] || failed "DESTDIR was not heeded"
"$work/stage/opt/walsh/bin/walsh" inspect bookworm-8m --json >/dev/null || failed "the staged program does not find its model"
touch "$work/stage/opt/walsh/bin/mine"
DESTDIR=$work/stage quietly cmake -DBUILD="$build" -DPREFIX=/opt/walsh -P "$source/cmake/uninstall.cmake"
[ "$(cd "$work/stage" && find . -type f -o -type l)" = ./opt/walsh/bin/mine ] || failed "left: $(cd "$work/stage" && find . -type f)"
[ ! -e "$work/stage/opt/walsh/share/walsh" ] || failed "an empty directory is left"

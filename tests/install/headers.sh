# headers.sh CC SOURCE: each public header compiles alone, as C11 and as C++17, pedantically and without a warning; in C++20,
# which knows designated initializers, the options' macros too.
set -eu
cc=$1 source=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-headers.XXXXXX")
trap 'rm -rf "$work"' EXIT
flags="-pedantic-errors -Wall -Wextra -Wconversion -Wshadow -Werror -fsyntax-only -I$source/include"
case $("$cc" --version) in
*clang*) cxx=$(command -v clang++ || true) ;;
*) cxx=$(command -v g++ || true) ;;
esac
[ -n "$cxx" ] || echo "skipped: the headers as C++ need g++ or clang++"
for header in "$source"/include/*.h; do
    name=$(basename "$header")
    printf '#include "%s"\n#include "%s"\nint walsh_none(void);\nint walsh_none(void) { return 0; }\n' "$name" "$name" >"$work/one.c"
    "$cc" -std=c11 $flags "$work/one.c" || { echo "FAILED: $name as C11" && exit 1; }
    [ -n "$cxx" ] || continue
    cp "$work/one.c" "$work/one.cc"
    "$cxx" -std=c++17 $flags "$work/one.cc" || { echo "FAILED: $name as C++17" && exit 1; }
done
# The version that the headers name is the newest in the changelog.
define() { sed -n "s/^#define WALSH_VERSION_$1 \"\([^\"]*\)\".*/\1/p" "$source/include/walsh_version.h"; }
[ "$(grep -m 1 '^## ' "$source/CHANGELOG.md")" = "## $(define STRING) ($(define DATE))" ] || { echo "FAILED: CHANGELOG.md begins with another version" && exit 1; }
# Each declaration stands behind its comment.
awk '/^WALSH_API/ && last !~ /\*\/$/ { print FILENAME ":" FNR ": no comment: " $0; missing = 1 } { last = $0 } END { exit missing }' \
    "$source"/include/*.h || { echo "FAILED: declarations without a comment" && exit 1; }
[ -n "$cxx" ] || exit 0
{
    for header in "$source"/include/*.h; do echo "#include \"$(basename "$header")\""; done
    echo 'int main() {'
    # struct walsh_x_options = WALSH_X_OPTIONS, and the others whose macro has the struct's name
    sed -n 's/^#define \(WALSH_[A-Z_]*\)  *\\$/\1/p' "$source"/include/*.h | while read -r macro; do
        struct=$(echo "$macro" | tr A-Z a-z)
        grep -q "^struct $struct {" "$source"/include/*.h || continue
        echo "    { struct $struct x = $macro; (void)x; }"
    done
    echo '}'
} >"$work/all.cc"
[ "$(grep -c struct "$work/all.cc")" -ge 12 ] || { echo "FAILED: too few macros were found" && exit 1; }
"$cxx" -std=c++20 $flags -Wno-missing-field-initializers "$work/all.cc" || { echo "FAILED: the macros as C++20" && exit 1; }

# symbols.sh CC SOURCE LIBRARY OBJECTS...: libwalsh.so exports exactly the functions that the headers declare, each with
# WALSH_API, under one version; and the program's objects need no other symbol of walsh.
set -eu
cc=$1 source=$2 library=$3
shift 3
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-symbols.XXXXXX")
trap 'rm -rf "$work"' EXIT
for header in "$source"/include/*.h; do echo "#include \"$(basename "$header")\""; done >"$work/all.c"
# Declarations outside of braces, one per line, from what the compiler sees; names in front of a parenthesis are functions.
declared() { # further flags
    "$cc" -std=c11 -E -P "$@" -I"$source/include" "$work/all.c" | tr '\n' ' ' |
        awk '{ depth = 0; line = ""
               for (i = 1; i <= length($0); i++) {
                   c = substr($0, i, 1)
                   if (c == "{") depth++
                   if (depth == 0) { if (c == ";") { print line; line = "" } else line = line c }
                   if (c == "}") depth--
               } }' | grep 'walsh_[a-z0-9_]* *(' || true
}
names() { sed 's/ *(.*//; s/.*[^a-z0-9_]//'; }
declared '-D__attribute__(x)=' | grep -v '^ *static ' | names | sort -u >"$work/declared"
declared '-D__attribute__(x)=WALSH_EXPORTED' | grep WALSH_EXPORTED | names | sort -u >"$work/marked"
nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' | sort >"$work/versioned"
sed 's/@.*//' "$work/versioned" | sort -u >"$work/exported"

[ "$(wc -l <"$work/declared")" -ge 60 ] || { echo "FAILED: too few declarations were found" && exit 1; }
diff "$work/declared" "$work/marked" >"$work/diff" || { echo "FAILED: declared without WALSH_API:" && cat "$work/diff" && exit 1; }
diff "$work/declared" "$work/exported" >"$work/diff" ||
    { echo "FAILED: < declared, but not exported; > exported, but not declared:" && cat "$work/diff" && exit 1; }
! grep -v '@@WALSH_0$' "$work/versioned" || { echo "FAILED: without a version" && exit 1; }

nm -u "$@" 2>/dev/null | awk '$1 == "U" && $2 ~ /^walsh_/ { print $2 }' | sort -u >"$work/used"
[ -s "$work/used" ] || { echo "FAILED: the program uses nothing?" && exit 1; }
comm -23 "$work/used" "$work/exported" >"$work/private"
[ ! -s "$work/private" ] || { echo "FAILED: the program uses private symbols:" && cat "$work/private" && exit 1; }
echo "$(wc -l <"$work/exported") symbols"

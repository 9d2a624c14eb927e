# Manual pages and shell completion, which come from the tables of options: each option of the help is there, the pages are
# clean, and the shells that are here complete what they should.
. "$(dirname "$0")/lib.sh"

absent() { command -v "$1" >/dev/null && return 1; echo "skipped: $2 needs $1"; }
pages=$work/pages
mkdir "$pages"

works help --completion bash
cp "$work/out" "$work/walsh.bash"
works help --completion zsh
cp "$work/out" "$work/walsh.zsh"
works help --completion fish
cp "$work/out" "$work/walsh.fish"
walsh help --completion tcsh
exits 2
says "walsh: no completion for 'tcsh', but for bash, zsh and fish"

works help --man
cp "$work/out" "$pages/walsh.1"
grep -q "^\.TH WALSH 1 \".*\" \"walsh $(sed -n 's/^#define WALSH_VERSION_STRING "\(.*\)"/\1/p' "$CLI_SOURCE/include/walsh_version.h")\"" \
    "$work/out" || fails "the title names the version"
works help
verbs=$(sed -n '/^Verbs:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$work/out" | grep -vx help)
checked=0
for verb in $verbs; do
    works help --man "$verb"
    cp "$work/out" "$pages/walsh-$verb.1"
    grep -q "^\\\\fB$verb\\\\fR\$" "$pages/walsh.1" || fails "walsh(1) lacks $verb"
    sed 's/\\-/-/g; s/\\f[BRI]//g' "$work/out" >"$work/page"
    # completion words of this verb, one per line
    sed -n "s/^    $verb) words='\(.*\)' ;;\$/\1/p" "$work/walsh.bash" | tr ' ' '\n' >"$work/words"
    sed -n "/^    $verb)\$/,/;;/p" "$work/walsh.zsh" >"$work/zsh"
    works help "$verb"
    for option in $(sed -En 's/^  (-., |    )--([a-z0-9-]+).*/\2/p' "$work/out"); do
        checked=$((checked + 1))
        grep -Eq -- "^(-., )?--$option(\$| |\\[)" "$work/page" || fails "walsh-$verb(1) lacks --$option"
        grep -qx -- "--$option" "$work/words" || fails "bash: $verb lacks --$option"
        grep -Eq -- "(--$option\[|,--$option\}'\[)" "$work/zsh" || fails "zsh: $verb lacks --$option"
        grep -Eq -- "_from $verb' -l $option( |\$)" "$work/walsh.fish" || fails "fish: $verb lacks --$option"
    done
    for letter in $(sed -n 's/^  -\([a-zA-Z]\), --.*/\1/p' "$work/out"); do
        grep -q -- "^-$letter, --" "$work/page" || fails "walsh-$verb(1) lacks -$letter"
    done
done
[ "$checked" -ge 150 ] || fails "only $checked options were looked for"

if ! absent mandoc "the lint of the pages"; then
    mandoc -Tlint -W warning "$pages"/*.1 >"$work/out" 2>&1 || fails "mandoc -Tlint"
fi
if ! absent man "the rendering of the pages"; then
    for page in "$pages"/*.1; do
        MANWIDTH=100 man --warnings=w -l "$page" >"$work/out" 2>"$work/err" </dev/null || fails "man -l $page"
        [ ! -s "$work/err" ] || fails "man -l $page has warnings"
        [ -s "$work/out" ] || fails "man -l $page shows nothing"
    done
fi

# What bash offers for a command line, the last word being completed.
offers() { # words...
    bash -c '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _walsh; printf "%s\n" "${COMPREPLY[@]}"' \
        bash "$work/walsh.bash" "$@" 2>"$work/err" | tr '\n' ' '
}
if ! absent bash "the completion of bash"; then
    last="completion of bash"
    bash -n "$work/walsh.bash" || fails "the script is not bash"
    same "a verb" "$(offers walsh qu)" "quantize "
    same "an option" "$(offers walsh quantize --scale)" "--scale-rounding "
    same "a choice" "$(offers walsh quantize --format mx)" "mxfp4 mxfp8 "
    same "a choice behind =" "$(offers walsh quantize --format = nv)" "nvfp4 "
    same "a choice behind an alias' letter" "$(offers walsh run --kv tur)" "turbo "
    same "nothing for a number" "$(offers walsh run --temp 0)" " "
    same "a verb to explain" "$(offers walsh help ser)" "serve "
    same "an option of another verb" "$(offers walsh devices --scale)" " "
    touch "$work/my-text.txt"
    same "a path" "$(offers walsh eval --text "$work/my-t")" "$work/my-text.txt "
    same "a model" "$(offers walsh eval "$work/my-t")" "$work/my-text.txt "
    [ ! -s "$work/err" ] || fails "the script complains"
fi
if ! absent zsh "the completion of zsh"; then
    last="completion of zsh"
    zsh -n "$work/walsh.zsh" 2>"$work/err" || fails "the script is not zsh"
fi
if ! absent fish "the completion of fish"; then
    last="completion of fish"
    complete() { HOME=$work fish --no-config -c "source $work/walsh.fish; complete -C \"$1\"" 2>"$work/err" | cut -f 1 | tr '\n' ' '; }
    same "a verb" "$(complete "walsh qu")" "quantize "
    same "an option" "$(complete "walsh quantize --scale")" "--scale-rounding "
    same "a choice" "$(complete "walsh quantize --format mx")" "mxfp4 mxfp8 "
    [ ! -s "$work/err" ] || fails "the script complains"
fi
finish

# walsh run --prefix-store: a second run takes over the first one's prompt and says the same; faults in the directory are
# warnings; what must not be used is refused.
. "$(dirname "$0")/lib.sh"

store=$work/store
head -c 3000 "$text" >"$work/long" # some 800 tokens: a whole chunk and a partial one
common="-n 12 --temp 0"

blocks() { find "$1" -name '*.block' | wc -l; }
largest() { find "$1" -name '*.block' -size "+$2c" | wc -l; }

works run "$model" -f "$work/long" $common --json
same "no prefix object without a store" "$("$CLI_JSON_CHECK" prefix <"$work/out" 2>/dev/null)" ""
has first_token_seconds
plain=$(value text)
tokens=$(value prompt_tokens)
true_that "the prompt is longer than a chunk" "$tokens > 600 && $tokens < 1000"

# --- the first run stores, the second takes over
works run "$model" -f "$work/long" $common --json --prefix-store "$store"
same "text of the first run" "$(value text)" "$plain"
same "nothing to take over" "$(value prefix.tokens)" 0
same "all of it is stored" "$(value prefix.stored_tokens)" "$tokens"
same "no ratio" "$(value prefix.ratio)" null
same "blocks" "$(blocks "$store")" 2
for threads in 1 2; do
    works run "$model" -f "$work/long" $common --json --prefix-store "$store" --threads $threads
    same "text of the second run" "$(value text)" "$plain"
    same "all is taken over" "$(value prefix.tokens)" "$tokens"
    same "nothing is stored" "$(value prefix.stored_tokens)" 0
    same "nothing is computed" "$(value prompt_tokens_per_second)" null
    true_that "the ratio is a number" "$(value prefix.ratio) > 0"
    same "no warning" "$(grep -c warning "$work/err")" 0
done
works run "$model" -f "$work/long" $common --prefix-store "$store"
grep -q "^prompt $tokens tokens, $tokens of them from the prefix store, generated 12 tokens" "$work/err" ||
    fails "the report says what was taken over"

# --- a prompt that goes on differently takes over the whole chunk; another cache, adapter, kernel: nothing.
# Which activations are the default is the machine's (AVX512_BF16: bf16), and --activations f32 has an f32 cache: these differ from
# each other and from the default everywhere.
{ head -c 2600 "$work/long" && echo "And then it rained."; } >"$work/other"
works run "$model" -f "$work/other" $common --json
other=$(value text)
works run "$model" -f "$work/other" $common --json --prefix-store "$store"
same "text behind a common beginning" "$(value text)" "$other"
same "the common chunk" "$(value prefix.tokens)" 512
for options in "--kv f32 --activations bf16" "--kv f32 --activations f32" "--kv turbo" "--kv turbo --kv-bits 3" "--kv turbo --kv-skip 1" \
    "--adapter $CLI_SOURCE/models/shakespeare-lora-8m" "--adapter $CLI_SOURCE/models/shakespeare-lora-8m:0.5"; do
    # shellcheck disable=SC2086 # options
    works run "$model" -f "$work/long" $common $options --json
    expected=$(value text)
    # shellcheck disable=SC2086
    works run "$model" -f "$work/long" $common $options --json --prefix-store "$store"
    same "text with $options" "$(value text)" "$expected"
    same "tokens with $options, at first" "$(value prefix.tokens)" 0
    # shellcheck disable=SC2086
    works run "$model" -f "$work/long" $common $options --json --prefix-store "$store"
    same "text with $options again" "$(value text)" "$expected"
    same "tokens with $options, again" "$(value prefix.tokens)" "$tokens"
done

# --- damaged and foreign files are told, with their names, also with --quiet
store=$work/faulty
works run "$model" -f "$work/long" $common --prefix-store "$store"
for block in "$store"/*.block; do
    printf 'X' | dd of="$block" bs=1 seek=4000 conv=notrunc 2>/dev/null
done
echo hello >"$store/notes.txt"
works run "$model" -f "$work/long" $common --json --quiet --prefix-store "$store"
same "text beside damaged blocks" "$(value text)" "$plain"
same "nothing is taken over" "$(value prefix.tokens)" 0
grep -q "^walsh run: warning: $store/notes.txt: skipped: no block of a prefix store$" "$work/err" || fails "foreign file"
grep -Eq "^walsh run: warning: $store/[0-9a-f]{64}.block: skipped: its checksum is wrong: the file is damaged$" "$work/err" ||
    fails "damaged block"
works run "$model" -f "$work/long" $common --json --quiet --prefix-store "$store"
same "damaged blocks were replaced" "$(value prefix.tokens)" "$tokens"
for block in "$store"/*.block; do truncate -s -1 "$block"; done
works run "$model" -f "$work/long" $common --json --prefix-store "$store"
same "text beside cut blocks" "$(value text)" "$plain"
grep -Eq 'warning: .*\.block: skipped: it has [0-9]+ bytes, expected [0-9]+$' "$work/err" || fails "cut block"

# --- the limit
works run "$model" -f "$work/long" $common --json --prefix-store "$work/small" --prefix-store-limit 700K
same "text with a small store" "$(value text)" "$plain"
same "what fits is stored" "$(value prefix.stored_tokens)" 512
grep -q 'a block of the prompt is not stored: .*/small: no room for [0-9]* bytes: its limit is 716800' "$work/err" ||
    fails "a store that is too small for the prompt says so"
works run "$model" -f "$work/other" $common --json --prefix-store "$work/small" --prefix-store-limit 700k
same "what fits is used" "$(value prefix.tokens)" 512
same "one block" "$(blocks "$work/small")" 1
same "within the limit" "$(largest "$work/small" 716800)" 0

# --- a full disk, a directory that cannot be made: a warning, and the run goes on
(
    ulimit -f 100 # blocks of 512 bytes, or of 1024
    exec "$CLI_WALSH" run "$model" -f "$work/long" $common --json --prefix-store "$work/full" >"$work/out" 2>"$work/err"
)
code=$? last="run with a full disk"
exits 0
same "text with a full disk" "$(value text)" "$plain"
grep -q 'warning: a block of the prompt is not stored: .*: File too large$' "$work/err" || fails "a full disk is told"
same "nothing half written" "$(find "$work/full" -type f ! -name lock | wc -l)" 0
works run "$model" -f "$work/long" $common --json --prefix-store "$work/no/such"
same "text without a store" "$(value text)" "$plain"
grep -q "^walsh run: warning: $work/no/such: cannot make the directory: No such file or directory; there is no prefix store$" \
    "$work/err" || fails "a directory that cannot be made is told"

# --- what is refused
mkdir "$work/open"
chmod 777 "$work/open"
misuse "WORK/open: everybody may write to it (mode 0777): a prefix store must be private (chmod 700)" \
    run "$model" hello --prefix-store "$work/open"
misuse "--prefix-store-limit needs --prefix-store DIR" run "$model" hello --prefix-store-limit 1G
for size in 0 G 1X 1GB -1 9999999T 99999999999999999999; do
    misuse "--prefix-store-limit is \"$size\", expected a number of bytes with K, M, G or T behind it or without" \
        run "$model" hello --prefix-store "$work/none" "--prefix-store-limit=$size"
done
[ ! -e "$work/none" ] || fails "a directory was made all the same"

# --- two at once, and one that is killed
store=$work/shared
for i in 1 2 3; do
    "$CLI_WALSH" run "$model" -f "$work/long" $common --json --quiet --prefix-store "$store" >"$work/a" 2>"$work/a.err" &
    first=$!
    "$CLI_WALSH" run "$model" -f "$work/long" $common --json --quiet --prefix-store "$store" >"$work/b" 2>"$work/b.err" &
    wait $first || fails "the first of two"
    wait $! || fails "the second of two"
    for side in a b; do
        cp "$work/$side" "$work/out"
        cp "$work/$side.err" "$work/err"
        same "text of $side, $i" "$(value text)" "$plain"
        same "warnings of $side, $i" "$(cat "$work/err")" ""
    done
done
store=$work/killed
for pause in 0.02 0.05 0.08 0.11 0.14; do
    "$CLI_WALSH" run "$model" -f "$work/long" -n 200 --quiet --prefix-store "$store" >/dev/null 2>&1 &
    victim=$!
    sleep $pause
    kill -9 $victim 2>/dev/null
    wait $victim 2>/dev/null
done
works run "$model" -f "$work/long" $common --json --prefix-store "$store"
same "text after kills" "$(value text)" "$plain"
same "warnings after kills" "$(grep -c warning "$work/err")" 0
same "nothing left of the killed" "$(find "$store" -name '*.tmp' | wc -l)" 0

finish

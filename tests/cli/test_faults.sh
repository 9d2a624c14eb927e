# Faults in the data exit with 1, wrong options with 2; models without a tokenizer or with holes in it; special tokens in
# prompts; caches that cannot fit together; a conversation that goes on.
. "$(dirname "$0")/lib.sh"

# A model directory made of links to the embedded one, without the files named.
without() { # directory files...
    mkdir -p "$1"
    ln -s "$model"/* "$1/"
    directory=$1
    shift
    for file; do rm "$directory/$file"; done
}

# --- data: 1, options: 2; either as a JSON object too
echo "A short text." >"$work/short"
refuses "the text has 5 tokens, one chunk of the context 64: use a smaller context" eval "$model" --text "$work/short" -c 64
refuses "the prompt is empty" run "$model" ""
walsh run "$model" "" --json
exits 1
same status "$(value error.status)" format
same message "$(value error.message)" "the prompt is empty"
walsh run "$model" hello -c 5000 --json
exits 2
same status "$(value error.status)" argument
same message "$(value error.message)" "context of 5000 tokens: the model has positions for 1 to 1024"
misuse "--top-p: 0 is out of range: above 0, at most 1" run "$model" hello --top-p 0
cat >"$work/group.json" <<'JSON'
{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 40000, "num_key_value_heads": 1,
 "head_dim": 2, "vocab_size": 64, "max_position_embeddings": 64}
JSON
refuses "shape: 40000 attention heads for 1 key-value heads are 40000 for each, expected at most 256" \
    bench --shape "$work/group.json" --format bf16
sed 's/"head_dim": 2/"head_dim": 3/' "$work/group.json" >"$work/odd.json"
refuses "shape: head_dim is 3, expected an even number" bench --shape "$work/odd.json"

# --- repeat-last 0: no penalty at all
works run "$model" "It was late" -n 24 --temp 0 --quiet
cp "$work/out" "$work/plain"
works run "$model" "It was late" -n 24 --temp 0 --repeat-penalty 10 --repeat-last 0 --quiet
cmp -s "$work/out" "$work/plain" || fails "a penalty over no token changes nothing"
works run "$model" "It was late" -n 24 --temp 0 --repeat-penalty 10 --quiet
! cmp -s "$work/out" "$work/plain" || fails "a penalty over 64 tokens changes the text"

# --- ids that the tokenizer has no token for are never drawn
without "$work/cut" tokenizer.json
awk -v keep=2000 -v first=259 -f "$CLI_SOURCE/tests/cli/cut_tokenizer.awk" "$model/tokenizer.json" >"$work/cut/tokenizer.json"
works run "$work/cut" "It was late in the evening" -n 60 --temp 1 --top-p 1 --seed 3 --json
same tokens "$(value tokens)" 60
works run "$work/cut" "It was late in the evening" -n 60 --temp 0 --json
same tokens "$(value tokens)" 60

# --- a tokenizer that knows more ids than the model
without "$work/more" tokenizer.json
sed 's/"ients": 8191/"ients": 8192/' "$model/tokenizer.json" >"$work/more/tokenizer.json"
refuses "WORK/more: tokenizer.json gives id 8192, the model's vocabulary has ids 0 to 8191" run "$work/more" ients

# --- no tokenizer.json
without "$work/mute" tokenizer.json
works inspect "$work/mute"
grep -q '^vocabulary    8192 (no tokenizer.json)$' "$work/out" || fails "inspect says that there is no tokenizer"
works bench "$work/mute" --prompt 8 --generate 2 --repeat 1
missing="WORK/mute/tokenizer.json: no such file (a model directory needs its tokenizer.json)"
refuses "$missing" run "$work/mute" hello
refuses "$missing" eval "$work/mute" --text "$work/short"

# --- special tokens in a prompt
works run "$model" "<|im_start|>" -n 1 --json
same "tokens of a special token" "$(value prompt_tokens)" 1
works run "$model" "<|im_start|>" -n 1 --json --plain-text
true_that "its text is several tokens" "$(value prompt_tokens) > 3"

# --- activations that the weights do not know
works run "$model" hello -n 1 --activations int8
grep -Eq '^walsh run: bf16 weights know no int8 activations: (bf16|f32) is used$' "$work/err" || fails "int8 on bf16 weights"
works bench --shape smollm2-135m --bits 2 --prompt 0 --generate 1 --repeat 1 --activations bf16
grep -q '^walsh bench: e8p weights know no bf16 activations: f32 is used$' "$work/err" || fails "bf16 on e8p weights"
works run "$model" hello -n 1 --activations f32
! grep -q 'know no' "$work/err" || fails "f32 is known to all"

# --- caches that fit one by one and not together
cat >"$work/caches.json" <<'JSON'
{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 16, "num_attention_heads": 64, "num_key_value_heads": 64,
 "head_dim": 64, "vocab_size": 64, "max_position_embeddings": 4096}
JSON
walsh bench --shape "$work/caches.json" --format bf16 --prompt 0 --generate 1 --depth 1023 --batch 4096 --kv f32
exits 1
grep -q '^walsh bench: the KV caches of 4096 sessions with a context of 1024 tokens needs 2097152.0 MiB, this machine has ' \
    "$work/err" || fails "the sum of the caches is refused with the figure"

# --- a conversation: empty lines and lines beyond the context are told, and the next is answered
if command -v script >/dev/null; then
    last="run MODEL on a terminal"
    long=$(printf 'word %.0s' $(seq 60))
    { sleep 2; printf '\n%s\nhello\n\004' "$long"; sleep 3; } |
        script -qec "'$CLI_WALSH' run '$model' -c 32 -n 4 --temp 0" /dev/null >"$work/out" 2>"$work/err"
    code=$?
    exits 0
    grep -q 'prompt of [0-9]* tokens: the context holds 32, 0 are in use' "$work/out" || fails "the long line is told"
    grep -q 'prompt [0-9]* tokens.*generated 4 tokens' "$work/out" || fails "the line behind it is answered"
fi

finish

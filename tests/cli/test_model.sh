# The verbs on the embedded model: text, JSON, stop strings, threads, the context's limit, Ctrl-C.
. "$(dirname "$0")/lib.sh"
prompt="It was late in the evening when"

# --- run: the same text however the prompt comes and however many threads compute
works run "$model" "$prompt" -n 24 --temp 0
cp "$work/out" "$work/reference"
[ "$(wc -c <"$work/reference")" -gt 40 ] || fails "a text of 24 tokens"
grep -q '^prompt [0-9]* tokens ([0-9.]* tokens/s), generated 24 tokens ([0-9.]* tokens/s), end: length, seed [0-9]*$' \
    "$work/err" || fails "the report of speeds"
works run "$model" -p "$prompt" -n 24 --temperature 0 --quiet
cmp -s "$work/out" "$work/reference" || fails "--prompt"
says ""
printf %s "$prompt" >"$work/prompt"
works run "$model" -f "$work/prompt" --n-predict 24 --temp 0
cmp -s "$work/out" "$work/reference" || fails "--file"
for source in - ""; do
    last="run MODEL $source <prompt"
    # shellcheck disable=SC2086 # no argument at all where it is empty
    "$CLI_WALSH" run "$model" $source -n 24 --temp 0 <"$work/prompt" >"$work/out" 2>"$work/err"
    code=$?
    exits 0
    cmp -s "$work/out" "$work/reference" || fails "standard input"
done
for threads in 1 2 3; do
    works run "$model" "$prompt" -n 24 --temp 0 --threads $threads
    cmp -s "$work/out" "$work/reference" || fails "text with $threads threads"
    works run "$model" "$prompt" -n 24 --temp 1 --seed 7 --threads $threads
    [ $threads -eq 1 ] && cp "$work/out" "$work/drawn"
    cmp -s "$work/out" "$work/drawn" || fails "drawn text with $threads threads"
done
works run "$model" "$prompt" -n 24 --temp 1 --seed 8
! cmp -s "$work/out" "$work/drawn" || fails "another seed, another text"

last="(example) MODEL PROMPT"
"$CLI_EXAMPLE" "$model" "$prompt" >"$work/out" 2>"$work/err"
code=$?
exits 0
cmp -s "$work/out" "$work/reference" || fails "the example generates the same"

: >"$work/expected"
set -- "$prompt" "The sea" "Once upon a time there was a king who" "A" "He said" "In the morning,"
for i in 1 2 3 4 5 6; do # two more than run at a time
    eval "words=\$$i"
    works run "$model" "$words" -n 24 --temp 0
    printf '%s:' $i >>"$work/expected"
    cat "$work/out" >>"$work/expected"
done
last="(example) MODEL PROMPT..."
"$CLI_EXAMPLE_BATCH" "$model" "$@" >"$work/out" 2>"$work/err"
code=$?
exits 0
cmp -s "$work/out" "$work/expected" || fails "each prompt of a batch gives what it gives alone"

works run "$model" "$prompt" -n 24 --temp 0 --json
has text tokens prompt_tokens prompt_tokens_per_second tokens_per_second finish seed
same text "$(value text)" "$(cat "$work/reference")"
same tokens "$(value tokens)" 24
same finish "$(value finish)" length

# A text may have bytes 0.
zeros=$CLI_SOURCE/tests/fixtures/golden/tiny-gpt-oss
works run "$zeros" --adapter "$zeros-lora" " " -n 30 -s 814061167799 --temp 1.7 --min-p 0.05
[ "$(head -c 1 "$work/out" | od -An -tx1)" = " 00" ] || fails "the first token is byte 0"
works run "$zeros" --adapter "$zeros-lora" " " -n 30 -s 814061167799 --temp 1.7 --min-p 0.05 --json
grep -q '"text": "\\u0000=M5' "$work/out" || fails "the text behind byte 0"

# --- stop strings end the text before themselves, also where they span tokens
word=$(cut -c 20-30 "$work/reference" | head -n 1)
works run "$model" "$prompt" -n 24 --temp 0 --json --stop zzzz --stop "$word"
same finish "$(value finish)" stop
same text "$(value text)" "$(head -n 1 "$work/reference" | cut -c 1-19)"

# --- the context
refuses "prompt of 11 tokens: the context holds 4, 0 are in use" run "$model" "$prompt and then and then" -c 4
misuse "context of 5000 tokens: the model has positions for 1 to 1024" run "$model" hi -c 5000
works run "$model" "$prompt" -c 16 -n 100 --temp 0 --json
same finish "$(value finish)" context

# --- Ctrl-C ends the text, not the program's success; by the reference's kernels, with which 900 tokens take seconds on any machine
last="run MODEL, interrupted"
"$CLI_WALSH" run "$model" "$prompt" -n 900 --temp 0 --stop zzzz --cpu reference --threads 1 >"$work/out" 2>"$work/err" &
pid=$!
for _ in $(seq 2000); do
    [ -s "$work/out" ] && break
    sleep 0.05
done
kill -INT $pid
wait $pid
code=$?
exits 0
grep -q 'end: interrupted' "$work/err" || fails "the report says that it was interrupted"

# --- eval
head -c 20000 "$text" >"$work/text"
works eval "$model" --text "$work/text" --context 256 --activations f32 --json
has ppl ppl_error nll tokens context seconds
same context "$(value context)" 256
true_that "a perplexity of prose" "$(value ppl) > 10 && $(value ppl) < 60"
true_that "ppl = exp(nll)" "($(value ppl) / exp($(value nll)) - 1) ^ 2 < 1e-12"
ppl=$(value ppl)
for threads in 1 3; do
    works eval "$model" --text "$work/text" --context 256 --activations f32 --json --threads $threads
    same "ppl with $threads threads" "$(value ppl)" "$ppl"
done
works eval "$model" --text "$work/text" --context 256 --activations f32 --reference "$model" --json
has kl top1_agreement
true_that "no distance from itself" "$(value kl) < 1e-9 && $(value top1_agreement) == 1"
works eval "$model" --text "$work/text" -c 256
grep -q '^perplexity  [0-9.]* +- [0-9.]*$' "$work/out" || fails "the table of eval"
refuses "cannot open 'WORK/missing': No such file or directory" eval "$model" --text "$work/missing"
refuses "cannot read 'WORK': Is a directory" eval "$model" --text "$work"

# --- inspect
works inspect "$model"
works inspect "$model" --tensors --json
has architecture format bits_per_weight parameters checkpoint_bytes memory_bytes decode_bytes parts tensors.0.name
same bytes "$(value checkpoint_bytes)" "$(wc -c <"$model/model.safetensors" | tr -d ' ')"

# --- bench
works bench "$model" --prompt 32 --generate 4 --batch 1,3 --depth 0,8 --repeat 1 --json
has results.0.test results.0.tokens results.0.batch results.0.depth results.0.tokens_per_second results.0.weight_bytes \
    results.0.bandwidth_gbps results.0.weights_per_second results.0.share_of_ceiling ceilings.read_gbps \
    ceilings.one_thread.fma_f32_gflops ceilings.all_threads.fma_f32_gflops
same rows "$(value results)" 6
same test "$(value results.0.test)" prompt
same batch "$(value results.2.batch)" 3
works bench "$model" --prompt 8 --generate 4 --repeat 1
works bench "$model" --prompt 40 --generate 4 --repeat 1 --batch 2,3 --requests 7 --prefill 16 --json
has results.4.tokens_per_second results.4.prompt_tokens_per_second results.4.rows results.4.seconds_between_tokens \
    results.4.seconds_between_tokens_p99 results.4.seconds_to_first_token results.4.kv_bytes
same rows "$(value results)" 5
same test "$(value results.4.test)" requests
same requests "$(value results.4.requests)" 7
same prefill "$(value results.4.prefill)" 16
same batch "$(value results.4.batch)" 3
works bench "$model" --prompt 8 --generate 4 --repeat 1 --requests 3 --adapter random:r=4 --mixed --batch 2
grep -q '^requests        4      2       0  *[0-9.]*        -  3 requests, [0-9.]* rows a step; between tokens ' "$work/out" ||
    fails "a line for the requests"
misuse "--requests needs a --prompt and --generate of at least 1 token" bench "$model" --requests 3 --prompt 0
cat >"$work/shape.json" <<'END'
{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
 "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 256}
END
for format in bf16 e8p; do
    works bench --shape "$work/shape.json" --format $format --bits 2 --prompt 8 --generate 4 --repeat 1 --json
    same format "$(value format)" $format
done
tied=$(value results.0.weight_bytes)
works bench --shape "$work/shape.json" --format e8p --bits 2 --head int8 --prompt 8 --generate 0 --repeat 1 --json
[ $((tied - $(value results.0.weight_bytes))) = $((512 * 128 - 512 * 4)) ] ||
    fails "an int8 head is a byte per weight and a scale per row"
misuse "--head: 'f16' is not supported; supported: bf16|int8" bench --shape "$work/shape.json" --head f16

refuses "cannot open 'WORK/none.json': No such file or directory" bench --shape "$work/none.json"
echo '{"hidden_size": 128}' >"$work/bad.json"
refuses "WORK/bad.json: 'intermediate_size' is missing" bench --shape "$work/bad.json"
cat >"$work/large-cache.json" <<'END'
{"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 128, "num_attention_heads": 256, "num_key_value_heads": 256,
 "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 1000000}
END
walsh bench --shape "$work/large-cache.json" --format bf16 --prompt 8 --generate 0 --depth 100000 --kv f32
exits 1
grep -q '^walsh bench: the KV cache of a context of 100008 tokens needs 400384.0 MiB, this machine has [0-9.]* MiB available$' \
    "$work/err" || fails "the cache that cannot fit is refused with the figure"
works bench --kernels hadamard --json
has ceilings.read_gbps ceilings.one_thread.dot_i8_gops ceilings.all_threads.dot_bf16_gflops kernels.0.kernel kernels.0.implementation kernels.0.ratio kernels.0.roofline \
  kernels.0.floor_seconds

finish

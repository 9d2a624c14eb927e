# Adapters through the program: run, eval, bench, inspect, merge; names, scales, and what is refused.
. "$(dirname "$0")/lib.sh"
lora=$CLI_SOURCE/models/shakespeare-lora-8m
play=$CLI_SOURCE/data/shakespeare-valid.txt
prompt="It was late in the evening when"

# --- run: another text with the adapter, the base's with a scale of 0; the same with any number of threads
works run "$model" "$prompt" -n 24 --temp 0
cp "$work/out" "$work/base"
works run "$model" "$prompt" -n 24 --temp 0 --adapter "$lora"
cp "$work/out" "$work/with"
! cmp -s "$work/base" "$work/with" || fails "the adapter changes the text"
for threads in 1 2 3; do
    works run "$model" "$prompt" -n 24 --temp 0 --adapter "bard=$lora:1.0" -t $threads
    cmp -s "$work/out" "$work/with" || fails "a name, a scale of 1 and $threads threads change nothing"
done
works run "$model" "$prompt" -n 24 --temp 0 --adapter "$lora:0"
cmp -s "$work/out" "$work/base" || fails "a scale of 0 is no adapter"
works run "$model" "$prompt" -n 24 --temp 0 --adapter "$lora:1" --lora "again=$lora/:-1"
cmp -s "$work/out" "$work/base" || fails "an adapter and its opposite"

# --- eval: better on a play, and the distance from the base
works eval "$model" --text "$play" --max-tokens 1536 --context 512 --json
base=$(value ppl)
works eval "$model" --text "$play" --max-tokens 1536 --context 512 --adapter "$lora" --reference "$model" --json
has ppl kl top1_agreement
true_that "perplexity of a play falls by a tenth and more" "$(value ppl) < 0.9 * $base"
true_that "the adapter moves the model" "$(value kl) > 0.05"

# --- inspect: ranks, bytes in memory; what a file says reaches a terminal without its control characters
works inspect "$model" --adapter "$lora" --adapter "second=$lora:0.5" --json
same adapters "$(value adapters.0.name) $(value adapters.0.most_rank) $(value adapters.0.linears)" "shakespeare-lora-8m 16 35"
same second "$(value adapters.1.name) $(value adapters.1.scale)" "second 0.5"
same bytes "$(value adapters.0.memory_bytes)" 911360
works inspect "$model" --adapter "$lora"
grep -q '^911360 bytes of adapters in memory' "$work/out" || fails "bytes of adapters"
mkdir "$work/rude"
ln -s "$lora/adapter_model.safetensors" "$work/rude"
sed 's/"base_model_name_or_path": "[^"]*"/"base_model_name_or_path": "a\\u001b[31m\\nb\\u007f\\u009bc\\u00e9"/' \
    "$lora/adapter_config.json" >"$work/rude/adapter_config.json"
works inspect "$model" --adapter "$work/rude"
grep -q '  a?\[31m?b???cé$' "$work/out" || fails "control characters of base_model"
grep -q "^walsh inspect: warning: WORK/rude: the adapter was made for a?\[31m?b???cé; the model is " <<EOF || fails "and of the warning"
$(message)
EOF
works inspect "$model" --adapter "$work/rude" --json
same "the JSON has them" "$(value adapters.0.base_model)" "$(printf 'a\033[31m\nb\177\302\233cé')"

# --- bench: each test without and with, and synthetic adapters
works bench "$model" --adapter "$lora" --prompt 16 --generate 4 --repeat 1 --json
same without "$(value results.0.adapter) $(value results.0.test)" "false prompt"
same with "$(value results.3.adapter) $(value results.3.test)" "true generate"
has results.3.overhead results.3.adapter_bytes
same "which adapter" "$(value adapters.0.name) $(value adapters.0.most_rank) $(value adapters.0.scale) $(value mixed)" \
    "shakespeare-lora-8m 16 1 false"
same bytes "$(value results.3.adapter_bytes)" 911360
works bench "$model" --adapter random:r=3 --mixed --batch 4 --prompt 0 --generate 4 --repeat 1 --json
same "which adapter" "$(value adapters.0.name) $(value adapters.0.least_rank) $(value mixed)" "random-1 3 true"
true_that "every sequence has an adapter of its own" "$(value results.1.adapter_bytes) >= 4 * 3 * 2 * 5 * 6000"
for option in random: random:x random:r= random:r=0 random:r=257 random:r=4x random:r=+4; do
    misuse "--adapter '$option': expected random:r=N with N from 1 to 256" bench "$model" --adapter $option
done
synthetic="a synthetic adapter is for walsh bench; expected [NAME=]DIR[:SCALE]"
misuse "--adapter 'random:r=4': $synthetic" run "$model" hi --adapter random:r=4
misuse "--adapter 'random:r=4': $synthetic" eval "$model" --text "$play" --adapter random:r=4
misuse "--adapter 'random:r=4': $synthetic" inspect "$model" --adapter random:r=4
misuse "--adapter 'random:r=4': $synthetic" merge "$model" random:r=4 "$work/none"
misuse "--mixed needs an --adapter" bench "$model" --mixed
misuse "--mixed needs an --adapter" bench --kernels e8p --mixed
misuse "--kernels and --adapter exclude each other" bench --kernels e8p --adapter "$lora"

# --- merge: the same perplexity without the adapter
works merge "$model" "$lora" "$work/merged" --json
has destination bytes_written
works eval "$work/merged" --text "$play" --max-tokens 1536 --context 512 --json
merged=$(value ppl)
works eval "$model" --text "$play" --max-tokens 1536 --context 512 --adapter "$lora" --json
true_that "merged and unmerged agree" "($merged / $(value ppl) - 1) ^ 2 < 0.002 ^ 2"
works merge "$model" "$lora" "$work/small" --format e8p --bits 4 --no-hessian
[ ! -e "$work/small.merged" ] || fails "the merged model on the way is removed"
works eval "$work/small" --text "$play" --max-tokens 1536 --context 512 --json
true_that "quantized after merging" "$(value ppl) < $merged * 1.12"
last="merge --format, interrupted"
"$CLI_WALSH" merge "$model" "$lora" "$work/stopped/" --format e8p --bits 2 --threads 1 --quiet >"$work/out" 2>"$work/err" &
pid=$!
for _ in $(seq 6000); do
    grep -q '"copied": *true' "$work/stopped.partial/job.json" 2>/dev/null && break
    [ -e "$work/stopped" ] && break
    sleep 0.02
done
[ -e "$work/stopped.merged/config.json" ] || fails "stopped while it quantizes"
kill -INT $pid
wait $pid
code=$?
exits 1
says "walsh merge: stopped; nothing was written"
for name in stopped stopped.merged stopped.partial; do
    [ ! -e "$work/$name" ] || fails "$name is left"
done
mkdir "$work/taken.partial"
refuses "WORK/taken.partial exists; merge --format works there, remove it or choose another name" \
    merge "$model" "$lora" "$work/taken" --format e8p --no-hessian
[ -d "$work/taken.partial" ] || fails "what was there stays"
misuse "--bits needs a --format" merge "$model" "$lora" "$work/none" --bits 2
misuse "--rotation needs a --format" merge "$model" "$lora" "$work/none" --rotation none
misuse "--head needs a --format" merge "$model" "$lora" "$work/none" --head int8
misuse "--group-size needs a --format" merge "$model" "$lora" "$work/none" --group-size 32
misuse "bits is an option of e8p; the format is mxfp4" merge "$model" "$lora" "$work/none" --format mxfp4 --bits 3
misuse "group_size is an option of int8 and int4; the format is e8p" \
    merge "$model" "$lora" "$work/none" --format e8p --group-size 64
mkdir "$work/other.merged.partial"
refuses "WORK/other.merged.partial exists; merge --format works there, remove it or choose another name" \
    merge "$model" "$lora" "$work/other" --format mxfp4
misuse "--no-hessian needs a --format" merge "$model" "$lora" "$work/none" --no-hessian
misuse "--format and --dtype exclude each other" merge "$model" "$lora" "$work/none" --format e8p --dtype f32
[ ! -e "$work/none" ] || fails "wrong usage writes nothing"
refuses "WORK/merged exists; merge writes a new directory" merge "$model" "$lora" "$work/merged"
misuse "DST is missing" merge "$model" "$lora"

# --- what is refused
misuse "--adapter: two adapters are named 'shakespeare-lora-8m'; give one another with NAME=" \
    run "$model" hi --adapter "$lora" --adapter "$lora/"
misuse "--adapter '=SOURCE/models/shakespeare-lora-8m': a name of 1 to 127 characters stands before =" run "$model" hi --adapter "=$lora"
misuse "--adapter ':2': no directory; expected [NAME=]DIR[:SCALE]" run "$model" hi --adapter :2
misuse "--adapter 'SOURCE/models/shakespeare-lora-8m:1e99': the scale is not a finite number" run "$model" hi --adapter "$lora:1e99"
refuses "WORK/none: not a LoRA adapter: it has no adapter_config.json" run "$model" hi --adapter "$work/none:2"
mkdir "$work/cut"
cp "$lora/adapter_config.json" "$work/cut"
head -c 100000 "$lora/adapter_model.safetensors" >"$work/cut/adapter_model.safetensors"
walsh eval "$model" --text "$play" --adapter "$work/cut"
exits 1
silent
grep -q '^walsh eval: .*/cut/adapter_model.safetensors: ' "$work/err" || fails "a truncated adapter is named"
finish

#!/bin/sh
# Long checks on models that are not in the repository. Usage: tests/proof/run.sh BUILD MODELS
# MODELS holds one Hugging Face directory per model (bookworm-26m, ...); the texts are in TEXTS (default MODELS/../text), the
# reference outputs in GOLDEN (default MODELS/../golden). What is absent is reported as absent, never as passed. Logs go to
# tests/proof/results/.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
models=$(cd "$2" && pwd)
texts=${TEXTS:-$models/../text}
golden=${GOLDEN:-$models/../golden}
walsh=$build/walsh
results=$root/tests/proof/results
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-proof.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir -p "$results"
export LC_ALL=C
passed=0 failed=0 absent=0
log=$results/proof.log
: >"$log"

say() { echo "$*" | tee -a "$log"; }
ok() { # what, awk condition
    if awk "BEGIN { exit !($2) }"; then
        passed=$((passed + 1))
        say "ok      $1 ($2)"
    else
        failed=$((failed + 1))
        say "FAILED  $1 ($2)"
    fi
}
missing() {
    absent=$((absent + 1))
    say "absent  $1"
}
number() { sed -n "s/.*\"$1\": \([-+0-9.e]*\).*/\1/p" "$work/json"; }
# Run walsh, its JSON object into $work/json; a failure counts and makes the numbers empty.
measure() {
    if ! "$walsh" "$@" --json >"$work/json" 2>"$work/err"; then
        failed=$((failed + 1))
        say "FAILED  walsh $*: $(tail -n 1 "$work/err")"
        : >"$work/json"
        return 1
    fi
}

say "# walsh proof, $(uname -m), $(nproc) CPUs, $("$walsh" --version)"
say "# $("$walsh" devices | sed -n 's/^features *//p')"

# --- logits, log-probabilities, greedy text and perplexities of the unquantized models against fp32 transformers
"$build/tests/golden" --proof "$models" "$golden" "$texts" >"$work/golden" 2>&1 || true
tee -a "$log" <"$work/golden"
absent=$((absent + $(grep -c ' is absent$' "$work/golden" || true)))
failed=$((failed + $(grep 'FAIL' "$work/golden" | grep -vcE ' is absent$|^golden' || true)))
passed=$((passed + $(grep -c '^  ok ' "$work/golden" || true)))

# --- ids of whole texts against the tokenizers package, and the speed of encoding
"$build/tests/encode_texts" "$root/models/bookworm-8m" "$root/tests/fixtures/text/texts.tsv" "$texts" >"$work/ids" || true
tee -a "$log" <"$work/ids"
absent=$((absent + $(grep -c '^absent' "$work/ids" || true)))
failed=$((failed + $(grep -c '^FAILED' "$work/ids" || true)))
passed=$((passed + $(grep -c '^ok' "$work/ids" || true)))

# --- quality and time of quantization: perplexity of valid.txt, 128 x 1024 tokens of calibration.txt, fp32 activations
quality() { # label, condition on ppl, quantize options...
    what=$1 condition=$2
    shift 2
    rm -rf "$work/q"
    measure quantize "$models/bookworm-26m" "$work/q" "$@" || return 0
    cp "$work/json" "$results/quantize-$(echo "$what" | tr ' ' '-').json"
    seconds=$(number seconds) encode=$(number encode_seconds)
    measure eval "$work/q" --text "$texts/valid.txt" --context 1024 --activations f32 || return 0
    ppl=$(number ppl)
    say "        $what: ppl $ppl, $seconds s, $encode s of them encoding"
    ok "$what" "$(echo "$condition" | sed "s/ppl/$ppl/g")"
}
if [ -d "$models/bookworm-26m" ] && [ -f "$texts/calibration.txt" ] && [ -f "$texts/valid.txt" ]; then
    calibration="--calibration $texts/calibration.txt --samples 128 --sample-tokens 1024"
    # shellcheck disable=SC2086 # a list of options
    {
        quality "26m 4 bits" "ppl <= 20.85" --bits 4 --threads 2 $calibration
        ok "26m 4 bits in time" "${seconds:-999} < 120 && ${encode:-999} < 40"
        quality "26m 3 bits" "ppl <= 21.45" --bits 3 $calibration
        quality "26m 2 bits" "ppl <= 24.4" --bits 2 $calibration
        quality "26m 4 bits LDLQ only" "(ppl / 20.799 - 1) ^ 2 < 0.01 ^ 2" --bits 4 --passes 0 --plain $calibration
        quality "26m 3 bits LDLQ only" "(ppl / 21.485 - 1) ^ 2 < 0.01 ^ 2" --bits 3 --passes 0 --plain $calibration
        quality "26m 2 bits LDLQ only" "(ppl / 24.905 - 1) ^ 2 < 0.01 ^ 2" --bits 2 --passes 0 --plain $calibration
        quality "26m 2 bits no Hessian" "(ppl / 37.921 - 1) ^ 2 < 0.04 ^ 2" --bits 2 --no-hessian --plain --passes 0
    }
else
    missing "bookworm-26m or its texts: quality and time of quantization"
fi
if [ -d "$models/bookworm-moe-12m" ]; then
    if measure quantize "$models/bookworm-moe-12m" "$work/moe" --bits 4; then
        if measure eval "$work/moe" --text "$root/data/valid.txt" --context 1024; then
            say "        moe-12m 4 bits: ppl $(number ppl)"
            ok "moe-12m 4 bits" "$(number ppl) < 28.5137 * 1.02"
        fi
    fi
else
    missing "bookworm-moe-12m: quantization of experts"
fi

# --- adapters: on quantized weights, and merged (their logits and perplexities are in the golden part)
if [ -d "$models/bookworm-26m" ] && [ -d "$models/shakespeare-lora-26m" ] && [ -f "$texts/shakespeare-valid.txt" ]; then
    lora=$models/shakespeare-lora-26m play=$texts/shakespeare-valid.txt
    rm -rf "$work/q"
    if measure quantize "$models/bookworm-26m" "$work/q" --bits 4 --calibration "$texts/calibration.txt" &&
        measure eval "$work/q" --text "$play" --context 1024 --adapter "$lora"; then
        say "        26m 4 bits with its adapter: ppl $(number ppl) of shakespeare-valid, 24.7164 in fp32"
        ok "26m 4 bits with its adapter" "$(number ppl) < 24.7164 * 1.02"
    fi
else
    missing "bookworm-26m, its adapter or a text: adapters on quantized weights"
fi
for name in 26m moe-12m; do
    model=$models/bookworm-$name lora=$models/shakespeare-lora-$name
    if [ ! -d "$model" ] || [ ! -d "$lora" ]; then
        missing "bookworm-$name or its adapter: merging"
        continue
    fi
    for dtype in f32 bf16; do
        rm -rf "$work/merged"
        measure merge "$model" "$lora" "$work/merged" --dtype $dtype || continue
        measure eval "$model" --adapter "$lora" --reference "$work/merged" --text "$root/data/shakespeare-valid.txt" \
            --max-tokens 8192 --context 1024 --activations f32 || continue
        say "        $name merged in $dtype: KL $(number kl) from unmerged, top-1 $(number top1_agreement)"
        ok "$name merged in $dtype" "$(number kl) < $([ $dtype = f32 ] && echo 1e-7 || echo 1e-4)"
    done
done
if "$root/tests/proof/planted.sh" >"$work/planted" 2>&1; then
    passed=$((passed + 1))
else
    failed=$((failed + 1))
fi
tee -a "$log" <"$work/planted"

# --- faults against a server: clients killed, slow, half-open, garbage, a full disk, kill -9; SERVE_SECONDS (1200) of load
if ! command -v python3 >/dev/null; then
    missing "faults against a server: there is no python3"
elif PYTHONDONTWRITEBYTECODE=1 python3 "$root/tests/proof/serve_faults.py" "$build" "${SERVE_SECONDS:-1200}" >"$work/json" 2>"$work/err"; then
    passed=$((passed + 1))
    say "ok      faults against a server: $(number right) right answers, $(number killed) clients killed"
    cp "$work/json" "$results/serve-faults.json"
else
    failed=$((failed + 1))
    say "FAILED  faults against a server: $(tail -n 1 "$work/err") $(cat "$work/json")"
fi

# --- soak of the batch scheduler under AddressSanitizer: 200 requests at a time, SOAK_SECONDS (600) for each kind of cache
(cd "$root" && cmake --preset asan --log-level=WARNING && cmake --build --preset asan --target soak) >>"$log" 2>&1 || true
soak() { # label, options...
    what=$1
    shift
    if "$root/build-asan/tests/soak" "$root/models/bookworm-8m" "$root/models/shakespeare-lora-8m" \
        --seconds "${SOAK_SECONDS:-600}" "$@" >"$work/json" 2>"$work/err"; then
        passed=$((passed + 1))
        say "ok      soak, $what: $(number requests) requests, $(number tokens) tokens, $(number most_rows) rows at most," \
            "heap $(number heap_first) then at most $(number heap_most) bytes"
    else
        failed=$((failed + 1))
        say "FAILED  soak, $what: $(tail -n 1 "$work/err")"
    fi
    cp "$work/json" "$results/soak-$(echo "$what" | tr ' ' '-').json"
}
soak "f16 cache"
soak "packed cache" --kv turbo --kv-key-bits 4 --kv-value-bits 3
soak "packed cache, recent tokens" --kv turbo --kv-key-bits 3 --kv-value-bits 2 --kv-recent 30 --kv-skip 1

# --- training: gradients, perplexities after 200 steps in three formats, peft (with PYTHON); hours on two cores
if TEXTS="$texts" GOLDEN="$golden" "$root/tests/proof/finetune.sh" "$build" "$models" >"$work/finetune" 2>&1; then
    passed=$((passed + $(grep -c '^ok ' "$work/finetune" || true)))
else
    failed=$((failed + 1))
fi
absent=$((absent + $(grep -c '^absent ' "$work/finetune" || true)))
tee -a "$log" <"$work/finetune"

# --- memory: a random checkpoint of 1 GB takes one layer, its Hessians and the calibration, not the model
mkdir "$work/random"
"$build/tests/random_checkpoint" "$work/random" 2048 5632 11 8192
cp "$root"/models/bookworm-8m/tokenizer*.json "$work/random/"
"$walsh" quantize "$work/random" "$work/random-small" --bits 2 --passes 0 --samples 8 --sample-tokens 256 \
    >>"$log" 2>"$work/err" &
pid=$!
peak=0
while kill -0 $pid 2>/dev/null; do
    now=$(awk '/^RssAnon/ { print $2 }' /proc/$pid/status 2>/dev/null || echo 0)
    if [ "${now:-0}" -gt "$peak" ]; then peak=$now; fi
    sleep 0.1
done
if wait $pid; then
    bytes=$(cat "$work"/random/*.safetensors | wc -c)
    say "        checkpoint of $bytes bytes: peak RssAnon $peak kB"
    # One layer in fp32: 180 MB. Hessians: 2048^2 three times and 5632^2, fp32: 180 MB, as much again while they are factored.
    ok "peak anonymous memory of a 1 GB checkpoint" "$peak < 800000 && $bytes > 1000000000"
else
    failed=$((failed + 1))
    say "FAILED  quantize a random checkpoint: $(tail -n 1 "$work/err")"
fi

say "$passed passed, $failed failed, $absent absent"
[ "$failed" -eq 0 ]

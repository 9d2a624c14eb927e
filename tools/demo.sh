#!/bin/sh
# The main job on the embedded model: quantize it, compare before and after, write with it. Usage: tools/demo.sh WALSH
set -eu
walsh=${1:-build/walsh}
root=$(cd "$(dirname "$0")/.." && pwd)
model=$root/models/bookworm-8m
text=$root/data/valid.txt
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-demo.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
small=$work/bookworm-8m-e8p-3bpw

# The last number under a key of a JSON object.
number() { sed -n "s/.*\"$1\": \([-+0-9.e]*\).*/\1/p"; }
# The tokens per second of one test of `walsh bench --json`.
speed() { tr '{' '\n' | grep "\"test\": \"$1\"" | number tokens_per_second; }

table=$work/table
row() { # name disk-bytes ppl bench-json: one more line of the table
    printf '%s' "$4" >"$work/bench.json"
    awk -v name="$1" -v disk="$2" -v ppl="$3" \
        -v read="$(number weight_bytes <"$work/bench.json")" -v bits="$(number bits_per_weight <"$work/bench.json")" \
        -v prompt="$(speed prompt <"$work/bench.json")" -v decode="$(speed generate <"$work/bench.json")" 'BEGIN {
        printf "  %-20s %11s %9.1f %6.2f %8s %11.1f %10.1f\n", name, disk == "" ? "-" : sprintf("%.2f MB", disk / 1e6),
            read / 1e6, bits, ppl == "" ? "-" : sprintf("%.2f", ppl), prompt, decode }' >>"$table"
}

echo
echo "1. Quantize models/bookworm-8m to 3 bits per weight:"
echo "   \$ walsh quantize models/bookworm-8m bookworm-8m-e8p-3bpw --format e8p --bits 3"
"$walsh" quantize "$model" "$small" --format e8p --bits 3

echo
echo "2. Measure before and after: perplexity of data/valid.txt (walsh eval), tokens per second (walsh bench); and a synthetic"
echo "   model of 1.2 billion parameters, whose weights do not fit into a cache (walsh bench --shape llama-1b)."
printf '%-22s %11s %9s %6s %8s %11s %10s\n' "" "on disk" "MB/token" "bits" "PPL" "prompt t/s" "decode t/s" >"$table"
echo bookworm-8m >>"$table"
for side in before after; do
    case $side in
    before) directory=$model name="bf16, before" ;;
    after) directory=$small name="e8p, after" ;;
    esac
    row "$name" "$("$walsh" inspect "$directory" --json --quiet | number checkpoint_bytes)" \
        "$("$walsh" eval "$directory" --text "$text" --json | number ppl)" \
        "$("$walsh" bench "$directory" --prompt 512 --generate 64 --json)"
done
echo "synthetic llama-1b" >>"$table"
memory=$(awk '/^MemAvailable/ { print int($2 / 1000) }' /proc/meminfo 2>/dev/null || echo 0)
for weights in "bf16" "e8p --bits 3" "e8p --bits 2"; do
    if [ "$weights" = bf16 ] && [ "$memory" -lt 4000 ]; then
        echo "  bf16                 left out: it needs 4 GB of memory, $memory MB are free" >>"$table"
        continue
    fi
    # shellcheck disable=SC2086 # the format and its bits
    row "$(echo "$weights" | sed 's/ --bits \(.\)/, \1 bits/')" "" "" \
        "$("$walsh" bench --shape llama-1b --format $weights --prompt 128 --generate 16 --repeat 1 --json)"
done
echo
cat "$table"

prompt="It was late in the evening when"
echo
echo "3. Write with the quantized model:"
echo "   \$ walsh run bookworm-8m-e8p-3bpw \"$prompt\" -n 80 --seed 3"
echo
printf '%s' "$prompt"
"$walsh" run "$small" "$prompt" -n 80 --seed 3

lora=$root/models/shakespeare-lora-8m play=$root/data/shakespeare-valid.txt
echo
echo "4. The same prompt with a LoRA adapter on the quantized model, unmerged; it was trained on Shakespeare's plays:"
echo "   \$ walsh run bookworm-8m-e8p-3bpw \"$prompt\" --adapter models/shakespeare-lora-8m -n 80 --seed 3"
echo
printf '%s' "$prompt"
"$walsh" run "$small" "$prompt" --adapter "$lora" -n 80 --seed 3
echo
printf 'PPL of a play that neither has seen, data/shakespeare-valid.txt: %.2f without the adapter, ' \
    "$("$walsh" eval "$small" --text "$play" --json | number ppl)"
printf '%.2f with it.\n' "$("$walsh" eval "$small" --text "$play" --adapter "$lora" --json | number ppl)"

echo
echo "5. Train an adapter of one's own on the quantized model: 20 steps on the first half of that play."
echo "   \$ walsh finetune bookworm-8m-e8p-3bpw --data play.txt --output lora --steps 20 --context 128 --grad-accumulation 4 --lr 2e-3 --warmup 3"
head -c 60000 "$play" >"$work/play.txt"
"$walsh" finetune "$small" --data "$work/play.txt" --output "$work/lora" --steps 20 --context 128 --grad-accumulation 4 --lr 2e-3 \
    --warmup 3 --quiet >/dev/null
awk -F, 'NR > 1 { printf "%s%.2f", NR == 2 ? "   loss by step: " : " ", $2 } END { print "" }' "$work/lora/log.csv"
awk -F, 'NR > 1 { s[NR > 11] += $2 / 10 } END { printf "   its mean over the first and the last ten: %.2f and %.2f\n", s[0], s[1] }' "$work/lora/log.csv"
tail -c 24000 "$play" >"$work/rest.txt"
printf '   PPL of another part of it: %.2f without the adapter, ' "$("$walsh" eval "$small" --text "$work/rest.txt" -c 128 --json --quiet | number ppl)"
printf '%.2f with it.\n' "$("$walsh" eval "$small" --text "$work/rest.txt" -c 128 --adapter "$work/lora" --json --quiet | number ppl)"

echo
echo "6. Keys and values packed to 4 bits: a synthetic model of 2 layers with heads as Llama 8B has them, 8192 tokens in the cache:"
echo "   \$ walsh bench --shape bench/shape-attention.json --format bf16 --prompt 0 --generate 32 --depth 8192 --kv f16 (and --kv turbo)"
for kv in f16 turbo; do
    "$walsh" bench --shape "$root/bench/shape-attention.json" --format bf16 --prompt 0 --generate 32 --depth 8192 --kv $kv --json \
        --quiet >"$work/bench.json"
    awk -v kv=$kv -v bytes="$(number cache_bytes <"$work/bench.json")" -v decode="$(speed generate <"$work/bench.json")" \
        'BEGIN { printf "   KV %-5s %7.2f MB, %7.1f tokens/s\n", kv, bytes / 1e6, decode }'
done

#!/bin/sh
# What packing the KV cache costs: perplexity and KL divergence from the model's own f16 cache, for bits x {rotated, not} x {norms
# corrected, not} x {0, 64} recent tokens in f16. Every key and value is quantized and read as decode reads it (walsh eval --kv turbo).
# Usage: bench/kv_quality.sh MODELS TEXT [WALSH [MODEL...]]; MODELS holds bookworm-26m and bookworm-moe-12m. Writes
# bench/results/kv-quality-MODEL.json of each and exits 1 where a bar is missed. Takes an hour on two cores.
set -eu
models=$1 text=$2
root=$(cd "$(dirname "$0")/.." && pwd)
walsh=${3:-$root/build/walsh}
if [ $# -gt 3 ]; then shift 3; else set -- bookworm-26m bookworm-moe-12m; fi
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-kv.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
missed=0
number() { sed -n "s/.*\"$1\": \([-+0-9.e]*\).*/\1/p" "$work/json"; }

# name: the perplexity that the others are compared with
start() {
    name=$1 model=$models/$1
    "$walsh" eval "$model" --text "$text" -c 1024 --kv f16 --json --quiet >"$work/json"
    plain=$(number ppl)
    printf '{"model": "%s", "kv": "f16", "eval": %s}' "$name" "$(cat "$work/json")" >"$work/rows"
    echo "$name: f16 $plain"
}
# bound key value options...: one row; bound: the largest increase of the perplexity admitted, - none
row() {
    bound=$1 key=$2 value=$3
    shift 3
    "$walsh" eval "$model" --text "$text" -c 1024 --kv turbo --kv-key-bits "$key" --kv-value-bits "$value" --reference "$model" \
        --json --quiet "$@" >"$work/json"
    increase=$(awk "BEGIN { printf \"%.6f\", $(number ppl) / $plain - 1 }")
    good=true
    [ "$bound" = - ] || good=$(awk "BEGIN { print $increase <= $bound ? \"true\" : \"false\" }")
    [ $good = true ] || missed=$((missed + 1))
    awk "BEGIN { printf \"K%d V%d %-40s %+.2f%%, KL %.6f\n\", $key, $value, \"$*\", 100 * $increase, $(number kl) }"
    printf ', {"model": "%s", "kv": "turbo", "key_bits": %s, "value_bits": %s, "options": "%s", "increase": %s, "bound": %s, "within": %s, "eval": %s}' \
        "$name" "$key" "$value" "$*" "$increase" "$([ "$bound" = - ] && echo null || echo "$bound")" $good "$(cat "$work/json")" \
        >>"$work/rows"
}
# The rows beside the one with a bar
variants() {
    row - "$1" "$2" --kv-no-correction
    row - "$1" "$2" --kv-no-rotation
    row - "$1" "$2" --kv-no-rotation --kv-no-correction
    row - "$1" "$2" --kv-recent 64
}

finish() {
    mkdir -p "$root/bench/results"
    printf '{"commit": "%s", "cpu": "%s", "context": 1024, "rows": [%s]}\n' "$commit" "$cpu" "$(cat "$work/rows")" \
        >"$root/bench/results/kv-quality-$name.json"
}

for model in "$@"; do
    start "$model"
    case $name in
    *moe*) bars='- 8 8,0.007 4 4,- 4 3,- 3 4,0.025 3 3,- 2 2' ;;
    *) bars='0.001 8 8,0.010 4 4,0.024 4 3,0.027 3 4,0.041 3 3,0.210 2 2' ;;
    esac
    # shellcheck disable=SC2086 # words
    (IFS=, && printf '%s\n' $bars) >"$work/bars"
    while read -r bound key value; do row "$bound" "$key" "$value" </dev/null; done <"$work/bars"
    for bits in 8 4 3 2; do variants $bits $bits; done
    row - 4 4 --kv-skip 1
    row - 4 4 --kv-key-codec prod
    finish
done
[ "$missed" -eq 0 ]

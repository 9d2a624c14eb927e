#!/bin/sh
# All figures of a CPU that docs/performance.md compares with a bar, in at most eight minutes: kernels, the attention of long caches, and
# synthetic models in every format, with adapters, with experts, and with a head of 128,256 tokens. A row is one run of `walsh bench
# --json`; those that no longer fit into the time are named as skipped. The file is rewritten after each row, so that an end from outside
# loses one row at most. A quiet machine is assumed.
# Usage: bench/cpu_rows.sh [-t THREADS] [-s SECONDS] [-o FILE] [WALSH [PATTERN]]; FILE is bench/results/cpu-rows.json; only the rows whose
# name matches PATTERN (of grep -E) run. Runs where the repository's folder bench and the program are, without git and without a build.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
threads=2
seconds=460
out=$root/bench/results/cpu-rows.json
while getopts t:s:o: option; do
    case $option in
        t) threads=$OPTARG ;;
        s) seconds=$OPTARG ;;
        o) out=$OPTARG ;;
        *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
walsh=$(realpath -m "${1:-$root/build/walsh}")
pattern=${2:-.}
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-rows.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
begun=$(date +%s)
: >"$work/rows"

write() {
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    flags=$(grep -m 1 '^flags' /proc/cpuinfo | tr ' ' '\n' | grep -E '^(avx|amx|gfni)' | tr '\n' ' ')
    commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
    printf '{"commit": "%s", "cpu": "%s", "flags": "%s", "cpus": %s, "load": "%s", "rows": [\n%s\n]}\n' "$commit" "$cpu" "${flags% }" \
        "$(nproc)" "$(cut -d ' ' -f 1-3 /proc/loadavg)" "$(cat "$work/rows")" >"$work/out"
    cp "$work/out" "$out"
}

# row NAME LIMIT options...: one run, which takes LIMIT seconds at most
row() {
    name=$1 limit=$2
    shift 2
    printf '%s\n' "$name" | grep -qE "$pattern" || return 0
    left=$((begun + seconds - $(date +%s)))
    [ "$limit" -le "$left" ] || limit=$left
    from=$(date +%s)
    if [ "$limit" -ge 5 ] && (cd "$root/bench" && timeout "$limit" "$walsh" bench "$@" --json --quiet) >"$work/json" 2>"$work/error"; then
        printf '%s{"row": "%s", "arguments": "%s", "result": %s}' "$comma" "$name" "$*" "$(cat "$work/json")" >>"$work/rows"
        comma=',
'
        printf '%-28s %3d s\n' "$name" "$(($(date +%s) - from))"
    else
        printf '%-28s skipped or failed after %d s: %s\n' "$name" "$(($(date +%s) - from))" "$(head -n 1 "$work/error" 2>/dev/null)"
    fi
    write
}
comma=

llama="--shape shape-1.7b.json --head int8 -t $threads --repeat 3"
row "e8p 2 bits" 40 $llama --format e8p --bits 2 --prompt 512 --generate 32 --batch 1,8
row "e8p 4 bits" 40 $llama --format e8p --bits 4 --prompt 512 --generate 32 --batch 1,8
row "e8p 3 bits" 40 $llama --format e8p --bits 3 --prompt 512 --generate 32
row "mxfp4" 40 $llama --format mxfp4 --prompt 512 --generate 32
row "int4" 40 $llama --format int4 --prompt 512 --generate 32
row "bf16" 60 --shape shape-1.7b.json -t "$threads" --repeat 3 --format bf16 --prompt 512 --generate 16
row "experts, mxfp4" 40 --shape shape-moe.json -t "$threads" --repeat 3 --format mxfp4 --prompt 512 --generate 64
row "attention of a step" 40 --kernels op_attention -t "$threads"
row "hadamard" 15 --kernels hadamard -t 1
row "norm, rotation, rounding" 15 --kernels rotate_i8 -t 1
row "norm's factor" 15 --kernels rms_factor -t 1
row "adapter, decode, 4 bits" 40 $llama --format e8p --bits 4 --prompt 0 --generate 20 --repeat 9 --adapter random:r=16
row "adapter, prompt, 4 bits" 40 $llama --format e8p --bits 4 --prompt 512 --generate 0 --repeat 5 --adapter random:r=16
row "128k tokens, head bf16" 30 --shape shape-1b-128k.json -t "$threads" --format e8p --bits 2 --prompt 0 --generate 48 --head bf16
row "128k tokens, head int8" 30 --shape shape-1b-128k.json -t "$threads" --format e8p --bits 2 --prompt 0 --generate 48 --head int8
row "products, int8, prompt" 40 --kernels product_int8_prefill -t 1
row "products, int8, decode" 40 --kernels product_int8_decode -t 1
row "products, bf16" 40 --kernels product_bf16 -t 1
row "products, blocks" 40 --kernels product_block -t 1

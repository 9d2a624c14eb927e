#!/bin/sh
# What adapters cost: decode, prefill and a mixed batch of a synthetic model of 1.7 billion parameters with adapters of rank 16 in bf16
# on all linears, on 2 threads. walsh bench runs each test without and with them by turns and takes the median of the ratios of the pairs;
# where a process's memory lies moves that by some percent, so the overhead is the median of several processes.
# Usage: bench/adapter_cost.sh [WALSH [PROCESSES]]; writes bench/results/adapter-cost.json. A quiet machine is assumed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
walsh=${1:-$root/build/walsh}
processes=${2:-5}
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-cost.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
missed=0
cd "$root"

# test bits bound options...: the overhead of the rows of `test`
measure() {
    test=$1 bits=$2 bound=$3
    shift 3
    repeat=25 # pairs
    [ "$test" = generate ] || repeat=9 # a prompt is a long run
    : >"$work/overheads"
    runs=
    for _ in $(seq "$processes"); do
        "$walsh" bench --shape bench/shape-1.7b.json --bits "$bits" -t 2 --repeat "$repeat" --adapter random:r=16 --json --quiet \
            "$@" >"$work/json"
        tr '{' '\n' <"$work/json" | grep "\"test\": \"$test\"" | sed -n 's/.*"overhead": \([-+0-9.e]*\).*/\1/p' >>"$work/overheads"
        runs="$runs${runs:+, }$(cat "$work/json")"
    done
    overhead=$(sort -g "$work/overheads" | sed -n "$((processes / 2 + 1))p")
    rate=$(tr '{' '\n' <"$work/json" | grep "\"test\": \"$test\"" | sed -n '1s/.*"tokens_per_second": \([-+0-9.e]*\).*/\1/p')
    good=$(awk "BEGIN { print $overhead <= $bound ? \"true\" : \"false\" }")
    [ "$good" = true ] || missed=$((missed + 1))
    awk "BEGIN { printf \"%-9s %d bits, %s: %+.1f%% time, at most %.1f%% (%.2f tokens/s without adapters)\n\", \"$test\", $bits, \"$*\", \
        100 * $overhead, 100 * $bound, $rate }"
    printf '%s{"test": "%s", "bits": %s, "options": "%s", "pairs": %s, "overhead": %s, "bound": %s, "within": %s, "processes": [%s]}' "$comma" "$test" \
        "$bits" "$*" "$repeat" "$overhead" "$bound" "$good" "$runs" >>"$work/rows"
    comma=', '
}
comma=
measure generate 4 0.045 --prompt 0 --generate 20 --batch 1
measure generate 2 0.08 --prompt 0 --generate 20 --batch 1
measure prompt 4 0.05 --prompt 512 --generate 0
measure generate 4 0.15 --prompt 0 --generate 5 --batch 8 --mixed

mkdir -p "$root/bench/results"
load=$(cut -d ' ' -f 1-3 /proc/loadavg)
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
printf '{"commit": "%s", "cpu": "%s", "cpus": %s, "load": "%s", "rows": [%s]}\n' "$commit" "$cpu" "$(nproc)" "$load" \
    "$(cat "$work/rows")" >"$root/bench/results/adapter-cost.json"
[ "$missed" -eq 0 ]

#!/usr/bin/env bash
# Every fuzz target for a while, all at once: make fuzz, or
#
#   tests/proof/fuzz.sh DIRECTORY [SECONDS [OUT]]
#
# DIRECTORY holds the programs fuzz_NAME (build-fuzz/tests); each target gets SECONDS (60) with as many processes as there are
# CPUs for it. OUT (a new temporary directory) gets NAME.log, findings as NAME-KIND-HASH, and the corpora that were grown in
# corpora.tar.xz. The last line is "N targets, N executions, N findings"; exit 1 where there was a finding. What was found
# goes into tests/fuzz/corpus/NAME, so that the tests replay it for good.
set -euo pipefail
programs=$(cd "$1" && pwd)
seconds=${2:-60}
here=$(cd "$(dirname "$0")/.." && pwd)
out=${3:-$(mktemp -d)}
mkdir -p "$out/corpora" "$out/logs"
out=$(cd "$out" && pwd)
export WALSH_FUZZ_SOURCE=${WALSH_FUZZ_SOURCE:-$(dirname "$here")}

# corpus:program, for each corpus that is there; the layouts of models share a program
targets=()
for corpus in "$here"/fuzz/corpus/*/; do
    name=$(basename "$corpus")
    program=$name
    [ -x "$programs/fuzz_$name" ] || program=model
    targets+=("$name:$program")
done
cpus=$(nproc)
jobs=$((cpus / ${#targets[@]}))
[ "$jobs" -ge 1 ] || jobs=1

one() { # name program: until the time is over, whatever is found
    mkdir -p "$out/corpora/$1"
    local fork=()
    # Forks report a finding and go on; a single process is quicker where the CPUs are few.
    if [ "$jobs" -gt 1 ]; then fork=(-fork="$jobs" -ignore_crashes=1 -ignore_ooms=1 -ignore_timeouts=1); fi
    local dictionary=()
    if [ -f "$here/fuzz/json.dict" ]; then dictionary=(-dict="$here/fuzz/json.dict"); fi
    "$programs/fuzz_$2" "${fork[@]}" "${dictionary[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2000 \
        -malloc_limit_mb=500 -max_len=4096 -artifact_prefix="$out/$1-" -print_final_stats=1 \
        "$out/corpora/$1" "$here/fuzz/corpus/$1" >"$out/logs/$1.log" 2>&1 || true
}

executions() { # log: those that it counted last, of one process or of all forks
    grep -Eo '^#[0-9]+' "$1" | tr -d '#' | sort -n | tail -1
}

echo "$(date -u +%FT%TZ) ${#targets[@]} targets, $seconds s each, $jobs processes for each, $cpus CPUs"
running=0
for target in "${targets[@]}"; do
    one "${target%%:*}" "${target##*:}" &
    running=$((running + 1))
    if [ "$running" -ge "$cpus" ]; then
        wait -n
        running=$((running - 1))
    fi
done
wait

total=0
findings=$(find "$out" -maxdepth 1 -type f -name '*-*' ! -name '*-slow-unit-*' | wc -l)
for target in "${targets[@]}"; do
    name=${target%%:*} log=$out/logs/${target%%:*}.log
    count=$(executions "$log")
    total=$((total + ${count:-0}))
    printf '%-18s %12s executions, %6s inputs in the corpus, %s findings\n' "$name" "${count:-0}" \
        "$(find "$out/corpora/$name" -type f | wc -l)" \
        "$(find "$out" -maxdepth 1 -type f -name "$name-*" ! -name '*-slow-unit-*' | wc -l)"
done
tar -C "$out" -cJf "$out/corpora.tar.xz" corpora
rm -r "$out/corpora"
echo "${#targets[@]} targets, $total executions, $findings findings"
[ "$findings" -eq 0 ]

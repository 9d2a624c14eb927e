#!/bin/sh
# Every call of every job of tests/faults/torture.c fails in turn: tests/proof/faults.sh BUILD [JOB...]
# A process per CPU takes each N-th call. The log, tests/proof/results/faults.log, ends with a line of each job and the number
# of failures. Exit 1 where something is not as it should be.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
shift
log=$root/tests/proof/results/faults.log
mkdir -p "${log%/*}"
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
cpus=$(nproc)
part=0
while [ $part -lt "$cpus" ]; do
    part=$((part + 1))
    "$build/tests/faults_torture" "$build/tests/libfaults_shim.so" "$build/walsh" "$root" --seed 1 --part $part/"$cpus" "$@" \
        >"$parts/$part" 2>&1 &
done
wait
cat "$parts"/* | awk '
    / calls, / { if (!($1 in calls)) names[++n] = $1; calls[$1] = $2; runs[$1] += $4; refused[$1] += $6; without[$1] += $8; next }
    / failures$/ { failures += $1; ended++; next }
    /^seed / { next }
    { print }
    END {
        for (i = 1; i <= n; i++) printf "%-16s %6d calls, %6d runs, %6d refused, %6d did without\n", names[i], calls[names[i]], \
            runs[names[i]], refused[names[i]], without[names[i]]
        printf "%d processes, %d ended, %d failures\n", '"$cpus"', ended, failures
    }' >"$log"
cat "$log"
tail -n 1 "$log" | grep -q "^$cpus processes, $cpus ended, 0 failures$"

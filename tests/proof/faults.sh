#!/bin/sh
# Every call of every job of tests/faults/torture.c fails in turn: tests/proof/faults.sh BUILD [JOB...]
# One job after the other; the log is tests/proof/results/faults.log. Exit 1 where something is not as it should be.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
shift
log=$root/tests/proof/results/faults.log
mkdir -p "${log%/*}"
status=0
"$build/tests/faults_torture" "$build/tests/libfaults_shim.so" "$build/walsh" "$root" --seed 1 "$@" >"$log" 2>&1 || status=$?
cat "$log"
exit "$status"

#!/bin/sh
# walsh serve under load against walsh bench: CLIENTS concurrent streams, by turns with the batch alone.
#   bench/serve_load.sh MODEL [ROUNDS [CLIENTS [TOKENS [PROMPT_WORDS]]]]
# Prints lines of JSON: "bench" is walsh bench --batch CLIENTS (no HTTP, no sampling), "serve" what clients on loopback get.
# PEER=COMMAND starts another server with /v1/completions, which listens on port $PEER_PORT: "peer", by turns with the rest; each
# server is stopped while it is not its turn, so that none waits busily beside the other.
# SERVER_CPUS, CLIENT_CPUS: lists for taskset; THREADS: of the steps. WALSH: the program.
set -eu
model=$1 rounds=${2:-3} clients=${3:-32} tokens=${4:-512} words=${5:-40}
root=$(cd "$(dirname "$0")/.." && pwd)
walsh=${WALSH:-$root/build/walsh}
work=$(mktemp -d)
server='' peer=''
finish() {
    for p in $server $peer; do kill -CONT "$p" 2>/dev/null && kill -KILL "$p" 2>/dev/null; done
    rm -rf "$work"
}
trap finish EXIT
on() { # the CPUs of a list, or all
    cpus=$1
    shift
    if [ -n "$cpus" ]; then exec taskset -c "$cpus" "$@"; else exec "$@"; fi
}
[ -x "${LOAD:-}" ] || { LOAD=$work/load && cc -O2 -o "$LOAD" "$root/bench/serve_load.c"; }
(on "${SERVER_CPUS:-}" "$walsh" serve "$model" ${THREADS:+--threads "$THREADS"} --port 0 --max-batch "$clients" 2>"$work/log") &
server=$!
until grep -q '"listening"' "$work/log"; do sleep 0.1; done
port=$(sed -n 's/.*"listening".*"port":\([0-9]*\).*/\1/p' "$work/log")
if [ -n "${PEER:-}" ]; then
    # shellcheck disable=SC2086 # a command and its arguments
    (on "${SERVER_CPUS:-}" $PEER >"$work/peer" 2>&1) &
    peer=$!
    until (on "${CLIENT_CPUS:-}" "$LOAD" "$PEER_PORT" 1 1 2 2) >/dev/null 2>&1; do sleep 0.5; done
    kill -STOP "$peer"
fi
kill -STOP "$server"
load() { # name, process, port
    kill -CONT "$2"
    printf '%s ' "$1"
    (on "${CLIENT_CPUS:-}" "$LOAD" "$3" "$clients" $((4 * clients)) "$tokens" "$words")
    kill -STOP "$2"
}
for round in $(seq "$rounds"); do
    (on "${SERVER_CPUS:-}" "$walsh" bench "$model" ${THREADS:+--threads "$THREADS"} --prompt 64 --generate "$tokens" --batch "$clients" --json --quiet) |
        sed 's/^/bench /'
    load serve "$server" "$port"
    [ -z "$peer" ] || load peer "$peer" "$PEER_PORT"
done

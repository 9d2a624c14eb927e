#!/bin/sh
# walsh serve under load against walsh bench: CLIENTS concurrent streams, by turns with the batch alone.
#   bench/serve_load.sh MODEL [ROUNDS [CLIENTS]]
# Prints lines of JSON: "bench" is walsh bench --batch CLIENTS (no HTTP, no sampling), "requests" the batch scheduler in
# one process (walsh bench --requests), "serve" what clients on loopback get.
set -eu
model=$1 rounds=${2:-3} clients=${3:-32}
root=$(cd "$(dirname "$0")/.." && pwd)
walsh=$root/build/walsh
work=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
cc -O2 -o "$work/load" "$root/bench/serve_load.c"
"$walsh" serve "$model" --port 0 --max-batch "$clients" 2>"$work/log" &
server=$!
until grep -q '"listening"' "$work/log"; do sleep 0.1; done
port=$(sed -n 's/.*"listening".*"port":\([0-9]*\).*/\1/p' "$work/log")
for round in $(seq "$rounds"); do
    "$walsh" bench "$model" --prompt 64 --generate 128 --batch "$clients" --json --quiet | sed 's/^/bench /'
    "$walsh" bench "$model" --prompt 64 --generate 128 --batch "$clients" --requests $((4 * clients)) --json --quiet | sed 's/^/requests /'
    printf 'serve '
    "$work/load" "$port" "$clients" $((4 * clients)) 128 40
done

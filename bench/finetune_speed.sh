#!/bin/sh
# Tokens per second of `walsh finetune` against transformers and peft on the same CPUs, run alternately. Usage:
#   PYTHON=python3 bench/finetune_speed.sh WALSH MODEL TEXT [ROUNDS]
# PYTHON has torch, transformers and peft. The same work: LoRA of rank 16 on all linears, 4 x 1024 tokens a step.
set -eu
walsh=$1 model=$2 text=$3 rounds=${4:-3}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-finetune-speed.XXXXXX")
trap 'rm -rf "$work"' EXIT
for round in $(seq "$rounds"); do
    "$walsh" finetune "$model" --data "$text" --output "$work/$round" --steps 4 --grad-accumulation 4 -c 1024 --quiet >/dev/null
    # as the other side: without the first step
    echo "walsh $(awk -F, 'NR > 2 { t += $5; s += $6 } END { printf "%.1f", t / s }' "$work/$round/log.csv")"
    for dtype in bfloat16 float32; do
        echo "peft $dtype $("${PYTHON:-python3}" "$here/finetune_peft.py" "$model" "$text" 3 1 4 1024 $dtype 2>/dev/null)"
    done
done

#!/bin/sh
# What walsh finetune must reach on models that are not in the repository. Usage: tests/proof/finetune.sh BUILD MODELS [CASE...]
# MODELS, TEXTS and GOLDEN as for run.sh. PYTHON, where it is set, has torch, transformers and peft: then peft loads what was
# written, and bench/finetune_speed.sh can be run with it. Cases: gradients bf16 e8p mxfp4 moe peft; default: all. Each training case takes
# about half an hour on two idle cores; a stopped one goes on where it was. Logs go to tests/proof/results/finetune/.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$(cd "$1" && pwd)
models=$(cd "$2" && pwd)
shift 2
cases=${*:-gradients bf16 e8p mxfp4 moe peft}
texts=${TEXTS:-$models/../text}
golden=${GOLDEN:-$models/../golden}
walsh=$build/walsh
results=$root/tests/proof/results/finetune
work=${WORK:-${TMPDIR:-/tmp}/walsh-finetune-proof}
mkdir -p "$results" "$work"
export LC_ALL=C
failed=0

number() { sed -n "s/.*\"$1\": \([-+0-9.e]*\).*/\1/p"; }
say() { echo "$*" | tee -a "$results/proof.log"; }
ok() { # what, awk condition
    if awk "BEGIN { exit !($2) }"; then say "ok      $1 ($2)"; else failed=$((failed + 1)) && say "FAILED  $1 ($2)"; fi
}

# Train on MODEL and measure a play that it has not seen before and after: name model bound options...
train() {
    name=$1 model=$2 bound=$3
    shift 3
    [ -d "$model" ] || { say "absent  $name: $model" && return 0; }
    before=$("$walsh" eval "$model" --text "$texts/shakespeare-valid.txt" -c 1024 --json --quiet | number ppl)
    "$walsh" finetune "$model" --data "$texts/shakespeare-train.txt" --output "$work/$name" --grad-accumulation 16 \
        --context 1024 --warmup 20 --schedule linear --last-rate 0.02 --weight-decay 0.01 --clip 1 --save-every 20 --resume \
        --json "$@" >"$work/$name.json" 2>"$results/$name.log"
    cp "$work/$name/log.csv" "$results/$name.csv"
    cp "$work/$name/loss.svg" "$results/$name.svg"
    after=$("$walsh" eval "$model" --text "$texts/shakespeare-valid.txt" -c 1024 --adapter "$work/$name" --json --quiet | number ppl)
    say "$name: perplexity $before before, $after after, $(number tokens_per_second <"$work/$name.json") tokens/s"
    ok "$name" "$after <= $bound"
}

quantized() { # name options...: bookworm-26m in another format
    name=$1
    shift
    [ -d "$work/26m-$name" ] || "$walsh" quantize "$models/bookworm-26m" "$work/26m-$name" --quiet "$@"
}

say "# walsh finetune, $(uname -m), $(nproc) CPUs, $("$walsh" --version)"
for case in $cases; do
    case $case in
    gradients)
        for model in 8m moe-12m; do
            for kind in "" --bf16; do
                # shellcheck disable=SC2086 # no option is none
                if "$build/tests/gradients" $kind "$models/bookworm-$model" "$golden/lora-gradients-$model.safetensors" \
                    >"$work/gradients" 2>&1; then
                    say "ok      gradients of bookworm-$model $kind: $(tr -s ' \n' ' ' <"$work/gradients")"
                else
                    failed=$((failed + 1))
                    say "FAILED  gradients of bookworm-$model $kind: $(cat "$work/gradients")"
                fi
            done
        done
        ;;
    bf16) train bf16 "$models/bookworm-26m" 25.0 --steps 200 --lr 3e-4 ;;
    e8p)
        quantized e8p --format e8p --bits 4
        train e8p "$work/26m-e8p" 25.8 --steps 200 --lr 3e-4
        ;;
    mxfp4)
        quantized mxfp4 --format mxfp4
        train mxfp4 "$work/26m-mxfp4" 25.8 --steps 200 --lr 3e-4
        ;;
    moe)
        [ -d "$work/moe-mxfp4" ] || "$walsh" quantize "$models/bookworm-moe-12m" "$work/moe-mxfp4" --format mxfp4 --quiet
        train moe "$work/moe-mxfp4" 32.4 --steps 120 --lr 5e-4 --rank 8 --alpha 16 --experts
        ;;
    peft)
        if [ -z "${PYTHON:-}" ]; then
            say "absent  peft: PYTHON is not set"
            continue
        fi
        head -c 12000 "$texts/shakespeare-valid.txt" >"$work/play.txt"
        for model in 8m moe-12m; do
            experts=
            [ $model = 8m ] || experts="--experts --rank 8 --alpha 16"
            rm -rf "$work/peft-$model"
            # shellcheck disable=SC2086 # several options or none
            "$walsh" finetune "$models/bookworm-$model" --data "$root/data/shakespeare-valid.txt" --output "$work/peft-$model" \
                --steps 10 --warmup 2 --lr 2e-3 -c 128 --grad-accumulation 2 --quiet $experts >/dev/null
            nll=$("$walsh" eval "$models/bookworm-$model" --text "$work/play.txt" -c 128 --adapter "$work/peft-$model" \
                --activations f32 --json --quiet | number nll)
            if "$PYTHON" "$root/tests/proof/finetune_peft.py" "$models/bookworm-$model" "$work/peft-$model" "$work/play.txt" 128 \
                "$nll" >"$work/peft" 2>/dev/null; then
                say "ok      peft loads the adapter of bookworm-$model: $(sed 's/^[^:]*: //' "$work/peft")"
            else
                failed=$((failed + 1))
                say "FAILED  peft and the adapter of bookworm-$model: $(tail -n 1 "$work/peft")"
            fi
        done
        ;;
    esac
done
[ "$failed" -eq 0 ]

# What quantization does to a real model, and to a mixture of experts with biases.
. "$(dirname "$0")/lib.sh"

# Perplexity of the beginning of the shipped held-out text.
head -c 60000 "$text" >"$work/text"
perplexity() { # model
    works eval "$1" --text "$work/text" --context 512 --activations f32 --json --quiet
    ppl=$(value ppl)
}

# A model quantized with these options; its perplexity is between `least` and `most` times the original's.
quality() { # least most options...
    least=$1 most=$2
    shift 2
    rm -rf "$work/small"
    works quantize "$model" "$work/small" --samples 64 --sample-tokens 256 --quiet "$@"
    perplexity "$work/small"
    echo "$*: $ppl, $(awk "BEGIN { print $ppl / $original }") of the original's"
    true_that "perplexity of $*" "$ppl >= $least * $original && $ppl <= $most * $original"
}

perplexity "$model"
original=$ppl
echo "the original: $original"
# measured 1.015, 1.072, 1.291; each bar is far below what the next smaller width, or a wrong fold or scale, gives
quality 1 1.03 --bits 4
quality 1 1.09 --bits 3
quality 1 1.33 --bits 2
calibrated=$ppl
quality 1 1.12 --bits 2 --rotation pow2
# without Hessians, as published: 2.44; calibration must matter
quality 2 3 --bits 2 --no-hessian --plain --passes 0
true_that "calibration helps" "$ppl > 1.5 * $calibrated"

# --- a mixture of experts in f32 with biases on q, k, v
cp -r "$CLI_SOURCE/tests/fixtures/golden/tiny-qwen3-moe" "$work/tiny"
cp "$CLI_SOURCE/tests/fixtures/quantize/tokenizer.json" "$work/tiny"
head -c 6000 "$text" >"$work/text"
for bound in "4 0.1" "8 0.007"; do # measured 0.068, 0.0045: random weights, whose routing flips at the least change
    rm -rf "$work/experts"
    works quantize "$work/tiny" "$work/experts" --bits "${bound% *}" --samples 64 --sample-tokens 64 --json --quiet
    same "linears of 2 layers" "$(value layers)" 44
    works eval "$work/experts" --text "$work/text" --context 64 --activations f32 --json --quiet --reference "$work/tiny"
    echo "experts, ${bound% *} bits: KL $(value kl)"
    true_that "experts in ${bound% *} bits" "$(value kl) < ${bound#* }"
done
grep -q '"quant_method": "walsh"' "$work/experts/config.json" || fails "biases are marked"
[ "$(tr ',' '\n' <"$work/experts/model.safetensors" | grep -ac 'q_proj.bias')" -eq 2 ] || fails "biases are kept"

# one token sequence reaches few experts: the others say so
printf 'aaaaaaaaaaaaaaaa' >"$work/few"
works quantize "$work/tiny" "$work/routed" --bits 2 --calibration "$work/few" --samples 1 --sample-tokens 8 --passes 0
grep -q 'experts\..*no calibration token was routed to it; the identity stands in for its Hessian' "$work/err" ||
    fails "unrouted experts are named"
finish

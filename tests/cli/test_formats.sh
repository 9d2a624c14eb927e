# walsh quantize --format of the formats that round to the nearest: bytes, layouts, what the rest of the program makes of
# them, and the perplexity of each. bookworm-8m in bf16 has 24.01 on this text.
. "$(dirname "$0")/lib.sh"
head -c 24000 "$text" >"$work/text"

ppl() { # directory options...
    directory=$1
    shift
    works eval "$directory" --text "$work/text" --context 256 --json "$@"
    value ppl
}

works eval "$model" --text "$work/text" --context 256 --json --activations f32
plain=$(value ppl)

format() { # name, bits per weight, most of plain's perplexity, tensor that the layout has, options...
    name=$1 bits=$2 most=$3 tensor=$4
    shift 4
    works quantize "$model" "$work/$name" --format "$@" --json
    true_that "$name: bits" "$(value bpw) > $bits - 0.01 && $(value bpw) < $bits + 0.01"
    same "$name: predicted bytes" "$(value bytes_predicted)" "$(cat "$work/$name"/*.safetensors | wc -c | tr -d ' ')"
    grep -aq "\"model.layers.0.mlp.up_proj.$tensor\"" "$work/$name/model.safetensors" || fails "$name has no $tensor"
    exact=$(ppl "$work/$name" --activations f32)
    fast=$(ppl "$work/$name")
    true_that "$name: quality" "$exact < $plain * $most && $exact > $plain * 0.99"
    true_that "$name: activations" "$fast < $exact * 1.002 && $fast > $exact * 0.998"
}

format mxfp4 4.25 1.08 weight_packed mxfp4
works inspect "$work/mxfp4" --json
same format "$(value format)" mxfp4
same activations "$(value activations)" int8
grep -q '"format": "mxfp4-pack-quantized"' "$work/mxfp4/config.json" || fails "config.json names the layout"
format nvfp4 4.5 1.06 weight_global_scale nvfp4
format mxfp8 8.25 1.01 weight_scale mxfp8
format fp8 8.08 1.01 weight_scale fp8
format int8 8.38 1.005 weight_zero_point int8
format int4 4.626 1.06 weight_zero_point int4 --group-size 32
format rotated 4.33 1.12 SV mxfp4 --rotation block
grep -q '"quant_method": "walsh"' "$work/rotated/config.json" || fails "a rotated model is not marked as ours"

# An adapter on the packed model is the merged model.
lora=$CLI_SOURCE/models/shakespeare-lora-8m
# The head in int8 has no update, is rotated on one side only, and its codes have the name that its floats get.
works quantize "$model" "$work/head" --format fp8 --rotation block --head int8
for name in mxfp4 int4 rotated head; do
    works merge "$work/$name" "$lora" "$work/$name-merged" --dtype f32
    works eval "$work/$name" --adapter "$lora" --activations f32 --kv f32 --text "$work/text" --max-tokens 1500 \
        --reference "$work/$name-merged" --json
    true_that "$name with an adapter, merged: KL $(value kl)" "$(value kl) < 1e-6"
done
works eval "$work/mxfp4" --activations f32 --kv f32 --text "$work/text" --max-tokens 1500 --reference "$work/mxfp4-merged" --json
true_that "the adapter does something: KL $(value kl)" "$(value kl) > 0.01"
# Merged and quantized again, as quantize would.
works merge "$model" "$lora" "$work/again" --format int4 --rotation overlap --head int8 --group-size 64
works merge "$model" "$lora" "$work/plain" --dtype f32
works quantize "$work/plain" "$work/direct" --format int4 --rotation overlap --head int8 --group-size 64
cmp -s "$work/again/model.safetensors" "$work/direct/model.safetensors" || fails "merge --format is not quantize's"
# The same of a model that is quantized, rotated, and has a head in int8.
works merge "$work/head" "$lora" "$work/head-again" --format mxfp4
works quantize "$work/head-merged" "$work/head-direct" --format mxfp4
cmp -s "$work/head-again/model.safetensors" "$work/head-direct/model.safetensors" ||
    fails "merge --format of a quantized model is not quantize's"
misuse "groups of 48; int8 and int4 know 32, 64 and 128" merge "$model" "$lora" "$work/x" --format int4 --group-size 48

# The rounding of scales is not without effect, threads are.
works quantize "$model" "$work/even" --format mxfp4 --scale-rounding even --threads 1
cmp -s "$work/even/model.safetensors" "$work/mxfp4/model.safetensors" && fails "--scale-rounding does nothing"
works quantize "$model" "$work/one" --format mxfp4 --threads 1
cmp -s "$work/one/model.safetensors" "$work/mxfp4/model.safetensors" || fails "threads change the bytes"

works run "$work/mxfp4" "It was late" -n 8 --temp 0 --json

misuse "mxfp4 rounds to the nearest and does not use a calibration text" \
    quantize "$model" "$work/x" --format mxfp4 --calibration "$work/text"
misuse "bits is an option of e8p; the format is fp8" quantize "$model" "$work/x" --format fp8 --bits 3
misuse "samples is an option of e8p; the format is int8" quantize "$model" "$work/x" --format int8 --samples 8
misuse "passes is an option of e8p; the format is int8" quantize "$model" "$work/x" --format int8 --passes 0
misuse "identity_hessian is an option of e8p; the format is int8" quantize "$model" "$work/x" --format int8 --no-hessian
misuse "group_size is an option of int8 and int4; the format is mxfp4" \
    quantize "$model" "$work/x" --format mxfp4 --group-size 32
misuse "scale_rounding is an option of mxfp4 and mxfp8; the format is e8p" \
    quantize "$model" "$work/x" --scale-rounding even --no-hessian
misuse "groups of 48; int8 and int4 know 32, 64 and 128" \
    quantize "$model" "$work/x" --format int4 --group-size 48
refuses "rotation none is not one that e8p is written with; known: block, pow2, overlap" \
    quantize "$model" "$work/x" --rotation none --no-hessian
walsh quantize "$model" "$work/x" --format int4 --group-size 128
exits 1
grep -q "has 320 columns, which groups of 128 do not divide" "$work/err" || fails "which linear it is"
walsh quantize "$work/mxfp4" "$work/requantized" --format int8 --quiet
exits 0
requantized=$(ppl "$work/requantized" --activations f32)
true_that "requantized" "$requantized < $plain * 1.08"

# gpt-oss: experts in its own stacks, attention as it was. The fixture's experts are values that MXFP4 holds exactly.
tiny=$CLI_SOURCE/tests/fixtures/golden/tiny-gpt-oss
works quantize "$tiny" "$work/oss" --format mxfp4 --json
same "linears of gpt-oss" "$(grep -o '"proxy"' "$work/out" | wc -l)" 24
grep -aq '"model.layers.0.mlp.experts.gate_up_proj_blocks"' "$work/oss/model.safetensors" || fails "no stack"
grep -q '"quant_method": "mxfp4"' "$work/oss/config.json" || fails "gpt-oss is not marked as itself"
works eval "$work/oss" --activations f32 --kv f32 --text "$text" --max-tokens 2000 --reference "$tiny" --json
true_that "gpt-oss keeps its weights: KL $(value kl)" "$(value kl) < 1e-9"
works quantize "$tiny" "$work/oss-int8" --format int8 --json
same "linears of gpt-oss in int8" "$(grep -o '"proxy"' "$work/out" | wc -l)" 32
works eval "$work/oss-int8" --text "$text" --max-tokens 2000 --reference "$tiny" --json
true_that "gpt-oss in int8: KL $(value kl)" "$(value kl) < 0.02 && $(value kl) > 0"
finish

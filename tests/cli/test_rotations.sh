# Rotations that GLQ does not know: overlapping blocks, and blocks for tensor parallelism.
. "$(dirname "$0")/lib.sh"
quick="--samples 4 --sample-tokens 128 --passes 0"

divergence() { # of the model $1 from $2, options...
    of=$1
    from=$2
    shift 2
    works eval "$of" "$@" --activations f32 --kv f32 --text "$text" --max-tokens 3000 --reference "$from" --json
    kl=$(value kl)
}

# shellcheck disable=SC2086 # $quick is a list of options
{
    works quantize "$model" "$work/overlap" --bits 4 --rotation overlap $quick --dry-run --json
    predicted=$(value bytes_predicted)
    works quantize "$model" "$work/overlap" --bits 4 --rotation overlap $quick --json
    same "predicted and real bytes" "$(cat "$work/overlap"/*.safetensors | wc -c | tr -d ' ')" "$predicted"
    grep -q '"quant_method": "walsh"' "$work/overlap/config.json" || fails "overlap is not GLQ's"
    divergence "$work/overlap" "$model"
    true_that "4 bits with overlap: KL $kl" "$kl < 0.06"
    adapter=$CLI_SOURCE/models/shakespeare-lora-8m
    works merge "$work/overlap" "$adapter" "$work/merged" --dtype f32
    divergence "$work/overlap" "$work/merged" --adapter "$adapter"
    true_that "an adapter, merged: KL $kl" "$kl < 1e-5"

    # two parts of 256 and 384 inputs
    mkdir "$work/random"
    "$CLI_RANDOM_CHECKPOINT" "$work/random" 512 768 2 8192
    cp "$model/tokenizer.json" "$work/random"
    works quantize "$work/random" "$work/parts" --bits 8 --tensor-parallel 2 $quick --json
    grep -q '"tensor_parallel": 2' "$work/parts/config.json" || fails "config.json names the parts"
    divergence "$work/parts" "$work/random"
    true_that "8 bits in two parts: KL $kl" "$kl < 0.001"
    part_kl=$kl
    sed 's/"tensor_parallel": 2/"tensor_parallel": 1/' "$work/parts/config.json" >"$work/one.json"
    mv "$work/one.json" "$work/parts/config.json"
    divergence "$work/parts" "$work/random"
    true_that "read as one part it is another model: KL $kl" "$kl > 100 * $part_kl"
    sed 's/"tensor_parallel": 1/"tensor_parallel": 99/' "$work/parts/config.json" >"$work/many.json"
    mv "$work/many.json" "$work/parts/config.json"
    refuses "WORK/parts/config.json: quantization_config.tensor_parallel is 99, expected 1 to 16" inspect "$work/parts"

    refuses "the inputs of model.layers.0.self_attn.o_proj: 320 elements are not 2 parts of a multiple of 64" \
        quantize "$model" "$work/no" --tensor-parallel 2 --no-hessian
    refuses "tensor_parallel needs rotation block: overlap mixes the parts of a dimension" quantize "$model" "$work/no" --tensor-parallel 2 --rotation overlap --no-hessian
    [ ! -e "$work/no" ] && [ ! -e "$work/no.partial" ] || fails "a refused job leaves files"
}

finish

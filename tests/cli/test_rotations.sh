# What GLQ does not know: overlapping blocks, blocks for tensor parallelism, and a head in int8.
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

    # the head in int8, beside the embedding that the source ties it to, and of a format of other programs
    works quantize "$model" "$work/wide" --bits 2 --no-hessian
    for format in e8p int4; do
        options="--format $format --head int8"
        [ $format = e8p ] && options="$options --bits 2 --no-hessian"
        works quantize "$model" "$work/head" $options --dry-run --json
        predicted=$(value bytes_predicted)
        works quantize "$model" "$work/head" $options --json
        same "predicted and real bytes, $format" "$(cat "$work/head"/*.safetensors | wc -c | tr -d ' ')" "$predicted"
        grep -q '"tie_word_embeddings": false' "$work/head/config.json" || fails "$format: the head is its own"
        grep -q '"quant_method": "walsh"' "$work/head/config.json" || fails "$format: marked as walsh's"
        works inspect "$work/head"
        grep -q "^head  *1 int8 " "$work/out" || fails "$format: the head is int8"
        grep -q "^embedding  *1 bf16 " "$work/out" || fails "$format: the embedding is bf16"
        if [ $format = e8p ]; then
            divergence "$work/head" "$work/wide"
            true_that "only the head differs: KL $kl" "$kl > 0 && $kl < 0.001"
            for which in wide head; do
                works eval "$work/$which" --text "$text" --max-tokens 8200 --json
                eval "ppl_$which=$(value ppl)"
            done
            true_that "the int8 head costs under 0.05%: perplexity $ppl_head instead of $ppl_wide" \
                "$ppl_head < 1.0005 * $ppl_wide && $ppl_head > 0.9995 * $ppl_wide"
            works run "$work/head" "It was late" -n 4 --adapter "$adapter" --json
        fi
        rm -r "$work/head"
    done

    refuses "the inputs of model.layers.0.self_attn.o_proj: 320 elements are not 2 parts of a multiple of 64" \
        quantize "$model" "$work/no" --tensor-parallel 2 --no-hessian
    refuses "tensor_parallel needs rotation block: overlap mixes the parts of a dimension" quantize "$model" "$work/no" --tensor-parallel 2 --rotation overlap --no-hessian
    [ ! -e "$work/no" ] && [ ! -e "$work/no.partial" ] || fails "a refused job leaves files"
}

finish

# Every architecture through the program, on its tiny random model: inspected, quantized close to itself, run; adapters
# merged where linears have biases, norms follow them, or one matrix holds several.
. "$(dirname "$0")/lib.sh"
fixtures=$CLI_SOURCE/tests/fixtures/golden

each() { # name, architecture, its linears
    tiny=$fixtures/tiny-$1
    works inspect "$tiny" --json
    same "architecture of $1" "$(value architecture)" "$2"
    works quantize "$tiny" "$work/$1" --bits 8 --calibration "$text" --samples 16 --json
    same "linears of $1" "$(grep -o '"proxy"' "$work/out" | wc -l)" "$3"
    works eval "$work/$1" --activations f32 --kv f32 --text "$text" --max-tokens 3000 --reference "$tiny" --json
    true_that "$1 at 8 bits is close to itself: KL $(value kl)" "$(value kl) < 0.01"
    works run "$work/$1" "It was" -n 8 --temp 0 --quiet
}

each llama2 LlamaForCausalLM 14
each llama3 LlamaForCausalLM 14
each smollm2 LlamaForCausalLM 14
each mistral MistralForCausalLM 14
each mixtral MixtralForCausalLM 32
each gpt-oss GptOssForCausalLM 32
each gpt-oss-mxfp4 GptOssForCausalLM 32
each qwen2 Qwen2ForCausalLM 21
each qwen3 Qwen3ForCausalLM 14
each smollm3 SmolLM3ForCausalLM 21
each gemma2 Gemma2ForCausalLM 14
each gemma3 Gemma3ForCausalLM 21
each phi3 Phi3ForCausalLM 14
each phi3-longrope Phi3ForCausalLM 14
each lfm2 Lfm2ForCausalLM 17

merged() { # name: the merged model is the model with its adapter, dense and quantized
    tiny=$fixtures/tiny-$1
    works merge "$tiny" "$tiny-lora" "$work/$1-dense" --dtype f32
    works eval "$tiny" --activations f32 --kv f32 --adapter "$tiny-lora" --text "$text" --max-tokens 3000 --reference "$work/$1-dense" --json
    true_that "$1 merged: KL $(value kl)" "$(value kl) < 1e-6"
    works eval "$tiny" --activations f32 --kv f32 --adapter "$tiny-lora" --text "$text" --max-tokens 3000 --reference "$tiny" --json
    true_that "$1's adapter does something: KL $(value kl)" "$(value kl) > 0.05"
    works merge "$work/$1" "$tiny-lora" "$work/$1-again" --dtype f32
    works eval "$work/$1" --activations f32 --kv f32 --adapter "$tiny-lora" --text "$text" --max-tokens 3000 --reference "$work/$1-again" --json
    true_that "$1 quantized, merged: KL $(value kl)" "$(value kl) < 1e-3"
    works eval "$work/$1-again" --activations f32 --kv f32 --text "$text" --max-tokens 3000 --reference "$work/$1-dense" --json
    true_that "$1 merged before and after quantizing: KL $(value kl)" "$(value kl) < 0.02"
}

merged qwen2
merged gemma2
merged phi3
merged lfm2

# A merged Phi-3 has its matrices as before, so that it is one for others too.
works inspect "$work/phi3-again"
grep -q "Phi3ForCausalLM" "$work/out" || fails "the architecture"
grep -aq '"model.layers.1.self_attn.qkv_proj.weight"' "$work/phi3-again/model.safetensors" || fails "one matrix of q, k, v"
! grep -aq '"model.layers.1.self_attn.q_proj.weight"' "$work/phi3-again/model.safetensors" || fails "no matrix of q alone"
# Quantized it is in a layout of walsh's own.
grep -q '"quant_method": "walsh"' "$work/phi3/config.json" || fails "marked as walsh's"

# Training knows the short factors of a longrope.
refuses "a context of 64 tokens: training uses the short factors of longrope, which are for at most 32" \
    finetune "$fixtures/tiny-phi3-longrope" --data "$text" --output "$work/no" --steps 1 --context 64

# Short convolutions are trained as well: the linears on both sides of them.
works finetune "$fixtures/tiny-lfm2" --data "$text" --output "$work/lfm2-trained" --steps 2 --context 32 --grad-accumulation 1
for module in layers.0.conv.in_proj layers.2.conv.out_proj layers.1.self_attn.k_proj; do
    grep -aq "model.$module.lora_B" "$work/lfm2-trained/adapter_model.safetensors" || fails "an update of $module"
done
works eval "$fixtures/tiny-lfm2" --adapter "$work/lfm2-trained" --text "$text" --context 64 --max-tokens 128
works finetune "$fixtures/tiny-lfm2" --data "$text" --output "$work/lfm2-some" --steps 1 --context 32 --targets k_proj,in_proj

finish

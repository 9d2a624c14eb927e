#!/bin/sh
# Is what the tiny models are made to show really on in them? Each line below changes one key of a config.json; the
# reference outputs must then no longer be met. Arguments: the program golden, the directory of the fixtures.
set -eu
golden=$1 fixtures=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-ablations.XXXXXX")
trap 'rm -rf "$work"' EXIT
failures=0 count=0

# MODEL, what is changed, a sed script for its config.json
expect_difference()
{
    rm -rf "$work/model"
    cp -r "$fixtures/tiny-$1" "$work/model"
    sed "$3" "$fixtures/tiny-$1/config.json" > "$work/model/config.json"
    count=$((count + 1))
    if cmp -s "$work/model/config.json" "$fixtures/tiny-$1/config.json"; then
        echo "FAIL $1: $2: the script changes nothing"
        failures=$((failures + 1))
        return
    fi
    ${WALSH_EMULATOR-} "$golden" "$work/model" "$fixtures/tiny-$1.safetensors" > "$work/out" 2>&1 || true
    if grep -q '^golden: FAILED$' "$work/out"; then
        echo "ok   $1: $2"
    else
        echo "FAIL $1: $2: $(tail -n 1 "$work/out")"
        failures=$((failures + 1))
    fi
}

expect_difference llama2 "theta" 's/"rope_theta": 10000.0/"rope_theta": 9000.0/'
expect_difference llama3 "llama3's factor" 's/"factor": 4.0/"factor": 3.0/'
expect_difference llama3 "llama3's low frequencies" 's/"low_freq_factor": 1.0/"low_freq_factor": 2.0/'
expect_difference llama3 "rope type" 's/"rope_type": "llama3"/"rope_type": "default"/'
expect_difference smollm2 "theta" 's/"rope_theta": 100000.0/"rope_theta": 10000.0/'
expect_difference lfm2 "theta" 's/"rope_theta": 1000.0/"rope_theta": 900.0/'
expect_difference mistral "no window" 's/"sliding_window": 8/"sliding_window": null/'
expect_difference mistral "window 9" 's/"sliding_window": 8/"sliding_window": 9/'
expect_difference mixtral "one expert more" 's/"num_experts_per_tok": 2/"num_experts_per_tok": 3/'
expect_difference gpt-oss "window 9" 's/"sliding_window": 8/"sliding_window": 9/'
expect_difference gpt-oss "no windows" 's/"sliding_attention"/"full_attention"/'
expect_difference gpt-oss "the gate's limit" 's/"swiglu_limit": 1.5/"swiglu_limit": 7.0/'
expect_difference gpt-oss "the gate's alpha" 's/"swiglu_alpha": 1.702/"swiglu_alpha": 1.0/'
expect_difference gpt-oss "YaRN's truncation" 's/"truncate": false/"truncate": true/'
expect_difference qwen2 "window 7" 's/"sliding_window": 8/"sliding_window": 7/'
expect_difference qwen2 "windows everywhere" 's/"full_attention"/"sliding_attention"/'
expect_difference qwen2 "YaRN's factor" 's/"factor": 4.0/"factor": 3.0/'
expect_difference qwen2 "YaRN's attention factor" 's/"factor": 4.0/"factor": 4.0, "attention_factor": 1.0/'
expect_difference qwen2 "YaRN's ramp" 's/"beta_slow": 1.0/"beta_slow": 0.3/'
expect_difference qwen3 "linear factor" 's/"factor": 3.0/"factor": 2.0/'
expect_difference smollm3 "rope everywhere" '/no_rope_layers/,/\]/s/^    0/    1/'
expect_difference smollm3 "no window" 's/"sliding_attention"/"full_attention"/'
expect_difference gemma2 "no window" 's/"sliding_attention"/"full_attention"/'
expect_difference gemma2 "windows everywhere" 's/"full_attention"/"sliding_attention"/'
expect_difference gemma2 "no cap of scores" 's/"attn_logit_softcapping": 3.0/"attn_logit_softcapping": null/'
expect_difference gemma2 "no cap of logits" 's/"final_logit_softcapping": 8.0/"final_logit_softcapping": null/'
expect_difference gemma2 "query scale" 's/"query_pre_attn_scalar": 24/"query_pre_attn_scalar": 16/'
expect_difference gemma2 "gate" 's/"gelu_pytorch_tanh"/"silu"/'
expect_difference gemma3 "theta of windows" 's/"rope_theta": 100[.]0/"rope_theta": 10000.0/'
expect_difference gemma3 "theta beyond windows" 's/"rope_theta": 10000.0/"rope_theta": 100.0/'
expect_difference gemma3 "linear factor" 's/"factor": 8.0/"factor": 4.0/'
expect_difference gemma3 "window 9" 's/"sliding_window": 8/"sliding_window": 9/'
expect_difference gemma3 "query scale" 's/"query_pre_attn_scalar": 24/"query_pre_attn_scalar": 16/'
expect_difference phi3 "whole heads" 's/"partial_rotary_factor": 0.5/"partial_rotary_factor": 1.0/'
expect_difference phi3 "no window" 's/"sliding_window": 8/"sliding_window": null/'
[ "$failures" -eq 0 ] || { echo "$failures of $count failed"; exit 1; }
echo "all $count are seen"

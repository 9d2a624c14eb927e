/* What config.json says of the families beside Llama: windows, positions, biases, caps; and what is refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint/config.h"

#define SHAPE                                                                                                \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":6,\"num_attention_heads\":4,"         \
    "\"num_key_value_heads\":2,\"vocab_size\":256,\"max_position_embeddings\":1024"

static enum walsh_status parse(const char *architecture, const char *keys, struct walsh_config *c,
                               struct walsh_error *err)
{
    char json[2048];
    snprintf(json, sizeof json, "{\"architectures\":[\"%s\"]," SHAPE "%s%s}", architecture, *keys ? "," : "",
             keys);
    for (char *p = json; *p; p++)
        if (*p == '\'') *p = '"';
    return walsh_config_parse("config.json", json, strlen(json), c, err);
}

static struct walsh_config accept(const char *architecture, const char *keys)
{
    struct walsh_config c;
    struct walsh_error err = {0};
    if (parse(architecture, keys, &c, &err) != WALSH_OK) fail_msg("%s", err.message);
    return c;
}

static void refuse(const char *architecture, const char *keys, enum walsh_status status, const char *message)
{
    struct walsh_config c;
    struct walsh_error err = {0};
    assert_int_equal(parse(architecture, keys, &c, &err), status);
    assert_string_equal(err.message, message);
}

/* The flags of the first six layers as letters: W windowed, N no rope, B both, C a convolution, '.' none. */
static const char *layers(const struct walsh_config *c)
{
    static char text[7];
    for (unsigned i = 0; i < 6; i++) text[i] = ".WNBC"[c->layer_flags[i]];
    return text;
}

static void expect_layers(const char *architecture, const char *keys, uint32_t window, const char *expected)
{
    struct walsh_config c = accept(architecture, keys);
    assert_int_equal(c.window, window);
    assert_string_equal(layers(&c), expected);
}

static void windows(void **state)
{
    (void)state;
    expect_layers("MistralForCausalLM", "", 4096, "WWWWWW");
    expect_layers("MistralForCausalLM", "'sliding_window':null", 0, "......");
    expect_layers("MixtralForCausalLM", "'num_local_experts':4,'num_experts_per_tok':2", 0, "......");
    expect_layers("Phi3ForCausalLM", "'sliding_window':2047", 2047, "WWWWWW");
    expect_layers("Qwen2ForCausalLM", "'sliding_window':32,'max_window_layers':4", 0, "......");
    expect_layers("Qwen2ForCausalLM", "'use_sliding_window':true,'sliding_window':32,'max_window_layers':4",
                  32, "....WW");
    expect_layers("Qwen3ForCausalLM", "'use_sliding_window':true", 0, "......"); /* from layer 28 on */
    expect_layers("Gemma2ForCausalLM", "'sliding_window':16", 16, "W.W.W.");
    expect_layers("Gemma3ForCausalLM", "", 4096, "WWWWW.");
    expect_layers("Gemma3ForCausalLM", "'sliding_window_pattern':3", 4096, "WW.WW.");
    expect_layers("Gemma3ForCausalLM",
                  "'layer_types':['full_attention','sliding_attention','full_attention','full_attention',"
                  "'full_attention','sliding_attention']",
                  4096, ".W...W");
    expect_layers("SmolLM3ForCausalLM", "", 0, "...N..");
    expect_layers("SmolLM3ForCausalLM", "'no_rope_layer_interval':2", 0, ".N.N.N");
    expect_layers("SmolLM3ForCausalLM", "'no_rope_layers':[0,1,1,1,1,0]", 0, "N....N");
    expect_layers("SmolLM3ForCausalLM", "'use_sliding_window':true,'sliding_window':64", 64, "...B..");
}

static void refused_windows(void **state)
{
    (void)state;
    refuse("LlamaForCausalLM", "'sliding_window':4096", WALSH_E_UNSUPPORTED,
           "config.json: sliding_window is an integer; walsh implements null only for LlamaForCausalLM");
    refuse("LlamaForCausalLM", "'use_sliding_window':true", WALSH_E_UNSUPPORTED,
           "config.json: use_sliding_window is true, which walsh does not implement");
    refuse("MistralForCausalLM", "'sliding_window':0", WALSH_E_FORMAT,
           "config.json: sliding_window is 0, expected 1 to 268435456");
    refuse("Gemma2ForCausalLM", "'layer_types':['full_attention']", WALSH_E_FORMAT,
           "config.json: layer_types is not a list of num_hidden_layers 6 entries");
    refuse("Gemma2ForCausalLM", "'layer_types':['conv',1,1,1,1,1]", WALSH_E_UNSUPPORTED,
           "config.json: layer_types[0] \"conv\" is not supported; known: full_attention, sliding_attention");
    refuse("Gemma2ForCausalLM", "'layer_types':[1,1,1,1,1,1]", WALSH_E_FORMAT,
           "config.json: layer_types[0] is not a name");
    refuse("Qwen2ForCausalLM",
           "'layer_types':['sliding_attention','full_attention','full_attention','full_attention',"
           "'full_attention','full_attention']",
           WALSH_E_FORMAT,
           "config.json: layer_types[0] is sliding_attention, but no sliding_window is in use");
    refuse("SmolLM3ForCausalLM", "'no_rope_layers':[1,1,1,1,1,2]", WALSH_E_FORMAT,
           "config.json: no_rope_layers[5] is not 0 or 1");
}

static void positions(void **state)
{
    (void)state;
    struct walsh_config c = accept("Gemma3ForCausalLM", "'rope_theta':5e5,'rope_local_base_freq':2e4,"
                                                        "'rope_scaling':{'rope_type':'linear','factor':8.0}");
    assert_true(c.has_local_rope && c.rope.theta == 5e5 && c.local_rope.theta == 2e4);
    assert_true(c.rope.type == WALSH_ROPE_LINEAR && c.rope.factor == 8);
    assert_true(c.local_rope.type == WALSH_ROPE_DEFAULT);
    c = accept("Gemma3ForCausalLM",
               "'rope_parameters':{'full_attention':{'rope_type':'linear','factor':2,'rope_theta':3e5},"
               "'sliding_attention':{'rope_theta':100}}");
    assert_true(c.rope.theta == 3e5 && c.rope.factor == 2 && c.local_rope.theta == 100);
    c = accept("Gemma3ForCausalLM", "");
    assert_true(c.rope.theta == 1e6 && c.local_rope.theta == 1e4);
    c = accept("Gemma2ForCausalLM", "");
    assert_false(c.has_local_rope);
    assert_true(accept("SmolLM3ForCausalLM", "").rope.theta == 2e6);

    c = accept("Phi3ForCausalLM", "'head_dim':32,'partial_rotary_factor':0.75");
    assert_int_equal(c.rotary_dim, 24);
    c = accept("Phi3ForCausalLM", "'head_dim':32,'rope_parameters':{'partial_rotary_factor':0.5}");
    assert_int_equal(c.rotary_dim, 16);
    refuse("Phi3ForCausalLM", "'head_dim':32,'partial_rotary_factor':0.1", WALSH_E_FORMAT,
           "config.json: partial_rotary_factor 0.1 of head_dim 32 is 3 elements, expected an even number");

    struct walsh_rope_config r = accept("Qwen3ForCausalLM", "'rope_scaling':{'rope_type':'yarn','factor':4.0,"
                                                            "'original_max_position_embeddings':512}")
                                     .rope;
    assert_true(r.type == WALSH_ROPE_YARN && r.factor == 4 && r.original_max_positions == 512);
    assert_true(r.beta_fast == 32 && r.beta_slow == 1 && r.truncate);
    assert_float_equal(r.attention_factor, 1.1386294361119891, 1e-12);
    r = accept("Qwen2ForCausalLM",
               "'rope_scaling':{'type':'yarn','factor':4.0,'beta_fast':8,'truncate':false,"
               "'attention_factor':1.0}")
            .rope;
    assert_true(r.original_max_positions == 1024 && r.beta_fast == 8 && !r.truncate &&
                r.attention_factor == 1);
    refuse("Qwen2ForCausalLM", "'rope_scaling':{'type':'yarn','factor':4.0,'mscale':1.0}",
           WALSH_E_UNSUPPORTED, "config.json: rope_scaling.mscale is 1; walsh implements 0 only");
}

static void scales(void **state)
{
    (void)state;
    struct walsh_config c = accept("Gemma2ForCausalLM", "'hidden_act':'gelu','query_pre_attn_scalar':144");
    assert_true(c.norm_offset && c.scaled_embeddings && c.tied_embeddings && !c.qk_norm);
    assert_int_equal(c.gate, WALSH_GATE_GELU_TANH);
    assert_int_equal(c.head_dim, 256);
    assert_true(c.query_scalar == 144 && c.score_cap == 50 && c.logit_cap == 30);
    c = accept("Gemma2ForCausalLM",
               "'attn_logit_softcapping':null,'final_logit_softcapping':20.5,'head_dim':16");
    assert_true(c.score_cap == 0 && c.logit_cap == 20.5 && c.head_dim == 16);
    c = accept("Gemma3ForCausalLM", "'attn_logit_softcapping':null");
    assert_true(c.qk_norm && c.score_cap == 0 && c.logit_cap == 0);
    refuse("Gemma3ForCausalLM", "'use_bidirectional_attention':true", WALSH_E_UNSUPPORTED,
           "config.json: use_bidirectional_attention is true, which walsh does not implement");
    refuse("Gemma2ForCausalLM", "'hidden_activation':'gelu'", WALSH_E_UNSUPPORTED,
           "config.json: hidden_activation \"gelu\" is not supported; known: silu, gelu_pytorch_tanh");
    c = accept("LlamaForCausalLM", "'hidden_act':'gelu_pytorch_tanh'");
    assert_int_equal(c.gate, WALSH_GATE_GELU_TANH);
    assert_false(c.norm_offset || c.scaled_embeddings || c.tied_embeddings);
}

static void biases(void **state)
{
    (void)state;
    struct walsh_config c = accept("Qwen2ForCausalLM", "");
    assert_true(c.attention_bias && !c.output_bias && !c.mlp_bias);
    c = accept("Qwen3ForCausalLM", "'attention_bias':true");
    assert_true(c.attention_bias && c.output_bias && c.qk_norm && c.head_dim == 128);
    c = accept("SmolLM3ForCausalLM", "'mlp_bias':true");
    assert_true(!c.attention_bias && c.mlp_bias && c.tied_embeddings);
    refuse("MistralForCausalLM", "'attention_bias':true", WALSH_E_UNSUPPORTED,
           "config.json: attention_bias is true, which walsh does not implement");
    refuse("Gemma2ForCausalLM", "'mlp_bias':true", WALSH_E_UNSUPPORTED,
           "config.json: mlp_bias is true, which walsh does not implement");
}

static void mixtral(void **state)
{
    (void)state;
    struct walsh_config c = accept("MixtralForCausalLM", "'num_local_experts':8,'num_experts_per_tok':2");
    assert_true(c.normalize_topk);
    assert_int_equal(c.experts, 8);
    assert_int_equal(c.expert_intermediate, 96);
    assert_true(c.rms_epsilon == 1e-5 && c.rope.theta == 1e6);
}

static void convolutions(void **state)
{
    (void)state;
    struct walsh_config c = accept("Lfm2ForCausalLM", "'full_attn_idxs':[1,4]");
    assert_string_equal(layers(&c), "C.CC.C");
    assert_int_equal(c.conv_taps, 3);
    assert_int_equal(c.intermediate, 256); /* 64 rounded up to 256 */
    assert_true(c.tied_embeddings && c.qk_norm && !c.conv_bias && c.rope.theta == 1e6);
    c = accept("Lfm2ForCausalLM", "'block_ff_dim':100,'block_multiple_of':10,'block_ffn_dim_multiplier':1.5,"
                                  "'norm_eps':0.25,'conv_bias':true,'conv_L_cache':4,'tie_embedding':false");
    assert_string_equal(layers(&c), "......"); /* all attend where nothing is said */
    assert_int_equal(c.intermediate, 100);     /* 66 * 1.5 = 99 */
    assert_true(c.rms_epsilon == 0.25 && c.conv_bias && c.conv_taps == 4 && !c.tied_embeddings);
    c = accept("Lfm2ForCausalLM",
               "'block_auto_adjust_ff_dim':false,'layer_types':['conv','full_attention','conv',"
               "'conv','full_attention','conv']");
    assert_string_equal(layers(&c), "C.CC.C");
    assert_int_equal(c.intermediate, 96);
    c = accept("Lfm2ForCausalLM", "'full_attn_idxs':[1,4],'rope_theta':5000,'theta':1000");
    assert_true(c.rope.theta == 1000);
    refuse("Lfm2ForCausalLM", "'full_attn_idxs':[6]", WALSH_E_FORMAT,
           "config.json: full_attn_idxs does not list numbers of layers");
    refuse("Lfm2ForCausalLM", "'full_attn_idxs':1", WALSH_E_FORMAT,
           "config.json: full_attn_idxs does not list numbers of layers");
    refuse("Lfm2ForCausalLM", "'conv_L_cache':17", WALSH_E_FORMAT,
           "config.json: conv_L_cache is 17, expected 1 to 16");
    refuse("Lfm2ForCausalLM", "'head_dim':32", WALSH_E_UNSUPPORTED,
           "config.json: head_dim 32 times num_attention_heads 4 is not hidden_size 64");
}

/* Phi-3's long contexts: the key of the original context stands beside the set or in it. */
static void longrope(void **state)
{
    (void)state;
    const char *const names[] = {"longrope", "su", "yarn"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char keys[300];
        snprintf(keys, sizeof keys,
                 "'head_dim':8,'partial_rotary_factor':0.5,'original_max_position_embeddings':256,"
                 "'rope_scaling':{'type':'%s','short_factor':[1,1.5],'long_factor':[2,8]}",
                 names[i]);
        const struct walsh_rope_config r = accept("Phi3ForCausalLM", keys).rope;
        assert_true(r.type == WALSH_ROPE_LONGROPE && r.original_max_positions == 256 && r.factor == 4);
        assert_true(r.short_factor[0] == 1 && r.short_factor[1] == 1.5f && r.long_factor[1] == 8);
        assert_float_equal(r.attention_factor, sqrt(1.25), 1e-12); /* 1 + ln 4 / ln 256 */
    }
#define LONGROPE "'head_dim':4,'rope_parameters':{'rope_type':'longrope',"
#define FACTORS "'short_factor':[1,1.5],'long_factor':[2,8]}"
    struct walsh_rope_config r =
        accept("Phi3ForCausalLM", LONGROPE "'factor':16,'original_max_position_embeddings':256,"
                                           "'attention_factor':1.25," FACTORS)
            .rope;
    assert_true(r.factor == 16 && r.attention_factor == 1.25);
    r = accept("Phi3ForCausalLM", LONGROPE FACTORS).rope; /* the model's context is the shorter one */
    assert_true(r.original_max_positions == 4096 && r.attention_factor == 1);
    refuse("LlamaForCausalLM", LONGROPE FACTORS, WALSH_E_FORMAT,
           "config.json: rope_parameters.original_max_position_embeddings is missing");
    refuse("Phi3ForCausalLM", LONGROPE "'short_factor':[1],'long_factor':[1,1]}", WALSH_E_FORMAT,
           "config.json: rope_parameters.short_factor is not a list of 2 numbers, one for each pair");
    refuse("Phi3ForCausalLM", LONGROPE "'short_factor':[1,0],'long_factor':[1,1]}", WALSH_E_FORMAT,
           "config.json: rope_parameters.short_factor[1] is no number of 1e-6 to 1e+06");
    refuse("Phi3ForCausalLM", LONGROPE "'short_factor':[1,1],'long_factor':[1,'x']}", WALSH_E_FORMAT,
           "config.json: rope_parameters.long_factor[1] is no number of 1e-6 to 1e+06");
    refuse(
        "Gemma3ForCausalLM", "'rope_parameters':{'sliding_attention':{'rope_type':'longrope'}}",
        WALSH_E_UNSUPPORTED,
        "config.json: rope_parameters.sliding_attention.rope_type longrope is for layers without a window");
#undef LONGROPE
#undef FACTORS
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows),      cmocka_unit_test(refused_windows), cmocka_unit_test(positions),
        cmocka_unit_test(scales),       cmocka_unit_test(biases),          cmocka_unit_test(mixtral),
        cmocka_unit_test(convolutions), cmocka_unit_test(longrope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

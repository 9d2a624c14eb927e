#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/config.h"

#define LLAMA                                                                                                \
    "'architectures':['LlamaForCausalLM'],'hidden_size':576,'intermediate_size':1536,'num_hidden_layers':6," \
    "'num_attention_heads':9,'vocab_size':8192,'max_position_embeddings':1024"
#define MOE                                                                                                  \
    "'architectures':['Qwen3MoeForCausalLM'],'hidden_size':256,'num_hidden_layers':4,'num_attention_heads':" \
    "4,"                                                                                                     \
    "'num_key_value_heads':2,'vocab_size':8192,'max_position_embeddings':1024,'num_experts_per_tok':4,"      \
    "'moe_intermediate_size':192"

/* Single quotes stand for double ones. */
static const char *quoted(const char *text)
{
    static char buffer[4096];
    snprintf(buffer, sizeof buffer, "%s", text);
    for (char *p = buffer; *p; p++)
        if (*p == '\'') *p = '"';
    return buffer;
}

static struct walsh_config accept(const char *text)
{
    struct walsh_config c;
    struct walsh_error err = {0};
    const char *json = quoted(text);
    if (walsh_config_parse("config.json", json, strlen(json), &c, &err) != WALSH_OK)
        fail_msg("%s: %s", text, err.message);
    return c;
}

static void refuse(const char *text, enum walsh_status status, const char *message)
{
    struct walsh_config c;
    struct walsh_error err = {0};
    const char *json = quoted(text);
    assert_int_equal(walsh_config_parse("config.json", json, strlen(json), &c, &err), status);
    assert_string_equal(err.message, message);
}

static void test_llama(void **state)
{
    (void)state;
    struct walsh_config c =
        accept("{" LLAMA ",'num_key_value_heads':3,'head_dim':64,'rms_norm_eps':1e-05,'dtype':'bfloat16',"
               "'rope_parameters':{'rope_theta':10000.0,'rope_type':'default'},'hidden_act':'silu',"
               "'tie_word_embeddings':true,'bos_token_id':0,'eos_token_id':[0,2],"
               "'attention_bias':false,'mlp_bias':true,'unknown_key':{'a':[1]}}");
    assert_int_equal(c.architecture, WALSH_ARCH_LLAMA);
    assert_string_equal(c.architecture_name, "LlamaForCausalLM");
    assert_string_equal(c.torch_dtype, "bfloat16");
    assert_int_equal(c.hidden, 576);
    assert_int_equal(c.intermediate, 1536);
    assert_int_equal(c.layers, 6);
    assert_int_equal(c.heads, 9);
    assert_int_equal(c.kv_heads, 3);
    assert_int_equal(c.head_dim, 64);
    assert_int_equal(c.vocab, 8192);
    assert_int_equal(c.max_positions, 1024);
    assert_true(c.rms_epsilon == 1e-5);
    assert_int_equal(c.rope.type, WALSH_ROPE_DEFAULT);
    assert_true(c.rope.theta == 10000);
    assert_true(c.tied_embeddings);
    assert_false(c.attention_bias);
    assert_true(c.mlp_bias);
    assert_false(c.qk_norm);
    assert_int_equal(c.experts, 0);
    assert_int_equal(c.bos, 0);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos[1], 2);
    assert_int_equal(c.quant.method, WALSH_QUANT_NONE);
}

static void test_defaults(void **state)
{
    (void)state;
    struct walsh_config c =
        accept("{" LLAMA ",'head_dim':null,'rope_scaling':null,'eos_token_id':null,'torch_dtype':'float16'}");
    assert_int_equal(c.kv_heads, 9);
    assert_int_equal(c.head_dim, 64);
    assert_true(c.rms_epsilon == 1e-6);
    assert_true(c.rope.theta == 10000);
    assert_false(c.tied_embeddings);
    assert_int_equal(c.bos, -1);
    assert_int_equal(c.eos_count, 0);
    assert_string_equal(c.torch_dtype, "float16");
    c = accept("{" LLAMA ",'eos_token_id':7}");
    assert_int_equal(c.eos_count, 1);
    assert_int_equal(c.eos[0], 7);
    assert_string_equal(c.torch_dtype, "");
}

static void test_qwen3_moe(void **state)
{
    (void)state;
    struct walsh_config c =
        accept("{" MOE ",'num_local_experts':16,'norm_topk_prob':true,'decoder_sparse_step':1,"
               "'mlp_only_layers':[],'use_sliding_window':false,'sliding_window':null,'head_dim':128}");
    assert_int_equal(c.architecture, WALSH_ARCH_QWEN3_MOE);
    assert_true(c.qk_norm);
    assert_int_equal(c.experts, 16);
    assert_int_equal(c.experts_per_token, 4);
    assert_int_equal(c.expert_intermediate, 192);
    assert_true(c.normalize_topk);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(accept("{" MOE ",'num_experts':128}").experts, 128);
    refuse("{" MOE "}", WALSH_E_FORMAT, "config.json: num_experts (or num_local_experts) is missing");
    refuse("{" MOE ",'num_experts':3}", WALSH_E_FORMAT,
           "config.json: num_experts_per_tok is 4, expected 1 to 3");
    refuse("{" MOE ",'num_experts':8,'decoder_sparse_step':2}", WALSH_E_UNSUPPORTED,
           "config.json: decoder_sparse_step is 2; walsh implements 1 only");
    refuse(
        "{" MOE ",'num_experts':8,'mlp_only_layers':[0]}", WALSH_E_UNSUPPORTED,
        "config.json: mlp_only_layers is not empty; walsh implements models whose layers all have experts");
}

static void test_rope(void **state)
{
    (void)state;
    struct walsh_rope_config r = accept("{" LLAMA ",'rope_theta':500000}").rope;
    assert_true(r.theta == 500000 && r.type == WALSH_ROPE_DEFAULT);
    r = accept("{" LLAMA ",'rope_theta':500000,'rope_scaling':{'type':'linear','factor':2}}").rope;
    assert_true(r.theta == 500000 && r.type == WALSH_ROPE_LINEAR && r.factor == 2);
    r = accept("{" LLAMA
               ",'rope_parameters':{'rope_type':'llama3','rope_theta':5e5,'factor':8.0,'low_freq_factor':1.0,"
               "'high_freq_factor':4.0,'original_max_position_embeddings':8192}}")
            .rope;
    assert_true(r.theta == 500000 && r.type == WALSH_ROPE_LLAMA3 && r.factor == 8);
    assert_true(r.low_frequency_factor == 1 && r.high_frequency_factor == 4 &&
                r.original_max_positions == 8192);
    r = accept("{" LLAMA
               ",'rope_theta':1e6,'rope_scaling':{'rope_type':'llama3','factor':32.0,'low_freq_factor':1.0,"
               "'high_freq_factor':4.0,'original_max_position_embeddings':8192,'type':'llama3'}}")
            .rope;
    assert_true(r.theta == 1e6 && r.type == WALSH_ROPE_LLAMA3 && r.factor == 32);

    refuse("{" LLAMA ",'rope_scaling':{'type':'dynamic','factor':2}}", WALSH_E_UNSUPPORTED,
           "config.json: rope type \"dynamic\" is not supported; known: default, linear, llama3, yarn, "
           "longrope");
    refuse("{" LLAMA ",'rope_scaling':{'type':'linear'}}", WALSH_E_FORMAT,
           "config.json: rope_scaling.factor is missing");
    refuse("{" LLAMA ",'rope_scaling':{'rope_type':'linear','factor':0}}", WALSH_E_FORMAT,
           "config.json: rope_scaling.factor is 0, expected above 0 to 1e+06");
    refuse("{" LLAMA
           ",'rope_parameters':{'rope_type':'llama3','factor':8,'low_freq_factor':4,'high_freq_factor':4}}",
           WALSH_E_FORMAT,
           "config.json: rope_parameters.low_freq_factor is 4, expected below high_freq_factor 4");
    refuse("{" LLAMA
           ",'rope_parameters':{'rope_type':'llama3','factor':8,'low_freq_factor':1,'high_freq_factor':4}}",
           WALSH_E_FORMAT, "config.json: rope_parameters.original_max_position_embeddings is missing");
    refuse(
        "{" LLAMA ",'rope_parameters':{'full_attention':{'rope_theta':1}}}", WALSH_E_UNSUPPORTED,
        "config.json: rope_parameters.full_attention: rope parameters per kind of layer are not supported");
    refuse("{" LLAMA ",'rope_theta':-1}", WALSH_E_FORMAT,
           "config.json: rope_theta is -1, expected above 0 to 1e+12");
    refuse("{" LLAMA ",'rope_scaling':7}", WALSH_E_FORMAT,
           "config.json: rope_scaling is an integer, expected an object");
    refuse("{" LLAMA ",'partial_rotary_factor':0.5}", WALSH_E_UNSUPPORTED,
           "config.json: partial_rotary_factor is 0.5; walsh implements 1 only");
    refuse("{" LLAMA ",'rope_parameters':{'partial_rotary_factor':0.25}}", WALSH_E_UNSUPPORTED,
           "config.json: rope_parameters.partial_rotary_factor is 0.25; walsh implements 1 only");
}

static void test_architecture(void **state)
{
    (void)state;
    refuse("{'architectures':['GPT2LMHeadModel']}", WALSH_E_UNSUPPORTED,
           "config.json: architecture \"GPT2LMHeadModel\" is not supported; known: LlamaForCausalLM, "
           "MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
           "GptOssForCausalLM, "
           "SmolLM3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, Lfm2ForCausalLM");
    refuse("{}", WALSH_E_FORMAT, "config.json: architectures is not a list of one name");
    refuse("{'architectures':['LlamaForCausalLM','x']}", WALSH_E_FORMAT,
           "config.json: architectures is not a list of one name");
    refuse("{'architectures':'LlamaForCausalLM'}", WALSH_E_FORMAT,
           "config.json: architectures is not a list of one name");
}

/* The text with `from` replaced by `to` */
static const char *with(const char *text, const char *from, const char *to)
{
    static char buffer[4096];
    const char *at = strstr(text, from);
    assert_non_null(at);
    snprintf(buffer, sizeof buffer, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return buffer;
}

static void test_ranges(void **state)
{
    (void)state;
    const char *good = "{" LLAMA "}";
    refuse(with(good, "'hidden_size':576,", ""), WALSH_E_FORMAT, "config.json: hidden_size is missing");
    refuse(with(good, "'hidden_size':576", "'hidden_size':null"), WALSH_E_FORMAT,
           "config.json: hidden_size is missing");
    refuse(with(good, "576", "0"), WALSH_E_FORMAT, "config.json: hidden_size is 0, expected 1 to 1048576");
    refuse(with(good, "576", "1048577"), WALSH_E_FORMAT,
           "config.json: hidden_size is 1048577, expected 1 to 1048576");
    refuse(with(good, "576", "-576"), WALSH_E_FORMAT,
           "config.json: hidden_size is -576, expected 1 to 1048576");
    refuse(with(good, "576", "4294967872"), WALSH_E_FORMAT, /* 2^32 + 576 */
           "config.json: hidden_size is 4294967872, expected 1 to 1048576");
    refuse(with(good, "576", "'576'"), WALSH_E_FORMAT,
           "config.json: hidden_size is a string, expected an integer");
    refuse(with(good, "576", "576.0"), WALSH_E_FORMAT,
           "config.json: hidden_size is a fraction, expected an integer");
    refuse(with(good, "576", "99999999999999999999"), WALSH_E_FORMAT,
           "config.json: invalid JSON at line 1, column 72: too big integer near '99999999999999999999'");
    refuse(with(good, "'num_hidden_layers':6", "'num_hidden_layers':4097"), WALSH_E_FORMAT,
           "config.json: num_hidden_layers is 4097, expected 1 to 4096");
    refuse(with(good, "8192", "16777217"), WALSH_E_FORMAT,
           "config.json: vocab_size is 16777217, expected 1 to 16777216");
    refuse("{" LLAMA ",'num_key_value_heads':2}", WALSH_E_FORMAT,
           "config.json: num_attention_heads 9 is not a multiple of num_key_value_heads 2");
    refuse("{" LLAMA ",'num_key_value_heads':0}", WALSH_E_FORMAT,
           "config.json: num_key_value_heads is 0, expected 1 to 65536");
    refuse("{" LLAMA ",'head_dim':63}", WALSH_E_FORMAT,
           "config.json: head_dim is 63, expected an even number");
    refuse("{" LLAMA ",'head_dim':1026}", WALSH_E_FORMAT,
           "config.json: head_dim is 1026, expected 2 to 1024");
    refuse(with(good, "576", "577"), WALSH_E_FORMAT,
           "config.json: head_dim is missing and hidden_size 577 / num_attention_heads 9 is not an integer "
           "of at most 1024");
    refuse("{" LLAMA ",'hidden_act':'gelu'}", WALSH_E_UNSUPPORTED,
           "config.json: hidden_act \"gelu\" is not supported; known: silu, gelu_pytorch_tanh");
    refuse("{" LLAMA ",'tie_word_embeddings':1}", WALSH_E_FORMAT,
           "config.json: tie_word_embeddings is an integer, expected true or false");
    refuse("{" LLAMA ",'rms_norm_eps':0}", WALSH_E_FORMAT,
           "config.json: rms_norm_eps is 0, expected above 0 to 1");
    refuse("{" LLAMA ",'eos_token_id':'x'}", WALSH_E_FORMAT,
           "config.json: eos_token_id holds a string, expected a token's id");
    refuse("{" LLAMA ",'eos_token_id':[1,-2]}", WALSH_E_FORMAT,
           "config.json: eos_token_id is -2, expected 0 to 16777215");
    refuse("{" LLAMA ",'eos_token_id':[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", WALSH_E_UNSUPPORTED,
           "config.json: eos_token_id lists 17 ids, expected at most 16");
    refuse("{" LLAMA ",'dtype':'a type of more than sixteen letters'}", WALSH_E_FORMAT,
           "config.json: dtype \"a type of more than sixteen letters\" is not one");
    refuse("[1]", WALSH_E_FORMAT, "config.json: JSON holds a list, expected an object");
    refuse("{'hidden_size':1,'hidden_size':2}", WALSH_E_FORMAT,
           "config.json: invalid JSON at line 1, column 30: duplicate object key near '\"hidden_size\"'");
    refuse("", WALSH_E_FORMAT,
           "config.json: invalid JSON at line 1, column 0: '[' or '{' expected near end of file");
}

static void test_quantization(void **state)
{
    (void)state;
#define Q(text) "{" LLAMA ",'quantization_config':{" text "}}"
    struct walsh_quant_config q =
        accept(Q("'quant_method':'glq','codebook':'e8p','bpw':3,'block_diagonal':false")).quant;
    assert_int_equal(q.method, WALSH_QUANT_GLQ);
    assert_string_equal(q.codebook, "e8p");
    assert_true(q.bits == 3 && !q.block_diagonal);
    q = accept(Q("'quant_method':'glq','codebook':'e8p'")).quant;
    assert_true(q.block_diagonal && q.bits == 0);
    q = accept(Q("'quant_method':'walsh','version':1,'codebook':'e8p','block_diagonal':false,'bpw':2.5"))
            .quant;
    assert_int_equal(q.method, WALSH_QUANT_WALSH);
    assert_int_equal(q.version, 1);
    assert_string_equal(q.codebook, "e8p");
    assert_true(q.bits == 2.5 && !q.block_diagonal);
    assert_int_equal(accept("{" LLAMA ",'quantization_config':null}").quant.method, WALSH_QUANT_NONE);

    refuse(Q("'quant_method':'gptq','bits':4"), WALSH_E_UNSUPPORTED,
           "config.json: quantization method \"gptq\" is not supported; known: glq, walsh, "
           "compressed-tensors, modelopt, "
           "mxfp4, fp8");
    refuse(Q("'bits':4"), WALSH_E_FORMAT, "config.json: quantization_config.quant_method is missing");
    refuse(Q("'quant_method':'glq','codebook':'trellis'"), WALSH_E_UNSUPPORTED,
           "config.json: GLQ codebook \"trellis\" is not supported; known: e8p, e8_shell");
    refuse(Q("'quant_method':'glq'"), WALSH_E_FORMAT, "config.json: quantization_config.codebook is missing");
    refuse(Q("'quant_method':'walsh','version':2"), WALSH_E_UNSUPPORTED,
           "config.json: version 2 of quantization method \"walsh\" is not supported; known: 1");
    refuse(Q("'quant_method':'walsh','version':1,'codebook':'trellis'"), WALSH_E_UNSUPPORTED,
           "config.json: codebook \"trellis\" of quantization method \"walsh\" is not supported; known: e8p, "
           "mxfp4, nvfp4, mxfp8, fp8, int8, int4");
    q = accept(Q("'quant_method':'walsh','version':1,'codebook':'int4','group_size':64")).quant;
    assert_string_equal(q.codebook, "int4");
    assert_int_equal(accept(Q("'quant_method':'compressed-tensors'")).quant.method, WALSH_QUANT_BLOCKS);
    assert_int_equal(accept(Q("'quant_method':'modelopt'")).quant.method, WALSH_QUANT_BLOCKS);
    assert_int_equal(accept(Q("'quant_method':'mxfp4'")).quant.method, WALSH_QUANT_BLOCKS);
    assert_int_equal(accept(Q("'quant_method':'fp8'")).quant.method, WALSH_QUANT_BLOCKS);
    refuse(Q("'quant_method':'walsh','version':1"), WALSH_E_FORMAT,
           "config.json: quantization_config.codebook is missing");
    refuse(Q("'quant_method':'walsh'"), WALSH_E_FORMAT,
           "config.json: quantization_config.version is missing");
    refuse(Q("'quant_method':'glq','codebook':'e8p','bpw':-1"), WALSH_E_FORMAT,
           "config.json: quantization_config.bpw is -1, expected above 0 to 32");
}

static void test_generation(void **state)
{
    (void)state;
    struct walsh_generation_config g;
    struct walsh_error err = {0};
    const char *json =
        quoted("{'bos_token_id':0,'eos_token_id':[0,2],'do_sample':true,'temperature':0.8,'top_p':0.95,"
               "'top_k':20,'min_p':0.1,'repetition_penalty':1.05,'transformers_version':'5'}");
    assert_int_equal(walsh_generation_config_parse("g.json", json, strlen(json), &g, &err), WALSH_OK);
    assert_true(g.do_sample && g.temperature == 0.8 && g.top_p == 0.95 && g.top_k == 20 && g.min_p == 0.1);
    assert_true(g.repetition_penalty == 1.05);
    assert_int_equal(g.bos, 0);
    assert_int_equal(g.eos_count, 2);
    assert_int_equal(g.eos[1], 2);
    for (int absent = 0; absent < 2; absent++) { /* no keys and no file give the same */
        assert_int_equal(walsh_generation_config_parse("g.json", absent ? NULL : "{}", 2, &g, &err),
                         WALSH_OK);
        assert_true(!g.do_sample && g.temperature == 1 && g.top_p == 1 && g.top_k == 0 && g.min_p == 0);
        assert_true(g.repetition_penalty == 1 && g.bos == -1 && g.eos_count == 0);
    }
    json = quoted("{'temperature':-1}");
    assert_int_equal(walsh_generation_config_parse("g.json", json, strlen(json), &g, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message, "g.json: temperature is -1, expected 0 to 1e+06");
    json = quoted("{'top_p':1.5}");
    assert_int_equal(walsh_generation_config_parse("g.json", json, strlen(json), &g, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message, "g.json: top_p is 1.5, expected 0 to 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_qwen3_moe),    cmocka_unit_test(test_rope),
        cmocka_unit_test(test_architecture), cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_quantization), cmocka_unit_test(test_generation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

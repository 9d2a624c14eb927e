/* What an adapter must not be, each with its exact message. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "unit/peft_model.h"
#include "unit/temporary.h"

#define Q "base_model.model.model.layers.0.self_attn.q_proj"
#define EXPERTS_PATH "base_model.model.model.layers.1.mlp.experts"

/* The keys that every adapter_config.json needs; tests put more before them. */
#define REST "\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"base_model_name_or_path\":\"tiny\""
#define TARGETS "\"target_modules\":[\"q_proj\"]"
#define GOOD "{" TARGETS "," REST "}"

/* A tensor of zeros; `special` goes into its element 5. */
struct part {
    const char *name, *dtype;
    unsigned element_bytes, rows, columns;
    float special;
};
static const struct part good[] = {{Q ".lora_A.weight", "F32", 4, 4, 24, 0},
                                   {Q ".lora_B.weight", "F32", 4, 40, 4, 0}};

static void put(const char *path, const void *data, size_t size)
{
    struct walsh_error err = {0};
    if (walsh_file_write(path, data, size, &err) != WALSH_OK) fail_msg("%s", err.message);
}

static void put_tensors(const char *path, const struct part *parts, size_t count)
{
    static char file[1 << 17];
    size_t header = 9, offset = 0;
    memset(file, 0, sizeof file);
    file[8] = '{';
    for (size_t i = 0; i < count; i++) {
        const size_t bytes = (size_t)parts[i].element_bytes * parts[i].rows * parts[i].columns;
        header += (size_t)snprintf(file + header, 512,
                                   "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u,%u],\"data_offsets\":[%zu,%zu]}",
                                   i ? "," : "", parts[i].name, parts[i].dtype, parts[i].rows,
                                   parts[i].columns, offset, offset + bytes);
        offset += bytes;
    }
    file[header++] = '}';
    const uint64_t length = header - 8;
    memcpy(file, &length, sizeof length);
    for (size_t i = 0, at = header; i < count; i++) {
        if (parts[i].special != 0) memcpy(file + at + 20, &parts[i].special, sizeof(float));
        at += (size_t)parts[i].element_bytes * parts[i].rows * parts[i].columns;
    }
    put(path, file, header + offset);
}

static void put_adapter(const char *config, const struct part *parts, size_t count)
{
    put(temporary_path("adapter_config.json"), config, strlen(config));
    put_tensors(temporary_path("adapter_model.safetensors"), parts, count);
}

static void expect(enum walsh_status status, const char *message)
{
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    const size_t count = peft_model(linears);
    struct walsh_error err = {0};
    struct walsh_peft peft;
    const enum walsh_status got = walsh_peft_open(temporary_directory, true, linears, count, &peft, &err);
    assert_string_equal(without_directory(err.message), message);
    assert_int_equal(got, status);
    assert_int_equal(err.status, status);
    assert_null(peft.updates);
    walsh_peft_close(&peft);
}

static void expect_config(const char *config, enum walsh_status status, const char *message)
{
    put_adapter(config, good, 2);
    expect(status, message);
}

static void expect_tensors(const char *config, const struct part *parts, size_t count,
                           enum walsh_status status, const char *message)
{
    put_adapter(config, parts, count);
    expect(status, message);
}

static void test_good(void **state)
{
    (void)state;
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    const size_t count = peft_model(linears);
    struct walsh_error err = {0};
    struct walsh_peft peft;
    put_adapter(GOOD, good, 2);
    if (walsh_peft_open(temporary_directory, true, linears, count, &peft, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(peft.count, 1);
    walsh_peft_close(&peft);
}

static void test_values(void **state)
{
    (void)state;
    expect_config("{" TARGETS ",\"peft_type\":\"LOHA\",\"r\":4}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: peft_type is \"LOHA\", expected \"LORA\"");
    expect_config("{" TARGETS ",\"peft_type\":\"LORA\",\"lora_alpha\":4}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: r is missing, expected an integer from 1 to 256");
    expect_config("{" TARGETS ",\"peft_type\":\"LORA\",\"lora_alpha\":4,\"r\":0}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: r is 0, expected an integer from 1 to 256");
    expect_config("{" TARGETS ",\"peft_type\":\"LORA\",\"lora_alpha\":4,\"r\":257}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: r is 257, expected an integer from 1 to 256");
    expect_config("{" TARGETS ",\"peft_type\":\"LORA\",\"lora_alpha\":4,\"r\":16.0}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: r is 16.0, expected an integer from 1 to 256");
    expect_config("{" TARGETS ",\"peft_type\":\"LORA\",\"lora_alpha\":\"8\",\"r\":4}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: lora_alpha is \"8\", expected a number");
    expect_config("{" TARGETS ",\"use_rslora\":1," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: use_rslora is 1, expected true or false");
    expect_config(
        "{\"rank_pattern\":{\"q_proj\":300}," TARGETS "," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: rank_pattern \"q_proj\" is 300, expected an integer from 1 to 256");
    expect_config("{\"alpha_pattern\":{\"q_proj\":null}," TARGETS "," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: alpha_pattern \"q_proj\" is null, expected a number");
    expect_config(
        "{\"alpha_pattern\":[8]," TARGETS "," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: alpha_pattern is [8], expected an object of at most 65536 patterns");
    expect_config(
        "{" REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: target_modules is missing, expected a list of names, a regular expression "
        "or \"all-linear\"");
    expect_config(
        "{\"target_modules\":[]," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: target_modules is [], expected a list of names, a regular expression or "
        "\"all-linear\"");
    expect_config(
        "{\"target_modules\":7," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: target_modules is 7, expected a list of names or a regular expression");
    expect_config("{\"target_modules\":[\"q_proj\",7]," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: target_modules is [\"q_proj\",7], expected a list of names");
    expect_config(
        "{\"target_parameters\":\"mlp.experts.down_proj\"," TARGETS "," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: target_parameters is \"mlp.experts.down_proj\", expected a list of at most "
        "65536 names");
    expect_config("{\"target_parameters\":[\"experts.down_proj\"],\"peft_version\":\"0.18.1\"," TARGETS
                  "," REST "}",
                  WALSH_E_FORMAT,
                  "DIR/adapter_config.json: target_parameters is set and peft_version is \"0.18.1\", "
                  "expected \"0.19.0\" "
                  "or later");
    expect_config("{\"base_model_name_or_path\":3," TARGETS
                  ",\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8}",
                  WALSH_E_FORMAT, "DIR/adapter_config.json: base_model_name_or_path is 3, expected a string");
}

static void test_unsupported(void **state)
{
    (void)state;
    static const struct {
        const char *pair, *message;
    } cases[] = {
        {"\"use_dora\":true", "use_dora is true, which walsh does not support"},
        {"\"lora_bias\":true", "lora_bias is true, which walsh does not support"},
        {"\"fan_in_fan_out\":true", "fan_in_fan_out is true, which walsh does not support"},
        {"\"use_qalora\":true", "use_qalora is true, which walsh does not support"},
        {"\"bias\":\"lora_only\"", "bias is \"lora_only\", which walsh does not support (expected \"none\")"},
        {"\"modules_to_save\":[\"lm_head\"]",
         "modules_to_save is [\"lm_head\"], which walsh does not support"},
        {"\"trainable_token_indices\":[1,2]",
         "trainable_token_indices is [1,2], which walsh does not support"},
        {"\"layers_to_transform\":0", "layers_to_transform is 0, which walsh does not support"},
        {"\"layer_replication\":[[0,4]]", "layer_replication is [[0,4]], which walsh does not support"},
        {"\"alora_invocation_tokens\":[7]", "alora_invocation_tokens is [7], which walsh does not support"},
        {"\"megatron_config\":{\"a\":1}", "megatron_config is {\"a\":1}, which walsh does not support"},
        {"\"a_key_of_tomorrow\":16", "a_key_of_tomorrow is 16, which walsh does not support"},
        {"\"init_lora_weights\":\"pissa_niter_4\"",
         "init_lora_weights is \"pissa_niter_4\", which walsh does not support: it changes the base weights "
         "too; have "
         "PEFT convert the adapter when it saves it (path_initial_model_for_weight_conversion)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char config[512], message[512];
        snprintf(config, sizeof config, "{%s," TARGETS "," REST "}", cases[i].pair);
        snprintf(message, sizeof message, "DIR/adapter_config.json: %s", cases[i].message);
        expect_config(config, WALSH_E_UNSUPPORTED, message);
    }
    /* a value too long for a message is cut */
    expect_config(
        "{\"modules_to_save\":["
        "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"]," TARGETS "," REST
        "}",
        WALSH_E_UNSUPPORTED,
        "DIR/adapter_config.json: modules_to_save is "
        "[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..., which walsh does not "
        "support");
}

/* Off, or without a meaning for inference: read without complaint. */
static void test_ignored(void **state)
{
    (void)state;
    put_adapter("{\"use_dora\":false,\"modules_to_save\":[],\"a_key_of_tomorrow\":{},\"bias\":\"none\","
                "\"lora_dropout\":0.1,"
                "\"init_lora_weights\":\"gaussian\",\"eva_config\":{\"rho\":2.0},\"task_type\":\"CAUSAL_LM\","
                "\"base_model_name_or_path\":null,\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8.5," TARGETS
                "}",
                good, 2);
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    const size_t count = peft_model(linears);
    struct walsh_error err = {0};
    struct walsh_peft peft;
    if (walsh_peft_open(temporary_directory, true, linears, count, &peft, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_string_equal(peft.config.base_model, "");
    assert_true(fabs(peft.updates[0].scale - 8.5 / 4) < 1e-15);
    walsh_peft_close(&peft);
}

static void test_patterns(void **state)
{
    (void)state;
    expect_config(
        "{\"rank_pattern\":{\"q_(proj\":4}," TARGETS "," REST "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: rank_pattern: \"q_(proj\" is not a regular expression: missing closing "
        "parenthesis");
    expect_config("{\"target_modules\":\"*_proj\"," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_config.json: target_modules: \"*_proj\" is not a regular expression: "
                  "quantifier does not "
                  "follow a repeatable item");
    expect_config("{\"target_modules\":\"([a-z0-9_.]+)+[!?]\"," REST "}", WALSH_E_UNSUPPORTED,
                  "DIR/adapter_config.json: target_modules: \"([a-z0-9_.]+)+[!?]\" takes too many steps on "
                  "\"model.layers.0.self_attn.q_proj\"");
    expect_config("{\"rank_pattern\":{\"([a-z0-9_.]+)+[!?]\":4}," TARGETS "," REST "}", WALSH_E_UNSUPPORTED,
                  "DIR/adapter_config.json: rank_pattern: \"([a-z0-9_.]+)+[!?]\" takes too many steps on "
                  "\"model.layers.0.self_attn.q_proj\"");
}

static void test_json(void **state)
{
    (void)state;
    expect_config(
        "{\"r\":4,\"r\":8," TARGETS "}", WALSH_E_FORMAT,
        "DIR/adapter_config.json: invalid JSON at line 1, column 10: duplicate object key near '\"r\"'");
    expect_config("[]", WALSH_E_FORMAT, "DIR/adapter_config.json: JSON holds a list, expected an object");
}

static void test_tensor_names(void **state)
{
    (void)state;
#define WEIGHT(name, rows, columns)                                                                          \
    {                                                                                                        \
        name, "F32", 4, rows, columns, 0                                                                     \
    }
    const struct {
        struct part parts[3];
        enum walsh_status status;
        const char *message;
    } cases[] = {
        {{good[0], good[1], WEIGHT("q_proj.lora_A.weight", 4, 24)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor q_proj.lora_A.weight: not part of a linear's LoRA, expected "
         "base_model.model.MODULE.lora_A.weight or .lora_B.weight"},
        {{good[0], good[1], WEIGHT("base_model.model.lora_A.weight", 4, 24)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor base_model.model.lora_A.weight: not part of a linear's LoRA, "
         "expected "
         "base_model.model.MODULE.lora_A.weight or .lora_B.weight"},
        {{good[0], good[1], WEIGHT(Q ".lora_magnitude_vector", 1, 40)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor " Q
         ".lora_magnitude_vector: a part of DoRA, which walsh does not support"},
        {{good[0], good[1], WEIGHT(Q ".lora_B.bias", 1, 40)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor " Q
         ".lora_B.bias: a bias, which walsh does not support in an adapter"},
        {{good[0], good[1], WEIGHT("base_model.model.model.embed_tokens.lora_embedding_A", 4, 50)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor base_model.model.model.embed_tokens.lora_embedding_A: a LoRA "
         "of an "
         "embedding, which walsh does not support"},
        {{good[0], good[1], WEIGHT("base_model.model.lm_head.modules_to_save.weight", 50, 24)},
         WALSH_E_UNSUPPORTED,
         "DIR/adapter_model.safetensors: tensor base_model.model.lm_head.modules_to_save.weight: a part of "
         "modules_to_save, which walsh does not support"},
        {{good[0], good[1], WEIGHT("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", 4, 24)},
         WALSH_E_FORMAT,
         "DIR/adapter_model.safetensors: tensor "
         "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight: its "
         "partner base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight is missing"},
        {{good[0], good[1], WEIGHT("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", 40, 4)},
         WALSH_E_FORMAT,
         "DIR/adapter_model.safetensors: tensor "
         "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight: its "
         "partner base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_tensors(GOOD, cases[i].parts, 3, cases[i].status, cases[i].message);
}

static void test_modules(void **state)
{
    (void)state;
    const struct part other[] = {
        WEIGHT("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", 4, 24),
        WEIGHT("base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight", 40, 4)};
    expect_tensors(GOOD, other, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor "
                   "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight: "
                   "the model has no linear model.layers.7.self_attn.q_proj (the adapter was made for tiny)");
    expect_tensors("{" TARGETS ",\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8}", other, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor "
                   "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight: "
                   "the model has no linear model.layers.7.self_attn.q_proj");
    expect_config("{\"target_modules\":[\"v_proj\"]," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_model.safetensors: tensor " Q
                  ".lora_A.weight: model.layers.0.self_attn.q_proj is not among "
                  "the target_modules of DIR/adapter_config.json");
    expect_config("{\"exclude_modules\":\".*q_proj\"," TARGETS "," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_model.safetensors: tensor " Q
                  ".lora_A.weight: model.layers.0.self_attn.q_proj is not among "
                  "the target_modules of DIR/adapter_config.json");
    expect_tensors(GOOD, NULL, 0, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: the adapter holds no tensors");
}

/* Base weights that PEFT saves beside a LoRA, and a linear that is targeted as a parameter. */
static void test_base_copy(void **state)
{
    (void)state;
    const struct part parts[] = {good[0], good[1], WEIGHT(Q ".base_layer.weight", 40, 24)};
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    const size_t count = peft_model(linears);
    struct walsh_error err = {0};
    struct walsh_peft peft;
    put_adapter("{\"target_parameters\":[\"q_proj.weight\"],\"rank_pattern\":{\"q_proj.weight\":4},"
                "\"peft_version\":\"0.21.2\",\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":8}",
                parts, 3);
    if (walsh_peft_open(temporary_directory, true, linears, count, &peft, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(peft.count, 1);
    assert_int_equal(peft.updates[0].rank, 4);
    assert_int_equal(peft.base_copies, 1);
    assert_string_equal(peft.first_base_copy, Q ".base_layer.weight");
    walsh_peft_close(&peft);

    const struct part wide[] = {good[0], good[1], WEIGHT(Q ".base_layer.weight", 48, 24)};
    expect_tensors(GOOD, wide, 3, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " Q
                   ".base_layer.weight: shape [48, 24], expected [40, 24] as "
                   "model.layers.0.self_attn.q_proj has it");
    expect_config("{\"target_parameters\":[\"v_proj.weight\"],\"peft_version\":\"0.21.2\"," REST "}",
                  WALSH_E_FORMAT,
                  "DIR/adapter_model.safetensors: tensor " Q
                  ".lora_A.weight: neither is model.layers.0.self_attn.q_proj among the target_modules of "
                  "DIR/adapter_config.json, nor model.layers.0.self_attn.q_proj.weight among its "
                  "target_parameters");
}

static void test_shapes(void **state)
{
    (void)state;
    struct part parts[2] = {good[0], good[1]};
    parts[0].columns = 32;
    expect_tensors(GOOD, parts, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " Q
                   ".lora_A.weight: shape [4, 32], expected [4, 24]: "
                   "model.layers.0.self_attn.q_proj has 24 inputs, 40 outputs and rank 4 (the adapter was "
                   "made for tiny)");
    parts[0] = good[0];
    parts[1].rows = 48;
    expect_tensors(GOOD, parts, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " Q
                   ".lora_B.weight: shape [48, 4], expected [40, 4]: "
                   "model.layers.0.self_attn.q_proj has 24 inputs, 40 outputs and rank 4 (the adapter was "
                   "made for tiny)");
    expect_config("{\"rank_pattern\":{\"q_proj\":8}," TARGETS "," REST "}", WALSH_E_FORMAT,
                  "DIR/adapter_model.safetensors: tensor " Q
                  ".lora_A.weight: shape [4, 24], expected [8, 24]: "
                  "model.layers.0.self_attn.q_proj has 24 inputs, 40 outputs and rank 8 (the adapter was "
                  "made for tiny)");
    parts[1] = (struct part){Q ".lora_B.weight", "I8", 1, 40, 4, 0};
    expect_tensors(GOOD, parts, 2, WALSH_E_UNSUPPORTED,
                   "DIR/adapter_model.safetensors: tensor " Q
                   ".lora_B.weight: dtype I8, expected F32, F16 or BF16");
}

static void test_not_finite(void **state)
{
    (void)state;
    struct part parts[2] = {good[0], good[1]};
    parts[0].special = NAN;
    expect_tensors(GOOD, parts, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " Q ".lora_A.weight: NaN at element 5");
    parts[0].special = 0;
    parts[1].special = -INFINITY;
    expect_tensors(GOOD, parts, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " Q ".lora_B.weight: Inf at element 5");
}

static void test_experts(void **state)
{
    (void)state;
#define STACK                                                                                                \
    "{\"target_parameters\":[\"experts.down_proj\"],\"peft_version\":\"0.21.0\"," TARGETS "," REST "}"
    const struct part parts[] = {WEIGHT(EXPERTS_PATH ".base_layer.lora_A.weight", 12, 20),
                                 WEIGHT(EXPERTS_PATH ".base_layer.lora_B.weight", 24, 12)};
    expect_tensors(STACK, parts, 2, WALSH_E_FORMAT,
                   "DIR/adapter_model.safetensors: tensor " EXPERTS_PATH
                   ".base_layer.lora_A.weight: the target_parameters "
                   "of DIR/adapter_config.json name 1 parameters of model.layers.1.mlp.experts, expected 2");
    const struct part four[] = {WEIGHT(EXPERTS_PATH ".lora_A.weight", 16, 20),
                                WEIGHT(EXPERTS_PATH ".lora_B.weight", 24, 16)};
    expect_tensors(
        STACK, four, 2, WALSH_E_FORMAT,
        "DIR/adapter_model.safetensors: tensor " EXPERTS_PATH
        ".lora_A.weight: shape [16, 20], expected [12, 20]: "
        "model.layers.1.mlp.experts.down_proj has 20 inputs, 24 outputs and rank 4 (the adapter was made for "
        "tiny)");
    const struct part twice[] = {WEIGHT(EXPERTS_PATH ".1.down_proj.lora_A.weight", 4, 20),
                                 WEIGHT(EXPERTS_PATH ".1.down_proj.lora_B.weight", 24, 4),
                                 WEIGHT(EXPERTS_PATH ".lora_A.weight", 12, 20),
                                 WEIGHT(EXPERTS_PATH ".lora_B.weight", 24, 12)};
    expect_tensors(
        "{\"target_parameters\":[\"experts.down_proj\"],\"peft_version\":\"0.21.0\",\"target_modules\":"
        "\"all-linear\"," REST "}",
        twice, 4, WALSH_E_FORMAT,
        "DIR/adapter_model.safetensors: tensors " EXPERTS_PATH ".1.down_proj.lora_A.weight and " EXPERTS_PATH
        ".lora_A.weight both adapt model.layers.1.mlp.experts.1.down_proj");
}

static void test_truncated(void **state)
{
    (void)state;
    put_adapter(GOOD, good, 2);
    const char *path = temporary_path("adapter_model.safetensors");
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(truncate(path, info.st_size - 1), 0);
    struct walsh_error err = {0};
    struct walsh_peft peft;
    assert_int_equal(walsh_peft_open(temporary_directory, true, NULL, 0, &peft, &err), WALSH_E_FORMAT);
    assert_non_null(strstr(err.message, "adapter_model.safetensors: tensor " Q ".lora_B.weight: "));
    assert_non_null(strstr(err.message, "truncated"));
}

/* Runs last: it removes the files one by one. */
static void test_missing(void **state)
{
    (void)state;
    put_adapter(GOOD, good, 2);
    assert_int_equal(unlink(temporary_path("adapter_model.safetensors")), 0);
    expect(WALSH_E_NOT_FOUND, "DIR/adapter_model.safetensors: no such file");
    put(temporary_path("adapter_model.bin"), "", 0);
    expect(WALSH_E_UNSUPPORTED,
           "DIR/adapter_model.bin: a pickled adapter can run code when it is read; have PEFT save it as "
           "adapter_model.safetensors");
    assert_int_equal(unlink(temporary_path("adapter_config.json")), 0);
    expect(WALSH_E_NOT_FOUND, "DIR: not a LoRA adapter: it has no adapter_config.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),         cmocka_unit_test(test_values),
        cmocka_unit_test(test_unsupported),  cmocka_unit_test(test_ignored),
        cmocka_unit_test(test_patterns),     cmocka_unit_test(test_json),
        cmocka_unit_test(test_tensor_names), cmocka_unit_test(test_modules),
        cmocka_unit_test(test_base_copy),    cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_not_finite),   cmocka_unit_test(test_experts),
        cmocka_unit_test(test_truncated),    cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

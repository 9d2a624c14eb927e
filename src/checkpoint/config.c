#include "checkpoint/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/architectures.h"
#include "checkpoint/config_parts.h"
#include "checkpoint/lalamo.h"
#include "formats/weights.h"

/* Limits: far above any model there is, low enough that products of two fit 64 bits with room to spare */
#define MAX_HIDDEN (1u << 20)
#define MAX_HEADS 65536
#define MAX_HEAD_DIM 1024
#define MAX_VOCAB (1u << 24)
#define MAX_EXPERTS 65536
#define WALSH_QUANT_VERSION 1 /* of quant_method "walsh" */

/* "A, B" of the architectures' names */
static void list_architectures(char *buffer, size_t size)
{
    buffer[0] = 0;
    for (unsigned i = 0; i < WALSH_ARCH_COUNT; i++) {
        size_t used = strlen(buffer);
        if (i != WALSH_ARCH_LALAMO)
            snprintf(buffer + used, size - used, "%s%s", i ? ", " : "", walsh_architectures[i].name);
    }
}

static enum walsh_status read_architecture(const struct walsh_json_object *o, struct walsh_config *out,
                                           struct walsh_error *err)
{
    const json_t *list = json_object_get(o->object, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name || json_array_size(list) != 1)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: architectures is not a list of one name", o->where);
    for (unsigned i = 0; i < WALSH_ARCH_COUNT; i++) {
        if (i == WALSH_ARCH_LALAMO || strcmp(name, walsh_architectures[i].name) != 0) continue;
        out->architecture = (enum walsh_architecture)i;
        out->qk_norm = walsh_architectures[i].qk_norm;
        out->output_norms = walsh_architectures[i].gemma;
        snprintf(out->architecture_name, sizeof out->architecture_name, "%s", name);
        return WALSH_OK;
    }
    char known[512];
    list_architectures(known, sizeof known);
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: architecture \"%.200s\" is not supported; known: %s",
                      o->where, name, known);
}

enum walsh_status walsh_must_be_false(const struct walsh_json_object *o, const char *key,
                                      struct walsh_error *err)
{
    bool value = false;
    WALSH_TRY(walsh_json_bool(o, key, &value, err));
    if (value)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s%s is true, which walsh does not implement",
                          o->where, o->prefix, key);
    return WALSH_OK;
}

enum walsh_status walsh_must_be_number(const struct walsh_json_object *o, const char *key, double expected,
                                       struct walsh_error *err)
{
    double value = expected;
    WALSH_TRY(walsh_json_double(o, key, false, -HUGE_VAL, false, HUGE_VAL, &value, err));
    if (value != expected)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s%s is %g; walsh implements %g only", o->where,
                          o->prefix, key, value, expected);
    return WALSH_OK;
}

static enum walsh_status read_id(const char *where, const char *key, const json_t *value, int32_t *out,
                                 struct walsh_error *err)
{
    if (!json_is_integer(value))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s holds %s, expected a token's id", where, key,
                          walsh_json_kind(value));
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= (json_int_t)MAX_VOCAB)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s is %" JSON_INTEGER_FORMAT ", expected 0 to %u", where,
                          key, id, MAX_VOCAB - 1);
    *out = (int32_t)id;
    return WALSH_OK;
}

/* bos_token_id: a number or null. eos_token_id: a number, a list, or null. */
static enum walsh_status read_special(const struct walsh_json_object *o, int32_t *bos,
                                      int32_t eos[WALSH_MAX_EOS], uint32_t *eos_count,
                                      struct walsh_error *err)
{
    *bos = -1;
    *eos_count = 0;
    const json_t *value = json_object_get(o->object, "bos_token_id");
    if (value && !json_is_null(value)) WALSH_TRY(read_id(o->where, "bos_token_id", value, bos, err));
    value = json_object_get(o->object, "eos_token_id");
    if (!value || json_is_null(value)) return WALSH_OK;
    if (!json_is_array(value)) {
        *eos_count = 1;
        return read_id(o->where, "eos_token_id", value, &eos[0], err);
    }
    if (json_array_size(value) > WALSH_MAX_EOS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: eos_token_id lists %zu ids, expected at most %d",
                          o->where, json_array_size(value), WALSH_MAX_EOS);
    for (size_t i = 0; i < json_array_size(value); i++)
        WALSH_TRY(read_id(o->where, "eos_token_id", json_array_get(value, i), &eos[(*eos_count)++], err));
    return WALSH_OK;
}

/* The width of the MLP as LFM2's files mean it, and its convolutions. */
static enum walsh_status read_lfm2(const struct walsh_json_object *o, struct walsh_config *c,
                                   struct walsh_error *err)
{
    bool adjust = true;
    double multiplier = 1;
    uint32_t multiple = 256;
    WALSH_TRY(walsh_json_u32(o, "block_ff_dim", false, 1, MAX_HIDDEN, &c->intermediate, err));
    WALSH_TRY(walsh_json_bool(o, "block_auto_adjust_ff_dim", &adjust, err));
    WALSH_TRY(walsh_json_double(o, "block_ffn_dim_multiplier", false, 0, true, 64, &multiplier, err));
    WALSH_TRY(walsh_json_u32(o, "block_multiple_of", false, 1, MAX_HIDDEN, &multiple, err));
    if (adjust) {
        const uint32_t narrow = (uint32_t)(multiplier * (2 * c->intermediate / 3));
        c->intermediate = (narrow + multiple - 1) / multiple * multiple;
        if (c->intermediate == 0 || c->intermediate > MAX_HIDDEN)
            return walsh_fail(err, WALSH_E_FORMAT, "%s: intermediate_size becomes %u, expected 1 to %u",
                              o->where, c->intermediate, MAX_HIDDEN);
    }
    c->conv_taps = 3;
    WALSH_TRY(walsh_json_u32(o, "conv_L_cache", false, 1, WALSH_MAX_CONV_TAPS, &c->conv_taps, err));
    WALSH_TRY(walsh_json_bool(o, "conv_bias", &c->conv_bias, err));
    if (c->heads * c->head_dim != c->hidden)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: head_dim %u times num_attention_heads %u is not hidden_size %u", o->where,
                          c->head_dim, c->heads, c->hidden);
    return WALSH_OK;
}

static enum walsh_status read_shape(const struct walsh_json_object *o, struct walsh_config *c,
                                    struct walsh_error *err)
{
    bool moe = c->architecture == WALSH_ARCH_QWEN3_MOE;
    WALSH_TRY(walsh_json_u32(o, "hidden_size", true, 1, MAX_HIDDEN, &c->hidden, err));
    /* Qwen3Moe's experts have their own width; this one is of dense layers, which it has none of. */
    WALSH_TRY(walsh_json_u32(o, "intermediate_size", !moe, moe ? 0 : 1, MAX_HIDDEN, &c->intermediate, err));
    WALSH_TRY(walsh_json_u32(o, "num_hidden_layers", true, 1, WALSH_MAX_LAYERS, &c->layers, err));
    WALSH_TRY(walsh_json_u32(o, "num_attention_heads", true, 1, MAX_HEADS, &c->heads, err));
    c->kv_heads = c->heads;
    WALSH_TRY(walsh_json_u32(o, "num_key_value_heads", false, 1, MAX_HEADS, &c->kv_heads, err));
    if (c->heads % c->kv_heads != 0)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: num_attention_heads %u is not a multiple of num_key_value_heads %u", o->where,
                          c->heads, c->kv_heads);
    if (walsh_architectures[c->architecture].gemma) c->head_dim = 256;
    if (c->architecture == WALSH_ARCH_QWEN3) c->head_dim = 128;
    WALSH_TRY(walsh_json_u32(o, "head_dim", false, 2, MAX_HEAD_DIM, &c->head_dim, err));
    if (c->head_dim == 0) {
        if (c->hidden % c->heads != 0 || c->hidden / c->heads > MAX_HEAD_DIM)
            return walsh_fail(
                err, WALSH_E_FORMAT,
                "%s: head_dim is missing and hidden_size %u / num_attention_heads %u is not an integer of "
                "at most %d",
                o->where, c->hidden, c->heads, MAX_HEAD_DIM);
        c->head_dim = c->hidden / c->heads;
    }
    if (c->head_dim % 2 != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: head_dim is %u, expected an even number", o->where,
                          c->head_dim);
    WALSH_TRY(walsh_json_u32(o, "vocab_size", true, 1, MAX_VOCAB, &c->vocab, err));
    WALSH_TRY(walsh_json_u32(o, "max_position_embeddings", true, 1, WALSH_MAX_CONFIG_POSITIONS,
                             &c->max_positions, err));
    c->rms_epsilon = walsh_architectures[c->architecture].rms_epsilon;
    const char *epsilon = walsh_architectures[c->architecture].lfm2 ? "norm_eps" : "rms_norm_eps";
    WALSH_TRY(walsh_json_double(o, epsilon, false, 0, true, 1, &c->rms_epsilon, err));
    return walsh_architectures[c->architecture].lfm2 ? read_lfm2(o, c, err) : WALSH_OK;
}

static enum walsh_status read_experts(const struct walsh_json_object *o, struct walsh_config *c,
                                      struct walsh_error *err)
{
    if (!walsh_architectures[c->architecture].moe) return WALSH_OK;
    WALSH_TRY(walsh_json_u32(o, "num_experts", false, 1, MAX_EXPERTS, &c->experts, err));
    WALSH_TRY(walsh_json_u32(o, "num_local_experts", false, 1, MAX_EXPERTS, &c->experts, err));
    if (c->experts == 0)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: num_experts (or num_local_experts) is missing", o->where);
    WALSH_TRY(walsh_json_u32(o, "num_experts_per_tok", true, 1, c->experts, &c->experts_per_token, err));
    c->expert_bias = walsh_architectures[c->architecture].gpt_oss;
    if (c->architecture == WALSH_ARCH_MIXTRAL || c->architecture == WALSH_ARCH_GPT_OSS) {
        /* a softmax over the chosen logits: that over all of them, divided by the sum of the chosen */
        c->expert_intermediate = c->intermediate;
        c->normalize_topk = true;
        return WALSH_OK;
    }
    WALSH_TRY(walsh_json_u32(o, "moe_intermediate_size", true, 1, MAX_HIDDEN, &c->expert_intermediate, err));
    WALSH_TRY(walsh_json_bool(o, "norm_topk_prob", &c->normalize_topk, err));
    WALSH_TRY(walsh_must_be_number(o, "decoder_sparse_step", 1, err));
    const json_t *dense = json_object_get(o->object, "mlp_only_layers");
    if (dense && !json_is_null(dense) && !(json_is_array(dense) && json_array_size(dense) == 0))
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: mlp_only_layers is not empty; walsh implements models whose "
                          "layers all have experts",
                          o->where);
    return WALSH_OK;
}

static enum walsh_status read_glq(const struct walsh_json_object *q, struct walsh_quant_config *out,
                                  struct walsh_error *err)
{
    out->method = WALSH_QUANT_GLQ;
    const char *codebook = NULL;
    WALSH_TRY(walsh_json_string(q, "codebook", true, &codebook, err));
    if (strcmp(codebook, "e8p") != 0 && strcmp(codebook, "e8_shell") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: GLQ codebook \"%.100s\" is not supported; known: e8p, e8_shell", q->where,
                          codebook);
    snprintf(out->codebook, sizeof out->codebook, "%s", codebook);
    return WALSH_OK;
}

/* Only checked: the stored signs say which rotation they are of. */
static enum walsh_status read_walsh_rotation(const struct walsh_json_object *q,
                                             struct walsh_quant_config *out, struct walsh_error *err)
{
    const char *rotation = "block";
    WALSH_TRY(walsh_json_string(q, "rotation", false, &rotation, err));
    if (strcmp(rotation, "block") != 0 && strcmp(rotation, "pow2") != 0 && strcmp(rotation, "overlap") != 0 &&
        strcmp(rotation, "none") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: rotation \"%.100s\" is not supported; known: block, pow2, overlap, none",
                          q->where, rotation);
    return walsh_json_u32(q, "tensor_parallel", false, 1, WALSH_MAX_TENSOR_PARALLEL, &out->tensor_parallel,
                          err);
}

static enum walsh_status read_walsh(const struct walsh_json_object *q, struct walsh_quant_config *out,
                                    struct walsh_error *err)
{
    out->method = WALSH_QUANT_WALSH;
    WALSH_TRY(walsh_json_u32(q, "version", true, 0, UINT32_MAX, &out->version, err));
    if (out->version != WALSH_QUANT_VERSION)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: version %u of quantization method \"walsh\" is not supported; known: %d",
                          q->where, out->version, WALSH_QUANT_VERSION);
    const char *codebook = NULL;
    WALSH_TRY(walsh_json_string(q, "codebook", true, &codebook, err));
    for (unsigned f = WALSH_FORMAT_E8P; f < WALSH_FORMAT_COUNT; f++) {
        if (strcmp(codebook, walsh_format_name((enum walsh_format)f)) != 0) continue;
        snprintf(out->codebook, sizeof out->codebook, "%s", codebook);
        return read_walsh_rotation(q, out, err);
    }
    return walsh_fail(
        err, WALSH_E_UNSUPPORTED,
        "%s: codebook \"%.100s\" of quantization method \"walsh\" is not supported; known: e8p, "
        "mxfp4, nvfp4, mxfp8, fp8, int8, int4",
        q->where, codebook);
}

/* Methods whose linears checkpoint/blocks.c tells by their tensors; a format that it does not know has
 * tensors that it does not know. */
static bool is_block_method(const char *method)
{
    static const char *const known[] = {"compressed-tensors", "modelopt", "modelopt_fp4", "mxfp4", "fp8"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(method, known[i]) == 0) return true;
    return false;
}

static enum walsh_status read_quantization(const struct walsh_json_object *o, struct walsh_quant_config *out,
                                           struct walsh_error *err)
{
    struct walsh_json_object q;
    WALSH_TRY(walsh_json_child(o, "quantization_config", "quantization_config.", &q, err));
    out->tensor_parallel = 1;
    if (!q.object) return WALSH_OK;
    const char *method = NULL;
    WALSH_TRY(walsh_json_string(&q, "quant_method", true, &method, err));
    if (strcmp(method, "glq") == 0)
        WALSH_TRY(read_glq(&q, out, err));
    else if (strcmp(method, "walsh") == 0)
        WALSH_TRY(read_walsh(&q, out, err));
    else if (is_block_method(method))
        out->method = WALSH_QUANT_BLOCKS;
    else
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: quantization method \"%.100s\" is not supported; known: glq, walsh, "
                          "compressed-tensors, modelopt, mxfp4, fp8",
                          o->where, method);
    out->block_diagonal = true;
    WALSH_TRY(walsh_json_bool(&q, "block_diagonal", &out->block_diagonal, err));
    return walsh_json_double(&q, "bpw", false, 0, true, 32, &out->bits, err);
}

static enum walsh_status read_dtype(const struct walsh_json_object *o, struct walsh_config *c,
                                    struct walsh_error *err)
{
    const char *dtype = "";
    WALSH_TRY(walsh_json_string(o, "torch_dtype", false, &dtype, err));
    WALSH_TRY(walsh_json_string(o, "dtype", false, &dtype, err));
    if (strlen(dtype) >= sizeof c->torch_dtype)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: dtype \"%.100s\" is not one", o->where, dtype);
    snprintf(c->torch_dtype, sizeof c->torch_dtype, "%s", dtype);
    return WALSH_OK;
}

/* Gemma's files name the gate twice; its own name counts. */
static enum walsh_status read_gate(const struct walsh_json_object *o, struct walsh_config *c,
                                   struct walsh_error *err)
{
    const bool gemma = walsh_architectures[c->architecture].gemma;
    if (walsh_architectures[c->architecture].gpt_oss) {
        c->gate = WALSH_GATE_CLAMPED;
        c->gate_alpha = 1.702;
        c->gate_limit = 7;
        WALSH_TRY(walsh_json_double(o, "swiglu_alpha", false, 0, true, 1e3, &c->gate_alpha, err));
        return walsh_json_double(o, "swiglu_limit", false, 0, true, 1e6, &c->gate_limit, err);
    }
    const char *key = gemma ? "hidden_activation" : "hidden_act",
               *gate = gemma ? "gelu_pytorch_tanh" : "silu";
    WALSH_TRY(walsh_json_string(o, key, false, &gate, err));
    if (strcmp(gate, "silu") == 0)
        c->gate = WALSH_GATE_SILU;
    else if (strcmp(gate, "gelu_pytorch_tanh") == 0)
        c->gate = WALSH_GATE_GELU_TANH;
    else
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: %s \"%.100s\" is not supported; known: silu, gelu_pytorch_tanh", o->where, key,
                          gate);
    return WALSH_OK;
}

static enum walsh_status read_biases(const struct walsh_json_object *o, struct walsh_config *c,
                                     struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    if (!info->bias_keys) {
        c->attention_bias = info->qkv_bias;
        WALSH_TRY(walsh_must_be_false(o, "mlp_bias", err));
        return info->qkv_bias ? WALSH_OK : walsh_must_be_false(o, "attention_bias", err);
    }
    c->attention_bias = info->gpt_oss;
    WALSH_TRY(walsh_json_bool(o, "attention_bias", &c->attention_bias, err));
    c->output_bias = c->attention_bias;
    if (info->gemma) return walsh_must_be_false(o, "mlp_bias", err);
    return walsh_json_bool(o, "mlp_bias", &c->mlp_bias, err);
}

/* A number, or null: 0; a missing key leaves *cap. */
static enum walsh_status read_cap(const struct walsh_json_object *o, const char *key, double *cap,
                                  struct walsh_error *err)
{
    const json_t *value = json_object_get(o->object, key);
    if (value && json_is_null(value)) *cap = 0;
    return walsh_json_double(o, key, false, 0, true, 1e6, cap, err);
}

/* What Gemma adds. */
static enum walsh_status read_scales(const struct walsh_json_object *o, struct walsh_config *c,
                                     struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    c->score_cap = info->score_cap;
    c->logit_cap = info->logit_cap;
    if (!info->gemma) return WALSH_OK;
    c->norm_offset = c->scaled_embeddings = true;
    c->query_scalar = 256;
    WALSH_TRY(walsh_json_double(o, "query_pre_attn_scalar", false, 0, true, 1e6, &c->query_scalar, err));
    WALSH_TRY(read_cap(o, "attn_logit_softcapping", &c->score_cap, err));
    WALSH_TRY(read_cap(o, "final_logit_softcapping", &c->logit_cap, err));
    return walsh_must_be_false(o, "use_bidirectional_attention", err);
}

static enum walsh_status read_config(const struct walsh_json_object *o, struct walsh_config *c,
                                     struct walsh_error *err)
{
    if (walsh_lalamo_is_config(o)) return walsh_lalamo_read_config(o, c, err);
    WALSH_TRY(read_architecture(o, c, err));
    WALSH_TRY(read_shape(o, c, err));
    WALSH_TRY(read_experts(o, c, err));
    WALSH_TRY(walsh_config_read_layers(o, c, err));
    WALSH_TRY(walsh_config_read_rope(o, c, err));
    WALSH_TRY(read_gate(o, c, err));
    WALSH_TRY(read_biases(o, c, err));
    WALSH_TRY(read_scales(o, c, err));
    c->tied_embeddings = walsh_architectures[c->architecture].tied;
    WALSH_TRY(walsh_json_bool(o, "tie_word_embeddings", &c->tied_embeddings, err));
    if (walsh_architectures[c->architecture].lfm2)
        WALSH_TRY(walsh_json_bool(o, "tie_embedding", &c->tied_embeddings, err));
    WALSH_TRY(read_special(o, &c->bos, c->eos, &c->eos_count, err));
    WALSH_TRY(read_dtype(o, c, err));
    return read_quantization(o, &c->quant, err);
}

enum walsh_status walsh_config_parse(const char *path, const char *json, size_t size,
                                     struct walsh_config *out, struct walsh_error *err)
{
    *out = (struct walsh_config){0};
    struct walsh_json_object o = {.where = path, .prefix = ""};
    WALSH_TRY(walsh_json_parse(path, json, size, &o.object, err));
    enum walsh_status status = read_config(&o, out, err);
    json_decref(o.object);
    return status;
}

static enum walsh_status read_generation(const struct walsh_json_object *o, struct walsh_generation_config *g,
                                         struct walsh_error *err)
{
    WALSH_TRY(walsh_json_bool(o, "do_sample", &g->do_sample, err));
    WALSH_TRY(walsh_json_double(o, "temperature", false, 0, false, 1e6, &g->temperature, err));
    WALSH_TRY(walsh_json_u32(o, "top_k", false, 0, MAX_VOCAB, &g->top_k, err));
    WALSH_TRY(walsh_json_double(o, "top_p", false, 0, false, 1, &g->top_p, err));
    WALSH_TRY(walsh_json_double(o, "min_p", false, 0, false, 1, &g->min_p, err));
    WALSH_TRY(walsh_json_double(o, "repetition_penalty", false, 0, true, 1e6, &g->repetition_penalty, err));
    return read_special(o, &g->bos, g->eos, &g->eos_count, err);
}

enum walsh_status walsh_generation_config_parse(const char *path, const char *json, size_t size,
                                                struct walsh_generation_config *out, struct walsh_error *err)
{
    *out = (struct walsh_generation_config){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .bos = -1};
    if (!json) return WALSH_OK;
    struct walsh_json_object o = {.where = path, .prefix = ""};
    WALSH_TRY(walsh_json_parse(path, json, size, &o.object, err));
    enum walsh_status status = read_generation(&o, out, err);
    json_decref(o.object);
    return status;
}

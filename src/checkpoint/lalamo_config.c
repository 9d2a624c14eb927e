/* config.json of a lalamo checkpoint: {"type": "LanguageModelConfig", "decoder_config": {...}, ...}. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/config_parts.h"
#include "checkpoint/lalamo.h"

#define MAX_SIZE (1u << 20)
#define MAX_HEADS 65536
#define MAX_HEAD_DIM 1024
#define MAX_VOCAB (1u << 24)

/* What a layer's objects say; layers of a kind must agree in all but window and rope. */
struct norm {
    double epsilon;
    bool offset;
};
struct attention {
    uint32_t heads, groups, head_dim;
    double scale, cap;
    bool qkv_bias, out_bias, qk_norm;
};
struct convolution {
    uint32_t taps;
    bool bias;
};
struct layer {
    bool convolves, output_norms, mlp_bias;
    enum walsh_gate gate;
    uint32_t wide, window;
    struct attention attention;
    struct convolution convolution;
    bool has_rope;
    uint32_t rotary_dim, positions;
    struct walsh_rope_config rope;
};

struct reading {
    struct walsh_config *config;
    struct norm norm; /* of all norms */
    bool has_norm, has_attention, has_convolution;
    struct layer first_attention, first_convolution;
    struct walsh_error *err;
};

bool walsh_lalamo_is_config(const struct walsh_json_object *root)
{
    return json_is_object(json_object_get(root->object, "decoder_config")) &&
           json_string_value(json_object_get(root->object, "type"));
}

static enum walsh_status fail_type(const struct walsh_json_object *o, const char *type, const char *known,
                                   struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %stype \"%.100s\" is not supported; known: %s", o->where,
                      o->prefix, type, known);
}

static enum walsh_status fail_differs(const struct walsh_json_object *o, struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %.*s differs from the one of an earlier layer", o->where,
                      (int)(strlen(o->prefix) - 1), o->prefix);
}

/* A member that must be there as an object; its prefix goes into `prefix` [160]. */
static enum walsh_status member(const struct walsh_json_object *o, const char *key, char *prefix,
                                struct walsh_json_object *out, struct walsh_error *err)
{
    snprintf(prefix, 160, "%.100s%.50s.", o->prefix, key);
    WALSH_TRY(walsh_json_child(o, key, prefix, out, err));
    if (!out->object) return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is missing", o->where, o->prefix, key);
    return WALSH_OK;
}

static bool is_there(const struct walsh_json_object *o, const char *key)
{
    const json_t *value = json_object_get(o->object, key);
    return value && !json_is_null(value);
}

/* The same epsilon and offset everywhere; an RMSNorm with a scale. upcast_mode says when bf16 becomes f32:
 * here all is f32. */
static enum walsh_status read_norm(struct reading *r, const struct walsh_json_object *parent, const char *key)
{
    static const char *const keys[] = {"epsilon", "scale_offset", "upcast_mode", "has_scale", NULL};
    char prefix[160];
    struct walsh_json_object o;
    struct norm norm = {0};
    double offset = 0;
    bool scale = true;
    WALSH_TRY(member(parent, key, prefix, &o, r->err));
    WALSH_TRY(walsh_json_only(&o, keys, r->err));
    WALSH_TRY(walsh_json_double(&o, "epsilon", true, 0, true, 1, &norm.epsilon, r->err));
    WALSH_TRY(walsh_json_double(&o, "scale_offset", false, 0, false, 1, &offset, r->err));
    WALSH_TRY(walsh_json_bool(&o, "has_scale", &scale, r->err));
    if (!scale || (offset != 0 && offset != 1))
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: norms without a scale or with an offset of %g", o.where, prefix, offset);
    norm.offset = offset == 1;
    if (r->has_norm && (norm.epsilon != r->norm.epsilon || norm.offset != r->norm.offset))
        return fail_differs(&o, r->err);
    r->norm = norm;
    r->has_norm = true;
    return WALSH_OK;
}

static enum walsh_status read_attention(struct reading *r, const struct walsh_json_object *o,
                                        struct layer *layer)
{
    static const char *const keys[] = {"type",
                                       "qkvg_projection_config",
                                       "qkv_projection_config",
                                       "out_projection_config",
                                       "query_norm_config",
                                       "key_norm_config",
                                       "num_heads",
                                       "num_groups",
                                       "head_dim",
                                       "is_causal",
                                       "scale",
                                       "sliding_window_size",
                                       "logit_soft_cap",
                                       "has_qkvg_biases",
                                       "has_qkv_biases",
                                       "has_out_biases",
                                       NULL};
    struct attention *a = &layer->attention;
    bool causal = true;
    WALSH_TRY(walsh_json_only(o, keys, r->err));
    WALSH_TRY(walsh_json_u32(o, "num_heads", true, 1, MAX_HEADS, &a->heads, r->err));
    WALSH_TRY(walsh_json_u32(o, "num_groups", true, 1, MAX_HEADS, &a->groups, r->err));
    WALSH_TRY(walsh_json_u32(o, "head_dim", true, 2, MAX_HEAD_DIM, &a->head_dim, r->err));
    WALSH_TRY(walsh_json_double(o, "scale", false, 0, true, 1e3, &a->scale, r->err));
    WALSH_TRY(walsh_json_double(o, "logit_soft_cap", false, 0, true, 1e6, &a->cap, r->err));
    WALSH_TRY(walsh_json_bool(o, "has_qkv_biases", &a->qkv_bias, r->err));
    WALSH_TRY(walsh_json_bool(o, "has_qkvg_biases", &a->qkv_bias, r->err));
    WALSH_TRY(walsh_json_bool(o, "has_out_biases", &a->out_bias, r->err));
    WALSH_TRY(walsh_json_bool(o, "is_causal", &causal, r->err));
    WALSH_TRY(walsh_json_u32(o, "sliding_window_size", false, 1, WALSH_MAX_CONFIG_POSITIONS, &layer->window,
                             r->err));
    if (!causal || a->heads % a->groups != 0 || a->head_dim % 2 != 0)
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: attention that is not causal, or of %u heads of %u in %u groups", o->where,
                          o->prefix, a->heads, a->head_dim, a->groups);
    a->qk_norm = is_there(o, "query_norm_config");
    if (a->qk_norm != is_there(o, "key_norm_config"))
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: only one of query_norm_config and key_norm_config", o->where, o->prefix);
    if (!a->qk_norm) return WALSH_OK;
    WALSH_TRY(read_norm(r, o, "query_norm_config"));
    return read_norm(r, o, "key_norm_config");
}

static enum walsh_status read_convolution(struct reading *r, const struct walsh_json_object *o,
                                          struct layer *layer)
{
    static const char *const keys[] = {
        "type", "in_projection_config", "conv_config", "out_projection_config", "kernel_size", NULL};
    static const char *const inner[] = {"has_biases", NULL};
    char prefix[160];
    struct walsh_json_object conv;
    WALSH_TRY(walsh_json_only(o, keys, r->err));
    layer->convolves = true;
    WALSH_TRY(
        walsh_json_u32(o, "kernel_size", true, 1, WALSH_MAX_CONV_TAPS, &layer->convolution.taps, r->err));
    WALSH_TRY(member(o, "conv_config", prefix, &conv, r->err));
    WALSH_TRY(walsh_json_only(&conv, inner, r->err));
    return walsh_json_bool(&conv, "has_biases", &layer->convolution.bias, r->err);
}

static enum walsh_status read_mixer(struct reading *r, const struct walsh_json_object *parent,
                                    struct layer *layer)
{
    char prefix[160];
    struct walsh_json_object o;
    const char *type = NULL;
    WALSH_TRY(member(parent, "mixer_config", prefix, &o, r->err));
    WALSH_TRY(walsh_json_string(&o, "type", true, &type, r->err));
    if (strcmp(type, "AttentionConfig") == 0) return read_attention(r, &o, layer);
    if (strcmp(type, "ShortConvConfig") == 0) return read_convolution(r, &o, layer);
    return fail_type(&o, type, "AttentionConfig, ShortConvConfig", r->err);
}

static enum walsh_status read_mlp(struct reading *r, const struct walsh_json_object *parent,
                                  struct layer *layer)
{
    static const char *const keys[] = {"type",          "linear_config",   "activation",
                                       "has_up_biases", "has_down_biases", NULL};
    static const char *const inner[] = {"type", "alpha", "approximate", NULL};
    char prefix[160], inner_prefix[160];
    struct walsh_json_object o, activation;
    const char *type = NULL;
    bool down_bias = false, approximate = true;
    WALSH_TRY(member(parent, "mlp_config", prefix, &o, r->err));
    WALSH_TRY(walsh_json_string(&o, "type", true, &type, r->err));
    if (strcmp(type, "DenseMLPConfig") != 0) return fail_type(&o, type, "DenseMLPConfig", r->err);
    WALSH_TRY(walsh_json_only(&o, keys, r->err));
    WALSH_TRY(walsh_json_bool(&o, "has_up_biases", &layer->mlp_bias, r->err));
    WALSH_TRY(walsh_json_bool(&o, "has_down_biases", &down_bias, r->err));
    if (down_bias != layer->mlp_bias)
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: only one of has_up_biases and has_down_biases", o.where, prefix);
    WALSH_TRY(member(&o, "activation", inner_prefix, &activation, r->err));
    WALSH_TRY(walsh_json_only(&activation, inner, r->err));
    WALSH_TRY(walsh_json_string(&activation, "type", true, &type, r->err));
    WALSH_TRY(walsh_json_bool(&activation, "approximate", &approximate, r->err));
    WALSH_TRY(walsh_must_be_number(&activation, "alpha", 1, r->err));
    layer->gate = strcmp(type, "GELU") == 0 ? WALSH_GATE_GELU_TANH : WALSH_GATE_SILU;
    if ((strcmp(type, "SiLU") != 0 && strcmp(type, "GELU") != 0) || !approximate)
        return fail_type(&activation, type, "SiLU, GELU with approximate true", r->err);
    return WALSH_OK;
}

/* A list of a positive number for each pair */
static enum walsh_status read_factors(const struct walsh_json_object *o, const char *key, uint32_t pairs,
                                      float *out, struct walsh_error *err)
{
    const json_t *list = json_object_get(o->object, key);
    bool good = json_array_size(list) == pairs && pairs <= WALSH_MAX_ROPE_PAIRS;
    for (uint32_t i = 0; good && i < pairs; i++) {
        const double value = json_number_value(json_array_get(list, i));
        good = value >= 1e-6 && value <= 1e6;
        out[i] = (float)value;
    }
    return good ? WALSH_OK
                : walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is not a list of %u positive numbers, at most %d",
                             o->where, o->prefix, key, pairs, WALSH_MAX_ROPE_PAIRS);
}

static enum walsh_status read_scaling(const struct walsh_json_object *o, const char *type,
                                      struct layer *layer, struct walsh_error *err)
{
    struct walsh_rope_config *p = &layer->rope;
    WALSH_TRY(walsh_json_double(o, "scaling_factor", true, 0, true, 1e6, &p->factor, err));
    if (strcmp(type, "LinearScalingRoPEConfig") == 0) {
        p->type = WALSH_ROPE_LINEAR;
        return WALSH_OK;
    }
    WALSH_TRY(walsh_json_u32(o, "original_context_length", true, 2, WALSH_MAX_CONFIG_POSITIONS,
                             &p->original_max_positions, err));
    if (strcmp(type, "LlamaRoPEConfig") == 0) {
        p->type = WALSH_ROPE_LLAMA3;
        WALSH_TRY(
            walsh_json_double(o, "low_frequency_factor", true, 0, true, 1e6, &p->low_frequency_factor, err));
        return walsh_json_double(o, "high_frequency_factor", true, p->low_frequency_factor, true, 1e6,
                                 &p->high_frequency_factor, err);
    }
    if (strcmp(type, "YARNRoPEConfig") == 0) {
        p->type = WALSH_ROPE_YARN;
        p->attention_factor = 0.1 * log(p->factor) + 1;
        WALSH_TRY(walsh_json_double(o, "beta_fast", true, 0, true, 1e6, &p->beta_fast, err));
        WALSH_TRY(walsh_json_double(o, "beta_slow", true, 0, true, 1e6, &p->beta_slow, err));
        return walsh_json_bool(o, "truncate", &p->truncate, err);
    }
    p->type = WALSH_ROPE_LONGROPE;
    p->attention_factor =
        p->factor > 1 ? sqrt(1 + log(p->factor) / log((double)p->original_max_positions)) : 1;
    WALSH_TRY(read_factors(o, "short_factor", layer->rotary_dim / 2, p->short_factor, err));
    return read_factors(o, "long_factor", layer->rotary_dim / 2, p->long_factor, err);
}

static enum walsh_status read_rope(struct reading *r, const struct walsh_json_object *parent,
                                   struct layer *layer)
{
    static const char *const types[] = {"UnscaledRoPEConfig", "LinearScalingRoPEConfig", "LlamaRoPEConfig",
                                        "YARNRoPEConfig", "LongRoPEConfig"};
    char prefix[160];
    struct walsh_json_object o;
    const char *type = NULL;
    layer->has_rope = is_there(parent, "rope_config");
    if (!layer->has_rope) return WALSH_OK;
    WALSH_TRY(member(parent, "rope_config", prefix, &o, r->err));
    WALSH_TRY(walsh_json_string(&o, "type", true, &type, r->err));
    bool known = false;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) known = known || strcmp(type, types[i]) == 0;
    if (!known)
        return fail_type(&o, type,
                         "UnscaledRoPEConfig, LinearScalingRoPEConfig, LlamaRoPEConfig, YARNRoPEConfig, "
                         "LongRoPEConfig",
                         r->err);
    layer->rope.factor = 1;
    WALSH_TRY(walsh_json_double(&o, "base", true, 0, true, 1e12, &layer->rope.theta, r->err));
    WALSH_TRY(walsh_json_u32(&o, "max_sequence_length", true, 1, WALSH_MAX_CONFIG_POSITIONS,
                             &layer->positions, r->err));
    WALSH_TRY(walsh_json_u32(&o, "head_dim", true, 2, MAX_HEAD_DIM, &layer->rotary_dim, r->err));
    return strcmp(type, types[0]) == 0 ? WALSH_OK : read_scaling(&o, type, layer, r->err);
}

static enum walsh_status read_layer(struct reading *r, const struct walsh_json_object *o, uint32_t wide,
                                    struct layer *layer)
{
    static const char *const keys[] = {"pre_mixer_norm_config",
                                       "mixer_config",
                                       "post_mixer_norm_config",
                                       "pre_mlp_norm_config",
                                       "mlp_config",
                                       "post_mlp_norm_config",
                                       "hidden_dim",
                                       "rope_config",
                                       NULL};
    WALSH_TRY(walsh_json_only(o, keys, r->err));
    layer->wide = wide;
    WALSH_TRY(walsh_json_u32(o, "hidden_dim", false, 1, MAX_SIZE, &layer->wide, r->err));
    WALSH_TRY(read_norm(r, o, "pre_mixer_norm_config"));
    WALSH_TRY(read_norm(r, o, "pre_mlp_norm_config"));
    layer->output_norms = is_there(o, "post_mixer_norm_config");
    if (layer->output_norms != is_there(o, "post_mlp_norm_config"))
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED,
                          "%s: %s: only one of post_mixer_norm_config and post_mlp_norm_config", o->where,
                          o->prefix);
    if (layer->output_norms) {
        WALSH_TRY(read_norm(r, o, "post_mixer_norm_config"));
        WALSH_TRY(read_norm(r, o, "post_mlp_norm_config"));
    }
    WALSH_TRY(read_mixer(r, o, layer));
    WALSH_TRY(read_mlp(r, o, layer));
    return read_rope(r, o, layer);
}

static bool same_attention(const struct attention *a, const struct attention *b)
{
    return a->heads == b->heads && a->groups == b->groups && a->head_dim == b->head_dim &&
           a->scale == b->scale && a->cap == b->cap && a->qkv_bias == b->qkv_bias &&
           a->out_bias == b->out_bias && a->qk_norm == b->qk_norm;
}

static bool same_rope(const struct walsh_rope_config *a, const struct walsh_rope_config *b)
{
    return a->type == b->type && a->theta == b->theta && a->factor == b->factor &&
           a->original_max_positions == b->original_max_positions &&
           a->low_frequency_factor == b->low_frequency_factor &&
           a->high_frequency_factor == b->high_frequency_factor && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->truncate == b->truncate &&
           memcmp(a->short_factor, b->short_factor, sizeof a->short_factor) == 0 &&
           memcmp(a->long_factor, b->long_factor, sizeof a->long_factor) == 0;
}

/* One rope of the layers with a window, and one of those without. */
static enum walsh_status add_rope(struct reading *r, const struct walsh_json_object *o,
                                  const struct layer *layer, bool *have)
{
    struct walsh_config *c = r->config;
    const bool windowed = layer->window != 0;
    struct walsh_rope_config *rope = windowed ? &c->local_rope : &c->rope;
    if (have[windowed] && !same_rope(rope, &layer->rope)) return fail_differs(o, r->err);
    if ((have[0] || have[1]) && c->rotary_dim != layer->rotary_dim) return fail_differs(o, r->err);
    *rope = layer->rope;
    have[windowed] = true;
    c->rotary_dim = layer->rotary_dim;
    if (c->max_positions == 0 || layer->positions < c->max_positions) c->max_positions = layer->positions;
    return WALSH_OK;
}

/* What this layer has that the model's other layers may not, and whether it agrees with them in the rest. */
static enum walsh_status add_layer(struct reading *r, const struct walsh_json_object *o, uint32_t i,
                                   const struct layer *layer, bool *have)
{
    struct walsh_config *c = r->config;
    const struct layer *first = r->has_attention     ? &r->first_attention
                                : r->has_convolution ? &r->first_convolution
                                                     : layer;
    if (layer->wide != first->wide || layer->gate != first->gate || layer->mlp_bias != first->mlp_bias ||
        layer->output_norms != first->output_norms)
        return fail_differs(o, r->err);
    if (layer->convolves) {
        const struct convolution *one = &r->first_convolution.convolution, *other = &layer->convolution;
        if (r->has_convolution && (one->taps != other->taps || one->bias != other->bias))
            return fail_differs(o, r->err);
        r->first_convolution = *layer;
        r->has_convolution = true;
        c->layer_flags[i] = WALSH_LAYER_CONV;
        return WALSH_OK;
    }
    if (r->has_attention && !same_attention(&r->first_attention.attention, &layer->attention))
        return fail_differs(o, r->err);
    r->first_attention = *layer;
    r->has_attention = true;
    if (!layer->has_rope) c->layer_flags[i] |= WALSH_LAYER_NO_ROPE;
    if (layer->window != 0) {
        if (c->window != 0 && c->window != layer->window) return fail_differs(o, r->err);
        c->window = layer->window;
        c->layer_flags[i] |= WALSH_LAYER_WINDOWED;
    }
    return layer->has_rope ? add_rope(r, o, layer, have) : WALSH_OK;
}

static enum walsh_status read_layers(struct reading *r, const struct walsh_json_object *transformer,
                                     uint32_t wide)
{
    const json_t *list = json_object_get(transformer->object, "layer_configs");
    bool have[2] = {false, false}; /* a rope of layers without, with a window */
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > WALSH_MAX_LAYERS)
        return walsh_fail(r->err, WALSH_E_FORMAT, "%s: %slayer_configs is not a list of 1 to %d layers",
                          transformer->where, transformer->prefix, WALSH_MAX_LAYERS);
    r->config->layers = (uint32_t)json_array_size(list);
    for (uint32_t i = 0; i < r->config->layers; i++) {
        char prefix[160];
        snprintf(prefix, sizeof prefix, "layer_configs[%u].", i);
        const struct walsh_json_object o = {transformer->where, prefix, json_array_get(list, i)};
        struct layer layer = {0};
        if (!json_is_object(o.object))
            return walsh_fail(r->err, WALSH_E_FORMAT, "%s: layer_configs[%u] is %s, expected an object",
                              o.where, i, walsh_json_kind(o.object));
        WALSH_TRY(read_layer(r, &o, wide, &layer));
        WALSH_TRY(add_layer(r, &o, i, &layer, have));
    }
    struct walsh_config *c = r->config;
    if (!r->has_attention || c->max_positions == 0)
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED, "%s: no layer attends by positions",
                          transformer->where);
    if (have[1] && !have[0]) c->rope = c->local_rope;
    c->has_local_rope = have[0] && have[1] && !same_rope(&c->rope, &c->local_rope);
    return WALSH_OK;
}

static enum walsh_status read_embedding(struct reading *r, const struct walsh_json_object *parent)
{
    static const char *const keys[] = {"type", "input_scale", "logit_soft_cap", "logit_scale", NULL};
    char prefix[160];
    struct walsh_json_object o;
    struct walsh_config *c = r->config;
    const char *type = NULL;
    double scale = 1;
    WALSH_TRY(member(parent, "embedding_config", prefix, &o, r->err));
    WALSH_TRY(walsh_json_string(&o, "type", true, &type, r->err));
    if (strcmp(type, "TiedEmbeddingConfig") != 0 && strcmp(type, "UntiedEmbeddingConfig") != 0)
        return fail_type(&o, type, "TiedEmbeddingConfig, UntiedEmbeddingConfig", r->err);
    WALSH_TRY(walsh_json_only(&o, keys, r->err));
    WALSH_TRY(walsh_json_double(&o, "input_scale", false, 0, true, 1e6, &scale, r->err));
    WALSH_TRY(walsh_json_double(&o, "logit_soft_cap", false, 0, true, 1e6, &c->logit_cap, r->err));
    WALSH_TRY(walsh_must_be_number(&o, "logit_scale", 1, r->err));
    c->scaled_embeddings = scale != 1;
    if (scale != 1 && fabs(scale - sqrt((double)c->hidden)) > 1e-3 * scale)
        return walsh_fail(r->err, WALSH_E_UNSUPPORTED, "%s: %sinput_scale is %g; walsh implements 1 and %g",
                          o.where, prefix, scale, sqrt((double)c->hidden));
    return WALSH_OK;
}

static enum walsh_status read_stops(const struct walsh_json_object *root, struct walsh_config *c,
                                    struct walsh_error *err)
{
    struct walsh_json_object o;
    WALSH_TRY(walsh_json_child(root, "generation_config", "generation_config.", &o, err));
    const json_t *list = json_object_get(o.object, "stop_token_ids");
    c->bos = -1;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= (json_int_t)MAX_VOCAB || c->eos_count == WALSH_MAX_EOS)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: generation_config.stop_token_ids is not a list of at most %d ids",
                              root->where, WALSH_MAX_EOS);
        c->eos[c->eos_count++] = (int32_t)json_integer_value(id);
    }
    return WALSH_OK;
}

static void settle(const struct reading *r)
{
    struct walsh_config *c = r->config;
    const struct attention *a = &r->first_attention.attention;
    c->heads = a->heads;
    c->kv_heads = a->groups;
    c->head_dim = a->head_dim;
    c->intermediate = r->first_attention.wide;
    c->query_scalar = a->scale != 0 ? 1 / (a->scale * a->scale) : 0;
    c->score_cap = a->cap;
    c->attention_bias = a->qkv_bias;
    c->output_bias = a->out_bias;
    c->qk_norm = a->qk_norm;
    c->mlp_bias = r->first_attention.mlp_bias;
    c->gate = r->first_attention.gate;
    c->output_norms = r->first_attention.output_norms;
    c->rms_epsilon = r->norm.epsilon;
    c->norm_offset = r->norm.offset;
    c->conv_taps = r->has_convolution ? r->first_convolution.convolution.taps : 0;
    c->conv_bias = r->has_convolution && r->first_convolution.convolution.bias;
    c->quant.tensor_parallel = 1;
    c->quant.block_diagonal = true;
}

enum walsh_status walsh_lalamo_read_config(const struct walsh_json_object *root, struct walsh_config *out,
                                           struct walsh_error *err)
{
    static const char *const decoder_keys[] = {"embedding_config", "transformer_config", "vocab_size", NULL};
    static const char *const keys[] = {"layer_configs", "output_norm_config", "model_dim", "hidden_dim",
                                       NULL};
    char prefix[160], inner[160];
    struct walsh_json_object decoder, transformer;
    struct reading r = {.config = out, .err = err};
    const char *type = NULL;
    uint32_t wide = 0;
    out->architecture = WALSH_ARCH_LALAMO;
    snprintf(out->architecture_name, sizeof out->architecture_name, "LanguageModelConfig");
    WALSH_TRY(walsh_json_string(root, "type", true, &type, err));
    if (strcmp(type, "LanguageModelConfig") != 0) return fail_type(root, type, "LanguageModelConfig", err);
    WALSH_TRY(member(root, "decoder_config", prefix, &decoder, err));
    WALSH_TRY(walsh_json_only(&decoder, decoder_keys, err));
    WALSH_TRY(walsh_json_u32(&decoder, "vocab_size", true, 1, MAX_VOCAB, &out->vocab, err));
    WALSH_TRY(member(&decoder, "transformer_config", inner, &transformer, err));
    WALSH_TRY(walsh_json_only(&transformer, keys, err));
    WALSH_TRY(walsh_json_u32(&transformer, "model_dim", true, 1, MAX_SIZE, &out->hidden, err));
    WALSH_TRY(walsh_json_u32(&transformer, "hidden_dim", true, 1, MAX_SIZE, &wide, err));
    WALSH_TRY(read_norm(&r, &transformer, "output_norm_config"));
    WALSH_TRY(read_layers(&r, &transformer, wide));
    WALSH_TRY(read_embedding(&r, &decoder));
    settle(&r);
    if (out->conv_taps > 0 && out->heads * out->head_dim != out->hidden)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "%s: short convolutions with %u heads of %u in a model of width %u", root->where,
                          out->heads, out->head_dim, out->hidden);
    if (out->rotary_dim > out->head_dim || out->rotary_dim % 2 != 0)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: a rope of %u elements for heads of %u", root->where,
                          out->rotary_dim, out->head_dim);
    return read_stops(root, out, err);
}

static enum walsh_status read_generation(const struct walsh_json_object *root,
                                         struct walsh_generation_config *out, struct walsh_error *err)
{
    struct walsh_json_object o;
    WALSH_TRY(walsh_json_child(root, "generation_config", "generation_config.", &o, err));
    out->do_sample = is_there(&o, "temperature");
    WALSH_TRY(walsh_json_double(&o, "temperature", false, 0, false, 1e6, &out->temperature, err));
    WALSH_TRY(walsh_json_u32(&o, "top_k", false, 0, MAX_VOCAB, &out->top_k, err));
    WALSH_TRY(walsh_json_double(&o, "top_p", false, 0, false, 1, &out->top_p, err));
    WALSH_TRY(walsh_json_double(&o, "min_p", false, 0, false, 1, &out->min_p, err));
    return walsh_json_double(&o, "repetition_penalty", false, 0, true, 1e6, &out->repetition_penalty, err);
}

enum walsh_status walsh_lalamo_read_generation(const char *path, const char *json, size_t size,
                                               struct walsh_generation_config *out, struct walsh_error *err)
{
    struct walsh_json_object o = {.where = path, .prefix = ""};
    WALSH_TRY(walsh_json_parse(path, json, size, &o.object, err));
    const enum walsh_status status = read_generation(&o, out, err);
    json_decref(o.object);
    return status;
}

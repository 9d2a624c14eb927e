/* Rotary positions. rope_parameters (transformers 5) holds the theta too, of Gemma 3 one set per kind of
 * layer; rope_scaling (before) has it beside it at the top level. */
#include <math.h>
#include <string.h>

#include "checkpoint/architectures.h"
#include "checkpoint/config_parts.h"

static enum walsh_status read_type(const struct walsh_json_object *rope,
                                   const struct walsh_architecture_info *info, struct walsh_rope_config *out,
                                   struct walsh_error *err)
{
    static const char *const known[] = {"default", "linear", "llama3", "yarn", "longrope"};
    const char *type = "default";
    WALSH_TRY(walsh_json_string(rope, "type", false, &type, err));
    WALSH_TRY(walsh_json_string(rope, "rope_type", false, &type, err));
    if (info->phi3 && (strcmp(type, "su") == 0 || strcmp(type, "yarn") == 0)) type = "longrope";
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i]) == 0) {
            out->type = (enum walsh_rope_type)i;
            return WALSH_OK;
        }
    return walsh_fail(err, WALSH_E_UNSUPPORTED,
                      "%s: rope type \"%.100s\" is not supported; known: default, linear, llama3, yarn, "
                      "longrope",
                      rope->where, type);
}

static enum walsh_status read_llama3(const struct walsh_json_object *rope, struct walsh_rope_config *out,
                                     struct walsh_error *err)
{
    WALSH_TRY(
        walsh_json_double(rope, "low_freq_factor", true, 0, true, 1e6, &out->low_frequency_factor, err));
    WALSH_TRY(
        walsh_json_double(rope, "high_freq_factor", true, 0, true, 1e6, &out->high_frequency_factor, err));
    if (!(out->low_frequency_factor < out->high_frequency_factor))
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: %slow_freq_factor is %g, expected below high_freq_factor %g", rope->where,
                          rope->prefix, out->low_frequency_factor, out->high_frequency_factor);
    return walsh_json_u32(rope, "original_max_position_embeddings", true, 1, WALSH_MAX_CONFIG_POSITIONS,
                          &out->original_max_positions, err);
}

/* Peng et al. 2023. mscale and mscale_all_dim are DeepSeek's. */
static enum walsh_status read_yarn(const struct walsh_json_object *rope, uint32_t max_positions,
                                   struct walsh_rope_config *out, struct walsh_error *err)
{
    out->beta_fast = 32;
    out->beta_slow = 1;
    out->truncate = true;
    out->original_max_positions = max_positions;
    out->attention_factor = out->factor > 1 ? 0.1 * log(out->factor) + 1 : 1;
    WALSH_TRY(walsh_json_double(rope, "beta_fast", false, 0, true, 1e6, &out->beta_fast, err));
    WALSH_TRY(walsh_json_double(rope, "beta_slow", false, 0, true, 1e6, &out->beta_slow, err));
    WALSH_TRY(walsh_json_bool(rope, "truncate", &out->truncate, err));
    WALSH_TRY(walsh_json_double(rope, "attention_factor", false, 0, true, 1e6, &out->attention_factor, err));
    WALSH_TRY(walsh_must_be_number(rope, "mscale", 0, err));
    WALSH_TRY(walsh_must_be_number(rope, "mscale_all_dim", 0, err));
    return walsh_json_u32(rope, "original_max_position_embeddings", false, 1, WALSH_MAX_CONFIG_POSITIONS,
                          &out->original_max_positions, err);
}

/* A list of a positive number for each of the `pairs` that are rotated */
static enum walsh_status read_factors(const struct walsh_json_object *rope, const char *key, uint32_t pairs,
                                      float *out, struct walsh_error *err)
{
    const json_t *list = json_object_get(rope->object, key);
    if (!json_is_array(list) || json_array_size(list) != pairs)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is not a list of %u numbers, one for each pair",
                          rope->where, rope->prefix, key, pairs);
    for (uint32_t i = 0; i < pairs; i++) {
        const double value = json_number_value(json_array_get(list, i)); /* 0: no number */
        if (!(value >= 1e-6 && value <= 1e6))
            return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s[%u] is no number of 1e-6 to 1e+06", rope->where,
                              rope->prefix, key, i);
        out[i] = (float)value;
    }
    return WALSH_OK;
}

/* Ding et al. 2024, as Phi-3's files have it: original_max_position_embeddings may stand beside the set. */
static enum walsh_status read_longrope(const struct walsh_json_object *o,
                                       const struct walsh_json_object *rope, const struct walsh_config *c,
                                       struct walsh_rope_config *out, struct walsh_error *err)
{
    const char *key = "original_max_position_embeddings";
    const uint32_t pairs = (c->rotary_dim ? c->rotary_dim : c->head_dim) / 2;
    if (pairs > WALSH_MAX_ROPE_PAIRS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: longrope of %u pairs, expected at most %d",
                          rope->where, pairs, WALSH_MAX_ROPE_PAIRS);
    if (walsh_architectures[c->architecture].phi3) out->original_max_positions = 4096;
    WALSH_TRY(
        walsh_json_u32(rope, key, false, 2, WALSH_MAX_CONFIG_POSITIONS, &out->original_max_positions, err));
    WALSH_TRY(
        walsh_json_u32(o, key, false, 2, WALSH_MAX_CONFIG_POSITIONS, &out->original_max_positions, err));
    if (out->original_max_positions == 0)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is missing", rope->where, rope->prefix, key);
    WALSH_TRY(read_factors(rope, "short_factor", pairs, out->short_factor, err));
    WALSH_TRY(read_factors(rope, "long_factor", pairs, out->long_factor, err));
    out->factor = (double)c->max_positions / out->original_max_positions;
    WALSH_TRY(walsh_json_double(rope, "factor", false, 0, true, 1e6, &out->factor, err));
    out->attention_factor =
        out->factor > 1 ? sqrt(1 + log(out->factor) / log((double)out->original_max_positions)) : 1;
    return walsh_json_double(rope, "attention_factor", false, 0, true, 1e6, &out->attention_factor, err);
}

/* One set; out->theta is its default. */
static enum walsh_status read_set(const struct walsh_json_object *o, const struct walsh_json_object *rope,
                                  const struct walsh_config *c, struct walsh_rope_config *out,
                                  struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    WALSH_TRY(walsh_json_double(rope, "rope_theta", false, 0, true, 1e12, &out->theta, err));
    if (!info->partial_rotary) WALSH_TRY(walsh_must_be_number(rope, "partial_rotary_factor", 1, err));
    WALSH_TRY(read_type(rope, info, out, err));
    out->factor = 1;
    if (out->type == WALSH_ROPE_DEFAULT) return WALSH_OK;
    if (out->type == WALSH_ROPE_LONGROPE && out == &c->local_rope)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %srope_type longrope is for layers without a window",
                          rope->where, rope->prefix);
    if (out->type == WALSH_ROPE_LONGROPE) return read_longrope(o, rope, c, out, err);
    WALSH_TRY(walsh_json_double(rope, "factor", true, 0, true, 1e6, &out->factor, err));
    if (out->type == WALSH_ROPE_LLAMA3) return read_llama3(rope, out, err);
    if (out->type == WALSH_ROPE_YARN) return read_yarn(rope, c->max_positions, out, err);
    return WALSH_OK;
}

/* {"full_attention": {...}, "sliding_attention": {...}} */
static enum walsh_status read_kinds(const struct walsh_json_object *o, const struct walsh_json_object *rope,
                                    struct walsh_config *c, struct walsh_error *err)
{
    const struct {
        const char *key, *prefix;
        struct walsh_rope_config *set;
    } kinds[] = {{"full_attention", "rope_parameters.full_attention.", &c->rope},
                 {"sliding_attention", "rope_parameters.sliding_attention.", &c->local_rope}};
    for (unsigned i = 0; i < 2; i++) {
        struct walsh_json_object kind;
        WALSH_TRY(walsh_json_child(rope, kinds[i].key, kinds[i].prefix, &kind, err));
        WALSH_TRY(read_set(o, &kind, c, kinds[i].set, err));
    }
    return WALSH_OK;
}

static enum walsh_status read_partial(const struct walsh_json_object *o, const struct walsh_json_object *rope,
                                      struct walsh_config *c, struct walsh_error *err)
{
    double factor = 1;
    if (!walsh_architectures[c->architecture].partial_rotary)
        return walsh_must_be_number(o, "partial_rotary_factor", 1, err);
    WALSH_TRY(walsh_json_double(o, "partial_rotary_factor", false, 0, true, 1, &factor, err));
    WALSH_TRY(walsh_json_double(rope, "partial_rotary_factor", false, 0, true, 1, &factor, err));
    c->rotary_dim = (uint32_t)(c->head_dim * factor);
    if (c->rotary_dim == 0 || c->rotary_dim % 2 != 0)
        return walsh_fail(
            err, WALSH_E_FORMAT,
            "%s: partial_rotary_factor %g of head_dim %u is %u elements, expected an even number", o->where,
            factor, c->head_dim, c->rotary_dim);
    return WALSH_OK;
}

enum walsh_status walsh_config_read_rope(const struct walsh_json_object *o, struct walsh_config *c,
                                         struct walsh_error *err)
{
    const struct walsh_architecture_info *info = &walsh_architectures[c->architecture];
    struct walsh_json_object rope;
    WALSH_TRY(walsh_json_child(o, "rope_parameters", "rope_parameters.", &rope, err));
    if (!rope.object) WALSH_TRY(walsh_json_child(o, "rope_scaling", "rope_scaling.", &rope, err));
    bool kinds = false;
    const char *key;
    json_t *value;
    json_object_foreach(rope.object, key, value)
    {
        if (!json_is_object(value)) continue;
        kinds = true;
        if (!info->local_rope ||
            (strcmp(key, "full_attention") != 0 && strcmp(key, "sliding_attention") != 0))
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "%s: %s%.100s: rope parameters per kind of layer are not supported", o->where,
                              rope.prefix, key);
    }
    c->rope.theta = info->rope_theta;
    WALSH_TRY(walsh_json_double(o, "rope_theta", false, 0, true, 1e12, &c->rope.theta, err));
    if (info->lfm2) WALSH_TRY(walsh_json_double(o, "theta", false, 0, true, 1e12, &c->rope.theta, err));
    if (info->local_rope) {
        c->has_local_rope = true;
        c->local_rope = (struct walsh_rope_config){.theta = 10000, .factor = 1};
        WALSH_TRY(
            walsh_json_double(o, "rope_local_base_freq", false, 0, true, 1e12, &c->local_rope.theta, err));
    }
    WALSH_TRY(read_partial(o, &rope, c, err));
    if (info->gpt_oss && !rope.object) {
        c->rope = (struct walsh_rope_config){.type = WALSH_ROPE_YARN,
                                             .theta = c->rope.theta,
                                             .factor = 32,
                                             .original_max_positions = 4096,
                                             .beta_fast = 32,
                                             .beta_slow = 1,
                                             .attention_factor = 0.1 * log(32) + 1};
        return WALSH_OK;
    }
    return kinds ? read_kinds(o, &rope, c, err) : read_set(o, &rope, c, &c->rope, err);
}

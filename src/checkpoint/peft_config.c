#include "checkpoint/peft_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "checkpoint/json.h"

#define MAX_ENTRIES 65536 /* of a list or a pattern table */

/* What reads the file: where it is, what is in it, where strings go. */
struct reader {
    json_t *root;
    struct walsh_peft_config *config;
    struct walsh_error *err;
};

/* Keys that walsh reads below, and keys without a meaning for inference: records and training settings. */
static const char *const known_keys[] = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "target_parameters", "bias", "init_lora_weights", "base_model_name_or_path",
    "peft_version",
    /* records */
    "auto_mapping", "revision", "task_type", "inference_mode", "runtime_config",
    /* training; the weights' initialisation, except where init_lora_weights says that the base changed too */
    "lora_dropout", "eva_config", "corda_config", "loftq_config", "lora_ga_config",
    /* parameters of features that have a switch of their own */
    "megatron_core", "qalora_group_size", "layers_pattern"};

static bool is_known(const char *key)
{
    for (size_t i = 0; i < sizeof known_keys / sizeof *known_keys; i++)
        if (strcmp(key, known_keys[i]) == 0) return true;
    return false;
}

static bool is_off(const json_t *value)
{
    if (json_is_string(value)) return json_string_length(value) == 0;
    return json_is_null(value) || json_is_false(value) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

/* The value as JSON, cut to what a message bears. */
static const char *value_text(const json_t *value, char text[80])
{
    char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    snprintf(text, 80, "%.70s%s", dump ? dump : "?", dump && strlen(dump) > 70 ? "..." : "");
    free(dump); /* jansson's memory */
    return text;
}

static enum walsh_status wrong(const struct reader *r, const char *key, const json_t *value,
                               const char *expected)
{
    char text[80];
    return walsh_fail(r->err, WALSH_E_FORMAT, "%s: %s is %s, expected %s", r->config->path, key,
                      value ? value_text(value, text) : "missing", expected);
}

static enum walsh_status unsupported(const struct reader *r, const char *key, const json_t *value,
                                     const char *hint)
{
    char text[80];
    return walsh_fail(r->err, WALSH_E_UNSUPPORTED, "%s: %s is %s, which walsh does not support%s",
                      r->config->path, key, value_text(value, text), hint);
}

static enum walsh_status check_keys(const struct reader *r)
{
    const char *key;
    json_t *value;
    json_object_foreach(r->root, key,
                        value) if (!is_known(key) && !is_off(value)) return unsupported(r, key, value, "");
    return WALSH_OK;
}

/* Initialisations that subtract the first B·A from the base weights: the adapter does not fit the published
 * base. */
static enum walsh_status check_initialisation(const struct reader *r)
{
    static const char *const fine[] = {"gaussian", "eva", "orthogonal"};
    json_t *value = json_object_get(r->root, "init_lora_weights");
    if (!value || json_is_boolean(value) || json_is_null(value)) return WALSH_OK;
    for (size_t i = 0; json_is_string(value) && i < sizeof fine / sizeof *fine; i++)
        if (strcmp(json_string_value(value), fine[i]) == 0) return WALSH_OK;
    return unsupported(r, "init_lora_weights", value,
                       ": it changes the base weights too; have PEFT convert the adapter when it saves it "
                       "(path_initial_model_for_weight_conversion)");
}

static enum walsh_status read_rank(const struct reader *r, const char *key, const json_t *value, double *out)
{
    const json_int_t rank = json_integer_value(value);
    if (!json_is_integer(value) || rank < 1 || rank > WALSH_MAX_LORA_RANK)
        return wrong(r, key, value, "an integer from 1 to 256");
    *out = (double)rank;
    return WALSH_OK;
}

static enum walsh_status read_alpha(const struct reader *r, const char *key, const json_t *value, double *out)
{
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return wrong(r, key, value, "a number");
    *out = json_number_value(value);
    return WALSH_OK;
}

static enum walsh_status read_overrides(const struct reader *r, const char *table,
                                        enum walsh_status read(const struct reader *, const char *,
                                                               const json_t *, double *),
                                        struct walsh_peft_override **out, size_t *count)
{
    json_t *object = json_object_get(r->root, table), *value;
    if (!object || json_is_null(object)) return WALSH_OK;
    if (!json_is_object(object) || json_object_size(object) > MAX_ENTRIES)
        return wrong(r, table, object, "an object of at most 65536 patterns");
    WALSH_TRY(walsh_arena_alloc(&r->config->arena, json_object_size(object), sizeof **out, "LoRA patterns",
                                out, r->err));
    const char *key;
    json_object_foreach(object, key, value)
    {
        char label[240];
        snprintf(label, sizeof label, "%s \"%.200s\"", table, key);
        struct walsh_peft_override *override = &(*out)[*count];
        WALSH_TRY(read(r, label, value, &override->value));
        const enum walsh_status status =
            walsh_peft_pattern_compile(key, WALSH_PEFT_SUFFIX, &r->config->arena, &override->pattern, r->err);
        if (status != WALSH_OK) return walsh_fail_within(r->err, status, "%s: %s", r->config->path, table);
        ++*count;
    }
    return WALSH_OK;
}

static enum walsh_status read_names(const struct reader *r, const char *key, const json_t *list,
                                    const char ***out, size_t *count)
{
    const char **names = NULL;
    if (!json_is_array(list) || json_array_size(list) > MAX_ENTRIES)
        return wrong(r, key, list, "a list of at most 65536 names");
    WALSH_TRY(walsh_arena_alloc(&r->config->arena, json_array_size(list), sizeof *names, "LoRA targets",
                                &names, r->err));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        char *copy = NULL;
        if (!json_is_string(item)) return wrong(r, key, list, "a list of names");
        WALSH_TRY(walsh_arena_strdup(&r->config->arena, json_string_value(item), &copy, r->err));
        names[i] = copy;
    }
    *out = names;
    *count = json_array_size(list);
    return WALSH_OK;
}

static enum walsh_status read_selector(const struct reader *r, const char *key, bool all_linear,
                                       struct walsh_peft_selector *out)
{
    const json_t *value = json_object_get(r->root, key);
    if (!value || json_is_null(value)) return WALSH_OK;
    if (json_is_array(value)) {
        out->kind = WALSH_PEFT_NAMES;
        return read_names(r, key, value, &out->names, &out->count);
    }
    if (!json_is_string(value)) return wrong(r, key, value, "a list of names or a regular expression");
    if (all_linear && strcasecmp(json_string_value(value), "all-linear") == 0) {
        out->kind = WALSH_PEFT_ALL_LINEAR;
        return WALSH_OK;
    }
    out->kind = WALSH_PEFT_REGEX;
    const enum walsh_status status = walsh_peft_pattern_compile(json_string_value(value), WALSH_PEFT_WHOLE,
                                                                &r->config->arena, &out->pattern, r->err);
    if (status != WALSH_OK) return walsh_fail_within(r->err, status, "%s: %s", r->config->path, key);
    return WALSH_OK;
}

/* target_parameters: before 0.19, PEFT exchanged the in and out dimension of such an adapter. */
static enum walsh_status read_parameters(const struct reader *r)
{
    const json_t *value = json_object_get(r->root, "target_parameters");
    if (!value || json_is_null(value)) return WALSH_OK;
    struct walsh_peft_config *config = r->config;
    WALSH_TRY(read_names(r, "target_parameters", value, &config->parameters, &config->parameter_count));
    if (config->parameter_count == 0) return WALSH_OK;
    const json_t *version = json_object_get(r->root, "peft_version");
    unsigned major = 0, minor = 0;
    if (!json_is_string(version) || sscanf(json_string_value(version), "%u.%u", &major, &minor) != 2 ||
        (major == 0 && minor < 19))
        return wrong(r, "target_parameters is set and peft_version", version, "\"0.19.0\" or later");
    return WALSH_OK;
}

static enum walsh_status read_config(const struct reader *r)
{
    struct walsh_peft_config *config = r->config;
    const json_t *type = json_object_get(r->root, "peft_type"), *bias = json_object_get(r->root, "bias");
    if (!json_is_string(type) || strcmp(json_string_value(type), "LORA") != 0)
        return wrong(r, "peft_type", type, "\"LORA\"");
    if (bias && !(json_is_string(bias) && strcmp(json_string_value(bias), "none") == 0))
        return unsupported(r, "bias", bias, " (expected \"none\")");
    WALSH_TRY(check_keys(r));
    WALSH_TRY(check_initialisation(r));

    const json_t *rslora = json_object_get(r->root, "use_rslora"), *base = NULL;
    if (rslora && !json_is_boolean(rslora)) return wrong(r, "use_rslora", rslora, "true or false");
    config->rank_stabilized = json_is_true(rslora);
    double rank = 0;
    WALSH_TRY(read_rank(r, "r", json_object_get(r->root, "r"), &rank));
    config->rank = (uint32_t)rank;
    WALSH_TRY(read_alpha(r, "lora_alpha", json_object_get(r->root, "lora_alpha"), &config->alpha));
    WALSH_TRY(read_overrides(r, "rank_pattern", read_rank, &config->ranks, &config->rank_count));
    WALSH_TRY(read_overrides(r, "alpha_pattern", read_alpha, &config->alphas, &config->alpha_count));
    WALSH_TRY(read_selector(r, "target_modules", true, &config->targets));
    WALSH_TRY(read_selector(r, "exclude_modules", false, &config->excluded));
    WALSH_TRY(read_parameters(r));
    if ((config->targets.kind == WALSH_PEFT_NONE ||
         (config->targets.kind == WALSH_PEFT_NAMES && config->targets.count == 0)) &&
        config->parameter_count == 0)
        return wrong(r, "target_modules", json_object_get(r->root, "target_modules"),
                     "a list of names, a regular expression or \"all-linear\"");

    base = json_object_get(r->root, "base_model_name_or_path");
    if (base && !json_is_string(base) && !json_is_null(base))
        return wrong(r, "base_model_name_or_path", base, "a string");
    char *copy = NULL;
    WALSH_TRY(walsh_arena_strdup(&config->arena, json_is_string(base) ? json_string_value(base) : "", &copy,
                                 r->err));
    config->base_model = copy;
    return WALSH_OK;
}

enum walsh_status walsh_peft_config_parse(const char *path, const char *json, size_t size,
                                          struct walsh_peft_config *out, struct walsh_error *err)
{
    json_t *root = NULL;
    char *copy = NULL;
    memset(out, 0, sizeof *out);
    WALSH_TRY(walsh_json_parse(path, json, size, &root, err));
    enum walsh_status status = walsh_arena_strdup(&out->arena, path, &copy, err);
    if (status == WALSH_OK) {
        out->path = copy;
        status = read_config(&(struct reader){root, out, err});
    }
    json_decref(root);
    if (status != WALSH_OK) walsh_peft_config_close(out);
    return status;
}

void walsh_peft_config_close(struct walsh_peft_config *config)
{
    for (size_t i = 0; i < config->rank_count; i++) walsh_peft_pattern_close(&config->ranks[i].pattern);
    for (size_t i = 0; i < config->alpha_count; i++) walsh_peft_pattern_close(&config->alphas[i].pattern);
    walsh_peft_pattern_close(&config->targets.pattern);
    walsh_peft_pattern_close(&config->excluded.pattern);
    walsh_arena_close(&config->arena);
    memset(config, 0, sizeof *config);
}

/* `name` is `target` or ends with "." and it. */
static bool names_match(const char *name, const char *target)
{
    const size_t size = strlen(name), length = strlen(target);
    if (length > size || strcmp(name + (size - length), target) != 0) return false;
    return length == size || name[size - length - 1] == '.';
}

static enum walsh_status selector_match(const struct walsh_peft_config *config, const char *key,
                                        const struct walsh_peft_selector *selector, const char *module,
                                        bool *matched, struct walsh_error *err)
{
    *matched = false;
    if (selector->kind == WALSH_PEFT_REGEX) {
        const enum walsh_status status = walsh_peft_pattern_match(&selector->pattern, module, matched, err);
        if (status != WALSH_OK) return walsh_fail_within(err, status, "%s: %s", config->path, key);
    } else if (selector->kind == WALSH_PEFT_ALL_LINEAR) {
        *matched = !names_match(module, "lm_head");
    }
    for (size_t i = 0; i < selector->count && !*matched; i++)
        *matched = names_match(module, selector->names[i]);
    return WALSH_OK;
}

enum walsh_status walsh_peft_config_targets(const struct walsh_peft_config *config, const char *module,
                                            bool *targeted, struct walsh_error *err)
{
    bool excluded = false;
    WALSH_TRY(selector_match(config, "exclude_modules", &config->excluded, module, &excluded, err));
    WALSH_TRY(selector_match(config, "target_modules", &config->targets, module, targeted, err));
    *targeted = *targeted && !excluded;
    return WALSH_OK;
}

bool walsh_peft_config_targets_parameter(const struct walsh_peft_config *config, const char *parameter)
{
    for (size_t i = 0; i < config->parameter_count; i++)
        if (names_match(parameter, config->parameters[i])) return true;
    return false;
}

static enum walsh_status find_override(const struct walsh_peft_config *config, const char *table,
                                       const struct walsh_peft_override *overrides, size_t count,
                                       const char *name, double *value, struct walsh_error *err)
{
    for (size_t i = 0; i < count; i++) {
        bool matched = false;
        const enum walsh_status status = walsh_peft_pattern_match(&overrides[i].pattern, name, &matched, err);
        if (status != WALSH_OK) return walsh_fail_within(err, status, "%s: %s", config->path, table);
        if (!matched) continue;
        *value = overrides[i].value;
        return WALSH_OK;
    }
    return WALSH_OK;
}

enum walsh_status walsh_peft_config_rank(const struct walsh_peft_config *config, const char *name,
                                         uint32_t *rank, double *scale, struct walsh_error *err)
{
    double r = (double)config->rank, alpha = config->alpha;
    WALSH_TRY(find_override(config, "rank_pattern", config->ranks, config->rank_count, name, &r, err));
    WALSH_TRY(find_override(config, "alpha_pattern", config->alphas, config->alpha_count, name, &alpha, err));
    *rank = (uint32_t)r;
    *scale = config->rank_stabilized ? alpha / sqrt(r) : alpha / r;
    return WALSH_OK;
}

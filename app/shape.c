#include "shape.h"

#include <string.h>
#include <unistd.h>

#include "app.h"
#include "files.h"

/* The number `key` of a config.json; 0 where it is absent. */
static enum walsh_status read_number(const char *path, const json_t *config, const char *key, bool required,
                                     uint32_t *out, struct walsh_error *err)
{
    const json_t *value = json_object_get(config, key);
    *out = 0;
    if (!value || json_is_null(value))
        return required ? fail(err, WALSH_E_FORMAT, "%s: '%s' is missing", path, key) : WALSH_OK;
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 0 || number > INT32_MAX)
        return fail(err, WALSH_E_FORMAT, "%s: '%s' is not a whole number from 0 to %d", path, key, INT32_MAX);
    *out = (uint32_t)number;
    return WALSH_OK;
}

static enum walsh_status read_config(const char *path, const json_t *config, struct walsh_shape *out,
                                     struct walsh_error *err)
{
    const struct {
        const char *key;
        uint32_t *value;
        bool required;
    } keys[] = {
        {"hidden_size", &out->hidden, true},
        {"intermediate_size", &out->intermediate, true},
        {"num_hidden_layers", &out->layers, true},
        {"num_attention_heads", &out->heads, true},
        {"vocab_size", &out->vocab, true},
        {"num_key_value_heads", &out->kv_heads, false},
        {"head_dim", &out->head_dim, false},
        {"max_position_embeddings", &out->max_positions, false},
        {"num_experts", &out->experts, false},
        {"num_experts_per_tok", &out->experts_per_token, false},
        {"moe_intermediate_size", &out->expert_intermediate, false},
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        TRY(read_number(path, config, keys[i].key, keys[i].required, keys[i].value, err));
    if (!out->heads) return fail(err, WALSH_E_FORMAT, "%s: 'num_attention_heads' is 0", path);
    if (!out->kv_heads) out->kv_heads = out->heads;
    if (!out->head_dim) out->head_dim = out->hidden / out->heads;
    if (!out->max_positions) out->max_positions = 32768;
    out->tied_embeddings = json_is_true(json_object_get(config, "tie_word_embeddings"));
    return WALSH_OK;
}

static enum walsh_status read_shape_file(const char *path, struct walsh_shape *out, struct walsh_error *err)
{
    struct text text;
    TRY(file_read(path, &text, err));
    json_error_t error;
    json_t *config = json_loadb(text.data, text.size, JSON_REJECT_DUPLICATES, &error);
    text_free(&text);
    if (!config) return fail(err, WALSH_E_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    enum walsh_status status = json_is_object(config)
                                   ? read_config(path, config, out, err)
                                   : fail(err, WALSH_E_FORMAT, "%s: not a JSON object", path);
    json_decref(config);
    return status;
}

enum walsh_status shape_find(const char *shape, struct walsh_shape *out, struct walsh_error *err)
{
    *out = (struct walsh_shape)WALSH_SHAPE;
    size_t length = strlen(shape);
    bool file = strchr(shape, '/') || (length > 5 && strcmp(shape + length - 5, ".json") == 0);
    TRY(file ? read_shape_file(shape, out, err) : walsh_shape_named(shape, out, err));
    out->name = shape;
    return WALSH_OK;
}

#include "checkpoint/json.h"

#include <string.h>

/* Nesting is counted before jansson recurses into it. Strings are skipped; what is not JSON at all is left to
 * jansson. */
static bool too_deep(const char *text, size_t size)
{
    unsigned depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > WALSH_JSON_MAX_DEPTH) return true;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
    }
    return false;
}

enum walsh_status walsh_json_parse(const char *where, const char *text, size_t size, json_t **out,
                                   struct walsh_error *err)
{
    *out = NULL;
    if (too_deep(text, size))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: JSON nested deeper than %d levels", where,
                          WALSH_JSON_MAX_DEPTH);
    json_error_t why;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &why);
    if (!root && json_error_code(&why) == json_error_out_of_memory)
        return walsh_fail(err, WALSH_E_MEMORY, "out of memory: the JSON of %s", where);
    if (!root)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: invalid JSON at line %d, column %d: %s", where, why.line,
                          why.column, why.text);
    if (!json_is_object(root)) {
        enum walsh_status status = walsh_fail(err, WALSH_E_FORMAT, "%s: JSON holds %s, expected an object",
                                              where, walsh_json_kind(root));
        json_decref(root);
        return status;
    }
    *out = root;
    return WALSH_OK;
}

const char *walsh_json_kind(const json_t *value)
{
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a fraction";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "unknown";
}

/* *value: NULL where the key is absent or null, which is an error where it is required. */
static enum walsh_status look_up(const struct walsh_json_object *o, const char *key, bool required,
                                 json_t **value, struct walsh_error *err)
{
    *value = json_object_get(o->object, key);
    if (json_is_null(*value)) *value = NULL;
    if (!*value && required)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is missing", o->where, o->prefix, key);
    return WALSH_OK;
}

static enum walsh_status wrong_kind(const struct walsh_json_object *o, const char *key, const json_t *value,
                                    const char *expected, struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is %s, expected %s", o->where, o->prefix, key,
                      walsh_json_kind(value), expected);
}

enum walsh_status walsh_json_u32(const struct walsh_json_object *o, const char *key, bool required,
                                 uint32_t min, uint32_t max, uint32_t *out, struct walsh_error *err)
{
    json_t *value;
    WALSH_TRY(look_up(o, key, required, &value, err));
    if (!value) return WALSH_OK;
    if (!json_is_integer(value)) return wrong_kind(o, key, value, "an integer", err);
    json_int_t n = json_integer_value(value);
    if (n < (json_int_t)min || n > (json_int_t)max)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is %" JSON_INTEGER_FORMAT ", expected %u to %u",
                          o->where, o->prefix, key, n, min, max);
    *out = (uint32_t)n;
    return WALSH_OK;
}

enum walsh_status walsh_json_double(const struct walsh_json_object *o, const char *key, bool required,
                                    double min, bool open_min, double max, double *out,
                                    struct walsh_error *err)
{
    json_t *value;
    WALSH_TRY(look_up(o, key, required, &value, err));
    if (!value) return WALSH_OK;
    if (!json_is_number(value)) return wrong_kind(o, key, value, "a number", err);
    double x = json_number_value(value);
    if (!(open_min ? x > min : x >= min) || !(x <= max))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: %s%s is %g, expected %s%g to %g", o->where, o->prefix,
                          key, x, open_min ? "above " : "", min, max);
    *out = x;
    return WALSH_OK;
}

enum walsh_status walsh_json_bool(const struct walsh_json_object *o, const char *key, bool *out,
                                  struct walsh_error *err)
{
    json_t *value;
    WALSH_TRY(look_up(o, key, false, &value, err));
    if (!value) return WALSH_OK;
    if (!json_is_boolean(value)) return wrong_kind(o, key, value, "true or false", err);
    *out = json_is_true(value);
    return WALSH_OK;
}

enum walsh_status walsh_json_string(const struct walsh_json_object *o, const char *key, bool required,
                                    const char **out, struct walsh_error *err)
{
    json_t *value;
    WALSH_TRY(look_up(o, key, required, &value, err));
    if (!value) return WALSH_OK;
    if (!json_is_string(value)) return wrong_kind(o, key, value, "a string", err);
    *out = json_string_value(value);
    return WALSH_OK;
}

enum walsh_status walsh_json_child(const struct walsh_json_object *o, const char *key, const char *prefix,
                                   struct walsh_json_object *out, struct walsh_error *err)
{
    json_t *value;
    WALSH_TRY(look_up(o, key, false, &value, err));
    if (value && !json_is_object(value)) return wrong_kind(o, key, value, "an object", err);
    *out = (struct walsh_json_object){.where = o->where, .prefix = prefix, .object = value};
    return WALSH_OK;
}

static bool is_off(const json_t *value)
{
    return json_is_null(value) || json_is_false(value) ||
           (json_is_number(value) && json_number_value(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0) ||
           (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0);
}

enum walsh_status walsh_json_only(const struct walsh_json_object *o, const char *const *known,
                                  struct walsh_error *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(o->object, key, value)
    {
        bool listed = is_off(value);
        for (size_t i = 0; known[i] && !listed; i++) listed = strcmp(known[i], key) == 0;
        if (!listed)
            return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s%.100s is set, which walsh does not know",
                              o->where, o->prefix, key);
    }
    return WALSH_OK;
}

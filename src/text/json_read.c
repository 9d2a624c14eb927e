#include "text/json_read.h"

#include "base/file.h"
#include "base/memory.h"

enum walsh_status walsh_json_read_file(const char *path, size_t max_size, json_t **out,
                                       struct walsh_error *err)
{
    char *text;
    size_t size;
    *out = NULL;
    WALSH_TRY(walsh_file_read_regular(path, max_size, &text, &size, err));
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    walsh_free(text);
    if (!root && error.text[0] == '\0') /* jansson has nothing to say where memory is short */
        return walsh_fail(err, WALSH_E_MEMORY, "%s: out of memory", path);
    if (!root) return walsh_fail(err, WALSH_E_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    if (!json_is_object(root)) {
        enum walsh_status status = walsh_fail(err, WALSH_E_FORMAT, "%s: found a JSON %s, expected an object",
                                              path, walsh_json_type_name(root));
        json_decref(root);
        return status;
    }
    *out = root;
    return WALSH_OK;
}

const char *walsh_json_type_name(const json_t *value)
{
    if (!value) return "nothing";
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "object";
    case JSON_ARRAY:
        return "array";
    case JSON_STRING:
        return "string";
    case JSON_INTEGER:
        return "integer";
    case JSON_REAL:
        return "real number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

json_t *walsh_json_member(const json_t *object, const char *key)
{
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

enum walsh_status walsh_json_member_bool(const json_t *object, const char *where, const char *key,
                                         bool otherwise, bool *out, struct walsh_error *err)
{
    const json_t *value = walsh_json_member(object, key);
    if (value && !json_is_boolean(value))
        return walsh_fail(err, WALSH_E_FORMAT, "%s.%s: found %s, expected a boolean", where, key,
                          walsh_json_type_name(value));
    *out = value ? json_is_true(value) : otherwise;
    return WALSH_OK;
}

enum walsh_status walsh_json_member_string(const json_t *object, const char *where, const char *key,
                                           const char **out, struct walsh_error *err)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_string(value))
        return walsh_fail(err, WALSH_E_FORMAT, "%s.%s: found %s, expected a string", where, key,
                          walsh_json_type_name(value));
    *out = json_string_value(value);
    return WALSH_OK;
}

enum walsh_status walsh_json_index(const json_t *value, const char *what, uint32_t limit, uint32_t *out,
                                   struct walsh_error *err)
{
    if (!json_is_integer(value))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: found %s, expected an integer", what,
                          walsh_json_type_name(value));
    json_int_t number = json_integer_value(value);
    if (number < 0 || number >= (json_int_t)limit)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: found %" JSON_INTEGER_FORMAT ", expected 0 to %u", what,
                          number, limit - 1);
    *out = (uint32_t)number;
    return WALSH_OK;
}

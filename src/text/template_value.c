/* Values of the template language: memory, containers, truth, equality, order. */
#include <math.h>
#include <string.h>

#include "text/json_read.h"
#include "text/template_internal.h"
#include "text/utf8.h"

#define ROOM ((size_t)64 << 10) /* bytes of one block of small values */
#define MAX_JSON_DEPTH 100
#define MAX_DEPTH 200 /* of values that are compared */

enum walsh_status walsh_tpl_spend(struct walsh_tpl_run *run, uint64_t steps)
{
    run->steps += steps;
    if (run->steps <= run->limits->steps) return WALSH_OK;
    return walsh_fail(run->err, WALSH_E_CAPACITY, "more than %llu steps",
                      (unsigned long long)run->limits->steps);
}

enum walsh_status walsh_tpl_alloc(struct walsh_tpl_run *run, size_t count, size_t size, void *out_pointer)
{
    size_t bytes;
    if (!walsh_mul(count, size, &bytes) || bytes > run->limits->memory)
        bytes = run->limits->memory; /* and so too much */
    bytes = walsh_round_up(bytes, sizeof(max_align_t));
    if (bytes > run->limits->memory - run->memory)
        return walsh_fail(run->err, WALSH_E_CAPACITY, "values of more than %zu bytes", run->limits->memory);
    run->memory += bytes;
    if (bytes > ROOM / 4)
        return walsh_arena_alloc(&run->arena, bytes, 1, "a chat template's values", out_pointer, run->err);
    if (bytes > run->room_size) {
        WALSH_TRY(walsh_arena_alloc(&run->arena, ROOM, 1, "a chat template's values", &run->room, run->err));
        run->room_size = ROOM;
    }
    memcpy(out_pointer, &run->room, sizeof run->room);
    run->room += bytes;
    run->room_size -= bytes;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_put(struct walsh_tpl_run *run, const void *data, size_t size)
{
    WALSH_TRY(walsh_tpl_spend(run, size / 64));
    if (size > run->limits->output - run->out.size)
        return walsh_fail(run->err, WALSH_E_CAPACITY, "a text of more than %zu bytes", run->limits->output);
    return walsh_buffer_append(&run->out, data, size, run->err);
}

enum walsh_status walsh_tpl_puts(struct walsh_tpl_run *run, const char *text)
{
    return walsh_tpl_put(run, text, strlen(text));
}

enum walsh_status walsh_tpl_take(struct walsh_tpl_run *run, size_t mark, struct walsh_tpl_value *out)
{
    const size_t size = run->out.size - mark;
    char *copy;
    WALSH_TRY(walsh_tpl_alloc(run, size ? size : 1, 1, &copy));
    if (size) memcpy(copy, run->out.data + mark, size);
    run->out.size = mark;
    *out = walsh_tpl_string(copy, size);
    return WALSH_OK;
}

enum walsh_status walsh_tpl_new_list(struct walsh_tpl_run *run, enum walsh_tpl_type type, size_t count,
                                     struct walsh_tpl_value *out)
{
    struct walsh_tpl_list *list = NULL;
    WALSH_TRY(walsh_tpl_spend(run, count));
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof *list, &list));
    WALSH_TRY(walsh_tpl_alloc(run, count ? count : 1, sizeof *list->items, &list->items));
    list->count = count;
    *out = (struct walsh_tpl_value){.type = (uint8_t)type, .u.list = list};
    return WALSH_OK;
}

enum walsh_status walsh_tpl_new_dict(struct walsh_tpl_run *run, enum walsh_tpl_type type, size_t capacity,
                                     struct walsh_tpl_value *out)
{
    struct walsh_tpl_dict *dict = NULL;
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof *dict, &dict));
    dict->capacity = capacity ? capacity : 4;
    WALSH_TRY(walsh_tpl_alloc(run, dict->capacity, sizeof *dict->pairs, &dict->pairs));
    *out = (struct walsh_tpl_value){.type = (uint8_t)type, .u.dict = dict};
    return WALSH_OK;
}

struct walsh_tpl_value *walsh_tpl_dict_get(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                           const struct walsh_tpl_value *key)
{
    for (size_t i = 0; i < dict->count; i++)
        if (walsh_tpl_equal(run, &dict->pairs[i].key, key)) return &dict->pairs[i].value;
    return NULL;
}

struct walsh_tpl_value *walsh_tpl_dict_text(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                            struct walsh_tpl_text key)
{
    const struct walsh_tpl_value value = walsh_tpl_string(key.data, key.size);
    return walsh_tpl_dict_get(run, dict, &value);
}

enum walsh_status walsh_tpl_dict_set(struct walsh_tpl_run *run, struct walsh_tpl_dict *dict,
                                     struct walsh_tpl_value key, struct walsh_tpl_value value)
{
    if (key.type == TPL_OBJECT || key.type == TPL_NAMESPACE || (key.type == TPL_ARRAY && !key.aux))
        return TPL_FAIL(run, "a %s cannot be a key", walsh_tpl_type_name(&key));
    WALSH_TRY(walsh_tpl_spend(run, 1 + dict->count / 16));
    struct walsh_tpl_value *known = walsh_tpl_dict_get(run, dict, &key);
    if (known) {
        *known = value;
        return WALSH_OK;
    }
    if (dict->count == dict->capacity) {
        struct walsh_tpl_pair *more;
        WALSH_TRY(walsh_tpl_alloc(run, 2 * dict->capacity, sizeof *more, &more));
        memcpy(more, dict->pairs, dict->count * sizeof *more);
        dict->pairs = more;
        dict->capacity *= 2;
    }
    dict->pairs[dict->count++] = (struct walsh_tpl_pair){key, value};
    return WALSH_OK;
}

enum walsh_status walsh_tpl_from_json(struct walsh_tpl_run *run, const json_t *json, unsigned depth,
                                      struct walsh_tpl_value *out)
{
    if (depth > MAX_JSON_DEPTH)
        return walsh_fail(run->err, WALSH_E_CAPACITY, "the variables are nested deeper than %d",
                          MAX_JSON_DEPTH);
    switch (json_typeof(json)) {
    case JSON_NULL:
        *out = walsh_tpl_none();
        return WALSH_OK;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = walsh_tpl_bool(json_is_true(json));
        return WALSH_OK;
    case JSON_INTEGER:
        *out = walsh_tpl_int(json_integer_value(json));
        return WALSH_OK;
    case JSON_REAL:
        *out = walsh_tpl_real(json_real_value(json));
        return WALSH_OK;
    case JSON_STRING:
        *out = walsh_tpl_string(json_string_value(json), json_string_length(json));
        return WALSH_OK;
    case JSON_ARRAY:
        WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, json_array_size(json), out));
        for (size_t i = 0; i < json_array_size(json); i++)
            WALSH_TRY(walsh_tpl_from_json(run, json_array_get(json, i), depth + 1, &out->u.list->items[i]));
        return WALSH_OK;
    case JSON_OBJECT:
        break;
    }
    const size_t count = json_object_size(json);
    WALSH_TRY(walsh_tpl_new_dict(run, TPL_OBJECT, count, out));
    struct walsh_tpl_dict *dict = out->u.dict;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value) /* keys are distinct already */
    {
        struct walsh_tpl_pair *pair = &dict->pairs[dict->count++];
        pair->key = walsh_tpl_string(key, strlen(key));
        WALSH_TRY(walsh_tpl_from_json(run, value, depth + 1, &pair->value));
    }
    return walsh_tpl_spend(run, count);
}

const char *walsh_tpl_type_name(const struct walsh_tpl_value *v)
{
    static const char *const names[] = {
        "undefined value", "NoneType",  "bool",      "int",   "float", "str",      "list",  "dict",
        "Namespace",       "generator", "dict view", "macro", "loop",  "function", "method"};
    return v->type == TPL_ARRAY && v->aux ? "tuple" : names[v->type];
}

bool walsh_tpl_truth(const struct walsh_tpl_value *v)
{
    switch ((enum walsh_tpl_type)v->type) {
    case TPL_UNDEFINED:
    case TPL_NONE:
        return false;
    case TPL_BOOL:
        return v->u.boolean;
    case TPL_INT:
        return v->u.integer != 0;
    case TPL_REAL:
        return v->u.real != 0;
    case TPL_TEXT:
        return v->u.text.size > 0;
    case TPL_ARRAY:
    case TPL_VIEW:
        return v->u.list->count > 0;
    case TPL_OBJECT:
        return v->u.dict->count > 0;
    default:
        return true;
    }
}

bool walsh_tpl_number(const struct walsh_tpl_value *v, double *out)
{
    if (v->type == TPL_REAL)
        *out = v->u.real;
    else if (v->type == TPL_INT)
        *out = (double)v->u.integer;
    else if (v->type == TPL_BOOL)
        *out = v->u.boolean;
    else
        return false;
    return true;
}

static bool whole(const struct walsh_tpl_value *v, int64_t *out)
{
    *out = v->type == TPL_INT ? v->u.integer : v->type == TPL_BOOL ? v->u.boolean : 0;
    return v->type == TPL_INT || v->type == TPL_BOOL;
}

static bool same_text(struct walsh_tpl_text a, struct walsh_tpl_text b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

static bool equal(struct walsh_tpl_run *run, const struct walsh_tpl_value *a, const struct walsh_tpl_value *b,
                  unsigned depth);

static bool dicts_equal(struct walsh_tpl_run *run, const struct walsh_tpl_dict *a,
                        const struct walsh_tpl_dict *b, unsigned depth)
{
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++) {
        const struct walsh_tpl_value *other = walsh_tpl_dict_get(run, b, &a->pairs[i].key);
        if (!other || !equal(run, &a->pairs[i].value, other, depth)) return false;
    }
    return true;
}

static bool lists_equal(struct walsh_tpl_run *run, const struct walsh_tpl_list *a,
                        const struct walsh_tpl_list *b, unsigned depth)
{
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++)
        if (!equal(run, &a->items[i], &b->items[i], depth)) return false;
    return true;
}

static bool equal(struct walsh_tpl_run *run, const struct walsh_tpl_value *a, const struct walsh_tpl_value *b,
                  unsigned depth)
{
    double x, y;
    int64_t i, j;
    if (++run->steps > run->limits->steps || depth > MAX_DEPTH) return false;
    if (whole(a, &i) && whole(b, &j)) return i == j;
    if (walsh_tpl_number(a, &x) && walsh_tpl_number(b, &y)) return x == y;
    if (a->type != b->type) return false;
    switch ((enum walsh_tpl_type)a->type) {
    case TPL_UNDEFINED:
    case TPL_NONE:
        return true;
    case TPL_TEXT:
        return same_text(a->u.text, b->u.text);
    case TPL_ARRAY:
        return a->aux == b->aux && lists_equal(run, a->u.list, b->u.list, depth + 1);
    case TPL_OBJECT:
        return dicts_equal(run, a->u.dict, b->u.dict, depth + 1);
    case TPL_FUNCTION:
        return a->aux == b->aux;
    default:
        return a->u.self == b->u.self; /* the same object */
    }
}

bool walsh_tpl_equal(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                     const struct walsh_tpl_value *b)
{
    return equal(run, a, b, 0);
}

static int order_texts(struct walsh_tpl_text a, struct walsh_tpl_text b)
{
    const int order = memcmp(a.size ? a.data : "", b.size ? b.data : "", walsh_min(a.size, b.size));
    if (order) return order;
    return a.size < b.size ? -1 : a.size > b.size;
}

static enum walsh_status find_order(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                                    const struct walsh_tpl_value *b, unsigned depth, int *order)
{
    double x, y;
    int64_t i, j;
    WALSH_TRY(walsh_tpl_spend(run, 1));
    if (depth > MAX_DEPTH) return walsh_fail(run->err, WALSH_E_CAPACITY, "a value is nested too deeply");
    if (whole(a, &i) && whole(b, &j)) {
        *order = i < j ? -1 : i > j;
        return WALSH_OK;
    }
    if (walsh_tpl_number(a, &x) && walsh_tpl_number(b, &y)) {
        *order = isnan(x) || isnan(y) ? 2 : x < y ? -1 : x > y;
        return WALSH_OK;
    }
    if (a->type == TPL_TEXT && b->type == TPL_TEXT) { /* of UTF-8: the order of code points */
        *order = order_texts(a->u.text, b->u.text);
        return WALSH_OK;
    }
    if (a->type != TPL_ARRAY || b->type != TPL_ARRAY || a->aux != b->aux)
        return TPL_FAIL(run, "a %s and a %s have no order", walsh_tpl_type_name(a), walsh_tpl_type_name(b));
    const struct walsh_tpl_list *l = a->u.list, *m = b->u.list;
    for (size_t n = 0; n < walsh_min(l->count, m->count); n++)
        if (!walsh_tpl_equal(run, &l->items[n], &m->items[n]))
            return find_order(run, &l->items[n], &m->items[n], depth + 1, order);
    *order = l->count < m->count ? -1 : l->count > m->count;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_order(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                                  const struct walsh_tpl_value *b, int *order)
{
    return find_order(run, a, b, 0, order);
}

static enum walsh_status characters_of(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                       struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, walsh_tpl_characters(text), out));
    size_t n = 0;
    for (size_t at = 0, step; at < text.size; at += step) {
        enum walsh_utf8 kind;
        step = walsh_utf8_step((const uint8_t *)text.data + at, text.size - at, &kind);
        out->u.list->items[n++] = walsh_tpl_string(text.data + at, step);
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_items(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                  struct walsh_tpl_value **items, size_t *count)
{
    struct walsh_tpl_value list;
    *items = NULL;
    *count = 0;
    switch ((enum walsh_tpl_type)v->type) {
    case TPL_UNDEFINED:
        return WALSH_OK;
    case TPL_ARRAY:
    case TPL_VIEW:
        *items = v->u.list->items;
        *count = v->u.list->count;
        return WALSH_OK;
    case TPL_ITERATOR:
        *items = v->u.list->items + v->u.list->taken;
        *count = v->u.list->count - v->u.list->taken;
        v->u.list->taken = v->u.list->count;
        return WALSH_OK;
    case TPL_TEXT:
        WALSH_TRY(characters_of(run, v->u.text, &list));
        break;
    case TPL_OBJECT:
        WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, v->u.dict->count, &list));
        for (size_t i = 0; i < v->u.dict->count; i++) list.u.list->items[i] = v->u.dict->pairs[i].key;
        break;
    default:
        return TPL_FAIL(run, "a %s has no items to go through", walsh_tpl_type_name(v));
    }
    *items = list.u.list->items;
    *count = list.u.list->count;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_length(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, size_t *out)
{
    *out = 0;
    switch ((enum walsh_tpl_type)v->type) {
    case TPL_UNDEFINED:
        return WALSH_OK;
    case TPL_TEXT:
        *out = walsh_tpl_characters(v->u.text);
        return walsh_tpl_spend(run, v->u.text.size / 64);
    case TPL_ARRAY:
    case TPL_VIEW:
        *out = v->u.list->count;
        return WALSH_OK;
    case TPL_OBJECT:
        *out = v->u.dict->count;
        return WALSH_OK;
    default:
        return TPL_FAIL(run, "a %s has no length", walsh_tpl_type_name(v));
    }
}

enum walsh_status walsh_tpl_contains(struct walsh_tpl_run *run, const struct walsh_tpl_value *container,
                                     const struct walsh_tpl_value *item, bool *out)
{
    *out = false;
    if (container->type == TPL_TEXT) {
        if (item->type != TPL_TEXT)
            return TPL_FAIL(run, "a %s in a text, expected a text", walsh_tpl_type_name(item));
        WALSH_TRY(walsh_tpl_spend(run, container->u.text.size / 64));
        *out = walsh_tpl_text_contains(container->u.text, item->u.text);
        return WALSH_OK;
    }
    if (container->type == TPL_OBJECT) {
        WALSH_TRY(walsh_tpl_spend(run, container->u.dict->count / 16));
        *out = walsh_tpl_dict_get(run, container->u.dict, item) != NULL;
        return WALSH_OK;
    }
    struct walsh_tpl_value *items;
    size_t count;
    WALSH_TRY(walsh_tpl_items(run, container, &items, &count));
    WALSH_TRY(walsh_tpl_spend(run, count / 16));
    for (size_t i = 0; i < count && !*out; i++) *out = walsh_tpl_equal(run, &items[i], item);
    return WALSH_OK;
}

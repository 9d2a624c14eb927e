/* Attributes and items of values, methods of containers, global functions. What Jinja's sandbox keeps out
 * (names with an underscore in front, methods that change what they are called on) does not exist here. */
#include <string.h>

#include "text/template_internal.h"

#define MAX_RANGE 100000 /* items, as the sandbox allows */

enum {
    METHOD_ITEMS = 64,
    METHOD_KEYS,
    METHOD_VALUES,
    METHOD_GET,
    METHOD_INDEX,
    METHOD_COUNT,
    METHOD_COPY,
    METHOD_CYCLE,
    METHOD_CHANGED
}; /* below: of str */
enum { VIEW_KEYS, VIEW_VALUES, VIEW_ITEMS };
enum { FUNCTION_RANGE, FUNCTION_DICT, FUNCTION_NAMESPACE, FUNCTION_RAISE, FUNCTION_NOW, FUNCTIONS };
static const char *const function_names[FUNCTIONS] = {"range", "dict", "namespace", "raise_exception",
                                                      "strftime_now"};

static enum walsh_status bind(struct walsh_tpl_run *run, const struct walsh_tpl_value *self, int method,
                              struct walsh_tpl_value *out)
{
    struct walsh_tpl_value *copy;
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof *copy, &copy));
    *copy = *self;
    *out = (struct walsh_tpl_value){.type = TPL_METHOD, .aux = (uint8_t)method, .u.self = copy};
    return WALSH_OK;
}

/* The number of a method that values of this type have, or -1. */
static int find_method(const struct walsh_tpl_value *v, struct walsh_tpl_text name)
{
    static const struct {
        enum walsh_tpl_type type;
        const char *name;
        int method;
    } methods[] = {
        {TPL_OBJECT, "items", METHOD_ITEMS},     {TPL_OBJECT, "keys", METHOD_KEYS},
        {TPL_OBJECT, "values", METHOD_VALUES},   {TPL_OBJECT, "get", METHOD_GET},
        {TPL_OBJECT, "copy", METHOD_COPY},       {TPL_ARRAY, "index", METHOD_INDEX},
        {TPL_ARRAY, "count", METHOD_COUNT},      {TPL_ARRAY, "copy", METHOD_COPY},
        {TPL_LOOP_VALUE, "cycle", METHOD_CYCLE}, {TPL_LOOP_VALUE, "changed", METHOD_CHANGED},
    };
    if (v->type == TPL_TEXT) return walsh_tpl_text_method(name);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (methods[i].type == v->type && walsh_tpl_text_is(name, methods[i].name)) return methods[i].method;
    return -1;
}

/* Methods that Python's types have and the sandbox does not let a template call. */
static bool forbidden_method(const struct walsh_tpl_value *v, struct walsh_tpl_text name)
{
    static const char *const lists[] = {"append", "clear",   "extend", "insert", "pop",
                                        "remove", "reverse", "sort",   NULL};
    static const char *const dicts[] = {"clear", "pop", "popitem", "setdefault", "update", NULL};
    const char *const *names = v->type == TPL_ARRAY && !v->aux ? lists : v->type == TPL_OBJECT ? dicts : NULL;
    for (; names && *names; names++)
        if (walsh_tpl_text_is(name, *names)) return true;
    return false;
}

static bool loop_attribute(const struct walsh_tpl_loop *l, struct walsh_tpl_text name,
                           struct walsh_tpl_value *out)
{
    const int64_t index = (int64_t)l->index, count = (int64_t)l->count;
    const struct {
        const char *name;
        struct walsh_tpl_value value;
    } attributes[] = {
        {"index", walsh_tpl_int(index + 1)},
        {"index0", walsh_tpl_int(index)},
        {"revindex", walsh_tpl_int(count - index)},
        {"revindex0", walsh_tpl_int(count - index - 1)},
        {"first", walsh_tpl_bool(index == 0)},
        {"last", walsh_tpl_bool(index + 1 == count)},
        {"length", walsh_tpl_int(count)},
        {"depth", walsh_tpl_int((int64_t)l->depth + 1)},
        {"depth0", walsh_tpl_int((int64_t)l->depth)},
        {"previtem", index > 0 ? l->items[index - 1] : walsh_tpl_undefined(name)},
        {"nextitem", index + 1 < count ? l->items[index + 1] : walsh_tpl_undefined(name)},
    };
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        if (!walsh_tpl_text_is(name, attributes[i].name)) continue;
        *out = attributes[i].value;
        return true;
    }
    return false;
}

static enum walsh_status is_undefined(struct walsh_tpl_run *run, const struct walsh_tpl_value *v)
{
    return TPL_FAIL(run, "\"%.*s\" is undefined", (int)walsh_min(v->u.text.size, 60), v->u.text.data);
}

enum walsh_status walsh_tpl_attribute(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      struct walsh_tpl_text name, struct walsh_tpl_value *out)
{
    if (v->type == TPL_UNDEFINED) return is_undefined(run, v);
    if (v->type == TPL_LOOP_VALUE && loop_attribute(v->u.loop, name, out)) return WALSH_OK;
    const int method = find_method(v, name);
    if (method >= 0) return bind(run, v, method, out);
    if (name.size >= 2 && name.data[0] == '_' && name.data[1] == '_')
        return TPL_FAIL(run, "the attribute \"%.*s\" is out of reach for a template",
                        (int)walsh_min(name.size, 60), name.data);
    const struct walsh_tpl_value *member = NULL;
    if (forbidden_method(v, name))
        return TPL_FAIL(run, "the method \"%.*s\" changes its %s, which templates may not do", (int)name.size,
                        name.data, walsh_tpl_type_name(v));
    if (v->type == TPL_OBJECT || v->type == TPL_NAMESPACE) member = walsh_tpl_dict_text(run, v->u.dict, name);
    if (v->type == TPL_MACRO_VALUE && walsh_tpl_text_is(name, "name")) {
        *out = walsh_tpl_string(v->u.macro->node->text.data, v->u.macro->node->text.size);
        return WALSH_OK;
    }
    *out = member ? *member : walsh_tpl_undefined(name);
    return WALSH_OK;
}

static enum walsh_status item_at(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, int64_t index,
                                 struct walsh_tpl_value *out)
{
    static const struct walsh_tpl_text what = {"an item", 7};
    size_t length;
    *out = walsh_tpl_undefined(what);
    WALSH_TRY(walsh_tpl_length(run, v, &length));
    if (index < 0) index += (int64_t)length;
    if (index < 0 || index >= (int64_t)length) return WALSH_OK;
    if (v->type == TPL_TEXT) return walsh_tpl_slice_text(run, v->u.text, index, 1, 1, out);
    *out = v->u.list->items[index];
    return WALSH_OK;
}

enum walsh_status walsh_tpl_item(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                 const struct walsh_tpl_value *key, struct walsh_tpl_value *out)
{
    static const struct walsh_tpl_text what = {"an item", 7};
    if (v->type == TPL_UNDEFINED) return is_undefined(run, v);
    if (v->type == TPL_OBJECT) {
        const struct walsh_tpl_value *member = walsh_tpl_dict_get(run, v->u.dict, key);
        if (member) {
            *out = *member;
            return WALSH_OK;
        }
    }
    if ((v->type == TPL_ARRAY || v->type == TPL_TEXT) && (key->type == TPL_INT || key->type == TPL_BOOL))
        return item_at(run, v, key->type == TPL_INT ? key->u.integer : key->u.boolean, out);
    *out = walsh_tpl_undefined(key->type == TPL_TEXT ? key->u.text : what);
    return key->type == TPL_TEXT ? walsh_tpl_attribute(run, v, key->u.text, out) : WALSH_OK;
}

static enum walsh_status bound(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, int64_t otherwise,
                               int64_t *out)
{
    *out = otherwise;
    if (!v || v->type == TPL_NONE) return WALSH_OK;
    if (v->type != TPL_INT) return TPL_FAIL(run, "a slice by a %s, expected an int", walsh_tpl_type_name(v));
    *out = v->u.integer;
    return WALSH_OK;
}

/* An end of a slice of `length` items as Python takes it: negative ones count from the end, and it stays
 * within. */
static int64_t clamp_bound(int64_t at, int64_t length, bool backwards)
{
    if (at < 0) at = at < -length ? -1 : at + length;
    if (at < 0) return backwards ? -1 : 0;
    if (at >= length) return backwards ? length - 1 : length;
    return at;
}

enum walsh_status walsh_tpl_slice(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                  const struct walsh_tpl_value *start, const struct walsh_tpl_value *stop,
                                  const struct walsh_tpl_value *step, struct walsh_tpl_value *out)
{
    size_t length;
    int64_t from, to, by;
    if (v->type == TPL_UNDEFINED) return is_undefined(run, v);
    if (v->type != TPL_TEXT && v->type != TPL_ARRAY) {
        static const struct walsh_tpl_text what = {"a slice", 7};
        *out = walsh_tpl_undefined(what);
        return WALSH_OK;
    }
    WALSH_TRY(walsh_tpl_length(run, v, &length));
    WALSH_TRY(bound(run, step, 1, &by));
    if (by == 0) return TPL_FAIL(run, "a slice by steps of 0");
    const int64_t n = (int64_t)length;
    if (by > n) by = n + 1; /* one item at most */
    if (by < -n) by = -n - 1;
    WALSH_TRY(bound(run, start, by > 0 ? 0 : n, &from));
    WALSH_TRY(bound(run, stop, by > 0 ? n : -n - 1, &to));
    from = clamp_bound(from, n, by < 0);
    to = clamp_bound(to, n, by < 0);
    int64_t count = by > 0 ? (to - from + by - 1) / by : (from - to - by - 1) / -by;
    if (by > 0 ? to <= from : to >= from) count = 0;
    if (v->type == TPL_TEXT) return walsh_tpl_slice_text(run, v->u.text, from, count, by, out);
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, (size_t)count, out));
    out->aux = v->aux;
    for (int64_t i = 0; i < count; i++) out->u.list->items[i] = v->u.list->items[from + i * by];
    return WALSH_OK;
}

/* ---- calls ---- */

static enum walsh_status dict_view(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict, int which,
                                   struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_new_list(run, TPL_VIEW, dict->count, out));
    out->aux = (uint8_t)which;
    for (size_t i = 0; i < dict->count; i++) {
        struct walsh_tpl_value *item = &out->u.list->items[i];
        if (which != VIEW_ITEMS) {
            *item = which == VIEW_KEYS ? dict->pairs[i].key : dict->pairs[i].value;
            continue;
        }
        WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, 2, item));
        item->aux = 1;
        item->u.list->items[0] = dict->pairs[i].key;
        item->u.list->items[1] = dict->pairs[i].value;
    }
    return WALSH_OK;
}

static enum walsh_status call_get(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                  const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    if (arguments->count < 1 || arguments->count > 2 || arguments->keyword_count)
        return TPL_FAIL(run, "get: expected one or two arguments");
    const struct walsh_tpl_value *member = walsh_tpl_dict_get(run, dict, &arguments->values[0]);
    *out = member ? *member : arguments->count > 1 ? arguments->values[1] : walsh_tpl_none();
    return WALSH_OK;
}

/* list.index and list.count */
static enum walsh_status find_items(struct walsh_tpl_run *run, const struct walsh_tpl_list *list,
                                    const struct walsh_tpl_arguments *arguments, bool first,
                                    struct walsh_tpl_value *out)
{
    int64_t count = 0;
    if (arguments->count != 1) return TPL_FAIL(run, "index, count: expected one argument");
    for (size_t i = 0; i < list->count; i++) {
        if (!walsh_tpl_equal(run, &list->items[i], &arguments->values[0])) continue;
        count++;
        *out = walsh_tpl_int((int64_t)i);
        if (first) return WALSH_OK;
    }
    *out = walsh_tpl_int(count);
    return first ? TPL_FAIL(run, "index: the value is not in the list") : WALSH_OK;
}

static enum walsh_status call_changed(struct walsh_tpl_run *run, struct walsh_tpl_loop *loop,
                                      const struct walsh_tpl_arguments *arguments,
                                      struct walsh_tpl_value *out)
{
    bool same = loop->changed && loop->changed_count == arguments->count;
    for (size_t i = 0; same && i < arguments->count; i++)
        same = walsh_tpl_equal(run, &loop->changed[i], &arguments->values[i]);
    loop->changed = arguments->values;
    loop->changed_count = arguments->count;
    *out = walsh_tpl_bool(!same);
    return WALSH_OK;
}

static enum walsh_status copy_dict(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                   struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_new_dict(run, TPL_OBJECT, dict->count, out));
    memcpy(out->u.dict->pairs, dict->pairs, dict->count * sizeof *dict->pairs);
    out->u.dict->count = dict->count;
    return walsh_tpl_spend(run, dict->count);
}

enum walsh_status walsh_tpl_call_method(struct walsh_tpl_run *run, const struct walsh_tpl_value *method,
                                        const struct walsh_tpl_arguments *arguments,
                                        struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *self = method->u.self;
    switch (method->aux) {
    case METHOD_ITEMS:
        return dict_view(run, self->u.dict, VIEW_ITEMS, out);
    case METHOD_KEYS:
        return dict_view(run, self->u.dict, VIEW_KEYS, out);
    case METHOD_VALUES:
        return dict_view(run, self->u.dict, VIEW_VALUES, out);
    case METHOD_GET:
        return call_get(run, self->u.dict, arguments, out);
    case METHOD_INDEX:
    case METHOD_COUNT:
        return find_items(run, self->u.list, arguments, method->aux == METHOD_INDEX, out);
    case METHOD_COPY:
        if (self->type == TPL_OBJECT) return copy_dict(run, self->u.dict, out);
        *out = *self; /* nothing can change it */
        return WALSH_OK;
    case METHOD_CYCLE:
        if (arguments->count == 0) return TPL_FAIL(run, "cycle: expected arguments");
        *out = arguments->values[self->u.loop->index % arguments->count];
        return WALSH_OK;
    case METHOD_CHANGED:
        return call_changed(run, self->u.loop, arguments, out);
    default:
        return walsh_tpl_call_text_method(run, method->aux, self->u.text, arguments, out);
    }
}

bool walsh_tpl_find_function(struct walsh_tpl_text name, struct walsh_tpl_value *out)
{
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        if (!walsh_tpl_text_is(name, function_names[i])) continue;
        *out = (struct walsh_tpl_value){.type = TPL_FUNCTION, .aux = (uint8_t)i};
        return true;
    }
    return false;
}

static enum walsh_status call_range(struct walsh_tpl_run *run, const struct walsh_tpl_arguments *arguments,
                                    struct walsh_tpl_value *out)
{
    int64_t bounds[3] = {0, 0, 1}, count = 0;
    if (arguments->count < 1 || arguments->count > 3)
        return TPL_FAIL(run, "range: expected 1 to 3 arguments");
    for (size_t i = 0; i < arguments->count; i++) {
        const struct walsh_tpl_value *v = &arguments->values[i];
        if (v->type != TPL_INT && v->type != TPL_BOOL)
            return TPL_FAIL(run, "range: argument %zu is a %s, expected an int", i + 1,
                            walsh_tpl_type_name(v));
        bounds[arguments->count == 1 ? 1 : i] = v->type == TPL_INT ? v->u.integer : v->u.boolean;
    }
    if (bounds[2] == 0) return TPL_FAIL(run, "range: steps of 0");
    for (int64_t at = bounds[0]; bounds[2] > 0 ? at < bounds[1] : at > bounds[1]; count++) {
        if (count == MAX_RANGE)
            return walsh_fail(run->err, WALSH_E_CAPACITY, "range: more than %d items", MAX_RANGE);
        if (__builtin_add_overflow(at, bounds[2], &at)) {
            count++;
            break;
        }
    }
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, (size_t)count, out));
    for (int64_t i = 0; i < count; i++) out->u.list->items[i] = walsh_tpl_int(bounds[0] + i * bounds[2]);
    return WALSH_OK;
}

/* dict(...) and namespace(...): a mapping to begin with, and keywords. */
static enum walsh_status call_dict(struct walsh_tpl_run *run, bool name_space,
                                   const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    WALSH_TRY(
        walsh_tpl_new_dict(run, name_space ? TPL_NAMESPACE : TPL_OBJECT, arguments->keyword_count, out));
    struct walsh_tpl_dict *dict = out->u.dict;
    if (arguments->count > 1) return TPL_FAIL(run, "dict: expected one argument at most");
    if (arguments->count == 1 && arguments->values[0].type == TPL_OBJECT) {
        const struct walsh_tpl_dict *from = arguments->values[0].u.dict;
        for (size_t i = 0; i < from->count; i++)
            WALSH_TRY(walsh_tpl_dict_set(run, dict, from->pairs[i].key, from->pairs[i].value));
    } else if (arguments->count == 1) {
        struct walsh_tpl_value *items;
        size_t count;
        WALSH_TRY(walsh_tpl_items(run, &arguments->values[0], &items, &count));
        for (size_t i = 0; i < count; i++) {
            if (items[i].type != TPL_ARRAY || items[i].u.list->count != 2)
                return TPL_FAIL(run, "dict: item %zu is not a pair", i);
            WALSH_TRY(walsh_tpl_dict_set(run, dict, items[i].u.list->items[0], items[i].u.list->items[1]));
        }
    }
    for (size_t i = 0; i < arguments->keyword_count; i++)
        WALSH_TRY(walsh_tpl_dict_set(run, dict, arguments->keywords[i].key, arguments->keywords[i].value));
    for (size_t i = 0; name_space && i < dict->count; i++) {
        const struct walsh_tpl_value *key = &dict->pairs[i].key;
        if (key->type == TPL_TEXT && key->u.text.size && key->u.text.data[0] == '_')
            return TPL_FAIL(run, "a namespace has no attributes with an underscore in front");
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_call_function(struct walsh_tpl_run *run, unsigned function,
                                          const struct walsh_tpl_arguments *arguments,
                                          struct walsh_tpl_value *out)
{
    struct walsh_tpl_value text;
    if (function == FUNCTION_RANGE) return call_range(run, arguments, out);
    if (function == FUNCTION_DICT || function == FUNCTION_NAMESPACE)
        return call_dict(run, function == FUNCTION_NAMESPACE, arguments, out);
    const struct walsh_tpl_value *argument =
        walsh_tpl_argument(arguments, 0, function == FUNCTION_NOW ? "format" : "message");
    if (!argument) return TPL_FAIL(run, "%s: expected an argument", function_names[function]);
    if (function == FUNCTION_NOW) {
        if (argument->type != TPL_TEXT) return TPL_FAIL(run, "strftime_now: expected a text");
        return walsh_tpl_strftime(run, argument->u.text, out);
    }
    WALSH_TRY(walsh_tpl_to_text(run, argument, &text));
    return walsh_fail(run->err, WALSH_E_ARGUMENT, "%.*s", (int)walsh_min(text.u.text.size, 800),
                      text.u.text.data);
}

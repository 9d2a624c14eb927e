/* Filters of sequences. */
#include <string.h>

#include "text/template_filters.h"

static enum walsh_status filter_length(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    size_t length;
    WALSH_TRY(walsh_tpl_length(run, v, &length));
    *out = walsh_tpl_int((int64_t)length);
    return WALSH_OK;
}

/* item.part.part...: parts of digits are indices. */
static enum walsh_status get_path(struct walsh_tpl_run *run, const struct walsh_tpl_value *item,
                                  const struct walsh_tpl_value *path, struct walsh_tpl_value *out)
{
    *out = *item;
    if (path->type == TPL_INT) return walsh_tpl_item(run, item, path, out);
    if (path->type != TPL_TEXT)
        return TPL_FAIL(run, "an attribute's name is a %s, expected a text", walsh_tpl_type_name(path));
    const struct walsh_tpl_text text = path->u.text;
    for (size_t begin = 0, end; begin <= text.size; begin = end + 1) {
        const char *dot = begin < text.size ? memchr(text.data + begin, '.', text.size - begin) : NULL;
        end = dot ? (size_t)(dot - text.data) : text.size;
        struct walsh_tpl_value key = walsh_tpl_string(text.data + begin, end - begin), from = *out;
        int64_t index = 0;
        bool digits = end > begin && end - begin < 10;
        for (size_t i = begin; digits && i < end; i++) {
            digits = text.data[i] >= '0' && text.data[i] <= '9';
            index = index * 10 + (text.data[i] - '0');
        }
        if (digits) key = walsh_tpl_int(index);
        WALSH_TRY(walsh_tpl_item(run, &from, &key, out));
    }
    return WALSH_OK;
}

/* The values that a list is sorted or compared by: the items, or an attribute of each; texts in lower case
 * unless told. */
static enum walsh_status make_keys(struct walsh_tpl_run *run, const struct walsh_tpl_value *items,
                                   size_t count, const struct walsh_tpl_value *attribute, bool case_sensitive,
                                   struct walsh_tpl_value *keys)
{
    if (attribute && attribute->type == TPL_NONE) attribute = NULL;
    for (size_t i = 0; i < count; i++) {
        struct walsh_tpl_value key = items[i];
        if (attribute) WALSH_TRY(get_path(run, &items[i], attribute, &key));
        keys[i] = key;
        if (key.type == TPL_TEXT && !case_sensitive)
            WALSH_TRY(walsh_tpl_change_case(run, key.u.text, TPL_LOWER, &keys[i]));
    }
    return WALSH_OK;
}

static bool flag(const struct walsh_tpl_arguments *a, size_t i, const char *name)
{
    const struct walsh_tpl_value *v = walsh_tpl_argument(a, i, name);
    return v && walsh_tpl_truth(v);
}

/* Items in the order of their keys, equal ones as they were, by insertion: conversations are short, and the
 * steps are counted. */
static enum walsh_status sort_items(struct walsh_tpl_run *run, struct walsh_tpl_value *items,
                                    struct walsh_tpl_value *keys, size_t count, bool reverse)
{
    for (size_t i = 1; i < count; i++) {
        const struct walsh_tpl_value item = items[i], key = keys[i];
        size_t at = i;
        for (; at > 0; at--) {
            int order;
            WALSH_TRY(walsh_tpl_order(run, &keys[at - 1], &key, &order));
            if (reverse ? order >= 0 : order <= 0 || order == 2) break;
            items[at] = items[at - 1];
            keys[at] = keys[at - 1];
        }
        items[at] = item;
        keys[at] = key;
    }
    return WALSH_OK;
}

static enum walsh_status copy_items(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    enum walsh_tpl_type type, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value *items;
    size_t count;
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    WALSH_TRY(walsh_tpl_new_list(run, type, count, out));
    if (count) memcpy(out->u.list->items, items, count * sizeof *items);
    return WALSH_OK;
}

static enum walsh_status filter_list(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return copy_items(run, v, TPL_ARRAY, out);
}

static enum walsh_status filter_sort(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value keys;
    WALSH_TRY(copy_items(run, v, TPL_ARRAY, out));
    struct walsh_tpl_list *list = out->u.list;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, list->count, &keys));
    WALSH_TRY(make_keys(run, list->items, list->count, walsh_tpl_argument(a, 2, "attribute"),
                        flag(a, 1, "case_sensitive"), keys.u.list->items));
    return sort_items(run, list->items, keys.u.list->items, list->count, flag(a, 0, "reverse"));
}

static enum walsh_status pairs_of(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                  enum walsh_tpl_type type, struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_new_list(run, type, dict->count, out));
    for (size_t i = 0; i < dict->count; i++) {
        struct walsh_tpl_value *pair = &out->u.list->items[i];
        WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, 2, pair));
        pair->aux = 1;
        pair->u.list->items[0] = dict->pairs[i].key;
        pair->u.list->items[1] = dict->pairs[i].value;
    }
    return WALSH_OK;
}

static enum walsh_status filter_dictsort(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                         const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *by = walsh_tpl_argument(a, 1, "by");
    struct walsh_tpl_value keys, position = walsh_tpl_int(0);
    if (v->type != TPL_OBJECT) return TPL_FAIL(run, "dictsort of a %s", walsh_tpl_type_name(v));
    if (by && by->type == TPL_TEXT && walsh_tpl_text_is(by->u.text, "value")) position.u.integer = 1;
    WALSH_TRY(pairs_of(run, v->u.dict, TPL_ARRAY, out));
    struct walsh_tpl_list *list = out->u.list;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, list->count, &keys));
    WALSH_TRY(make_keys(run, list->items, list->count, &position, flag(a, 0, "case_sensitive"),
                        keys.u.list->items));
    return sort_items(run, list->items, keys.u.list->items, list->count, flag(a, 2, "reverse"));
}

static enum walsh_status filter_items(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    if (v->type == TPL_UNDEFINED) return walsh_tpl_new_list(run, TPL_ITERATOR, 0, out);
    if (v->type != TPL_OBJECT) return TPL_FAIL(run, "items of a %s", walsh_tpl_type_name(v));
    return pairs_of(run, v->u.dict, TPL_ITERATOR, out);
}

static enum walsh_status filter_join(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *between = walsh_tpl_argument(a, 0, "d"),
                                 *attribute = walsh_tpl_argument(a, 1, "attribute");
    struct walsh_tpl_value separator = walsh_tpl_string("", 0), *items;
    size_t count;
    if (between) WALSH_TRY(walsh_tpl_to_text(run, between, &separator));
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    const size_t mark = run->out.size;
    for (size_t i = 0; i < count; i++) {
        struct walsh_tpl_value item = items[i];
        if (attribute && attribute->type != TPL_NONE) WALSH_TRY(get_path(run, &items[i], attribute, &item));
        if (i) WALSH_TRY(walsh_tpl_put(run, separator.u.text.data, separator.u.text.size));
        WALSH_TRY(walsh_tpl_print(run, &item));
        WALSH_TRY(walsh_tpl_spend(run, 1));
    }
    return walsh_tpl_take(run, mark, out);
}

/* The arguments behind the first `n`. */
static struct walsh_tpl_arguments behind(const struct walsh_tpl_arguments *a, size_t n)
{
    struct walsh_tpl_arguments rest = *a;
    rest.values += walsh_min(n, a->count);
    rest.count -= walsh_min(n, a->count);
    return rest;
}

static enum walsh_status filter_map(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *name = a->count ? &a->values[0] : NULL,
                                 *attribute = name ? NULL : walsh_tpl_argument(a, 9, "attribute"),
                                 *otherwise = walsh_tpl_argument(a, 9, "default");
    const struct walsh_tpl_arguments rest = behind(a, 1);
    if (!attribute && (!name || name->type != TPL_TEXT))
        return TPL_FAIL(run, "map: expected the name of a filter, or attribute=");
    struct walsh_tpl_value items;
    WALSH_TRY(copy_items(run, v, TPL_ITERATOR, &items));
    *out = items;
    for (size_t i = 0; i < items.u.list->count; i++) {
        struct walsh_tpl_value *item = &items.u.list->items[i], result;
        if (attribute) {
            WALSH_TRY(get_path(run, item, attribute, &result));
            if (result.type == TPL_UNDEFINED && otherwise) result = *otherwise;
        } else {
            WALSH_TRY(walsh_tpl_filter(run, name->u.text, item, &rest, &result));
        }
        *item = result;
    }
    return WALSH_OK;
}

/* select, reject, selectattr, rejectattr: items for which a test (or the truth) of the item or of its
 * attribute is `wanted`. */
static enum walsh_status choose(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                const struct walsh_tpl_arguments *a, bool by_attribute, bool wanted,
                                struct walsh_tpl_value *out)
{
    const size_t at = by_attribute;
    if (by_attribute && a->count == 0) return TPL_FAIL(run, "selectattr: expected an attribute's name");
    const struct walsh_tpl_value *test = a->count > at ? &a->values[at] : NULL;
    if (test && test->type != TPL_TEXT) return TPL_FAIL(run, "select: expected the name of a test");
    const struct walsh_tpl_arguments rest = behind(a, at + 1);
    struct walsh_tpl_value *items, key;
    size_t count, kept = 0;
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ITERATOR, count, out));
    for (size_t i = 0; i < count; i++) {
        bool passes;
        key = items[i];
        if (by_attribute) WALSH_TRY(get_path(run, &items[i], &a->values[0], &key));
        if (test)
            WALSH_TRY(walsh_tpl_test(run, test->u.text, &key, &rest, &passes));
        else
            passes = walsh_tpl_truth(&key);
        if (passes == wanted) out->u.list->items[kept++] = items[i];
    }
    out->u.list->count = kept;
    return WALSH_OK;
}

static enum walsh_status filter_select(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return choose(run, v, a, false, true, out);
}

static enum walsh_status filter_reject(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return choose(run, v, a, false, false, out);
}

static enum walsh_status filter_selectattr(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                           const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return choose(run, v, a, true, true, out);
}

static enum walsh_status filter_rejectattr(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                           const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return choose(run, v, a, true, false, out);
}

static enum walsh_status one_end(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, bool last,
                                 struct walsh_tpl_value *out)
{
    static const struct walsh_tpl_text what = {"an item of an empty sequence", 28};
    struct walsh_tpl_value *items;
    size_t count;
    if (v->type == TPL_ITERATOR && !last) { /* takes one item */
        struct walsh_tpl_list *list = v->u.list;
        *out = list->taken < list->count ? list->items[list->taken++] : walsh_tpl_undefined(what);
        return WALSH_OK;
    }
    if (v->type == TPL_ITERATOR || (v->type == TPL_UNDEFINED && last))
        return TPL_FAIL(run, "last of a %s", walsh_tpl_type_name(v));
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    *out = count ? items[last ? count - 1 : 0] : walsh_tpl_undefined(what);
    return WALSH_OK;
}

static enum walsh_status filter_first(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return one_end(run, v, false, out);
}

static enum walsh_status filter_last(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return one_end(run, v, true, out);
}

static enum walsh_status filter_reverse(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                        const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    const struct walsh_tpl_value minus_one = walsh_tpl_int(-1);
    if (v->type == TPL_TEXT) return walsh_tpl_slice(run, v, NULL, NULL, &minus_one, out);
    struct walsh_tpl_value *items;
    size_t count;
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ITERATOR, count, out));
    for (size_t i = 0; i < count; i++) out->u.list->items[i] = items[count - 1 - i];
    return WALSH_OK;
}

static enum walsh_status filter_unique(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value keys;
    WALSH_TRY(copy_items(run, v, TPL_ITERATOR, out));
    struct walsh_tpl_list *list = out->u.list;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, list->count, &keys));
    struct walsh_tpl_value *k = keys.u.list->items;
    WALSH_TRY(make_keys(run, list->items, list->count, walsh_tpl_argument(a, 1, "attribute"),
                        flag(a, 0, "case_sensitive"), k));
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        bool known = false;
        for (size_t j = 0; j < kept && !known; j++) known = walsh_tpl_equal(run, &k[j], &k[i]);
        WALSH_TRY(walsh_tpl_spend(run, 1));
        if (known) continue;
        k[kept] = k[i];
        list->items[kept++] = list->items[i];
    }
    list->count = kept;
    return WALSH_OK;
}

static enum walsh_status filter_sum(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *attribute = walsh_tpl_argument(a, 0, "attribute"),
                                 *start = walsh_tpl_argument(a, 1, "start");
    struct walsh_tpl_value *items, total = start ? *start : walsh_tpl_int(0);
    size_t count;
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    for (size_t i = 0; i < count; i++) {
        struct walsh_tpl_value item = items[i], before = total;
        if (attribute && attribute->type != TPL_NONE) WALSH_TRY(get_path(run, &items[i], attribute, &item));
        WALSH_TRY(walsh_tpl_binary(run, TPL_ADD, &before, &item, &total));
    }
    *out = total;
    return WALSH_OK;
}

static enum walsh_status extreme(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                 const struct walsh_tpl_arguments *a, int sign, struct walsh_tpl_value *out)
{
    static const struct walsh_tpl_text what = {"an item of an empty sequence", 28};
    struct walsh_tpl_value list, keys;
    WALSH_TRY(copy_items(run, v, TPL_ARRAY, &list));
    const size_t count = list.u.list->count;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, count, &keys));
    WALSH_TRY(make_keys(run, list.u.list->items, count, walsh_tpl_argument(a, 1, "attribute"),
                        flag(a, 0, "case_sensitive"), keys.u.list->items));
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        int order;
        WALSH_TRY(walsh_tpl_order(run, &keys.u.list->items[i], &keys.u.list->items[best], &order));
        if (order != 2 && order * sign > 0) best = i;
    }
    *out = count ? list.u.list->items[best] : walsh_tpl_undefined(what);
    return WALSH_OK;
}

static enum walsh_status filter_max(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return extreme(run, v, a, 1, out);
}

static enum walsh_status filter_min(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return extreme(run, v, a, -1, out);
}

/* Lists of n items; with `fill` the last one too. */
static enum walsh_status filter_batch(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *size = walsh_tpl_argument(a, 0, "linecount"),
                                 *fill = walsh_tpl_argument(a, 1, "fill_with");
    struct walsh_tpl_value *items;
    size_t count;
    if (!size || size->type != TPL_INT || size->u.integer < 1 || size->u.integer > 1000000)
        return TPL_FAIL(run, "batch: expected a number of items");
    if (fill && fill->type == TPL_NONE) fill = NULL;
    const size_t n = (size_t)size->u.integer;
    WALSH_TRY(walsh_tpl_items(run, v, &items, &count));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ITERATOR, walsh_div_up(count, n), out));
    for (size_t i = 0; i < out->u.list->count; i++) {
        struct walsh_tpl_value *part = &out->u.list->items[i];
        const size_t here = walsh_min(n, count - i * n);
        WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, fill ? n : here, part));
        for (size_t j = 0; j < part->u.list->count; j++)
            part->u.list->items[j] = j < here ? items[i * n + j] : *fill;
    }
    return WALSH_OK;
}

static enum walsh_status filter_attr(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *name = walsh_tpl_argument(a, 0, "name");
    if (!name || name->type != TPL_TEXT) return TPL_FAIL(run, "attr: expected a name");
    if (v->type != TPL_OBJECT) return walsh_tpl_attribute(run, v, name->u.text, out);
    *out = walsh_tpl_undefined(name->u.text); /* keys are no attributes */
    return WALSH_OK;
}

const struct walsh_tpl_filter walsh_tpl_sequence_filters[] = {
    {"length", filter_length},
    {"count", filter_length},
    {"list", filter_list},
    {"join", filter_join},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
    {"first", filter_first},
    {"last", filter_last},
    {"sort", filter_sort},
    {"dictsort", filter_dictsort},
    {"items", filter_items},
    {"reverse", filter_reverse},
    {"unique", filter_unique},
    {"sum", filter_sum},
    {"max", filter_max},
    {"min", filter_min},
    {"batch", filter_batch},
    {"attr", filter_attr},
    {NULL, NULL},
};

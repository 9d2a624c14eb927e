/* How Python writes values: str for outputs, repr within containers, json.dumps for tojson. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "text/template_internal.h"
#include "text/utf8.h"

#define MAX_DEPTH 200

/* The fewest digits that read back as the same double (David Gay's rule, as Python's repr has it), as a point
 * number where 1e-4 <= |value| < 1e16 and with an exponent of two digits or more otherwise. */
enum walsh_status walsh_tpl_print_real(struct walsh_tpl_run *run, double value)
{
    char scientific[40], text[64];
    if (isnan(value)) return walsh_tpl_puts(run, "nan");
    if (isinf(value)) return walsh_tpl_puts(run, value > 0 ? "inf" : "-inf");
    int precision = 0;
    for (; precision < 17; precision++) {
        snprintf(scientific, sizeof scientific, "%.*e", precision, value);
        if (strtod(scientific, NULL) == value) break;
    }
    const int exponent = atoi(strchr(scientific, 'e') + 1);
    if (exponent < -4 || exponent >= 16) return walsh_tpl_puts(run, scientific);
    snprintf(text, sizeof text, "%.*f", precision > exponent ? precision - exponent : 0, value);
    if (!strchr(text, '.')) strcat(text, ".0");
    return walsh_tpl_puts(run, text);
}

static enum walsh_status print_int(struct walsh_tpl_run *run, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    return walsh_tpl_puts(run, text);
}

/* Python's str.isprintable. */
static bool printable(uint32_t c)
{
    if (c < 0x80) return c >= 0x20 && c < 0x7f;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static enum walsh_status repr_text(struct walsh_tpl_run *run, struct walsh_tpl_text text)
{
    const char quote = memchr(text.data, '\'', text.size) && !memchr(text.data, '"', text.size) ? '"' : '\'';
    WALSH_TRY(walsh_tpl_put(run, &quote, 1));
    for (size_t at = 0, step; at < text.size; at += step) {
        enum walsh_utf8 kind;
        const uint8_t *p = (const uint8_t *)text.data + at;
        step = walsh_utf8_step(p, text.size - at, &kind);
        const uint32_t c = walsh_utf8_decode(p);
        char escape[16] = "";
        if (c == (uint32_t)quote || c == '\\')
            snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t')
            snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (!printable(c))
            snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        WALSH_TRY(*escape ? walsh_tpl_puts(run, escape) : walsh_tpl_put(run, p, step));
    }
    return walsh_tpl_put(run, &quote, 1);
}

static enum walsh_status repr_list(struct walsh_tpl_run *run, const struct walsh_tpl_list *list,
                                   const char *open, const char *close, unsigned depth)
{
    WALSH_TRY(walsh_tpl_puts(run, open));
    for (size_t i = 0; i < list->count; i++) {
        if (i) WALSH_TRY(walsh_tpl_puts(run, ", "));
        WALSH_TRY(walsh_tpl_repr(run, &list->items[i], depth + 1));
    }
    if (*open == '(' && list->count == 1) WALSH_TRY(walsh_tpl_puts(run, ","));
    return walsh_tpl_puts(run, close);
}

static enum walsh_status repr_dict(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                   unsigned depth)
{
    WALSH_TRY(walsh_tpl_puts(run, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) WALSH_TRY(walsh_tpl_puts(run, ", "));
        WALSH_TRY(walsh_tpl_repr(run, &dict->pairs[i].key, depth + 1));
        WALSH_TRY(walsh_tpl_puts(run, ": "));
        WALSH_TRY(walsh_tpl_repr(run, &dict->pairs[i].value, depth + 1));
    }
    return walsh_tpl_puts(run, "}");
}

enum walsh_status walsh_tpl_repr(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, unsigned depth)
{
    static const char *const views[] = {"dict_keys([", "dict_values([", "dict_items(["};
    WALSH_TRY(walsh_tpl_spend(run, 1));
    if (depth > MAX_DEPTH) return walsh_fail(run->err, WALSH_E_CAPACITY, "a value is nested too deeply");
    switch ((enum walsh_tpl_type)v->type) {
    case TPL_UNDEFINED:
        return walsh_tpl_puts(run, "Undefined");
    case TPL_NONE:
        return walsh_tpl_puts(run, "None");
    case TPL_BOOL:
        return walsh_tpl_puts(run, v->u.boolean ? "True" : "False");
    case TPL_INT:
        return print_int(run, v->u.integer);
    case TPL_REAL:
        return walsh_tpl_print_real(run, v->u.real);
    case TPL_TEXT:
        return repr_text(run, v->u.text);
    case TPL_ARRAY:
        return repr_list(run, v->u.list, v->aux ? "(" : "[", v->aux ? ")" : "]", depth);
    case TPL_VIEW:
        return repr_list(run, v->u.list, views[v->aux], "])", depth);
    case TPL_OBJECT:
        return repr_dict(run, v->u.dict, depth);
    case TPL_NAMESPACE:
        WALSH_TRY(walsh_tpl_puts(run, "<Namespace "));
        WALSH_TRY(repr_dict(run, v->u.dict, depth));
        return walsh_tpl_puts(run, ">");
    default:
        return TPL_FAIL(run, "a %s has no text", walsh_tpl_type_name(v));
    }
}

enum walsh_status walsh_tpl_print(struct walsh_tpl_run *run, const struct walsh_tpl_value *v)
{
    if (v->type == TPL_UNDEFINED) return WALSH_OK;
    if (v->type == TPL_TEXT) return walsh_tpl_put(run, v->u.text.data, v->u.text.size);
    return walsh_tpl_repr(run, v, 0);
}

enum walsh_status walsh_tpl_to_text(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    struct walsh_tpl_value *out)
{
    if (v->type == TPL_TEXT) {
        *out = *v;
        return WALSH_OK;
    }
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_print(run, v));
    return walsh_tpl_take(run, mark, out);
}

/* ---- json.dumps ---- */

static enum walsh_status json_text(struct walsh_tpl_run *run, struct walsh_tpl_text text, bool ascii)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    WALSH_TRY(walsh_tpl_put(run, "\"", 1));
    for (size_t at = 0, step; at < text.size; at += step) {
        enum walsh_utf8 kind;
        const uint8_t *p = (const uint8_t *)text.data + at;
        step = walsh_utf8_step(p, text.size - at, &kind);
        const uint32_t c = walsh_utf8_decode(p);
        const char *known = c && c < 0x80 ? strchr(escaped, (int)c) : NULL;
        char escape[16] = "";
        if (known)
            snprintf(escape, sizeof escape, "\\%c", names[known - escaped]);
        else if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000))
            snprintf(escape, sizeof escape, "\\u%04x", c);
        else if (ascii && c >= 0x10000)
            snprintf(escape, sizeof escape, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10),
                     0xdc00 + ((c - 0x10000) & 0x3ff));
        WALSH_TRY(*escape ? walsh_tpl_puts(run, escape) : walsh_tpl_put(run, p, step));
    }
    return walsh_tpl_put(run, "\"", 1);
}

static enum walsh_status json_break(struct walsh_tpl_run *run, const struct walsh_tpl_json_style *style,
                                    unsigned depth)
{
    if (!style->indent) return WALSH_OK;
    WALSH_TRY(walsh_tpl_put(run, "\n", 1));
    for (unsigned i = 0; i < depth; i++)
        WALSH_TRY(walsh_tpl_put(run, style->indent->data, style->indent->size));
    return WALSH_OK;
}

static enum walsh_status json_key(struct walsh_tpl_run *run, const struct walsh_tpl_value *key,
                                  const struct walsh_tpl_json_style *style)
{
    const bool scalar =
        key->type == TPL_NONE || key->type == TPL_BOOL || key->type == TPL_INT || key->type == TPL_REAL;
    if (key->type == TPL_TEXT) return json_text(run, key->u.text, style->ascii);
    if (!scalar) return TPL_FAIL(run, "tojson: a key is a %s", walsh_tpl_type_name(key));
    WALSH_TRY(walsh_tpl_puts(run, "\""));
    WALSH_TRY(walsh_tpl_json(run, key, style, 0));
    return walsh_tpl_puts(run, "\"");
}

/* The pairs in the order of their keys, by insertion: objects are small. */
static enum walsh_status sorted_pairs(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                      struct walsh_tpl_pair **out)
{
    WALSH_TRY(walsh_tpl_alloc(run, dict->count ? dict->count : 1, sizeof **out, out));
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        for (; at > 0; at--) {
            int order;
            WALSH_TRY(walsh_tpl_order(run, &(*out)[at - 1].key, &dict->pairs[i].key, &order));
            if (order <= 0) break;
            (*out)[at] = (*out)[at - 1];
        }
        (*out)[at] = dict->pairs[i];
    }
    return WALSH_OK;
}

static enum walsh_status json_dict(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                   const struct walsh_tpl_json_style *style, unsigned depth)
{
    const struct walsh_tpl_pair *pairs = dict->pairs;
    if (dict->count == 0) return walsh_tpl_puts(run, "{}");
    if (style->sort_keys) {
        struct walsh_tpl_pair *sorted;
        WALSH_TRY(sorted_pairs(run, dict, &sorted));
        pairs = sorted;
    }
    WALSH_TRY(walsh_tpl_puts(run, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        if (i) WALSH_TRY(walsh_tpl_put(run, style->comma.data, style->comma.size));
        WALSH_TRY(json_break(run, style, depth + 1));
        WALSH_TRY(json_key(run, &pairs[i].key, style));
        WALSH_TRY(walsh_tpl_put(run, style->colon.data, style->colon.size));
        WALSH_TRY(walsh_tpl_json(run, &pairs[i].value, style, depth + 1));
    }
    WALSH_TRY(json_break(run, style, depth));
    return walsh_tpl_puts(run, "}");
}

static enum walsh_status json_list(struct walsh_tpl_run *run, const struct walsh_tpl_list *list,
                                   const struct walsh_tpl_json_style *style, unsigned depth)
{
    if (list->count == 0) return walsh_tpl_puts(run, "[]");
    WALSH_TRY(walsh_tpl_puts(run, "["));
    for (size_t i = 0; i < list->count; i++) {
        if (i) WALSH_TRY(walsh_tpl_put(run, style->comma.data, style->comma.size));
        WALSH_TRY(json_break(run, style, depth + 1));
        WALSH_TRY(walsh_tpl_json(run, &list->items[i], style, depth + 1));
    }
    WALSH_TRY(json_break(run, style, depth));
    return walsh_tpl_puts(run, "]");
}

enum walsh_status walsh_tpl_json(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                 const struct walsh_tpl_json_style *style, unsigned depth)
{
    WALSH_TRY(walsh_tpl_spend(run, 1));
    if (depth > MAX_DEPTH) return walsh_fail(run->err, WALSH_E_CAPACITY, "a value is nested too deeply");
    switch ((enum walsh_tpl_type)v->type) {
    case TPL_NONE:
        return walsh_tpl_puts(run, "null");
    case TPL_BOOL:
        return walsh_tpl_puts(run, v->u.boolean ? "true" : "false");
    case TPL_INT:
        return print_int(run, v->u.integer);
    case TPL_REAL:
        if (isnan(v->u.real)) return walsh_tpl_puts(run, "NaN");
        if (isinf(v->u.real)) return walsh_tpl_puts(run, v->u.real > 0 ? "Infinity" : "-Infinity");
        return walsh_tpl_print_real(run, v->u.real);
    case TPL_TEXT:
        return json_text(run, v->u.text, style->ascii);
    case TPL_ARRAY:
        return json_list(run, v->u.list, style, depth);
    case TPL_OBJECT:
        return json_dict(run, v->u.dict, style, depth);
    default:
        return TPL_FAIL(run, "tojson: a %s is not JSON", walsh_tpl_type_name(v));
    }
}

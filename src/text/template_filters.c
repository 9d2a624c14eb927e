/* What may stand behind "|": filters of texts, numbers and JSON. Those of sequences: template_sequences.c. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/template_filters.h"

/* A number option, or `otherwise`. */
static enum walsh_status int_option(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    int64_t otherwise, int64_t *out)
{
    *out = otherwise;
    if (!v || v->type == TPL_NONE) return WALSH_OK;
    if (v->type != TPL_INT && v->type != TPL_BOOL)
        return TPL_FAIL(run, "an option is a %s, expected an int", walsh_tpl_type_name(v));
    *out = v->type == TPL_INT ? v->u.integer : v->u.boolean;
    return WALSH_OK;
}

static bool flag_option(const struct walsh_tpl_arguments *a, size_t i, const char *name)
{
    const struct walsh_tpl_value *v = walsh_tpl_argument(a, i, name);
    return v && walsh_tpl_truth(v);
}

static enum walsh_status filter_trim(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *set = walsh_tpl_argument(a, 0, "chars");
    if (set && set->type == TPL_NONE) set = NULL;
    if (set && set->type != TPL_TEXT) return TPL_FAIL(run, "trim: expected a text");
    WALSH_TRY(walsh_tpl_to_text(run, v, out));
    WALSH_TRY(walsh_tpl_spend(run, out->u.text.size / 64));
    out->u.text = walsh_tpl_strip(out->u.text, set ? &set->u.text : NULL, true, true);
    return WALSH_OK;
}

static enum walsh_status json_indent(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     struct walsh_tpl_text *room, struct walsh_tpl_json_style *style)
{
    static const char blanks[] = "                                ";
    if (!v || v->type == TPL_NONE) return WALSH_OK;
    if (v->type == TPL_TEXT) {
        *room = v->u.text;
    } else {
        int64_t width;
        WALSH_TRY(int_option(run, v, 0, &width));
        if (width > (int64_t)sizeof blanks - 1) return TPL_FAIL(run, "tojson: indent is more than 32");
        *room = (struct walsh_tpl_text){blanks, width > 0 ? (size_t)width : 0};
    }
    style->indent = room;
    style->comma.size = 1; /* no space before a line break */
    return WALSH_OK;
}

static enum walsh_status filter_tojson(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    struct walsh_tpl_json_style style = {.comma = {", ", 2}, .colon = {": ", 2}};
    struct walsh_tpl_text indent;
    const struct walsh_tpl_value *separators = walsh_tpl_argument(a, 2, "separators");
    style.ascii = flag_option(a, 0, "ensure_ascii");
    style.sort_keys = flag_option(a, 3, "sort_keys");
    WALSH_TRY(json_indent(run, walsh_tpl_argument(a, 1, "indent"), &indent, &style));
    if (separators && separators->type != TPL_NONE) {
        const struct walsh_tpl_list *l = separators->type == TPL_ARRAY ? separators->u.list : NULL;
        if (!l || l->count != 2 || l->items[0].type != TPL_TEXT || l->items[1].type != TPL_TEXT)
            return TPL_FAIL(run, "tojson: separators are two texts");
        style.comma = l->items[0].u.text;
        style.colon = l->items[1].u.text;
    }
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_json(run, v, &style, 0));
    return walsh_tpl_take(run, mark, out);
}

static enum walsh_status filter_default(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                        const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)run;
    const struct walsh_tpl_value *otherwise = walsh_tpl_argument(a, 0, "default_value");
    const bool missing = v->type == TPL_UNDEFINED || (flag_option(a, 1, "boolean") && !walsh_tpl_truth(v));
    *out = !missing ? *v : otherwise ? *otherwise : walsh_tpl_string("", 0);
    return WALSH_OK;
}

static enum walsh_status filter_string(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return walsh_tpl_to_text(run, v, out);
}

static enum walsh_status filter_safe(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    return filter_string(run, v, a, out);
}

static enum walsh_status change_case(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                     enum walsh_tpl_case how, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value text;
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    return walsh_tpl_change_case(run, text.u.text, how, out);
}

static enum walsh_status filter_upper(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return change_case(run, v, TPL_UPPER, out);
}

static enum walsh_status filter_lower(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return change_case(run, v, TPL_LOWER, out);
}

static enum walsh_status filter_capitalize(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                           const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    return change_case(run, v, TPL_CAPITALIZE, out);
}

/* Jinja's own: words begin behind white space and opening brackets, not behind every other character. */
static enum walsh_status filter_title(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    struct walsh_tpl_value text, part;
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    const struct walsh_tpl_text t = text.u.text;
    const size_t mark = run->out.size;
    for (size_t begin = 0, end; begin < t.size; begin = end) {
        const struct walsh_tpl_text rest = {t.data + begin, t.size - begin};
        for (end = begin; end < t.size; end++) {
            const struct walsh_tpl_text left = {t.data + end, t.size - end};
            if (memchr("-({[<", t.data[end], 5) || walsh_tpl_strip(left, NULL, true, false).size < left.size)
                break;
        }
        if (end == begin) { /* a separator */
            end++;
            while (end < t.size && ((uint8_t)t.data[end] & 0xc0) == 0x80) end++;
            WALSH_TRY(walsh_tpl_put(run, t.data + begin, end - begin));
            continue;
        }
        const struct walsh_tpl_text word = {rest.data, end - begin};
        WALSH_TRY(walsh_tpl_change_case(run, word, TPL_CAPITALIZE, &part));
        WALSH_TRY(walsh_tpl_put(run, part.u.text.data, part.u.text.size));
    }
    return walsh_tpl_take(run, mark, out);
}

static enum walsh_status filter_replace(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                        const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value text, from, to;
    int64_t limit;
    const struct walsh_tpl_value *old = walsh_tpl_argument(a, 0, "old"),
                                 *new = walsh_tpl_argument(a, 1, "new");
    if (!old || !new) return TPL_FAIL(run, "replace: expected two texts");
    WALSH_TRY(int_option(run, walsh_tpl_argument(a, 2, "count"), -1, &limit));
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    WALSH_TRY(walsh_tpl_to_text(run, old, &from));
    WALSH_TRY(walsh_tpl_to_text(run, new, &to));
    return walsh_tpl_replace(run, text.u.text, from.u.text, to.u.text, limit, out);
}

/* The characters that HTML gives a meaning. */
static enum walsh_status filter_escape(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    static const char special[] = "&<>\"'";
    static const char *const entities[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    (void)a;
    struct walsh_tpl_value text;
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    const size_t mark = run->out.size;
    for (size_t i = 0; i < text.u.text.size; i++) {
        const char *found = memchr(special, text.u.text.data[i], 5);
        WALSH_TRY(found ? walsh_tpl_puts(run, entities[found - special])
                        : walsh_tpl_put(run, text.u.text.data + i, 1));
    }
    return walsh_tpl_take(run, mark, out);
}

/* Every line but the first starts with `width` blanks; empty lines stay empty unless told. */
static enum walsh_status filter_indent(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *option = walsh_tpl_argument(a, 0, "width");
    struct walsh_tpl_value text, blanks;
    int64_t width;
    const struct walsh_tpl_value blank = walsh_tpl_string(" ", 1);
    const bool first = flag_option(a, 1, "first"), empty = flag_option(a, 2, "blank");
    if (option && option->type == TPL_TEXT) {
        blanks = *option;
    } else {
        WALSH_TRY(int_option(run, option, 4, &width));
        const struct walsh_tpl_value times = walsh_tpl_int(width);
        WALSH_TRY(walsh_tpl_binary(run, TPL_MULTIPLY, &blank, &times, &blanks));
    }
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    const struct walsh_tpl_text t = text.u.text;
    const size_t mark = run->out.size;
    for (size_t begin = 0, end; begin <= t.size; begin = end + 1) {
        const char *line_end = memchr(t.data + begin, '\n', t.size - begin);
        end = line_end ? (size_t)(line_end - t.data) : t.size;
        if (begin == 0 ? first : end > begin || empty)
            WALSH_TRY(walsh_tpl_put(run, blanks.u.text.data, blanks.u.text.size));
        WALSH_TRY(walsh_tpl_put(run, t.data + begin, walsh_min(end + 1, t.size) - begin));
        if (!line_end) break;
    }
    return walsh_tpl_take(run, mark, out);
}

static enum walsh_status filter_format(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                       const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value text;
    if (a->keyword_count) return TPL_FAIL(run, "format: names are not supported");
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    return walsh_tpl_format(run, text.u.text, a->values, a->count, out);
}

/* ---- numbers ---- */

/* The whole stripped text as a number of C; false where it is none. */
static bool read_number(struct walsh_tpl_text text, bool real, int base, int64_t *integer, double *number)
{
    char copy[64], *end;
    text = walsh_tpl_strip(text, NULL, true, true);
    if (text.size == 0 || text.size >= sizeof copy || memchr(text.data, 'x', text.size)) return false;
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    errno = 0;
    if (real)
        *number = strtod(copy, &end);
    else
        *integer = strtoll(copy, &end, base);
    return *end == '\0' && errno == 0;
}

static enum walsh_status filter_int(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *otherwise = walsh_tpl_argument(a, 0, "default");
    int64_t base, integer;
    double number;
    WALSH_TRY(int_option(run, walsh_tpl_argument(a, 1, "base"), 10, &base));
    if (base < 2 || base > 36) return TPL_FAIL(run, "int: the base is not 2 to 36");
    if (v->type == TPL_TEXT && read_number(v->u.text, false, (int)base, &integer, NULL)) {
        *out = walsh_tpl_int(integer);
        return WALSH_OK;
    }
    const bool known =
        v->type == TPL_TEXT ? read_number(v->u.text, true, 10, NULL, &number) : walsh_tpl_number(v, &number);
    if (v->type == TPL_INT)
        *out = *v;
    else if (known && fabs(number) < 9e18)
        *out = walsh_tpl_int((int64_t)number);
    else
        *out = otherwise ? *otherwise : walsh_tpl_int(0);
    return WALSH_OK;
}

static enum walsh_status filter_float(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)run;
    const struct walsh_tpl_value *otherwise = walsh_tpl_argument(a, 0, "default");
    double number;
    const bool known =
        v->type == TPL_TEXT ? read_number(v->u.text, true, 10, NULL, &number) : walsh_tpl_number(v, &number);
    *out = known ? walsh_tpl_real(number) : otherwise ? *otherwise : walsh_tpl_real(0);
    return WALSH_OK;
}

static enum walsh_status filter_abs(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    double number;
    if (!walsh_tpl_number(v, &number) || (v->type == TPL_INT && v->u.integer == INT64_MIN))
        return TPL_FAIL(run, "abs of a %s", walsh_tpl_type_name(v));
    if (v->type == TPL_REAL)
        *out = walsh_tpl_real(fabs(number));
    else
        *out = walsh_tpl_int(v->type == TPL_BOOL ? v->u.boolean : llabs(v->u.integer));
    return WALSH_OK;
}

/* Python's round: to the nearest decimal, computed on the exact value; ceil and floor in units of the last
 * digit. */
static enum walsh_status filter_round(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    double number;
    int64_t digits;
    char text[400];
    const struct walsh_tpl_value *method = walsh_tpl_argument(a, 1, "method");
    WALSH_TRY(int_option(run, walsh_tpl_argument(a, 0, "precision"), 0, &digits));
    if (!walsh_tpl_number(v, &number)) return TPL_FAIL(run, "round of a %s", walsh_tpl_type_name(v));
    if (digits < 0 || digits > 15) return TPL_FAIL(run, "round: the precision is not 0 to 15");
    const bool common = !method || (method->type == TPL_TEXT && walsh_tpl_text_is(method->u.text, "common"));
    if (common && v->type != TPL_REAL) {
        *out = walsh_tpl_int((int64_t)number);
        if (v->type == TPL_INT) *out = *v;
        return WALSH_OK;
    }
    if (common) {
        snprintf(text, sizeof text, "%.*f", (int)digits, number);
        *out = walsh_tpl_real(strtod(text, NULL));
        return WALSH_OK;
    }
    const bool up = method->type == TPL_TEXT && walsh_tpl_text_is(method->u.text, "ceil");
    if (!up && !(method->type == TPL_TEXT && walsh_tpl_text_is(method->u.text, "floor")))
        return TPL_FAIL(run, "round: the method is not common, ceil or floor");
    const double unit = pow(10, (double)digits);
    *out = walsh_tpl_real((up ? ceil(number * unit) : floor(number * unit)) / unit);
    return WALSH_OK;
}

static enum walsh_status filter_wordcount(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                          const struct walsh_tpl_arguments *a, struct walsh_tpl_value *out)
{
    (void)a;
    struct walsh_tpl_value text;
    int64_t count = 0;
    WALSH_TRY(walsh_tpl_to_text(run, v, &text));
    bool inside = false;
    for (size_t i = 0; i < text.u.text.size; i++) {
        const unsigned char c = (unsigned char)text.u.text.data[i];
        const bool word = isalnum(c) || c == '_' || c >= 0x80;
        count += word && !inside;
        inside = word;
    }
    *out = walsh_tpl_int(count);
    return WALSH_OK;
}

const struct walsh_tpl_filter walsh_tpl_scalar_filters[] = {
    {"trim", filter_trim},   {"tojson", filter_tojson},       {"default", filter_default},
    {"d", filter_default},   {"string", filter_string},       {"safe", filter_safe},
    {"upper", filter_upper}, {"lower", filter_lower},         {"capitalize", filter_capitalize},
    {"title", filter_title}, {"replace", filter_replace},     {"escape", filter_escape},
    {"e", filter_escape},    {"indent", filter_indent},       {"format", filter_format},
    {"int", filter_int},     {"float", filter_float},         {"abs", filter_abs},
    {"round", filter_round}, {"wordcount", filter_wordcount}, {NULL, NULL},
};

enum walsh_status walsh_tpl_filter(struct walsh_tpl_run *run, struct walsh_tpl_text name,
                                   const struct walsh_tpl_value *value,
                                   const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_spend(run, 1));
    const struct walsh_tpl_filter *const tables[] = {walsh_tpl_scalar_filters, walsh_tpl_sequence_filters};
    for (size_t t = 0; t < 2; t++)
        for (const struct walsh_tpl_filter *f = tables[t]; f->name; f++)
            if (walsh_tpl_text_is(name, f->name)) return f->apply(run, value, arguments, out);
    return walsh_fail(run->err, WALSH_E_UNSUPPORTED, "the filter \"%.*s\" is not known",
                      (int)walsh_min(name.size, 60), name.data);
}

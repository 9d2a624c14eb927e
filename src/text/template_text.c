/* Characters and Python's methods of str, on UTF-8. */
#include <string.h>

#include <utf8proc.h>

#include "text/template_internal.h"
#include "text/utf8.h"

/* ---- characters ---- */

static size_t step_at(struct walsh_tpl_text text, size_t at, uint32_t *c)
{
    enum walsh_utf8 kind; /* all texts are well formed: sources and JSON are checked */
    const uint8_t *p = (const uint8_t *)text.data + at;
    const size_t n = walsh_utf8_step(p, text.size - at, &kind);
    *c = kind == WALSH_UTF8_VALID ? walsh_utf8_decode(p) : 0xfffd;
    return n;
}

/* The start of the character that ends at `end` > 0. */
static size_t step_back(struct walsh_tpl_text text, size_t end)
{
    do end--;
    while (end > 0 && ((uint8_t)text.data[end] & 0xc0) == 0x80);
    return end;
}

static enum walsh_status put_character(struct walsh_tpl_run *run, uint32_t c)
{
    utf8proc_uint8_t bytes[4];
    const utf8proc_ssize_t n = utf8proc_encode_char((utf8proc_int32_t)c, bytes);
    return walsh_tpl_put(run, bytes, n > 0 ? (size_t)n : 0);
}

size_t walsh_tpl_characters(struct walsh_tpl_text text)
{
    size_t n = 0;
    for (size_t i = 0; i < text.size; i++) n += ((uint8_t)text.data[i] & 0xc0) != 0x80;
    return n;
}

/* str.isspace of one character: white space by bidirectional type or category Zs. */
bool walsh_tpl_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

static bool in_set(const struct walsh_tpl_text *set, uint32_t c)
{
    if (!set) return walsh_tpl_is_space(c);
    uint32_t other;
    for (size_t at = 0; at < set->size;) {
        at += step_at(*set, at, &other);
        if (other == c) return true;
    }
    return false;
}

struct walsh_tpl_text walsh_tpl_strip(struct walsh_tpl_text text, const struct walsh_tpl_text *set, bool left,
                                      bool right)
{
    uint32_t c;
    size_t begin = 0, end = text.size;
    while (left && begin < end) {
        const size_t n = step_at(text, begin, &c);
        if (!in_set(set, c)) break;
        begin += n;
    }
    while (right && end > begin) {
        const size_t at = step_back(text, end);
        step_at(text, at, &c);
        if (!in_set(set, c)) break;
        end = at;
    }
    return (struct walsh_tpl_text){text.data + begin, end - begin};
}

enum walsh_status walsh_tpl_slice_text(struct walsh_tpl_run *run, struct walsh_tpl_text text, int64_t start,
                                       int64_t count, int64_t step, struct walsh_tpl_value *out)
{
    const size_t mark = run->out.size;
    size_t *starts, n = 0, total = walsh_tpl_characters(text);
    uint32_t c;
    WALSH_TRY(walsh_tpl_spend(run, total / 16));
    WALSH_TRY(walsh_tpl_alloc(run, total + 1, sizeof *starts, &starts));
    for (size_t at = 0; at < text.size; at += step_at(text, at, &c)) starts[n++] = at;
    starts[n] = text.size;
    for (int64_t i = 0; i < count; i++) {
        const size_t at = (size_t)(start + i * step);
        WALSH_TRY(walsh_tpl_put(run, text.data + starts[at], starts[at + 1] - starts[at]));
    }
    return walsh_tpl_take(run, mark, out);
}

/* The first `part` at or behind `from`; SIZE_MAX: none. */
static size_t find(struct walsh_tpl_text text, struct walsh_tpl_text part, size_t from)
{
    if (from > text.size) return SIZE_MAX;
    if (part.size == 0) return from;
    const char *at = memmem(text.data + from, text.size - from, part.data, part.size);
    return at ? (size_t)(at - text.data) : SIZE_MAX;
}

static size_t find_last(struct walsh_tpl_text text, struct walsh_tpl_text part, size_t end)
{
    for (size_t at = end; at + 1 > part.size; at--) {
        if (memcmp(text.data + at - part.size, part.data, part.size) == 0) return at - part.size;
        if (at == 0) break;
    }
    return SIZE_MAX;
}

/* What find_last may cost at worst. */
static uint64_t backward_steps(struct walsh_tpl_text text, struct walsh_tpl_text part)
{
    size_t product;
    return walsh_mul(text.size, part.size, &product) ? product / 1024 : UINT32_MAX;
}

bool walsh_tpl_text_contains(struct walsh_tpl_text text, struct walsh_tpl_text part)
{
    return find(text, part, 0) != SIZE_MAX;
}

/* ---- case ---- */

static bool is_cased(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
        return true;
    default:
        return false;
    }
}

static enum walsh_status put_case(struct walsh_tpl_run *run, uint32_t c, bool upper, bool title)
{
    const utf8proc_int32_t code = (utf8proc_int32_t)c;
    if (upper && c == 0xdf) return walsh_tpl_puts(run, title ? "Ss" : "SS"); /* the sharp s has no capital */
    const utf8proc_int32_t to = !upper  ? utf8proc_tolower(code)
                                : title ? utf8proc_totitle(code)
                                        : utf8proc_toupper(code);
    return put_character(run, (uint32_t)to);
}

enum walsh_status walsh_tpl_change_case(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                        enum walsh_tpl_case how, struct walsh_tpl_value *out)
{
    const size_t mark = run->out.size;
    bool inside = false; /* a word of cased characters */
    WALSH_TRY(walsh_tpl_spend(run, text.size / 16));
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        const bool first = at == 0;
        at += step_at(text, at, &c);
        bool upper = how == TPL_UPPER;
        if (how == TPL_CAPITALIZE) upper = first;
        if (how == TPL_TITLE) upper = !inside;
        if (how == TPL_SWAPCASE) upper = utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_LL;
        WALSH_TRY(put_case(run, c, upper, how == TPL_TITLE || how == TPL_CAPITALIZE));
        inside = is_cased(c);
    }
    return walsh_tpl_take(run, mark, out);
}

bool walsh_tpl_text_is_lower(struct walsh_tpl_text text, bool upper)
{
    bool any = false;
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        at += step_at(text, at, &c);
        if (!is_cased(c)) continue;
        const bool is_upper = utf8proc_category((utf8proc_int32_t)c) != UTF8PROC_CATEGORY_LL;
        if (is_upper != upper) return false;
        any = true;
    }
    return any;
}

/* ---- parts ---- */

enum walsh_status walsh_tpl_replace(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                    struct walsh_tpl_text from, struct walsh_tpl_text to, int64_t limit,
                                    struct walsh_tpl_value *out)
{
    const size_t mark = run->out.size;
    size_t at = 0;
    uint32_t c;
    WALSH_TRY(walsh_tpl_spend(run, text.size / 16));
    for (int64_t n = 0; limit < 0 || n < limit; n++) {
        const size_t found = find(text, from, at);
        if (found == SIZE_MAX) break;
        WALSH_TRY(walsh_tpl_spend(run, 1));
        WALSH_TRY(walsh_tpl_put(run, text.data + at, found - at));
        WALSH_TRY(walsh_tpl_put(run, to.data, to.size));
        at = found + from.size;
        if (from.size) continue; /* nothing stands before each character and at the end */
        if (at == text.size) return walsh_tpl_take(run, mark, out);
        const size_t step = step_at(text, at, &c);
        WALSH_TRY(walsh_tpl_put(run, text.data + at, step));
        at += step;
    }
    WALSH_TRY(walsh_tpl_put(run, text.data + at, text.size - at));
    return walsh_tpl_take(run, mark, out);
}

/* A list that grows. */
static enum walsh_status push(struct walsh_tpl_run *run, struct walsh_tpl_value *list, const char *data,
                              size_t size)
{
    struct walsh_tpl_list *l = list->u.list;
    WALSH_TRY(walsh_tpl_spend(run, 1));
    if ((l->count & (l->count - 1)) == 0) { /* 0 or a power of 2: full */
        struct walsh_tpl_value *more;
        WALSH_TRY(walsh_tpl_alloc(run, l->count ? 2 * l->count : 1, sizeof *more, &more));
        if (l->count) memcpy(more, l->items, l->count * sizeof *more);
        l->items = more;
    }
    l->items[l->count++] = walsh_tpl_string(data, size);
    return WALSH_OK;
}

static void reverse(struct walsh_tpl_list *list)
{
    for (size_t i = 0, j = list->count; i + 1 < j; i++) {
        const struct walsh_tpl_value other = list->items[--j];
        list->items[j] = list->items[i];
        list->items[i] = other;
    }
}

/* At runs of white space. */
static enum walsh_status split_space(struct walsh_tpl_run *run, struct walsh_tpl_text text, int64_t limit,
                                     struct walsh_tpl_value *out)
{
    uint32_t c;
    struct walsh_tpl_text rest = walsh_tpl_strip(text, NULL, true, false);
    for (int64_t n = 0; rest.size > 0; n++) {
        if (limit >= 0 && n == limit) return push(run, out, rest.data, rest.size);
        size_t end = 0;
        while (end < rest.size) {
            const size_t step = step_at(rest, end, &c);
            if (walsh_tpl_is_space(c)) break;
            end += step;
        }
        WALSH_TRY(push(run, out, rest.data, end));
        rest = walsh_tpl_strip((struct walsh_tpl_text){rest.data + end, rest.size - end}, NULL, true, false);
    }
    return WALSH_OK;
}

/* From the right; the parts come out in reverse. */
static enum walsh_status split_space_back(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                          int64_t limit, struct walsh_tpl_value *out)
{
    uint32_t c;
    struct walsh_tpl_text rest = walsh_tpl_strip(text, NULL, false, true);
    for (int64_t n = 0; rest.size > 0; n++) {
        if (limit >= 0 && n == limit) return push(run, out, rest.data, rest.size);
        size_t begin = rest.size;
        while (begin > 0) {
            const size_t at = step_back(rest, begin);
            step_at(rest, at, &c);
            if (walsh_tpl_is_space(c)) break;
            begin = at;
        }
        WALSH_TRY(push(run, out, rest.data + begin, rest.size - begin));
        rest = walsh_tpl_strip((struct walsh_tpl_text){rest.data, begin}, NULL, false, true);
    }
    return WALSH_OK;
}

static enum walsh_status split(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                               const struct walsh_tpl_value *separator, int64_t limit, bool back,
                               struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_spend(run, text.size / 16));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, 0, out));
    const bool space = !separator || separator->type == TPL_NONE;
    if (!space && separator->type != TPL_TEXT)
        return TPL_FAIL(run, "split: the separator is a %s, expected a text", walsh_tpl_type_name(separator));
    if (space && !back) return split_space(run, text, limit, out);
    size_t begin = 0, end = text.size;
    if (space) {
        WALSH_TRY(split_space_back(run, text, limit, out));
    } else {
        const struct walsh_tpl_text s = separator->u.text;
        if (s.size == 0) return TPL_FAIL(run, "split: the separator is empty");
        if (back) WALSH_TRY(walsh_tpl_spend(run, backward_steps(text, s)));
        for (int64_t n = 0; limit < 0 || n < limit; n++) {
            const size_t at = back ? find_last(text, s, end) : find(text, s, begin);
            if (at == SIZE_MAX) break;
            WALSH_TRY(push(run, out, text.data + (back ? at + s.size : begin),
                           back ? end - at - s.size : at - begin));
            begin = back ? 0 : at + s.size;
            end = back ? at : text.size;
        }
        WALSH_TRY(push(run, out, text.data + begin, end - begin));
    }
    if (back) reverse(out->u.list);
    return WALSH_OK;
}

static bool line_end(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static enum walsh_status splitlines(struct walsh_tpl_run *run, struct walsh_tpl_text text, bool keep,
                                    struct walsh_tpl_value *out)
{
    WALSH_TRY(walsh_tpl_spend(run, text.size / 16));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, 0, out));
    size_t begin = 0;
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        const size_t end = at;
        at += step_at(text, at, &c);
        if (!line_end(c)) continue;
        if (c == '\r' && at < text.size && text.data[at] == '\n') at++;
        WALSH_TRY(push(run, out, text.data + begin, (keep ? at : end) - begin));
        begin = at;
    }
    return begin < text.size ? push(run, out, text.data + begin, text.size - begin) : WALSH_OK;
}

static enum walsh_status partition(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                   struct walsh_tpl_text separator, bool back, struct walsh_tpl_value *out)
{
    if (separator.size == 0) return TPL_FAIL(run, "partition: the separator is empty");
    if (back) WALSH_TRY(walsh_tpl_spend(run, backward_steps(text, separator)));
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, 0, out));
    out->aux = 1;
    const size_t at = back ? find_last(text, separator, text.size) : find(text, separator, 0);
    if (at == SIZE_MAX) {
        if (back) WALSH_TRY(push(run, out, "", 0));
        if (back) WALSH_TRY(push(run, out, "", 0));
        WALSH_TRY(push(run, out, text.data, text.size));
        if (back) return WALSH_OK;
        WALSH_TRY(push(run, out, "", 0));
        return push(run, out, "", 0);
    }
    WALSH_TRY(push(run, out, text.data, at));
    WALSH_TRY(push(run, out, separator.data, separator.size));
    return push(run, out, text.data + at + separator.size, text.size - at - separator.size);
}

/* ---- methods ---- */

enum method {
    STRIP,
    LSTRIP,
    RSTRIP,
    SPLIT,
    RSPLIT,
    SPLITLINES,
    STARTSWITH,
    ENDSWITH,
    UPPER,
    LOWER,
    TITLE,
    CAPITALIZE,
    SWAPCASE,
    REPLACE,
    FIND,
    RFIND,
    COUNT,
    JOIN,
    REMOVEPREFIX,
    REMOVESUFFIX,
    PARTITION,
    RPARTITION,
    ISDIGIT,
    ISALPHA,
    ISALNUM,
    ISSPACE,
    ISUPPER,
    ISLOWER,
    METHODS
};
static const char *const method_names[METHODS] = {
    "strip",      "lstrip",  "rstrip",  "split",   "rsplit",       "splitlines",   "startswith",
    "endswith",   "upper",   "lower",   "title",   "capitalize",   "swapcase",     "replace",
    "find",       "rfind",   "count",   "join",    "removeprefix", "removesuffix", "partition",
    "rpartition", "isdigit", "isalpha", "isalnum", "isspace",      "isupper",      "islower"};

int walsh_tpl_text_method(struct walsh_tpl_text name)
{
    for (int i = 0; i < METHODS; i++)
        if (walsh_tpl_text_is(name, method_names[i])) return i;
    return -1;
}

static enum walsh_status text_argument(struct walsh_tpl_run *run, int method,
                                       const struct walsh_tpl_arguments *arguments, size_t i,
                                       struct walsh_tpl_text *out)
{
    if (i >= arguments->count || arguments->values[i].type != TPL_TEXT)
        return TPL_FAIL(run, "%s: argument %zu is %s, expected a text", method_names[method], i + 1,
                        i < arguments->count ? walsh_tpl_type_name(&arguments->values[i]) : "missing");
    *out = arguments->values[i].u.text;
    return WALSH_OK;
}

static enum walsh_status limit_argument(struct walsh_tpl_run *run, int method,
                                        const struct walsh_tpl_arguments *arguments, const char *name,
                                        int64_t *out)
{
    const struct walsh_tpl_value *limit = walsh_tpl_argument(arguments, method == REPLACE ? 2 : 1, name);
    *out = -1;
    if (!limit) return WALSH_OK;
    if (limit->type != TPL_INT)
        return TPL_FAIL(run, "%s: %s is a %s, expected an int", method_names[method], name,
                        walsh_tpl_type_name(limit));
    *out = limit->u.integer;
    return WALSH_OK;
}

static bool has_end(struct walsh_tpl_text text, struct walsh_tpl_text part, bool at_start)
{
    if (part.size > text.size) return false;
    return part.size == 0 ||
           memcmp(text.data + (at_start ? 0 : text.size - part.size), part.data, part.size) == 0;
}

/* startswith and endswith take a text or a tuple of texts. */
static enum walsh_status test_end(struct walsh_tpl_run *run, int method, struct walsh_tpl_text self,
                                  const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_value *choice = arguments->count ? &arguments->values[0] : NULL;
    *out = walsh_tpl_bool(false);
    if (arguments->count > 1) return TPL_FAIL(run, "%s: one argument is supported", method_names[method]);
    if (choice && choice->type == TPL_ARRAY && choice->aux) {
        for (size_t i = 0; i < choice->u.list->count; i++) {
            const struct walsh_tpl_value *part = &choice->u.list->items[i];
            if (part->type == TPL_TEXT && has_end(self, part->u.text, method == STARTSWITH))
                out->u.boolean = true;
        }
        return WALSH_OK;
    }
    struct walsh_tpl_text part = {0};
    WALSH_TRY(text_argument(run, method, arguments, 0, &part));
    out->u.boolean = has_end(self, part, method == STARTSWITH);
    return WALSH_OK;
}

static enum walsh_status join(struct walsh_tpl_run *run, struct walsh_tpl_text separator,
                              const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    struct walsh_tpl_value *items;
    size_t count;
    const size_t mark = run->out.size;
    if (arguments->count != 1) return TPL_FAIL(run, "join: expected one argument");
    WALSH_TRY(walsh_tpl_items(run, &arguments->values[0], &items, &count));
    for (size_t i = 0; i < count; i++) {
        if (items[i].type != TPL_TEXT)
            return TPL_FAIL(run, "join: item %zu is a %s, expected a text", i,
                            walsh_tpl_type_name(&items[i]));
        if (i) WALSH_TRY(walsh_tpl_put(run, separator.data, separator.size));
        WALSH_TRY(walsh_tpl_put(run, items[i].u.text.data, items[i].u.text.size));
    }
    return walsh_tpl_take(run, mark, out);
}

/* Whether all characters are of a kind, and there is one. */
static bool all_are(struct walsh_tpl_text text, int method)
{
    bool any = false;
    for (size_t at = 0; at < text.size;) {
        uint32_t c;
        at += step_at(text, at, &c);
        const utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
        const bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO,
                   digit = category == UTF8PROC_CATEGORY_ND;
        any = method == ISDIGIT   ? digit
              : method == ISALPHA ? letter
              : method == ISSPACE ? walsh_tpl_is_space(c)
                                  : letter || digit;
        if (!any) return false;
    }
    return any;
}

static int64_t count_parts(struct walsh_tpl_text text, struct walsh_tpl_text part)
{
    if (part.size == 0) return (int64_t)walsh_tpl_characters(text) + 1;
    int64_t n = 0;
    for (size_t at = find(text, part, 0); at != SIZE_MAX; at = find(text, part, at + part.size)) n++;
    return n;
}

/* Methods that look for a part of the text. */
static enum walsh_status call_with_part(struct walsh_tpl_run *run, int method, struct walsh_tpl_text self,
                                        const struct walsh_tpl_arguments *arguments,
                                        struct walsh_tpl_value *out)
{
    struct walsh_tpl_text part = {0};
    WALSH_TRY(text_argument(run, method, arguments, 0, &part));
    WALSH_TRY(walsh_tpl_spend(run, self.size / 16));
    if (arguments->count > 1) return TPL_FAIL(run, "%s: one argument is supported", method_names[method]);
    switch (method) {
    case FIND:
    case RFIND: {
        if (method == RFIND) WALSH_TRY(walsh_tpl_spend(run, backward_steps(self, part)));
        const size_t at = method == FIND ? find(self, part, 0) : find_last(self, part, self.size);
        const struct walsh_tpl_text before = {self.data, at};
        *out = walsh_tpl_int(at == SIZE_MAX ? -1 : (int64_t)walsh_tpl_characters(before));
        return WALSH_OK;
    }
    case COUNT:
        *out = walsh_tpl_int(count_parts(self, part));
        return WALSH_OK;
    case REMOVEPREFIX:
    case REMOVESUFFIX: {
        const size_t cut = has_end(self, part, method == REMOVEPREFIX) ? part.size : 0;
        *out = walsh_tpl_string(self.data + (method == REMOVEPREFIX ? cut : 0), self.size - cut);
        return WALSH_OK;
    }
    default:
        return partition(run, self, part, method == RPARTITION, out);
    }
}

static enum walsh_status call_strip(struct walsh_tpl_run *run, int method, struct walsh_tpl_text self,
                                    const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out)
{
    struct walsh_tpl_text set = {0};
    const bool white = arguments->count == 0 || arguments->values[0].type == TPL_NONE;
    if (!white) WALSH_TRY(text_argument(run, method, arguments, 0, &set));
    WALSH_TRY(walsh_tpl_spend(run, self.size / 64));
    self = walsh_tpl_strip(self, white ? NULL : &set, method != RSTRIP, method != LSTRIP);
    *out = walsh_tpl_string(self.data, self.size);
    return WALSH_OK;
}

enum walsh_status walsh_tpl_call_text_method(struct walsh_tpl_run *run, int method,
                                             struct walsh_tpl_text self,
                                             const struct walsh_tpl_arguments *arguments,
                                             struct walsh_tpl_value *out)
{
    static const enum walsh_tpl_case cases[] = {TPL_UPPER, TPL_LOWER, TPL_TITLE, TPL_CAPITALIZE,
                                                TPL_SWAPCASE};
    int64_t limit;
    struct walsh_tpl_text from = {0}, to = {0};
    switch ((enum method)method) {
    case STRIP:
    case LSTRIP:
    case RSTRIP:
        return call_strip(run, method, self, arguments, out);
    case SPLIT:
    case RSPLIT:
        WALSH_TRY(limit_argument(run, method, arguments, "maxsplit", &limit));
        return split(run, self, walsh_tpl_argument(arguments, 0, "sep"), limit, method == RSPLIT, out);
    case SPLITLINES: {
        const struct walsh_tpl_value *keep = walsh_tpl_argument(arguments, 0, "keepends");
        return splitlines(run, self, keep && walsh_tpl_truth(keep), out);
    }
    case STARTSWITH:
    case ENDSWITH:
        return test_end(run, method, self, arguments, out);
    case UPPER:
    case LOWER:
    case TITLE:
    case CAPITALIZE:
    case SWAPCASE:
        return walsh_tpl_change_case(run, self, cases[method - UPPER], out);
    case REPLACE:
        WALSH_TRY(text_argument(run, method, arguments, 0, &from));
        WALSH_TRY(text_argument(run, method, arguments, 1, &to));
        WALSH_TRY(limit_argument(run, method, arguments, "count", &limit));
        return walsh_tpl_replace(run, self, from, to, limit, out);
    case JOIN:
        return join(run, self, arguments, out);
    case ISDIGIT:
    case ISALPHA:
    case ISALNUM:
    case ISSPACE:
        *out = walsh_tpl_bool(all_are(self, method));
        return WALSH_OK;
    case ISUPPER:
    case ISLOWER:
        *out = walsh_tpl_bool(walsh_tpl_text_is_lower(self, method == ISUPPER));
        return WALSH_OK;
    default:
        return call_with_part(run, method, self, arguments, out);
    }
}

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

/* Everything below U+0300, the first combining mark, is in NFC already, everything below U+00C0 in NFD, below
 * U+00A0 in the other two: by the lead byte. */
static bool may_change(const uint8_t *text, size_t size, bool compatibility, bool compose)
{
    const uint8_t lead = compatibility ? 0xc2 : compose ? 0xcc : 0xc3;
    for (size_t i = 0; i < size; i++)
        if (text[i] >= lead) return true;
    return false;
}

/* A code point with its combining class and place, so that one sort by this key is stable. */
struct mark {
    uint8_t combining_class;
    uint32_t place;
    int32_t code_point;
};

static int compare_marks(const void *a, const void *b)
{
    const struct mark *x = a, *y = b;
    if (x->combining_class != y->combining_class) return x->combining_class < y->combining_class ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

static uint8_t combining_class(int32_t code_point)
{
    return (uint8_t)utf8proc_get_property(code_point)->combining_class;
}

/* Canonical ordering: each run of marks sorted by class. utf8proc's own ordering is quadratic in the run,
 * which a hostile text would use. */
static enum walsh_status order_marks(int32_t *points, size_t count, struct walsh_error *err)
{
    struct walsh_buffer run = {0};
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < count && status == WALSH_OK; i++) {
        size_t start = i;
        bool ordered = true;
        run.size = 0;
        for (; i < count && combining_class(points[i]) != 0 && status == WALSH_OK; i++) {
            struct mark m = {combining_class(points[i]), (uint32_t)(i - start), points[i]};
            if (i > start && combining_class(points[i - 1]) > m.combining_class) ordered = false;
            status = walsh_buffer_append(&run, &m, sizeof m, err);
        }
        if (ordered || status != WALSH_OK) continue;
        struct mark *marks = (struct mark *)(void *)run.data;
        qsort(marks, i - start, sizeof *marks, compare_marks);
        for (size_t j = start; j < i; j++) points[j] = marks[j - start].code_point;
    }
    walsh_buffer_free(&run);
    return status;
}

/* The decomposition as int32_t code points, not yet ordered. */
static enum walsh_status decompose(const uint8_t *text, size_t size, bool compatibility,
                                   struct walsh_buffer *out, struct walsh_error *err)
{
    const utf8proc_option_t options =
        UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compatibility ? UTF8PROC_COMPAT : 0);
    for (size_t i = 0; i < size;) {
        enum walsh_utf8 kind;
        int32_t parts[32]; /* the longest decomposition, U+FDFA's, has 18 */
        int boundary = 0;
        int32_t c = (int32_t)walsh_utf8_decode(text + i);
        utf8proc_ssize_t count = utf8proc_decompose_char(c, parts, 32, options, &boundary);
        if (count < 0 || count > 32)
            return walsh_fail(err, WALSH_E_INTERNAL, "U+%04X does not decompose", (unsigned)c);
        WALSH_TRY(walsh_buffer_append(out, parts, (size_t)count * sizeof *parts, err));
        i += walsh_utf8_step(text + i, size - i, &kind);
    }
    return WALSH_OK;
}

enum walsh_status walsh_normalize_form(const uint8_t *text, size_t size, bool compatibility, bool compose,
                                       struct walsh_buffer *out, struct walsh_error *err)
{
    if (!may_change(text, size, compatibility, compose)) return walsh_buffer_append(out, text, size, err);
    struct walsh_buffer points = {0};
    enum walsh_status status = decompose(text, size, compatibility, &points, err);
    int32_t *p = (int32_t *)(void *)points.data;
    size_t count = points.size / sizeof *p;
    if (status == WALSH_OK) status = order_marks(p, count, err);
    if (status == WALSH_OK && compose)
        count =
            (size_t)utf8proc_normalize_utf32(p, (utf8proc_ssize_t)count, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    if (status == WALSH_OK) status = walsh_buffer_reserve(out, 4 * count, err);
    for (size_t i = 0; i < count && status == WALSH_OK; i++)
        out->size += (size_t)utf8proc_encode_char(p[i], out->data + out->size);
    walsh_buffer_free(&points);
    return status;
}

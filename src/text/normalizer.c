#include <string.h>
#include <utf8proc.h>

#include "text/tokenizer_internal.h"
#include "text/utf8.h"

void walsh_normalizer_close(struct walsh_normalizer *n)
{
    for (size_t i = 0; i < n->count; i++) {
        walsh_buffer_free(&n->steps[i].content);
        walsh_buffer_free(&n->steps[i].literal);
        walsh_regex_close(&n->steps[i].regex);
    }
    n->count = 0;
}

/* The first `literal` at or behind `from`; size where there is none. */
static size_t find_literal(const uint8_t *text, size_t size, const struct walsh_buffer *literal, size_t from)
{
    while (size - from >= literal->size) {
        const uint8_t *at = memchr(text + from, literal->data[0], size - from - literal->size + 1);
        if (!at) return size;
        from = (size_t)(at - text);
        if (memcmp(at, literal->data, literal->size) == 0) return from;
        from++;
    }
    return size;
}

enum walsh_status walsh_replace_literal(const uint8_t *text, size_t size, const struct walsh_buffer *literal,
                                        const struct walsh_buffer *content, struct walsh_buffer *out,
                                        struct walsh_error *err)
{
    for (size_t done = 0;;) {
        size_t at = find_literal(text, size, literal, done);
        if (at > done) WALSH_TRY(walsh_buffer_append(out, text + done, at - done, err));
        if (at == size) return WALSH_OK;
        WALSH_TRY(walsh_buffer_append(out, content->data, content->size, err));
        done = at + literal->size;
    }
}

static bool starts_with(const uint8_t *text, size_t size, const struct walsh_buffer *literal)
{
    return size >= literal->size && memcmp(text, literal->data, literal->size) == 0;
}

/* Whether a match of so many bytes at the start of a text, once replaced, still begins where the text began:
 * `tokenizers` takes the new text for a part of the last character that went. */
static bool keeps_start(const uint8_t *text, size_t match, const struct walsh_buffer *content)
{
    enum walsh_utf8 kind;
    return match == 0 || (content->size > 0 && walsh_utf8_step(text, match, &kind) == match);
}

static enum walsh_status replace_regex(const struct walsh_normalizer_step *step,
                                       struct walsh_regex_scratch *scratch, const uint8_t *text, size_t size,
                                       struct walsh_buffer *out, bool *kept, struct walsh_error *err)
{
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= size) {
        bool found;
        size_t start = 0, end = 0;
        WALSH_TRY(walsh_regex_find(step->regex, scratch, text, size, from, &found, &start, &end, err));
        if (!found) break;
        if (start == end && end == last_end) { /* an empty match right behind a match does not count */
            enum walsh_utf8 kind;
            from += from < size ? walsh_utf8_step(text + from, size - from, &kind) : 1;
            continue;
        }
        if (start == 0 && !keeps_start(text, end, &step->content)) *kept = false;
        if (start > done) WALSH_TRY(walsh_buffer_append(out, text + done, start - done, err));
        WALSH_TRY(walsh_buffer_append(out, step->content.data, step->content.size, err));
        done = from = last_end = end;
    }
    return done < size ? walsh_buffer_append(out, text + done, size - done, err) : WALSH_OK;
}

static enum walsh_status strip(const struct walsh_normalizer_step *step, const uint8_t *text, size_t size,
                               struct walsh_buffer *out, bool *kept, struct walsh_error *err)
{
    size_t start = 0, end = size;
    while (step->left && start < end && walsh_utf8_white_space(walsh_utf8_decode(text + start))) {
        enum walsh_utf8 kind;
        start += walsh_utf8_step(text + start, end - start, &kind);
    }
    while (step->right && end > start) {
        size_t before = walsh_utf8_before(text, end);
        if (!walsh_utf8_white_space(walsh_utf8_decode(text + before))) break;
        end = before;
    }
    if (start > 0) *kept = false;
    return start < end ? walsh_buffer_append(out, text + start, end - start, err) : WALSH_OK;
}

/* Character by character; U+0130 is the only one whose lower case has two. */
static enum walsh_status lower_case(const uint8_t *text, size_t size, struct walsh_buffer *out,
                                    struct walsh_error *err)
{
    for (size_t i = 0; i < size;) {
        enum walsh_utf8 kind;
        uint32_t c = walsh_utf8_decode(text + i);
        uint8_t lower[4];
        size_t length = walsh_utf8_step(text + i, size - i, &kind);
        i += length;
        if (c == 0x130) {
            WALSH_TRY(walsh_buffer_append(out, "i\xcc\x87", 3, err));
            continue;
        }
        length = (size_t)utf8proc_encode_char(utf8proc_tolower((int32_t)c), lower);
        WALSH_TRY(walsh_buffer_append(out, lower, length, err));
    }
    return WALSH_OK;
}

static enum walsh_status run_step(const struct walsh_normalizer_step *step,
                                  struct walsh_regex_scratch *scratch, const uint8_t *text, size_t size,
                                  struct walsh_buffer *out, bool *kept, struct walsh_error *err)
{
    switch (step->kind) {
    case WALSH_NORMALIZE_FORM:
        return walsh_normalize_form(text, size, step->compatibility, step->compose, out, err);
    case WALSH_NORMALIZE_PREPEND:
        if (size == 0) return WALSH_OK;
        WALSH_TRY(walsh_buffer_append(out, step->content.data, step->content.size, err));
        return walsh_buffer_append(out, text, size, err);
    case WALSH_NORMALIZE_REPLACE:
        if (step->regex) return replace_regex(step, scratch, text, size, out, kept, err);
        if (starts_with(text, size, &step->literal) && !keeps_start(text, step->literal.size, &step->content))
            *kept = false;
        return walsh_replace_literal(text, size, &step->literal, &step->content, out, err);
    case WALSH_NORMALIZE_STRIP:
        return strip(step, text, size, out, kept, err);
    case WALSH_NORMALIZE_LOWERCASE:
        return lower_case(text, size, out, err);
    }
    return walsh_fail(err, WALSH_E_INTERNAL, "normalizer step %d", (int)step->kind);
}

enum walsh_status walsh_normalize(const struct walsh_normalizer *n, struct walsh_regex_scratch *scratch,
                                  const uint8_t *text, size_t size, struct walsh_buffer *out, bool *kept,
                                  struct walsh_error *err)
{
    struct walsh_buffer between[2] = {{0}, {0}};
    enum walsh_status status = WALSH_OK;
    if (n->count == 0) return walsh_buffer_append(out, text, size, err);
    for (size_t i = 0; i < n->count && status == WALSH_OK; i++) {
        struct walsh_buffer *to = i + 1 == n->count ? out : &between[i % 2];
        if (to != out) to->size = 0;
        status = run_step(&n->steps[i], scratch, text, size, to, kept, err);
        text = to->data;
        size = to->size;
    }
    walsh_buffer_free(&between[0]);
    walsh_buffer_free(&between[1]);
    return status;
}

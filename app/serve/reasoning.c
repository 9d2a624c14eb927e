#include "reasoning.h"

#include <string.h>

void reasoning_open(struct reasoning *r, enum reasoning_style style, bool thinking)
{
    *r = (struct reasoning){.style = style};
    if (style == REASONING_CHANNELS)
        r->state = REASONING_HEADER;
    else if (style == REASONING_NONE)
        r->state = REASONING_SAYS;
    else if (thinking)
        r->state = REASONING_THINKS;
    r->trim = thinking;
}

void reasoning_close(struct reasoning *r)
{
    text_free(&r->held);
}

/* The first `count` bytes of what is held are dealt with. */
static void drop(struct reasoning *r, size_t count)
{
    memmove(r->held.data, r->held.data + count, r->held.size - count + 1);
    r->held.size -= count;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Give `count` held bytes out, without the white space behind a marker. */
static bool give(struct reasoning *r, size_t count, struct text *to)
{
    size_t skip = 0;
    while (r->trim && skip < count && is_space(r->held.data[skip])) skip++;
    if (skip < count) r->trim = false;
    const bool good = count == skip || text_append(to, r->held.data + skip, count - skip);
    drop(r, count);
    return good;
}

/* Where one of the markers begins, or an end of the text that may become one; *found is its length, 0 for
 * such an end and for no marker at all. */
static size_t find_marker(const struct text *held, const char *const *markers, size_t *found)
{
    *found = 0;
    for (size_t at = 0; at < held->size; at++) {
        bool partial = false;
        for (const char *const *m = markers; *m; m++) {
            const size_t length = strlen(*m), rest = held->size - at;
            if (length <= rest && memcmp(held->data + at, *m, length) == 0) {
                *found = length;
                return at;
            }
            partial |= rest < length && memcmp(held->data + at, *m, rest) == 0;
        }
        if (partial) return at;
    }
    return held->size;
}

/* Text that does not begin with <think> has no thought; white space before it decides nothing. */
static bool begin(struct reasoning *r)
{
    static const char marker[] = "<think>";
    size_t at = 0;
    while (at < r->held.size && is_space(r->held.data[at])) at++;
    const size_t rest = r->held.size - at, length = sizeof marker - 1;
    if (memcmp(r->held.data + at, marker, rest < length ? rest : length) != 0) {
        r->state = REASONING_SAYS;
        return true;
    }
    if (rest < length) return false;
    drop(r, at + length);
    r->state = REASONING_THINKS;
    r->trim = true;
    return true;
}

/* "<|channel|>final<|message|>": the words before the message say where it goes. */
static bool read_header(struct reasoning *r)
{
    static const char marker[] = "<|message|>";
    if (!r->held.size) return false;
    const char *end = memmem(r->held.data, r->held.size, marker, sizeof marker - 1);
    if (!end) return false;
    const size_t length = (size_t)(end - r->held.data);
    const bool final = memmem(r->held.data, length, "<|channel|>final", 16) != NULL;
    r->state = final ? REASONING_SAYS : REASONING_THINKS;
    drop(r, length + sizeof marker - 1);
    return true;
}

static bool advance(struct reasoning *r, struct text *content, struct text *thoughts, bool *again)
{
    static const char *const think_markers[] = {"</think>", NULL};
    static const char *const channel_markers[] = {"<|end|>",  "<|start|>",  "<|channel|>",
                                                  "<|call|>", "<|return|>", NULL};
    struct text *to = r->state == REASONING_THINKS ? thoughts : content;
    const bool channels = r->style == REASONING_CHANNELS;
    size_t found;
    *again = false;
    if (r->state == REASONING_BEGINS) {
        *again = begin(r);
        return true;
    }
    if (r->state == REASONING_HEADER) {
        *again = read_header(r);
        return true;
    }
    if (r->state == REASONING_SAYS && !channels) return give(r, r->held.size, to);
    const size_t at = find_marker(&r->held, channels ? channel_markers : think_markers, &found);
    if (!give(r, at, to)) return false;
    if (!found) return true;
    if (channels) {
        r->state = REASONING_HEADER; /* the marker stays: it may be the header's own */
    } else {
        drop(r, found);
        r->state = REASONING_SAYS;
        r->trim = true;
    }
    *again = true;
    return true;
}

bool reasoning_push(struct reasoning *r, const char *data, size_t size, struct text *content,
                    struct text *thoughts)
{
    if (r->style == REASONING_NONE) return size == 0 || text_append(content, data, size);
    if (size == 0) return true;
    if (!text_append(&r->held, data, size)) return false;
    for (bool again = true; again && r->held.size;)
        if (!advance(r, content, thoughts, &again)) return false;
    return true;
}

bool reasoning_finish(struct reasoning *r, struct text *content, struct text *thoughts)
{
    if (r->held.size == 0) return true;
    if (r->state == REASONING_HEADER) { /* a header without its message says nothing */
        drop(r, r->held.size);
        return true;
    }
    return give(r, r->held.size, r->state == REASONING_THINKS ? thoughts : content);
}

#include <string.h>

#include "text/tokenizer_internal.h"
#include "text/utf8.h"

/* One call of walsh_pretokenize. */
struct run {
    const struct walsh_pretokenizer *p;
    struct walsh_regex_scratch *scratch;
    struct walsh_pretokenizer_scratch *memory;
    walsh_piece_sink *sink;
    void *argument;
    const uint8_t *first; /* where the caller's text begins, in its present form; NULL: elsewhere */
};

static enum walsh_status run_from(const struct run *r, size_t step, const uint8_t *text, size_t size,
                                  bool stable, struct walsh_error *err);

/* The walk of one split over one text. The pattern cuts the text into matches and what lies between; `invert`
 * swaps the two; the behaviour then joins or drops parts. A part waits until what follows can no longer join
 * it. */
struct walk {
    const struct run *run;
    size_t step;
    const uint8_t *text;
    bool stable;
    bool waiting, is_match; /* a part waits; the flag of the last part taken */
    size_t start, end;      /* the waiting part */
};

static enum walsh_status hand_on(struct walk *w, size_t start, size_t end, struct walsh_error *err)
{
    if (start == end) return WALSH_OK;
    return run_from(w->run, w->step + 1, w->text + start, end - start, w->stable, err);
}

static enum walsh_status flush(struct walk *w, struct walsh_error *err)
{
    bool waiting = w->waiting;
    w->waiting = false;
    return waiting ? hand_on(w, w->start, w->end, err) : WALSH_OK;
}

/* Whether a part with flag is_match joins the waiting one, which is its left neighbour. */
static bool joins(const struct walk *w, enum walsh_split_behavior behavior, bool is_match)
{
    switch (behavior) {
    case WALSH_SPLIT_CONTIGUOUS:
        return is_match == w->is_match;
    case WALSH_SPLIT_MERGED_WITH_PREVIOUS:
        return is_match && !w->is_match;
    case WALSH_SPLIT_MERGED_WITH_NEXT:
        return !is_match && w->is_match;
    case WALSH_SPLIT_ISOLATED:
    case WALSH_SPLIT_REMOVED:
        break;
    }
    return false;
}

static enum walsh_status take(struct walk *w, size_t start, size_t end, bool is_match,
                              struct walsh_error *err)
{
    const struct walsh_split *split = &w->run->p->splits[w->step];
    is_match ^= split->invert;
    if (split->behavior == WALSH_SPLIT_ISOLATED) return hand_on(w, start, end, err);
    if (split->behavior == WALSH_SPLIT_REMOVED) return is_match ? WALSH_OK : hand_on(w, start, end, err);
    if (w->waiting && joins(w, split->behavior, is_match)) {
        w->end = end;
    } else {
        WALSH_TRY(flush(w, err));
        w->waiting = true;
        w->start = start;
        w->end = end;
    }
    w->is_match = is_match;
    return WALSH_OK;
}

/* The next match at or behind `from`, by hand where the pattern and the text allow it. */
static enum walsh_status find(const struct walk *w, size_t size, size_t from, bool *found, size_t *start,
                              size_t *end, struct walsh_error *err)
{
    const struct walsh_split *split = &w->run->p->splits[w->step];
    if (split->fast) {
        size_t fast_end = from < size ? walsh_fast_pattern_match(split->fast, w->text, size, from) : size;
        if (fast_end != 0) {
            *found = from < size; /* no such pattern matches nothing */
            *start = from;
            *end = fast_end;
            return WALSH_OK;
        }
    }
    return walsh_regex_find(split->regex, w->run->scratch, w->text, size, from, found, start, end, err);
}

static enum walsh_status walk(struct walk *w, size_t size, struct walsh_error *err)
{
    size_t done = 0, from = 0, last_end = SIZE_MAX;
    while (from <= size) {
        bool found;
        size_t start = 0, end = 0;
        WALSH_TRY(find(w, size, from, &found, &start, &end, err));
        if (!found) break;
        if (start == end && end == last_end) {
            /* An empty match right behind a match does not count; look again one character on. */
            enum walsh_utf8 kind;
            from += from < size ? walsh_utf8_step(w->text + from, size - from, &kind) : 1;
            continue;
        }
        if (done != start) WALSH_TRY(take(w, done, start, false, err));
        WALSH_TRY(take(w, start, end, true, err));
        done = from = last_end = end;
    }
    if (done != size) WALSH_TRY(take(w, done, size, false, err));
    return flush(w, err);
}

/* Every piece that reaches ByteLevel starts with a space. */
static enum walsh_status with_prefix_space(const struct run *r, const uint8_t *text, size_t size,
                                           struct walsh_error *err)
{
    struct walsh_buffer *out = &r->memory->prefixed;
    out->size = 0;
    WALSH_TRY(walsh_buffer_append(out, " ", 1, err));
    WALSH_TRY(walsh_buffer_append(out, text, size, err));
    if (r->p->prefix_before == r->p->split_count)
        return r->sink(r->argument, out->data, out->size, false, err);
    struct walk w = {.run = r, .step = r->p->prefix_before, .text = out->data, .stable = false};
    return walk(&w, out->size, err);
}

/* Metaspace: spaces become another character, and a piece that does not start with one may get it. */
static enum walsh_status rewrite(const struct run *r, size_t step, const uint8_t *text, size_t size,
                                 struct walsh_error *err)
{
    const struct walsh_split *split = &r->p->splits[step];
    struct walsh_buffer *out = &r->memory->rewritten[step];
    const uint8_t one = ' ', *sign = split->space.data;
    const struct walsh_buffer space = {.data = (uint8_t *)(uintptr_t)&one, .size = 1};
    const size_t sign_size = split->space.size;
    const bool first = text == r->first;
    bool led = text[0] == ' ' || (size >= sign_size && memcmp(text, sign, sign_size) == 0);
    out->size = 0;
    if (!led && (split->prepend == WALSH_PREPEND_ALWAYS || (split->prepend == WALSH_PREPEND_FIRST && first)))
        WALSH_TRY(walsh_buffer_append(out, sign, sign_size, err));
    WALSH_TRY(walsh_replace_literal(text, size, &space, &split->space, out, err));
    struct run rewritten = *r;
    rewritten.first = first ? out->data : NULL;
    return run_from(&rewritten, step + 1, out->data, out->size, false, err);
}

/* Run `text`, which is not empty, through the splits from `step` on. */
static enum walsh_status run_from(const struct run *r, size_t step, const uint8_t *text, size_t size,
                                  bool stable, struct walsh_error *err)
{
    const struct walsh_pretokenizer *p = r->p;
    if (p->add_prefix_space && step == p->prefix_before && text[0] != ' ')
        return with_prefix_space(r, text, size, err);
    if (step == p->split_count) return r->sink(r->argument, text, size, stable, err);
    if (!p->splits[step].regex) return rewrite(r, step, text, size, err);
    struct walk w = {.run = r, .step = step, .text = text, .stable = stable};
    return walk(&w, size, err);
}

void walsh_pretokenizer_close(struct walsh_pretokenizer *p)
{
    for (size_t i = 0; i < p->split_count; i++) {
        walsh_regex_close(&p->splits[i].regex);
        walsh_buffer_free(&p->splits[i].space);
    }
    p->split_count = 0;
}

enum walsh_status walsh_pretokenize(const struct walsh_pretokenizer *p, struct walsh_regex_scratch *scratch,
                                    struct walsh_pretokenizer_scratch *memory, const uint8_t *text,
                                    size_t size, bool first, walsh_piece_sink *sink, void *argument,
                                    struct walsh_error *err)
{
    const struct run r = {p, scratch, memory, sink, argument, first ? text : NULL};
    return size ? run_from(&r, 0, text, size, true, err) : WALSH_OK;
}

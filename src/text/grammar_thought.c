/* A thought before the document: where it begins and where it ends. */
#include <string.h>

#include "text/grammar_internal.h"
#include "text/tokenizer_internal.h"

enum walsh_status walsh_grammar_put_thought(struct walsh_grammar *g, const char *opens,
                                            const char *const *ends, size_t end_count,
                                            struct walsh_error *err)
{
    struct walsh_grammar_thought *thought = &g->thought;
    if (end_count < 1 || end_count > WALSH_GRAMMAR_ENDS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "a thought with %zu texts at its end, expected 1 to %d",
                          end_count, WALSH_GRAMMAR_ENDS);
    for (size_t i = 0; i < end_count; i++) {
        const size_t size = strlen(ends[i]);
        if (size < 1 || size > WALSH_GRAMMAR_END_BYTES)
            return walsh_fail(err, WALSH_E_ARGUMENT, "the end of a thought has %zu bytes, expected 1 to %d",
                              size, WALSH_GRAMMAR_END_BYTES);
        memcpy(thought->ends[i], ends[i], size);
        thought->sizes[i] = (uint8_t)size;
    }
    thought->opens = opens ? walsh_tokenizer_find(walsh_token_bytes_tokenizer(g->tokens), opens) : -1;
    if (opens && thought->opens < 0)
        return walsh_fail(err, WALSH_E_NOT_FOUND, "\"%.60s\" is no token, and cannot open a thought", opens);
    thought->end_count = (uint8_t)end_count;
    return WALSH_OK;
}

void walsh_grammar_begin_thought(const struct walsh_grammar *g, struct walsh_grammar_thinking *t)
{
    *t = (struct walsh_grammar_thinking){.phase = THOUGHT_OVER};
    if (g->thought.end_count) t->phase = g->thought.opens < 0 ? THOUGHT_GOES_ON : THOUGHT_MAY_BEGIN;
}

void walsh_grammar_think(const struct walsh_grammar *g, struct walsh_grammar_thinking *t,
                         const uint8_t *bytes, size_t size)
{
    const struct walsh_grammar_thought *thought = &g->thought;
    for (size_t i = 0; i < size && t->phase == THOUGHT_GOES_ON; i++) {
        const size_t length = thought->sizes[t->ends_met];
        if (t->tail_size == length) memmove(t->tail, t->tail + 1, --t->tail_size);
        t->tail[t->tail_size++] = bytes[i];
        if (t->tail_size < length || memcmp(t->tail, thought->ends[t->ends_met], length) != 0) continue;
        t->tail_size = 0;
        if (++t->ends_met == thought->end_count) t->phase = THOUGHT_OVER;
    }
}

/* Masks: the tokens whose bytes lead from the present state to another one. Tokens are walked in the order of
 * their bytes, so that those with a common beginning share its steps. Most tokens are plain text, and within
 * a string all of those fit: they are one precomputed mask. */
#include <stdlib.h>
#include <string.h>

#include "text/grammar_internal.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#define MAX_TOKEN_BYTES 256 /* longer tokens are never admitted */
#define CACHED_MASKS 8
#define MAX_KEY_FRAMES 128 /* of a state that a mask is kept for */

struct entry {
    const uint8_t *bytes;
    uint32_t size;
    uint32_t id;
    uint32_t shared;     /* bytes that it begins with as the one before */
    uint32_t characters; /* of plain text */
};

struct walsh_token_bytes {
    uint32_t vocab;
    size_t words; /* of a mask */
    const struct walsh_tokenizer *tokenizer;
    struct entry *plain, *other; /* each in the order of their bytes */
    size_t plain_count, other_count;
    uint64_t *plain_mask, *eos_mask; /* [words] */
    uint64_t *thought_mask;          /* [words]: all but those that end an answer */
    uint32_t longest;                /* bytes of a token */
    bool whole_characters; /* some byte of UTF-8 has no token: tokens that end within a character are out */
};

/* ---- the vocabulary ---- */

/* Whole characters that need no escape within a string; their number. */
static bool is_plain(const uint8_t *bytes, size_t size, uint32_t *characters)
{
    *characters = 0;
    for (size_t at = 0; at < size; ++*characters) {
        enum walsh_utf8 kind;
        if (bytes[at] < 0x20 || bytes[at] == '"' || bytes[at] == '\\') return false;
        at += walsh_utf8_step(bytes + at, size - at, &kind);
        if (kind != WALSH_UTF8_VALID) return false;
    }
    return true;
}

static int order_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    const int order = memcmp(x->bytes, y->bytes, walsh_min(x->size, y->size));
    if (order) return order;
    if (x->size != y->size) return x->size < y->size ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void sort_entries(struct entry *entries, size_t count)
{
    if (count) qsort(entries, count, sizeof *entries, order_entries);
    for (size_t i = 1; i < count; i++) {
        const struct entry *before = &entries[i - 1];
        struct entry *e = &entries[i];
        const uint32_t most = (uint32_t)walsh_min(before->size, e->size);
        while (e->shared < most && before->bytes[e->shared] == e->bytes[e->shared]) e->shared++;
    }
}

static void collect(struct walsh_token_bytes *t, bool (*is_eos)(const void *user, int32_t id),
                    const void *user, bool *have)
{
    const struct walsh_vocabulary *v = &t->tokenizer->vocabulary;
    for (uint32_t id = 0; id < t->vocab; id++) {
        if (is_eos(user, (int32_t)id)) {
            t->eos_mask[id / 64] |= (uint64_t)1 << id % 64;
            continue;
        }
        if (walsh_tokenizer_has(t->tokenizer, (int32_t)id))
            t->thought_mask[id / 64] |= (uint64_t)1 << id % 64;
        if (!walsh_tokenizer_has(t->tokenizer, (int32_t)id) || (v->tokens[id].flags & WALSH_TOKEN_SPECIAL))
            continue;
        const struct walsh_span span = v->tokens[id].decoded;
        struct entry e = {v->blob.data + span.offset, span.size, id, 0, 0};
        if (e.size == 0 || e.size > MAX_TOKEN_BYTES) continue;
        if (e.size == 1) have[e.bytes[0]] = true;
        t->longest = (uint32_t)walsh_max(t->longest, e.size);
        if (is_plain(e.bytes, e.size, &e.characters)) {
            t->plain[t->plain_count++] = e;
            t->plain_mask[id / 64] |= (uint64_t)1 << id % 64;
        } else {
            t->other[t->other_count++] = e;
        }
    }
    sort_entries(t->plain, t->plain_count);
    sort_entries(t->other, t->other_count);
}

static enum walsh_status check_bytes(struct walsh_token_bytes *t, const bool *have, struct walsh_error *err)
{
    uint64_t any = 0;
    for (size_t i = 0; i < t->words; i++) any |= t->eos_mask[i];
    if (!any)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "structured output: the model has no end-of-sequence token");
    for (int byte = 0x20; byte < 0x7f; byte++)
        if (!have[byte])
            return walsh_fail(err, WALSH_E_UNSUPPORTED,
                              "structured output: the vocabulary has no token for '%c'", byte);
    for (int byte = 0x80; byte < 0xc0; byte++) t->whole_characters = t->whole_characters || !have[byte];
    return WALSH_OK;
}

static enum walsh_status allocate(struct walsh_token_bytes *t, struct walsh_error *err)
{
    WALSH_TRY(walsh_alloc(t->vocab, sizeof *t->plain, "the bytes of tokens", &t->plain, err));
    WALSH_TRY(walsh_alloc(t->vocab, sizeof *t->other, "the bytes of tokens", &t->other, err));
    WALSH_TRY(walsh_alloc_zero(t->words, sizeof *t->plain_mask, "the bytes of tokens", &t->plain_mask, err));
    WALSH_TRY(
        walsh_alloc_zero(t->words, sizeof *t->thought_mask, "the bytes of tokens", &t->thought_mask, err));
    return walsh_alloc_zero(t->words, sizeof *t->eos_mask, "the bytes of tokens", &t->eos_mask, err);
}

enum walsh_status walsh_token_bytes_open(const struct walsh_tokenizer *tokenizer, uint32_t vocab,
                                         bool (*is_eos)(const void *user, int32_t id), const void *user,
                                         struct walsh_token_bytes **out, struct walsh_error *err)
{
    bool have[256] = {false};
    struct walsh_token_bytes *t;
    *out = NULL;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *t, "the bytes of tokens", &t, err));
    t->tokenizer = tokenizer;
    t->vocab = vocab;
    t->words = walsh_div_up(vocab, 64);
    enum walsh_status status = allocate(t, err);
    if (status == WALSH_OK) {
        collect(t, is_eos, user, have);
        status = check_bytes(t, have, err);
    }
    if (status != WALSH_OK) {
        walsh_token_bytes_close(&t);
        return status;
    }
    *out = t;
    return WALSH_OK;
}

void walsh_token_bytes_close(struct walsh_token_bytes **tokens)
{
    if (!tokens || !*tokens) return;
    walsh_free((*tokens)->plain);
    walsh_free((*tokens)->other);
    walsh_free((*tokens)->plain_mask);
    walsh_free((*tokens)->eos_mask);
    walsh_free((*tokens)->thought_mask);
    walsh_free(*tokens);
    *tokens = NULL;
}

uint32_t walsh_grammar_vocab(const struct walsh_grammar *grammar)
{
    return grammar->tokens->vocab;
}

const struct walsh_tokenizer *walsh_token_bytes_tokenizer(const struct walsh_token_bytes *tokens)
{
    return tokens->tokenizer;
}

/* ---- the matcher ---- */

struct cached {
    struct walsh_grammar_frame *key; /* [key_count]; NULL: free */
    size_t key_count;
    uint64_t *mask;
    uint64_t used; /* when, by the matcher's clock */
};

struct walsh_matcher {
    const struct walsh_grammar *grammar;
    struct walsh_grammar_levels levels;
    struct walsh_grammar_state *both; /* of now and next, which change places */
    struct walsh_grammar_states now, next;
    struct walsh_grammar_thinking thinking;
    bool ended;      /* an end-of-sequence id was drawn */
    uint64_t *masks; /* [CACHED_MASKS + 1][words]; the last one for states that are not kept */
    struct cached cache[CACHED_MASKS];
    uint64_t clock;
    struct walsh_grammar_frame *keys; /* [CACHED_MASKS + 1][MAX_KEY_FRAMES] */
    /* of the walk over the vocabulary: the states behind each byte of a token, one behind the other */
    struct walsh_grammar_state *stack;
    size_t stack_capacity;
    struct {
        size_t first, count, levels;
    } at[MAX_TOKEN_BYTES + 1];
};

enum walsh_status walsh_matcher_open(const struct walsh_grammar *grammar, struct walsh_matcher **out,
                                     struct walsh_error *err)
{
    struct walsh_matcher *m;
    const size_t words = grammar->tokens->words;
    *out = NULL;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *m, "a matcher", &m, err));
    walsh_grammar_retain(grammar);
    m->grammar = grammar;
    enum walsh_status status =
        walsh_alloc(2 * WALSH_GRAMMAR_STATES, sizeof *m->both, "a matcher", &m->both, err);
    if (status == WALSH_OK)
        status = walsh_alloc((CACHED_MASKS + 1) * words, sizeof *m->masks, "a matcher", &m->masks, err);
    if (status == WALSH_OK)
        status = walsh_alloc((CACHED_MASKS + 1) * (size_t)MAX_KEY_FRAMES, sizeof *m->keys, "a matcher",
                             &m->keys, err);
    if (status != WALSH_OK) {
        walsh_matcher_close(&m);
        return status;
    }
    m->now.items = m->both;
    m->next.items = m->both + WALSH_GRAMMAR_STATES;
    for (size_t i = 0; i < CACHED_MASKS; i++) m->cache[i].mask = m->masks + i * words;
    walsh_grammar_start(grammar, &m->now);
    walsh_grammar_begin_thought(grammar, &m->thinking);
    *out = m;
    return WALSH_OK;
}

void walsh_matcher_close(struct walsh_matcher **matcher)
{
    if (!matcher || !*matcher) return;
    struct walsh_matcher *m = *matcher;
    walsh_grammar_levels_close(&m->levels);
    walsh_free(m->both);
    walsh_free(m->masks);
    walsh_free(m->keys);
    walsh_free(m->stack);
    walsh_grammar_release(m->grammar);
    walsh_free(m);
    *matcher = NULL;
}

static enum walsh_status out_of_memory(struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_MEMORY, "out of memory for a matcher");
}

/* The states behind byte `depth` of a token. Those of shorter beginnings stay. */
static enum walsh_status walk_byte(struct walsh_matcher *m, size_t depth, uint8_t byte,
                                   struct walsh_error *err)
{
    const size_t first = m->at[depth].first + m->at[depth].count;
    if (first + WALSH_GRAMMAR_STATES > m->stack_capacity) {
        const size_t capacity = 2 * m->stack_capacity + 4 * WALSH_GRAMMAR_STATES;
        struct walsh_grammar_state *more;
        WALSH_TRY(walsh_alloc(capacity, sizeof *more, "a matcher", &more, err));
        if (first) memcpy(more, m->stack, first * sizeof *more);
        walsh_free(m->stack);
        m->stack = more;
        m->stack_capacity = capacity;
    }
    const struct walsh_grammar_states from = {m->stack + m->at[depth].first, m->at[depth].count};
    struct walsh_grammar_states to = {m->stack + first, 0};
    bool good = true;
    m->levels.used = m->at[depth].levels;
    walsh_grammar_step(m->grammar, &m->levels, &from, byte, &to, &good);
    m->at[depth + 1].first = first;
    m->at[depth + 1].count = to.count;
    m->at[depth + 1].levels = m->levels.used;
    return good ? WALSH_OK : out_of_memory(err);
}

/* A token that ends within a character, where some byte has no token of its own to go on with. */
static bool is_cut(const struct walsh_token_bytes *t, const struct entry *e)
{
    enum walsh_utf8 kind = WALSH_UTF8_VALID;
    for (size_t at = 0; t->whole_characters && at < e->size;)
        at += walsh_utf8_step(e->bytes + at, e->size - at, &kind);
    return kind == WALSH_UTF8_CUT;
}

static enum walsh_status walk(struct walsh_matcher *m, const struct entry *entries, size_t count,
                              uint64_t *mask, struct walsh_error *err)
{
    size_t dead = SIZE_MAX; /* the beginning of this length leads nowhere */
    for (size_t i = 0, known = 0; i < count; i++) {
        const struct entry *e = &entries[i];
        size_t depth = i ? walsh_min(known, e->shared) : 0;
        if (i && e->shared >= dead) continue;
        dead = SIZE_MAX;
        while (depth < e->size) {
            WALSH_TRY(walk_byte(m, depth, e->bytes[depth], err));
            depth++;
            if (m->at[depth].count > 0) continue;
            dead = depth;
            break;
        }
        known = dead == SIZE_MAX ? depth : dead - 1;
        if (dead == SIZE_MAX && !is_cut(m->grammar->tokens, e)) mask[e->id / 64] |= (uint64_t)1 << e->id % 64;
    }
    return WALSH_OK;
}

/* What the mask depends on as frames in a row; 0: too much to keep. */
static size_t make_key(const struct walsh_matcher *m, struct walsh_grammar_frame *key)
{
    const uint32_t longest = m->grammar->tokens->longest;
    size_t n = 0;
    for (size_t i = 0; i < m->now.count; i++) {
        const struct walsh_grammar_state *state = &m->now.items[i];
        if (n + 2 > MAX_KEY_FRAMES) return 0;
        key[n++] = walsh_grammar_essence(m->grammar, &state->top, longest);
        for (const struct walsh_grammar_level *l = state->below; l; l = l->below) {
            if (n + 2 > MAX_KEY_FRAMES) return 0;
            key[n++] = walsh_grammar_essence(m->grammar, &l->frame, longest);
        }
        key[n++] = (struct walsh_grammar_frame){.node = UINT32_MAX};
    }
    return n;
}

static enum walsh_status compute(struct walsh_matcher *m, uint64_t *mask, struct walsh_error *err)
{
    const struct walsh_token_bytes *t = m->grammar->tokens;
    memset(mask, 0, t->words * sizeof *mask);
    m->at[0].first = 0;
    m->at[0].count = m->now.count;
    m->at[0].levels = m->levels.used;
    if (m->stack_capacity < m->now.count + WALSH_GRAMMAR_STATES) {
        walsh_free(m->stack);
        m->stack = NULL;
        m->stack_capacity = 0;
        WALSH_TRY(walsh_alloc(4 * WALSH_GRAMMAR_STATES, sizeof *m->stack, "a matcher", &m->stack, err));
        m->stack_capacity = 4 * WALSH_GRAMMAR_STATES;
    }
    memcpy(m->stack, m->now.items, m->now.count * sizeof *m->stack);
    const size_t levels = m->levels.used;
    const int64_t room = walsh_grammar_free_text(m->grammar, &m->now);
    enum walsh_status status = WALSH_OK;
    if (room < 0) {
        status = walk(m, t->plain, t->plain_count, mask, err);
    } else if (room >= t->longest) {
        memcpy(mask, t->plain_mask, t->words * sizeof *mask);
    } else {
        for (size_t i = 0; i < t->plain_count; i++)
            if (t->plain[i].characters <= room)
                mask[t->plain[i].id / 64] |= (uint64_t)1 << t->plain[i].id % 64;
    }
    if (status == WALSH_OK) status = walk(m, t->other, t->other_count, mask, err);
    m->levels.used = levels;
    if (status == WALSH_OK && walsh_matcher_complete(m))
        for (size_t i = 0; i < t->words; i++) mask[i] |= t->eos_mask[i];
    return status;
}

static enum walsh_status document_mask(struct walsh_matcher *m, const uint64_t **mask,
                                       struct walsh_error *err)
{
    const struct walsh_token_bytes *t = m->grammar->tokens;
    uint64_t *unkept = m->masks + CACHED_MASKS * t->words;
    struct walsh_grammar_frame *key = m->keys + CACHED_MASKS * (size_t)MAX_KEY_FRAMES;
    *mask = t->eos_mask;
    if (m->ended) return WALSH_OK;
    *mask = unkept;
    const size_t count = make_key(m, key);
    if (count == 0) return compute(m, unkept, err);
    size_t oldest = 0;
    m->clock++;
    for (size_t i = 0; i < CACHED_MASKS; i++) {
        struct cached *c = &m->cache[i];
        if (c->key && c->key_count == count && memcmp(c->key, key, count * sizeof *key) == 0) {
            c->used = m->clock;
            *mask = c->mask;
            return WALSH_OK;
        }
        if (c->used < m->cache[oldest].used) oldest = i;
    }
    struct cached *c = &m->cache[oldest];
    c->key = NULL;
    WALSH_TRY(compute(m, c->mask, err));
    c->key = m->keys + oldest * MAX_KEY_FRAMES;
    memcpy(c->key, key, count * sizeof *key);
    c->key_count = count;
    c->used = m->clock;
    *mask = c->mask;
    return WALSH_OK;
}

enum walsh_status walsh_matcher_mask(struct walsh_matcher *m, const uint64_t **mask, struct walsh_error *err)
{
    const struct walsh_token_bytes *t = m->grammar->tokens;
    *mask = t->thought_mask;
    if (m->thinking.phase == THOUGHT_GOES_ON) return WALSH_OK;
    WALSH_TRY(document_mask(m, mask, err));
    if (m->thinking.phase == THOUGHT_OVER) return WALSH_OK;
    uint64_t *unkept = m->masks + CACHED_MASKS * t->words;
    const uint32_t opens = (uint32_t)m->grammar->thought.opens;
    if (*mask != unkept) memcpy(unkept, *mask, t->words * sizeof *unkept);
    if (opens < t->vocab) unkept[opens / 64] |= (uint64_t)1 << opens % 64;
    *mask = unkept;
    return WALSH_OK;
}

static enum walsh_status refuse(int32_t id, struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_ARGUMENT, "structured output: token %d does not continue the answer", id);
}

enum walsh_status walsh_matcher_advance(struct walsh_matcher *m, int32_t id, struct walsh_error *err)
{
    const struct walsh_token_bytes *t = m->grammar->tokens;
    const struct walsh_vocabulary *v = &t->tokenizer->vocabulary;
    if (id < 0 || (uint32_t)id >= t->vocab) return refuse(id, err);
    if (m->thinking.phase == THOUGHT_GOES_ON) {
        if (!(t->thought_mask[id / 64] >> id % 64 & 1)) return refuse(id, err);
        const struct walsh_span said = v->tokens[id].decoded;
        walsh_grammar_think(m->grammar, &m->thinking, v->blob.data + said.offset, said.size);
        return WALSH_OK;
    }
    if (m->thinking.phase == THOUGHT_MAY_BEGIN && id == m->grammar->thought.opens) {
        m->thinking.phase = THOUGHT_GOES_ON;
        return WALSH_OK;
    }
    if (t->eos_mask[id / 64] >> id % 64 & 1) {
        if (!m->ended && !walsh_matcher_complete(m)) return refuse(id, err);
        m->ended = true;
        return WALSH_OK;
    }
    if (m->ended || !walsh_tokenizer_has(t->tokenizer, id) || (v->tokens[id].flags & WALSH_TOKEN_SPECIAL))
        return refuse(id, err);
    const struct walsh_span span = v->tokens[id].decoded;
    if (span.size == 0) return refuse(id, err);
    struct walsh_grammar_state before[WALSH_GRAMMAR_STATES];
    const size_t count = m->now.count, levels = m->levels.used;
    memcpy(before, m->now.items, count * sizeof *before);
    bool good = true;
    for (uint32_t i = 0; i < span.size && m->now.count > 0; i++) {
        walsh_grammar_step(m->grammar, &m->levels, &m->now, v->blob.data[span.offset + i], &m->next, &good);
        const struct walsh_grammar_states swap = m->now;
        m->now = m->next;
        m->next = swap;
    }
    if (m->now.count > 0) {
        m->thinking.phase = THOUGHT_OVER;
        return WALSH_OK;
    }
    memcpy(m->now.items, before, count * sizeof *before);
    m->now.count = count;
    m->levels.used = levels;
    return good ? refuse(id, err) : out_of_memory(err);
}

bool walsh_matcher_complete(const struct walsh_matcher *m)
{
    return m->thinking.phase != THOUGHT_GOES_ON && walsh_grammar_is_complete(m->grammar, &m->now);
}

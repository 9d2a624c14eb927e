#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#define CACHED_BYTES 64   /* longer pieces hardly repeat */
#define CACHE_SLOTS 16384 /* at most; a short text has fewer */
/* Pieces repeat: a direct-mapped table remembers where in this call's output the ids of a piece already
 * stand. */
struct cached_piece {
    const uint8_t *piece; /* NULL: free */
    uint32_t size, count;
    size_t first;                /* index in ids */
    uint8_t bytes[CACHED_BYTES]; /* of a piece that stands nowhere for long, because Metaspace rewrote it */
};

/* One call of walsh_tokenizer_encode. */
struct encoder {
    const struct walsh_tokenizer *t;
    struct walsh_ids ids;
    struct cached_piece *cache;
    size_t cache_mask;
    struct walsh_bpe_scratch bpe;
    struct walsh_buffer path; /* of Unigram */
    struct walsh_regex_scratch *regex;
    struct walsh_pretokenizer_scratch rewritten;
    struct walsh_buffer guards; /* size_t[]: offsets in the text where guards stood */
    bool starts_plain;          /* the normalized text begins where the caller's did */
};

/* A stretch of text that is ordinary (id -1) or was cut out as an added token. */
struct segment {
    size_t offset, size; /* in the buffer that the text was copied to */
    int32_t id;
};

static enum walsh_status run_model(struct encoder *e, const uint8_t *piece, size_t size,
                                   struct walsh_error *err)
{
    const struct walsh_tokenizer *t = e->t;
    if (t->unigram.sorted)
        return walsh_unigram_encode(&t->unigram, &t->vocabulary, &e->path, piece, size, &e->ids, err);
    return walsh_bpe_encode(&t->bpe, &t->vocabulary, &e->bpe, piece, size, &e->ids, err);
}

static enum walsh_status encode_piece(void *argument, const uint8_t *piece, size_t size, bool stable,
                                      struct walsh_error *err)
{
    struct encoder *e = argument;
    if (size > CACHED_BYTES) return run_model(e, piece, size, err);
    struct cached_piece *c = &e->cache[walsh_text_hash(piece, size) & e->cache_mask];
    if (c->piece && c->size == size && memcmp(c->piece, piece, size) == 0) {
        /* Room first: the source is in the list that grows. */
        WALSH_TRY(walsh_ids_reserve(&e->ids, c->count, err));
        return walsh_ids_append(&e->ids, e->ids.data + c->first, c->count, err);
    }
    size_t first = e->ids.size;
    WALSH_TRY(run_model(e, piece, size, err));
    c->piece = stable ? piece : memcpy(c->bytes, piece, size);
    c->size = (uint32_t)size;
    c->count = (uint32_t)(e->ids.size - first);
    c->first = first;
    return WALSH_OK;
}

static enum walsh_status add_segment(struct walsh_buffer *segments, size_t offset, size_t size, int32_t id,
                                     struct walsh_error *err)
{
    const struct segment s = {offset, size, id};
    return walsh_buffer_append(segments, &s, sizeof s, err);
}

/* Cut text[offset, +size) at the added tokens of `set` and append the parts to `segments`. */
static enum walsh_status cut(struct encoder *e, const struct walsh_added_set *set, const uint8_t *text,
                             size_t offset, size_t size, bool plain, struct walsh_buffer *segments,
                             const struct walsh_buffer *guards, struct walsh_error *err)
{
    struct walsh_added_scan scan = {.set = set,
                                    .word = e->t->word,
                                    .scratch = e->regex,
                                    .text = text + offset,
                                    .size = size,
                                    .plain = plain};
    if (guards) {
        scan.guards = (const size_t *)(const void *)guards->data;
        scan.guard_count = guards->size / sizeof *scan.guards;
    }
    int32_t id;
    do {
        size_t start, end;
        WALSH_TRY(walsh_added_next(&scan, &id, &start, &end, err));
        if (scan.done < start)
            WALSH_TRY(add_segment(segments, offset + scan.done, start - scan.done, -1, err));
        if (id >= 0) WALSH_TRY(add_segment(segments, offset + start, end - start, id, err));
        scan.done = end;
    } while (id >= 0);
    return WALSH_OK;
}

/* Ordinary segments end where a guard stood. A normal form has no places that could be told from those before
 * it; so nothing that is matched in it reaches across a guard. */
static enum walsh_status break_at_guards(struct encoder *e, struct walsh_buffer *segments,
                                         struct walsh_error *err)
{
    struct walsh_buffer fine = {0};
    const struct segment *s = (const struct segment *)(const void *)segments->data;
    const size_t *guards = (const size_t *)(const void *)e->guards.data,
                 count = e->guards.size / sizeof *guards;
    size_t next = 0;
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < segments->size / sizeof *s && status == WALSH_OK; i++) {
        size_t begin = s[i].offset;
        const size_t end = begin + s[i].size;
        for (; next < count && guards[next] < end; next++) {
            if (s[i].id >= 0 || guards[next] <= begin || status != WALSH_OK) continue;
            status = add_segment(&fine, begin, guards[next] - begin, -1, err);
            begin = guards[next];
        }
        if (status == WALSH_OK) status = add_segment(&fine, begin, end - begin, s[i].id, err);
    }
    walsh_buffer_free(segments);
    *segments = fine;
    return status;
}

/* The text in segments: the tokens that are matched as written are cut out first, the rest is normalized into
 * `normal`, and the tokens that are matched in normal form are cut out of that. */
static enum walsh_status plan(struct encoder *e, const struct walsh_buffer *clean, bool plain,
                              struct walsh_buffer *normal, struct walsh_buffer *segments,
                              struct walsh_error *err)
{
    struct walsh_buffer raw = {0};
    enum walsh_status status =
        cut(e, &e->t->added, clean->data, 0, clean->size, plain, &raw, &e->guards, err);
    if (status == WALSH_OK && e->guards.size && e->t->added_normalized.any_special)
        status = break_at_guards(e, &raw, err);
    const struct segment *s = (const struct segment *)(const void *)raw.data;
    /* Normalize everything before cutting further: the buffer moves while it grows. */
    for (size_t i = 0; i < raw.size / sizeof *s && status == WALSH_OK; i++) {
        size_t offset = normal->size;
        bool kept = i == 0;
        if (s[i].id < 0)
            status = walsh_normalize(&e->t->normalizer, e->regex, clean->data + s[i].offset, s[i].size,
                                     normal, &kept, err);
        if (i == 0) e->starts_plain = kept && normal->size > 0;
        if (status == WALSH_OK) status = add_segment(segments, offset, normal->size - offset, s[i].id, err);
    }
    walsh_buffer_free(&raw);
    if (status != WALSH_OK || e->t->added_normalized.tokens.size == 0) return status;

    struct walsh_buffer fine = {0};
    s = (const struct segment *)(const void *)segments->data;
    for (size_t i = 0; i < segments->size / sizeof *s && status == WALSH_OK; i++) {
        if (s[i].id >= 0)
            status = add_segment(&fine, s[i].offset, s[i].size, s[i].id, err);
        else
            status = cut(e, &e->t->added_normalized, normal->data, s[i].offset, s[i].size, plain, &fine, NULL,
                         err);
    }
    walsh_buffer_free(segments);
    *segments = fine;
    return status;
}

static enum walsh_status encode_clean(struct encoder *e, const struct walsh_buffer *clean, unsigned flags,
                                      struct walsh_error *err)
{
    const struct walsh_tokenizer *t = e->t;
    bool special = (flags & WALSH_ENCODE_SPECIAL) != 0;
    size_t slots = 16;
    while (slots < CACHE_SLOTS && slots < clean->size / 4) slots *= 2;
    e->cache_mask = slots - 1;
    WALSH_TRY(walsh_alloc_zero(slots, sizeof *e->cache, "piece cache", &e->cache, err));
    WALSH_TRY(walsh_regex_scratch_open(&e->regex, err));
    WALSH_TRY(walsh_ids_reserve(&e->ids, clean->size / 4 + WALSH_MAX_TEMPLATE, err));
    if (special) WALSH_TRY(walsh_ids_append(&e->ids, t->before, t->before_count, err));

    struct walsh_buffer normal = {0}, segments = {0};
    enum walsh_status status = plan(e, clean, (flags & WALSH_ENCODE_PLAIN) != 0, &normal, &segments, err);
    const struct segment *s = (const struct segment *)(const void *)segments.data;
    const uint8_t *text = normal.data ? normal.data : (const uint8_t *)""; /* Strip may have left nothing */
    for (size_t i = 0; i < segments.size / sizeof *s && status == WALSH_OK; i++) {
        if (s[i].id >= 0)
            status = walsh_ids_append(&e->ids, &s[i].id, 1, err);
        else
            status = walsh_pretokenize(&t->pretokenizer, e->regex, &e->rewritten, text + s[i].offset,
                                       s[i].size, e->starts_plain && s[i].offset == 0, encode_piece, e, err);
    }
    walsh_buffer_free(&normal);
    walsh_buffer_free(&segments);
    if (status == WALSH_OK && special) status = walsh_ids_append(&e->ids, t->behind, t->behind_count, err);
    return status;
}

/* Take the guards out of the text, and note where they stood. */
static enum walsh_status take_guards(struct encoder *e, struct walsh_buffer *clean, struct walsh_error *err)
{
    size_t to = 0;
    for (size_t at = 0; at < clean->size;) {
        if (clean->size - at >= WALSH_GUARD_SIZE &&
            memcmp(clean->data + at, WALSH_GUARD, WALSH_GUARD_SIZE) == 0) {
            WALSH_TRY(walsh_buffer_append(&e->guards, &to, sizeof to, err));
            at += WALSH_GUARD_SIZE;
        } else {
            clean->data[to++] = clean->data[at++];
        }
    }
    clean->size = to;
    return WALSH_OK;
}

enum walsh_status walsh_tokenizer_encode(const struct walsh_tokenizer *t, const char *text, size_t size,
                                         unsigned flags, int32_t **ids, size_t *count,
                                         struct walsh_error *err)
{
    struct encoder e = {.t = t};
    struct walsh_buffer clean = {0};
    *ids = NULL;
    *count = 0;
    size_t clean_size = walsh_utf8_clean((const uint8_t *)text, size, NULL);
    enum walsh_status status = walsh_buffer_reserve(&clean, clean_size + 1, err);
    if (status == WALSH_OK) {
        clean.size = walsh_utf8_clean((const uint8_t *)text, size, clean.data);
        if (flags & WALSH_ENCODE_GUARDED) status = take_guards(&e, &clean, err);
    }
    if (status == WALSH_OK) {
        status = encode_clean(&e, &clean, flags, err);
    }
    walsh_buffer_free(&clean);
    walsh_buffer_free(&e.bpe.symbols);
    walsh_buffer_free(&e.bpe.heap);
    walsh_buffer_free(&e.path);
    walsh_buffer_free(&e.guards);
    walsh_buffer_free(&e.rewritten.prefixed);
    for (size_t i = 0; i < WALSH_MAX_SPLITS; i++) walsh_buffer_free(&e.rewritten.rewritten[i]);
    walsh_regex_scratch_close(&e.regex);
    walsh_free(e.cache);
    if (status != WALSH_OK) {
        walsh_free(e.ids.data);
        return status;
    }
    *ids = e.ids.data;
    *count = e.ids.size;
    return WALSH_OK;
}

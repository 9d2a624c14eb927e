/* The most likely cut of a piece into tokens (Kudo 2018, Viterbi over positions). */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#define UNKNOWN_PENALTY 10.0 /* below the worst score, as SentencePiece has it */
#define NOT_REACHED UINT32_MAX

/* The best way to cover the text up to a position. */
struct path_end {
    double score;
    uint32_t start; /* of its last token; NOT_REACHED */
    uint32_t id;
};

struct sort_key {
    const uint8_t *bytes;
    uint32_t size, id;
};

static int compare_keys(const void *a, const void *b)
{
    const struct sort_key *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, walsh_min(x->size, y->size));
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

static const uint8_t *text_of(const struct walsh_vocabulary *v, uint32_t id, size_t *size)
{
    *size = v->tokens[id].text.size;
    return v->blob.data + v->tokens[id].text.offset;
}

static enum walsh_status sort_tokens(struct walsh_unigram *u, const struct walsh_vocabulary *v, size_t count,
                                     struct walsh_error *err)
{
    struct sort_key *keys;
    WALSH_TRY(walsh_alloc(count, sizeof *keys, "tokens by text", &keys, err));
    size_t filled = 0;
    for (size_t id = 0; id < count; id++) {
        size_t size;
        const uint8_t *bytes = text_of(v, (uint32_t)id, &size);
        if (size > 0) keys[filled++] = (struct sort_key){bytes, (uint32_t)size, (uint32_t)id};
    }
    qsort(keys, filled, sizeof *keys, compare_keys);
    enum walsh_status status = walsh_alloc(count, sizeof *u->sorted, "tokens by text", &u->sorted, err);
    for (size_t i = 0, byte = 0; status == WALSH_OK && byte <= 256; byte++) {
        while (i < filled && keys[i].bytes[0] < byte) i++;
        u->first[byte] = (uint32_t)i;
    }
    for (size_t i = 0; status == WALSH_OK && i < filled; i++) u->sorted[i] = keys[i].id;
    u->count = filled;
    walsh_free(keys);
    return status;
}

enum walsh_status walsh_unigram_open(struct walsh_unigram *u, const struct walsh_vocabulary *v,
                                     double *scores, size_t count, struct walsh_error *err)
{
    u->scores = scores;
    double worst = scores[0];
    for (size_t id = 1; id < count; id++) worst = scores[id] < worst ? scores[id] : worst;
    u->unknown_score = worst - UNKNOWN_PENALTY;
    walsh_vocabulary_find_fallback(v, u->fallback_ids);
    return sort_tokens(u, v, count, err);
}

void walsh_unigram_close(struct walsh_unigram *u)
{
    walsh_free(u->sorted);
    walsh_free(u->scores);
    u->sorted = NULL;
    u->scores = NULL;
}

/* Narrow sorted[*low, *high), whose tokens share their first `depth` bytes, to those that go on with `byte`.
 */
static void narrow(const struct walsh_unigram *u, const struct walsh_vocabulary *v, size_t depth,
                   uint8_t byte, uint32_t *low, uint32_t *high)
{
    uint32_t bounds[2];
    for (unsigned side = 0; side < 2; side++) { /* the first token that is not below byte, byte + 1 */
        uint32_t from = *low, to = *high;
        while (from < to) {
            uint32_t middle = from + (to - from) / 2;
            size_t size;
            const uint8_t *bytes = text_of(v, u->sorted[middle], &size);
            if (size <= depth || bytes[depth] < byte + side)
                from = middle + 1;
            else
                to = middle;
        }
        bounds[side] = from;
    }
    *low = bounds[0];
    *high = bounds[1];
}

static void reach(struct path_end *end, double score, size_t start, uint32_t id)
{
    if (end->start == NOT_REACHED || score > end->score) *end = (struct path_end){score, (uint32_t)start, id};
}

/* Try all tokens that start at piece[start]; whether one of them is just the character there. */
static bool try_tokens(const struct walsh_unigram *u, const struct walsh_vocabulary *v, const uint8_t *piece,
                       size_t size, size_t start, size_t character, struct path_end *ends)
{
    bool single = false;
    uint32_t low = u->first[piece[start]], high = u->first[piece[start] + 1];
    for (size_t depth = 1; low < high; depth++) {
        size_t length;
        text_of(v, u->sorted[low], &length);
        if (length == depth) { /* the shortest comes first */
            const uint32_t id = u->sorted[low];
            reach(&ends[start + depth], ends[start].score + u->scores[id], start, id);
            single |= depth == character;
        }
        if (start + depth == size) break;
        narrow(u, v, depth, piece[start + depth], &low, &high);
    }
    return single;
}

/* The id of a run of unknown characters: a token may be spelt like it, else its bytes, else the unknown one.
 */
static enum walsh_status append_unknown(const struct walsh_unigram *u, const struct walsh_vocabulary *v,
                                        const uint8_t *run, size_t size, struct walsh_ids *ids,
                                        struct walsh_error *err)
{
    int32_t id = walsh_vocabulary_find_model(v, run, size);
    bool bytes = id < 0 && u->byte_fallback;
    for (size_t i = 0; bytes && i < size; i++) bytes = u->fallback_ids[run[i]] >= 0;
    if (!bytes) {
        if (id < 0) id = u->unknown;
        return walsh_ids_append(ids, &id, 1, err);
    }
    for (size_t i = 0; i < size; i++) WALSH_TRY(walsh_ids_append(ids, &u->fallback_ids[run[i]], 1, err));
    return WALSH_OK;
}

/* Turn the links that lead from the end to the start around: ends[start].start becomes where the next token
 * ends, and ends[start].id its id. */
static void turn_around(struct path_end *ends, size_t size)
{
    uint32_t after = 0, id = 0;
    for (uint32_t at = (uint32_t)size;;) {
        const struct path_end link = ends[at];
        ends[at].start = after;
        ends[at].id = id;
        if (at == 0) return;
        after = at;
        id = link.id;
        at = link.start;
    }
}

enum walsh_status walsh_unigram_encode(const struct walsh_unigram *u, const struct walsh_vocabulary *v,
                                       struct walsh_buffer *path, const uint8_t *piece, size_t size,
                                       struct walsh_ids *ids, struct walsh_error *err)
{
    size_t memory;
    if (size >= NOT_REACHED || !walsh_mul(size + 1, sizeof(struct path_end), &memory))
        return walsh_fail(err, WALSH_E_MEMORY, "a piece of %zu bytes is too large", size);
    path->size = 0;
    WALSH_TRY(walsh_buffer_reserve(path, memory, err));
    struct path_end *ends = (struct path_end *)(void *)path->data;
    for (size_t i = 0; i <= size; i++) ends[i] = (struct path_end){0, NOT_REACHED, 0};
    for (size_t at = 0, length; at < size; at += length) {
        enum walsh_utf8 kind;
        length = walsh_utf8_step(piece + at, size - at, &kind);
        if (try_tokens(u, v, piece, size, at, length, ends)) continue;
        if (u->unknown < 0)
            return walsh_fail(err, WALSH_E_FORMAT, "the vocabulary has no token for \"%.*s\", and no unk_id",
                              (int)length, (const char *)piece + at);
        reach(&ends[at + length], ends[at].score + u->unknown_score, at, (uint32_t)u->unknown);
    }
    turn_around(ends, size);
    for (size_t at = 0; at < size;) { /* a run of unknown characters counts as one token */
        int32_t id = (int32_t)ends[at].id;
        size_t end = ends[at].start;
        if (id != u->unknown) {
            WALSH_TRY(walsh_ids_append(ids, &id, 1, err));
        } else {
            while (end < size && (int32_t)ends[end].id == u->unknown) end = ends[end].start;
            WALSH_TRY(append_unknown(u, v, piece + at, end - at, ids, err));
        }
        at = end;
    }
    return WALSH_OK;
}

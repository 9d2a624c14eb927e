#include <string.h>

#include "base/memory.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"

#define FREE_PAIR UINT64_MAX
#define NO_RANK UINT32_MAX

/* Merging a piece: symbols in a doubly linked list, the mergeable pairs in a heap by (rank, position). A heap
 * entry is stale when the pair at its position has another rank by now; ranks differ between pairs, so equal
 * rank means the same pair. n log n for a piece of n bytes. */
struct symbol {
    uint32_t id;
    uint32_t previous, next; /* positions; NO_POSITION at the ends */
    uint32_t rank, merged;   /* of the pair with `next`: NO_RANK, or its rank and the id it becomes */
};
#define NO_POSITION UINT32_MAX

static size_t pair_slot(const struct walsh_bpe *bpe, uint64_t pair)
{
    uint64_t h = pair * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(h ^ h >> 32) & bpe->mask;
}

enum walsh_status walsh_bpe_open(struct walsh_bpe *bpe, size_t merges, struct walsh_error *err)
{
    size_t slots = 64;
    while (slots < 2 * merges) slots *= 2;
    WALSH_TRY(walsh_alloc(slots, sizeof *bpe->merges, "merges", &bpe->merges, err));
    for (size_t i = 0; i < slots; i++) bpe->merges[i].pair = FREE_PAIR;
    bpe->mask = slots - 1;
    return WALSH_OK;
}

void walsh_bpe_close(struct walsh_bpe *bpe)
{
    walsh_free(bpe->merges);
    bpe->merges = NULL;
}

/* The entry of a pair; a free one where it does not merge. */
static struct walsh_merge *find_merge(const struct walsh_bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    size_t i = pair_slot(bpe, pair);
    while (bpe->merges[i].pair != pair && bpe->merges[i].pair != FREE_PAIR) i = (i + 1) & bpe->mask;
    return &bpe->merges[i];
}

void walsh_bpe_add(struct walsh_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    *find_merge(bpe, left, right) =
        (struct walsh_merge){.pair = (uint64_t)left << 32 | right, .rank = rank, .id = id};
}

enum walsh_status walsh_ids_reserve(struct walsh_ids *ids, size_t more, struct walsh_error *err)
{
    if (more <= ids->capacity - ids->size) return WALSH_OK;
    size_t capacity, needed;
    if (!walsh_add(ids->size, more, &needed) || !walsh_mul(needed, 2, &capacity))
        return walsh_fail(err, WALSH_E_MEMORY, "too many tokens");
    int32_t *grown;
    WALSH_TRY(walsh_alloc(capacity, sizeof *grown, "token ids", &grown, err));
    if (ids->size) memcpy(grown, ids->data, ids->size * sizeof *grown);
    walsh_free(ids->data);
    ids->data = grown;
    ids->capacity = capacity;
    return WALSH_OK;
}

enum walsh_status walsh_ids_append(struct walsh_ids *ids, const int32_t *data, size_t count,
                                   struct walsh_error *err)
{
    WALSH_TRY(walsh_ids_reserve(ids, count, err));
    for (size_t i = 0; i < count; i++) ids->data[ids->size + i] = data[i];
    ids->size += count;
    return WALSH_OK;
}

/* ---- a binary heap of rank << 32 | position, smallest first; the caller has reserved the room ---- */

static void heap_push(uint64_t *heap, size_t *count, uint64_t entry)
{
    size_t i = (*count)++;
    while (i > 0 && heap[(i - 1) / 2] > entry) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = entry;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count)
{
    uint64_t top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child = 1; child < *count; child = 2 * i + 1) {
        if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return top;
}

/* Look up the pair that starts at `position` and queue it where it merges. */
static void queue_pair(const struct walsh_bpe *bpe, struct symbol *symbols, uint32_t position, uint64_t *heap,
                       size_t *heap_count)
{
    struct symbol *s = &symbols[position];
    s->rank = NO_RANK;
    if (s->next == NO_POSITION) return;
    const struct walsh_merge *merge = find_merge(bpe, s->id, symbols[s->next].id);
    if (merge->pair == FREE_PAIR) return;
    s->rank = merge->rank;
    s->merged = merge->id;
    heap_push(heap, heap_count, (uint64_t)merge->rank << 32 | position);
}

/* Merge until no pair is left; symbol 0 stays the first of the list. */
static void merge_all(const struct walsh_bpe *bpe, struct symbol *symbols, uint32_t count, uint64_t *heap)
{
    size_t heap_count = 0;
    for (uint32_t i = 0; i < count; i++) queue_pair(bpe, symbols, i, heap, &heap_count);
    while (heap_count > 0) {
        uint64_t entry = heap_pop(heap, &heap_count);
        uint32_t rank = (uint32_t)(entry >> 32), position = (uint32_t)entry;
        struct symbol *s = &symbols[position];
        if (s->rank != rank) continue;
        struct symbol *absorbed = &symbols[s->next];
        s->id = s->merged;
        s->next = absorbed->next;
        absorbed->rank = NO_RANK;
        if (s->next != NO_POSITION) symbols[s->next].previous = position;
        queue_pair(bpe, symbols, position, heap, &heap_count);
        if (s->previous != NO_POSITION) queue_pair(bpe, symbols, s->previous, heap, &heap_count);
    }
}

/* The symbols of a piece in the order of its text; there is room for one per byte. */
struct symbol_list {
    struct symbol *symbols;
    uint32_t count;
};

static void add_symbol(struct symbol_list *list, int32_t id)
{
    uint32_t i = list->count++;
    list->symbols[i] = (struct symbol){.id = (uint32_t)id, .previous = i - 1, .next = i + 1};
}

static void add_bytes(const struct walsh_bpe *bpe, const uint8_t *piece, size_t size,
                      struct symbol_list *list)
{
    for (size_t i = 0; i < size; i++)
        if (bpe->byte_ids[piece[i]] >= 0) add_symbol(list, bpe->byte_ids[piece[i]]);
}

/* The tokens of a character's bytes; false where one is missing. */
static bool add_fallback(const struct walsh_bpe *bpe, const uint8_t *character, size_t length,
                         struct symbol_list *list)
{
    for (size_t i = 0; i < length; i++)
        if (bpe->fallback_ids[character[i]] < 0) return false;
    for (size_t i = 0; i < length; i++) add_symbol(list, bpe->fallback_ids[character[i]]);
    return true;
}

/* An unknown token waits for the next known character: `tokenizers` lets bytes overtake it. */
static void add_characters(const struct walsh_bpe *bpe, const struct walsh_vocabulary *v,
                           const uint8_t *piece, size_t size, struct symbol_list *list)
{
    bool waiting = false;
    for (size_t i = 0, length; i < size; i += length) {
        enum walsh_utf8 kind;
        length = walsh_utf8_step(piece + i, size - i, &kind);
        int32_t id = walsh_vocabulary_find_model(v, piece + i, length);
        if (id >= 0) {
            if (waiting) add_symbol(list, bpe->unknown);
            waiting = false;
            add_symbol(list, id);
        } else if (!(bpe->byte_fallback && add_fallback(bpe, piece + i, length, list)) && bpe->unknown >= 0) {
            if (waiting && !bpe->fuse_unknown) add_symbol(list, bpe->unknown);
            waiting = true;
        }
    }
    if (waiting) add_symbol(list, bpe->unknown);
}

enum walsh_status walsh_bpe_encode(const struct walsh_bpe *bpe, const struct walsh_vocabulary *v,
                                   struct walsh_bpe_scratch *scratch, const uint8_t *piece, size_t size,
                                   struct walsh_ids *ids, struct walsh_error *err)
{
    if (bpe->ignore_merges) {
        int32_t id = bpe->characters ? walsh_vocabulary_find_model(v, piece, size)
                                     : walsh_vocabulary_find_bytes(v, piece, size);
        if (id >= 0) return walsh_ids_append(ids, &id, 1, err);
    }
    if (size >= NO_POSITION)
        return walsh_fail(err, WALSH_E_MEMORY, "a piece of %zu bytes is too large", size);
    /* Each position is queued once at the start, and each of fewer than `size` merges queues at most two. */
    scratch->symbols.size = scratch->heap.size = 0;
    WALSH_TRY(walsh_buffer_reserve(&scratch->symbols, size * sizeof(struct symbol), err));
    WALSH_TRY(walsh_buffer_reserve(&scratch->heap, 3 * size * sizeof(uint64_t), err));
    struct symbol_list list = {(struct symbol *)(void *)scratch->symbols.data, 0};
    if (bpe->characters)
        add_characters(bpe, v, piece, size, &list);
    else
        add_bytes(bpe, piece, size, &list);
    if (list.count == 0) return WALSH_OK;
    list.symbols[list.count - 1].next = NO_POSITION; /* symbols[0].previous is 0 - 1, which is NO_POSITION */
    merge_all(bpe, list.symbols, list.count, (uint64_t *)(void *)scratch->heap.data);
    for (uint32_t i = 0; i != NO_POSITION; i = list.symbols[i].next) {
        int32_t id = (int32_t)list.symbols[i].id;
        WALSH_TRY(walsh_ids_append(ids, &id, 1, err));
    }
    return WALSH_OK;
}

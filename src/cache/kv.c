#include "cache/kv.h"

#include <string.h>

#include "base/memory.h"

/* Bytes of one page of K or of V of one layer; a multiple of WALSH_ALIGNMENT because a page has 256 tokens.
 */
static bool page_bytes(const struct walsh_kv_shape *shape, size_t *out)
{
    size_t element = shape->type == WALSH_KV_F16 ? 2 : 4;
    return walsh_mul(shape->kv_heads, shape->head_dim, out) && walsh_mul(*out, WALSH_KV_PAGE * element, out);
}

static uint32_t page_count(uint32_t tokens)
{
    return (uint32_t)walsh_div_up(tokens, WALSH_KV_PAGE);
}

uint64_t walsh_kv_bytes(const struct walsh_kv_shape *shape)
{
    size_t bytes;
    if (!page_bytes(shape, &bytes) || !walsh_mul(bytes, 2, &bytes) ||
        !walsh_mul(bytes, shape->layers, &bytes) || !walsh_mul(bytes, page_count(shape->capacity), &bytes))
        return UINT64_MAX;
    return bytes;
}

enum walsh_status walsh_kv_open(const struct walsh_kv_shape *shape, struct walsh_kv_cache **out,
                                struct walsh_error *err)
{
    *out = NULL;
    if (shape->layers == 0 || shape->kv_heads == 0 || shape->head_dim == 0 || shape->capacity == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: %u layers, %u heads of %u, %u tokens: none may be 0", shape->layers,
                          shape->kv_heads, shape->head_dim, shape->capacity);
    if (walsh_kv_bytes(shape) == UINT64_MAX)
        return walsh_fail(err, WALSH_E_MEMORY, "KV cache of %u tokens: its size does not fit into 64 bits",
                          shape->capacity);

    /* One block: the cache, the views, then two tables of page pointers per layer. */
    size_t views = walsh_round_up(sizeof(struct walsh_kv_cache), WALSH_ALIGNMENT);
    size_t tables, table_entries = (size_t)page_count(shape->capacity);
    size_t view_bytes, bytes;
    if (!walsh_mul(shape->layers, sizeof(struct walsh_kv_view), &view_bytes) ||
        !walsh_add(views, walsh_round_up(view_bytes, WALSH_ALIGNMENT), &tables) ||
        !walsh_mul(table_entries, 2 * sizeof(void *), &bytes) || !walsh_mul(bytes, shape->layers, &bytes) ||
        !walsh_add(tables, bytes, &bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "KV cache of %u tokens: its page table does not fit",
                          shape->capacity);
    uint8_t *block;
    WALSH_TRY(walsh_alloc_zero(bytes, 1, "the page table of a KV cache", &block, err));
    struct walsh_kv_cache *kv = (struct walsh_kv_cache *)(void *)block;
    kv->shape = *shape;
    kv->views = (struct walsh_kv_view *)(void *)(block + views);
    void **table = (void **)(void *)(block + tables);
    for (uint32_t layer = 0; layer < shape->layers; layer++, table += 2 * table_entries)
        kv->views[layer] = (struct walsh_kv_view){.type = shape->type,
                                                  .page_tokens = WALSH_KV_PAGE,
                                                  .k_pages = table,
                                                  .v_pages = table + table_entries};
    *out = kv;
    return WALSH_OK;
}

void walsh_kv_close(struct walsh_kv_cache **kv)
{
    if (!kv || !*kv) return;
    /* Page p of all layers is one block that starts with layer 0's keys. */
    for (uint32_t p = 0; p < (*kv)->pages; p++) walsh_free((*kv)->views[0].k_pages[p]);
    walsh_free(*kv);
    *kv = NULL;
}

/* Zeroed: attention kernels may load whole tiles of a page, and what lies beyond the last token must be
 * finite. */
static enum walsh_status add_page(struct walsh_kv_cache *kv, struct walsh_error *err)
{
    size_t bytes;
    if (!page_bytes(&kv->shape, &bytes))
        return walsh_fail(err, WALSH_E_INTERNAL, "KV cache: page size overflows after open checked it");
    uint8_t *block;
    WALSH_TRY(walsh_alloc_zero((size_t)kv->shape.layers * 2, bytes, "a page of the KV cache", &block, err));
    for (uint32_t layer = 0; layer < kv->shape.layers; layer++) {
        /* The views hand the tables out read-only; the cache itself fills them. */
        void **k = (void **)(uintptr_t)kv->views[layer].k_pages;
        void **v = (void **)(uintptr_t)kv->views[layer].v_pages;
        k[kv->pages] = block + bytes * (2 * (size_t)layer);
        v[kv->pages] = block + bytes * (2 * (size_t)layer + 1);
    }
    kv->pages++;
    return WALSH_OK;
}

enum walsh_status walsh_kv_reserve(struct walsh_kv_cache *kv, uint32_t length, struct walsh_error *err)
{
    if (length > kv->shape.capacity)
        return walsh_fail(err, WALSH_E_CAPACITY, "the context is full: %u tokens wanted, it holds %u", length,
                          kv->shape.capacity);
    while (kv->pages < page_count(length)) WALSH_TRY(add_page(kv, err));
    return WALSH_OK;
}

void walsh_kv_trim(struct walsh_kv_cache *kv, uint32_t length)
{
    if (length < kv->length) kv->length = length;
}

uint64_t walsh_kv_allocated(const struct walsh_kv_cache *kv)
{
    size_t bytes; /* open checked that a full cache's size fits */
    return page_bytes(&kv->shape, &bytes) ? (uint64_t)bytes * 2 * kv->shape.layers * kv->pages : 0;
}

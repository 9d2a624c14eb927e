#include <string.h>

#include "cache/kv_layout.h"
#include "kernels/device.h"

/* --- codecs --- */

static void release_codecs(struct walsh_kv_codecs *codecs)
{
    if (!codecs || atomic_fetch_sub(&codecs->references, 1) > 1) return;
    walsh_turbo_codec_close(&codecs->key);
    walsh_turbo_prod_close(&codecs->prod);
    walsh_turbo_codec_close(&codecs->value);
    if (codecs->queue) walsh_queue_free(codecs->queue, codecs->device);
    walsh_free(codecs);
}

static enum walsh_status fill_codecs(const struct walsh_kv_shape *shape, struct walsh_kv_codecs *codecs,
                                     struct walsh_error *err)
{
    const struct walsh_kv_policy *p = &shape->policy;
    struct walsh_turbo_options options = {.dim = shape->head_dim,
                                          .bits = p->value_bits,
                                          .seed = p->seed,
                                          .stream = "value",
                                          .no_rotation = p->no_rotation,
                                          .no_correction = p->no_correction};
    WALSH_TRY(walsh_turbo_codec_open(&options, &codecs->value, err));
    codecs->turbo.value = codecs->value;
    if (p->prod_keys) {
        WALSH_TRY(walsh_turbo_prod_open(shape->head_dim, p->key_bits, p->seed, true, &codecs->prod, err));
        codecs->turbo.key = codecs->prod->codec;
        codecs->turbo.prod = codecs->prod;
        codecs->turbo.signs = &codecs->signs;
        return walsh_turbo_codebook_build(shape->head_dim, 1, &codecs->signs, err);
    }
    options.bits = p->key_bits;
    options.stream = "key";
    WALSH_TRY(walsh_turbo_codec_open(&options, &codecs->key, err));
    codecs->turbo.key = codecs->key;
    return WALSH_OK;
}

static enum walsh_status open_codecs(const struct walsh_kv_shape *shape, struct walsh_kv_codecs **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    if (walsh_kv_packed_layers(shape) == 0) return WALSH_OK;
    struct walsh_kv_codecs *codecs;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *codecs, "the codecs of a KV cache", &codecs, err));
    atomic_init(&codecs->references, 1);
    enum walsh_status status = fill_codecs(shape, codecs, err);
    if (status == WALSH_OK && shape->queue) {
        codecs->queue = shape->queue;
        status = shape->queue->memory->upload_codecs(shape->queue, &codecs->turbo, &codecs->device, err);
    }
    if (status != WALSH_OK) {
        release_codecs(codecs);
        return status;
    }
    *out = codecs;
    return WALSH_OK;
}

/* --- open and close --- */

/* The tables of a cache: one block with the cache in front. */
struct tables {
    size_t views, recent, page, ring, windowed, conv, bytes; /* offsets */
    size_t entries, ring_entries;                            /* pages of a full cache, of either kind */
};

static bool lay_tables(const struct walsh_kv_shape *shape, struct tables *t)
{
    const uint32_t packed = walsh_kv_ring_pages(shape) ? walsh_kv_packed_layers(shape) : 0;
    size_t views, recent, pages, page, ring;
    t->entries = walsh_kv_page_count(shape->capacity);
    t->ring_entries = walsh_div_up(shape->capacity, WALSH_KV_RING_PAGE);
    t->views = walsh_round_up(sizeof(struct walsh_kv_cache), WALSH_ALIGNMENT);
    if (!walsh_mul(shape->layers, sizeof(struct walsh_kv_view), &views) ||
        !walsh_mul(packed ? shape->layers : 0, sizeof(struct walsh_kv_view), &recent) ||
        !walsh_mul(t->entries, sizeof(void *), &pages) || !walsh_mul(pages, 2, &page) ||
        !walsh_mul(page, shape->layers, &page) || !walsh_mul(t->ring_entries, 2 * sizeof(void *), &ring) ||
        !walsh_mul(ring, packed, &ring) || !walsh_add(page, pages, &page))
        return false;
    return walsh_add(t->views, views, &t->recent) && walsh_add(t->recent, recent, &t->page) &&
           walsh_add(t->page, page, &t->ring) && walsh_add(t->ring, ring, &t->windowed) &&
           walsh_add(t->windowed, shape->windowed ? shape->layers * sizeof(bool) : 0, &t->conv) &&
           walsh_add(t->conv, shape->conv ? shape->layers * sizeof(bool) : 0, &t->bytes);
}

/* Views and their tables, all pages missing. */
static void make_views(struct walsh_kv_cache *kv, const struct tables *t)
{
    const struct walsh_kv_shape *shape = &kv->shape;
    uint8_t *block = (uint8_t *)kv;
    kv->views = (struct walsh_kv_view *)(void *)(block + t->views);
    kv->page = (struct walsh_kv_page **)(void *)(block + t->page);
    void **table = (void **)(void *)(kv->page + t->entries), **ring = (void **)(void *)(block + t->ring);
    if (t->windowed > t->ring) kv->recent = (struct walsh_kv_view *)(void *)(block + t->recent);
    for (uint32_t layer = 0; layer < shape->layers; layer++, table += 2 * t->entries) {
        struct walsh_kv_view *view = &kv->views[layer];
        *view = (struct walsh_kv_view){.type = walsh_kv_layer_type(shape, layer),
                                       .page_tokens = WALSH_KV_PAGE,
                                       .k_pages = table,
                                       .v_pages = table + t->entries};
        if (view->type != WALSH_KV_TURBO) continue;
        view->turbo = &kv->codecs->turbo;
        if (!kv->recent) continue;
        kv->recent[layer] = (struct walsh_kv_view){.type = WALSH_KV_F16,
                                                   .page_tokens = WALSH_KV_RING_PAGE,
                                                   .k_pages = ring,
                                                   .v_pages = ring + t->ring_entries};
        ring += 2 * t->ring_entries;
        view->recent = &kv->recent[layer];
        view->recent_tokens = shape->policy.recent;
    }
}

static enum walsh_status open_cache(const struct walsh_kv_shape *shape, struct walsh_kv_codecs *codecs,
                                    struct walsh_kv_cache **out, struct walsh_error *err)
{
    struct tables t;
    if (!lay_tables(shape, &t))
        return walsh_fail(err, WALSH_E_MEMORY, "KV cache of %u tokens: its page table does not fit",
                          shape->capacity);
    uint8_t *block;
    WALSH_TRY(walsh_alloc_zero(t.bytes, 1, "the page table of a KV cache", &block, err));
    struct walsh_kv_cache *kv = (struct walsh_kv_cache *)(void *)block;
    kv->shape = *shape;
    if (shape->windowed)
        kv->shape.windowed = memcpy(block + t.windowed, shape->windowed, shape->layers * sizeof(bool));
    if (shape->conv) kv->shape.conv = memcpy(block + t.conv, shape->conv, shape->layers * sizeof(bool));
    kv->codecs = codecs;
    for (uint32_t layer = 0; layer < shape->layers; layer++)
        kv->page_bytes += walsh_kv_side_bytes(shape, layer, WALSH_TURBO_KEY) +
                          walsh_kv_side_bytes(shape, layer, WALSH_TURBO_VALUE);
    make_views(kv, &t);
    kv->op_views = kv->views;
    if (shape->queue) {
        const enum walsh_status status = walsh_queue_alloc(
            shape->queue, t.windowed - t.views, "the page table of a KV cache", &kv->device_tables, err);
        if (status != WALSH_OK) {
            walsh_free(kv);
            return status;
        }
        kv->op_views = kv->device_tables;
        kv->changed = true;
    }
    if (kv->recent)
        kv->ring_bytes = walsh_kv_f16_bytes(shape, WALSH_KV_RING_PAGE) * 2 * walsh_kv_ring_pages(shape) *
                         walsh_kv_packed_layers(shape);
    *out = kv;
    return WALSH_OK;
}

enum walsh_status walsh_kv_open(const struct walsh_kv_shape *shape, struct walsh_kv_cache **out,
                                struct walsh_error *err)
{
    *out = NULL;
    WALSH_TRY(walsh_kv_check(shape, err));
    struct walsh_kv_codecs *codecs;
    WALSH_TRY(open_codecs(shape, &codecs, err));
    const enum walsh_status status = open_cache(shape, codecs, out, err);
    if (status != WALSH_OK) release_codecs(codecs);
    return status;
}

static void release_page(struct walsh_kv_page *page)
{
    if (atomic_fetch_sub(&page->references, 1) > 1) return;
    if (page->queue) walsh_queue_free(page->queue, page->device);
    walsh_free(page);
}

void walsh_kv_close(struct walsh_kv_cache **kv)
{
    if (!kv || !*kv) return;
    for (uint32_t p = 0; p < (*kv)->pages; p++) release_page((*kv)->page[p]);
    release_codecs((*kv)->codecs);
    if ((*kv)->shape.queue) walsh_queue_free((*kv)->shape.queue, (*kv)->device_tables);
    if ((*kv)->shape.queue)
        walsh_queue_free((*kv)->shape.queue, (*kv)->ring);
    else
        walsh_free((*kv)->ring);
    walsh_free(*kv);
    *kv = NULL;
}

/* --- pages --- */

/* Zeroed: attention kernels may load whole tiles of a page, and what lies beyond the last token must be
 * finite. */
static enum walsh_status new_page(const struct walsh_kv_cache *kv, struct walsh_kv_page **out,
                                  struct walsh_error *err)
{
    size_t bytes;
    const struct walsh_queue *queue = kv->shape.queue;
    if (!walsh_add(queue ? 0 : kv->page_bytes, sizeof **out, &bytes))
        return walsh_fail(err, WALSH_E_INTERNAL, "KV cache: page size overflows after open checked it");
    struct walsh_kv_page *page;
    WALSH_TRY(walsh_alloc_zero(bytes, 1, "a page of the KV cache", &page, err));
    atomic_init(&page->references, 1);
    page->queue = queue;
    if (queue) {
        const enum walsh_status status =
            walsh_queue_alloc(queue, kv->page_bytes, "a page of the KV cache", &page->device, err);
        if (status != WALSH_OK) {
            walsh_free(page);
            return status;
        }
        walsh_queue_zero(queue, page->device, kv->page_bytes);
    }
    *out = page;
    return WALSH_OK;
}

/* The views hand the tables out read-only; the cache itself fills them. */
static void set_entry(void *const *table, size_t entry, void *data)
{
    ((void **)(uintptr_t)table)[entry] = data;
}

/* Page p of the tables; takes the reference over. */
static void set_page(struct walsh_kv_cache *kv, uint32_t p, struct walsh_kv_page *page)
{
    uint8_t *data = walsh_kv_page_data(page);
    kv->page[p] = page;
    kv->changed = true;
    for (uint32_t layer = 0; layer < kv->shape.layers; layer++) {
        const struct walsh_kv_view *view = &kv->views[layer];
        for (int side = 0; side < 2; side++) {
            set_entry(side == WALSH_TURBO_KEY ? view->k_pages : view->v_pages, p, data);
            data += walsh_kv_side_bytes(&kv->shape, layer, (enum walsh_turbo_side)side);
        }
    }
}

static bool shared(struct walsh_kv_page *page)
{
    return atomic_load(&page->references) > 1;
}

/* Make the page in which the length lies this cache's own. */
static enum walsh_status own_tail(struct walsh_kv_cache *kv, struct walsh_error *err)
{
    const uint32_t slot = kv->length % WALSH_KV_PAGE, p = kv->length / WALSH_KV_PAGE;
    if (slot == 0 || p >= kv->pages || !shared(kv->page[p])) return WALSH_OK;
    struct walsh_kv_page *page;
    WALSH_TRY(new_page(kv, &page, err));
    if (kv->shape.queue)
        walsh_queue_copy(kv->shape.queue, page->device, kv->page[p]->device, kv->page_bytes);
    else
        memcpy(walsh_kv_page_data(page), walsh_kv_page_data(kv->page[p]), kv->page_bytes);
    release_page(kv->page[p]);
    set_page(kv, p, page);
    return WALSH_OK;
}

/* Page p, no token of which is stored, as this cache's own. */
static enum walsh_status own_empty(struct walsh_kv_cache *kv, uint32_t p, struct walsh_error *err)
{
    if (p < kv->pages && !shared(kv->page[p])) return WALSH_OK;
    struct walsh_kv_page *page;
    WALSH_TRY(new_page(kv, &page, err));
    if (p < kv->pages)
        release_page(kv->page[p]);
    else
        kv->pages = p + 1;
    set_page(kv, p, page);
    return WALSH_OK;
}

/* The ring of each packing layer: entry i of its tables is ring page i modulo their number. */
static enum walsh_status add_ring(struct walsh_kv_cache *kv, struct walsh_error *err)
{
    if (!kv->recent || kv->ring) return WALSH_OK;
    if (kv->shape.queue) {
        WALSH_TRY(walsh_queue_alloc(kv->shape.queue, kv->ring_bytes, "the recent tokens of a KV cache",
                                    &kv->ring, err));
        walsh_queue_zero(kv->shape.queue, kv->ring, kv->ring_bytes);
        kv->changed = true;
    } else {
        WALSH_TRY(walsh_alloc_zero(kv->ring_bytes, 1, "the recent tokens of a KV cache", &kv->ring, err));
    }
    const size_t bytes = walsh_kv_f16_bytes(&kv->shape, WALSH_KV_RING_PAGE),
                 entries = walsh_div_up(kv->shape.capacity, WALSH_KV_RING_PAGE);
    const uint32_t pages = walsh_kv_ring_pages(&kv->shape);
    uint8_t *data = kv->ring;
    for (uint32_t layer = 0; layer < kv->shape.layers; layer++) {
        if (!kv->views[layer].recent) continue;
        for (size_t i = 0; i < entries; i++) {
            set_entry(kv->recent[layer].k_pages, i, data + i % pages * bytes);
            set_entry(kv->recent[layer].v_pages, i, data + (pages + i % pages) * bytes);
        }
        data += 2 * pages * bytes;
    }
    return WALSH_OK;
}

/* Views and tables to the device, where they changed: the same block there, with the views' pointers into it.
 */
static enum walsh_status copy_tables(struct walsh_kv_cache *kv, struct walsh_error *err)
{
    if (!kv->device_tables || !kv->changed) return WALSH_OK;
    struct tables t;
    if (!lay_tables(&kv->shape, &t))
        return walsh_fail(err, WALSH_E_INTERNAL, "KV cache: the page table does not fit after open made it");
    const size_t bytes = t.windowed - t.views;
    uint8_t *block;
    WALSH_TRY(walsh_alloc(bytes, 1, "the page table of a KV cache", &block, err));
    memcpy(block, kv->views, bytes);
    struct walsh_kv_view *views = (struct walsh_kv_view *)(void *)block;
    const uintptr_t host = (uintptr_t)kv->views, device = (uintptr_t)kv->device_tables;
    for (uint32_t layer = 0; layer < kv->shape.layers; layer++) {
        views[layer].k_pages = (void *const *)((uintptr_t)views[layer].k_pages - host + device);
        views[layer].v_pages = (void *const *)((uintptr_t)views[layer].v_pages - host + device);
        if (views[layer].type != WALSH_KV_TURBO) continue;
        views[layer].turbo = kv->codecs->device;
        if (!kv->recent) continue;
        struct walsh_kv_view *recent =
            (struct walsh_kv_view *)((uintptr_t)&kv->recent[layer] - host + (uintptr_t)block);
        recent->k_pages = (void *const *)((uintptr_t)recent->k_pages - host + device);
        recent->v_pages = (void *const *)((uintptr_t)recent->v_pages - host + device);
        views[layer].recent = (const struct walsh_kv_view *)((uintptr_t)&kv->recent[layer] - host + device);
    }
    const enum walsh_status status =
        walsh_queue_upload(kv->shape.queue, kv->device_tables, block, bytes, err);
    walsh_free(block);
    kv->changed = status != WALSH_OK;
    return status;
}

enum walsh_status walsh_kv_reserve(struct walsh_kv_cache *kv, uint32_t length, struct walsh_error *err)
{
    if (length > kv->shape.capacity)
        return walsh_fail(err, WALSH_E_CAPACITY, "the context is full: %u tokens wanted, it holds %u", length,
                          kv->shape.capacity);
    if (length <= kv->length) return WALSH_OK;
    WALSH_TRY(add_ring(kv, err));
    WALSH_TRY(own_tail(kv, err));
    for (uint32_t p = walsh_kv_page_count(kv->length); p < walsh_kv_page_count(length); p++)
        WALSH_TRY(own_empty(kv, p, err));
    return copy_tables(kv, err);
}

void walsh_kv_trim(struct walsh_kv_cache *kv, uint32_t length)
{
    if (length >= kv->length) return;
    const uint32_t recent = kv->shape.policy.recent;
    for (uint32_t layer = 0; kv->recent && layer < kv->shape.layers; layer++) {
        struct walsh_kv_view *view = &kv->views[layer];
        if (kv->length > recent && view->recent_begin < kv->length - recent)
            view->recent_begin = kv->length - recent;
        if (view->recent_begin > length) view->recent_begin = length;
        kv->changed = true;
    }
    kv->length = length;
}

enum walsh_status walsh_kv_fork(const struct walsh_kv_cache *kv, struct walsh_kv_cache **out,
                                struct walsh_error *err)
{
    *out = NULL;
    struct walsh_kv_cache *fork;
    WALSH_TRY(open_cache(&kv->shape, kv->codecs, &fork, err));
    if (fork->codecs) atomic_fetch_add(&fork->codecs->references, 1);
    fork->length = kv->length;
    for (; fork->pages < walsh_kv_page_count(kv->length); fork->pages++) {
        atomic_fetch_add(&kv->page[fork->pages]->references, 1);
        set_page(fork, fork->pages, kv->page[fork->pages]);
    }
    if (kv->ring) {
        const enum walsh_status status = add_ring(fork, err);
        if (status != WALSH_OK) {
            walsh_kv_close(&fork);
            return status;
        }
        if (kv->shape.queue)
            walsh_queue_copy(kv->shape.queue, fork->ring, kv->ring, kv->ring_bytes);
        else
            memcpy(fork->ring, kv->ring, kv->ring_bytes);
        for (uint32_t layer = 0; layer < kv->shape.layers; layer++)
            fork->views[layer].recent_begin = kv->views[layer].recent_begin;
    }
    *out = fork;
    return WALSH_OK;
}

uint64_t walsh_kv_allocated(const struct walsh_kv_cache *kv)
{
    return (uint64_t)kv->page_bytes * kv->pages + (kv->ring ? kv->ring_bytes : 0);
}

uint64_t walsh_kv_saturated(const struct walsh_kv_cache *kv)
{
    uint64_t count = 0;
    struct walsh_error err;
    if (!kv->codecs) return 0;
    if (!kv->codecs->queue) return atomic_load(&kv->codecs->turbo.saturated);
    const struct walsh_queue *q = kv->codecs->queue;
    return q->memory->read_codecs(q, kv->codecs->device, &count, &err) == WALSH_OK ? count : 0;
}

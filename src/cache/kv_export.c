/* The bytes of a range of tokens, as another cache can take them over. */
#include <string.h>

#include "cache/kv_layout.h"
#include "kernels/device.h"

/* How many of the last of `tokens` tokens travel in f16 too. */
static uint32_t recent_tokens(const struct walsh_kv_cache *kv, uint32_t tokens)
{
    return kv->recent ? (uint32_t)walsh_min(kv->shape.policy.recent, tokens) : 0;
}

size_t walsh_kv_export_bytes(const struct walsh_kv_cache *kv, uint32_t tokens)
{
    return kv->page_bytes * walsh_kv_page_count(tokens) + walsh_kv_f16_bytes(&kv->shape, 1) * 2 *
                                                              recent_tokens(kv, tokens) *
                                                              walsh_kv_packed_layers(&kv->shape);
}

/* Copy tokens [first, first + n) between all rings, of which `ring` is the host's copy, and `bytes`: of each packing layer,
 * K then V, [kv_heads][n][head_dim]. */
static void copy_tokens(const struct walsh_kv_cache *kv, uint8_t *ring, uint32_t first, uint32_t n,
                        uint8_t *bytes, bool out)
{
    const uint32_t dim = kv->shape.head_dim;
    const size_t row = dim * sizeof(uint16_t);
    for (uint32_t layer = 0; layer < kv->shape.layers; layer++) {
        const struct walsh_kv_view *view = kv->views[layer].recent;
        for (int side = 0; view && side < 2; side++)
            for (uint32_t head = 0; head < kv->shape.kv_heads; head++)
                for (uint32_t t = first; t < first + n; t++, bytes += row) {
                    void *const *table = side == WALSH_TURBO_KEY ? view->k_pages : view->v_pages;
                    const uint32_t page = view->page_tokens;
                    const uintptr_t from = (uintptr_t)table[t / page] - (uintptr_t)kv->ring;
                    uint16_t *x = (uint16_t *)(void *)(ring + from) + ((size_t)head * page + t % page) * dim;
                    memcpy(out ? (void *)bytes : x, out ? (const void *)x : bytes, row);
                }
    }
}

static enum walsh_status copy_recent(const struct walsh_kv_cache *kv, uint32_t first, uint32_t n,
                                     uint8_t *bytes, bool out, struct walsh_error *err)
{
    const struct walsh_queue *q = kv->shape.queue;
    if (n == 0) return WALSH_OK;
    if (!q) {
        copy_tokens(kv, kv->ring, first, n, bytes, out);
        return WALSH_OK;
    }
    uint8_t *ring;
    WALSH_TRY(walsh_alloc(kv->ring_bytes, 1, "the recent tokens of a KV cache", &ring, err));
    enum walsh_status status = walsh_queue_download(q, ring, kv->ring, kv->ring_bytes, err);
    if (status == WALSH_OK) copy_tokens(kv, ring, first, n, bytes, out);
    if (status == WALSH_OK && !out) status = walsh_queue_upload(q, kv->ring, ring, kv->ring_bytes, err);
    walsh_free(ring);
    return status;
}

static enum walsh_status read_page(struct walsh_kv_page *page, uint8_t *out, size_t bytes,
                                   struct walsh_error *err)
{
    if (page->queue) return walsh_queue_download(page->queue, out, walsh_kv_page_data(page), bytes, err);
    memcpy(out, walsh_kv_page_data(page), bytes);
    return WALSH_OK;
}

static enum walsh_status write_page(struct walsh_kv_page *page, const uint8_t *in, size_t bytes,
                                    struct walsh_error *err)
{
    if (page->queue) return walsh_queue_upload(page->queue, walsh_kv_page_data(page), in, bytes, err);
    memcpy(walsh_kv_page_data(page), in, bytes);
    return WALSH_OK;
}

enum walsh_status walsh_kv_export(const struct walsh_kv_cache *kv, uint32_t first, uint32_t tokens,
                                  uint8_t *out, struct walsh_error *err)
{
    if (first % WALSH_KV_PAGE != 0 || tokens > kv->length || first > kv->length - tokens)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: %u tokens from %u on cannot be exported, it holds %u", tokens, first,
                          kv->length);
    const uint32_t recent = recent_tokens(kv, tokens), end = first + tokens;
    if (recent > 0 && (end != kv->length || kv->views[0].recent_begin > end - recent))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: the recent tokens before %u are not in f16 any more, it holds %u tokens",
                          end, kv->length);
    const uint32_t begin = first / WALSH_KV_PAGE, pages = walsh_kv_page_count(tokens);
    for (uint32_t p = 0; p < pages; p++, out += kv->page_bytes)
        WALSH_TRY(read_page(kv->page[begin + p], out, kv->page_bytes, err));
    if (tokens % WALSH_KV_PAGE != 0)
        walsh_kv_clear_tail(&kv->shape, out - kv->page_bytes, tokens % WALSH_KV_PAGE);
    return copy_recent(kv, end - recent, recent, out, true, err);
}

enum walsh_status walsh_kv_import(struct walsh_kv_cache *kv, uint32_t tokens, const uint8_t *in,
                                  struct walsh_error *err)
{
    if (kv->length % WALSH_KV_PAGE != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: tokens are imported at multiples of %d, it holds %u", WALSH_KV_PAGE,
                          kv->length);
    if (tokens > kv->shape.capacity - kv->length)
        return walsh_fail(err, WALSH_E_CAPACITY,
                          "the context is full: %u more tokens wanted, it holds %u of %u", tokens, kv->length,
                          kv->shape.capacity);
    WALSH_TRY(walsh_kv_reserve(kv, kv->length + tokens, err));
    const uint32_t begin = kv->length / WALSH_KV_PAGE, pages = walsh_kv_page_count(tokens);
    for (uint32_t p = 0; p < pages; p++, in += kv->page_bytes)
        WALSH_TRY(write_page(kv->page[begin + p], in, kv->page_bytes, err));
    kv->length += tokens;
    const uint32_t recent = recent_tokens(kv, tokens);
    return copy_recent(kv, kv->length - recent, recent, (uint8_t *)(uintptr_t)in, false, err);
}

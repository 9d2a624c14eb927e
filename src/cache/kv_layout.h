/* cache/kv_layout: what a page and the ring of recent tokens hold. Private to cache/. */
#ifndef WALSH_CACHE_KV_LAYOUT_H
#define WALSH_CACHE_KV_LAYOUT_H

#include <stdatomic.h>

#include "base/memory.h"
#include "cache/kv.h"
#include "kernels/turbo.h"

#define WALSH_KV_RING_PAGE 64 /* tokens */

/* A page: this, then page_bytes of data, or on a device `device`. */
struct walsh_kv_page {
    _Alignas(64) atomic_uint references;
    uint8_t *device;
    const struct walsh_queue *queue;
};
static inline uint8_t *walsh_kv_page_data(struct walsh_kv_page *page)
{
    return page->queue ? page->device : (uint8_t *)(page + 1);
}

struct walsh_kv_codecs {
    struct walsh_turbo_codecs turbo;
    /* owned; key or prod and signs */
    struct walsh_turbo_codec *key, *value;
    struct walsh_turbo_prod *prod;
    struct walsh_turbo_codebook signs;
    /* once more on a device, in the memory of this queue; NULL: the host's */
    void *device;
    const struct walsh_queue *queue;
    atomic_uint references;
};

/* Bytes of one side of one layer in a page; the shape has been checked. */
size_t walsh_kv_side_bytes(const struct walsh_kv_shape *shape, uint32_t layer, enum walsh_turbo_side side);
/* Layers that pack. */
uint32_t walsh_kv_packed_layers(const struct walsh_kv_shape *shape);
/* Pages of WALSH_KV_RING_PAGE tokens of a layer's ring: so many that a call of shape->rows rows leaves the
 * recent tokens of its first row in it. 0 without recent tokens. */
uint32_t walsh_kv_ring_pages(const struct walsh_kv_shape *shape);
/* Bytes of one token range of [kv_heads][tokens][head_dim] in f16. */
size_t walsh_kv_f16_bytes(const struct walsh_kv_shape *shape, uint32_t tokens);
/* Zero what tokens [slot, WALSH_KV_PAGE) hold in a page's data. */
void walsh_kv_clear_tail(const struct walsh_kv_shape *shape, uint8_t *data, uint32_t slot);

static inline uint32_t walsh_kv_page_count(uint32_t tokens)
{
    return (uint32_t)walsh_div_up(tokens, WALSH_KV_PAGE);
}

#endif

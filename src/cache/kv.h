/* cache/kv: keys and values of one sequence, in pages of WALSH_KV_PAGE tokens, allocated as the sequence
 * grows. May use checkpoint, kernels and below. */
#ifndef WALSH_CACHE_KV_H
#define WALSH_CACHE_KV_H

#include "base/status.h"
#include "kernels/kernels.h"

#define WALSH_KV_PAGE 256 /* tokens */

struct walsh_kv_shape {
    enum walsh_kv_type type;
    uint32_t layers, kv_heads, head_dim;
    uint32_t capacity; /* tokens */
};
/* Bytes of a full cache (pages are whole); UINT64_MAX where that does not fit. */
uint64_t walsh_kv_bytes(const struct walsh_kv_shape *shape);

struct walsh_kv_cache {
    struct walsh_kv_shape shape;
    uint32_t length;             /* tokens stored in every layer */
    uint32_t pages;              /* allocated, per layer */
    struct walsh_kv_view *views; /* [layers] */
};
enum walsh_status walsh_kv_open(const struct walsh_kv_shape *shape, struct walsh_kv_cache **out,
                                struct walsh_error *err);
void walsh_kv_close(struct walsh_kv_cache **kv);
/* Make room for tokens [0, length): WALSH_E_CAPACITY beyond the capacity, with both figures; the cache is
 * then unchanged. */
enum walsh_status walsh_kv_reserve(struct walsh_kv_cache *kv, uint32_t length, struct walsh_error *err);
/* Forget tokens [length, ...); pages stay allocated. */
void walsh_kv_trim(struct walsh_kv_cache *kv, uint32_t length);
uint64_t walsh_kv_allocated(const struct walsh_kv_cache *kv); /* bytes now held */

#endif

/* cache/kv: keys and values of one sequence, in pages of WALSH_KV_PAGE tokens, allocated as the sequence
 * grows. May use checkpoint, kernels and below.
 *
 * A page holds all layers: [layer][K, V], each side as its layer's view says (kernels.h), so that a page is
 * one run of bytes. Pages are counted references: a fork shares them, and whoever is about to write into a
 * shared one gets a copy. Behind the stored tokens a page may hold what a trim forgot; it is never exported:
 * equal keys and values give equal bytes.
 *
 * TURBO layers pack each token when it is appended, from f32. The newest tokens are kept once more in f16
 * where the policy asks for it, in a ring of each layer that belongs to this cache alone; a token leaves it
 * by being overwritten. */
#ifndef WALSH_CACHE_KV_H
#define WALSH_CACHE_KV_H

#include "base/status.h"
#include "kernels/kernels.h"

#define WALSH_KV_PAGE 256 /* tokens */

/* What to store of keys and values, the same for all caches that may share or exchange pages. */
struct walsh_kv_policy {
    enum walsh_kv_type type; /* of the layers that are not skipped */
    /* TURBO only; formats/turbo.h */
    unsigned key_bits, value_bits;   /* 1..8; of Prod keys 2..8 */
    uint32_t skip;                   /* the first and the last `skip` layers stay F16 */
    uint32_t recent;                 /* the newest tokens that decode reads in f16 */
    uint64_t seed;                   /* of the rotations' signs */
    bool prod_keys;                  /* the Prod codec for keys, experimental */
    bool no_rotation, no_correction; /* for measurements */
};
#define WALSH_KV_MAX_RECENT 65536

struct walsh_kv_shape {
    struct walsh_kv_policy policy;
    uint32_t layers, kv_heads, head_dim;
    uint32_t capacity; /* tokens */
    uint32_t rows;     /* decode rows of this sequence in one call at most; 0: 1 */
    /* of a device: its pages are in this queue's memory; NULL: the host's. Borrowed. TURBO: a backend with
     * upload_codecs (kernels/device.h) */
    const struct walsh_queue *queue;
    /* [layers] true where a layer attends within a window: such a layer stays F16. NULL: none does. A cache
     * keeps a copy. */
    const bool *windowed;
    /* [layers] true where a layer is a short convolution: of each token its pages hold `conv_width` elements
     * of what it convolves, F32 or F16, in the place of keys, and no values. NULL: none is. A cache keeps a
     * copy. */
    const bool *conv;
    uint32_t conv_width;
};
/* WALSH_E_ARGUMENT, naming value and range, for a shape that walsh_kv_open would refuse; WALSH_E_MEMORY where
 * its size does not fit into 64 bits. */
enum walsh_status walsh_kv_check(const struct walsh_kv_shape *shape, struct walsh_error *err);
/* Bytes of a full cache (pages are whole; the ring of recent tokens counted); UINT64_MAX where that does not
 * fit. The shape has been checked. */
uint64_t walsh_kv_bytes(const struct walsh_kv_shape *shape);
/* The type of a layer under the shape's policy. */
enum walsh_kv_type walsh_kv_layer_type(const struct walsh_kv_shape *shape, uint32_t layer);

struct walsh_kv_page;
struct walsh_kv_codecs;
struct walsh_kv_cache {
    struct walsh_kv_shape shape;
    uint32_t length;             /* tokens stored in every layer */
    uint32_t pages;              /* in the tables; pages beyond the length hold nothing */
    size_t page_bytes;           /* of all layers */
    struct walsh_kv_view *views; /* [layers] */
    /* what ops take in the place of `views`: the same, or on a device their copy there, as of the last
     * reserve */
    const struct walsh_kv_view *op_views;
    /* the cache's own */
    void *device_tables;            /* op_views and the tables that they name; NULL: the host's */
    bool changed;                   /* since they were last copied */
    struct walsh_kv_page **page;    /* [pages of a full cache] */
    struct walsh_kv_view *recent;   /* [layers], of TURBO layers */
    struct walsh_kv_codecs *codecs; /* NULL: no TURBO layer */
    uint8_t *ring;                  /* NULL before the first reserve and without recent tokens */
    size_t ring_bytes;              /* of all layers */
};
enum walsh_status walsh_kv_open(const struct walsh_kv_shape *shape, struct walsh_kv_cache **out,
                                struct walsh_error *err);
void walsh_kv_close(struct walsh_kv_cache **kv);
/* Make tokens [kv->length, length) writable by the op kv_append; the writer adds to kv->length afterwards.
 * WALSH_E_CAPACITY beyond the capacity, with both figures; the stored tokens are then as before. */
enum walsh_status walsh_kv_reserve(struct walsh_kv_cache *kv, uint32_t length, struct walsh_error *err);
/* Forget tokens [length, ...); pages stay allocated. Tokens that had left the ring of recent ones before stay
 * packed. */
void walsh_kv_trim(struct walsh_kv_cache *kv, uint32_t length);
/* A second cache with the same tokens and capacity. Pages are shared until one of both writes into them. */
enum walsh_status walsh_kv_fork(const struct walsh_kv_cache *kv, struct walsh_kv_cache **out,
                                struct walsh_error *err);
/* Bytes of pages and ring that it holds now; pages that forks share count for each. */
uint64_t walsh_kv_allocated(const struct walsh_kv_cache *kv);
/* Norms that were stored as 65504 because they were larger, of this cache and all its forks. */
uint64_t walsh_kv_saturated(const struct walsh_kv_cache *kv);

/* The stored bytes of `tokens` tokens from `first` on, a multiple of WALSH_KV_PAGE: their pages, zero beyond
 * the last token, then the f16 copies of the last of them (as many as the policy keeps). Two caches of equal
 * policy, layers, heads and head dimension exchange them. */
size_t walsh_kv_export_bytes(const struct walsh_kv_cache *kv, uint32_t tokens);
/* Copy them to out[walsh_kv_export_bytes]. Tokens not stored, or `first` within a page: WALSH_E_ARGUMENT; so
 * is a range that does not end at kv->length where the policy keeps recent tokens, because only the newest
 * are in the ring. */
enum walsh_status walsh_kv_export(const struct walsh_kv_cache *kv, uint32_t first, uint32_t tokens,
                                  uint8_t *out, struct walsh_error *err);
/* Append them: kv->length must be the `first` of the export. Errors as walsh_kv_reserve. */
enum walsh_status walsh_kv_import(struct walsh_kv_cache *kv, uint32_t tokens, const uint8_t *in,
                                  struct walsh_error *err);

#endif

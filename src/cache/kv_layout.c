#include "cache/kv_layout.h"

#include <string.h>

enum walsh_kv_type walsh_kv_layer_type(const struct walsh_kv_shape *shape, uint32_t layer)
{
    const struct walsh_kv_policy *p = &shape->policy;
    if (p->type != WALSH_KV_TURBO) return p->type;
    if (shape->conv && shape->conv[layer]) return WALSH_KV_F16;
    const bool skipped = layer < p->skip || layer >= shape->layers - walsh_min(p->skip, shape->layers);
    return skipped || (shape->windowed && shape->windowed[layer]) ? WALSH_KV_F16 : WALSH_KV_TURBO;
}

uint32_t walsh_kv_packed_layers(const struct walsh_kv_shape *shape)
{
    if (shape->policy.type != WALSH_KV_TURBO) return 0;
    uint32_t packed = 0;
    for (uint32_t layer = 0; layer < shape->layers; layer++)
        packed += walsh_kv_layer_type(shape, layer) == WALSH_KV_TURBO;
    return packed;
}

/* Bytes of one head of one side of a page. */
static size_t head_bytes(const struct walsh_kv_shape *shape, enum walsh_kv_type type,
                         enum walsh_turbo_side side)
{
    const struct walsh_kv_policy *p = &shape->policy;
    if (type != WALSH_KV_TURBO)
        return (size_t)WALSH_KV_PAGE * shape->head_dim * (type == WALSH_KV_F16 ? 2 : 4);
    if (side == WALSH_TURBO_VALUE)
        return walsh_turbo_head_bytes(shape->head_dim, p->value_bits, WALSH_KV_PAGE);
    if (!p->prod_keys) return walsh_turbo_head_bytes(shape->head_dim, p->key_bits, WALSH_KV_PAGE);
    return walsh_turbo_head_bytes(shape->head_dim, p->key_bits - 1, WALSH_KV_PAGE) +
           walsh_turbo_head_bytes(shape->head_dim, 1, WALSH_KV_PAGE);
}

/* Bytes of a convolution's inputs in a page. */
static size_t conv_bytes(const struct walsh_kv_shape *shape)
{
    return (size_t)WALSH_KV_PAGE * shape->conv_width * (shape->policy.type == WALSH_KV_F32 ? 4 : 2);
}

static uint32_t conv_layers(const struct walsh_kv_shape *shape)
{
    uint32_t count = 0;
    for (uint32_t layer = 0; shape->conv && layer < shape->layers; layer++) count += shape->conv[layer];
    return count;
}

size_t walsh_kv_side_bytes(const struct walsh_kv_shape *shape, uint32_t layer, enum walsh_turbo_side side)
{
    if (shape->conv && shape->conv[layer]) return side == WALSH_TURBO_KEY ? conv_bytes(shape) : 0;
    return shape->kv_heads * head_bytes(shape, walsh_kv_layer_type(shape, layer), side);
}

uint32_t walsh_kv_ring_pages(const struct walsh_kv_shape *shape)
{
    const uint32_t recent = shape->policy.type == WALSH_KV_TURBO ? shape->policy.recent : 0;
    if (recent == 0) return 0;
    const uint32_t span = recent + (shape->rows ? shape->rows : 1) - 1; /* tokens that one call reads */
    const size_t wanted = walsh_div_up(span - 1, WALSH_KV_RING_PAGE) + 1;
    /* no more than hold every token there can be */
    return (uint32_t)walsh_min(wanted, walsh_div_up(shape->capacity, WALSH_KV_RING_PAGE));
}

size_t walsh_kv_f16_bytes(const struct walsh_kv_shape *shape, uint32_t tokens)
{
    return (size_t)shape->kv_heads * tokens * shape->head_dim * 2;
}

/* *total += a * b * c */
static bool add_product(uint64_t *total, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t product;
    return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product) &&
           !__builtin_add_overflow(*total, product, total);
}

uint64_t walsh_kv_bytes(const struct walsh_kv_shape *shape)
{
    const struct walsh_kv_policy *p = &shape->policy;
    const uint32_t packed = walsh_kv_packed_layers(shape), conv = conv_layers(shape),
                   plain = shape->layers - packed - conv;
    const uint64_t pages = walsh_kv_page_count(shape->capacity), heads = pages * shape->kv_heads,
                   element = p->type == WALSH_KV_F32 ? 4 : 2;
    uint64_t token = 0, bytes = 0; /* token: of one head in all layers; 2^32 * 2^32 * 16 may not fit */
    if (!add_product(&token, plain, shape->head_dim, 2 * element)) return UINT64_MAX;
    if (!add_product(&bytes, token, heads, WALSH_KV_PAGE)) return UINT64_MAX;
    if (!add_product(&bytes, conv, conv_bytes(shape), pages)) return UINT64_MAX;
    if (packed == 0) return bytes;
    for (int side = 0; side < 2; side++)
        if (!add_product(&bytes, packed, heads,
                         head_bytes(shape, WALSH_KV_TURBO, (enum walsh_turbo_side)side)))
            return UINT64_MAX;
    const uint64_t ring = (uint64_t)walsh_kv_ring_pages(shape) * packed;
    return add_product(&bytes, walsh_kv_f16_bytes(shape, WALSH_KV_RING_PAGE), 2, ring) ? bytes : UINT64_MAX;
}

static void clear_side(const struct walsh_kv_shape *shape, enum walsh_kv_type type,
                       enum walsh_turbo_side side, uint8_t *data, uint32_t slot)
{
    const struct walsh_kv_policy *p = &shape->policy;
    const size_t bytes = head_bytes(shape, type, side), token = bytes / WALSH_KV_PAGE;
    const bool prod = p->prod_keys && side == WALSH_TURBO_KEY;
    const unsigned bits = side == WALSH_TURBO_VALUE ? p->value_bits : p->key_bits - prod;
    for (uint32_t head = 0; head < shape->kv_heads; head++, data += bytes) {
        if (type != WALSH_KV_TURBO) {
            memset(data + slot * token, 0, bytes - slot * token);
            continue;
        }
        walsh_turbo_clear(side, shape->head_dim, bits, data, WALSH_KV_PAGE, slot);
        if (prod)
            walsh_turbo_clear(side, shape->head_dim, 1,
                              data + walsh_turbo_head_bytes(shape->head_dim, bits, WALSH_KV_PAGE),
                              WALSH_KV_PAGE, slot);
    }
}

void walsh_kv_clear_tail(const struct walsh_kv_shape *shape, uint8_t *data, uint32_t slot)
{
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        const enum walsh_kv_type type = walsh_kv_layer_type(shape, layer);
        if (shape->conv && shape->conv[layer]) {
            const size_t bytes = conv_bytes(shape), kept = slot * (bytes / WALSH_KV_PAGE);
            memset(data + kept, 0, bytes - kept);
            data += bytes;
            continue;
        }
        clear_side(shape, type, WALSH_TURBO_KEY, data, slot);
        data += walsh_kv_side_bytes(shape, layer, WALSH_TURBO_KEY);
        clear_side(shape, type, WALSH_TURBO_VALUE, data, slot);
        data += walsh_kv_side_bytes(shape, layer, WALSH_TURBO_VALUE);
    }
}

static enum walsh_status check_policy(const struct walsh_kv_shape *shape, struct walsh_error *err)
{
    const struct walsh_kv_policy *p = &shape->policy;
    const unsigned least = p->prod_keys ? 2 : 1;
    if (p->type != WALSH_KV_TURBO) return WALSH_OK;
    if (p->prod_keys && p->no_rotation)
        return walsh_fail(err, WALSH_E_ARGUMENT, "KV cache: the Prod codec of keys always rotates");
    if (p->key_bits < least || p->key_bits > WALSH_TURBO_MAX_BITS)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: %u bits per element of a%s key, expected %u to %d", p->key_bits,
                          p->prod_keys ? " Prod" : "", least, WALSH_TURBO_MAX_BITS);
    if (p->value_bits < 1 || p->value_bits > WALSH_TURBO_MAX_BITS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "KV cache: %u bits per element of a value, expected 1 to %d",
                          p->value_bits, WALSH_TURBO_MAX_BITS);
    if (shape->head_dim % WALSH_TURBO_DIM_STEP != 0 || shape->head_dim > WALSH_TURBO_MAX_DIM)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: heads of %u elements cannot be packed, only multiples of %d up to %d",
                          shape->head_dim, WALSH_TURBO_DIM_STEP, WALSH_TURBO_MAX_DIM);
    if (p->recent > WALSH_KV_MAX_RECENT)
        return walsh_fail(err, WALSH_E_ARGUMENT, "KV cache: %u recent tokens in f16, expected 0 to %d",
                          p->recent, WALSH_KV_MAX_RECENT);
    if (walsh_kv_packed_layers(shape) == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: no layer of %u is left to pack when the first and last %u stay f16",
                          shape->layers, p->skip);
    return WALSH_OK;
}

enum walsh_status walsh_kv_check(const struct walsh_kv_shape *shape, struct walsh_error *err)
{
    if (shape->layers == 0 || shape->kv_heads == 0 || shape->head_dim == 0 || shape->capacity == 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "KV cache: %u layers, %u heads of %u, %u tokens: none may be 0", shape->layers,
                          shape->kv_heads, shape->head_dim, shape->capacity);
    if (shape->conv && (shape->conv_width == 0 || shape->conv_width > WALSH_MAX_COLUMNS))
        return walsh_fail(err, WALSH_E_ARGUMENT, "KV cache: convolutions of %u elements, expected 1 to %u",
                          shape->conv_width, WALSH_MAX_COLUMNS);
    /* the f32 cache is the largest */
    struct walsh_kv_shape plain = *shape;
    plain.policy.type = WALSH_KV_F32;
    if (walsh_kv_bytes(&plain) == UINT64_MAX || walsh_kv_bytes(shape) == UINT64_MAX)
        return walsh_fail(err, WALSH_E_MEMORY, "KV cache of %u tokens: its size does not fit into 64 bits",
                          shape->capacity);
    return check_policy(shape, err);
}

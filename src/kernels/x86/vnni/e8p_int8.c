/* E8P and E81B stages by int8 activations: exact integers with VPDPBUSD, weights as unsigned nibbles u.
 *
 * Decode: nibbles stay in registers. With a pair of rows in each byte, u = u_even + 16 u_odd,
 *   c = sum u q,  e = sum (u & 15) q:  the even row's sum is e, the odd row's (c - e) / 16, exactly
 * (WALSH_STAGE_MAX_COLUMNS). Prefill: the nibbles of up to PANEL_BYTES of weights are unpacked once into
 * panels and meet all rows of activations. Both give the same bits, as all sums are integers and the f32
 * operations behind them are the kernel's definition. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/vnni/e8p_block.h"

/* 16 sums of 32 bits. As __m512i, which is 8 integers of 64 bits, gcc 12 copies a register around every
 * product. */
typedef int32_t tile_sum __attribute__((vector_size(64)));

static inline tile_sum tile_zero(void)
{
    return (tile_sum){0};
}

static inline tile_sum tile_step(tile_sum sum, __m512i weights, __m512i activation)
{
    return (tile_sum)_mm512_dpbusd_epi32((__m512i)sum, weights, activation);
}

#include "kernels/x86/vnni/stage_store.h"

#define PREFETCH_PAIRS 4          /* decode: this many pairs of rows ahead where they are small, */
#define PREFETCH_SMALL (16 << 10) /* up to these bytes, */
#define PREFETCH_STREAM 4096      /* else this far ahead in each pair; */
#define PREFETCH_FAR (16 << 10)   /* and this far into the L2, whose table of misses is the longer one. */
#define PANEL_BYTES (512 << 10)   /* prefill: panels within the L2 */
#define STEPS (WALSH_PLANE_COLUMNS / 4)

/* --- decode --- */

/* The sum of each of four vectors' lanes. */
INLINE __m128i sum_lanes(const tile_sum *v)
{
    __m512i a = (__m512i)v[0], b = (__m512i)v[1], c = (__m512i)v[2], d = (__m512i)v[3];
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* dots[n] of `pairs` pairs of rows by `rows` activation rows, n = (pair * rows + row): even rows' and odd
 * rows' sums of u q. Each of `stages` parts of the pairs is of a stage of its own, data[part], which doubles
 * what is done with a load of activations and halves the starts of streams. pairs * rows is a multiple of 4;
 * kind, pairs, stages and rows are constant. */
INLINE void stage_dots(enum walsh_stage_kind kind, const unsigned pairs, const unsigned stages,
                       const unsigned rows, const uint8_t *const *data, size_t blocks, const int8_t *q,
                       size_t stride, int32_t even[8], int32_t odd[8])
{
    const __m512i low = _mm512_set1_epi8(15);
    const size_t block_bytes = walsh_stage_block(kind), pair_bytes = blocks * block_bytes;
    struct stage_lookup lookup = stage_lookup(kind);
    const unsigned share = stages > 1 ? 2 : 1; /* of the pairs at once */
    const size_t next = PREFETCH_PAIRS / share * pair_bytes,
                 ahead = next <= PREFETCH_SMALL ? next : PREFETCH_STREAM,
                 far = stages > 1 ? PREFETCH_FAR / 4 * 3 : PREFETCH_FAR;
    tile_sum both[8], first[8];
#pragma GCC unroll 8
    for (unsigned n = 0; n < pairs * rows; n++) both[n] = first[n] = tile_zero();
    for (size_t b = 0; b < blocks; b++) {
#pragma GCC unroll 4
        for (unsigned p = 0; p < pairs; p++) {
            const unsigned of_stage = pairs / stages;
            const uint8_t *block = data[p / of_stage] + p % of_stage * pair_bytes + b * block_bytes;
            for (size_t line = 0; line < block_bytes; line += 64) {
                _mm_prefetch((const char *)block + line + ahead, _MM_HINT_T0);
                _mm_prefetch((const char *)block + line + far, _MM_HINT_T1);
            }
            __m512i m[4];
            stage_block(kind, &lookup, block, m);
#pragma GCC unroll 4
            for (unsigned t = 0; t < 4; t++) {
                __m512i nibbles = _mm512_and_si512(m[t], low);
#pragma GCC unroll 8
                for (unsigned i = 0; i < rows; i++) {
                    __m512i x = _mm512_loadu_si512(q + i * stride + b * WALSH_PLANE_COLUMNS + 64 * t);
                    both[p * rows + i] = tile_step(both[p * rows + i], m[t], x);
                    first[p * rows + i] = tile_step(first[p * rows + i], nibbles, x);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (unsigned n = 0; n < pairs * rows; n += 4) {
        __m128i c = sum_lanes(both + n);
        __m128i e = sum_lanes(first + n);
        _mm_storeu_si128((__m128i *)(void *)(even + n), e);
        _mm_storeu_si128((__m128i *)(void *)(odd + n), _mm_srai_epi32(_mm_sub_epi32(c, e), 4));
    }
}

/* 2 * pairs outputs from r on by `rows` activation rows from i on. */
INLINE void decode_block(const unsigned pairs, const unsigned rows, const struct walsh_product_part *p,
                         size_t r, size_t i)
{
    const struct walsh_weights *w = p->weights;
    const struct walsh_activations *a = p->a;
    const size_t blocks = walsh_stage_blocks(w->cols);
    const int8_t *q = (const int8_t *)a->data + i * a->stride;
    float y[2][8] = {{0}};
    for (unsigned k = 0; k < w->stages; k++) {
        const uint8_t *data =
            (const uint8_t *)w->stage[k].data + r / 2 * blocks * walsh_stage_block(w->stage[k].kind);
        int32_t dots[2][8];
        if (w->stage[k].kind == WALSH_STAGE_E8P)
            stage_dots(WALSH_STAGE_E8P, pairs, 1, rows, &data, blocks, q, a->stride, dots[0], dots[1]);
        else
            stage_dots(WALSH_STAGE_E81B, pairs, 1, rows, &data, blocks, q, a->stride, dots[0], dots[1]);
        struct stage_term term = stage_term(w, k);
        for (unsigned n = 0; n < pairs * rows; n++) {
            y[0][n] = stage_add(y[0][n], k, &term, dots[0][n], a->sum[i + n % rows]);
            y[1][n] = stage_add(y[1][n], k, &term, dots[1][n], a->sum[i + n % rows]);
        }
    }
    for (unsigned n = 0; n < pairs * rows; n++) {
        float *to = p->y + (i + n % rows) * p->ldy + r + n / rows * 2;
        to[0] = y[0][n] * a->scale[i + n % rows];
        to[1] = y[1][n] * a->scale[i + n % rows];
    }
}

/* True where the stages are E8P two by two. */
static bool stages_pair(const struct walsh_weights *w)
{
    for (unsigned k = 0; k < w->stages; k++)
        if (w->stage[k].kind != WALSH_STAGE_E8P) return false;
    return w->stages % 2 == 0;
}

/* 4 outputs from r on by activation row i, two stages at a time: the bits of decode_block. */
static void decode_stages(const struct walsh_product_part *p, size_t r, size_t i)
{
    const struct walsh_weights *w = p->weights;
    const struct walsh_activations *a = p->a;
    const size_t blocks = walsh_stage_blocks(w->cols),
                 at = r / 2 * blocks * walsh_stage_block(WALSH_STAGE_E8P);
    float y[4] = {0};
    for (unsigned k = 0; k < w->stages; k += 2) {
        const uint8_t *const data[2] = {(const uint8_t *)w->stage[k].data + at,
                                        (const uint8_t *)w->stage[k + 1].data + at};
        int32_t dots[2][8];
        stage_dots(WALSH_STAGE_E8P, 4, 2, 1, data, blocks, (const int8_t *)a->data + i * a->stride, 0,
                   dots[0], dots[1]);
        for (unsigned s = 0; s < 2; s++) {
            const struct stage_term term = stage_term(w, k + s);
            for (unsigned n = 0; n < 4; n++)
                y[n] = stage_add(y[n], k + s, &term, dots[n % 2][2 * s + n / 2], a->sum[i]);
        }
    }
    for (unsigned n = 0; n < 4; n++) p->y[i * p->ldy + r + n] = y[n] * a->scale[i];
}

/* Activation rows in groups of 8, 4, 2, 1. 8 outputs at a time; their weights are in L1 or L2 from the second
 * group on. */
void walsh_product_int8_decode_vnni(const struct walsh_product_part *p)
{
    const bool pairs = stages_pair(p->weights);
    for (size_t r = p->begin; r < p->end; r += 8) {
        for (size_t i = 0; i < p->a->rows;) {
            size_t left = p->a->rows - i;
            if (left >= 8) {
                for (size_t n = 0; n < 8; n += 2) decode_block(1, 8, p, r + n, i);
                i += 8;
            } else if (left >= 4) {
                for (size_t n = 0; n < 8; n += 2) decode_block(1, 4, p, r + n, i);
                i += 4;
            } else if (left >= 2) {
                decode_block(4, 2, p, r, i);
                i += 2;
            } else {
                if (pairs) {
                    decode_stages(p, r, i);
                    decode_stages(p, r + 4, i);
                } else {
                    decode_block(4, 1, p, r, i);
                }
                i += 1;
            }
        }
    }
}

/* --- prefill --- */

/* A step of a tile: 4 columns. */
INLINE __m512i panel_tile(const void *from, size_t row, size_t step, size_t count)
{
    (void)count; /* whole blocks always */
    return _mm512_load_si512((const uint8_t *)from + row * WALSH_PLANE_COLUMNS + 4 * step);
}

/* All columns of `outputs` outputs of a plane from row on: nibbles of a stage, or two stages merged. */
INLINE void pack_plane(enum walsh_stage_kind kind, bool merged, const struct plane_source *from,
                       size_t blocks, size_t row, size_t outputs, uint32_t *panels)
{
    _Alignas(64) uint8_t tile[16 * WALSH_PLANE_COLUMNS];
    struct stage_lookup first = stage_lookup(merged ? WALSH_STAGE_E8P : kind), second = stage_lookup(kind);
    for (size_t done = 0; done < outputs; done += 16) {
        size_t exist = walsh_min(16, outputs - done);
        for (size_t b = 0; b < blocks; b++) {
            if (merged)
                merged_tile(kind, &first, &second, from, blocks, row + done, exist, b, tile);
            else
                stage_tile(kind, &first, from->data[0], blocks, row + done, exist, b, tile);
            for (size_t k = 0; k < STEPS; k += 16)
                panel_block(panel_tile, tile, 0, exist, k, 16, panels, outputs, blocks * STEPS, done,
                            b * STEPS + k);
        }
    }
}

void walsh_product_int8_prefill_vnni(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols), row_bytes = blocks * WALSH_PLANE_COLUMNS;
    const size_t most = walsh_max(PANEL_BYTES / row_bytes / TILE_OUTPUTS, 1) * TILE_OUTPUTS;
    const struct tile_rows a = {p->a->data, p->a->stride, p->a->rows};
    struct prefill_planes planes;
    uint32_t *panels = p->scratch;
    prefill_planes(w, &planes);
    for (size_t r = p->begin; r < p->end; r += most) {
        size_t outputs = walsh_min(most, p->end - r);
        for (unsigned k = 0; k < planes.count; k++) {
            const struct plane_source *from = &planes.plane[k];
            if (planes.merged && from->kind == WALSH_STAGE_E8P)
                pack_plane(WALSH_STAGE_E8P, true, from, blocks, r, outputs, panels);
            else if (planes.merged)
                pack_plane(WALSH_STAGE_E81B, true, from, blocks, r, outputs, panels);
            else if (from->kind == WALSH_STAGE_E8P)
                pack_plane(WALSH_STAGE_E8P, false, from, blocks, r, outputs, panels);
            else
                pack_plane(WALSH_STAGE_E81B, false, from, blocks, r, outputs, panels);
            struct stage_output to = {p, from->term, k == 0, k + 1 == planes.count};
            tile_all(store_stage, &to, panels, &a, blocks * STEPS, r, outputs);
        }
    }
}

/* E8P and E81B stages by int8 activations on AVX2: exact integers with VPMADDUBSW, whose 16-bit sums cannot
 * overflow because a nibble is at most 13: 2 * 13 * 127 = 3302, and eight of them 26416. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/e8p_block.h"
#include "kernels/x86/stage_term.h"

typedef __m256i tile_sum;

static inline __m256i tile_zero(void)
{
    return _mm256_setzero_si256();
}

static inline __m256i tile_step(__m256i sum, __m256i weights, __m256i activation)
{
    __m256i pairs = _mm256_maddubs_epi16(weights, activation);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "kernels/x86/avx2/gemm.h"

#define ROWS 8                  /* decode: activation rows that share a decoded block */
#define PANEL_BYTES (256 << 10) /* prefill: panels within the L2 */
#define STEPS (WALSH_PLANE_COLUMNS / 4)

/* --- decode --- */

INLINE int32_t sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* sum += a row of a block by 256 activations. */
INLINE __m256i block_dot(__m256i sum, const uint8_t *nibbles, const int8_t *q)
{
    __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (unsigned n = 0; n < WALSH_PLANE_COLUMNS; n += 32) {
        __m256i u = _mm256_load_si256((const __m256i *)(const void *)(nibbles + n));
        __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)(q + n));
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(u, x));
    }
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Sums of u q of a pair of rows by `rows` <= ROWS activation rows. */
INLINE void stage_dots(enum walsh_stage_kind kind, const uint8_t *data, size_t blocks, const int8_t *q,
                       size_t stride, size_t rows, int32_t dots[2][ROWS])
{
    const struct walsh_plane_tables *t = walsh_plane_tables();
    _Alignas(32) uint8_t nibbles[2][WALSH_PLANE_COLUMNS];
    __m256i sum[2][ROWS];
    for (size_t i = 0; i < rows; i++) sum[0][i] = sum[1][i] = _mm256_setzero_si256();
    for (size_t b = 0; b < blocks; b++) {
        stage_block(kind, t, data + b * walsh_stage_block(kind), nibbles[0], nibbles[1]);
        for (size_t i = 0; i < rows; i++) {
            const int8_t *x = q + i * stride + b * WALSH_PLANE_COLUMNS;
            sum[0][i] = block_dot(sum[0][i], nibbles[0], x);
            sum[1][i] = block_dot(sum[1][i], nibbles[1], x);
        }
    }
    for (size_t i = 0; i < rows; i++) {
        dots[0][i] = sum_lanes(sum[0][i]);
        dots[1][i] = sum_lanes(sum[1][i]);
    }
}

static void decode_pair(const struct walsh_product_part *p, size_t r, size_t i, size_t rows)
{
    const struct walsh_weights *w = p->weights;
    const struct walsh_activations *a = p->a;
    const size_t blocks = walsh_stage_blocks(w->cols);
    const int8_t *q = (const int8_t *)a->data + i * a->stride;
    float y[2][ROWS] = {{0}};
    for (unsigned k = 0; k < w->stages; k++) {
        const uint8_t *data =
            (const uint8_t *)w->stage[k].data + r / 2 * blocks * walsh_stage_block(w->stage[k].kind);
        int32_t dots[2][ROWS];
        if (w->stage[k].kind == WALSH_STAGE_E8P)
            stage_dots(WALSH_STAGE_E8P, data, blocks, q, a->stride, rows, dots);
        else
            stage_dots(WALSH_STAGE_E81B, data, blocks, q, a->stride, rows, dots);
        struct stage_term term = stage_term(w, k);
        for (size_t n = 0; n < rows; n++) {
            y[0][n] = stage_add(y[0][n], k, &term, dots[0][n], a->sum[i + n]);
            y[1][n] = stage_add(y[1][n], k, &term, dots[1][n], a->sum[i + n]);
        }
    }
    for (size_t n = 0; n < rows; n++) {
        float *to = p->y + (i + n) * p->ldy + r;
        to[0] = y[0][n] * a->scale[i + n];
        to[1] = y[1][n] * a->scale[i + n];
    }
}

void walsh_product_int8_decode_avx2(const struct walsh_product_part *p)
{
    for (size_t r = p->begin; r < p->end; r += 2) {
        for (size_t i = 0; i < p->a->rows; i += ROWS) decode_pair(p, r, i, walsh_min(ROWS, p->a->rows - i));
    }
}

/* --- prefill --- */

/* A step of a tile: 4 columns. */
INLINE __m256i panel_tile(const void *from, size_t row, size_t step, size_t count)
{
    (void)count; /* whole blocks always */
    const uint8_t *at = (const uint8_t *)from + row * WALSH_PLANE_COLUMNS + 4 * step;
    return _mm256_load_si256((const __m256i *)(const void *)at);
}

/* All columns of `outputs` outputs, a multiple of 16, of a stage from row on; each byte looked up in `table`
 * (NULL: as it is). */
INLINE void pack_stage(enum walsh_stage_kind kind, const uint8_t *data, size_t blocks, size_t row,
                       size_t outputs, const __m256i *table, uint32_t *panels)
{
    _Alignas(32) uint8_t tile[16 * WALSH_PLANE_COLUMNS];
    for (size_t done = 0; done < outputs; done += 16) {
        for (size_t b = 0; b < blocks; b++) {
            stage_tile(kind, walsh_plane_tables(), data, blocks, row + done, b, tile);
            for (size_t n = 0; table != NULL && n < sizeof tile; n += 32) {
                __m256i *bytes = (__m256i *)(void *)(tile + n);
                _mm256_store_si256(bytes, _mm256_shuffle_epi8(*table, _mm256_load_si256(bytes)));
            }
            for (size_t n = 0; n < 16; n += 8) {
                for (size_t k = 0; k < STEPS; k += 8)
                    panel_block(panel_tile, tile, n, 8, k, 8, panels, blocks * STEPS, done + n,
                                b * STEPS + k);
            }
        }
    }
}

/* Where a stage's sums go. */
struct stage_output {
    const struct walsh_product_part *part;
    struct stage_term term;
    bool first, last; /* stage */
};

INLINE void store_term(const void *to, size_t i, size_t r, size_t count, __m256i dot)
{
    (void)count; /* outputs are a multiple of 16 */
    const struct stage_output *s = to;
    const struct walsh_activations *a = s->part->a;
    float *y = s->part->y + i * s->part->ldy + r;
    __m256i scaled = _mm256_mullo_epi32(dot, _mm256_set1_epi32(s->term.factor));
    __m256i d = _mm256_sub_epi32(scaled, _mm256_set1_epi32(s->term.offset * a->sum[i]));
    __m256 term = _mm256_mul_ps(_mm256_set1_ps(s->term.scale), _mm256_cvtepi32_ps(d));
    if (!s->first) term = _mm256_add_ps(_mm256_loadu_ps(y), term);
    if (s->last) term = _mm256_mul_ps(term, _mm256_set1_ps(a->scale[i]));
    _mm256_storeu_ps(y, term);
}

/* Merged stages: sum q p = 16 sum u0 q + sum (second[u1] + BIAS) q - (120 + BIAS) sum q. The first stage's
 * part waits in y as an integer, because a merged byte is too large for VPMADDUBSW. */
#define BIAS 39

INLINE void store_first(const void *to, size_t i, size_t r, size_t count, __m256i dot)
{
    (void)count;
    const struct stage_output *s = to;
    _mm256_storeu_ps(s->part->y + i * s->part->ldy + r, _mm256_castsi256_ps(_mm256_slli_epi32(dot, 4)));
}

INLINE void store_second(const void *to, size_t i, size_t r, size_t count, __m256i dot)
{
    (void)count;
    const struct stage_output *s = to;
    const struct walsh_activations *a = s->part->a;
    float *y = s->part->y + i * s->part->ldy + r;
    __m256i sum = _mm256_add_epi32(_mm256_castps_si256(_mm256_loadu_ps(y)), dot);
    sum = _mm256_sub_epi32(sum, _mm256_set1_epi32((120 + BIAS) * a->sum[i]));
    __m256 term = _mm256_mul_ps(_mm256_set1_ps(s->term.scale), _mm256_cvtepi32_ps(sum));
    _mm256_storeu_ps(y, _mm256_mul_ps(term, _mm256_set1_ps(a->scale[i])));
}

INLINE void pack_any(const struct walsh_weights *w, unsigned k, size_t row, size_t outputs,
                     const __m256i *table, uint32_t *panels)
{
    const size_t blocks = walsh_stage_blocks(w->cols);
    if (w->stage[k].kind == WALSH_STAGE_E8P)
        pack_stage(WALSH_STAGE_E8P, w->stage[k].data, blocks, row, outputs, table, panels);
    else
        pack_stage(WALSH_STAGE_E81B, w->stage[k].data, blocks, row, outputs, table, panels);
}

void walsh_product_int8_prefill_avx2(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols), row_bytes = blocks * WALSH_PLANE_COLUMNS;
    const size_t most = walsh_max(PANEL_BYTES / row_bytes / TILE_OUTPUTS, 1) * TILE_OUTPUTS;
    const struct tile_rows a = {p->a->data, p->a->stride, p->a->rows};
    struct walsh_merged_stages merged;
    const bool one = walsh_stages_merge(w, &merged);
    const __m128i second = _mm_loadu_si128((const __m128i *)(const void *)merged.second);
    const __m256i table = _mm256_broadcastsi128_si256(_mm_add_epi8(second, _mm_set1_epi8(BIAS)));
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += most) {
        size_t outputs = walsh_min(most, p->end - r);
        for (unsigned k = 0; k < w->stages; k++) {
            struct stage_output to = {p, stage_term(w, k), k == 0, k + 1 == w->stages};
            pack_any(w, k, r, outputs, one && k == 1 ? &table : NULL, panels);
            if (!one) {
                tile_all(store_term, &to, panels, &a, blocks * STEPS, r, outputs);
            } else if (k == 0) {
                tile_all(store_first, &to, panels, &a, blocks * STEPS, r, outputs);
            } else {
                to.term.scale = merged.scale;
                tile_all(store_second, &to, panels, &a, blocks * STEPS, r, outputs);
            }
        }
    }
}

/* Block formats of integers and E2M1 by int8 activations in groups, with VPDPBUSD: the lanes of a vector are
 * the 16 rows of a tile, four columns of each per word, against four activations that are broadcast. Codes
 * pass by as one sequential stream and are decoded in registers, once for up to 8 rows of activations: with
 * u = code (U4, U8) or 2 value + 12 (E2M1) >= 0, a step is d = sum u q - zero * sum q.
 *
 * A row's chain of fused multiply-adds goes by steps alone, so that decode and prefill, alone or in a batch,
 * give the same bits. */
#include <immintrin.h>

#include "base/memory.h"
#include "kernels/table.h"

typedef int32_t tile_sum __attribute__((vector_size(64)));

static inline tile_sum tile_zero(void)
{
    return (tile_sum){0};
}

static inline tile_sum tile_step(tile_sum sum, __m512i weights, __m512i activation)
{
    return (tile_sum)_mm512_dpbusd_epi32((__m512i)sum, weights, activation);
}

#include "kernels/x86/avx512/gemm.h"

#include "kernels/x86/avx512/blocks.h"

#define MOST_ROWS 8
#define PREFETCH 6144 /* bytes ahead in the codes */
#define E2M1_ZERO 12

/* What a tile is read by; kinds are constants. */
struct block_tile {
    const uint32_t *words;
    const void *scales;
    const uint8_t *zeros;
    size_t first_group; /* number of the tile's first group of 16 scales */
    size_t groups, steps, steps_of_group;
    float tensor_scale;
};

INLINE __m512i four(const int8_t *q)
{
    int32_t element;
    __builtin_memcpy(&element, q, sizeof element);
    return _mm512_set1_epi32(element);
}

/* Rows m of activations from row i on by one tile, into sum[m]. */
INLINE void block_rows(enum walsh_code code, enum walsh_scale type, const unsigned columns, bool zeros,
                       const unsigned rows, const struct block_tile *t, const struct walsh_activations *a,
                       size_t i, __m512 sum[MOST_ROWS])
{
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i e2m1 =
        _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const unsigned words = columns * walsh_code_bits(code) / 32;
    const int constant = code == WALSH_CODE_E2M1 ? E2M1_ZERO : code == WALSH_CODE_U4 ? 8 : 128;
    const uint32_t *data = t->words;
    const int8_t *q = (const int8_t *)a->data + i * a->stride;
    const float *scale = a->scale + i * (a->stride / WALSH_ACTIVATION_GROUP);
    const int32_t *sums = a->sum + i * (a->stride / WALSH_ACTIVATION_SUM);
#pragma GCC unroll 8
    for (unsigned m = 0; m < rows; m++) sum[m] = _mm512_setzero_ps();
    size_t at = t->first_group * WALSH_BLOCK_ROWS,
           left = t->steps_of_group; /* in a step's time fits no division */
    for (size_t n = 0; n < t->steps; n++, left--) {
        if (left == 0) {
            left = t->steps_of_group;
            at += WALSH_BLOCK_ROWS;
        }
        const size_t group = n * columns / WALSH_ACTIVATION_GROUP, part = n * columns / WALSH_ACTIVATION_SUM;
        tile_sum dot[MOST_ROWS];
        __m512i zero = _mm512_setzero_si512();
        if (zeros) zero = block_zeros(code, t->zeros, at);
#pragma GCC unroll 8
        for (unsigned m = 0; m < rows; m++) {
            const int32_t *of = sums + m * (a->stride / WALSH_ACTIVATION_SUM) + part;
            const int32_t whole = columns == WALSH_ACTIVATION_GROUP ? of[0] + of[1] : of[0];
            dot[m] = zeros ? (tile_sum)_mm512_mullo_epi32(zero, _mm512_set1_epi32(-whole))
                           : (tile_sum)_mm512_set1_epi32(-constant * whole);
        }
#pragma GCC unroll 8
        for (unsigned w = 0; w < words; w++) {
            const __m512i word = _mm512_load_si512(data + (n * words + w) * WALSH_BLOCK_ROWS);
            _mm_prefetch((const char *)(data + (n * words + w) * WALSH_BLOCK_ROWS) + PREFETCH, _MM_HINT_T0);
            if (walsh_code_bits(code) == 8) {
#pragma GCC unroll 8
                for (unsigned m = 0; m < rows; m++)
                    dot[m] = tile_step(dot[m], word, four(q + m * a->stride + n * columns + 4 * w));
                continue;
            }
            __m512i first = _mm512_and_si512(word, low),
                    second = _mm512_and_si512(_mm512_srli_epi16(word, 4), low);
            if (code == WALSH_CODE_E2M1) {
                first = _mm512_shuffle_epi8(e2m1, first);
                second = _mm512_shuffle_epi8(e2m1, second);
            }
#pragma GCC unroll 8
            for (unsigned m = 0; m < rows; m++) {
                const int8_t *x = q + m * a->stride + n * columns + 8 * w;
                dot[m] = tile_step(dot[m], first, four(x));
                dot[m] = tile_step(dot[m], second, four(x + 4));
            }
        }
        __m512 weight = block_scales(type, t->scales, at);
        if (code == WALSH_CODE_E2M1) weight = _mm512_mul_ps(weight, _mm512_set1_ps(.5f));
#pragma GCC unroll 8
        for (unsigned m = 0; m < rows; m++) {
            const __m512 both = _mm512_mul_ps(
                weight, _mm512_set1_ps(scale[m * (a->stride / WALSH_ACTIVATION_GROUP) + group]));
            sum[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)dot[m]), both, sum[m]);
        }
    }
}

/* All rows of activations, in groups of 8, 4, 2, 1, by the tiles of the piece. */
INLINE void block_product(enum walsh_code code, enum walsh_scale type, const unsigned columns, bool zeros,
                          const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t words = walsh_block_words(w), groups = walsh_block_groups(w);
    struct block_tile t = {.scales = w->scales,
                           .zeros = w->zeros,
                           .groups = groups,
                           .steps = walsh_div_up(w->cols, columns),
                           .tensor_scale = w->tensor_scale};
    t.steps_of_group = w->block.group ? w->block.group / columns : t.steps;
    for (size_t r = p->begin; r < p->end; r += WALSH_BLOCK_ROWS) {
        const size_t tile = r / WALSH_BLOCK_ROWS;
        const __mmask16 exist = first_lanes(p->end - r);
        t.words = (const uint32_t *)w->data + tile * words * WALSH_BLOCK_ROWS;
        t.first_group = tile * groups;
        for (size_t i = 0, step; i < p->a->rows; i += step) {
            const size_t left = p->a->rows - i;
            __m512 sum[MOST_ROWS];
            step = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (step == 8)
                block_rows(code, type, columns, zeros, 8, &t, p->a, i, sum);
            else if (step == 4)
                block_rows(code, type, columns, zeros, 4, &t, p->a, i, sum);
            else if (step == 2)
                block_rows(code, type, columns, zeros, 2, &t, p->a, i, sum);
            else
                block_rows(code, type, columns, zeros, 1, &t, p->a, i, sum);
            for (size_t m = 0; m < step; m++)
                _mm512_mask_storeu_ps(p->y + (i + m) * p->ldy + r, exist,
                                      _mm512_mul_ps(sum[m], _mm512_set1_ps(t.tensor_scale)));
        }
    }
}

/* bf16 scales of integers are the usual case; f32 ones share the code of any other combination. */
INLINE void integer_product(enum walsh_code code, const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    if (w->block.scale == WALSH_SCALE_BF16) {
        if (w->zeros)
            block_product(code, WALSH_SCALE_BF16, 32, true, p);
        else
            block_product(code, WALSH_SCALE_BF16, 32, false, p);
    } else {
        if (w->zeros)
            block_product(code, WALSH_SCALE_F32, 32, true, p);
        else
            block_product(code, WALSH_SCALE_F32, 32, false, p);
    }
}

static void any_product(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    if (w->block.code == WALSH_CODE_U4)
        integer_product(WALSH_CODE_U4, p);
    else if (w->block.code == WALSH_CODE_U8)
        integer_product(WALSH_CODE_U8, p);
    else if (w->block.scale == WALSH_SCALE_E8M0)
        block_product(WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32, false, p);
    else
        block_product(WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16, false, p);
}

void walsh_product_block_decode_vnni(const struct walsh_product_part *p)
{
    any_product(p);
}

void walsh_product_block_prefill_vnni(const struct walsh_product_part *p)
{
    any_product(p);
}

/* Block formats of integers and E2M1 by int8 activations in groups, as x86/vnni/blocks.c: the lanes are 8 of
 * a tile's 16 rows. Without VPDPBUSD a word is multiplied by VPMADDUBSW, whose sums of two products fit 16
 * bits: u <= 24 times |q| <= 127 of 4-bit codes; of 8-bit ones |w| <= 128 with w = u - 128, q taking w's
 * sign. */
#include <immintrin.h>

#include "base/memory.h"
#include "formats/blocks.h"
#include "kernels/table.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define MOST_ROWS 4

/* Eight scales from number `at` on. */
INLINE __m256 scales_8(enum walsh_scale type, const void *scales, size_t at)
{
    const uint8_t *bytes = (const uint8_t *)scales + at;
    __m256i v;
    switch (type) {
    case WALSH_SCALE_E8M0: /* byte 0: the subnormal 2^-127 */
        v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)bytes));
        return _mm256_castsi256_ps(_mm256_or_si256(
            _mm256_slli_epi32(v, 23),
            _mm256_and_si256(_mm256_cmpeq_epi32(v, _mm256_setzero_si256()), _mm256_set1_epi32(0x00400000))));
    case WALSH_SCALE_E4M3: /* the bits of an f32 that is 2^120 times smaller */
        v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)bytes));
        return _mm256_or_ps(
            _mm256_mul_ps(
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0x7f)), 20)),
                _mm256_set1_ps(0x1p120f)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0x80)), 24)));
    case WALSH_SCALE_BF16:
        v = _mm256_cvtepu16_epi32(
            _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)scales + at)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    case WALSH_SCALE_F32:
        break;
    }
    return _mm256_loadu_ps((const float *)scales + at);
}

/* sum + four products of unsigned u by signed q in each lane. */
INLINE __m256i dot_small(__m256i sum, __m256i u, __m256i q)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, q), _mm256_set1_epi16(1)));
}

INLINE __m256i four(const int8_t *q)
{
    int32_t element;
    __builtin_memcpy(&element, q, sizeof element);
    return _mm256_set1_epi32(element);
}

/* `rows` activation rows from row i on by lanes [half * 8, half * 8 + 8) of a tile, into sum[m]. */
INLINE void lanes_by_rows(enum walsh_code code, const unsigned rows, const struct walsh_weights *w,
                          size_t tile, size_t half, const struct walsh_activations *a, size_t i,
                          __m256 sum[MOST_ROWS])
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i e2m1 =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const uint32_t group_columns = w->block.group;
    const unsigned columns =
        group_columns && group_columns < WALSH_ACTIVATION_GROUP ? group_columns : WALSH_ACTIVATION_GROUP;
    const unsigned words = columns * walsh_code_bits(code) / 32;
    const size_t steps = walsh_div_up(w->cols, columns), groups = walsh_block_groups(w),
                 steps_of_group = group_columns ? group_columns / columns : steps;
    const uint32_t *data =
        (const uint32_t *)w->data + tile * walsh_block_words(w) * WALSH_BLOCK_ROWS + half * LANES;
    const size_t a_groups = a->stride / WALSH_ACTIVATION_GROUP, a_sums = a->stride / WALSH_ACTIVATION_SUM;
    for (unsigned m = 0; m < rows; m++) sum[m] = _mm256_setzero_ps();
    for (size_t n = 0; n < steps; n++) {
        const size_t at = (tile * groups + n / steps_of_group) * WALSH_BLOCK_ROWS + half * LANES;
        __m256i zero = _mm256_set1_epi32(code == WALSH_CODE_E2M1 ? 12 : code == WALSH_CODE_U4 ? 8 : 0);
        if (w->zeros) {
            zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(w->zeros + at)));
            if (code == WALSH_CODE_U8) zero = _mm256_sub_epi32(zero, _mm256_set1_epi32(128));
        }
        __m256i dot[MOST_ROWS];
        for (unsigned m = 0; m < rows; m++) {
            const int32_t *of = a->sum + (i + m) * a_sums + n * columns / WALSH_ACTIVATION_SUM;
            const int32_t whole = columns == WALSH_ACTIVATION_GROUP ? of[0] + of[1] : of[0];
            dot[m] = _mm256_mullo_epi32(zero, _mm256_set1_epi32(-whole));
        }
        for (unsigned k = 0; k < words; k++) {
            const __m256i word =
                _mm256_load_si256((const __m256i *)(const void *)(data + (n * words + k) * WALSH_BLOCK_ROWS));
            if (code == WALSH_CODE_U8) {
                const __m256i signs = _mm256_xor_si256(word, _mm256_set1_epi8(-128));
                const __m256i magnitude = _mm256_abs_epi8(signs);
                for (unsigned m = 0; m < rows; m++) {
                    const int8_t *q = (const int8_t *)a->data + (i + m) * a->stride + n * columns + 4 * k;
                    dot[m] = dot_small(dot[m], magnitude, _mm256_sign_epi8(four(q), signs));
                }
                continue;
            }
            __m256i first = _mm256_and_si256(word, low),
                    second = _mm256_and_si256(_mm256_srli_epi16(word, 4), low);
            if (code == WALSH_CODE_E2M1) {
                first = _mm256_shuffle_epi8(e2m1, first);
                second = _mm256_shuffle_epi8(e2m1, second);
            }
            for (unsigned m = 0; m < rows; m++) {
                const int8_t *q = (const int8_t *)a->data + (i + m) * a->stride + n * columns + 8 * k;
                dot[m] = dot_small(dot[m], first, four(q));
                dot[m] = dot_small(dot[m], second, four(q + 4));
            }
        }
        __m256 weight = scales_8(w->block.scale, w->scales, at);
        if (code == WALSH_CODE_E2M1) weight = _mm256_mul_ps(weight, _mm256_set1_ps(.5f));
        for (unsigned m = 0; m < rows; m++) {
            const float scale = a->scale[(i + m) * a_groups + n * columns / WALSH_ACTIVATION_GROUP];
            sum[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[m]), _mm256_mul_ps(weight, _mm256_set1_ps(scale)),
                                     sum[m]);
        }
    }
}

INLINE void block_product(enum walsh_code code, const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const __m256 whole = _mm256_set1_ps(w->tensor_scale);
    for (size_t r = p->begin; r < p->end; r += LANES) {
        const size_t tile = r / WALSH_BLOCK_ROWS, half = r % WALSH_BLOCK_ROWS / LANES;
        const size_t exist = walsh_min(LANES, p->end - r);
        for (size_t i = 0, step; i < p->a->rows; i += step) {
            __m256 sum[MOST_ROWS];
            step = p->a->rows - i >= MOST_ROWS ? MOST_ROWS : 1;
            if (step == MOST_ROWS)
                lanes_by_rows(code, MOST_ROWS, w, tile, half, p->a, i, sum);
            else
                lanes_by_rows(code, 1, w, tile, half, p->a, i, sum);
            for (size_t m = 0; m < step; m++) {
                float y[LANES];
                _mm256_storeu_ps(y, _mm256_mul_ps(sum[m], whole));
                __builtin_memcpy(p->y + (i + m) * p->ldy + r, y, exist * sizeof *y);
            }
        }
    }
}

static void any_product(const struct walsh_product_part *p)
{
    switch (p->weights->block.code) {
    case WALSH_CODE_U4:
        block_product(WALSH_CODE_U4, p);
        break;
    case WALSH_CODE_U8:
        block_product(WALSH_CODE_U8, p);
        break;
    default:
        block_product(WALSH_CODE_E2M1, p);
    }
}

void walsh_product_block_decode_avx2(const struct walsh_product_part *p)
{
    any_product(p);
}

void walsh_product_block_prefill_avx2(const struct walsh_product_part *p)
{
    any_product(p);
}

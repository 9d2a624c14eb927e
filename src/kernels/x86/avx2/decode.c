/* Rows of E8P weights decoded, 16 rows by 256 columns at a time: nibbles as e8p_block.h unpacks them, then
 * the stages' sum in double, which is the scalar definition's arithmetic (each product is exact). Other
 * formats are left to the scalar definition. */
#include "base/memory.h"
#include "base/scalar.h"
#include "kernels/table.h"
#include "kernels/x86/avx2/e8p_block.h"

/* 16 rows by 256 columns of every stage; a nibble u stands for factor * (u - zero). */
struct tiles {
    unsigned stages;
    double factor[WALSH_MAX_STAGES], zero[WALSH_MAX_STAGES];
    _Alignas(32) uint8_t nibbles[WALSH_MAX_STAGES][16 * WALSH_PLANE_COLUMNS];
};

static void set_values(const struct walsh_weights *w, struct tiles *t)
{
    t->stages = w->stages;
    for (unsigned k = 0; k < w->stages; k++) { /* E8P: (2u - 15)/4, E81B: (u - 4)/2 */
        t->factor[k] = (double)w->stage[k].scale * .5;
        t->zero[k] = w->stage[k].kind == WALSH_STAGE_E8P ? 7.5 : 4;
    }
}

static void unpack(const struct walsh_weights *w, size_t row, size_t block, struct tiles *t)
{
    const size_t blocks = walsh_stage_blocks(w->cols);
    for (unsigned k = 0; k < w->stages; k++) {
        if (w->stage[k].kind == WALSH_STAGE_E8P)
            stage_tile(WALSH_STAGE_E8P, walsh_plane_tables(), w->stage[k].data, blocks, row, block,
                       t->nibbles[k]);
        else
            stage_tile(WALSH_STAGE_E81B, walsh_plane_tables(), w->stage[k].data, blocks, row, block,
                       t->nibbles[k]);
    }
}

/* 8 weights from nibble `at` of the tile on. */
INLINE __m256 eight(const struct tiles *t, size_t at)
{
    __m256d low = _mm256_setzero_pd(), high = low;
    for (unsigned k = 0; k < t->stages; k++) {
        const __m256i u =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(t->nibbles[k] + at)));
        const __m256d factor = _mm256_set1_pd(t->factor[k]), zero = _mm256_set1_pd(t->zero[k]);
        low =
            _mm256_fmadd_pd(_mm256_sub_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(u)), zero), factor, low);
        high = _mm256_fmadd_pd(_mm256_sub_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(u, 1)), zero),
                               factor, high);
    }
    return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}

/* Columns of an E8P matrix are a multiple of 8. */
INLINE void decode(bool narrow, const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                   size_t cols, void *out, size_t ld)
{
    struct tiles t;
    set_values(w, &t);
    for (size_t r = 0; r < rows; r += 16) {
        for (size_t k = col, end; k < col + cols; k = end) {
            const size_t block = k / WALSH_PLANE_COLUMNS, from = k - block * WALSH_PLANE_COLUMNS;
            end = walsh_min((block + 1) * WALSH_PLANE_COLUMNS, col + cols);
            unpack(w, row + r, block, &t);
            for (size_t n = 0; n < walsh_min(16, rows - r); n++)
                for (size_t c = 0; c < end - k; c += 8) {
                    const __m256 v = eight(&t, n * WALSH_PLANE_COLUMNS + from + c);
                    const size_t to = (r + n) * ld + k - col + c;
                    float wide[8];
                    _mm256_storeu_ps(narrow ? wide : (float *)out + to, v);
                    for (int i = 0; narrow && i < 8; i++)
                        ((uint16_t *)out)[to + (size_t)i] = walsh_bf16_from_f32(wide[i]);
                }
        }
    }
}

void walsh_decode_weights_f32_avx2(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                   size_t cols, float *out, size_t ld)
{
    if (w->format == WALSH_FORMAT_E8P)
        decode(false, w, row, rows, col, cols, out, ld);
    else
        walsh_weights_decode_part_f32(w, row, rows, col, cols, out, ld);
}

void walsh_decode_weights_bf16_avx2(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                    size_t cols, uint16_t *out, size_t ld)
{
    if (w->format == WALSH_FORMAT_E8P)
        decode(true, w, row, rows, col, cols, out, ld);
    else
        walsh_weights_decode_part_bf16(w, row, rows, col, cols, out, ld);
}

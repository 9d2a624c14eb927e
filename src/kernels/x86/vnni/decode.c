/* Rows of E8P weights decoded, 16 rows by 256 columns at a time: nibbles as e8p_block.h unpacks them, then
 * the stages' sum in double by tables of 16 values, which is the scalar definition's arithmetic. Other
 * formats are left to AVX-512. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/vnni/e8p_block.h"

/* 16 rows by 256 columns of every stage, and the values of its nibbles. */
struct tiles {
    unsigned stages;
    __m512d low[WALSH_MAX_STAGES], high[WALSH_MAX_STAGES];
    _Alignas(64) uint8_t nibbles[WALSH_MAX_STAGES][16 * WALSH_PLANE_COLUMNS];
};

static void set_values(const struct walsh_weights *w, struct tiles *t)
{
    t->stages = w->stages;
    for (unsigned k = 0; k < w->stages; k++) {
        const bool e8p = w->stage[k].kind == WALSH_STAGE_E8P;
        const double scale = (double)w->stage[k].scale * (e8p ? .25 : .5);
        double value[16];
        for (int u = 0; u < 16; u++) value[u] = scale * (e8p ? 2 * u - 15 : u - 4);
        t->low[k] = _mm512_loadu_pd(value);
        t->high[k] = _mm512_loadu_pd(value + 8);
    }
}

static void unpack(const struct walsh_weights *w, size_t row, size_t block, struct tiles *t)
{
    const size_t blocks = walsh_stage_blocks(w->cols);
    for (unsigned k = 0; k < w->stages; k++) {
        if (w->stage[k].kind == WALSH_STAGE_E8P) {
            const struct stage_lookup l = stage_lookup(WALSH_STAGE_E8P);
            stage_tile(WALSH_STAGE_E8P, &l, w->stage[k].data, blocks, row, 16, block, t->nibbles[k]);
        } else {
            const struct stage_lookup l = stage_lookup(WALSH_STAGE_E81B);
            stage_tile(WALSH_STAGE_E81B, &l, w->stage[k].data, blocks, row, 16, block, t->nibbles[k]);
        }
    }
}

/* 8 weights from nibble `at` of the tile on. */
INLINE __m256 eight(const struct tiles *t, size_t at)
{
    __m512d sum = _mm512_setzero_pd();
    for (unsigned k = 0; k < t->stages; k++) {
        const __m512i u =
            _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(const void *)(t->nibbles[k] + at)));
        sum = _mm512_add_pd(sum, _mm512_permutex2var_pd(t->low[k], u, t->high[k]));
    }
    return _mm512_cvtpd_ps(sum);
}

INLINE __m512 sixteen(const struct tiles *t, size_t at)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(eight(t, at)), eight(t, at + 8), 1);
}

/* Round to nearest even; numbers only. */
INLINE __m256i round_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16));
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
                for (size_t c = 0; c < end - k; c += 16) {
                    const __m512 v = sixteen(&t, n * WALSH_PLANE_COLUMNS + from + c);
                    const __mmask16 mask = (__mmask16)_bzhi_u32(0xffff, (unsigned)walsh_min(16, end - k - c));
                    const size_t to = (r + n) * ld + k - col + c;
                    if (narrow)
                        _mm256_mask_storeu_epi16((uint16_t *)out + to, mask, round_bf16(v));
                    else
                        _mm512_mask_storeu_ps((float *)out + to, mask, v);
                }
        }
    }
}

void walsh_decode_weights_f32_vnni(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                   size_t cols, float *out, size_t ld)
{
    if (w->format == WALSH_FORMAT_E8P)
        decode(false, w, row, rows, col, cols, out, ld);
    else
        walsh_decode_weights_f32_avx512(w, row, rows, col, cols, out, ld);
}

void walsh_decode_weights_bf16_vnni(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                    size_t cols, uint16_t *out, size_t ld)
{
    if (w->format == WALSH_FORMAT_E8P)
        decode(true, w, row, rows, col, cols, out, ld);
    else
        walsh_decode_weights_bf16_avx512(w, row, rows, col, cols, out, ld);
}

/* Rows of weights decoded: block formats by tiles, 16 x 16 weights at a time. Other formats are left to AVX2.
 */
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"

#include "kernels/x86/avx512/blocks.h"

/* Round to nearest even; numbers only. */
INLINE __m256i round_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16));
}

INLINE void decode_tile(enum walsh_code code, bool narrow, const struct walsh_weights *w, size_t tile,
                        size_t rows, size_t col, size_t cols, void *out, size_t ld)
{
    const size_t words = walsh_block_words(w), groups = walsh_block_groups(w);
    const size_t word_rows = walsh_code_bits(code) == 4 ? 2 : 4; /* of 16 columns */
    const uint32_t *data = (const uint32_t *)w->data + tile * words * WALSH_BLOCK_ROWS;
    const bool integer = code == WALSH_CODE_U4 || code == WALSH_CODE_U8;
    const __m512 whole = _mm512_set1_ps(w->tensor_scale);
    __m512 scale = _mm512_setzero_ps();
    __m512i zeros = _mm512_setzero_si512();
    size_t group = SIZE_MAX;
    for (size_t k = col; k < col + cols; k += 16) {
        if (walsh_block_group_of(w, k) != group) {
            group = walsh_block_group_of(w, k);
            const size_t at = (tile * groups + group) * WALSH_BLOCK_ROWS;
            scale = block_scales(w->block.scale, w->scales, at);
            if (integer) zeros = block_zeros(code, w->zeros, at);
        }
        __m512 v[16];
        __m512i r[16];
        block_values(code, data + k / 16 * word_rows * WALSH_BLOCK_ROWS, zeros, v);
#pragma GCC unroll 16
        for (unsigned c = 0; c < 16; c++)
            r[c] = _mm512_castps_si512(_mm512_mul_ps(_mm512_mul_ps(v[c], scale), whole));
        transpose_16x16(r);
        const __mmask16 mask = first_lanes(col + cols - k);
        for (size_t n = 0; n < rows; n++) {
            if (narrow)
                _mm256_mask_storeu_epi16((uint16_t *)out + n * ld + k - col, mask,
                                         round_bf16(_mm512_castsi512_ps(r[n])));
            else
                _mm512_mask_storeu_epi32((float *)out + n * ld + k - col, mask, r[n]);
        }
    }
}

INLINE void decode_rows(bool narrow, const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                        size_t cols, void *out, size_t ld)
{
    for (size_t r = 0; r < rows; r += WALSH_BLOCK_ROWS) {
        const size_t tile = (row + r) / WALSH_BLOCK_ROWS, n = walsh_min(rows - r, WALSH_BLOCK_ROWS);
        void *to = (uint8_t *)out + r * ld * (narrow ? sizeof(uint16_t) : sizeof(float));
        switch (w->block.code) {
        case WALSH_CODE_E2M1:
            decode_tile(WALSH_CODE_E2M1, narrow, w, tile, n, col, cols, to, ld);
            break;
        case WALSH_CODE_U4:
            decode_tile(WALSH_CODE_U4, narrow, w, tile, n, col, cols, to, ld);
            break;
        case WALSH_CODE_U8:
            decode_tile(WALSH_CODE_U8, narrow, w, tile, n, col, cols, to, ld);
            break;
        case WALSH_CODE_E4M3:
            decode_tile(WALSH_CODE_E4M3, narrow, w, tile, n, col, cols, to, ld);
            break;
        case WALSH_CODE_E5M2:
            decode_tile(WALSH_CODE_E5M2, narrow, w, tile, n, col, cols, to, ld);
            break;
        }
    }
}

void walsh_decode_weights_f32_avx512(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                     size_t cols, float *out, size_t ld)
{
    if (walsh_format_is_block(w->format))
        decode_rows(false, w, row, rows, col, cols, out, ld);
    else
        walsh_decode_weights_f32_avx2(w, row, rows, col, cols, out, ld);
}

void walsh_decode_weights_bf16_avx512(const struct walsh_weights *w, size_t row, size_t rows, size_t col,
                                      size_t cols, uint16_t *out, size_t ld)
{
    if (walsh_format_is_block(w->format))
        decode_rows(true, w, row, rows, col, cols, out, ld);
    else
        walsh_decode_weights_bf16_avx2(w, row, rows, col, cols, out, ld);
}

/* When products with MXFP4 may leave a group's scale out and multiply its sum instead: the bits are those of the sums with
 * scaled weights as long as nothing over- or underflows in either, for which these bounds leave room: a product is a multiple
 * of 2^-(67 + 25), and so is every sum. */
#ifndef WALSH_KERNELS_X86_BF16_MXFP4_UNITS_H
#define WALSH_KERNELS_X86_BF16_MXFP4_UNITS_H

#include "base/memory.h"
#include "kernels/x86/bf16/mxfp4_pairs.h"

#define LEAST_SCALE 103   /* 2^-24 */
#define MOST_SCALE 151    /* 2^24 */
#define LEAST_EXPONENT 67 /* of an activation, 2^-60 */
#define MOST_EXPONENT 187

static inline bool scales_fit(const struct walsh_weights *w, size_t tile, size_t tiles, size_t first,
                              size_t end)
{
    __mmask64 outside = 0;
    for (size_t t = 0; t < tiles; t++) {
        const uint8_t *scales = group_scales(w, tile + t, first);
        for (size_t i = 0, n = (end - first) * WALSH_BLOCK_ROWS; i < n; i += 64) {
            const __mmask64 mask = n - i < 64 ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
            const __m512i v = _mm512_sub_epi8(_mm512_maskz_loadu_epi8(mask, scales + i),
                                              _mm512_set1_epi8((char)LEAST_SCALE));
            outside |=
                _mm512_mask_cmpgt_epu8_mask(mask, v, _mm512_set1_epi8((char)(MOST_SCALE - LEAST_SCALE)));
        }
    }
    return outside == 0;
}

static inline bool activations_fit(const struct walsh_activations *a)
{
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), least = _mm512_set1_epi16(LEAST_EXPONENT << 7),
                  most = _mm512_set1_epi16((MOST_EXPONENT - LEAST_EXPONENT) << 7);
    __mmask32 outside = 0;
    for (size_t m = 0; m < a->rows; m++) {
        const uint16_t *row = (const uint16_t *)a->data + m * a->stride;
        for (size_t k = 0; k < a->cols; k += 32) {
            const __mmask32 mask = _bzhi_u32(0xffffffffu, (unsigned)walsh_min(a->cols - k, 32));
            const __m512i v = _mm512_and_si512(_mm512_maskz_loadu_epi16(mask, row + k), magnitude);
            outside |=
                _mm512_mask_cmpgt_epu16_mask(_mm512_test_epi16_mask(v, v), _mm512_sub_epi16(v, least), most);
        }
    }
    return outside == 0;
}

#endif

/* bf16 by VCVTNEPS2BF16, whose only differences from the formula are subnormals, which it takes as zero. */
#include <immintrin.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "kernels/table.h"

#define SUBNORMAL 0x20 /* VFPCLASS */

void walsh_bf16_from_f32_bf16(uint16_t *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const __m512 low = _mm512_loadu_ps(x + i), high = _mm512_loadu_ps(x + i + 16);
        const __mmask16 small =
            _mm512_fpclass_ps_mask(low, SUBNORMAL) | _mm512_fpclass_ps_mask(high, SUBNORMAL);
        if (__builtin_expect(small != 0, 0))
            for (size_t j = i; j < i + 32; j++) y[j] = walsh_bf16_from_f32(x[j]);
        else
            _mm512_storeu_si512(y + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (; i < n; i++) y[i] = walsh_bf16_from_f32(x[i]);
}

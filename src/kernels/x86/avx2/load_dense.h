/* Elements of dense weights, widened to f32 exactly. Included behind gemm.h. */
#ifndef WALSH_KERNELS_X86_AVX2_LOAD_DENSE_H
#define WALSH_KERNELS_X86_AVX2_LOAD_DENSE_H

#include <string.h>

/* 8 elements from x[k] on, widened; `count` of them exist, the rest come as 0. */
typedef __m256 load_8(const void *x, size_t k, size_t count);

INLINE __m256 load_f32(const void *x, size_t k, size_t count)
{
    const float *at = (const float *)x + k;
    return count >= 8 ? _mm256_loadu_ps(at) : _mm256_maskload_ps(at, first_lanes(count));
}

INLINE __m128i load_halves(const void *x, size_t k, size_t count)
{
    const uint16_t *at = (const uint16_t *)x + k;
    if (count >= 8) return _mm_loadu_si128((const __m128i *)(const void *)at);
    uint16_t some[8] = {0};
    memcpy(some, at, count * sizeof *some);
    return _mm_loadu_si128((const __m128i *)(const void *)some);
}

INLINE __m256 load_f16(const void *x, size_t k, size_t count)
{
    return _mm256_cvtph_ps(load_halves(x, k, count));
}

INLINE __m256 load_bf16(const void *x, size_t k, size_t count)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_halves(x, k, count)), 16));
}

#endif

/* Elements of dense weights, widened to f32 exactly. Included behind gemm.h. */
#ifndef WALSH_KERNELS_X86_AVX512_LOAD_DENSE_H
#define WALSH_KERNELS_X86_AVX512_LOAD_DENSE_H

/* 16 elements from x[k] on, widened; `count` of them exist, the rest come as 0. */
typedef __m512 load_16(const void *x, size_t k, size_t count);

INLINE __m512 load_f32(const void *x, size_t k, size_t count)
{
    const float *at = (const float *)x + k;
    return count >= 16 ? _mm512_loadu_ps(at) : _mm512_maskz_loadu_ps(first_lanes(count), at);
}

INLINE __m256i load_halves(const void *x, size_t k, size_t count)
{
    const uint16_t *at = (const uint16_t *)x + k;
    return count >= 16 ? _mm256_loadu_si256((const __m256i *)(const void *)at)
                       : _mm256_maskz_loadu_epi16(first_lanes(count), at);
}

INLINE __m512 load_f16(const void *x, size_t k, size_t count)
{
    return _mm512_cvtph_ps(load_halves(x, k, count));
}

INLINE __m512 load_bf16(const void *x, size_t k, size_t count)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_halves(x, k, count)), 16));
}

#endif

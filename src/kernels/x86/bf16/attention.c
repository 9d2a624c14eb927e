/* Tiles of attention whose queries are lanes: exponentials without sums across lanes. */
#include <float.h>
#include <immintrin.h>
#include <math.h>

#include "kernels/table.h"
#include "kernels/x86/avx512/gemm_lanes.h"
#include "kernels/x86/bf16/pairs.h"

#define LOG2E 1.44269504088896340736f
#define LN2 0.693147180559945309417f

/* 2^x = 2^n 2^r with n = rint(x); 2^r by a polynomial whose relative error is 1.6e-7. */
INLINE __m512 power(__m512 x)
{
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 r = _mm512_sub_ps(x, n);
    __m512 q = _mm512_set1_ps(0x1.5c08e4p-10f);
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.3d0c52p-7f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.c6b6e4p-5f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.ebf918p-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.62e428p-1f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(0x1.000002p+0f));
    return _mm512_scalef_ps(q, n);
}

/* The 16 queries from number `first` on. */
struct lanes {
    __m512i place;  /* of the queries, in keys of the tile */
    __m512i oldest; /* the first key that they see */
    __mmask16 exist;
    bool edge; /* is any key of the tile hidden from any of them? */
};

INLINE struct lanes lanes_of(const struct walsh_tile_scores *t, size_t first)
{
    const ptrdiff_t place = (ptrdiff_t)first + t->diagonal, keys = (ptrdiff_t)t->keys;
    struct lanes l = {.exist = first_lanes(t->queries - first)};
    l.place = _mm512_add_epi32(_mm512_set1_epi32((int)place),
                               _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    l.oldest = t->window != 0 ? _mm512_sub_epi32(l.place, _mm512_set1_epi32((int)t->window - 1))
                              : _mm512_setzero_si512();
    l.edge = l.exist != 0xffff || place + 1 < keys || (t->window != 0 && place + 15 >= (ptrdiff_t)t->window);
    return l;
}

/* Which of them see key j. */
INLINE __mmask16 seen(const struct lanes *l, size_t j)
{
    if (!l->edge) return 0xffff;
    const __m512i key = _mm512_set1_epi32((int)j);
    return _mm512_mask_cmple_epi32_mask(_mm512_mask_cmple_epi32_mask(l->exist, key, l->place), l->oldest,
                                        key);
}

static void softmax_lanes(const struct walsh_tile_softmax *t, size_t first)
{
    const struct walsh_tile_scores *scores = &t->scores;
    const struct lanes l = lanes_of(scores, first);
    const float *s = scores->s + first;
    uint32_t *p = t->p + first;
    const size_t keys = scores->keys, lds = scores->lds;
    const __m512 lowest = _mm512_set1_ps(-INFINITY), old = _mm512_loadu_ps(t->maximum + first);
    __m512 top = lowest, other = lowest;
    for (size_t j = 0; j < keys; j += 2) {
        top = _mm512_mask_max_ps(top, seen(&l, j), top, _mm512_loadu_ps(s + j * lds));
        if (j + 1 < keys)
            other = _mm512_mask_max_ps(other, seen(&l, j + 1), other, _mm512_loadu_ps(s + (j + 1) * lds));
    }
    const __m512 maximum =
        _mm512_max_ps(old, _mm512_mul_ps(_mm512_max_ps(top, other), _mm512_set1_ps(scores->scale)));
    const __mmask16 any = _mm512_cmp_ps_mask(maximum, lowest, _CMP_NEQ_UQ);
    const __m512 scale = _mm512_set1_ps(scores->scale * LOG2E),
                 shift = _mm512_maskz_mul_ps(any, maximum, _mm512_set1_ps(-LOG2E));
    __m512 sum = _mm512_setzero_ps(), sum2 = sum;
    for (size_t j = 0; j < keys; j += 2, p += t->ldp) {
        const __m512 low = _mm512_maskz_mov_ps(
            seen(&l, j), power(_mm512_fmadd_ps(_mm512_loadu_ps(s + j * lds), scale, shift)));
        __m512 high = _mm512_setzero_ps();
        if (j + 1 < keys)
            high = _mm512_maskz_mov_ps(
                seen(&l, j + 1), power(_mm512_fmadd_ps(_mm512_loadu_ps(s + (j + 1) * lds), scale, shift)));
        sum = _mm512_add_ps(sum, low);
        sum2 = _mm512_add_ps(sum2, high);
        _mm512_storeu_si512(p, pair_lanes(low, high));
    }
    const __m512 keep = _mm512_mask_blend_ps(any, _mm512_set1_ps(1),
                                             power(_mm512_fmadd_ps(old, _mm512_set1_ps(LOG2E), shift)));
    _mm512_storeu_ps(t->sum + first,
                     _mm512_fmadd_ps(_mm512_loadu_ps(t->sum + first), keep, _mm512_add_ps(sum, sum2)));
    _mm512_storeu_ps(t->maximum + first, maximum);
    _mm512_storeu_ps(t->keep + first, keep);
}

void walsh_softmax_columns_bf16_bf16(const struct walsh_tile_softmax *t)
{
    for (size_t first = 0; first < t->scores.queries; first += 16) softmax_lanes(t, first);
}

/* What a lane's slopes need besides its scores. */
struct slope {
    __m512 scale2, shift, scale, delta;
};

INLINE void slope_of(const struct slope *g, const float *s, const float *dp, __mmask16 mask, __m512 *p,
                     __m512 *ds)
{
    const __m512 weight = power(_mm512_fmadd_ps(_mm512_loadu_ps(s), g->scale2, g->shift));
    *p = _mm512_maskz_mov_ps(mask, weight);
    *ds = _mm512_maskz_mul_ps(mask, _mm512_mul_ps(weight, g->scale),
                              _mm512_sub_ps(_mm512_loadu_ps(dp), g->delta));
}

static void slope_lanes(const struct walsh_tile_slopes *t, size_t first)
{
    const struct walsh_tile_scores *scores = &t->scores;
    const struct lanes l = lanes_of(scores, first);
    const float *s = scores->s + first, *dp = t->dp + first;
    const size_t keys = scores->keys, lds = scores->lds;
    const struct slope g = {
        _mm512_set1_ps(scores->scale * LOG2E),
        _mm512_mul_ps(_mm512_maskz_loadu_ps(l.exist, t->lse + first), _mm512_set1_ps(-LOG2E)),
        _mm512_set1_ps(scores->scale), _mm512_maskz_loadu_ps(l.exist, t->delta + first)};
    for (size_t j = 0; j < keys; j += 2) {
        __m512 p[2], ds[2];
        slope_of(&g, s + j * lds, dp + j * lds, seen(&l, j), &p[0], &ds[0]);
        p[1] = ds[1] = _mm512_setzero_ps();
        if (j + 1 < keys) slope_of(&g, s + (j + 1) * lds, dp + (j + 1) * lds, seen(&l, j + 1), &p[1], &ds[1]);
        const __m512i weights = (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]),
                      slopes = (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0]);
        uint16_t *to = t->p_rows + j * t->ld_rows + first, *to_slopes = t->ds_rows + j * t->ld_rows + first;
        _mm256_storeu_si256((__m256i *)(void *)to, _mm512_castsi512_si256(weights));
        _mm256_storeu_si256((__m256i *)(void *)to_slopes, _mm512_castsi512_si256(slopes));
        if (j + 1 < keys) {
            _mm256_storeu_si256((__m256i *)(void *)(to + t->ld_rows), _mm512_extracti64x4_epi64(weights, 1));
            _mm256_storeu_si256((__m256i *)(void *)(to_slopes + t->ld_rows),
                                _mm512_extracti64x4_epi64(slopes, 1));
        }
        _mm512_storeu_si512(t->ds_pairs + j / 2 * t->ld_pairs + first, pair_lanes(ds[0], ds[1]));
    }
}

void walsh_slope_columns_bf16_bf16(const struct walsh_tile_slopes *t)
{
    for (size_t first = 0; first < t->scores.queries; first += 16) slope_lanes(t, first);
}

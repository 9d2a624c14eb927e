/* E8P and E81B stages by f32 activations.
 *
 * Decode: nibbles become f32 by a lookup of 16 values; each stage has one accumulator of 16 lanes per output
 * over the columns in order, then a fixed tree; y = sum over the stages of scale * unit * sum, from the left.
 * Prefill: the stages' sum of a block of columns is unpacked to f32 panels, then as the dense kernel: one
 * chain of FMAs per output and block, blocks summed in order. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/avx512/tile_f32.h"
#include "kernels/x86/vnni/e8p_block.h"

#define BLOCK (2 * WALSH_PLANE_COLUMNS) /* prefill: columns per panel */
#define PANEL_OUTPUTS 192 /* prefill: outputs whose panels share the L2: 192 * 512 * 4 = 393 KB */
#define PREFETCH 2048     /* decode: bytes ahead */

/* The 16 values of a nibble: E8P scale * (2u - 15), E81B scale * (u - 4). */
INLINE __m512 nibble_values(enum walsh_stage_kind kind, float scale)
{
    const __m512 u = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 v = kind == WALSH_STAGE_E8P ? _mm512_sub_ps(_mm512_add_ps(u, u), _mm512_set1_ps(15))
                                       : _mm512_sub_ps(u, _mm512_set1_ps(4));
    return _mm512_mul_ps(v, _mm512_set1_ps(scale));
}

static float stage_unit(const struct walsh_weights *w, unsigned stage)
{
    return w->stage[stage].scale * (w->stage[stage].kind == WALSH_STAGE_E8P ? 0.25f : 0.5f);
}

/* --- decode --- */

/* One pair of rows by `rows` activation rows, one stage; kind and rows are constant. */
INLINE void stage_sums(enum walsh_stage_kind kind, const unsigned rows, const uint8_t *data, size_t blocks,
                       const float *x, size_t stride, __m512 even[4], __m512 odd[4])
{
    const __m512 values = nibble_values(kind, 1);
    const size_t block_bytes = walsh_stage_block(kind);
    struct stage_lookup lookup = stage_lookup(kind);
#pragma GCC unroll 4
    for (unsigned i = 0; i < rows; i++) even[i] = odd[i] = _mm512_setzero_ps();
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *block = data + b * block_bytes;
        for (size_t line = 0; line < block_bytes; line += 64)
            _mm_prefetch((const char *)block + line + PREFETCH, _MM_HINT_T0);
        __m512i m[4];
        stage_block(kind, &lookup, block, m);
#pragma GCC unroll 4
        for (unsigned t = 0; t < 4; t++) {
            __m128i quarter[4] = {_mm512_castsi512_si128(m[t]), _mm512_extracti32x4_epi32(m[t], 1),
                                  _mm512_extracti32x4_epi32(m[t], 2), _mm512_extracti32x4_epi32(m[t], 3)};
#pragma GCC unroll 4
            for (unsigned n = 0; n < 4; n++) {
                __m512i nibbles = _mm512_cvtepu8_epi32(quarter[n]);
                __m512 u = _mm512_permutexvar_ps(nibbles, values); /* by the low 4 bits */
                __m512 v = _mm512_permutexvar_ps(_mm512_srli_epi32(nibbles, 4), values);
                const float *at = x + b * WALSH_PLANE_COLUMNS + 64 * t + 16 * n;
#pragma GCC unroll 4
                for (unsigned i = 0; i < rows; i++) {
                    __m512 a = _mm512_loadu_ps(at + i * stride);
                    even[i] = _mm512_fmadd_ps(u, a, even[i]);
                    odd[i] = _mm512_fmadd_ps(v, a, odd[i]);
                }
            }
        }
    }
}

INLINE void decode_pair(const unsigned rows, const struct walsh_product_part *p, size_t r, size_t i)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols);
    const float *x = (const float *)p->a->data + i * p->a->stride;
    for (unsigned k = 0; k < w->stages; k++) {
        const uint8_t *data =
            (const uint8_t *)w->stage[k].data + r / 2 * blocks * walsh_stage_block(w->stage[k].kind);
        __m512 even[4], odd[4];
        if (w->stage[k].kind == WALSH_STAGE_E8P)
            stage_sums(WALSH_STAGE_E8P, rows, data, blocks, x, p->a->stride, even, odd);
        else
            stage_sums(WALSH_STAGE_E81B, rows, data, blocks, x, p->a->stride, even, odd);
        float scale = stage_unit(w, k);
#pragma GCC unroll 4
        for (unsigned n = 0; n < rows; n++) {
            float *y = p->y + (i + n) * p->ldy + r;
            float e = scale * _mm512_reduce_add_ps(even[n]), o = scale * _mm512_reduce_add_ps(odd[n]);
            y[0] = k == 0 ? e : y[0] + e;
            y[1] = k == 0 ? o : y[1] + o;
        }
    }
}

void walsh_product_e8p_decode_vnni(const struct walsh_product_part *p)
{
    const size_t rows = p->a->rows;
    for (size_t r = p->begin; r < p->end; r += 2) {
        for (size_t i = 0; i < rows; i += 4) {
            switch (rows - i) {
            case 1:
                decode_pair(1, p, r, i);
                break;
            case 2:
                decode_pair(2, p, r, i);
                break;
            case 3:
                decode_pair(3, p, r, i);
                break;
            default:
                decode_pair(4, p, r, i);
            }
        }
    }
}

/* --- prefill --- */

/* 16 rows by 256 columns of every stage, and the values of its nibbles. */
struct stage_tiles {
    unsigned stages;
    __m512 values[WALSH_MAX_STAGES];
    _Alignas(64) uint8_t nibbles[WALSH_MAX_STAGES][16 * WALSH_PLANE_COLUMNS];
};

INLINE __m512i panel_sum(const void *from, size_t row, size_t step, size_t count)
{
    (void)count; /* whole blocks always */
    const struct stage_tiles *s = from;
    __m512 sum = _mm512_setzero_ps();
    for (unsigned k = 0; k < s->stages; k++) {
        const uint8_t *at = s->nibbles[k] + row * WALSH_PLANE_COLUMNS + step;
        __m512i u = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)at));
        sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(u, s->values[k]));
    }
    return _mm512_castps_si512(sum);
}

static void unpack_tiles(const struct walsh_weights *w, size_t blocks, size_t row, size_t exist, size_t block,
                         struct stage_tiles *s)
{
    for (unsigned k = 0; k < w->stages; k++) {
        if (w->stage[k].kind == WALSH_STAGE_E8P) {
            struct stage_lookup l = stage_lookup(WALSH_STAGE_E8P);
            stage_tile(WALSH_STAGE_E8P, &l, w->stage[k].data, blocks, row, exist, block, s->nibbles[k]);
        } else {
            struct stage_lookup l = stage_lookup(WALSH_STAGE_E81B);
            stage_tile(WALSH_STAGE_E81B, &l, w->stage[k].data, blocks, row, exist, block, s->nibbles[k]);
        }
    }
}

/* Plane blocks [first, first + count) of outputs [row, row + outputs) as panels. */
static void pack(const struct walsh_weights *w, size_t row, size_t outputs, size_t first, size_t count,
                 uint32_t *panels)
{
    struct stage_tiles s;
    s.stages = w->stages;
    for (unsigned k = 0; k < w->stages; k++) s.values[k] = nibble_values(w->stage[k].kind, stage_unit(w, k));
    for (size_t done = 0; done < outputs; done += 16) {
        size_t exist = walsh_min(16, outputs - done);
        for (size_t b = 0; b < count; b++) {
            unpack_tiles(w, walsh_stage_blocks(w->cols), row + done, exist, first + b, &s);
            for (size_t k = 0; k < WALSH_PLANE_COLUMNS; k += 16)
                panel_block(panel_sum, &s, 0, exist, k, 16, panels, outputs, count * WALSH_PLANE_COLUMNS,
                            done, b * WALSH_PLANE_COLUMNS + k);
        }
    }
}

void walsh_product_e8p_prefill_vnni(const struct walsh_product_part *p)
{
    const size_t blocks = walsh_stage_blocks(p->weights->cols), most = BLOCK / WALSH_PLANE_COLUMNS;
    uint32_t *panels = p->scratch;
    for (size_t r = p->begin; r < p->end; r += PANEL_OUTPUTS) {
        size_t outputs = walsh_min(PANEL_OUTPUTS, p->end - r);
        for (size_t b = 0; b < blocks; b += most) {
            size_t count = walsh_min(most, blocks - b), k = b * WALSH_PLANE_COLUMNS;
            pack(p->weights, r, outputs, b, count, panels);
            struct tile_rows a = {(const float *)p->a->data + k, p->a->stride * sizeof(float), p->a->rows};
            multiply_block(p, 0, panels, &a, count * WALSH_PLANE_COLUMNS, r, outputs, b == 0);
        }
    }
}

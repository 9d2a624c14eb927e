/* bf16 weights by bf16 activations on machines with AMX: one row by VDPBF16PS, many by tiles, where weights of block formats
 * rounded to bf16 are too. */
#include "kernels/x86/amx/few_rows.h"
#include "kernels/x86/amx/product_bf16.h"
#include "kernels/x86/bf16/mxfp4_pairs.h"

#define PREFETCH 2048           /* one row: bytes ahead, */
#define PREFETCH_FAR (12 << 10) /* and into the L2, whose table of misses is the longer one */

/* One row of activations: the bits of walsh_product_bf16_decode_bf16, whose streams Zen 5 reads faster with one prefetch. */
static void decode_row(const struct walsh_product_part *p)
{
    const size_t cols = p->weights->cols, whole = cols / 32 * 32;
    const uint16_t *x = p->a->data;
    const __mmask32 mask = (__mmask32)((1u << (cols - whole)) - 1);
    for (size_t r = p->begin; r < p->end; r++) {
        const uint16_t *w = (const uint16_t *)p->weights->data + r * cols;
        __m512 sum = _mm512_setzero_ps();
        for (size_t k = 0; k < whole; k += 32) {
            _mm_prefetch((const char *)(w + k) + PREFETCH, _MM_HINT_T0);
            _mm_prefetch((const char *)(w + k) + PREFETCH_FAR, _MM_HINT_T1);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(w + k),
                                   (__m512bh)_mm512_loadu_si512(x + k));
        }
        if (mask)
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(mask, w + whole),
                                   (__m512bh)_mm512_maskz_loadu_epi16(mask, x + whole));
        p->y[r] = _mm512_reduce_add_ps(sum);
    }
}

void walsh_product_bf16_decode_amx(const struct walsh_product_part *p)
{
    if (p->a->rows == 1)
        decode_row(p);
    else
        walsh_product_bf16_decode_bf16(p);
}

/* Rows [row, row + outputs) of weights, steps [first, first + steps), as panels. */
static void pack_rows(const void *weights, size_t row, size_t outputs, size_t first, size_t steps,
                      uint8_t *panels)
{
    const struct walsh_weights *w = weights;
    for (size_t done = 0; done < outputs; done += 16) {
        const uint16_t *from = (const uint16_t *)w->data + (row + done) * w->cols;
        for (size_t k = first; k < first + steps; k++, panels += TILE_BYTES) {
            const __mmask32 mask = _bzhi_u32(0xffffffffu, (unsigned)walsh_min(w->cols - k * STEP, STEP));
            __m512i r[16];
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++)
                r[n] = done + n < outputs ? _mm512_maskz_loadu_epi16(mask, from + n * w->cols + k * STEP)
                                          : _mm512_setzero_si512();
            transpose_16x16(r);
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++) _mm512_store_si512(panels + 64 * n, r[n]);
        }
    }
}

/* Pairs of rounded columns, the first in the lower half: round to nearest even, numbers only. */
INLINE __m512i round_pair(__m512 even, __m512 odd)
{
    const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1);
    const __m512i e = _mm512_castps_si512(even), o = _mm512_castps_si512(odd);
    const __m512i low =
        _mm512_add_epi32(e, _mm512_add_epi32(half, _mm512_and_si512(_mm512_srli_epi32(e, 16), one)));
    const __m512i high =
        _mm512_add_epi32(o, _mm512_add_epi32(half, _mm512_and_si512(_mm512_srli_epi32(o, 16), one)));
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low, 16), high);
}

/* pack_rows of a block format, whose 16 rows are lanes already: a word of a panel is two columns side by
 * side. */
INLINE void pack_code(enum walsh_code code, const struct walsh_weights *w, size_t row, size_t outputs,
                      size_t first, size_t steps, uint8_t *panels)
{
    const size_t words = walsh_block_words(w), groups = walsh_block_groups(w);
    const size_t word_rows = walsh_code_bits(code) == 4 ? 2 : 4; /* of 16 columns */
    const bool integer = code == WALSH_CODE_U4 || code == WALSH_CODE_U8;
    const __m512 whole = _mm512_set1_ps(w->tensor_scale);
    for (size_t done = 0; done < outputs; done += WALSH_BLOCK_ROWS) {
        const size_t tile = (row + done) / WALSH_BLOCK_ROWS;
        const uint32_t *data = (const uint32_t *)w->data + tile * words * WALSH_BLOCK_ROWS;
        for (size_t k = 2 * first; k < 2 * (first + steps); k++, panels += TILE_BYTES / 2) {
            if (16 * k >= w->cols) { /* the last step's second half */
                memset(panels, 0, TILE_BYTES / 2);
                continue;
            }
            const size_t at = (tile * groups + walsh_block_group_of(w, 16 * k)) * WALSH_BLOCK_ROWS;
            const __m512 scale = block_scales(w->block.scale, w->scales, at);
            __m512 v[16];
            block_values(code, data + k * word_rows * WALSH_BLOCK_ROWS,
                         integer ? block_zeros(code, w->zeros, at) : _mm512_setzero_si512(), v);
#pragma GCC unroll 8
            for (unsigned c = 0; c < 8; c++) {
                const __m512 even = _mm512_mul_ps(_mm512_mul_ps(v[2 * c], scale), whole),
                             odd = _mm512_mul_ps(_mm512_mul_ps(v[2 * c + 1], scale), whole);
                _mm512_store_si512(panels + 64 * c, round_pair(even, odd));
            }
        }
    }
}

/* The same of MXFP4, a group of which is a tile: 256 weights take 8 permutations, 8 shuffles of bytes, 8
 * tests and 8 additions in the place of 32 multiplications and 88 operations of rounding. */
static void pack_mxfp4(const void *weights, size_t row, size_t outputs, size_t first, size_t steps,
                       uint8_t *panels)
{
    const struct walsh_weights *w = weights;
    for (size_t done = 0; done < outputs; done += WALSH_BLOCK_ROWS) {
        const size_t tile = (row + done) / WALSH_BLOCK_ROWS;
        for (size_t k = first; k < first + steps; k++, panels += TILE_BYTES) {
            __m512i pairs[16];
            group_pairs(group_words(w, tile, k), group_scales(w, tile, k), pairs);
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++) _mm512_store_si512(panels + 64 * n, pairs[n]);
        }
    }
}

static void pack_blocks(const struct walsh_weights *w, size_t row, size_t outputs, size_t first, size_t steps,
                        uint8_t *panels)
{
    if (w->format == WALSH_FORMAT_MXFP4 && w->tensor_scale == 1) {
        pack_mxfp4(w, row, outputs, first, steps, panels);
        return;
    }
    switch (w->block.code) {
    case WALSH_CODE_E2M1:
        pack_code(WALSH_CODE_E2M1, w, row, outputs, first, steps, panels);
        break;
    case WALSH_CODE_U4:
        pack_code(WALSH_CODE_U4, w, row, outputs, first, steps, panels);
        break;
    case WALSH_CODE_U8:
        pack_code(WALSH_CODE_U8, w, row, outputs, first, steps, panels);
        break;
    case WALSH_CODE_E4M3:
        pack_code(WALSH_CODE_E4M3, w, row, outputs, first, steps, panels);
        break;
    case WALSH_CODE_E5M2:
        pack_code(WALSH_CODE_E5M2, w, row, outputs, first, steps, panels);
        break;
    }
}

static void pack(const void *weights, size_t row, size_t outputs, size_t first, size_t steps, uint8_t *panels)
{
    const struct walsh_weights *w = weights;
    if (walsh_format_is_block(w->format))
        pack_blocks(w, row, outputs, first, steps, panels);
    else
        pack_rows(w, row, outputs, first, steps, panels);
}

void walsh_product_bf16_prefill_amx(const struct walsh_product_part *p)
{
    if (p->weights->cols > WALSH_TILED_MAX_BF16_COLUMNS) /* the scratch holds no panel of a group */
        walsh_product_bf16_prefill_bf16(p);
    else
        product_bf16(pack, p, p->weights->cols);
}

void walsh_product_mxfp4_prefill_amx(const struct walsh_product_part *p)
{
    if (p->weights->cols > WALSH_TILED_MAX_BF16_COLUMNS)
        walsh_product_mxfp4_prefill_bf16(p);
    else if (!walsh_amx_mxfp4_few_rows(p))
        product_bf16(pack_mxfp4, p, p->weights->cols);
}

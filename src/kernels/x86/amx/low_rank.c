/* Low-rank updates of prompts by tiles of bf16. An f32 number is three of bf16, of eight bits of its significand each, so that A x
 * and B h of A and B in bf16 are as exact as by multiply-adds of f32: three products of tiles in the place of one. Of infinite
 * numbers and NaN the first one is all.
 *
 * Down: 32 rows of x by 16 ranks; a step is a group of 32 columns, whose pairs stand in the order of formats/low_rank.h.
 * A's part of a step is transposed, x is split, both beside the products of the step before. Up: 32 rows by 32 outputs, the panels of
 * B as they are. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"
#include "kernels/x86/avx512/gemm_lanes.h"

/* Rows come from beyond the L2, 32 streams at a time, which no machine's own prefetching follows: bytes ahead, into the L2. */
#define AHEAD 1024
#define UP_AHEAD 384

enum {
    SPLIT = 3,
    ROWS = 32,
    RANKS = 16,
    UP_RANKS = 32,
    OUTPUTS = 32,
    TILE_BYTES = 1024,
    PANEL_OUTPUTS = WALSH_LOW_RANK_PANEL
};

INLINE __m512 top_half(__m512 x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-65536)));
}

/* x without its first eight bits; 0 of what is not finite. */
INLINE __m512 rest(__m512 x)
{
    return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(x, 0x99)), x, top_half(x));
}

/* Pairs (low, high) of upper halves. */
INLINE __m512i pair_halves(__m512 low, __m512 high)
{
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(_mm512_castps_si512(low), 16),
                                   _mm512_castps_si512(high));
}

/* Row by row: `to` and behind it, a tile apart, the three parts of 32 numbers. */
INLINE void split_pairs(__m512 low, __m512 high, uint8_t *to)
{
    _mm512_store_si512(to, pair_halves(low, high));
    low = rest(low), high = rest(high);
    _mm512_store_si512(to + TILE_BYTES, pair_halves(low, high));
    low = rest(low), high = rest(high);
    _mm512_store_si512(to + 2 * TILE_BYTES, pair_halves(low, high));
}

/* --- down --- */

struct step {
    _Alignas(64) uint8_t x[2][SPLIT * TILE_BYTES], a[TILE_BYTES];
};

/* Group g of `rows` rows of x from `x` on, and of one or two chunks of A. */
INLINE void make_step(const struct walsh_low_rank_down_part *p, const float *x, size_t rows, const char *a,
                      const char *a1, size_t g, struct step *s)
{
    const size_t exist = p->end - g * WALSH_LOW_RANK_GROUP;
    const __mmask16 low = first_lanes(exist), high = first_lanes(exist > 16 ? exist - 16 : 0);
    __m512i r[16];
    for (size_t i = 0; i < rows; i++) {
        const float *row = x + i * p->ldx + g * WALSH_LOW_RANK_GROUP;
        split_pairs(_mm512_maskz_loadu_ps(low, row), _mm512_maskz_loadu_ps(high, row + 16),
                    s->x[i / 16] + i % 16 * 64);
        _mm_prefetch((const char *)row + AHEAD, _MM_HINT_T1);
        _mm_prefetch((const char *)row + AHEAD + 64, _MM_HINT_T1);
    }
#pragma GCC unroll 8
    for (size_t j = 0; j < WALSH_LOW_RANK_CHUNK; j++) {
        const size_t at = (g * WALSH_LOW_RANK_CHUNK + j) * 64;
        r[j] = _mm512_loadu_si512(a + at);
        r[WALSH_LOW_RANK_CHUNK + j] = a1 != NULL ? _mm512_loadu_si512(a1 + at) : _mm512_setzero_si512();
    }
    transpose_16x16(r);
#pragma GCC unroll 16
    for (size_t k = 0; k < 16; k++) _mm512_store_si512(s->a + 64 * k, r[k]);
}

/* 32 rows or less, from row i on, by one or two chunks, of which h has `ranks` ranks from h on. The first part of x has sums of
 * its own. */
static void down_rows(const struct walsh_low_rank_down_part *p, size_t i, size_t rows, const char *a,
                      const char *a1, float *h)
{
    const struct tile_config config = tile_shapes(walsh_min(rows, 16), rows > 16 ? rows - 16 : 0);
    const size_t groups = walsh_div_up(p->end, WALSH_LOW_RANK_GROUP);
    const float *x = p->x + i * p->ldx;
    struct step step[2];
    _Alignas(64) float sums[4][256];
    struct tiles t;
    tiles_open(&t, &config);
    TILE_ZERO(&t, 0);
    TILE_ZERO(&t, 1);
    TILE_ZERO(&t, 2);
    TILE_ZERO(&t, 3);
    make_step(p, x, rows, a, a1, 0, &step[0]);
    for (size_t g = 0; g < groups; g++) {
        const struct step *now = &step[g % 2];
        if (g + 1 < groups) make_step(p, x, rows, a, a1, g + 1, &step[(g + 1) % 2]);
        TILE_LOAD(&t, 6, now->a, 64);
        TILE_LOAD(&t, 4, now->x[0], 64);
        TILE_DOT_BF16(&t, 0, 4, 6);
        TILE_LOAD(&t, 4, now->x[0] + TILE_BYTES, 64);
        TILE_DOT_BF16(&t, 1, 4, 6);
        TILE_LOAD(&t, 4, now->x[0] + 2 * TILE_BYTES, 64);
        TILE_DOT_BF16(&t, 1, 4, 6);
        if (rows <= 16) continue;
        TILE_LOAD(&t, 5, now->x[1], 64);
        TILE_DOT_BF16(&t, 2, 5, 6);
        TILE_LOAD(&t, 5, now->x[1] + TILE_BYTES, 64);
        TILE_DOT_BF16(&t, 3, 5, 6);
        TILE_LOAD(&t, 5, now->x[1] + 2 * TILE_BYTES, 64);
        TILE_DOT_BF16(&t, 3, 5, 6);
    }
    TILE_STORE(&t, 0, sums[0], 64);
    TILE_STORE(&t, 1, sums[1], 64);
    if (rows > 16) TILE_STORE(&t, 2, sums[2], 64);
    if (rows > 16) TILE_STORE(&t, 3, sums[3], 64);
    tiles_close(&t);
    for (size_t m = 0; m < rows; m++) {
        const float *row = &sums[m / 16 * 2][m % 16 * 16];
        _mm512_mask_storeu_ps(h + (i + m) * p->ldh, a1 != NULL ? 0xffff : 0xff,
                              _mm512_add_ps(_mm512_load_ps(row), _mm512_load_ps(row + 256)));
    }
}

void walsh_low_rank_down_prefill_amx(const struct walsh_low_rank_down_part *p)
{
    if (p->format != WALSH_FORMAT_BF16) {
        walsh_low_rank_down_prefill_avx512(p);
        return;
    }
    const size_t chunk = walsh_low_rank_a_size(1, p->cols) * 2;
    for (size_t i = 0; i < p->rows; i += ROWS)
        for (size_t c = 0; c < p->chunks; c += 2) {
            const char *a = (const char *)p->a + c * chunk;
            down_rows(p, i, walsh_min(p->rows - i, ROWS), a, c + 1 < p->chunks ? a + chunk : NULL,
                      p->h + c * WALSH_LOW_RANK_CHUNK);
        }
}

/* --- up --- */

/* Tiles 0 to 3: sums; 4 and 5: rows of h; 6 and 7: panels of `pairs` pairs of ranks. */
static struct tile_config up_shapes(size_t rows, size_t pairs)
{
    struct tile_config c = tile_shapes(walsh_min(rows, 16), rows > 16 ? rows - 16 : 0);
    c.row_bytes[4] = c.row_bytes[5] = (uint16_t)(4 * pairs);
    c.rows[6] = c.rows[7] = (uint8_t)pairs;
    return c;
}

/* Ranks [first, first + ranks) of `rows` rows of h from row i on, in three parts. */
static void split_rows(const struct walsh_low_rank_up_part *p, size_t i, size_t rows, size_t first,
                       size_t ranks, uint8_t h[2][SPLIT * TILE_BYTES])
{
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                  odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    const __mmask16 low = first_lanes(ranks), high = first_lanes(ranks > 16 ? ranks - 16 : 0);
    for (size_t m = 0; m < rows; m++) {
        const float *row = p->h + (i + m) * p->ldh + first;
        const __m512 a = _mm512_maskz_loadu_ps(low, row), b = _mm512_maskz_loadu_ps(high, row + 16);
        split_pairs(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b),
                    h[m / 16] + m % 16 * 64);
    }
}

/* y of a group: rows from i on, outputs from o on. */
INLINE void add_group(const struct walsh_low_rank_up_part *p, const float *sums, size_t i, size_t rows,
                      size_t o)
{
    const __m512 scale = _mm512_set1_ps(p->scale);
    const size_t exist = p->end - o;
    const __mmask16 low = first_lanes(exist), high = first_lanes(exist > 16 ? exist - 16 : 0);
    for (size_t m = 0; m < rows; m++) {
        const float *row = sums + m / 16 * 512 + m % 16 * 16;
        float *y = p->y + (i + m) * p->ldy + o;
        _mm_prefetch((const char *)y + UP_AHEAD, _MM_HINT_T1);
        _mm_prefetch((const char *)y + UP_AHEAD + 64, _MM_HINT_T1);
        _mm512_mask_storeu_ps(y, low,
                              _mm512_fmadd_ps(_mm512_load_ps(row), scale, _mm512_maskz_loadu_ps(low, y)));
        if (high)
            _mm512_mask_storeu_ps(
                y + 16, high,
                _mm512_fmadd_ps(_mm512_load_ps(row + 256), scale, _mm512_maskz_loadu_ps(high, y + 16)));
    }
}

/* 32 rows or less by all outputs: a group's sums are added while the next one is multiplied. */
INLINE void up_rows(struct tiles *t, const struct walsh_low_rank_up_part *p, size_t i, size_t rows,
                    size_t first, uint8_t h[2][SPLIT * TILE_BYTES])
{
    const size_t panel = walsh_div_up(p->rank, 2) * 64;
    const bool two = rows > 16;
    _Alignas(64) float sums[2][4 * 256];
    size_t o = p->begin;
    (void)t;
    for (unsigned turn = 0; o < p->end; o += OUTPUTS, turn ^= 1) {
        const char *b = (const char *)p->b + o / PANEL_OUTPUTS * panel + first / 2 * 64;
        const bool wide = p->end - o > PANEL_OUTPUTS;
        TILE_ZERO(t, 0);
        TILE_ZERO(t, 1);
        TILE_ZERO(t, 2);
        TILE_ZERO(t, 3);
        TILE_LOAD(t, 6, b, 64);
        if (wide) TILE_LOAD(t, 7, b + panel, 64);
#pragma GCC unroll 3
        for (size_t s = SPLIT; s-- > 0;) { /* the small parts first */
            TILE_LOAD(t, 4, h[0] + s * TILE_BYTES, 64);
            TILE_DOT_BF16(t, 0, 4, 6);
            if (wide) TILE_DOT_BF16(t, 1, 4, 7);
            if (!two) continue;
            TILE_LOAD(t, 5, h[1] + s * TILE_BYTES, 64);
            TILE_DOT_BF16(t, 2, 5, 6);
            if (wide) TILE_DOT_BF16(t, 3, 5, 7);
        }
        TILE_STORE(t, 0, sums[turn], 64);
        if (wide) TILE_STORE(t, 1, sums[turn] + 256, 64);
        if (two) TILE_STORE(t, 2, sums[turn] + 512, 64);
        if (two && wide) TILE_STORE(t, 3, sums[turn] + 768, 64);
        if (o > p->begin) add_group(p, sums[turn ^ 1], i, rows, o - OUTPUTS);
        if (o + OUTPUTS >= p->end) add_group(p, sums[turn], i, rows, o);
    }
}

void walsh_low_rank_up_prefill_amx(const struct walsh_low_rank_up_part *p)
{
    if (p->format != WALSH_FORMAT_BF16) {
        walsh_low_rank_up_prefill_avx512(p);
        return;
    }
    _Alignas(64) uint8_t h[2][SPLIT * TILE_BYTES];
    for (size_t first = 0; first < p->rank; first += UP_RANKS) {
        const size_t ranks = walsh_min(p->rank - first, UP_RANKS);
        struct tiles t;
        size_t shaped = 0;
        for (size_t i = 0; i < p->rows; i += ROWS) {
            const size_t rows = walsh_min(p->rows - i, ROWS);
            if (rows != shaped) {
                const struct tile_config config = up_shapes(rows, walsh_div_up(ranks, 2));
                tiles_open(&t, &config);
                shaped = rows;
            }
            split_rows(p, i, rows, first, ranks, h);
            up_rows(&t, p, i, rows, first, h);
        }
        if (shaped != 0) tiles_close(&t);
    }
}

/* E8P and E81B stages by int8 activations on AMX: exact integers, the bits of the VNNI kernels.
 *
 * Prefill: nibbles of a stage, or two stages merged, become tiles of weights once per piece and meet all rows
 * of activations (gemm.h). Decode of DECODE_ROWS rows and more: 16 rows of weights are the rows of a tile, as
 * their blocks come out of the registers, and the activations are the other tile, transposed once per piece.
 * With a pair of rows in each byte, u = u_even + 16 u_odd, tile rows 0..7 hold u_even and rows 8..15 u. */
#include "base/memory.h"
#include "kernels/table.h"
#include "kernels/x86/vnni/e8p_block.h"

typedef int32_t tile_sum __attribute__((vector_size(64)));

static inline tile_sum tile_zero(void)
{
    return (tile_sum){0};
}

static inline tile_sum tile_step(tile_sum sum, __m512i weights, __m512i activation)
{
    return (tile_sum)_mm512_dpbusd_epi32((__m512i)sum, weights, activation);
}

#define TILE_DOT TILE_DOT_SU
#include "kernels/x86/amx/gemm.h"

#include "kernels/x86/vnni/stage_store.h"

#define DECODE_ROWS 4        /* fewer rows are left to VPDPBUSD */
#define DECODE_MOST 64       /* rows of activations at once: four tiles */
#define STEP 64              /* columns of a tile */
#define BLOCK_TILES 4        /* of a plane block: WALSH_PLANE_COLUMNS / STEP */
#define PREFETCH_STREAM 2048 /* decode: bytes ahead in each pair of rows */
_Static_assert(AMX_SCRATCH <= WALSH_PRODUCT_SCRATCH, "sums and panels");
_Static_assert(BLOCK_STEPS % BLOCK_TILES == 0, "whole plane blocks");

/* --- prefill --- */

/* v[p]: 16 words of 4 columns of pair p, p in 0..7 -> v[j]: words j' and j'' of all pairs, 8 lanes each, with
 * (j', j'') = word_of(j). */
INLINE void transpose_8x16(__m512i v[8])
{
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i t[8], q[8];
#pragma GCC unroll 4
    for (unsigned n = 0; n < 4; n++) {
        t[2 * n] = _mm512_unpacklo_epi32(v[2 * n], v[2 * n + 1]);
        t[2 * n + 1] = _mm512_unpackhi_epi32(v[2 * n], v[2 * n + 1]);
    }
#pragma GCC unroll 2
    for (unsigned n = 0; n < 2; n++) { /* q[4n + c]: words c, c + 4, c + 8, c + 12 of pairs 4n..4n+3 */
        q[4 * n] = _mm512_unpacklo_epi64(t[4 * n], t[4 * n + 2]);
        q[4 * n + 1] = _mm512_unpackhi_epi64(t[4 * n], t[4 * n + 2]);
        q[4 * n + 2] = _mm512_unpacklo_epi64(t[4 * n + 1], t[4 * n + 3]);
        q[4 * n + 3] = _mm512_unpackhi_epi64(t[4 * n + 1], t[4 * n + 3]);
    }
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        v[c] = _mm512_permutex2var_epi64(q[c], low, q[4 + c]);
        v[4 + c] = _mm512_permutex2var_epi64(q[c], high, q[4 + c]);
    }
}

/* The first of the two words in v[j] of transpose_8x16; the second is 4 behind it. */
INLINE size_t word_of(size_t j)
{
    return j % 4 + j / 4 * 8;
}

INLINE void store_halves(uint8_t *tile, size_t word, size_t half, __m512i v)
{
    uint8_t *to = tile + word * 64 + half * 32;
    _mm256_store_si256((__m256i *)(void *)to, _mm512_castsi512_si256(v));
    _mm256_store_si256((__m256i *)(void *)(to + 4 * 64), _mm512_extracti64x4_epi64(v, 1));
}

/* Tile [word][output][4 columns]: lanes 0..7 of a word are the even rows of the pairs, 8..15 the odd ones. */
INLINE void store_tile(bool merged, const struct plane_source *from, __m512i m0[8], __m512i m1[8],
                       uint8_t *tile)
{
    const __m512i low = _mm512_set1_epi8(15);
    transpose_8x16(m0);
    if (merged) transpose_8x16(m1);
#pragma GCC unroll 8
    for (size_t j = 0; j < 8; j++) {
        store_halves(tile, word_of(j), 0,
                     merged ? merge_even(from, m0[j], m1[j]) : _mm512_and_si512(m0[j], low));
        store_halves(tile, word_of(j), 1,
                     merged ? merge_odd(from, m0[j], m1[j])
                            : _mm512_and_si512(_mm512_srli_epi16(m0[j], 4), low));
    }
}

/* Plane blocks [begin, end) of outputs [row, row + outputs) as panels. */
INLINE void pack_plane(enum walsh_stage_kind kind, bool merged, const struct plane_source *from,
                       size_t blocks, size_t begin, size_t end, size_t row, size_t outputs, uint8_t *panels)
{
    const enum walsh_stage_kind of_first = merged ? WALSH_STAGE_E8P : kind;
    struct stage_lookup first = stage_lookup(of_first), second = stage_lookup(kind);
    for (size_t done = 0; done < outputs; done += 16) {
        for (size_t b = begin; b < end; b++) {
            __m512i m0[BLOCK_TILES][8], m1[BLOCK_TILES][8];
            for (unsigned pair = 0; pair < 8; pair++) {
                const size_t at = ((row + done) / 2 + pair) * blocks + b;
                __m512i m[4];
                stage_block(of_first, &first, from->data[0] + at * walsh_stage_block(of_first), m);
                for (unsigned t = 0; t < BLOCK_TILES; t++) m0[t][pair] = m[t];
                if (!merged) continue;
                stage_block(kind, &second, from->data[1] + at * walsh_stage_block(kind), m);
                for (unsigned t = 0; t < BLOCK_TILES; t++) m1[t][pair] = m[t];
            }
            uint8_t *tile = panels + (done / 16 * (end - begin) + b - begin) * BLOCK_TILES * TILE_BYTES;
            for (unsigned t = 0; t < BLOCK_TILES; t++)
                store_tile(merged, from, m0[t], m1[t], tile + t * TILE_BYTES);
        }
    }
}

/* Lanes of a tile to outputs: evens and odds interleave. */
INLINE void store_plane(const void *to, size_t i, size_t r, __mmask16 mask, __m512i sum)
{
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    store_stage(to, i, r, mask, (tile_sum)_mm512_permutexvar_epi32(order, sum));
}

struct packed_plane {
    const struct plane_source *plane;
    size_t blocks;
    bool merged;
};

static void pack_steps(const void *from, size_t row, size_t outputs, size_t first, size_t steps,
                       uint8_t *panels)
{
    const struct packed_plane *p = from;
    const size_t begin = first / BLOCK_TILES, end = (first + steps) / BLOCK_TILES;
    if (p->merged && p->plane->kind == WALSH_STAGE_E8P)
        pack_plane(WALSH_STAGE_E8P, true, p->plane, p->blocks, begin, end, row, outputs, panels);
    else if (p->merged)
        pack_plane(WALSH_STAGE_E81B, true, p->plane, p->blocks, begin, end, row, outputs, panels);
    else if (p->plane->kind == WALSH_STAGE_E8P)
        pack_plane(WALSH_STAGE_E8P, false, p->plane, p->blocks, begin, end, row, outputs, panels);
    else
        pack_plane(WALSH_STAGE_E81B, false, p->plane, p->blocks, begin, end, row, outputs, panels);
}

void walsh_product_int8_prefill_amx(const struct walsh_product_part *p)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols);
    const struct amx_rows a = {p->a->data, p->a->stride, p->a->rows, p->a->tiled, 0};
    struct prefill_planes planes;
    prefill_planes(w, &planes);
    for (size_t r = p->begin; r < p->end; r += MOST_OUTPUTS) {
        const size_t outputs = walsh_min(MOST_OUTPUTS, p->end - r);
        for (unsigned k = 0; k < planes.count; k++) {
            const struct packed_plane from = {&planes.plane[k], blocks, planes.merged};
            struct stage_output to = {p, planes.plane[k].term, k == 0, k + 1 == planes.count};
            amx_all(pack_steps, &from, store_plane, &to, p->scratch, &a, blocks * BLOCK_TILES, r, outputs);
        }
    }
}

/* --- decode --- */

/* Rows [i, i + rows) of activations as tiles of weights are elsewhere: [column / 64][group of 16 rows][word of
 * 4 columns][row][4], missing rows zero. */
static void pack_activations(const struct walsh_activations *a, size_t i, size_t rows, size_t steps,
                             size_t groups, uint8_t *to)
{
    for (size_t k = 0; k < steps; k++) {
        for (size_t g = 0; g < groups; g++, to += TILE_BYTES) {
            __m512i r[16];
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++)
                r[n] = 16 * g + n < rows ? _mm512_loadu_si512((const int8_t *)a->data +
                                                              (i + 16 * g + n) * a->stride + k * STEP)
                                         : _mm512_setzero_si512();
            transpose_16x16(r);
#pragma GCC unroll 16
            for (size_t n = 0; n < 16; n++) _mm512_store_si512(to + 64 * n, r[n]);
        }
    }
}

/* A plane block of 8 pairs of rows -> four tiles of their bytes. */
INLINE void decode_tiles(enum walsh_stage_kind kind, const struct stage_lookup *lookup, const uint8_t *data,
                         size_t pair_bytes, uint8_t *tiles)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t pair = 0; pair < 8; pair++) {
        const uint8_t *block = data + pair * pair_bytes;
        for (size_t line = 0; line < walsh_stage_block(kind); line += 64) {
            _mm_prefetch((const char *)block + line + PREFETCH_STREAM, _MM_HINT_T0);
            _mm_prefetch((const char *)block + line + 8 * pair_bytes, _MM_HINT_T1); /* the next 16 outputs */
        }
        __m512i m[4];
        stage_block(kind, lookup, block, m);
#pragma GCC unroll 4
        for (size_t t = 0; t < BLOCK_TILES; t++) {
            _mm512_store_si512(tiles + t * TILE_BYTES + pair * 64, _mm512_and_si512(m[t], low));
            _mm512_store_si512(tiles + t * TILE_BYTES + (pair + 8) * 64, m[t]);
        }
    }
}

/* sums[groups][256] of 16 outputs' stage by the packed activations: the tiles of a block meet them while the
 * next block is decoded. */
INLINE void stage_sums(enum walsh_stage_kind kind, const uint8_t *data, size_t blocks, const uint8_t *packed,
                       size_t groups, struct tiles *t, uint8_t *tiles, uint32_t *sums)
{
    const size_t block_bytes = walsh_stage_block(kind), pair_bytes = blocks * block_bytes;
    struct stage_lookup lookup = stage_lookup(kind);
    (void)t;
    TILE_ZERO(t, 0);
    TILE_ZERO(t, 1);
    TILE_ZERO(t, 2);
    TILE_ZERO(t, 3);
    decode_tiles(kind, &lookup, data, pair_bytes, tiles);
    for (size_t b = 0; b < blocks; b++) {
        uint8_t *now = tiles + b % 2 * BLOCK_TILES * TILE_BYTES,
                *next = tiles + (b + 1) % 2 * BLOCK_TILES * TILE_BYTES;
        if (b + 1 < blocks) decode_tiles(kind, &lookup, data + (b + 1) * block_bytes, pair_bytes, next);
        const uint8_t *x = packed + b * BLOCK_TILES * groups * TILE_BYTES;
        for (size_t k = 0; k < BLOCK_TILES; k++, x += groups * TILE_BYTES) {
            TILE_LOAD(t, 4, now + k * TILE_BYTES, 64);
            TILE_LOAD(t, 6, x, 64);
            TILE_DOT_US(t, 0, 4, 6);
            if (groups > 1) TILE_LOAD(t, 7, x + TILE_BYTES, 64);
            if (groups > 1) TILE_DOT_US(t, 1, 4, 7);
            if (groups > 2) TILE_LOAD(t, 5, x + 2 * TILE_BYTES, 64);
            if (groups > 2) TILE_DOT_US(t, 2, 4, 5);
            if (groups > 3) TILE_LOAD(t, 6, x + 3 * TILE_BYTES, 64);
            if (groups > 3) TILE_DOT_US(t, 3, 4, 6);
        }
    }
    TILE_STORE(t, 0, sums, 64);
    if (groups > 1) TILE_STORE(t, 1, sums + 256, 64);
    if (groups > 2) TILE_STORE(t, 2, sums + 512, 64);
    if (groups > 3) TILE_STORE(t, 3, sums + 768, 64);
}

/* 16 x 16 sums of tile rows (pairs) by activation rows -> outputs of `rows` rows from i on. */
INLINE void store_sums(const struct stage_output *to, const uint32_t *sums, size_t i, size_t rows, size_t r)
{
    __m512i v[16];
#pragma GCC unroll 8
    for (size_t n = 0; n < 8; n++) {
        v[2 * n] = _mm512_load_si512(sums + 16 * n);
        v[2 * n + 1] =
            _mm512_srai_epi32(_mm512_sub_epi32(_mm512_load_si512(sums + 16 * (n + 8)), v[2 * n]), 4);
    }
    transpose_16x16(v);
    for (size_t n = 0; n < rows; n++) store_stage(to, i + n, r, 0xffff, (tile_sum)v[n]);
}

static void decode_rows(const struct walsh_product_part *p, size_t i, size_t rows)
{
    const struct walsh_weights *w = p->weights;
    const size_t blocks = walsh_stage_blocks(w->cols), groups = walsh_div_up(rows, 16);
    _Alignas(64) uint8_t tiles[2 * BLOCK_TILES * TILE_BYTES];
    _Alignas(64) uint32_t sums[4 * 256];
    const struct tile_config config = tile_shapes(16, 16);
    struct tiles t;
    pack_activations(p->a, i, rows, blocks * BLOCK_TILES, groups, p->scratch);
    tiles_open(&t, &config);
    for (size_t r = p->begin; r < p->end; r += 16) {
        for (unsigned k = 0; k < w->stages; k++) {
            const size_t pair = r / 2 * blocks * walsh_stage_block(w->stage[k].kind);
            const uint8_t *data = (const uint8_t *)w->stage[k].data + pair;
            const struct stage_output to = {p, stage_term(w, k), k == 0, k + 1 == w->stages};
            if (w->stage[k].kind == WALSH_STAGE_E8P)
                stage_sums(WALSH_STAGE_E8P, data, blocks, p->scratch, groups, &t, tiles, sums);
            else
                stage_sums(WALSH_STAGE_E81B, data, blocks, p->scratch, groups, &t, tiles, sums);
            for (size_t g = 0; g < groups; g++)
                store_sums(&to, sums + 256 * g, i + 16 * g, walsh_min(16, rows - 16 * g), r);
        }
    }
    tiles_close(&t);
}

void walsh_product_int8_decode_amx(const struct walsh_product_part *p)
{
    if (p->a->rows < DECODE_ROWS) {
        walsh_product_int8_decode_vnni(p);
        return;
    }
    for (size_t i = 0; i < p->a->rows; i += DECODE_MOST)
        decode_rows(p, i, walsh_min(DECODE_MOST, p->a->rows - i));
}

/* The tile instructions of AMX: eight registers of up to 16 rows of 64 bytes, and products of tiles. Register
 * numbers are literals. WALSH_AMX_EMULATED replaces them by plain C, so that what is written over them can be
 * tested on machines without AMX; the kernels' names do not change.
 *
 * Inline assembly rather than intrinsics: those of gcc 12 tell the compiler nothing about the memory that
 * tiles read and write, so that it drops or moves the stores in front of them. */
#ifndef WALSH_KERNELS_X86_AMX_TILES_H
#define WALSH_KERNELS_X86_AMX_TILES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* What LDTILECFG reads. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

#ifdef WALSH_AMX_EMULATED

#include "base/scalar.h"

struct tiles {
    struct tile_config config;
    _Alignas(64) uint8_t data[8][16][64];
};

static inline void tiles_open(struct tiles *t, const struct tile_config *config)
{
    memset(t, 0, sizeof *t);
    t->config = *config;
}

static inline void tiles_close(struct tiles *t)
{
    memset(t, 0xa5, sizeof *t);
}

static inline void tile_emulate_load(struct tiles *t, int n, const void *from, size_t stride)
{
    memset(t->data[n], 0, sizeof t->data[n]);
    for (size_t r = 0; r < t->config.rows[n]; r++)
        memcpy(t->data[n][r], (const char *)from + r * stride, t->config.row_bytes[n]);
}

static inline void tile_emulate_store(const struct tiles *t, int n, void *to, size_t stride)
{
    for (size_t r = 0; r < t->config.rows[n]; r++)
        memcpy((char *)to + r * stride, t->data[n][r], t->config.row_bytes[n]);
}

/* c += a b in integers; bytes of a or b are signed where said. Tiles of weights come as [k][n], which
 * compilers turn into vectors. */
static inline void tile_emulate_dot(struct tiles *t, int c, int a, int b, int a_signed, int b_signed)
{
    int weight[64][16];
    for (size_t k = 0; k < 64; k++)
        for (size_t n = 0; n < 16; n++) {
            const uint8_t byte = t->data[b][k / 4][4 * n + k % 4];
            weight[k][n] = b_signed ? (int8_t)byte : byte;
        }
    for (size_t m = 0; m < t->config.rows[c]; m++) {
        uint32_t sum[16];
        memcpy(sum, t->data[c][m], sizeof sum);
        for (size_t k = 0; k < t->config.row_bytes[a]; k++) {
            const int x = a_signed ? (int8_t)t->data[a][m][k] : t->data[a][m][k];
            for (size_t n = 0; n < 16; n++) sum[n] += (uint32_t)(x * weight[k][n]);
        }
        memcpy(t->data[c][m], sum, t->config.row_bytes[c]);
    }
}

/* c += a b: the even and the odd terms of a tile have a sum each. */
static inline void tile_emulate_dot_bf16(struct tiles *t, int c, int a, int b)
{
    float weight[32][16];
    for (size_t k = 0; k < 32; k++)
        for (size_t n = 0; n < 16; n++) {
            uint16_t y;
            memcpy(&y, &t->data[b][k / 2][4 * n + k % 2 * 2], 2);
            weight[k][n] = walsh_f32_from_bf16(y);
        }
    for (size_t m = 0; m < t->config.rows[c]; m++) {
        float part[2][16] = {{0}, {0}}, sum[16];
        memcpy(sum, t->data[c][m], sizeof sum);
        for (size_t k = 0; k < t->config.row_bytes[a] / 2u; k++) {
            uint16_t bits;
            memcpy(&bits, &t->data[a][m][2 * k], 2);
            const float x = walsh_f32_from_bf16(bits);
            for (size_t n = 0; n < 16; n++) part[k % 2][n] += x * weight[k][n];
        }
        for (size_t n = 0; n < 16; n++) sum[n] += part[0][n] + part[1][n];
        memcpy(t->data[c][m], sum, t->config.row_bytes[c]);
    }
}

#define TILE_ZERO(t, n) memset((t)->data[n], 0, sizeof(t)->data[n])
#define TILE_LOAD(t, n, from, stride) tile_emulate_load(t, n, from, stride)
#define TILE_LOAD_ONCE(t, n, from, stride) tile_emulate_load(t, n, from, stride)
#define TILE_STORE(t, n, to, stride) tile_emulate_store(t, n, to, stride)
#define TILE_DOT_SS(t, c, a, b) tile_emulate_dot(t, c, a, b, 1, 1)
#define TILE_DOT_SU(t, c, a, b) tile_emulate_dot(t, c, a, b, 1, 0)
#define TILE_DOT_US(t, c, a, b) tile_emulate_dot(t, c, a, b, 0, 1)
#define TILE_DOT_BF16(t, c, a, b) tile_emulate_dot_bf16(t, c, a, b)

#else

struct tiles {
    char none;
};

/* The thread's tiles take the shapes of `config`, zeroed; until tiles_close. */
static inline void tiles_open(struct tiles *t, const struct tile_config *config)
{
    (void)t;
    __asm__ volatile("ldtilecfg %0" : : "m"(*config) : "memory");
}

/* Back to the initial state, that a switch of threads need not save. */
static inline void tiles_close(struct tiles *t)
{
    (void)t;
    __asm__ volatile("tilerelease" : : : "memory");
}

#define TILE_ZERO(t, n) __asm__ volatile("tilezero %%tmm" #n : : : "memory")
/* Rows of the tile's width from `from` on, `stride` bytes apart. */
#define TILE_LOAD(t, n, from, stride)                                                                        \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(from), "r"((size_t)(stride)) : "memory")
/* The same of what will not be read again soon: it need not stay in the L1. */
#define TILE_LOAD_ONCE(t, n, from, stride)                                                                   \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #n : : "r"(from), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(t, n, to, stride)                                                                         \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(to), "r"((size_t)(stride)) : "memory")
/* c[m][n] += sum over k of a[m][k] b[k / 4][4 n + k % 4], 32-bit integers; S signed, U unsigned bytes. */
#define TILE_DOT_SS(t, c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#define TILE_DOT_SU(t, c, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#define TILE_DOT_US(t, c, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
/* The same of pairs of bf16 by k / 2, in f32, rounded to nearest, subnormals as zero. */
#define TILE_DOT_BF16(t, c, a, b)                                                                            \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

#endif

/* Tiles 0..3: sums of rows0 and rows1 activation rows by two tiles of outputs (0, 1: rows0; 2, 3: rows1);
 * 4, 5: activations; 6, 7: weights. */
static inline struct tile_config tile_shapes(size_t rows0, size_t rows1)
{
    struct tile_config c = {.palette = 1};
    for (int n = 0; n < 8; n++) {
        c.row_bytes[n] = 64;
        c.rows[n] = 16;
    }
    c.rows[0] = c.rows[1] = c.rows[4] = (uint8_t)rows0;
    c.rows[2] = c.rows[3] = c.rows[5] = (uint8_t)(rows1 != 0 ? rows1 : 16);
    return c;
}

#endif

/* formats/low_rank: the two matrices of a low-rank update y += scale * B (A x), as the kernels read them. May
 * use base.
 *
 * A [rank][cols] is in chunks of 8 ranks by groups of 32 columns:
 *   [ceil(rank/8)][ceil(cols/32)][8][32]
 * so that a chunk is one stream of memory and a group meets 32 numbers of x in order. B [outs][rank] is in
 * panels of 16 outputs: F32 [ceil(outs/16)][rank][16]; BF16 [ceil(outs/16)][ceil(rank/2)][16][2], a pair of
 * ranks beside each other, so that 64 bytes hold 16 outputs in lanes. In a BF16 A the columns of a group are
 * interleaved, 0 16 1 17 ... 15 31: of 16 words, the low halves then are columns 0..15 and the high ones
 * 16..31, both in order. What is beyond rank, cols or outs is zero. */
#ifndef WALSH_FORMATS_LOW_RANK_H
#define WALSH_FORMATS_LOW_RANK_H

#include "base/memory.h"
#include "formats/weights.h"

#define WALSH_LOW_RANK_CHUNK 8  /* ranks */
#define WALSH_LOW_RANK_GROUP 32 /* columns of A */
#define WALSH_LOW_RANK_PANEL 16 /* outputs of B */

/* Elements of the whole matrix, padding included; of f32 or bf16, as `format` says (no other is known). */
static inline size_t walsh_low_rank_a_size(size_t rank, size_t cols)
{
    return walsh_round_up(rank, WALSH_LOW_RANK_CHUNK) * walsh_round_up(cols, WALSH_LOW_RANK_GROUP);
}
static inline size_t walsh_low_rank_b_size(enum walsh_format format, size_t rank, size_t outs)
{
    return walsh_round_up(rank, format == WALSH_FORMAT_BF16 ? 2 : 1) *
           walsh_round_up(outs, WALSH_LOW_RANK_PANEL);
}

/* The place of A[j][i], in elements. */
static inline size_t walsh_low_rank_a_at(enum walsh_format format, size_t cols, size_t j, size_t i)
{
    const size_t groups = walsh_div_up(cols, WALSH_LOW_RANK_GROUP), within = i % WALSH_LOW_RANK_GROUP;
    const size_t group =
        (j / WALSH_LOW_RANK_CHUNK * groups + i / WALSH_LOW_RANK_GROUP) * WALSH_LOW_RANK_CHUNK +
        j % WALSH_LOW_RANK_CHUNK;
    const size_t half = WALSH_LOW_RANK_GROUP / 2;
    return group * WALSH_LOW_RANK_GROUP +
           (format == WALSH_FORMAT_BF16 ? within % half * 2 + within / half : within);
}
/* The place of B[o][j]. */
static inline size_t walsh_low_rank_b_at(enum walsh_format format, size_t rank, size_t o, size_t j)
{
    const size_t panel = o / WALSH_LOW_RANK_PANEL, lane = o % WALSH_LOW_RANK_PANEL;
    if (format == WALSH_FORMAT_BF16)
        return ((panel * walsh_div_up(rank, 2) + j / 2) * WALSH_LOW_RANK_PANEL + lane) * 2 + j % 2;
    return (panel * rank + j) * WALSH_LOW_RANK_PANEL + lane;
}

/* Exact scalar access; `matrix` is A or B, `at` a place of it. */
float walsh_low_rank_get(enum walsh_format format, const void *matrix, size_t at);
/* Rounded to the format. */
void walsh_low_rank_put(enum walsh_format format, void *matrix, size_t at, float value);

#endif

/* rotation: the randomized Hadamard transform (RHT) as pure mathematics. May use base.
 *
 * H is the Walsh-Hadamard matrix in natural (Sylvester) order, orthonormal (times 1/sqrt(block)); H = H^T,
 * H·H = I.
 *   forward(x) = H · (s ∘ pad(x))    signs first, then the butterfly
 *   inverse(y) = crop(s ∘ (H · y))   butterfly first, then signs
 * With s = ±1 the two undo each other. s may also carry a scale; then forward and inverse are still these
 * formulas. A dimension n is padded up to a multiple of min_block and split by its binary expansion, largest
 * block first, one Hadamard per block; legacy checkpoints pad to the next power of two instead (one block).
 *
 * The fp32 butterfly is fixed bit for bit, so that every implementation can be checked EXACT: stages of
 * stride 1, 2, 4, ..., n/2; in each, (a, b) -> (a + b, a - b) rounded to f32; then one multiplication by
 * (float)(1/sqrt(n)). */
#ifndef WALSH_ROTATION_ROTATION_H
#define WALSH_ROTATION_ROTATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_MAX_BLOCKS 24
#define WALSH_MIN_BLOCK_COLUMNS 64 /* of an input dimension */
#define WALSH_MIN_BLOCK_ROWS 16    /* of an output dimension */

/* The blocks of one padded dimension. */
struct walsh_blocks {
    uint32_t padded; /* sum of the blocks */
    uint32_t count;
    uint32_t block[WALSH_MAX_BLOCKS]; /* powers of two, descending (walsh_blocks_parts: within each part) */
    uint32_t uniform;                 /* not 0: all `count` blocks have this size, and `block` is unused */
};
/* Size of block b. */
static inline uint32_t walsh_block_size(const struct walsh_blocks *blocks, uint32_t b)
{
    return blocks->uniform ? blocks->uniform : blocks->block[b];
}
/* n >= 1 padded to a multiple of min_block (a power of two), then its binary expansion. Errors: n == 0 or >
 * 2^24. */
enum walsh_status walsh_blocks_binary(uint32_t n, uint32_t min_block, struct walsh_blocks *out,
                                      struct walsh_error *err);
/* One block: the next power of two >= max(n, min_block). */
enum walsh_status walsh_blocks_pow2(uint32_t n, uint32_t min_block, struct walsh_blocks *out,
                                    struct walsh_error *err);

/* The blocks of `parts` equal parts of n, one behind the other: a rotation that does not mix the shards of a
 * tensor-parallel engine. Nothing is padded: n must be a multiple of parts * min_block, else
 * WALSH_E_UNSUPPORTED; as where there are more than WALSH_MAX_BLOCKS. parts >= 1; 1 is walsh_blocks_binary.
 */
enum walsh_status walsh_blocks_parts(uint32_t n, uint32_t min_block, uint32_t parts, struct walsh_blocks *out,
                                     struct walsh_error *err);

/* Blocks of one size, as lalamo has them: n a multiple of `block`, a power of two, else WALSH_E_UNSUPPORTED.
 */
enum walsh_status walsh_blocks_uniform(uint32_t n, uint32_t block, struct walsh_blocks *out,
                                       struct walsh_error *err);

enum walsh_rotation_kind { WALSH_ROTATION_NONE, WALSH_ROTATION_BLOCKS, WALSH_ROTATION_OVERLAP };

/* A rotation of a dimension of `size` elements. `signs` [blocks.padded] f32, borrowed.
 * OVERLAP, for dimensions that are no power of two: with m = blocks.block[0] the largest power of two below
 * padded, signs [2 * padded] = (s, t), and H_first, H_last the Hadamard on the first or last m elements:
 *   forward(x) = H_last (t ∘ H_first (s ∘ pad(x))),  inverse(y) = crop(s ∘ H_first (t ∘ H_last y)) */
struct walsh_rotation {
    enum walsh_rotation_kind kind;
    uint32_t size;              /* unpadded */
    struct walsh_blocks blocks; /* NONE: padded == size, count 0 */
    const float *signs;
};
/* Elements of r->signs. */
static inline size_t walsh_rotation_signs(const struct walsh_rotation *r)
{
    return (size_t)r->blocks.padded * (r->kind == WALSH_ROTATION_OVERLAP ? 2 : 1);
}

/* True where both rotate a vector to the same bits (same blocks, same sign values). */
bool walsh_rotation_equal(const struct walsh_rotation *a, const struct walsh_rotation *b);

/* The rotation of n elements that pads nothing: one block where n is a power of two (`signs` [n] is enough),
 * else OVERLAP
 * (`signs` [2n]). Errors as walsh_blocks_binary. */
enum walsh_status walsh_rotation_overlap(uint32_t n, const float *signs, struct walsh_rotation *out,
                                         struct walsh_error *err);
/* The same of n elements padded to a multiple of min_block. */
enum walsh_status walsh_rotation_overlap_padded(uint32_t n, uint32_t min_block, const float *signs,
                                                struct walsh_rotation *out, struct walsh_error *err);

/* ±1 from a seed: element i of stream (seed, name). Reproducible on every machine. */
void walsh_random_signs(uint64_t seed, const char *name, float *signs, uint32_t n);

/* Scalar definition of the butterfly on one block, in place, scaled. n a power of two. */
void walsh_hadamard(float *x, size_t n);
void walsh_hadamard_f64(double *x, size_t n);

/* Scalar forward: y[padded] from x[size]; inverse: x[size] from y[padded]; y is overwritten by the butterfly.
 */
void walsh_rotate_forward(const struct walsh_rotation *r, const float *x, float *y);
void walsh_rotate_inverse(const struct walsh_rotation *r, float *y, float *x);
/* The same in double precision; for folding, Hessians and tests. */
void walsh_rotate_forward_f64(const struct walsh_rotation *r, const double *x, double *y);
void walsh_rotate_inverse_f64(const struct walsh_rotation *r, double *y, double *x);

/* Row folding: A'[rows][size] with A'·x == A·forward(x) for all x: the inverse's order on each row of
 * A[rows][padded] (butterfly, then signs, then crop), in double precision, rounded once. Errors: memory. */
enum walsh_status walsh_fold_rows(const struct walsh_rotation *r, const float *a, size_t rows, float *out,
                                  struct walsh_error *err);
/* Column folding: B'[padded][cols] with B'·h == forward(B·h) for B[size][cols]: forward applied to each
 * column, in double precision, rounded once. out may be b where its room suffices. */
enum walsh_status walsh_fold_columns(const struct walsh_rotation *r, const float *b, size_t cols, float *out,
                                     struct walsh_error *err);
/* W~ = H_m·diag(SU)·W·diag(SV)·H_n (zero-padded): w[out.size][in.size] f32 -> wt[out.padded][in.padded] f32.
 * With y = inverse_out(W~ · forward_in(x)) == W x where both rotations have ±1 signs. Each side in double
 * precision, rounded to f32 once. */
enum walsh_status walsh_rotate_matrix(const struct walsh_rotation *out_rotation,
                                      const struct walsh_rotation *in_rotation, const float *w, float *wt,
                                      struct walsh_error *err);

#endif

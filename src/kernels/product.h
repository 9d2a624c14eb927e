/* kernels/product: the piece of a product that one thread does, and what the op needs to cut pieces. */
#ifndef WALSH_KERNELS_PRODUCT_H
#define WALSH_KERNELS_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/kernels.h"

/* Outputs per step of the kernels: a piece begins at a multiple of it. */
#define WALSH_PRODUCT_ROWS 16
/* Scratch of a piece, bytes: the widest tile is 48 outputs by WALSH_STAGE_MAX_COLUMNS int8. */
#define WALSH_PRODUCT_SCRATCH ((size_t)4 << 20)
/* Of it, what the dense kernels take: decoded rows may stand behind it. */
#define WALSH_PANEL_SCRATCH ((size_t)3 << 20)
/* AMX: bytes of panels within the L2, and how wide bf16 matrices may be for two tiles of outputs to fit. */
#define WALSH_PANEL_BYTES ((size_t)1536 << 10)
#define WALSH_TILED_MAX_BF16_COLUMNS (WALSH_PANEL_BYTES / 64)

/* y[i * ldy + r] = sum over k of W[r][k] a[i][k], for every row i of the activations and r in [begin, end),
 * where W = weights, a->cols = weights->cols, begin is a multiple of WALSH_PRODUCT_ROWS and end one or
 * weights->rows. E8P: rows is a multiple of WALSH_PRODUCT_ROWS, cols of 8 and at most
 * WALSH_STAGE_MAX_COLUMNS. Nothing else of y is written. The bits of y[i * ldy + r] depend on row r of W, row
 * i of a and the kernel alone.
 *
 * y needs no alignment; a's data is as kernels.h says (zeros beyond cols, readable to the stride); W is read
 * within its rows and columns only. scratch: WALSH_PRODUCT_SCRATCH bytes, 64-byte aligned.
 *
 * The transposed kernels: y[i * ldy + c] = sum over r of W[r][c] a[i][r] for c in [begin, end), a->cols =
 * weights->rows, dense weights only; all else alike, with column c of W in row r's place. */
struct walsh_product_part {
    const struct walsh_weights *weights;
    const struct walsh_activations *a; /* tiled: product_int8_prefill and product_bf16_prefill of AMX alone */
    size_t begin, end;
    float *y;
    size_t ldy;
    void *scratch;
    bool
        add; /* y += ..., each block of columns behind the other; prefill and transposed products of dense weights and MXFP4 */
};

#endif

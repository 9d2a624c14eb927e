/* train/short_conv: the gated short convolution (LFM2) over the documents of packed rows, forward and back.
 * May use model and below. */
#ifndef WALSH_TRAIN_SHORT_CONV_H
#define WALSH_TRAIN_SHORT_CONV_H

#include "kernels/kernels.h"
#include "train/attention.h"

struct walsh_conv_shape {
    uint32_t taps, width;
    const float *weight, *bias; /* [taps][width]; [width] or NULL */
};

/* x [rows][3 width] holds B, C and v of each row. u = B v; out[rows][width] = C (bias + sum over j < taps of
 * weight[j] u[position - taps + 1 + j]), elementwise, nothing before a document's first row, in the order of
 * j. f32. */
void walsh_short_conv_forward(const struct walsh_queue *q, const struct walsh_conv_shape *shape,
                              const struct walsh_documents *documents, const float *x, float *out);
/* dx [rows][3 width] (overwritten) of dout: with s the sum in the brackets, dC = dout s, and du[p] = sum over
 * j of weight[j] (dout C)[p + taps - 1 - j] within the document; dB = du v, dv = du B. */
void walsh_short_conv_backward(const struct walsh_queue *q, const struct walsh_conv_shape *shape,
                               const struct walsh_documents *documents, const float *x, const float *dout,
                               float *dx);

#endif

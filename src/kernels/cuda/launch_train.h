/* kernels/cuda/launch_train: the launchers of training (kernels/train.h); as launch.h. */
#ifndef WALSH_KERNELS_CUDA_LAUNCH_TRAIN_H
#define WALSH_KERNELS_CUDA_LAUNCH_TRAIN_H

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- train_product.cu: struct walsh_matrix_product --- */

struct cuda_matrix_product {
    const void *a, *b;
    void *c;
    size_t m, n, k, lda, ldb, ldc;
    enum cuda_type a_type, b_type, c_type;
    bool a_turned, b_turned, add;
    float alpha;
};
/* scratch: sums of parts, where a_turned cuts k into as many as fit. */
void cuda_multiply(cudaStream_t stream, const struct cuda_matrix_product *p, float *scratch,
                   size_t scratch_bytes);

/* --- train_decode.cu --- */

/* out [outs][cols] F32 or BF16, cols a multiple of 8. */
void cuda_decode_e8p(cudaStream_t stream, const struct cuda_e8p *w, enum cuda_type type, void *out);

/* --- train_attention.cu: struct walsh_train_attention --- */

#define CUDA_TRAIN_HEAD_DIM 256
struct cuda_train_attention {
    struct cuda_attention_shape shape;
    size_t rows;
    const uint32_t *first, *end;
    const float *query, *key, *value;
    float *out, *lse;
    const float *dout;
    float *delta, *dquery, *dkey, *dvalue;
};
void cuda_train_attention_forward(cudaStream_t stream, const struct cuda_train_attention *t);
void cuda_train_attention_backward(cudaStream_t stream, const struct cuda_train_attention *t);

/* --- train_conv.cu: struct walsh_train_conv --- */

struct cuda_train_conv {
    size_t rows;
    uint32_t taps, width;
    const uint32_t *first, *end;
    const float *weight, *bias, *x;
    float *out;
    const float *dout;
    float *dx;
};
void cuda_train_conv_forward(cudaStream_t stream, const struct cuda_train_conv *t);
void cuda_train_conv_backward(cudaStream_t stream, const struct cuda_train_conv *t);

/* --- train_rows.cu --- */

void cuda_add_rows(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *d,
                   size_t ldd, size_t rows, size_t n);
void cuda_scatter(cudaStream_t stream, float *to, size_t ldto, const float *from, size_t ldfrom,
                  const uint32_t *index, size_t rows, size_t n);
void cuda_rms_norm_backward(cudaStream_t stream, float *dx, size_t lddx, const float *dy, size_t lddy,
                            const float *x, size_t ldx, const float *weight, size_t rows, size_t n, float eps,
                            bool add);
/* struct walsh_train_slots: k slots of a row, n numbers each. */
void cuda_spread(cudaStream_t stream, const uint32_t *slot, size_t rows, size_t k, size_t n, float *to,
                 float *dweight, const float *d, const float *y, const float *weight);
void cuda_collect(cudaStream_t stream, const uint32_t *slot, size_t rows, size_t k, size_t n, float *to,
                  const float *from, const float *weight);
void cuda_route_backward(cudaStream_t stream, float *dlogits, const float *dweight, const float *logits,
                         const int32_t *index, const float *weight, size_t rows, uint32_t experts, uint32_t k,
                         bool normalize);
enum cuda_gate { CUDA_GATE_SWIGLU, CUDA_GATE_GEGLU, CUDA_GATE_CLAMPED };
void cuda_gate_backward(cudaStream_t stream, enum cuda_gate kind, float alpha, float limit, float *dgate,
                        float *dup, const float *dy, const float *g, const float *u, size_t n);
void cuda_cross_entropy(cudaStream_t stream, float *logits, const int32_t *targets, size_t rows, size_t vocab,
                        float weight, float cap, bool gradient, double *loss);
struct cuda_adamw {
    float *values, *m, *v;
    const float *gradients;
    size_t count;
    double rate, beta1, beta2, epsilon, weight_decay, clip, correction1, correction2;
    double *length;
};
/* scratch: cuda_adamw_scratch bytes. */
size_t cuda_adamw_scratch(size_t count);
void cuda_adamw_step(cudaStream_t stream, const struct cuda_adamw *u, double *scratch);

#ifdef __cplusplus
}
#endif

#endif

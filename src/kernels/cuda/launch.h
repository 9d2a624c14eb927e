/* kernels/cuda/launch: the kernels' launchers, as C functions of plain parameters: the .cu files see this
 * header and no other of the project's, the .c files turn descriptors into these parameters. Every pointer is
 * device memory. A launcher only enqueues; a failed launch is in cudaPeekAtLastError. */
#ifndef WALSH_KERNELS_CUDA_LAUNCH_H
#define WALSH_KERNELS_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Number types of a launcher's arrays. */
enum cuda_type { CUDA_TYPE_F32, CUDA_TYPE_F16, CUDA_TYPE_BF16, CUDA_TYPE_I8 };

/* --- rotation.cu --- */

#define CUDA_MAX_BLOCKS 24
#define CUDA_MIN_LOG2 4        /* smallest Hadamard block: 16 */
#define CUDA_MAX_LOG2 15       /* largest: one block of threads holds it in shared memory */
#define CUDA_MAX_ROTATED 32768 /* elements of a rotated row */
#define CUDA_SIGN_WORDS(padded) (1 + ((padded) + 31) / 32)
/* A rotation (rotation/rotation.h). */
struct cuda_rotation {
    uint32_t size, padded, count;
    uint32_t begin[CUDA_MAX_BLOCKS]; /* first element of a block */
    uint8_t log2[CUDA_MAX_BLOCKS];   /* of its size */
    float scale[CUDA_MAX_BLOCKS];    /* 1/sqrt of its size */
    bool any;                        /* for cuda_rotate_forward and cuda_rotate_inverse alone */
    bool overlap; /* any: count is 2, of the blocks one begins and the other ends the row */
    bool uniform; /* any: count is 1, and all blocks are like the first */
    /* [padded] f32, then CUDA_SIGN_WORDS(padded) words: 1 where all are +-1, else 0, and a bit for each, set
     * where it is negative. any: [padded] f32, or [2][padded] where overlap. */
    const float *signs;
};
/* data [rows][stride] = round(forward(x)), zero beyond padded; x [rows][ldx] F32, F16 or BF16, data 16-byte
 * aligned, stride a multiple of 16. I8 also scale and sum [rows]. */
void cuda_rotate_forward(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type in,
                         const void *x, size_t ldx, size_t rows, enum cuda_type out, void *data,
                         size_t stride, float *scale, int32_t *sum);
/* rotation_any.cu: the same of any; elements of a row that it holds on a device, at most. */
uint32_t cuda_rotate_any_most(int device);
void cuda_rotate_any_forward(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type in,
                             const void *x, size_t ldx, size_t rows, enum cuda_type out, void *data,
                             size_t stride, float *scale, int32_t *sum);
void cuda_rotate_any_inverse(cudaStream_t stream, const struct cuda_rotation *rotation, const float *z,
                             size_t ldz, float *y, size_t ldy, const float *bias, size_t rows);
/* The same for rows of 16-bit numbers to 16-bit numbers that are one block of 8192 or 16384. */
bool cuda_rotate_wide_fits(const struct cuda_rotation *rotation, enum cuda_type in, const void *x, size_t ldx,
                           enum cuda_type out, size_t stride);
void cuda_rotate_wide(cudaStream_t stream, const struct cuda_rotation *rotation, enum cuda_type type,
                      const void *x, size_t ldx, size_t rows, void *data, size_t stride);
/* The same without a rotation: cols elements of x. */
void cuda_round_rows(cudaStream_t stream, const float *x, size_t ldx, size_t cols, size_t rows,
                     enum cuda_type out, void *data, size_t stride, float *scale, int32_t *sum);
/* y [rows][ldy] = inverse(z [rows][ldz]) + bias (NULL: none); y may be z. */
void cuda_rotate_inverse(cudaStream_t stream, const struct cuda_rotation *rotation, const float *z,
                         size_t ldz, float *y, size_t ldy, const float *bias, size_t rows);

/* --- fused.cu --- */

/* A product's output [rows][ld] and what unrotate makes of it; rotation.count 0: none, of rotation.size. */
struct cuda_unrotated {
    struct cuda_rotation rotation;
    const float *z, *bias; /* bias NULL: none */
    size_t ld;
};
/* What prepare writes; rotation.count 0: rounded without a rotation, of rotation.size elements. */
struct cuda_prepared {
    struct cuda_rotation rotation;
    enum cuda_type type;
    void *data;
    size_t stride;
    float *scale;
    int32_t *sum;
};
/* x [rows][n] += d (NULL: nothing), through a norm where d_norm; then, where weight, the norm of x: into
 * normed [rows][ldn] (NULL: not wanted) and prepared into *to. fits: false where the parts are to be called.
 */
bool cuda_residual_fits(const struct cuda_unrotated *d, const struct cuda_prepared *to, size_t n);
void cuda_residual(cudaStream_t stream, float *x, size_t n, const struct cuda_unrotated *d,
                   const float *d_norm, const float *weight, float eps, float *normed, size_t ldn,
                   const struct cuda_prepared *to, size_t rows);
/* y [rows][ldy] (NULL: not wanted) = silu or gelu of gate, times up; prepared into *to. */
bool cuda_gated_fits(const struct cuda_unrotated *gate, const struct cuda_unrotated *up,
                     const struct cuda_prepared *to);
void cuda_gated(cudaStream_t stream, const struct cuda_unrotated *gate, const struct cuda_unrotated *up,
                bool gelu, size_t n, float *y, size_t ldy, const struct cuda_prepared *to, size_t rows);

/* --- residual_held.cu --- */

/* The same into I8, with a weight, of rotations of blocks of 256 to 8192 elements without padding. */
bool cuda_residual_held_fits(const struct cuda_unrotated *d, const float *weight,
                             const struct cuda_prepared *to, size_t n);
void cuda_residual_held(cudaStream_t stream, float *x, const struct cuda_unrotated *d, const float *d_norm,
                        const float *weight, float eps, float *normed, size_t ldn,
                        const struct cuda_prepared *to, size_t rows);

/* --- gated_wide.cu --- */

/* The same into I8 of rows whose three rotations have the same blocks of 256 to 8192, on compute capability 9.0: a row over
 * eight multiprocessors. */
bool cuda_gated_wide_fits(const struct cuda_unrotated *gate, const struct cuda_unrotated *up,
                          const struct cuda_prepared *to, size_t n);
void cuda_gated_wide(cudaStream_t stream, const struct cuda_unrotated *gate, const struct cuda_unrotated *up,
                     bool gelu, float *y, size_t ldy, const struct cuda_prepared *to, size_t rows);

/* --- rows.cu --- */

void cuda_embed(cudaStream_t stream, float *out, enum cuda_type type, const void *table, size_t cols,
                const int32_t *ids, size_t rows);
/* to [rows][ld_to] = from [rows][ld_from], of `cols` numbers, F32, F16 or BF16. */
void cuda_convert(cudaStream_t stream, enum cuda_type to_type, void *to, size_t ld_to,
                  enum cuda_type from_type, const void *from, size_t ld_from, size_t rows, size_t cols);
void cuda_rms_norm(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *weight,
                   size_t rows, size_t n, float eps);
void cuda_add(cudaStream_t stream, float *x, const float *d, size_t n);
/* y = x + bias (NULL: none) of rows of n; y may be x. */
void cuda_add_bias(cudaStream_t stream, float *y, size_t ldy, const float *x, size_t ldx, const float *bias,
                   size_t rows, size_t n);
void cuda_rope(cudaStream_t stream, float *x, size_t ldx, const uint32_t *positions, size_t rows,
               uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine, const float *sine);
void cuda_swiglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld,
                 size_t rows, size_t n);
void cuda_geglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up, size_t ld,
                size_t rows, size_t n);
void cuda_scale(cudaStream_t stream, float *x, float factor, size_t n);
void cuda_soft_cap(cudaStream_t stream, float *x, float cap, size_t n);
void cuda_route(cudaStream_t stream, int32_t *index, float *weight, const float *logits, size_t rows,
                uint32_t experts, uint32_t k, bool normalize);
void cuda_clamped_swiglu(cudaStream_t stream, float *y, size_t ldy, const float *gate, const float *up,
                         size_t ld, size_t rows, size_t n, float alpha, float limit);
void cuda_gather(cudaStream_t stream, float *out, size_t ldo, const float *x, size_t ldx,
                 const uint32_t *index, size_t rows, size_t n);
void cuda_combine(cudaStream_t stream, float *x, size_t n, const float *y, const uint32_t *slot,
                  const float *weight, size_t rows, uint32_t k);

/* --- dense.cu --- */

/* y[row][0..outs) = W a_row, W [outs][cols] of `type`, a [rows][stride] F32 or BF16. */
void cuda_product_dense(cudaStream_t stream, enum cuda_type type, const void *w, size_t outs, size_t cols,
                        enum cuda_type a_type, const void *a, size_t stride, size_t rows, float *y,
                        size_t ldy);

/* --- dense_tensor.cu --- */

/* The same of BF16 by BF16; cols a multiple of 8, w 16-byte aligned, a zero to stride. fresh: the kernel before wrote w, which is
 * else read before that one is done. */
void cuda_product_bf16(cudaStream_t stream, const void *w, size_t outs, size_t cols, const void *a,
                       size_t stride, size_t rows, float *y, size_t ldy, bool fresh);

/* --- e8p.cu --- */

#define CUDA_E8P_ROWS 32  /* outputs of a group of the packed layout */
#define CUDA_E8P_CHUNK 64 /* columns of a step of 16-bit codes, 128 of 8-bit ones */
#define CUDA_E8P_STEP 512 /* bytes of a step: 32 lanes of 16 */
#define CUDA_MAX_STAGES 4
/* Tables of the codebooks in device memory: per code byte eight nibbles, coordinate i at bits 4i.
 *   [0, 256): E8P magnitudes by the pattern's number, [256, 512): signs, to be XORed; u = (4w + 15)/2.
 *   [512, 768): E81B by code; u = 2w + 4. */
#define CUDA_E8P_TABLE_WORDS 768
struct cuda_e8p {
    uint32_t outs, cols; /* outs: those of y; the layout is padded to groups of CUDA_E8P_ROWS */
    uint32_t stages;
    struct {
        const void *data; /* as cuda_repack_stage writes it */
        uint32_t narrow;  /* E81B */
        float scale;
    } stage[CUDA_MAX_STAGES];
    const uint32_t *tables;
    /* Two stages as one plane (formats/e8p_planes.h) in products of prefill: byte u of second is second[u] + CUDA_E8P_SECOND. */
    struct {
        uint32_t on, second[4];
        float scale;
    } merged;
};
#define CUDA_E8P_SECOND 40
size_t cuda_e8p_stage_bytes(uint32_t outs, uint32_t cols, bool narrow);
/* From the CPU's layout (formats/e8p_planes.h) of `outs` rows. e8p_code [256][3]: of a label the pattern's
 * number, its plane of ones, and whether coordinate 7 is negated; sign_byte [256]: plane of signs to byte;
 * e81b_code [256]. */
struct cuda_plane_tables {
    uint8_t pattern[256], ones[256], odd[256], sign_byte[256], e81b_code[256];
};
void cuda_repack_stage(cudaStream_t stream, const struct cuda_plane_tables *tables, uint32_t outs,
                       uint32_t cols, bool narrow, const void *planes, void *data);
/* The same from `outs` rows as files store them (formats/stored.h; outs a multiple of 16): cuda/lay_out.cu. */
void cuda_lay_out_stage(cudaStream_t stream, uint32_t outs, uint32_t cols, bool narrow, const void *stored,
                        void *data);
/* Exact products with int8 activations (kernels.def, product_int8_*); q [rows][stride], zero from cols on to
 * a multiple of 256. */
#define CUDA_E8P_DECODE_ROWS 32
#define CUDA_E8P_LIST 4
struct cuda_e8p_output {
    struct cuda_e8p w;
    float *y;
    size_t ldy;
};
/* Up to CUDA_E8P_DECODE_ROWS rows, of up to CUDA_E8P_LIST matrices of as many columns; processors:
 * multiprocessors of the device. ups, NULL or at most CUDA_LOW_RANK_LIST: up_counts[i] of them for matrix i, one matrix's behind the
 * other's, added to its outputs with the bits of cuda_low_rank_ups; NULL where a matrix's stages are merged. */
struct cuda_low_rank_up;
void cuda_product_e8p_decode(cudaStream_t stream, const struct cuda_e8p_output *list, size_t count,
                             const int8_t *q, size_t stride, const float *scale, const int32_t *sum,
                             size_t rows, const struct cuda_low_rank_up *ups, const uint32_t *up_counts,
                             int processors);
/* Many rows. */
void cuda_product_e8p_tile(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride,
                           const float *scale, const int32_t *sum, size_t rows, float *y, size_t ldy);
/* The same on the tensor cores of compute capability 9.0, of up to so many rows at once: 0 on others. scratch is
 * 1024-byte aligned. */
size_t cuda_product_e8p_wgmma_rows(uint32_t cols, size_t scratch_bytes);
void cuda_product_e8p_wgmma(cudaStream_t stream, const struct cuda_e8p *w, const int8_t *q, size_t stride,
                            const float *scale, const int32_t *sum, size_t rows, float *y, size_t ldy,
                            void *scratch);
void cuda_product_e8p_f32(cudaStream_t stream, const struct cuda_e8p *w, const float *x, size_t stride,
                          size_t rows, float *y, size_t ldy);

/* --- blocks.cu: formats/blocks.h --- */

enum cuda_code { CUDA_CODE_E2M1, CUDA_CODE_U4, CUDA_CODE_U8, CUDA_CODE_E4M3, CUDA_CODE_E5M2 };
enum cuda_scale_type { CUDA_SCALE_E8M0, CUDA_SCALE_E4M3, CUDA_SCALE_BF16, CUDA_SCALE_F32 };
/* A matrix as it lies in host memory; zeros NULL: 8 of U4, 128 of U8. */
struct cuda_blocks {
    uint32_t outs, cols, group, groups; /* group 0: all columns */
    enum cuda_code code;
    enum cuda_scale_type scale;
    const uint32_t *data;
    const void *scales;
    const uint8_t *zeros;
    float tensor_scale;
};
/* lay_out.cu: the words of cuda_blocks.data of `outs` rows from codes of `bits` bits as formats/stored.h has them: [outs][bytes
 * of cols codes], every byte XORed with flip. */
void cuda_lay_out_codes(cudaStream_t stream, unsigned bits, uint32_t outs, uint32_t cols, uint8_t flip,
                        const void *stored, void *data);
/* q [rows][stride] = int8 of the first cols of x, zero beyond, in groups of 32: scale [rows][stride / 32],
 * sum [rows][stride / 16]. */
void cuda_round_groups(cudaStream_t stream, const float *x, size_t ldx, size_t cols, size_t rows, int8_t *q,
                       size_t stride, float *scale, int32_t *sum);
/* kernels.def, product_block_decode, of any number of rows; E2M1, U4 and U8. `few`: for few rows; it knows not all formats. */
bool cuda_product_blocks_few_fits(const struct cuda_blocks *w);
void cuda_product_blocks_few(cudaStream_t stream, const struct cuda_blocks *w, const int8_t *q, size_t stride,
                             const float *scale, const int32_t *sum, size_t rows, float *y, size_t ldy);
void cuda_product_blocks(cudaStream_t stream, const struct cuda_blocks *w, const int8_t *q, size_t stride,
                         const float *scale, const int32_t *sum, size_t rows, float *y, size_t ldy);

/* out [outs][cols] F32 or BF16 = outputs row.. of the matrix, row a multiple of 16: kernels.def, decode_weights_*. */
void cuda_decode_blocks(cudaStream_t stream, const struct cuda_blocks *w, uint32_t row, uint32_t outs,
                        enum cuda_type type, void *out);

/* --- blocks_wgmma.cu --- */

/* y = W a of MXFP4 weights (E2M1, E8M0, groups of 32, no tensor scale) by a [rows][stride] BF16, zero from cols to stride, on
 * the tensor cores of compute capability 9.0, of up to so many rows at once: 0 on others. scratch is 1024-byte aligned. */
size_t cuda_product_mxfp4_wgmma_rows(uint32_t cols, size_t scratch_bytes);
void cuda_product_mxfp4_wgmma(cudaStream_t stream, const struct cuda_blocks *w, const void *a, size_t stride,
                              size_t rows, float *y, size_t ldy, void *scratch);

/* --- low_rank.cu: formats/low_rank.h --- */

#define CUDA_LOW_RANK_LIST 16 /* updates of a launch, and outputs */
/* h [row_end - row_begin][rank up to a multiple of 8] = A x of rows row_begin.. of x; a 16-byte aligned. */
struct cuda_low_rank_down {
    const void *a;
    float *h;
    uint32_t rank, row_begin, row_end;
    bool bf16;
};
void cuda_low_rank_downs(cudaStream_t stream, const struct cuda_low_rank_down *list, size_t count,
                         const float *x, size_t ldx, size_t cols);
/* y [rows][ldy] += scale * B h of rows row_begin.., for updates [first, first + count) of the list in their order. */
struct cuda_low_rank_up {
    const void *b;
    const float *h; /* of row_begin */
    uint32_t rank, row_begin, row_end;
    float scale;
    bool bf16;
};
struct cuda_low_rank_output {
    float *y;
    size_t ldy;
    uint32_t outs, first, count;
};
void cuda_low_rank_ups(cudaStream_t stream, const struct cuda_low_rank_output *outputs, size_t count,
                       const struct cuda_low_rank_up *list);

/* --- attention.cu --- */

/* A codec of packed keys or values (formats/turbo.h) as the kernels read it. */
struct cuda_turbo_codec {
    uint32_t dim, bits, levels;
    uint32_t block; /* of its Hadamard; dim: one; less: the overlap rotation; 0: no rotation */
    float scale, block_scale;
    bool correction;
    int16_t value[256];
    float tree[256];
    float signs[2 * 1024];
};
struct cuda_turbo {
    struct cuda_turbo_codec key, value;
    unsigned long long saturated; /* norms stored as 65504 because they were larger */
};
/* What struct walsh_kv_view and walsh_attention_row of kernels/kernels.h look like; ops.c asserts it. */
struct cuda_kv_view {
    uint32_t type, page_tokens; /* type: walsh_kv_type, F32 0, F16 1 or TURBO 2 */
    void *const *k_pages, *const *v_pages;
    struct cuda_turbo *turbo;
    const struct cuda_kv_view *recent;
    uint32_t recent_tokens, recent_begin;
};
struct cuda_attention_row {
    const struct cuda_kv_view *kv;
    uint32_t position;
};
/* A call's own rows in f16, rotated as they are packed: [kv_head][tokens][head_dim], token t at t % tokens. */
struct cuda_own {
    void *k, *v; /* NULL: none */
    uint32_t tokens;
};
struct cuda_attention_shape {
    uint32_t heads, kv_heads, head_dim, window;
    float scale, soft_cap;
    const float *sinks;   /* [heads] or NULL */
    bool packed, mixed;   /* some row's kv is TURBO; some is not, where that is so */
    bool four;            /* the packed ones have 4 bits on both sides */
    bool recent;          /* some of them keep recent tokens */
    bool tiles;           /* all are F16 in pages of a multiple of 16 tokens */
    uint32_t most_tokens; /* of a row, its own with it, or more; 0: not known */
    struct cuda_own own;
};
/* q, k, v from parts[3]: norms of heads (NULL: none; head_dim up to 1024), positions (rotated 0: none); query
 * [rows][ldq], and k and v appended. */
struct cuda_projections {
    const struct cuda_attention_row *rows; /* whose kv is the view of layer 0 */
    uint32_t layer, rotated;
    struct cuda_attention_shape shape;
    const float *q_norm, *k_norm;
    float eps;
    const float *cosine, *sine;
    float *query;
    size_t ldq;
    float *key, *value; /* [rows][kv_heads * head_dim]: on their way to TURBO caches */
};
bool cuda_project_fits(const struct cuda_unrotated *parts, const struct cuda_attention_shape *shape);
void cuda_project(cudaStream_t stream, const struct cuda_unrotated *parts, const struct cuda_projections *to,
                  size_t rows);
/* attend.cu: cuda_project and cuda_attention_prepared at once, of rows that are each of a cache of its own, where that fits;
 * out NULL: not wanted otherwise. Neither query nor ldq are used. */
bool cuda_attend_fits(const struct cuda_unrotated *parts, const struct cuda_projections *p,
                      const struct cuda_prepared *to);
void cuda_attend(cudaStream_t stream, const struct cuda_unrotated *parts, const struct cuda_projections *p,
                 float *out, size_t ldo, const struct cuda_prepared *to, size_t rows);
void cuda_attention_rows(cudaStream_t stream, struct cuda_attention_row *out,
                         const struct cuda_kv_view *const *kv, const uint32_t *positions, size_t count,
                         uint32_t layer);
/* device.h, walsh_paged_rows. */
struct cuda_paged_rows {
    uint32_t type, page_tokens, page_count;
    struct cuda_turbo *turbo;
    size_t count, ld;
    const int32_t *pages, *positions;
    void *keys, *values;
    size_t key_stride, value_stride; /* bytes */
    struct cuda_attention_row *rows;
    struct cuda_kv_view *views;
    void **tables;
};
void cuda_page_tables(cudaStream_t stream, const struct cuda_paged_rows *p);
void cuda_kv_append(cudaStream_t stream, const struct cuda_attention_row *rows, size_t count, const float *k,
                    const float *v, size_t ld, const struct cuda_attention_shape *shape);
/* kv_append of the rows whose kv (the view of `layer`) is TURBO; the others are skipped. */
void cuda_turbo_append(cudaStream_t stream, const struct cuda_attention_row *rows, size_t count,
                       const float *k, const float *v, size_t ld, uint32_t layer,
                       const struct cuda_attention_shape *shape);
/* The pieces of those rows into the scratch of attention, for all of which it has room. */
void cuda_turbo_pieces(cudaStream_t stream, const float *query, size_t ldq,
                       const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                       const struct cuda_attention_shape *shape, void *scratch);
/* --- turbo_tiles.cu: the packed ones of those pieces, heads of 64 and 128; first: the row that the call begins with --- */
bool cuda_turbo_tiles_fit(uint32_t head_dim);
void cuda_turbo_tiles(cudaStream_t stream, const float *query, size_t ldq,
                      const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                      const struct cuda_attention_shape *shape, const struct cuda_attention_row *first,
                      void *scratch);
/* attention of those rows, as cuda_attention. */
void cuda_turbo_attention(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                          const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                          const struct cuda_attention_shape *shape, void *scratch, size_t scratch_bytes);
/* Bytes of scratch for `rows` rows; a call does as many rows at a time as its scratch holds, which is at
 * least one. */
size_t cuda_attention_scratch(const struct cuda_attention_shape *shape, size_t rows);
/* layer: rows[i].kv + layer are the views. */
void cuda_attention(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                    const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                    const struct cuda_attention_shape *shape, void *scratch, size_t scratch_bytes);
/* The same, prepared into *to; out NULL: not wanted otherwise. */
bool cuda_attention_prepared_fits(const struct cuda_attention_shape *shape, const struct cuda_prepared *to,
                                  size_t rows, size_t scratch_bytes);
void cuda_attention_prepared(cudaStream_t stream, float *out, size_t ldo, const float *query, size_t ldq,
                             const struct cuda_attention_row *rows, size_t count, uint32_t layer,
                             const struct cuda_attention_shape *shape, void *scratch,
                             const struct cuda_prepared *to);

/* --- short_conv.cu: kernels.h, short_conv --- */

void cuda_short_conv(cudaStream_t stream, float *out, size_t ldo, const float *x, size_t ldx,
                     const struct cuda_attention_row *rows, size_t count, const float *weight,
                     const float *bias, uint32_t taps, uint32_t width);

/* --- draw.cu: kernels/draw.h --- */

/* What struct walsh_logit_edit and walsh_draw look like; ops.c asserts it. */
struct cuda_logit_edit {
    int32_t id;
    bool penalized, excluded;
    uint32_t drawn;
    float bias;
};
struct cuda_draw {
    bool greedy;
    float per_temperature;
    uint64_t share;
    uint32_t top_k;
    uint64_t least;
    double top_p, penalty, presence, frequency;
    struct cuda_logit_edit *edits;
    size_t edit_count;
    const uint64_t *mask;
};
/* Of a row. */
size_t cuda_draw_scratch(uint32_t vocab);
/* ids [rows] from logits [rows][vocab], which are edited and restored; -1: nothing can be drawn. sampled: some row is not greedy; edited:
 * some row has edits. */
void cuda_draw_rows(cudaStream_t stream, int32_t *ids, float *logits, uint32_t vocab,
                    const struct cuda_draw *draws, size_t rows, bool sampled, bool edited, void *scratch);

/* --- quantize_hessian.cu, quantize_ldlq.cu: kernels.h, walsh_quantize_ops --- */

/* sum [n][n] += X^T X on and above the diagonal, of x [rows][ldx], n columns used. */
void cuda_hessian_add(cudaStream_t stream, float *sum, uint32_t n, const float *x, size_t ldx, size_t rows);
struct cuda_ldlq {
    uint32_t n, rows, step, stages;
    const float *target, *hessian, *factor, *inverse;
    float *error, *panel;
    struct {
        void *codes;
        uint32_t narrow; /* E81B */
        float scale;
    } stage[CUDA_MAX_STAGES];
    uint32_t *changed;
    const uint32_t *tables; /* [CUDA_E8P_TABLE_WORDS] */
};
void cuda_ldlq_sweep(cudaStream_t stream, const struct cuda_ldlq *p);
void cuda_ldlq_pass(cudaStream_t stream, const struct cuda_ldlq *p);
void cuda_ldlq_trace(cudaStream_t stream, const struct cuda_ldlq *p, const float *e, double *sums);

/* --- peak.cu: ceilings --- */

void cuda_peak_read(cudaStream_t stream, const void *from, size_t bytes, uint32_t *sink);
void cuda_peak_copy(cudaStream_t stream, void *to, const void *from, size_t bytes);
void cuda_fill_random(cudaStream_t stream, void *p, size_t bytes, uint32_t seed);
void cuda_fill_normal(cudaStream_t stream, enum cuda_type type, void *p, size_t n, uint32_t seed);

#ifdef __cplusplus
}
#endif
#endif

/* walsh_ops: the kernels of walsh for other engines, on tensors that the caller owns: the randomized Hadamard
 * transform, the rotated E8P linear with LoRA updates, and attention over plain or packed keys and values in
 * pages.
 *
 * Conventions, beyond those of walsh.h:
 *
 * Views. A tensor is a struct walsh_view: borrowed data, element type, shape, strides, device. What a call
 * reads and writes is exactly what its views say; nothing keeps a view beyond its call but where a comment
 * says so. "[.., n]" is a view of one or more dimensions whose last has n elements that lie together (stride
 * 1); those in front of it are rows at one stride (as of a slice of columns, or of a [batch][tokens] tensor),
 * which is at least n. Strides that are negative, 0 or so small that rows overlap, leading dimensions without
 * one common stride, data that is not aligned to its element, sizes that do not fit into memory:
 * WALSH_E_ARGUMENT with the call, the argument, what was found and what was expected; never a hidden copy.
 * FLOAT below: WALSH_ELEMENT_F32, _F16 or _BF16, each argument as it likes. All arithmetic is that of f32;
 * what is stored as F16 or BF16 is rounded to nearest even, F16 saturated at +-65504. Inputs and outputs do
 * not overlap unless a comment says that they may be the same view.
 *
 * Queues. A call runs on a queue: the pool of its context, or a CUDA stream. Any number of threads may call on
 * one queue, or on several of one context; they take turns. Calls on the models of that context do not take
 * part in that: do not let them overlap, or use a context of its own. A call on the CPU has finished when it
 * returns.
 *
 * Devices. On a queue of a context on a CUDA device, the calls marked "device" take views of the memory of that
 * device, enqueue on the stream and return: they neither allocate nor wait, so that a CUDA graph may capture
 * them, after each has run once outside of a capture. What is in memory that a graph reads may change between
 * its launches; what a call reads of the host (sizes, groups, adapters, descriptors) is fixed in it. A replay must
 * be ordered with all other work of the queue, whose scratch it uses. A launch that fails is told by the
 * call, a fault on the device by walsh_ops_queue_synchronize. All other calls take host memory, on any
 * queue, and run on the CPU; opening and closing a handle also allocate device memory and wait. Results are the
 * CPU's but for the order of sums in f32. The device is the thread's current one afterwards.
 *
 * NULL. A handle, a view, a struct or a place for a result that is NULL where no comment allows it:
 * WALSH_E_ARGUMENT that names it; calls that give a number of bytes give 0. Closing NULL, or a handle that is
 * NULL, does nothing. err may always be NULL.
 *
 * Memory. Calls marked "no allocation" take what they need from the caller's workspace:
 * WALSH_OPS_ALIGNMENT-aligned memory of the queue's device, of at least the bytes that a query gives, its
 * content of no importance before and after; calls at the same time need different ones. Those that open a
 * handle, and encoding, allocate.
 *
 * Bits. The same inputs give the same bits with any number of threads; of a decode row with any rows beside
 * it.
 */
#ifndef WALSH_OPS_H
#define WALSH_OPS_H

#include "walsh.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ views */

enum walsh_element {
    WALSH_ELEMENT_F32 = 0,
    WALSH_ELEMENT_F16,  /* IEEE binary16 */
    WALSH_ELEMENT_BF16, /* bfloat16 */
    WALSH_ELEMENT_U8,
    WALSH_ELEMENT_U16,
    WALSH_ELEMENT_I32,
    WALSH_ELEMENT_I64
};
/* DLPack's numbers. */
enum walsh_view_device {
    WALSH_VIEW_CPU = 1, /* the host's memory */
    WALSH_VIEW_CUDA = 2
};

#define WALSH_VIEW_RANK 8
struct walsh_view {
    void *data; /* of the first element; never written through where the argument is an input */
    enum walsh_element element;
    enum walsh_view_device device;
    int32_t device_id; /* of CUDA devices; 0 of the CPU */
    uint32_t rank;     /* dimensions, 1 to WALSH_VIEW_RANK */
    int64_t shape[WALSH_VIEW_RANK];
    int64_t strides[WALSH_VIEW_RANK]; /* in elements; of a dimension of one element without meaning */
};

/* A dense row-major view of host memory. rank beyond WALSH_VIEW_RANK, no shape, or one whose size overflows,
 * gives a view of rank 0, which every call refuses. */
WALSH_API struct walsh_view walsh_view_dense(void *data, enum walsh_element element, uint32_t rank,
                                             const int64_t *shape);
/* From DLPack: `tensor` points to a DLTensor (dlpack.h, versions 0.6 to 1.x; its layout is frozen), which
 * stays the caller's. Strides may be NULL (dense). Floats of 32 and 16 bits, bfloat, unsigned integers of 8
 * and 16 bits and signed ones of 32 and 64 with one lane, on the CPU, in pinned host memory or on CUDA, else
 * WALSH_E_UNSUPPORTED. */
WALSH_API enum walsh_status walsh_view_from_dlpack(const void *tensor, struct walsh_view *out,
                                                   struct walsh_error *err);
/* To DLPack: fills the DLTensor at `tensor`, whose shape and strides point into *view, which must outlive it.
 * Nobody owns anything by it. WALSH_E_ARGUMENT: a view of no rank. */
WALSH_API enum walsh_status walsh_view_to_dlpack(struct walsh_view *view, void *tensor,
                                                 struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------ queues */

#define WALSH_OPS_ALIGNMENT 64 /* bytes, of workspaces and of pages of packed keys and values */

struct walsh_ops_queue;
struct walsh_ops_queue_options {
    size_t struct_size;
    void *
        stream; /* the caller's cudaStream_t, of a context on a CUDA device, which outlives the queue; NULL: the
                     context's own, or the CPU's pool */
};
#define WALSH_OPS_QUEUE_OPTIONS                                                                              \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_queue_options)                                                \
    }
/* A queue of the context, which outlives it; it borrows its threads, its kernel table and its device. On a
 * device it takes 16 MB there, with a stream of the caller's 160 MB. options NULL: the defaults. WALSH_E_ARGUMENT: a
 * stream for the CPU. */
WALSH_API enum walsh_status walsh_ops_queue_open(struct walsh_context *context,
                                                 const struct walsh_ops_queue_options *options,
                                                 struct walsh_ops_queue **out, struct walsh_error *err);
/* Wait for what was enqueued on a device and tell the first failure of it; nothing on the CPU. Not in a capture. */
WALSH_API enum walsh_status walsh_ops_queue_synchronize(struct walsh_ops_queue *queue,
                                                        struct walsh_error *err);
/* No call runs on it any more; handles that were opened with it stay. */
WALSH_API void walsh_ops_queue_close(struct walsh_ops_queue **queue);

/* ---------------------------------------------------------------------------------------------- rotations */

/* The randomized Hadamard transform of vectors of `size` elements (Ailon and Chazelle 2009; in quantization
 * Chee et al. 2023, "QuIP"; Tseng et al. 2024, "QuIP#"):
 *   forward(x) = H (s * pad(x))
 *   inverse(y) = crop(s * (H y))
 * with elementwise products by the signs s, and H orthonormal Walsh-Hadamard matrices in Sylvester's order, one
 * per block. The blocks of a dimension are the powers of two of its binary expansion, largest first, padded to a
 * multiple of min_block. With signs of +-1 the two undo each other; signs may also carry a scale, as SU and SV
 * of checkpoints do. Immutable; any threads may share one. */
struct walsh_ops_rotation;
struct walsh_ops_rotation_options {
    size_t struct_size;
    uint32_t size; /* elements of a vector, 1 to 262144 */
    /* NULL, "block": as above. "pow2": one block, padded to the next power of two. "overlap": two Hadamards
     * on the first and the last m elements, m the largest power of two below the padded size; nothing else is
     * padded: forward(x) = H_last (t * H_first (s * pad(x))), with two vectors of signs (s, t); one block of
     * a power of two */
    const char *kind;
    uint32_t
        min_block; /* a power of two up to 65536; 0: 64, as inputs of GLQ checkpoints have; outputs have 16 */
    uint32_t parts; /* "block": equal parts that are not mixed, each with blocks of its own, for tensor
                       parallelism; size is a multiple of parts * min_block. 0: 1 */
    /* FLOAT [padded], or [2, padded] of an overlap of two blocks; finite; copied. data NULL: +-1, drawn from
     * `seed` and `name` as walsh quantize does, the same on every machine */
    struct walsh_view signs;
    uint64_t seed;
    const char *name; /* NULL: "" */
};
#define WALSH_OPS_ROTATION_OPTIONS                                                                           \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_rotation_options)                                             \
    }
/* Copies the signs, or draws them; serves queues of the same device. WALSH_E_ARGUMENT: a size, a kind, blocks or
 * signs that are not as said; WALSH_E_UNSUPPORTED: a size that `parts` do not divide; more elements than a
 * block of threads of the device holds (56,096 on an H200); WALSH_E_MEMORY. */
WALSH_API enum walsh_status walsh_ops_rotation_open(struct walsh_ops_queue *queue,
                                                    const struct walsh_ops_rotation_options *options,
                                                    struct walsh_ops_rotation **out, struct walsh_error *err);
/* Linears that read it have been closed before. */
WALSH_API void walsh_ops_rotation_close(struct walsh_ops_rotation **rotation);

#define WALSH_OPS_BLOCKS 24
struct walsh_ops_rotation_info {
    size_t struct_size;
    uint32_t size, padded; /* elements of x and of forward(x) */
    uint32_t sign_vectors; /* 1; 2 of an overlap of two blocks */
    uint32_t block_count;
    uint32_t blocks[WALSH_OPS_BLOCKS]; /* elements of each, in order; of an overlap the two that overlap */
};
/* Fills *info as far as its struct_size goes, which the caller sets; with zeros where rotation is NULL. */
WALSH_API void walsh_ops_rotation_get_info(const struct walsh_ops_rotation *rotation,
                                           struct walsh_ops_rotation_info *info);
/* Its signs into FLOAT [padded] or [2, padded]: what a checkpoint stores as SU or SV. */
WALSH_API enum walsh_status walsh_ops_rotation_get_signs(const struct walsh_ops_rotation *rotation,
                                                         const struct walsh_view *signs,
                                                         struct walsh_error *err);

/* y = forward(x), row by row: x FLOAT [.., size], y FLOAT [.., padded] of as many rows. y may be x where no
 * element is padded. No allocation; device. The f32 butterfly is fixed bit for bit: every machine gives the same. */
WALSH_API enum walsh_status walsh_ops_rotate(struct walsh_ops_queue *queue,
                                             const struct walsh_ops_rotation *rotation,
                                             const struct walsh_view *x, const struct walsh_view *y,
                                             struct walsh_error *err);
/* x = inverse(y), row by row: y FLOAT [.., padded], x FLOAT [.., size]. x may be y where no element is
 * padded. No allocation; device. */
WALSH_API enum walsh_status walsh_ops_unrotate(struct walsh_ops_queue *queue,
                                               const struct walsh_ops_rotation *rotation,
                                               const struct walsh_view *y, const struct walsh_view *x,
                                               struct walsh_error *err);
/* Fold a rotation into a matrix that reads rotated vectors: folded x = a forward(x) for all x. a FLOAT [..,
 * padded], folded FLOAT [.., size]. In double precision, rounded once. No allocation. */
WALSH_API enum walsh_status walsh_ops_fold_rows(struct walsh_ops_queue *queue,
                                                const struct walsh_ops_rotation *rotation,
                                                const struct walsh_view *a, const struct walsh_view *folded,
                                                struct walsh_error *err);
/* Fold it into a matrix whose outputs are to be rotated: folded h = forward(b h) for all h. b FLOAT [size,
 * n], folded FLOAT [padded, n]. In double precision, rounded once. No allocation. */
WALSH_API enum walsh_status walsh_ops_fold_columns(struct walsh_ops_queue *queue,
                                                   const struct walsh_ops_rotation *rotation,
                                                   const struct walsh_view *b,
                                                   const struct walsh_view *folded, struct walsh_error *err);

/* ---------------------------------------------------------------------------------------------- E8P codes */

/* A matrix in the codes of QuIP# (Tseng et al. 2024), 8 weights to a code, in one or more stages:
 *   W^[rows][cols] = sum over stages k of scale[k] * decode(codes[k])
 * U16 codes are E8P (2 bits per weight), U8 codes E81B (1 bit). W^ lives in rotated space: rows and cols are
 * the padded sizes of the rotations, rows a multiple of 16, cols of 64 and at most 65536. The views are the
 * caller's. */
#define WALSH_OPS_STAGES 4
struct walsh_ops_codes {
    uint32_t stages;                           /* 1 to WALSH_OPS_STAGES */
    struct walsh_view codes[WALSH_OPS_STAGES]; /* U16 or U8 [rows, cols / 8], dense */
    float scale[WALSH_OPS_STAGES];
};
/* The stages of `bits` per weight, 2 to 8: how many, and the element of each one's codes (2: U16; 3: U16, U8;
 * 4: U16, U16; and so on). */
WALSH_API enum walsh_status walsh_ops_code_stages(unsigned bits, uint32_t *stages,
                                                  enum walsh_element elements[WALSH_OPS_STAGES],
                                                  struct walsh_error *err);

struct walsh_ops_encode_options {
    size_t struct_size;
    unsigned bits; /* 2 to 8; 0: 4 */
    int passes;    /* of coordinate descent; -1 (set by the macro): the best measured */
    bool plain;    /* the published method: scale from the rms, no search */
    /* F32 [in, in], dense: X^T X / rows of the inputs X that the linear sees; data NULL: the identity, which
     * rounds each group of eight to the nearest */
    struct walsh_view hessian;
};
#define WALSH_OPS_ENCODE_OPTIONS                                                                             \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_encode_options), .passes = -1                                 \
    }
/* Quantize w, FLOAT [out, in]: codes and scales of W^ so that  y = inverse_out(W^ forward_in(x))  is near w
 * x, by LDLQ and coordinate descent (Chee et al. 2023; Tseng et al. 2024). `in` and `out` are rotations of
 * these sizes whose signs are not 0. The caller sets codes->codes, one view per stage of
 * walsh_ops_code_stages; this call writes what they show, codes->stages and codes->scale. *error (NULL: not
 * wanted): tr(E H E^T) / tr(W H W^T), the relative squared error of the outputs. Allocates about in^2 + 4 in
 * * out floats, and takes long: milliseconds per row. WALSH_E_ARGUMENT also where w is not finite. */
WALSH_API enum walsh_status walsh_ops_encode(struct walsh_ops_queue *queue,
                                             const struct walsh_ops_rotation *in,
                                             const struct walsh_ops_rotation *out, const struct walsh_view *w,
                                             const struct walsh_ops_encode_options *options,
                                             struct walsh_ops_codes *codes, double *error,
                                             struct walsh_error *err);
/* The weights that codes stand for, FLOAT: with both rotations NULL W^ itself, w [rows, cols]; else what the
 * linear computes with, w [out, in] = inverse_out W^ forward_in. Allocates 3 matrices of f32. */
WALSH_API enum walsh_status walsh_ops_decode(struct walsh_ops_queue *queue,
                                             const struct walsh_ops_rotation *in,
                                             const struct walsh_ops_rotation *out,
                                             const struct walsh_ops_codes *codes, const struct walsh_view *w,
                                             struct walsh_error *err);
/* Codes in the order of GLQ checkpoints, the tensors Qidxs*_e8p, I64 [rows / 16, cols / 64, 8, 4], or
 * Qidxs*_e81b, I64 [rows, cols / 64], both dense, into plain codes U16 or U8 [rows, cols / 8]. No
 * allocation. */
WALSH_API enum walsh_status walsh_ops_codes_from_glq(const struct walsh_view *stored,
                                                     const struct walsh_view *codes, struct walsh_error *err);
/* The way back. No allocation. */
WALSH_API enum walsh_status walsh_ops_codes_to_glq(const struct walsh_view *codes,
                                                   const struct walsh_view *stored, struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------ linears */

/* y = inverse_out(W^ round(forward_in(x))) + bias: the rotated low-bit linear, W^ in E8P codes or another
 * format. Opening it repacks the codes into the layout of the kernels, once; bytes: bits / 8 per padded
 * weight, and the scales. Immutable; any threads may share it. */
struct walsh_ops_linear;
struct walsh_ops_linear_options {
    size_t struct_size;
    const struct walsh_ops_rotation *in, *out; /* outlive the linear; NULL: that side is not rotated */
    struct walsh_view bias;                    /* FLOAT [out]; copied; data NULL: none */
    /* How x is rounded behind its rotation. Of E8P codes, AUTO and INT8: to int8 with one scale per row (0.01%
     * of perplexity), which is several times faster; F32 and BF16: not at all */
    enum walsh_activation_mode activations;
};
#define WALSH_OPS_LINEAR_OPTIONS                                                                             \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_linear_options)                                               \
    }
/* The codes may be released afterwards. options NULL: an unrotated linear of W^ itself. */
WALSH_API enum walsh_status walsh_ops_linear_open(struct walsh_ops_queue *queue,
                                                  const struct walsh_ops_codes *codes,
                                                  const struct walsh_ops_linear_options *options,
                                                  struct walsh_ops_linear **out, struct walsh_error *err);

/* Weights W^[rows][cols] that are no E8P codes. Of the formats with scales
 *   W^[r][c] = tensor_scale * scales[r][c / group] * (code[r][c] - zero[r][c / group])
 * in f32, each operation rounded (OCP Microscaling Formats 1.0 for MXFP4 and MXFP8). A code is one byte, or, of
 * 4 bits, half of one: column 2j is the low half of byte j. Scales are [rows, cols / group], group as the
 * format says, or, "free", a power of two from 16 on or all columns:
 *   DENSE  data FLOAT [rows, cols]; no scales
 *   MXFP4  E2M1 codes (0 .5 1 1.5 2 3 4 6 and a sign), U8 [rows, cols / 2]; scales U8 E8M0 (2^(e - 127)), group 32
 *   NVFP4  E2M1 codes, scales U8 E4M3, group 16, and tensor_scale
 *   MXFP8  E4M3 codes U8 [rows, cols], scales U8 E8M0, group 32
 *   FP8    E4M3 codes, scales FLOAT, free
 *   INT8   codes U8 [rows, cols], scales FLOAT, free; zeros U8 of the scales' shape, data NULL: 128
 *   INT4   codes U8 [rows, cols / 2], scales FLOAT, free; zeros U8 of the scales' shape, 0 to 15, data NULL: 8
 * cols is at most 49152 (DENSE: 262144), rows at most 262144, of all but DENSE a multiple of the group. All views
 * are dense, in host memory. */
enum walsh_ops_format {
    WALSH_OPS_DENSE = 0,
    WALSH_OPS_MXFP4,
    WALSH_OPS_NVFP4,
    WALSH_OPS_MXFP8,
    WALSH_OPS_FP8,
    WALSH_OPS_INT8,
    WALSH_OPS_INT4
};
struct walsh_ops_weights {
    size_t struct_size;
    enum walsh_ops_format format;
    uint32_t rows, cols; /* the padded sizes of the rotations, where there are any */
    struct walsh_view data, scales, zeros;
    float tensor_scale; /* of NVFP4; others: 1 (set by the macro) */
};
#define WALSH_OPS_WEIGHTS                                                                                    \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_weights), .tensor_scale = 1                                   \
    }
/* A linear of such weights. DENSE data is read where it lies, at every call, and outlives the linear (on a device
 * it is copied there); all else is copied, repacked. How x is rounded: INT8 and AUTO mean int8 with a scale for each 32 columns on
 * MXFP4, NVFP4, INT8 and INT4, and bf16 on bf16 weights, MXFP8 and FP8 where the CPU multiplies it, else f32;
 * BF16 is bf16 on all of these; F32, and f32 and f16 weights, f32. WALSH_E_ARGUMENT also for a scale or a code
 * that is no number. */
WALSH_API enum walsh_status walsh_ops_linear_open_weights(struct walsh_ops_queue *queue,
                                                          const struct walsh_ops_weights *weights,
                                                          const struct walsh_ops_linear_options *options,
                                                          struct walsh_ops_linear **out,
                                                          struct walsh_error *err);
/* Its adapters have been closed before. */
WALSH_API void walsh_ops_linear_close(struct walsh_ops_linear **linear);

/* A LoRA update of one linear: y += scale B (A x), with x and y as the linear has them. Folded into the
 * rotation of its output when it is opened, so that it costs its own two products and no more. The linear
 * outlives it. */
struct walsh_ops_adapter;
/* a FLOAT [rank, in], b FLOAT [out, rank], both finite and copied; rank 1 to 256; storage AUTO: bf16. */
WALSH_API enum walsh_status walsh_ops_adapter_open(const struct walsh_ops_linear *linear,
                                                   const struct walsh_view *a, const struct walsh_view *b,
                                                   float scale, enum walsh_adapter_storage storage,
                                                   struct walsh_ops_adapter **out, struct walsh_error *err);
/* No call uses it any more. */
WALSH_API void walsh_ops_adapter_close(struct walsh_ops_adapter **adapter);

/* What rows are for; it selects the arithmetic, so that a decode row has the same bits in any batch. */
enum walsh_ops_role {
    WALSH_OPS_DECODE = 0, /* each row the newest token of a sequence of its own */
    WALSH_OPS_PREFILL     /* consecutive tokens of one prompt; fastest from 16 rows on */
};
struct walsh_ops_call {
    size_t struct_size;
    enum walsh_ops_role role;
    const struct walsh_ops_adapter *const
        *adapters; /* [adapter_count] of this linear, for all rows; at most 16 */
    size_t adapter_count;
    void *workspace;
    size_t workspace_size; /* bytes */
};
#define WALSH_OPS_CALL                                                                                       \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_call)                                                         \
    }
/* Bytes of workspace for so many rows with these adapters, whatever the role and the elements; 0: no such
 * size. About 4 (in + out) * rows. */
WALSH_API size_t walsh_ops_linear_workspace(const struct walsh_ops_linear *linear, size_t rows,
                                            const struct walsh_ops_adapter *const *adapters,
                                            size_t adapter_count);
/* x FLOAT [.., in], y FLOAT [.., out] of as many rows. No allocation; device. WALSH_E_ARGUMENT with both figures for
 * a workspace that is too small. */
WALSH_API enum walsh_status walsh_ops_linear_apply(struct walsh_ops_queue *queue,
                                                   const struct walsh_ops_linear *linear,
                                                   const struct walsh_view *x, const struct walsh_view *y,
                                                   const struct walsh_ops_call *call,
                                                   struct walsh_error *err);

/* ------------------------------------------------------------------------------------------------ experts */

/* Several linears over consecutive rows: the grouped product of a mixture of experts whose router, order of
 * rows and gate are the caller's. Group g reads the `rows` rows (0: none) behind those of the groups in front of it. */
struct walsh_ops_group {
    const struct walsh_ops_linear *linear;
    size_t rows;
};
/* Bytes of workspace for these groups; 0: no such size, or no groups. */
WALSH_API size_t walsh_ops_groups_workspace(const struct walsh_ops_group *groups, size_t count);
/* y_g = linear_g(x_g): x FLOAT [.., in], y FLOAT [.., out] of as many rows as the groups have together. All linears
 * have the same `in` and `out` and round x alike; the bits are those of walsh_ops_linear_apply for each of them,
 * but all products share the threads, and one preparation of x where the input rotations are one. call->adapters
 * must be none. No allocation; device, one product after the other. */
WALSH_API enum walsh_status
walsh_ops_linear_apply_groups(struct walsh_ops_queue *queue, const struct walsh_ops_group *groups,
                              size_t count, const struct walsh_view *x, const struct walsh_view *y,
                              const struct walsh_ops_call *call, struct walsh_error *err);

/* The choice of a router: per row the k largest of softmax(logits), largest first (ties: the lower index), their
 * places in index and their probabilities in weight, divided by their sum where `normalize`. logits F32 [..,
 * experts], index I32 and weight F32 [.., k] of as many rows, all dense; 1 <= k <= experts <= 65536. (Shazeer et
 * al. 2017, top-k of a softmax as Mixtral and Qwen3Moe have it.) No allocation; device. */
WALSH_API enum walsh_status walsh_ops_route(struct walsh_ops_queue *queue, const struct walsh_view *logits,
                                            bool normalize, const struct walsh_view *index,
                                            const struct walsh_view *weight, struct walsh_error *err);

/* down(gate_function(gate(x), up(x))), the MLP of one expert. */
struct walsh_ops_expert {
    const struct walsh_ops_linear *gate, *up, *down;
};
enum walsh_ops_gate {
    WALSH_OPS_SWIGLU = 0, /* silu(g) u */
    WALSH_OPS_GEGLU,      /* gelu(g) u, gelu in its tanh form */
    WALSH_OPS_CLAMPED /* g' sigmoid(alpha g') (u' + 1), g' = min(g, limit), u' = u within +-limit: gpt-oss */
};
struct walsh_ops_experts_call {
    size_t struct_size;
    enum walsh_ops_role role;
    enum walsh_ops_gate gate;
    float alpha, limit; /* of CLAMPED; 1.702 and 7 (set by the macro) */
    void *workspace;
    size_t workspace_size; /* bytes */
};
#define WALSH_OPS_EXPERTS_CALL                                                                               \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_experts_call), .alpha = 1.702f, .limit = 7                    \
    }
/* Bytes of workspace for so many rows with k experts each; 0: no such size, or experts that do not fit
 * together. About 4 (in + 4 intermediate + 3 out) rows k. */
WALSH_API size_t walsh_ops_experts_workspace(const struct walsh_ops_expert *experts, size_t count,
                                             size_t rows, size_t k);
/* y[i] = sum over j < k of weight[i][j] expert[index[i][j]](x[i]), summed in the order of j: x FLOAT [.., in], y
 * FLOAT [.., out], index I32 and weight FLOAT [.., k] of as many rows, index in [0, count), k from its shape.
 * The router is the caller's (walsh_ops_route is one). Rows of one expert are computed together, whatever
 * their order; a row's bits do not depend on it. experts [count], borrowed for the call: all have the same
 * sizes, and round their inputs alike. On the CPU only (its host reads the routing): WALSH_E_UNSUPPORTED on
 * another device. No allocation. */
WALSH_API enum walsh_status
walsh_ops_experts_apply(struct walsh_ops_queue *queue, const struct walsh_ops_expert *experts, size_t count,
                        const struct walsh_view *x, const struct walsh_view *index,
                        const struct walsh_view *weight, const struct walsh_view *y,
                        const struct walsh_ops_experts_call *call, struct walsh_error *err);

/* ---------------------------------------------------------------------------------------------- attention */

/* How packed keys and values are coded: rotated, rounded to the optimal scalar quantizer of a coordinate of a
 * random unit vector, with one f16 norm each (Zandieh et al. 2025, "TurboQuant"; docs/kv-cache.md). */
struct walsh_ops_kv_codec;
struct walsh_ops_kv_codec_options {
    size_t struct_size;
    uint32_t head_dim;             /* a multiple of 16 up to 1024 */
    unsigned key_bits, value_bits; /* 1 to 8; 0: 4 */
    uint64_t seed;                 /* of the rotations; 42 (set by the macro) */
};
#define WALSH_OPS_KV_CODEC_OPTIONS                                                                           \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_kv_codec_options), .seed = 42                                 \
    }
/* Takes some milliseconds; one serves all layers of a cache. WALSH_E_ARGUMENT: a head dimension or bits that
 * are not as said. */
WALSH_API enum walsh_status walsh_ops_kv_codec_open(struct walsh_ops_queue *queue,
                                                    const struct walsh_ops_kv_codec_options *options,
                                                    struct walsh_ops_kv_codec **out, struct walsh_error *err);
/* Pages that it packed can be read by another of the same options. */
WALSH_API void walsh_ops_kv_codec_close(struct walsh_ops_kv_codec **codec);
/* Bytes of one page of packed keys, or of values; 0 where page_tokens is not a multiple of 64. */
WALSH_API size_t walsh_ops_kv_page_bytes(const struct walsh_ops_kv_codec *codec, bool values,
                                         uint32_t kv_heads, uint32_t page_tokens);

/* The caller's pool of pages of one layer. Without a codec keys and values are F16 or F32
 * [pages, kv_heads, page_tokens, head_dim], alike, a page (all but the first dimension) dense; the pages may
 * stand apart, as where keys and values of a page alternate. With one they are U8 [pages, bytes], bytes as
 * walsh_ops_kv_page_bytes has it, page_tokens a multiple of 64, each page on a multiple of
 * WALSH_OPS_ALIGNMENT; the layout within a page is walsh's own. Page 0 of a sequence holds its tokens [0,
 * page_tokens), and so on. */
struct walsh_ops_kv {
    struct walsh_view keys, values;
    const struct walsh_ops_kv_codec *codec; /* NULL: F16 or F32 */
    uint32_t page_tokens, kv_heads, head_dim;
};
/* A row of a call: token `position` of the sequence whose pages are `pages`, numbers in the pool in the order
 * of the tokens. */
struct walsh_ops_row {
    const int32_t *pages; /* [page_count] */
    uint32_t page_count;
    uint32_t position;
};
struct walsh_ops_attention_call {
    size_t struct_size;
    enum walsh_ops_role
        role;        /* PREFILL: rows of one sequence at consecutive positions, with the same `pages` */
    uint32_t heads;  /* of queries: a multiple of kv_heads, at most 256 times as many */
    float scale;     /* of q k; 0: 1 / sqrt(head_dim) */
    uint32_t window; /* the newest tokens that a row sees, its own included; 0: all */
    float soft_cap;  /* a scaled score s becomes soft_cap * tanh(s / soft_cap); 0: it stays */
    const float
        *sinks; /* [heads] exp(sinks[h]) joins the sum of head h's weights, in the memory of the queue's
                           device; NULL: none */
    void *workspace;
    size_t workspace_size; /* bytes */
    /* The rows in the memory of the queue's device, where the argument `rows` is NULL: positions I32 [count], dense,
     * and pages I32 [count, n], row i's in order, of which it uses the first position / page_tokens + 1. On a
     * device these are the only way, and their values are not checked. data NULL: `rows` says so */
    struct walsh_view positions, pages;
};
#define WALSH_OPS_ATTENTION_CALL                                                                             \
    {                                                                                                        \
        .struct_size = sizeof(struct walsh_ops_attention_call)                                               \
    }
/* Bytes of workspace for `count` rows whose page tables have at most page_count entries, of either call
 * below; 0: no such size. `heads` as in the call, or kv_heads for appending. */
WALSH_API size_t walsh_ops_attention_workspace(const struct walsh_ops_kv *kv, uint32_t heads, size_t count,
                                               uint32_t page_count);
/* Store keys and values of `count` rows, FLOAT [count, kv_heads * head_dim] or [count, kv_heads, head_dim]
 * with the last two dense, at their positions: F16 saturated, packed ones coded. Rows that share a page of
 * packed values may be of one call; no two rows are the same token. Only scale, heads, window, soft_cap,
 * sinks and role of the call are without meaning here. No allocation; device. */
WALSH_API enum walsh_status walsh_ops_kv_append(struct walsh_ops_queue *queue, const struct walsh_ops_kv *kv,
                                                const struct walsh_ops_row *rows, size_t count,
                                                const struct walsh_view *k, const struct walsh_view *v,
                                                const struct walsh_ops_attention_call *call,
                                                struct walsh_error *err);
/* out[i] = softmax(cap(scale q[i] K^T)) V over the tokens [max(0, position + 1 - window), position] of row i,
 * which have all been stored. q and out FLOAT [count, heads * head_dim] or [count, heads, head_dim] with the
 * last two dense; head h reads head h / (heads / kv_heads) of the keys and values. (Vaswani et al. 2017;
 * tiles with a running softmax, Dao et al. 2022.) No allocation; device. */
WALSH_API enum walsh_status walsh_ops_attention(struct walsh_ops_queue *queue, const struct walsh_ops_kv *kv,
                                                const struct walsh_ops_row *rows, size_t count,
                                                const struct walsh_view *q, const struct walsh_view *out,
                                                const struct walsh_ops_attention_call *call,
                                                struct walsh_error *err);

#ifdef __cplusplus
}
#endif
#endif

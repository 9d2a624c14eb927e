/* kernels: queues, the tensors' descriptors and the two tables (ops and microkernels). May use formats,
 * rotation, base.
 *
 * An *op* is what the model calls: whole tensors, a queue first, no allocation, no synchronisation visible to
 * the caller (on the CPU it returns when it is done). A *microkernel* is a piece of an op for one thread.
 * Both are declared once, in kernels.def; re-including it gives prototypes, dispatch tables, checker cases
 * and benchmark rows.
 *
 * Determinism: a row's result depends on its own inputs and the role, never on the rows beside it or on the
 * threads. */
#ifndef WALSH_KERNELS_KERNELS_H
#define WALSH_KERNELS_KERNELS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/status.h"
#include "formats/weights.h"
#include "rotation/rotation.h"

/* What a row is for. It selects the arithmetic, so that a decode row has the same bits in any batch. */
enum walsh_role { WALSH_DECODE, WALSH_PREFILL };

/* How activations enter a product. INT8: one scale per row, x ~ scale * q, q = rint(x * 127/amax) in [-127,
 * 127]. INT8_GROUPS: the same with a scale for each WALSH_ACTIVATION_GROUP columns. */
enum walsh_activation_type {
    WALSH_ACTIVATION_F32,
    WALSH_ACTIVATION_BF16,
    WALSH_ACTIVATION_INT8,
    WALSH_ACTIVATION_INT8_GROUPS
};
#define WALSH_ACTIVATION_GROUP 32
#define WALSH_ACTIVATION_SUM 16 /* INT8_GROUPS: columns of a sum */

/* Prepared activations [rows][cols] of a product: rotated, rounded, zero beyond `cols` up to `stride`. stride
 * is a multiple of 256 elements, and not of 1024; data is 64-byte aligned. */
#define WALSH_MAX_COLUMNS (1u << 18) /* of activations: whoever builds a linear checks it */
struct walsh_activations {
    enum walsh_activation_type type;
    size_t rows, cols, stride; /* elements */
    void *data;                /* float, bf16 (uint16_t) or int8_t */
    float *scale;              /* INT8: [rows]; INT8_GROUPS: [rows][stride / WALSH_ACTIVATION_GROUP] */
    int32_t *sum; /* of q. INT8: [rows], of the row; INT8_GROUPS: [rows][stride / WALSH_ACTIVATION_SUM] */
    /* The data of 16 rows (the last ones: n rows) stand as tiles: 64 bytes of each, then the next 64 bytes of each.
     * Byte b of row 16 g + i is at 16 g * stride * element + b / 64 * 64 n + 64 i + b % 64. Where
     * walsh_queue_tiles says so, and for products of all rows. */
    bool tiled;
};
size_t walsh_activations_stride(size_t cols);
size_t walsh_activation_size(enum walsh_activation_type type); /* bytes of one element */
/* Elements of `scale` and of `sum` of one row. */
size_t walsh_activation_scales(enum walsh_activation_type type, size_t stride);
size_t walsh_activation_sums(enum walsh_activation_type type, size_t stride);
/* Rows [first, first + rows) of a, in place; not of tiles. */
struct walsh_activations walsh_activation_rows(const struct walsh_activations *a, size_t first, size_t rows);

/* The first half of a low-rank update, h = A x, of rows [row_begin, row_end) of a product's raw input. */
struct walsh_low_rank_down {
    enum walsh_format format; /* F32 or BF16, of A and of every B that reads h */
    uint32_t rank;
    const void *a; /* [rank][low_rank_input.cols] as formats/low_rank.h says, 64-byte aligned */
    size_t row_begin, row_end;
    float *h; /* scratch, walsh_low_rank_scratch elements */
    /* the op's own */
    size_t units_before;
    atomic_size_t units_left;
};
/* The second half, y[row] += scale * B h[row] for the rows of input->down[down]: `down` names an h of the
 * same call, which is the only one there is. */
struct walsh_low_rank_up {
    uint32_t down;
    float scale;
    const void *b; /* [weights.rows][rank of down] */
};
/* What all the products of a list read besides their prepared activations. */
struct walsh_low_rank_input {
    const float *x; /* [rows][ldx], the first `cols` of a row are read */
    size_t ldx, cols;
    struct walsh_low_rank_down *down;
    size_t count;
};
/* f32 elements of scratch for the h of `rows` rows. */
size_t walsh_low_rank_scratch(size_t rank, size_t cols, size_t rows, enum walsh_role role);

/* One product of a list that shares its activations: y[row][0..weights.rows) = W · a_row, f32, row stride
 * ldy, and then the updates in their order. */
struct walsh_product {
    const struct walsh_weights *weights;
    float *y;
    size_t ldy;
    const struct walsh_low_rank_up *up;
    size_t up_count;
    /* Only rows [first_row, first_row + rows) of the activations, y[0] being that of the first; rows 0: all of them. For
     * the CPU's op, and for products without updates. */
    size_t first_row, rows;
};

/* Keys and values of one layer of one sequence, in pages of page_tokens tokens. Page layout, for K and V
 * alike: [kv_head][page_tokens][head_dim] elements of `type`; TURBO: [kv_head] packed heads as
 * formats/turbo_pages.h lays them out, of the codec's dimension and bits, page_tokens a multiple of
 * WALSH_TURBO_SPAN. */
enum walsh_kv_type { WALSH_KV_F32, WALSH_KV_F16, WALSH_KV_TURBO };
struct walsh_turbo_codecs; /* kernels/turbo.h */
struct walsh_kv_view {
    enum walsh_kv_type type;
    uint32_t page_tokens;
    void *const *k_pages, *const *v_pages;
    /* TURBO only */
    struct walsh_turbo_codecs *turbo;
    /* The newest tokens once more, before they were packed: an F16 view of keys and values as the codecs
     * rotate them. A decode row at position p reads tokens [max(p + 1 - recent_tokens, recent_begin), p]
     * here. NULL: every token is read as packed. */
    const struct walsh_kv_view *recent;
    uint32_t recent_tokens, recent_begin;
};
/* One query row: it attends to tokens [max(0, position + 1 - window), position] of kv (window 0: all). */
struct walsh_attention_row {
    const struct walsh_kv_view *kv;
    uint32_t position;
};
#define WALSH_MAX_HEAD_DIM 1024  /* what the ops' scratch is made for; whoever builds a shape checks it */
#define WALSH_MAX_HEAD_GROUP 256 /* heads / kv_heads */
struct walsh_kv_kinds {
    bool packed; /* some are TURBO */
    bool mixed;  /* and some are not */
    bool four;   /* all that are have 4 bits on both sides */
    bool recent; /* some of them keep recent tokens */
    bool tiles;  /* all are F16 in pages of a multiple of 16 tokens */
    /* A power of two from 128 on that no row's tokens exceed, its own with them; 0: not known. */
    uint32_t most_tokens;
};
struct walsh_attention_shape {
    uint32_t heads, kv_heads, head_dim;
    float scale;     /* of q·k: 1/sqrt(head_dim), or what the model says */
    uint32_t window; /* 0: full causal */
    float soft_cap;  /* a scaled score s becomes soft_cap * tanh(s / soft_cap); 0: it stays */
    /* [heads] exp(sinks[h]) joins the sum that head h's weights are divided by (attention sinks, as gpt-oss
     * learns them; Xiao et al. 2023). NULL: none. */
    const float *sinks;
    /* PREFILL on a TURBO kv: the call's own rows before they were packed, an F16 view of one page with token
     * t at slot t % page_tokens; the rows do not cross a multiple of page_tokens. kv_append stores them there too
     * (a device: rotated). NULL: they are read as packed.
     */
    const struct walsh_kv_view *own;
    /* Of the rows' kv, for a device, whose host does not read the rows; the CPU's ops look at the rows. */
    struct walsh_kv_kinds kinds;
    /* PREFILL on F16 and TURBO kv: q, k, v and the weights may be rounded to bf16, where the machine multiplies
     * it (sums stay f32); false: all of it is f32. */
    bool narrow;
};

/* The instruction sets that a table may use; `--cpu` caps it. */
enum walsh_cpu_level { WALSH_CPU_REFERENCE, WALSH_CPU_AVX2, WALSH_CPU_AVX512, WALSH_CPU_AMX, WALSH_CPU_BEST };

struct walsh_kernels; /* microkernels of one device: kernels/table.h */
struct walsh_ops;
struct walsh_fused_ops;
struct walsh_quantize_ops;
struct walsh_train_ops;
struct walsh_draws;  /* kernels/draw.h */
struct walsh_memory; /* kernels/device.h */

/* Where ops run. The CPU's holds the pool and per-worker scratch; opened by the context. */
struct walsh_queue {
    const struct walsh_ops *ops;
    const struct walsh_kernels *kernels;
    struct walsh_pool *pool; /* borrowed; NULL: the calling thread */
    uint8_t **scratch;       /* [threads] 64-byte aligned, scratch_bytes each, for tiles inside ops */
    size_t scratch_bytes;
    const struct walsh_memory
        *memory;  /* of a device: kernels/device.h; NULL: the ops' pointers are host memory */
    void *device; /* the module's own */
};
/* Pick the table for `level` and allocate scratch. A level that the machine lacks: WALSH_E_UNSUPPORTED,
 * naming what it has. */
enum walsh_status walsh_queue_open(enum walsh_cpu_level level, struct walsh_pool *pool,
                                   struct walsh_queue *out, struct walsh_error *err);
void walsh_queue_close(struct walsh_queue *q);
/* For `walsh devices`: kernel number i's name and the implementation chosen in q; false past the end. */
bool walsh_queue_kernel(const struct walsh_queue *q, size_t i, const char **kernel,
                        const char **implementation);
/* The CPU's side of a queue: itself, or what a device's keeps of the CPU for work on host memory. */
struct walsh_queue walsh_queue_host(const struct walsh_queue *q);
/* True where BF16 activations have hardware products on q: in its table (AVX512_BF16), or on its device. */
bool walsh_queue_has_bf16(const struct walsh_queue *q);
/* True where they are AMX's, which outrun products of int8 activations in groups. */
bool walsh_queue_has_bf16_tiles(const struct walsh_queue *q);
/* True where products of such activations, `cols` wide, read them as tiles: a prompt's 16 rows then come as one
 * sequence rather than from as many pages. */
bool walsh_queue_tiles(const struct walsh_queue *q, enum walsh_activation_type type, size_t cols,
                       enum walsh_role role);
/* "avx512f avx512bw ..." of this machine, for `walsh devices`. */
const char *walsh_cpu_features(void);

/* The ops. All pointers are memory of the queue (the host's, or a device's as kernels/device.h says), f32
 * unless said; x and y may alias only where said. */
struct walsh_ops {
    /* out[row][0..cols) = f32 of table[ids[row]]; table dense [vocab][cols], ids already range-checked. */
    void (*embed)(const struct walsh_queue *q, float *out, const struct walsh_weights *table,
                  const int32_t *ids, size_t rows);
    /* y = x / sqrt(mean(x^2) + eps) * weight, per row of n; y may be x. ld* are row strides in elements. */
    void (*rms_norm)(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *weight, size_t rows, size_t n, float eps);
    /* x += d, n elements. */
    void (*add)(const struct walsh_queue *q, float *x, const float *d, size_t n);
    /* a = round(forward(rotation, x)) row by row: x [rows][ldx], rotation->size elements used. NONE only
     * rounds/copies. a's rows, type and buffers are set by the caller; cols must equal
     * rotation->blocks.padded. */
    void (*prepare)(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                    const struct walsh_rotation *rotation);
    /* All products of a list, over one set of activations, in one dispatch, with their low-rank updates
     * (low_rank NULL: none has any). h is computed in the same dispatch, beside the products, from the raw x.
     */
    void (*product)(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                    const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                    enum walsh_role role);
    /* y[row][0..size) = inverse(rotation, z[row]) + bias (NULL: none); z [rows][ldz] is overwritten. y may be
     * z. */
    void (*unrotate)(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                     const struct walsh_rotation *rotation, const float *bias, size_t rows);
    /* Rotate pairs (i, i + rotated/2) of the first `rotated` elements of each of `heads` heads in place by
     * the angle of its row's position: cosine, sine [max_positions][rotated/2]; rotated <= head_dim. (Su et
     * al. 2021, in Hugging Face's half-split order.) */
    void (*rope)(const struct walsh_queue *q, float *x, size_t ldx, const uint32_t *positions, size_t rows,
                 uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine, const float *sine);
    /* A gated short convolution over the sequence (as LFM2 has it). x [count][ldx] holds B, C and v, `width`
     * elements each. u = B v is stored at rows[i].position of rows[i].kv, whose key pages hold `width`
     * elements per token, F32 or F16 (saturated); then out[i] = C (bias + sum over j < taps of weight[j]
     * u[position - taps + 1 + j]), everything elementwise, with what is stored, nothing before position 0, in
     * the order of j. weight [taps][width]; bias [width] or NULL. Rows of one kv have consecutive positions.
     */
    void (*short_conv)(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                       const struct walsh_attention_row *rows, size_t count, const float *weight,
                       const float *bias, uint32_t taps, uint32_t width);
    /* out[i] = {kv[i] + layer, positions[i]}: kv[i] is the view of a row's layer 0. */
    void (*attention_rows)(const struct walsh_queue *q, struct walsh_attention_row *out,
                           const struct walsh_kv_view *const *kv, const uint32_t *positions, size_t count,
                           uint32_t layer);
    /* Store k, v [rows][kv_heads*head_dim] at rows[i].position of rows[i].kv. F16 saturates: what lies beyond
     * +-65504, Inf too, is stored as +-65504. TURBO: a norm saturates likewise and is counted in kv->turbo;
     * where kv->recent is set the rotated k and v are stored there too (of rows of one kv, which stand together and follow one
     * another, the last one that has a place there keeps it), and all rows in shape->own where that is set. */
    void (*kv_append)(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                      const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape);
    /* out [count][heads*head_dim] = softmax(cap(scale q·K^T)) V for each row. PREFILL: rows of one kv
     * stand together and their positions are consecutive, and with shape->own there is one kv; a TURBO kv without
     * shape->own is attended to by decode's arithmetic.
     */
    void (*attention)(const struct walsh_queue *q, float *out, size_t ldo, const float *query, size_t ldq,
                      const struct walsh_attention_row *rows, size_t count,
                      const struct walsh_attention_shape *shape, enum walsh_role role);
    /* y = silu(gate) * up, rows of n; y may be gate. */
    void (*swiglu)(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                   size_t ld, size_t rows, size_t n);
    /* y = gelu(gate) * up with gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), rows of n; y may be
     * gate. (Hendrycks and Gimpel 2016, "GELU"; the form that Gemma uses.)
     * NULL where a backend lacks it, as scale and soft_cap may be; a model that needs it is then refused. */
    void (*geglu)(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                  size_t ld, size_t rows, size_t n);
    /* y = g sigmoid(alpha g) (u + 1) with g = min(gate, limit), u = clamp(up, -limit, limit), rows of n; y
     * may be gate. (The gate of gpt-oss.) NULL where a backend lacks it. */
    void (*clamped_swiglu)(const struct walsh_queue *q, float *y, size_t ldy, const float *gate,
                           const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit);
    /* x *= factor, n elements. */
    void (*scale)(const struct walsh_queue *q, float *x, float factor, size_t n);
    /* x = cap * tanh(x / cap), n elements; cap > 0. */
    void (*soft_cap)(const struct walsh_queue *q, float *x, float cap, size_t n);
    /* Per row: the k largest of softmax(logits[experts]) in descending order (ties: the lower index), their
     * indices and weights, renormalised to sum 1 where `normalize`. */
    void (*route)(const struct walsh_queue *q, int32_t *index, float *weight, const float *logits,
                  size_t rows, uint32_t experts, uint32_t k, bool normalize);
    /* out[i][0..n) = x[index[i]][0..n). out and x do not overlap. */
    void (*gather)(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                   const uint32_t *index, size_t rows, size_t n);
    /* x[row][0..n) += sum over j < k of weight[row][j] y[slot[row][j]][0..n), k >= 1: every product and sum
     * rounded, the sum from the left. No slot stands twice; y is overwritten. */
    void (*combine)(const struct walsh_queue *q, float *x, size_t n, float *y, const uint32_t *slot,
                    const float *weight, size_t rows, uint32_t k);
    /* ids[row] = what draws->rows[row] draws from logits [count][vocab] by kernels/draw.h, -1 where nothing can be drawn. The logits
     * are as before when it is done. NULL where a backend lacks it: the host draws. */
    void (*draw)(const struct walsh_queue *q, int32_t *ids, float *logits, uint32_t vocab,
                 const struct walsh_draws *draws);
    const struct walsh_fused_ops *fused;       /* NULL: none */
    const struct walsh_quantize_ops *quantize; /* kernels/quantize.h; NULL: the quantizer's own searches */
    const struct walsh_train_ops *train;       /* kernels/train.h; NULL: training goes by microkernels */
};

/* A product's output as the product left it, [rows][ld], and what unrotate makes of it. */
struct walsh_unrotated {
    float *z; /* may be overwritten */
    size_t ld;
    const struct walsh_rotation *rotation;
    const float *bias;
};
/* What stands between the products of a dense layer, for walsh_fused_ops.fits. */
struct walsh_fused_layer {
    size_t hidden;
    const struct walsh_attention_shape *attention;
    /* of the inputs of q, k, v; o; gate, up; down */
    struct {
        const struct walsh_rotation *rotation;
        enum walsh_activation_type type;
    } in[4];
    struct walsh_unrotated q, k, v, o, gate, up, down; /* rotations and biases */
};
/* q, k and v from their products' outputs to the query and the cache. */
struct walsh_projections {
    struct walsh_unrotated q, k, v;
    const float *q_norm, *k_norm; /* [head_dim] or NULL */
    float eps;
    uint32_t rotated; /* 0: no positions */
    const float *cosine, *sine;
    const struct walsh_attention_row *rows; /* [count] whose kv is the view of layer 0 */
    uint32_t layer;
    float *query;       /* [count][heads * head_dim] */
    float *key, *value; /* [count][kv_heads * head_dim]: room for what TURBO caches are to pack */
};
/* Fusions of what stands between two products, each with the bits of its parts called one after the other. */
struct walsh_fused_ops {
    /* False: a layer of these shapes is for the parts. */
    bool (*fits)(const struct walsh_queue *q, const struct walsh_fused_layer *layer);
    /* x [a->rows][n] += d (NULL: nothing), through a norm where d_norm (unrotate, rms_norm, add). Where
     * weight: normed [a->rows][ldn] (NULL: not kept) = rms_norm(x), prepared into a (rms_norm, prepare). */
    void (*residual)(const struct walsh_queue *q, float *x, size_t n, const struct walsh_unrotated *d,
                     const float *d_norm, const float *weight, float eps, float *normed, size_t ldn,
                     struct walsh_activations *a, const struct walsh_rotation *rotation);
    /* unrotate, rms_norm, rope, kv_append. */
    void (*project)(const struct walsh_queue *q, const struct walsh_projections *p, size_t count,
                    const struct walsh_attention_shape *shape);
    /* attention, prepare; out [a->rows][ldo] (NULL: not kept). rows' kv is the view of layer 0. */
    void (*attention)(const struct walsh_queue *q, struct walsh_activations *a,
                      const struct walsh_rotation *rotation, float *out, size_t ldo, const float *query,
                      size_t ldq, const struct walsh_attention_row *rows, uint32_t layer,
                      const struct walsh_attention_shape *shape, enum walsh_role role);
    /* project and attention at once, of DECODE rows that are each of a cache of its own. False: nothing was done, the two are to
     * be called. NULL: always so. */
    bool (*attend)(const struct walsh_queue *q, const struct walsh_projections *p,
                   const struct walsh_attention_shape *shape, struct walsh_activations *a,
                   const struct walsh_rotation *rotation, float *out, size_t ldo);
    /* unrotate, swiglu (gelu: geglu), prepare; y [a->rows][ldy] (NULL: not kept). */
    void (*gated)(const struct walsh_queue *q, struct walsh_activations *a,
                  const struct walsh_rotation *rotation, float *y, size_t ldy,
                  const struct walsh_unrotated *gate, const struct walsh_unrotated *up, size_t n, bool gelu);
};

#endif

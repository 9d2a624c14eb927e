/* model/linear: the rotated low-bit linear  y = inverse_out(W^ · round(forward_in(x))) + bias. May use cache
 * and below. */
#ifndef WALSH_MODEL_LINEAR_H
#define WALSH_MODEL_LINEAR_H

#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "kernels/kernels.h"

/* A matrix of the checkpoint that holds several linears: rows row, row + step, ... of its `rows` are this
 * one's. A stack (gpt-oss's experts) is one tensor of `stack` matrices [rows][in], of which this is number
 * `matrix`: quantized as NAME_blocks and NAME_scales, dense as NAME [stack][in][rows], biases NAME_bias
 * [stack][rows]. */
struct walsh_fusion {
    const char *name; /* module path: "model.layers.0.self_attn.qkv_proj"; NULL: a matrix of its own */
    uint32_t row, rows;
    uint32_t step;          /* 0: 1 */
    uint32_t stack, matrix; /* stack 0: a matrix of its own */
};
/* How a tensor-parallel engine cuts a linear into `parts` (1: not at all): by its inputs or by its outputs.
 * The rotation of that dimension keeps the parts apart. */
struct walsh_split {
    bool inputs;
    uint32_t parts;
};
struct walsh_adapter_linear; /* model/adapter.h */
struct walsh_linear {
    const char *name;                                /* module path: "model.layers.0.mlp.up_proj" */
    uint32_t in, out;                                /* logical */
    struct walsh_rotation in_rotation, out_rotation; /* kind NONE where the weights are not rotated */
    struct walsh_weights weights;                    /* [out padded][in padded] */
    const float *bias;                               /* [out] or NULL */
    enum walsh_activation_type activation;           /* how its input is rounded */
    struct walsh_fusion fusion;                      /* where an unquantized checkpoint has it */
    struct walsh_split split;
    uint32_t index; /* its number in its graph, in the order of use */
    /* a low-rank part of the weights themselves, in the form of an adapter's update; NULL: none */
    const struct walsh_adapter_linear *own;
    /* Signs of the rotations in the host's memory where the rotations' own are a device's; else NULL. */
    const float *host_in_signs, *host_out_signs;
};

/* Take `name` from the checkpoint: dense `name.weight`, a GLQ E8P group, or a block format as
 * checkpoint/blocks.h says, with the signs name.SV and name.SU where it is rotated, and `name.bias` where
 * has_bias. With `fusion` (NULL: none; has no bias but of a stack) the dense rows and those of unrotated
 * block formats are in that matrix, other quantized linears under their own names. `split` says what blocks
 * the stored signs are of. Dense data stays in the mapped file but for stacks; codes are repacked into
 * `arena`. `pool` shares the repacking. */
enum walsh_status walsh_linear_load(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                    const char *name, const struct walsh_fusion *fusion,
                                    const struct walsh_split *split, uint32_t in, uint32_t out, bool has_bias,
                                    enum walsh_activation_type rotated, enum walsh_activation_type dense,
                                    struct walsh_pool *pool, struct walsh_arena *arena,
                                    struct walsh_error *err);

/* The same for a device: the weights stay in the checkpoint's files, and weights.stored reads them (formats/stored.h) as
 * long as the checkpoint is open. */
enum walsh_status walsh_linear_find(struct walsh_linear *linear, const struct walsh_checkpoint *ck,
                                    const char *name, const struct walsh_fusion *fusion,
                                    const struct walsh_split *split, uint32_t in, uint32_t out, bool has_bias,
                                    enum walsh_activation_type rotated, enum walsh_activation_type dense,
                                    struct walsh_arena *arena, struct walsh_error *err);

/* Scratch of a forward call, sized once for `rows` rows of the widest linear; see model/workspace.c. */
struct walsh_workspace;

/* One linear of a list that reads the same x. */
struct walsh_linear_call {
    const struct walsh_linear *linear;
    float *y; /* [rows][ldy], `linear->out` written */
    size_t ldy;
};
/* Rows [begin, end) of a call use the adapters of `set` (model/adapter.h). */
struct walsh_adapter_set;
struct walsh_row_set {
    const struct walsh_adapter_set *set;
    size_t begin, end;
};
/* Ascending and disjoint; a row that is in none has no adapter. */
struct walsh_row_sets {
    const struct walsh_row_set *list;
    size_t count;
};
/* The sets of rows [begin, begin + count) with these rows numbered from 0, in `room` of at least as many
 * entries. */
struct walsh_row_sets walsh_row_sets_slice(const struct walsh_row_sets *sets, size_t begin, size_t count,
                                           struct walsh_row_set *room);

/* Calls that share one dispatch at most; a longer list takes several. */
#define WALSH_LINEAR_CALLS 32

/* The rotations as the host reads them. */
static inline struct walsh_rotation walsh_linear_host_in(const struct walsh_linear *linear)
{
    struct walsh_rotation r = linear->in_rotation;
    if (linear->host_in_signs) r.signs = linear->host_in_signs;
    return r;
}
static inline struct walsh_rotation walsh_linear_host_out(const struct walsh_linear *linear)
{
    struct walsh_rotation r = linear->out_rotation;
    if (linear->host_out_signs) r.signs = linear->host_out_signs;
    return r;
}

/* The products of calls (at most WALSH_LINEAR_CALLS) that share the prepared `a` of x, with their adapters:
 * into the workspace where the output is rotated, else into calls[i].y; out[i] is what unrotate makes y of.
 */
void walsh_linear_products(const struct walsh_queue *q, struct walsh_workspace *ws,
                           const struct walsh_linear_call *const *calls, size_t count,
                           const struct walsh_activations *a, const float *x, size_t ldx,
                           enum walsh_role role, const struct walsh_row_sets *sets,
                           struct walsh_unrotated *out);
/* How x enters the products of `linear`: as it says, but for prompts and codes of 4 bits as bf16 where tiles of bf16
 * multiply several times as fast as integers whose groups have a scale each. */
enum walsh_activation_type walsh_linear_reads(const struct walsh_queue *q, const struct walsh_linear *linear,
                                              enum walsh_role role);
/* The workspace's activations for the input of `linear`, to be prepared: tiled where the queue's products of all
 * rows want them so. */
struct walsh_activations walsh_linear_input(const struct walsh_queue *q, struct walsh_workspace *ws,
                                            const struct walsh_linear *linear, size_t rows,
                                            enum walsh_role role);
/* True where one preparation of x serves both. */
bool walsh_linear_same_input(const struct walsh_queue *q, const struct walsh_linear *a,
                             const struct walsh_linear *b);

/* y_i = linear_i(x) for each of the list; all have the same `in`. Linears with equal input rotation and
 * activation type share one preparation of x; products that share it run in one dispatch. rows is at most the
 * workspace's. ldx == walsh_activations_stride(in) with x on a 64-byte boundary says that the rows of x are
 * zero from `in` to there: an unrotated f32 product then reads x in place. Adapters read x as it is; `sets`
 * (NULL: none) says which, and the workspace has room for them (walsh_workspace_reserve). */
void walsh_linear_apply(const struct walsh_queue *q, struct walsh_workspace *ws,
                        const struct walsh_linear_call *calls, size_t count, const float *x, size_t ldx,
                        size_t rows, enum walsh_role role, const struct walsh_row_sets *sets);

/* Calls of an expert: linears of the same x, whose rows [begin, begin + rows) they read. */
#define WALSH_GROUP_CALLS 2
struct walsh_linear_group {
    struct walsh_linear_call calls[WALSH_GROUP_CALLS];
    size_t begin, rows;
    uint32_t expert; /* the caller's */
};
/* May the groups go through walsh_linear_apply_groups? Their linears must read x alike but for their signs, and have no
 * low-rank parts of their own; the queue must be the CPU's. */
bool walsh_linear_groups_fit(const struct walsh_queue *q, const struct walsh_linear_group *groups,
                             size_t count, size_t calls);
/* The first `calls` calls of each group, without adapters: as walsh_linear_apply for each of them, bit for bit, but all
 * products in one dispatch, of pieces (linear, outputs, rows), and one preparation where all signs are equal. x[.][ldx] from
 * the first group's first row on. Groups ascend, their rows join and are at most the workspace's; products: [count * calls],
 * scratch. */
void walsh_linear_apply_groups(const struct walsh_queue *q, struct walsh_workspace *ws,
                               const struct walsh_linear_group *groups, size_t count, size_t calls,
                               const float *x, size_t ldx, enum walsh_role role,
                               struct walsh_product *products);

#endif

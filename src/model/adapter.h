/* model/adapter: low-rank updates (LoRA, Hu et al. 2021) of a model's linears in one canonical form:
 *
 *   y = inverse_out(W^·round(forward_in(x)) + sum_i s_i·B'_i(A_i x)) + bias
 *
 * A reads the raw x, so that the op of the product can compute A x beside it; B' writes in rotated output
 * space, so that the product's epilogue can add it before the one inverse; the adapter's own scale is in B'.
 * s_i is the caller's. May use cache and below. */
#ifndef WALSH_MODEL_ADAPTER_H
#define WALSH_MODEL_ADAPTER_H

#include <stdatomic.h>

#include "base/hooks.h"
#include "formats/low_rank.h"
#include "model/model.h"

#define WALSH_MAX_ADAPTERS 16 /* of one set */

/* The update of one linear. Both matrices are as formats/low_rank.h says, 64-byte aligned. */
struct walsh_adapter_linear {
    uint32_t rank;             /* 1..256 */
    uint32_t in;               /* the linear's */
    uint32_t out;              /* rows of B': the linear's padded outputs, weights.rows */
    enum walsh_format storage; /* WALSH_FORMAT_F32 or WALSH_FORMAT_BF16 */
    bool shared_a;             /* another linear that reads the same x has this A too */
    const void *a;             /* [rank][in] */
    const void *b;             /* [out][rank] */
};

/* What the A and B of a source mean, with R_in and R_out the linear's rotations and z its rotated output. */
enum walsh_adapter_convention {
    /* y += scale·B(A x): A [rank][in], B [out][rank]. Every published adapter */
    WALSH_ADAPTER_PEFT,
    /* y += scale·B(A R_in x): A [rank][in padded], B [out][rank]. uzu in April */
    WALSH_ADAPTER_ROTATED_INPUT,
    /* z += scale·B(A x): A [rank][in], B [out padded][rank]. lalamo, uzu since May */
    WALSH_ADAPTER_ROTATED_OUTPUT
};
struct walsh_adapter_source {
    enum walsh_adapter_convention convention;
    uint32_t rank; /* 1..256 */
    double scale;
    const float *a, *b;
    /* Where a is NULL: a linear of the same inputs, rank and storage, whose A is this one's too. */
    struct walsh_adapter_linear *same_a;
};
/* Fold a source into the canonical form: A' = A·R_in for ROTATED_INPUT, B' = scale·R_out·B (with reciprocal
 * signs, which for ±1 are the signs) but for ROTATED_OUTPUT. In double precision, rounded to `storage` once.
 * Memory comes from `arena`. Errors name the linear: rank out of range, a fold that does not fit `storage`, a
 * sign of 0 in R_out. */
enum walsh_status walsh_adapter_linear_build(const struct walsh_linear *linear,
                                             const struct walsh_adapter_source *source,
                                             enum walsh_format storage, struct walsh_arena *arena,
                                             struct walsh_adapter_linear *out, struct walsh_error *err);
/* Elements as f32: row j, column i of A; row o, column j of B'. For tests and for whoever merges. */
float walsh_adapter_a(const struct walsh_adapter_linear *l, size_t j, size_t i);
float walsh_adapter_b(const struct walsh_adapter_linear *l, size_t o, size_t j);

#define WALSH_MODULE_NAME 300
/* out <- the module of a layer's experts as Hugging Face's classes, and so PEFT, call it:
 * "model.layers.0.mlp.experts", also where the checkpoint has another name. The layer has experts. */
void walsh_experts_module(const struct walsh_model_graph *graph, uint32_t layer, char *out, size_t size);

/* The updates of one adapter for one graph. Immutable after open; counted references, from any thread. */
struct walsh_adapter {
    const char *name;                      /* the caller's, unique in a set */
    const char *base_model;                /* what it was trained on; "" unknown */
    const struct walsh_model_graph *graph; /* borrowed: outlives the adapter */
    const struct walsh_linear **linears;   /* [count] by ascending address */
    struct walsh_adapter_linear *updates;  /* [count], of linears[i] */
    size_t count;
    uint64_t parameters; /* values of A and B as stored in the file; an A that two linears share once */
    uint64_t bytes;      /* of all A and B' in memory, padding included */
    struct walsh_arena arena;
    /* where walsh_adapter_upload brought it to a device: what it allocated there, and the queue that knows it
     */
    const struct walsh_queue *device;
    void **device_blocks;
    size_t device_block_count;
    _Atomic unsigned references;
};
struct walsh_adapter_loading {
    bool use_mmap;
    enum walsh_format storage; /* WALSH_FORMAT_BF16 or WALSH_FORMAT_F32 */
};
/* Read a PEFT directory (checkpoint/peft.h) for `graph`. *out has one reference, the caller's. An adapter
 * whose base model's name is not in the path of the graph's directory is a warning to `hooks` (NULL: none);
 * an abort hook is asked once per linear. Nothing but *out is touched, and *out is NULL on failure. */
enum walsh_status walsh_adapter_load(const char *name, const char *directory,
                                     const struct walsh_model_graph *graph,
                                     const struct walsh_adapter_loading *options,
                                     const struct walsh_hooks *hooks, struct walsh_adapter **out,
                                     struct walsh_error *err);
/* Random updates of every projection of the layers (router and head left alone), for measurements. */
enum walsh_status walsh_adapter_synthesize(const char *name, uint32_t rank, uint64_t seed,
                                           const struct walsh_model_graph *graph, enum walsh_format storage,
                                           struct walsh_adapter **out, struct walsh_error *err);
/* Bring A and B' to the device of `queue`, which must outlive the adapter: from here on they are device
 * memory. Nothing where the queue is the CPU's. Before anybody else has a reference. */
enum walsh_status walsh_adapter_upload(struct walsh_adapter *adapter, const struct walsh_queue *queue,
                                       struct walsh_error *err);
struct walsh_adapter *walsh_adapter_retain(struct walsh_adapter *adapter);
/* Frees with the last reference; NULL-safe; *adapter becomes NULL. */
void walsh_adapter_release(struct walsh_adapter **adapter);
/* The adapter's update of one of its graph's linears; NULL: none. */
const struct walsh_adapter_linear *walsh_adapter_find(const struct walsh_adapter *adapter,
                                                      const struct walsh_linear *linear);

/* Adapters that act together on a row, each with its own scale. */
struct walsh_adapter_choice {
    struct walsh_adapter *adapter;
    float scale; /* finite; on top of the scale in B' */
};
/* One update of one linear in a set. */
struct walsh_adapter_term {
    const struct walsh_adapter_linear *update;
    float scale;
};
struct walsh_adapter_set {
    size_t count; /* 1..WALSH_MAX_ADAPTERS */
    struct walsh_adapter_choice choices[WALSH_MAX_ADAPTERS];
    /* The plan: the terms of the linear with index i, in the order of the choices, are
     * terms[first[i]] .. terms[first[i + 1] - 1]. It holds every update of every choice exactly once. */
    const struct walsh_adapter_term *terms;
    const uint32_t *first; /* [linears + 1] */
    size_t linears;
    /* of one row, at the call of the forward pass that needs most: updates, and elements of their h */
    size_t row_updates, row_elements;
    struct walsh_arena arena;
};
/* Takes a reference to each and makes the plan. Errors: none or too many, a name twice, adapters of different
 * graphs, a scale that is not finite, an update that no call of the forward pass would use. */
enum walsh_status walsh_adapter_set_open(const struct walsh_adapter_choice *choices, size_t count,
                                         struct walsh_adapter_set **out, struct walsh_error *err);
void walsh_adapter_set_close(struct walsh_adapter_set **set); /* NULL-safe */
/* The same adapters with the same scales in the same order: rows of the two may be computed as one. */
bool walsh_adapter_set_equal(const struct walsh_adapter_set *a, const struct walsh_adapter_set *b);
/* Have room in the workspace for calls in which every row uses `set` or a smaller one. On failure it is as
 * before. */
enum walsh_status walsh_workspace_reserve(struct walsh_workspace *ws, const struct walsh_adapter_set *set,
                                          struct walsh_error *err);
/* Bytes of all the adapters of some sets, each adapter once. NULL sets count nothing. */
uint64_t walsh_adapter_sets_bytes(const struct walsh_adapter_set *const *sets, size_t count);

#endif

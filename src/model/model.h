/* model: the graph of a checkpoint and its forward pass. One forward serves every backend: it calls only ops.
 * May use cache and below. */
#ifndef WALSH_MODEL_MODEL_H
#define WALSH_MODEL_MODEL_H

#include "base/hooks.h"
#include "cache/kv.h"
#include "kernels/experts.h"
#include "model/linear.h"
#include "text/tokenizer.h"

/* Positions that a graph has tables for at most: config.max_positions of a graph is cut to it
 * (checkpoint.config keeps what the file says), because the tables grow with it and some files name millions.
 */
#define WALSH_MAX_POSITIONS (1u << 17)

struct walsh_expert {
    struct walsh_linear gate, up, down;
};
/* Rotary positions: the first `dim` elements of a head are rotated, cosine and sine [rows][dim/2], row p
 * those of position p; of a longrope in a sequence of at most short_positions tokens, and row
 * config.max_positions + p those in a longer one. */
struct walsh_rope_table {
    uint32_t dim;
    uint32_t rows;            /* config.max_positions; of a longrope twice as many */
    uint32_t short_positions; /* 0: no longrope */
    float *cosine, *sine;
};
struct walsh_layer {
    const float *input_norm, *mlp_norm;                   /* [hidden]: of what attention, the MLP reads */
    const float *attention_output_norm, *mlp_output_norm; /* [hidden] or NULL: of what they add to x */
    uint32_t window;                                      /* tokens that a row attends to; 0: all */
    const struct walsh_rope_table *rope;                  /* NULL: no positions */
    struct walsh_linear q, k, v, o;
    /* a gated short convolution in the place of attention: q is the projection to B, C and v, o the one
     * behind it; k and v have no name */
    const float *conv_weight;           /* [config.conv_taps][hidden]; NULL: the layer attends */
    const float *conv_bias;             /* [hidden] or NULL */
    const float *q_norm, *k_norm;       /* [head_dim] or NULL */
    const float *sinks;                 /* [heads] or NULL: walsh_attention_shape.sinks */
    struct walsh_linear gate, up, down; /* dense; name NULL where the layer has experts */
    struct walsh_linear router;         /* [experts][hidden] */
    struct walsh_expert *experts;       /* [config.experts] or NULL */
    /* the experts' projections together, on a device that has products of such matrices (walsh_graph_upload) */
    struct walsh_expert_matrices all_gates, all_ups, all_downs;
};

/* One weight matrix or vector of a graph, for reports. */
struct walsh_graph_tensor {
    const char *name; /* "model.layers.0.mlp.up_proj.weight" */
    const char
        *part; /* "embedding" | "attention" | "conv" | "mlp" | "experts" | "router" | "norm" | "head" */
    uint32_t rows, cols;                 /* logical; a vector is [n][1] */
    const struct walsh_linear *linear;   /* NULL: embedding, norms, biases */
    const struct walsh_weights *weights; /* NULL: an f32 vector */
    double bits;                         /* of its codes or values, padding included, scales not */
};
/* Sums over a graph's tensors. "Linears" are the projections of the layers: without router, embedding and
 * head. */
struct walsh_graph_totals {
    uint64_t parameters; /* logical weights, tied ones once */
    uint64_t linear_parameters;
    double linear_bits; /* stored code or value bits of the linears, padding included, scales not */
    /* Read by a decode step of one row, with k of the experts and one row of the embedding; and how many
     * weights it multiplies with, those of the head included. */
    uint64_t decode_bytes, decode_weights;
    uint64_t head_weights;
};

struct walsh_model_graph {
    struct walsh_checkpoint checkpoint; /* keeps the mapping alive; zeroed for a synthetic model */
    struct walsh_config config;
    struct walsh_generation_config generation;
    struct walsh_tokenizer *tokenizer; /* NULL: synthetic, or opened without one */
    int32_t *tokenless; /* [tokenless_count]: ids of the vocabulary that the tokenizer has no token for
                           (rows that pad the embedding), ascending */
    size_t tokenless_count;
    struct walsh_weights embedding; /* [vocab][hidden] */
    struct walsh_layer *layers;
    const float *final_norm;
    struct walsh_linear head;                 /* shares embedding's data where tied */
    struct walsh_rope_table rope, local_rope; /* the layers', by windowed layers where those have their own */
    bool *windowed;                           /* [layers], for walsh_kv_shape; NULL: no layer has a window */
    bool *conv;                               /* [layers], the same; NULL: no layer is a convolution */
    struct walsh_arena arena;                 /* everything repacked or converted */
    struct walsh_graph_tensor *tensors;       /* in the order of use */
    size_t tensor_count;
    struct walsh_graph_totals totals;
    double load_seconds;
    /* where walsh_graph_upload brought it to a device: the queue, and the one block there that holds it all */
    const struct walsh_queue *device;
    void *device_memory;
    size_t device_bytes;
};

struct walsh_load_options {
    bool use_mmap;
    bool tokenizer;                            /* read tokenizer.json too: missing is an error ... */
    bool tokenizer_optional;                   /* ... unless this is set */
    enum walsh_activation_type rotated, dense; /* activation type of rotated and of dense linears */
};
/* Open the directory, build every layer through the table of architectures, check that every tensor was used.
 */
enum walsh_status walsh_graph_open(const char *directory, const struct walsh_load_options *options,
                                   const struct walsh_queue *queue, struct walsh_model_graph **out,
                                   struct walsh_error *err);
void walsh_graph_close(struct walsh_model_graph **graph);
/* Bring what the forward pass reads to the device of `queue`, which must outlive the graph: from here on
 * weights, rotations' signs, norms, biases and the rope tables are device memory, and only ops of this queue
 * may read them. Weights that were only found (walsh_linear_find) are read from their files meanwhile, through the
 * queue's two buffers. Nothing where the queue is the CPU's. WALSH_E_UNSUPPORTED for what has no kernels there;
 * WALSH_E_MEMORY with both figures: either before the first byte is read. */
enum walsh_status walsh_graph_upload(struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                     struct walsh_error *err);
/* What is added to a position to have its row of the rope tables in a sequence that may grow to `capacity`
 * tokens: 0, or config.max_positions in a longrope's long sequences. */
uint32_t walsh_graph_rope_offset(const struct walsh_model_graph *graph, uint32_t capacity);
/* An end-of-sequence id of generation_config.json or of config.json. */
bool walsh_graph_is_eos(const struct walsh_model_graph *graph, int32_t id);

/* Rows of one forward call, all of one role. PREFILL: those of a sequence stand together and have consecutive
 * positions; rows of a packed cache, and rows on a device, are of one sequence. */
struct walsh_rows {
    enum walsh_role role;
    size_t count;
    const struct walsh_kv_view *const
        *kv; /* [count] view of the layer being run is kv[i] + layer index (views are [layers]) */
    const uint32_t *positions; /* [count], memory of the queue */
    const uint32_t *rope_rows; /* [count] of the rope tables; NULL: positions */
    /* What rope_rows adds to positions, where that is the same for all rows; `mixed`: it is not. */
    uint32_t rope_offset;
    bool rope_mixed;
    /* [count] where the queue is a device's: kv there, in its memory; else NULL */
    const struct walsh_kv_view *const *op_kv;
    struct walsh_row_sets sets; /* the rows' adapters */
    uint32_t
        most_tokens; /* of a row's cache, its own with them; 0: not known (positions may be a device's memory) */
};

/* What an op of attention is told of the rows' caches of a layer. */
struct walsh_kv_kinds walsh_rows_kinds(const struct walsh_rows *rows, uint32_t layer);

/* Where calibration looks: raw inputs of linears, before rotation and rounding. */
enum walsh_tap_point {
    WALSH_TAP_ATTENTION, /* q, k, v; the first projection of a convolution */
    WALSH_TAP_OUTPUT,    /* o; the other one */
    WALSH_TAP_MLP,       /* gate, up (dense) */
    WALSH_TAP_DOWN,      /* down (dense) */
    WALSH_TAP_EXPERT,    /* gate, up of one expert */
    WALSH_TAP_EXPERT_DOWN
};
struct walsh_tap {
    void *user;
    /* x [rows][ldx], `cols` used; `expert` is 0 for dense points. */
    void (*input)(void *user, enum walsh_tap_point point, uint32_t expert, const float *x, size_t ldx,
                  size_t rows, size_t cols);
    bool skip_last; /* the caller wants the inputs only: leave out the last product (down) and its residual */
};

/* Scratch for up to max_rows rows of this graph on this queue, which is borrowed. */
enum walsh_status walsh_workspace_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                       size_t max_rows, struct walsh_workspace **out,
                                       struct walsh_error *err);
/* True where a forward of such rows only enqueues: none of its layers asks a device which experts rows chose. */
bool walsh_layers_enqueue(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                          enum walsh_role role, const struct walsh_row_sets *sets);
/* What a forward met and could not return (copies to and from a device), once. */
enum walsh_status walsh_workspace_check(struct walsh_workspace *workspace, struct walsh_error *err);
void walsh_workspace_close(struct walsh_workspace **ws);

/* x [rows.count][hidden] <- layer(x). `kv_layer` indexes the kv views (a calibration cache has one layer).
 * `layer` need not be graph->layers[i]: the quantizer runs replaced ones. tap may be NULL. */
void walsh_layer_forward(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                         const struct walsh_layer *layer, uint32_t kv_layer, float *x,
                         const struct walsh_rows *rows, struct walsh_workspace *ws,
                         const struct walsh_tap *tap);
/* x [rows.count][hidden] <- all layers, with the bits of walsh_layer_forward on each. */
void walsh_layers_forward(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x,
                          const struct walsh_rows *rows, struct walsh_workspace *ws);
/* x [count][hidden] <- embedding rows. */
void walsh_embed(const struct walsh_model_graph *graph, const struct walsh_queue *q, const int32_t *ids,
                 size_t count, float *x);
/* logits [count][vocab] of x [count][hidden] (final norm and head); x is overwritten. sets: the rows'
 * adapters, NULL: none. */
void walsh_logits(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x, size_t count,
                  enum walsh_role role, const struct walsh_row_sets *sets, struct walsh_workspace *ws,
                  float *logits);

/* Random weights in the given format, for measurements (see walsh_model_synthesize). format: BF16, E8P
 * with `bits`, or a block format. head_int8: a head of int8 codes with a scale per row, rotated on its input
 * side, for a config whose embeddings are not tied. */
enum walsh_status walsh_graph_synthesize(const struct walsh_config *config, enum walsh_format format,
                                         unsigned bits, bool head_int8, uint64_t seed,
                                         const struct walsh_load_options *options,
                                         const struct walsh_queue *queue, struct walsh_model_graph **out,
                                         struct walsh_error *err);

#endif

/* train/layer: one decoder layer forward, with what its gradient needs kept, and back. The forward computes
 * what model/layer.c computes, by the same ops, over packed documents instead of a cache. May use model and
 * below. */
#ifndef WALSH_TRAIN_LAYER_H
#define WALSH_TRAIN_LAYER_H

#include "model/model.h"
#include "train/attention.h"
#include "train/lora.h"
#include "train/products.h"
#include "train/rows.h"

/* What the backward pass of a layer reads of its forward, besides its input. [rows] unless said; slots: rows,
 * of experts rows * k.
 */
enum walsh_tape_list {
    WALSH_LIST_QKV,
    WALSH_LIST_OUT,
    WALSH_LIST_GATE_UP,
    WALSH_LIST_DOWN,
    WALSH_TAPE_LISTS
};
struct walsh_tape {
    float *query, *key, *value; /* [heads or kv_heads * head_dim], as attention reads them */
    float *raw_query, *raw_key; /* before their norms; NULL: none */
    float *attention;           /* [heads * head_dim] */
    float *lse;                 /* [heads][rows] */
    float *mixed; /* of a short convolution: [3 * hidden], its input projection; NULL: no layer is one */
    float *attention_delta; /* [hidden], o's output before its norm; NULL: none */
    float *middle;          /* [hidden]: x between attention and MLP */
    float *gate, *up;       /* [slots][wide] */
    float *mlp_delta;       /* [hidden], before its norm; NULL: none */
    float *router_logits;   /* experts: [experts] */
    int32_t *expert_index;  /* [k] */
    float *expert_weight;   /* [k] */
    float *expert_output;   /* [slots][hidden] */
    /* inner values of the updates, where they are bf16: of q, k and v; of o; of gate and up; of down */
    uint16_t *inner[WALSH_TAPE_LISTS];
    uint16_t *inputs
        [WALSH_TAPE_LISTS]; /* and what those read, rounded: [rows or slots][walsh_activations_stride] */
    void *device_block;     /* what all of it stands in, on a device */
};

/* Slots sorted by expert: [begin[e], begin[e + 1]) are expert e's. Made again from expert_index. */
struct walsh_slots {
    uint32_t *begin, *row, *of_row; /* [experts + 1], [slots]: whose row, [rows][k]: a row's k-th slot */
    int32_t *index;                 /* [slots], the host's expert_index of a device */
    uint32_t *device;               /* on a device, its memory: row, and of_row behind it */
};

/* The rows of one call. */
struct walsh_train_rows {
    size_t count;
    const uint32_t *positions; /* [count], from 0 in each document; memory of the queue */
    struct walsh_documents documents;
};

/* Buffers that all layers use in turn, for max_rows rows. */
struct walsh_layers {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    struct walsh_products products;
    const struct walsh_lora *const
        *loras; /* [linears of the graph] by walsh_linear.index; NULL: not trained */
    size_t max_rows;
    uint32_t max_rank;
    bool narrow; /* updates are computed in bf16, from the rows that the products read too */
    uint16_t *rounded[WALSH_SITE_CALLS - 1]; /* dy of each call; [slots][stride of what it holds] */
    float *sine[2];                          /* negated, of graph->rope and local_rope */
    void *device_block;                      /* what the buffers stand in, on a device */
    enum walsh_status
        status; /* what a device failed with where a layer has to ask it something, the first time */
    struct walsh_error error;
    float *normed, *dnormed, *delta; /* [max_rows][hidden] */
    float *dquery, *dkey, *dvalue, *dattention;
    float *dmixed;               /* [max_rows][3 * hidden]; NULL: no layer is a convolution */
    float *wide, *dgate, *dup;   /* [slots][wide] */
    float *gathered, *dgathered; /* [slots][hidden] */
    float *dweight, *dlogits;    /* [max_rows][k], [max_rows][experts] */
    struct walsh_slots slots;
    void *sorted_slots;              /* of a device that sorts them itself: walsh_expert_ops.slots_bytes */
    struct walsh_frozen_site *sites; /* [experts, or 1]: of a list of linears */
    struct walsh_lora_site *updates; /* theirs */
    float *scratch;                  /* of attention's and the updates' backward */
    struct walsh_arena arena;
};
struct walsh_layers_options {
    enum walsh_activation_type compute;
    enum walsh_strategy strategy; /* of products with packed weights */
    bool panels;                  /* kept, of bf16 weights */
    size_t max_rows;
    uint32_t max_rank;
    bool narrow;                           /* the updates have pairs, compute is BF16 */
    const struct walsh_lora *const *loras; /* borrowed */
};
enum walsh_status walsh_layers_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                    const struct walsh_layers_options *options, struct walsh_layers *out,
                                    struct walsh_error *err);
void walsh_layers_close(struct walsh_layers *l); /* safe on a zeroed struct */
size_t walsh_layers_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                          const struct walsh_layers_options *options);

/* A tape for max_rows rows, in the arena or on the queue's device; its bytes. */
enum walsh_status walsh_tape_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                  const struct walsh_layers_options *options, struct walsh_arena *arena,
                                  struct walsh_tape *out, struct walsh_error *err);
void walsh_tape_close(const struct walsh_queue *queue,
                      struct walsh_tape *tape); /* what the arena does not hold */
size_t walsh_tape_bytes(const struct walsh_model_graph *graph, const struct walsh_layers_options *options);

/* Fills the tape of x [rows][hidden]. With `middle`, that of the layer before, x is written first: what that layer left. The
 * layer's own y is left in two parts: walsh_train_layer_sum, or the next layer, which reads it anyway, adds them. */
void walsh_train_layer_forward(struct walsh_layers *l, const struct walsh_layer *layer,
                               const struct walsh_train_rows *rows, float *x, const float *middle,
                               struct walsh_tape *tape);
/* y[rows][hidden] of the layer that ran last. */
void walsh_train_layer_sum(const struct walsh_layers *l, const struct walsh_tape *tape, size_t rows,
                           float *y);
/* d[rows][hidden], the gradient of y, becomes that of x (with `last`, of the layer that runs last and whose x
 * is not wanted, it is scratch); gradients of the layer's updates are added to. The layer that runs first wants
 * walsh_train_round_gradient of d before it; each leaves its d so for the next. */
void walsh_train_layer_backward(struct walsh_layers *l, const struct walsh_layer *layer,
                                const struct walsh_train_rows *rows, const float *x, struct walsh_tape *tape,
                                float *d, bool last);

void walsh_train_round_gradient(const struct walsh_layers *l, const float *d, size_t rows);

/* For layer.c and experts.c. Where updates are narrow: rows x[n], all that a list of linears reads, rounded to the tape. */
void walsh_train_round_input(const struct walsh_layers *l, const struct walsh_tape *tape,
                             enum walsh_tape_list list, const float *x, size_t rows, size_t n);
/* The linears of a list of sites read x[.][ldx], and where updates are narrow what the tape holds of it, rounded; with their
 * updates, whose inner values `list` of the tape keeps. */
void walsh_train_linears(struct walsh_layers *l, struct walsh_frozen_site *sites, size_t count,
                         const float *x, size_t ldx, struct walsh_tape *tape, enum walsh_tape_list list);
/* The same back: y of a call is its dy, whose caller may have rounded it for all sites (rows of the first site's call). dx = the sum over a site's calls, or is left alone where NULL. x is read where updates
 * are not narrow; else the tape has it. */
void walsh_train_linears_backward(struct walsh_layers *l, struct walsh_frozen_site *sites, size_t count,
                                  const float *x, size_t ldx, float *dx, size_t lddx, struct walsh_tape *tape,
                                  enum walsh_tape_list list);
/* Updates in bf16, whose inner values are there, become part of the frozen products: forward those with B, back those with
 * A^T, each A once. */
void walsh_join_updates(struct walsh_frozen_site *sites, const struct walsh_lora_site *updates, size_t count,
                        bool back);
/* [slots][n] = gate(tape->gate) * tape->up. */
void walsh_train_gate(struct walsh_layers *l, const struct walsh_tape *tape,
                      const struct walsh_row_output *to, size_t slots, size_t n);
/* delta[rows][hidden] = the mixture's output of normed. */
void walsh_train_experts_forward(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                 const float *normed, struct walsh_tape *tape, float *delta);
/* dnormed[rows][hidden] (overwritten) of d, the gradient of delta. */
void walsh_train_experts_backward(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                  const float *normed, struct walsh_tape *tape, const float *d,
                                  float *dnormed);

#endif

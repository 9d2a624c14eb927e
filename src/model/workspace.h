/* model/workspace: the scratch of a forward call. Private to model/. */
#ifndef WALSH_MODEL_WORKSPACE_H
#define WALSH_MODEL_WORKSPACE_H

#include "kernels/device.h"
#include "model/model.h"

/* Row strides marked `ld` are walsh_activations_stride of the width, the tail zero and never written: such a
 * buffer is the input of an unrotated f32 product without a copy. The other buffers are dense. */
struct walsh_workspace {
    const struct walsh_queue *queue; /* borrowed; whose memory the buffers of the ops are */
    size_t max_rows;
    float *normed; /* [max_rows][normed_ld] of hidden: what q, k, v, gate, up and the router read */
    size_t normed_ld;
    float *query, *key, *value; /* [max_rows][heads or kv_heads * head_dim] */
    float *mixed;               /* [max_rows][3 * hidden]: of a convolution; NULL: the model has none */
    float *attention;           /* [max_rows][attention_ld] of heads * head_dim */
    size_t attention_ld;
    float *gate, *up; /* [slots][gate_ld] of intermediate; slots: max_rows, of experts max_rows * k */
    size_t gate_ld;
    float *delta;                     /* [slots][hidden]: what a residual adds */
    struct walsh_attention_row *rows; /* [max_rows] */
    /* A prompt's chunk before it is packed, of the layer that runs: one F16 page of max_rows tokens. */
    struct walsh_kv_view own;
    void *own_pages[2]; /* keys, values */

    /* one set of prepared activations; scale and sum: for the rows of any type */
    void *activations;
    float *scale;
    int32_t *sum;
    /* rotated products before unrotate: [rows][walsh_z_stride(outputs)] each */
    float *z;
    size_t z_elements;

    /* low-rank updates of one call, as many as walsh_workspace_reserve was asked for; NULL before */
    struct walsh_low_rank_down *downs; /* [updates] */
    struct walsh_low_rank_up *ups;     /* [updates] */
    float *h;                          /* [h_elements] */
    size_t updates, h_elements;
    size_t own_updates, own_elements;  /* of them the most that the linears' own low-rank parts need */
    struct walsh_row_set *expert_sets; /* [max_rows] */

    /* experts; NULL where the model has none */
    float *router_logits;                /* [max_rows][experts] */
    int32_t *expert_index;               /* [max_rows][k], as routed */
    int32_t *chosen;                     /* the same in host memory */
    float *expert_weight;                /* [max_rows][k] */
    uint32_t *expert_begin;              /* [experts + 1]: the slots of expert e are [begin[e], begin[e+1]) */
    uint32_t *slot_row;                  /* [max_rows * k]: the row that a slot computes */
    uint32_t *row_slot;                  /* [max_rows][k]: the slot of a row's k-th expert */
    uint32_t *op_slot_row, *op_row_slot; /* both where the ops read them */
    float *gathered;                     /* [max_rows][normed_ld]: the rows of some experts */
    struct walsh_linear_group *groups;   /* [experts]: experts that run together */
    struct walsh_product *expert_products; /* [experts * WALSH_GROUP_CALLS] */
    /* on a device whose products find the router's answer themselves (experts_queue.c); else NULL */
    void *
        slot_data; /* [slots][walsh_activations_stride(expert_intermediate)]: what down reads, int8 or bf16 */
    float *slot_scale; /* of them as INT8_GROUPS */
    int32_t *slot_sum;
    uint32_t *slots_in_order; /* [slots]: 0, 1, 2 ... */
    void *sorted_slots;       /* walsh_expert_ops.slots_bytes */
    /* of what experts copy to and from a device: a forward has no result to return */
    struct walsh_error failure;
};

/* Row stride of a rotated product, in elements. Rows of a prompt a large power of two apart would share a few
 * sets of each cache: what a piece of a product writes would not stay there for the update that is added to
 * it. */
static inline size_t walsh_z_stride(size_t outputs)
{
    return outputs % 256 == 0 ? outputs + WALSH_ALIGNMENT / sizeof(float) : outputs;
}

/* Room for the linears' own low-rank parts. */
enum walsh_status walsh_workspace_reserve_own(struct walsh_workspace *ws,
                                              const struct walsh_model_graph *graph, struct walsh_error *err);

#endif

/* train/pass: the loss of packed documents and its gradient with respect to the trained updates: embedding,
 * layers, head, and back. May use model and below. */
#ifndef WALSH_TRAIN_PASS_H
#define WALSH_TRAIN_PASS_H

#include "train/layer.h"

/* Rows of one call. Row i predicts targets[i]; -1: its loss does not count. */
struct walsh_train_batch {
    const int32_t *ids, *targets; /* [rows] */
    struct walsh_documents documents;
    size_t rows;
};

struct walsh_pass_options {
    struct walsh_layers_options layers;
    bool checkpoint; /* keep each layer's input only, and run its forward again before its backward */
    bool forward_only;
};
struct walsh_pass {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    struct walsh_layers layers;
    struct walsh_products head;
    struct walsh_tape *tapes;         /* [layers], or one */
    float **states;                   /* [layers + 1]: the layers' inputs, [max_rows][hidden] each */
    float *last, *normed, *logits;    /* [head_rows][hidden] twice, [head_rows][vocab] */
    size_t head_rows;                 /* rows whose logits exist at a time */
    uint32_t *positions, *selected;   /* [max_rows]; rows with a target */
    int32_t *targets;                 /* [max_rows], of the selected */
    double *losses;                   /* [max_rows], of the selected */
    size_t tape_count, state_count;   /* of those that are not one another */
    struct walsh_pass_device *device; /* what the ops read of the above, where the queue has a device; NULL */
    bool checkpoint, forward_only;
    struct walsh_arena arena;
};
/* WALSH_E_UNSUPPORTED, by name: what training on the queue's device does not know of this graph. Nothing on the CPU. */
enum walsh_status walsh_pass_check(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                   struct walsh_error *err);
enum walsh_status walsh_pass_open(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                                  const struct walsh_pass_options *options, struct walsh_pass *out,
                                  struct walsh_error *err);
void walsh_pass_close(struct walsh_pass *pass); /* safe on a zeroed struct */
/* Bytes that walsh_pass_open will allocate. */
size_t walsh_pass_bytes(const struct walsh_model_graph *graph, const struct walsh_queue *queue,
                        const struct walsh_pass_options *options);

/* *loss: the sum of the negative log-likelihoods (nats) of the rows with a target, *count how many. Unless
 * the pass is forward_only, the gradient of weight * *loss is added to the updates' gradients. Ids and
 * targets are range-checked by the caller. Errors are a device's. */
enum walsh_status walsh_pass_run(struct walsh_pass *pass, const struct walsh_train_batch *batch, float weight,
                                 double *loss, size_t *count, struct walsh_error *err);

#endif

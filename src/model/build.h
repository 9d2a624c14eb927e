/* model/build: the one walk over what a model of a config holds. A source says where the weights come from: a
 * checkpoint (graph.c) or a random generator (synthesize.c). Private to model/. */
#ifndef WALSH_MODEL_BUILD_H
#define WALSH_MODEL_BUILD_H

#include "model/model.h"

/* What a linear is, where that changes how it is loaded. */
enum walsh_linear_role {
    WALSH_LINEAR_LAYER,  /* a projection of attention, MLP or expert: dense or quantized */
    WALSH_LINEAR_OUTPUT, /* the same; a tensor-parallel engine splits its inputs: o, down */
    WALSH_LINEAR_ROUTER, /* dense; its input is never rounded */
    WALSH_LINEAR_HEAD    /* dense */
};

struct walsh_source {
    /* Fill *linear, y = W[out][in] x (+ bias), from module `name`, or a fusion's rows (NULL: none); the names
     * are not kept. */
    enum walsh_status (*linear)(struct walsh_source *source, const char *name,
                                const struct walsh_fusion *fusion, enum walsh_linear_role role, uint32_t in,
                                uint32_t out, bool bias, struct walsh_linear *linear,
                                struct walsh_error *err);
    /* *weight: [taps][channels] f32 of the convolution `name`, stored [channels][1][taps], in the graph's
     * arena; *kernel_bias: [channels] where `bias`. NULL: the source has no convolutions. */
    enum walsh_status (*conv)(struct walsh_source *source, const char *name, uint32_t channels, uint32_t taps,
                              bool bias, const float **weight, const float **kernel_bias,
                              struct walsh_error *err);
    /* *values: [n] f32 of tensor `name`, in the graph's arena. */
    enum walsh_status (*vector)(struct walsh_source *source, const char *name, uint32_t n, float **values,
                                struct walsh_error *err);
    /* *table: dense [rows][cols] of module `name`. */
    enum walsh_status (*table)(struct walsh_source *source, const char *name, uint32_t rows, uint32_t cols,
                               struct walsh_weights *table, struct walsh_error *err);
};

/* Fill embedding, layers, final norm, head and rope tables of a graph whose config is set. Tied embeddings:
 * the head has the embedding's data and the activation type that `dense` says. */
enum walsh_status walsh_graph_build(struct walsh_model_graph *graph, struct walsh_source *source,
                                    enum walsh_activation_type dense, struct walsh_pool *pool,
                                    struct walsh_error *err);

/* Fill tensors and totals of a graph that is complete otherwise. */
enum walsh_status walsh_graph_list(struct walsh_model_graph *graph, struct walsh_error *err);

/* The activation type of a linear of this format where rotated and dense ones have these: what the product op
 * knows. */
enum walsh_activation_type walsh_linear_activation(enum walsh_format format,
                                                   enum walsh_activation_type rotated,
                                                   enum walsh_activation_type dense);

#endif

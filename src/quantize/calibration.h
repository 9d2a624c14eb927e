/* quantize/calibration: the calibration sequences on their way through the layers. Private to quantize/. */
#ifndef WALSH_QUANTIZE_CALIBRATION_H
#define WALSH_QUANTIZE_CALIBRATION_H

#include "model/model.h"
#include "quantize/hessian.h"

/* The linears of a layer that read one input, and that input's Hessian. */
struct walsh_input_group {
    enum walsh_tap_point point;
    uint32_t expert;
    struct walsh_linear *linears[3]; /* borrowed from the layer */
    unsigned count;
    struct walsh_hessian hessian; /* sum NULL: not collected */
};
/* The groups of a layer, in the model's order: *groups [*count], walsh_free. */
enum walsh_status walsh_layer_groups(const struct walsh_model_graph *graph, struct walsh_layer *layer,
                                     struct walsh_input_group **groups, size_t *count,
                                     struct walsh_error *err);
void walsh_groups_close_hessians(struct walsh_input_group *groups, size_t count);

struct walsh_calibration {
    const struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    const struct walsh_queue *device; /* where Hessians are summed; NULL: on the host */
    const struct walsh_hooks *hooks;
    uint32_t samples, tokens;
    float *x; /* [samples][tokens][hidden]: the inputs of the layer that is next */
    /* of one sequence */
    struct walsh_kv_cache *kv; /* one layer */
    struct walsh_workspace *workspace;
    const struct walsh_kv_view **views;
    uint32_t *positions, *rope_rows; /* [tokens] */
    float *scratch;                  /* [tokens][hidden] */
    double forward_seconds, hessian_seconds;
};
/* Encode the text and embed `samples` sequences of `tokens` tokens spread evenly over it; fewer where the
 * text is short, with a warning. *fingerprint: a hash of the chosen ids. */
enum walsh_status walsh_calibration_open(const struct walsh_model_graph *graph,
                                         const struct walsh_queue *queue, const struct walsh_hooks *hooks,
                                         const char *path, uint32_t samples, uint32_t tokens,
                                         struct walsh_calibration *out, uint64_t *fingerprint,
                                         struct walsh_error *err);
void walsh_calibration_close(struct walsh_calibration *c); /* safe on a zeroed struct */

/* What a caller hears of a pass: `done` of its sequences, 0..1. */
typedef void walsh_pass_progress(void *user, double done);

/* Run `layer` over all sequences, leave x alone, collect the groups' Hessians. */
enum walsh_status walsh_calibration_observe(struct walsh_calibration *c, const struct walsh_layer *layer,
                                            struct walsh_input_group *groups, size_t count,
                                            walsh_pass_progress *progress, void *user,
                                            struct walsh_error *err);
/* x <- layer(x). */
enum walsh_status walsh_calibration_advance(struct walsh_calibration *c, const struct walsh_layer *layer,
                                            walsh_pass_progress *progress, void *user,
                                            struct walsh_error *err);

#endif

/* model/layer: what the files of a layer's forward pass share. Private to model/. */
#ifndef WALSH_MODEL_LAYER_H
#define WALSH_MODEL_LAYER_H

#include "model/model.h"
#include "model/workspace.h"

/* Show x to the tap; nothing where there is none. */
void walsh_tap_input(const struct walsh_tap *tap, enum walsh_tap_point point, uint32_t expert, const float *x,
                     size_t ldx, size_t rows, size_t cols);

/* Heads, scale, window and cap of a layer's attention. */
struct walsh_attention_shape walsh_attention_shape_of(const struct walsh_config *config,
                                                      const struct walsh_layer *layer);

/* All layers by fused ops, with the bits of walsh_layer_forward on each; false: nothing was done, because the
 * queue has no fused ops for some layer. */
bool walsh_layers_fused(const struct walsh_model_graph *graph, const struct walsh_queue *q, float *x,
                        const struct walsh_rows *rows, struct walsh_workspace *ws);

/* ws->gate = gate(ws->gate) * ws->up, rows of n. */
void walsh_gate(const struct walsh_config *config, const struct walsh_queue *q, struct walsh_workspace *ws,
                size_t rows, size_t n);

/* The mixture of experts of a layer: x [rows][hidden] += sum over a row's k experts of weight *
 * expert(ws->normed). */
void walsh_experts_block(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                         const struct walsh_layer *layer, float *x, const struct walsh_rows *rows,
                         struct walsh_workspace *ws, const struct walsh_tap *tap);

/* experts_queue.c: experts whose products find the router's answer on the device, with the bits of one by one in decode; in
 * prefill by bf16. False: there are no such products for the layer, or rows have updates of its experts. */
bool walsh_experts_enqueue(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                           const struct walsh_layer *layer, enum walsh_role role,
                           const struct walsh_row_sets *sets);
/* x += the mixture, of what the router left in the workspace. */
void walsh_experts_enqueued(const struct walsh_model_graph *graph, const struct walsh_queue *q,
                            const struct walsh_layer *layer, float *x, const struct walsh_rows *rows,
                            struct walsh_workspace *ws);

#endif

/* train/experts: what the two ways through a mixture share. Private to train/. */
#ifndef WALSH_TRAIN_EXPERTS_H
#define WALSH_TRAIN_EXPERTS_H

#include "train/layer.h"

/* Has the device products of all experts of the layer, and of their updates? Then between the router and its gradient the
 * mixture is these two; else it goes expert by expert. */
bool walsh_experts_train_together(const struct walsh_layers *l, const struct walsh_layer *layer);
void walsh_experts_forward_together(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                    const float *normed, struct walsh_tape *t, float *delta);
void walsh_experts_backward_together(struct walsh_layers *l, const struct walsh_layer *layer, size_t rows,
                                     struct walsh_tape *t, const float *d, float *dnormed);

#endif

/* train/device: the products of training on a device: what products.h and lora.h say, by the device's ops (kernels/train.h). May
 * use model and below. */
#ifndef WALSH_TRAIN_DEVICE_H
#define WALSH_TRAIN_DEVICE_H

#include "kernels/device.h"
#include "kernels/train.h"
#include "train/lora.h"
#include "train/products.h"

/* The ops of a device's queue; NULL: the queue is the CPU's. */
static inline const struct walsh_train_ops *walsh_train_device(const struct walsh_queue *q)
{
    return q->memory ? q->ops->train : NULL;
}

/* One site of walsh_frozen_forward and walsh_frozen_backward. Packed weights are decoded first, whatever the strategy. */
void walsh_device_forward(struct walsh_products *p, const struct walsh_frozen_site *site, const float *x,
                          size_t ldx);
void walsh_device_backward(struct walsh_products *p, const struct walsh_frozen_site *site, float *dx,
                           size_t lddx, bool add);

/* One site of the calls of lora.h. `inner` [WALSH_LORA_CALLS]: of each first call of an A, [rows][rank] in f32 or, in bf16,
 * [rows][walsh_lora_inner_width]; h of the forward, g = s B^T dy of the backward. */
void walsh_device_lora_forward(const struct walsh_queue *q, const struct walsh_lora_site *site,
                               const float *x, size_t ldx, float *inner);
void walsh_device_lora_backward(const struct walsh_queue *q, const struct walsh_lora_site *site,
                                const float *x, size_t ldx, float *dx, size_t lddx, float *inner);
void walsh_device_lora_inner(const struct walsh_queue *q, const struct walsh_lora_site *site,
                             const uint16_t *x, size_t ldx);
void walsh_device_lora_inner_backward(const struct walsh_queue *q, const struct walsh_lora_site *site,
                                      float *sums);
void walsh_device_lora_gradients(const struct walsh_queue *q, const struct walsh_lora_site *site,
                                 const uint16_t *x, size_t ldx);

#endif

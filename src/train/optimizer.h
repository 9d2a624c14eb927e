/* train/optimizer: AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization"), clipping by
 * the norm of the whole gradient, and schedules of the learning rate. May use base, kernels. */
#ifndef WALSH_TRAIN_OPTIMIZER_H
#define WALSH_TRAIN_OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum walsh_schedule { WALSH_SCHEDULE_CONSTANT, WALSH_SCHEDULE_LINEAR, WALSH_SCHEDULE_COSINE };

struct walsh_adamw {
    double beta1, beta2, epsilon, weight_decay;
    double clip;    /* largest norm of the gradient; 0: any */
    uint64_t steps; /* done */
    float *m, *v;   /* [count], borrowed, memory of the queue */
    double *length; /* a device's, one of it, borrowed; not read on the CPU */
    size_t count;
};
/* values -= rate * (m^ / (sqrt(v^) + epsilon) + weight_decay * values), m^ and v^ the bias-corrected means of
 * the gradient, scaled down first to a norm of `clip`, and of its square. *length: the norm before that; where
 * it is not a number nothing is changed. Element by element in double; the norm's sum in fixed blocks. Errors are a device's. */
enum walsh_status walsh_adamw_step(struct walsh_adamw *o, const struct walsh_queue *q, float *values,
                                   const float *gradients, double rate, double *length,
                                   struct walsh_error *err);

/* The factor of the learning rate for step `step` (from 0) of `steps`: rises linearly over `warmup` steps,
 * (step + 1) / warmup, then from 1 at its end to `last` at `steps`: along a line or half a cosine, or stays.
 */
double walsh_schedule_factor(enum walsh_schedule schedule, uint64_t step, uint64_t steps, uint64_t warmup,
                             double last);

#endif

/* kernels/cpu: the ops on the CPU. Each splits its rows or units over the queue's pool and calls q->kernels;
 * contracts in kernels/kernels.h, struct walsh_ops. */
#ifndef WALSH_KERNELS_CPU_OPS_H
#define WALSH_KERNELS_CPU_OPS_H

#include "kernels/table.h"

extern const struct walsh_ops walsh_cpu_ops;

void walsh_cpu_product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                       const struct walsh_activations *a, enum walsh_role role);

#endif

/* kernels/cpu: the low-rank updates of a product op. Their down parts are units of work that come before the
 * products' pieces in the same dispatch; a piece waits for them only when its own product is done, and then
 * adds the updates of its outputs. */
#ifndef WALSH_KERNELS_CPU_LOW_RANK_H
#define WALSH_KERNELS_CPU_LOW_RANK_H

#include "kernels/cpu/cpu_ops.h"

struct walsh_low_rank_job {
    const struct walsh_queue *queue;
    const struct walsh_low_rank_input *input; /* NULL: none */
    enum walsh_role role;
    size_t units;
    atomic_size_t downs_left; /* whose h is not complete */
};
/* Counts the units. */
void walsh_low_rank_begin(struct walsh_low_rank_job *job, const struct walsh_queue *q,
                          const struct walsh_low_rank_input *input, enum walsh_role role);
/* Unit number `unit` < job->units. */
void walsh_low_rank_unit(struct walsh_low_rank_job *job, size_t unit);
/* Before the product of outputs [begin, end) runs: have their rows of every B come nearer. */
void walsh_low_rank_prefetch(const struct walsh_low_rank_job *job, const struct walsh_product *product,
                             size_t begin, size_t end);
/* Behind it: wait for every h, then update these outputs. */
void walsh_low_rank_add(struct walsh_low_rank_job *job, const struct walsh_product *product, size_t begin,
                        size_t end);

#endif

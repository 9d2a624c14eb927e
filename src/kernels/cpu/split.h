/* kernels/cpu: how ops cut their work for the pool. */
#ifndef WALSH_KERNELS_CPU_SPLIT_H
#define WALSH_KERNELS_CPU_SPLIT_H

#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"

/* A dispatch costs one or two microseconds: a piece holds about this many elements of a light op, so that
 * smaller work stays on the caller. */
#define WALSH_PIECE_ELEMENTS ((size_t)32768)

/* Run `task` over `rows` rows of `n` elements each. */
static inline void walsh_run_rows(const struct walsh_queue *q, size_t rows, size_t n, walsh_task *task,
                                  void *argument)
{
    walsh_pool_run_near(q->pool, rows, walsh_max(1, WALSH_PIECE_ELEMENTS / walsh_max(n, 1)), task, argument);
}

#endif

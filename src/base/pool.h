/* base/pool: a fixed team of threads that runs one index range at a time. Results never depend on the number
 * of threads: a task writes only what its index owns. */
#ifndef WALSH_BASE_POOL_H
#define WALSH_BASE_POOL_H

#include <stddef.h>

#include "base/status.h"

struct walsh_pool;

/* Work on indices [begin, end); `worker` < walsh_pool_threads() names the thread, for scratch memory. */
typedef void walsh_task(void *argument, size_t begin, size_t end, unsigned worker);

/* threads >= 1; the calling thread is worker 0, so threads - 1 are started. */
enum walsh_status walsh_pool_open(unsigned threads, struct walsh_pool **out, struct walsh_error *err);
void walsh_pool_close(struct walsh_pool **pool);            /* joins; NULL-safe; sets *pool to NULL */
unsigned walsh_pool_threads(const struct walsh_pool *pool); /* 1 for NULL */

/* Run `task` over [0, count) in pieces of `grain` indices (0 counts as 1; the last piece may be shorter),
 * claimed dynamically and in ascending order: whoever holds a piece may wait for what an earlier piece does,
 * because that is done or held by a running thread. Returns when all are done. The pieces are [i*grain,
 * (i+1)*grain) whatever the number of threads. Runs on the caller alone where the pool is NULL, has one
 * thread, or count <= grain. One caller at a time; not reentrant from a task. Workers spin briefly between
 * runs, then sleep. Every piece is computed with the same control of floating-point arithmetic (base/float_mode.h), whatever the
 * caller's thread has, which is as before on return. */
void walsh_pool_run(struct walsh_pool *pool, size_t count, size_t grain, walsh_task *task, void *argument);

/* The same, but each thread begins with a share of the pieces, the same part of [0, count) in every such run, and helps with the
 * others' behind it: what runs over the same rows finds them in its own caches, where it would fetch half of them from another core's. No
 * piece may wait for another. */
void walsh_pool_run_near(struct walsh_pool *pool, size_t count, size_t grain, walsh_task *task,
                         void *argument);

/* The CPUs this process may use (affinity mask and cgroup quota), at least 1. */
unsigned walsh_cpu_count(void);
/* CPUs that the text of a cgroup v2 cpu.max file allows ("QUOTA PERIOD", rounded up); 0: no limit ("max
 * 100000"). */
unsigned walsh_cpu_quota(const char *cpu_max);

#endif

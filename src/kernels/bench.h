/* kernels/bench: time every implementation in kernels.def against the roofline of this machine.
 *
 * A kernel NAME needs `void walsh_bench_NAME(struct walsh_bench *b, walsh_kernel_NAME *f)` in a bench_*.c:
 * for a few representative sizes it prepares data in b's arena and calls walsh_bench_run with a closure that
 * calls f once. */
#ifndef WALSH_KERNELS_BENCH_H
#define WALSH_KERNELS_BENCH_H

#include "base/memory.h"
#include "base/random.h"
#include "kernels/table.h"

/* Which ceiling a kernel's rate is held against. */
enum walsh_ceiling { WALSH_CEILING_F32, WALSH_CEILING_INT8, WALSH_CEILING_BF16 };

/* Measured in this process, on the queue's threads (bandwidth) and one thread (rates). */
struct walsh_roofline {
    double read_bandwidth; /* bytes/s, DRAM, all threads */
    double core_bandwidth; /* bytes/s, DRAM, one thread */
    double f32_rate;       /* operations/s (FMA = 2), one thread */
    double int8_rate;      /* operations/s (multiply-add = 2), one thread; 0 where absent */
};

/* One timed case. */
struct walsh_bench_result {
    const char *kernel, *implementation;
    const char *size;         /* "n=4096", "rows=2048 cols=2048" */
    double seconds;           /* median of one call */
    double bytes, operations; /* of one call */
    double ratio;             /* the reference's seconds / seconds; 0 where the reference was not run */
    double roofline; /* fraction of the attainable rate: min(ceiling, bandwidth * operations/bytes) or of
                        bandwidth */
};
typedef void walsh_bench_callback(void *user, const struct walsh_bench_result *result);

struct walsh_bench;
/* The cases' prototypes. */
#define WALSH_KERNEL(name, result, parameters, comparison)                                                        \
    void walsh_bench_##name(struct walsh_bench *b, walsh_kernel_##name *f);
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"

/* Time `run(argument)`, which moves `bytes` and does `operations` each call. `size` is copied. */
void walsh_bench_run(struct walsh_bench *b, const char *size, double bytes, double operations,
                     enum walsh_ceiling ceiling, void (*run)(void *argument), void *argument);
/* Zeroed memory that lives until the kernel's cases are done; NULL (then the case returns) where memory is
 * short. */
void *walsh_bench_alloc(struct walsh_bench *b, size_t bytes);
float *walsh_bench_normal(struct walsh_bench *b, size_t n); /* standard normal numbers, or NULL */

/* All kernels of the list whose name contains `pattern` (NULL: all), every implementation that the machine
 * admits; the roofline goes to *roofline first. */
enum walsh_status walsh_bench_kernels(const char *pattern, const struct walsh_queue *q,
                                      struct walsh_roofline *roofline, walsh_bench_callback *callback,
                                      void *user, struct walsh_error *err);

#endif

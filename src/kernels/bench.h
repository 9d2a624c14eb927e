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

/* Operations/s, 2 of them per multiply-add; 0 where the instruction is absent. */
struct walsh_rates {
    double f32, bf16, int8;
};
/* What this machine can do, measured in this process. Bandwidths are of reading, bytes/s. */
struct walsh_roofline {
    double read_bandwidth;             /* DRAM, all threads of the queue */
    double core_bandwidth;             /* DRAM, one thread */
    double l1_bandwidth, l2_bandwidth; /* one thread */
    struct walsh_rates one, all;       /* of one thread, of all threads of the queue at once */
};
void walsh_roofline_measure(const struct walsh_queue *q, struct walsh_roofline *out);
/* What the bandwidths are measured with: reads x[0..n), n a multiple of 128, and returns something of it. */
typedef float walsh_read_floats(const float *x, size_t n);
walsh_read_floats *walsh_roofline_reader(const struct walsh_queue *q);

/* One timed case. */
struct walsh_bench_result {
    const char *kernel, *implementation;
    const char *size;         /* "n=4096", "rows=2048 cols=2048" */
    double seconds;           /* median of one call */
    double bytes, operations; /* of one call */
    double ratio;             /* the reference's seconds / seconds; 0 where the reference was not run. Of an
                               * op: the first variant's seconds / seconds */
    double roofline; /* share of the binding ceiling, of one thread: the seconds that the operations take at
                      * their rate or the bytes at the bandwidth of the level that holds them, whichever is
                      * longer, / seconds */
};
typedef void walsh_bench_callback(void *user, const struct walsh_bench_result *result);

struct walsh_bench;
/* The cases' prototypes. */
#define WALSH_KERNEL(name, result, parameters, comparison)                                                   \
    void walsh_bench_##name(struct walsh_bench *b, walsh_kernel_##name *f);
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"

/* Time `run(argument)`, which moves `bytes` and does `operations` each call. `size` is copied. */
void walsh_bench_run(struct walsh_bench *b, const char *size, double bytes, double operations,
                     enum walsh_ceiling ceiling, void (*run)(void *argument), void *argument);
/* The same of an op, on all threads of the queue, held against the bandwidth of all of them. The rows of an
 * op follow walsh_bench_begin_op; `implementation` names what is varied, and `first` is the one that the
 * others are held against, size by size. Memory of the variant before is freed. */
void walsh_bench_begin_op(struct walsh_bench *b, const char *op, const char *implementation, bool first);
void walsh_bench_run_op(struct walsh_bench *b, const char *size, double bytes, void (*run)(void *argument),
                        void *argument);
void walsh_bench_op_attention(struct walsh_bench *b, const struct walsh_queue *q);
/* Zeroed memory that lives until the kernel's cases are done; NULL (then the case returns) where memory is
 * short. */
void *walsh_bench_alloc(struct walsh_bench *b, size_t bytes);
float *walsh_bench_normal(struct walsh_bench *b, size_t n); /* standard normal numbers, or NULL */

/* All kernels of the list whose name contains `pattern` (NULL: all), every implementation that q's level
 * admits, on the calling thread; and op_attention, where the pattern asks for it, on all threads. The
 * roofline is measured first. */
void walsh_queue_bench(const struct walsh_queue *q, const char *pattern, struct walsh_roofline *roofline,
                       walsh_bench_callback *callback, void *user);

#endif

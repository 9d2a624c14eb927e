/* kernels/cuda/bench: what the files that measure kernels share. */
#ifndef WALSH_KERNELS_CUDA_BENCH_H
#define WALSH_KERNELS_CUDA_BENCH_H

#include <string.h>

#include "kernels/cuda/backend.h"

#define ROOM ((size_t)4 << 30) /* what weights and rows are cut from */
#define BENCH_SCRATCH ((size_t)1 << 30)

struct bench {
    const struct walsh_queue *q;
    struct cuda_device *d;
    const char *pattern;
    const struct walsh_device_ceilings *ceilings;
    void (*row)(void *user, const struct walsh_device_bench_row *row);
    void *user;
    struct walsh_error *err;
    uint8_t *room;    /* ROOM of random bytes */
    uint8_t *scratch; /* activations, outputs */
};

/* Enqueues call number i. */
typedef void bench_call(const struct bench *b, const void *argument, unsigned i);

/* *seconds: the median of a call, of graphs of `calls` of them. */
enum walsh_status cuda_bench_measure(const struct bench *b, unsigned calls, bench_call *call,
                                     const void *argument, double *seconds);

static inline bool wanted(const struct bench *b, const char *kernel)
{
    return !b->pattern || strstr(kernel, b->pattern);
}

/* bench_experts.c: its rows. */
enum walsh_status cuda_bench_experts(const struct bench *b);

#endif

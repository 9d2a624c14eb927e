/* The checker: every implementation in kernels.def against the scalar reference.
 *
 * A kernel NAME needs a case `void check_NAME(struct check *c, walsh_kernel_NAME *reference,
 * walsh_kernel_NAME *candidate)` in one of this folder's files. The frame calls it several times with
 * c->round counting up; a case draws its data from c, runs both functions on sizes that include tails, on
 * misaligned pointers and poisoned outputs inside guarded buffers, and compares. Every buffer of a round is
 * checked (guards) and released by the frame. */
#ifndef WALSH_TESTS_CHECKER_H
#define WALSH_TESTS_CHECKER_H

#include "base/pool.h"
#include "base/random.h"
#include "kernels/table.h"

#define CHECK_ROUNDS 4

struct check_buffer;
struct check {
    const char *kernel, *implementation;
    uint64_t seed;
    unsigned round; /* 0..CHECK_ROUNDS-1 */
    unsigned failures;
    double worst; /* largest error seen, in units of check_close_f32 */
    struct walsh_random random;
    struct check_buffer *buffers;
    unsigned part, parts, seen; /* of check_part; parts 0: all */
};

/* `bytes` of memory between guard bytes, poisoned with 0xA5, `misalign` bytes (< 64) beyond a 64-byte
 * boundary. Lives until the end of the round. A write to a guard is a failure. */
void *check_alloc(struct check *c, size_t bytes, size_t misalign);
/* The same for what a case keeps for itself and what holds pointers: not part of the comparison of two runs.
 */
void *check_alloc_private(struct check *c, size_t bytes);
/* 0 in even rounds; else a random multiple of `element` bytes below 64. */
size_t check_misalign(struct check *c, size_t element);
size_t check_below(struct check *c, size_t n);               /* uniform in [0, n) */
float check_normal(struct check *c);                         /* about standard normal */
void check_fill_normal(struct check *c, float *x, size_t n); /* of scale 1 */
/* As check_fill_normal; in the last round a few elements are NaN, +-Inf, subnormal, huge or -0. */
void check_fill_special(struct check *c, float *x, size_t n);

/* Whether the next piece of a case (one of its shapes, say) is to run: of `--part N/M` those whose number is N modulo M, for tools
 * under which a whole case takes minutes. */
bool check_part(struct check *c);

/* Report a failure of the case: prints kernel, implementation, round, seed and the text. */
void check_fail(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* EXACT: bit for bit, NaN equals NaN. */
void check_exact_f32(struct check *c, const char *what, const float *expected, const float *got, size_t n);
/* The same for binary16. */
void check_exact_f16(struct check *c, const char *what, const uint16_t *expected, const uint16_t *got,
                     size_t n);
void check_exact_bytes(struct check *c, const char *what, const void *expected, const void *got,
                       size_t bytes);
/* TOLERANCE: |got - expected| <= factor * 2^-23 * magnitude[i] + 1e-37, where magnitude is the sum |a||b|
 * behind element i. NaN and Inf must agree. Tracks the worst ratio for --verbose. */
void check_close_f32(struct check *c, const char *what, const float *expected, const float *got,
                     const float *magnitude, size_t n, double factor);

/* The cases' prototypes. */
#define WALSH_KERNEL(name, result, parameters, comparison)                                                   \
    void check_##name(struct check *c, walsh_kernel_##name *reference, walsh_kernel_##name *candidate);
#define WALSH_IMPL(name, isa)
#include "kernels/kernels.def"

/* Cases of whole ops (op_*.c): the best table on three threads against the reference table on one, equal bits
 * for any pool. */
struct check_queues {
    struct walsh_queue reference; /* reference table, one thread */
    struct walsh_queue best[3];   /* the best table on 1, 2, 3 threads */
};
typedef void check_op(struct check *c, const struct check_queues *queues);

/* Their prototypes; ops.def lists them. */
#define CHECK_OP(name) check_op check_op_##name;
#include "ops.def"

#endif

/* What the tests of walsh_ops.h share: random views with guards around them, the transform in double
 * precision from its definition, and checks of messages. Include after cmocka.h. */
#ifndef WALSH_TESTS_OPS_DATA_H
#define WALSH_TESTS_OPS_DATA_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/scalar.h"
#include "walsh_ops.h"

#define GUARD 64 /* elements in front of and behind a tensor */

static const char *const ops_element_names[] = {"f32", "f16", "bf16", "u8", "u16", "i32", "i64"};

static inline size_t ops_element_bytes(enum walsh_element e)
{
    static const size_t bytes[] = {4, 2, 2, 1, 2, 4, 8};
    return bytes[e];
}

/* A context of the CPU with a queue, and random data of a seed that is printed (NULL: none is needed). For a test's setup. */
static inline int ops_open(unsigned threads, uint64_t seed, struct walsh_context **context,
                           struct walsh_ops_queue **queue, struct walsh_random *random)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    struct walsh_error err;
    options.threads = threads;
    if (random) {
        print_message("seed %llu\n", (unsigned long long)seed);
        walsh_random_seed(random, seed);
    }
    if (walsh_context_open(&options, context, &err) == WALSH_OK &&
        walsh_ops_queue_open(*context, NULL, queue, &err) == WALSH_OK)
        return 0;
    print_error("%s\n", err.message);
    return -1;
}

static inline int ops_close(struct walsh_context **context, struct walsh_ops_queue **queue)
{
    walsh_ops_queue_close(queue);
    walsh_context_close(context);
    return 0;
}

/* A tensor [rows][cols] whose rows are `ld` elements apart, with bytes 0xa5 wherever no element is. */
struct ops_tensor {
    uint8_t *block;
    size_t bytes, rows, cols, ld;
    struct walsh_view view;
};

static inline struct ops_tensor ops_tensor(enum walsh_element element, size_t rows, size_t cols, size_t ld)
{
    struct ops_tensor t = {.rows = rows, .cols = cols, .ld = ld};
    const size_t size = ops_element_bytes(element);
    t.bytes = (2 * GUARD + rows * ld) * size;
    t.block = malloc(t.bytes);
    assert_non_null(t.block);
    memset(t.block, 0xa5, t.bytes);
    const int64_t shape[] = {(int64_t)rows, (int64_t)cols};
    t.view = walsh_view_dense(t.block + GUARD * size, element, 2, shape);
    t.view.strides[0] = (int64_t)ld;
    return t;
}

static inline void ops_free(struct ops_tensor *t)
{
    free(t->block);
    memset(t, 0, sizeof *t);
}

static inline uint8_t *ops_at(const struct ops_tensor *t, size_t r, size_t c)
{
    return (uint8_t *)t->view.data + (r * t->ld + c) * ops_element_bytes(t->view.element);
}

static inline double ops_get(const struct ops_tensor *t, size_t r, size_t c)
{
    float f;
    uint16_t h;
    if (t->view.element == WALSH_ELEMENT_F32) {
        memcpy(&f, ops_at(t, r, c), sizeof f);
        return (double)f;
    }
    memcpy(&h, ops_at(t, r, c), sizeof h);
    return (double)(t->view.element == WALSH_ELEMENT_F16 ? walsh_f32_from_f16(h) : walsh_f32_from_bf16(h));
}

static inline void ops_put(struct ops_tensor *t, size_t r, size_t c, double x)
{
    const float f = (float)x;
    const uint16_t h = t->view.element == WALSH_ELEMENT_F16 ? walsh_f16_from_f32(f) : walsh_bf16_from_f32(f);
    if (t->view.element == WALSH_ELEMENT_F32)
        memcpy(ops_at(t, r, c), &f, sizeof f);
    else
        memcpy(ops_at(t, r, c), &h, sizeof h);
}

static inline void ops_fill(struct ops_tensor *t, struct walsh_random *random)
{
    for (size_t r = 0; r < t->rows; r++)
        for (size_t c = 0; c < t->cols; c++) ops_put(t, r, c, walsh_random_normal(random));
}

/* Nothing outside of the rows has been written. */
static inline void ops_check_guards(const struct ops_tensor *t)
{
    const size_t size = ops_element_bytes(t->view.element);
    for (size_t i = 0; i < t->bytes; i++) {
        const size_t element = i / size;
        const bool inside =
            element >= GUARD && element < GUARD + t->rows * t->ld && (element - GUARD) % t->ld < t->cols;
        if (!inside && t->block[i] != 0xa5) fail_msg("byte %zu outside of the tensor was written", i);
    }
}

/* What one rounding to the element may change of a value of this size. */
static inline double ops_rounding(enum walsh_element element, double x)
{
    return element == WALSH_ELEMENT_F32   ? fabs(x) * 0x1p-23
           : element == WALSH_ELEMENT_F16 ? fabs(x) * 0x1p-11 + 0x1p-24
                                          : fabs(x) * 0x1p-8;
}

/* y = H x from the definition: H[i][j] = (-1)^popcount(i & j) / sqrt(n). */
static inline void ops_hadamard(double *x, size_t n)
{
    double *y = malloc(n * sizeof *y);
    assert_non_null(y);
    for (size_t i = 0; i < n; i++) {
        y[i] = 0;
        for (size_t j = 0; j < n; j++) y[i] += __builtin_popcountll(i & j) % 2 ? -x[j] : x[j];
        y[i] /= sqrt((double)n);
    }
    memcpy(x, y, n * sizeof *x);
    free(y);
}

/* forward(x) and inverse(y) of a rotation from what it tells of itself; both [padded], the first `size`
 * elements are x. */
struct ops_reference {
    struct walsh_ops_rotation_info info;
    double *signs; /* [sign_vectors][padded] */
};

static inline struct ops_reference ops_reference(const struct walsh_ops_rotation *rotation)
{
    struct ops_reference r = {.info = {.struct_size = sizeof r.info}};
    walsh_ops_rotation_get_info(rotation, &r.info);
    const size_t count = (size_t)r.info.padded * r.info.sign_vectors;
    float *signs = malloc(count * sizeof *signs);
    r.signs = malloc(count * sizeof *r.signs);
    assert_true(signs && r.signs);
    const int64_t shape[] = {r.info.sign_vectors, r.info.padded};
    const bool two = r.info.sign_vectors == 2;
    const struct walsh_view view =
        walsh_view_dense(signs, WALSH_ELEMENT_F32, two ? 2 : 1, two ? shape : shape + 1);
    assert_int_equal(walsh_ops_rotation_get_signs(rotation, &view, NULL), WALSH_OK);
    for (size_t i = 0; i < count; i++) r.signs[i] = (double)signs[i];
    free(signs);
    return r;
}

static inline void ops_blocks(const struct ops_reference *r, double *x)
{
    for (size_t b = 0, at = 0; b < r->info.block_count; at += r->info.blocks[b++])
        ops_hadamard(x + at, r->info.blocks[b]);
}

static inline void ops_forward(const struct ops_reference *r, double *x)
{
    const uint32_t n = r->info.padded, m = r->info.blocks[0];
    for (uint32_t i = 0; i < n; i++) x[i] = i < r->info.size ? x[i] * r->signs[i] : 0;
    if (r->info.sign_vectors == 1) {
        ops_blocks(r, x);
        return;
    }
    ops_hadamard(x, m);
    for (uint32_t i = 0; i < n; i++) x[i] *= r->signs[n + i];
    ops_hadamard(x + n - m, m);
}

static inline void ops_inverse(const struct ops_reference *r, double *y)
{
    const uint32_t n = r->info.padded, m = r->info.blocks[0];
    if (r->info.sign_vectors == 1) {
        ops_blocks(r, y);
    } else {
        ops_hadamard(y + n - m, m);
        for (uint32_t i = 0; i < n; i++) y[i] *= r->signs[n + i];
        ops_hadamard(y, m);
    }
    for (uint32_t i = 0; i < n; i++) y[i] *= r->signs[i];
}

static inline void *ops_aligned(size_t bytes)
{
    void *p = aligned_alloc(WALSH_OPS_ALIGNMENT,
                            (bytes + WALSH_OPS_ALIGNMENT) / WALSH_OPS_ALIGNMENT * WALSH_OPS_ALIGNMENT);
    assert_non_null(p);
    memset(p, 0xff, bytes); /* NaN, whatever reads it */
    return p;
}

/* The call failed with this status, and its message says each of these words. */
static inline void ops_refused(enum walsh_status status, enum walsh_status expected,
                               const struct walsh_error *err, const char *const *words)
{
    if (status != expected)
        fail_msg("status %s, expected %s: %s", walsh_status_name(status), walsh_status_name(expected),
                 err->message);
    for (; *words; words++)
        if (!strstr(err->message, *words)) fail_msg("\"%s\" lacks \"%s\"", err->message, *words);
}
#define OPS_REFUSED(call, expected, ...)                                                                     \
    do {                                                                                                     \
        memset(&err, 0, sizeof err);                                                                         \
        const enum walsh_status ops_status = (call);                                                         \
        ops_refused(ops_status, expected, &err, (const char *const[]){__VA_ARGS__, NULL});                   \
    } while (0)
#define OPS_WORKS(call)                                                                                      \
    do {                                                                                                     \
        memset(&err, 0, sizeof err);                                                                         \
        if ((call) != WALSH_OK) fail_msg("%s", err.message);                                                 \
    } while (0)

#endif

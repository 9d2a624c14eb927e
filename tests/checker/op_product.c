/* The product op: lists of mixed matrices, any pool, and the shapes on which a kernel for powers of two once
 * wrote too far: 11008 = 8192 + 2048 + 512 + 256 outputs by 1, 639, 640 and 2048 rows. */
#include <string.h>

#include "base/memory.h"
#include "block_data.h"
#include "checker.h"
#include "kernels/product.h"
#include "product_data.h"

#define MOST_PRODUCTS 3

struct op_case {
    enum walsh_activation_type type;
    enum walsh_role role;
    size_t rows, cols, count;
    struct product_shape shape[MOST_PRODUCTS]; /* cols is filled in */
};

/* `parted`: each product as two of a list, of its first and of its other rows. */
static void run(const struct walsh_queue *q, const struct op_case *t, const struct walsh_weights *w,
                const struct walsh_activations *a, float *const *y, bool parted)
{
    struct walsh_product list[2 * MOST_PRODUCTS];
    size_t count = 0;
    for (size_t n = 0; n < t->count; n++) {
        const size_t ldy = w[n].rows + n, first = parted ? t->rows / 3 : 0;
        if (first > 0)
            list[count++] = (struct walsh_product){.weights = &w[n], .y = y[n], .ldy = ldy, .rows = first};
        list[count++] = (struct walsh_product){.weights = &w[n],
                                               .y = y[n] + first * ldy,
                                               .ldy = ldy,
                                               .first_row = first,
                                               .rows = first > 0 ? t->rows - first : 0};
    }
    q->ops->product(q, list, count, a, NULL, t->role);
}

/* A product and what its reference needs. */
struct expectation {
    const struct walsh_queue *reference;
    enum walsh_role role; /* whose reference an exact product is held against */
    const struct walsh_weights *w;
    const struct walsh_activations *a;
    struct walsh_weights absolute_w; /* empty where the product is exact */
    struct walsh_activations absolute_a;
};

/* Outputs [begin, end) of y against the reference's table. */
static void compare(struct check *c, const struct expectation *e, const float *y, size_t ldy, size_t begin,
                    size_t end)
{
    const struct walsh_kernels *k = e->reference->kernels;
    size_t outputs = end - begin, n = e->a->rows * outputs;
    float *expected = check_alloc(c, n * sizeof *expected, 0), *got = check_alloc(c, n * sizeof *got, 0);
    float *magnitude = check_alloc(c, n * sizeof *magnitude, 0);
    struct walsh_product_part part = {
        e->w, e->a, begin, end, expected - begin, outputs, e->reference->scratch[0], false};
    for (size_t i = 0; i < e->a->rows; i++)
        memcpy(got + i * outputs, y + i * ldy + begin, outputs * sizeof *got);
    if (e->a->type == WALSH_ACTIVATION_INT8) {
        (e->role == WALSH_DECODE ? k->product_int8_decode : k->product_int8_prefill)(&part);
        check_exact_f32(c, "y", expected, got, n);
        return;
    }
    if (e->w->format == WALSH_FORMAT_E8P)
        k->product_e8p_decode(&part);
    else
        k->product_dense_decode(&part);
    part.weights = &e->absolute_w;
    part.a = &e->absolute_a;
    part.y = magnitude - begin;
    k->product_dense_decode(&part);
    check_close_f32(c, "y", expected, got, magnitude, n, 4);
}

static void check_case(struct check *c, const struct check_queues *queues, const struct op_case *t)
{
    struct walsh_weights w[MOST_PRODUCTS];
    struct walsh_activations a = product_activations(c, t->type, t->rows, t->cols, false);
    float *y[3][MOST_PRODUCTS];
    for (size_t n = 0; n < t->count; n++) {
        struct product_shape shape = t->shape[n];
        shape.cols = t->cols;
        w[n] = product_weights(c, &shape);
        for (unsigned q = 0; q < 3; q++)
            y[q][n] =
                check_alloc(c, t->rows * (shape.rows + n) * sizeof(float), check_misalign(c, sizeof(float)));
    }
    for (unsigned q = 0; q < 3; q++)
        run(&queues->best[q], t, w, &a, y[q],
            q == 1 && queues->best[q].device == NULL && queues->best[q].memory == NULL);
    for (size_t n = 0; n < t->count; n++) {
        size_t outputs = w[n].rows, ldy = outputs + n, bytes = t->rows * ldy * sizeof(float);
        check_exact_bytes(c, "y of 1 and of 2 threads, in parts", y[0][n], y[1][n], bytes);
        check_exact_bytes(c, "y of 1 and of 3 threads", y[0][n], y[2][n], bytes);
        struct expectation e = {.reference = &queues->reference, .role = t->role, .w = &w[n], .a = &a};
        if (t->type != WALSH_ACTIVATION_INT8) {
            e.absolute_w = product_magnitudes(c, &w[n]);
            e.absolute_a = product_absolute(c, &a);
        }
        /* all outputs of a small product; of a large one the ends, a boundary of 8192 + 2048, and any other
         */
        if (outputs <= 256) {
            compare(c, &e, y[0][n], ldy, 0, outputs);
            continue;
        }
        size_t any = check_below(c, outputs / WALSH_PRODUCT_ROWS) * WALSH_PRODUCT_ROWS;
        const size_t begins[] = {0, any, 8192 - 16, 8192 + 2048, outputs - 16};
        for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++)
            compare(c, &e, y[0][n], ldy, begins[i], begins[i] + 16);
    }
}

/* A list of mixed matrices in both roles. */
static void check_lists(struct check *c, const struct check_queues *queues)
{
    static const size_t rows[] = {1, 3, 9, 40};
    for (int role = WALSH_DECODE; role <= WALSH_PREFILL; role++) {
        const struct op_case cases[] = {
            {.type = WALSH_ACTIVATION_INT8,
             .shape = {{WALSH_FORMAT_E8P, "PB", 96, 0},
                       {WALSH_FORMAT_E8P, "PP", 32, 0},
                       {WALSH_FORMAT_E8P, "P", 224, 0}}},
            {.type = WALSH_ACTIVATION_F32,
             .shape = {{WALSH_FORMAT_BF16, "", 70, 0},
                       {WALSH_FORMAT_E8P, "PP", 32, 0},
                       {WALSH_FORMAT_F16, "", 200, 0}}},
            {.type = WALSH_ACTIVATION_BF16,
             .shape = {{WALSH_FORMAT_BF16, "", 70, 0},
                       {WALSH_FORMAT_BF16, "", 1, 0},
                       {WALSH_FORMAT_BF16, "", 200, 0}}},
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            if (!check_part(c)) continue;
            struct op_case t = cases[i];
            t.role = (enum walsh_role)role;
            t.rows = rows[c->round];
            t.cols = 320;
            t.count = MOST_PRODUCTS;
            check_case(c, queues, &t);
        }
    }
}

/* Block formats by int8 activations in groups: exact, and the same rows in any number. */
static void check_block_products(struct check *c, const struct check_queues *queues)
{
    static const size_t shapes[][2] = {{16, 32}, {17, 33}, {80, 264}, {33, 1056}, {48, 5992}},
                        batch[] = {1, 8, 9, 37};
    for (size_t k = 0; k < BLOCK_INTEGER_KINDS; k++)
        for (size_t s = 0; s < 5; s++) {
            if (!check_part(c)) continue;
            const size_t outs = shapes[s][0], rows = batch[(k + s + c->round) % 4], ldy = outs + 3;
            const struct walsh_weights w = block_weights(c, &block_kinds[k], outs, shapes[s][1]);
            const struct walsh_activations a = block_activations(c, rows, w.cols);
            float *y = check_alloc(c, rows * ldy * sizeof *y, 0),
                  *expected = check_alloc(c, rows * ldy * sizeof *y, 0);
            const struct walsh_product product = {.weights = &w, .y = y, .ldy = ldy};
            queues->best[0].ops->product(&queues->best[0], &product, 1, &a, NULL, WALSH_DECODE);
            queues->reference.kernels->product_block_decode(&(struct walsh_product_part){
                &w, &a, 0, outs, expected, ldy, queues->reference.scratch[0], false});
            for (size_t i = 0; i < rows; i++)
                check_exact_f32(c, "y of a block format", expected + i * ldy, y + i * ldy, outs);
        }
}

/* Block formats by f32 and bf16 activations: what the decoded matrix gives. */
static void check_decoded_products(struct check *c, const struct check_queues *queues)
{
    static const size_t shapes[][2] = {{17, 40}, {144, 328}}, batch[] = {3, 260, 1, 97};
    const struct walsh_kernels *k = queues->reference.kernels;
    for (size_t kind = 0; kind < BLOCK_KINDS; kind++)
        for (size_t s = 0; s < 4; s++) {
            if (!check_part(c)) continue;
            const bool bf16 = s % 2;
            const size_t outs = shapes[s / 2][0], cols = shapes[s / 2][1],
                         rows = batch[(kind + s + c->round) % 4];
            const struct walsh_weights w = block_weights(c, &block_kinds[kind], outs, cols);
            const struct walsh_activations a = product_activations(
                c, bf16 ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32, rows, cols, false);
            void *decoded = check_alloc(c, outs * cols * sizeof(float), 0);
            const struct walsh_weights dense = {.format = bf16 ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32,
                                                .rows = (uint32_t)outs,
                                                .cols = (uint32_t)cols,
                                                .data = decoded};
            if (bf16)
                k->decode_weights_bf16(&w, 0, outs, 0, cols, decoded, cols);
            else
                k->decode_weights_f32(&w, 0, outs, 0, cols, decoded, cols);
            float *y = check_alloc(c, rows * outs * sizeof *y, 0),
                  *expected = check_alloc(c, rows * outs * sizeof *y, 0),
                  *magnitude = check_alloc(c, rows * outs * sizeof *y, 0);
            const struct walsh_product product = {.weights = &w, .y = y, .ldy = outs};
            queues->best[0].ops->product(&queues->best[0], &product, 1, &a, NULL,
                                         rows > 8 ? WALSH_PREFILL : WALSH_DECODE);
            const struct walsh_weights absolute_w = product_magnitudes(c, &dense);
            const struct walsh_activations absolute_a = product_absolute(c, &a);
            struct walsh_product_part part = {
                &dense, &a, 0, outs, expected, outs, queues->reference.scratch[0], false};
            k->product_dense_decode(&part);
            part.weights = &absolute_w;
            part.a = &absolute_a;
            part.y = magnitude;
            k->product_dense_decode(&part);
            check_close_f32(c, "y of a decoded block format", expected, y, magnitude, rows * outs, 16);
        }
}

void check_op_product(struct check *c, const struct check_queues *queues)
{
    check_block_products(c, queues);
    check_decoded_products(c, queues);
    static const size_t rows[] = {1, 639, 640, 2048};
    check_lists(c, queues);
    /* so many columns that a device's kernel cannot hold eight rows of activations at once */
    const struct op_case wide = {.type = WALSH_ACTIVATION_INT8,
                                 .role = WALSH_DECODE,
                                 .rows = c->round % 2 ? 8 : 5,
                                 .cols = 28672,
                                 .count = 1,
                                 .shape = {{WALSH_FORMAT_E8P, "PPB", 48, 0}}};
    check_case(c, queues, &wide);
    /* many rows by long columns: pieces of both go round in a device's shared memory */
    const struct op_case deep = {.type = WALSH_ACTIVATION_INT8,
                                 .role = WALSH_PREFILL,
                                 .rows = c->round % 2 ? 300 : 128,
                                 .cols = 1472,
                                 .count = 3,
                                 .shape = {{WALSH_FORMAT_E8P, "PBP", 176, 0},
                                           {WALSH_FORMAT_E8P, "P", 48, 0},
                                           {WALSH_FORMAT_E8P, "PP", 80, 0}}};
    check_case(c, queues, &deep);
    const struct op_case cases[] = {
        {.type = WALSH_ACTIVATION_INT8, .cols = 320, .shape = {{WALSH_FORMAT_E8P, "PB", 11008, 0}}},
        {.type = WALSH_ACTIVATION_F32, .cols = 256, .shape = {{WALSH_FORMAT_E8P, "P", 11008, 0}}},
        {.type = WALSH_ACTIVATION_F32, .cols = 256, .shape = {{WALSH_FORMAT_BF16, "", 11008, 0}}},
        {.type = WALSH_ACTIVATION_BF16, .cols = 320, .shape = {{WALSH_FORMAT_BF16, "", 11008, 0}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (!check_part(c)) continue;
        struct op_case t = cases[i];
        t.role = WALSH_PREFILL;
        t.count = 1;
        t.rows = rows[c->round];
        /* without vector kernels such a product takes minutes; its boundaries do not depend on the rows */
        if (queues->best[0].kernels->isa == 0) t.rows = walsh_min(t.rows, 16);
        check_case(c, queues, &t);
    }
}

#include "train/products.h"

#include "base/memory.h"
#include "kernels/table.h"
#include "model/sites.h"

#define PIECE_OUTPUTS 192 /* of a product: a multiple of the widest tile, as in prefill */
#define TILE_OUTPUTS 48
#define PIECES_PER_THREAD 8

static bool is_dense(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 || format == WALSH_FORMAT_F16 || format == WALSH_FORMAT_BF16;
}

/* What the linears of the layers, or the head, need. */
struct need {
    size_t widest;  /* padded dimension */
    size_t decoded; /* elements of the largest weight that must be decoded */
    bool rotated, head;
    size_t dense_bytes; /* of one element of a decoded weight */
};

static struct need measure(const struct walsh_model_graph *graph, bool head,
                           enum walsh_activation_type compute)
{
    struct need need = {.head = head,
                        .dense_bytes = compute == WALSH_ACTIVATION_BF16 ? sizeof(uint16_t) : sizeof(float)};
    struct walsh_site_walk walk = {.graph = graph};
    struct walsh_site site;
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) {
            const struct walsh_linear *linear = site.linears[i];
            const struct walsh_weights *w = &linear->weights;
            if ((linear == &graph->head) != head) continue;
            need.widest = walsh_max(need.widest, walsh_max(w->rows, w->cols));
            if (!is_dense(w->format)) need.decoded = walsh_max(need.decoded, (size_t)w->rows * w->cols);
            need.rotated = need.rotated || linear->in_rotation.kind != WALSH_ROTATION_NONE ||
                           linear->out_rotation.kind != WALSH_ROTATION_NONE;
        }
    return need;
}

/* f32 elements of a row of all buffers. */
static size_t row_elements(const struct need *need)
{
    return walsh_activations_stride(need->widest) + (need->rotated ? need->widest : 0) +
           (need->head ? 0 : need->widest);
}

size_t walsh_products_bytes(const struct walsh_model_graph *graph, bool head,
                            enum walsh_activation_type compute, size_t max_rows)
{
    const struct need need = measure(graph, head, compute);
    return max_rows * row_elements(&need) * sizeof(float) + need.decoded * need.dense_bytes;
}

enum walsh_status walsh_products_open(const struct walsh_model_graph *graph, bool head,
                                      const struct walsh_queue *queue, enum walsh_activation_type compute,
                                      size_t max_rows, struct walsh_products *out, struct walsh_error *err)
{
    const struct need need = measure(graph, head, compute);
    *out = (struct walsh_products){.queue = queue, .compute = compute, .max_rows = max_rows};
    size_t all;
    if (!walsh_mul(max_rows, row_elements(&need), &all))
        return walsh_fail(err, WALSH_E_MEMORY, "%zu rows of a product do not fit", max_rows);
    enum walsh_status status = walsh_alloc(max_rows * walsh_activations_stride(need.widest), sizeof(float),
                                           "prepared activations", &out->activations, err);
    if (status == WALSH_OK && need.rotated)
        status = walsh_alloc(max_rows * need.widest, sizeof(float), "rotated products", &out->z, err);
    if (status == WALSH_OK && !head)
        status = walsh_alloc(max_rows * need.widest, sizeof(float), "a gradient", &out->extra, err);
    if (status == WALSH_OK && need.decoded > 0)
        status = walsh_alloc(need.decoded, need.dense_bytes, "a decoded weight", &out->dense, err);
    if (status != WALSH_OK) walsh_products_close(out);
    return status;
}

void walsh_products_close(struct walsh_products *p)
{
    walsh_free(p->activations);
    walsh_free(p->z);
    walsh_free(p->extra);
    walsh_free(p->dense);
    *p = (struct walsh_products){0};
}

/* --- decoded weights --- */

struct decoding {
    const struct walsh_kernels *kernels;
    const struct walsh_weights *from;
    void *to;
    bool bf16;
};

static void decode_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct decoding *t = argument;
    const size_t cols = t->from->cols;
    if (t->bf16)
        t->kernels->decode_weights_bf16(t->from, begin, end - begin, 0, cols, (uint16_t *)t->to + begin * cols, cols);
    else
        t->kernels->decode_weights_f32(t->from, begin, end - begin, 0, cols, (float *)t->to + begin * cols, cols);
}

/* The weights as a dense matrix: in place, or decoded into p->dense. */
static struct walsh_weights dense_weights(struct walsh_products *p, const struct walsh_weights *w)
{
    if (is_dense(w->format)) return *w;
    const bool bf16 = p->compute == WALSH_ACTIVATION_BF16;
    struct decoding t = {p->queue->kernels, w, p->dense, bf16};
    walsh_pool_run(p->queue->pool, w->rows, 16, decode_rows, &t);
    return (struct walsh_weights){.format = bf16 ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32,
                                  .rows = w->rows,
                                  .cols = w->cols,
                                  .data = p->dense};
}

/* --- products --- */

/* How the other side of a product with this linear is rounded. A router's input never is: its activation type
 * says F32 whatever the format. */
static enum walsh_activation_type type_of(const struct walsh_products *p, const struct walsh_linear *linear)
{
    const enum walsh_format format = linear->weights.format;
    if (p->compute != WALSH_ACTIVATION_BF16) return WALSH_ACTIVATION_F32;
    if (is_dense(format)) return linear->activation;
    return WALSH_ACTIVATION_BF16;
}

struct product {
    const struct walsh_queue *queue;
    struct walsh_product_part part;
    size_t outputs, piece;
    void (*kernel)(const struct walsh_product_part *);
};

static void run_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct product *t = argument;
    for (size_t i = begin; i < end; i++) {
        struct walsh_product_part part = t->part;
        part.begin = i * t->piece;
        part.end = walsh_min(part.begin + t->piece, t->outputs);
        part.scratch = t->queue->scratch[worker];
        t->kernel(&part);
    }
}

static void multiply(const struct walsh_products *p, const struct walsh_weights *w,
                     const struct walsh_activations *a, bool transposed, float *y, size_t ldy)
{
    const struct walsh_kernels *k = p->queue->kernels;
    const bool bf16 = a->type == WALSH_ACTIVATION_BF16;
    struct product t = {.queue = p->queue, .part = {.weights = w, .a = a, .y = y, .ldy = ldy}};
    t.outputs = transposed ? w->cols : w->rows;
    if (transposed)
        t.kernel = bf16 ? k->product_bf16_transposed : k->product_dense_transposed;
    else
        t.kernel = bf16 ? k->product_bf16_prefill : k->product_dense_prefill;
    const size_t balanced = t.outputs / (walsh_pool_threads(p->queue->pool) * PIECES_PER_THREAD);
    t.piece = walsh_round_up(walsh_min(walsh_max(balanced, 1), PIECE_OUTPUTS), TILE_OUTPUTS);
    walsh_pool_run(p->queue->pool, walsh_div_up(t.outputs, t.piece), 1, run_pieces, &t);
}

static struct walsh_activations prepare(struct walsh_products *p, const struct walsh_rotation *rotation,
                                        enum walsh_activation_type type, const float *x, size_t ldx,
                                        size_t rows)
{
    const size_t cols = rotation->blocks.padded;
    struct walsh_activations a = {.type = type,
                                  .rows = rows,
                                  .cols = cols,
                                  .stride = walsh_activations_stride(cols),
                                  .data = p->activations};
    p->queue->ops->prepare(p->queue, &a, x, ldx, rotation);
    return a;
}

void walsh_frozen_forward(struct walsh_products *p, const struct walsh_frozen_call *calls, size_t count,
                          const float *x, size_t ldx, size_t rows)
{
    if (rows == 0) return;
    struct walsh_activations a = {0};
    for (size_t i = 0; i < count; i++) {
        const struct walsh_linear *linear = calls[i].linear, *before = i > 0 ? calls[i - 1].linear : NULL;
        const enum walsh_activation_type type = type_of(p, linear);
        if (!before || type != a.type || !walsh_rotation_equal(&before->in_rotation, &linear->in_rotation))
            a = prepare(p, &linear->in_rotation, type, x, ldx, rows);
        const struct walsh_weights w = dense_weights(p, &linear->weights);
        const bool rotated = linear->out_rotation.kind != WALSH_ROTATION_NONE;
        float *z = rotated ? p->z : calls[i].y;
        const size_t ldz = rotated ? w.rows : calls[i].ldy;
        multiply(p, &w, &a, false, z, ldz);
        p->queue->ops->unrotate(p->queue, calls[i].y, calls[i].ldy, z, ldz, &linear->out_rotation,
                                linear->bias, rows);
    }
}

struct add_rows {
    const struct walsh_kernels *kernels;
    float *to;
    const float *from;
    size_t ldto, ldfrom, n;
};

static void add_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct add_rows *t = argument;
    for (size_t r = begin; r < end; r++)
        t->kernels->add_f32(t->to + r * t->ldto, t->from + r * t->ldfrom, t->n);
}

void walsh_frozen_backward(struct walsh_products *p, const struct walsh_linear *linear, const float *dy,
                           size_t lddy, size_t rows, float *dx, size_t lddx, bool add)
{
    if (rows == 0) return;
    const struct walsh_activations a = prepare(p, &linear->out_rotation, type_of(p, linear), dy, lddy, rows);
    const struct walsh_weights w = dense_weights(p, &linear->weights);
    const bool rotated = linear->in_rotation.kind != WALSH_ROTATION_NONE;
    float *to = add ? p->extra : dx, *z = rotated ? p->z : to;
    const size_t ldto = add ? linear->in : lddx, ldz = rotated ? w.cols : ldto;
    multiply(p, &w, &a, true, z, ldz);
    p->queue->ops->unrotate(p->queue, to, ldto, z, ldz, &linear->in_rotation, NULL, rows);
    if (!add) return;
    struct add_rows t = {p->queue->kernels, dx, to, lddx, ldto, linear->in};
    walsh_pool_run(p->queue->pool, rows, 16, add_rows, &t);
}

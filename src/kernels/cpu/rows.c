/* Ops that treat rows one by one. */
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/split.h"
#include "kernels/cpu/turbo.h"

struct embed {
    const struct walsh_queue *q;
    float *out;
    const struct walsh_weights *table;
    const int32_t *ids;
};

static void embed_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct embed *t = argument;
    size_t cols = t->table->cols;
    for (size_t r = begin; r < end; r++) {
        float *out = t->out + r * cols;
        const uint8_t *data = t->table->data;
        size_t at = (size_t)t->ids[r] * cols;
        if (t->table->format == WALSH_FORMAT_F32)
            memcpy(out, data + at * sizeof *out, cols * sizeof *out);
        else if (t->table->format == WALSH_FORMAT_F16)
            t->q->kernels->f32_from_f16(out, data + at * 2, cols);
        else
            t->q->kernels->f32_from_bf16(out, data + at * 2, cols);
    }
}

void walsh_cpu_embed(const struct walsh_queue *q, float *out, const struct walsh_weights *table,
                     const int32_t *ids, size_t rows)
{
    struct embed t = {q, out, table, ids};
    walsh_run_rows(q, rows, table->cols, embed_rows, &t);
}

struct rms_norm {
    const struct walsh_queue *q;
    float *y;
    const float *x, *weight;
    size_t ldy, ldx, n;
    float eps;
};

static void rms_norm_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rms_norm *t = argument;
    for (size_t r = begin; r < end; r++)
        t->q->kernels->rms_norm_f32(t->y + r * t->ldy, t->x + r * t->ldx, t->weight, t->n, t->eps);
}

void walsh_cpu_rms_norm(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                        const float *weight, size_t rows, size_t n, float eps)
{
    struct rms_norm t = {q, y, x, weight, ldy, ldx, n, eps};
    walsh_run_rows(q, rows, n, rms_norm_rows, &t);
}

struct add {
    const struct walsh_queue *q;
    float *x;
    const float *d;
};

static void add_elements(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct add *t = argument;
    t->q->kernels->add_f32(t->x + begin, t->d + begin, end - begin);
}

void walsh_cpu_add(const struct walsh_queue *q, float *x, const float *d, size_t n)
{
    struct add t = {q, x, d};
    walsh_pool_run(q->pool, n, WALSH_PIECE_ELEMENTS, add_elements, &t);
}

struct rope {
    const struct walsh_queue *q;
    float *x;
    size_t ldx;
    const uint32_t *positions;
    uint32_t heads, head_dim, rotated;
    const float *cosine, *sine;
};

static void rope_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct rope *t = argument;
    for (size_t r = begin; r < end; r++) {
        const uint32_t half = t->rotated / 2;
        const size_t at = (size_t)t->positions[r] * half;
        float *x = t->x + r * t->ldx;
        if (t->rotated == t->head_dim) {
            t->q->kernels->rope_f32(x, t->heads, half, t->cosine + at, t->sine + at);
            continue;
        }
        for (uint32_t h = 0; h < t->heads; h++)
            t->q->kernels->rope_f32(x + (size_t)h * t->head_dim, 1, half, t->cosine + at, t->sine + at);
    }
}

void walsh_cpu_rope(const struct walsh_queue *q, float *x, size_t ldx, const uint32_t *positions, size_t rows,
                    uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine,
                    const float *sine)
{
    struct rope t = {q, x, ldx, positions, heads, head_dim, rotated, cosine, sine};
    walsh_run_rows(q, rows, (size_t)heads * head_dim, rope_rows, &t);
}

struct gate {
    void (*kernel)(float *y, const float *gate, const float *up, size_t n);
    float *y;
    const float *gate, *up;
    size_t ldy, ld, n;
};

static void gate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct gate *t = argument;
    for (size_t r = begin; r < end; r++)
        t->kernel(t->y + r * t->ldy, t->gate + r * t->ld, t->up + r * t->ld, t->n);
}

void walsh_cpu_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                      size_t ld, size_t rows, size_t n)
{
    struct gate t = {q->kernels->swiglu_f32, y, gate, up, ldy, ld, n};
    walsh_run_rows(q, rows, n, gate_rows, &t);
}

void walsh_cpu_geglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                     size_t ld, size_t rows, size_t n)
{
    struct gate t = {q->kernels->geglu_f32, y, gate, up, ldy, ld, n};
    walsh_run_rows(q, rows, n, gate_rows, &t);
}

struct clamped_gate {
    const struct walsh_kernels *kernels;
    float *y;
    const float *gate, *up;
    size_t ldy, ld, n;
    float alpha, limit;
};

static void clamped_gate_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct clamped_gate *t = argument;
    for (size_t r = begin; r < end; r++)
        t->kernels->clamped_swiglu_f32(t->y + r * t->ldy, t->gate + r * t->ld, t->up + r * t->ld, t->n,
                                       t->alpha, t->limit);
}

void walsh_cpu_clamped_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate,
                              const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit)
{
    struct clamped_gate t = {q->kernels, y, gate, up, ldy, ld, n, alpha, limit};
    walsh_run_rows(q, rows, n, clamped_gate_rows, &t);
}

/* Elements that a number changes one by one. */
struct elements {
    const struct walsh_queue *q;
    float *x, by;
};

static void scale_elements(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct elements *t = argument;
    t->q->kernels->scale_f32(t->x + begin, t->by, end - begin);
}

void walsh_cpu_scale(const struct walsh_queue *q, float *x, float factor, size_t n)
{
    struct elements t = {q, x, factor};
    walsh_pool_run(q->pool, n, WALSH_PIECE_ELEMENTS, scale_elements, &t);
}

static void cap_elements(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct elements *t = argument;
    t->q->kernels->soft_cap_f32(t->x + begin, end - begin, 1, t->by);
}

void walsh_cpu_soft_cap(const struct walsh_queue *q, float *x, float cap, size_t n)
{
    struct elements t = {q, x, cap};
    walsh_pool_run(q->pool, n, WALSH_PIECE_ELEMENTS, cap_elements, &t);
}

struct route {
    const struct walsh_queue *q;
    int32_t *index;
    float *weight;
    const float *logits;
    uint32_t experts, k;
    bool normalize;
};

static void route_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct route *t = argument;
    for (size_t r = begin; r < end; r++)
        t->q->kernels->route_f32(t->index + r * t->k, t->weight + r * t->k, t->logits + r * t->experts,
                                 t->experts, t->k, t->normalize);
}

void walsh_cpu_route(const struct walsh_queue *q, int32_t *index, float *weight, const float *logits,
                     size_t rows, uint32_t experts, uint32_t k, bool normalize)
{
    struct route t = {q, index, weight, logits, experts, k, normalize};
    walsh_run_rows(q, rows, (size_t)experts * 16, route_rows, &t); /* an exponential per expert */
}

struct kv_append {
    const struct walsh_queue *q;
    const struct walsh_attention_row *rows;
    const float *k, *v;
    size_t ld;
    const struct walsh_attention_shape *shape;
};

/* One row of keys or values into its page. */
static void store(const struct walsh_kernels *k, const struct walsh_kv_view *kv, uint32_t position,
                  const struct walsh_attention_shape *shape, void *const *pages, const float *x)
{
    const uint32_t dim = shape->head_dim;
    void *page = pages[position / kv->page_tokens];
    for (uint32_t h = 0; h < shape->kv_heads; h++, x += dim) {
        size_t at = walsh_kv_offset(kv, h, position, dim);
        if (kv->type == WALSH_KV_F32)
            memcpy((float *)page + at, x, dim * sizeof *x);
        else
            k->f16_from_f32((uint16_t *)page + at, x, dim);
    }
}

void walsh_cpu_store_row(const struct walsh_kernels *k, const struct walsh_kv_view *kv, uint32_t position,
                         const struct walsh_attention_shape *shape, const float *key, const float *value)
{
    store(k, kv, position, shape, kv->k_pages, key);
    store(k, kv, position, shape, kv->v_pages, value);
}

static void kv_append_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct kv_append *t = argument;
    for (size_t r = begin; r < end; r++) {
        const struct walsh_kv_view *own = t->shape->own;
        if (own)
            walsh_cpu_store_row(t->q->kernels, own, t->rows[r].position % own->page_tokens, t->shape,
                                t->k + r * t->ld, t->v + r * t->ld);
        if (t->rows[r].kv->type == WALSH_KV_TURBO) continue;
        walsh_cpu_store_row(t->q->kernels, t->rows[r].kv, t->rows[r].position, t->shape, t->k + r * t->ld,
                            t->v + r * t->ld);
    }
}

void walsh_cpu_kv_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                         const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape)
{
    struct kv_append t = {q, rows, k, v, ld, shape};
    walsh_run_rows(q, count, (size_t)shape->kv_heads * shape->head_dim * 2, kv_append_rows, &t);
    walsh_turbo_append(q, rows, count, k, v, ld, shape);
}

struct gather {
    float *out;
    const float *x;
    const uint32_t *index;
    size_t ldo, ldx, n;
};

static void gather_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct gather *t = argument;
    for (size_t i = begin; i < end; i++)
        memcpy(t->out + i * t->ldo, t->x + t->index[i] * t->ldx, t->n * sizeof(float));
}

void walsh_cpu_gather(const struct walsh_queue *q, float *out, size_t ldo, const float *x, size_t ldx,
                      const uint32_t *index, size_t rows, size_t n)
{
    struct gather t = {out, x, index, ldo, ldx, n};
    walsh_pool_run(q->pool, rows, 16, gather_rows, &t);
}

struct combine {
    float *x, *y;
    const uint32_t *slot;
    const float *weight;
    size_t n;
    uint32_t k;
};

static void combine_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct combine *t = argument;
    for (size_t row = begin; row < end; row++) {
        float *x = t->x + row * t->n;
        const uint32_t *slot = t->slot + row * t->k;
        const float *weight = t->weight + row * t->k;
        float *sum = t->y + slot[0] * t->n;
        for (size_t i = 0; i < t->n; i++) sum[i] *= weight[0];
        for (uint32_t j = 1; j < t->k; j++) {
            const float *y = t->y + slot[j] * t->n, w = weight[j];
            for (size_t i = 0; i < t->n; i++) sum[i] += w * y[i];
        }
        for (size_t i = 0; i < t->n; i++) x[i] += sum[i];
    }
}

void walsh_cpu_combine(const struct walsh_queue *q, float *x, size_t n, float *y, const uint32_t *slot,
                       const float *weight, size_t rows, uint32_t k)
{
    struct combine t = {x, y, slot, weight, n, k};
    walsh_pool_run(q->pool, rows, 16, combine_rows, &t);
}

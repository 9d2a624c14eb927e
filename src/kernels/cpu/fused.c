/* What stands between two products, row by row: a row goes through all of it while it is in the L1 or L2, where
 * the parts one after the other would write and read f32 of all rows each time. The bits are those of the
 * parts, because each of them treats rows one by one. */
#include <string.h>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/split.h"

/* A worker's scratch: a rotated row, then rows of what is between. */
#define ROW_BYTES (WALSH_MAX_COLUMNS * sizeof(float))
enum { ROTATED, FIRST, SECOND, ROWS };
_Static_assert(ROWS *ROW_BYTES <= WALSH_SCRATCH_BYTES, "the rows of a worker");

static float *scratch_row(const struct walsh_queue *q, unsigned worker, int which)
{
    return (float *)(void *)(q->scratch[worker] + (size_t)which * ROW_BYTES);
}

/* Activations in groups are for the parts. */
static bool fits(const struct walsh_queue *q, const struct walsh_fused_layer *layer)
{
    (void)q;
    if (layer->attention->kinds.packed) return false;
    for (size_t i = 0; i < sizeof layer->in / sizeof layer->in[0]; i++)
        if (layer->in[i].type == WALSH_ACTIVATION_INT8_GROUPS) return false;
    return true;
}

struct residual {
    const struct walsh_queue *q;
    float *x;
    const struct walsh_unrotated *d;
    const float *d_norm, *weight;
    float *normed;
    struct walsh_activations *a;
    const struct walsh_rotation *rotation;
    size_t n, ldn;
    float eps;
};

static void residual_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct residual *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    float *rotated = scratch_row(t->q, worker, ROTATED), *first = scratch_row(t->q, worker, FIRST);
    for (size_t r = begin; r < end; r++) {
        float *x = t->x + r * t->n;
        if (t->d != NULL) {
            walsh_cpu_unrotate_row(k, t->d, r, first);
            if (t->d_norm != NULL) k->rms_norm_f32(first, first, t->d_norm, t->n, t->eps);
            k->add_f32(x, first, t->n);
        }
        if (t->weight == NULL) continue;
        if (t->normed == NULL && walsh_cpu_rotates_rounding(t->a, t->rotation)) {
            walsh_cpu_rotate_row(k, t->a, t->rotation, r, x, t->weight, k->rms_factor_f32(x, t->n, t->eps),
                                 rotated);
            continue;
        }
        float *normed = t->normed != NULL ? t->normed + r * t->ldn : first;
        k->rms_norm_f32(normed, x, t->weight, t->n, t->eps);
        walsh_cpu_prepare_row(k, t->a, t->rotation, r, normed, rotated);
    }
}

static void residual(const struct walsh_queue *q, float *x, size_t n, const struct walsh_unrotated *d,
                     const float *d_norm, const float *weight, float eps, float *normed, size_t ldn,
                     struct walsh_activations *a, const struct walsh_rotation *rotation)
{
    struct residual t = {q, x, d, d_norm, weight, normed, a, rotation, n, ldn, eps};
    walsh_run_rows(q, a->rows, 2 * n, residual_rows, &t);
}

struct project {
    const struct walsh_queue *q;
    const struct walsh_projections *p;
    const struct walsh_attention_shape *shape;
};

/* x [heads][head_dim] of row r: its norm and its position. */
static void turn_heads(const struct project *t, size_t r, float *x, uint32_t heads, const float *norm)
{
    const struct walsh_kernels *k = t->q->kernels;
    const uint32_t dim = t->shape->head_dim, half = t->p->rotated / 2;
    for (uint32_t h = 0; norm != NULL && h < heads; h++)
        k->rms_norm_f32(x + (size_t)h * dim, x + (size_t)h * dim, norm, dim, t->p->eps);
    if (half == 0) return;
    const size_t at = (size_t)t->p->rows[r].position * half;
    if (t->p->rotated == dim) {
        k->rope_f32(x, heads, half, t->p->cosine + at, t->p->sine + at);
        return;
    }
    for (uint32_t h = 0; h < heads; h++)
        k->rope_f32(x + (size_t)h * dim, 1, half, t->p->cosine + at, t->p->sine + at);
}

static void project_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct project *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    const size_t width = (size_t)t->shape->heads * t->shape->head_dim;
    float *key = scratch_row(t->q, worker, FIRST), *value = scratch_row(t->q, worker, SECOND);
    for (size_t r = begin; r < end; r++) {
        float *query = t->p->query + r * width;
        walsh_cpu_unrotate_row(k, &t->p->q, r, query);
        turn_heads(t, r, query, t->shape->heads, t->p->q_norm);
        walsh_cpu_unrotate_row(k, &t->p->k, r, key);
        turn_heads(t, r, key, t->shape->kv_heads, t->p->k_norm);
        walsh_cpu_unrotate_row(k, &t->p->v, r, value);
        const struct walsh_kv_view *kv = t->p->rows[r].kv + t->p->layer;
        walsh_cpu_store_row(k, kv, t->p->rows[r].position, t->shape, key, value);
    }
}

static void project(const struct walsh_queue *q, const struct walsh_projections *p, size_t count,
                    const struct walsh_attention_shape *shape)
{
    struct project t = {q, p, shape};
    walsh_run_rows(q, count, (size_t)(shape->heads + 2 * shape->kv_heads) * shape->head_dim, project_rows,
                   &t);
}

static void attention(const struct walsh_queue *q, struct walsh_activations *a,
                      const struct walsh_rotation *rotation, float *out, size_t ldo, const float *query,
                      size_t ldq, const struct walsh_attention_row *rows, uint32_t layer,
                      const struct walsh_attention_shape *shape, enum walsh_role role)
{
    (void)layer; /* rows name the layer's view */
    walsh_cpu_attention(q, out, ldo, query, ldq, rows, a->rows, shape, role);
    walsh_cpu_prepare(q, a, out, ldo, rotation);
}

struct gated {
    const struct walsh_queue *q;
    struct walsh_activations *a;
    const struct walsh_rotation *rotation;
    float *y;
    const struct walsh_unrotated *gate, *up;
    size_t ldy, n;
    bool gelu;
};

static void gated_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct gated *t = argument;
    const struct walsh_kernels *k = t->q->kernels;
    float *rotated = scratch_row(t->q, worker, ROTATED), *gate = scratch_row(t->q, worker, FIRST),
          *up = scratch_row(t->q, worker, SECOND);
    for (size_t r = begin; r < end; r++) {
        float *y = t->y != NULL ? t->y + r * t->ldy : gate;
        walsh_cpu_unrotate_row(k, t->gate, r, gate);
        walsh_cpu_unrotate_row(k, t->up, r, up);
        (t->gelu ? k->geglu_f32 : k->swiglu_f32)(y, gate, up, t->n);
        walsh_cpu_prepare_row(k, t->a, t->rotation, r, y, rotated);
    }
}

static void gated(const struct walsh_queue *q, struct walsh_activations *a,
                  const struct walsh_rotation *rotation, float *y, size_t ldy,
                  const struct walsh_unrotated *gate, const struct walsh_unrotated *up, size_t n, bool gelu)
{
    struct gated t = {q, a, rotation, y, gate, up, ldy, n, gelu};
    walsh_run_rows(q, a->rows, 4 * n, gated_rows, &t);
}

const struct walsh_fused_ops walsh_cpu_fused_ops = {
    .fits = fits,
    .residual = residual,
    .project = project,
    .attention = attention,
    .gated = gated,
};

/* The fused ops (struct walsh_fused_ops) against their parts called one after the other on the same queue, bit for bit: all that
 * either writes, with what lies beside it. A device's are called on its own queue with arrays in its memory (not on the staged one),
 * because an op's parts hand arrays to one another. */
#include "fused_data.h"

#include <string.h>

#define EPS 1e-5f

/* x += d, through a norm or not; normed and prepared, or not. */
static void check_residual(struct check *c, struct fused_room *room, const struct fused_layer *l, size_t rows,
                           bool added, bool d_norm, bool next, bool kept)
{
    const struct walsh_queue *q = room->q;
    const size_t n = l->hidden, ld = walsh_activations_stride(n);
    const struct walsh_unrotated d = fused_output(room, &l->o, rows), again = fused_again(room, &d, rows);
    const float *norm = fused_random(room, n), *weight = fused_random(room, n);
    struct fused_pair x = fused_pair(room, rows * n, true), normed = fused_pair(room, rows * ld, false);
    struct fused_prepared a = fused_prepared(room, &l->in[0], l->type, rows);
    q->ops->fused->residual(q, x.got, n, added ? &d : NULL, d_norm ? norm : NULL, next ? weight : NULL, EPS,
                            kept ? normed.got : NULL, ld, &a.got, &l->in[0]);
    if (added) {
        float *delta = fused_take(room, rows * n);
        q->ops->unrotate(q, delta, n, again.z, again.ld, again.rotation, again.bias, rows);
        if (d_norm) q->ops->rms_norm(q, delta, n, delta, n, norm, rows, n, EPS);
        q->ops->add(q, x.expected, delta, rows * n);
    }
    if (next) {
        q->ops->rms_norm(q, normed.expected, ld, x.expected, n, weight, rows, n, EPS);
        q->ops->prepare(q, &a.expected, normed.expected, ld, &l->in[0]);
        fused_compare_prepared(c, room, "residual: prepared", &a);
    }
    fused_compare(c, room, "residual: x", &x);
    if (next && kept) fused_compare(c, room, "residual: normed", &normed);
}

static void check_gated(struct check *c, struct fused_room *room, const struct fused_layer *l, size_t rows,
                        bool gelu, bool kept)
{
    const struct walsh_queue *q = room->q;
    const size_t n = l->wide, ld = walsh_activations_stride(n);
    const struct walsh_unrotated gate = fused_output(room, &l->gate, rows),
                                 up = fused_output(room, &l->up, rows),
                                 gate2 = fused_again(room, &gate, rows), up2 = fused_again(room, &up, rows);
    struct fused_pair y = fused_pair(room, rows * ld, false);
    struct fused_prepared a = fused_prepared(room, &l->in[3], l->type, rows);
    float *first = fused_take(room, rows * ld), *second = fused_take(room, rows * ld);
    q->ops->fused->gated(q, &a.got, &l->in[3], kept ? y.got : NULL, ld, &gate, &up, n, gelu);
    q->ops->unrotate(q, first, ld, gate2.z, gate2.ld, gate2.rotation, gate2.bias, rows);
    q->ops->unrotate(q, second, ld, up2.z, up2.ld, up2.rotation, up2.bias, rows);
    (gelu ? q->ops->geglu : q->ops->swiglu)(q, y.expected, ld, first, second, ld, rows, n);
    q->ops->prepare(q, &a.expected, y.expected, ld, &l->in[3]);
    fused_compare_prepared(c, room, "gated: prepared", &a);
    if (kept) fused_compare(c, room, "gated", &y);
}

/* What of q, k, v and attention a case has. */
struct way {
    bool norms, turned, kept;
    uint32_t window;
    float soft_cap;
    bool sinks;
};

static void project_parts(struct fused_room *room, const struct fused_layer *l, const struct way *w,
                          const struct walsh_projections *p, const struct fused_caches *caches, size_t rows,
                          const struct walsh_attention_shape *shape)
{
    const struct walsh_queue *q = room->q;
    const size_t width = (size_t)l->heads * l->head_dim, kv_width = (size_t)l->kv_heads * l->head_dim;
    q->ops->unrotate(q, p->query, width, p->q.z, p->q.ld, p->q.rotation, p->q.bias, rows);
    q->ops->unrotate(q, p->key, kv_width, p->k.z, p->k.ld, p->k.rotation, p->k.bias, rows);
    q->ops->unrotate(q, p->value, kv_width, p->v.z, p->v.ld, p->v.rotation, p->v.bias, rows);
    if (w->norms) {
        q->ops->rms_norm(q, p->query, l->head_dim, p->query, l->head_dim, p->q_norm, rows * l->heads,
                         l->head_dim, EPS);
        q->ops->rms_norm(q, p->key, l->head_dim, p->key, l->head_dim, p->k_norm, rows * l->kv_heads,
                         l->head_dim, EPS);
    }
    if (w->turned) {
        q->ops->rope(q, p->query, width, caches->positions, rows, l->heads, l->head_dim, p->rotated,
                     p->cosine, p->sine);
        q->ops->rope(q, p->key, kv_width, caches->positions, rows, l->kv_heads, l->head_dim, p->rotated,
                     p->cosine, p->sine);
    }
    q->ops->kv_append(q, fused_rows(room, caches, 1, FUSED_LAYER, rows), rows, p->key, p->value, kv_width,
                      shape);
}

/* project, then attention, against the parts; again with attend in the place of both, where it takes the case. */
static void check_attention(struct check *c, struct fused_room *room, const struct fused_layer *l,
                            enum fused_kind kind, const struct way *w, size_t rows)
{
    const struct walsh_queue *q = room->q;
    const bool host = !q->memory;
    const size_t width = (size_t)l->heads * l->head_dim, kv_width = (size_t)l->kv_heads * l->head_dim,
                 ldo = walsh_activations_stride(width);
    const size_t half = l->head_dim / 2;
    struct fused_caches caches;
    if (!fused_caches(room, l, kind, rows, &caches)) return;
    struct walsh_attention_shape shape = {.heads = l->heads,
                                          .kv_heads = l->kv_heads,
                                          .head_dim = l->head_dim,
                                          .scale = 0.1f,
                                          .window = w->window,
                                          .soft_cap = w->soft_cap,
                                          .sinks = w->sinks ? fused_random(room, l->heads) : NULL,
                                          .kinds = caches.kinds};
    if (!fused_fits(room, l, &shape)) {
        fused_close_caches(room, &caches);
        return;
    }
    room->fitted++;
    const struct walsh_unrotated z[3] = {fused_output(room, &l->q, rows), fused_output(room, &l->k, rows),
                                         fused_output(room, &l->v, rows)};
    struct fused_pair query = fused_pair(room, rows * width, false),
                      out = fused_pair(room, rows * ldo, false);
    struct fused_prepared a = fused_prepared(room, &l->in[1], l->type, rows);
    struct walsh_projections p = {.q = z[0],
                                  .k = z[1],
                                  .v = z[2],
                                  .q_norm = w->norms ? fused_random(room, l->head_dim) : NULL,
                                  .k_norm = w->norms ? fused_random(room, l->head_dim) : NULL,
                                  .eps = EPS,
                                  .rotated = w->turned ? l->head_dim : 0,
                                  .cosine = fused_random(room, FUSED_TOKENS * half),
                                  .sine = fused_random(room, FUSED_TOKENS * half),
                                  .layer = host ? 0 : FUSED_LAYER,
                                  .query = query.got,
                                  .key = fused_take(room, rows * kv_width),
                                  .value = fused_take(room, rows * kv_width)};
    struct walsh_projections parts = p;
    parts.q = fused_again(room, &z[0], rows), parts.k = fused_again(room, &z[1], rows),
    parts.v = fused_again(room, &z[2], rows);
    parts.query = query.expected;
    parts.key = fused_take(room, rows * kv_width), parts.value = fused_take(room, rows * kv_width);
    project_parts(room, l, w, &parts, &caches, rows, &shape);
    q->ops->attention(q, out.expected, ldo, query.expected, width,
                      fused_rows(room, &caches, 1, FUSED_LAYER, rows), rows, &shape, WALSH_DECODE);
    q->ops->prepare(q, &a.expected, out.expected, ldo, &l->in[1]);

    /* the host's rows name the layer's view, a device's the first one */
    p.rows = fused_rows(room, &caches, 0, host ? FUSED_LAYER : 0, rows);
    const struct walsh_projections once = {.q = fused_again(room, &z[0], rows),
                                           .k = fused_again(room, &z[1], rows),
                                           .v = fused_again(room, &z[2], rows)};
    float *kept = w->kept || host ? out.got : NULL;
    q->ops->fused->project(q, &p, rows, &shape);
    q->ops->fused->attention(q, &a.got, &l->in[1], kept, ldo, query.got, width, p.rows, p.layer, &shape,
                             WALSH_DECODE);
    fused_compare(c, room, "project: query", &query);
    fused_compare_caches(c, room, "project: caches", &caches);
    fused_compare_prepared(c, room, "attention: prepared", &a);
    if (kept) fused_compare(c, room, "attention", &out);

    if (q->ops->fused->attend) {
        fused_poison(room, &out), fused_poison_prepared(room, &a);
        fused_restore_caches(room, &caches);
        p.q = once.q, p.k = once.k, p.v = once.v;
        if (q->ops->fused->attend(q, &p, &shape, &a.got, &l->in[1], kept, ldo)) {
            room->attended++;
            fused_compare_caches(c, room, "attend: caches", &caches);
            fused_compare_prepared(c, room, "attend: prepared", &a);
            if (kept) fused_compare(c, room, "attend", &out);
        }
    }
    fused_close_caches(room, &caches);
}

static void check_layer(struct check *c, struct fused_room *room, const struct fused_sizes *sizes, unsigned n)
{
    static const size_t counts[] = {1, 3, 8, 20, 33};
    enum { COUNTS = sizeof counts / sizeof *counts };
    const size_t rows = counts[(n + c->round) % COUNTS], others = counts[(n * 2 + c->round + 1) % COUNTS];
    struct fused_layer l;
    fused_begin(room);
    fused_layer(c, room, sizes, n, &l);
    struct walsh_attention_shape shape = {.heads = l.heads, .kv_heads = l.kv_heads, .head_dim = l.head_dim};
    if (fused_fits(room, &l, &shape)) {
        for (unsigned way = 0; way < 4; way++) {
            fused_mark(room);
            check_residual(c, room, &l, way % 2 ? rows : others, way != 1, way == 2, way != 3,
                           n % 2 == way % 2);
            fused_release(room);
        }
        for (unsigned way = 0; way < 2; way++) {
            fused_mark(room);
            check_gated(c, room, &l, way ? rows : others, (n + way) % 2, way == c->round % 2);
            fused_release(room);
        }
    }
    for (unsigned kind = 0; kind < FUSED_KINDS; kind++) {
        const struct way w = {.norms = (n + kind) % 3 == 0,
                              .turned = (n + kind) % 4 != 1,
                              .kept = (n + kind + c->round) % 2,
                              .window = kind % 2 && n % 3 == 1 ? 40 : 0,
                              .soft_cap = n % 4 == 3 && c->round % 2 ? 2 : 0,
                              .sinks = (n + c->round) % 4 == 2};
        fused_mark(room);
        check_attention(c, room, &l, (enum fused_kind)kind, &w, kind % 2 ? rows : others);
        fused_release(room);
    }
    fused_end(room);
}

void check_op_fused(struct check *c, const struct check_queues *queues)
{
    struct fused_room room;
    if (!fused_open(c, &room, &queues->best[c->round % 3])) return;
    for (unsigned n = 0; n < fused_sizes_count; n++)
        if (check_part(c)) check_layer(c, &room, &fused_sizes[n], n);
    if (c->parts == 0 && room.fitted == 0) check_fail(c, "no layer of the cases is for the fused ops");
    if (c->parts == 0 && room.q->ops->fused->attend && room.attended == 0)
        check_fail(c, "no case went by project and attention in one");
    fused_close(&room);
}

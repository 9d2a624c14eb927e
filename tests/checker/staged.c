#include "staged.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "formats/low_rank.h"
#include "kernels/draw.h"

#define ROOM ((size_t)1 << 30)
#define GUARD_BYTES 256
#define GUARD 0x5A
#define ARRAYS 512

struct staged_array {
    void *host;
    uint8_t *device;
    size_t bytes;
    bool out;
};

static void stop(const char *message)
{
    printf("FAIL the device: %s\n", message);
    exit(1);
}

static void must(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) stop(err->message);
}

static struct staged *of(const struct walsh_queue *q)
{
    return q->device;
}

/* Room between guards, as far from a multiple of 256 bytes as `like` is from one of 64. */
static uint8_t *take(struct staged *s, size_t bytes, const void *like)
{
    const struct walsh_queue *q = &s->device;
    const size_t misalign = (uintptr_t)like % 64;
    uint8_t *at = s->room + s->used;
    const size_t all = walsh_round_up(GUARD_BYTES + misalign + bytes + GUARD_BYTES, 256);
    s->used += all;
    if (s->used > ROOM) stop("a case needs more room than the checker has");
    q->memory->fill(q, at, GUARD, all);
    return at + GUARD_BYTES + misalign;
}

static void *stage(struct staged *s, const void *host, size_t bytes, bool out, bool aligned)
{
    struct walsh_error err;
    if (host == NULL) return NULL;
    if (s->count == ARRAYS) stop("too many arrays of one op");
    uint8_t *device = take(s, bytes, aligned ? NULL : host);
    must(s->device.memory->upload(&s->device, device, host, bytes, &err), &err);
    s->arrays[s->count++] = (struct staged_array){(void *)(uintptr_t)host, device, bytes, out};
    return device;
}

static const void *in(struct staged *s, const void *host, size_t bytes)
{
    return stage(s, host, bytes, false, false);
}
static void *out(struct staged *s, void *host, size_t bytes)
{
    return stage(s, host, bytes, true, false);
}
static size_t span(size_t rows, size_t ld, size_t n, size_t element)
{
    return rows == 0 ? 0 : ((rows - 1) * ld + n) * element;
}

static void check_guard(struct staged *s, const uint8_t *guard, size_t of_bytes)
{
    for (size_t i = 0; i < GUARD_BYTES && !s->overrun; i++)
        if (guard[i] != GUARD) {
            printf("FAIL an op wrote beside a device array of %zu bytes\n", of_bytes);
            s->overrun = true;
        }
}

/* The op is done: what it wrote goes to the host, by one copy of the room (each costs much under compute-sanitizer), and the room is
 * free again. */
static void finish(struct staged *s)
{
    struct walsh_error err;
    uint8_t *image = malloc(s->used + 1);
    if (image == NULL) stop("out of memory");
    must(s->device.memory->download(&s->device, image, s->room, s->used, &err), &err);
    for (size_t i = 0; i < s->count; i++) {
        const struct staged_array *a = &s->arrays[i];
        const uint8_t *at = image + (a->device - s->room);
        if (!a->out) continue;
        memcpy(a->host, at, a->bytes);
        check_guard(s, at - GUARD_BYTES, a->bytes);
        check_guard(s, at + a->bytes, a->bytes);
    }
    free(image);
    for (size_t i = 0; i < s->codecs_count; i++) {
        uint64_t saturated = 0;
        must(s->device.memory->read_codecs(&s->device, s->codecs[i].device, &saturated, &err), &err);
        atomic_fetch_add(&s->codecs[i].host->saturated, saturated);
        s->device.memory->free(&s->device, s->codecs[i].device);
    }
    s->used = s->count = s->codecs_count = 0;
}

static void embed(const struct walsh_queue *q, float *y, const struct walsh_weights *table,
                  const int32_t *ids, size_t rows)
{
    struct staged *s = of(q);
    struct walsh_weights w;
    struct walsh_error err;
    must(s->device.memory->upload_weights(&s->device, table, "a table", &w, &err), &err);
    s->device.ops->embed(&s->device, out(s, y, rows * table->cols * 4), &w, in(s, ids, rows * 4), rows);
    finish(s);
    s->device.memory->free_weights(&s->device, &w);
}

static void rms_norm(const struct walsh_queue *q, float *y, size_t ldy, const float *x, size_t ldx,
                     const float *weight, size_t rows, size_t n, float eps)
{
    struct staged *s = of(q);
    float *to = out(s, y, span(rows, ldy, n, 4));
    const float *from = x == y ? to : in(s, x, span(rows, ldx, n, 4));
    s->device.ops->rms_norm(&s->device, to, ldy, from, ldx, in(s, weight, n * 4), rows, n, eps);
    finish(s);
}

static void add(const struct walsh_queue *q, float *x, const float *d, size_t n)
{
    struct staged *s = of(q);
    s->device.ops->add(&s->device, out(s, x, n * 4), in(s, d, n * 4), n);
    finish(s);
}

/* Elements of scale and of sum; none of f32 and bf16. */
static bool is_int8(const struct walsh_activations *a)
{
    return a->type == WALSH_ACTIVATION_INT8 || a->type == WALSH_ACTIVATION_INT8_GROUPS;
}
static size_t scales_of(const struct walsh_activations *a)
{
    return is_int8(a) ? a->rows * walsh_activation_scales(a->type, a->stride) : 0;
}
static size_t sums_of(const struct walsh_activations *a)
{
    return is_int8(a) ? a->rows * walsh_activation_sums(a->type, a->stride) : 0;
}

static void prepare(const struct walsh_queue *q, struct walsh_activations *a, const float *x, size_t ldx,
                    const struct walsh_rotation *rotation)
{
    struct staged *s = of(q);
    struct walsh_rotation r;
    struct walsh_error err;
    struct walsh_activations da = *a;
    must(s->device.memory->upload_rotation(&s->device, rotation, "a rotation", &r, &err), &err);
    da.data = out(s, a->data, a->rows * a->stride * walsh_activation_size(a->type));
    const size_t scales = scales_of(a), sums = sums_of(a);
    da.scale = scales > 0 ? out(s, a->scale, scales * 4) : NULL;
    da.sum = sums > 0 ? out(s, a->sum, sums * 4) : NULL;
    s->device.ops->prepare(&s->device, &da, in(s, x, span(a->rows, ldx, rotation->size, 4)), ldx, &r);
    finish(s);
    s->device.memory->free(&s->device, (void *)(uintptr_t)r.signs);
}

#define MOST_PRODUCTS 32
#define MOST_UPDATES 64

struct staged_low_rank {
    struct walsh_low_rank_input input;
    struct walsh_low_rank_down down[MOST_UPDATES];
    struct walsh_low_rank_up up[MOST_UPDATES];
    size_t ups;
};

static size_t low_rank_element(enum walsh_format format)
{
    return format == WALSH_FORMAT_F32 ? 4 : 2;
}

static void stage_downs(struct staged *s, struct staged_low_rank *l, const struct walsh_low_rank_input *input,
                        size_t rows, enum walsh_role role)
{
    l->input = *input;
    l->input.x = in(s, input->x, span(rows, input->ldx, input->cols, 4));
    l->input.down = l->down;
    if (input->count > MOST_UPDATES) stop("too many low-rank updates");
    for (size_t i = 0; i < input->count; i++) {
        const struct walsh_low_rank_down *d = &input->down[i];
        l->down[i] = *d;
        l->down[i].a = stage(
            s, d->a, walsh_low_rank_a_size(d->rank, input->cols) * low_rank_element(d->format), false, true);
        l->down[i].h = out(s, d->h,
                           walsh_low_rank_scratch(d->rank, input->cols, d->row_end - d->row_begin, role) *
                               sizeof(float));
    }
}

static void product(const struct walsh_queue *q, const struct walsh_product *list, size_t count,
                    const struct walsh_activations *a, const struct walsh_low_rank_input *low_rank,
                    enum walsh_role role)
{
    struct staged *s = of(q);
    struct walsh_weights w[MOST_PRODUCTS];
    struct walsh_product products[MOST_PRODUCTS];
    static struct staged_low_rank l;
    struct walsh_error err;
    struct walsh_activations da = *a;
    da.data = stage(s, a->data, a->rows * a->stride * walsh_activation_size(a->type), false, true);
    const size_t scales = scales_of(a), sums = sums_of(a);
    da.scale = scales > 0 ? stage(s, a->scale, scales * 4, false, true) : NULL;
    da.sum = sums > 0 ? stage(s, a->sum, sums * 4, false, true) : NULL;
    l.ups = 0;
    if (low_rank) stage_downs(s, &l, low_rank, a->rows, role);
    if (count > MOST_PRODUCTS) stop("too many products");
    for (size_t i = 0; i < count; i++) {
        must(s->device.memory->upload_weights(&s->device, list[i].weights, "weights", &w[i], &err), &err);
        products[i] = list[i];
        products[i].weights = &w[i];
        products[i].y = out(s, list[i].y, span(a->rows, list[i].ldy, list[i].weights->rows, 4));
        if (list[i].up_count == 0) continue;
        products[i].up = &l.up[l.ups];
        for (size_t u = 0; u < list[i].up_count; u++) {
            if (l.ups == MOST_UPDATES) stop("too many low-rank updates");
            const struct walsh_low_rank_down *d = &l.down[list[i].up[u].down];
            l.up[l.ups] = list[i].up[u];
            l.up[l.ups++].b = stage(s, list[i].up[u].b,
                                    walsh_low_rank_b_size(d->format, d->rank, list[i].weights->rows) *
                                        low_rank_element(d->format),
                                    false, true);
        }
    }
    s->device.ops->product(&s->device, products, count, &da, low_rank ? &l.input : NULL, role);
    finish(s);
    for (size_t i = 0; i < count; i++) s->device.memory->free_weights(&s->device, &w[i]);
}

static void unrotate(const struct walsh_queue *q, float *y, size_t ldy, float *z, size_t ldz,
                     const struct walsh_rotation *rotation, const float *bias, size_t rows)
{
    struct staged *s = of(q);
    struct walsh_rotation r;
    struct walsh_error err;
    must(s->device.memory->upload_rotation(&s->device, rotation, "a rotation", &r, &err), &err);
    float *from = out(s, z, span(rows, ldz, rotation->blocks.padded, 4));
    float *to = y == z ? from : out(s, y, span(rows, ldy, rotation->size, 4));
    s->device.ops->unrotate(&s->device, to, ldy, from, ldz, &r, in(s, bias, (size_t)rotation->size * 4),
                            rows);
    finish(s);
    s->device.memory->free(&s->device, (void *)(uintptr_t)r.signs);
}

static void rope(const struct walsh_queue *q, float *x, size_t ldx, const uint32_t *positions, size_t rows,
                 uint32_t heads, uint32_t head_dim, uint32_t rotated, const float *cosine, const float *sine)
{
    struct staged *s = of(q);
    uint32_t most = 0;
    for (size_t i = 0; i < rows; i++)
        if (positions[i] > most) most = positions[i];
    const size_t bytes = ((size_t)most + 1) * (rotated / 2) * 4;
    s->device.ops->rope(&s->device, out(s, x, span(rows, ldx, (size_t)heads * head_dim, 4)), ldx,
                        in(s, positions, rows * 4), rows, heads, head_dim, rotated, in(s, cosine, bytes),
                        in(s, sine, bytes));
    finish(s);
}

/* A page; one that several entries of a table name, as a ring's do, goes up once. */
static void *stage_page(struct staged *s, const void *host, size_t bytes, bool written)
{
    for (size_t i = 0; i < s->count; i++)
        if (host && s->arrays[i].host == host) return s->arrays[i].device;
    return stage(s, host, bytes, written, true);
}

static struct walsh_turbo_codecs *stage_codecs(struct staged *s, struct walsh_turbo_codecs *host)
{
    struct walsh_error err;
    size_t i = 0;
    if (host == NULL) return NULL;
    while (i < s->codecs_count && s->codecs[i].host != host) i++;
    if (i == STAGED_CODECS) stop("too many codecs of one op");
    if (i == s->codecs_count) {
        s->codecs[i].host = host;
        must(s->device.memory->upload_codecs(&s->device, host, &s->codecs[i].device, &err), &err);
        s->codecs_count++;
    }
    return s->codecs[i].device;
}

static size_t page_bytes(const struct walsh_kv_view *kv, enum walsh_turbo_side side,
                         const struct walsh_attention_shape *shape)
{
    if (kv->type == WALSH_KV_TURBO)
        return shape->kv_heads * walsh_turbo_page_head_bytes(kv->turbo, side, kv->page_tokens);
    return (size_t)shape->kv_heads * kv->page_tokens * shape->head_dim * (kv->type == WALSH_KV_F32 ? 4 : 2);
}

/* The view on the device: the pages up to the last position of the rows, their table and the view itself. */
static const struct walsh_kv_view *stage_view(struct staged *s, const struct walsh_kv_view *kv, uint32_t last,
                                              bool written, const struct walsh_attention_shape *shape)
{
    enum { VIEWS = 32 };
    static struct walsh_kv_view views[VIEWS]; /* what is uploaded must live until the op is done */
    static void *tables[VIEWS][2][64];
    static size_t next;
    const size_t slot = next++ % VIEWS, pages = last / kv->page_tokens + 1;
    if (pages > 64) stop("a cache that the checker does not stage");
    for (size_t p = 0; p < pages; p++) {
        tables[slot][0][p] = stage_page(s, kv->k_pages[p], page_bytes(kv, WALSH_TURBO_KEY, shape), written);
        tables[slot][1][p] = stage_page(s, kv->v_pages[p], page_bytes(kv, WALSH_TURBO_VALUE, shape), written);
    }
    views[slot] = *kv;
    views[slot].k_pages = stage(s, tables[slot][0], pages * sizeof(void *), false, true);
    views[slot].v_pages = stage(s, tables[slot][1], pages * sizeof(void *), false, true);
    views[slot].turbo = stage_codecs(s, kv->turbo);
    views[slot].recent = kv->recent ? stage_view(s, kv->recent, last, written, shape) : NULL;
    return stage(s, &views[slot], sizeof views[slot], false, true);
}

/* A prompt's own rows: the view stays on the host, its page does not. */
struct staged_own {
    struct walsh_kv_view view;
    void *pages[2];
};
static const struct walsh_kv_view *stage_own(struct staged *s, struct staged_own *own, bool written,
                                             const struct walsh_attention_shape *shape)
{
    if (shape->own == NULL) return NULL;
    const size_t bytes = page_bytes(shape->own, WALSH_TURBO_KEY, shape);
    own->pages[0] = stage_page(s, shape->own->k_pages[0], bytes, written);
    own->pages[1] = stage_page(s, shape->own->v_pages[0], bytes, written);
    own->view = *shape->own;
    own->view.k_pages = own->pages;
    own->view.v_pages = own->pages + 1;
    return &own->view;
}

static const struct walsh_attention_row *stage_rows(struct staged *s, const struct walsh_attention_row *rows,
                                                    size_t count, bool written,
                                                    const struct walsh_attention_shape *shape,
                                                    struct walsh_attention_row *room)
{
    for (size_t i = 0; i < count; i++) {
        room[i] = rows[i];
        size_t same = 0;
        uint32_t last = 0;
        while (same < i && rows[same].kv != rows[i].kv) same++;
        if (same < i) {
            room[i].kv = room[same].kv;
            continue;
        }
        for (size_t j = i; j < count; j++)
            if (rows[j].kv == rows[i].kv && rows[j].position > last) last = rows[j].position;
        room[i].kv = stage_view(s, rows[i].kv, last, written, shape);
    }
    return stage(s, room, count * sizeof *room, false, true);
}

static struct walsh_attention_row *row_room(size_t count)
{
    struct walsh_attention_row *room = malloc((count + 1) * sizeof *room);
    if (room == NULL) stop("out of memory");
    return room;
}

static void kv_append(const struct walsh_queue *q, const struct walsh_attention_row *rows, size_t count,
                      const float *k, const float *v, size_t ld, const struct walsh_attention_shape *shape)
{
    struct staged *s = of(q);
    struct walsh_attention_row *room = row_room(count);
    const size_t bytes = span(count, ld, (size_t)shape->kv_heads * shape->head_dim, 4);
    struct walsh_attention_shape device_shape = *shape;
    struct staged_own own;
    device_shape.own = stage_own(s, &own, true, shape);
    s->device.ops->kv_append(&s->device, stage_rows(s, rows, count, true, shape, room), count,
                             in(s, k, bytes), in(s, v, bytes), ld, &device_shape);
    finish(s);
    free(room);
}

static void attention(const struct walsh_queue *q, float *y, size_t ldo, const float *query, size_t ldq,
                      const struct walsh_attention_row *rows, size_t count,
                      const struct walsh_attention_shape *shape, enum walsh_role role)
{
    struct staged *s = of(q);
    struct walsh_attention_row *room = row_room(count);
    const size_t width = (size_t)shape->heads * shape->head_dim;
    struct walsh_attention_shape device_shape = *shape;
    struct staged_own own;
    device_shape.sinks = in(s, shape->sinks, shape->heads * sizeof(float));
    device_shape.own = stage_own(s, &own, false, shape);
    s->device.ops->attention(&s->device, out(s, y, span(count, ldo, width, 4)), ldo,
                             in(s, query, span(count, ldq, width, 4)), ldq,
                             stage_rows(s, rows, count, false, shape, room), count, &device_shape, role);
    finish(s);
    free(room);
}

/* Key pages are as those of one head of `width`. */
static void short_conv(const struct walsh_queue *q, float *y, size_t ldo, const float *x, size_t ldx,
                       const struct walsh_attention_row *rows, size_t count, const float *weight,
                       const float *bias, uint32_t taps, uint32_t width)
{
    struct staged *s = of(q);
    struct walsh_attention_row *room = row_room(count);
    const struct walsh_attention_shape shape = {.heads = 1, .kv_heads = 1, .head_dim = width};
    s->device.ops->short_conv(
        &s->device, out(s, y, span(count, ldo, width, 4)), ldo,
        in(s, x, span(count, ldx, 3 * (size_t)width, 4)), ldx, stage_rows(s, rows, count, true, &shape, room),
        count, in(s, weight, (size_t)taps * width * 4), in(s, bias, (size_t)width * 4), taps, width);
    finish(s);
    free(room);
}

static void swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                   size_t ld, size_t rows, size_t n)
{
    struct staged *s = of(q);
    float *to = out(s, y, span(rows, ldy, n, 4));
    const float *from = gate == y ? to : in(s, gate, span(rows, ld, n, 4));
    s->device.ops->swiglu(&s->device, to, ldy, from, in(s, up, span(rows, ld, n, 4)), ld, rows, n);
    finish(s);
}

static void geglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate, const float *up,
                  size_t ld, size_t rows, size_t n)
{
    struct staged *s = of(q);
    float *to = out(s, y, span(rows, ldy, n, 4));
    const float *from = gate == y ? to : in(s, gate, span(rows, ld, n, 4));
    s->device.ops->geglu(&s->device, to, ldy, from, in(s, up, span(rows, ld, n, 4)), ld, rows, n);
    finish(s);
}

static void scale(const struct walsh_queue *q, float *x, float factor, size_t n)
{
    struct staged *s = of(q);
    s->device.ops->scale(&s->device, out(s, x, n * 4), factor, n);
    finish(s);
}

static void soft_cap(const struct walsh_queue *q, float *x, float cap, size_t n)
{
    struct staged *s = of(q);
    s->device.ops->soft_cap(&s->device, out(s, x, n * 4), cap, n);
    finish(s);
}

static void route(const struct walsh_queue *q, int32_t *index, float *weight, const float *logits,
                  size_t rows, uint32_t experts, uint32_t k, bool normalize)
{
    struct staged *s = of(q);
    s->device.ops->route(&s->device, out(s, index, rows * k * 4), out(s, weight, rows * k * 4),
                         in(s, logits, rows * experts * 4), rows, experts, k, normalize);
    finish(s);
}

static void clamped_swiglu(const struct walsh_queue *q, float *y, size_t ldy, const float *gate,
                           const float *up, size_t ld, size_t rows, size_t n, float alpha, float limit)
{
    struct staged *s = of(q);
    float *to = out(s, y, span(rows, ldy, n, 4));
    const float *from = gate == y ? to : in(s, gate, span(rows, ld, n, 4));
    s->device.ops->clamped_swiglu(&s->device, to, ldy, from, in(s, up, span(rows, ld, n, 4)), ld, rows, n,
                                  alpha, limit);
    finish(s);
}

static void gather(const struct walsh_queue *q, float *y, size_t ldo, const float *x, size_t ldx,
                   const uint32_t *index, size_t rows, size_t n)
{
    struct staged *s = of(q);
    size_t last = 0;
    for (size_t i = 0; i < rows; i++) last = walsh_max(last, index[i]);
    s->device.ops->gather(&s->device, out(s, y, span(rows, ldo, n, 4)), ldo,
                          in(s, x, span(last + 1, ldx, n, 4)), ldx, in(s, index, rows * 4), rows, n);
    finish(s);
}

static void combine(const struct walsh_queue *q, float *x, size_t n, float *y, const uint32_t *slot,
                    const float *weight, size_t rows, uint32_t k)
{
    struct staged *s = of(q);
    size_t last = 0;
    for (size_t i = 0; i < rows * k; i++) last = walsh_max(last, slot[i]);
    s->device.ops->combine(&s->device, out(s, x, rows * n * 4), n, out(s, y, (last + 1) * n * 4),
                           in(s, slot, rows * k * 4), in(s, weight, rows * k * 4), rows, k);
    finish(s);
}

/* The draws go up with what they point to; the logits come back. */
static void draw(const struct walsh_queue *q, int32_t *ids, float *logits, uint32_t vocab,
                 const struct walsh_draws *draws)
{
    struct staged *s = of(q);
    struct walsh_draws on_device = *draws;
    struct walsh_draw *rows = malloc(draws->count * sizeof *rows);
    if (rows == NULL) stop("out of memory");
    for (size_t i = 0; i < draws->count; i++) {
        rows[i] = draws->rows[i];
        rows[i].edits = stage(s, rows[i].edits, rows[i].edit_count * sizeof *rows[i].edits, false, true);
        rows[i].mask = stage(s, rows[i].mask, ((size_t)vocab + 63) / 64 * 8, false, true);
    }
    on_device.rows = stage(s, rows, draws->count * sizeof *rows, false, true);
    s->device.ops->draw(&s->device, out(s, ids, draws->count * 4), out(s, logits, draws->count * vocab * 4),
                        vocab, &on_device);
    finish(s);
    free(rows);
}

struct staged *staged_of(const struct walsh_queue *q)
{
    return of(q);
}
const void *staged_in(struct staged *s, const void *host, size_t bytes)
{
    return in(s, host, bytes);
}
void *staged_out(struct staged *s, void *host, size_t bytes)
{
    return out(s, host, bytes);
}
size_t staged_span(size_t rows, size_t ld, size_t n, size_t element)
{
    return span(rows, ld, n, element);
}
void staged_must(enum walsh_status status, const struct walsh_error *err)
{
    must(status, err);
}
void staged_finish(struct staged *s)
{
    finish(s);
}

static const struct walsh_ops ops = {
    .embed = embed,
    .rms_norm = rms_norm,
    .add = add,
    .prepare = prepare,
    .product = product,
    .unrotate = unrotate,
    .rope = rope,
    .short_conv = short_conv,
    .kv_append = kv_append,
    .attention = attention,
    .swiglu = swiglu,
    .geglu = geglu,
    .scale = scale,
    .soft_cap = soft_cap,
    .route = route,
    .clamped_swiglu = clamped_swiglu,
    .gather = gather,
    .combine = combine,
    .draw = draw,
    .quantize = &staged_quantize_ops,
    .train = &staged_train_ops,
};

void staged_open(struct staged *s, const struct walsh_device_module *module, unsigned device,
                 const struct walsh_queue *cpu, struct walsh_queue *queue)
{
    struct walsh_error err;
    memset(s, 0, sizeof *s);
    must(module->open(device, NULL, &s->device, &err), &err);
    must(s->device.memory->alloc(&s->device, ROOM, "the checker", &s->room, &err), &err);
    s->arrays = malloc(ARRAYS * sizeof *s->arrays);
    if (s->arrays == NULL) stop("out of memory");
    *queue = *cpu;
    queue->ops = &ops;
    queue->device = s;
}

void staged_close(struct staged *s, const struct walsh_device_module *module)
{
    s->device.memory->free(&s->device, s->room);
    module->close(&s->device);
    free(s->arrays);
}

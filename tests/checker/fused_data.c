#include "fused_data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "staged.h"

#define ROOM_BYTES ((size_t)256 << 20)
#define POISON 0xA5

/* Of three that follow one another one has int8 activations: the first three are of sizes that attend takes. */
const struct fused_sizes fused_sizes[] = {
    {1024, 8, 2, 128, 2816}, {2048, 16, 4, 128, 11008}, {256, 4, 4, 64, 1280},  {320, 5, 1, 64, 896},
    {576, 9, 3, 64, 1536},   {192, 6, 6, 32, 320},      {512, 8, 1, 128, 4096},
};
const unsigned fused_sizes_count = sizeof fused_sizes / sizeof *fused_sizes;

static void must(enum walsh_status status, const struct walsh_error *err)
{
    if (status == WALSH_OK) return;
    printf("FAIL the fused ops' case: %s\n", err->message);
    exit(1);
}

static void stop(const char *message)
{
    printf("FAIL the fused ops' case: %s\n", message);
    exit(1);
}

static void *host_alloc(size_t bytes)
{
    void *p = malloc(bytes > 0 ? bytes : 1);
    if (p == NULL) stop("out of memory");
    return p;
}

/* --- memory --- */

bool fused_open(struct check *c, struct fused_room *room, const struct walsh_queue *queue)
{
    struct walsh_error err;
    const struct walsh_queue *q = queue->device ? &staged_of(queue)->device : queue;
    if (!q->ops->fused) return false;
    *room = (struct fused_room){.c = c, .q = q};
    must(walsh_queue_alloc(q, ROOM_BYTES, "the fused ops' case", &room->base, &err), &err);
    return true;
}

static void settle(struct fused_room *room)
{
    struct walsh_error err;
    if (room->q->memory) must(room->q->memory->synchronize(room->q, &err), &err);
}

void fused_close(struct fused_room *room)
{
    settle(room);
    walsh_queue_free(room->q, room->base);
}

void fused_begin(struct fused_room *room)
{
    room->used = 0;
}
void fused_end(struct fused_room *room)
{
    settle(room);
    room->used = 0;
}
void fused_mark(struct fused_room *room)
{
    room->marked = room->used;
}
void fused_release(struct fused_room *room)
{
    settle(room);
    room->used = room->marked;
}

static void fill(struct fused_room *room, void *p, int byte, size_t bytes)
{
    if (room->q->memory)
        room->q->memory->fill(room->q, p, byte, bytes);
    else
        memset(p, byte, bytes);
}

static void *take(struct fused_room *room, size_t bytes)
{
    uint8_t *p = room->base + room->used;
    room->used += walsh_round_up(bytes + 64, 256); /* what lies behind an array is nobody's */
    if (room->used > ROOM_BYTES) stop("a case needs more room than there is");
    fill(room, p, POISON, bytes);
    return p;
}

static void send(struct fused_room *room, void *to, const void *from, size_t bytes)
{
    struct walsh_error err;
    must(walsh_queue_upload(room->q, to, from, bytes, &err), &err);
}

float *fused_take(struct fused_room *room, size_t n)
{
    return take(room, n * sizeof(float));
}

const float *fused_random(struct fused_room *room, size_t n)
{
    float *to = fused_take(room, n), *host = host_alloc(n * sizeof *host);
    check_fill_normal(room->c, host, n);
    send(room, to, host, n * sizeof *host);
    free(host);
    return to;
}

/* Both on the host, compared there; they are part of the comparison of two runs. */
static void compare_bytes(struct check *c, struct fused_room *room, const char *what, const void *expected,
                          const void *got, size_t bytes)
{
    struct walsh_error err;
    uint8_t *e = check_alloc(c, bytes, 0), *g = check_alloc(c, bytes, 0);
    must(walsh_queue_download(room->q, e, expected, bytes, &err), &err);
    must(walsh_queue_download(room->q, g, got, bytes, &err), &err);
    check_exact_bytes(c, what, e, g, bytes);
}

struct fused_pair fused_pair(struct fused_room *room, size_t n, bool random)
{
    struct fused_pair p = {fused_take(room, n), fused_take(room, n), n};
    if (!random) return p;
    const float *values = fused_random(room, n);
    walsh_queue_copy(room->q, p.got, values, n * sizeof(float));
    walsh_queue_copy(room->q, p.expected, values, n * sizeof(float));
    return p;
}

void fused_poison(struct fused_room *room, struct fused_pair *p)
{
    fill(room, p->got, POISON, p->n * sizeof(float));
}

void fused_compare(struct check *c, struct fused_room *room, const char *what, const struct fused_pair *p)
{
    compare_bytes(c, room, what, p->expected, p->got, p->n * sizeof(float));
}

static size_t data_bytes(const struct walsh_activations *a)
{
    return a->rows * a->stride * walsh_activation_size(a->type);
}

struct fused_prepared fused_prepared(struct fused_room *room, const struct walsh_rotation *rotation,
                                     enum walsh_activation_type type, size_t rows)
{
    const size_t cols = rotation->blocks.padded;
    struct fused_prepared p = {
        {.type = type, .rows = rows, .cols = cols, .stride = walsh_activations_stride(cols)}, {0}};
    p.expected = p.got;
    for (int i = 0; i < 2; i++) {
        struct walsh_activations *a = i == 0 ? &p.got : &p.expected;
        a->data = take(room, data_bytes(a));
        a->scale = take(room, rows * sizeof *a->scale);
        a->sum = take(room, rows * sizeof *a->sum);
    }
    return p;
}

void fused_poison_prepared(struct fused_room *room, struct fused_prepared *p)
{
    fill(room, p->got.data, POISON, data_bytes(&p->got));
    fill(room, p->got.scale, POISON, p->got.rows * sizeof *p->got.scale);
    fill(room, p->got.sum, POISON, p->got.rows * sizeof *p->got.sum);
}

void fused_compare_prepared(struct check *c, struct fused_room *room, const char *what,
                            const struct fused_prepared *p)
{
    const struct walsh_activations *e = &p->expected, *g = &p->got;
    compare_bytes(c, room, what, e->data, g->data, data_bytes(g));
    compare_bytes(c, room, what, e->scale, g->scale, g->rows * sizeof *g->scale);
    compare_bytes(c, room, what, e->sum, g->sum, g->rows * sizeof *g->sum);
}

/* --- layers --- */

enum { PLAIN, BINARY, SCALED, POW2 }; /* rotations */

static struct walsh_rotation rotation_of(struct check *c, struct fused_room *room, uint32_t size, int how,
                                         uint32_t least, const char *stream)
{
    struct walsh_error err;
    struct walsh_rotation host = {.kind = how == PLAIN ? WALSH_ROTATION_NONE : WALSH_ROTATION_BLOCKS,
                                  .size = size},
                          out;
    host.blocks.padded = size;
    if (how == PLAIN) return host;
    must(how == POW2 ? walsh_blocks_pow2(size, least, &host.blocks, &err)
                     : walsh_blocks_binary(size, least, &host.blocks, &err),
         &err);
    const size_t n = walsh_rotation_signs(&host);
    float *signs = check_alloc(c, n * sizeof *signs, 0);
    walsh_random_signs(c->seed + c->round, stream, signs, (uint32_t)n);
    for (size_t i = 0; i < n && how == SCALED; i++) signs[i] *= 0.5f + (float)check_below(c, 3);
    host.signs = signs;
    if (!room->q->memory) return host;
    size_t bytes;
    must(room->q->memory->rotation_bytes(room->q, &host, stream, &bytes, &err), &err);
    must(room->q->memory->place_rotation(room->q, &host, stream, take(room, bytes), &out, &err), &err);
    return out;
}

void fused_layer(struct check *c, struct fused_room *room, const struct fused_sizes *sizes, unsigned n,
                 struct fused_layer *l)
{
    static const enum walsh_activation_type types[] = {WALSH_ACTIVATION_INT8, WALSH_ACTIVATION_BF16,
                                                       WALSH_ACTIVATION_F32};
    const uint32_t width = sizes->heads * sizes->head_dim, kv_width = sizes->kv_heads * sizes->head_dim,
                   inputs[4] = {sizes->hidden, width, sizes->hidden, sizes->wide},
                   outputs[7] = {width,       kv_width,    kv_width,     sizes->hidden,
                                 sizes->wide, sizes->wide, sizes->hidden};
    const unsigned way = n + c->round;
    *l = (struct fused_layer){.hidden = sizes->hidden,
                              .heads = sizes->heads,
                              .kv_heads = sizes->kv_heads,
                              .head_dim = sizes->head_dim,
                              .wide = sizes->wide,
                              .type = types[way % 3]};
    /* int8 has a rotation; block formats have plain inputs or outputs beside others */
    const int how = way % 3 == 0 ? way % 2 ? BINARY : POW2 : (int)((way + n) % 4),
              out_how = way % 4 == 1 ? PLAIN : how;
    char stream[20];
    for (unsigned i = 0; i < 4; i++) {
        snprintf(stream, sizeof stream, "in %u", i);
        l->in[i] = rotation_of(c, room, inputs[i], how, WALSH_MIN_BLOCK_COLUMNS, stream);
    }
    struct walsh_unrotated *const out[7] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    for (unsigned i = 0; i < 7; i++) {
        snprintf(stream, sizeof stream, "out %u", i);
        l->out[i] = rotation_of(c, room, outputs[i], out_how, WALSH_MIN_BLOCK_ROWS, stream);
        *out[i] = (struct walsh_unrotated){
            .rotation = &l->out[i], .bias = (way + i) % 3 == 0 ? fused_random(room, outputs[i]) : NULL};
    }
}

bool fused_fits(const struct fused_room *room, const struct fused_layer *l,
                const struct walsh_attention_shape *shape)
{
    struct walsh_fused_layer f = {.hidden = l->hidden,
                                  .attention = shape,
                                  .q = l->q,
                                  .k = l->k,
                                  .v = l->v,
                                  .o = l->o,
                                  .gate = l->gate,
                                  .up = l->up,
                                  .down = l->down};
    for (unsigned i = 0; i < 4; i++) f.in[i].rotation = &l->in[i], f.in[i].type = l->type;
    return room->q->ops->fused->fits(room->q, &f);
}

struct walsh_unrotated fused_output(struct fused_room *room, const struct walsh_unrotated *of, size_t rows)
{
    struct walsh_unrotated z = *of;
    /* rotated rows are apart as the products leave them; others may have any distance */
    z.ld = of->rotation->blocks.padded + (of->rotation->kind == WALSH_ROTATION_NONE ? 5 : 4);
    const size_t n = rows * z.ld;
    z.z = fused_take(room, n);
    walsh_queue_copy(room->q, z.z, fused_random(room, n), n * sizeof(float));
    return z;
}

struct walsh_unrotated fused_again(struct fused_room *room, const struct walsh_unrotated *z, size_t rows)
{
    struct walsh_unrotated copy = *z;
    copy.z = fused_take(room, rows * z->ld);
    walsh_queue_copy(room->q, copy.z, z->z, rows * z->ld * sizeof(float));
    return copy;
}

/* The caches of the fused ops' case. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/scalar.h"
#include "fused_data.h"

enum { PAGE = 64, RING_PAGE = 16, RING_PAGES = 8 };

/* Of a row's cache: how it is kept, and where its tables and pages begin. */
struct place {
    enum walsh_kv_type type;
    int codecs; /* -1: none */
    uint32_t tokens, recent;
    size_t key, value, ring; /* bytes of a page of either side, of a ring's page */
    size_t table, data;      /* offsets of a set */
};

static void must(enum walsh_status status, const struct walsh_error *err)
{
    if (status == WALSH_OK) return;
    printf("FAIL the fused ops' case: %s\n", err->message);
    exit(1);
}

static void open_codecs(struct fused_room *room, const struct fused_layer *l, struct fused_caches *out)
{
    static const unsigned bits[FUSED_CODECS][2] = {{4, 4}, {3, 4}, {8, 6}};
    struct walsh_error err;
    for (int i = 0; i < FUSED_CODECS; i++) {
        struct walsh_turbo_options o = {
            .dim = l->head_dim, .bits = bits[i][0], .seed = room->c->round, .stream = "key"};
        must(walsh_turbo_codec_open(&o, &out->key[i], &err), &err);
        o.bits = bits[i][1];
        o.stream = "value";
        must(walsh_turbo_codec_open(&o, &out->value[i], &err), &err);
        out->codecs[i].key = out->key[i];
        out->codecs[i].value = out->value[i];
        must(room->q->memory->upload_codecs(room->q, &out->codecs[i], &out->device_codecs[i], &err), &err);
    }
}

static struct place place_of(struct fused_room *room, const struct fused_layer *l, enum fused_kind kind,
                             size_t row, const struct fused_caches *caches)
{
    struct check *c = room->c;
    const size_t most = kind == FUSED_SHORT ? 128
                        : row < 4           ? FUSED_TOKENS
                                            : 70,
                 width = (size_t)l->kv_heads * l->head_dim;
    struct place p = {.type = kind == FUSED_F32 ? WALSH_KV_F32 : WALSH_KV_F16,
                      .codecs = -1,
                      .tokens = row == 0   ? (uint32_t)most
                                : row == 1 ? 1
                                           : 1 + (uint32_t)check_below(c, most)};
    if (kind == FUSED_FOUR) p.codecs = 0;
    if (kind == FUSED_MIXED && row % 4 != 3) p.codecs = (int)(row % 4);
    p.key = p.value = width * PAGE * (p.type == WALSH_KV_F32 ? 4 : 2);
    if (p.codecs < 0) return p;
    p.type = WALSH_KV_TURBO;
    p.key = l->kv_heads * walsh_turbo_page_head_bytes(&caches->codecs[p.codecs], WALSH_TURBO_KEY, PAGE);
    p.value = l->kv_heads * walsh_turbo_page_head_bytes(&caches->codecs[p.codecs], WALSH_TURBO_VALUE, PAGE);
    if (kind == FUSED_MIXED && row % 3 == 1) {
        p.recent = 1 + (uint32_t)check_below(c, RING_PAGE * (RING_PAGES - 1));
        p.ring = width * RING_PAGE * 2;
    }
    return p;
}

/* The views of a set with tables at `tables` and pages at `pages` of the queue's memory; block: the tables, as they go up. */
static void make_views(const struct place *at, size_t rows, const struct fused_caches *caches,
                       struct walsh_kv_view *views, struct walsh_kv_view *rings,
                       const struct walsh_kv_view *op_rings, uint8_t *block, uint8_t *tables, uint8_t *pages)
{
    for (size_t r = 0; r < rows; r++) {
        const struct place *p = &at[r];
        const size_t count = walsh_div_up(p->tokens, PAGE), ring = walsh_div_up(p->tokens, RING_PAGE);
        struct walsh_kv_view *v = &views[r * FUSED_LAYERS + FUSED_LAYER];
        views[r * FUSED_LAYERS] = (struct walsh_kv_view){.type = WALSH_KV_F16, .page_tokens = PAGE};
        void **table = (void **)(void *)(block + p->table);
        uint8_t *data = pages + p->data;
        void *const *op_table = (void *const *)(void *)(tables + p->table);
        *v = (struct walsh_kv_view){
            .type = p->type, .page_tokens = PAGE, .k_pages = op_table, .v_pages = op_table + count};
        for (size_t i = 0; i < 2 * count; i++) {
            table[i] = data;
            data += i < count ? p->key : p->value;
        }
        if (p->codecs >= 0) v->turbo = caches->device_codecs[p->codecs];
        if (p->recent == 0) continue;
        rings[r] = (struct walsh_kv_view){.type = WALSH_KV_F16,
                                          .page_tokens = RING_PAGE,
                                          .k_pages = op_table + 2 * count,
                                          .v_pages = op_table + 2 * count + ring};
        for (size_t i = 0; i < 2 * ring; i++)
            table[2 * count + i] = data + (i / ring * RING_PAGES + i % ring % RING_PAGES) * p->ring;
        v->recent = &op_rings[r];
        v->recent_tokens = p->recent;
        v->recent_begin = r % 2 ? p->tokens / 3 : 0;
    }
}

/* What the tokens before the newest ones left: of packed caches by the op that appends them, of others any numbers. */
static void fill_pages(struct fused_room *room, const struct fused_layer *l, const struct place *at,
                       size_t rows, struct fused_caches *caches)
{
    const size_t width = (size_t)l->kv_heads * l->head_dim, floats = caches->bytes / 4;
    struct walsh_error err;
    float *host = malloc((floats + 1) * sizeof *host);
    if (host == NULL) exit(1);
    memset(host, 0, caches->bytes);
    for (size_t r = 0; r < rows; r++) {
        const struct place *p = &at[r];
        if (p->codecs >= 0) continue;
        const size_t bytes = walsh_div_up(p->tokens, PAGE) * (p->key + p->value);
        uint8_t *to = (uint8_t *)host + p->data;
        for (size_t i = 0; i < bytes / (p->type == WALSH_KV_F32 ? 4 : 2); i++) {
            const float x = check_normal(room->c);
            const uint16_t half = walsh_f16_from_f32(x);
            if (p->type == WALSH_KV_F32)
                memcpy(to + 4 * i, &x, sizeof x);
            else
                memcpy(to + 2 * i, &half, sizeof half);
        }
    }
    must(walsh_queue_upload(room->q, caches->pages[0], host, caches->bytes, &err), &err);
    free(host);
    for (size_t r = 0; r < rows; r++) {
        const struct place *p = &at[r];
        if (p->codecs < 0 || p->tokens == 1) continue;
        const uint32_t before = p->tokens - 1;
        const float *k = fused_random(room, before * width), *v = fused_random(room, before * width);
        struct walsh_attention_row list[FUSED_TOKENS];
        struct walsh_attention_shape shape = {.heads = l->heads,
                                              .kv_heads = l->kv_heads,
                                              .head_dim = l->head_dim,
                                              .kinds = {.packed = true, .recent = p->recent > 0}};
        for (uint32_t t = 0; t < before; t++)
            list[t] = (struct walsh_attention_row){caches->views[0] + r * FUSED_LAYERS + FUSED_LAYER, t};
        struct walsh_attention_row *op_rows = (void *)fused_take(room, before * sizeof *list / sizeof(float));
        must(walsh_queue_upload(room->q, op_rows, list, before * sizeof *list, &err), &err);
        for (uint32_t t = 0; t < before;
             t += RING_PAGE * RING_PAGES) /* a call's tokens are apart in the ring */
            room->q->ops->kv_append(room->q, op_rows + t, walsh_min(before - t, RING_PAGE * RING_PAGES),
                                    k + t * width, v + t * width, width, &shape);
    }
    walsh_queue_copy(room->q, caches->pages[1], caches->pages[0], caches->bytes);
    walsh_queue_copy(room->q, caches->pages[2], caches->pages[0], caches->bytes);
}

static struct walsh_kv_kinds kinds_of(const struct place *at, size_t rows)
{
    struct walsh_kv_kinds k = {.four = true, .tiles = true, .most_tokens = 128};
    size_t packed = 0;
    for (size_t r = 0; r < rows; r++) {
        while (k.most_tokens < at[r].tokens) k.most_tokens *= 2;
        k.tiles &= at[r].type == WALSH_KV_F16;
        if (at[r].codecs < 0) continue;
        packed++;
        k.four &= at[r].codecs == 0;
        k.recent |= at[r].recent > 0;
    }
    k.packed = packed > 0;
    k.mixed = packed > 0 && packed < rows;
    k.four &= packed > 0;
    return k;
}

bool fused_caches(struct fused_room *room, const struct fused_layer *l, enum fused_kind kind, size_t rows,
                  struct fused_caches *out)
{
    struct walsh_error err;
    const bool packs = kind == FUSED_FOUR || kind == FUSED_MIXED;
    *out = (struct fused_caches){0};
    if (packs && (!room->q->memory || !room->q->memory->upload_codecs)) return false;
    if (packs) open_codecs(room, l, out);
    struct place *at = calloc(rows, sizeof *at);
    const size_t views_bytes = rows * FUSED_LAYERS * sizeof(struct walsh_kv_view),
                 rings_bytes = rows * sizeof(struct walsh_kv_view);
    size_t tables = views_bytes + rings_bytes;
    for (size_t r = 0; r < rows; r++) {
        at[r] = place_of(room, l, kind, r, out);
        const size_t count = walsh_div_up(at[r].tokens, PAGE),
                     ring = at[r].recent ? walsh_div_up(at[r].tokens, RING_PAGE) : 0;
        at[r].table = tables;
        at[r].data = out->bytes;
        tables += 2 * (count + ring) * sizeof(void *);
        out->bytes += walsh_round_up(count * (at[r].key + at[r].value) + 2 * RING_PAGES * at[r].ring, 256);
    }
    out->kinds = kinds_of(at, rows);
    out->host_positions = malloc(rows * sizeof *out->host_positions);
    for (size_t r = 0; r < rows; r++) out->host_positions[r] = at[r].tokens - 1;
    out->positions = (uint32_t *)(void *)fused_take(room, rows);
    must(
        walsh_queue_upload(room->q, out->positions, out->host_positions, rows * sizeof *out->positions, &err),
        &err);
    for (int set = 0; set < 3; set++) out->pages[set] = (uint8_t *)fused_take(room, out->bytes / 4);
    uint8_t *block = calloc(tables, 1);
    for (int set = 0; set < 2; set++) {
        uint8_t *op_block = (uint8_t *)fused_take(room, tables / 4);
        out->views[set] = (struct walsh_kv_view *)(void *)op_block;
        make_views(at, rows, out, (struct walsh_kv_view *)(void *)block,
                   (struct walsh_kv_view *)(void *)(block + views_bytes),
                   (const struct walsh_kv_view *)(void *)(op_block + views_bytes), block, op_block,
                   out->pages[set]);
        must(walsh_queue_upload(room->q, op_block, block, tables, &err), &err);
    }
    free(block);
    fill_pages(room, l, at, rows, out);
    free(at);
    return true;
}

void fused_close_caches(struct fused_room *room, struct fused_caches *caches)
{
    for (int i = 0; i < FUSED_CODECS; i++) {
        if (caches->device_codecs[i]) room->q->memory->free(room->q, caches->device_codecs[i]);
        walsh_turbo_codec_close(&caches->key[i]);
        walsh_turbo_codec_close(&caches->value[i]);
    }
    free(caches->host_positions);
}

void fused_restore_caches(struct fused_room *room, struct fused_caches *caches)
{
    walsh_queue_copy(room->q, caches->pages[0], caches->pages[2], caches->bytes);
}

void fused_compare_caches(struct check *c, struct fused_room *room, const char *what,
                          const struct fused_caches *caches)
{
    fused_compare(c, room, what,
                  &(struct fused_pair){(float *)(void *)caches->pages[0], (float *)(void *)caches->pages[1],
                                       caches->bytes / sizeof(float)});
}

const struct walsh_attention_row *fused_rows(struct fused_room *room, const struct fused_caches *caches,
                                             int set, uint32_t layer, size_t rows)
{
    struct walsh_error err;
    struct walsh_attention_row *list = calloc(rows, sizeof *list),
                               *to = (void *)fused_take(room, rows * sizeof *list / sizeof(float));
    for (size_t r = 0; r < rows; r++)
        list[r] = (struct walsh_attention_row){caches->views[set] + r * FUSED_LAYERS + layer,
                                               caches->host_positions[r]};
    must(walsh_queue_upload(room->q, to, list, rows * sizeof *list, &err), &err);
    free(list);
    return to;
}

/* Keys and values in the caller's pages, and attention over them, of walsh_ops.h. */
#include <math.h>
#include <string.h>

#include "api/ops.h"
#include "base/memory.h"
#include "formats/turbo.h"
#include "formats/turbo_pages.h"
#include "kernels/turbo.h"

#define MAX_TOKENS (1u << 30)
#define DEVICE_ALIGNMENT 16 /* of pages, which kernels read in vectors */

struct walsh_ops_kv_codec {
    struct walsh_turbo_codec *key, *value;
    struct walsh_turbo_codecs codecs;
    const struct walsh_queue *holder; /* of `device`, what the kernels there read; NULL: the CPU */
    void *device;
};

/* ---------------------------------------------------------------------------------------- codecs */

static enum walsh_status open_sides(const struct walsh_ops_kv_codec_options *o,
                                    struct walsh_ops_kv_codec *codec, struct walsh_error *err)
{
    struct walsh_turbo_options side = {
        .dim = o->head_dim, .bits = o->key_bits ? o->key_bits : 4, .seed = o->seed, .stream = "key"};
    WALSH_TRY(walsh_turbo_codec_open(&side, &codec->key, err));
    side.bits = o->value_bits ? o->value_bits : 4;
    side.stream = "value";
    WALSH_TRY(walsh_turbo_codec_open(&side, &codec->value, err));
    codec->codecs.key = codec->key;
    codec->codecs.value = codec->value;
    atomic_init(&codec->codecs.saturated, 0);
    return WALSH_OK;
}

/* The codecs, to the queue's device. */
static enum walsh_status upload(struct walsh_ops_queue *queue, struct walsh_ops_kv_codec *codec,
                                struct walsh_error *err)
{
    const struct walsh_queue *holder = walsh_ops_holder(queue);
    if (!holder) return WALSH_OK;
    if (!holder->memory->upload_codecs)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "packed pages have no kernels on this device");
    walsh_ops_enter_host(queue);
    enum walsh_status status = holder->memory->upload_codecs(holder, &codec->codecs, &codec->device, err);
    if (status == WALSH_OK) {
        codec->holder = holder;
        status = holder->memory->synchronize(holder, err);
    }
    walsh_ops_leave(queue);
    return status;
}

enum walsh_status walsh_ops_kv_codec_open(struct walsh_ops_queue *queue,
                                          const struct walsh_ops_kv_codec_options *options,
                                          struct walsh_ops_kv_codec **out, struct walsh_error *err)
{
    WALSH_TRY(walsh_ops_need("walsh_ops_kv_codec_open", "out", out, err));
    *out = NULL;
    WALSH_TRY(walsh_ops_need("walsh_ops_kv_codec_open", "queue", queue, err));
    struct walsh_ops_kv_codec_options o = WALSH_OPS_KV_CODEC_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_ops_kv_codec_options", err));
    struct walsh_ops_kv_codec *codec;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *codec, "a codec of keys and values", &codec, err));
    enum walsh_status status = open_sides(&o, codec, err);
    if (status == WALSH_OK) status = upload(queue, codec, err);
    if (status != WALSH_OK) {
        walsh_ops_kv_codec_close(&codec);
        return walsh_fail_within(err, status, "walsh_ops_kv_codec_open");
    }
    *out = codec;
    return WALSH_OK;
}

void walsh_ops_kv_codec_close(struct walsh_ops_kv_codec **codec)
{
    if (!codec || !*codec) return;
    if ((*codec)->holder) (*codec)->holder->memory->free((*codec)->holder, (*codec)->device);
    walsh_turbo_codec_close(&(*codec)->key);
    walsh_turbo_codec_close(&(*codec)->value);
    walsh_free(*codec);
    *codec = NULL;
}

size_t walsh_ops_kv_page_bytes(const struct walsh_ops_kv_codec *codec, bool values, uint32_t kv_heads,
                               uint32_t page_tokens)
{
    size_t bytes;
    if (!codec || page_tokens == 0 || page_tokens % WALSH_TURBO_SPAN != 0 || page_tokens > MAX_TOKENS)
        return 0;
    const size_t head = walsh_turbo_page_head_bytes(
        &codec->codecs, values ? WALSH_TURBO_VALUE : WALSH_TURBO_KEY, page_tokens);
    return walsh_mul(kv_heads, head, &bytes) ? bytes : 0;
}

/* ---------------------------------------------------------------------------------------- checks */

struct attend {
    const char *call;
    const struct walsh_ops_queue *queue;
    const struct walsh_ops_kv *kv;
    const struct walsh_ops_row *rows; /* NULL: the two below say the same */
    struct walsh_ops_rows positions, tables;
    size_t count;
    struct walsh_ops_rows keys, values; /* pages */
    struct walsh_attention_shape shape;
    uint32_t page_count; /* the longest table */
};

static enum walsh_status check_shape(struct attend *t, uint32_t heads, struct walsh_error *err)
{
    const struct walsh_ops_kv *kv = t->kv;
    if (kv->head_dim < 1 || kv->head_dim > WALSH_MAX_HEAD_DIM)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: head_dim is %u, expected 1 to %d", t->call,
                          kv->head_dim, WALSH_MAX_HEAD_DIM);
    if (kv->kv_heads < 1 || kv->kv_heads > 65536)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: kv_heads is %u, expected 1 to 65536", t->call,
                          kv->kv_heads);
    if (heads < 1 || heads % kv->kv_heads != 0 || heads / kv->kv_heads > WALSH_MAX_HEAD_GROUP)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "%s: heads is %u, expected a multiple of kv_heads, %u, and at most %d times as many", t->call,
            heads, kv->kv_heads, WALSH_MAX_HEAD_GROUP);
    if (kv->page_tokens < 1 || kv->page_tokens > MAX_TOKENS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: page_tokens is %u, expected 1 to %u", t->call,
                          kv->page_tokens, MAX_TOKENS);
    if (!kv->codec) return WALSH_OK;
    WALSH_TRY(walsh_ops_placed(t->queue, t->call, "kv->codec", kv->codec->holder, err));
    if (kv->page_tokens % WALSH_TURBO_SPAN != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: page_tokens is %u, expected a multiple of %d for packed pages", t->call,
                          kv->page_tokens, WALSH_TURBO_SPAN);
    if (kv->codec->key->book.dim != kv->head_dim)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: head_dim is %u, the codec's %u", t->call, kv->head_dim,
                          kv->codec->key->book.dim);
    return WALSH_OK;
}

static enum walsh_status check_packed_side(const struct attend *t, const struct walsh_ops_argument *a,
                                           bool values, struct walsh_ops_rows *out, struct walsh_error *err)
{
    const size_t bytes = walsh_ops_kv_page_bytes(t->kv->codec, values, t->kv->kv_heads, t->kv->page_tokens);
    WALSH_TRY(walsh_ops_rows(a, 1u << WALSH_ELEMENT_U8, 1, bytes, out, err));
    if ((uintptr_t)out->data % WALSH_OPS_ALIGNMENT != 0 || out->ld % WALSH_OPS_ALIGNMENT != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s: data is at %p and pages are %zu bytes apart, expected multiples "
                          "of %d",
                          t->call, a->name, (void *)out->data, out->ld, WALSH_OPS_ALIGNMENT);
    return WALSH_OK;
}

static enum walsh_status check_plain_side(const struct attend *t, const struct walsh_ops_argument *a,
                                          struct walsh_ops_rows *out, struct walsh_error *err)
{
    const struct walsh_ops_kv *kv = t->kv;
    const int64_t page[] = {kv->kv_heads, kv->page_tokens, kv->head_dim};
    size_t elements;
    if (a->view->rank != 4 || memcmp(a->view->shape + 1, page, sizeof page) != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: rank %u, expected [pages, %u, %u, %u]", t->call,
                          a->name, a->view->rank, kv->kv_heads, kv->page_tokens, kv->head_dim);
    if (!walsh_mul((size_t)kv->kv_heads * kv->page_tokens, kv->head_dim, &elements))
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: a page does not fit into memory", t->call, a->name);
    WALSH_TRY(walsh_ops_rows(a, 1u << WALSH_ELEMENT_F32 | 1u << WALSH_ELEMENT_F16, 3, elements, out, err));
    if (walsh_ops_holder(t->queue) && ((uintptr_t)out->data % DEVICE_ALIGNMENT != 0 ||
                                       out->ld * walsh_element_size(out->element) % DEVICE_ALIGNMENT != 0))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s: data is at %p and pages are %zu elements apart, expected multiples of %d "
                          "bytes on a device",
                          t->call, a->name, (void *)out->data, out->ld, DEVICE_ALIGNMENT);
    return WALSH_OK;
}

static enum walsh_status check_pages(struct attend *t, struct walsh_error *err)
{
    const struct walsh_ops_kv *kv = t->kv;
    const struct walsh_ops_argument k = {t->call, "kv->keys", &kv->keys, t->queue},
                                    v = {t->call, "kv->values", &kv->values, t->queue};
    WALSH_TRY(kv->codec ? check_packed_side(t, &k, false, &t->keys, err)
                        : check_plain_side(t, &k, &t->keys, err));
    WALSH_TRY(kv->codec ? check_packed_side(t, &v, true, &t->values, err)
                        : check_plain_side(t, &v, &t->values, err));
    if (!kv->codec && t->keys.element != t->values.element)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: kv: keys and values have different elements, expected the same", t->call);
    return walsh_ops_apart(&k, &t->keys, &v, &t->values, false, err);
}

/* Row i, from whichever place the caller keeps it in, of the host. */
static struct walsh_ops_row row_of(const struct attend *t, size_t i)
{
    if (t->rows) return t->rows[i];
    return (struct walsh_ops_row){
        .pages = (const int32_t *)(const void *)walsh_ops_row(&t->tables, i),
        .page_count = (uint32_t)t->tables.cols,
        .position = (uint32_t)((const int32_t *)(const void *)t->positions.data)[i * t->positions.ld],
    };
}

/* Of row i: its position has a page, and the pages that lead there are of both pools. */
static enum walsh_status check_row(const struct attend *t, size_t i, struct walsh_error *err)
{
    const struct walsh_ops_row row = row_of(t, i);
    const uint32_t pages = row.position / t->kv->page_tokens + 1;
    const size_t pool = walsh_min(t->keys.rows, t->values.rows);
    if (row.position >= MAX_TOKENS || !row.pages || pages > row.page_count)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: rows[%zu]: position %u needs %u pages of %u tokens, found %u", t->call, i,
                          row.position, pages, t->kv->page_tokens, row.pages ? row.page_count : 0);
    for (uint32_t p = 0; p < pages; p++)
        if (row.pages[p] < 0 || (size_t)row.pages[p] >= pool)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: rows[%zu]: pages[%u] is %d, expected 0 to %zu",
                              t->call, i, p, row.pages[p], pool - 1);
    return WALSH_OK;
}

/* Does row i go on where the one before it ended, in the same pages? */
static bool continues(const struct attend *t, size_t i)
{
    const struct walsh_ops_row first = row_of(t, 0), row = row_of(t, i);
    const size_t pages = first.position / t->kv->page_tokens + 1;
    if (row.position != first.position + i) return false;
    return row.pages == first.pages ||
           (!t->rows && memcmp(row.pages, first.pages, pages * sizeof *row.pages) == 0);
}

static enum walsh_status check_rows(struct attend *t, enum walsh_ops_role role, struct walsh_error *err)
{
    for (size_t i = 0; i < t->count; i++) {
        WALSH_TRY(check_row(t, i, err));
        t->page_count = (uint32_t)walsh_max(t->page_count, row_of(t, i).position / t->kv->page_tokens + 1);
        if (role == WALSH_OPS_PREFILL && !continues(t, i))
            return walsh_fail(
                err, WALSH_E_ARGUMENT,
                "%s: rows[%zu]: position %u, expected %zu and the pages of rows[0]: prefill rows are one "
                "sequence's, in order",
                t->call, i, row_of(t, i).position, row_of(t, 0).position + i);
    }
    return WALSH_OK;
}

/* The rows as views, instead of `rows`. */
static enum walsh_status read_tables(struct attend *t, const struct walsh_ops_attention_call *c,
                                     struct walsh_error *err)
{
    const struct walsh_ops_argument a = {t->call, "positions", &c->positions, t->queue},
                                    b = {t->call, "pages", &c->pages, t->queue};
    const size_t pages = c->pages.rank == 2 && c->pages.shape[1] > 0 ? (size_t)c->pages.shape[1] : 0;
    if (pages < 1 || pages > MAX_TOKENS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: pages: expected [%zu, pages of a row]", t->call,
                          t->count);
    const int64_t shape[] = {(int64_t)t->count};
    WALSH_TRY(walsh_ops_dense(&a, 1u << WALSH_ELEMENT_I32, 1, shape, &t->positions, err));
    t->positions.ld = 1;
    WALSH_TRY(walsh_ops_rows(&b, 1u << WALSH_ELEMENT_I32, 1, pages, &t->tables, err));
    if (t->tables.rows != t->count)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: pages has %zu rows, expected %zu", t->call,
                          t->tables.rows, t->count);
    t->page_count = (uint32_t)pages;
    return WALSH_OK;
}

static enum walsh_status read_rows(struct attend *t, const struct walsh_ops_attention_call *c,
                                   enum walsh_ops_role role, struct walsh_error *err)
{
    const bool device = walsh_ops_holder(t->queue) != NULL;
    if (t->count == 0) return WALSH_OK;
    if (walsh_ops_given(&c->pages)) {
        if (t->rows)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: rows and pages are given, expected one of them",
                              t->call);
        WALSH_TRY(read_tables(t, c, err));
        return device ? WALSH_OK : check_rows(t, role, err);
    }
    WALSH_TRY(walsh_ops_need(t->call, "rows", t->rows, err));
    if (device)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: rows is of the host, expected NULL, and pages and positions on the device",
                          t->call);
    return check_rows(t, role, err);
}

/* [count, heads * head_dim] or [count, heads, head_dim]. */
static enum walsh_status check_heads(const struct attend *t, const char *name, const struct walsh_view *view,
                                     uint32_t heads, struct walsh_ops_rows *out, struct walsh_error *err)
{
    const struct walsh_ops_argument a = {t->call, name, view, t->queue};
    if (view && view->rank == 3 && (view->shape[1] != heads || view->shape[2] != t->kv->head_dim))
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %s: shape is [%lld, %lld, %lld], expected [%zu, %u, %u]", t->call, name,
                          (long long)view->shape[0], (long long)view->shape[1], (long long)view->shape[2],
                          t->count, heads, t->kv->head_dim);
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, view && view->rank == 3 ? 2 : 1,
                             (size_t)heads * t->kv->head_dim, out, err));
    if (out->rows != t->count)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s has %zu rows, expected %zu", t->call, name,
                          out->rows, t->count);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- workspace */

struct scratch {
    struct walsh_kv_view *views;
    struct walsh_attention_row *rows;
    void **pages; /* [count][2][page_count] */
    float *first, *second;
};

static void lay_out(const struct walsh_ops_kv *kv, uint32_t heads, size_t count, uint32_t page_count,
                    struct walsh_ops_workspace *w, struct scratch *s)
{
    size_t pages, elements;
    if (!walsh_mul(count, page_count, &pages) || !walsh_mul(pages, 2, &pages) ||
        !walsh_mul(count, (size_t)heads * kv->head_dim, &elements)) {
        w->overflow = true;
        return;
    }
    s->views = walsh_ops_take(w, count, sizeof *s->views);
    s->rows = walsh_ops_take(w, count, sizeof *s->rows);
    s->pages = walsh_ops_take(w, pages, sizeof *s->pages);
    s->first = walsh_ops_take(w, elements, sizeof *s->first);
    s->second = walsh_ops_take(w, elements, sizeof *s->second);
}

size_t walsh_ops_attention_workspace(const struct walsh_ops_kv *kv, uint32_t heads, size_t count,
                                     uint32_t page_count)
{
    struct walsh_ops_workspace w = {0};
    struct scratch s = {0};
    if (!kv) return 0;
    lay_out(kv, heads, count > 0 ? count : 1, page_count, &w, &s);
    return w.overflow || w.used > PTRDIFF_MAX ? 0 : w.used;
}

static enum walsh_kv_type type_of(const struct attend *t)
{
    if (t->kv->codec) return WALSH_KV_TURBO;
    return t->keys.element == WALSH_ELEMENT_F32 ? WALSH_KV_F32 : WALSH_KV_F16;
}

/* The view of a sequence of `pages` pages whose tables are number `slot` in the workspace. */
static void fill_view(const struct attend *t, struct scratch *s, size_t slot, const int32_t *pages,
                      uint32_t count)
{
    const struct walsh_ops_kv *kv = t->kv;
    void **k = s->pages + slot * 2 * t->page_count, **v = k + t->page_count;
    for (uint32_t p = 0; p < count; p++) {
        k[p] = walsh_ops_row(&t->keys, (size_t)pages[p]);
        v[p] = walsh_ops_row(&t->values, (size_t)pages[p]);
    }
    s->views[slot] = (struct walsh_kv_view){
        .type = type_of(t),
        .page_tokens = kv->page_tokens,
        .k_pages = k,
        .v_pages = v,
        /* which counts saturated norms there */
        .turbo = kv->codec ? (struct walsh_turbo_codecs *)(uintptr_t)&kv->codec->codecs : NULL,
    };
}

/* The caller's rows as the ops know them; those of a prompt share the view of its last one. */
static void fill_rows(const struct walsh_queue *q, const struct attend *t, enum walsh_ops_role role,
                      struct scratch *s)
{
    if (q->memory) {
        const size_t size = walsh_element_size(t->keys.element);
        const struct walsh_paged_rows paged = {
            .type = type_of(t),
            .codecs = t->kv->codec ? t->kv->codec->device : NULL,
            .page_tokens = t->kv->page_tokens,
            .page_count = t->page_count,
            .count = t->count,
            .ld = t->tables.ld,
            .pages = (const int32_t *)(const void *)t->tables.data,
            .positions = (const int32_t *)(const void *)t->positions.data,
            .keys = t->keys.data,
            .values = t->values.data,
            .key_stride = t->keys.ld * size,
            .value_stride = t->values.ld * size,
            .rows = s->rows,
            .views = s->views,
            .tables = s->pages,
        };
        q->memory->page_tables(q, &paged);
        return;
    }
    for (size_t i = 0; i < t->count; i++) {
        const struct walsh_ops_row row = row_of(t, role == WALSH_OPS_PREFILL && i == 0 ? t->count - 1 : i);
        const size_t slot = role == WALSH_OPS_PREFILL ? 0 : i;
        if (i == slot) fill_view(t, s, slot, row.pages, row.position / t->kv->page_tokens + 1);
        s->rows[i] = (struct walsh_attention_row){&s->views[slot], row_of(t, i).position};
    }
}

/* A view in f32: where it is, or loaded into the workspace. */
static const float *in_f32(const struct walsh_queue *q, const struct walsh_ops_rows *rows, float *staged,
                           size_t *ld)
{
    if (rows->element == WALSH_ELEMENT_F32) {
        *ld = rows->ld;
        return (const float *)(const void *)rows->data;
    }
    walsh_ops_load_rows(q, rows, staged, rows->cols);
    *ld = rows->cols;
    return staged;
}

/* Both matrices with one stride, as appending wants them. */
static const float *dense_f32(const struct walsh_queue *q, const struct walsh_ops_rows *rows, float *staged)
{
    if (rows->element == WALSH_ELEMENT_F32 && rows->ld == rows->cols)
        return (const float *)(const void *)rows->data;
    walsh_ops_load_rows(q, rows, staged, rows->cols);
    return staged;
}

/* ---------------------------------------------------------------------------------------- calls */

static enum walsh_status begin(struct attend *t, const struct walsh_ops_queue *queue, const char *name,
                               const struct walsh_ops_kv *kv, const struct walsh_ops_row *rows, size_t count,
                               const struct walsh_ops_attention_call *c, uint32_t heads,
                               enum walsh_ops_role role, struct walsh_error *err)
{
    *t = (struct attend){.call = name, .queue = queue, .kv = kv, .rows = rows, .count = count};
    WALSH_TRY(walsh_ops_need(name, "kv", kv, err));
    if ((unsigned)role > WALSH_OPS_PREFILL)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: role is %u, expected 0 or 1", name, (unsigned)role);
    WALSH_TRY(check_shape(t, heads, err));
    WALSH_TRY(check_pages(t, err));
    t->shape =
        (struct walsh_attention_shape){.heads = heads, .kv_heads = kv->kv_heads, .head_dim = kv->head_dim};
    if (kv->codec) {
        t->shape.kinds.packed = true;
        t->shape.kinds.four = kv->codec->key->book.bits == 4 && kv->codec->value->book.bits == 4;
    }
    return read_rows(t, c, role, err);
}

enum walsh_status walsh_ops_kv_append(struct walsh_ops_queue *queue, const struct walsh_ops_kv *kv,
                                      const struct walsh_ops_row *rows, size_t count,
                                      const struct walsh_view *k, const struct walsh_view *v,
                                      const struct walsh_ops_attention_call *call, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_kv_append";
    struct walsh_ops_attention_call c = WALSH_OPS_ATTENTION_CALL;
    struct attend t;
    struct walsh_ops_rows from_k, from_v;
    struct scratch s = {0};
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    WALSH_TRY(walsh_options_read(&c, sizeof c, call, "walsh_ops_attention_call", err));
    WALSH_TRY(begin(&t, queue, name, kv, rows, count, &c, kv ? kv->kv_heads : 0, WALSH_OPS_DECODE, err));
    WALSH_TRY(check_heads(&t, "k", k, kv->kv_heads, &from_k, err));
    WALSH_TRY(check_heads(&t, "v", v, kv->kv_heads, &from_v, err));
    WALSH_TRY(walsh_ops_check_workspace(name, c.workspace, c.workspace_size,
                                        walsh_ops_attention_workspace(kv, kv->kv_heads, count, t.page_count),
                                        err));
    if (count == 0) return WALSH_OK;
    struct walsh_ops_workspace w = {.data = c.workspace};
    lay_out(kv, kv->kv_heads, count, t.page_count, &w, &s);
    const struct walsh_queue *q = walsh_ops_enter(queue);
    fill_rows(q, &t, WALSH_OPS_DECODE, &s);
    const float *keys = dense_f32(q, &from_k, s.first), *values = dense_f32(q, &from_v, s.second);
    q->ops->kv_append(q, s.rows, count, keys, values, from_k.cols, &t.shape);
    return walsh_ops_finish(queue, name, err);
}

static enum walsh_status read_call(const struct walsh_ops_attention_call *c, struct attend *t,
                                   struct walsh_error *err)
{
    if (!isfinite(c->scale) || c->scale < 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: scale is %g, expected a number above 0, or 0 for 1/sqrt(head_dim)", t->call,
                          (double)c->scale);
    if (!isfinite(c->soft_cap) || c->soft_cap < 0)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: soft_cap is %g, expected a number above 0, or 0 for none", t->call,
                          (double)c->soft_cap);
    t->shape.scale = c->scale > 0 ? c->scale : 1.0f / sqrtf((float)t->kv->head_dim);
    t->shape.window = c->window;
    t->shape.soft_cap = c->soft_cap;
    t->shape.sinks = c->sinks;
    return WALSH_OK;
}

enum walsh_status walsh_ops_attention(struct walsh_ops_queue *queue, const struct walsh_ops_kv *kv,
                                      const struct walsh_ops_row *rows, size_t count,
                                      const struct walsh_view *q, const struct walsh_view *out,
                                      const struct walsh_ops_attention_call *call, struct walsh_error *err)
{
    static const char name[] = "walsh_ops_attention";
    struct walsh_ops_attention_call c = WALSH_OPS_ATTENTION_CALL;
    struct attend t;
    struct walsh_ops_rows from, to;
    struct scratch s = {0};
    WALSH_TRY(walsh_ops_need(name, "queue", queue, err));
    WALSH_TRY(walsh_options_read(&c, sizeof c, call, "walsh_ops_attention_call", err));
    WALSH_TRY(begin(&t, queue, name, kv, rows, count, &c, c.heads, c.role, err));
    WALSH_TRY(read_call(&c, &t, err));
    WALSH_TRY(check_heads(&t, "q", q, c.heads, &from, err));
    WALSH_TRY(check_heads(&t, "out", out, c.heads, &to, err));
    const struct walsh_ops_argument a = {name, "q", q, queue}, b = {name, "out", out, queue};
    WALSH_TRY(walsh_ops_apart(&a, &from, &b, &to, false, err));
    WALSH_TRY(walsh_ops_check_workspace(name, c.workspace, c.workspace_size,
                                        walsh_ops_attention_workspace(kv, c.heads, count, t.page_count),
                                        err));
    if (count == 0) return WALSH_OK;
    struct walsh_ops_workspace w = {.data = c.workspace};
    lay_out(kv, c.heads, count, t.page_count, &w, &s);
    const struct walsh_queue *queue_of = walsh_ops_enter(queue);
    fill_rows(queue_of, &t, c.role, &s);
    size_t ldq;
    const float *query = in_f32(queue_of, &from, s.first, &ldq);
    const bool direct = to.element == WALSH_ELEMENT_F32;
    float *result = direct ? (float *)(void *)to.data : s.second;
    queue_of->ops->attention(queue_of, result, direct ? to.ld : to.cols, query, ldq, s.rows, count, &t.shape,
                             c.role == WALSH_OPS_PREFILL ? WALSH_PREFILL : WALSH_DECODE);
    if (!direct) walsh_ops_store_rows(queue_of, result, to.cols, &to);
    return walsh_ops_finish(queue, name, err);
}

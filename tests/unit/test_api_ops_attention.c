/* walsh_ops.h: keys and values in the caller's pages, and attention over them, against softmax in double
 * precision; packed ones against what the cache's own session would read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "unit/ops_data.h"

#define KV_HEADS 2
#define HEADS 6
#define DIM 32
#define TOKENS 150 /* of the longest sequence */
#define PAGE 64
#define POOL 7

static struct walsh_context *context;
static struct walsh_ops_queue *queue;
static struct walsh_error err;
static struct walsh_random random_state;

static int open_queue(void **state)
{
    (void)state;
    return ops_open(2, 20261123, &context, &queue, &random_state);
}

static int close_queue(void **state)
{
    (void)state;
    return ops_close(&context, &queue);
}

/* Two sequences in one pool of pages, whose order in memory is not theirs. */
static const int32_t pages[2][3] = {{5, 0, 3}, {1, 6, 2}};
static const uint32_t lengths[2] = {TOKENS, 70};

struct cache {
    struct walsh_ops_kv kv;
    uint8_t *pool; /* all pages, keys and values in turns where they are plain */
    struct ops_tensor k[2], v[2];
    enum walsh_element element;
};

static void make_pages(struct cache *c, enum walsh_element element, struct walsh_ops_kv_codec *codec)
{
    memset(c, 0, sizeof *c);
    c->element = element;
    c->kv = (struct walsh_ops_kv){.codec = codec, .page_tokens = PAGE, .kv_heads = KV_HEADS, .head_dim = DIM};
    if (codec) {
        const size_t key = walsh_ops_kv_page_bytes(codec, false, KV_HEADS, PAGE),
                     value = walsh_ops_kv_page_bytes(codec, true, KV_HEADS, PAGE);
        assert_true(key > 0 && value > 0 && key % WALSH_OPS_ALIGNMENT == 0);
        const int64_t keys[] = {POOL, (int64_t)key}, values[] = {POOL, (int64_t)value};
        c->pool = ops_aligned(POOL * (key + value));
        c->kv.keys = walsh_view_dense(c->pool, WALSH_ELEMENT_U8, 2, keys);
        c->kv.values = walsh_view_dense(c->pool + POOL * key, WALSH_ELEMENT_U8, 2, values);
        return;
    }
    const size_t bytes = KV_HEADS * PAGE * DIM * ops_element_bytes(element);
    const int64_t shape[] = {POOL, KV_HEADS, PAGE, DIM};
    c->pool = ops_aligned(2 * POOL * bytes);
    c->kv.keys = walsh_view_dense(c->pool, element, 4, shape);
    c->kv.values = walsh_view_dense(c->pool + bytes, element, 4, shape);
    c->kv.keys.strides[0] = c->kv.values.strides[0] = 2 * KV_HEADS * PAGE * DIM; /* in turns */
}

static void append(struct cache *c, unsigned s, const struct walsh_ops_row *rows, size_t count, size_t first)
{
    struct walsh_ops_attention_call call = WALSH_OPS_ATTENTION_CALL;
    call.workspace_size = walsh_ops_attention_workspace(&c->kv, KV_HEADS, count, 3);
    call.workspace = ops_aligned(call.workspace_size);
    struct walsh_view k = c->k[s].view, v = c->v[s].view;
    k.data = ops_at(&c->k[s], first, 0);
    v.data = ops_at(&c->v[s], first, 0);
    k.shape[0] = v.shape[0] = (int64_t)count;
    OPS_WORKS(walsh_ops_kv_append(queue, &c->kv, rows, count, &k, &v, &call, &err));
    free(call.workspace);
}

/* Keys and values of both sequences, appended as a prompt and then one by one. */
static void make_cache(struct cache *c, enum walsh_element element, struct walsh_ops_kv_codec *codec)
{
    struct walsh_ops_row rows[TOKENS];
    make_pages(c, element, codec);
    for (unsigned s = 0; s < 2; s++) {
        c->k[s] = ops_tensor(s ? WALSH_ELEMENT_BF16 : WALSH_ELEMENT_F32, TOKENS, KV_HEADS * DIM,
                             KV_HEADS * DIM + (s ? 0 : 4));
        c->v[s] =
            ops_tensor(s ? WALSH_ELEMENT_F16 : WALSH_ELEMENT_F32, TOKENS, KV_HEADS * DIM, KV_HEADS * DIM);
        ops_fill(&c->k[s], &random_state);
        ops_fill(&c->v[s], &random_state);
        for (uint32_t i = 0; i < lengths[s]; i++) rows[i] = (struct walsh_ops_row){pages[s], 3, i};
        append(c, s, rows, lengths[s] - 3, 0);
        for (uint32_t i = lengths[s] - 3; i < lengths[s]; i++) append(c, s, rows + i, 1, i);
        ops_check_guards(&c->k[s]);
    }
}

static void free_cache(struct cache *c)
{
    free(c->pool);
    for (unsigned s = 0; s < 2; s++) {
        ops_free(&c->k[s]);
        ops_free(&c->v[s]);
    }
}

/* Softmax attention of one head in double precision, over keys and values as they were given. */
static void reference(const struct cache *c, unsigned s, const struct walsh_ops_attention_call *call,
                      uint32_t position, uint32_t head, const double *q, double *out)
{
    const uint32_t kv_head = head / (HEADS / KV_HEADS);
    const uint32_t begin = call->window && position + 1 > call->window ? position + 1 - call->window : 0;
    const double scale = call->scale > 0 ? (double)call->scale : 1 / sqrt(DIM);
    double scores[TOKENS], largest = call->sinks ? (double)call->sinks[head] : -INFINITY, sum;
    for (uint32_t t = begin; t <= position; t++) {
        scores[t] = 0;
        for (uint32_t i = 0; i < DIM; i++) scores[t] += q[i] * ops_get(&c->k[s], t, kv_head * DIM + i);
        scores[t] *= scale;
        if (call->soft_cap > 0) scores[t] = (double)call->soft_cap * tanh(scores[t] / (double)call->soft_cap);
        largest = fmax(largest, scores[t]);
    }
    sum = call->sinks ? exp((double)call->sinks[head] - largest) : 0;
    for (uint32_t i = 0; i < DIM; i++) out[i] = 0;
    for (uint32_t t = begin; t <= position; t++) {
        const double p = exp(scores[t] - largest);
        sum += p;
        for (uint32_t i = 0; i < DIM; i++) out[i] += p * ops_get(&c->v[s], t, kv_head * DIM + i);
    }
    for (uint32_t i = 0; i < DIM; i++) out[i] /= sum;
}

/* The same call with the rows as views gives the same bits. */
static void attend_by_views(const struct cache *c, const struct walsh_ops_row *rows, size_t count,
                            const struct walsh_ops_attention_call *call, const struct walsh_view *q,
                            const struct ops_tensor *expected)
{
    struct ops_tensor out = ops_tensor(expected->view.element, count, HEADS * DIM, HEADS * DIM + 2);
    struct walsh_ops_attention_call by_views = *call;
    int32_t positions[TOKENS], tables[TOKENS][5];
    const int64_t shape[] = {(int64_t)count, 3};
    for (size_t r = 0; r < count; r++) {
        positions[r] = (int32_t)rows[r].position;
        for (uint32_t p = 0; p < 5; p++) tables[r][p] = p < rows[r].page_count ? rows[r].pages[p] : -1;
    }
    by_views.positions = walsh_view_dense(positions, WALSH_ELEMENT_I32, 1, shape);
    by_views.pages = walsh_view_dense(tables, WALSH_ELEMENT_I32, 2, shape);
    by_views.pages.strides[0] = 5;
    OPS_WORKS(walsh_ops_attention(queue, &c->kv, NULL, count, q, &out.view, &by_views, &err));
    assert_memory_equal(out.block, expected->block, out.bytes);
    OPS_REFUSED(walsh_ops_attention(queue, &c->kv, rows, count, q, &out.view, &by_views, &err),
                WALSH_E_ARGUMENT, "rows and pages are given");
    positions[count - 1] = -1;
    OPS_REFUSED(walsh_ops_attention(queue, &c->kv, NULL, count, q, &out.view, &by_views, &err),
                WALSH_E_ARGUMENT, "position 4294967295");
    ops_free(&out);
}

/* Attend with `count` rows and compare each with the reference; the largest mean-square error of a head is
 * returned. */
static void attend(const struct cache *c, const struct walsh_ops_row *rows, const unsigned *sequence,
                   size_t count, struct walsh_ops_attention_call *call, enum walsh_element from,
                   enum walsh_element to, double tolerance, float *keep)
{
    struct ops_tensor q = ops_tensor(from, count, HEADS * DIM, HEADS * DIM + 8),
                      out = ops_tensor(to, count, HEADS * DIM, HEADS * DIM + 2);
    struct walsh_view q3 = q.view; /* [count, heads, head_dim] */
    q3.rank = 3;
    q3.shape[1] = HEADS, q3.shape[2] = DIM;
    q3.strides[1] = DIM, q3.strides[2] = 1;
    struct walsh_random same = random_state;
    ops_fill(&q, &same);
    call->heads = HEADS;
    call->workspace_size = walsh_ops_attention_workspace(&c->kv, HEADS, count, 3);
    call->workspace = ops_aligned(call->workspace_size);
    OPS_WORKS(walsh_ops_attention(queue, &c->kv, rows, count, &q3, &out.view, call, &err));
    double head[DIM], expected[DIM];
    for (size_t r = 0; r < count; r++)
        for (uint32_t h = 0; h < HEADS; h++) {
            for (uint32_t i = 0; i < DIM; i++) head[i] = ops_get(&q, r, h * DIM + i);
            reference(c, sequence[r], call, rows[r].position, h, head, expected);
            for (uint32_t i = 0; i < DIM; i++) {
                const double found = ops_get(&out, r, h * DIM + i);
                if (keep) keep[(r * HEADS + h) * DIM + i] = (float)found;
                if (!(fabs(found - expected[i]) <= tolerance + ops_rounding(to, expected[i])))
                    fail_msg("row %zu, head %u: out[%u] is %g, expected %g", r, h, i, found, expected[i]);
            }
        }
    ops_check_guards(&q);
    ops_check_guards(&out);
    attend_by_views(c, rows, count, call, &q3, &out);
    free(call->workspace);
    ops_free(&q);
    ops_free(&out);
}

/* Rows of both sequences in one decode call, as prefill, with each of what a call can ask for. */
static void check_cache(struct cache *c, double tolerance)
{
    static const struct walsh_ops_row rows[] = {
        {pages[0], 3, TOKENS - 1}, {pages[1], 3, 69}, {pages[0], 3, 63}, {pages[1], 2, 0}};
    static const unsigned sequence[] = {0, 1, 0, 1};
    float sinks[HEADS], alone[HEADS * DIM], beside[4 * HEADS * DIM];
    for (size_t h = 0; h < HEADS; h++) sinks[h] = (float)walsh_random_normal(&random_state);
    for (unsigned ask = 0; ask < 8; ask++) {
        struct walsh_ops_attention_call call = WALSH_OPS_ATTENTION_CALL;
        if (ask & 1) call.window = 40;
        if (ask & 2) call.sinks = sinks;
        if (ask & 4) call.soft_cap = 2, call.scale = 0.3f;
        const enum walsh_element from = (enum walsh_element)(ask % 3),
                                 to = (enum walsh_element)((ask + ask / 3) % 3);
        attend(c, rows, sequence, 4, &call, from, to, tolerance, NULL);
        struct walsh_ops_row prompt[100];
        unsigned first[100] = {0};
        for (uint32_t i = 0; i < 100; i++) prompt[i] = (struct walsh_ops_row){pages[0], 3, 50 + i};
        call.role = WALSH_OPS_PREFILL;
        attend(c, prompt, first, 100, &call, from, to, tolerance, NULL);
    }
    /* a decode row has its bits whatever runs beside it */
    struct walsh_ops_attention_call call = WALSH_OPS_ATTENTION_CALL;
    attend(c, rows, sequence, 4, &call, WALSH_ELEMENT_F32, WALSH_ELEMENT_F32, tolerance, beside);
    attend(c, rows, sequence, 1, &call, WALSH_ELEMENT_F32, WALSH_ELEMENT_F32, tolerance, alone);
    assert_memory_equal(alone, beside, sizeof alone);
}

static void plain_pages(void **state)
{
    (void)state;
    struct cache c;
    make_cache(&c, WALSH_ELEMENT_F32, NULL);
    check_cache(&c, 1e-5);
    free_cache(&c);
    make_cache(&c, WALSH_ELEMENT_F16, NULL);
    check_cache(&c, 4e-3);
    free_cache(&c);
}

/* Packed pages: near the exact result, the nearer the more bits there are; the bytes of a page are what was
 * promised. */
static void packed_pages(void **state)
{
    (void)state;
    static const struct {
        unsigned key_bits, value_bits;
        double tolerance;
    } widths[] = {{8, 8, 0.06}, {4, 4, 0.6}, {3, 4, 0.9}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        struct walsh_ops_kv_codec *codec;
        struct walsh_ops_kv_codec_options o = WALSH_OPS_KV_CODEC_OPTIONS;
        o.head_dim = DIM;
        o.key_bits = widths[i].key_bits;
        o.value_bits = widths[i].value_bits;
        OPS_WORKS(walsh_ops_kv_codec_open(queue, &o, &codec, &err));
        assert_int_equal(walsh_ops_kv_page_bytes(codec, false, KV_HEADS, PAGE),
                         KV_HEADS * PAGE * (DIM * o.key_bits / 8 + 2));
        assert_int_equal(walsh_ops_kv_page_bytes(codec, true, KV_HEADS, PAGE),
                         KV_HEADS * PAGE * (DIM * o.value_bits / 8 + 2));
        assert_int_equal(walsh_ops_kv_page_bytes(codec, true, KV_HEADS, 100), 0);
        struct cache c;
        make_cache(&c, WALSH_ELEMENT_U8, codec);
        check_cache(&c, widths[i].tolerance);
        free_cache(&c);
        walsh_ops_kv_codec_close(&codec);
    }
}

/* What is wrong with the tables and the shapes is said; nothing is read from a page that is not there. */
static void refusals(void **state)
{
    (void)state;
    struct cache c;
    make_cache(&c, WALSH_ELEMENT_F16, NULL);
    struct ops_tensor q = ops_tensor(WALSH_ELEMENT_F32, 2, HEADS * DIM, HEADS * DIM),
                      out = ops_tensor(WALSH_ELEMENT_F32, 2, HEADS * DIM, HEADS * DIM);
    ops_fill(&q, &random_state);
    struct walsh_ops_attention_call call = WALSH_OPS_ATTENTION_CALL;
    call.heads = HEADS;
    call.workspace_size = walsh_ops_attention_workspace(&c.kv, HEADS, 2, 3);
    call.workspace = ops_aligned(call.workspace_size);
    const int32_t negative[] = {5, -1}, outside[] = {5, POOL};
    struct walsh_ops_row rows[2] = {{pages[0], 3, 10}, {pages[1], 3, 64}};
#define REFUSED(...)                                                                                         \
    OPS_REFUSED(walsh_ops_attention(queue, &c.kv, rows, 2, &q.view, &out.view, &call, &err),                 \
                WALSH_E_ARGUMENT, "walsh_ops_attention", __VA_ARGS__)
    rows[1].page_count = 1;
    REFUSED("rows[1]", "position 64", "2 pages", "found 1");
    rows[1] = (struct walsh_ops_row){negative, 2, 64};
    REFUSED("rows[1]", "pages[1] is -1", "0 to 6");
    rows[1] = (struct walsh_ops_row){outside, 2, 64};
    REFUSED("rows[1]", "pages[1] is 7", "0 to 6");
    rows[1] = (struct walsh_ops_row){outside, 1, 4000000000u};
    REFUSED("rows[1]", "position 4000000000");
    rows[1] = (struct walsh_ops_row){NULL, 5, 0};
    REFUSED("rows[1]", "found 0");
    rows[1] = (struct walsh_ops_row){pages[1], 3, 64};
    call.role = WALSH_OPS_PREFILL;
    REFUSED("rows[1]", "position 64", "expected 11", "one sequence's");
    call.role = (enum walsh_ops_role)2;
    REFUSED("role is 2");
    call.role = WALSH_OPS_DECODE;
    call.heads = 5;
    REFUSED("heads is 5", "multiple of kv_heads, 2");
    call.heads = HEADS;
    call.scale = NAN;
    REFUSED("scale is");
    call.scale = 0;
    call.soft_cap = -1;
    REFUSED("soft_cap is -1");
    call.soft_cap = 0;
    const size_t enough = call.workspace_size;
    call.workspace_size = enough / 4;
    REFUSED("workspace_size is", "expected at least");
    call.workspace_size = enough;
    call.workspace = (uint8_t *)call.workspace + 8;
    REFUSED("workspace is at", "multiple of 64");
    call.workspace = (uint8_t *)call.workspace - 8;
    c.kv.page_tokens = 32;
    REFUSED("kv->keys", "expected [pages, 2, 32, 32]");
    c.kv.page_tokens = PAGE;
    c.kv.head_dim = 0;
    REFUSED("head_dim is 0");
    c.kv.head_dim = DIM;
    c.kv.keys.strides[0] = 10;
    REFUSED("kv->keys", "strides");
    c.kv.keys.strides[0] = c.kv.values.strides[0];
    c.kv.keys.data = c.kv.values.data;
    REFUSED("kv->keys and kv->values overlap");
    c.kv.keys.data = c.pool;
    c.kv.values.element = WALSH_ELEMENT_F32;
    REFUSED("keys and values have different elements");
    c.kv.values.element = WALSH_ELEMENT_F16;
    struct walsh_view saved = out.view;
    out.view = q.view;
    REFUSED("q and out overlap");
    out.view = saved;
    out.view.shape[0] = 3;
    REFUSED("out has 3 rows, expected 2");
    out.view = saved;
    OPS_WORKS(walsh_ops_attention(queue, &c.kv, rows, 2, &q.view, &out.view, &call, &err));
    OPS_WORKS(walsh_ops_attention(queue, &c.kv, rows, 2, &q.view, &out.view, &call, &err));
    call.struct_size = 4;
    OPS_REFUSED(walsh_ops_attention(queue, &c.kv, rows, 2, &q.view, &out.view, &call, &err), WALSH_E_ARGUMENT,
                "struct_size is 4");
    struct walsh_ops_kv_codec *codec;
    struct walsh_ops_kv_codec_options o = WALSH_OPS_KV_CODEC_OPTIONS;
    o.head_dim = 40;
    OPS_REFUSED(walsh_ops_kv_codec_open(queue, &o, &codec, &err), WALSH_E_ARGUMENT, "walsh_ops_kv_codec_open",
                "40");
    assert_null(codec);
    o.head_dim = 64;
    o.key_bits = 9;
    OPS_REFUSED(walsh_ops_kv_codec_open(queue, &o, &codec, &err), WALSH_E_ARGUMENT, "9");
    ops_check_guards(&out);
    free(call.workspace);
    ops_free(&q);
    ops_free(&out);
    free_cache(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_pages),
        cmocka_unit_test(packed_pages),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

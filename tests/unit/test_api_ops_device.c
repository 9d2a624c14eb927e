/* walsh_ops.h on a device: views of its memory, a caller's stream, calls captured in a CUDA graph. What a device gives is
 * compared with the CPU. Without a CUDA device those tests are skipped, and the host's side of it runs over a
 * device that is none: a module whose memory is the host's, poisoned for whoever takes one for the other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "unit/ops_device.h"
#include "unit/share.h"

static struct walsh_error err;
static struct walsh_random random_state;

/* ---------------------------------------------------------------------------------------- both sides */

/* The CPU, and what is compared with it. */
struct side {
    struct walsh_context *context;
    struct walsh_ops_queue *queue;
    void *stream;
    bool cuda, device;
};

static void open_side(struct side *s, bool device, bool cuda)
{
    struct walsh_context_options o = WALSH_CONTEXT_OPTIONS;
    struct walsh_ops_queue_options q = WALSH_OPS_QUEUE_OPTIONS;
    memset(s, 0, sizeof *s);
    s->device = device;
    s->cuda = cuda;
    o.threads = 2;
    o.device = cuda ? "cuda" : NULL;
    OPS_WORKS(walsh_context_open(&o, &s->context, &err));
    if (cuda) {
        void *primary;
        int number;
        CUDA(cuDeviceGet(&number, 0));
        CUDA(cuDevicePrimaryCtxRetain(&primary, number));
        CUDA(cuCtxSetCurrent(primary));
        CUDA(cuStreamCreate(&s->stream, 1)); /* does not wait for the default stream */
    } else if (device) {
        s->context->module = &none_module;
        OPS_WORKS(none_module.open(0, NULL, &s->context->queue, &err));
        s->stream = &none_open_queues;
    }
    q.stream = s->stream;
    OPS_WORKS(walsh_ops_queue_open(s->context, &q, &s->queue, &err));
}

static void close_side(struct side *s)
{
    walsh_ops_queue_close(&s->queue);
    if (s->cuda) CUDA(cuStreamDestroy_v2(s->stream));
    walsh_context_close(&s->context);
}

/* The call returns when pageable memory has been read; what it brings may still be on its way, and the queue's stream does not wait. */
static void bring_up(uint64_t to, const void *from, size_t bytes)
{
    CUDA(cuMemcpyHtoD_v2(to, from, bytes));
    CUDA(cuStreamSynchronize(NULL));
}

/* Memory of the side, with what is at `from` (NULL: poison). */
static void *put(const struct side *s, const void *from, size_t bytes)
{
    void *p = ops_aligned(bytes);
    if (from) memcpy(p, from, bytes);
    if (!s->cuda) return p;
    uint64_t there;
    CUDA(cuMemAlloc_v2(&there, bytes));
    bring_up(there, p, bytes);
    free(p);
    return (void *)(uintptr_t)there;
}
static void change(const struct side *s, void *to, const void *from, size_t bytes)
{
    if (s->cuda)
        bring_up((uint64_t)(uintptr_t)to, from, bytes);
    else
        memcpy(to, from, bytes);
}
static void get(const struct side *s, void *to, const void *from, size_t bytes)
{
    OPS_WORKS(walsh_ops_queue_synchronize(s->queue, &err));
    if (s->cuda)
        CUDA(cuMemcpyDtoH_v2(to, (uint64_t)(uintptr_t)from, bytes));
    else
        memcpy(to, from, bytes);
}
static void drop(const struct side *s, void *p)
{
    if (s->cuda)
        CUDA(cuMemFree_v2((uint64_t)(uintptr_t)p));
    else
        free(p);
}
static struct walsh_view view_on(const struct side *s, void *data, enum walsh_element element, uint32_t rank,
                                 const int64_t *shape)
{
    struct walsh_view v = walsh_view_dense(data, element, rank, shape);
    if (s->device) v.device = WALSH_VIEW_CUDA;
    return v;
}

/* A tensor of a test on a side: all its bytes, guards included. */
struct placed {
    void *block;
    struct walsh_view view;
};
static struct placed place(const struct side *s, const struct ops_tensor *t)
{
    struct placed p = {put(s, t->block, t->bytes), t->view};
    p.view.data = (uint8_t *)p.block + ((uint8_t *)t->view.data - t->block);
    if (s->device) p.view.device = WALSH_VIEW_CUDA;
    return p;
}
static void bring(const struct side *s, struct placed *p, struct ops_tensor *t)
{
    get(s, t->block, p->block, t->bytes);
    drop(s, p->block);
}

/* Rows of `found` within `tolerance` times the largest number of the row; 0: the same bytes. */
static void compare(const struct ops_tensor *found, const struct ops_tensor *expected, double tolerance,
                    const char *what)
{
    ops_check_guards(found);
    if (tolerance == 0) {
        if (memcmp(found->block, expected->block, found->bytes) != 0) fail_msg("%s: other bits", what);
        return;
    }
    for (size_t r = 0; r < found->rows; r++) {
        double largest = 0;
        for (size_t c = 0; c < found->cols; c++) largest = fmax(largest, fabs(ops_get(expected, r, c)));
        for (size_t c = 0; c < found->cols; c++)
            if (!(fabs(ops_get(found, r, c) - ops_get(expected, r, c)) <=
                  tolerance * largest + 2 * ops_rounding(found->view.element, ops_get(expected, r, c))))
                fail_msg("%s: [%zu][%zu] is %g, expected %g", what, r, c, ops_get(found, r, c),
                         ops_get(expected, r, c));
    }
}

static struct walsh_ops_rotation *rotation_of_kind(const struct side *s, const char *kind, uint32_t size,
                                                   uint32_t min_block)
{
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    struct walsh_ops_rotation *r;
    o.kind = kind;
    o.size = size;
    o.min_block = min_block;
    o.seed = 5;
    OPS_WORKS(walsh_ops_rotation_open(s->queue, &o, &r, &err));
    return r;
}
static struct walsh_ops_rotation *rotation_on(const struct side *s, uint32_t size, uint32_t min_block)
{
    return rotation_of_kind(s, "block", size, min_block);
}

/* ---------------------------------------------------------------------------------------- rotations */

static void check_rotations(const struct side sides[2])
{
    static const uint32_t sizes[] = {64, 320, 1000, 4096};
    for (size_t i = 0; i < 24; i++) {
        const uint32_t size = sizes[i % 4], padded = (size + 63) / 64 * 64;
        const enum walsh_element from = (enum walsh_element)(i % 3), to = (enum walsh_element)(i / 4 % 3);
        const size_t rows = i == 7 && !test_small() ? 600 : i % 2 ? 3 : 70; /* 600: not all at once */
        struct ops_tensor x = ops_tensor(from, rows, size, size + 3), y[2], back[2];
        ops_fill(&x, &random_state);
        for (int s = 0; s < 2; s++) {
            struct walsh_ops_rotation *r =
                rotation_of_kind(&sides[s], i < 12 ? "block" : "overlap", size, 64);
            y[s] = ops_tensor(to, rows, padded, padded + (i < 16 ? 5 : 0)); /* dense ones go at once */
            back[s] = ops_tensor(from, rows, size, size + 1);
            struct placed a = place(&sides[s], &x), b = place(&sides[s], &y[s]),
                          c = place(&sides[s], &back[s]);
            OPS_WORKS(walsh_ops_rotate(sides[s].queue, r, &a.view, &b.view, &err));
            OPS_WORKS(walsh_ops_unrotate(sides[s].queue, r, &b.view, &c.view, &err));
            bring(&sides[s], &b, &y[s]);
            bring(&sides[s], &c, &back[s]);
            drop(&sides[s], a.block);
            walsh_ops_rotation_close(&r);
        }
        compare(&y[1], &y[0], 0, "rotate"); /* fixed bit for bit */
        compare(&back[1], &back[0], 0, "unrotate");
        ops_free(&x);
        for (int s = 0; s < 2; s++) ops_free(&y[s]), ops_free(&back[s]);
    }
}

/* ---------------------------------------------------------------------------------------- linears */

#define IN 320
#define OUT 96

/* Codes and weights of host memory, from which both sides open their linears. */
struct material {
    uint16_t codes[2][OUT * IN / 8];
    uint8_t bytes[OUT * IN], scales[OUT * IN / 16], zeros[OUT * IN / 16];
    float numbers[OUT], factors[OUT * IN / 32];
    struct walsh_ops_codes e8p;
};

static void make_material(struct material *m)
{
    const int64_t shape[] = {OUT, IN / 8};
    memset(m, 0, sizeof *m);
    for (size_t i = 0; i < OUT * IN / 8; i++)
        for (int k = 0; k < 2; k++) m->codes[k][i] = (uint16_t)walsh_random_u64(&random_state);
    for (size_t i = 0; i < OUT * IN; i++) m->bytes[i] = (uint8_t)(walsh_random_u64(&random_state) & 0xbf);
    for (size_t i = 0; i < sizeof m->scales; i++)
        m->scales[i] = (uint8_t)(120 + walsh_random_u64(&random_state) % 4);
    for (size_t i = 0; i < sizeof m->zeros; i++)
        m->zeros[i] = (uint8_t)(walsh_random_u64(&random_state) % 16);
    for (size_t i = 0; i < OUT; i++) m->numbers[i] = (float)walsh_random_normal(&random_state);
    for (size_t i = 0; i < OUT * IN / 32; i++) m->factors[i] = (float)(1 + i % 5) / 100;
    m->e8p.stages = 2;
    for (int k = 0; k < 2; k++) {
        m->e8p.codes[k] = walsh_view_dense(m->codes[k], WALSH_ELEMENT_U16, 2, shape);
        m->e8p.scale[k] = k ? 0.1f : 0.5f;
    }
}

enum { KINDS = 10 };
static const char *const kind_names[KINDS] = {"e8p",  "e8p f32", "mxfp4", "nvfp4", "int4",
                                              "int8", "mxfp8",   "fp8",   "bf16",  "f32"};

/* The linear of a kind on a side. Dense weights lie in host memory. */
static struct walsh_ops_linear *linear_on(const struct side *s, struct material *m, int kind,
                                          const struct walsh_ops_rotation *in,
                                          const struct walsh_ops_rotation *out)
{
    static float dense[OUT * IN];
    static uint16_t narrow[OUT * IN];
    const enum walsh_ops_format formats[KINDS] = {
        [2] = WALSH_OPS_MXFP4, [3] = WALSH_OPS_NVFP4, [4] = WALSH_OPS_INT4,
        [5] = WALSH_OPS_INT8,  [6] = WALSH_OPS_MXFP8, [7] = WALSH_OPS_FP8};
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
    struct walsh_ops_weights w = WALSH_OPS_WEIGHTS;
    struct walsh_ops_linear *linear;
    const int64_t bias[] = {OUT};
    o.in = in;
    o.out = out;
    o.bias = walsh_view_dense(m->numbers, WALSH_ELEMENT_F32, 1, bias);
    o.activations = kind == 1 || kind == 9 ? WALSH_ACTIVATIONS_F32
                    : kind > 5             ? WALSH_ACTIVATIONS_BF16
                                           : WALSH_ACTIVATIONS_INT8;
    if (kind < 2) {
        OPS_WORKS(walsh_ops_linear_open(s->queue, &m->e8p, &o, &linear, &err));
        return linear;
    }
    const bool four = kind < 5, bytes = kind == 2 || kind == 3 || kind == 6;
    const int64_t group = kind == 3 ? 16 : 32, shape[] = {OUT, four ? IN / 2 : IN}, all[] = {OUT, IN},
                  groups[] = {OUT, IN / group};
    w.format = formats[kind];
    w.rows = OUT;
    w.cols = IN;
    w.data = walsh_view_dense(m->bytes, WALSH_ELEMENT_U8, 2, shape);
    w.scales = bytes ? walsh_view_dense(m->scales, WALSH_ELEMENT_U8, 2, groups)
                     : walsh_view_dense(m->factors, WALSH_ELEMENT_F32, 2, groups);
    if (kind == 3) w.tensor_scale = 0.001f;
    if (kind == 4) w.zeros = walsh_view_dense(m->zeros, WALSH_ELEMENT_U8, 2, groups);
    if (kind >= 8) {
        for (size_t i = 0; i < OUT * IN; i++) {
            dense[i] = (float)m->bytes[i] / 200 - 0.4f;
            narrow[i] = walsh_bf16_from_f32(dense[i]);
        }
        w.scales = w.zeros = (struct walsh_view){0};
        w.data = kind == 8 ? walsh_view_dense(narrow, WALSH_ELEMENT_BF16, 2, all)
                           : walsh_view_dense(dense, WALSH_ELEMENT_F32, 2, all);
    }
    OPS_WORKS(walsh_ops_linear_open_weights(s->queue, &w, &o, &linear, &err));
    return linear;
}

static void apply(const struct side *s, const struct walsh_ops_linear *linear,
                  const struct walsh_ops_adapter *adapter, const struct placed *x, const struct placed *y)
{
    struct walsh_ops_call call = WALSH_OPS_CALL;
    const size_t rows = (size_t)x->view.shape[0];
    call.role = rows > 8 ? WALSH_OPS_PREFILL : WALSH_OPS_DECODE;
    call.adapters = &adapter;
    call.adapter_count = adapter != NULL;
    call.workspace_size = walsh_ops_linear_workspace(linear, rows, &adapter, call.adapter_count);
    call.workspace = put(s, NULL, call.workspace_size);
    OPS_WORKS(walsh_ops_linear_apply(s->queue, linear, &x->view, &y->view, &call, &err));
    OPS_WORKS(walsh_ops_queue_synchronize(s->queue, &err));
    drop(s, call.workspace);
}

static void check_linear(const struct side sides[2], struct material *m, int kind, size_t rows, bool rotated)
{
    char what[64];
    const enum walsh_element element = (enum walsh_element)(rows % 3);
    struct ops_tensor x = ops_tensor(element, rows, IN, IN + 8), y[2],
                      a = ops_tensor(WALSH_ELEMENT_F32, 7, IN, IN),
                      b = ops_tensor(WALSH_ELEMENT_F32, OUT, 7, 7);
    ops_fill(&x, &random_state);
    ops_fill(&a, &random_state);
    ops_fill(&b, &random_state);
    for (int s = 0; s < 2; s++) {
        struct walsh_ops_rotation *in = rotated ? rotation_on(&sides[s], IN, 64) : NULL,
                                  *out = rotated ? rotation_on(&sides[s], OUT, 16) : NULL;
        struct walsh_ops_linear *linear = linear_on(&sides[s], m, kind, in, out);
        struct walsh_ops_adapter *adapter = NULL;
        if (rows != 3)
            OPS_WORKS(
                walsh_ops_adapter_open(linear, &a.view, &b.view, 0.01f, WALSH_ADAPTER_BF16, &adapter, &err));
        y[s] = ops_tensor(element, rows, OUT, OUT + 4);
        struct placed from = place(&sides[s], &x), to = place(&sides[s], &y[s]);
        apply(&sides[s], linear, adapter, &from, &to);
        bring(&sides[s], &to, &y[s]);
        drop(&sides[s], from.block);
        walsh_ops_adapter_close(&adapter);
        walsh_ops_linear_close(&linear);
        walsh_ops_rotation_close(&in);
        walsh_ops_rotation_close(&out);
    }
    snprintf(what, sizeof what, "%s, %zu rows, %s", kind_names[kind], rows, rotated ? "rotated" : "plain");
    compare(&y[1], &y[0], 3e-4, what);
    ops_free(&x), ops_free(&a), ops_free(&b), ops_free(&y[0]), ops_free(&y[1]);
}

static void check_linears(const struct side sides[2])
{
    const size_t rows[] = {1, 3, 20, test_small() ? 33 : 200};
    struct material *m = malloc(sizeof *m);
    make_material(m);
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t r = 0; r < 4; r++)
            for (int rotated = 0; rotated < 2; rotated++) check_linear(sides, m, kind, rows[r], rotated);
    free(m);
}

/* Three linears with rotations of their own over consecutive rows, one of them without a row. */
static void check_groups(const struct side sides[2])
{
    static const size_t rows[] = {2, 0, 4};
    struct material *m = malloc(sizeof *m);
    make_material(m);
    struct ops_tensor x = ops_tensor(WALSH_ELEMENT_F16, 6, IN, IN), y[2];
    ops_fill(&x, &random_state);
    for (int s = 0; s < 2; s++) {
        struct walsh_ops_rotation *in[3], *out = rotation_on(&sides[s], OUT, 16);
        struct walsh_ops_linear *linears[3];
        struct walsh_ops_group groups[3];
        struct walsh_ops_call call = WALSH_OPS_CALL;
        for (int g = 0; g < 3; g++) {
            in[g] = rotation_on(&sides[s], IN, 64);
            linears[g] = linear_on(&sides[s], m, 2 + g % 2 * 2, in[g], g ? out : NULL);
            groups[g] = (struct walsh_ops_group){linears[g], rows[g]};
        }
        y[s] = ops_tensor(WALSH_ELEMENT_BF16, 6, OUT, OUT + 1);
        struct placed from = place(&sides[s], &x), to = place(&sides[s], &y[s]);
        call.workspace_size = walsh_ops_groups_workspace(groups, 3);
        call.workspace = put(&sides[s], NULL, call.workspace_size);
        OPS_WORKS(
            walsh_ops_linear_apply_groups(sides[s].queue, groups, 3, &from.view, &to.view, &call, &err));
        bring(&sides[s], &to, &y[s]);
        drop(&sides[s], from.block);
        drop(&sides[s], call.workspace);
        for (int g = 0; g < 3; g++) walsh_ops_linear_close(&linears[g]);
        for (int g = 0; g < 3; g++) walsh_ops_rotation_close(&in[g]);
        walsh_ops_rotation_close(&out);
    }
    compare(&y[1], &y[0], 3e-4, "groups");
    ops_free(&x), ops_free(&y[0]), ops_free(&y[1]);
    free(m);
}

/* ---------------------------------------------------------------------------------------- a step */

/* What one layer of an engine might call at a step: a rotation, two linears, a router, keys and values, attention. */
enum { ROWS = 3, HEADS = 4, KV_HEADS = 2, DIM = 64, PAGE = 16, POOL = 9, PAGES = 3, EXPERTS = 8, CHOSEN = 2 };

struct step {
    const struct side *side;
    struct walsh_ops_rotation *in, *out;
    struct walsh_ops_linear *packed, *blocks;
    void *x, *rotated, *y, *z, *logits, *index, *weight, *k, *v, *query, *attended, *positions, *tables,
        *pool, *room;
    size_t room_size;
};
struct results {
    float rotated[ROWS * IN], y[ROWS * OUT], weight[ROWS * CHOSEN], attended[ROWS * HEADS * DIM];
    uint16_t z[ROWS * OUT];
    int32_t index[ROWS * CHOSEN];
};
struct inputs {
    uint16_t x[ROWS * IN]; /* bf16 */
    float logits[ROWS * EXPERTS], k[ROWS * KV_HEADS * DIM], v[ROWS * KV_HEADS * DIM],
        query[ROWS * HEADS * DIM];
    int32_t positions[ROWS];
};

static void make_inputs(struct inputs *in, int32_t position)
{
    for (size_t i = 0; i < ROWS * IN; i++)
        in->x[i] = walsh_bf16_from_f32((float)walsh_random_normal(&random_state));
    for (size_t i = 0; i < ROWS * EXPERTS; i++) in->logits[i] = (float)walsh_random_normal(&random_state);
    for (size_t i = 0; i < ROWS * KV_HEADS * DIM; i++) {
        in->k[i] = (float)walsh_random_normal(&random_state);
        in->v[i] = (float)walsh_random_normal(&random_state);
    }
    for (size_t i = 0; i < ROWS * HEADS * DIM; i++) in->query[i] = (float)walsh_random_normal(&random_state);
    for (int i = 0; i < ROWS; i++) in->positions[i] = position + i;
}

static void open_step(struct step *t, const struct side *s, struct material *m)
{
    static const int32_t tables[ROWS][PAGES] = {{4, 0, 7}, {2, 8, 1}, {3, 6, 5}};
    static const uint16_t empty[2 * POOL * KV_HEADS * PAGE * DIM] = {0};
    memset(t, 0, sizeof *t);
    t->side = s;
    t->in = rotation_on(s, IN, 64);
    t->out = rotation_on(s, OUT, 16);
    t->packed = linear_on(s, m, 0, t->in, t->out);
    t->blocks = linear_on(s, m, 2, NULL, NULL);
    t->x = put(s, NULL, ROWS * IN * 2);
    t->rotated = put(s, NULL, sizeof(float) * ROWS * IN);
    t->y = put(s, NULL, sizeof(float) * ROWS * OUT);
    t->z = put(s, NULL, 2 * ROWS * OUT);
    t->logits = put(s, NULL, sizeof(float) * ROWS * EXPERTS);
    t->index = put(s, NULL, sizeof(int32_t) * ROWS * CHOSEN);
    t->weight = put(s, NULL, sizeof(float) * ROWS * CHOSEN);
    t->k = put(s, NULL, sizeof(float) * ROWS * KV_HEADS * DIM);
    t->v = put(s, NULL, sizeof(float) * ROWS * KV_HEADS * DIM);
    t->query = put(s, NULL, sizeof(float) * ROWS * HEADS * DIM);
    t->attended = put(s, NULL, sizeof(float) * ROWS * HEADS * DIM);
    t->positions = put(s, NULL, sizeof(int32_t) * ROWS);
    t->tables = put(s, tables, sizeof tables);
    t->pool = put(s, empty, sizeof empty);
    const struct walsh_ops_kv kv = {.page_tokens = PAGE, .kv_heads = KV_HEADS, .head_dim = DIM};
    const size_t sizes[] = {walsh_ops_linear_workspace(t->packed, ROWS, NULL, 0),
                            walsh_ops_linear_workspace(t->blocks, ROWS, NULL, 0),
                            walsh_ops_attention_workspace(&kv, HEADS, ROWS, PAGES)};
    for (size_t i = 0; i < 3; i++) t->room_size = sizes[i] > t->room_size ? sizes[i] : t->room_size;
    t->room = put(s, NULL, t->room_size);
}

static void close_step(struct step *t)
{
    void *const all[] = {t->x, t->rotated, t->y,        t->z,         t->logits, t->index, t->weight, t->k,
                         t->v, t->query,   t->attended, t->positions, t->tables, t->pool,  t->room};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) drop(t->side, all[i]);
    walsh_ops_linear_close(&t->packed);
    walsh_ops_linear_close(&t->blocks);
    walsh_ops_rotation_close(&t->in);
    walsh_ops_rotation_close(&t->out);
}

static void set_inputs(struct step *t, const struct inputs *in)
{
    change(t->side, t->x, in->x, sizeof in->x);
    change(t->side, t->logits, in->logits, sizeof in->logits);
    change(t->side, t->k, in->k, sizeof in->k);
    change(t->side, t->v, in->v, sizeof in->v);
    change(t->side, t->query, in->query, sizeof in->query);
    change(t->side, t->positions, in->positions, sizeof in->positions);
}

static void get_results(struct step *t, struct results *r)
{
    memset(r, 0, sizeof *r);
    get(t->side, r->rotated, t->rotated, sizeof r->rotated);
    get(t->side, r->y, t->y, sizeof r->y);
    get(t->side, r->z, t->z, sizeof r->z);
    get(t->side, r->index, t->index, sizeof r->index);
    get(t->side, r->weight, t->weight, sizeof r->weight);
    get(t->side, r->attended, t->attended, sizeof r->attended);
}

static void run_step(struct step *t)
{
    const struct side *s = t->side;
    const int64_t wide[] = {ROWS, IN}, narrow[] = {ROWS, OUT}, experts[] = {ROWS, EXPERTS},
                  chosen[] = {ROWS, CHOSEN}, keys[] = {ROWS, KV_HEADS, DIM}, heads[] = {ROWS, HEADS, DIM},
                  rows[] = {ROWS}, table[] = {ROWS, PAGES}, pages[] = {POOL, KV_HEADS, PAGE, DIM};
    const struct walsh_view x = view_on(s, t->x, WALSH_ELEMENT_BF16, 2, wide),
                            rotated = view_on(s, t->rotated, WALSH_ELEMENT_F32, 2, wide),
                            y = view_on(s, t->y, WALSH_ELEMENT_F32, 2, narrow),
                            z = view_on(s, t->z, WALSH_ELEMENT_F16, 2, narrow),
                            logits = view_on(s, t->logits, WALSH_ELEMENT_F32, 2, experts),
                            index = view_on(s, t->index, WALSH_ELEMENT_I32, 2, chosen),
                            weight = view_on(s, t->weight, WALSH_ELEMENT_F32, 2, chosen),
                            k = view_on(s, t->k, WALSH_ELEMENT_F32, 3, keys),
                            v = view_on(s, t->v, WALSH_ELEMENT_F32, 3, keys),
                            query = view_on(s, t->query, WALSH_ELEMENT_F32, 3, heads),
                            attended = view_on(s, t->attended, WALSH_ELEMENT_F32, 3, heads);
    struct walsh_ops_call call = WALSH_OPS_CALL;
    call.workspace = t->room;
    call.workspace_size = t->room_size;
    OPS_WORKS(walsh_ops_rotate(s->queue, t->in, &x, &rotated, &err));
    OPS_WORKS(walsh_ops_linear_apply(s->queue, t->packed, &x, &y, &call, &err));
    OPS_WORKS(walsh_ops_linear_apply(s->queue, t->blocks, &x, &z, &call, &err));
    OPS_WORKS(walsh_ops_route(s->queue, &logits, true, &index, &weight, &err));

    struct walsh_ops_kv kv = {.page_tokens = PAGE, .kv_heads = KV_HEADS, .head_dim = DIM};
    struct walsh_ops_attention_call a = WALSH_OPS_ATTENTION_CALL;
    kv.keys = view_on(s, t->pool, WALSH_ELEMENT_F16, 4, pages);
    kv.values = kv.keys;
    kv.values.data = (uint16_t *)t->pool + POOL * KV_HEADS * PAGE * DIM;
    a.heads = HEADS;
    a.workspace = t->room;
    a.workspace_size = t->room_size;
    a.positions = view_on(s, t->positions, WALSH_ELEMENT_I32, 1, rows);
    a.pages = view_on(s, t->tables, WALSH_ELEMENT_I32, 2, table);
    OPS_WORKS(walsh_ops_kv_append(s->queue, &kv, NULL, ROWS, &k, &v, &a, &err));
    OPS_WORKS(walsh_ops_attention(s->queue, &kv, NULL, ROWS, &query, &attended, &a, &err));
}

static void near(const float *found, const float *expected, size_t n, const char *what)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(expected[i]));
    assert_true(largest > 0);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(found[i] - expected[i]) <= 3e-4f * largest))
            fail_msg("%s: [%zu] is %g, expected %g", what, i, (double)found[i], (double)expected[i]);
}

static void compare_results(const struct results *found, const struct results *expected)
{
    assert_memory_equal(found->rotated, expected->rotated, sizeof found->rotated);
    assert_memory_equal(found->index, expected->index, sizeof found->index);
    near(found->y, expected->y, ROWS * OUT, "y");
    near(found->weight, expected->weight, ROWS * CHOSEN, "weight");
    near(found->attended, expected->attended, ROWS * HEADS * DIM, "attended");
    for (size_t i = 0; i < ROWS * OUT; i++) {
        const double f = (double)walsh_f32_from_f16(found->z[i]),
                     e = (double)walsh_f32_from_f16(expected->z[i]);
        if (!(fabs(f - e) <= 2e-3 * fabs(e) + 1e-3)) fail_msg("z: [%zu] is %g, expected %g", i, f, e);
    }
}

/* Steps at several positions, whose caches grow, against the CPU's. */
static void check_steps(const struct side sides[2])
{
    struct material *m = malloc(sizeof *m);
    struct step t[2];
    struct results r[2];
    struct inputs in;
    make_material(m);
    for (int s = 0; s < 2; s++) open_step(&t[s], &sides[s], m);
    for (int32_t position = 0; position < 40; position += test_small() ? 5 : 1) {
        make_inputs(&in, position);
        for (int s = 0; s < 2; s++) {
            set_inputs(&t[s], &in);
            run_step(&t[s]);
            get_results(&t[s], &r[s]);
        }
        compare_results(&r[1], &r[0]);
    }
    for (int s = 0; s < 2; s++) close_step(&t[s]);
    free(m);
}

/* The same captured: each launch of the graph, with other inputs at other positions, gives what the calls give, and the
 * same bits when it is launched again. */
static void check_graph(const struct side sides[2])
{
    struct material *m = malloc(sizeof *m);
    struct step t[2];
    struct results r[2], again;
    struct inputs in;
    void *graph, *run;
    make_material(m);
    for (int s = 0; s < 2; s++) open_step(&t[s], &sides[s], m);
    make_inputs(&in, 0);
    for (int s = 0; s < 2; s++) set_inputs(&t[s], &in);
    run_step(&t[0]);
    run_step(&t[1]); /* loads the kernels */
    OPS_WORKS(walsh_ops_queue_synchronize(sides[1].queue, &err));
    CUDA(cuStreamBeginCapture_v2(sides[1].stream, 0)); /* global: an allocation anywhere would end it */
    run_step(&t[1]);
    CUDA(cuStreamEndCapture(sides[1].stream, &graph));
    CUDA(cuGraphInstantiateWithFlags(&run, graph, 0));
    for (int32_t position = 1; position < 40; position++) {
        make_inputs(&in, position);
        for (int s = 0; s < 2; s++) set_inputs(&t[s], &in);
        run_step(&t[0]);
        get_results(&t[0], &r[0]);
        CUDA(cuGraphLaunch(run, sides[1].stream));
        get_results(&t[1], &r[1]);
        compare_results(&r[1], &r[0]);
        CUDA(cuGraphLaunch(run, sides[1].stream));
        get_results(&t[1], &again);
        assert_memory_equal(&again, &r[1], sizeof again);
    }
    CUDA(cuGraphExecDestroy(run));
    CUDA(cuGraphDestroy(graph));
    for (int s = 0; s < 2; s++) close_step(&t[s]);
    free(m);
}

/* ---------------------------------------------------------------------------------------- packed pages */

enum { SPAN = 64, PACKED_PAGES = 2, PACKED_POOL = ROWS * PACKED_PAGES, LAST = SPAN + 7 };

struct packed {
    const struct side *side;
    struct walsh_ops_kv_codec *codec;
    size_t bytes[2]; /* of a page of keys, of values */
    void *pool[2], *k, *v, *query, *attended, *positions, *tables, *room;
    size_t room_size;
};

static void open_packed(struct packed *t, const struct side *s, unsigned key_bits, unsigned value_bits)
{
    static const int32_t tables[ROWS][PACKED_PAGES] = {{4, 0}, {2, 5}, {3, 1}};
    struct walsh_ops_kv_codec_options o = WALSH_OPS_KV_CODEC_OPTIONS;
    const struct walsh_ops_kv kv = {.page_tokens = SPAN, .kv_heads = KV_HEADS, .head_dim = DIM};
    memset(t, 0, sizeof *t);
    t->side = s;
    o.head_dim = DIM;
    o.key_bits = key_bits;
    o.value_bits = value_bits;
    OPS_WORKS(walsh_ops_kv_codec_open(s->queue, &o, &t->codec, &err));
    for (int side = 0; side < 2; side++) {
        t->bytes[side] = walsh_ops_kv_page_bytes(t->codec, side == 1, KV_HEADS, SPAN);
        void *empty = calloc(PACKED_POOL, t->bytes[side]);
        t->pool[side] = put(s, empty, PACKED_POOL * t->bytes[side]);
        free(empty);
    }
    t->k = put(s, NULL, sizeof(float) * ROWS * KV_HEADS * DIM);
    t->v = put(s, NULL, sizeof(float) * ROWS * KV_HEADS * DIM);
    t->query = put(s, NULL, sizeof(float) * ROWS * HEADS * DIM);
    t->attended = put(s, NULL, sizeof(float) * ROWS * HEADS * DIM);
    t->positions = put(s, NULL, sizeof(int32_t) * ROWS);
    t->tables = put(s, tables, sizeof tables);
    t->room_size = walsh_ops_attention_workspace(&kv, HEADS, ROWS, PACKED_PAGES);
    t->room = put(s, NULL, t->room_size);
}

static void close_packed(struct packed *t)
{
    void *const all[] = {t->pool[0],  t->pool[1],   t->k,      t->v,   t->query,
                         t->attended, t->positions, t->tables, t->room};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) drop(t->side, all[i]);
    walsh_ops_kv_codec_close(&t->codec);
}

static void run_packed(struct packed *t, const struct inputs *in, float *attended)
{
    const struct side *s = t->side;
    const int64_t keys[] = {ROWS, KV_HEADS, DIM}, heads[] = {ROWS, HEADS, DIM}, rows[] = {ROWS},
                  table[] = {ROWS, PACKED_PAGES};
    const struct walsh_view k = view_on(s, t->k, WALSH_ELEMENT_F32, 3, keys),
                            v = view_on(s, t->v, WALSH_ELEMENT_F32, 3, keys),
                            query = view_on(s, t->query, WALSH_ELEMENT_F32, 3, heads),
                            to = view_on(s, t->attended, WALSH_ELEMENT_F32, 3, heads);
    struct walsh_ops_kv kv = {.page_tokens = SPAN, .kv_heads = KV_HEADS, .head_dim = DIM, .codec = t->codec};
    struct walsh_ops_attention_call a = WALSH_OPS_ATTENTION_CALL;
    for (int side = 0; side < 2; side++) {
        const int64_t pages[] = {PACKED_POOL, (int64_t)t->bytes[side]};
        const struct walsh_view view = view_on(s, t->pool[side], WALSH_ELEMENT_U8, 2, pages);
        *(side == 0 ? &kv.keys : &kv.values) = view;
    }
    change(s, t->k, in->k, sizeof in->k);
    change(s, t->v, in->v, sizeof in->v);
    change(s, t->query, in->query, sizeof in->query);
    change(s, t->positions, in->positions, sizeof in->positions);
    a.heads = HEADS;
    a.workspace = t->room;
    a.workspace_size = t->room_size;
    a.positions = view_on(s, t->positions, WALSH_ELEMENT_I32, 1, rows);
    a.pages = view_on(s, t->tables, WALSH_ELEMENT_I32, 2, table);
    OPS_WORKS(walsh_ops_kv_append(s->queue, &kv, NULL, ROWS, &k, &v, &a, &err));
    OPS_WORKS(walsh_ops_attention(s->queue, &kv, NULL, ROWS, &query, &to, &a, &err));
    get(s, attended, t->attended, sizeof(float) * ROWS * HEADS * DIM);
}

/* The pages are the CPU's bit for bit, what is attended is near. */
static void check_packed_bits(const struct side sides[2], unsigned key_bits, unsigned value_bits)
{
    struct packed t[2];
    struct inputs in;
    static float attended[2][ROWS * HEADS * DIM];
    for (int s = 0; s < 2; s++) open_packed(&t[s], &sides[s], key_bits, value_bits);
    for (int32_t position = 0; position < LAST; position++) {
        make_inputs(&in, 0);
        for (int i = 0; i < ROWS; i++) in.positions[i] = position;
        for (int s = 0; s < 2; s++) run_packed(&t[s], &in, attended[s]);
        near(attended[1], attended[0], ROWS * HEADS * DIM, "attended");
    }
    for (int side = 0; side < 2; side++) {
        uint8_t *pages[2];
        const size_t bytes = PACKED_POOL * t[0].bytes[side];
        for (int s = 0; s < 2; s++) {
            pages[s] = malloc(bytes);
            get(&sides[s], pages[s], t[s].pool[side], bytes);
        }
        assert_memory_equal(pages[0], pages[1], bytes);
        free(pages[0]), free(pages[1]);
    }
    for (int s = 0; s < 2; s++) close_packed(&t[s]);
}

static void check_packed(const struct side sides[2])
{
    check_packed_bits(sides, 4, 4);
    check_packed_bits(sides, 3, 2);
}

/* ---------------------------------------------------------------------------------------- refusals */

static void check_refusals(const struct side sides[2])
{
    const struct side *cpu = &sides[0], *device = &sides[1];
    const int64_t shape[] = {1, 64};
    float x[64] = {0};
    struct walsh_ops_rotation *here = rotation_on(cpu, 64, 64), *there = rotation_on(device, 64, 64), *none;
    struct walsh_view v = walsh_view_dense(x, WALSH_ELEMENT_F32, 2, shape);
    OPS_REFUSED(walsh_ops_rotate(device->queue, here, &v, &v, &err), WALSH_E_ARGUMENT, "another device");
    OPS_REFUSED(walsh_ops_rotate(cpu->queue, there, &v, &v, &err), WALSH_E_ARGUMENT, "another device");
    OPS_REFUSED(walsh_ops_rotate(device->queue, there, &v, &v, &err), WALSH_E_ARGUMENT,
                "device is 1:0, expected 2:0");
    v.device = WALSH_VIEW_CUDA;
    v.device_id = 1;
    OPS_REFUSED(walsh_ops_rotate(device->queue, there, &v, &v, &err), WALSH_E_ARGUMENT,
                "device is 2:1, expected 2:0");
    v.device_id = 0;
    OPS_REFUSED(walsh_ops_rotate(cpu->queue, here, &v, &v, &err), WALSH_E_ARGUMENT,
                "device is 2:0, expected 1:0");
    const struct walsh_ops_expert expert = {0};
    OPS_REFUSED(walsh_ops_experts_apply(device->queue, &expert, 1, &v, &v, &v, &v, NULL, &err),
                WALSH_E_UNSUPPORTED, "on the CPU only");
    struct walsh_ops_kv_codec *codec;
    struct walsh_ops_kv_codec_options k = WALSH_OPS_KV_CODEC_OPTIONS;
    k.head_dim = 64;
    if (!device->cuda)
        OPS_REFUSED(walsh_ops_kv_codec_open(device->queue, &k, &codec, &err), WALSH_E_UNSUPPORTED,
                    "packed pages have no kernels on this device");
    if (device->cuda) {
        struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
        o.size = 262144;
        OPS_REFUSED(walsh_ops_rotation_open(device->queue, &o, &none, &err), WALSH_E_UNSUPPORTED,
                    "a rotation of 262144 elements");
    }
    walsh_ops_rotation_close(&here);
    walsh_ops_rotation_close(&there);
}

/* ---------------------------------------------------------------------------------------- tests */

static void open_sides(struct side sides[2], bool cuda)
{
    open_side(&sides[0], false, false);
    open_side(&sides[1], true, cuda);
}

static void close_sides(struct side sides[2])
{
    close_side(&sides[1]);
    close_side(&sides[0]);
}

static void host_side(void **state)
{
    (void)state;
    struct side sides[2];
    open_sides(sides, false);
    assert_int_equal(none_open_queues, 2); /* the context's, and that of the stream */
    check_rotations(sides);
    check_linears(sides);
    check_groups(sides);
    check_steps(sides);
    check_refusals(sides);
    assert_int_equal(none_held, 0);
    close_sides(sides);
    assert_int_equal(none_open_queues, 0);
}

static bool have_device;

static void on_cuda(void (*check)(const struct side sides[2]))
{
    struct side sides[2];
    if (!have_device) skip();
    open_sides(sides, true);
    check(sides);
    close_sides(sides);
}
static void cuda_rotations(void **state)
{
    (void)state;
    on_cuda(check_rotations);
}
static void cuda_linears(void **state)
{
    (void)state;
    on_cuda(check_linears);
}
static void cuda_groups(void **state)
{
    (void)state;
    on_cuda(check_groups);
}
static void cuda_steps(void **state)
{
    (void)state;
    on_cuda(check_steps);
}
static void cuda_packed(void **state)
{
    (void)state;
    on_cuda(check_packed);
}
static void cuda_graph(void **state)
{
    (void)state;
    on_cuda(check_graph);
}
static void cuda_refusals(void **state)
{
    (void)state;
    on_cuda(check_refusals);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(host_side),     cmocka_unit_test(cuda_rotations), cmocka_unit_test(cuda_linears),
        cmocka_unit_test(cuda_groups),   cmocka_unit_test(cuda_steps),     cmocka_unit_test(cuda_graph),
        cmocka_unit_test(cuda_refusals), cmocka_unit_test(cuda_packed),
    };
    const uint64_t seed = 20261124;
    struct walsh_device device;
    print_message("seed %llu\n", (unsigned long long)seed);
    walsh_random_seed(&random_state, seed);
    have_device = find_driver() && walsh_device_find(0, &device) && device.usable;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

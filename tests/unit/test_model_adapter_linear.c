/* Fused adapters against y = W^ x + s B (A x) in double precision: every kind of linear, rotation, format,
 * rank, batch and role, alone, stacked, and with rows of a batch that use different ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "formats/blocks.h"
#include "formats/e8p_planes.h"
#include "model/adapter.h"
#include "model/sites.h"
#include "unit/share.h"

#define ROWS 17
#define LINEARS 19 /* a dense layer: 7; one of two experts: 4 + 1 + 6; the head */
#define SHARE 0.22 /* of an adapter's effect in the norm of a base output */
enum { HIDDEN = 192, HEADS = 128, KV = 64, WIDE = 160, VOCAB = 80, EXPERTS = 2 };

/* SHARDS: two parts that do not mix, where a dimension has them; INPUT: the outputs are not rotated, as those
 * of a head in int8. */
enum rotation { NONE, BLOCK, POW2, OVERLAP, SHARDS, INPUT, ROTATIONS };
static const char *const rotation_names[] = {"none", "block", "pow2", "overlap", "shards", "input"};
static const struct format {
    const char *name;
    enum walsh_format format;
    unsigned bits;                 /* e8p */
    struct walsh_block_type block; /* block formats */
    bool zeros;
} formats[] = {
    {"f32", WALSH_FORMAT_F32, 0, {0}, false},
    {"f16", WALSH_FORMAT_F16, 0, {0}, false},
    {"bf16", WALSH_FORMAT_BF16, 0, {0}, false},
    {"e8p-2", WALSH_FORMAT_E8P, 2, {0}, false},
    {"e8p-3", WALSH_FORMAT_E8P, 3, {0}, false},
    {"e8p-4", WALSH_FORMAT_E8P, 4, {0}, false},
    {"mxfp4", WALSH_FORMAT_MXFP4, 0, {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32}, false},
    {"nvfp4", WALSH_FORMAT_NVFP4, 0, {WALSH_CODE_E2M1, WALSH_SCALE_E4M3, 16}, false},
    {"mxfp8", WALSH_FORMAT_MXFP8, 0, {WALSH_CODE_E4M3, WALSH_SCALE_E8M0, 32}, false},
    {"fp8", WALSH_FORMAT_FP8, 0, {WALSH_CODE_E4M3, WALSH_SCALE_F32, 0}, false},
    {"int8", WALSH_FORMAT_INT8, 0, {WALSH_CODE_U8, WALSH_SCALE_BF16, 64}, true},
    {"int8 rows", WALSH_FORMAT_INT8, 0, {WALSH_CODE_U8, WALSH_SCALE_F32, 0}, false},
    {"int4", WALSH_FORMAT_INT4, 0, {WALSH_CODE_U4, WALSH_SCALE_BF16, 32}, true},
};
enum { FORMATS = sizeof formats / sizeof *formats };
#ifdef __SANITIZE_ADDRESS__ /* a look at each, the sums themselves are the same */
static const uint32_t ranks[] = {1, 17, 64};
enum { ROW_STEP = 4 };
#else
static const uint32_t ranks[] = {1, 3, 8, 16, 17, 64, 256};
enum { ROW_STEP = 1 };
#endif
enum { RANKS = sizeof ranks / sizeof *ranks };

static struct walsh_queue queue;
static struct walsh_pool *pool;

/* A model of two layers, x for every row, and what its linears make of x. */
struct bench {
    struct walsh_random random;
    struct walsh_arena arena;
    struct walsh_model_graph graph;
    struct walsh_layer layers[2];
    struct walsh_expert experts[EXPERTS];
    const struct walsh_linear *linears[LINEARS]; /* by index */
    double *base[LINEARS];                       /* [ROWS][out]: W^ x */
    float *x[LINEARS];                           /* [ROWS][ldx], shared by the linears of a site */
    size_t ldx[LINEARS];
    struct walsh_workspace *ws;
};

/* An adapter of every linear, and its effect on the rows. */
struct effect {
    struct walsh_adapter adapter;
    const struct walsh_linear *linears[LINEARS];
    struct walsh_adapter_linear updates[LINEARS];
    const float *a[LINEARS]; /* [rank][in], by index; NULL: that of the linear before */
    const float *b[LINEARS]; /* [out][rank] */
    double *delta[LINEARS];  /* [ROWS][out]: scale B (A x) */
    float scale[LINEARS];
    uint32_t rank;
};

static void *get(struct bench *t, size_t count, size_t size)
{
    void *p;
    if (walsh_arena_alloc(&t->arena, count, size, "test data", &p, NULL) != WALSH_OK)
        fail_msg("out of memory");
    return p;
}

/* Uniform, of that deviation. */
static float *draw(struct bench *t, size_t n, double deviation)
{
    float *v = get(t, n, sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(deviation * sqrt(12) * (walsh_random_uniform(&t->random) - 0.5));
    return v;
}

static void make_rotation(struct bench *t, enum rotation kind, uint32_t n, uint32_t min_block,
                          const float *signs, struct walsh_rotation *r)
{
    *r = (struct walsh_rotation){.size = n, .blocks = {.padded = n}};
    if (kind == NONE || (kind == INPUT && min_block == WALSH_MIN_BLOCK_ROWS)) return;
    enum walsh_status status;
    if (kind == OVERLAP) {
        status = walsh_rotation_overlap_padded(n, min_block, NULL, r, NULL);
    } else {
        const bool halves = kind == SHARDS && n % (2 * min_block) == 0;
        r->kind = WALSH_ROTATION_BLOCKS;
        status = halves         ? walsh_blocks_parts(n, min_block, 2, &r->blocks, NULL)
                 : kind == POW2 ? walsh_blocks_pow2(n, min_block, &r->blocks, NULL)
                                : walsh_blocks_binary(n, min_block, &r->blocks, NULL);
    }
    assert_int_equal(status, WALSH_OK);
    r->signs = signs;
    if (signs) return;
    float *own = get(t, walsh_rotation_signs(r), sizeof *own);
    walsh_random_signs(walsh_random_u64(&t->random), "signs", own, (uint32_t)walsh_rotation_signs(r));
    r->signs = own;
}

static void fill_dense(struct bench *t, struct walsh_weights *w, double *plain)
{
    const size_t n = (size_t)w->rows * w->cols;
    float *wide = draw(t, n, 1 / sqrt(w->cols));
    uint16_t *narrow = get(t, n, sizeof *narrow);
    for (size_t i = 0; i < n; i++) {
        narrow[i] =
            w->format == WALSH_FORMAT_F16 ? walsh_f16_from_f32(wide[i]) : walsh_bf16_from_f32(wide[i]);
        plain[i] = w->format == WALSH_FORMAT_F32   ? (double)wide[i]
                   : w->format == WALSH_FORMAT_F16 ? (double)walsh_f32_from_f16(narrow[i])
                                                   : (double)walsh_f32_from_bf16(narrow[i]);
    }
    w->data = w->format == WALSH_FORMAT_F32 ? (const void *)wide : narrow;
}

static void fill_stages(struct bench *t, struct walsh_weights *w, unsigned bits, double *plain)
{
    static const enum walsh_stage_kind kinds[][2] = {{WALSH_STAGE_E8P, WALSH_STAGE_E8P},
                                                     {WALSH_STAGE_E8P, WALSH_STAGE_E81B},
                                                     {WALSH_STAGE_E8P, WALSH_STAGE_E8P}};
    const size_t groups = (size_t)w->rows * w->cols / 8;
    w->stages = bits == 2 ? 1 : 2;
    for (unsigned k = 0; k < w->stages; k++) {
        const enum walsh_stage_kind kind = kinds[bits - 2][k];
        uint16_t *codes = get(t, groups, sizeof *codes);
        uint8_t *short_codes = get(t, groups, 1),
                *packed = get(t, walsh_stage_bytes(kind, w->rows, w->cols), 1);
        w->stage[k].kind = kind;
        w->stage[k].scale = (float)(1 / sqrt(w->cols) / (1 + 3 * k));
        for (size_t g = 0; g < groups; g++) {
            float v[8];
            codes[g] = (uint16_t)walsh_random_u64(&t->random);
            short_codes[g] = (uint8_t)codes[g];
            if (kind == WALSH_STAGE_E8P)
                walsh_e8p_decode(codes[g], v);
            else
                walsh_e81b_decode(short_codes[g], v);
            for (size_t i = 0; i < 8; i++) plain[8 * g + i] += (double)w->stage[k].scale * (double)v[i];
        }
        if (kind == WALSH_STAGE_E8P)
            walsh_e8p_pack(w->cols, codes, 0, w->rows, packed);
        else
            walsh_e81b_pack(w->cols, short_codes, 0, w->rows, packed);
        w->stage[k].data = packed;
    }
}

static uint32_t random_scale(struct bench *t, enum walsh_scale type)
{
    const unsigned step = (unsigned)(walsh_random_u64(&t->random) % 8);
    switch (type) {
    case WALSH_SCALE_E8M0:
        return 127 - 4 + step / 2;
    case WALSH_SCALE_E4M3:
        return 0x38 + step; /* 1 to 1.875 */
    case WALSH_SCALE_BF16:
        return walsh_bf16_from_f32(1 + (float)step / 8);
    case WALSH_SCALE_F32:
        break;
    }
    return walsh_bits_from_float(1 + (float)step / 7);
}

static void fill_blocks(struct bench *t, struct walsh_weights *w, const struct format *f, double *plain)
{
    w->block = f->block;
    w->tensor_scale = f->block.scale == WALSH_SCALE_E4M3 ? 0.0123f : 1;
    const size_t row_bytes = w->cols * walsh_code_bits(w->block.code) / 8;
    uint8_t *codes = get(t, w->rows * row_bytes, 1);
    for (size_t i = 0; i < w->rows * row_bytes; i++) do
            codes[i] = (uint8_t)walsh_random_u64(&t->random);
        while (!walsh_code_is_number(w->block.code, codes[i]));
    const size_t count = walsh_block_scale_count(w);
    uint32_t *data = get(t, walsh_block_data_words(w), sizeof *data);
    void *scales = get(t, count, walsh_scale_bytes(w->block.scale));
    uint8_t *zeros = get(t, count, 1);
    for (size_t i = 0; i < count; i++)
        zeros[i] = (uint8_t)(walsh_random_u64(&t->random) % (1u << walsh_code_bits(w->block.code)));
    for (size_t tile = 0; tile < walsh_block_tiles(w); tile++)
        walsh_block_pack_codes(w, tile, codes + tile * WALSH_BLOCK_ROWS * row_bytes, row_bytes, 0, data);
    for (size_t r = 0; r < w->rows; r++)
        for (size_t g = 0; g < walsh_block_groups(w); g++)
            walsh_block_put_scale(w, r, g, random_scale(t, w->block.scale), scales);
    w->data = data;
    w->scales = scales;
    w->zeros = f->zeros ? zeros : NULL;
    for (size_t r = 0; r < w->rows; r++)
        for (size_t k = 0; k < w->cols; k++) plain[r * w->cols + k] = (double)walsh_block_weight(w, r, k);
}

/* base[row] = inverse_out(W^ forward_in(x[row])). */
static void apply_base(struct bench *t, const struct walsh_linear *l, const double *plain)
{
    const size_t ldx = t->ldx[l->index];
    const size_t inputs = l->in_rotation.blocks.padded, outs = l->out_rotation.blocks.padded;
    double *x = get(t, l->in, sizeof *x), *a = get(t, inputs, sizeof *a), *z = get(t, outs, sizeof *z);
    t->base[l->index] = get(t, (size_t)ROWS * l->out, sizeof(double));
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t i = 0; i < l->in; i++) x[i] = (double)t->x[l->index][row * ldx + i];
        walsh_rotate_forward_f64(&l->in_rotation, x, a);
        for (size_t o = 0; o < outs; o++) {
            z[o] = 0;
            for (size_t i = 0; i < inputs; i++) z[o] += plain[o * inputs + i] * a[i];
        }
        walsh_rotate_inverse_f64(&l->out_rotation, z, t->base[l->index] + row * l->out);
    }
}

/* The linears of one site: one x, one input rotation for all but the last. */
static void make_site(struct bench *t, const struct walsh_site *site, enum rotation kind,
                      const struct format *f)
{
    const struct walsh_linear *first = site->linears[0];
    const size_t ldx = first->index % 2 ? first->in + 5 : walsh_activations_stride(first->in);
    float *x = draw(t, ROWS * ldx, 1);
    for (size_t row = 0; row < ROWS; row++) /* a stride of that width promises zeros behind the row */
        if (ldx == walsh_activations_stride(first->in))
            memset(x + row * ldx + first->in, 0, (ldx - first->in) * sizeof *x);
    for (unsigned i = 0; i < site->count; i++) {
        struct walsh_linear *l = (struct walsh_linear *)(uintptr_t)site->linears[i];
        const float *signs = i > 0 && i + 1 < site->count ? first->in_rotation.signs : NULL;
        make_rotation(t, kind, l->in, WALSH_MIN_BLOCK_COLUMNS, signs, &l->in_rotation);
        make_rotation(t, kind, l->out, WALSH_MIN_BLOCK_ROWS, NULL, &l->out_rotation);
        l->weights = (struct walsh_weights){
            .format = f->format, .rows = l->out_rotation.blocks.padded, .cols = l->in_rotation.blocks.padded};
        double *plain = get(t, (size_t)l->weights.rows * l->weights.cols, sizeof *plain);
        if (f->format == WALSH_FORMAT_E8P)
            fill_stages(t, &l->weights, f->bits, plain);
        else if (walsh_format_is_block(f->format))
            fill_blocks(t, &l->weights, f, plain);
        else
            fill_dense(t, &l->weights, plain);
        l->activation = WALSH_ACTIVATION_F32;
        t->linears[l->index] = l;
        t->x[l->index] = x;
        t->ldx[l->index] = ldx;
        apply_base(t, l, plain);
    }
}

static void name_linear(struct walsh_linear *l, const char *name, uint32_t in, uint32_t out)
{
    *l = (struct walsh_linear){.name = name, .in = in, .out = out};
}

static void bench_open(struct bench *t, enum rotation kind, const struct format *f, uint64_t seed)
{
    memset(t, 0, sizeof *t);
    walsh_random_seed(&t->random, seed);
    t->graph.layers = t->layers;
    t->graph.config = (struct walsh_config){.layers = 2,
                                            .hidden = HIDDEN,
                                            .intermediate = WIDE,
                                            .heads = HEADS / 64,
                                            .kv_heads = KV / 64,
                                            .head_dim = 64,
                                            .vocab = VOCAB,
                                            .experts = EXPERTS,
                                            .experts_per_token = 1,
                                            .expert_intermediate = WIDE};
    t->layers[1].experts = t->experts;
    for (unsigned i = 0; i < 2; i++) {
        name_linear(&t->layers[i].q, "q", HIDDEN, HEADS);
        name_linear(&t->layers[i].k, "k", HIDDEN, KV);
        name_linear(&t->layers[i].v, "v", HIDDEN, KV);
        name_linear(&t->layers[i].o, "o", HEADS, HIDDEN);
        name_linear(&t->experts[i].gate, "expert gate", HIDDEN, WIDE);
        name_linear(&t->experts[i].up, "expert up", HIDDEN, WIDE);
        name_linear(&t->experts[i].down, "expert down", WIDE, HIDDEN);
    }
    name_linear(&t->layers[0].gate, "gate", HIDDEN, WIDE);
    name_linear(&t->layers[0].up, "up", HIDDEN, WIDE);
    name_linear(&t->layers[0].down, "down", WIDE, HIDDEN);
    name_linear(&t->layers[1].router, "router", HIDDEN, EXPERTS * 16);
    name_linear(&t->graph.head, "head", HIDDEN, VOCAB);
    assert_int_equal(walsh_graph_number(&t->graph), LINEARS);
    struct walsh_site_walk walk = {.graph = &t->graph};
    struct walsh_site site;
    while (walsh_site_next(&walk, &site)) make_site(t, &site, kind, f);
    assert_int_equal(walsh_workspace_open(&t->graph, &queue, ROWS, &t->ws, NULL), WALSH_OK);
}

static void bench_close(struct bench *t)
{
    walsh_workspace_close(&t->ws);
    walsh_arena_close(&t->arena);
}

static double norm(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += v[i] * v[i];
    return sqrt(sum);
}

/* delta = s B (A x) of all rows, with the scale s that makes it SHARE of the base. */
static float make_update(struct bench *t, const struct walsh_linear *l, uint32_t rank, const float *a,
                         const float *b, double *delta)
{
    const size_t ldx = t->ldx[l->index], n = (size_t)ROWS * l->out;
    for (size_t row = 0; row < ROWS; row++) {
        double h[256] = {0};
        for (size_t j = 0; j < rank; j++)
            for (size_t i = 0; i < l->in; i++)
                h[j] += (double)a[j * l->in + i] * (double)t->x[l->index][row * ldx + i];
        for (size_t o = 0; o < l->out; o++) {
            double sum = 0;
            for (size_t j = 0; j < rank; j++) sum += (double)b[o * rank + j] * h[j];
            delta[row * l->out + o] = sum;
        }
    }
    const float scale = (float)(SHARE * norm(t->base[l->index], n) / norm(delta, n));
    for (size_t i = 0; i < n; i++) delta[i] *= (double)scale;
    return scale;
}

/* As walsh_adapter_find searches. */
static void sort_by_address(struct effect *e)
{
    for (size_t i = 0; i < LINEARS; i++)
        for (size_t j = i + 1; j < LINEARS; j++) {
            if ((uintptr_t)e->linears[j] >= (uintptr_t)e->linears[i]) continue;
            const struct walsh_linear *l = e->linears[i];
            const struct walsh_adapter_linear u = e->updates[i];
            e->linears[i] = e->linears[j];
            e->updates[i] = e->updates[j];
            e->linears[j] = l;
            e->updates[j] = u;
        }
}

static void effect_draw(struct bench *t, struct effect *e, uint32_t rank)
{
    memset(e, 0, sizeof *e);
    e->rank = rank;
    const float *a = NULL;
    for (size_t i = 0; i < LINEARS; i++) {
        const struct walsh_linear *l = t->linears[i];
        if (strcmp(l->name, "expert up") != 0) e->a[i] = a = draw(t, (size_t)rank * l->in, 1 / sqrt(l->in));
        e->b[i] = draw(t, (size_t)l->out * rank, 1);
        e->delta[i] = get(t, (size_t)ROWS * l->out, sizeof(double));
        e->scale[i] = make_update(t, l, rank, a, e->b[i], e->delta[i]);
    }
}

static void effect_build(struct bench *t, struct effect *e, const char *name, enum walsh_format storage)
{
    e->adapter = (struct walsh_adapter){
        .name = name, .graph = &t->graph, .linears = e->linears, .updates = e->updates, .count = LINEARS};
    atomic_init(&e->adapter.references, 1);
    for (size_t i = 0; i < LINEARS; i++) {
        const struct walsh_adapter_source source = {.convention = WALSH_ADAPTER_PEFT,
                                                    .rank = e->rank,
                                                    .scale = e->scale[i],
                                                    .a = e->a[i],
                                                    .b = e->b[i],
                                                    .same_a = e->a[i] ? NULL : &e->updates[i - 1]};
        struct walsh_error err = {0};
        e->linears[i] = t->linears[i];
        e->updates[i] = (struct walsh_adapter_linear){0};
        if (walsh_adapter_linear_build(t->linears[i], &source, storage, &t->arena, &e->updates[i], &err) !=
            WALSH_OK)
            fail_msg("%s", err.message);
    }
    sort_by_address(e);
}

static void effect_open(struct bench *t, struct effect *e, const char *name, uint32_t rank)
{
    effect_draw(t, e, rank);
    effect_build(t, e, name, WALSH_FORMAT_F32);
}

static struct walsh_adapter_set *open_set(struct bench *t, const struct walsh_adapter_choice *choices,
                                          size_t count)
{
    struct walsh_error err = {0};
    struct walsh_adapter_set *set;
    if (walsh_adapter_set_open(choices, count, &set, &err) != WALSH_OK ||
        walsh_workspace_reserve(t->ws, set, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    return set;
}

/* What the adapters of a row are expected to add, for two effects. */
struct mixture {
    struct walsh_row_sets sets;
    double weight[ROWS][2];
};

static double worst_error;

#define SITE_ELEMENTS (WALSH_SITE_LINEARS * ROWS * (HIDDEN + 3))
enum { SITES = 14 }; /* 4 of the dense layer, 2 + 1 + 4 of the other and the head, and some */

/* All linears of a site on rows [0, rows) of their x; y [linear][ROWS][HIDDEN + 3]. */
static void run_site(struct bench *t, const struct walsh_site *site, size_t rows, enum walsh_role role,
                     const struct walsh_row_sets *sets, float *y)
{
    struct walsh_linear_call calls[WALSH_SITE_LINEARS];
    const struct walsh_linear *first = site->linears[0];
    for (unsigned i = 0; i < site->count; i++)
        calls[i] =
            (struct walsh_linear_call){site->linears[i], y + (size_t)i * ROWS * (HIDDEN + 3), HIDDEN + 3};
    walsh_linear_apply(&queue, t->ws, calls, site->count, t->x[first->index], t->ldx[first->index], rows,
                       role, sets);
}

/* Against base + weight * delta, in the norm over all rows. */
static void check_values(struct bench *t, const struct walsh_linear *l, size_t rows, const struct mixture *m,
                         const struct effect *const effects[2], double tolerance, const char *what,
                         const float *y)
{
    double error = 0, size = 0, added = 0;
    for (size_t row = 0; row < rows; row++)
        for (size_t o = 0; o < l->out; o++) {
            const size_t at = row * l->out + o;
            double delta = 0;
            for (unsigned e = 0; e < 2 && effects[e]; e++)
                delta += m->weight[row][e] * effects[e]->delta[l->index][at];
            const double want = t->base[l->index][at] + delta, got = (double)y[row * (HIDDEN + 3) + o];
            error += (got - want) * (got - want);
            size += want * want;
            added += delta * delta;
        }
    error = sqrt(error / size);
    worst_error = fmax(worst_error, error);
    if (!(error < tolerance))
        fail_msg("%s: %s, %zu rows: error %g of the output's norm", what, l->name, rows, error);
    if (m->sets.count == 1 && rows == ROWS) assert_true(sqrt(added / size) > 0.2);
}

/* Fewer rows, or the other role, against what `ROWS` rows gave in decode: the same bits, or nearly. */
static void check_again(const struct walsh_linear *l, size_t rows, enum walsh_role role, const char *what,
                        const float *expected, const float *y)
{
    double error = 0, size = 0;
    for (size_t row = 0; row < rows; row++)
        for (size_t o = 0; o < l->out; o++) {
            const double want = (double)expected[row * (HIDDEN + 3) + o],
                         got = (double)y[row * (HIDDEN + 3) + o];
            error += (got - want) * (got - want);
            size += want * want;
        }
    if (!(sqrt(error / size) < 1e-5) || (role == WALSH_DECODE && error != 0))
        fail_msg("%s: %s, %zu rows, role %d differs by %g from 17 rows in decode", what, l->name, rows,
                 (int)role, sqrt(error / size));
}

static void check_sites(struct bench *t, size_t rows, enum walsh_role role, const struct mixture *m,
                        const struct effect *const effects[2], double tolerance, const char *what)
{
    static float y[SITE_ELEMENTS];
    struct walsh_site_walk walk = {.graph = &t->graph};
    struct walsh_site site;
    while (walsh_site_next(&walk, &site)) {
        run_site(t, &site, rows, role, &m->sets, y);
        for (unsigned i = 0; i < site.count; i++)
            check_values(t, site.linears[i], rows, m, effects, tolerance, what,
                         y + (size_t)i * ROWS * (HIDDEN + 3));
    }
}

static void check_storage(struct bench *t, struct effect *e, enum walsh_format storage, const char *name)
{
    static float all[SITES][SITE_ELEMENTS], some[SITE_ELEMENTS];
    char what[80];
    snprintf(what, sizeof what, "%s, rank %u in %s", name, e->rank, walsh_format_name(storage));
    effect_build(t, e, "a", storage);
    struct walsh_adapter_set *set = open_set(t, &(struct walsh_adapter_choice){&e->adapter, 1}, 1);
    struct walsh_site site;
    const size_t step = test_small() ? 8 : ROW_STEP;
    for (size_t rows = ROWS; rows > 0; rows = rows > step ? rows - step : 0) {
        const struct walsh_row_set every = {set, 0, rows};
        struct mixture m = {.sets = {&every, 1}};
        for (size_t row = 0; row < ROWS; row++) m.weight[row][0] = 1;
        for (enum walsh_role role = WALSH_DECODE; role <= WALSH_PREFILL; role++) {
            struct walsh_site_walk walk = {.graph = &t->graph};
            for (size_t n = 0; walsh_site_next(&walk, &site); n++) {
                const bool first = rows == ROWS && role == WALSH_DECODE;
                run_site(t, &site, rows, role, &m.sets, first ? all[n] : some);
                for (unsigned i = 0; i < site.count; i++) {
                    const size_t at = (size_t)i * ROWS * (HIDDEN + 3);
                    if (first)
                        check_values(t, site.linears[i], rows, &m, (const struct effect *const[]){e, NULL},
                                     storage == WALSH_FORMAT_F32 ? 1e-5 : 1e-3, what, all[n] + at);
                    else
                        check_again(site.linears[i], rows, role, what, all[n] + at, some + at);
                }
            }
        }
    }
    walsh_adapter_set_close(&set);
}

static void test_fused(void **state)
{
    (void)state;
    const uint64_t seed = 20260118;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (enum rotation kind = 0; kind < ROTATIONS; kind++)
        for (unsigned f = 0; f < FORMATS; f++) {
            struct bench t;
            char what[40];
            if (test_small() && f % ROTATIONS != (unsigned)kind) continue; /* each of both */
            snprintf(what, sizeof what, "%s, %s", rotation_names[kind], formats[f].name);
            bench_open(&t, kind, &formats[f], seed + kind * FORMATS + f);
            double worst[2] = {0};
            for (unsigned r = test_small() ? RANKS - 3 : 0; r < RANKS; r += test_small() ? 3 : 1) { /* 17 */
                struct effect e;
                effect_draw(&t, &e, ranks[r]);
                for (unsigned s = 0; s < 2; s++) {
                    worst_error = worst[s];
                    check_storage(&t, &e, s ? WALSH_FORMAT_BF16 : WALSH_FORMAT_F32, what);
                    worst[s] = worst_error;
                }
            }
            print_message("%s: worst error %.2g with f32 adapters, %.2g with bf16 ones\n", what, worst[0],
                          worst[1]);
            bench_close(&t);
        }
}

/* Rows with one adapter, the other, both with scales, or none, in one batch. */
static void test_mixed(void **state)
{
    (void)state;
    struct bench t;
    struct effect a, b;
    bench_open(&t, BLOCK, &formats[5], 77);
    effect_open(&t, &a, "a", 16);
    effect_open(&t, &b, "b", 3);
    struct walsh_adapter_set *one = open_set(&t, &(struct walsh_adapter_choice){&a.adapter, 1}, 1);
    struct walsh_adapter_set *other = open_set(&t, &(struct walsh_adapter_choice){&b.adapter, -0.5f}, 1);
    struct walsh_adapter_set *both =
        open_set(&t, (struct walsh_adapter_choice[]){{&b.adapter, 2}, {&a.adapter, 0.25f}}, 2);
    const struct effect *const effects[2] = {&a, &b};
    static const double weights[4][2] = {{1, 0}, {0, -0.5}, {0.25, 2}, {0, 0}};
    struct walsh_adapter_set *const sets[4] = {one, other, both, NULL};
    for (size_t rows = 1; rows <= ROWS; rows += test_small() ? 8 : 1)
        for (size_t turn = 0, turns = test_small() ? 2 : 8; turn < turns; turn++) {
            struct walsh_row_set list[ROWS];
            struct mixture m = {.sets = {list, 0}};
            for (size_t row = 0; row < rows;) { /* runs of random length */
                const size_t which = walsh_random_u64(&t.random) % 4, begin = row;
                size_t n = 1 + walsh_random_u64(&t.random) % 5;
                for (; n > 0 && row < rows; n--, row++)
                    memcpy(m.weight[row], weights[which], sizeof weights[which]);
                if (sets[which]) list[m.sets.count++] = (struct walsh_row_set){sets[which], begin, row};
            }
            check_sites(&t, rows, turn % 2 ? WALSH_PREFILL : WALSH_DECODE, &m, effects, 1e-5, "mixed");
        }
    walsh_adapter_set_close(&one);
    walsh_adapter_set_close(&other);
    walsh_adapter_set_close(&both);
    bench_close(&t);
}

/* A plan takes every update of an adapter or fails. */
static void test_plan(void **state)
{
    (void)state;
    struct bench t;
    struct effect e;
    struct walsh_error err = {0};
    struct walsh_adapter_set *set;
    bench_open(&t, NONE, &formats[0], 5);
    effect_open(&t, &e, "a", 8);
    const struct walsh_adapter_choice choice = {&e.adapter, 1};
    set = open_set(&t, &choice, 1);
    assert_int_equal(set->first[LINEARS], LINEARS);
    for (size_t i = 0; i < LINEARS; i++) {
        assert_int_equal(set->first[i + 1], i + 1);
        assert_ptr_equal(set->terms[i].update, walsh_adapter_find(&e.adapter, t.linears[i]));
    }
    walsh_adapter_set_close(&set);

    /* an update of a linear that no call of the forward pass computes */
    struct walsh_linear stranger = *t.linears[3];
    for (size_t i = 0; i < LINEARS; i++)
        if (e.linears[i] == t.linears[3]) e.linears[i] = &stranger;
    sort_by_address(&e);
    assert_int_equal(walsh_adapter_set_open(&choice, 1, &set, &err), WALSH_E_INTERNAL);
    assert_string_equal(err.message, "adapter a: the model uses 18 of its 19 updates");
    assert_null(set);

    t.layers[0].up.index++; /* a graph whose numbers are not those of the walk */
    assert_int_equal(walsh_adapter_set_open(&choice, 1, &set, &err), WALSH_E_INTERNAL);
    assert_string_equal(err.message, "the model's linears are not numbered");
    assert_null(set);
    bench_close(&t);
}

static int open_queue(void **state)
{
    (void)state;
    return walsh_pool_open(2, &pool, NULL) != WALSH_OK ||
           walsh_queue_open(WALSH_CPU_BEST, pool, &queue, NULL) != WALSH_OK;
}

static int close_queue(void **state)
{
    (void)state;
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fused),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

/* Linears whose rotation keeps the shards of a tensor-parallel engine apart: slices of the stored tensors are
 * whole linears. Overlap rotations, as they are stored. And layers that GLQ itself quantized
 * (tools/glq_fixtures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/scalar.h"
#include "checkpoint/checkpoint.h"
#include "model/linear.h"
#include "model/workspace.h"
#include "unit/temporary.h"
#include "unit/checkpoint_files.h"

#define ROWS 3
#define MODULE "model.layers.0.mlp.up_proj"

static struct walsh_queue queue;
static struct walsh_pool *pool;

static void *allocate(size_t count, size_t size)
{
    void *p;
    if (walsh_alloc_zero(count, size, "test data", &p, NULL) != WALSH_OK) fail_msg("out of memory");
    return p;
}

/* The tensors of one linear W[out][in] of 3 bits, nothing padded. */
enum { CODES, RESIDUAL, SU, SV, WSCALE, INVERSE, TENSORS };
struct stored {
    uint32_t in, out;
    struct planned tensor[TENSORS];
};

static size_t bytes_of(const struct planned *t)
{
    size_t bytes = t->dtype == WALSH_I64 ? 8 : t->dtype == WALSH_F16 ? 2 : 4;
    for (unsigned d = 0; d < t->rank; d++) bytes *= t->shape[d];
    return bytes;
}

static void make(struct stored *s, uint32_t in, uint32_t out, bool overlap, uint64_t seed)
{
    static const float wscale = 0.04f, inverse = 0.5f;
    struct walsh_random r;
    walsh_random_seed(&r, seed);
    *s = (struct stored){in,
                         out,
                         {{MODULE ".Qidxs_e8p", WALSH_I64, 4, {out / 16, in / 64, 8, 4}, NULL},
                          {MODULE ".Qidxs2_e81b", WALSH_I64, 2, {out, in / 64}, NULL},
                          {MODULE ".SU", WALSH_F16, 1, {out}, NULL},
                          {MODULE ".SV", WALSH_F16, 1, {in}, NULL},
                          {MODULE ".Wscale", WALSH_F32, 0, {0}, &wscale},
                          {MODULE ".inv_resid_scale", WALSH_F32, 0, {0}, &inverse}}};
    for (unsigned t = SU; t <= SV; t++)
        if (overlap) {
            s->tensor[t].rank = 2;
            s->tensor[t].shape[1] = s->tensor[t].shape[0];
            s->tensor[t].shape[0] = 2;
        }
    for (unsigned t = CODES; t <= SV; t++) {
        size_t bytes = bytes_of(&s->tensor[t]);
        uint8_t *data = allocate(bytes, 1);
        for (size_t i = 0; i < bytes / 2; i++) {
            uint16_t word = (uint16_t)walsh_random_u64(&r);
            if (t >= SU) word = walsh_f16_from_f32((word & 1 ? 1.0f : -1.0f));
            memcpy(data + 2 * i, &word, sizeof word);
        }
        s->tensor[t].data = data;
    }
}

static void clear(struct stored *s)
{
    for (unsigned t = CODES; t <= SV; t++) walsh_free((void *)(uintptr_t)s->tensor[t].data);
}

/* Slice `index` of `parts` along a dimension. */
static struct planned slice(const struct planned *t, unsigned dimension, uint32_t parts, uint32_t index)
{
    struct planned part = *t;
    assert_int_equal(t->shape[dimension] % parts, 0);
    part.shape[dimension] /= parts;
    size_t outer = 1, whole = bytes_of(t);
    for (unsigned d = 0; d < dimension; d++) outer *= t->shape[d];
    const size_t row = whole / outer, piece = row / parts;
    uint8_t *data = allocate(outer, piece);
    for (size_t i = 0; i < outer; i++)
        memcpy(data + i * piece, (const uint8_t *)t->data + i * row + index * piece, piece);
    part.data = data;
    return part;
}

static struct stored shard(const struct stored *s, bool inputs, uint32_t parts, uint32_t index)
{
    struct stored part = *s;
    (*(inputs ? &part.in : &part.out)) /= parts;
    for (unsigned t = CODES; t <= SV; t++) {
        const bool whole = t == (inputs ? SU : SV); /* a copy */
        part.tensor[t] = slice(&s->tensor[t], t <= RESIDUAL && inputs, whole ? 1 : parts, whole ? 0 : index);
    }
    return part;
}

/* y [ROWS][out] of the linear as it is stored, loaded as split so; x has rows of ldx. */
static void apply(const struct stored *s, struct walsh_split split, enum walsh_activation_type type,
                  const float *x, size_t ldx, float *y, float *decoded)
{
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct walsh_workspace *ws = NULL;
    const char *path = temporary_path("linear");
    char file[600];
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    put_tensors(file, s->tensor, TENSORS);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, SMALL_CONFIG);
    const struct walsh_model_graph graph = {
        .config = {.hidden = s->in, .intermediate = s->out, .heads = 1, .kv_heads = 1, .head_dim = 64}};
    if (walsh_checkpoint_open(path, false, &ck, &err) != WALSH_OK ||
        walsh_linear_load(&linear, &ck, MODULE, NULL, &split, s->in, s->out, false, type,
                          WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK ||
        walsh_checkpoint_all_used(&ck, &err) != WALSH_OK ||
        walsh_workspace_open(&graph, &queue, ROWS, &ws, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    const struct walsh_linear_call call = {&linear, y, s->out};
    walsh_linear_apply(&queue, ws, &call, 1, x, ldx, ROWS, WALSH_DECODE, NULL);
    if (decoded) walsh_weights_decode_f32(&linear.weights, 0, s->out, decoded, s->in);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
}

static float *random_rows(uint32_t in, uint64_t seed)
{
    struct walsh_random r;
    walsh_random_seed(&r, seed);
    float *x = allocate((size_t)ROWS * in, sizeof *x);
    for (size_t i = 0; i < (size_t)ROWS * in; i++) x[i] = (float)walsh_random_normal(&r);
    return x;
}

/* |a - b| / |a| */
static double distance(const float *a, const float *b, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)a[i] * (double)a[i];
    }
    return sqrt(difference / norm);
}

/* q, k, v, gate, up: each shard computes its outputs, bit for bit those of the whole. */
static void check_outputs(uint32_t parts, uint32_t in, uint32_t out)
{
    struct stored s;
    make(&s, in, out, false, parts);
    float *x = random_rows(in, 7), *y = allocate(ROWS * out, sizeof *y),
          *other = allocate(ROWS * out, sizeof *y), *z = allocate(ROWS * out / parts, sizeof *z);
    for (int type = WALSH_ACTIVATION_F32; type <= WALSH_ACTIVATION_INT8; type += 2) {
        apply(&s, (struct walsh_split){false, parts}, (enum walsh_activation_type)type, x, in, y, NULL);
        for (uint32_t p = 0; p < parts; p++) {
            struct stored part = shard(&s, false, parts, p);
            apply(&part, (struct walsh_split){false, 1}, (enum walsh_activation_type)type, x, in, z, NULL);
            for (size_t row = 0; row < ROWS; row++)
                assert_memory_equal(z + row * part.out, y + row * out + p * part.out, part.out * sizeof *z);
            clear(&part);
        }
    }
    /* blocks of the whole dimension are another matrix */
    apply(&s, (struct walsh_split){false, 1}, WALSH_ACTIVATION_F32, x, in, other, NULL);
    assert_true(distance(y, other, ROWS * out) > 0.3);
    walsh_free(x), walsh_free(y), walsh_free(other), walsh_free(z);
    clear(&s);
}

/* o, down: each shard reads its inputs; their sum is the whole. */
static void check_inputs(uint32_t parts, uint32_t in, uint32_t out)
{
    struct stored s;
    make(&s, in, out, false, 100 + parts);
    float *x = random_rows(in, 8), *y = allocate(ROWS * out, sizeof *y),
          *sum = allocate(ROWS * out, sizeof *y), *z = allocate(ROWS * out, sizeof *z);
    apply(&s, (struct walsh_split){true, parts}, WALSH_ACTIVATION_F32, x, in, y, NULL);
    for (uint32_t p = 0; p < parts; p++) {
        struct stored part = shard(&s, true, parts, p);
        apply(&part, (struct walsh_split){true, 1}, WALSH_ACTIVATION_F32, x + p * part.in, in, z, NULL);
        for (size_t i = 0; i < ROWS * out; i++) sum[i] += z[i];
        clear(&part);
    }
    assert_true(distance(y, sum, ROWS * out) < 1e-5);
    apply(&s, (struct walsh_split){true, 1}, WALSH_ACTIVATION_F32, x, in, z, NULL);
    assert_true(distance(y, z, ROWS * out) > 0.3);
    walsh_free(x), walsh_free(y), walsh_free(sum), walsh_free(z);
    clear(&s);
}

static void test_shards(void **state)
{
    (void)state;
    check_outputs(2, 576, 96); /* parts of 48 = 32 + 16 */
    check_outputs(4, 128, 192);
    check_inputs(2, 384, 80); /* parts of 192 = 128 + 64 */
    check_inputs(4, 1280, 48);
}

/* What cannot be cut is refused. */
static void test_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_blocks b;
    assert_int_equal(walsh_blocks_parts(576, 64, 2, &b, &err), WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message, "576 elements are not 2 parts of a multiple of 64");
    assert_int_equal(walsh_blocks_parts(16 * 960, 64, 16, &b, &err), WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message, "16 parts of 960 elements take 64 Hadamard blocks, at most 24");
    assert_int_equal(walsh_blocks_parts(1920, 64, 2, &b, &err), WALSH_OK);
    static const uint32_t expected[] = {512, 256, 128, 64, 512, 256, 128, 64};
    assert_int_equal(b.count, 8);
    assert_int_equal(b.padded, 1920);
    assert_memory_equal(b.block, expected, sizeof expected);
}

/* y = inverse(W^ forward(x)) with the two vectors of each side as they are stored. */
static void test_overlap(void **state)
{
    (void)state;
    enum { IN = 576, OUT = 336 };
    struct stored s;
    make(&s, IN, OUT, true, 5);
    float *x = random_rows(IN, 9), *y = allocate(ROWS * OUT, sizeof *y), *w = allocate(IN * OUT, sizeof *w),
          *expected = allocate(ROWS * OUT, sizeof *expected), signs[2][2 * IN];
    apply(&s, (struct walsh_split){false, 1}, WALSH_ACTIVATION_F32, x, IN, y, w);
    struct walsh_rotation in, out;
    assert_int_equal(walsh_rotation_overlap_padded(IN, 64, signs[0], &in, NULL), WALSH_OK);
    assert_int_equal(walsh_rotation_overlap_padded(OUT, 16, signs[1], &out, NULL), WALSH_OK);
    assert_int_equal(in.kind, WALSH_ROTATION_OVERLAP);
    assert_int_equal(out.kind, WALSH_ROTATION_OVERLAP);
    for (unsigned side = 0; side < 2; side++)
        for (size_t i = 0; i < 2 * (side ? OUT : IN); i++) {
            uint16_t h;
            memcpy(&h, (const uint8_t *)s.tensor[side ? SU : SV].data + 2 * i, sizeof h);
            signs[side][i] = walsh_f32_from_f16(h);
        }
    for (size_t row = 0; row < ROWS; row++) {
        double x64[IN], a[IN], z[OUT], back[OUT];
        for (size_t i = 0; i < IN; i++) x64[i] = (double)x[row * IN + i];
        walsh_rotate_forward_f64(&in, x64, a);
        for (size_t i = 0; i < OUT; i++) {
            z[i] = 0;
            for (size_t j = 0; j < IN; j++) z[i] += (double)w[i * IN + j] * a[j];
        }
        walsh_rotate_inverse_f64(&out, z, back);
        for (size_t i = 0; i < OUT; i++) expected[row * OUT + i] = (float)back[i];
    }
    assert_true(distance(expected, y, ROWS * OUT) < 1e-5);
    walsh_free(x), walsh_free(y), walsh_free(w), walsh_free(expected);
    clear(&s);
}

/* y = x W with the weights that GLQ decodes, of one layer of its file. */
static void check_glq(const struct walsh_checkpoint *ck, const char *name, uint32_t in, uint32_t out,
                      unsigned stages)
{
    struct walsh_error err = {0};
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct walsh_workspace *ws = NULL;
    const struct walsh_tensor *tensor[2];
    const uint64_t shapes[2][2] = {{4, in}, {4, out}};
    float *value[2], *z = allocate(4 * out, sizeof *z);
    for (unsigned i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s.%c", name, "xy"[i]);
        if (walsh_checkpoint_take(ck, path, 1u << WALSH_F32, 2, shapes[i], &tensor[i], &err) != WALSH_OK)
            fail_msg("%s", err.message);
        value[i] = allocate(shapes[i][0] * shapes[i][1], sizeof(float));
        walsh_tensor_to_f32(tensor[i], value[i]);
    }
    const struct walsh_model_graph graph = {
        .config = {.hidden = in, .intermediate = out, .heads = 1, .kv_heads = 1, .head_dim = 64}};
    const struct walsh_split whole = {false, 1};
    if (walsh_linear_load(&linear, ck, name, NULL, &whole, in, out, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK ||
        walsh_workspace_open(&graph, &queue, 4, &ws, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(linear.weights.stages, stages);
    assert_int_equal(linear.in_rotation.blocks.count, 2); /* 256 + 64, 128 + 64 */
    assert_int_equal(linear.out_rotation.blocks.count, 2);
    const struct walsh_linear_call call = {&linear, z, out};
    walsh_linear_apply(&queue, ws, &call, 1, value[0], in, 4, WALSH_DECODE, NULL);
    const double error = distance(value[1], z, 4 * out);
    if (!(error < 1e-4)) fail_msg("%s: relative error %g", name, error);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    walsh_free(value[0]), walsh_free(value[1]), walsh_free(z);
}

static void test_glq(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    char *text;
    size_t size;
    const char *path = temporary_path("glq");
    char file[600];
    mkdir(path, 0700);
    if (walsh_file_read_text(WALSH_SOURCE_DIR "/tests/fixtures/checkpoint/glq-layers.safetensors", 1 << 20,
                             &text, &size, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    assert_int_equal(walsh_file_write(file, text, size, NULL), WALSH_OK);
    walsh_free(text);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, SMALL_CONFIG);
    if (walsh_checkpoint_open(path, false, &ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    check_glq(&ck, "e8p2", 320, 80, 1);
    check_glq(&ck, "e8p3", 192, 48, 2);
    check_glq(&ck, "e8p4", 192, 48, 2);
    if (walsh_checkpoint_all_used(&ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    walsh_checkpoint_close(&ck);
}

static int setup(void **state)
{
    struct walsh_error err = {0};
    if (walsh_pool_open(2, &pool, &err) != WALSH_OK ||
        walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    return temporary_make(state);
}

static int teardown(void **state)
{
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_glq),
    };
    return cmocka_run_group_tests_name("model_split", tests, setup, teardown);
}

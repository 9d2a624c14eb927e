/* Linears whose rotation keeps the shards of a tensor-parallel engine apart: slices of the stored tensors are
 * whole linears. Overlap rotations, as they are stored. And layers that GLQ itself quantized and ran
 * (tools/glq_fixtures.py, tools/glq_gpu_fixtures.py). */
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

/* A linear that GLQ stored, and what GLQ computes from it. */
struct glq_case {
    const char *name;
    uint32_t in, out;
    enum walsh_format format;
    unsigned stages, blocks;    /* of the weights; of the input's rotation */
    const char *given, *wanted; /* tensors */
    uint32_t rows;
    double most; /* |difference| / |wanted| */
};

static float *take_rows(const struct walsh_checkpoint *ck, const char *name, const char *which, uint32_t rows,
                        uint32_t columns)
{
    char path[64];
    struct walsh_error err = {0};
    const struct walsh_tensor *t;
    snprintf(path, sizeof path, "%s.%s", name, which);
    if (walsh_checkpoint_take_rank(ck, path, 1u << WALSH_F32, 2, &t, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_true(t->shape[0] >= rows && t->shape[1] == columns);
    float *values = allocate(walsh_tensor_elements(t), sizeof *values);
    walsh_tensor_to_f32(t, values);
    return values;
}

static void check_glq(const struct walsh_checkpoint *ck, const struct glq_case *c)
{
    struct walsh_error err = {0};
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct walsh_workspace *ws = NULL;
    float *x = take_rows(ck, c->name, c->given, c->rows, c->in),
          *y = take_rows(ck, c->name, c->wanted, c->rows, c->out), *z = allocate(c->rows, c->out * sizeof *z);
    const struct walsh_model_graph graph = {
        .config = {.hidden = c->in, .intermediate = c->out, .heads = 1, .kv_heads = 1, .head_dim = 64}};
    const struct walsh_split whole = {false, 1};
    if (walsh_linear_load(&linear, ck, c->name, NULL, &whole, c->in, c->out, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK ||
        walsh_workspace_open(&graph, &queue, c->rows, &ws, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(linear.weights.format, c->format);
    assert_int_equal(linear.weights.stages, c->stages);
    assert_int_equal(linear.in_rotation.blocks.count, c->blocks);
    const struct walsh_linear_call call = {&linear, z, c->out};
    walsh_linear_apply(&queue, ws, &call, 1, x, c->in, c->rows, WALSH_DECODE, NULL);
    const double error = distance(y, z, c->rows * c->out);
    if (!(error < c->most)) fail_msg("%s.%s: relative error %g", c->name, c->wanted, error);
    walsh_workspace_close(&ws);
    walsh_arena_close(&arena);
    walsh_free(x), walsh_free(y), walsh_free(z);
}

/* A model's directory with the file of tests/fixtures/checkpoint. */
static const char *glq_directory(const char *name, const char *config, char path[600])
{
    struct walsh_error err = {0};
    char file[700];
    snprintf(path, 600, "%s", temporary_path(name));
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    char from[600];
    snprintf(from, sizeof from, "%s/tests/fixtures/checkpoint/%s.safetensors", WALSH_SOURCE_DIR, name);
    if (walsh_copy_file(from, file, &err) != WALSH_OK) fail_msg("%s", err.message);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, config);
    return path;
}

/* y = x W with the weights that GLQ's quantizer hands back. */
static void test_glq(void **state)
{
    (void)state;
    static const struct glq_case cases[] = {
        {"e8p2", 320, 80, WALSH_FORMAT_E8P, 1, 2, "x", "y", 4, 1e-4},
        {"e8p3", 192, 48, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-4},
        {"e8p4", 192, 48, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-4},
    };
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    char path[600];
    if (walsh_checkpoint_open(glq_directory("glq-layers", SMALL_CONFIG, path), false, &ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_glq(&ck, &cases[i]);
    if (walsh_checkpoint_all_used(&ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    walsh_checkpoint_close(&ck);
}

/* The same of 3 bits from a whole model, and x from it; GLQ quantized it on a CPU (tools/glq_gpu_fixtures.py --cpu). */
static void test_glq_on_cpu(void **state)
{
    (void)state;
    static const struct glq_case cases[] = {
        {"e8p3", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-5},
        {"e8p3o", 320, 320, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-5},
    };
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    char path[600];
    if (walsh_checkpoint_open(glq_directory("glq-cpu", SMALL_CONFIG, path), false, &ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_glq(&ck, &cases[i]);
    if (walsh_checkpoint_all_used(&ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    walsh_checkpoint_close(&ck);
}

#define SHELL_CONFIG                                                                                         \
    SMALL_CONFIG_WITH(",\"quantization_config\":{\"quant_method\":\"glq\",\"codebook\":\"e8_shell\"}")

/* Layers of bookworm-8m that GLQ quantized (walsh3: that walsh quantized) and ran on a GPU, in fp16, by its
 * kernels for several rows and for one. */
static void test_glq_on_gpu(void **state)
{
    (void)state;
    static const struct glq_case cases[] = {
        {"e8p2", 320, 64, WALSH_FORMAT_E8P, 1, 2, "x", "y", 4, 1e-3},
        {"e8p2", 320, 64, WALSH_FORMAT_E8P, 1, 2, "x", "y1", 1, 1e-3},
        {"e8p3", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-3},
        {"e8p3", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y1", 1, 1e-3},
        {"walsh3", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-3},
        {"walsh3", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y1", 1, 1e-3},
        {"e8p4", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y", 4, 1e-3},
        {"e8p4", 320, 64, WALSH_FORMAT_E8P, 2, 2, "x", "y1", 1, 1e-3},
        {"pow2", 320, 64, WALSH_FORMAT_E8P, 1, 1, "x", "y", 4, 1e-3},
        {"pow2", 320, 64, WALSH_FORMAT_E8P, 1, 1, "x", "y1", 1, 1e-3},
        {"shell", 320, 64, WALSH_FORMAT_INT4, 0, 2, "x", "y", 4, 1e-3},
        {"shell", 320, 64, WALSH_FORMAT_INT4, 0, 2, "x", "y1", 1, 1e-3},
    };
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    char path[600], file[700];
    glq_directory("glq-gpu", SHELL_CONFIG, path);
    snprintf(file, sizeof file, "%s/e8_codebook.pt", path);
    if (walsh_copy_file(WALSH_SOURCE_DIR "/tests/fixtures/checkpoint/e8_codebook.pt", file, &err) !=
            WALSH_OK ||
        walsh_checkpoint_open(path, false, &ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(ck.shell.count, 4096);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_glq(&ck, &cases[i]);
    /* what is left is the trellis, which walsh does not read */
    assert_int_not_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_OK);
    assert_non_null(strstr(err.message, "trellis."));
    walsh_checkpoint_close(&ck);
}

/* --- e8_shell --- */

#define POINTS 300

/* A codebook as torch.save writes it: a ZIP archive of stored members. `size` of data/0. */
static size_t make_archive(uint8_t *out, const float (*points)[8], size_t size)
{
    static const char *const names[] = {"archive/data.pkl", "archive/data/0"};
    size_t at = 0, starts[2];
    for (unsigned m = 0; m < 2; m++) {
        const uint32_t bytes = m == 0 ? 5 : (uint32_t)size;
        const uint16_t length = (uint16_t)strlen(names[m]);
        starts[m] = at;
        memset(out + at, 0, 30);
        memcpy(out + at, "PK\3\4", 4);
        memcpy(out + at + 26, &length, 2);
        memcpy(out + at + 30, names[m], length);
        memcpy(out + at + 30 + length, m == 0 ? (const void *)"12345" : (const void *)points, bytes);
        at += 30u + length + bytes;
    }
    const uint32_t directory = (uint32_t)at;
    for (unsigned m = 0; m < 2; m++) {
        const uint32_t bytes = m == 0 ? 5 : (uint32_t)size, start = (uint32_t)starts[m];
        const uint16_t length = (uint16_t)strlen(names[m]);
        memset(out + at, 0, 46);
        memcpy(out + at, "PK\1\2", 4);
        memcpy(out + at + 20, &bytes, 4);
        memcpy(out + at + 24, &bytes, 4);
        memcpy(out + at + 28, &length, 2);
        memcpy(out + at + 42, &start, 4);
        memcpy(out + at + 46, names[m], length);
        at += 46u + length;
    }
    memset(out + at, 0, 22);
    memcpy(out + at, "PK\5\6", 4);
    out[at + 10] = 2;
    memcpy(out + at + 16, &directory, 4);
    return at + 22;
}

/* Points with coordinates up to `most`. */
static void make_points(float (*points)[8], float most)
{
    struct walsh_random r;
    walsh_random_seed(&r, 3);
    for (unsigned p = 0; p < POINTS; p++) {
        const float half = walsh_random_u64(&r) & 1 ? 0.5f : 0;
        float sum = 0;
        for (unsigned i = 0; i < 8; i++) {
            const float whole = (float)(walsh_random_u64(&r) % (unsigned)(2 * most)) - most;
            points[p][i] = whole + half;
            sum += points[p][i];
        }
        if (fmodf(sum, 2) != 0) points[p][7] += points[p][7] < 0 ? 1 : -1;
    }
}

enum shell_tensor { S_CODES, S_SECOND, S_SU, S_SV, S_WSCALE, S_INVERSE, S_TENSORS };
struct shell {
    struct planned tensor[S_TENSORS];
    uint16_t codes[2][48 * 40];
    float wscale, inverse;
    char path[600];
};

/* A linear of 48 x 320 with `stages` stages in a directory. */
static void put_shell(struct shell *s, unsigned stages, float inverse, const uint8_t *archive, size_t size)
{
    static uint16_t su[48], sv[320];
    struct walsh_random r;
    walsh_random_seed(&r, 4);
    for (unsigned k = 0; k < 2; k++)
        for (size_t i = 0; i < 48 * 40; i++) s->codes[k][i] = (uint16_t)(walsh_random_u64(&r) % POINTS);
    for (size_t i = 0; i < 320; i++) sv[i] = walsh_f16_from_f32(walsh_random_u64(&r) & 1 ? 1.0f : -1.0f);
    for (size_t i = 0; i < 48; i++) su[i] = walsh_f16_from_f32(walsh_random_u64(&r) & 1 ? 1.0f : -1.0f);
    s->wscale = 0.2f;
    s->inverse = inverse;
    const struct planned tensors[] = {{MODULE ".Qidxs", WALSH_I16, 2, {48, 40}, s->codes[0]},
                                      {MODULE ".SU", WALSH_F16, 1, {48}, su},
                                      {MODULE ".SV", WALSH_F16, 1, {320}, sv},
                                      {MODULE ".Wscale", WALSH_F32, 0, {0}, &s->wscale},
                                      {MODULE ".Qidxs2", WALSH_I16, 2, {48, 40}, s->codes[1]},
                                      {MODULE ".inv_resid_scale", WALSH_F32, 0, {0}, &s->inverse}};
    memcpy(s->tensor, tensors, sizeof tensors);
    char file[700];
    snprintf(s->path, sizeof s->path, "%s", temporary_path("shell"));
    mkdir(s->path, 0700);
    snprintf(file, sizeof file, "%s/model.safetensors", s->path);
    put_tensors(file, s->tensor, stages == 1 ? 4 : 6);
    snprintf(file, sizeof file, "%s/config.json", s->path);
    put_text(file, SHELL_CONFIG);
    snprintf(file, sizeof file, "%s/e8_codebook.pt", s->path);
    if (walsh_file_write(file, archive, size, NULL) != WALSH_OK) fail_msg("%s", file);
}

/* The weights are those of the formula, in the format that fits them. */
static void check_shell(unsigned stages, float most, float inverse, enum walsh_format format, double error)
{
    static float points[POINTS][8];
    static uint8_t archive[POINTS * 32 + 1000];
    static struct shell s;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    const struct walsh_split whole = {false, 1};
    make_points(points, most);
    put_shell(&s, stages, inverse, archive, make_archive(archive, points, sizeof points));
    if (walsh_checkpoint_open(s.path, false, &ck, &err) != WALSH_OK ||
        walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, 320, 48, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, pool, &arena, &err) != WALSH_OK ||
        walsh_checkpoint_all_used(&ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(linear.weights.format, format);
    assert_int_equal(linear.in_rotation.blocks.count, 2);
    assert_int_equal(linear.out_rotation.blocks.count, 2);
    float *w = allocate(48 * 320, sizeof *w);
    walsh_weights_decode_f32(&linear.weights, 0, 48, w, 320);
    for (size_t row = 0; row < 48; row++)
        for (size_t i = 0; i < 320; i++) {
            const size_t at = row * 40 + i / 8;
            double wanted = (double)points[s.codes[0][at]][i % 8];
            if (stages == 2) wanted += (double)inverse * (double)points[s.codes[1][at]][i % 8];
            wanted *= (double)s.wscale;
            if (!(fabs((double)w[row * 320 + i] - wanted) <= error))
                fail_msg("row %zu, column %zu: %g, expected %g", row, i, (double)w[row * 320 + i], wanted);
        }
    walsh_free(w);
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
}

static void test_shell(void **state)
{
    (void)state;
    check_shell(1, 3, 0, WALSH_FORMAT_INT4, 1e-6);
    check_shell(1, 20, 0, WALSH_FORMAT_INT8, 1e-5);
    check_shell(2, 3, 0.5f, WALSH_FORMAT_INT8, 1e-6);     /* 3 bits: 1/2 */
    check_shell(2, 3, 1.0f / 3, WALSH_FORMAT_INT8, 1e-6); /* 4 bits: 1/3 */
    check_shell(2, 3, 0.2345f, WALSH_FORMAT_F16, 1e-3);
    check_shell(2, 20, 1.0f / 7, WALSH_FORMAT_F16, 5e-3); /* 160 steps do not fit */
}

static void refuse_codebook(const uint8_t *archive, size_t size, const char *message)
{
    static struct shell s;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    put_shell(&s, 1, 0, archive, size);
    assert_int_equal(walsh_checkpoint_open(s.path, false, &ck, &err), WALSH_E_FORMAT);
    if (!strstr(err.message, message)) fail_msg("%s", err.message);
}

static void test_shell_refused(void **state)
{
    (void)state;
    static float points[POINTS][8];
    static uint8_t archive[POINTS * 32 + 1000], cut[POINTS * 32 + 1000];
    make_points(points, 3);
    size_t size = make_archive(archive, points, sizeof points);
    refuse_codebook(archive, size - 22, "e8_codebook.pt: is no ZIP archive");
    for (size_t n = 22; n < size; n += 61) { /* a directory that leads out of the file */
        memcpy(cut, archive + size - n, n);
        struct walsh_error err = {0};
        static struct shell s;
        struct walsh_checkpoint ck;
        put_shell(&s, 1, 0, cut, n);
        assert_int_equal(walsh_checkpoint_open(s.path, false, &ck, &err), WALSH_E_FORMAT);
    }
    points[7][3] += 0.25f;
    size = make_archive(archive, points, sizeof points);
    refuse_codebook(archive, size, "e8_codebook.pt: point 7 of data/0 is not of the lattice E8");
    make_points(points, 3);
    points[9][0] += 1; /* an odd sum */
    size = make_archive(archive, points, sizeof points);
    refuse_codebook(archive, size, "point 9 of data/0 is not of the lattice E8");
    size = make_archive(archive, points, 33);
    refuse_codebook(archive, size, "data/0 has 33 bytes, expected 32 for each of 1 to 65536 points");
    /* codes without a point */
    make_points(points, 3);
    static struct shell s;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    const struct walsh_split whole = {false, 1};
    put_shell(&s, 1, 0, archive, make_archive(archive, points, 200 * sizeof *points));
    assert_int_equal(walsh_checkpoint_open(s.path, false, &ck, &err), WALSH_OK);
    assert_int_equal(walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, 320, 48, false,
                                       WALSH_ACTIVATION_F32, WALSH_ACTIVATION_F32, pool, &arena, &err),
                     WALSH_E_FORMAT);
    if (!strstr(err.message, MODULE ".Qidxs") || !strstr(err.message, "beyond the 200 points"))
        fail_msg("%s", err.message);
    assert_int_equal(walsh_linear_load(&linear, &ck, MODULE, NULL, &whole, 320, 47, false,
                                       WALSH_ACTIVATION_F32, WALSH_ACTIVATION_F32, pool, &arena, &err),
                     WALSH_E_FORMAT);
    if (!strstr(err.message, "shape [48, 40], expected [47, 320/8]")) fail_msg("%s", err.message);
    walsh_arena_close(&arena);
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
        cmocka_unit_test(test_shards),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_overlap),    cmocka_unit_test(test_glq),
        cmocka_unit_test(test_glq_on_gpu), cmocka_unit_test(test_glq_on_cpu),
        cmocka_unit_test(test_shell),      cmocka_unit_test(test_shell_refused),
    };
    return cmocka_run_group_tests_name("model_split", tests, setup, teardown);
}

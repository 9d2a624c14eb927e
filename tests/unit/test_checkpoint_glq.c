/* The GLQ layout against a fixture that a separate program wrote bit by bit, and the rules for a stored
 * linear. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdbool.h>

#include "base/random.h"
#include "checkpoint/glq.h"
#include "unit/temporary.h"
#include "unit/checkpoint_files.h"

static void test_fixture(void **state)
{
    (void)state;
    struct walsh_safetensors st;
    struct walsh_error err = {0};
    if (walsh_safetensors_open(WALSH_SOURCE_DIR "/tests/fixtures/checkpoint/glq-e8p.safetensors", true, &st,
                               &err))
        fail_msg("%s", err.message);
    const struct walsh_tensor *stored = walsh_safetensors_find(&st, "Qidxs_e8p");
    const struct walsh_tensor *stored2 = walsh_safetensors_find(&st, "Qidxs2_e81b");
    const struct walsh_tensor *codes = walsh_safetensors_find(&st, "codes"),
                              *codes2 = walsh_safetensors_find(&st, "codes2");
    assert_int_equal(stored->shape[1], 3);
    uint16_t plain[32 * 24];
    uint8_t plain2[32 * 24], packed[32 * 24 * 2];
    assert_int_equal(codes->bytes, sizeof plain);
    walsh_glq_unpack_e8p(stored->data, 32, 192, plain);
    assert_memory_equal(plain, codes->data, sizeof plain);
    walsh_glq_pack_e8p(plain, 32, 192, packed);
    assert_memory_equal(packed, stored->data, sizeof packed);
    walsh_glq_unpack_e81b(stored2->data, 32, 192, plain2);
    assert_memory_equal(plain2, codes2->data, sizeof plain2);
    walsh_glq_pack_e81b(plain2, 32, 192, packed);
    assert_memory_equal(packed, stored2->data, sizeof plain2);
    walsh_safetensors_close(&st);
}

static void test_inverses(void **state)
{
    (void)state;
    enum { ROWS = 48, COLUMNS = 320, CODES = ROWS * COLUMNS / 8 };
    uint16_t codes[CODES], back[CODES];
    uint8_t stored[CODES * 2 + 1];
    const uint64_t seed = 99;
    print_message("seed %llu\n", (unsigned long long)seed);
    struct walsh_random r;
    walsh_random_seed(&r, seed);
    for (size_t i = 0; i < CODES; i++) codes[i] = (uint16_t)walsh_random_u64(&r);
    walsh_glq_pack_e8p(codes, ROWS, COLUMNS, stored + 1); /* unaligned */
    walsh_glq_unpack_e8p(stored + 1, ROWS, COLUMNS, back);
    assert_memory_equal(codes, back, sizeof codes);
}

/* ---- stored linears ---- */

#define M "model.layers.0.mlp.up_proj."

/* A linear whose tensors a test bends; 20 outputs and 70 inputs are padded to 32 and 128 either way. */
struct stored {
    struct planned tensor[16];
    size_t count;
};

static uint16_t su[256], sv[256];
static float wscale, inverse, inverse2;

static void add(struct stored *s, const char *name, enum walsh_dtype dtype, unsigned rank,
                const uint64_t *shape, const void *data)
{
    struct planned *t = &s->tensor[s->count++];
    *t = (struct planned){.name = name, .dtype = dtype, .rank = rank, .data = data};
    if (rank) memcpy(t->shape, shape, rank * sizeof *shape);
}

/* stages: "" (2 bits), "p" (4), "b" (3), "pb" (5) ... */
static struct stored linear(uint64_t m_pad, uint64_t n_pad, const char *stages)
{
    struct stored s = {.count = 0};
    static const char *const p[] = {M "Qidxs2_e8p", M "Qidxs3_e8p"}, *const b[] = {M "Qidxs2_e81b",
                                                                                   M "Qidxs3_e81b"};
    static const char *const scale[] = {M "inv_resid_scale", M "inv_resid_scale2"};
    static const float *const values[] = {&inverse, &inverse2};
    const uint64_t wide[4] = {m_pad / 16, n_pad / 64, 8, 4}, narrow[2] = {m_pad, n_pad / 64};
    for (size_t i = 0; i < 256; i++) su[i] = sv[i] = 0x3c00; /* 1.0 */
    wscale = 0.5f, inverse = 0.25f, inverse2 = 0.125f;
    add(&s, M "Qidxs_e8p", WALSH_I64, 4, wide, NULL);
    for (size_t i = 0; stages[i]; i++) {
        if (stages[i] == 'p')
            add(&s, p[i], WALSH_I64, 4, wide, NULL);
        else
            add(&s, b[i], WALSH_I64, 2, narrow, NULL);
        add(&s, scale[i], WALSH_F32, 0, NULL, values[i]);
    }
    add(&s, M "SU", WALSH_F16, 1, &m_pad, su);
    add(&s, M "SV", WALSH_F16, 1, &n_pad, sv);
    add(&s, M "Wscale", WALSH_F32, 0, NULL, &wscale);
    return s;
}

static enum walsh_status take(const struct stored *s, uint32_t out_features, uint32_t in_features,
                              struct walsh_glq_linear *out, struct walsh_checkpoint *ck,
                              struct walsh_error *err)
{
    put_text(temporary_path("config.json"), SMALL_CONFIG);
    put_tensors(temporary_path("model.safetensors"), s->tensor, s->count);
    if (walsh_checkpoint_open(temporary_directory, false, ck, err) != WALSH_OK) fail_msg("%s", err->message);
    return walsh_glq_take(ck, "model.layers.0.mlp.up_proj", out_features, in_features, out, err);
}

static void accept(const struct stored *s, uint32_t out_features, uint32_t in_features, uint32_t m_pad,
                   uint32_t n_pad, unsigned stages)
{
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    struct walsh_glq_linear l;
    if (take(s, out_features, in_features, &l, &ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    assert_int_equal(l.m_pad, m_pad);
    assert_int_equal(l.n_pad, n_pad);
    assert_int_equal(l.stages, stages);
    assert_string_equal(l.su->name, M "SU");
    assert_string_equal(l.sv->name, M "SV");
    assert_true(l.wscale == wscale && l.inv_resid_scale[0] == 1);
    if (stages > 1) assert_true(l.inv_resid_scale[1] == inverse);
    if (stages > 2) assert_true(l.inv_resid_scale[2] == inverse2);
    for (unsigned i = 0; i < stages; i++)
        assert_int_equal(l.stage[i].codes->bytes,
                         m_pad * n_pad / (l.stage[i].kind == WALSH_STAGE_E8P ? 4 : 8));
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_OK);
    assert_true(walsh_glq_present(&ck, "model.layers.0.mlp.up_proj"));
    assert_false(walsh_glq_present(&ck, "model.layers.0.mlp.up"));
    walsh_checkpoint_close(&ck);
}

static void refuse(const struct stored *s, enum walsh_status status, const char *message)
{
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    struct walsh_glq_linear l;
    assert_int_equal(take(s, 20, 70, &l, &ck, &err), status);
    assert_string_equal(without_directory(err.message), message);
    walsh_checkpoint_close(&ck);
}

static void test_take(void **state)
{
    (void)state;
    struct stored s = linear(32, 128, "");
    accept(&s, 20, 70, 32, 128, 1);
    s = linear(32, 128, "b");
    accept(&s, 20, 70, 32, 128, 2);
    s = linear(32, 128, "p");
    accept(&s, 32, 128, 32, 128, 2);
    s = linear(32, 128, "pb");
    accept(&s, 17, 65, 32, 128, 3);
    s = linear(48, 192, "b"); /* 32 + 16 rows, 128 + 64 columns */
    accept(&s, 40, 150, 48, 192, 2);
    s = linear(64, 256, "b"); /* the same, as powers of two */
    accept(&s, 40, 150, 64, 256, 2);
    s.tensor[s.count - 1].rank = 1; /* a scale as a list of one */
    s.tensor[s.count - 1].shape[0] = 1;
    accept(&s, 40, 150, 64, 256, 2);
}

static void test_take_refuses(void **state)
{
    (void)state;
#define F "DIR/model.safetensors: tensor " M
    struct stored s = linear(32, 128, "b");
    s.tensor[0].shape[0] = 3;
    refuse(&s, WALSH_E_FORMAT,
           F "Qidxs_e8p: shape [3, 2, 8, 4], expected [2, 2, 8, 4] for a weight of 20 x 70");
    s = linear(32, 128, "");
    s.tensor[0].shape[2] = 4, s.tensor[0].shape[3] = 8;
    refuse(&s, WALSH_E_FORMAT,
           F "Qidxs_e8p: shape [2, 2, 4, 8], expected [2, 2, 8, 4] for a weight of 20 x 70");
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    struct walsh_glq_linear l;
    s = linear(32, 128, "");
    assert_int_equal(take(&s, 40, 150, &l, &ck, &err), WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        F "Qidxs_e8p: shape [2, 2, 8, 4], expected [3, 3, 8, 4] or "
                          "[4, 4, 8, 4] for a weight of 40 x 150");
    walsh_checkpoint_close(&ck);

    s = linear(32, 128, "b");
    s.tensor[0].dtype = WALSH_I32;
    refuse(&s, WALSH_E_FORMAT, F "Qidxs_e8p: dtype I32, expected I64");
    s = linear(32, 128, "b");
    s.tensor[1].shape[0] = 16;
    refuse(&s, WALSH_E_FORMAT, F "Qidxs2_e81b: shape [16, 2], expected [32, 2]");
    s = linear(32, 128, "b");
    add(&s, M "Qidxs2_e8p", WALSH_I64, 4, (const uint64_t[]){2, 2, 8, 4}, NULL);
    refuse(&s, WALSH_E_FORMAT,
           "DIR/model.safetensors: tensors " M "Qidxs2_e8p and " M
           "Qidxs2_e81b are both there, expected one of them");
    s = linear(32, 128, "b");
    s.tensor[2].name = "other";
    refuse(&s, WALSH_E_NOT_FOUND, "DIR: tensor " M "inv_resid_scale is missing");
    s = linear(32, 128, "");
    s.tensor[1].name = "other";
    refuse(&s, WALSH_E_NOT_FOUND, "DIR: tensor " M "SU is missing");
    s = linear(32, 128, "");
    s.tensor[0].name = "other";
    refuse(&s, WALSH_E_NOT_FOUND, "DIR: tensor " M "Qidxs_e8p is missing");
    s = linear(32, 128, "");
    s.tensor[2].shape[0] = 70;
    refuse(&s, WALSH_E_FORMAT, F "SV: shape [70], expected [128]");
    s = linear(32, 128, "");
    s.tensor[1].dtype = WALSH_BF16;
    refuse(&s, WALSH_E_FORMAT, F "SU: dtype BF16, expected F16");
}

/* Wider than what a stage's products are made for: refused by the codes, before anything else is read. */
static void test_too_wide(void **state)
{
    (void)state;
    struct stored s = {.count = 0};
    add(&s, M "Qidxs_e8p", WALSH_I64, 4, (const uint64_t[]){1, 65600 / 64, 8, 4}, NULL);
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    struct walsh_glq_linear l;
    assert_int_equal(take(&s, 16, 65600, &l, &ck, &err), WALSH_E_UNSUPPORTED);
    assert_string_equal(without_directory(err.message), F "Qidxs_e8p: 65600 columns, expected at most 65536");
    walsh_checkpoint_close(&ck);
}

static void test_bad_numbers(void **state)
{
    (void)state;
    struct stored s = linear(32, 128, "b");
    wscale = NAN;
    refuse(&s, WALSH_E_FORMAT, F "Wscale: is nan, expected a finite number");
    s = linear(32, 128, "b");
    wscale = -INFINITY;
    refuse(&s, WALSH_E_FORMAT, F "Wscale: is -inf, expected a finite number");
    s = linear(32, 128, "b");
    inverse = INFINITY;
    refuse(&s, WALSH_E_FORMAT, F "inv_resid_scale: is inf, expected a finite number");
    s = linear(32, 128, "pb");
    inverse2 = NAN;
    refuse(&s, WALSH_E_FORMAT, F "inv_resid_scale2: is nan, expected a finite number");
    s = linear(32, 128, "b");
    su[31] = 0x7e00;
    refuse(&s, WALSH_E_FORMAT, F "SU: element 31 is nan, expected a finite number");
    s = linear(32, 128, "b");
    sv[0] = 0xfc00;
    refuse(&s, WALSH_E_FORMAT, F "SV: element 0 is -inf, expected a finite number");
}

/* A gap in the stages leaves a tensor that nobody uses, and that is an error of its own. */
static void test_gap(void **state)
{
    (void)state;
    struct stored s = linear(32, 128, "");
    add(&s, M "Qidxs3_e81b", WALSH_I64, 2, (const uint64_t[]){32, 2}, NULL);
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    struct walsh_glq_linear l;
    assert_int_equal(take(&s, 20, 70, &l, &ck, &err), WALSH_OK);
    assert_int_equal(l.stages, 1);
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        F "Qidxs3_e81b has no place in LlamaForCausalLM as config.json describes it");
    walsh_checkpoint_close(&ck);
}

/* What glq_plan declares is what glq_take reads. */
static void test_plan(void **state)
{
    (void)state;
    static const enum walsh_stage_kind kinds[] = {WALSH_STAGE_E8P, WALSH_STAGE_E8P, WALSH_STAGE_E81B};
    struct walsh_safetensors_plan plan = {0};
    const struct walsh_rotation out = {.kind = WALSH_ROTATION_BLOCKS, .blocks = {.padded = 48}},
                                in = {.kind = WALSH_ROTATION_BLOCKS, .blocks = {.padded = 192}};
    assert_int_equal(walsh_glq_plan(&plan, "model.layers.0.mlp.up_proj", &out, &in, 3, kinds, NULL),
                     WALSH_OK);
    struct stored s = {.count = 0};
    for (size_t i = 0; i < plan.count; i++)
        add(&s, plan.tensors[i].name, plan.tensors[i].dtype, plan.tensors[i].rank, plan.tensors[i].shape,
            NULL);
    wscale = inverse = inverse2 = 0;
    accept(&s, 40, 150, 48, 192, 3);
    walsh_plan_close(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixture),  cmocka_unit_test(test_inverses),
        cmocka_unit_test(test_take),     cmocka_unit_test(test_take_refuses),
        cmocka_unit_test(test_too_wide), cmocka_unit_test(test_bad_numbers),
        cmocka_unit_test(test_gap),      cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

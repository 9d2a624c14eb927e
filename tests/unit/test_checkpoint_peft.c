/* Adapters that tools/peft_fixtures.py wrote, against the dense updates that it computed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "unit/peft_model.h"

static const char *fixture(const char *folder, const char *file)
{
    static char path[2][512];
    static unsigned turn;
    char *p = path[turn++ % 2];
    snprintf(p, sizeof path[0], "%s/tests/fixtures/peft/%s%s%s", WALSH_SOURCE_DIR, folder, *file ? "/" : "",
             file);
    return p;
}

/* Largest |scale·B·A - expected| of an update. */
static double error_of(const struct walsh_peft_update *u, const struct walsh_tensor *expected)
{
    float *a = calloc((size_t)u->rank * u->a.columns, sizeof *a),
          *b = calloc((size_t)u->b.rows * u->rank, sizeof *b);
    float *delta = calloc(walsh_tensor_elements(expected), sizeof *delta);
    double worst = 0;
    walsh_peft_read(&u->a, a);
    walsh_peft_read(&u->b, b);
    memcpy(delta, expected->data, expected->bytes);
    for (size_t o = 0; o < u->b.rows; o++)
        for (size_t i = 0; i < u->a.columns; i++) {
            double sum = 0;
            for (size_t j = 0; j < u->rank; j++)
                sum += (double)b[o * u->rank + j] * (double)a[j * u->a.columns + i];
            worst = fmax(worst, fabs(u->scale * sum - (double)delta[o * u->a.columns + i]));
        }
    free(a), free(b), free(delta);
    return worst;
}

/* absent: linears that the adapter targets and leaves out. */
static void check_fixture(const char *folder, size_t absent)
{
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    const size_t count = peft_model(linears);
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        struct walsh_error err = {0};
        struct walsh_safetensors expected;
        struct walsh_peft peft;
        if (walsh_safetensors_open(fixture(folder, "expected.safetensors"), true, &expected, &err) !=
                WALSH_OK ||
            walsh_peft_open(fixture(folder, ""), use_mmap, linears, count, &peft, &err) != WALSH_OK)
            fail_msg("%s: %s", folder, err.message);
        assert_string_equal(peft.config.base_model, "tiny");
        assert_int_equal(peft.count, expected.count);
        assert_int_equal(peft.absent, absent);
        for (size_t i = 0; i < peft.count; i++) {
            const struct walsh_peft_update *u = &peft.updates[i];
            const struct walsh_peft_linear *linear = &linears[u->linear];
            const struct walsh_tensor *want = walsh_safetensors_find(&expected, linear->name);
            assert_non_null(want);
            assert_true(i == 0 || u->linear > u[-1].linear);
            assert_int_equal(u->a.rows, u->rank);
            assert_int_equal(u->a.columns, linear->in);
            assert_int_equal(u->b.rows, linear->out);
            assert_int_equal(u->b.columns, u->rank);
            const double error = error_of(u, want);
            if (!(error < 2e-5)) fail_msg("%s: %s: error %g", folder, linear->name, error);
        }
        for (size_t i = 0; i < peft.file.count; i++) assert_true(peft.file.tensors[i].used);
        walsh_peft_close(&peft);
        walsh_peft_close(&peft);
        walsh_safetensors_close(&expected);
    }
}

static void test_names(void **state)
{
    (void)state;
    check_fixture("names", 0);
}

static void test_regex_and_rslora(void **state)
{
    (void)state;
    check_fixture("regex", 0);
}

static void test_all_linear(void **state)
{
    (void)state;
    check_fixture("all-linear", 1);
}

/* A model with one layer more than the adapter has tensors for. */
static void test_absent(void **state)
{
    (void)state;
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS + 3];
    size_t count = peft_model(linears);
    linears[count++] =
        (struct walsh_peft_linear){.name = "model.layers.2.self_attn.q_proj", .in = 24, .out = 40};
    linears[count++] =
        (struct walsh_peft_linear){.name = "model.layers.2.self_attn.k_proj", .in = 24, .out = 16};
    linears[count++] = (struct walsh_peft_linear){
        .name = "model.layers.2.mlp.gate", .in = 24, .out = 3, .often_absent = true};
    struct walsh_error err = {0};
    struct walsh_peft peft;
    if (walsh_peft_open(fixture("all-linear", ""), true, linears, count, &peft, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(peft.absent, 3);
    assert_string_equal(linears[peft.first_absent].name, "model.layers.0.mlp.up_proj");
    walsh_peft_close(&peft);
}

static void test_experts(void **state)
{
    (void)state;
    check_fixture("experts", 0);
    check_fixture("experts-down", 0);
}

/* gate and up of an expert read the same A: the views say so. */
static void test_experts_share_a(void **state)
{
    (void)state;
    struct walsh_peft_linear linears[PEFT_MODEL_LINEARS];
    struct walsh_peft peft;
    const size_t count = peft_model(linears);
    assert_int_equal(walsh_peft_open(fixture("experts", ""), true, linears, count, &peft, NULL), WALSH_OK);
    const struct walsh_peft_update *gate = &peft.updates[2], *up = &peft.updates[3], *down = &peft.updates[4];
    assert_string_equal(linears[gate->linear].name, "model.layers.1.mlp.experts.0.gate_proj");
    assert_string_equal(linears[up->linear].name, "model.layers.1.mlp.experts.0.up_proj");
    assert_ptr_equal(gate->a.tensor, up->a.tensor);
    assert_int_equal(gate->a.offset, up->a.offset);
    assert_int_not_equal(gate->b.offset, up->b.offset);
    assert_int_equal(gate->rank, 2);
    assert_int_equal(down->rank, 3);
    walsh_peft_close(&peft);
}

static char *read_fixture(const char *folder, const char *file, size_t *size)
{
    char *text = NULL;
    assert_int_equal(walsh_file_read_text(fixture(folder, file), 1 << 20, &text, size, NULL), WALSH_OK);
    return text;
}

/* rank_pattern, alpha_pattern, target_modules and exclude_modules mean what Python's re makes of them. */
static void test_patterns(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_peft_config config;
    size_t size = 0;
    char *text = read_fixture("patterns", "adapter_config.json", &size);
    if (walsh_peft_config_parse("adapter_config.json", text, size, &config, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    walsh_free(text);
    text = read_fixture("patterns", "expected.json", &size);
    json_t *rows = json_loadb(text, size, 0, NULL);
    assert_true(json_array_size(rows) > 20);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        const char *name = json_string_value(json_object_get(row, "name"));
        uint32_t rank = 0;
        double scale = 0;
        bool targeted = false;
        assert_int_equal(walsh_peft_config_rank(&config, name, &rank, &scale, NULL), WALSH_OK);
        assert_int_equal(walsh_peft_config_targets(&config, name, &targeted, NULL), WALSH_OK);
        if (rank != (uint32_t)json_integer_value(json_object_get(row, "rank")) ||
            fabs(scale - json_number_value(json_object_get(row, "scale"))) > 1e-12 ||
            targeted != json_is_true(json_object_get(row, "targeted")))
            fail_msg("%s: rank %u, scale %g, targeted %d", name, rank, scale, targeted);
    }
    json_decref(rows);
    walsh_free(text);
    walsh_peft_config_close(&config);
    walsh_peft_config_close(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),      cmocka_unit_test(test_regex_and_rslora),
        cmocka_unit_test(test_all_linear), cmocka_unit_test(test_absent),
        cmocka_unit_test(test_experts),    cmocka_unit_test(test_experts_share_a),
        cmocka_unit_test(test_patterns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

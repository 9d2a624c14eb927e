/* Adapters of a graph: opening PEFT directories, lookup, sharing, sets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "model/adapter.h"
#include "model/sites.h"
#include "unit/peft_model.h"

#define LAYERS 2
#define EXPERTS 3

/* The graph for which the fixtures were written, without weights: rotated attention, the rest not. */
struct fake {
    struct walsh_model_graph graph;
    struct walsh_layer layers[LAYERS];
    struct walsh_expert experts[EXPERTS];
    struct walsh_peft_linear names[PEFT_MODEL_LINEARS];
    float signs[4096];
    size_t signs_used;
};

static void rotation(struct fake *f, bool rotated, uint32_t n, uint32_t min_block, struct walsh_rotation *r)
{
    *r = (struct walsh_rotation){.kind = WALSH_ROTATION_NONE, .size = n, .blocks = {.padded = n}};
    if (!rotated) return;
    r->kind = WALSH_ROTATION_BLOCKS;
    assert_int_equal(walsh_blocks_binary(n, min_block, &r->blocks, NULL), WALSH_OK);
    float *signs = f->signs + f->signs_used;
    f->signs_used += r->blocks.padded;
    assert_true(f->signs_used <= sizeof f->signs / sizeof *f->signs);
    walsh_random_signs(5, "signs", signs, r->blocks.padded);
    for (uint32_t i = 0; i < r->blocks.padded; i++)
        signs[i] *= f->signs_used % 3 && i % 5 == 0 ? -1.0f : 1.0f;
    r->signs = signs;
}

static void name_linear(struct fake *f, struct walsh_linear *linear, const char *name)
{
    for (size_t i = 0; i < PEFT_MODEL_LINEARS; i++) {
        if (strcmp(f->names[i].name, name) != 0) continue;
        *linear =
            (struct walsh_linear){.name = f->names[i].name, .in = f->names[i].in, .out = f->names[i].out};
        const bool rotated = strstr(name, "self_attn") || strstr(name, ".up_proj");
        rotation(f, rotated, linear->in, WALSH_MIN_BLOCK_COLUMNS, &linear->in_rotation);
        rotation(f, rotated, linear->out, WALSH_MIN_BLOCK_ROWS, &linear->out_rotation);
        return;
    }
    fail_msg("no linear %s", name);
}

static int fake_open(void **state)
{
    struct fake *f = calloc(1, sizeof *f);
    static char directory[] = "/models/tiny-4bpw";
    char name[64];
    peft_model(f->names);
    f->graph.layers = f->layers;
    f->graph.config.layers = LAYERS;
    f->graph.config.experts = EXPERTS;
    f->graph.checkpoint.directory = directory;
    f->layers[1].experts = f->experts;
    for (unsigned i = 0; i < LAYERS; i++) {
        struct walsh_layer *l = &f->layers[i];
        struct walsh_linear *attention[] = {&l->q, &l->k, &l->v, &l->o};
        for (unsigned j = 0; j < 4; j++) {
            snprintf(name, sizeof name, "model.layers.%u.self_attn.%c_proj", i, "qkvo"[j]);
            name_linear(f, attention[j], name);
        }
    }
    name_linear(f, &f->layers[0].gate, "model.layers.0.mlp.gate_proj");
    name_linear(f, &f->layers[0].up, "model.layers.0.mlp.up_proj");
    name_linear(f, &f->layers[0].down, "model.layers.0.mlp.down_proj");
    name_linear(f, &f->layers[1].router, "model.layers.1.mlp.gate");
    for (unsigned e = 0; e < EXPERTS; e++) {
        struct walsh_linear *parts[] = {&f->experts[e].gate, &f->experts[e].up, &f->experts[e].down};
        static const char *const part_names[] = {"gate", "up", "down"};
        for (unsigned j = 0; j < 3; j++) {
            snprintf(name, sizeof name, "model.layers.1.mlp.experts.%u.%s_proj", e, part_names[j]);
            name_linear(f, parts[j], name);
        }
    }
    name_linear(f, &f->graph.head, "lm_head");
    assert_int_equal(walsh_graph_number(&f->graph), PEFT_MODEL_LINEARS);
    *state = f;
    return 0;
}

static int fake_close(void **state)
{
    free(*state);
    return 0;
}

static const char *fixture(const char *folder, const char *file)
{
    static char path[2][512];
    static unsigned turn;
    char *p = path[turn++ % 2];
    snprintf(p, sizeof path[0], "%s/tests/fixtures/peft/%s%s", WALSH_SOURCE_DIR, folder, file);
    return p;
}

static struct walsh_adapter *open_fixture(struct fake *f, const char *name, const char *folder,
                                          enum walsh_format storage, const struct walsh_hooks *hooks)
{
    const struct walsh_adapter_loading options = {.use_mmap = true, .storage = storage};
    struct walsh_adapter *adapter = NULL;
    struct walsh_error err = {0};
    if (walsh_adapter_load(name, fixture(folder, ""), &f->graph, &options, hooks, &adapter, &err) != WALSH_OK)
        fail_msg("%s: %s", folder, err.message);
    return adapter;
}

/* Relative error of inverse_out(B'(A x)) against the dense update that the fixture's writer computed. */
static double update_error(const struct walsh_linear *linear, const struct walsh_adapter_linear *u,
                           const float *dense, struct walsh_random *random)
{
    double x[64], z[64] = {0}, y[64], error = 0, size = 0;
    assert_true(linear->in <= 64 && u->out <= 64);
    for (size_t i = 0; i < linear->in; i++) x[i] = walsh_random_normal(random);
    for (size_t j = 0; j < u->rank; j++) {
        double h = 0;
        for (size_t i = 0; i < linear->in; i++) h += (double)walsh_adapter_a(u, j, i) * x[i];
        for (size_t o = 0; o < u->out; o++) z[o] += (double)walsh_adapter_b(u, o, j) * h;
    }
    walsh_rotate_inverse_f64(&linear->out_rotation, z, y);
    for (size_t o = 0; o < linear->out; o++) {
        double want = 0;
        for (size_t i = 0; i < linear->in; i++) want += (double)dense[o * linear->in + i] * x[i];
        error += (y[o] - want) * (y[o] - want);
        size += want * want;
    }
    return sqrt(error / size);
}

static void check_folder(struct fake *f, const char *folder)
{
    struct walsh_safetensors expected;
    struct walsh_random random;
    assert_int_equal(walsh_safetensors_open(fixture(folder, "/expected.safetensors"), true, &expected, NULL),
                     WALSH_OK);
    walsh_random_seed(&random, 11);
    struct walsh_adapter *adapter = open_fixture(f, "a", folder, WALSH_FORMAT_F32, NULL);
    assert_int_equal(adapter->count, expected.count);
    for (size_t i = 0; i < adapter->count; i++) {
        const struct walsh_linear *linear = adapter->linears[i];
        const struct walsh_tensor *want = walsh_safetensors_find(&expected, linear->name);
        assert_non_null(want);
        assert_ptr_equal(walsh_adapter_find(adapter, linear), &adapter->updates[i]);
        float *dense = malloc(want->bytes);
        memcpy(dense, want->data, want->bytes);
        const double error = update_error(linear, &adapter->updates[i], dense, &random);
        free(dense);
        if (!(error < 1e-5)) fail_msg("%s: %s: error %g", folder, linear->name, error);
    }
    walsh_adapter_release(&adapter);
    walsh_safetensors_close(&expected);
}

static void test_updates(void **state)
{
    check_folder(*state, "names");
    check_folder(*state, "regex");
    check_folder(*state, "all-linear");
    check_folder(*state, "experts");
    check_folder(*state, "experts-down");
}

static void test_find(void **state)
{
    struct fake *f = *state;
    struct walsh_adapter *adapter = open_fixture(f, "a", "names", WALSH_FORMAT_BF16, NULL);
    assert_string_equal(adapter->name, "a");
    assert_string_equal(adapter->base_model, "tiny");
    assert_non_null(walsh_adapter_find(adapter, &f->layers[0].q));
    assert_non_null(walsh_adapter_find(adapter, &f->layers[1].q));
    assert_non_null(walsh_adapter_find(adapter, &f->layers[0].down));
    assert_non_null(walsh_adapter_find(adapter, &f->layers[1].router));
    assert_null(walsh_adapter_find(adapter, &f->layers[0].k));
    assert_null(walsh_adapter_find(adapter, &f->graph.head));
    assert_int_equal(walsh_adapter_find(adapter, &f->layers[0].q)->rank, 3);
    assert_int_equal(walsh_adapter_find(adapter, &f->layers[1].q)->rank, 4);
    walsh_adapter_release(&adapter);
    assert_null(adapter);
    walsh_adapter_release(&adapter);
}

/* gate and up of a stacked expert have one A, in memory and in the accounts. */
static void test_shared_a(void **state)
{
    struct fake *f = *state;
    struct walsh_adapter *adapter = open_fixture(f, "a", "experts", WALSH_FORMAT_F32, NULL);
    for (unsigned e = 0; e < EXPERTS; e++) {
        const struct walsh_adapter_linear *gate = walsh_adapter_find(adapter, &f->experts[e].gate);
        const struct walsh_adapter_linear *up = walsh_adapter_find(adapter, &f->experts[e].up);
        assert_ptr_equal(gate->a, up->a);
        assert_ptr_not_equal(gate->b, up->b);
        assert_ptr_not_equal(gate->a, walsh_adapter_find(adapter, &f->experts[e].down)->a);
    }
    /* o_proj twice, rank 2; per expert gate_up, rank 2, and down, rank 3 */
    assert_int_equal(adapter->parameters, 2 * 2 * (40 + 24) + 3 * 2 * (24 + 40) + 3 * 3 * (20 + 24));
    /* f32, A in chunks of 8 ranks and groups of 32 columns, B' in panels of 16 outputs: o 40 columns as 64,
     * 24 rows as 32 by rank 2; gate and up 20 rows as 32 by rank 2, one A of 24 as 32; down 20 as 32, 24 as
     * 32 by rank 3 */
    assert_int_equal(adapter->bytes,
                     4 * (2 * (8 * 64 + 2 * 32) + 3 * (8 * 32 + 2 * 2 * 32) + 3 * (8 * 32 + 3 * 32)));
    walsh_adapter_release(&adapter);
}

static void test_storage(void **state)
{
    struct fake *f = *state;
    struct walsh_adapter *wide = open_fixture(f, "a", "regex", WALSH_FORMAT_F32, NULL);
    struct walsh_adapter *narrow = open_fixture(f, "a", "regex", WALSH_FORMAT_BF16, NULL);
    assert_int_equal(wide->count, narrow->count);
    assert_true(narrow->bytes < wide->bytes);
    for (size_t k = 0; k < wide->count; k++) {
        const struct walsh_adapter_linear *w = &wide->updates[k], *n = &narrow->updates[k];
        for (size_t j = 0; j < w->rank; j++)
            for (size_t i = 0; i < w->in; i++)
                assert_true(walsh_adapter_a(n, j, i) ==
                            walsh_f32_from_bf16(walsh_bf16_from_f32(walsh_adapter_a(w, j, i))));
        for (size_t o = 0; o < w->out; o++)
            for (size_t j = 0; j < w->rank; j++)
                assert_true(walsh_adapter_b(n, o, j) ==
                            walsh_f32_from_bf16(walsh_bf16_from_f32(walsh_adapter_b(w, o, j))));
    }
    walsh_adapter_release(&wide);
    walsh_adapter_release(&narrow);
}

static char last_line[512];
static void keep_line(void *user, enum walsh_log_level level, const char *line)
{
    (void)user;
    assert_int_equal(level, WALSH_LOG_WARNING);
    snprintf(last_line, sizeof last_line, "%s", strstr(line, "the adapter"));
}

static void test_base_warning(void **state)
{
    struct fake *f = *state;
    const struct walsh_hooks hooks = {.log = keep_line};
    char *directory = f->graph.checkpoint.directory;
    char other[] = "/models/small";
    last_line[0] = 0;
    struct walsh_adapter *adapter = open_fixture(f, "a", "names", WALSH_FORMAT_BF16, &hooks);
    assert_string_equal(last_line, "");
    walsh_adapter_release(&adapter);
    f->graph.checkpoint.directory = other;
    adapter = open_fixture(f, "a", "names", WALSH_FORMAT_BF16, &hooks);
    assert_string_equal(last_line, "the adapter was made for tiny; the model is /models/small");
    walsh_adapter_release(&adapter);
    f->graph.checkpoint.directory = NULL; /* a synthetic model has no name to compare */
    last_line[0] = 0;
    adapter = open_fixture(f, "a", "names", WALSH_FORMAT_BF16, &hooks);
    assert_string_equal(last_line, "");
    walsh_adapter_release(&adapter);
    f->graph.checkpoint.directory = directory;
}

static bool abort_at_third(void *user)
{
    return ++*(int *)user == 3;
}

static void test_failed_open(void **state)
{
    struct fake *f = *state;
    const struct walsh_adapter_loading options = {.use_mmap = true, .storage = WALSH_FORMAT_F32};
    struct walsh_adapter *adapter = (void *)f;
    struct walsh_error err = {0};
    int asked = 0;
    const struct walsh_hooks hooks = {.user = &asked, .abort = abort_at_third};
    assert_int_equal(
        walsh_adapter_load("a", fixture("names", ""), &f->graph, &options, &hooks, &adapter, &err),
        WALSH_E_ABORTED);
    assert_null(adapter);
    f->layers[0].q.in = 32;
    assert_int_equal(walsh_adapter_load("a", fixture("names", ""), &f->graph, &options, NULL, &adapter, &err),
                     WALSH_E_FORMAT);
    f->layers[0].q.in = 24;
    assert_null(adapter);
    assert_non_null(
        strstr(err.message, "model.layers.0.self_attn.q_proj has 32 inputs, 40 outputs and rank 3"));
}

static void test_sets(void **state)
{
    struct fake *f = *state;
    struct fake *other = NULL;
    struct walsh_error err = {0};
    assert_int_equal(fake_open((void **)&other), 0);
    struct walsh_adapter *a = open_fixture(f, "a", "names", WALSH_FORMAT_BF16, NULL);
    struct walsh_adapter *b = open_fixture(f, "b", "experts", WALSH_FORMAT_BF16, NULL);
    struct walsh_adapter *again = open_fixture(f, "a", "regex", WALSH_FORMAT_BF16, NULL);
    struct walsh_adapter *foreign = open_fixture(other, "c", "names", WALSH_FORMAT_BF16, NULL);
    struct walsh_adapter_set *both, *one, *none;

    assert_int_equal(
        walsh_adapter_set_open((struct walsh_adapter_choice[]){{a, 1}, {again, 1}}, 2, &none, &err),
        WALSH_E_EXISTS);
    assert_string_equal(err.message, "adapter a is given twice");
    assert_null(none);
    assert_int_equal(
        walsh_adapter_set_open((struct walsh_adapter_choice[]){{a, 1}, {foreign, 1}}, 2, &none, &err),
        WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "adapters a and c belong to different models");
    assert_int_equal(walsh_adapter_set_open(&(struct walsh_adapter_choice){a, NAN}, 1, &none, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "adapter a: scale nan, expected a finite number");
    assert_int_equal(walsh_adapter_set_open(NULL, 0, &none, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "0 adapters together, expected 1 to 16");

    assert_int_equal(
        walsh_adapter_set_open((struct walsh_adapter_choice[]){{a, 1}, {b, 0.5f}}, 2, &both, &err), WALSH_OK);
    assert_int_equal(walsh_adapter_set_open(&(struct walsh_adapter_choice){a, -2}, 1, &one, &err), WALSH_OK);
    const uint64_t a_bytes = a->bytes, b_bytes = b->bytes;
    assert_int_equal(walsh_adapter_sets_bytes((const struct walsh_adapter_set *const[]){both, NULL, one}, 3),
                     a_bytes + b_bytes);
    assert_int_equal(walsh_adapter_sets_bytes((const struct walsh_adapter_set *const[]){one}, 1), a_bytes);
    assert_true(both->choices[1].scale == 0.5f);

    /* the sets keep the adapters alive */
    walsh_adapter_release(&a);
    walsh_adapter_release(&b);
    walsh_adapter_set_close(&both);
    assert_null(both);
    walsh_adapter_set_close(&both);
    assert_non_null(walsh_adapter_find(one->choices[0].adapter, &f->layers[0].q));
    walsh_adapter_set_close(&one);
    walsh_adapter_release(&again);
    walsh_adapter_release(&foreign);
    fake_close((void **)&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_updates),     cmocka_unit_test(test_find), cmocka_unit_test(test_shared_a),
        cmocka_unit_test(test_storage),     cmocka_unit_test(test_sets), cmocka_unit_test(test_base_warning),
        cmocka_unit_test(test_failed_open),
    };
    return cmocka_run_group_tests(tests, fake_open, fake_close);
}

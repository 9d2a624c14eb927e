/* Models on their way to a device: the weights come from the files in pieces, and are what the CPU's loader makes; the host
 * keeps none of them; what does not fit is refused before anything is read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/random.h"
#include "formats/low_rank.h"
#include "model/adapter.h"
#include "unit/checkpoint_files.h"
#include "unit/stored_weights.h"
#include "unit/temporary.h"

#define GOLDEN WALSH_SOURCE_DIR "/tests/fixtures/golden/"

static struct walsh_queue queue, device;

static enum walsh_status open_graph(const struct walsh_queue *q, const char *path, bool use_mmap,
                                    struct walsh_model_graph **graph, struct walsh_error *err)
{
    const struct walsh_load_options options = {
        .use_mmap = use_mmap, .rotated = WALSH_ACTIVATION_INT8, .dense = WALSH_ACTIVATION_BF16};
    return walsh_graph_open(path, &options, q, graph, err);
}

static struct walsh_model_graph *opened(const struct walsh_queue *q, const char *path, bool use_mmap)
{
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    if (open_graph(q, path, use_mmap, &graph, &err) != WALSH_OK) fail_msg("%s", err.message);
    return graph;
}

/* The low-rank part of a linear's weights (lalamo). */
static void same_own(const struct walsh_adapter_linear *x, const struct walsh_adapter_linear *y,
                     const struct walsh_model_graph *there)
{
    const uint8_t *block = there->device_memory;
    const size_t element = x->storage == WALSH_FORMAT_F32 ? 4 : 2;
    assert_int_equal(x->rank, y->rank);
    assert_memory_equal(x->a, y->a, walsh_low_rank_a_size(x->rank, x->in) * element);
    assert_memory_equal(x->b, y->b, walsh_low_rank_b_size(x->storage, x->rank, x->out) * element);
    assert_in_range((const uint8_t *)y->a - block, 0, there->device_bytes);
    assert_in_range((const uint8_t *)y->b - block, 0, there->device_bytes);
}

/* Every matrix and vector; a device's arrays are all in its one block. */
static void same_graphs(const struct walsh_model_graph *a, const struct walsh_model_graph *b)
{
    const uint8_t *block = b->device_memory;
    assert_int_equal(a->tensor_count, b->tensor_count);
    for (size_t i = 0; i < a->tensor_count; i++) {
        const struct walsh_graph_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        if (!x->weights) continue;
        stored_same(x->name, x->weights, y->weights);
        for (unsigned k = 0; k < walsh_stored_arrays(y->weights); k++)
            assert_in_range((const uint8_t *)stored_array(y->weights, k) - block, 0, b->device_bytes);
        if (x->linear && x->linear->own) same_own(x->linear->own, y->linear->own, b);
        if (!x->linear || !x->linear->bias) continue;
        assert_memory_equal(x->linear->bias, y->linear->bias, x->linear->out * sizeof(float));
        assert_in_range((const uint8_t *)y->linear->bias - block, 0, b->device_bytes);
    }
    for (uint32_t l = 0; l < a->config.layers; l++) {
        assert_memory_equal(a->layers[l].input_norm, b->layers[l].input_norm,
                            a->config.hidden * sizeof(float));
        if (!a->layers[l].conv_weight) continue;
        assert_memory_equal(a->layers[l].conv_weight, b->layers[l].conv_weight,
                            (size_t)a->config.conv_taps * a->config.hidden * sizeof(float));
        assert_in_range((const uint8_t *)b->layers[l].conv_weight - block, 0, b->device_bytes);
    }
    assert_memory_equal(a->final_norm, b->final_norm, a->config.hidden * sizeof(float));
    assert_memory_equal(a->rope.cosine, b->rope.cosine,
                        (size_t)a->rope.rows * (a->rope.dim / 2) * sizeof(float));
}

static void a_device_holds_what_the_cpu_does(void **state)
{
    (void)state;
    static const char *const models[] = {
        GOLDEN "tiny-gpt-oss-mxfp4", GOLDEN "tiny-gpt-oss",       GOLDEN "tiny-phi3",
        GOLDEN "tiny-qwen3-moe",     GOLDEN "tiny-gemma2",        GOLDEN "tiny-llama2",
        GOLDEN "tiny-lfm2",          GOLDEN "tiny-phi3-longrope", GOLDEN "tiny-lalamo"};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct walsh_model_graph *host = opened(&queue, models[i], true);
        memset(&stored_seen, 0, sizeof stored_seen);
        stored_seen.available = (size_t)1 << 40;
        struct walsh_model_graph *there = opened(&device, models[i], i % 2 == 0);
        same_graphs(host, there);
        assert_int_equal(stored_seen.allocations, 1);
        assert_int_equal(stored_seen.allocated, there->device_bytes);
        assert_true(stored_seen.units > 0 ||
                    host->config.architecture == WALSH_ARCH_LALAMO); /* repacked by the host */
        walsh_graph_close(&host);
        walsh_graph_close(&there);
        assert_null(there);
    }
}

/* The figures name what it takes, to the byte, and nothing has been read. */
static void what_does_not_fit_is_refused_first(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    char wanted[200];
    memset(&stored_seen, 0, sizeof stored_seen);
    stored_seen.available = (size_t)1 << 40;
    graph = opened(&device, GOLDEN "tiny-llama2", true);
    const size_t bytes = graph->device_bytes;
    walsh_graph_close(&graph);
    memset(&stored_seen, 0, sizeof stored_seen);
    stored_seen.available = bytes - 1;
    assert_int_equal(open_graph(&device, GOLDEN "tiny-llama2", true, &graph, &err), WALSH_E_MEMORY);
    assert_int_equal(stored_seen.allocations, 0);
    assert_int_equal(stored_seen.placed, 0);
    snprintf(wanted, sizeof wanted, "the model takes %.2f GB on the device, %.2f of %.2f GB are free",
             (double)bytes / 1e9, (double)bytes / 1e9, (double)bytes / 1e9);
    assert_non_null(strstr(err.message, wanted));
    assert_non_null(strstr(err.message, "tiny-llama2"));
    stored_seen.available = bytes;
    graph = opened(&device, GOLDEN "tiny-llama2", true);
    walsh_graph_close(&graph);
}

/* --- single linears --- */

/* The linear loaded, and found and read, of a checkpoint's module. */
static void same_linear(const struct walsh_checkpoint *ck, const char *name, uint32_t in, uint32_t out)
{
    struct walsh_error err = {0};
    struct walsh_arena loaded = {0}, found = {0};
    struct walsh_linear a, b;
    struct walsh_weights placed;
    const struct walsh_split whole = {false, 1};
    void *room;
    if (walsh_linear_load(&a, ck, name, NULL, &whole, in, out, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, NULL, &loaded, &err) != WALSH_OK ||
        walsh_linear_find(&b, ck, name, NULL, &whole, in, out, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, &found, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_non_null(b.weights.stored);
    assert_int_equal(walsh_weights_bytes(&a.weights), walsh_weights_bytes(&b.weights));
    assert_true(found.bytes + walsh_weights_bytes(&a.weights) <= loaded.bytes + 2048); /* no codes are kept */
    assert_int_equal(walsh_alloc(stored_bytes(NULL, &b.weights), 1, "a linear", &room, &err), WALSH_OK);
    if (stored_place(NULL, &b.weights, name, room, &placed, &err) != WALSH_OK) fail_msg("%s", err.message);
    stored_same(name, &a.weights, &placed);
    walsh_free(room);
    walsh_arena_close(&loaded);
    walsh_arena_close(&found);
}

/* Linears that GLQ wrote: 2, 3 and 4 bits, padded and not. */
static void e8p_is_read_as_it_is_stored(void **state)
{
    (void)state;
    enum { IN = 448, OUT = 336 }; /* 7 chunks of 64 columns, 21 tiles of 16 rows */
    static uint8_t codes[IN * OUT / 4], narrow[IN * OUT / 8];
    static uint16_t su[OUT], sv[IN];
    static const float wscale = 0.04f, inverse = 0.5f;
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_random r;
    char file[600];
    walsh_random_seed(&r, 11);
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (uint8_t)walsh_random_u64(&r);
    for (size_t i = 0; i < sizeof narrow; i++) narrow[i] = (uint8_t)walsh_random_u64(&r);
    for (size_t i = 0; i < OUT; i++) su[i] = i % 3 ? 0x3c00 : 0xbc00;
    for (size_t i = 0; i < IN; i++) sv[i] = i % 5 ? 0x3c00 : 0xbc00;
    const struct planned tensors[] = {{"m.Qidxs_e8p", WALSH_I64, 4, {OUT / 16, IN / 64, 8, 4}, codes},
                                      {"m.Qidxs2_e81b", WALSH_I64, 2, {OUT, IN / 64}, narrow},
                                      {"m.SU", WALSH_F16, 1, {OUT}, su},
                                      {"m.SV", WALSH_F16, 1, {IN}, sv},
                                      {"m.Wscale", WALSH_F32, 0, {0}, &wscale},
                                      {"m.inv_resid_scale", WALSH_F32, 0, {0}, &inverse}};
    const char *path = temporary_path("e8p");
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, SMALL_CONFIG);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    put_tensors(file, tensors, sizeof tensors / sizeof *tensors);
    if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    same_linear(&ck, "m", IN, OUT);
    walsh_checkpoint_close(&ck);
}

/* A code that is no number is named, as the CPU names it. */
static void a_nan_is_named(void **state)
{
    (void)state;
    enum { IN = 64, OUT = 40 };
    static uint8_t codes[OUT * IN];
    static float scale[OUT];
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    struct walsh_arena arena = {0};
    struct walsh_linear linear;
    struct walsh_weights placed;
    const struct walsh_split whole = {false, 1};
    char file[600];
    void *room;
    for (size_t i = 0; i < OUT; i++) scale[i] = 1;
    codes[33 * IN + 5] = 0xff;
    const struct planned tensors[] = {{"m.weight", WALSH_F8_E4M3, 2, {OUT, IN}, codes},
                                      {"m.weight_scale", WALSH_F32, 2, {OUT, 1}, scale}};
    const char *path = temporary_path("nan");
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, SMALL_CONFIG);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    put_tensors(file, tensors, 2);
    if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK ||
        walsh_linear_find(&linear, &ck, "m", NULL, &whole, IN, OUT, false, WALSH_ACTIVATION_F32,
                          WALSH_ACTIVATION_F32, &arena, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(walsh_alloc(stored_bytes(NULL, &linear.weights), 1, "a linear", &room, &err), WALSH_OK);
    assert_int_equal(stored_place(NULL, &linear.weights, "m", room, &placed, &err), WALSH_E_FORMAT);
    assert_non_null(strstr(err.message, "tensor m.weight: row 33 holds NaN or Inf"));
    walsh_free(room);
    walsh_arena_close(&arena);
    walsh_checkpoint_close(&ck);
}

/* Dense rows, codes or scales that are no longer in the file, which is named. */
static void a_shorter_file_is_named(void **state)
{
    (void)state;
    enum { IN = 64, OUT = 48 };
    static const struct planned dense[] = {{"m.weight", WALSH_BF16, 2, {OUT, IN}, NULL}},
                                blocks[] = {{"m.weight_packed", WALSH_U8, 2, {OUT, IN / 2}, NULL},
                                            {"m.weight_scale", WALSH_U8, 2, {OUT, IN / 32}, NULL}};
    static const struct {
        const struct planned *tensors;
        size_t count, lost;
    } cases[] = {{dense, 1, 1}, {dense, 1, OUT * IN}, {blocks, 2, OUT * IN / 32}, {blocks, 2, OUT * IN / 2}};
    const struct walsh_split whole = {false, 1};
    const char *path = temporary_path("shorter");
    char file[600];
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, SMALL_CONFIG);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct walsh_error err = {0};
        struct walsh_checkpoint ck;
        struct walsh_arena arena = {0};
        struct walsh_linear linear;
        struct walsh_weights placed;
        void *room;
        put_tensors(file, cases[i].tensors, cases[i].count);
        if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK ||
            walsh_linear_find(&linear, &ck, "m", NULL, &whole, IN, OUT, false, WALSH_ACTIVATION_F32,
                              WALSH_ACTIVATION_F32, &arena, &err) != WALSH_OK)
            fail_msg("%s", err.message);
        assert_int_equal(truncate(file, (off_t)(ck.files[0].file.size - cases[i].lost)), 0);
        assert_int_equal(walsh_alloc(stored_bytes(NULL, &linear.weights), 1, "a linear", &room, &err),
                         WALSH_OK);
        assert_int_equal(stored_place(NULL, &linear.weights, "m", room, &placed, &err), WALSH_E_IO);
        assert_non_null(strstr(err.message, "/model.safetensors: shorter than the "));
        walsh_free(room);
        walsh_arena_close(&arena);
        walsh_checkpoint_close(&ck);
    }
}

static int open_queue(void **state)
{
    if (temporary_make(state) != 0) return -1;
    if (walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, NULL) != WALSH_OK) return -1;
    device = queue;
    device.memory = &stored_memory;
    return 0;
}

static int close_queue(void **state)
{
    walsh_queue_close(&queue);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_holds_what_the_cpu_does),
        cmocka_unit_test(what_does_not_fit_is_refused_first),
        cmocka_unit_test(e8p_is_read_as_it_is_stored),
        cmocka_unit_test(a_nan_is_named),
        cmocka_unit_test(a_shorter_file_is_named),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

/* Merged checkpoints: their logits are those of the model with its adapters, dense and quantized, of layers
 * and of experts, in f32 and in bf16; and what cannot be merged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "unit/temporary.h"

#include "unit/checkpoint_files.h"

#include <math.h>

#include "walsh.h"
#include "unit/test_model.h"

#define LORA WALSH_SOURCE_DIR "/models/shakespeare-lora-8m"
#define SPARSE WALSH_SOURCE_DIR "/tests/fixtures/golden/tiny-qwen3-moe"
#define TOKENS 48

static bool stop; /* what the abort hook says */

static bool ask(void *user)
{
    (void)user;
    return stop;
}

static struct walsh_context *context;

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static struct walsh_model *open_model(const char *path)
{
    struct walsh_error err;
    struct walsh_model *model;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.activations = WALSH_ACTIVATIONS_F32;
    good(walsh_model_open(context, path, &options, &model, &err), &err);
    return model;
}

static uint32_t vocabulary(const struct walsh_model *model)
{
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(model, &info);
    return info.vocab;
}

/* [TOKENS][vocab] */
static float *logits_of(const struct walsh_model *model, const struct walsh_adapter_use *uses, size_t count)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    const uint32_t vocab = vocabulary(model);
    int32_t ids[TOKENS];
    options.context = TOKENS;
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * 2654435761u + 99) % vocab);
    float *logits = malloc((size_t)TOKENS * vocab * sizeof *logits);
    good(walsh_session_open(model, &options, &session, &err), &err);
    good(walsh_session_set_adapters(session, uses, count, &err), &err);
    good(walsh_session_prompt_logits(session, ids, TOKENS, logits, &err), &err);
    walsh_session_close(&session);
    return logits;
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    return worst;
}

/* Mean over the tokens of KL(a || b). */
static double divergence(const float *a, const float *b, size_t vocab)
{
    double total = 0;
    for (size_t t = 0; t < TOKENS; t++, a += vocab, b += vocab) {
        double sum_a = 0, sum_b = 0;
        for (size_t i = 0; i < vocab; i++) sum_a += exp((double)a[i]), sum_b += exp((double)b[i]);
        for (size_t i = 0; i < vocab; i++) {
            const double log_p = (double)a[i] - log(sum_a), log_q = (double)b[i] - log(sum_b);
            total += exp(log_p) * (log_p - log_q);
        }
    }
    return total / TOKENS;
}

/* From type `first` on. */
static void check_merge(const struct walsh_model *model, const char *name, enum walsh_merge_type first,
                        const struct walsh_adapter_use *uses, size_t count)
{
    struct walsh_error err;
    const size_t vocab = vocabulary(model), n = TOKENS * vocab;
    float *base = logits_of(model, NULL, 0), *expected = logits_of(model, uses, count);
    const double effect = largest_difference(base, expected, n);
    for (int type = (int)first; type <= WALSH_MERGE_F32; type++) {
        char folder[80];
        uint64_t bytes = 0;
        snprintf(folder, sizeof folder, "%s-%d", name, type);
        const char *path = temporary_path(folder);
        good(walsh_merge(model, uses, count, path, (enum walsh_merge_type)type, &bytes, &err), &err);
        struct walsh_model *merged = open_model(path);
        struct walsh_model_info info = {.struct_size = sizeof info};
        walsh_model_get_info(merged, &info);
        assert_string_equal(info.format, type == WALSH_MERGE_F32 ? "f32" : "bf16");
        assert_int_equal(info.checkpoint_bytes, bytes);
        float *logits = logits_of(merged, NULL, 0);
        const double difference = largest_difference(expected, logits, n),
                     kl = divergence(expected, logits, vocab);
        print_message("%s: logits differ by %.2g, KL %.2g; the adapters change them by %.2g\n", folder,
                      difference, kl, effect);
        assert_true(effect > 0.5);
        assert_true(difference < (type == WALSH_MERGE_F32 ? 2e-3 : 0.1));
        assert_true(kl < (type == WALSH_MERGE_F32 ? 1e-6 : 1e-4));
        free(logits);
        walsh_model_close(&merged);
    }
    free(base), free(expected);
}

static struct walsh_adapter *open_adapter(const struct walsh_model *model, const char *path, const char *name)
{
    struct walsh_error err;
    struct walsh_adapter *adapter;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.name = name;
    if (test_small() && strcmp(path, LORA) == 0) {
        options.name = name ? name : "shakespeare-lora-8m";
        good(walsh_adapter_random(model, 16, 2, &options, &adapter, &err), &err);
    } else {
        good(walsh_adapter_open(model, path, &options, &adapter, &err), &err);
    }
    return adapter;
}

static void test_dense(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_model *model = open_model(test_model());
    struct walsh_adapter *a = open_adapter(model, LORA, NULL), *b;
    check_merge(model, "dense", WALSH_MERGE_BF16, &(struct walsh_adapter_use){a, 1}, 1);
    good(walsh_adapter_random(model, 17, 1, NULL, &b, &err), &err);
    check_merge(model, "two", WALSH_MERGE_BF16, (struct walsh_adapter_use[]){{a, 0.75f}, {b, -0.3f}}, 2);
    walsh_adapter_close(&a);
    walsh_adapter_close(&b);
    walsh_model_close(&model);
}

static void test_quantized(void **state)
{
    (void)state;
    struct walsh_error err;
    const char *rotations[] = {"block", "pow2"};
    for (unsigned r = 0; r < 2; r++) {
        char path[512];
        struct walsh_quantize_options options = WALSH_QUANTIZE_OPTIONS;
        struct walsh_quantize_report report = {.struct_size = sizeof report};
        snprintf(path, sizeof path, "%s", temporary_path(rotations[r]));
        options.format = "e8p";
        options.bits = 3;
        options.rotation = rotations[r];
        options.identity_hessian = true;
        good(walsh_quantize(context, test_model(), path, &options, &report, &err), &err);
        walsh_quantize_report_free(&report);
        struct walsh_model *model = open_model(path);
        struct walsh_adapter *adapter = open_adapter(model, LORA, NULL);
        snprintf(path, sizeof path, "e8p-%s", rotations[r]);
        check_merge(model, path, WALSH_MERGE_BF16, &(struct walsh_adapter_use){adapter, 1}, 1);
        walsh_adapter_close(&adapter);
        walsh_model_close(&model);
    }
}

static void test_experts(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_model *model = open_model(SPARSE);
    struct walsh_adapter *adapter;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.storage = WALSH_ADAPTER_F32;
    good(walsh_adapter_random(model, 8, 3, &options, &adapter, &err), &err);
    /* in f32 only: its routers are random, so that the rounding of bf16 already gives tokens to other experts
     */
    check_merge(model, "experts", WALSH_MERGE_F32, &(struct walsh_adapter_use){adapter, 1}, 1);
    walsh_adapter_close(&adapter);
    walsh_model_close(&model);
}

static void test_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model *model = open_model(test_model()), *random;
    struct walsh_adapter *adapter = open_adapter(model, LORA, NULL);
    const struct walsh_adapter_use use = {adapter, 1};
    const char *path = temporary_path("refused");

    stop = true;
    assert_int_equal(walsh_merge(model, &use, 1, path, WALSH_MERGE_F32, NULL, &err), WALSH_E_ABORTED);
    stop = false;
    char partial[600];
    snprintf(partial, sizeof partial, "%s.partial", path);
    assert_int_not_equal(access(partial, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);

    mkdir(path, 0700);
    assert_int_equal(walsh_merge(model, &use, 1, path, WALSH_MERGE_F32, NULL, &err), WALSH_E_EXISTS);
    assert_string_equal(without_directory(err.message), "DIR/refused exists; merge writes a new directory");
    assert_int_equal(temporary_count_entries(path), 0);

    struct walsh_shape shape = WALSH_SHAPE;
    good(walsh_shape_named("smollm2-135m", &shape, &err), &err);
    shape.layers = 1;
    shape.vocab = 100;
    good(walsh_model_synthesize(context, &shape, "bf16", 0, 1, NULL, &random, &err), &err);
    path = temporary_path("synthetic");
    assert_int_equal(walsh_merge(random, NULL, 0, path, WALSH_MERGE_F32, NULL, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a synthetic model has no directory to merge into");
    assert_int_equal(walsh_merge(random, &use, 1, path, WALSH_MERGE_F32, NULL, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "adapter shakespeare-lora-8m belongs to another model");
    walsh_adapter_close(&adapter);
    walsh_model_close(&random);
    walsh_model_close(&model);
}

/* The head of bookworm-8m is its embedding: an adapter of it can run, but has no weights to be merged into.
 */
static void test_tied_head(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model *model = open_model(test_model());
    const uint32_t hidden = test_small() ? 32 : 320, vocab = vocabulary(model);
    float *values = calloc((size_t)vocab * 2, sizeof *values);
    for (size_t i = 0; i < (size_t)vocab * 2; i++) values[i] = (float)(i % 7) - 3;
    char path[600];
    mkdir(temporary_path("head"), 0700);
    snprintf(path, sizeof path, "%s/adapter_config.json", temporary_path("head"));
    put_text(path, "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"lm_head\"],"
                   "\"base_model_name_or_path\":\"bookworm-8m\"}");
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", temporary_path("head"));
    const struct planned tensors[] = {
        {"base_model.model.lm_head.lora_A.weight", WALSH_F32, 2, {2, hidden}, values},
        {"base_model.model.lm_head.lora_B.weight", WALSH_F32, 2, {vocab, 2}, values}};
    put_tensors(path, tensors, 2);
    struct walsh_adapter *adapter = open_adapter(model, temporary_path("head"), NULL);
    const struct walsh_adapter_use use = {adapter, 1};
    float *base = logits_of(model, NULL, 0), *with = logits_of(model, &use, 1);
    assert_true(largest_difference(base, with, (size_t)TOKENS * vocab) > 1);
    free(base), free(with), free(values);
    assert_int_equal(walsh_merge(model, &use, 1, temporary_path("tied"), WALSH_MERGE_BF16, NULL, &err),
                     WALSH_E_UNSUPPORTED);
    assert_string_equal(
        err.message,
        "an adapter updates lm_head, whose weights are the embedding's too: it cannot be merged");
    walsh_adapter_close(&adapter);
    walsh_model_close(&model);
}

static int open_all(void **state)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    options.hooks.abort = ask;
    return temporary_make(state) || walsh_context_open(&options, &context, NULL) != WALSH_OK;
}

static int close_all(void **state)
{
    walsh_context_close(&context);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),   cmocka_unit_test(test_quantized), cmocka_unit_test(test_experts),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_tied_head),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}

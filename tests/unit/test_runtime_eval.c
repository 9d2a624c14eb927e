/* Evaluation below walsh.h: the likelihood of a token, and logits that are no numbers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/eval.h"

static void likelihood_of_a_token(void **state)
{
    (void)state;
    const float logits[4] = {1000, 1000, -1000, 998}; /* sums that overflow exp */
    double log_sum, expected = 1000 + log(2 + exp(-2));
    assert_true(fabs(walsh_negative_log_likelihood(logits, 4, 1, &log_sum) - (expected - 1000)) < 1e-12);
    assert_true(fabs(log_sum - expected) < 1e-12);
    assert_true(fabs(walsh_negative_log_likelihood(logits, 4, 2, NULL) - (expected + 1000)) < 1e-12);
    const float never[2] = {0, -INFINITY};
    assert_true(walsh_negative_log_likelihood(never, 2, 1, NULL) == INFINITY);
    assert_true(walsh_negative_log_likelihood(never, 2, 0, NULL) == 0);
}

static const struct walsh_kv_policy f32 = {.type = WALSH_KV_F32};

static void logits_that_are_no_numbers_are_an_error(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_queue queue;
    struct walsh_model_graph *graph;
    struct walsh_runner *runner;
    const struct walsh_load_options options = {.use_mmap = true};
    assert_int_equal(walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err), WALSH_OK);
    if (walsh_graph_open(WALSH_SOURCE_DIR "/tests/fixtures/golden/tiny-qwen3-moe", &options, &queue, &graph,
                         &err) != WALSH_OK ||
        walsh_runner_open(graph, &queue, NULL, &runner, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    int32_t ids[32];
    for (int i = 0; i < 32; i++) ids[i] = i * 5;
    struct walsh_evaluation result;
    assert_int_equal(walsh_runtime_eval(runner, NULL, ids, 32, 16, &f32, NULL, 0, &result, &err), WALSH_OK);
    assert_int_equal(result.tokens, 30);
    assert_true(result.nll > 0 && result.nll < 50);
    ((float *)(uintptr_t)graph->final_norm)[3] = NAN; /* as a broken checkpoint has it */
    assert_int_equal(walsh_runtime_eval(runner, NULL, ids, 32, 16, &f32, NULL, 0, &result, &err),
                     WALSH_E_INTERNAL);
    assert_string_equal(err.message, "the model's logits are not numbers (NaN)");
    walsh_runner_close(&runner);
    walsh_graph_close(&graph);
    walsh_queue_close(&queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(likelihood_of_a_token),
        cmocka_unit_test(logits_that_are_no_numbers_are_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

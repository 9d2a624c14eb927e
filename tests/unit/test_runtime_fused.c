/* The fused ops of the CPU (kernels/cpu/fused.c) against their parts: every family's layers, prompts and steps of two rows, bit for
 * bit. A count shows that the fused ops ran, or did not where they must not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "model/build.h"
#include "runtime/session.h"

#define FIXTURES WALSH_SOURCE_DIR "/tests/fixtures/golden/"
enum { PROMPT = 21, STEPS = 3, SESSIONS = 2 };

static struct walsh_queue queue;
static struct walsh_ops counting, plain;
static struct walsh_fused_ops fused;
static size_t ran;

static void count_residual(const struct walsh_queue *q, float *x, size_t n, const struct walsh_unrotated *d,
                           const float *d_norm, const float *weight, float eps, float *normed, size_t ldn,
                           struct walsh_activations *a, const struct walsh_rotation *rotation)
{
    ran++;
    plain.fused->residual(q, x, n, d, d_norm, weight, eps, normed, ldn, a, rotation);
}

static int open_queue(void **state)
{
    (void)state;
    struct walsh_pool *pool;
    struct walsh_error err;
    if (walsh_pool_open(2, &pool, &err) != WALSH_OK ||
        walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &err) != WALSH_OK)
        return -1;
    plain = counting = *queue.ops;
    fused = *counting.fused;
    fused.residual = count_residual;
    counting.fused = &fused;
    return 0;
}

static int close_queue(void **state)
{
    (void)state;
    struct walsh_pool *pool = queue.pool;
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return 0;
}

/* logits [1 + STEPS][SESSIONS][vocab] of a prompt and steps behind it, by these ops. */
static float *logits_of(const struct walsh_model_graph *graph, const struct walsh_ops *ops)
{
    struct walsh_error err = {0};
    struct walsh_runner *runner;
    struct walsh_session *sessions[SESSIONS];
    const struct walsh_kv_policy policy = {.type = WALSH_KV_F16};
    const size_t vocab = graph->config.vocab;
    queue.ops = ops;
    if (walsh_runner_open(graph, &queue, NULL, &runner, &err) != WALSH_OK) fail_msg("%s", err.message);
    float *all;
    if (walsh_alloc((size_t)(1 + STEPS) * SESSIONS * vocab, sizeof *all, "logits", &all, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    float *to = all;
    for (int s = 0; s < SESSIONS; s++, to += vocab) {
        int32_t ids[PROMPT];
        for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)((size_t)(7 + i * 13 + s * 5) % vocab);
        if (walsh_runtime_session_open(runner, 32, &policy, &sessions[s], &err) != WALSH_OK ||
            walsh_runtime_prompt(sessions[s], ids, (size_t)(PROMPT - s), NULL, NULL, &err) != WALSH_OK)
            fail_msg("%s", err.message);
        memcpy(to, walsh_session_read(sessions[s]), vocab * sizeof *to);
    }
    for (int i = 0; i < STEPS; i++) {
        const int32_t next[SESSIONS] = {3 + i, 11 + i};
        if (walsh_runtime_step(sessions, next, SESSIONS, &err) != WALSH_OK) fail_msg("%s", err.message);
        for (int s = 0; s < SESSIONS; s++, to += vocab)
            memcpy(to, walsh_session_read(sessions[s]), vocab * sizeof *to);
    }
    for (int s = 0; s < SESSIONS; s++) walsh_runtime_session_close(&sessions[s]);
    walsh_runner_close(&runner);
    return all;
}

static void compare(const char *name, struct walsh_model_graph *graph, bool expected)
{
    const size_t count = (size_t)(1 + STEPS) * SESSIONS * graph->config.vocab;
    struct walsh_ops parts = plain;
    parts.fused = NULL;
    ran = 0;
    float *joined = logits_of(graph, &counting);
    if ((ran > 0) != expected) fail_msg("%s: %zu fused residuals", name, ran);
    ran = 0;
    float *apart = logits_of(graph, &parts);
    assert_int_equal(ran, 0);
    if (memcmp(joined, apart, count * sizeof *joined) != 0) fail_msg("%s: other bits", name);
    walsh_free(joined);
    walsh_free(apart);
    walsh_graph_close(&graph);
}

static void families(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool fused;
    } models[] = {{"tiny-llama2", true},   {"tiny-llama3", true},        {"tiny-mistral", true},
                  {"tiny-qwen2", true},    {"tiny-qwen3", true},         {"tiny-smollm3", true},
                  {"tiny-gemma2", true},   {"tiny-gemma3", true},        {"tiny-phi3", true},
                  {"tiny-lalamo", false},  {"tiny-phi3-longrope", true}, {"tiny-qwen3-moe", false},
                  {"tiny-gpt-oss", false}, {"tiny-lfm2", false}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char path[256];
        struct walsh_error err = {0};
        struct walsh_model_graph *graph;
        const struct walsh_load_options options = {.use_mmap = true, .rotated = WALSH_ACTIVATION_INT8};
        snprintf(path, sizeof path, FIXTURES "%s", models[i].name);
        queue.ops = &plain;
        if (walsh_graph_open(path, &options, &queue, &graph, &err) != WALSH_OK) fail_msg("%s", err.message);
        compare(models[i].name, graph, models[i].fused);
    }
}

/* Rotated linears, whose outputs are turned back in place: widths of several blocks. */
static void rotated(void **state)
{
    (void)state;
    static const enum walsh_activation_type types[] = {WALSH_ACTIVATION_INT8, WALSH_ACTIVATION_F32};
    for (size_t i = 0; i < 2; i++) {
        struct walsh_error err = {0};
        struct walsh_model_graph *graph;
        const struct walsh_config config = {.architecture = WALSH_ARCH_LLAMA,
                                            .hidden = 192,
                                            .intermediate = 448,
                                            .layers = 2,
                                            .heads = 3,
                                            .kv_heads = 1,
                                            .head_dim = 64,
                                            .vocab = 64,
                                            .max_positions = 64,
                                            .rms_epsilon = 1e-5,
                                            .rope = {.theta = 10000, .factor = 1}};
        const struct walsh_load_options options = {.rotated = types[i]};
        queue.ops = &plain;
        if (walsh_graph_synthesize(&config, WALSH_FORMAT_E8P, 3, false, 1, &options, &queue, &graph, &err) !=
            WALSH_OK)
            fail_msg("%s", err.message);
        compare("e8p", graph, true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(families), cmocka_unit_test(rotated)};
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

/* The state of short convolutions in sessions (tests/fixtures/golden/tiny-lfm2): forks, trims, exports and
 * batches give the bits of a session that never had them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/memory.h"
#include "runtime/session.h"

#define MODEL WALSH_SOURCE_DIR "/tests/fixtures/golden/tiny-lfm2"
#define VOCAB 256
#define TOKENS 60
#define CUT 23

static struct walsh_pool *pool;
static struct walsh_queue queue;
static struct walsh_model_graph *graph;
static struct walsh_runner *runner;
static int32_t ids[TOKENS];

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static struct walsh_session *open_session(enum walsh_kv_type type)
{
    struct walsh_error err = {0};
    struct walsh_session *s;
    const struct walsh_kv_policy policy = {.type = type};
    good(walsh_runtime_session_open(runner, 128, &policy, &s, &err), &err);
    return s;
}

static void prompt(struct walsh_session *s, uint32_t begin, uint32_t end)
{
    struct walsh_error err = {0};
    good(walsh_runtime_prompt(s, ids + begin, end - begin, NULL, NULL, &err), &err);
}

static void steps(struct walsh_session *const *s, size_t count, uint32_t begin, uint32_t end)
{
    struct walsh_error err = {0};
    for (uint32_t t = begin; t < end; t++) {
        int32_t same[4] = {ids[t], ids[t], ids[t], ids[t]};
        good(walsh_runtime_step(s, same, count, &err), &err);
    }
}

static void same_logits(const struct walsh_session *a, const struct walsh_session *b)
{
    assert_true(a->has_logits && b->has_logits);
    assert_memory_equal(a->logits, b->logits, VOCAB * sizeof(float));
}

static void check(enum walsh_kv_type type)
{
    struct walsh_error err = {0};
    struct walsh_session *plain = open_session(type), *other = open_session(type), *fork, *both[2];
    prompt(plain, 0, CUT);
    steps(&plain, 1, CUT, TOKENS);

    /* a trim within a page, after more than the convolution reads */
    prompt(other, 0, CUT);
    steps(&other, 1, 0, 20); /* other tokens */
    good(walsh_runtime_trim(other, CUT, &err), &err);
    steps(&other, 1, CUT, TOKENS);
    same_logits(plain, other);

    /* a fork, whose page is written by both in one batch */
    walsh_runtime_session_close(&other);
    other = open_session(type);
    prompt(other, 0, CUT);
    good(walsh_runtime_fork(other, &fork, &err), &err);
    steps(&fork, 1, 7, 9); /* the fork goes elsewhere first */
    both[0] = other;
    both[1] = fork;
    steps(both, 2, CUT, TOKENS);
    same_logits(plain, other);
    assert_memory_not_equal(plain->logits, fork->logits, VOCAB * sizeof(float));

    /* an export, as prefix blocks hold it; what a trim left behind it does not travel */
    struct walsh_kv_cache *from = other->kv;
    walsh_kv_trim(from, CUT);
    const size_t bytes = walsh_kv_export_bytes(from, CUT);
    uint8_t *data, *again;
    good(walsh_alloc(2 * bytes, 1, "an export", &data, &err), &err);
    again = data + bytes;
    good(walsh_kv_export(from, 0, CUT, data, &err), &err);
    walsh_runtime_session_close(&fork);
    fork = open_session(type);
    prompt(fork, 0, CUT);
    good(walsh_kv_export(fork->kv, 0, CUT, again, &err), &err);
    assert_memory_equal(data, again, bytes);
    walsh_runtime_session_close(&fork);
    fork = open_session(type);
    good(walsh_kv_import(fork->kv, CUT, data, &err), &err);
    steps(&fork, 1, CUT, TOKENS);
    same_logits(plain, fork);
    walsh_free(data);
    walsh_runtime_session_close(&plain);
    walsh_runtime_session_close(&other);
    walsh_runtime_session_close(&fork);
}

static void test_state(void **state)
{
    (void)state;
    check(WALSH_KV_F32);
    check(WALSH_KV_F16);
}

/* The convolution reads its window: a token just outside changes nothing of it, one inside does. */
static void test_bytes(void **state)
{
    (void)state;
    const struct walsh_kv_policy policy = {.type = WALSH_KV_F16};
    const struct walsh_kv_shape shape = walsh_session_kv_shape(graph, 256, &policy);
    /* of a token: two convolutions of 32 elements, keys and values of 2 heads of 8 */
    assert_int_equal(walsh_kv_bytes(&shape), 256 * 2 * (2 * 32 + 2 * 2 * 8));
    assert_int_equal(walsh_kv_layer_type(&shape, 0), WALSH_KV_F16);
    struct walsh_session *s = open_session(WALSH_KV_F16);
    prompt(s, 0, 5);
    assert_int_equal(walsh_kv_allocated(s->kv), walsh_kv_bytes(&shape));
    walsh_runtime_session_close(&s);
}

/* A prompt in one piece and in steps: the same up to rounding. */
static void test_prefill_and_decode(void **state)
{
    (void)state;
    struct walsh_session *prefill = open_session(WALSH_KV_F32), *decode = open_session(WALSH_KV_F32);
    prompt(prefill, 0, TOKENS);
    prompt(decode, 0, 1);
    steps(&decode, 1, 1, TOKENS);
    for (size_t i = 0; i < VOCAB; i++) assert_float_equal(prefill->logits[i], decode->logits[i], 1e-3);
    walsh_runtime_session_close(&prefill);
    walsh_runtime_session_close(&decode);
}

static int setup(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const struct walsh_load_options load = {.rotated = WALSH_ACTIVATION_F32, .dense = WALSH_ACTIVATION_F32};
    good(walsh_pool_open(2, &pool, &err), &err);
    good(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &err), &err);
    good(walsh_graph_open(MODEL, &load, &queue, &graph, &err), &err);
    good(walsh_runner_open(graph, &queue, NULL, &runner, &err), &err);
    for (int32_t i = 0; i < TOKENS; i++) ids[i] = (37 * i + 11) % VOCAB;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    walsh_runner_close(&runner);
    walsh_graph_close(&graph);
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_state),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_prefill_and_decode),
    };
    return cmocka_run_group_tests_name("runtime_conv", tests, setup, teardown);
}

/* Packed caches under a model: what prefill and decode see, how bits depend on cuts, batches, forks and
 * trims. Test groups of docs/kv-cache.md: 1, 3, 4, 6, 7, 8. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/api.h"
#include "runtime/eval.h"
#include "unit/test_model.h"

#define TOKENS 900u

static struct walsh_context *context;
static struct walsh_model *model;
static size_t vocab;
static int32_t ids[TOKENS];

static int open_model(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    if (walsh_context_open(&options, &context, &err) != WALSH_OK) return -1;
    if (walsh_model_open(context, test_model(), NULL, &model, &err) != WALSH_OK) return -1;
    vocab = model->graph->config.vocab;
    for (uint32_t i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * 2654435761u + 12345) % vocab);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    walsh_model_close(&model);
    walsh_context_close(&context);
    return 0;
}

static void check(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static struct walsh_session *open_session(struct walsh_kv_options kv)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = TOKENS;
    options.kv = kv;
    check(walsh_session_open(model, &options, &session, &err), &err);
    return session;
}

static struct walsh_kv_options turbo(unsigned key_bits, unsigned value_bits, uint32_t skip, uint32_t recent)
{
    struct walsh_kv_options kv = WALSH_KV_OPTIONS;
    kv.type = WALSH_KV_CACHE_TURBO;
    kv.key_bits = key_bits;
    kv.value_bits = value_bits;
    kv.skip = skip;
    kv.recent = recent;
    return kv;
}

static const struct walsh_kv_options f16 = {.type = WALSH_KV_CACHE_F16};

static void prompt(struct walsh_session *s, const int32_t *tokens, size_t count)
{
    struct walsh_error err;
    check(walsh_session_prompt(s, tokens, count, &err), &err);
}

static void step(struct walsh_session *s, const int32_t *tokens, size_t count)
{
    struct walsh_error err;
    for (size_t i = 0; i < count; i++) check(walsh_step(&s, tokens + i, 1, &err), &err);
}

static void assert_same_logits(const struct walsh_session *a, const struct walsh_session *b)
{
    assert_memory_equal(walsh_session_logits(a), walsh_session_logits(b), vocab * sizeof(float));
}

static void assert_other_logits(const struct walsh_session *a, const struct walsh_session *b)
{
    assert_memory_not_equal(walsh_session_logits(a), walsh_session_logits(b), vocab * sizeof(float));
}

static void assert_same_cache(const struct walsh_session *a, const struct walsh_session *b)
{
    struct walsh_error err;
    assert_int_equal(a->kv->length, b->kv->length);
    const size_t bytes = walsh_kv_export_bytes(a->kv, a->kv->length);
    uint8_t *x = malloc(bytes), *y = malloc(bytes);
    check(walsh_kv_export(a->kv, 0, a->kv->length, x, &err), &err);
    check(walsh_kv_export(b->kv, 0, b->kv->length, y, &err), &err);
    assert_memory_equal(x, y, bytes);
    free(x);
    free(y);
}

/* Within a chunk prefill is that of the f16 cache, bit for bit; behind it the packed tokens show. */
static void prefill_runs_on_f16(void **state)
{
    (void)state;
    struct walsh_session *a = open_session(f16), *b = open_session(turbo(2, 2, 0, 0));
    prompt(a, ids, 512);
    prompt(b, ids, 512);
    assert_same_logits(a, b);
    prompt(a, ids + 512, 3);
    prompt(b, ids + 512, 3);
    assert_other_logits(a, b);
    walsh_session_close(&a);
    walsh_session_close(&b);
}

/* Cuts at multiples of 512 change nothing; within a chunk they do, and the same cuts give the same bits. */
static void bits_depend_on_cuts_within_a_chunk_only(void **state)
{
    (void)state;
    for (uint32_t recent = 0; recent <= 100; recent += 100) {
        struct walsh_session *whole = open_session(turbo(3, 4, 1, recent)),
                             *cut = open_session(turbo(3, 4, 1, recent)),
                             *inside = open_session(turbo(3, 4, 1, recent)),
                             *again = open_session(turbo(3, 4, 1, recent));
        prompt(whole, ids, 800);
        prompt(cut, ids, 512);
        prompt(cut, ids + 512, 288);
        assert_same_logits(whole, cut);
        assert_same_cache(whole, cut);
        prompt(inside, ids, 600);
        prompt(inside, ids + 600, 200);
        assert_other_logits(whole, inside);
        prompt(again, ids, 600);
        prompt(again, ids + 600, 200);
        assert_same_logits(inside, again);
        assert_same_cache(inside, again);
        step(whole, ids + 800, 5);
        step(cut, ids + 800, 5);
        assert_same_logits(whole, cut);
        walsh_session_close(&whole);
        walsh_session_close(&cut);
        walsh_session_close(&inside);
        walsh_session_close(&again);
    }
}

/* Rows that are appended together and attend with causal limits have the bits of single steps. */
static void test_group_3_evaluation_is_decode(void **state)
{
    (void)state;
    enum { COUNT = 600 };
    const uint32_t count = test_small() ? 540 : COUNT; /* more than a chunk */
    static const struct {
        unsigned key_bits, value_bits;
        uint32_t skip, recent;
    } cases[] = {{4, 4, 0, 0}, {3, 2, 1, 64}, {8, 8, 0, 520}};
    float *logits = malloc((size_t)COUNT * vocab * sizeof *logits);
    assert_non_null(logits);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct walsh_error err;
        const struct walsh_kv_options kv =
            turbo(cases[c].key_bits, cases[c].value_bits, cases[c].skip, cases[c].recent);
        struct walsh_session *s = open_session(kv), *rows;
        struct walsh_kv_shape shape = s->kv->shape;
        shape.rows = WALSH_CHUNK_ROWS;
        check(walsh_runtime_session_open_shape(model->runner, &shape, &rows, &err), &err);
        const struct walsh_prompt_outputs outputs = {.logits = logits, .decode = true};
        check(walsh_runtime_prompt(rows, ids, count, &outputs, NULL, &err), &err);
        for (uint32_t i = 0; i < count; i++) {
            step(s, ids + i, 1);
            assert_memory_equal(walsh_session_logits(s), logits + i * vocab, vocab * sizeof *logits);
        }
        if (cases[c].recent == 0) assert_same_cache(s, rows);
        walsh_session_close(&s);
        walsh_session_close(&rows);
    }
    free(logits);
}

/* Rows of different lengths in a batch that changes: each has the bits that it has alone. */
static void test_group_3_ragged_batches_and_4_rows_that_come_and_go(void **state)
{
    (void)state;
    enum { ROWS = 4 };
    static const uint32_t lengths[ROWS] = {1, 700, 64, 513};
    for (uint32_t recent = 0; recent <= 64; recent += 64) {
        struct walsh_error err;
        struct walsh_session *batch[ROWS], *alone[ROWS], *list[ROWS];
        int32_t next[ROWS];
        for (uint32_t i = 0; i < ROWS; i++) {
            batch[i] = open_session(turbo(4, 3, 0, recent));
            alone[i] = open_session(turbo(4, 3, 0, recent));
            prompt(batch[i], ids + i, lengths[i]);
            prompt(alone[i], ids + i, lengths[i]);
        }
        for (uint32_t round = 0; round < 12; round++) {
            /* the longest row leaves after 4 rounds and comes back after 8, when another is trimmed */
            size_t count = 0;
            for (uint32_t i = 0; i < ROWS; i++) {
                if (i == 1 && round >= 4 && round < 8) continue;
                if (i == 2 && round == 8) {
                    check(walsh_session_trim(batch[i], 30, &err), &err);
                    check(walsh_session_trim(alone[i], 30, &err), &err);
                }
                next[count] = ids[(round * 7 + i * 31) % TOKENS];
                step(alone[i], next + count, 1);
                list[count++] = batch[i];
            }
            check(walsh_step(list, next, count, &err), &err);
            for (uint32_t i = 0; i < ROWS; i++) assert_same_logits(batch[i], alone[i]);
        }
        for (uint32_t i = 0; i < ROWS; i++) {
            if (!recent) assert_same_cache(batch[i], alone[i]);
            walsh_session_close(&batch[i]);
            walsh_session_close(&alone[i]);
        }
    }
}

/* A model on another number of threads. */
static void test_group_3_threads_change_nothing(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    struct walsh_context *single;
    struct walsh_model *same;
    options.threads = 1;
    check(walsh_context_open(&options, &single, &err), &err);
    check(walsh_model_open(single, test_model(), NULL, &same, &err), &err);
    struct walsh_session *a = open_session(turbo(3, 3, 0, 90)), *b;
    struct walsh_session_options session = WALSH_SESSION_OPTIONS;
    session.context = TOKENS;
    session.kv = turbo(3, 3, 0, 90);
    check(walsh_session_open(same, &session, &b, &err), &err);
    prompt(a, ids, 700);
    prompt(b, ids, 700);
    assert_same_logits(a, b);
    step(a, ids + 700, 6);
    step(b, ids + 700, 6);
    assert_same_logits(a, b);
    assert_same_cache(a, b);
    walsh_session_close(&a);
    walsh_session_close(&b);
    walsh_model_close(&same);
    walsh_context_close(&single);
}

static void test_group_4_forks(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_session *s = open_session(turbo(3, 4, 0, 50)), *same = open_session(turbo(3, 4, 0, 50)),
                         *fork;
    prompt(s, ids, 300);
    prompt(same, ids, 300);
    check(walsh_session_fork(s, &fork, &err), &err);
    assert_int_equal(walsh_session_length(fork), 300);
    assert_int_equal(walsh_session_context(fork), TOKENS);
    assert_same_logits(s, fork);
    step(fork, ids + 500, 20); /* another continuation */
    step(s, ids + 300, 20);
    step(same, ids + 300, 20);
    assert_same_logits(s, same);
    assert_other_logits(s, fork);
    check(walsh_session_trim(fork, 299, &err), &err);
    assert_null(walsh_session_logits(fork));
    walsh_session_close(&s);
    step(fork, ids + 500, 20);
    step(same, ids + 320, 3);
    walsh_session_close(&fork);
    walsh_session_close(&same);
}

static void test_group_4_capacity_is_an_error(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_session *s = open_session(turbo(4, 4, 0, 0)), *same = open_session(turbo(4, 4, 0, 0));
    prompt(s, ids, TOKENS);
    prompt(same, ids, TOKENS);
    assert_int_equal(walsh_step(&s, ids, 1, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "the context is full: 901 tokens wanted, it holds 900");
    assert_int_equal(walsh_session_prompt(s, ids, 1, &err), WALSH_E_CAPACITY);
    assert_same_logits(s, same);
    assert_same_cache(s, same);
    walsh_session_close(&s);
    walsh_session_close(&same);
}

static void test_group_7_a_restored_cache_goes_on_as_a_fresh_one(void **state)
{
    (void)state;
    for (uint32_t recent = 0; recent <= 600; recent += test_small() ? 600 : 300) {
        struct walsh_error err;
        struct walsh_session *fresh = open_session(turbo(3, 4, 1, recent)),
                             *restored = open_session(turbo(3, 4, 1, recent));
        prompt(fresh, ids, 512);
        const size_t bytes = walsh_kv_export_bytes(fresh->kv, 512);
        uint8_t *chunk = malloc(bytes);
        check(walsh_kv_export(fresh->kv, 0, 512, chunk, &err), &err);
        check(walsh_kv_import(restored->kv, 512, chunk, &err), &err);
        free(chunk);
        prompt(fresh, ids + 512, 40);
        prompt(restored, ids + 512, 40);
        assert_same_logits(fresh, restored);
        step(fresh, ids + 552, 4);
        step(restored, ids + 552, 4);
        assert_same_logits(fresh, restored);
        if (!recent) assert_same_cache(fresh, restored);
        walsh_session_close(&fresh);
        walsh_session_close(&restored);
    }
}

/* The feature is on: bytes drop as computed, and what is read is what was packed. */
static void test_group_8_bytes_drop_and_the_result_shows_it(void **state)
{
    (void)state;
    struct walsh_session *plain = open_session(f16), *four = open_session(turbo(0, 0, 0, 0)),
                         *two = open_session(turbo(2, 2, 0, 0)), *mixed = open_session(turbo(2, 2, 1, 0)),
                         *recent = open_session(turbo(2, 2, 0, TOKENS));
    struct walsh_session *const all[] = {plain, four, two, mixed, recent};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        prompt(all[i], ids, 700);
        step(all[i], ids + 700, 1);
    }
    const struct walsh_config *c = &model->graph->config;
    const uint64_t vectors = 3ull * 256 * 2 * c->layers * c->kv_heads; /* of 64 elements, 3 pages */
    assert_int_equal(c->head_dim, 64);
    assert_int_equal(walsh_session_cache_bytes(plain), vectors * 128);
    assert_int_equal(walsh_session_cache_bytes(four), vectors * 34);
    assert_int_equal(walsh_session_cache_bytes(two), vectors * 18);
    assert_int_equal(walsh_session_cache_bytes(mixed),
                     vectors / c->layers * (2 * 128 + 18 * (c->layers - 2)));
    /* a ring of as many tokens as the context has, in pages of 64 */
    assert_int_equal(walsh_session_cache_bytes(recent),
                     vectors * 18 + (TOKENS + 63) / 64 * 64ull * 2 * c->layers * c->kv_heads * 128);
    double error[4] = {0};
    for (size_t i = 1; i < sizeof all / sizeof all[0]; i++)
        for (size_t j = 0; j < vocab; j++)
            error[i - 1] +=
                pow((double)walsh_session_logits(all[i])[j] - (double)walsh_session_logits(plain)[j], 2);
    for (int i = 0; i < 4; i++) assert_true(error[i] > 0);
    assert_true(error[0] < error[1]); /* 4 bits are better than 2 */
    assert_true(error[2] < error[1]); /* so are f16 layers */
    assert_true(error[3] < error[1]); /* and recent tokens in f16 */
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct walsh_session *s = all[i];
        walsh_session_close(&s);
    }
}

static void test_group_8_options_that_need_turbo_are_refused_without(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_session *s;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.kv.recent = 4;
    assert_int_equal(walsh_session_open(model, &options, &s, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message,
                        "bits, skipped layers, recent tokens and codecs of the KV cache need its type turbo");
    options.kv = turbo(4, 4, 3, 0);
    assert_int_equal(walsh_session_open(model, &options, &s, &err), WALSH_E_ARGUMENT);
    char message[100];
    snprintf(message, sizeof message,
             "KV cache: no layer of %u is left to pack when the first and last 3 stay f16",
             model->graph->config.layers);
    assert_string_equal(err.message, message);
    options.kv = turbo(4, 12, 0, 0);
    assert_int_equal(walsh_session_open(model, &options, &s, &err), WALSH_E_ARGUMENT);
    options.kv.type = (enum walsh_kv)9;
    assert_int_equal(walsh_session_open(model, &options, &s, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "kv is 9, expected auto, f16, f32 or turbo");
    assert_null(s);
    unsigned key, value;
    assert_true(walsh_kv_split_bits(3.5, &key, &value));
    assert_int_equal(key, 3);
    assert_int_equal(value, 4);
    assert_false(walsh_kv_split_bits(3.3, &key, &value));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_runs_on_f16),
        cmocka_unit_test(bits_depend_on_cuts_within_a_chunk_only),
        cmocka_unit_test(test_group_3_evaluation_is_decode),
        cmocka_unit_test(test_group_3_ragged_batches_and_4_rows_that_come_and_go),
        cmocka_unit_test(test_group_3_threads_change_nothing),
        cmocka_unit_test(test_group_4_forks),
        cmocka_unit_test(test_group_4_capacity_is_an_error),
        cmocka_unit_test(test_group_7_a_restored_cache_goes_on_as_a_fresh_one),
        cmocka_unit_test(test_group_8_bytes_drop_and_the_result_shows_it),
        cmocka_unit_test(test_group_8_options_that_need_turbo_are_refused_without),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}

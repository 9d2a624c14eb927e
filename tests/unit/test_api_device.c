/* What a device generates: a batch and steps that draw, whose tokens the device draws and whose steps are recordings, against sessions
 * whose tokens the host draws from the logits that come back; with and without adapters; steps over packed caches. Skipped where there is no device, failed there where
 * WALSH_REQUIRE names cuda. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "unit/test_model.h"
#include "walsh.h"

enum { REQUESTS = 8, TOKENS = 40, PROMPT = 20, ADAPTERS = 2, LONGEST = 200 };

static struct walsh_context *context;
static struct walsh_model *model;
static struct walsh_adapter *adapters[ADAPTERS];

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static int open_device(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const struct walsh_context_options options = {
        .struct_size = sizeof options, .device = "cuda", .threads = 2};
    const char *required = getenv("WALSH_REQUIRE");
    if (walsh_context_open(&options, &context, &err) != WALSH_OK) {
        printf("%s: %s\n", required && strstr(required, "cuda") ? "FAIL" : "skipped", err.message);
        return required && strstr(required, "cuda") ? -1 : 0;
    }
    if (walsh_model_open(context, test_model(), NULL, &model, &err) != WALSH_OK) goto failed;
    for (unsigned i = 0; i < ADAPTERS; i++) {
        struct walsh_adapter_options o = WALSH_ADAPTER_OPTIONS;
        o.name = i ? "second" : "first";
        if (walsh_adapter_random(model, 16 + 5 * i, 3 + i, &o, &adapters[i], &err) != WALSH_OK) goto failed;
    }
    return 0;
failed:
    printf("FAIL: %s\n", err.message);
    return -1;
}

static int close_device(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ADAPTERS; i++) walsh_adapter_close(&adapters[i]);
    walsh_model_close(&model);
    walsh_context_close(&context);
    return 0;
}

/* Request i's options; the last ones use adapters. */
static struct walsh_sampler_options sampling_of(unsigned i)
{
    struct walsh_sampler_options o = WALSH_SAMPLER_OPTIONS;
    o.seed = 100 + i;
    o.temperature = i % 5 == 0 ? 0 : 0.5 + 0.2 * i;
    if (i % 3 == 1) o.top_k = 40;
    if (i % 3 == 2) o.top_p = 0.9;
    if (i == 3) o.min_p = 0.01;
    if (i % 2) o.repeat_penalty = 1.2;
    if (i == 4) o.presence_penalty = 0.3, o.frequency_penalty = 0.2;
    return o;
}

static size_t uses_of(unsigned i, struct walsh_adapter_use uses[ADAPTERS])
{
    uses[0] = (struct walsh_adapter_use){adapters[i % 2], 1};
    uses[1] = (struct walsh_adapter_use){adapters[1 - i % 2], 0.5f};
    return i < 4 ? 0 : i < 7 ? 1 : 2;
}

static void prompt_of(unsigned i, int32_t ids[PROMPT])
{
    for (int32_t t = 0; t < PROMPT; t++) ids[t] = 3 + (t * 7 + (int32_t)i * 11) % 200;
}

/* The host draws, or the step does. */
static void generate_alone(unsigned i, bool steps_draw, int32_t tokens[TOKENS])
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_sampler *sampler;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    const struct walsh_sampler_options sampling = sampling_of(i);
    struct walsh_adapter_use uses[ADAPTERS];
    struct walsh_model_info info = {.struct_size = sizeof info};
    int32_t ids[PROMPT];
    options.context = PROMPT + TOKENS;
    prompt_of(i, ids);
    walsh_model_get_info(model, &info);
    good(walsh_session_open(model, &options, &session, &err), &err);
    good(walsh_session_set_adapters(session, uses, uses_of(i, uses), &err), &err);
    good(walsh_sampler_open(&sampling, info.vocab, &sampler, &err), &err);
    for (unsigned t = 0; t < PROMPT; t++) walsh_sampler_accept(sampler, ids[t]);
    good(walsh_session_prompt(session, ids, PROMPT, &err), &err);
    good(walsh_sampler_draw(sampler, walsh_session_logits(session), &tokens[0], &err), &err);
    for (unsigned t = 1; t < TOKENS; t++) {
        if (steps_draw) {
            good(walsh_step_draw(&session, &sampler, &tokens[t - 1], 1, &tokens[t], &err), &err);
            continue;
        }
        good(walsh_step(&session, &tokens[t - 1], 1, &err), &err);
        good(walsh_sampler_draw(sampler, walsh_session_logits(session), &tokens[t], &err), &err);
    }
    walsh_sampler_close(&sampler);
    walsh_session_close(&session);
}

static void batches_draw_what_sessions_draw(void **state)
{
    (void)state;
    static int32_t expected[REQUESTS][TOKENS], tokens[REQUESTS][TOKENS];
    size_t got[REQUESTS] = {0}, left = REQUESTS, count;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    struct walsh_batch_event events[REQUESTS];
    struct walsh_batch *batch;
    struct walsh_error err;
    uint64_t id;
    if (!context) skip();
    for (unsigned i = 0; i < REQUESTS; i++) {
        generate_alone(i, false, expected[i]);
        generate_alone(i, true, tokens[i]);
        assert_memory_equal(tokens[i], expected[i], sizeof tokens[i]);
    }
    options.max_rows = REQUESTS - 2;
    options.context = PROMPT + TOKENS;
    good(walsh_batch_open(model, &options, &batch, &err), &err);
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct walsh_sampler_options sampling = sampling_of(i);
        struct walsh_adapter_use uses[ADAPTERS];
        int32_t ids[PROMPT];
        struct walsh_batch_request request = WALSH_BATCH_REQUEST;
        prompt_of(i, ids);
        request.ids = ids;
        request.count = PROMPT;
        request.max_tokens = TOKENS;
        request.sampling = &sampling;
        request.ignore_eos = true;
        request.adapter_count = uses_of(i, uses);
        request.adapters = uses;
        request.user = &got[i];
        good(walsh_batch_submit(batch, &request, &id, &err), &err);
    }
    while (left > 0) {
        good(walsh_batch_step(batch, events, REQUESTS, &count, &err), &err);
        for (size_t e = 0; e < count; e++) {
            size_t *n = events[e].user;
            if (events[e].finish == WALSH_FINISH_ERROR) fail_msg("%s", events[e].message);
            tokens[n - got][(*n)++] = events[e].token;
            left -= events[e].finish != WALSH_FINISH_NONE;
        }
    }
    for (unsigned i = 0; i < REQUESTS; i++)
        for (unsigned t = 0; t < TOKENS; t++)
            if (tokens[i][t] != expected[i][t])
                fail_msg("request %u, token %u: %d, expected %d", i, t, tokens[i][t], expected[i][t]);
    walsh_batch_close(&batch);
}

static struct walsh_session *open_packed(unsigned key_bits, unsigned value_bits, uint32_t recent)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = 3 * LONGEST;
    options.kv.type = key_bits == 16 ? WALSH_KV_CACHE_F16 : WALSH_KV_CACHE_TURBO;
    options.kv.key_bits = key_bits == 16 ? 0 : key_bits;
    options.kv.value_bits = key_bits == 16 ? 0 : value_bits;
    options.kv.recent = recent;
    good(walsh_session_open(model, &options, &session, &err), &err);
    return session;
}

static void same_logits(const struct walsh_session *a, const struct walsh_session *b, size_t vocab)
{
    assert_memory_equal(walsh_session_logits(a), walsh_session_logits(b), vocab * sizeof(float));
}

/* Rows over packed caches of other widths and lengths, and a plain one: each has the bits that it has alone, also behind a trim, and a fork
 * goes on as its origin. The caches are packed: they take fewer bytes, and the logits are others. */
static void packed_rows_have_their_bits_alone(void **state)
{
    (void)state;
    enum { ROWS = 5, STEPS = 12 };
    static const struct {
        unsigned key_bits, value_bits, length;
    } rows[ROWS] = {{4, 4, LONGEST}, {4, 4, 1}, {3, 4, 70}, {8, 8, 130}, {16, 16, 33}};
    struct walsh_error err;
    struct walsh_model_info info = {.struct_size = sizeof info};
    if (!context) skip();
    walsh_model_get_info(model, &info);
    for (uint32_t recent = 0; recent <= 48; recent += 48) {
        struct walsh_session *batch[ROWS], *alone[ROWS], *fork = NULL;
        int32_t ids[LONGEST], next[ROWS];
        for (unsigned i = 0; i < ROWS; i++) {
            const uint32_t keep = rows[i].key_bits == 16 ? 0 : recent;
            for (uint32_t t = 0; t < rows[i].length; t++) ids[t] = (int32_t)(3 + (t * 13 + i * 29) % 200);
            batch[i] = open_packed(rows[i].key_bits, rows[i].value_bits, keep);
            alone[i] = open_packed(rows[i].key_bits, rows[i].value_bits, keep);
            good(walsh_session_prompt(batch[i], ids, rows[i].length, &err), &err);
            good(walsh_session_prompt(alone[i], ids, rows[i].length, &err), &err);
            same_logits(batch[i], alone[i], info.vocab);
        }
        for (int32_t step = 0; step < STEPS; step++) {
            for (int32_t i = 0; i < ROWS; i++) {
                if (step == STEPS / 2 && i == 3) {
                    good(walsh_session_trim(batch[i], 40, &err), &err);
                    good(walsh_session_trim(alone[i], 40, &err), &err);
                }
                next[i] = 5 + (step * 17 + i * 3) % 190;
                good(walsh_step(&alone[i], &next[i], 1, &err), &err);
            }
            good(walsh_step(batch, next, ROWS, &err), &err);
            if (fork) good(walsh_step(&fork, next, 1, &err), &err);
            for (unsigned i = 0; i < ROWS; i++) same_logits(batch[i], alone[i], info.vocab);
            if (fork) same_logits(fork, alone[0], info.vocab);
            if (step == 2) good(walsh_session_fork(batch[0], &fork, &err), &err);
        }
        struct walsh_session *plain = open_packed(16, 16, 0);
        for (uint32_t t = 0; t < LONGEST; t++) ids[t] = (int32_t)(3 + t * 13 % 200);
        good(walsh_session_prompt(plain, ids, LONGEST, &err), &err);
        for (int32_t step = 0; step < STEPS; step++) {
            next[0] = 5 + step * 17 % 190;
            good(walsh_step(&plain, next, 1, &err), &err);
        }
        assert_memory_not_equal(walsh_session_logits(plain), walsh_session_logits(alone[0]),
                                info.vocab * sizeof(float));
        if (recent == 0)
            assert_true(walsh_session_cache_bytes(alone[0]) * 3 < walsh_session_cache_bytes(plain));
        walsh_session_close(&plain);
        walsh_session_close(&fork);
        for (unsigned i = 0; i < ROWS; i++) {
            walsh_session_close(&batch[i]);
            walsh_session_close(&alone[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(batches_draw_what_sessions_draw),
                                       cmocka_unit_test(packed_rows_have_their_bits_alone)};
    return cmocka_run_group_tests(tests, open_device, close_device);
}

/* The batch scheduler through walsh.h: random schedules against runs alone, admission, refusals, failures of
 * one request, memory. WALSH_TEST_SEED repeats a schedule. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <malloc.h>

#include "unit/batch_requests.h"
#include "unit/temporary.h"
#include "unit/test_model.h"

#define LORA WALSH_SOURCE_DIR "/models/shakespeare-lora-8m"
/* A sanitizer takes ten times as long. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SCALE 5u
#else
#define SCALE (test_tiny() ? 16u : test_small() ? 8u : 1u)
#endif
#define MOST_REQUESTS 200
#define REQUESTS (MOST_REQUESTS / SCALE)

static struct walsh_context *context;
static struct trial trial;
static struct wanted wanted[MOST_REQUESTS];
static unsigned aborts_after; /* the abort hook says stop at this call; 0: never */

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static bool on_abort(void *user)
{
    (void)user;
    return aborts_after > 0 && --aborts_after == 0;
}

/* The shipped adapter, or one of a small model. */
static enum walsh_status open_lora(const struct walsh_model *model, struct walsh_adapter **adapter,
                                   struct walsh_error *err)
{
    struct walsh_adapter_options named = WALSH_ADAPTER_OPTIONS;
    named.name = "lora";
    return test_small() ? walsh_adapter_random(model, 4, 3, &named, adapter, err)
                        : walsh_adapter_open(model, LORA, &named, adapter, err);
}

/* The model that ends at a full stop (id 16), so that answers end by themselves. */
static const char *model_with_eos(void)
{
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json"};
    const char *directory = temporary_path("bookworm-8m");
    char link[700], target[700];
    if (mkdir(directory, 0700) != 0) return NULL;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(link, sizeof link, "%s/%s", directory, files[i]);
        snprintf(target, sizeof target, "%s/%s", test_model(), files[i]);
        if (symlink(target, link) != 0) return NULL;
    }
    snprintf(link, sizeof link, "%s/generation_config.json", directory);
    FILE *f = fopen(link, "w");
    if (!f) return NULL;
    fputs("{\"eos_token_id\": [0, 16]}", f);
    return fclose(f) == 0 ? directory : NULL;
}

static int open_all(void **state)
{
    if (temporary_make(state) != 0) return -1;
    struct walsh_error err;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    options.hooks.abort = on_abort;
    struct walsh_model *model;
    const char *directory = model_with_eos();
    if (!directory || walsh_context_open(&options, &context, &err) != WALSH_OK ||
        walsh_model_open(context, directory, NULL, &model, &err) != WALSH_OK)
        return -1;
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(model, &info);
    const char *seed = getenv("WALSH_TEST_SEED");
    const uint64_t value = seed ? strtoull(seed, NULL, 10) : 20240601;
    trial = (struct trial){.model = model, .vocab = info.vocab, .context = test_tiny() ? 600 : 1024};
    walsh_random_seed(&trial.random, value);
    print_message("seed %" PRIu64 "\n", value);
    struct walsh_adapter_options named = WALSH_ADAPTER_OPTIONS;
    named.name = "wide";
    return open_lora(model, &trial.adapters[0], &err) == WALSH_OK &&
                   walsh_adapter_random(model, 8, 1, NULL, &trial.adapters[1], &err) == WALSH_OK &&
                   walsh_adapter_random(model, 16, 2, &named, &trial.adapters[2], &err) == WALSH_OK
               ? 0
               : -1;
}

static int close_all(void **state)
{
    for (size_t i = 0; i < REQUESTS; i++) wanted_free(&wanted[i]);
    for (size_t i = 0; i < TRIAL_ADAPTERS; i++) walsh_adapter_close(&trial.adapters[i]);
    struct walsh_model *model = (struct walsh_model *)(uintptr_t)trial.model;
    walsh_model_close(&model);
    walsh_context_close(&context);
    return temporary_remove(state);
}

/* --- random schedules --- */

static size_t heap_in_use(void)
{
    const struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* The same requests through batches of different rows, pieces and memory; each gives what it gives alone, and
 * nothing stays behind. */
static void schedules_give_what_runs_alone_give(void **state)
{
    (void)state;
    static const struct walsh_batch_options batches[] = {
        {sizeof *batches, .max_rows = 12, .context = 1024},
        {sizeof *batches, .max_rows = 5, .prefill_tokens = 37, .context = 1024, .kv_tokens = 2500,
         .max_queued = 9},
        {sizeof *batches, .max_rows = 64, .prefill_tokens = 200, .context = 1024, .kv_tokens = 20000},
        {sizeof *batches, .max_rows = 1, .context = 1024, .max_queued = 200},
    };
    const size_t counts[] = {REQUESTS, 80 / SCALE, 150 / SCALE, 40 / SCALE};
    struct seen seen = {0};
    for (size_t i = 0; i < REQUESTS; i++) {
        const char *bad = wanted_make(&trial, &wanted[i], &batches[0].kv);
        if (!bad && i % 8 == 3) bad = wanted_ask(&trial, &wanted[i], &batches[0].kv);
        if (bad) fail_msg("%s", bad);
    }
    size_t before = 0;
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        const char *bad = try_batch(&trial, &batches[i], wanted, counts[i], i == 1 ? 6 : 20, &seen);
        if (bad) fail_msg("batch %zu: %s", i, bad);
        if (i == 0) before = heap_in_use(); /* now all that is allocated once is */
    }
    const size_t after = heap_in_use();
    print_message(
        "most rows %u, most adapters in a step %u, prefill beside decode %u, steps with a queue %u, busy "
        "%u, cancelled %u queued %u prefilling %u decoding, ends: eos %u stop %u length %u\n",
        seen.most_rows, seen.most_sets, seen.prefill_beside, seen.waited, seen.busy, seen.cancelled[0],
        seen.cancelled[1], seen.cancelled[2], seen.finished[1], seen.finished[2], seen.finished[3]);
    assert_true(seen.most_rows >= 20 / SCALE && seen.most_sets >= 3 && seen.prefill_beside >= 50 / SCALE);
    assert_true(seen.waited >= 50 / SCALE && seen.prompt_logits > 100 / SCALE);
    /* a random model hardly ever ends by itself */
    for (size_t i = test_small() ? 2 : 1; i < 4; i++) assert_true(seen.finished[i] > 0);
    for (size_t i = 0; SCALE == 1 && i < 3; i++) assert_true(seen.cancelled[i] > 0);
    assert_true(SCALE > 1 || seen.busy > 0);
    if (!(after < before + 100000)) fail_msg("%zu bytes in use before, %zu after", before, after);
}

/* With packed caches the same, whether the newest tokens are there in f16 too or not. */
static void packed_caches_too(void **state)
{
    (void)state;
    enum { COUNT = 40 };
    static struct wanted packed[COUNT];
    const size_t count = test_cases(COUNT, test_tiny() ? 8 : 12);
    for (uint32_t recent = 0; recent <= 40; recent += 40) {
        struct seen seen = {0};
        struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
        options.max_rows = 9;
        options.prefill_tokens = 150;
        options.kv.type = WALSH_KV_CACHE_TURBO;
        options.kv.key_bits = 4;
        options.kv.value_bits = 3;
        options.kv.recent = recent;
        options.kv.skip = recent == 0;
        for (size_t i = 0; i < count; i++) {
            const char *bad = wanted_make(&trial, &packed[i], &options.kv);
            if (!bad && i % 8 == 3) bad = wanted_ask(&trial, &packed[i], &options.kv);
            if (bad) fail_msg("%s", bad);
        }
        const char *bad = try_batch(&trial, &options, packed, count, 20, &seen);
        if (bad) fail_msg("%u recent tokens: %s", recent, bad);
        assert_true(seen.most_rows >= 5 && seen.prefill_beside > 0 && seen.prompt_logits > 0);
        for (size_t i = 0; i < count; i++) wanted_free(&packed[i]);
    }
}

/* --- one at a time --- */

static struct walsh_batch *open_batch(uint32_t rows, uint32_t prefill_tokens, uint64_t kv_tokens,
                                      uint32_t queued)
{
    struct walsh_error err;
    struct walsh_batch *batch;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    options.max_rows = rows;
    options.prefill_tokens = prefill_tokens;
    options.kv_tokens = kv_tokens;
    options.max_queued = queued;
    good(walsh_batch_open(trial.model, &options, &batch, &err), &err);
    return batch;
}

static const int32_t *some_ids(void)
{
    static int32_t ids[1024];
    for (int32_t i = 0; i < 1024; i++) ids[i] = 100 + i * 7 % 8000;
    return ids;
}

static struct walsh_batch_request greedy(size_t count, uint32_t max_tokens)
{
    struct walsh_batch_request request = WALSH_BATCH_REQUEST;
    request.ids = some_ids();
    request.count = count;
    request.max_tokens = max_tokens;
    request.ignore_eos = true;
    return request;
}

static uint64_t submit(struct walsh_batch *batch, size_t count, uint32_t max_tokens)
{
    struct walsh_error err;
    uint64_t id;
    const struct walsh_batch_request request = greedy(count, max_tokens);
    good(walsh_batch_submit(batch, &request, &id, &err), &err);
    return id;
}

#define ROOM 16
static struct walsh_batch_event events[ROOM];

static size_t step(struct walsh_batch *batch)
{
    struct walsh_error err;
    size_t count;
    good(walsh_batch_step(batch, events, ROOM, &count, &err), &err);
    return count;
}

static struct walsh_batch_request_info info_of(const struct walsh_batch *batch, uint64_t id)
{
    struct walsh_batch_request_info info = {.struct_size = sizeof info};
    assert_true(walsh_batch_get_request(batch, id, &info));
    return info;
}

static void check_metrics(const struct walsh_batch *batch, uint32_t queued, uint32_t prefilling,
                          uint32_t decoding, uint64_t kv_tokens_used)
{
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    walsh_batch_get_metrics(batch, &m);
    assert_int_equal(m.queued, queued);
    assert_int_equal(m.prefilling, prefilling);
    assert_int_equal(m.decoding, decoding);
    assert_int_equal(m.kv_tokens_used, kv_tokens_used);
}

/* Memory for four pages of 256: exactly full is admitted, one more token is not; nobody overtakes. */
static void memory_is_given_in_the_order_of_arrival(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_batch *batch = open_batch(3, 0, 4 * 256, 0);
    const uint64_t a = submit(batch, 500, 12); /* exactly two pages */
    const uint64_t b = submit(batch, 5, 252);  /* 257 tokens: two */
    check_metrics(batch, 0, 2, 0, 4 * 256);
    const uint64_t c = submit(batch, 500, 13); /* 513 tokens: three */
    const uint64_t d = submit(batch, 1, 1);    /* would fit before c */
    check_metrics(batch, 2, 2, 0, 4 * 256);
    assert_int_equal(info_of(batch, c).queue_position, 0);
    assert_int_equal(info_of(batch, d).queue_position, 1);
    assert_int_equal(info_of(batch, d).state, WALSH_REQUEST_QUEUED);
    assert_int_equal(info_of(batch, c).kv_tokens, 3 * 256);
    assert_int_equal(step(batch), 2);
    check_metrics(batch, 2, 0, 2, 4 * 256);
    good(walsh_batch_cancel(batch, a, &err), &err); /* two pages free: c does not fit, d waits behind it */
    check_metrics(batch, 2, 0, 1, 2 * 256);
    good(walsh_batch_cancel(batch, b, &err), &err);
    check_metrics(batch, 0, 2, 0, 4 * 256);
    assert_int_equal(walsh_batch_cancel(batch, b, &err), WALSH_E_NOT_FOUND);
    assert_string_equal(err.message, "no request 2 waits or runs");
    assert_int_equal(step(batch), 2);
    assert_int_equal(events[1].request, d);
    assert_int_equal(events[1].finish, WALSH_FINISH_LENGTH);
    assert_int_equal(info_of(batch, d).state, WALSH_REQUEST_ENDED);
    assert_non_null(walsh_batch_logits(batch, d));
    check_metrics(batch, 0, 0, 1, 3 * 256);
    assert_int_equal(step(batch), 1);
    assert_null(walsh_batch_logits(batch, d)); /* forgotten */
    struct walsh_batch_request_info info = {.struct_size = sizeof info};
    assert_false(walsh_batch_get_request(batch, d, &info));
    assert_int_equal(walsh_batch_cancel(batch, d, &err), WALSH_E_NOT_FOUND);
    /* whoever waits behind one that is cancelled moves up */
    submit(batch, 1000, 24);
    const uint64_t f = submit(batch, 1, 1);
    check_metrics(batch, 2, 0, 1, 3 * 256);
    good(walsh_batch_cancel(batch, f - 1, &err), &err);
    check_metrics(batch, 0, 1, 1, 4 * 256);
    walsh_batch_close(&batch); /* with requests in it */
    assert_null(batch);
}

static void requests_that_can_never_run_are_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_batch *batch = open_batch(1, 0, 512, 2), *none;
    uint64_t id = 0;
    struct walsh_batch_request r = greedy(1000, 25);
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message,
                        "prompt of 1000 tokens and an answer of up to 25: the context holds 1024");
    r = greedy(500, 13);
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_CAPACITY);
    assert_string_equal(
        err.message, "prompt of 500 tokens and an answer of up to 13 take a cache of 768 tokens: the batch "
                     "has 512 for all");
    r = greedy(1024, 0);
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "prompt of 1024 tokens: the context holds 1024 with the answer");
    r = greedy(0, 1);
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a prompt has at least one token");
    r = greedy(3, 1);
    r.ids = (const int32_t[]){5, 8192, 6};
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "token 1 is id 8192, the vocabulary has ids 0 to 8191");
    r = greedy(3, 1);
    struct walsh_sampler_options sampling = WALSH_SAMPLER_OPTIONS;
    sampling.top_p = 2;
    r.sampling = &sampling;
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "top_p is 2, expected more than 0, at most 1");
    r = greedy(3, 1);
    const struct walsh_adapter_use twice[2] = {{trial.adapters[0], 1}, {trial.adapters[0], 1}};
    r.adapters = twice;
    r.adapter_count = 2;
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_EXISTS);
    /* one runs, two wait, the fourth is one too many */
    for (int i = 0; i < 3; i++) submit(batch, 3, 4);
    check_metrics(batch, 2, 1, 0, 256);
    r = greedy(3, 1);
    assert_int_equal(walsh_batch_submit(batch, &r, &id, &err), WALSH_E_BUSY);
    assert_string_equal(err.message, "2 requests wait, which is all that the batch queues");
    assert_int_equal(id, 0);
    size_t count = 7;
    assert_int_equal(walsh_batch_step(batch, events, 0, &count, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "room for 0 events, expected as many as the batch has rows: 1");
    assert_int_equal(count, 0);
    walsh_batch_close(&batch);

    struct walsh_batch_options o = WALSH_BATCH_OPTIONS;
    o.max_rows = 513;
    assert_int_equal(walsh_batch_open(trial.model, &o, &none, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a batch of 513 rows, expected 1 to 512");
    assert_null(none);
    o = (struct walsh_batch_options)WALSH_BATCH_OPTIONS;
    o.prefill_tokens = 1000;
    assert_int_equal(walsh_batch_open(trial.model, &o, &none, &err), WALSH_E_ARGUMENT);
    o = (struct walsh_batch_options)WALSH_BATCH_OPTIONS;
    o.context = 1025;
    assert_int_equal(walsh_batch_open(trial.model, &o, &none, &err), WALSH_E_ARGUMENT);
    o = (struct walsh_batch_options)WALSH_BATCH_OPTIONS;
    o.kv_tokens = UINT64_MAX;
    assert_int_equal(walsh_batch_open(trial.model, &o, &none, &err), WALSH_E_MEMORY);
    o.kv_tokens = 255;
    assert_int_equal(walsh_batch_open(trial.model, &o, &none, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "caches of 255 tokens, expected 256 (a page) or more");
}

/* Those that decode get a token in every step, however long the prompt beside them; a short prompt overtakes
 * the rest of a long one. */
static void a_long_prompt_holds_up_nobody(void **state)
{
    (void)state;
    struct walsh_batch *batch = open_batch(4, 100, 0, 0);
    const uint64_t a = submit(batch, 3, 100);
    assert_int_equal(step(batch), 1);
    const uint64_t b = submit(batch, 900, 10);
    for (uint32_t i = 1; i <= 6; i++) { /* across the end of a chunk */
        assert_int_equal(step(batch), 1);
        assert_int_equal(events[0].request, a);
        assert_int_equal(events[0].tokens, 1 + i);
        assert_int_equal(info_of(batch, b).prompt_read, 100 * i);
        assert_int_equal(info_of(batch, b).state, WALSH_REQUEST_PREFILLING);
    }
    const uint64_t c = submit(batch, 30, 1);
    assert_int_equal(step(batch), 2);
    assert_int_equal(events[1].request, c);
    assert_int_equal(info_of(batch, b).prompt_read, 670);
    for (uint32_t i = 0; i < 2; i++) assert_int_equal(step(batch), 1);
    assert_int_equal(info_of(batch, b).prompt_read, 870);
    assert_null(walsh_batch_logits(batch, b));
    assert_int_equal(step(batch), 2); /* the first token comes in the step that reads the end */
    assert_int_equal(info_of(batch, b).tokens, 1);
    assert_non_null(walsh_batch_logits(batch, b));
    walsh_batch_close(&batch);
}

/* Logits that are no numbers end their request alone. */
static void a_failure_ends_one_request(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_batch *batch = open_batch(3, 0, 0, 0);
    struct walsh_batch_request r = greedy(5, 9);
    const struct walsh_adapter_use huge = {trial.adapters[0], 3e38f};
    int mark;
    uint64_t id;
    r.adapters = &huge;
    r.adapter_count = 1;
    r.user = &mark;
    good(walsh_batch_submit(batch, &r, &id, &err), &err);
    const uint64_t other = submit(batch, 5, 3);
    assert_int_equal(step(batch), 2);
    assert_int_equal(events[0].request, id);
    assert_ptr_equal(events[0].user, &mark);
    assert_int_equal(events[0].finish, WALSH_FINISH_ERROR);
    assert_int_equal(events[0].status, WALSH_E_INTERNAL);
    assert_int_equal(events[0].token, -1);
    assert_non_null(strstr(events[0].message, "the logit of token "));
    assert_null(walsh_batch_logits(batch, id));
    assert_int_equal(events[1].request, other);
    assert_int_equal(events[1].status, WALSH_OK);
    assert_null(events[1].message);
    check_metrics(batch, 0, 0, 1, 256);
    assert_int_equal(step(batch), 1);
    assert_int_equal(step(batch), 1);
    assert_int_equal(step(batch), 0);
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    walsh_batch_get_metrics(batch, &m);
    assert_int_equal(m.failed, 1);
    assert_int_equal(m.finished, 1);
    assert_int_equal(m.prompt_tokens, 10);
    assert_int_equal(m.generated_tokens, 3);
    assert_int_equal(m.steps, 3);
    walsh_batch_close(&batch);
}

/* An abort loses nothing: the step after it goes on. */
static void an_abort_loses_nothing(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    int32_t expected[12], got[12];
    for (unsigned turn = 0; turn < 2; turn++) {
        struct walsh_batch *batch = open_batch(2, 200, 0, 0);
        submit(batch, 3, 12);
        submit(batch, 700, 5);
        size_t n = 0, aborts = 0;
        while (n < 12) {
            size_t count = 5;
            aborts_after = turn && aborts < 9 ? (unsigned)(1 + aborts % 3) : 0;
            const enum walsh_status status = walsh_batch_step(batch, events, ROOM, &count, &err);
            if (status == WALSH_E_ABORTED) {
                assert_int_equal(count, 0);
                aborts++;
                continue;
            }
            good(status, &err);
            for (size_t i = 0; i < count; i++)
                if (events[i].request == 1) (turn ? got : expected)[n++] = events[i].token;
        }
        aborts_after = 0;
        assert_true(turn == 0 || aborts >= 5);
        walsh_batch_close(&batch);
    }
    assert_memory_equal(expected, got, sizeof got);
}

/* A batch keeps the adapters of its requests. */
static void adapters_may_be_closed_behind_submit(void **state)
{
    (void)state;
    struct walsh_error err;
    uint64_t id;
    int32_t tokens[2][6];
    for (unsigned turn = 0; turn < 2; turn++) {
        struct walsh_batch *batch = open_batch(1, 0, 0, 0);
        struct walsh_adapter *adapter;
        good(open_lora(trial.model, &adapter, &err), &err);
        const struct walsh_adapter_use use = {adapter, 1};
        struct walsh_batch_request r = greedy(9, 6);
        r.adapters = &use;
        r.adapter_count = 1;
        good(walsh_batch_submit(batch, &r, &id, &err), &err);
        good(walsh_batch_submit(batch, &r, &id, &err), &err); /* this one waits */
        if (turn) walsh_adapter_close(&adapter);
        for (unsigned i = 0; i < 12; i++) {
            assert_int_equal(step(batch), 1);
            tokens[turn][i % 6] = events[0].token;
        }
        walsh_adapter_close(&adapter);
        walsh_batch_close(&batch);
    }
    assert_memory_equal(tokens[0], tokens[1], sizeof tokens[0]);
}

/* With a prefix store the same, whether it has nothing yet or much; requests with another salt find nothing.
 */
static void a_prefix_store_changes_nothing(void **state)
{
    (void)state;
    struct walsh_error err;
    enum { COUNT = 20 };
    static struct wanted some[COUNT];
    const size_t count = test_cases(COUNT, 6);
    struct walsh_prefix_store *store;
    good(walsh_prefix_store_open(context, temporary_path("store"), NULL, &store, &err), &err);
    for (unsigned packed = 0; packed < 2; packed++) {
        struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
        options.max_rows = 6;
        options.prefill_tokens = 100;
        options.prefix_store = store;
        options.kv.type = packed ? WALSH_KV_CACHE_TURBO : WALSH_KV_CACHE_AUTO;
        for (size_t i = 0; i < count; i++) {
            const char *bad = wanted_make(&trial, &some[i], &options.kv);
            if (bad) fail_msg("%s", bad);
        }
        uint64_t prompt_tokens = 0;
        for (size_t i = 0; i < count; i++) prompt_tokens += some[i].count;
        for (unsigned turn = 0; turn < 2; turn++) {
            struct seen seen = {0};
            const char *bad = try_batch(&trial, &options, some, count, 0, &seen);
            if (bad) fail_msg("turn %u: %s", turn, bad);
            assert_int_equal(seen.prefix_tokens, turn ? prompt_tokens : 0);
        }
        for (size_t i = 0; i < count; i++) wanted_free(&some[i]);
    }
    struct walsh_batch *batch;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    options.prefix_store = store;
    options.max_rows = ROOM;
    good(walsh_batch_open(trial.model, &options, &batch, &err), &err);
    struct walsh_batch_request r = greedy(600, 1);
    static const struct {
        const char *salt;
        uint64_t found; /* by it and those before it */
    } cases[] = {{"a", 0}, {"a", 600}, {"b", 600}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct walsh_batch_metrics m = {.struct_size = sizeof m};
        uint64_t id;
        r.salt = cases[i].salt;
        r.salt_size = 1;
        good(walsh_batch_submit(batch, &r, &id, &err), &err);
        for (size_t drawn = 0; drawn == 0;) drawn = step(batch);
        walsh_batch_get_metrics(batch, &m);
        assert_int_equal(m.prefix_tokens, cases[i].found);
    }
    walsh_batch_close(&batch);
    walsh_prefix_store_close(&store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules_give_what_runs_alone_give),
        cmocka_unit_test(packed_caches_too),
        cmocka_unit_test(memory_is_given_in_the_order_of_arrival),
        cmocka_unit_test(requests_that_can_never_run_are_refused),
        cmocka_unit_test(a_long_prompt_holds_up_nobody),
        cmocka_unit_test(a_failure_ends_one_request),
        cmocka_unit_test(an_abort_loses_nothing),
        cmocka_unit_test(adapters_may_be_closed_behind_submit),
        cmocka_unit_test(a_prefix_store_changes_nothing),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}

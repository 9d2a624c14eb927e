/* Pieces of several prompts as rows of one forward call: each gives its own cache and logits, bit for bit,
 * whatever stands beside it. WALSH_TEST_SEED repeats a run. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "kernels/cpu/cpu_ops.h"
#include "runtime/batch.h"
#include "unit/checkpoint_files.h"
#include "unit/temporary.h"

#define FIXTURES WALSH_SOURCE_DIR "/tests/fixtures/golden/"
#define VOCAB 256
#define SESSIONS 9
#define MOST_ROWS 40
#define ADAPTERS 3 /* the last one is of the head alone */
#define HEAD_RANK 3

static struct walsh_pool *pool;
static struct walsh_queue queue;
static struct walsh_ops ops; /* the queue's, which count calls */
static unsigned calls;       /* forward calls, and rows of the last one */
static size_t rows_of_call;
static struct walsh_model_graph *graph;
static struct walsh_runner *runner;
static struct walsh_adapter *adapters[ADAPTERS];
static struct walsh_random random_state;

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static uint32_t below(uint32_t n)
{
    return (uint32_t)(walsh_random_u64(&random_state) % n);
}

static void count_embed(const struct walsh_queue *q, float *out, const struct walsh_weights *table,
                        const int32_t *ids, size_t rows)
{
    calls++;
    rows_of_call = rows;
    walsh_cpu_ops.embed(q, out, table, ids, rows);
}

static void open_head_adapter(struct walsh_adapter **out)
{
    struct walsh_error err = {0};
    const struct walsh_adapter_loading options = {.use_mmap = true, .storage = WALSH_FORMAT_BF16};
    const char *directory = temporary_path("head");
    char path[700];
    const uint64_t hidden = graph->config.hidden, elements = HEAD_RANK * (hidden + VOCAB);
    float *values;
    good(walsh_alloc(elements, sizeof *values, "an adapter", &values, &err), &err);
    for (size_t i = 0; i < elements; i++) values[i] = (float)walsh_random_normal(&random_state);
    mkdir(directory, 0700);
    snprintf(path, sizeof path, "%s/adapter_config.json", directory);
    put_text(path,
             "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 6, \"target_modules\": [\"lm_head\"]}");
    const struct planned tensors[] = {
        {"base_model.model.lm_head.lora_A.weight", WALSH_F32, 2, {HEAD_RANK, hidden}, values},
        {"base_model.model.lm_head.lora_B.weight",
         WALSH_F32,
         2,
         {VOCAB, HEAD_RANK},
         values + HEAD_RANK * hidden}};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", directory);
    put_tensors(path, tensors, 2);
    walsh_free(values);
    good(walsh_adapter_load("head", directory, graph, &options, NULL, out, &err), &err);
}

static void open_model(const char *path)
{
    struct walsh_error err = {0};
    const struct walsh_load_options options = {
        .use_mmap = true, .rotated = WALSH_ACTIVATION_INT8, .dense = WALSH_ACTIVATION_BF16};
    good(walsh_graph_open(path, &options, &queue, &graph, &err), &err);
    good(walsh_runner_open(graph, &queue, NULL, &runner, &err), &err);
    open_head_adapter(&adapters[2]);
    for (uint32_t i = 0; i < 2; i++)
        good(walsh_adapter_synthesize(i ? "second" : "first", 4 + 9 * i, 7 + i, graph, WALSH_FORMAT_BF16,
                                      &adapters[i], &err),
             &err);
}

static void close_model(void)
{
    for (uint32_t i = 0; i < ADAPTERS; i++) walsh_adapter_release(&adapters[i]);
    walsh_runner_close(&runner);
    walsh_graph_close(&graph);
}

/* One of the sequences: alone[i] and together[i] get the same. */
struct sequence {
    uint32_t capacity, before, count; /* tokens that are in the cache already, and of the piece */
    bool last;
    unsigned adapters; /* bits */
    int32_t ids[2 * MOST_ROWS];
};

static struct walsh_session *open_sequence(const struct sequence *q, enum walsh_kv_type type)
{
    struct walsh_error err = {0};
    struct walsh_session *s;
    const struct walsh_kv_policy policy = {.type = type};
    struct walsh_adapter_choice choices[ADAPTERS];
    size_t n = 0;
    for (unsigned i = 0; i < ADAPTERS; i++)
        if (q->adapters >> i & 1) choices[n++] = (struct walsh_adapter_choice){adapters[i], i < 2 ? 30 : 1};
    good(walsh_runtime_session_open(runner, q->capacity, &policy, &s, &err), &err);
    good(walsh_runtime_set_adapters(s, choices, n, &err), &err);
    if (q->before) good(walsh_runtime_prompt(s, q->ids, q->before, NULL, NULL, &err), &err);
    return s;
}

static void same_sessions(const struct walsh_session *a, const struct walsh_session *b)
{
    struct walsh_error err = {0};
    uint8_t *of_a, *of_b;
    assert_int_equal(a->kv->length, b->kv->length);
    assert_int_equal(a->has_logits, b->has_logits);
    if (a->has_logits) assert_memory_equal(a->logits, b->logits, VOCAB * sizeof(float));
    const size_t bytes = walsh_kv_export_bytes(a->kv, a->kv->length);
    good(walsh_alloc_zero(2, bytes, "two caches", &of_a, &err), &err);
    of_b = of_a + bytes;
    good(walsh_kv_export(a->kv, 0, a->kv->length, of_a, &err), &err);
    good(walsh_kv_export(b->kv, 0, b->kv->length, of_b, &err), &err);
    assert_memory_equal(of_a, of_b, bytes);
    walsh_free(of_a);
}

static void make_sequences(struct sequence *all)
{
    static const unsigned char sets[SESSIONS] = {0, 4, 1, 2, 3, 4, 0, 1, 6}; /* equal ones stand apart */
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct sequence *q = &all[i];
        /* longrope has other angles for long sequences */
        *q = (struct sequence){.capacity = i % 3 == 1 ? 30 : 128, .last = below(3) > 0, .adapters = sets[i]};
        q->before = i % 2 ? 1 + below(12) : 0;
        q->count = 1 + below(i % 3 == 1 ? 16 : MOST_ROWS);
        for (uint32_t j = 0; j < q->before + q->count; j++) q->ids[j] = (int32_t)below(VOCAB);
    }
}

static void read_together(enum walsh_kv_type type)
{
    struct walsh_error err = {0};
    struct sequence all[SESSIONS];
    struct walsh_session *alone[SESSIONS], *together[SESSIONS];
    struct walsh_prompt_piece pieces[SESSIONS];
    float *hidden;
    int32_t next[SESSIONS];
    size_t rows = 0;
    good(walsh_alloc(MOST_ROWS, graph->config.hidden * sizeof *hidden, "states", &hidden, &err), &err);
    const struct walsh_prompt_outputs no_logits = {.hidden = hidden};
    make_sequences(all);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        const struct sequence *q = &all[i];
        alone[i] = open_sequence(q, type);
        together[i] = open_sequence(q, type);
        good(walsh_runtime_prompt(alone[i], q->ids + q->before, q->count, q->last ? NULL : &no_logits, NULL,
                                  &err),
             &err);
        good(walsh_kv_reserve(together[i]->kv, q->before + q->count, &err), &err);
        pieces[i] =
            (struct walsh_prompt_piece){.ids = q->ids + q->before, .count = q->count, .last = q->last};
        rows += q->count;
        next[i] = (int32_t)below(VOCAB);
    }
    calls = 0;
    walsh_runtime_prompts(together, pieces, SESSIONS);
    assert_int_equal(calls, 1);
    assert_int_equal(rows_of_call, rows);
    for (uint32_t i = 0; i < SESSIONS; i++) same_sessions(alone[i], together[i]);
    good(walsh_runtime_step(alone, next, SESSIONS, &err), &err);
    good(walsh_runtime_step(together, next, SESSIONS, &err), &err);
    for (uint32_t i = 0; i < SESSIONS; i++) {
        same_sessions(alone[i], together[i]);
        walsh_runtime_session_close(&alone[i]);
        walsh_runtime_session_close(&together[i]);
    }
    walsh_free(hidden);
}

static void pieces_read_together_are_those_read_alone(void **state)
{
    (void)state;
    /* q and k norms; convolutions; windows, sinks and experts; two tables of angles; soft caps; experts */
    static const char *const models[] = {FIXTURES "tiny-qwen3",    FIXTURES "tiny-lfm2",
                                         FIXTURES "tiny-gpt-oss",  FIXTURES "tiny-phi3-longrope",
                                         FIXTURES "tiny-gemma2",   FIXTURES "tiny-gpt-oss-mxfp4",
                                         FIXTURES "tiny-qwen3-moe"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        open_model(models[m]);
        assert_int_equal(graph->config.vocab, VOCAB);
        for (unsigned round = 0; round < 6; round++) read_together(round % 2 ? WALSH_KV_F32 : WALSH_KV_F16);
        close_model();
    }
}

/* What a step of the batch does with prompts that come together, and with those that must be alone. */
static void a_step_reads_prompts_in_one_call(void **state)
{
    (void)state;
    open_model(FIXTURES "tiny-qwen3");
    for (unsigned packed = 0; packed < 2; packed++) {
        struct walsh_error err = {0};
        struct walsh_batch *batch;
        int32_t ids[100];
        uint64_t id;
        size_t count;
        const struct walsh_batch_limits limits = {
            .rows = 8,
            .prefill_tokens = 100,
            .context = 128,
            .kv_tokens = 8192,
            .queued = 8,
            .kv = {.type = packed ? WALSH_KV_TURBO : WALSH_KV_F16, .key_bits = 4, .value_bits = 4}};
        for (uint32_t i = 0; i < 100; i++) ids[i] = (int32_t)below(VOCAB);
        good(walsh_runtime_batch_open(runner, &limits, &batch, &err), &err);
        for (uint32_t i = 0; i < 4; i++) {
            const struct walsh_adapter_choice choice = {adapters[i % 2], 1};
            const struct walsh_batch_job job = {.ids = ids,
                                                .count = 30,
                                                .tokens = 9,
                                                .sampling = {.top_p = 1, .repeat_penalty = 1},
                                                .adapters = &choice,
                                                .adapter_count = i > 0,
                                                .ignore_eos = true};
            good(walsh_runtime_batch_submit(batch, &job, &id, &err), &err);
        }
        calls = 0;
        good(walsh_runtime_batch_step(batch, &count, &err), &err);
        assert_int_equal(count, 3);
        assert_int_equal(calls, packed ? 3 : 1);
        assert_int_equal(rows_of_call, packed ? 30 : 100); /* 30, 30, 30 and 10 of the last */
        good(walsh_runtime_batch_step(batch, &count, &err), &err);
        assert_int_equal(count, 4);
        assert_int_equal(calls, packed ? 5 : 3);
        walsh_runtime_batch_close(&batch);
    }
    close_model();
}

/* What a step did that read four prompts beside a store. */
struct reading {
    size_t calls; /* forward calls */
    uint64_t hits, tokens;
};

/* The first counts[i] of the same tokens, salts[i], and adapter adapter_of[i] or, from ADAPTERS on, none. */
static struct reading read_four(const uint32_t *counts, const char *const *salts, const uint32_t *adapter_of)
{
    struct walsh_error err = {0};
    struct walsh_batch *batch;
    struct walsh_prefix_store *store;
    int32_t ids[40];
    uint64_t id;
    size_t count;
    open_model(FIXTURES "tiny-qwen3");
    good(walsh_store_open(temporary_path("store"), (uint64_t)1 << 26, NULL, &store, &err), &err);
    const struct walsh_batch_limits limits = {
        .rows = 8, .prefill_tokens = 200, .context = 128, .kv_tokens = 8192, .queued = 8, .store = store};
    good(walsh_runtime_batch_open(runner, &limits, &batch, &err), &err);
    for (uint32_t i = 0; i < 40; i++) ids[i] = (int32_t)below(VOCAB);
    for (uint32_t i = 0; i < 4; i++) {
        const struct walsh_adapter_choice choice = {adapters[adapter_of[i] % ADAPTERS], 1};
        const struct walsh_batch_job job = {.ids = ids,
                                            .count = counts[i],
                                            .tokens = 9,
                                            .sampling = {.top_p = 1, .repeat_penalty = 1},
                                            .ignore_eos = true,
                                            .salt = salts[i],
                                            .salt_size = strlen(salts[i]),
                                            .adapters = &choice,
                                            .adapter_count = adapter_of[i] < ADAPTERS};
        good(walsh_runtime_batch_submit(batch, &job, &id, &err), &err);
    }
    calls = 0;
    good(walsh_runtime_batch_step(batch, &count, &err), &err);
    assert_int_equal(count, 4);
    const struct reading got = {calls, batch->totals.prefix_hits, batch->totals.prefix_tokens};
    walsh_runtime_batch_close(&batch);
    walsh_store_close(&store);
    close_model();
    return got;
}

static const char *const one_salt[] = {"a", "a", "a", "a"};
static const uint32_t no_adapter[] = {ADAPTERS, ADAPTERS, ADAPTERS, ADAPTERS};

/* Prompts that come together and are equal wait for the one of them that is read and stored. */
static void equal_prompts_share_what_the_first_stores(void **state)
{
    (void)state;
    static const uint32_t counts[] = {40, 40, 40, 39};
    const struct reading got = read_four(counts, one_salt, no_adapter);
    assert_int_equal(got.hits, 2);
    assert_int_equal(got.tokens, 80);
    assert_int_equal(got.calls, 2); /* the first, and the last: another prompt, though it begins as they do */
}

/* Who shares nothing of the store waits for nobody, and nobody can tell that an equal prompt was there. */
static void equal_prompts_of_others_do_not_wait(void **state)
{
    (void)state;
    static const uint32_t counts[] = {40, 40, 40, 40}, mixed[] = {0, 1, ADAPTERS, 2};
    static const char *const own[] = {"a", "b", "", "ab"};
    const struct reading salted = read_four(counts, own, no_adapter);
    const struct reading adapted = read_four(counts, one_salt, mixed);
    assert_int_equal(salted.hits + adapted.hits, 0);
    assert_int_equal(salted.calls, 1);
    assert_int_equal(adapted.calls, 1);
}

static int open_queue(void **state)
{
    if (temporary_make(state) != 0) return -1;
    struct walsh_error err = {0};
    const char *seed = getenv("WALSH_TEST_SEED");
    const uint64_t value = seed ? strtoull(seed, NULL, 10) : 20261122;
    print_message("seed %" PRIu64 "\n", value);
    walsh_random_seed(&random_state, value);
    good(walsh_pool_open(3, &pool, &err), &err);
    good(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &err), &err);
    ops = walsh_cpu_ops;
    ops.embed = count_embed;
    queue.ops = &ops;
    return 0;
}

static int close_queue(void **state)
{
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_read_together_are_those_read_alone),
        cmocka_unit_test(a_step_reads_prompts_in_one_call),
        cmocka_unit_test(equal_prompts_share_what_the_first_stores),
        cmocka_unit_test(equal_prompts_of_others_do_not_wait),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

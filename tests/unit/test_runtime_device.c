/* What the runtime asks of a device, seen by one that is the host: its memory is host memory, its ops are the CPU's, done when they are
 * enqueued. Batches draw the tokens that they draw on the CPU, in one wait a step, and no logits come back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "kernels/device.h"
#include "runtime/batch.h"
#include "unit/test_model.h"

enum { REQUESTS = 5, TOKENS = 24, PROMPT = 9, ADAPTERS = 2 };

static struct walsh_queue queue, device;
static struct walsh_ops ops;
static struct walsh_model_graph *graph;
static struct walsh_adapter *adapters[ADAPTERS];
static struct {
    size_t draws, rows, waits, records, largest; /* largest: bytes that came back at once */
} seen;

static enum walsh_status host_alloc(const struct walsh_queue *q, size_t bytes, const char *what, void *out,
                                    struct walsh_error *err)
{
    (void)q;
    return walsh_alloc(bytes, 1, what, out, err);
}
static void host_free(const struct walsh_queue *q, void *p)
{
    (void)q;
    walsh_free(p);
}
static enum walsh_status host_upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                     struct walsh_error *err)
{
    (void)q;
    (void)err;
    if (bytes > 0) memcpy(to, from, bytes);
    return WALSH_OK;
}
static enum walsh_status host_synchronize(const struct walsh_queue *q, struct walsh_error *err)
{
    (void)q;
    (void)err;
    seen.waits++;
    return WALSH_OK;
}
static enum walsh_status host_download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                       struct walsh_error *err)
{
    if (bytes > 0) memcpy(to, from, bytes);
    seen.largest = walsh_max(seen.largest, bytes);
    return host_synchronize(q, err);
}
static void host_fill(const struct walsh_queue *q, void *p, int byte, size_t bytes)
{
    (void)q;
    memset(p, byte, bytes);
}
static void host_copy(const struct walsh_queue *q, void *to, const void *from, size_t bytes)
{
    (void)q;
    memmove(to, from, bytes);
}
/* Done while it is recorded, so that there is nothing to keep: every step is recorded anew. */
static enum walsh_status host_record(const struct walsh_queue *q, struct walsh_error *err)
{
    (void)q;
    (void)err;
    seen.records++;
    return WALSH_OK;
}
static enum walsh_status host_recorded(const struct walsh_queue *q, void **out, struct walsh_error *err)
{
    (void)q;
    (void)err;
    *out = NULL;
    return WALSH_OK;
}
static enum walsh_status host_replay(const struct walsh_queue *q, void *recording, struct walsh_error *err)
{
    (void)q;
    (void)err;
    assert_null(recording);
    return WALSH_OK;
}
static void host_forget(const struct walsh_queue *q, void *recording)
{
    (void)q;
    assert_null(recording);
}
static void host_figures(const struct walsh_queue *q, size_t *available, size_t *total)
{
    (void)q;
    *available = *total = (size_t)1 << 40;
}
static const struct walsh_memory memory = {.alloc = host_alloc,
                                           .free = host_free,
                                           .upload = host_upload,
                                           .download = host_download,
                                           .fill = host_fill,
                                           .copy = host_copy,
                                           .synchronize = host_synchronize,
                                           .record = host_record,
                                           .recorded = host_recorded,
                                           .replay = host_replay,
                                           .forget = host_forget,
                                           .figures = host_figures};

static void draw(const struct walsh_queue *q, int32_t *ids, float *logits, uint32_t vocab,
                 const struct walsh_draws *draws)
{
    struct walsh_error err;
    float *edited;
    int32_t *room;
    (void)q;
    assert_int_equal(walsh_alloc(vocab, sizeof *edited, "a draw", &edited, &err), WALSH_OK);
    assert_int_equal(walsh_alloc(vocab, 2 * sizeof *room, "a draw", &room, &err), WALSH_OK);
    for (size_t i = 0; i < draws->count; i++) {
        const struct walsh_draw *d = &draws->rows[i];
        assert_true(draws->sampled || d->greedy);
        assert_true(draws->edited || d->edit_count == 0);
        memcpy(edited, logits + i * vocab, vocab * sizeof *edited);
        ids[i] = walsh_draw_reference(d, edited, vocab, room);
    }
    seen.draws++;
    seen.rows += draws->count;
    walsh_free(edited);
    walsh_free(room);
}

static int open_model(void **state)
{
    (void)state;
    struct walsh_error err;
    const struct walsh_load_options options = {.use_mmap = true};
    if (walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err) != WALSH_OK ||
        walsh_graph_open(test_model(), &options, &queue, &graph, &err) != WALSH_OK)
        return -1;
    for (uint32_t i = 0; i < ADAPTERS; i++)
        if (walsh_adapter_synthesize(i ? "second" : "first", 4 + 9 * i, 7 + i, graph, WALSH_FORMAT_BF16,
                                     &adapters[i], &err) != WALSH_OK)
            return -1;
    ops = *queue.ops;
    ops.draw = draw;
    ops.fused = NULL;
    device = queue;
    device.ops = &ops;
    device.memory = &memory;
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < ADAPTERS; i++) walsh_adapter_release(&adapters[i]);
    walsh_graph_close(&graph);
    walsh_queue_close(&queue);
    return 0;
}

static const struct walsh_sampling sampling[REQUESTS] = {
    {.top_p = 1, .repeat_penalty = 1},
    {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 5},
    {.temperature = 0.8, .top_p = 0.9, .top_k = 50, .repeat_penalty = 1.2, .repeat_last = 16, .seed = 6},
    {.temperature = 1.5, .top_p = 1, .min_p = 0.02, .repeat_penalty = 1, .presence_penalty = 0.4, .seed = 7},
    {.temperature = 1.1, .top_p = 0.95, .repeat_penalty = 1, .frequency_penalty = 0.3, .seed = 8}};

/* tokens [REQUESTS][TOKENS] of requests that come one step after the other. */
static void generate(const struct walsh_queue *q, int32_t *tokens)
{
    struct walsh_error err;
    struct walsh_runner *runner;
    struct walsh_batch *batch;
    size_t count, got[REQUESTS] = {0}, left = REQUESTS;
    const struct walsh_batch_limits limits = {.rows = 4,
                                              .prefill_tokens = 64,
                                              .context = 256,
                                              .kv_tokens = 16384,
                                              .queued = 8,
                                              .kv = {.type = WALSH_KV_F16}};
    if (walsh_runner_open(graph, q, NULL, &runner, &err) != WALSH_OK ||
        walsh_runtime_batch_open(runner, &limits, &batch, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    for (size_t next = 0; left > 0;) {
        if (next < REQUESTS) {
            int32_t ids[PROMPT];
            uint64_t id;
            for (int32_t i = 0; i < PROMPT; i++) ids[i] = 3 + (i * 7 + (int32_t)next * 11) % 200;
            const struct walsh_adapter_choice choice = {adapters[next % 2], 20};
            const struct walsh_batch_job job = {.ids = ids,
                                                .adapters = &choice,
                                                .adapter_count = next > 1,
                                                .count = PROMPT,
                                                .tokens = TOKENS,
                                                .sampling = sampling[next],
                                                .ignore_eos = true,
                                                .user = &got[next]};
            if (walsh_runtime_batch_submit(batch, &job, &id, &err) != WALSH_OK) fail_msg("%s", err.message);
            next++;
        }
        if (walsh_runtime_batch_step(batch, &count, &err) != WALSH_OK) fail_msg("%s", err.message);
        for (size_t i = 0; i < count; i++) {
            const struct walsh_batch_entry *e = batch->events[i];
            size_t *n = e->user;
            assert_int_not_equal(e->end, WALSH_BATCH_FAILED);
            tokens[(n - got) * TOKENS + (ptrdiff_t)*n] = e->token;
            left -= ++*n == TOKENS;
        }
    }
    walsh_runtime_batch_close(&batch);
    walsh_runner_close(&runner);
}

static void a_batch_draws_on_the_device(void **state)
{
    (void)state;
    static int32_t expected[REQUESTS * TOKENS], tokens[REQUESTS * TOKENS];
    generate(&queue, expected);
    memset(&seen, 0, sizeof seen);
    generate(&device, tokens);
    assert_memory_equal(tokens, expected, sizeof tokens);
    assert_int_equal(seen.rows, REQUESTS * (TOKENS - 1)); /* the first token comes from the prompt */
    assert_in_range(seen.draws, TOKENS - 1, REQUESTS * TOKENS);
}

/* A step with draws waits once; without, it leaves the logits where they are. */
static void a_step_waits_once(void **state)
{
    (void)state;
    enum { SESSIONS = 3 };
    struct walsh_error err;
    struct walsh_runner *runner;
    struct walsh_session *sessions[SESSIONS];
    struct walsh_sampler *samplers[SESSIONS];
    struct walsh_draw plans[SESSIONS];
    int32_t ids[SESSIONS] = {5, 6, 7}, drawn[SESSIONS] = {-2, -2, -2};
    const struct walsh_kv_policy f16 = {.type = WALSH_KV_F16};
    const uint32_t vocab = graph->config.vocab;
    assert_int_equal(walsh_runner_open(graph, &device, NULL, &runner, &err), WALSH_OK);
    for (size_t i = 0; i < SESSIONS; i++) {
        assert_int_equal(walsh_runtime_session_open(runner, 64, &f16, &sessions[i], &err), WALSH_OK);
        assert_int_equal(walsh_sampler_create(&sampling[i], vocab, &samplers[i], &err), WALSH_OK);
        assert_int_equal(walsh_sampler_plan(samplers[i], &plans[i], &err), WALSH_OK);
    }
    assert_true(walsh_runtime_draws(runner));
    memset(&seen, 0, sizeof seen);
    assert_int_equal(walsh_runtime_step_draw(sessions, ids, SESSIONS, plans, drawn, &err), WALSH_OK);
    assert_int_equal(seen.waits, 1);
    assert_int_equal(seen.largest, SESSIONS * sizeof *drawn);
    for (size_t i = 0; i < SESSIONS; i++) { /* the logits are there, and the samplers have not moved */
        int32_t id;
        assert_int_equal(walsh_sampler_choose(samplers[i], walsh_session_read(sessions[i]), &id, &err),
                         WALSH_OK);
        assert_int_equal(drawn[i], id);
    }
    memset(&seen, 0, sizeof seen);
    assert_int_equal(walsh_runtime_step(sessions, ids, SESSIONS, &err), WALSH_OK);
    assert_int_equal(seen.waits, 1);
    assert_int_equal(seen.largest, 0);
    assert_int_equal(seen.draws, 0);
    for (size_t i = 0; i < SESSIONS; i++) {
        walsh_runtime_session_close(&sessions[i]);
        walsh_sampler_destroy(&samplers[i]);
    }
    walsh_runner_close(&runner);
}

/* tokens [SESSIONS][TOKENS] of steps that draw, from no prompt. */
static void step_and_sample(const struct walsh_queue *q, int32_t *tokens)
{
    enum { SESSIONS = 3 };
    struct walsh_error err;
    struct walsh_runner *runner;
    struct walsh_session *sessions[SESSIONS];
    struct walsh_sampler *samplers[SESSIONS];
    const struct walsh_kv_policy f16 = {.type = WALSH_KV_F16};
    int32_t ids[SESSIONS] = {5, 6, 7};
    assert_int_equal(walsh_runner_open(graph, q, NULL, &runner, &err), WALSH_OK);
    for (size_t i = 0; i < SESSIONS; i++) {
        assert_int_equal(walsh_runtime_session_open(runner, TOKENS, &f16, &sessions[i], &err), WALSH_OK);
        assert_int_equal(walsh_sampler_create(&sampling[i + 1], graph->config.vocab, &samplers[i], &err),
                         WALSH_OK);
    }
    for (size_t t = 0; t < TOKENS; t++) {
        assert_int_equal(walsh_runtime_step_sample(sessions, samplers, ids, SESSIONS, ids, &err), WALSH_OK);
        for (size_t i = 0; i < SESSIONS; i++) tokens[i * TOKENS + t] = ids[i];
    }
    for (size_t i = 0; i < SESSIONS; i++) {
        walsh_runtime_session_close(&sessions[i]);
        walsh_sampler_destroy(&samplers[i]);
    }
    walsh_runner_close(&runner);
}

static void steps_that_draw_are_the_same(void **state)
{
    (void)state;
    static int32_t expected[3 * TOKENS], tokens[3 * TOKENS];
    step_and_sample(&queue, expected);
    memset(&seen, 0, sizeof seen);
    step_and_sample(&device, tokens);
    assert_memory_equal(tokens, expected, sizeof tokens);
    assert_int_equal(seen.draws, TOKENS);
    assert_int_equal(seen.largest, 3 * sizeof *tokens);
}

/* A step is recorded where its rows' adapters stand as in the step before; without adapters at once. */
static void steps_with_adapters_are_recorded(void **state)
{
    (void)state;
    enum { SESSIONS = 3 };
    struct walsh_error err;
    struct walsh_runner *runner;
    struct walsh_session *sessions[SESSIONS];
    const int32_t ids[SESSIONS] = {5, 6, 7};
    const struct walsh_kv_policy f16 = {.type = WALSH_KV_F16};
    const struct walsh_adapter_choice first[] = {{adapters[0], 20}},
                                      both[] = {{adapters[1], 1}, {adapters[0], 20}};
    assert_int_equal(walsh_runner_open(graph, &device, NULL, &runner, &err), WALSH_OK);
    for (size_t i = 0; i < SESSIONS; i++)
        assert_int_equal(walsh_runtime_session_open(runner, 64, &f16, &sessions[i], &err), WALSH_OK);
    static const size_t expected[] = {1, 1, 2, 2, 3, 3};
    memset(&seen, 0, sizeof seen);
    for (size_t s = 0; s < 6; s++) {
        if (s == 1) assert_int_equal(walsh_runtime_set_adapters(sessions[0], first, 1, &err), WALSH_OK);
        if (s == 3) assert_int_equal(walsh_runtime_set_adapters(sessions[2], both, 2, &err), WALSH_OK);
        if (s == 5) assert_int_equal(walsh_runtime_set_adapters(sessions[1], first, 1, &err), WALSH_OK);
        assert_int_equal(walsh_runtime_step(sessions, ids, SESSIONS, &err), WALSH_OK);
        assert_int_equal(seen.records, expected[s]);
    }
    for (size_t i = 0; i < SESSIONS; i++) walsh_runtime_session_close(&sessions[i]);
    walsh_runner_close(&runner);
}

static size_t forgotten;
static void count_forgotten(const struct walsh_queue *q, void *recording)
{
    (void)q;
    forgotten += recording != NULL;
}

/* Recordings are found by their whole key, and the one that was not used for longest goes first. */
static void recordings_have_keys(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_recordings r = {0};
    struct walsh_memory counting = memory;
    struct walsh_queue q = device;
    static int runs[WALSH_RECORDINGS + 1];
    bool again;
    counting.forget = count_forgotten;
    q.memory = &counting;
    for (int i = 0; i <= WALSH_RECORDINGS; i++) {
        walsh_recordings_begin(&r);
        assert_int_equal(walsh_recordings_add(&r, "key", 3, &err), WALSH_OK);
        assert_int_equal(walsh_recordings_add(&r, &i, sizeof i, &err), WALSH_OK);
        assert_null(walsh_recordings_find(&r));
        assert_int_equal(walsh_recordings_again(&r, &again, &err), WALSH_OK);
        assert_false(again);
        assert_int_equal(walsh_recordings_again(&r, &again, &err), WALSH_OK);
        assert_true(again);
        assert_int_equal(forgotten, 0);
        assert_int_equal(walsh_recordings_put(&r, &q, &runs[i], &err), WALSH_OK);
        assert_ptr_equal(walsh_recordings_find(&r), &runs[i]);
        const int zero = 0; /* stays in use */
        walsh_recordings_begin(&r);
        assert_int_equal(walsh_recordings_add(&r, "key", 3, &err), WALSH_OK);
        assert_int_equal(walsh_recordings_add(&r, &zero, sizeof zero, &err), WALSH_OK);
        assert_ptr_equal(walsh_recordings_find(&r), &runs[0]);
    }
    assert_int_equal(forgotten, 1);
    const int one = 1;
    walsh_recordings_begin(&r);
    assert_int_equal(walsh_recordings_add(&r, "key", 3, &err), WALSH_OK);
    assert_null(walsh_recordings_find(&r));
    assert_int_equal(walsh_recordings_add(&r, &one, sizeof one, &err), WALSH_OK);
    assert_null(walsh_recordings_find(&r)); /* the one that went */
    walsh_recordings_close(&r, &q);
    assert_int_equal(forgotten, 1 + WALSH_RECORDINGS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recordings_have_keys),
        cmocka_unit_test(steps_with_adapters_are_recorded),
        cmocka_unit_test(steps_that_draw_are_the_same),
        cmocka_unit_test(a_batch_draws_on_the_device),
        cmocka_unit_test(a_step_waits_once),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}

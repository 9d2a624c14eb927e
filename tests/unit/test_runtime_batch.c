/* The batch scheduler below walsh.h: whose prompt is read next, the links of the queue, failures of one row
 * that walsh.h cannot cause. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/batch.h"
#include "unit/test_model.h"

static struct walsh_queue queue;
static struct walsh_model_graph *graph;
static struct walsh_runner *runner;
static int32_t ids[1024];

static int open_runner(void **state)
{
    (void)state;
    struct walsh_error err;
    const struct walsh_load_options options = {.use_mmap = true};
    for (int32_t i = 0; i < 1024; i++) ids[i] = 3 + i * 5 % 200;
    return walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err) == WALSH_OK &&
                   walsh_graph_open(test_model(), &options, &queue, &graph, &err) == WALSH_OK &&
                   walsh_runner_open(graph, &queue, NULL, &runner, &err) == WALSH_OK
               ? 0
               : -1;
}

static int close_runner(void **state)
{
    (void)state;
    walsh_runner_close(&runner);
    walsh_graph_close(&graph);
    walsh_queue_close(&queue);
    return 0;
}

static struct walsh_batch *open_batch(uint32_t rows, uint32_t prefill_tokens, enum walsh_kv_type type)
{
    struct walsh_error err;
    struct walsh_batch *batch;
    const struct walsh_batch_limits limits = {
        .rows = rows,
        .prefill_tokens = prefill_tokens,
        .context = 1024,
        .kv_tokens = 16384,
        .queued = 8,
        .kv = {.type = type, .key_bits = 4, .value_bits = 4},
    };
    if (walsh_runtime_batch_open(runner, &limits, &batch, &err) != WALSH_OK) fail_msg("%s", err.message);
    return batch;
}

static uint64_t submit(struct walsh_batch *batch, size_t count, uint32_t tokens)
{
    struct walsh_error err;
    uint64_t id;
    const struct walsh_batch_job job = {
        .ids = ids,
        .count = count,
        .tokens = tokens,
        .sampling = {.top_p = 1, .repeat_penalty = 1},
        .ignore_eos = true,
    };
    if (walsh_runtime_batch_submit(batch, &job, &id, &err) != WALSH_OK) fail_msg("%s", err.message);
    return id;
}

static size_t step(struct walsh_batch *batch)
{
    struct walsh_error err;
    size_t count;
    if (walsh_runtime_batch_step(batch, &count, &err) != WALSH_OK) fail_msg("%s", err.message);
    return count;
}

static uint32_t length_of(const struct walsh_batch *batch, uint64_t id)
{
    const struct walsh_batch_entry *entry = walsh_runtime_batch_find(batch, id);
    return entry && entry->session ? entry->session->kv->length : 0;
}

/* One step, and then the tokens in the caches of requests 1, 2 and 3. */
static void step_reads(struct walsh_batch *batch, uint32_t a, uint32_t b, uint32_t c)
{
    step(batch);
    assert_int_equal(length_of(batch, 1), a);
    assert_int_equal(length_of(batch, 2), b);
    assert_int_equal(length_of(batch, 3), c);
}

static void prompts_are_read_in_turn(void **state)
{
    (void)state;
    struct walsh_batch *batch = open_batch(4, 300, WALSH_KV_F16);
    submit(batch, 700, 20);
    step_reads(batch, 300, 0, 0);
    submit(batch, 900, 20);
    submit(batch, 450, 20);
    /* the second slot is next, and from then on always the one behind the last */
    step_reads(batch, 300, 300, 0);
    step_reads(batch, 300, 300, 300);
    /* 212 to the end of the chunk, the other 88 go to the next in turn */
    step_reads(batch, 512, 388, 300);
    step_reads(batch, 662, 388, 450);
    /* 124 to the end of the chunk, 38 to that of the other prompt, and the remaining 138 again */
    step_reads(batch, 700, 650, 451);
    assert_int_equal(batch->totals.prompt_tokens, 700 + 650 + 450);
    walsh_runtime_batch_close(&batch);
}

/* Prompts are read in smaller pieces while somebody waits for a next token, in whole chunks where nobody
 * does. */
static void prompts_give_way_to_decode(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_batch *batch;
    const struct walsh_batch_limits limits = {.rows = 4,
                                              .prefill_tokens = 300,
                                              .prefill_beside = 64,
                                              .context = 1024,
                                              .kv_tokens = 16384,
                                              .queued = 8};
    assert_int_equal(walsh_runtime_batch_open(runner, &limits, &batch, &err), WALSH_OK);
    submit(batch, 290, 3);
    step_reads(batch, 290, 0, 0);
    submit(batch, 700, 20);
    submit(batch, 10, 5);
    step_reads(batch, 291, 64, 0);
    step_reads(batch, 0, 118, 10); /* the first one's third and last token */
    step_reads(batch, 0, 182, 11); /* beside the other one */
    for (unsigned i = 0; i < 3; i++) step(batch);
    step_reads(batch, 0, 674, 0); /* nobody decodes: 138 to the end of the chunk, and 162 of the next */
    walsh_runtime_batch_close(&batch);
    struct walsh_batch_limits wrong = limits;
    wrong.prefill_beside = 301;
    assert_int_equal(walsh_runtime_batch_open(runner, &wrong, &batch, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "301 prompt tokens beside decode, expected at most 300");
}

/* A packed cache takes whole chunks, one at least in a step. */
static void chunks_of_packed_caches_stay_whole(void **state)
{
    (void)state;
    struct walsh_batch *batch = open_batch(4, 300, WALSH_KV_TURBO);
    submit(batch, 700, 20);
    submit(batch, 100, 20);
    submit(batch, 250, 20);
    step_reads(batch, 512, 0, 0);
    step_reads(batch, 512, 100, 0); /* 250 do not fit into the other 200, and are not cut */
    step_reads(batch, 512, 101, 250);
    step_reads(batch, 700, 102, 251);
    walsh_runtime_batch_close(&batch);
}

/* First, middle and last of the queue leave it; the others keep their order. */
static void the_queue_keeps_its_order(void **state)
{
    (void)state;
    struct walsh_error err;
    for (unsigned gone = 0; gone < 16; gone++) {
        struct walsh_batch *batch = open_batch(1, 64, WALSH_KV_F16);
        uint64_t order[5], expected[8];
        size_t n = 0, k = 0;
        submit(batch, 2, 3); /* has the row */
        for (uint32_t i = 0; i < 4; i++) order[i] = submit(batch, 2 + i, 1);
        for (uint32_t i = 0; i < 4; i++)
            if (gone >> i & 1)
                assert_int_equal(walsh_runtime_batch_cancel(batch, order[i], &err), WALSH_OK);
            else
                expected[n++] = order[i];
        expected[n++] = submit(batch, 9, 1); /* behind whoever is the last now */
        assert_int_equal(batch->queued, n);
        for (unsigned i = 0; i < 20; i++)
            if (step(batch) == 1 && batch->events[0]->id > 1)
                assert_int_equal(batch->events[0]->id, expected[k++]);
        assert_int_equal(k, n);
        assert_int_equal(batch->queued, 0);
        assert_null(batch->first);
        assert_null(batch->last);
        walsh_runtime_batch_close(&batch);
    }
}

#define ROWS 4
#define STEPS 12

/* Four requests; with harm != 0 the third comes to it behind its fourth token. What the others draw:
 * tokens[]. */
static void run_four(int harm, int32_t tokens[ROWS][STEPS], struct walsh_error *failure)
{
    struct walsh_batch *batch = open_batch(ROWS, 512, WALSH_KV_F32);
    uint32_t drawn[ROWS] = {0};
    for (uint32_t i = 0; i < ROWS; i++) submit(batch, 20 + 9 * i, STEPS);
    for (unsigned s = 0; s < STEPS; s++) {
        struct walsh_kv_cache *kv = s == 4 ? batch->slots[2]->session->kv : NULL;
        if (kv && harm == 1) kv->shape.capacity = kv->length; /* as where no page can be had */
        if (kv && harm == 2)                                  /* as a broken kernel would leave it */
            for (size_t i = 0; i < graph->config.head_dim; i++) ((float *)kv->views[1].v_pages[0])[i] = NAN;
        const size_t count = step(batch);
        assert_int_equal(count, harm && s > 4 ? ROWS - 1 : ROWS);
        for (size_t i = 0; i < count; i++) {
            const struct walsh_batch_entry *e = batch->events[i];
            const size_t row = (size_t)(e->id - 1);
            assert_int_equal(e->end == WALSH_BATCH_FAILED, harm && s == 4 && row == 2);
            if (e->end == WALSH_BATCH_FAILED)
                *failure = e->error;
            else
                tokens[row][drawn[row]++] = e->token;
        }
        if (s == 4 && harm) assert_null(walsh_batch_entry_logits(walsh_runtime_batch_find(batch, 3)));
    }
    assert_int_equal(step(batch), 0);
    assert_int_equal(batch->kv_tokens, 0);
    assert_int_equal(batch->totals.failed, harm != 0);
    assert_int_equal(batch->totals.finished, ROWS - (harm != 0));
    walsh_runtime_batch_close(&batch);
}

static void a_row_that_fails_fails_alone(void **state)
{
    (void)state;
    int32_t expected[ROWS][STEPS], got[ROWS][STEPS];
    struct walsh_error failure = {0};
    run_four(0, expected, &failure);
    assert_int_equal(failure.status, WALSH_OK);
    for (int harm = 1; harm <= 2; harm++) {
        run_four(harm, got, &failure);
        for (uint32_t i = 0; i < ROWS; i++)
            assert_memory_equal(expected[i], got[i], (i == 2 ? 4 : STEPS) * sizeof **got);
        assert_int_equal(failure.status, harm == 1 ? WALSH_E_CAPACITY : WALSH_E_INTERNAL);
        assert_non_null(
            strstr(failure.message, harm == 1 ? "the context is full" : "the logit of token 0 is "));
    }
}

static void limits_are_checked(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_batch *batch;
    const struct walsh_batch_limits good = {
        .rows = 1, .prefill_tokens = 1, .context = 1, .kv_tokens = 256, .queued = 1};
    struct walsh_batch_limits l = good;
    assert_int_equal(walsh_runtime_batch_open(runner, &l, &batch, &err), WALSH_OK);
    walsh_runtime_batch_close(&batch);
    l.queued = 0;
    assert_int_equal(walsh_runtime_batch_open(runner, &l, &batch, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a batch needs a queue of 1 request or more");
    l = good, l.prefill_tokens = 0;
    assert_int_equal(walsh_runtime_batch_open(runner, &l, &batch, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "0 prompt tokens in a step, expected 1 to 512");
    l = good, l.context = 1025;
    assert_int_equal(walsh_runtime_batch_open(runner, &l, &batch, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "context of 1025 tokens: the model has positions for 1 to 1024");
    l = good, l.kv_tokens = (uint64_t)1 << 60;
    assert_int_equal(walsh_runtime_batch_open(runner, &l, &batch, &err), WALSH_E_MEMORY);
    assert_null(batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_read_in_turn),           cmocka_unit_test(prompts_give_way_to_decode),
        cmocka_unit_test(chunks_of_packed_caches_stay_whole), cmocka_unit_test(the_queue_keeps_its_order),
        cmocka_unit_test(a_row_that_fails_fails_alone),       cmocka_unit_test(limits_are_checked),
    };
    return cmocka_run_group_tests(tests, open_runner, close_runner);
}

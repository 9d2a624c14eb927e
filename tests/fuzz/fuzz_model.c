/* libFuzzer target: a model directory. The input is config.json, NUL, lines that name the tensors of
 * model.safetensors, NUL, the first bytes of its data (fuzz_write_tensors). What loads reads a prompt and
 * takes a step. */
#include "fuzz/fuzz_files.h"

#include "runtime/session.h"

static struct walsh_queue queue;

static void run(const struct walsh_model_graph *graph)
{
    struct walsh_runner *runner;
    struct walsh_session *session;
    struct walsh_error err = {0};
    const struct walsh_kv_policy policy = {.type = WALSH_KV_F16};
    const int32_t ids[] = {0, (int32_t)graph->config.vocab - 1, 1 % (int32_t)graph->config.vocab};
    const uint32_t capacity = graph->config.max_positions < 4 ? graph->config.max_positions : 4;
    if (walsh_runner_open(graph, &queue, NULL, &runner, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return;
    }
    if (walsh_runtime_session_open(runner, capacity, &policy, &session, &err) == WALSH_OK) {
        if (walsh_runtime_prompt(session, ids, 3, NULL, NULL, &err) == WALSH_OK &&
            walsh_runtime_step(&session, ids, 1, &err) == WALSH_OK)
            (void)walsh_session_read(session);
        walsh_runtime_session_close(&session);
    }
    if (err.status != WALSH_OK) fuzz_refused(&err);
    walsh_runner_close(&runner);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct walsh_model_graph *graph;
    struct walsh_error err = {0};
    const struct walsh_load_options options = {.rotated = WALSH_ACTIVATION_INT8,
                                               .dense = WALSH_ACTIVATION_BF16};
    if (!queue.ops) FUZZ_REQUIRE(walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err) == WALSH_OK);
    const struct fuzz_part config = fuzz_next(&data, &size), tensors = fuzz_next(&data, &size);
    fuzz_write("config.json", config.text, config.size);
    fuzz_write_tensors("model.safetensors", tensors, data, size);
    if (walsh_graph_open(fuzz_path(""), &options, &queue, &graph, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    run(graph);
    walsh_graph_close(&graph);
    return 0;
}

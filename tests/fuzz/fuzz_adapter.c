/* libFuzzer target: an adapter's directory. The first byte chooses the model, the rest is
 * adapter_config.json, NUL, lines that name the tensors of adapter_model.safetensors, NUL, the first bytes of
 * its data. What loads is used for a prompt and a step. */
#include "fuzz/fuzz_files.h"

#include "runtime/session.h"

static const char *const names[] = {"tiny-qwen2",  "tiny-phi3", "tiny-mixtral",  "tiny-gpt-oss-mxfp4",
                                    "tiny-gemma2", "tiny-lfm2", "tiny-qwen3-moe"};
#define MODELS (sizeof names / sizeof *names)

static struct walsh_queue queue;
static struct machine {
    struct walsh_model_graph *graph;
    struct walsh_runner *runner;
} machines[MODELS];

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "%s\n", err->message);
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct walsh_error err = {0};
    const struct walsh_load_options options = {.rotated = WALSH_ACTIVATION_INT8,
                                               .dense = WALSH_ACTIVATION_BF16};
    good(walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err), &err);
    for (size_t i = 0; i < MODELS; i++) {
        char path[64];
        snprintf(path, sizeof path, "tests/fixtures/golden/%s", names[i]);
        good(walsh_graph_open(fuzz_source(path), &options, &queue, &machines[i].graph, &err), &err);
        good(walsh_runner_open(machines[i].graph, &queue, NULL, &machines[i].runner, &err), &err);
    }
    return 0;
}

static void use(struct walsh_runner *runner, struct walsh_adapter *adapter)
{
    static const int32_t ids[] = {5, 6, 7};
    const struct walsh_kv_policy policy = {.type = WALSH_KV_F16};
    const struct walsh_adapter_choice choice = {adapter, 0.5f};
    struct walsh_session *session;
    struct walsh_error err = {0};
    good(walsh_runtime_session_open(runner, 4, &policy, &session, &err), &err);
    if (walsh_runtime_set_adapters(session, &choice, 1, &err) == WALSH_OK) {
        good(walsh_runtime_prompt(session, ids, 3, NULL, NULL, &err), &err);
        good(walsh_runtime_step(&session, ids, 1, &err), &err);
    }
    if (err.status != WALSH_OK) fuzz_refused(&err);
    walsh_runtime_session_close(&session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct walsh_adapter *adapter;
    struct walsh_error err = {0};
    if (size == 0) return 0;
    const struct walsh_adapter_loading loading = {.storage =
                                                      data[0] & 0x80 ? WALSH_FORMAT_F32 : WALSH_FORMAT_BF16};
    const struct machine *m = &machines[(data[0] & 0x7f) % MODELS];
    data++;
    size--;
    const struct fuzz_part config = fuzz_next(&data, &size), tensors = fuzz_next(&data, &size);
    fuzz_write("adapter_config.json", config.text, config.size);
    fuzz_write_tensors("adapter_model.safetensors", tensors, data, size);
    if (walsh_adapter_load("a", fuzz_path(""), m->graph, &loading, NULL, &adapter, &err) != WALSH_OK) {
        fuzz_refused(&err);
        FUZZ_REQUIRE(!adapter);
        return 0;
    }
    use(m->runner, adapter);
    walsh_adapter_release(&adapter);
    return 0;
}

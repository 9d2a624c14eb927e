/* libFuzzer target: job.json, the record of a quantize job that --resume goes on with. */
#include "fuzz/fuzz_files.h"

#include "base/memory.h"
#include "quantize/output.h"

#define LINEARS 2

static void plan_tensors(struct walsh_safetensors_plan *plan)
{
    static const char *const names[] = {"layer.a.codes", "layer.b.codes"};
    const uint64_t shape[] = {4};
    struct walsh_error err = {0};
    for (size_t i = 0; i < LINEARS; i++)
        FUZZ_REQUIRE(walsh_plan_add(plan, names[i], WALSH_U8, 1, shape, &err) == WALSH_OK);
    FUZZ_REQUIRE(walsh_plan_finish(plan, &err) == WALSH_OK);
}

static void check_layers(struct walsh_output *output)
{
    struct walsh_error err = {0};
    for (uint32_t layer = 0; layer < output->layers_done && layer < 4; layer++) {
        struct walsh_job_linear linears[LINEARS] = {{.name = "layer.a"}, {.name = "layer.b"}};
        if (walsh_output_check_layer(output, layer, linears, LINEARS, &err) != WALSH_OK) fuzz_refused(&err);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct walsh_checkpoint source;
    struct walsh_output output;
    struct walsh_safetensors_plan plan = {0};
    struct walsh_error err = {0};
    uint8_t zeros[512] = {0};
    plan_tensors(&plan);
    if (mkdir(fuzz_path("out.partial"), 0700) != 0)
        FUZZ_REQUIRE(walsh_path_is_directory(fuzz_path("out.partial")));
    FUZZ_REQUIRE(plan.file_bytes <= sizeof zeros);
    fuzz_write("out.partial/model.safetensors", zeros, plan.file_bytes);
    fuzz_write("out.partial/job.json", data, size);
    if (walsh_output_open(&source, fuzz_path("out"), &plan, "fuzz", true, &output, &err) == WALSH_OK)
        check_layers(&output);
    else
        fuzz_refused(&err);
    walsh_output_close(&output);
    walsh_plan_close(&plan);
    return 0;
}

/* Kernel measurements. */
#include "kernels/bench.h"

#include <stdio.h>

#include "api/api.h"

struct row_sink {
    void (*row)(void *user, const struct walsh_bench_row *row);
    void *user;
    size_t count;
};

static void pass_row(void *user, const struct walsh_bench_result *result)
{
    struct row_sink *sink = user;
    struct walsh_bench_row row = {
        .kernel = result->kernel,
        .implementation = result->implementation,
        .seconds = result->seconds,
        .bytes = result->bytes,
        .operations = result->operations,
        .ratio = result->ratio,
        .roofline = result->roofline,
    };
    snprintf(row.size, sizeof row.size, "%s", result->size);
    sink->count++;
    if (sink->row) sink->row(sink->user, &row);
}

static void pass_device_row(void *user, const struct walsh_device_bench_row *result)
{
    struct row_sink *sink = user;
    struct walsh_bench_row row = {
        .kernel = result->kernel,
        .implementation = "cuda",
        .seconds = result->seconds,
        .bytes = result->bytes,
        .operations = result->operations,
        .roofline = result->roofline,
    };
    snprintf(row.size, sizeof row.size, "%s", result->size);
    sink->count++;
    if (sink->row) sink->row(sink->user, &row);
}

static enum walsh_status bench_device(struct walsh_context *context, const char *pattern,
                                      struct row_sink *sink, struct walsh_bench_ceilings *ceilings,
                                      struct walsh_error *err)
{
    struct walsh_device_ceilings measured = {0, 0};
    WALSH_TRY(context->module->bench(&context->queue, pattern, &measured, pass_device_row, sink, err));
    if (ceilings)
        *ceilings = (struct walsh_bench_ceilings){.read_bandwidth = measured.read_bandwidth,
                                                  .copy_bandwidth = measured.copy_bandwidth};
    return WALSH_OK;
}

enum walsh_status walsh_bench_kernels(struct walsh_context *context, const char *pattern,
                                      void (*row)(void *user, const struct walsh_bench_row *row), void *user,
                                      struct walsh_bench_ceilings *ceilings, struct walsh_error *err)
{
    struct row_sink sink = {row, user, 0};
    if (context->module) {
        WALSH_TRY(bench_device(context, pattern, &sink, ceilings, err));
    } else {
        struct walsh_roofline roofline;
        walsh_queue_bench(&context->queue, pattern, &roofline, pass_row, &sink);
        if (ceilings)
            *ceilings = (struct walsh_bench_ceilings){.read_bandwidth = roofline.read_bandwidth,
                                                      .fma_f32 = roofline.f32_rate,
                                                      .dot_i8 = roofline.int8_rate};
    }
    if (sink.count == 0)
        return walsh_fail(err, WALSH_E_NOT_FOUND, "no kernel's name contains \"%.100s\"",
                          pattern ? pattern : "");
    return WALSH_OK;
}

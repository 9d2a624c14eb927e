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
        .ratio = result->ratio,
        .roofline = result->roofline,
    };
    snprintf(row.size, sizeof row.size, "%s", result->size);
    sink->count++;
    if (sink->row) sink->row(sink->user, &row);
}

static struct walsh_bench_rates rates(const struct walsh_rates *r)
{
    return (struct walsh_bench_rates){.fma_f32 = r->f32, .dot_bf16 = r->bf16, .dot_i8 = r->int8};
}

static struct walsh_bench_ceilings cpu_ceilings(const struct walsh_roofline *r)
{
    return (struct walsh_bench_ceilings){
        .read_bandwidth = r->read_bandwidth, .one = rates(&r->one), .all = rates(&r->all)};
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

enum walsh_status walsh_bench_measure(struct walsh_context *context, struct walsh_bench_ceilings *ceilings,
                                      struct walsh_error *err)
{
    if (context->module) {
        struct row_sink none = {NULL, NULL, 0};
        return bench_device(context, " " /* no kernel's name has a space */, &none, ceilings, err);
    }
    struct walsh_roofline roofline;
    walsh_roofline_measure(&context->queue, &roofline);
    *ceilings = cpu_ceilings(&roofline);
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
        if (ceilings) *ceilings = cpu_ceilings(&roofline);
    }
    if (sink.count == 0)
        return walsh_fail(err, WALSH_E_NOT_FOUND, "no kernel's name contains \"%.100s\"",
                          pattern ? pattern : "");
    return WALSH_OK;
}

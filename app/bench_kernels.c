#include "bench_kernels.h"

#include <stdio.h>

#include "output.h"

struct sink {
    struct command *command;
    json_t *rows; /* NULL: a table */
    size_t count;
};

static void put_json(json_t *rows, const struct walsh_bench_row *row)
{
    json_t *item = json_object();
    json_put_text(item, "kernel", row->kernel);
    json_put_text(item, "implementation", row->implementation);
    json_put_text(item, "size", row->size);
    json_put_real(item, "seconds", row->seconds);
    json_put_real(item, "bytes", row->bytes);
    json_put_real(item, "operations", row->operations);
    json_put_real(item, "gbps", row->bytes / row->seconds / 1e9);
    json_put_real(item, "gops", row->operations / row->seconds / 1e9);
    json_put_real(item, "ratio", row->ratio);
    json_put_real(item, "roofline", row->roofline);
    json_array_append_new(rows, item);
}

static void on_row(void *user, const struct walsh_bench_row *row)
{
    struct sink *sink = user;
    progress_clear(&sink->command->progress);
    if (sink->rows) {
        put_json(sink->rows, row);
    } else {
        if (sink->count == 0)
            printf("%-26s %-10s %-28s %10s %8s %9s %9s %8s\n", "kernel", "version", "size", "us", "GB/s",
                   "Gop/s", "x ref", "% roof");
        printf("%-26s %-10s %-28s %10.2f %8.2f %9.2f %9.2f %8.1f\n", row->kernel, row->implementation,
               row->size, row->seconds * 1e6, row->bytes / row->seconds / 1e9,
               row->operations / row->seconds / 1e9, row->ratio, 100 * row->roofline);
        fflush(stdout);
    }
    sink->count++;
}

enum walsh_status bench_kernels(struct command *command, struct walsh_context *context, const char *pattern,
                                struct walsh_error *err)
{
    struct sink sink = {.command = command, .rows = command->json ? json_array() : NULL};
    struct walsh_bench_ceilings ceilings = {0};
    enum walsh_status status = walsh_bench_kernels(context, pattern, on_row, &sink, &ceilings, err);
    progress_clear(&command->progress);
    if (status == WALSH_OK && sink.count == 0)
        status = fail(err, WALSH_E_NOT_FOUND, "no kernel's name contains '%s'; 'walsh devices' lists them",
                      pattern ? pattern : "");
    if (status != WALSH_OK) {
        json_decref(sink.rows);
        return status;
    }
    const bool device = ceilings.copy_bandwidth > 0;
    if (!sink.rows && device) {
        printf("\nceilings of this device: %.1f GB/s read, %.1f GB/s copied\n", ceilings.read_bandwidth / 1e9,
               ceilings.copy_bandwidth / 1e9);
        return WALSH_OK;
    }
    if (!sink.rows) {
        printf(
            "\nceilings of this machine: %.1f GB/s read, %.1f Gflop/s f32 FMA, %.1f Gop/s int8 dot product\n",
            ceilings.read_bandwidth / 1e9, ceilings.fma_f32 / 1e9, ceilings.dot_i8 / 1e9);
        return WALSH_OK;
    }
    json_t *object = json_object(), *limits = json_object();
    json_put_real(limits, "read_gbps", ceilings.read_bandwidth / 1e9);
    if (device) {
        json_put_real(limits, "copy_gbps", ceilings.copy_bandwidth / 1e9);
    } else {
        json_put_real(limits, "fma_f32_gflops", ceilings.fma_f32 / 1e9);
        json_put_real(limits, "dot_i8_gops", ceilings.dot_i8 / 1e9);
    }
    json_put_text(object, "device", device ? command->device : "cpu");
    json_put_integer(object, "threads", walsh_context_threads(context));
    json_object_set_new(object, "ceilings", limits);
    json_object_set_new(object, "kernels", sink.rows);
    return json_print(object, err);
}

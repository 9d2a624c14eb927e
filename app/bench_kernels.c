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
    json_put_real(item, "floor_seconds", row->seconds * row->roofline);
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

json_t *bench_ceilings_json(const struct walsh_bench_ceilings *c)
{
    json_t *object = json_object();
    json_put_real(object, "read_gbps", c->read_bandwidth / 1e9);
    if (c->copy_bandwidth > 0) {
        json_put_real(object, "copy_gbps", c->copy_bandwidth / 1e9);
        return object;
    }
    const struct walsh_bench_rates *const rates[] = {&c->one, &c->all};
    static const char *const names[] = {"one_thread", "all_threads"};
    for (size_t i = 0; i < 2; i++) {
        json_t *item = json_object();
        json_put_real(item, "fma_f32_gflops", rates[i]->fma_f32 / 1e9);
        json_put_real(item, "dot_bf16_gflops", rates[i]->dot_bf16 / 1e9);
        json_put_real(item, "dot_i8_gops", rates[i]->dot_i8 / 1e9);
        json_object_set_new(object, names[i], item);
    }
    return object;
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
            "\nceilings of this machine, of one thread (of all %u): %.1f Gflop/s f32 FMA (%.1f), %.1f bf16 "
            "dot product (%.1f), %.1f int8 (%.1f); %.1f GB/s read by all\n",
            walsh_context_threads(context), ceilings.one.fma_f32 / 1e9, ceilings.all.fma_f32 / 1e9,
            ceilings.one.dot_bf16 / 1e9, ceilings.all.dot_bf16 / 1e9, ceilings.one.dot_i8 / 1e9,
            ceilings.all.dot_i8 / 1e9, ceilings.read_bandwidth / 1e9);
        return WALSH_OK;
    }
    json_t *object = json_object();
    json_put_text(object, "device", device ? command->device : "cpu");
    json_put_integer(object, "threads", walsh_context_threads(context));
    json_object_set_new(object, "ceilings", bench_ceilings_json(&ceilings));
    json_object_set_new(object, "kernels", sink.rows);
    return json_print(object, err);
}

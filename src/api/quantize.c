/* The quantize job. */
#include "quantize/job.h"

#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "quantize/ldlq.h"

#define DEFAULT_SAMPLES 128

static enum walsh_status find_format(const char *name, enum walsh_format *out, struct walsh_error *err)
{
    for (unsigned f = WALSH_FORMAT_E8P; name && f < WALSH_FORMAT_COUNT; f++) {
        *out = (enum walsh_format)f;
        if (strcmp(name, walsh_format_name(*out)) == 0) return WALSH_OK;
    }
    return walsh_fail(
        err, WALSH_E_UNSUPPORTED,
        "format %s is not one that walsh writes; known: e8p, mxfp4, nvfp4, mxfp8, fp8, int8, int4",
        name ? name : "(none)");
}

static enum walsh_status find_rounding(const char *name, enum walsh_mx_rounding *out, struct walsh_error *err)
{
    static const char *const names[] = {"floor", "ceil", "even", "rceil"};
    for (unsigned i = 0; i < 4; i++) {
        *out = (enum walsh_mx_rounding)i;
        if (!name || strcmp(name, names[i]) == 0) return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_ARGUMENT, "scale_rounding is %s, expected floor, ceil, even or rceil",
                      name);
}

/* An option that the format does not have would do nothing, without a word. */
static enum walsh_status check_format_options(const struct walsh_quantize_options *o,
                                              enum walsh_format format, struct walsh_error *err)
{
    const bool e8p = format == WALSH_FORMAT_E8P;
    const bool integers = format == WALSH_FORMAT_INT8 || format == WALSH_FORMAT_INT4;
    const bool powers = format == WALSH_FORMAT_MXFP4 || format == WALSH_FORMAT_MXFP8;
    const struct {
        const char *name, *formats;
        bool given, known;
    } options[] = {
        {"bits", "e8p", o->bits > 0 || o->bits_count > 0, e8p},
        {"samples", "e8p", o->samples > 0, e8p},
        {"sample_tokens", "e8p", o->sample_tokens > 0, e8p},
        {"passes", "e8p", o->passes >= 0, e8p},
        {"identity_hessian", "e8p", o->identity_hessian, e8p},
        {"plain", "e8p", o->plain, e8p},
        {"group_size", "int8 and int4", o->group_size > 0, integers},
        {"scale_rounding", "mxfp4 and mxfp8", o->scale_rounding != NULL, powers},
    };
    if (!e8p && o->calibration)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s rounds to the nearest and does not use a calibration text", o->format);
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (options[i].given && !options[i].known)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s is an option of %s; the format is %s",
                              options[i].name, options[i].formats, o->format);
    return WALSH_OK;
}

static enum walsh_status job_options(const struct walsh_quantize_options *o, struct walsh_job_options *out,
                                     struct walsh_error *err)
{
    enum walsh_format format;
    enum walsh_mx_rounding rounding;
    WALSH_TRY(find_format(o->format, &format, err));
    WALSH_TRY(check_format_options(o, format, err));
    WALSH_TRY(find_rounding(o->scale_rounding, &rounding, err));
    const bool e8p = format == WALSH_FORMAT_E8P;
    static const char *const rotations[] = {[WALSH_JOB_BLOCK] = "block",
                                            [WALSH_JOB_POW2] = "pow2",
                                            [WALSH_JOB_OVERLAP] = "overlap",
                                            [WALSH_JOB_NONE] = "none"};
    unsigned rotation = o->rotation || e8p ? WALSH_JOB_BLOCK : WALSH_JOB_NONE;
    const unsigned last = e8p ? WALSH_JOB_OVERLAP : WALSH_JOB_NONE;
    while (o->rotation && rotation <= last && strcmp(o->rotation, rotations[rotation]) != 0) rotation++;
    if (rotation > last)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "rotation %s is not one that %s is written with; known: block, pow2, overlap%s",
                          o->rotation, o->format, e8p ? "" : ", none");
    if (o->tensor_parallel > WALSH_MAX_TENSOR_PARALLEL)
        return walsh_fail(err, WALSH_E_ARGUMENT, "tensor_parallel is %u, expected at most %d",
                          o->tensor_parallel, WALSH_MAX_TENSOR_PARALLEL);
    if (o->tensor_parallel > 1 && rotation != WALSH_JOB_BLOCK)
        return walsh_fail(
            err, WALSH_E_UNSUPPORTED, "tensor_parallel needs rotation block: %s %s", rotations[rotation],
            rotation == WALSH_JOB_NONE ? "can be cut anyway" : "mixes the parts of a dimension");
    const bool int8 = o->head && strcmp(o->head, "int8") == 0;
    if (o->head && !int8 && strcmp(o->head, "bf16") != 0)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "head %s is not one that walsh writes; known: bf16, int8",
                          o->head);
    if (!e8p) {
        if (o->group_size && o->group_size != 32 && o->group_size != 64 && o->group_size != 128)
            return walsh_fail(err, WALSH_E_ARGUMENT, "groups of %u; int8 and int4 know 32, 64 and 128",
                              o->group_size);
        *out = (struct walsh_job_options){.format = format,
                                          .group = o->group_size,
                                          .rounding = rounding,
                                          .rotation = rotation,
                                          .tensor_parallel = o->tensor_parallel ? o->tensor_parallel : 1,
                                          .samples = 1,
                                          .head_int8 = int8,
                                          .seed = o->seed,
                                          .dry_run = o->dry_run,
                                          .resume = o->resume,
                                          .use_mmap = !o->no_mmap};
        return WALSH_OK;
    }
    if (!o->calibration && !o->identity_hessian && !o->dry_run)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "quantize needs a calibration text, or identity_hessian for none");
    if (o->calibration && o->identity_hessian)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "a calibration text and identity_hessian exclude each other");
    *out = (struct walsh_job_options){
        .format = format,
        .rotation = rotation,
        .tensor_parallel = o->tensor_parallel ? o->tensor_parallel : 1,
        .calibration = o->calibration,
        .samples = o->samples ? o->samples : DEFAULT_SAMPLES,
        .sample_tokens = o->sample_tokens,
        .passes = o->passes < 0 ? WALSH_LDLQ_PASSES : (unsigned)o->passes,
        .tune = !o->plain,
        .head_int8 = int8,
        .seed = o->seed,
        .dry_run = o->dry_run,
        .resume = o->resume,
        .use_mmap = !o->no_mmap,
    };
    return WALSH_OK;
}

/* The names stand behind the rows, in the same block. */
static enum walsh_status copy_linears(const struct walsh_job_report *job, struct walsh_quantize_report *out,
                                      struct walsh_error *err)
{
    size_t names = 0;
    for (size_t i = 0; i < job->linear_count; i++) names += strlen(job->linears[i].name) + 1;
    uint8_t *block;
    WALSH_TRY(walsh_alloc(job->linear_count * sizeof *out->linears + names, 1, "the report", &block, err));
    out->linears = (struct walsh_quantize_layer *)(void *)block;
    out->linear_count = job->linear_count;
    char *name = (char *)(block + job->linear_count * sizeof *out->linears);
    double weights = 0, bits = 0;
    for (size_t i = 0; i < job->linear_count; i++) {
        const struct walsh_job_linear *l = &job->linears[i];
        double size = (double)l->rows * l->cols;
        out->linears[i] = (struct walsh_quantize_layer){.name = strcpy(name, l->name),
                                                        .rows = l->rows,
                                                        .cols = l->cols,
                                                        .proxy = l->proxy,
                                                        .bits_per_weight = 8 * (double)l->bytes / size,
                                                        .seconds = l->seconds};
        name += strlen(name) + 1;
        weights += size;
        bits += 8 * (double)l->bytes;
    }
    out->bits_per_weight = weights > 0 ? bits / weights : 0;
    return WALSH_OK;
}

/* The widths of the job, ascending. */
static enum walsh_status read_bits(const struct walsh_quantize_options *o, struct walsh_job_options *job,
                                   struct walsh_error *err)
{
    if (o->bits_count < 2) {
        job->bits[0] = o->bits_count == 1 ? o->bits_list[0] : o->bits;
        job->outputs = 1;
        return WALSH_OK;
    }
    for (unsigned bits = 2; bits <= 8; bits++)
        for (size_t i = 0; i < o->bits_count; i++) {
            if (o->bits_list[i] != bits) continue;
            if (job->outputs > 0 && job->bits[job->outputs - 1] == bits)
                return walsh_fail(err, WALSH_E_ARGUMENT, "%u bits are listed twice", bits);
            job->bits[job->outputs++] = bits;
        }
    for (size_t i = 0; i < o->bits_count; i++)
        if (o->bits_list[i] < 2 || o->bits_list[i] > 8)
            return walsh_fail(err, WALSH_E_ARGUMENT, "%u bits per weight, expected 2 to 8", o->bits_list[i]);
    return WALSH_OK;
}

/* DST, or DST-Nbpw of each width; each walsh_free. */
static enum walsh_status name_outputs(const char *dst, const struct walsh_job_options *job,
                                      char *names[WALSH_JOB_OUTPUTS], struct walsh_error *err)
{
    size_t size = strlen(dst);
    while (job->outputs > 1 && size > 1 && dst[size - 1] == '/') size--;
    for (size_t i = 0; i < job->outputs; i++) {
        WALSH_TRY(walsh_alloc(size + 16, 1, "a path", &names[i], err));
        snprintf(names[i], size + 16, "%.*s", (int)size, dst);
        if (job->outputs > 1) snprintf(names[i] + size, 16, "-%ubpw", job->bits[i]);
    }
    return WALSH_OK;
}

static enum walsh_status write_report(const struct walsh_job_report *done,
                                      struct walsh_quantize_report *report, struct walsh_error *err)
{
    struct walsh_quantize_report r = {.struct_size = sizeof r,
                                      .bytes_predicted = done->bytes_predicted,
                                      .bytes_written = done->bytes_written,
                                      .seconds = done->seconds,
                                      .encode_seconds = done->encode_seconds,
                                      .forward_seconds = done->forward_seconds,
                                      .hessian_seconds = done->hessian_seconds};
    WALSH_TRY(copy_linears(done, &r, err));
    walsh_result_write(report, &r, sizeof r);
    return WALSH_OK;
}

enum walsh_status walsh_quantize(struct walsh_context *context, const char *src, const char *dst,
                                 const struct walsh_quantize_options *options,
                                 struct walsh_quantize_report *report, struct walsh_error *err)
{
    struct walsh_quantize_options o = WALSH_QUANTIZE_OPTIONS;
    struct walsh_job_options job;
    struct walsh_job_report done[WALSH_JOB_OUTPUTS] = {0};
    char *names[WALSH_JOB_OUTPUTS] = {NULL};
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_quantize_options", err));
    WALSH_TRY(job_options(&o, &job, err));
    WALSH_TRY(read_bits(&o, &job, err));
    if (!src && o.dry_run) return WALSH_OK;
    enum walsh_status status = name_outputs(dst, &job, names, err);
    if (status == WALSH_OK)
        status = walsh_quantize_job(&context->queue, &context->hooks, src, (const char *const *)names, &job,
                                    done, err);
    for (size_t i = 0; i < job.outputs; i++) {
        struct walsh_quantize_report *to =
            (struct walsh_quantize_report *)(void *)((uint8_t *)report + (i ? i * report->struct_size : 0));
        if (status == WALSH_OK) status = write_report(&done[i], to, err);
        walsh_free(done[i].linears);
        walsh_free(names[i]);
    }
    return status;
}

void walsh_quantize_report_free(struct walsh_quantize_report *report)
{
    if (!report) return;
    walsh_free(report->linears);
    report->linears = NULL;
    report->linear_count = 0;
}

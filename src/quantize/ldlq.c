#include "quantize/ldlq.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "quantize/ldlq_device.h"
#include "quantize/rotate.h"

enum { GROUP = 8, TILE = WALSH_LDLQ_TILE };

/* Wscale = rms(W~) / this: as published, and by bits where a search around it follows. */
static const double published_ratio = 1.03;
static const double tuned_ratio[2 * WALSH_MAX_STAGES + 1] = {0, 0, 1.0, 0.97, 0.9, 0.84, 0.8, 0.78, 0.76};
/* Residual scales that measure better than GLQ's 3.45 and 2.04 together with them. */
static const double tuned_residual_scale[] = {[WALSH_STAGE_E8P] = 3.8, [WALSH_STAGE_E81B] = 2.1};

struct tiles {
    struct walsh_ldlq_state state;
    unsigned passes;
    size_t step;                     /* every step-th tile only */
    const float *trace_of;           /* whose trace: the error's or the target's */
    double *trace;                   /* [tiles] */
    struct walsh_ldlq_device device; /* queue NULL: the CPU searches */
    enum walsh_status status;        /* of what failed on the device, and what it said */
    struct walsh_error *err;
};

static size_t tile_count(size_t m)
{
    return walsh_div_up(m, TILE);
}

static void search_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct tiles *t = argument;
    for (size_t i = begin; i < end; i++) {
        const size_t row = i * t->step * TILE, rows = walsh_min(TILE, t->state.m - row);
        walsh_ldlq_sweep(&t->state, row, rows);
        for (unsigned pass = 0; pass < t->passes; pass++)
            if (walsh_ldlq_pass(&t->state, row, rows) == 0) break;
    }
}

/* Codes of every step-th tile. */
static void search(const struct walsh_queue *q, struct tiles *t)
{
    if (!t->device.queue)
        walsh_pool_run(q->pool, walsh_div_up(tile_count(t->state.m), t->step), 1, search_task, t);
    else if (t->status == WALSH_OK)
        t->status = walsh_ldlq_device_search(&t->device, &t->state, t->step, t->passes, t->err);
}

static void trace_task(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct tiles *t = argument;
    for (size_t i = begin; i < end; i++) {
        const size_t row = i * t->step * TILE;
        t->trace[i] = walsh_ldlq_trace(t->state.input, t->trace_of, row, walsh_min(TILE, t->state.m - row));
    }
}

/* tr(e H~ e^T) over every step-th tile. */
static double trace(const struct walsh_queue *q, struct tiles *t, const float *e)
{
    const size_t count = walsh_div_up(tile_count(t->state.m), t->step);
    double there = 0;
    if (t->device.queue) {
        if (t->status == WALSH_OK)
            t->status = walsh_ldlq_device_trace(&t->device, t->step, e == t->state.target, &there, t->err);
        return there;
    }
    t->trace_of = e;
    walsh_pool_run(q->pool, count, 1, trace_task, t);
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += t->trace[i];
    return sum;
}

/* W~ [m][n] of w [out.size][in.size]. */
static enum walsh_status rotate_weights(const struct walsh_queue *q, const struct walsh_ldlq_input *input,
                                        const struct walsh_rotation *out, const float *w, float *rotated,
                                        struct walsh_error *err)
{
    const size_t size = out->size, m = out->blocks.padded, n = input->n, signs = walsh_rotation_signs(out);
    float *reciprocal = NULL, *rows, *across, *columns;
    WALSH_TRY(walsh_alloc(signs + size * n + n * size + n * m, sizeof(float), "weights to rotate",
                          &reciprocal, err));
    rows = reciprocal + signs;
    across = rows + size * n;
    columns = across + n * size;
    for (size_t i = 0; i < signs; i++) reciprocal[i] = 1 / out->signs[i];
    walsh_rotate_rows(q, &input->rotation, input->reciprocal, w, size, rows);
    walsh_transpose(q, rows, size, n, across);
    walsh_rotate_rows(q, out, reciprocal, across, n, columns);
    walsh_transpose(q, columns, n, m, rotated);
    walsh_free(reciprocal);
    return WALSH_OK;
}

static double sum_of_squares(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static enum walsh_status alloc_codes(struct walsh_ldlq_result *out, struct walsh_error *err)
{
    const size_t groups = (size_t)out->m * (out->n / GROUP);
    for (unsigned k = 0; k < out->plan.stages; k++)
        WALSH_TRY(walsh_alloc_zero(groups, out->plan.kind[k] == WALSH_STAGE_E8P ? 2 : 1, "codes",
                                   &out->codes[k], err));
    return WALSH_OK;
}

static void set_scales(struct tiles *t, const struct walsh_ldlq_result *out, double wscale)
{
    for (unsigned k = 0; k < out->plan.stages; k++)
        t->state.scale[k] = (float)wscale * out->cumulative_inverse[k];
}

/* The Wscale near `wscale` whose codes have the least proxy on a sample of tiles: steps of 4% downhill. How
 * much larger than W~ the encoder's targets are (they carry the feedback) differs from linear to linear. */
static double tune_wscale(const struct walsh_queue *q, struct tiles *t, const struct walsh_ldlq_result *out,
                          double wscale)
{
    enum { SAMPLE = 8, STEPS = 6 };
    const unsigned passes = t->passes;
    t->passes = passes > 0;
    t->step = walsh_max(1, tile_count(t->state.m) / SAMPLE);
    double best = HUGE_VAL, found = wscale;
    for (int direction = 1; direction >= -1; direction -= 2)
        for (int i = direction > 0 ? 0 : 1; i <= STEPS; i++) {
            const double candidate = wscale * pow(1.04, direction * i);
            set_scales(t, out, candidate);
            search(q, t);
            const double proxy = trace(q, t, t->state.error);
            if (proxy >= best) break;
            best = proxy;
            found = candidate;
        }
    t->passes = passes;
    t->step = 1;
    return found;
}

static enum walsh_status choose_scales(const struct walsh_queue *q, const struct walsh_ldlq_options *options,
                                       struct tiles *t, struct walsh_ldlq_result *out,
                                       struct walsh_error *err)
{
    const size_t count = t->state.m * t->state.n;
    const double rms = sqrt(sum_of_squares(t->state.target, count) / (double)count);
    if (!isfinite(rms)) return walsh_fail(err, WALSH_E_FORMAT, "the weights hold NaN or Inf");
    memcpy(out->cumulative_inverse, out->plan.cumulative_inverse, sizeof out->cumulative_inverse);
    double wscale = rms / published_ratio;
    if (options->tune) {
        double product = 1;
        for (unsigned k = 1; k < out->plan.stages; k++) {
            product *= tuned_residual_scale[out->plan.kind[k]];
            out->cumulative_inverse[k] = (float)(1 / product);
        }
        wscale = rms / tuned_ratio[options->bits];
    }
    if (options->tune && wscale > 0) wscale = tune_wscale(q, t, out, wscale);
    out->wscale = (float)wscale;
    set_scales(t, out, (double)out->wscale);
    return WALSH_OK;
}

static enum walsh_status quantize(const struct walsh_queue *q, const struct walsh_ldlq_options *options,
                                  const struct walsh_rotation *out_rotation, const float *w, struct tiles *t,
                                  struct walsh_ldlq_result *out, struct walsh_error *err)
{
    const struct walsh_ldlq_input *input = t->state.input;
    float *target = (float *)t->state.target;
    WALSH_TRY(rotate_weights(q, input, out_rotation, w, target, err));
    if (options->device) WALSH_TRY(walsh_ldlq_device_open(options->device, &t->state, &t->device, err));
    WALSH_TRY(choose_scales(q, options, t, out, err));
    search(q, t);
    const double whole = trace(q, t, target);
    out->proxy = whole > 0 ? trace(q, t, t->state.error) / whole : 0;
    if (t->device.queue && t->status == WALSH_OK)
        t->status = walsh_ldlq_device_fetch(&t->device, &t->state, err);
    return t->status;
}

enum walsh_status walsh_ldlq_quantize(const struct walsh_queue *q, const struct walsh_ldlq_input *input,
                                      const struct walsh_rotation *out_rotation, const float *w,
                                      const struct walsh_ldlq_options *options, struct walsh_ldlq_result *out,
                                      float *decoded, struct walsh_error *err)
{
    memset(out, 0, sizeof *out);
    WALSH_TRY(walsh_e8p_plan_bits(options->bits, &out->plan, err));
    out->m = out_rotation->blocks.padded;
    out->n = input->n;
    const size_t count = (size_t)out->m * out->n;
    float *work = NULL;
    double *traces = NULL;
    enum walsh_status status = alloc_codes(out, err);
    if (status == WALSH_OK) status = walsh_alloc(count * 2, sizeof *work, "a linear to quantize", &work, err);
    if (status == WALSH_OK) status = walsh_alloc(tile_count(out->m), sizeof *traces, "traces", &traces, err);
    if (status == WALSH_OK) {
        struct tiles t = {.passes = input->identity ? 0 : options->passes, .step = 1, .trace = traces};
        t.state = (struct walsh_ldlq_state){.kernels = q->kernels,
                                            .input = input,
                                            .plan = &out->plan,
                                            .m = out->m,
                                            .n = out->n,
                                            .target = work,
                                            .error = work + count};
        memcpy(t.state.codes, out->codes, sizeof out->codes);
        t.err = err;
        status = quantize(q, options, out_rotation, w, &t, out, err);
        walsh_ldlq_device_close(&t.device);
    }
    walsh_free(traces);
    walsh_free(work);
    if (status == WALSH_OK && decoded)
        status = walsh_ldlq_decode(q, &input->rotation, out_rotation, out, decoded, err);
    if (status != WALSH_OK) walsh_ldlq_result_close(out);
    return status;
}

void walsh_ldlq_result_close(struct walsh_ldlq_result *result)
{
    for (unsigned k = 0; k < WALSH_MAX_STAGES; k++) walsh_free(result->codes[k]);
    memset(result, 0, sizeof *result);
}

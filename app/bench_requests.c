#include "bench_requests.h"

#include <stdlib.h>
#include <string.h>

/* A request as its sender sees it. */
struct sender {
    uint64_t id;
    double started; /* when its prompt began to be read; 0: it waits */
    double last;    /* when its last token came */
};

struct flow {
    const struct requests_plan *plan;
    struct walsh_batch *batch;
    struct walsh_batch_event *events; /* [plan->batch.max_rows] */
    struct sender *senders;           /* [requests] */
    double *gaps, *firsts;            /* [requests * generate], [requests] */
    int32_t *ids;                     /* [2 * prompt] */
    size_t gap_count, first_count, ended, steps;
};

static enum walsh_status allocate(struct flow *f, struct walsh_error *err)
{
    const struct requests_plan *p = f->plan;
    f->events = calloc(p->batch.max_rows, sizeof *f->events);
    f->senders = calloc(p->requests, sizeof *f->senders);
    f->gaps = calloc(p->requests * p->generate, sizeof *f->gaps);
    f->firsts = calloc(p->requests, sizeof *f->firsts);
    f->ids = calloc(2 * (size_t)p->prompt, sizeof *f->ids);
    if (!f->events || !f->senders || !f->gaps || !f->firsts || !f->ids)
        return fail(err, WALSH_E_MEMORY, "out of memory for %zu requests", p->requests);
    return WALSH_OK;
}

/* Lengths and ids that are spread out and the same in every run. */
static uint32_t spread(uint64_t i)
{
    return (uint32_t)(i * 0x9e3779b97f4a7c15u >> 33);
}

static enum walsh_status send_all(struct flow *f, struct walsh_error *err)
{
    const struct requests_plan *p = f->plan;
    for (size_t i = 0; i < p->requests; i++) {
        struct walsh_adapter_use own = {.scale = 1};
        struct walsh_batch_request request = WALSH_BATCH_REQUEST;
        request.ids = f->ids;
        request.count = p->prompt - p->prompt / 2 + spread(i + 1) % (p->prompt / 2 * 2 + 1);
        for (size_t t = 0; t < request.count; t++)
            f->ids[t] = (int32_t)(spread(i * 65537 + t + 1) % p->vocab);
        request.max_tokens = p->generate;
        request.ignore_eos = true;
        request.adapters = p->adapters;
        request.adapter_count = p->adapter_count;
        if (p->own_count) {
            own.adapter = p->own[i % p->own_count];
            request.adapters = &own;
            request.adapter_count = 1;
        }
        request.user = &f->senders[i];
        TRY(walsh_batch_submit(f->batch, &request, &f->senders[i].id, err));
    }
    return WALSH_OK;
}

/* Those that wait no longer, since the step that began at `time`. */
static void note_starts(struct flow *f, double time)
{
    for (size_t i = 0; i < f->plan->requests; i++) {
        struct walsh_batch_request_info info = {.struct_size = sizeof info};
        if (f->senders[i].started > 0) continue;
        if (!walsh_batch_get_request(f->batch, f->senders[i].id, &info) || info.state == WALSH_REQUEST_QUEUED)
            return;
        f->senders[i].started = time;
    }
}

static enum walsh_status take(struct flow *f, const struct walsh_batch_event *event, double now,
                              struct walsh_error *err)
{
    struct sender *sender = event->user;
    if (event->finish == WALSH_FINISH_ERROR) return fail(err, event->status, "%s", event->message);
    if (sender->last > 0)
        f->gaps[f->gap_count++] = now - sender->last;
    else
        f->firsts[f->first_count++] = now - sender->started;
    sender->last = now;
    f->ended += event->finish != WALSH_FINISH_NONE;
    return WALSH_OK;
}

static enum walsh_status drive(struct flow *f, struct requests_result *result, struct walsh_error *err)
{
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    const double started = seconds_now();
    TRY(send_all(f, err));
    while (f->ended < f->plan->requests) {
        size_t count;
        if (interrupted()) return fail(err, WALSH_E_ABORTED, "stopped on request");
        const double begin = seconds_now();
        TRY(walsh_batch_step(f->batch, f->events, f->plan->batch.max_rows, &count, err));
        const double now = seconds_now();
        note_starts(f, begin);
        for (size_t i = 0; i < count; i++) TRY(take(f, &f->events[i], now, err));
        f->steps += count > 0;
        walsh_batch_get_metrics(f->batch, &m);
        if (m.kv_bytes > result->kv_bytes) result->kv_bytes = m.kv_bytes;
    }
    result->seconds = seconds_now() - started;
    result->tokens = m.generated_tokens;
    result->prompt_tokens = m.prompt_tokens;
    return WALSH_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value below which `share` of them lie; 0 without any. */
static double quantile(double *values, size_t count, double share)
{
    if (count == 0) return 0;
    qsort(values, count, sizeof *values, compare_doubles);
    return values[(size_t)(share * (double)(count - 1) + 0.5)];
}

enum walsh_status requests_time(const struct walsh_model *model, const struct requests_plan *plan,
                                struct requests_result *result, struct walsh_error *err)
{
    struct flow f = {.plan = plan};
    memset(result, 0, sizeof *result);
    enum walsh_status status = allocate(&f, err);
    if (status == WALSH_OK) status = walsh_batch_open(model, &plan->batch, &f.batch, err);
    if (status == WALSH_OK) status = drive(&f, result, err);
    if (status == WALSH_OK) {
        result->gap_median = quantile(f.gaps, f.gap_count, 0.5);
        result->gap_p99 = quantile(f.gaps, f.gap_count, 0.99);
        result->first_median = quantile(f.firsts, f.first_count, 0.5);
        result->rows = (double)result->tokens / (double)f.steps;
    }
    walsh_batch_close(&f.batch);
    free(f.events);
    free(f.senders);
    free(f.gaps);
    free(f.firsts);
    free(f.ids);
    return status;
}

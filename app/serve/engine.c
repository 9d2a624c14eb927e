#include "engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SWEEP_SECONDS 0.1 /* between two looks at deadlines of jobs that wait */

/* Who shares one place in the round: a key, or an address. There while something of it waits. */
struct tenant {
    uint64_t id;
    struct sequence *first, *last;
    size_t waiting;
    struct tenant *next; /* in the round */
};

struct engine {
    struct engine_options options;
    struct walsh_batch *batch;
    struct walsh_batch_event *events; /* [rows] */
    uint32_t rows;
    pthread_t thread;
    bool started;
    /* under the lock: */
    pthread_mutex_t lock;
    pthread_cond_t news;
    struct tenant *round, *round_last; /* its first has the next turn */
    size_t waiting, running, jobs;
    bool stop, draining, poked;
    struct refusal abandon; /* status 0: none */
    struct walsh_batch_metrics snapshot;
    double row_seconds; /* a running mean of how long a sequence keeps its row */
    /* of the thread alone: */
    struct sequence *active; /* those in the batch */
    double swept;
};

/* ---------------------------------------------------------------------------------------- the queue */

static struct tenant *find_tenant(struct engine *e, uint64_t id)
{
    struct tenant *t = e->round;
    while (t && t->id != id) t = t->next;
    return t;
}

static void append_tenant(struct engine *e, struct tenant *t)
{
    t->next = NULL;
    if (e->round_last)
        e->round_last->next = t;
    else
        e->round = t;
    e->round_last = t;
}

static void remove_tenant(struct engine *e, struct tenant *t)
{
    struct tenant *before = NULL, *at = e->round;
    while (at != t) {
        before = at;
        at = at->next;
    }
    if (before)
        before->next = t->next;
    else
        e->round = t->next;
    if (e->round_last == t) e->round_last = before;
}

/* The next sequence: of the tenant whose turn it is, who then goes to the end of the round. */
static struct sequence *take_next(struct engine *e)
{
    struct tenant *t = e->round;
    if (!t) return NULL;
    struct sequence *s = t->first;
    t->first = s->next;
    s->next = NULL;
    t->waiting--;
    e->waiting--;
    remove_tenant(e, t);
    if (t->first)
        append_tenant(e, t);
    else
        free(t);
    return s;
}

bool engine_submit(struct engine *e, struct job *job, struct refusal *refusal, unsigned *retry)
{
    bool accepted = false;
    *retry = 0;
    pthread_mutex_lock(&e->lock);
    struct tenant *t = find_tenant(e, job->tenant);
    const size_t own = t ? t->waiting : 0;
    /* What is there now at the pace of late; a round guess is better than none. */
    const double pace = e->row_seconds > 0 ? e->row_seconds : 1;
    const double wait = pace * (1 + (double)e->waiting / e->rows);
    if (e->stop || e->draining) {
        refuse(refusal, 503, "shutting_down", NULL, "the server is shutting down");
    } else if (job->count > e->options.max_waiting || job->count > e->options.max_waiting_tenant) {
        const size_t most = e->options.max_waiting < e->options.max_waiting_tenant
                                ? e->options.max_waiting
                                : e->options.max_waiting_tenant;
        refuse(refusal, 400, "invalid_value", "n",
               "the request has %zu sequences, and the queue never holds more than %zu%s", job->count, most,
               most < e->options.max_waiting ? " of one client" : "");
    } else if (job->count > e->options.max_waiting - e->waiting ||
               job->count > e->options.max_waiting_tenant - own) {
        const bool all = job->count > e->options.max_waiting - e->waiting;
        *retry = (unsigned)fmin(60, fmax(1, ceil(wait)));
        refuse(refusal, 429, "queue_full", NULL,
               "%zu sequences wait%s, and %zu more do not fit into the queue of %zu", all ? e->waiting : own,
               all ? "" : " for you", job->count,
               all ? e->options.max_waiting : e->options.max_waiting_tenant);
    } else if (!t && !(t = calloc(1, sizeof *t))) {
        refuse_memory(refusal);
    } else {
        if (!t->first) {
            t->id = job->tenant;
            append_tenant(e, t);
        }
        for (size_t i = 0; i < job->count; i++) {
            struct sequence *s = &job->sequences[i];
            if (t->first)
                t->last->next = s;
            else
                t->first = s;
            t->last = s;
        }
        t->waiting += job->count;
        e->waiting += job->count;
        e->jobs++;
        job_hold(job);
        pthread_cond_signal(&e->news);
        accepted = true;
    }
    pthread_mutex_unlock(&e->lock);
    return accepted;
}

/* ---------------------------------------------------------------------------------------- ends */

/* With the engine's lock not held. The sequence has left queue and batch. */
static void end_sequence(struct engine *e, struct sequence *s)
{
    struct job *job = s->job;
    const double now = seconds_now();
    s->state = SEQUENCE_ENDED;
    pthread_mutex_lock(&job->lock);
    const bool done = --job->open == 0;
    if (done) {
        const bool stream = job->request.stream;
        if (stream && !job->failure.status && !job_send_end(job)) refuse_memory(&job->failure);
        if (stream && job->failure.status) job_send_failure(job);
        job->done = true;
        job_wake(job);
    }
    pthread_mutex_unlock(&job->lock);
    if (s->started > 0) {
        pthread_mutex_lock(&e->lock);
        e->row_seconds += (now - s->started - e->row_seconds) * (e->row_seconds > 0 ? 0.1 : 1);
        pthread_mutex_unlock(&e->lock);
    }
    if (!done) return;
    metrics_observe(e->options.metrics, &e->options.metrics->duration, now - job->arrived);
    pthread_mutex_lock(&e->lock);
    e->jobs--;
    pthread_mutex_unlock(&e->lock);
    job_release(job);
}

/* Why the job must end now; false: it goes on. */
static bool doomed(struct engine *e, struct sequence *s, double now)
{
    struct job *job = s->job;
    if (atomic_load(&job->cancelled)) return true;
    const bool late = now > job->deadline;
    const bool starved = s->state == SEQUENCE_WAITS && now > job->queue_deadline;
    if (!late && !starved && !e->abandon.status) return false;
    pthread_mutex_lock(&job->lock);
    if (!job->failure.status) {
        if (e->abandon.status)
            job->failure = e->abandon;
        else if (starved)
            refuse(&job->failure, 503, "queue_timeout", NULL, "the request waited %.3g seconds for its turn",
                   now - job->arrived);
        else
            refuse(&job->failure, 504, "timeout", NULL, "the request took more than %g seconds",
                   job->limit_seconds);
        if (!e->abandon.status) metrics_add(e->options.metrics, &e->options.metrics->timeouts);
    }
    pthread_mutex_unlock(&job->lock);
    job_cancel(job); /* its other sequences end too */
    return true;
}

/* Take what is doomed out of the queue; a list of it. With the lock held. */
static struct sequence *sweep_waiting(struct engine *e, double now)
{
    struct sequence *out = NULL;
    for (struct tenant *t = e->round, *next; t; t = next) {
        next = t->next;
        struct sequence **link = &t->first;
        t->last = NULL;
        while (*link) {
            struct sequence *s = *link;
            if (!doomed(e, s, now)) {
                t->last = s;
                link = &s->next;
                continue;
            }
            *link = s->next;
            s->next = out;
            out = s;
            t->waiting--;
            e->waiting--;
        }
        if (t->first) continue;
        remove_tenant(e, t);
        free(t);
    }
    return out;
}

static void end_list(struct engine *e, struct sequence *list)
{
    for (struct sequence *s = list, *next; s; s = next) {
        next = s->next;
        s->next = NULL;
        end_sequence(e, s);
    }
}

/* Out of the list of those in the batch. */
static void retire(struct engine *e, struct sequence *s)
{
    struct sequence **link = &e->active;
    while (*link != s) link = &(*link)->next;
    *link = s->next;
    s->next = NULL;
    pthread_mutex_lock(&e->lock);
    e->running--;
    pthread_mutex_unlock(&e->lock);
    end_sequence(e, s);
}

static void sweep_active(struct engine *e, double now)
{
    for (struct sequence *s = e->active, *next; s; s = next) {
        next = s->next;
        if (!doomed(e, s, now)) continue;
        walsh_batch_cancel(e->batch, s->id, NULL);
        retire(e, s);
    }
}

/* ---------------------------------------------------------------------------------------- the batch */

static void fail_job(struct sequence *s, const struct refusal *why)
{
    pthread_mutex_lock(&s->job->lock);
    if (!s->job->failure.status) s->job->failure = *why;
    pthread_mutex_unlock(&s->job->lock);
    job_cancel(s->job);
}

static void fail_inside(struct sequence *s, const char *message)
{
    struct refusal why;
    refuse(&why, 500, "internal_error", NULL, "%s", message);
    fail_job(s, &why);
}

/* The logits of an echoed prompt; `user` is the sequence. */
static void take_prompt(void *user, uint32_t first, const float *logits, uint32_t count)
{
    struct sequence *s = user;
    sequence_take_prompt(s, first, logits, count, s->job->vocab);
}

static enum walsh_status start(struct engine *e, struct sequence *s, struct walsh_error *err)
{
    struct job *job = s->job;
    struct walsh_sampler_options sampling = job->sampling;
    struct walsh_adapter_use use = {job->entry->adapter, job->entry->scale};
    struct walsh_batch_request request = WALSH_BATCH_REQUEST;
    sampling.seed = job->seed + s->index;
    request.ids = s->prompt->ids;
    request.count = s->prompt->count;
    request.max_tokens = job->max_tokens;
    request.sampling = &sampling;
    request.stop_ids = job->request.stop_ids;
    request.stop_count = job->request.stop_id_count;
    request.ignore_eos = job->request.ignore_eos;
    request.adapters = &use;
    request.adapter_count = use.adapter ? 1 : 0;
    request.salt = job->salt;
    request.salt_size = job->salt_size;
    request.user = s;
    if (job->request.echo && job->request.logprobs_asked) request.prompt_logits = take_prompt;
    return walsh_batch_submit(e->batch, &request, &s->id, err);
}

/* Fill the free rows. One at most waits in the batch itself, for room in the caches: what comes first there
 * stays first. */
static void admit(struct engine *e)
{
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    for (;;) {
        walsh_batch_get_metrics(e->batch, &m);
        pthread_mutex_lock(&e->lock);
        const bool room = m.queued == 0 && e->running < e->rows;
        struct sequence *s = room ? take_next(e) : NULL;
        if (s) e->running++;
        pthread_mutex_unlock(&e->lock);
        if (!s) return;
        struct walsh_error err = {0};
        s->state = SEQUENCE_RUNS;
        s->started = s->last = seconds_now();
        s->next = e->active;
        e->active = s;
        metrics_observe(e->options.metrics, &e->options.metrics->wait, s->started - s->job->arrived);
        if (start(e, s, &err) == WALSH_OK) continue;
        struct refusal why;
        refuse(&why, err.status == WALSH_E_CAPACITY || err.status == WALSH_E_ARGUMENT ? 400 : 503, "refused",
               NULL, "%s", err.message);
        fail_job(s, &why);
        retire(e, s);
    }
}

static void observe_token(struct engine *e, struct sequence *s, double now)
{
    struct metrics *m = e->options.metrics;
    struct job *job = s->job;
    if (s->tokens == 0 && job->first_token == 0) {
        job->first_token = now - job->arrived;
        metrics_observe(m, &m->first_token, job->first_token);
    } else if (s->tokens > 0) {
        metrics_observe(m, &m->gap, now - s->last);
    }
    s->last = now;
}

static void note_prefix(struct engine *e, struct sequence *s)
{
    struct walsh_batch_request_info info = {.struct_size = sizeof info};
    if (s->index % s->job->request.n == 0 && walsh_batch_get_request(e->batch, s->id, &info))
        s->job->prefix_tokens += info.prefix_tokens; /* once for each prompt */
}

/* One event of a step. Returns with the sequence retired where it ended. */
static void take_event(struct engine *e, const struct walsh_batch_event *event, double now)
{
    struct sequence *s = event->user;
    struct job *job = s->job;
    if (event->finish == WALSH_FINISH_ERROR) {
        log_message(e->options.log, "error", "sequence_failed", event->message);
        fail_inside(s, event->message);
        retire(e, s);
        return;
    }
    const bool said = event->finish != WALSH_FINISH_EOS && event->finish != WALSH_FINISH_STOP && !job->silent;
    const float *logits = job->request.logprobs_asked ? walsh_batch_logits(e->batch, event->request) : NULL;
    bool stopped = false, good = !s->lost;
    pthread_mutex_lock(&job->lock);
    const bool stalled = !job->stalled && job->out.size - job->taken > job->stall_bytes; /* told once */
    observe_token(e, s, now);
    if (event->tokens == 1) note_prefix(e, s);
    if (said && good) {
        job->tokens++;
        good = sequence_take(s, event->token, logits, e->options.vocab, &stopped);
    }
    const bool ended = stopped || event->finish != WALSH_FINISH_NONE;
    if (good && ended)
        good = sequence_finish(s, event->finish == WALSH_FINISH_LENGTH || job->silent ? "length" : "stop");
    if (good) good = sequence_send(s);
    if (good && job->out.size > job->taken) job_wake(job); /* of what is no stream the end alone is news */
    job->stalled |= stalled;
    pthread_mutex_unlock(&job->lock);
    if (stopped && event->finish == WALSH_FINISH_NONE) walsh_batch_cancel(e->batch, s->id, NULL);
    if (!good) {
        struct refusal why;
        refuse_memory(&why);
        fail_job(s, &why);
    }
    if (!good && !ended) walsh_batch_cancel(e->batch, s->id, NULL);
    if (stalled) { /* nobody reads: what is left of it is for nothing */
        metrics_add(e->options.metrics, &e->options.metrics->stalled);
        job_cancel(job);
    }
    if (ended || !good) retire(e, s);
}

static void step(struct engine *e)
{
    size_t count = 0;
    struct walsh_error err = {0};
    if (walsh_batch_step(e->batch, e->events, e->rows, &count, &err) != WALSH_OK) {
        log_message(e->options.log, "error", "step_failed", err.message);
        while (e->active) {
            struct sequence *s = e->active;
            fail_inside(s, err.message);
            walsh_batch_cancel(e->batch, s->id, NULL);
            retire(e, s);
        }
        return;
    }
    const double now = seconds_now();
    for (size_t i = 0; i < count; i++) take_event(e, &e->events[i], now);
}

/* ---------------------------------------------------------------------------------------- the thread */

/* Sleep until there is something to do; false: stop. */
static bool await_news(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    walsh_batch_get_metrics(e->batch, &e->snapshot);
    while (!e->stop && !e->active && !e->waiting && !e->poked) pthread_cond_wait(&e->news, &e->lock);
    const bool stop = e->stop && !e->active && !e->waiting;
    const double now = seconds_now();
    const bool look = e->poked || e->stop || now - e->swept > SWEEP_SECONDS;
    if (look) e->swept = now;
    e->poked = false;
    struct sequence *list = look ? sweep_waiting(e, now) : NULL;
    pthread_mutex_unlock(&e->lock);
    end_list(e, list);
    if (look) sweep_active(e, now);
    return !stop;
}

static void *run(void *argument)
{
    struct engine *e = argument;
    while (await_news(e)) {
        admit(e);
        if (e->active) step(e);
    }
    return NULL;
}

enum walsh_status engine_open(const struct engine_options *options, struct engine **out,
                              struct walsh_error *err)
{
    *out = NULL;
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return fail(err, WALSH_E_MEMORY, "out of memory for the engine");
    e->options = *options;
    e->rows = options->batch.max_rows;
    e->events = calloc(e->rows, sizeof *e->events);
    e->snapshot.struct_size = sizeof e->snapshot;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->news, NULL);
    enum walsh_status status =
        e->events ? WALSH_OK : fail(err, WALSH_E_MEMORY, "out of memory for the engine");
    if (status == WALSH_OK) status = walsh_batch_open(options->model, &options->batch, &e->batch, err);
    if (status == WALSH_OK && pthread_create(&e->thread, NULL, run, e) != 0)
        status = fail(err, WALSH_E_MEMORY, "cannot start the engine's thread");
    e->started = status == WALSH_OK;
    if (status != WALSH_OK) engine_close(&e);
    *out = e;
    return status;
}

void engine_close(struct engine **engine)
{
    if (!engine || !*engine) return;
    struct engine *e = *engine;
    if (e->started) {
        pthread_mutex_lock(&e->lock);
        e->stop = e->draining = true;
        if (!e->abandon.status)
            refuse(&e->abandon, 503, "shutting_down", NULL, "the server is shutting down");
        pthread_cond_signal(&e->news);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    walsh_batch_close(&e->batch);
    free(e->events);
    pthread_cond_destroy(&e->news);
    pthread_mutex_destroy(&e->lock);
    free(e);
    *engine = NULL;
}

void engine_poke(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->poked = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

size_t engine_jobs(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    const size_t jobs = e->jobs;
    pthread_mutex_unlock(&e->lock);
    return jobs;
}

void engine_abandon(struct engine *e, const struct refusal *refusal)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    e->abandon = *refusal;
    e->poked = true;
    pthread_cond_signal(&e->news);
    pthread_mutex_unlock(&e->lock);
}

void engine_snapshot(struct engine *e, struct engine_snapshot *out)
{
    pthread_mutex_lock(&e->lock);
    *out = (struct engine_snapshot){.batch = e->snapshot, .waiting = e->waiting, .draining = e->draining};
    pthread_mutex_unlock(&e->lock);
}

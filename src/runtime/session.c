#include "runtime/session.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/machine.h"
#include "kernels/device.h"
#include "runtime/prefix.h"

struct walsh_kv_shape walsh_session_kv_shape(const struct walsh_model_graph *graph, uint32_t capacity,
                                             const struct walsh_kv_policy *policy)
{
    const struct walsh_config *c = &graph->config;
    return (struct walsh_kv_shape){.policy = *policy,
                                   .layers = c->layers,
                                   .kv_heads = c->kv_heads,
                                   .head_dim = c->head_dim,
                                   .capacity = capacity,
                                   .windowed = graph->windowed,
                                   .conv = graph->conv,
                                   .conv_width = c->hidden};
}

static enum walsh_status open_members(struct walsh_session *s, const struct walsh_kv_shape *shape,
                                      struct walsh_error *err)
{
    WALSH_TRY(walsh_kv_open(shape, &s->kv, err));
    return walsh_alloc(s->runner->graph->config.vocab, sizeof(float), "a session's logits", &s->logits, err);
}

enum walsh_status walsh_runtime_session_open(struct walsh_runner *runner, uint32_t capacity,
                                             const struct walsh_kv_policy *policy, struct walsh_session **out,
                                             struct walsh_error *err)
{
    const struct walsh_kv_shape shape = walsh_session_kv_shape(runner->graph, capacity, policy);
    return walsh_runtime_session_open_shape(runner, &shape, out, err);
}

/* Where the cache's pages go, and whether they fit there. */
static enum walsh_status place_cache(const struct walsh_runner *runner, struct walsh_kv_shape *shape,
                                     struct walsh_error *err)
{
    char what[80];
    const struct walsh_queue *q = runner->queue;
    const uint64_t bytes = walsh_kv_bytes(shape);
    snprintf(what, sizeof what, "the KV cache of a context of %u tokens", shape->capacity);
    if (!q->memory) return walsh_memory_check(what, bytes, err);
    if (shape->policy.type == WALSH_KV_TURBO && (!q->memory->upload_codecs || shape->policy.prod_keys))
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s run on the CPU only; the model is on a device",
                          shape->policy.prod_keys ? "Prod keys" : "packed KV caches");
    size_t available, total;
    q->memory->figures(q, &available, &total);
    if (bytes > available)
        return walsh_fail(err, WALSH_E_MEMORY, "%s takes %.2f GB on the device, %.2f of %.2f GB are free",
                          what, (double)bytes / 1e9, (double)available / 1e9, (double)total / 1e9);
    shape->queue = q;
    return WALSH_OK;
}

enum walsh_status walsh_runtime_session_open_shape(struct walsh_runner *runner,
                                                   const struct walsh_kv_shape *shape,
                                                   struct walsh_session **out, struct walsh_error *err)
{
    *out = NULL;
    const uint32_t positions = runner->graph->config.max_positions, capacity = shape->capacity;
    if (capacity > positions && positions == WALSH_MAX_POSITIONS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "context of %u tokens: walsh runs at most %u", capacity,
                          WALSH_MAX_POSITIONS);
    if (capacity == 0 || capacity > positions)
        return walsh_fail(err, WALSH_E_ARGUMENT, "context of %u tokens: the model has positions for 1 to %u",
                          capacity, positions);
    WALSH_TRY(walsh_kv_check(shape, err));
    struct walsh_kv_shape placed = *shape;
    WALSH_TRY(place_cache(runner, &placed, err));
    struct walsh_session *session;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *session, "a session", &session, err));
    session->runner = runner;
    session->rope_offset = walsh_graph_rope_offset(runner->graph, capacity);
    enum walsh_status status = open_members(session, &placed, err);
    if (status != WALSH_OK) {
        walsh_runtime_session_close(&session);
        return status;
    }
    *out = session;
    return WALSH_OK;
}

static enum walsh_status fork_members(const struct walsh_session *from, struct walsh_session *s,
                                      struct walsh_error *err)
{
    const size_t vocab = s->runner->graph->config.vocab;
    WALSH_TRY(walsh_kv_fork(from->kv, &s->kv, err));
    WALSH_TRY(walsh_alloc(vocab, sizeof(float), "a session's logits", &s->logits, err));
    /* reading changes where the logits are, not what they are */
    if (from->has_logits)
        memcpy(s->logits, walsh_session_read((struct walsh_session *)(uintptr_t)from),
               vocab * sizeof *s->logits);
    s->has_logits = from->has_logits;
    const struct walsh_adapter_set *set = from->adapters;
    return set ? walsh_runtime_set_adapters(s, set->choices, set->count, err) : WALSH_OK;
}

enum walsh_status walsh_runtime_fork(const struct walsh_session *session, struct walsh_session **out,
                                     struct walsh_error *err)
{
    *out = NULL;
    struct walsh_session *fork;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *fork, "a session", &fork, err));
    fork->runner = session->runner;
    fork->rope_offset = session->rope_offset;
    const enum walsh_status status = fork_members(session, fork, err);
    if (status != WALSH_OK) {
        walsh_runtime_session_close(&fork);
        return status;
    }
    *out = fork;
    return WALSH_OK;
}

/* The session's logits are its own again, whatever they are. */
static void disown(struct walsh_session *s)
{
    if (s->away) s->runner->device.owners[s->away_row] = NULL;
    s->away = false;
}

float *walsh_session_read(struct walsh_session *s)
{
    struct walsh_runner *r = s->runner;
    if (!s->away) return s->logits;
    const size_t vocab = r->graph->config.vocab;
    struct walsh_error err;
    if (walsh_queue_download(r->queue, s->logits, r->device.step_logits + s->away_row * vocab,
                             vocab * sizeof *s->logits, &err) != WALSH_OK &&
        r->failure.status == WALSH_OK)
        r->failure = err;
    disown(s);
    return s->logits;
}

void walsh_runtime_session_close(struct walsh_session **session)
{
    if (!session || !*session) return;
    disown(*session);
    walsh_prefix_close(&(*session)->prefix);
    walsh_kv_close(&(*session)->kv);
    walsh_adapter_set_close(&(*session)->adapters);
    walsh_free((*session)->logits);
    walsh_free(*session);
    *session = NULL;
}

enum walsh_status walsh_runtime_open_set(const struct walsh_runner *runner,
                                         const struct walsh_adapter_choice *choices, size_t count,
                                         struct walsh_adapter_set **out, struct walsh_error *err)
{
    *out = NULL;
    for (size_t i = 0; i < count; i++)
        if (choices[i].adapter->graph != runner->graph)
            return walsh_fail(err, WALSH_E_ARGUMENT, "adapter %s belongs to another model than the session",
                              choices[i].adapter->name);
    if (count == 0) return WALSH_OK;
    WALSH_TRY(walsh_adapter_set_open(choices, count, out, err));
    const enum walsh_status status = walsh_workspace_reserve(runner->workspace, *out, err);
    if (status != WALSH_OK) walsh_adapter_set_close(out);
    return status;
}

enum walsh_status walsh_runtime_set_adapters(struct walsh_session *session,
                                             const struct walsh_adapter_choice *choices, size_t count,
                                             struct walsh_error *err)
{
    struct walsh_adapter_set *set;
    WALSH_TRY(walsh_runtime_open_set(session->runner, choices, count, &set, err));
    walsh_adapter_set_close(&session->adapters);
    session->adapters = set;
    walsh_prefix_stop(session);
    return WALSH_OK;
}

struct walsh_row_sets walsh_session_sets(const struct walsh_session *session, size_t n,
                                         struct walsh_row_set *room)
{
    *room = (struct walsh_row_set){session->adapters, 0, n};
    return (struct walsh_row_sets){room, session->adapters ? 1 : 0};
}

/* Run tokens [kv->length, kv->length + n) of one chunk into x [n][hidden]. */
static void run_chunk(struct walsh_session *s, const int32_t *ids, size_t n, enum walsh_role role, float *x)
{
    for (size_t i = 0; i < n; i++) {
        s->runner->kv[i] = s->kv->views;
        s->runner->op_kv[i] = s->kv->op_views;
        s->runner->positions[i] = s->kv->length + (uint32_t)i;
        s->runner->rope_rows[i] = s->rope_offset + s->runner->positions[i];
    }
    struct walsh_row_set room;
    const struct walsh_row_sets sets = walsh_session_sets(s, n, &room);
    walsh_runner_forward(s->runner, ids, n, role, &sets, x);
    s->kv->length += (uint32_t)n;
}

/* Logits of x [n][hidden], which is overwritten. */
static void prompt_logits(struct walsh_session *s, float *x, size_t n, enum walsh_role role, float *logits)
{
    disown(s);
    struct walsh_row_set room;
    const struct walsh_row_sets sets = walsh_session_sets(s, n, &room);
    walsh_runner_logits(s->runner, x, n, role, &sets, logits);
}

void walsh_session_logits_of(struct walsh_session *session, float *x, size_t n, float *logits)
{
    prompt_logits(session, x, n, WALSH_PREFILL, logits);
}

void walsh_session_prompt_end(struct walsh_session *session, float *x)
{
    prompt_logits(session, x, 1, WALSH_PREFILL, session->logits);
    session->has_logits = true;
}

enum walsh_status walsh_runtime_prompt(struct walsh_session *session, const int32_t *ids, size_t count,
                                       const struct walsh_prompt_outputs *outputs, const char *stage,
                                       struct walsh_error *err)
{
    struct walsh_runner *runner = session->runner;
    size_t hidden = runner->graph->config.hidden, vocab = runner->graph->config.vocab;
    const enum walsh_role role = outputs && outputs->decode ? WALSH_DECODE : WALSH_PREFILL;
    uint32_t start = session->kv->length, capacity = session->kv->shape.capacity;
    if (count == 0) return walsh_fail(err, WALSH_E_ARGUMENT, "a prompt has at least one token");
    if (count > capacity - start)
        return walsh_fail(err, WALSH_E_CAPACITY, "prompt of %zu tokens: the context holds %u, %u are in use",
                          count, capacity, start);
    WALSH_TRY(walsh_runner_check_ids(runner, ids, count, err));
    WALSH_TRY(walsh_kv_reserve(session->kv, start + (uint32_t)count, err));
    float *keep = outputs ? outputs->hidden : NULL, *logits = outputs ? outputs->logits : NULL, *last = NULL;
    if (start == 0 && !outputs && session->prefix && !session->prefix->active)
        walsh_prefix_begin(session, ids, count);
    if (role != WALSH_PREFILL) walsh_prefix_stop(session);
    size_t done = session->kv->length - start;
    if (done == count) return WALSH_OK; /* with its logits */
    for (size_t n; done < count; done += n) {
        enum walsh_status status = walsh_check_abort(runner->hooks, err);
        if (status != WALSH_OK) {
            walsh_prefix_stop(session);
            walsh_kv_trim(session->kv, start);
            return status;
        }
        n = walsh_min(count - done, WALSH_CHUNK_ROWS - session->kv->length % WALSH_CHUNK_ROWS);
        float *x = keep ? keep + done * hidden : runner->x;
        const double started = walsh_now();
        run_chunk(session, ids + done, n, role, x);
        last = x + (n - 1) * hidden;
        walsh_prefix_follow(session, ids + done, n, last, walsh_now() - started);
        if (logits) prompt_logits(session, x, n, role, logits + done * vocab);
        if (stage) walsh_progress(runner->hooks, stage, (double)(done + n), (double)count, "tokens");
    }
    session->has_logits = keep == NULL;
    if (logits)
        memcpy(session->logits, logits + (count - 1) * vocab, vocab * sizeof *logits);
    else if (!keep)
        prompt_logits(session, last, 1, role, session->logits);
    return walsh_runner_check(runner, err);
}

/* Every session once, of one runner, with room for one token more, and every id known. */
static enum walsh_status check_step(struct walsh_session *const *sessions, const int32_t *ids, size_t count,
                                    struct walsh_error *err)
{
    WALSH_TRY(walsh_runner_check_ids(sessions[0]->runner, ids, count, err));
    for (size_t i = 0; i < count; i++) {
        struct walsh_session *s = sessions[i];
        if (s->runner != sessions[0]->runner)
            return walsh_fail(err, WALSH_E_ARGUMENT, "step: sessions 0 and %zu are of different models", i);
        if (s->stepping)
            return walsh_fail(err, WALSH_E_ARGUMENT, "step: session %zu is in the list twice", i);
        s->stepping = true;
        WALSH_TRY(walsh_kv_reserve(s->kv, s->kv->length + 1, err));
    }
    return WALSH_OK;
}

/* The order of the sessions of a call: those without adapters, then those of each set together. A row's bits do
 * not depend on its place. */
static struct walsh_row_sets order_sessions(struct walsh_session *const *sessions, size_t count)
{
    struct walsh_runner *r = sessions[0]->runner;
    struct walsh_row_sets sets = {r->sets, 0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!sessions[i]->adapters) r->order[n++] = i;
    for (uint32_t i = 0; i < count; i++) {
        const struct walsh_adapter_set *set = sessions[i]->adapters;
        bool seen = !set;
        for (size_t s = 0; s < sets.count && !seen; s++) seen = walsh_adapter_set_equal(r->sets[s].set, set);
        if (seen) continue;
        const size_t begin = n;
        for (uint32_t j = i; j < count; j++)
            if (sessions[j]->adapters && walsh_adapter_set_equal(sessions[j]->adapters, set))
                r->order[n++] = j;
        r->sets[sets.count++] = (struct walsh_row_set){set, begin, n};
    }
    return sets;
}

/* Row i of r->x gives the logits of session r->order[i]. */
static void give_logits(struct walsh_session *const *sessions, size_t count, enum walsh_role role,
                        const struct walsh_row_sets *sets)
{
    struct walsh_runner *r = sessions[0]->runner;
    const size_t hidden = r->graph->config.hidden, vocab = r->graph->config.vocab;
    for (size_t i = 0, n; i < count; i += n) {
        n = walsh_min(count - i, r->logit_rows);
        float *logits = n == 1 ? sessions[r->order[i]]->logits : r->logits;
        const struct walsh_row_sets part = walsh_row_sets_slice(sets, i, n, r->logit_sets);
        walsh_runner_logits(r, r->x + i * hidden, n, role, &part, logits);
        for (size_t j = 0; j < n && n > 1; j++)
            memcpy(sessions[r->order[i + j]]->logits, logits + j * vocab, vocab * sizeof *logits);
    }
}

static void step_on_host(struct walsh_session *const *sessions, size_t count,
                         const struct walsh_row_sets *sets)
{
    struct walsh_runner *r = sessions[0]->runner;
    walsh_runner_forward(r, r->ids, count, WALSH_DECODE, sets, r->x);
    give_logits(sessions, count, WALSH_DECODE, sets);
}

/* The rows of the pieces one behind the other in the sessions' order; returns how many there are. `sets`, which
 * comes as ranges of sessions, becomes ranges of rows. */
static size_t place_pieces(struct walsh_session *const *sessions, struct walsh_prompt_piece *pieces,
                           size_t count, struct walsh_row_sets *sets)
{
    struct walsh_runner *r = sessions[0]->runner;
    uint32_t row = 0;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_session *s = sessions[r->order[i]];
        struct walsh_prompt_piece *piece = &pieces[r->order[i]];
        piece->row = row;
        memcpy(r->ids + row, piece->ids, piece->count * sizeof *piece->ids);
        for (uint32_t j = 0; j < piece->count; j++, row++) {
            r->kv[row] = s->kv->views;
            r->op_kv[row] = s->kv->op_views;
            r->positions[row] = s->kv->length + j;
            r->rope_rows[row] = s->rope_offset + s->kv->length + j;
        }
    }
    for (size_t i = 0; i < sets->count; i++) {
        struct walsh_row_set *set = &r->sets[i];
        const struct walsh_prompt_piece *end = &pieces[r->order[set->end - 1]];
        set->begin = pieces[r->order[set->begin]].row;
        set->end = (size_t)end->row + end->count;
    }
    return row;
}

/* The last rows of the prompts that end move to the front of r->x, their sessions to that of r->order. */
static size_t gather_ends(struct walsh_session *const *sessions, const struct walsh_prompt_piece *pieces,
                          size_t count, struct walsh_row_sets *sets)
{
    struct walsh_runner *r = sessions[0]->runner;
    const size_t hidden = r->graph->config.hidden;
    size_t n = 0;
    *sets = (struct walsh_row_sets){r->sets, 0};
    for (size_t i = 0; i < count; i++) {
        const struct walsh_prompt_piece *piece = &pieces[r->order[i]];
        const struct walsh_adapter_set *set = sessions[r->order[i]]->adapters;
        struct walsh_row_set *before = sets->count ? &r->sets[sets->count - 1] : NULL;
        if (!piece->last) continue;
        memmove(r->x + n * hidden, r->x + (piece->row + piece->count - 1) * hidden, hidden * sizeof *r->x);
        if (set && before && walsh_adapter_set_equal(before->set, set))
            before->end = n + 1;
        else if (set)
            r->sets[sets->count++] = (struct walsh_row_set){set, n, n + 1};
        r->order[n++] = r->order[i];
    }
    return n;
}

void walsh_runtime_prompts(struct walsh_session *const *sessions, struct walsh_prompt_piece *pieces,
                           size_t count)
{
    struct walsh_runner *r = sessions[0]->runner;
    const size_t hidden = r->graph->config.hidden;
    struct walsh_row_sets sets = order_sessions(sessions, count);
    const size_t rows = place_pieces(sessions, pieces, count, &sets);
    const double started = walsh_now();
    walsh_runner_forward(r, r->ids, rows, WALSH_PREFILL, &sets, r->x);
    const double seconds = walsh_now() - started;
    for (size_t i = 0; i < count; i++) {
        const struct walsh_prompt_piece *p = &pieces[i];
        sessions[i]->kv->length += p->count;
        sessions[i]->has_logits = p->last;
        walsh_prefix_follow(sessions[i], p->ids, p->count, r->x + (p->row + p->count - 1) * hidden,
                            seconds * p->count / (double)rows);
    }
    const size_t ends = gather_ends(sessions, pieces, count, &sets);
    give_logits(sessions, ends, WALSH_PREFILL, &sets);
}

/* The plans of the sessions in the order of their rows, and the tokens back. */
static void draw_on_device(struct walsh_runner *r, size_t count, const struct walsh_row_sets *sets,
                           const struct walsh_draw *plans, int32_t *drawn)
{
    for (size_t i = 0; i < count; i++) r->plans[i] = plans[r->order[i]];
    const struct walsh_runner_draws draws = {.plans = r->plans, .ids = r->ids};
    walsh_runner_device_step(r, count, sets, &draws);
    for (size_t i = 0; i < count; i++) drawn[r->order[i]] = r->ids[i];
}

/* The logits stay on the device until somebody reads them. */
static void step_on_device(struct walsh_session *const *sessions, size_t count,
                           const struct walsh_row_sets *sets, const struct walsh_draw *plans, int32_t *drawn)
{
    struct walsh_runner *r = sessions[0]->runner;
    for (size_t i = 0; i < count; i++) disown(sessions[i]);
    for (size_t i = 0; i < r->logit_rows; i++)
        if (r->device.owners[i]) walsh_session_read(r->device.owners[i]);
    if (plans)
        draw_on_device(r, count, sets, plans, drawn);
    else
        walsh_runner_device_step(r, count, sets, NULL);
    for (size_t i = 0; i < count; i++) {
        struct walsh_session *s = sessions[r->order[i]];
        s->away = true;
        s->away_row = i;
        r->device.owners[i] = s;
    }
}

/* count is at most what a call holds */
static void step_rows(struct walsh_session *const *sessions, const int32_t *ids, size_t count,
                      const struct walsh_draw *plans, int32_t *drawn)
{
    struct walsh_runner *r = sessions[0]->runner;
    const struct walsh_row_sets sets = order_sessions(sessions, count);
    for (size_t i = 0; i < count; i++) {
        const struct walsh_session *s = sessions[r->order[i]];
        r->ids[i] = ids[r->order[i]];
        r->kv[i] = s->kv->views;
        r->op_kv[i] = s->kv->op_views;
        r->positions[i] = s->kv->length;
        r->rope_rows[i] = s->rope_offset + s->kv->length;
    }
    if (r->queue->memory)
        step_on_device(sessions, count, &sets, plans, drawn);
    else
        step_on_host(sessions, count, &sets);
    for (size_t i = 0; i < count; i++) {
        sessions[i]->kv->length++;
        sessions[i]->has_logits = true;
    }
}

bool walsh_runtime_draws(const struct walsh_runner *runner)
{
    return runner->queue->memory && runner->queue->ops->draw;
}

enum walsh_status walsh_runtime_step(struct walsh_session *const *sessions, const int32_t *ids, size_t count,
                                     struct walsh_error *err)
{
    return walsh_runtime_step_draw(sessions, ids, count, NULL, NULL, err);
}

enum walsh_status walsh_runtime_step_draw(struct walsh_session *const *sessions, const int32_t *ids,
                                          size_t count, const struct walsh_draw *plans, int32_t *drawn,
                                          struct walsh_error *err)
{
    if (count == 0) return WALSH_OK;
    for (size_t i = 0; i < count; i++) sessions[i]->stepping = false;
    WALSH_TRY(check_step(sessions, ids, count, err));
    /* a device's rows have room for their logits there */
    const struct walsh_runner *r = sessions[0]->runner;
    const size_t most = r->queue->memory ? r->logit_rows : WALSH_CHUNK_ROWS;
    for (size_t i = 0; i < count; i += most)
        step_rows(sessions + i, ids + i, walsh_min(count - i, most), plans ? plans + i : NULL,
                  plans ? drawn + i : NULL);
    return walsh_runner_check(sessions[0]->runner, err);
}

enum walsh_status walsh_runtime_trim(struct walsh_session *session, uint32_t length, struct walsh_error *err)
{
    if (length > session->kv->length)
        return walsh_fail(err, WALSH_E_ARGUMENT, "trim to %u tokens: the session has %u", length,
                          session->kv->length);
    if (length < session->kv->length) {
        session->has_logits = false;
        walsh_prefix_stop(session);
    }
    walsh_kv_trim(session->kv, length);
    return WALSH_OK;
}

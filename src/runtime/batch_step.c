/* One step of a batch: prompts, decode, draws. */
#include "runtime/batch.h"

#include <string.h>

/* Requests whose end was told in the step before. */
static void sweep(struct walsh_batch *b)
{
    for (uint32_t i = 0; i < b->limits.rows; i++) {
        struct walsh_batch_entry *entry = b->slots[i];
        if (!entry) continue;
        entry->drawn = false;
        if (!entry->reported) continue;
        walsh_free(entry->logits);
        walsh_free(entry);
        b->slots[i] = NULL;
    }
}

/* The logits of the piece x [n][hidden] of a prompt for whoever asked for them, as many at a time as the runner
 * has room for; of a prompt's last token, by itself as always, those that a token is drawn from. */
static void tell_logits(struct walsh_batch *b, struct walsh_batch_entry *entry, uint32_t at, uint32_t n,
                        float *x)
{
    struct walsh_runner *r = b->runner;
    const size_t hidden = r->graph->config.hidden;
    const bool last = at + n == entry->count;
    const uint32_t rows = last ? n - 1 : n;
    for (uint32_t i = 0, m; i < rows; i += m) {
        m = (uint32_t)walsh_min(rows - i, r->logit_rows);
        walsh_session_logits_of(entry->session, x + i * hidden, m, r->logits);
        entry->prompt_logits(entry->user, at + i, r->logits, m);
    }
    if (!last) return;
    walsh_session_prompt_end(entry->session, x + rows * hidden);
    entry->prompt_logits(entry->user, at + rows, walsh_session_read(entry->session), 1);
}

/* Read a piece by a forward call of its own. */
static enum walsh_status read_piece(struct walsh_batch *b, struct walsh_batch_entry *entry,
                                    const struct walsh_prompt_piece *piece)
{
    struct walsh_session *session = entry->session;
    const uint32_t at = session->kv->length, n = piece->count;
    const bool last = piece->last, asked = entry->prompt_logits != NULL;
    /* Logits behind a piece that is not the last would be for nothing: asking for the hidden states, which
     * are in the runner's own rows anyway, leaves them out. */
    const struct walsh_prompt_outputs hidden = {.hidden = b->runner->x};
    WALSH_TRY(
        walsh_runtime_prompt(session, piece->ids, n, last && !asked ? NULL : &hidden, NULL, &entry->error));
    if (asked) {
        tell_logits(b, entry, at, n, b->runner->x);
        WALSH_TRY(walsh_runner_check(b->runner, &entry->error));
    }
    return WALSH_OK;
}

/* Before the first piece: take over what a prefix store has of the prompt. */
static void take_over(struct walsh_batch *b, struct walsh_batch_entry *entry)
{
    struct walsh_session *session = entry->session;
    if (entry->begun || !session->prefix) return;
    entry->begun = true;
    walsh_prefix_begin(session, entry->ids, entry->count);
    b->totals.prompt_tokens += session->kv->length;
    entry->prefix_tokens = session->kv->length;
    b->totals.prefix_tokens += session->kv->length;
    b->totals.prefix_hits += session->kv->length > 0;
    if (session->kv->length == entry->count) entry->state = WALSH_BATCH_READY;
}

/* The next slot in turn whose prompt has a part to read; limits.rows: none. */
static uint32_t next_prompt(const struct walsh_batch *b)
{
    for (uint32_t i = 0; i < b->limits.rows; i++) {
        const uint32_t slot = (b->turn + i) % b->limits.rows;
        if (b->slots[slot] && b->slots[slot]->state == WALSH_BATCH_PREFILL) return slot;
    }
    return b->limits.rows;
}

/* Prompt tokens that this step may read: fewer where others wait for their next token meanwhile. */
static uint32_t prompt_budget(const struct walsh_batch *b)
{
    for (uint32_t i = 0; i < b->limits.rows; i++)
        if (b->slots[i] && b->slots[i]->state == WALSH_BATCH_DECODE) return b->limits.prefill_beside;
    return b->limits.prefill_tokens;
}

/* Tokens of this prompt to read where `left` of the step's are left, `first`: all of them; 0: it comes first
 * in the next step. A packed cache reads the tokens of the chunk that it is about to pack more exactly than
 * older ones, so that its chunks must stay whole. */
static uint32_t piece_size(const struct walsh_batch *b, const struct walsh_batch_entry *entry, uint32_t left,
                           bool first)
{
    const uint32_t length = entry->session->kv->length;
    const size_t chunk = walsh_min(entry->count - length, WALSH_CHUNK_ROWS - length % WALSH_CHUNK_ROWS);
    if (b->limits.kv.type == WALSH_KV_TURBO && chunk > left) return first ? (uint32_t)chunk : 0;
    return (uint32_t)walsh_min(chunk, left);
}

/* May rows of this prompt stand beside those of others in a forward call? */
static bool joins(const struct walsh_batch *b, const struct walsh_batch_entry *entry)
{
    return !b->runner->queue->memory && b->limits.kv.type != WALSH_KV_TURBO && !entry->prompt_logits;
}

/* Will the prefix store have the first block of this prompt when the pieces that are taken have been read? */
static bool comes_to_store(const struct walsh_batch *b, const struct walsh_batch_entry *entry, uint32_t taken)
{
    const uint32_t block = (uint32_t)walsh_min(entry->count, WALSH_CHUNK_ROWS);
    if (entry->begun) return false;
    for (uint32_t i = 0; i < taken; i++) {
        const struct walsh_batch_entry *other = b->rows[i];
        if (walsh_prefix_shared(other->session, entry->session) && b->pieces[i].ids == other->ids &&
            walsh_min(other->count, WALSH_CHUNK_ROWS) == block && b->pieces[i].count == block &&
            memcmp(other->ids, entry->ids, block * sizeof *entry->ids) == 0)
            return true;
    }
    return false;
}

/* The pieces of the next forward call, `left` tokens at most: one of each prompt in turn, of one alone where
 * that one must be. b->rows, sessions and pieces have them; returns how many. `first`: nothing has been read in
 * this step yet. A prompt that gets no memory fails alone; one that cannot join ends the call, so that nobody
 * overtakes it. */
static uint32_t take_pieces(struct walsh_batch *b, uint32_t left, bool first)
{
    uint32_t count = 0, slot;
    while (left > 0 && (slot = next_prompt(b)) < b->limits.rows) {
        struct walsh_batch_entry *entry = b->slots[slot];
        if (count > 0 && (entry == b->rows[0] || !joins(b, entry) || !joins(b, b->rows[0]))) break;
        if (comes_to_store(b, entry, count)) break;
        b->turn = slot;
        take_over(b, entry);
        if (entry->state == WALSH_BATCH_READY) continue;
        const uint32_t n = piece_size(b, entry, left, first), at = entry->session->kv->length;
        if (n == 0) break;
        if (walsh_kv_reserve(entry->session->kv, at + n, &entry->error) != WALSH_OK) {
            walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
            continue;
        }
        b->rows[count] = entry;
        b->sessions[count] = entry->session;
        b->pieces[count++] =
            (struct walsh_prompt_piece){.ids = entry->ids + at, .count = n, .last = at + n == entry->count};
        left -= (uint32_t)walsh_min(n, left);
        b->turn = (slot + 1) % b->limits.rows;
    }
    return count;
}

/* Abort: the pieces come again. */
static enum walsh_status read_pieces(struct walsh_batch *b, uint32_t count, struct walsh_error *err)
{
    if (count > 1) {
        WALSH_TRY(walsh_check_abort(b->runner->hooks, err));
        walsh_runtime_prompts(b->sessions, b->pieces, count);
    } else {
        struct walsh_batch_entry *entry = b->rows[0];
        const enum walsh_status status = read_piece(b, entry, &b->pieces[0]);
        if (status == WALSH_E_ABORTED) {
            if (err) *err = entry->error;
            return status;
        }
        if (status != WALSH_OK) {
            walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
            return WALSH_OK;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        b->totals.prompt_tokens += b->pieces[i].count;
        if (b->pieces[i].last) b->rows[i]->state = WALSH_BATCH_READY;
    }
    return WALSH_OK;
}

/* As many tokens as the step may read, a piece of each prompt in turn: a short prompt does not wait for the
 * whole of a long one, and those that decode wait for one chunk at most. */
static enum walsh_status read_prompts(struct walsh_batch *b, struct walsh_error *err)
{
    const uint32_t budget = prompt_budget(b);
    uint32_t left = budget;
    while (left > 0) {
        const uint32_t turn = b->turn, n = take_pieces(b, left, left == budget);
        if (n == 0) break;
        const enum walsh_status status = read_pieces(b, n, err);
        if (status != WALSH_OK) {
            b->turn = turn;
            return status;
        }
        for (uint32_t i = 0; i < n; i++) left -= (uint32_t)walsh_min(b->pieces[i].count, left);
    }
    return WALSH_OK;
}

/* Every row that has a token puts it into its cache. A row that gets no memory for a further page fails
 * alone. */
static enum walsh_status decode(struct walsh_batch *b, struct walsh_error *err)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->limits.rows; i++) {
        struct walsh_batch_entry *entry = b->slots[i];
        if (!entry || entry->state != WALSH_BATCH_DECODE) continue;
        struct walsh_kv_cache *kv = entry->session->kv;
        if (walsh_kv_reserve(kv, kv->length + 1, &entry->error) != WALSH_OK) {
            walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
            continue;
        }
        if (b->plans && walsh_sampler_plan(entry->sampler, &b->plans[n], &entry->error) != WALSH_OK) {
            walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
            continue;
        }
        b->rows[n] = entry;
        b->sessions[n] = entry->session;
        b->ids[n++] = entry->token;
    }
    WALSH_TRY(walsh_runtime_step_draw(b->sessions, b->ids, n, b->plans, b->drawn, err));
    for (uint32_t i = 0; i < n; i++) {
        b->rows[i]->state = WALSH_BATCH_READY;
        b->rows[i]->chosen = b->plans && b->drawn[i] >= 0;
        if (b->rows[i]->chosen) b->rows[i]->token = b->drawn[i];
    }
    return WALSH_OK;
}

/* Samplers share nothing, so that each row may be drawn by any thread. */
static void draw_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct walsh_batch *b = argument;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        struct walsh_batch_entry *entry = b->rows[i];
        const enum walsh_status status =
            entry->chosen
                ? walsh_sampler_take(entry->sampler, entry->token, &entry->error)
                : walsh_sampler_choose(entry->sampler, entry->session->logits, &entry->token, &entry->error);
        entry->drawn = status == WALSH_OK;
        entry->chosen = false;
    }
}

static enum walsh_entry_end end_of(const struct walsh_batch *b, const struct walsh_batch_entry *entry)
{
    for (size_t i = 0; i < entry->stop_count; i++)
        if (entry->ids[entry->count + i] == entry->token) return WALSH_BATCH_STOP;
    if (!entry->ignore_eos && walsh_graph_is_eos(b->runner->graph, entry->token)) return WALSH_BATCH_EOS;
    return entry->generated == entry->tokens ? WALSH_BATCH_LENGTH : WALSH_BATCH_RUNS;
}

static void draw(struct walsh_batch *b)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->limits.rows; i++)
        if (b->slots[i] && b->slots[i]->state == WALSH_BATCH_READY) b->rows[n++] = b->slots[i];
    for (uint32_t i = 0; i < n; i++) /* one thread talks to a device */
        if (!b->rows[i]->chosen) walsh_session_read(b->rows[i]->session);
    walsh_pool_run(b->runner->queue->pool, n, 1, draw_rows, b);
    for (uint32_t i = 0; i < n; i++) {
        struct walsh_batch_entry *entry = b->rows[i];
        if (!entry->drawn) {
            walsh_batch_end(b, entry, WALSH_BATCH_FAILED);
            continue;
        }
        entry->generated++;
        b->totals.generated_tokens++;
        entry->state = WALSH_BATCH_DECODE;
        const enum walsh_entry_end end = end_of(b, entry);
        if (end != WALSH_BATCH_RUNS) walsh_batch_end(b, entry, end);
    }
}

static size_t report(struct walsh_batch *b)
{
    size_t count = 0;
    for (uint32_t i = 0; i < b->limits.rows; i++) {
        struct walsh_batch_entry *entry = b->slots[i];
        if (!entry || (!entry->drawn && entry->end != WALSH_BATCH_FAILED)) continue;
        entry->reported = entry->end != WALSH_BATCH_RUNS;
        b->events[count++] = entry;
    }
    return count;
}

static bool idle(const struct walsh_batch *b)
{
    for (uint32_t i = 0; i < b->limits.rows; i++)
        if (b->slots[i]) return false;
    return true;
}

enum walsh_status walsh_runtime_batch_step(struct walsh_batch *b, size_t *count, struct walsh_error *err)
{
    *count = 0;
    WALSH_TRY(walsh_check_abort(b->runner->hooks, err));
    sweep(b);
    walsh_batch_admit(b);
    if (idle(b)) return WALSH_OK;
    WALSH_TRY(read_prompts(b, err));
    WALSH_TRY(decode(b, err));
    draw(b);
    *count = report(b);
    b->totals.steps++;
    return WALSH_OK;
}

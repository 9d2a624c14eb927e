#include "runtime/prefix.h"

#include <string.h>

#include "base/clock.h"
#include "kernels/device.h"
#include "runtime/prefix_identity.h"

/* ---- a session's store */

static void drop_prompt(struct walsh_prefix *p)
{
    walsh_free(p->tokens);
    walsh_free(p->keys);
    p->tokens = NULL;
    p->keys = NULL;
    p->active = false;
    p->done = 0;
}

void walsh_prefix_close(struct walsh_prefix **prefix)
{
    if (!prefix || !*prefix) return;
    drop_prompt(*prefix);
    walsh_free((*prefix)->salt);
    walsh_free(*prefix);
    *prefix = NULL;
}

enum walsh_status walsh_runtime_set_store(struct walsh_session *session, struct walsh_prefix_store *store,
                                          const void *salt, size_t salt_size, struct walsh_error *err)
{
    struct walsh_runner *r = session->runner;
    if (!store) {
        walsh_prefix_close(&session->prefix);
        return WALSH_OK;
    }
    if (r->queue->memory && !r->queue->memory->identify)
        return walsh_fail(err, WALSH_E_UNSUPPORTED,
                          "this device cannot be told from others: no prefix store");
    if (!r->identified) WALSH_TRY(walsh_prefix_model_key(r->graph, r->queue, &r->model_key, err));
    r->identified = true;
    struct walsh_prefix *p;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *p, "a session's prefix store", &p, err));
    const enum walsh_status status = walsh_alloc(salt_size, 1, "a salt", &p->salt, err);
    if (status != WALSH_OK) {
        walsh_prefix_close(&p);
        return status;
    }
    if (salt_size > 0) memcpy(p->salt, salt, salt_size);
    p->salt_size = salt_size;
    p->store = store;
    walsh_prefix_close(&session->prefix);
    session->prefix = p;
    return WALSH_OK;
}

void walsh_prefix_stop(struct walsh_session *session)
{
    if (session->prefix) drop_prompt(session->prefix);
}

bool walsh_prefix_shared(const struct walsh_session *a, const struct walsh_session *b)
{
    const struct walsh_prefix *p = a->prefix, *q = b->prefix;
    if (!p || !q || p->store != q->store || p->salt_size != q->salt_size) return false;
    if (p->salt_size > 0 && memcmp(p->salt, q->salt, p->salt_size) != 0) return false;
    if (!a->adapters || !b->adapters) return a->adapters == b->adapters;
    return walsh_adapter_set_equal(a->adapters, b->adapters);
}

/* ---- blocks */

/* The block that begins at `position`, keys[number] its parent's; its own goes behind it. */
static enum walsh_status describe(const struct walsh_session *session, uint32_t position,
                                  struct walsh_prefix_block *block, struct walsh_error *err)
{
    const struct walsh_prefix *p = session->prefix;
    const uint32_t number = position / WALSH_CHUNK_ROWS;
    const uint32_t count = (uint32_t)walsh_min(p->count - position, WALSH_CHUNK_ROWS);
    *block = (struct walsh_prefix_block){
        .parent = p->keys[number], .position = position, .tokens = p->tokens + position, .count = count};
    if (!walsh_add(walsh_kv_export_bytes(session->kv, count),
                   session->runner->graph->config.hidden * sizeof(float), &block->bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "a block's size does not fit into 64 bits");
    WALSH_TRY(walsh_prefix_key_chain(&block->parent, block->tokens, count, &block->key, err));
    p->keys[number + 1] = block->key;
    return WALSH_OK;
}

static enum walsh_status start_prompt(struct walsh_session *session, const int32_t *ids, size_t count,
                                      struct walsh_error *err)
{
    struct walsh_prefix *p = session->prefix;
    const struct walsh_runner *r = session->runner;
    const struct walsh_prefix_root root = {.model = &r->model_key,
                                           .graph = r->graph,
                                           .queue = r->queue,
                                           .shape = &session->kv->shape,
                                           .adapters = session->adapters,
                                           .salt = p->salt,
                                           .salt_size = p->salt_size};
    const size_t blocks = walsh_div_up(count, WALSH_CHUNK_ROWS);
    WALSH_TRY(walsh_alloc(count, sizeof *p->tokens, "the tokens of a prompt", &p->tokens, err));
    WALSH_TRY(walsh_alloc(blocks + 1, sizeof *p->keys, "the keys of a prompt", &p->keys, err));
    memcpy(p->tokens, ids, count * sizeof *ids);
    WALSH_TRY(walsh_prefix_root_key(&root, &p->keys[0], err));
    p->count = (uint32_t)count; /* at most the context */
    p->done = 0;
    p->block_seconds = 0;
    p->since = walsh_store_now();
    p->active = true;
    return WALSH_OK;
}

/* Take over blocks as long as there are some. payload: room for the first block, which is the largest; the
 * state of the last token taken over is at its beginning afterwards. */
static enum walsh_status take_over(struct walsh_session *session, uint8_t *payload, struct walsh_error *err)
{
    struct walsh_prefix *p = session->prefix;
    const size_t state = session->runner->graph->config.hidden * sizeof(float);
    while (p->done < p->count) {
        struct walsh_prefix_block block;
        double seconds;
        WALSH_TRY(describe(session, p->done, &block, err));
        if (!walsh_store_get(p->store, &block, payload, &seconds)) return WALSH_OK;
        WALSH_TRY(walsh_kv_import(session->kv, block.count, payload + state, err));
        p->done += block.count;
        p->use.saved_seconds += seconds;
    }
    memcpy(session->runner->x, payload, state);
    walsh_session_prompt_end(session, session->runner->x);
    return WALSH_OK;
}

static void warn(const struct walsh_session *session, const struct walsh_error *err)
{
    walsh_log(session->runner->hooks, WALSH_LOG_WARNING, "prefix store: %s", err->message);
}

void walsh_prefix_begin(struct walsh_session *session, const int32_t *ids, size_t count)
{
    struct walsh_prefix *p = session->prefix;
    if (!p || session->kv->length > 0 || count == 0) return;
    const double started = walsh_now();
    struct walsh_prefix_block first;
    struct walsh_error err;
    uint8_t *payload = NULL;
    drop_prompt(p);
    p->use = (struct walsh_prefix_use){0};
    enum walsh_status status = start_prompt(session, ids, count, &err);
    if (status == WALSH_OK) status = describe(session, 0, &first, &err);
    if (status == WALSH_OK) status = walsh_alloc(first.bytes, 1, "a block", &payload, &err);
    if (status == WALSH_OK) status = take_over(session, payload, &err);
    walsh_free(payload);
    p->use.tokens = p->done;
    if (status != WALSH_OK) {
        warn(session, &err);
        drop_prompt(p);
    } else {
        walsh_store_touch(p->store, p->keys + 1, walsh_div_up(p->done, WALSH_CHUNK_ROWS));
        if (p->done == p->count) drop_prompt(p);
    }
    p->use.seconds = walsh_now() - started;
}

/* Put the block that ends at p->done, just computed, into the store. */
static enum walsh_status put_block(struct walsh_session *session, const float *last, bool *stored,
                                   struct walsh_error *err)
{
    struct walsh_prefix *p = session->prefix;
    const size_t state = session->runner->graph->config.hidden * sizeof(float);
    const uint32_t position = (p->done - 1) / WALSH_CHUNK_ROWS * WALSH_CHUNK_ROWS;
    struct walsh_prefix_block block;
    uint8_t *payload;
    WALSH_TRY(describe(session, position, &block, err));
    WALSH_TRY(walsh_alloc(block.bytes, 1, "a block", &payload, err));
    memcpy(payload, last, state);
    const enum walsh_status status =
        walsh_kv_export(session->kv, position, block.count, payload + state, err);
    *stored = status == WALSH_OK && walsh_store_put(p->store, &block, payload, p->block_seconds, p->since);
    if (*stored) p->use.stored += block.count;
    walsh_free(payload);
    return status;
}

/* Is this the continuation of the prompt, computed as a fresh run would? The chunk that a packed cache is
 * about to pack is read more exactly than older ones, so that such chunks must be computed whole. */
static bool follows(const struct walsh_session *session, const int32_t *ids, size_t n)
{
    const struct walsh_prefix *p = session->prefix;
    if (session->kv->length - n != p->done || n > p->count - p->done ||
        memcmp(ids, p->tokens + p->done, n * sizeof *ids) != 0)
        return false;
    const uint32_t begin = p->done / WALSH_CHUNK_ROWS * WALSH_CHUNK_ROWS;
    return session->kv->shape.policy.type != WALSH_KV_TURBO ||
           (begin == p->done && n == walsh_min(p->count - begin, WALSH_CHUNK_ROWS));
}

void walsh_prefix_follow(struct walsh_session *session, const int32_t *ids, size_t n, const float *last,
                         double seconds)
{
    struct walsh_prefix *p = session->prefix;
    if (!p || !p->active) return;
    if (!follows(session, ids, n)) {
        drop_prompt(p);
        return;
    }
    p->done += (uint32_t)n;
    p->block_seconds += seconds;
    if (p->done % WALSH_CHUNK_ROWS != 0 && p->done != p->count) return;
    const double started = walsh_now();
    struct walsh_error err;
    bool stored = false;
    if (put_block(session, last, &stored, &err) != WALSH_OK) warn(session, &err);
    p->block_seconds = 0;
    if (stored && p->done == p->count)
        walsh_store_touch(p->store, p->keys + 1, walsh_div_up(p->count, WALSH_CHUNK_ROWS));
    p->use.stored_seconds += walsh_now() - started;
    if (!stored || p->done == p->count) drop_prompt(p); /* a chain with a hole serves nobody */
}

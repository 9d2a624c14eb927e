/* runtime/prefix: a session with a prefix store. A prompt that begins in an empty session takes over the
 * longest chain of blocks that the store has: whole chunks of WALSH_CHUNK_ROWS tokens at multiples of it, and
 * the last, partial one where the prompt is exactly one that was seen. What is left is computed as always;
 * each chunk that prefill has just computed goes into the store. Tokens that were decoded never do. A session
 * that took blocks over is the one that computed them, bit for bit. May use model and below.
 *
 * A block's payload: the state of its last token behind the last layer, f32 [hidden], from which the logits
 * follow; then walsh_kv_export's bytes. */
#ifndef WALSH_RUNTIME_PREFIX_H
#define WALSH_RUNTIME_PREFIX_H

#include "cache/prefix_store.h"
#include "runtime/session.h"

struct walsh_prefix_use {
    uint32_t tokens;       /* of the last prompt, taken from the store */
    uint32_t stored;       /* tokens of it that were put into the store */
    double seconds;        /* finding and taking over */
    double saved_seconds;  /* what computing them took whoever did */
    double stored_seconds; /* putting */
};

struct walsh_prefix {
    struct walsh_prefix_store *store; /* borrowed */
    uint8_t *salt;                    /* [salt_size] */
    size_t salt_size;
    struct walsh_prefix_use use;
    /* The prompt under way. */
    bool active;
    uint32_t count;                /* its tokens */
    uint32_t done;                 /* of them, in the cache by prefill or from the store */
    int32_t *tokens;               /* [count], a copy */
    struct walsh_prefix_key *keys; /* [1 + blocks]: the root, then those of the blocks done */
    double block_seconds;          /* spent on the block under way */
    int64_t since;                 /* when it began: walsh_store_now */
};

/* Use `store` (NULL: none) for prompts of this session from now on. Sessions with different salts share
 * nothing. The store is borrowed and must outlive the session or the next call. Reads the model's files once
 * (prefix_identity.h); WALSH_E_UNSUPPORTED for a synthetic model and on a device without a name (walsh_memory.identify). On
 * failure the session is as before. */
enum walsh_status walsh_runtime_set_store(struct walsh_session *session, struct walsh_prefix_store *store,
                                          const void *salt, size_t salt_size, struct walsh_error *err);
void walsh_prefix_close(struct walsh_prefix **prefix); /* NULL-safe */

/* The prompt ids[count] is about to be put into this session, which is empty and has room for it. Afterwards
 * kv->length tokens of it are in the cache; where that is all of them, the session has its logits. The rest
 * may come in pieces, by calls of walsh_runtime_prompt. Nothing happens without a store. What goes wrong is a
 * warning: the prompt is then computed. walsh_runtime_prompt calls this by itself for a whole prompt in an
 * empty session, unless it was called before. */
void walsh_prefix_begin(struct walsh_session *session, const int32_t *ids, size_t count);
/* Prefill has just put ids[n] behind the others in `seconds`; last: the state of the last one [hidden]. */
void walsh_prefix_follow(struct walsh_session *session, const int32_t *ids, size_t n, const float *last,
                         double seconds);
/* Do both use the store, and may one find there what the other puts: are salt and adapters the same? Of two
 * sessions of one runner, whose caches are of one kind. */
bool walsh_prefix_shared(const struct walsh_session *a, const struct walsh_session *b);
/* Whatever comes now is not the prompt that was begun. */
void walsh_prefix_stop(struct walsh_session *session);

#endif

/* runtime/batch: the scheduler of continuous batching. Requests wait in a queue, are admitted first come
 * first served when a row and their whole need of cache are free, read their prompt in pieces beside the
 * decode step of the others, and leave when they end. A request's tokens are those of a session of its own:
 * its arithmetic never depends on what runs beside it. May use model and below. */
#ifndef WALSH_RUNTIME_BATCH_H
#define WALSH_RUNTIME_BATCH_H

#include "runtime/prefix.h"
#include "runtime/sampler.h"
#include "runtime/session.h"

struct walsh_batch_limits {
    uint32_t rows;           /* 1..WALSH_CHUNK_ROWS: requests that run at a time */
    uint32_t prefill_tokens; /* 1..WALSH_CHUNK_ROWS: prompt tokens of one step, of all requests together */
    uint32_t prefill_beside; /* of one in which others decode, at most prefill_tokens; 0: the same */
    uint32_t context;   /* most tokens of one request, prompt and answer; at most the model's positions */
    uint64_t kv_tokens; /* of the caches of all running requests, each rounded up to pages of WALSH_KV_PAGE */
    uint32_t queued;    /* requests that wait at most */
    struct walsh_kv_policy kv;
    struct walsh_prefix_store *store; /* borrowed; NULL: none */
};

/* What the caller asks for; everything is copied or retained by submit, but sampling.excluded, which must
 * outlive the batch. */
struct walsh_batch_job {
    const int32_t *ids; /* [count] */
    size_t count;       /* 1 or more */
    uint32_t tokens;    /* to generate at most; 0: what the context leaves */
    struct walsh_sampling sampling;
    const int32_t *stops; /* [stop_count] ids that end the answer, besides the model's end-of-sequence ids */
    size_t stop_count;
    bool ignore_eos;
    const struct walsh_adapter_choice *adapters;
    size_t adapter_count;
    const void *salt; /* [salt_size] of the prefix store */
    size_t salt_size;
    void *user;
    /* Called in a step with logits [count][vocab] behind the prompt's tokens [first, first + count), in order,
     * each once; such a request has no prefix store. NULL: they are not computed. */
    void (*prompt_logits)(void *user, uint32_t first, const float *logits, uint32_t count);
};

enum walsh_entry_state {
    WALSH_BATCH_QUEUED,
    WALSH_BATCH_PREFILL, /* a part of the prompt is not in the cache yet */
    WALSH_BATCH_READY,   /* has logits that no token was drawn from */
    WALSH_BATCH_DECODE,  /* has a token that is not in the cache yet */
    WALSH_BATCH_ENDED    /* its cache is freed; its logits stay until the next step */
};
enum walsh_entry_end {
    WALSH_BATCH_RUNS = 0,
    WALSH_BATCH_EOS,
    WALSH_BATCH_STOP,
    WALSH_BATCH_LENGTH,
    WALSH_BATCH_FAILED /* see error */
};

struct walsh_batch_entry {
    uint64_t id;
    void *user;
    void (*prompt_logits)(void *user, uint32_t first, const float *logits, uint32_t count);
    enum walsh_entry_state state;
    enum walsh_entry_end end;
    bool reported; /* an event has told its end */
    bool drawn;    /* logits are those that `token` was drawn from, in the last step */
    int32_t token; /* the last one drawn */
    bool chosen;   /* READY: token was drawn in the step that made the logits, and is to be taken */
    uint32_t count, tokens, generated;
    uint64_t kv_tokens; /* its share of the limit */
    int32_t *ids;       /* [count] the prompt, then [stop_count] stops */
    size_t stop_count;
    bool ignore_eos;
    struct walsh_sampling sampling;
    const struct walsh_grammar *grammar; /* kept; NULL: none */
    int32_t *bias_ids;                   /* [sampling.bias_count], as biases */
    float *biases;
    struct walsh_adapter_set *set; /* until the session takes it */
    uint8_t *salt;                 /* [salt_size] */
    size_t salt_size;
    bool begun;                    /* the prefix store was asked */
    uint32_t prefix_tokens;        /* that it had of the prompt */
    struct walsh_sampler *sampler; /* while it runs, as the session */
    struct walsh_session *session;
    float *logits; /* ENDED: the session's, [vocab] */
    struct walsh_error error;
    struct walsh_batch_entry *next; /* in the queue */
};

struct walsh_batch_totals {
    uint64_t submitted, finished, failed, cancelled;
    uint64_t prompt_tokens;    /* put into caches */
    uint64_t prefix_tokens;    /* of them, taken from the prefix store */
    uint64_t prefix_hits;      /* requests of which some were */
    uint64_t generated_tokens; /* drawn */
    uint64_t steps;            /* that did something */
};

struct walsh_batch {
    struct walsh_runner *runner;
    struct walsh_batch_limits limits;
    struct walsh_batch_entry **slots; /* [rows], NULL: free */
    struct walsh_batch_entry *first, *last;
    uint32_t queued;
    uint32_t turn;      /* the slot that the next piece of a prompt is looked for from */
    uint64_t kv_tokens; /* reserved */
    uint64_t last_id;
    struct walsh_batch_totals totals;
    /* of a step, [rows] */
    struct walsh_session **sessions;
    struct walsh_prompt_piece *pieces;
    int32_t *ids, *drawn;
    struct walsh_draw *plans; /* where steps draw; else NULL */
    struct walsh_batch_entry **rows, **events;
};

/* The runner is borrowed and must outlive the batch. Limits out of their ranges: WALSH_E_ARGUMENT; caches of
 * kv_tokens that cannot fit into the available memory: WALSH_E_MEMORY, with both figures; a prefix store with
 * a synthetic model: WALSH_E_UNSUPPORTED. */
enum walsh_status walsh_runtime_batch_open(struct walsh_runner *runner,
                                           const struct walsh_batch_limits *limits, struct walsh_batch **out,
                                           struct walsh_error *err);
void walsh_runtime_batch_close(struct walsh_batch **batch); /* drops what still runs; NULL-safe */

/* *id: never used again by this batch. WALSH_E_ARGUMENT: ids out of the vocabulary, no prompt, sampling or
 * adapters as their own checks say. WALSH_E_CAPACITY: it can never fit into the context or into kv_tokens,
 * with the figures. WALSH_E_BUSY: the queue is full. */
enum walsh_status walsh_runtime_batch_submit(struct walsh_batch *batch, const struct walsh_batch_job *job,
                                             uint64_t *id, struct walsh_error *err);
/* Free all that the request holds; no event tells of it. WALSH_E_NOT_FOUND where none of that id waits or
 * runs. */
enum walsh_status walsh_runtime_batch_cancel(struct walsh_batch *batch, uint64_t id, struct walsh_error *err);

/* One step: admit, read up to prefill_tokens of prompts, decode one token of every row that has one, draw the
 * next tokens. batch->events[0..*count) are the entries that drew a token or failed, in the order of their
 * slots, valid until the next call on the batch. A failure of one request ends that one alone. On
 * WALSH_E_ABORTED nothing was drawn and the next step goes on where this one stopped. */
enum walsh_status walsh_runtime_batch_step(struct walsh_batch *batch, size_t *count, struct walsh_error *err);

/* A request that waits, runs or has ended in the last step; NULL: none. */
const struct walsh_batch_entry *walsh_runtime_batch_find(const struct walsh_batch *batch, uint64_t id);
/* [vocab] logits that its token of the last step was drawn from; NULL where it drew none. Valid until the
 * next call on the batch. */
const float *walsh_batch_entry_logits(const struct walsh_batch_entry *entry);

/* Private to runtime/batch*.c: let waiting requests in while there is room; and end one that runs, which
 * frees its cache. */
void walsh_batch_admit(struct walsh_batch *batch);
void walsh_batch_end(struct walsh_batch *batch, struct walsh_batch_entry *entry, enum walsh_entry_end end);

#endif

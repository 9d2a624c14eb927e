/* runtime/session: one sequence of tokens: its cache and the logits of its last token. May use model and
 * below. */
#ifndef WALSH_RUNTIME_SESSION_H
#define WALSH_RUNTIME_SESSION_H

#include "runtime/runner.h"

struct walsh_session {
    struct walsh_runner *runner;
    struct walsh_kv_cache *kv;
    uint32_t rope_offset; /* walsh_graph_rope_offset of its capacity */
    float *logits;        /* [vocab]; read through walsh_session_read */
    bool away;            /* the logits are those of a row of runner->device.step_logits */
    size_t away_row;
    bool has_logits;                    /* of the token at kv->length - 1 */
    bool stepping;                      /* seen in the list of the step that runs */
    struct walsh_adapter_set *adapters; /* NULL: none */
    struct walsh_prefix *prefix;        /* NULL: no prefix store; runtime/prefix.h */
};

/* [vocab] the session's logits in the host's memory, fetched from the device where they are there; what goes
 * wrong then is told by the next walsh_runner_check. Valid until the session's next call. */
float *walsh_session_read(struct walsh_session *session);

/* The shape of a cache of `capacity` tokens for this graph, one decode row in a call. */
struct walsh_kv_shape walsh_session_kv_shape(const struct walsh_model_graph *graph, uint32_t capacity,
                                             const struct walsh_kv_policy *policy);

/* Refuses a capacity beyond the model's positions (WALSH_E_ARGUMENT) and a cache that does not fit into this
 * machine's available memory (WALSH_E_MEMORY, with both figures). */
enum walsh_status walsh_runtime_session_open(struct walsh_runner *runner, uint32_t capacity,
                                             const struct walsh_kv_policy *policy, struct walsh_session **out,
                                             struct walsh_error *err);
/* The same with a cache of this shape. */
enum walsh_status walsh_runtime_session_open_shape(struct walsh_runner *runner,
                                                   const struct walsh_kv_shape *shape,
                                                   struct walsh_session **out, struct walsh_error *err);
/* A session with the same tokens, logits and adapters, without a prefix store; pages of the cache are shared
 * until one of both writes into them. */
enum walsh_status walsh_runtime_fork(const struct walsh_session *session, struct walsh_session **out,
                                     struct walsh_error *err);
void walsh_runtime_session_close(struct walsh_session **session);

/* A set for sessions of this runner, count 0: NULL. Takes references. Errors as walsh_adapter_set_open and an
 * adapter of another model. */
enum walsh_status walsh_runtime_open_set(const struct walsh_runner *runner,
                                         const struct walsh_adapter_choice *choices, size_t count,
                                         struct walsh_adapter_set **out, struct walsh_error *err);
/* Use these adapters together from the next token on, count 0: none; what is in the cache stays as it is.
 * Errors as walsh_runtime_open_set; the session is then as before. */
enum walsh_status walsh_runtime_set_adapters(struct walsh_session *session,
                                             const struct walsh_adapter_choice *choices, size_t count,
                                             struct walsh_error *err);
/* The adapters of n rows of this session; `room` is one entry. */
struct walsh_row_sets walsh_session_sets(const struct walsh_session *session, size_t n,
                                         struct walsh_row_set *room);
/* logits [n][vocab] <- those of the states x [n][hidden] of its tokens, by prefill arithmetic; x is
 * overwritten. */
void walsh_session_logits_of(struct walsh_session *session, float *x, size_t n, float *logits);
/* session->logits <- those of the state x [hidden] of its last token, by prefill arithmetic; x is
 * overwritten. */
void walsh_session_prompt_end(struct walsh_session *session, float *x);

/* What to keep of the tokens of a prompt besides the logits of the last; both may be NULL. */
struct walsh_prompt_outputs {
    float *hidden; /* [count][hidden]: each token's state behind the last layer, before the final norm. The
                    * session then has no logits of its own */
    float *logits; /* [count][vocab] */
    /* Decode arithmetic: the bits of as many decode steps. The cache's shape admits WALSH_CHUNK_ROWS rows. */
    bool decode;
};
/* Append `count` >= 1 tokens by prefill arithmetic, in chunks cut at absolute positions that are multiples of
 * WALSH_CHUNK_ROWS. On failure (WALSH_E_CAPACITY, WALSH_E_ABORTED between chunks) the session is as before.
 * `stage` names the work in the progress hook; NULL: none is reported. */
enum walsh_status walsh_runtime_prompt(struct walsh_session *session, const int32_t *ids, size_t count,
                                       const struct walsh_prompt_outputs *outputs, const char *stage,
                                       struct walsh_error *err);

/* A part of a prompt: it ends with its chunk at the latest. */
struct walsh_prompt_piece {
    const int32_t *ids;
    uint32_t count; /* 1 or more */
    bool last;      /* the session takes the logits behind it; else it has none */
    uint32_t row;   /* set by the call: of its first token among all */
};
/* pieces[i] to sessions[i], with the bits of walsh_runtime_prompt for each, as rows of one forward call: of one
 * runner on the CPU, none twice, without packed caches, with room reserved, WALSH_CHUNK_ROWS tokens in all, ids
 * known. Cannot fail. */
void walsh_runtime_prompts(struct walsh_session *const *sessions, struct walsh_prompt_piece *pieces,
                           size_t count);

/* One decode step: append ids[i] to sessions[i]. All of one runner, none twice. On failure all are as before.
 */
enum walsh_status walsh_runtime_step(struct walsh_session *const *sessions, const int32_t *ids, size_t count,
                                     struct walsh_error *err);

/* Whether steps of this runner draw: it is on a device that does. */
bool walsh_runtime_draws(const struct walsh_runner *runner);
/* The same, and behind it drawn[i] = what plans[i] (walsh_sampler_plan) draws from the new logits of sessions[i], -1 where nothing can be
 * drawn; only where walsh_runtime_draws. */
enum walsh_status walsh_runtime_step_draw(struct walsh_session *const *sessions, const int32_t *ids,
                                          size_t count, const struct walsh_draw *plans, int32_t *drawn,
                                          struct walsh_error *err);

/* A step, and next[i] = what samplers[i], no two the same, draws behind it. Where a draw fails the sessions have their tokens, and the
 * samplers before it have drawn. */
struct walsh_sampler;
enum walsh_status walsh_runtime_step_sample(struct walsh_session *const *sessions,
                                            struct walsh_sampler *const *samplers, const int32_t *ids,
                                            size_t count, int32_t *next, struct walsh_error *err);

/* Forget tokens [length, ...); the logits too unless nothing was forgotten. */
enum walsh_status walsh_runtime_trim(struct walsh_session *session, uint32_t length, struct walsh_error *err);

#endif

/* serve/job: a generation request from its acceptance to its end. The HTTP side makes it and reads its
 * output, the engine's thread writes it. A job is prompts times n sequences; each has a place in the batch, a
 * text stream, a stop filter. */
#ifndef WALSH_SERVE_JOB_H
#define WALSH_SERVE_JOB_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "models.h"
#include "reasoning.h"
#include "request.h"
#include "stop.h"

/* A token and its log-probability, for `logprobs`. */
struct token_record {
    int32_t id;
    float logprob;             /* NAN: the first of a prompt, which nothing foretells */
    size_t offset, characters; /* where its text begins in the answer's */
};
struct alternative {
    int32_t id;
    float logprob;
};

enum sequence_state { SEQUENCE_WAITS, SEQUENCE_RUNS, SEQUENCE_ENDED };

struct job;
struct sequence {
    struct job *job;
    struct sequence *next; /* in the queue, or among those that run */
    enum sequence_state state;
    unsigned index;
    struct request_prompt *prompt;
    uint64_t id; /* in the batch */
    struct walsh_text_stream *stream;
    struct stop_filter filter;
    struct reasoning reasoning;
    struct text content, thoughts;      /* all of it so far */
    size_t sent_content, sent_thoughts; /* bytes that pieces of a stream have carried */
    bool begun;                         /* a piece was sent */
    size_t decoded, characters;         /* bytes that the tokens gave, before the filters; characters, with
                                         * those of an echo */
    size_t released;                    /* bytes that passed the stop filter */
    struct token_record *records;       /* [record_count] */
    struct alternative *alternatives;   /* [record_count][top_logprobs] */
    size_t record_count, record_room, sent_records;
    size_t prompt_records; /* the first of them, of an echo */
    bool lost;             /* there was no memory for one of those */
    uint32_t tokens;
    double started, last; /* left the queue; had its last token */
    const char *finish;   /* "stop", "length"; NULL: goes on */
};

struct job {
    atomic_uint references;
    atomic_bool cancelled; /* nobody waits for it any more */
    struct request request;
    bool chat;
    const struct walsh_model *model;
    struct models *models;
    struct model_entry *entry; /* held */
    char id[48];
    time_t created;
    uint64_t tenant;
    const void *salt; /* [salt_size] of the prefix store; outlives the job */
    size_t salt_size;
    uint64_t seed;
    double arrived, deadline, queue_deadline; /* seconds_now(); INFINITY: none */
    double limit_seconds;                     /* from arrived to deadline */
    struct walsh_sampler_options sampling;
    struct walsh_grammar *grammar; /* NULL: any text */
    uint32_t max_tokens;           /* of each sequence, 1 or more */
    uint32_t vocab;                /* of the logits of prompts */
    bool silent;                /* the request's max_tokens is 0: the one token that is drawn is not told */
    struct text head;           /* begins every piece of a stream */
    struct sequence *sequences; /* [count] */
    size_t count, open;         /* open: those that have not ended */
    size_t stall_bytes;         /* of `out` that may wait for the client */
    size_t prompt_tokens;
    /* under the lock: */
    pthread_mutex_t lock;
    struct text out;          /* of a stream */
    size_t taken;             /* bytes of it that the client's side has */
    bool done, stalled, gone; /* gone: the client has left */
    struct refusal failure;   /* status 0: none */
    uint32_t tokens, prefix_tokens;
    double first_token; /* seconds from arrival; 0: none yet */
    void *connection;   /* whom `wake` wakes; NULL: nobody */
    bool suspended;
    void (*wake)(struct job *job); /* with the lock held */
    struct job *next_left;         /* of those whose clients have left, at one look */
};

/* A job of one reference, its sequences made; `request` and the hold of `entry` become the job's. NULL: out
 * of memory, and the caller still has them. */
struct job *job_open(struct request *request, bool chat, const struct walsh_model *model,
                     struct models *models, struct model_entry *entry);
void job_hold(struct job *job);
void job_release(struct job *job);
/* Wake the client's side where it sleeps. With the lock held. */
void job_wake(struct job *job);
/* Nobody waits for it: its sequences end when the engine sees this. */
void job_cancel(struct job *job);

size_t count_characters(const char *text, size_t size); /* of UTF-8 */

/* Of the engine's thread. A token of the sequence, drawn from logits [vocab] (NULL where it is not asked for
 * log probabilities). *ended: a stop string was met. false: out of memory. */
bool sequence_take(struct sequence *sequence, int32_t token, const float *logits, uint32_t vocab,
                   bool *ended);
/* Of the engine's thread: logits [count][vocab] behind the prompt's tokens [first, first + count), for the log
 * probabilities of those that follow. */
void sequence_take_prompt(struct sequence *sequence, uint32_t first, const float *logits, uint32_t count,
                          uint32_t vocab);
/* No token comes any more: "stop" or "length". */
bool sequence_finish(struct sequence *sequence, const char *finish);
/* Write what is new into the job's stream; nothing for a job that is no stream. With the job's lock held. */
bool sequence_send(struct sequence *sequence);
/* The end of the stream: usage where it is asked for, and [DONE]. With the lock held. */
bool job_send_end(struct job *job);
bool job_send_failure(struct job *job);
/* The answer of a job that is done and no stream. */
json_t *job_answer(struct job *job);
/* OpenAI's error object. */
json_t *refusal_json(const struct refusal *refusal);

#endif

/* serve/request: the body of a request becomes a struct, by one table of fields: names, types, ranges, and
 * which endpoint knows them. A field that the endpoint does not know is an error that names it. */
#ifndef WALSH_SERVE_REQUEST_H
#define WALSH_SERVE_REQUEST_H

#include <jansson.h>

#include "app.h"

/* Endpoints that a field belongs to. */
enum {
    FOR_COMPLETION = 1 << 0,
    FOR_CHAT = 1 << 1,
    FOR_TOKENIZE = 1 << 2,
    FOR_DETOKENIZE = 1 << 3,
    FOR_LOAD = 1 << 4,
    FOR_UNLOAD = 1 << 5,
    FOR_TEXT = FOR_COMPLETION | FOR_CHAT
};

#define MOST_VALUES 262144          /* of JSON in a body: 64 prompts of 4096 ids; 30 MB while it is parsed */
#define MOST_CONTAINERS 16384       /* arrays and objects among them */
#define MOST_CHOICES 64             /* prompts times n */
#define MOST_BIASES 1024            /* entries of logit_bias */
#define MOST_LOGPROBS 20            /* alternatives per token */
#define MOST_LOGPROBS_IN_ALL 524288 /* of all tokens of all choices: 150 MB while their answer is written */
#define MOST_STOP_IDS 16            /* entries of stop_token_ids */
#define MOST_STOP_BYTES 1024        /* of one stop string */

struct request_prompt {
    const char *text; /* NULL: ids */
    size_t size;
    int32_t *ids; /* of `ids`, ours; with a text, filled when it is encoded */
    size_t count;
    size_t
        *offsets; /* [count] of an echo with logprobs: the character where each token's text begins; ours */
};

/* All fields of all endpoints; a field that is not given is NULL, false, NAN or OPTION_UNSET. */
struct request {
    json_t *body;    /* keeps the strings until request_settle */
    char *stop_text; /* those of `stops` from then on */
    const char *model, *user, *lora_name, *lora_path, *prompt_text;
    const json_t *messages, *response_format, *tokens, *template_arguments;
    bool stream, include_usage, echo, ignore_eos, logprobs_asked, seeded, add_special, add_special_given;
    bool return_strings, add_generation_prompt, add_generation_prompt_given;
    int64_t n, best_of, max_tokens, top_k, repeat_last, top_logprobs;
    uint64_t seed;
    double temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    struct option_texts stops;
    int32_t stop_ids[MOST_STOP_IDS];
    size_t stop_id_count;
    int32_t *bias_ids; /* [bias_count] */
    float *biases;
    size_t bias_count;
    struct request_prompt *prompts; /* [prompt_count] */
    size_t prompt_count;
};

/* Why a request is refused, as OpenAI's error object has it. */
struct refusal {
    int status;              /* of HTTP */
    const char *type, *code; /* code may be NULL */
    char param[64];          /* "" none */
    char message[400];
};
/* Fill it in; always false, so that a check can `return refuse(...)`. */
bool refuse(struct refusal *refusal, int status, const char *code, const char *param, const char *format, ...)
    __attribute__((format(printf, 5, 6), cold));

bool refuse_memory(struct refusal *refusal); /* 503 */

/* Parse [size] bytes for the endpoint (one of FOR_...). vocab: ids are below it. false: *refusal says why.
 * Either way request_free. */
bool request_parse(const char *body, size_t size, unsigned endpoint, uint32_t vocab, struct request *out,
                   struct refusal *refusal);
/* Let go of the parsed body: stop strings, ids and numbers are kept, every other text and tree is NULL. false:
 * out of memory. */
bool request_settle(struct request *request);
void request_free(struct request *request);

#endif

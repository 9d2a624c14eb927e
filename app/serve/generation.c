/* The body of a completion or chat becomes a job: parsed, checked, its prompts encoded. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "chat.h"
#include "server.h"

bool check_prompt_bytes(struct exchange *x, size_t size, const char *param)
{
    return size <= x->server->prompt_bytes ||
           refuse(&x->refusal, 400, "context_length_exceeded", param,
                  "the prompt has %zu bytes, which do not fit into the context of %u tokens", size,
                  x->server->context_tokens);
}

size_t longest_prompt(const struct walsh_model *model, uint32_t vocab, uint32_t context)
{
    size_t longest = 64; /* what normalization leaves out, texts of special tokens */
    for (uint32_t i = 0; i < vocab; i++) {
        const char *bytes;
        size_t size;
        if (walsh_model_token_bytes(model, (int32_t)i, &bytes, &size, NULL) == WALSH_OK && size > longest)
            longest = size;
    }
    return longest * context;
}

static bool encode_prompt(struct exchange *x, struct request_prompt *prompt)
{
    struct walsh_error err = {0};
    if (prompt->text) {
        if (!check_prompt_bytes(x, prompt->size, "prompt")) return false;
        int32_t *ids = NULL;
        if (walsh_model_encode(x->server->model, prompt->text, prompt->size, WALSH_TEXT_SPECIAL, &ids,
                               &prompt->count, &err) != WALSH_OK)
            return refuse(&x->refusal, 400, "invalid_prompt", "prompt", "%s", err.message);
        prompt->ids = calloc(prompt->count + 1, sizeof *prompt->ids);
        if (prompt->ids) memcpy(prompt->ids, ids, prompt->count * sizeof *ids);
        walsh_memory_free(ids);
        if (!prompt->ids) return refuse_memory(&x->refusal);
    }
    if (prompt->count == 0)
        return refuse(&x->refusal, 400, "invalid_prompt", "prompt", "the prompt is empty");
    return true;
}

/* What is kept for log-probabilities: at most so many tokens of an answer have room. */
static bool limit_logprobs(struct exchange *x, const struct request *r, size_t longest, int64_t *most)
{
    if (!r->logprobs_asked) return true;
    const size_t each = r->prompt_count * (size_t)r->n * (size_t)(1 + r->top_logprobs),
                 echoed = r->echo ? longest : 0, room = MOST_LOGPROBS_IN_ALL / each;
    if (r->max_tokens == OPTION_UNSET && room > echoed && (int64_t)(room - echoed) < *most)
        *most = (int64_t)(room - echoed);
    if (echoed + (size_t)*most <= room) return true;
    return refuse(&x->refusal, 400, "invalid_value", "logprobs",
                  "log-probabilities of %zu tokens in each of %zu choices, with %lld alternatives: that is "
                  "more than %d in all",
                  echoed + (size_t)*most, r->prompt_count * (size_t)r->n, (long long)r->top_logprobs,
                  MOST_LOGPROBS_IN_ALL);
}

/* max_tokens as the request has it, or the endpoint's default, against the context and the server's own
 * limit. */
static bool find_length(struct exchange *x, const struct request *r, bool chat, uint32_t *tokens)
{
    const uint32_t context = x->server->context_tokens, limit = x->server->limits.max_tokens;
    size_t longest = 0;
    for (size_t i = 0; i < r->prompt_count; i++)
        if (r->prompts[i].count > longest) longest = r->prompts[i].count;
    int64_t most = r->max_tokens;
    if (longest >= context)
        return refuse(&x->refusal, 400, "context_length_exceeded", chat ? "messages" : "prompt",
                      "the prompt has %zu tokens, and the context holds %u with the answer", longest,
                      context);
    if (most == OPTION_UNSET) {
        most = chat ? (int64_t)(context - longest) : 16;
        if (most > (int64_t)(context - longest)) most = (int64_t)(context - longest);
        if (limit && most > limit) most = limit;
    }
    if (limit && most > limit)
        return refuse(&x->refusal, 400, "invalid_value", "max_tokens",
                      "'max_tokens' is %lld, expected at most %u", (long long)most, limit);
    if ((uint64_t)most > context - longest)
        return refuse(&x->refusal, 400, "context_length_exceeded", "max_tokens",
                      "the prompt has %zu tokens and the answer may have %lld: the context holds %u", longest,
                      (long long)most, context);
    if (!limit_logprobs(x, r, longest, &most)) return false;
    *tokens = (uint32_t)most;
    return true;
}

static void set_sampling(struct server *server, const struct request *r, struct walsh_sampler_options *o)
{
    *o = (struct walsh_sampler_options){.struct_size = sizeof *o};
    walsh_sampler_defaults(server->model, o);
    if (!isnan(r->temperature)) o->temperature = r->temperature;
    if (r->top_k != OPTION_UNSET) o->top_k = (uint32_t)r->top_k;
    if (!isnan(r->top_p)) o->top_p = r->top_p;
    if (!isnan(r->min_p)) o->min_p = r->min_p;
    if (!isnan(r->repeat_penalty)) o->repeat_penalty = r->repeat_penalty;
    if (r->repeat_last != OPTION_UNSET) o->repeat_last = (uint32_t)r->repeat_last;
    o->presence_penalty = r->presence_penalty;
    o->frequency_penalty = r->frequency_penalty;
    o->bias_ids = r->bias_ids;
    o->biases = r->biases;
    o->bias_count = r->bias_count;
}

static uint64_t fresh_seed(void)
{
    uint32_t seed = 0; /* 32 bits: a number that one can type again */
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) seed = (uint32_t)(seconds_now() * 1e6);
    return seed;
}

/* Where the texts of the prompt's tokens begin in the echo, which has `echoed` characters. What the tokenizer
 * put in front of a text (BOS) is no part of it. */
static bool find_offsets(const struct job *job, struct request_prompt *p, size_t echoed)
{
    struct walsh_text_stream *stream;
    size_t *offsets = calloc(p->count, sizeof *offsets), at = 0, size;
    const char *text;
    if (!offsets || walsh_text_stream_open(job->model, p->text == NULL, &stream, NULL) != WALSH_OK) {
        free(offsets);
        return false;
    }
    bool good = true;
    for (size_t i = 0; i < p->count && good; i++) {
        offsets[i] = at;
        good = walsh_text_stream_next(stream, p->ids[i], &text, &size, NULL) == WALSH_OK;
        if (good) at += count_characters(text, size);
    }
    if (good && walsh_text_stream_finish(stream, &text, &size, NULL) == WALSH_OK)
        at += count_characters(text, size);
    walsh_text_stream_close(&stream);
    const size_t before = at > echoed ? at - echoed : 0;
    for (size_t i = 0; i < p->count; i++) offsets[i] -= offsets[i] < before ? offsets[i] : before;
    p->offsets = offsets;
    return good;
}

/* The prompt in front of the answer, as text. */
static bool put_echo(const struct job *job, struct sequence *s)
{
    struct request_prompt *p = s->prompt;
    char *text = NULL;
    size_t size = p->size;
    if (!p->text && walsh_model_decode(job->model, p->ids, p->count, true, &text, &size, NULL) != WALSH_OK)
        return false;
    const char *echo = p->text ? p->text : text;
    bool good = text_append(&s->content, echo, size);
    s->characters = count_characters(echo, size);
    if (good && job->request.logprobs_asked && !p->offsets) good = find_offsets(job, p, s->characters);
    walsh_memory_free(text);
    return good;
}

static bool open_sequences(struct server *server, struct job *job, bool thinking)
{
    const bool channels = job->chat && server->reasoning == REASONING_CHANNELS;
    for (size_t i = 0; i < job->count; i++) {
        struct sequence *s = &job->sequences[i];
        s->filter.stops = &job->request.stops;
        reasoning_open(&s->reasoning, job->chat ? server->reasoning : REASONING_NONE, thinking);
        /* the markers of channels are special tokens: their text is needed to tell the channels apart */
        if (walsh_text_stream_open(server->model, !channels, &s->stream, NULL) != WALSH_OK) return false;
        if (job->request.echo && !put_echo(job, s)) return false;
    }
    return true;
}

static void set_limits(struct exchange *x, struct job *job)
{
    const struct server_limits *l = &x->server->limits;
    job->arrived = x->started;
    job->limit_seconds = l->request_seconds;
    job->deadline = l->request_seconds > 0 ? x->started + l->request_seconds : INFINITY;
    job->queue_deadline = l->queue_seconds > 0 ? x->started + l->queue_seconds : INFINITY;
    job->stall_bytes = l->stall_bytes;
    job->tenant = x->tenant;
    job->salt = x->key;
    job->salt_size = x->key ? strlen(x->key) : 0;
    job->seed = job->request.seeded ? job->request.seed : fresh_seed();
}

static struct job *make_job(struct exchange *x, struct request *r, bool chat, struct model_entry *entry,
                            bool thinking)
{
    struct server *server = x->server;
    uint32_t max_tokens = 0;
    for (size_t i = 0; i < r->prompt_count; i++)
        if (!encode_prompt(x, &r->prompts[i])) return NULL;
    if (!find_length(x, r, chat, &max_tokens)) return NULL;
    struct job *job = job_open(r, chat, server->model, &server->models, entry);
    if (!job) {
        refuse_memory(&x->refusal);
        return NULL;
    }
    job->max_tokens = max_tokens ? max_tokens : 1;
    job->silent = max_tokens == 0;
    job->vocab = server->info.vocab;
    set_sampling(server, &job->request, &job->sampling);
    set_limits(x, job);
    if (open_sequences(server, job, thinking) && request_settle(&job->request)) return job;
    refuse_memory(&x->refusal);
    job_release(job);
    return NULL;
}

bool generation_prepare(struct exchange *x)
{
    const bool chat = x->route->endpoint == FOR_CHAT;
    struct request request;
    struct model_entry *entry = NULL;
    struct walsh_grammar *grammar = NULL;
    struct job *job = NULL;
    bool thinking = false;
    bool good = request_parse(x->body.data ? x->body.data : "", x->body.size, x->route->endpoint,
                              x->server->info.vocab, &request, &x->refusal);
    if (good && !(entry = models_hold(&x->server->models, request.model)))
        good = refuse(&x->refusal, 404, "model_not_found", "model",
                      "there is no model \"%.100s\"; see /v1/models", request.model);
    if (good && chat) good = chat_prompt(x, &request, &thinking);
    if (good) good = response_format_open(x, &request, chat, thinking, &grammar);
    if (good) job = make_job(x, &request, chat, entry, thinking);
    if (job) {
        job->grammar = grammar;
        job->sampling.grammar = grammar;
    } else {
        walsh_grammar_close(&grammar);
        models_release(&x->server->models, entry);
        request_free(&request);
    }
    x->job = job;
    return job != NULL;
}

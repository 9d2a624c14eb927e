#include "job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_text.h"

/* ---------------------------------------------------------------------------------------- life */

static bool write_head(struct job *job)
{
    const char *object = job->chat ? "chat.completion.chunk" : "text_completion";
    return json_write(&job->head, "data: {\"id\":") &&
           json_write_string(&job->head, job->id, strlen(job->id)) &&
           json_write(&job->head, ",\"object\":\"") && json_write(&job->head, object) &&
           json_write(&job->head, "\",\"created\":") && json_write_integer(&job->head, job->created) &&
           json_write(&job->head, ",\"model\":") &&
           json_write_string(&job->head, job->entry->name, strlen(job->entry->name));
}

struct job *job_open(struct request *request, bool chat, const struct walsh_model *model,
                     struct models *models, struct model_entry *entry)
{
    static atomic_ullong last;
    struct job *job = calloc(1, sizeof *job);
    if (!job) return NULL;
    job->count = job->open = request->prompt_count * (size_t)request->n;
    job->sequences = calloc(job->count, sizeof *job->sequences);
    job->created = time(NULL);
    job->chat = chat;
    job->entry = entry;
    snprintf(job->id, sizeof job->id, "%s-%llx-%llx", chat ? "chatcmpl" : "cmpl",
             (unsigned long long)job->created, atomic_fetch_add(&last, 1) + 1);
    if (!job->sequences || !write_head(job)) {
        free(job->sequences);
        text_free(&job->head);
        free(job);
        return NULL;
    }
    atomic_init(&job->references, 1);
    atomic_init(&job->cancelled, false);
    pthread_mutex_init(&job->lock, NULL);
    job->request = *request;
    *request = (struct request){0};
    job->model = model;
    job->models = models;
    for (size_t i = 0; i < job->count; i++) {
        job->sequences[i].job = job;
        job->sequences[i].index = (unsigned)i;
        job->sequences[i].prompt = &job->request.prompts[i / (size_t)job->request.n];
    }
    for (size_t i = 0; i < job->request.prompt_count; i++)
        job->prompt_tokens += job->request.prompts[i].count;
    return job;
}

void job_hold(struct job *job)
{
    atomic_fetch_add(&job->references, 1);
}

static void close_sequence(struct sequence *s)
{
    walsh_text_stream_close(&s->stream);
    stop_filter_free(&s->filter);
    reasoning_close(&s->reasoning);
    text_free(&s->content);
    text_free(&s->thoughts);
    free(s->records);
    free(s->alternatives);
}

void job_release(struct job *job)
{
    if (!job || atomic_fetch_sub(&job->references, 1) != 1) return;
    for (size_t i = 0; i < job->count; i++) close_sequence(&job->sequences[i]);
    free(job->sequences);
    request_free(&job->request);
    walsh_grammar_close(&job->grammar);
    models_release(job->models, job->entry);
    text_free(&job->head);
    text_free(&job->out);
    pthread_mutex_destroy(&job->lock);
    free(job);
}

void job_wake(struct job *job)
{
    if (!job->suspended || !job->connection) return;
    job->suspended = false;
    job->wake(job);
}

void job_cancel(struct job *job)
{
    atomic_store(&job->cancelled, true);
}

/* ---------------------------------------------------------------------------------------- tokens */

static bool better(struct alternative a, struct alternative b)
{
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
}

/* Room for one record more. */
static bool reserve_record(struct sequence *s)
{
    const size_t top = (size_t)s->job->request.top_logprobs;
    if (s->record_count < s->record_room) return true;
    const size_t room = s->record_room ? 2 * s->record_room : 32;
    struct token_record *records = realloc(s->records, room * sizeof *records);
    if (!records) return false;
    s->records = records;
    struct alternative *more = realloc(s->alternatives, room * (top + 1) * sizeof *more);
    if (!more) return false;
    s->alternatives = more;
    s->record_room = room;
    return true;
}

/* The log-probability of the token and of the likeliest ones: logits minus the logarithm of the sum of their
 * exponentials, of the distribution as the model gave it. */
static bool record(struct sequence *s, struct token_record token, const float *logits, uint32_t vocab)
{
    const size_t top = (size_t)s->job->request.top_logprobs;
    if (!reserve_record(s)) return false;
    float best = logits[0];
    double sum = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > best) best = logits[i];
    for (uint32_t i = 0; i < vocab; i++) sum += exp((double)(logits[i] - best));
    const double whole = (double)best + log(sum);
    struct alternative *list = s->alternatives + s->record_count * top;
    size_t count = 0;
    for (uint32_t i = 0; i < vocab && top; i++) {
        const struct alternative one = {(int32_t)i, (float)((double)logits[i] - whole)};
        if (count == top && !better(one, list[count - 1])) continue;
        size_t at = count < top ? count++ : count - 1;
        for (; at > 0 && better(one, list[at - 1]); at--) list[at] = list[at - 1];
        list[at] = one;
    }
    token.logprob = (float)((double)logits[token.id] - whole);
    s->records[s->record_count++] = token;
    return true;
}

void sequence_take_prompt(struct sequence *s, uint32_t first, const float *logits, uint32_t count,
                          uint32_t vocab)
{
    const struct request_prompt *p = s->prompt;
    if (first == 0 && !s->lost) {
        s->lost = !reserve_record(s);
        if (!s->lost) s->records[s->record_count++] = (struct token_record){p->ids[0], NAN, 0, p->offsets[0]};
    }
    for (uint32_t i = 0; i < count && first + i + 1 < p->count && !s->lost; i++) {
        const struct token_record next = {p->ids[first + i + 1], 0, 0, p->offsets[first + i + 1]};
        s->lost = !record(s, next, logits + (size_t)i * vocab, vocab);
    }
    s->prompt_records = s->record_count;
}

size_t count_characters(const char *text, size_t size)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

/* Text of the answer through the filters. */
static bool pass(struct sequence *s, const char *text, size_t size)
{
    const char *out;
    size_t out_size;
    s->decoded += size;
    s->characters += count_characters(text, size);
    if (!stop_filter_push(&s->filter, text, size, &out, &out_size)) return false;
    s->released += out_size;
    return reasoning_push(&s->reasoning, out, out_size, &s->content, &s->thoughts);
}

bool sequence_take(struct sequence *s, int32_t token, const float *logits, uint32_t vocab, bool *ended)
{
    const char *text;
    size_t size;
    *ended = false;
    s->tokens++;
    const struct token_record new = {token, 0, s->decoded, s->characters};
    if (logits && !record(s, new, logits, vocab)) return false;
    if (walsh_text_stream_next(s->stream, token, &text, &size, NULL) != WALSH_OK) return false;
    if (!pass(s, text, size)) return false;
    *ended = s->filter.found;
    return true;
}

bool sequence_finish(struct sequence *s, const char *finish)
{
    const char *text;
    size_t size;
    if (walsh_text_stream_finish(s->stream, &text, &size, NULL) != WALSH_OK || !pass(s, text, size))
        return false;
    stop_filter_finish(&s->filter, &text, &size);
    s->released += size;
    if (!reasoning_push(&s->reasoning, text, size, &s->content, &s->thoughts)) return false;
    if (!reasoning_finish(&s->reasoning, &s->content, &s->thoughts)) return false;
    s->finish = s->filter.found ? "stop" : finish;
    return true;
}

/* ---------------------------------------------------------------------------------------- log probabilities
 */

/* The token by its bytes; where they are no text, "\xf0\x9f" behind `prefix`, as OpenAI writes it. */
static json_t *token_json(const struct job *job, int32_t id, const char *prefix)
{
    const char *bytes = "";
    size_t size = 0;
    struct text text = {0};
    if (walsh_model_token_bytes(job->model, id, &bytes, &size, NULL) != WALSH_OK) return json_null();
    json_t *string = json_stringn(bytes, size); /* NULL: no UTF-8 */
    bool good = string != NULL || json_write(&text, prefix);
    for (size_t i = 0; !string && good && i < size; i++) {
        char escape[8];
        snprintf(escape, sizeof escape, "\\x%02x", (unsigned char)bytes[i]);
        good = json_write(&text, escape);
    }
    if (!string) string = good ? json_stringn(text.data, text.size) : json_null();
    text_free(&text);
    return string;
}

/* {"token", "logprob", "bytes"} of chats. */
static json_t *token_object(const struct job *job, int32_t id, float logprob)
{
    const char *bytes = "";
    size_t size = 0;
    json_t *object = json_object(), *list = json_array();
    json_object_set_new(object, "token", token_json(job, id, ""));
    json_put_real(object, "logprob", (double)logprob);
    if (walsh_model_token_bytes(job->model, id, &bytes, &size, NULL) != WALSH_OK) size = 0;
    for (size_t i = 0; i < size; i++) json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    json_object_set_new(object, "bytes", list);
    return object;
}

static json_t *chat_logprobs(const struct sequence *s, size_t begin, size_t end)
{
    const size_t top = (size_t)s->job->request.top_logprobs;
    json_t *content = json_array(), *object = json_object();
    for (size_t i = begin; i < end; i++) {
        json_t *item = token_object(s->job, s->records[i].id, s->records[i].logprob), *list = json_array();
        for (size_t a = 0; a < top; a++) {
            const struct alternative *other = &s->alternatives[i * top + a];
            json_array_append_new(list, token_object(s->job, other->id, other->logprob));
        }
        json_object_set_new(item, "top_logprobs", list);
        json_array_append_new(content, item);
    }
    json_object_set_new(object, "content", content);
    return object;
}

/* A member named by the token's text; of two tokens with the same text the likelier one is told of. */
static void put_alternative(const struct job *job, json_t *object, const struct alternative *other)
{
    json_t *name = token_json(job, other->id, "bytes:");
    const char *text = json_string_value(name);
    if (text && !json_object_get(object, text)) json_put_real(object, text, (double)other->logprob);
    json_decref(name);
}

/* The token itself and the likeliest ones. */
static json_t *alternatives_json(const struct sequence *s, size_t record)
{
    const size_t top = (size_t)s->job->request.top_logprobs;
    const struct token_record *r = &s->records[record];
    const struct alternative own = {r->id, r->logprob}; /* always among them */
    if (isnan(r->logprob)) return json_null();
    json_t *object = json_object();
    if (top) put_alternative(s->job, object, &own);
    for (size_t a = 0; a < top; a++) put_alternative(s->job, object, &s->alternatives[record * top + a]);
    return object;
}

static json_t *completion_logprobs(const struct sequence *s, size_t begin, size_t end)
{
    json_t *tokens = json_array(), *logprobs = json_array(), *tops = json_array(), *offsets = json_array();
    for (size_t i = begin; i < end; i++) {
        const struct token_record *r = &s->records[i];
        json_array_append_new(tokens, token_json(s->job, r->id, "bytes:"));
        json_array_append_new(logprobs, isnan(r->logprob) ? json_null() : json_real((double)r->logprob));
        json_array_append_new(offsets, json_integer((json_int_t)r->characters));
        json_array_append_new(tops, alternatives_json(s, i));
    }
    json_t *object = json_object();
    json_object_set_new(object, "tokens", tokens);
    json_object_set_new(object, "token_logprobs", logprobs);
    json_object_set_new(object, "top_logprobs", tops);
    json_object_set_new(object, "text_offset", offsets);
    return object;
}

static json_t *logprobs_json(const struct sequence *s, size_t begin, size_t end)
{
    if (!s->job->request.logprobs_asked) return json_null();
    return s->job->chat ? chat_logprobs(s, begin, end) : completion_logprobs(s, begin, end);
}

/* Records up to here belong to text that was given out: a token counts when its text has begun to. */
static size_t told_records(const struct sequence *s)
{
    if (s->finish && !s->filter.found) return s->record_count;
    size_t count = s->sent_records > s->prompt_records ? s->sent_records : s->prompt_records;
    while (count < s->record_count && s->records[count].offset < s->released) count++;
    return count;
}

/* ---------------------------------------------------------------------------------------- streams */

static bool write_delta(struct sequence *s, struct text *out)
{
    bool good = json_write(out, "\"delta\":{");
    const char *comma = "";
    if (!s->begun) {
        good = good && json_write(out, "\"role\":\"assistant\",\"content\":");
        good = good && json_write_string(out, s->content.data, s->content.size);
        comma = ",";
    } else if (s->content.size > s->sent_content) {
        good = good && json_write(out, "\"content\":") &&
               json_write_string(out, s->content.data + s->sent_content, s->content.size - s->sent_content);
        comma = ",";
    }
    if (s->thoughts.size > s->sent_thoughts)
        good =
            good && json_write(out, comma) && json_write(out, "\"reasoning_content\":") &&
            json_write_string(out, s->thoughts.data + s->sent_thoughts, s->thoughts.size - s->sent_thoughts);
    return good && json_write(out, "}");
}

static bool write_choice(struct sequence *s, struct text *out, size_t records)
{
    bool good = json_write(out, ",\"choices\":[{\"index\":") && json_write_integer(out, s->index) &&
                json_write(out, ",");
    if (s->job->chat)
        good = good && write_delta(s, out);
    else
        good = good && json_write(out, "\"text\":") &&
               json_write_string(out, s->content.data + s->sent_content, s->content.size - s->sent_content);
    if (s->job->request.logprobs_asked)
        good = good && json_write(out, ",\"logprobs\":") &&
               json_write_tree(out, logprobs_json(s, s->sent_records, records));
    else
        good = good && json_write(out, ",\"logprobs\":null");
    good = good && json_write(out, ",\"finish_reason\":");
    good =
        good && (s->finish ? json_write_string(out, s->finish, strlen(s->finish)) : json_write(out, "null"));
    return good && json_write(out, "}]");
}

bool sequence_send(struct sequence *s)
{
    struct job *job = s->job;
    if (!job->request.stream) return true;
    const size_t records = told_records(s);
    const bool news =
        s->finish || !s->begun || s->content.size > s->sent_content || s->thoughts.size > s->sent_thoughts;
    if (!news || (!job->chat && !s->finish && s->content.size == s->sent_content)) return true;
    bool good = text_append(&job->out, job->head.data, job->head.size) &&
                write_choice(s, &job->out, records) &&
                (!job->request.include_usage || json_write(&job->out, ",\"usage\":null")) &&
                json_write(&job->out, "}\n\n");
    s->begun = true;
    s->sent_content = s->content.size;
    s->sent_thoughts = s->thoughts.size;
    s->sent_records = records;
    return good;
}

static json_t *usage_json(const struct job *job)
{
    json_t *usage = json_object(), *details = json_object();
    json_put_integer(usage, "prompt_tokens", job->prompt_tokens);
    json_put_integer(usage, "completion_tokens", job->tokens);
    json_put_integer(usage, "total_tokens", job->prompt_tokens + job->tokens);
    json_put_integer(details, "cached_tokens", job->prefix_tokens);
    json_object_set_new(usage, "prompt_tokens_details", details);
    return usage;
}

bool job_send_end(struct job *job)
{
    bool good = true;
    if (job->request.include_usage)
        good = text_append(&job->out, job->head.data, job->head.size) &&
               json_write(&job->out, ",\"choices\":[],\"usage\":") &&
               json_write_tree(&job->out, usage_json(job)) && json_write(&job->out, "}\n\n");
    return good && json_write(&job->out, "data: [DONE]\n\n");
}

bool job_send_failure(struct job *job)
{
    return json_write(&job->out, "data: ") && json_write_tree(&job->out, refusal_json(&job->failure)) &&
           json_write(&job->out, "\n\n");
}

/* ---------------------------------------------------------------------------------------- answers */

static json_t *text_json(const struct text *text)
{
    return json_stringn(text->data ? text->data : "", text->size);
}

static json_t *choice_json(const struct sequence *s)
{
    json_t *choice = json_object();
    json_put_integer(choice, "index", s->index);
    if (s->job->chat) {
        json_t *message = json_object();
        json_put_text(message, "role", "assistant");
        json_object_set_new(message, "content", text_json(&s->content));
        if (s->thoughts.size) json_object_set_new(message, "reasoning_content", text_json(&s->thoughts));
        json_object_set_new(choice, "message", message);
    } else {
        json_object_set_new(choice, "text", text_json(&s->content));
    }
    json_object_set_new(choice, "logprobs", logprobs_json(s, 0, told_records(s)));
    json_put_text(choice, "finish_reason", s->finish);
    return choice;
}

json_t *job_answer(struct job *job)
{
    json_t *answer = json_object(), *choices = json_array();
    json_put_text(answer, "id", job->id);
    json_put_text(answer, "object", job->chat ? "chat.completion" : "text_completion");
    json_put_integer(answer, "created", (unsigned long long)job->created);
    json_put_text(answer, "model", job->entry->name);
    for (size_t i = 0; i < job->count; i++) json_array_append_new(choices, choice_json(&job->sequences[i]));
    json_object_set_new(answer, "choices", choices);
    json_object_set_new(answer, "usage", usage_json(job));
    return answer;
}

/* Messages may quote what came from outside: what is not UTF-8 is shown as question marks. */
static json_t *message_json(const char *message)
{
    char clean[sizeof((struct refusal *)0)->message];
    json_t *string = json_string(message);
    if (string) return string;
    size_t i = 0;
    for (; message[i] && i + 1 < sizeof clean; i++)
        clean[i] = (unsigned char)message[i] < 0x80 ? message[i] : '?';
    clean[i] = 0;
    return json_string(clean);
}

json_t *refusal_json(const struct refusal *refusal)
{
    json_t *object = json_object(), *error = json_object();
    json_object_set_new(error, "message", message_json(refusal->message));
    json_put_text(error, "type", refusal->type);
    json_object_set_new(error, "param", *refusal->param ? message_json(refusal->param) : json_null());
    json_put_text(error, "code", refusal->code);
    json_object_set_new(object, "error", error);
    return object;
}

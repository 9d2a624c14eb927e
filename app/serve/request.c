#include "request.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define JSON_LIMIT 64 /* nested arrays and objects in a body */

bool refuse(struct refusal *refusal, int status, const char *code, const char *param, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(refusal->message, sizeof refusal->message, format, args);
    va_end(args);
    snprintf(refusal->param, sizeof refusal->param, "%s", param ? param : "");
    refusal->status = status;
    refusal->code = code;
    refusal->type = status >= 500 ? "server_error" : "invalid_request_error";
    if (status == 401) refusal->type = "authentication_error";
    if (status == 429) refusal->type = "rate_limit_error";
    return false;
}

bool refuse_memory(struct refusal *refusal)
{
    return refuse(refusal, 503, "out_of_memory", NULL, "the server is out of memory");
}

/* ---------------------------------------------------------------------------------------- fields */

enum field_kind {
    FIELD_SWITCH,
    FIELD_INTEGER,
    FIELD_REAL,
    FIELD_TEXT,
    FIELD_ANY,
    FIELD_IGNORED,
    FIELD_PARSED
};

struct field {
    const char *name;
    unsigned endpoints;
    enum field_kind kind;
    size_t offset; /* in struct request; of FIELD_ANY: a const json_t * */
    double least, most;
    bool (*parse)(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                  struct refusal *refusal);
};

static bool wrong_type(const struct field *field, const char *expected, struct refusal *refusal)
{
    return refuse(refusal, 400, "invalid_type", field->name, "'%s' must be %s", field->name, expected);
}

static bool out_of_range(const struct field *field, double value, struct refusal *refusal)
{
    return refuse(refusal, 400, "invalid_value", field->name, "'%s' is %.15g, expected %.15g to %.15g",
                  field->name, value, field->least, field->most);
}

static bool parse_stop(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                       struct refusal *refusal)
{
    (void)vocab;
    const size_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count > OPTION_MANY)
        return refuse(refusal, 400, "invalid_value", field->name,
                      "'stop' has %zu strings, expected at most %d", count, OPTION_MANY);
    for (size_t i = 0; i < count; i++) {
        const json_t *stop = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(stop)) return wrong_type(field, "a string or an array of strings", refusal);
        const size_t size = json_string_length(stop);
        if (size == 0 || size > MOST_STOP_BYTES)
            return refuse(refusal, 400, "invalid_value", field->name,
                          "a stop string has %zu bytes, expected 1 to %d", size, MOST_STOP_BYTES);
        out->stops.values[out->stops.count++] = json_string_value(stop);
    }
    return true;
}

static bool parse_id(const struct field *field, const json_t *value, uint32_t vocab, int32_t *id,
                     struct refusal *refusal)
{
    if (!json_is_integer(value)) return wrong_type(field, "made of token ids", refusal);
    const json_int_t n = json_integer_value(value);
    if (n < 0 || n >= (json_int_t)vocab)
        return refuse(refusal, 400, "invalid_value", field->name, "'%s': token id %lld, expected 0 to %u",
                      field->name, (long long)n, vocab - 1);
    *id = (int32_t)n;
    return true;
}

static bool parse_stop_ids(const struct field *field, const json_t *value, uint32_t vocab,
                           struct request *out, struct refusal *refusal)
{
    if (!json_is_array(value)) return wrong_type(field, "an array of token ids", refusal);
    if (json_array_size(value) > MOST_STOP_IDS)
        return refuse(refusal, 400, "invalid_value", field->name, "'%s' has %zu ids, expected at most %d",
                      field->name, json_array_size(value), MOST_STOP_IDS);
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!parse_id(field, json_array_get(value, i), vocab, &out->stop_ids[out->stop_id_count++], refusal))
            return false;
    return true;
}

static bool parse_bias(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                       struct refusal *refusal)
{
    const char *key;
    json_t *bias;
    if (!json_is_object(value)) return wrong_type(field, "an object of token ids and numbers", refusal);
    const size_t count = json_object_size(value);
    if (count > MOST_BIASES)
        return refuse(refusal, 400, "invalid_value", field->name,
                      "'logit_bias' has %zu entries, expected at most %d", count, MOST_BIASES);
    out->bias_ids = calloc(count + 1, sizeof *out->bias_ids);
    out->biases = calloc(count + 1, sizeof *out->biases);
    if (!out->bias_ids || !out->biases) return refuse_memory(refusal);
    json_object_foreach((json_t *)(uintptr_t)value, key, bias)
    {
        char *end;
        errno = 0;
        const long id = *key >= '0' && *key <= '9' ? strtol(key, &end, 10) : -1;
        if (id < 0 || *end || errno || id >= (long)vocab)
            return refuse(refusal, 400, "invalid_value", field->name,
                          "'logit_bias': \"%.32s\" is no token id, expected 0 to %u", key, vocab - 1);
        if (!json_is_number(bias)) return wrong_type(field, "an object of token ids and numbers", refusal);
        const double number = json_number_value(bias);
        if (!(number >= field->least && number <= field->most)) return out_of_range(field, number, refusal);
        out->bias_ids[out->bias_count] = (int32_t)id;
        out->biases[out->bias_count++] = (float)number;
    }
    return true;
}

/* An integer of completions, a switch of chats. */
static bool parse_logprobs(const struct field *field, const json_t *value, uint32_t vocab,
                           struct request *out, struct refusal *refusal)
{
    (void)vocab;
    if (!json_is_integer(value)) return wrong_type(field, "an integer", refusal);
    const json_int_t n = json_integer_value(value);
    if (n < 0 || n > MOST_LOGPROBS) return out_of_range(field, (double)n, refusal);
    out->logprobs_asked = true;
    out->top_logprobs = n;
    return true;
}

/* A negative one counts from 2^64: -1 is the last of 64 bits. */
static bool parse_seed(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                       struct refusal *refusal)
{
    (void)vocab;
    if (!json_is_integer(value)) return wrong_type(field, "an integer", refusal);
    out->seed = (uint64_t)json_integer_value(value);
    out->seeded = true;
    return true;
}

static bool parse_stream_options(const struct field *field, const json_t *value, uint32_t vocab,
                                 struct request *out, struct refusal *refusal)
{
    const char *key;
    json_t *member;
    (void)vocab;
    if (!json_is_object(value)) return wrong_type(field, "an object", refusal);
    json_object_foreach((json_t *)(uintptr_t)value, key, member)
    {
        if (json_is_null(member)) continue;
        if (strcmp(key, "include_usage") != 0)
            return refuse(refusal, 400, "unknown_parameter", field->name,
                          "'stream_options.%.40s' is not supported", key);
        if (!json_is_boolean(member))
            return refuse(refusal, 400, "invalid_type", field->name,
                          "'stream_options.include_usage' must be a boolean");
        out->include_usage = json_is_true(member);
    }
    return true;
}

static bool parse_id_list(const struct field *field, const json_t *list, uint32_t vocab,
                          struct request_prompt *prompt, struct refusal *refusal)
{
    const size_t count = json_array_size(list);
    prompt->ids = calloc(count + 1, sizeof *prompt->ids);
    if (!prompt->ids) return refuse_memory(refusal);
    for (; prompt->count < count; prompt->count++)
        if (!parse_id(field, json_array_get(list, prompt->count), vocab, &prompt->ids[prompt->count],
                      refusal))
            return false;
    return true;
}

/* A string, an array of strings, an array of token ids, an array of arrays of token ids. */
static bool parse_prompt(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                         struct refusal *refusal)
{
    const json_t *first = json_array_get(value, 0);
    const bool several = json_is_array(value) && !json_is_integer(first);
    const size_t count = several ? json_array_size(value) : 1;
    if (count == 0 || count > MOST_CHOICES)
        return refuse(refusal, 400, "invalid_value", field->name,
                      "'prompt' has %zu entries, expected 1 to %d", count, MOST_CHOICES);
    out->prompts = calloc(count, sizeof *out->prompts);
    if (!out->prompts) return refuse_memory(refusal);
    for (; out->prompt_count < count;) {
        const json_t *one = several ? json_array_get(value, out->prompt_count) : value;
        struct request_prompt *prompt = &out->prompts[out->prompt_count++];
        if (json_is_string(one)) {
            prompt->text = json_string_value(one);
            prompt->size = json_string_length(one);
        } else if (json_is_array(one)) {
            if (!parse_id_list(field, one, vocab, prompt, refusal)) return false;
        } else {
            return wrong_type(field, "a string, an array of strings, or token ids", refusal);
        }
    }
    return true;
}

#define AT(member) offsetof(struct request, member)

static const struct field fields[] = {
    {"model", FOR_TEXT | FOR_TOKENIZE | FOR_DETOKENIZE, FIELD_TEXT, AT(model), 0, 256, NULL},
    {"prompt", FOR_COMPLETION, FIELD_PARSED, 0, 0, 0, parse_prompt},
    {"prompt", FOR_TOKENIZE, FIELD_TEXT, AT(prompt_text), 0, 1e9, NULL},
    {"messages", FOR_CHAT | FOR_TOKENIZE, FIELD_ANY, AT(messages), 0, 0, NULL},
    {"chat_template_kwargs", FOR_CHAT | FOR_TOKENIZE, FIELD_ANY, AT(template_arguments), 0, 0, NULL},
    {"max_tokens", FOR_COMPLETION, FIELD_INTEGER, AT(max_tokens), 0, INT32_MAX, NULL},
    {"max_tokens", FOR_CHAT, FIELD_INTEGER, AT(max_tokens), 1, INT32_MAX, NULL},
    {"max_completion_tokens", FOR_CHAT, FIELD_INTEGER, AT(max_tokens), 1, INT32_MAX, NULL},
    {"n", FOR_TEXT, FIELD_INTEGER, AT(n), 1, MOST_CHOICES, NULL},
    {"best_of", FOR_COMPLETION, FIELD_INTEGER, AT(best_of), 1, MOST_CHOICES, NULL},
    {"stream", FOR_TEXT, FIELD_SWITCH, AT(stream), 0, 0, NULL},
    {"stream_options", FOR_TEXT, FIELD_PARSED, 0, 0, 0, parse_stream_options},
    {"stop", FOR_TEXT, FIELD_PARSED, 0, 0, 0, parse_stop},
    {"stop_token_ids", FOR_TEXT, FIELD_PARSED, 0, 0, 0, parse_stop_ids},
    {"ignore_eos", FOR_TEXT, FIELD_SWITCH, AT(ignore_eos), 0, 0, NULL},
    {"temperature", FOR_TEXT, FIELD_REAL, AT(temperature), 0, 100, NULL},
    {"top_p", FOR_TEXT, FIELD_REAL, AT(top_p), 0, 1, NULL},
    {"top_k", FOR_TEXT, FIELD_INTEGER, AT(top_k), -1, INT32_MAX, NULL},
    {"min_p", FOR_TEXT, FIELD_REAL, AT(min_p), 0, 1, NULL},
    {"repetition_penalty", FOR_TEXT, FIELD_REAL, AT(repeat_penalty), 0.01, 100, NULL},
    {"repeat_penalty", FOR_TEXT, FIELD_REAL, AT(repeat_penalty), 0.01, 100, NULL},
    {"repeat_last_n", FOR_TEXT, FIELD_INTEGER, AT(repeat_last), 0, INT32_MAX, NULL},
    {"presence_penalty", FOR_TEXT, FIELD_REAL, AT(presence_penalty), -100, 100, NULL},
    {"frequency_penalty", FOR_TEXT, FIELD_REAL, AT(frequency_penalty), -100, 100, NULL},
    {"seed", FOR_TEXT, FIELD_PARSED, 0, 0, 0, parse_seed},
    {"logit_bias", FOR_TEXT, FIELD_PARSED, 0, -100, 100, parse_bias},
    {"logprobs", FOR_COMPLETION, FIELD_PARSED, 0, 0, MOST_LOGPROBS, parse_logprobs},
    {"logprobs", FOR_CHAT, FIELD_SWITCH, AT(logprobs_asked), 0, 0, NULL},
    {"top_logprobs", FOR_CHAT, FIELD_INTEGER, AT(top_logprobs), 0, MOST_LOGPROBS, NULL},
    {"echo", FOR_COMPLETION, FIELD_SWITCH, AT(echo), 0, 0, NULL},
    {"response_format", FOR_TEXT, FIELD_ANY, AT(response_format), 0, 0, NULL},
    {"user", FOR_TEXT, FIELD_TEXT, AT(user), 0, 256, NULL},
    {"metadata", FOR_TEXT, FIELD_IGNORED, 0, 0, 0, NULL},
    {"store", FOR_TEXT, FIELD_IGNORED, 0, 0, 0, NULL},
    {"add_special_tokens", FOR_TOKENIZE, FIELD_SWITCH, AT(add_special), 0, 0, NULL},
    {"add_generation_prompt", FOR_TOKENIZE | FOR_CHAT, FIELD_SWITCH, AT(add_generation_prompt), 0, 0, NULL},
    {"return_token_strs", FOR_TOKENIZE, FIELD_SWITCH, AT(return_strings), 0, 0, NULL},
    {"tokens", FOR_DETOKENIZE, FIELD_ANY, AT(tokens), 0, 0, NULL},
    {"lora_name", FOR_LOAD | FOR_UNLOAD, FIELD_TEXT, AT(lora_name), 1, 127, NULL},
    {"lora_path", FOR_LOAD, FIELD_TEXT, AT(lora_path), 1, 4095, NULL},
};

static bool parse_field(const struct field *field, const json_t *value, uint32_t vocab, struct request *out,
                        struct refusal *refusal)
{
    void *at = (char *)out + field->offset;
    switch (field->kind) {
    case FIELD_SWITCH:
        if (!json_is_boolean(value)) return wrong_type(field, "a boolean", refusal);
        *(bool *)at = json_is_true(value);
        return true;
    case FIELD_INTEGER: {
        if (!json_is_integer(value)) return wrong_type(field, "an integer", refusal);
        const json_int_t n = json_integer_value(value);
        if (n < (json_int_t)field->least || n > (json_int_t)field->most) /* as a double 9e18 + 1 is 9e18 */
            return out_of_range(field, (double)n, refusal);
        *(int64_t *)at = n;
        return true;
    }
    case FIELD_REAL: {
        if (!json_is_number(value)) return wrong_type(field, "a number", refusal);
        const double number = json_number_value(value);
        if (!(number >= field->least && number <= field->most)) return out_of_range(field, number, refusal);
        *(double *)at = number;
        return true;
    }
    case FIELD_TEXT:
        if (!json_is_string(value)) return wrong_type(field, "a string", refusal);
        if ((double)json_string_length(value) < field->least ||
            (double)json_string_length(value) > field->most)
            return refuse(refusal, 400, "invalid_value", field->name,
                          "'%s' has %zu bytes, expected %.0f to %.0f", field->name, json_string_length(value),
                          field->least, field->most);
        *(const char **)at = json_string_value(value);
        return true;
    case FIELD_ANY:
        *(const json_t **)at = value;
        return true;
    case FIELD_IGNORED:
        return true;
    case FIELD_PARSED:
        break;
    }
    return field->parse(field, value, vocab, out, refusal);
}

static const struct field *find_field(const char *name, unsigned endpoint)
{
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if ((fields[i].endpoints & endpoint) && strcmp(fields[i].name, name) == 0) return &fields[i];
    return NULL;
}

/* Levels of nesting, values and NULs, before a tree is built of them. */
static bool check_size(const char *body, size_t size, struct refusal *refusal)
{
    size_t depth = 0, containers = 0, values = 1;
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        const char c = body[i];
        const bool escape = quoted && c == '\\';
        if (!c || (escape && size - i >= 6 && memcmp(body + i + 1, "u0000", 5) == 0))
            return refuse(refusal, 400, "invalid_json", NULL,
                          "byte %zu of the body is NUL%s, which no text may have", i, c ? " (\\u0000)" : "");
        if (escape) {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted && (c == '[' || c == '{')) {
            containers++;
            values++; /* the first of its own, as each comma brings one more */
            if (++depth > JSON_LIMIT)
                return refuse(refusal, 400, "invalid_json", NULL, "the body is nested deeper than %d levels",
                              JSON_LIMIT);
        } else if (!quoted && (c == ']' || c == '}')) {
            depth -= depth > 0;
        } else if (!quoted && c == ',') {
            values++;
        }
    }
    if (values <= MOST_VALUES && containers <= MOST_CONTAINERS) return true;
    return refuse(refusal, 400, "too_many_values", NULL,
                  "the body has %zu JSON values, %zu of them arrays or objects, expected at most %d and %d",
                  values, containers, MOST_VALUES, MOST_CONTAINERS);
}

/* What no single field can say. */
static bool check_together(struct request *r, unsigned endpoint, struct refusal *refusal)
{
    if (r->top_p <= 0)
        return refuse(refusal, 400, "invalid_value", "top_p", "'top_p' is 0, expected above 0 to 1");
    if (r->top_k < 0 && r->top_k != OPTION_UNSET) r->top_k = 0; /* -1: off */
    if (r->n == OPTION_UNSET) r->n = 1;
    if (r->best_of != OPTION_UNSET && r->best_of != r->n)
        return refuse(refusal, 400, "unsupported_value", "best_of",
                      "'best_of' other than 'n' is not supported");
    if ((size_t)r->n * r->prompt_count > MOST_CHOICES)
        return refuse(refusal, 400, "invalid_value", "n",
                      "'n' times the number of prompts is %zu, expected at most %d",
                      (size_t)r->n * r->prompt_count, MOST_CHOICES);
    if (endpoint == FOR_CHAT && r->top_logprobs > 0 && !r->logprobs_asked)
        return refuse(refusal, 400, "invalid_value", "top_logprobs", "'top_logprobs' needs 'logprobs': true");
    if (r->top_logprobs == OPTION_UNSET) r->top_logprobs = 0;
    if (r->include_usage && !r->stream)
        return refuse(refusal, 400, "invalid_value", "stream_options",
                      "'stream_options' needs 'stream': true");
    if (endpoint == FOR_COMPLETION && r->prompt_count == 0)
        return refuse(refusal, 400, "missing_required_parameter", "prompt", "'prompt' is missing");
    if (endpoint == FOR_CHAT && !r->messages)
        return refuse(refusal, 400, "missing_required_parameter", "messages", "'messages' is missing");
    return true;
}

bool request_parse(const char *body, size_t size, unsigned endpoint, uint32_t vocab, struct request *out,
                   struct refusal *refusal)
{
    json_error_t error;
    const char *key;
    json_t *value;
    *out = (struct request){.n = OPTION_UNSET,
                            .best_of = OPTION_UNSET,
                            .max_tokens = OPTION_UNSET,
                            .top_k = OPTION_UNSET,
                            .repeat_last = OPTION_UNSET,
                            .top_logprobs = OPTION_UNSET,
                            .temperature = NAN,
                            .top_p = NAN,
                            .min_p = NAN,
                            .repeat_penalty = NAN,
                            .presence_penalty = 0,
                            .frequency_penalty = 0,
                            .add_special = true,
                            .add_generation_prompt = true};
    if (!check_size(body, size, refusal)) return false;
    out->body = json_loadb(body, size, JSON_REJECT_DUPLICATES, &error);
    if (!out->body)
        return refuse(refusal, 400, "invalid_json", NULL, "the body is not JSON: line %d, column %d: %s",
                      error.line, error.column, error.text);
    if (!json_is_object(out->body))
        return refuse(refusal, 400, "invalid_json", NULL, "the body must be a JSON object");
    json_object_foreach(out->body, key, value)
    {
        const struct field *field = find_field(key, endpoint);
        if (json_is_null(value)) continue;
        if (!field)
            return refuse(refusal, 400, "unknown_parameter", key, "'%.60s' is not supported here", key);
        if (!parse_field(field, value, vocab, out, refusal)) return false;
    }
    return check_together(out, endpoint, refusal);
}

bool request_settle(struct request *r)
{
    size_t size = 0;
    for (size_t i = 0; i < r->stops.count; i++) size += strlen(r->stops.values[i]) + 1;
    char *at = r->stop_text = malloc(size + 1);
    if (!at) return false;
    for (size_t i = 0; i < r->stops.count; i++) {
        const size_t length = strlen(r->stops.values[i]) + 1;
        r->stops.values[i] = memcpy(at, r->stops.values[i], length);
        at += length;
    }
    for (size_t i = 0; i < r->prompt_count; i++) r->prompts[i].text = NULL;
    r->model = r->user = r->lora_name = r->lora_path = r->prompt_text = NULL;
    r->messages = r->response_format = r->tokens = r->template_arguments = NULL;
    json_decref(r->body);
    r->body = NULL;
    return true;
}

void request_free(struct request *request)
{
    free(request->stop_text);
    for (size_t i = 0; i < request->prompt_count; i++) {
        free(request->prompts[i].ids);
        free(request->prompts[i].offsets);
    }
    free(request->prompts);
    free(request->bias_ids);
    free(request->biases);
    json_decref(request->body);
    *request = (struct request){0};
}

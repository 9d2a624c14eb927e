#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "json_text.h"

#define MOST_MESSAGES 2048 /* of a conversation: a template's work grows with them */

/* What a template fails with: the client's conversation, or the model's own template. */
static bool refuse_rendering(struct exchange *x, const struct walsh_error *err)
{
    switch (err->status) {
    case WALSH_E_NOT_FOUND:
        return refuse(&x->refusal, 400, "no_chat_template", "messages",
                      "this model has no chat template; use /v1/completions");
    case WALSH_E_ARGUMENT:
    case WALSH_E_CAPACITY:
        return refuse(&x->refusal, 400, "invalid_messages", "messages", "%s", err->message);
    case WALSH_E_MEMORY:
        return refuse_memory(&x->refusal);
    default: /* whatever the conversation is */
        return refuse(&x->refusal, 500, "template_error", NULL,
                      "the model's chat template cannot be used: %s", err->message);
    }
}

/* The text of a part of a message's content, {"type": "text", "text": ...}; NULL: x->refusal. */
static const json_t *part_text(struct exchange *x, const json_t *part)
{
    const char *type = json_string_value(json_object_get(part, "type")), *key;
    const json_t *words = json_object_get(part, "text");
    json_t *value;
    if (!type || strcmp(type, "text") != 0 || !json_is_string(words)) {
        refuse(&x->refusal, 400, "unsupported_value", "messages",
               "a part of a message's content has type \"%.40s\", expected text", type ? type : "");
        return NULL;
    }
    json_object_foreach((json_t *)(uintptr_t)part, key, value)
    {
        if (strcmp(key, "type") == 0 || strcmp(key, "text") == 0 || json_is_null(value)) continue;
        refuse(&x->refusal, 400, "unknown_parameter", "messages",
               "'%.60s' of a part of a message's content is not supported", key);
        return NULL;
    }
    return words;
}

/* Content in parts becomes the text that templates expect; false: a part that is none. */
static bool join_parts(struct exchange *x, json_t *message)
{
    const json_t *parts = json_object_get(message, "content");
    struct text text = {0};
    if (!json_is_array(parts)) return true;
    bool good = true;
    for (size_t i = 0; good && i < json_array_size(parts); i++) {
        const json_t *words = part_text(x, json_array_get(parts, i));
        good = words != NULL;
        if (good && !text_append(&text, json_string_value(words), json_string_length(words)))
            good = refuse_memory(&x->refusal);
    }
    if (good) json_object_set_new(message, "content", json_stringn(text.data ? text.data : "", text.size));
    text_free(&text);
    return good;
}

/* The members of a message that templates get; what is null, and the empty list of annotations that OpenAI's
 * own answers have, is not given. */
static bool check_members(struct exchange *x, size_t i, json_t *message)
{
    static const char *const texts[] = {"role", "name", "reasoning_content", "reasoning", "thinking"};
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(message, next, key, value)
    {
        bool text = false;
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) text |= strcmp(key, texts[k]) == 0;
        if (strcmp(key, "content") == 0) continue;
        if (json_is_null(value) ||
            (strcmp(key, "annotations") == 0 && json_is_array(value) && json_array_size(value) == 0))
            json_object_del(message, key);
        else if (!text)
            return refuse(&x->refusal, 400, "unknown_parameter", "messages",
                          "message %zu: '%.60s' is not supported", i, key);
        else if (!json_is_string(value))
            return refuse(&x->refusal, 400, "invalid_type", "messages", "message %zu: '%s' must be a string",
                          i, key);
    }
    return true;
}

/* bounded: they must fit into the context. */
static bool check_messages(struct exchange *x, const json_t *messages, bool bounded)
{
    const size_t count = json_array_size(messages);
    size_t bytes = 0;
    if (!json_is_array(messages) || count == 0)
        return refuse(&x->refusal, 400, "invalid_type", "messages",
                      "'messages' must be an array of one message or more");
    if (count > MOST_MESSAGES)
        return refuse(&x->refusal, 400, "invalid_value", "messages",
                      "'messages' has %zu messages, expected at most %d", count, MOST_MESSAGES);
    for (size_t i = 0; i < count; i++) {
        json_t *message = json_array_get(messages, i);
        if (!json_is_string(json_object_get(message, "role")))
            return refuse(&x->refusal, 400, "invalid_type", "messages",
                          "message %zu is no object with a 'role'", i);
        if (!check_members(x, i, message)) return false;
        const json_t *content = json_object_get(message, "content");
        if (!json_is_string(content) && !json_is_array(content))
            return refuse(&x->refusal, 400, "invalid_type", "messages",
                          "message %zu: 'content' must be a string", i);
        if (!join_parts(x, message)) return false;
        bytes += json_string_length(json_object_get(message, "content"));
    }
    return !bounded || check_prompt_bytes(x, bytes, "messages");
}

/* Variables for the template, none of which is checked elsewhere or the library's own. */
static bool check_arguments(struct exchange *x, const json_t *arguments)
{
    static const char *const taken[] = {"messages",  "tools",     "documents",    "add_generation_prompt",
                                        "bos_token", "eos_token", "strftime_now", "raise_exception"};
    if (!arguments) return true;
    if (!json_is_object(arguments))
        return refuse(&x->refusal, 400, "invalid_type", "chat_template_kwargs",
                      "'chat_template_kwargs' must be an object");
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
        if (json_object_get(arguments, taken[i]))
            return refuse(&x->refusal, 400, "unsupported_value", "chat_template_kwargs",
                          "'chat_template_kwargs.%s' is not supported", taken[i]);
    return true;
}

bool chat_tokens(struct exchange *x, const struct request *request, int32_t **ids, size_t *count, char **text,
                 size_t *size)
{
    struct walsh_chat_options options = WALSH_CHAT_OPTIONS;
    struct walsh_error err = {0};
    *ids = NULL;
    if (!check_messages(x, request->messages, x->route->endpoint == FOR_CHAT)) return false;
    if (!check_arguments(x, request->template_arguments)) return false;
    char *messages = json_dumps(request->messages, JSON_COMPACT);
    char *variables =
        request->template_arguments ? json_dumps(request->template_arguments, JSON_COMPACT) : NULL;
    bool good = messages && (variables || !request->template_arguments);
    if (!good) refuse_memory(&x->refusal);
    options.variables_json = variables;
    options.add_generation_prompt = request->add_generation_prompt;
    if (good && walsh_chat_encode(x->server->model, messages, strlen(messages), &options, ids, count, text,
                                  size, &err) != WALSH_OK)
        good = refuse_rendering(x, &err);
    free(messages);
    free(variables);
    return good;
}

/* Does the prompt end with <think> and white space? */
static bool ends_in_thought(const char *text, size_t size)
{
    static const char marker[] = "<think>";
    const size_t length = sizeof marker - 1;
    while (size && strchr(" \n\t\r", text[size - 1])) size--;
    return size >= length && memcmp(text + size - length, marker, length) == 0;
}

bool chat_prompt(struct exchange *x, struct request *request, bool *thinking)
{
    char *text = NULL;
    size_t size = 0, count = 0;
    int32_t *ids = NULL;
    *thinking = false;
    if (!chat_tokens(x, request, &ids, &count, &text, &size)) return false;
    struct request_prompt *prompt = request->prompts = calloc(1, sizeof *prompt);
    bool good = prompt || refuse_memory(&x->refusal);
    if (good) request->prompt_count = 1;
    if (good && !(prompt->ids = calloc(count + 1, sizeof *ids))) good = refuse_memory(&x->refusal);
    if (good) {
        memcpy(prompt->ids, ids, count * sizeof *ids);
        prompt->count = count;
        *thinking = ends_in_thought(text, size);
    }
    walsh_memory_free(ids);
    walsh_memory_free(text);
    return good;
}

static bool open_grammar(struct exchange *x, const json_t *schema, struct walsh_grammar **grammar)
{
    struct walsh_error err = {0};
    char *text = schema ? json_dumps(schema, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    if (schema && !text) return refuse_memory(&x->refusal);
    const enum walsh_status status =
        walsh_grammar_open(x->server->model, text, text ? strlen(text) : 0, grammar, &err);
    free(text);
    if (status == WALSH_OK) return true;
    if (status == WALSH_E_MEMORY) return refuse_memory(&x->refusal);
    return refuse(&x->refusal, 400, status == WALSH_E_UNSUPPORTED ? "unsupported_value" : "invalid_schema",
                  "response_format", "%s", err.message);
}

/* Is the word one token? */
static bool is_token(const struct walsh_model *model, const char *word)
{
    int32_t *ids = NULL;
    size_t count = 0;
    if (walsh_model_encode(model, word, strlen(word), 0, &ids, &count, NULL) != WALSH_OK) return false;
    walsh_memory_free(ids);
    return count == 1;
}

/* The answers of models that think: what is thought comes before the document, and is free. */
static bool allow_thought(struct exchange *x, bool thinking, struct walsh_grammar *grammar)
{
    static const char *const think[] = {"</think>"}, *const channels[] = {"<|channel|>final", "<|message|>"};
    struct walsh_error err = {0};
    enum walsh_status status = WALSH_OK;
    if (x->server->reasoning == REASONING_CHANNELS)
        status = walsh_grammar_set_thought(grammar, NULL, channels, 2, &err);
    else if (thinking || is_token(x->server->model, "<think>"))
        status = walsh_grammar_set_thought(grammar, thinking ? NULL : "<think>", think, 1, &err);
    return status == WALSH_OK ||
           refuse(&x->refusal, 500, "internal_error", "response_format", "%s", err.message);
}

/* {"name", "schema", and what changes nothing here} of a json_schema. */
static bool read_schema(struct exchange *x, const json_t *object, const json_t **schema)
{
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return refuse(&x->refusal, 400, "invalid_type", "response_format",
                      "'response_format.json_schema' must be an object");
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        const bool text = strcmp(key, "name") == 0 || strcmp(key, "description") == 0;
        if (json_is_null(value)) continue;
        if (strcmp(key, "schema") == 0)
            *schema = value;
        else if (!text && strcmp(key, "strict") != 0)
            return refuse(&x->refusal, 400, "unknown_parameter", "response_format",
                          "'response_format.json_schema.%.40s' is not supported", key);
        else if (text ? !json_is_string(value) : !json_is_boolean(value))
            return refuse(&x->refusal, 400, "invalid_type", "response_format",
                          "'response_format.json_schema.%s' must be a %s", key, text ? "string" : "boolean");
    }
    if (!*schema)
        return refuse(&x->refusal, 400, "missing_required_parameter", "response_format",
                      "'response_format.json_schema.schema' is missing");
    return true;
}

static bool open_format(struct exchange *x, const struct request *request, struct walsh_grammar **grammar)
{
    const json_t *format = request->response_format, *schema = NULL;
    const char *type = json_string_value(json_object_get(format, "type")), *key;
    json_t *value;
    *grammar = NULL;
    if (!format) return true;
    const bool has_schema = type && strcmp(type, "json_schema") == 0;
    json_object_foreach((json_t *)(uintptr_t)format, key, value)
    {
        if (json_is_null(value) || strcmp(key, "type") == 0 || (has_schema && strcmp(key, type) == 0))
            continue;
        return refuse(&x->refusal, 400, "unknown_parameter", "response_format",
                      "'response_format.%.40s' is not supported beside type \"%.40s\"", key,
                      type ? type : "");
    }
    if (type && strcmp(type, "text") == 0) return true;
    if (type && strcmp(type, "json_object") == 0) return open_grammar(x, NULL, grammar);
    if (has_schema)
        return read_schema(x, json_object_get(format, "json_schema"), &schema) &&
               open_grammar(x, schema, grammar);
    return refuse(
        &x->refusal, 400, "unsupported_value", "response_format",
        "'response_format' of type \"%.40s\" is not supported, expected text, json_object or json_schema",
        type ? type : "");
}

bool response_format_open(struct exchange *x, const struct request *request, bool chat, bool thinking,
                          struct walsh_grammar **grammar)
{
    if (!open_format(x, request, grammar)) return false;
    return !*grammar || !chat || allow_thought(x, thinking, *grammar);
}

enum reasoning_style chat_reasoning(const struct walsh_model *model)
{
    return is_token(model, "<|channel|>") && is_token(model, "<|message|>") ? REASONING_CHANNELS
                                                                            : REASONING_THINK;
}

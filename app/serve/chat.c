#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "json_text.h"

static bool out_of_memory(struct exchange *x)
{
    return refuse(&x->refusal, 503, "out_of_memory", NULL, "the server is out of memory");
}

/* What a template fails with: the client's conversation, or the model's own template. */
static bool refuse_rendering(struct exchange *x, const struct walsh_error *err)
{
    switch (err->status) {
    case WALSH_E_NOT_FOUND:
        return refuse(&x->refusal, 400, "no_chat_template", "messages",
                      "this model has no chat template; use /v1/completions");
    case WALSH_E_ARGUMENT:
    case WALSH_E_CAPACITY:
    case WALSH_E_FORMAT: /* mostly what a conversation lacks that the template wants */
        return refuse(&x->refusal, 400, "invalid_messages", "messages", "%s", err->message);
    case WALSH_E_MEMORY:
        return out_of_memory(x);
    default:
        return refuse(&x->refusal, 500, "template_error", "messages", "%s", err->message);
    }
}

/* Content in parts ([{"type": "text", "text": ...}]) becomes the text that templates expect; false: a part
 * that is none. */
static bool join_parts(struct exchange *x, json_t *message)
{
    const json_t *parts = json_object_get(message, "content");
    struct text text = {0};
    if (!json_is_array(parts)) return true;
    bool good = true;
    for (size_t i = 0; good && i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i), *words = json_object_get(part, "text");
        const char *type = json_string_value(json_object_get(part, "type"));
        if (!type || strcmp(type, "text") != 0 || !json_is_string(words))
            good =
                refuse(&x->refusal, 400, "unsupported_value", "messages",
                       "a part of a message's content has type \"%.40s\", expected text", type ? type : "");
        else if (!text_append(&text, json_string_value(words), json_string_length(words)))
            good = out_of_memory(x);
    }
    if (good) json_object_set_new(message, "content", json_stringn(text.data ? text.data : "", text.size));
    text_free(&text);
    return good;
}

static bool check_messages(struct exchange *x, const json_t *messages)
{
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return refuse(&x->refusal, 400, "invalid_type", "messages",
                      "'messages' must be an array of one message or more");
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        if (!json_is_string(json_object_get(message, "role")))
            return refuse(&x->refusal, 400, "invalid_type", "messages",
                          "message %zu is no object with a 'role'", i);
        if (json_object_get(message, "tool_calls") || json_object_get(message, "tool_call_id"))
            return refuse(&x->refusal, 400, "unsupported_value", "messages",
                          "message %zu: tools are not supported", i);
        const json_t *content = json_object_get(message, "content");
        if (!json_is_string(content) && !json_is_array(content))
            return refuse(&x->refusal, 400, "invalid_type", "messages",
                          "message %zu: 'content' must be a string", i);
        if (!join_parts(x, message)) return false;
    }
    return true;
}

bool chat_tokens(struct exchange *x, const struct request *request, int32_t **ids, size_t *count, char **text,
                 size_t *size)
{
    struct walsh_chat_options options = WALSH_CHAT_OPTIONS;
    struct walsh_error err = {0};
    *ids = NULL;
    if (!check_messages(x, request->messages)) return false;
    if (request->template_arguments && !json_is_object(request->template_arguments))
        return refuse(&x->refusal, 400, "invalid_type", "chat_template_kwargs",
                      "'chat_template_kwargs' must be an object");
    char *messages = json_dumps(request->messages, JSON_COMPACT);
    char *variables =
        request->template_arguments ? json_dumps(request->template_arguments, JSON_COMPACT) : NULL;
    bool good = messages && (variables || !request->template_arguments);
    if (!good) out_of_memory(x);
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
    bool good = prompt || out_of_memory(x);
    if (good) request->prompt_count = 1;
    if (good && !(prompt->ids = calloc(count + 1, sizeof *ids))) good = out_of_memory(x);
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
    if (schema && !text) return out_of_memory(x);
    const enum walsh_status status =
        walsh_grammar_open(x->server->model, text, text ? strlen(text) : 0, grammar, &err);
    free(text);
    if (status == WALSH_OK) return true;
    if (status == WALSH_E_MEMORY) return out_of_memory(x);
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
        if (strcmp(key, "schema") == 0)
            *schema = value;
        else if (strcmp(key, "name") != 0 && strcmp(key, "strict") != 0 && strcmp(key, "description") != 0)
            return refuse(&x->refusal, 400, "unknown_parameter", "response_format",
                          "'response_format.json_schema.%.40s' is not supported", key);
    }
    if (!*schema)
        return refuse(&x->refusal, 400, "missing_required_parameter", "response_format",
                      "'response_format.json_schema.schema' is missing");
    return true;
}

static bool open_format(struct exchange *x, const struct request *request, struct walsh_grammar **grammar)
{
    const json_t *format = request->response_format, *schema = NULL;
    const char *type = json_string_value(json_object_get(format, "type"));
    *grammar = NULL;
    if (!format || (type && strcmp(type, "text") == 0)) return true;
    if (type && strcmp(type, "json_object") == 0) return open_grammar(x, NULL, grammar);
    if (type && strcmp(type, "json_schema") == 0)
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

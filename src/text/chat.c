#include "text/chat.h"

#include <string.h>

#include "base/memory.h"
#include "text/json_read.h"
#include "text/template.h"
#include "text/tokenizer_internal.h"

static enum walsh_status out_of_memory(struct walsh_error *err)
{
    return walsh_fail(err, WALSH_E_MEMORY, "out of memory for the variables of a chat template");
}

/* Text of the caller's as a JSON value of one type. */
static enum walsh_status parse(const char *what, const char *text, size_t size, json_type type, json_t **out,
                               struct walsh_error *err)
{
    json_error_t error;
    *out = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!*out)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: line %d, column %d: %s", what, error.line, error.column,
                          error.text);
    if (json_typeof(*out) == type) return WALSH_OK;
    const enum walsh_status status =
        walsh_fail(err, WALSH_E_ARGUMENT, "%s: found a JSON %s, expected %s", what,
                   walsh_json_type_name(*out), type == JSON_ARRAY ? "an array" : "an object");
    json_decref(*out);
    *out = NULL;
    return status;
}

/* The reasoning of an answer under both names that templates read, whichever of three it has. */
static enum walsh_status name_reasoning(json_t *message, struct walsh_error *err)
{
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    json_t *reasoning = NULL;
    for (size_t i = 0; i < 3 && !reasoning; i++) reasoning = walsh_json_member(message, names[i]);
    if (!reasoning) return WALSH_OK;
    if (json_object_set(message, names[0], reasoning) != 0) return out_of_memory(err);
    if (!json_object_get(message, names[1]) && json_object_set(message, names[1], reasoning) != 0)
        return out_of_memory(err);
    return WALSH_OK;
}

/* Guards in a text; *out is a new reference. */
static enum walsh_status guard_text(const struct walsh_tokenizer *t, const json_t *text, json_t **out,
                                    struct walsh_error *err)
{
    char *guarded;
    size_t size;
    WALSH_TRY(
        walsh_tokenizer_guard(t, json_string_value(text), json_string_length(text), &guarded, &size, err));
    *out = json_stringn(guarded, size);
    walsh_free(guarded);
    return *out ? WALSH_OK : out_of_memory(err);
}

/* Guards in every text within a value, whose depth jansson bounds; names of members stay as they are. */
static enum walsh_status guard_all(const struct walsh_tokenizer *t, json_t *value, struct walsh_error *err)
{
    const char *key;
    void *next;
    json_t *member, *guarded;
    json_object_foreach_safe(value, next, key, member)
    {
        if (!json_is_string(member)) {
            WALSH_TRY(guard_all(t, member, err));
            continue;
        }
        WALSH_TRY(guard_text(t, member, &guarded, err));
        if (json_object_set_new(value, key, guarded) != 0) return out_of_memory(err);
    }
    for (size_t i = 0; json_is_array(value) && i < json_array_size(value); i++) {
        member = json_array_get(value, i);
        if (!json_is_string(member)) {
            WALSH_TRY(guard_all(t, member, err));
            continue;
        }
        WALSH_TRY(guard_text(t, member, &guarded, err));
        if (json_array_set_new(value, i, guarded) != 0) return out_of_memory(err);
    }
    return WALSH_OK;
}

static enum walsh_status parse_messages(const struct walsh_chat *chat, json_t **out, struct walsh_error *err)
{
    WALSH_TRY(parse("messages", chat->messages, chat->messages_size, JSON_ARRAY, out, err));
    for (size_t i = 0; i < json_array_size(*out); i++) {
        json_t *message = json_array_get(*out, i);
        if (!json_is_object(message))
            return walsh_fail(err, WALSH_E_ARGUMENT, "messages[%zu]: found a JSON %s, expected an object", i,
                              walsh_json_type_name(message));
        WALSH_TRY(name_reasoning(message, err));
    }
    return WALSH_OK;
}

/* Takes over `value`, NULL on failure included. */
static enum walsh_status put(json_t *object, const char *name, json_t *value, struct walsh_error *err)
{
    return json_object_set_new(object, name, value) == 0 ? WALSH_OK : out_of_memory(err);
}

static enum walsh_status fill_variables(const struct walsh_tokenizer *t, const struct walsh_chat *chat,
                                        json_t *variables, struct walsh_error *err)
{
    json_t *value = NULL;
    if (t->special_tokens && json_object_update(variables, t->special_tokens) != 0) return out_of_memory(err);
    WALSH_TRY(put(variables, "documents", json_null(), err));
    WALSH_TRY(put(variables, "tools", json_null(), err));
    WALSH_TRY(put(variables, "add_generation_prompt", json_boolean(chat->add_generation_prompt), err));
    enum walsh_status status = parse_messages(chat, &value, err);
    if (status == WALSH_OK && chat->guarded) status = guard_all(t, value, err);
    if (status != WALSH_OK) {
        json_decref(value);
        return status;
    }
    WALSH_TRY(put(variables, "messages", value, err));
    if (chat->tools) {
        WALSH_TRY(parse("tools", chat->tools, strlen(chat->tools), JSON_ARRAY, &value, err));
        WALSH_TRY(put(variables, "tools", value, err));
    }
    if (!chat->variables) return WALSH_OK;
    WALSH_TRY(parse("variables", chat->variables, strlen(chat->variables), JSON_OBJECT, &value, err));
    const bool copied = json_object_update(variables, value) == 0;
    json_decref(value);
    return copied ? WALSH_OK : out_of_memory(err);
}

/* The template's text and what messages call it. */
static enum walsh_status choose_template(const struct walsh_tokenizer *t, const char *where,
                                         const struct walsh_chat *chat, const char **text, const char **name,
                                         struct walsh_error *err)
{
    *name = t->template_file ? t->template_file : where;
    *text = chat->tools && t->tool_template ? t->tool_template : t->chat_template;
    if (chat->template_text) {
        *name = "chat template";
        *text = chat->template_text;
    }
    if (*text) return WALSH_OK;
    return walsh_fail(err, WALSH_E_NOT_FOUND,
                      "%s: the model has no chat template: there is no chat_template.jinja and no "
                      "chat_template in tokenizer_config.json",
                      where);
}

enum walsh_status walsh_chat_text(const struct walsh_tokenizer *t, const char *where,
                                  const struct walsh_chat *chat, char **text, size_t *size,
                                  struct walsh_error *err)
{
    const struct walsh_template_limits limits = WALSH_TEMPLATE_LIMITS;
    const char *source, *name;
    struct walsh_template *template;
    *text = NULL;
    *size = 0;
    WALSH_TRY(choose_template(t, where, chat, &source, &name, err));
    WALSH_TRY(walsh_template_open(name, source, strlen(source), &template, err));
    json_t *variables = json_object();
    enum walsh_status status = variables ? fill_variables(t, chat, variables, err) : out_of_memory(err);
    if (status == WALSH_OK)
        status = walsh_template_render(template, variables, chat->now, &limits, text, size, err);
    if (status == WALSH_E_FORMAT) /* its syntax is right: another conversation may well pass */
        status = walsh_fail_within(err, WALSH_E_ARGUMENT, "the chat template fails with this conversation");
    json_decref(variables);
    walsh_template_close(&template);
    return status;
}

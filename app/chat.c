#include "chat.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum walsh_status chat_add(struct chat *chat, const char *role, const char *text, size_t size,
                           struct walsh_error *err)
{
    json_t *content = json_stringn(text, size);
    if (!content) return fail(err, WALSH_E_FORMAT, "the text is not UTF-8");
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", content);
    if (!message || json_array_append_new(chat->messages, message) != 0)
        return fail(err, WALSH_E_MEMORY, "out of memory for the conversation");
    return WALSH_OK;
}

enum walsh_status chat_open(struct chat *chat, const char *system, const char *variables,
                            struct walsh_error *err)
{
    *chat = (struct chat){.messages = json_array(), .variables = variables};
    if (variables) {
        json_error_t wrong;
        json_t *object = json_loads(variables, JSON_REJECT_DUPLICATES, &wrong);
        const bool good = json_is_object(object), parsed = object != NULL;
        json_decref(object);
        if (!good)
            return fail(err, WALSH_E_ARGUMENT, "--chat-variables '%s': expected a JSON object%s%s", variables,
                        parsed ? "" : ": ", parsed ? "" : wrong.text);
    }
    if (!chat->messages) return fail(err, WALSH_E_MEMORY, "out of memory for the conversation");
    return system ? chat_add(chat, "system", system, strlen(system), err) : WALSH_OK;
}

void chat_close(struct chat *chat)
{
    json_decref(chat->messages);
    free(chat->ids);
    *chat = (struct chat){0};
}

void chat_drop_last(struct chat *chat)
{
    const size_t count = json_array_size(chat->messages);
    if (count) json_array_remove(chat->messages, count - 1);
}

bool chat_shorten(struct chat *chat)
{
    const json_t *first = json_array_get(chat->messages, 0);
    const char *role = json_string_value(json_object_get(first, "role"));
    const size_t keep = role && strcmp(role, "system") == 0, count = json_array_size(chat->messages);
    for (size_t i = count; i > keep + 1; i--) json_array_remove(chat->messages, keep);
    return count > keep + 1;
}

/* Seconds since 1970 that a clock on the wall shows. */
static int64_t local_seconds(void)
{
    const time_t now = time(NULL);
    struct tm local;
    return (int64_t)now + (localtime_r(&now, &local) ? local.tm_gmtoff : 0);
}

enum walsh_status chat_encode(const struct chat *chat, const struct walsh_model *model, int32_t **ids,
                              size_t *count, struct walsh_error *err)
{
    struct walsh_chat_options options = WALSH_CHAT_OPTIONS;
    options.variables_json = chat->variables;
    options.now = local_seconds();
    char *messages = json_dumps(chat->messages, JSON_COMPACT);
    if (!messages) return fail(err, WALSH_E_MEMORY, "out of memory for the conversation");
    enum walsh_status status =
        walsh_chat_encode(model, messages, strlen(messages), &options, ids, count, NULL, NULL, err);
    if (status ==
        WALSH_E_ARGUMENT) /* messages and variables are in order: it is the template's fault, a file */
        err->status = status = WALSH_E_FORMAT;
    if (status == WALSH_OK && *count == 0) {
        walsh_memory_free(*ids);
        status = fail(err, WALSH_E_FORMAT, "the chat template makes an empty prompt of the conversation");
    }
    free(messages);
    return status;
}

size_t chat_common(const struct chat *chat, const int32_t *ids, size_t count)
{
    size_t common = 0;
    while (common < chat->count && common + 1 < count && chat->ids[common] == ids[common]) common++;
    return common;
}

enum walsh_status chat_hold_one(struct chat *chat, int32_t id, struct walsh_error *err)
{
    if (chat->count == chat->capacity) {
        const size_t capacity = chat->capacity ? 2 * chat->capacity : 1024;
        int32_t *more = realloc(chat->ids, capacity * sizeof *more);
        if (!more) return fail(err, WALSH_E_MEMORY, "out of memory for the conversation");
        chat->ids = more;
        chat->capacity = capacity;
    }
    chat->ids[chat->count++] = id;
    return WALSH_OK;
}

enum walsh_status chat_hold(struct chat *chat, const int32_t *ids, size_t count, struct walsh_error *err)
{
    chat->count = 0;
    for (size_t i = 0; i < count; i++) TRY(chat_hold_one(chat, ids[i], err));
    return WALSH_OK;
}

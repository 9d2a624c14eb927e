/* app/chat: the conversation of `walsh run --chat`: its messages, and the tokens that the session holds of
 * it. */
#ifndef WALSH_APP_CHAT_H
#define WALSH_APP_CHAT_H

#include <jansson.h>

#include "app.h"

struct chat {
    json_t *messages; /* NULL: no conversation */
    const char *variables;
    int32_t *ids; /* [count] tokens in the session */
    size_t count, capacity;
};

/* `system` and `variables` may be NULL. */
enum walsh_status chat_open(struct chat *chat, const char *system, const char *variables,
                            struct walsh_error *err);
void chat_close(struct chat *chat); /* safe on a zeroed one */
/* Add a message. */
enum walsh_status chat_add(struct chat *chat, const char *role, const char *text, size_t size,
                           struct walsh_error *err);
void chat_drop_last(struct chat *chat);
/* Forget all but the system message and the last one; false: there is nothing else. */
bool chat_shorten(struct chat *chat);
/* The conversation as tokens, with the header of an answer; walsh_memory_free. */
enum walsh_status chat_encode(const struct chat *chat, const struct walsh_model *model, int32_t **ids,
                              size_t *count, struct walsh_error *err);
/* How many of these tokens the session may keep: the common beginning, but never all of them, so that the
 * last one gives logits. */
size_t chat_common(const struct chat *chat, const int32_t *ids, size_t count);
/* The session holds these tokens now; or one more. */
enum walsh_status chat_hold(struct chat *chat, const int32_t *ids, size_t count, struct walsh_error *err);
enum walsh_status chat_hold_one(struct chat *chat, int32_t id, struct walsh_error *err);

#endif

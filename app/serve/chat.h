/* serve/chat: conversations become prompts. */
#ifndef WALSH_SERVE_CHAT_H
#define WALSH_SERVE_CHAT_H

#include "server.h"

/* `messages` under the model's template, what they say as plain text; *ids, and *text where it is not NULL:
 * walsh_memory_free. false: x->refusal. */
bool chat_tokens(struct exchange *x, const struct request *request, int32_t **ids, size_t *count, char **text,
                 size_t *size);
/* Render `messages` into the request's one prompt. *thinking: the prompt ends inside a thought. false:
 * x->refusal. */
bool chat_prompt(struct exchange *x, struct request *request, bool *thinking);
/* The grammar of `response_format`, *grammar NULL for any text; ours, also where it fails. chat, thinking: an
 * answer of a chat may think first, or has begun to in the prompt. false: x->refusal. */
bool response_format_open(struct exchange *x, const struct request *request, bool chat, bool thinking,
                          struct walsh_grammar **grammar);
/* How this model marks its thoughts. */
enum reasoning_style chat_reasoning(const struct walsh_model *model);

#endif

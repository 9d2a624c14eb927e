/* text/chat: a conversation as the text of a prompt, by the tokenizer's chat template. May use base. */
#ifndef WALSH_TEXT_CHAT_H
#define WALSH_TEXT_CHAT_H

#include "text/tokenizer.h"

struct walsh_chat {
    const char *messages; /* [messages_size] a JSON array of objects */
    size_t messages_size;
    const char *tools;         /* a JSON array; NULL: none */
    const char *variables;     /* a JSON object of further variables; NULL: none */
    const char *template_text; /* instead of the tokenizer's; NULL: the tokenizer's */
    bool add_generation_prompt;
    bool guarded; /* put guards into the messages' texts (walsh_tokenizer_guard): to be encoded with
                     WALSH_ENCODE_GUARDED */
    int64_t now;  /* for strftime_now: seconds since 1970-01-01 00:00 */
};

/* As Hugging Face's apply_chat_template. `where`: the model's directory, for messages. *text: NUL-terminated,
 * walsh_free. WALSH_E_NOT_FOUND: no template. WALSH_E_ARGUMENT: what the caller gave is wrong, or the
 * template refuses it. WALSH_E_FORMAT, WALSH_E_CAPACITY: as of walsh_template_open and walsh_template_render.
 */
enum walsh_status walsh_chat_text(const struct walsh_tokenizer *t, const char *where,
                                  const struct walsh_chat *chat, char **text, size_t *size,
                                  struct walsh_error *err);

#endif

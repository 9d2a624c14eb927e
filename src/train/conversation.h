/* train/conversation: a conversation as the tokens that a model sees in it, and which of them it is to learn.
 * May use model and below. */
#ifndef WALSH_TRAIN_CONVERSATION_H
#define WALSH_TRAIN_CONVERSATION_H

#include <jansson.h>

#include "model/model.h"

/* A part of a conversation in which every turn stands as the model sees it when it answers. */
struct walsh_turns {
    const int32_t *ids;
    const uint8_t *learned; /* [count] 1: the token is the assistant's */
    size_t count;
    bool templated; /* by the model's own template, which writes BOS itself where it is wanted */
};

/* Render `line`, {"messages": [...]} with "tools" and "chat_template_kwargs" where it has them, by the model's
 * chat template, by ChatML where it has none but knows <|im_start|> and <|im_end|>, and call `take` for each
 * document that comes of it.
 *
 * Of each turn of the assistant two texts are rendered: A of what came before, with the generation prompt, and
 * B up to the turn's end. A is the beginning of B; what B has more is learned, but for white space behind its
 * last special token, which no generation reaches. The next turn goes on in the same document where its A
 * begins with this B, and else, where a template shows earlier turns otherwise than the last one (without what
 * was thought), in a document of its own. So a document has the tokens that encoding B gives, and a turn begins
 * with the first token that the encoding of A does not have in that place.
 *
 * What messages say stays text (walsh_tokenizer_guard). strftime_now is 26 July 2024, so that a job gives the
 * same bytes on every day. `where` begins messages. WALSH_E_UNSUPPORTED: no template, or one of which A is no
 * beginning of B. WALSH_E_FORMAT: no list of objects that have a "role". Other errors are those of
 * walsh_chat_text, of the encoder and of `take`. */
enum walsh_status walsh_conversation_read(
    const struct walsh_model_graph *graph, const char *where, const json_t *line,
    enum walsh_status (*take)(void *context, const struct walsh_turns *turns, struct walsh_error *err),
    void *context, struct walsh_error *err);

#endif

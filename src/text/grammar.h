/* text/grammar: which tokens may come next, where an answer has to be JSON, free or under a schema. A grammar
 * is compiled once from a schema; a matcher walks it byte by byte as tokens are drawn and gives the mask of
 * each step. docs/structured-output.md has the part of JSON Schema that is known. May use base. */
#ifndef WALSH_TEXT_GRAMMAR_H
#define WALSH_TEXT_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/tokenizer.h"

/* The bytes of a tokenizer's tokens in an order that masks are computed in. Immutable. */
struct walsh_token_bytes;
/* Ids from `vocab` on are never admitted; is_eos names those that end an answer. No such id, or no token for
 * one of the bytes that JSON needs: WALSH_E_UNSUPPORTED. */
enum walsh_status walsh_token_bytes_open(const struct walsh_tokenizer *t, uint32_t vocab,
                                         bool (*is_eos)(const void *user, int32_t id), const void *user,
                                         struct walsh_token_bytes **out, struct walsh_error *err);
void walsh_token_bytes_close(struct walsh_token_bytes **tokens);

/* A compiled schema. Immutable, counted: any number of matchers on any threads. */
struct walsh_grammar;
/* schema [size]: JSON; NULL: any JSON object. `tokens` is borrowed and outlives the grammar. Errors as of
 * walsh_grammar_open in walsh.h. */
enum walsh_status walsh_grammar_compile(const struct walsh_token_bytes *tokens, const char *schema,
                                        size_t size, struct walsh_grammar **out, struct walsh_error *err);
/* Before the grammar has a matcher: a thought may come before the document. `opens`: the text of the token
 * that begins one, as the first of all; NULL: the prompt has begun it. `ends` [end_count], 1 or 2 texts of up
 * to 32 bytes: the document begins behind the last of them, which come in this order with anything between.
 * Until then every token fits but those that end an answer. WALSH_E_NOT_FOUND: `opens` is no token. */
enum walsh_status walsh_grammar_put_thought(struct walsh_grammar *grammar, const char *opens,
                                            const char *const *ends, size_t end_count,
                                            struct walsh_error *err);
uint32_t walsh_grammar_vocab(const struct walsh_grammar *grammar); /* ids that its masks have */
void walsh_grammar_retain(const struct walsh_grammar *grammar);
void walsh_grammar_release(const struct walsh_grammar *grammar); /* NULL is fine */

/* One answer. One owner. */
struct walsh_matcher;
enum walsh_status walsh_matcher_open(const struct walsh_grammar *grammar, struct walsh_matcher **out,
                                     struct walsh_error *err);
void walsh_matcher_close(struct walsh_matcher **matcher);
/* *mask [(vocab + 63) / 64]: bit i is set where token i may come next; valid until the next call. */
enum walsh_status walsh_matcher_mask(struct walsh_matcher *matcher, const uint64_t **mask,
                                     struct walsh_error *err);
/* The token that was drawn. One that the mask does not have: WALSH_E_ARGUMENT, and nothing changes. */
enum walsh_status walsh_matcher_advance(struct walsh_matcher *matcher, int32_t id, struct walsh_error *err);
bool walsh_matcher_complete(const struct walsh_matcher *matcher); /* what was drawn is a whole document */

#endif

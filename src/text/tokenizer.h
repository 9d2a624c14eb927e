/* text/tokenizer: Hugging Face tokenizer.json -> ids and back. May use base. Immutable after open; all calls
 * but open and close are thread-safe.
 *
 * As the `tokenizers` package does it: added tokens are cut out first, the rest is normalized (NFC, NFD,
 * NFKC, NFKD, Prepend, Replace, Strip, Lowercase), the pre-tokenizer cuts it (Split, Digits, Punctuation,
 * WhitespaceSplit, Metaspace, ByteLevel), and the model turns each piece into ids: BPE over bytes (GPT-2's
 * byte alphabet) or over characters with byte fallback (SentencePiece's kind), by rank of merges, or Unigram,
 * by the most likely cut. Formats: Sennrich et al. 2016; Kudo 2018; Kudo and Richardson 2018.
 *
 * Where it differs from the package, on purpose: truncation and padding of the file are not applied; added
 * tokens keep the ids that the file gives them (the package numbers them itself, which comes to the same in
 * files that it wrote); Unicode is that of PCRE2 and utf8proc, newer by some marks than the package's normal
 * forms; prepend_scheme "first" takes no notice of white space that a normal form made and Strip took away.
 */
#ifndef WALSH_TEXT_TOKENIZER_H
#define WALSH_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct walsh_tokenizer;

/* Read DIRECTORY/tokenizer.json, and where they are there tokenizer_config.json (bos_token, eos_token,
 * add_bos_token: true puts BOS in front where the post-processor puts nothing; chat_template) and
 * chat_template.jinja, which goes before the one in the config. A missing tokenizer.json, an unknown model,
 * normalizer, pre-tokenizer, post-processor or decoder is an error that names it. */
enum walsh_status walsh_tokenizer_open(const char *directory, struct walsh_tokenizer **out,
                                       struct walsh_error *err);
void walsh_tokenizer_close(struct walsh_tokenizer **t);

size_t walsh_tokenizer_size(const struct walsh_tokenizer *t);          /* 1 + the largest id */
bool walsh_tokenizer_has(const struct walsh_tokenizer *t, int32_t id); /* false: a hole, or outside */
bool walsh_tokenizer_is_special(const struct walsh_tokenizer *t,
                                int32_t id);                  /* one that skip_special skips */
int32_t walsh_tokenizer_bos(const struct walsh_tokenizer *t); /* -1: none named */
int32_t walsh_tokenizer_eos(const struct walsh_tokenizer *t); /* -1: none named */
int32_t walsh_tokenizer_find(const struct walsh_tokenizer *t,
                             const char *token);                            /* id of a token's text, or -1 */
const char *walsh_tokenizer_chat_template(const struct walsh_tokenizer *t); /* NULL: none */
const char *walsh_tokenizer_chat_file(const struct walsh_tokenizer *t); /* where it comes from; NULL: none */

enum {
    WALSH_ENCODE_SPECIAL = 1, /* run the post-processor: adds BOS and the like, as add_special_tokens=True */
    WALSH_ENCODE_PLAIN = 2,   /* the text of an added special token is plain text (untrusted input) */
    /* The text has guards (walsh_tokenizer_guard) among what is to be tokens: they are taken out, and what
     * one stands before is no special token. */
    WALSH_ENCODE_GUARDED = 4
};
/* A guard is the noncharacter U+FDD0, which Unicode keeps out of texts that are exchanged. */
#define WALSH_GUARD "\xef\xb7\x90"
#define WALSH_GUARD_SIZE ((size_t)3)
/* *out (walsh_free, NUL-terminated): UTF-8 text that somebody else wrote, with a guard before each text of a
 * special token in it, so that it may become a part of a text with special tokens. A guard that it has itself
 * becomes U+FFFD. */
enum walsh_status walsh_tokenizer_guard(const struct walsh_tokenizer *t, const char *text, size_t size,
                                        char **out, size_t *out_size, struct walsh_error *err);
/* Take the guards out of text [size], in place: its new size. */
size_t walsh_tokenizer_unguard(char *text, size_t size);
/* Encode size bytes of text. Invalid UTF-8 is replaced before encoding as Python's decode("utf-8", "replace")
 * does: one U+FFFD for each maximal ill-formed part (Unicode standard, 3.9). A byte or character that the
 * vocabulary has no token for is dropped where the model has no unk_token, as the package does. *ids
 * (walsh_free) has *count entries; count 0 gives a valid pointer. WALSH_E_FORMAT: the file's split pattern
 * takes too many steps on this text, or a Unigram model without unk_id meets a character that it does not
 * know.
 */
enum walsh_status walsh_tokenizer_encode(const struct walsh_tokenizer *t, const char *text, size_t size,
                                         unsigned flags, int32_t **ids, size_t *count,
                                         struct walsh_error *err);

/* Decode count ids to text (walsh_free; NUL-terminated, *size excludes the NUL); invalid UTF-8 becomes U+FFFD
 * as in `tokenizers`. An id outside the vocabulary, or in one of its holes, is WALSH_E_ARGUMENT. skip_special
 * leaves special added tokens out.
 */
enum walsh_status walsh_tokenizer_decode(const struct walsh_tokenizer *t, const int32_t *ids, size_t count,
                                         bool skip_special, char **text, size_t *size,
                                         struct walsh_error *err);

/* What decode writes for this token before it looks at its neighbours: *bytes [*size], the tokenizer's own.
 * WALSH_E_ARGUMENT: no token has this id. */
enum walsh_status walsh_tokenizer_token_bytes(const struct walsh_tokenizer *t, int32_t id, const char **bytes,
                                              size_t *size, struct walsh_error *err);

/* Streaming decode: bytes of a character that is not complete yet are held back. What comes out is what
 * walsh_tokenizer_decode gives for the same ids, with one exception: ByteFallback turns a whole run of byte
 * tokens to U+FFFD, one each, where it is not well-formed as a whole; the stream has then shown the
 * characters before the fault, and shows U+FFFD from there to the end of the run. */
struct walsh_decode_stream {
    const struct walsh_tokenizer *tokenizer;
    bool skip_special;
    uint8_t held[8]; /* the start of an unfinished character */
    unsigned held_size;
    bool started;    /* decoders that treat the first token apart */
    bool run_broken; /* the run of byte tokens that is going on is not well-formed */
    bool strip_done; /* the decoder's Strip has met something else */
    size_t stripped; /* characters that it has taken */
};
void walsh_decode_stream_init(struct walsh_decode_stream *s, const struct walsh_tokenizer *t,
                              bool skip_special);
/* The text that `id` completes: *text (walsh_free) of *size bytes, whole characters only; may be empty. */
enum walsh_status walsh_decode_stream_next(struct walsh_decode_stream *s, int32_t id, char **text,
                                           size_t *size, struct walsh_error *err);
/* What is still held, each undecodable part as U+FFFD. */
enum walsh_status walsh_decode_stream_finish(struct walsh_decode_stream *s, char **text, size_t *size,
                                             struct walsh_error *err);

#endif

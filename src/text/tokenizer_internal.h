/* text/tokenizer_internal: what the tokenizer's files share. Nobody outside src/text includes this. */
#ifndef WALSH_TEXT_TOKENIZER_INTERNAL_H
#define WALSH_TEXT_TOKENIZER_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/buffer.h"
#include "text/regex.h"
#include "text/tokenizer.h"

/* Caps on what a file may ask for. */
enum {
    WALSH_MAX_TOKENS = 1 << 24,   /* ids are below */
    WALSH_MAX_ADDED_BYTES = 4096, /* content of one added token */
    WALSH_MAX_SPLITS = 16,        /* steps of the pre-tokenizer */
    WALSH_MAX_TEMPLATE = 64       /* ids that the post-processor puts in front or behind */
};

/* ---- vocabulary.c: tokens by id, ids by text ---- */

struct walsh_span {
    uint32_t offset, size; /* in the vocabulary's blob */
};

enum {
    WALSH_TOKEN_MODEL = 1,   /* in model.vocab */
    WALSH_TOKEN_ADDED = 2,   /* in added_tokens */
    WALSH_TOKEN_SPECIAL = 4, /* skipped by skip_special */
    WALSH_TOKEN_TAKEN = 8,   /* in either: the id is no hole */
    WALSH_TOKEN_BYTES = 16   /* every character is of the byte alphabet: `bytes` is what they stand for */
};

struct walsh_token {
    struct walsh_span text;    /* as tokenizer.json writes it */
    struct walsh_span bytes;   /* see WALSH_TOKEN_BYTES; else empty */
    struct walsh_span decoded; /* what decode writes */
    unsigned flags;            /* 0: a hole, no token has this id */
};

/* Open addressing over ids; the keys stay in the vocabulary. */
struct walsh_id_map {
    uint32_t *slots; /* id + 1; 0: free */
    size_t mask;
};

/* GPT-2's byte alphabet lies in the code points below. */
#define WALSH_ALPHABET_END (256 + 68)

struct walsh_vocabulary {
    int16_t byte_of[WALSH_ALPHABET_END]; /* the byte that a code point stands for; -1: not of the alphabet */
    struct walsh_token *tokens;          /* [size], by id */
    size_t size;                         /* 1 + the largest id */
    struct walsh_buffer blob;
    struct walsh_id_map by_text;  /* every token */
    struct walsh_id_map by_bytes; /* model tokens with WALSH_TOKEN_BYTES */
};

/* tokens[size], all holes. */
enum walsh_status walsh_vocabulary_open(struct walsh_vocabulary *v, size_t size, struct walsh_error *err);
void walsh_vocabulary_close(struct walsh_vocabulary *v);
/* Give hole `id` its text and bytes; an id or a text that is taken is WALSH_E_FORMAT. */
enum walsh_status walsh_vocabulary_add(struct walsh_vocabulary *v, uint32_t id, const char *text, size_t size,
                                       unsigned flags, struct walsh_error *err);
/* Append text to the blob and behind it, where all its characters are of the byte alphabet, the bytes they
 * mean. */
enum walsh_status walsh_vocabulary_intern(struct walsh_vocabulary *v, const char *text, size_t size,
                                          struct walsh_span *text_span, struct walsh_span *bytes_span,
                                          bool *all_bytes, struct walsh_error *err);
/* Fill by_bytes. Call it behind the last model token. */
enum walsh_status walsh_vocabulary_index_bytes(struct walsh_vocabulary *v, struct walsh_error *err);
int32_t walsh_vocabulary_find_text(const struct walsh_vocabulary *v, const char *text,
                                   size_t size); /* -1: none */
int32_t walsh_vocabulary_find_bytes(const struct walsh_vocabulary *v, const uint8_t *bytes, size_t size);

/* Mix size bytes into 64 bits; for tables in memory only. */
uint64_t walsh_text_hash(const uint8_t *bytes, size_t size);

/* ---- bpe.c: pieces of text -> ids ---- */

struct walsh_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank, id;
};

struct walsh_bpe {
    struct walsh_merge *merges; /* [mask + 1], open addressing */
    size_t mask;
    int32_t byte_ids[256]; /* -1: the vocabulary lacks the byte; its text is dropped, as `tokenizers` does */
    bool ignore_merges;    /* a piece that is a token is that token */
};

enum walsh_status walsh_bpe_open(struct walsh_bpe *bpe, size_t merges, struct walsh_error *err);
void walsh_bpe_close(struct walsh_bpe *bpe);
/* A later merge of the same pair replaces the earlier one. There is room for as many as walsh_bpe_open was
 * told. */
void walsh_bpe_add(struct walsh_bpe *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

struct walsh_ids {
    int32_t *data; /* walsh_free */
    size_t size, capacity;
};
/* Room for `more` further ids; moves data. */
enum walsh_status walsh_ids_reserve(struct walsh_ids *ids, size_t more, struct walsh_error *err);
enum walsh_status walsh_ids_append(struct walsh_ids *ids, const int32_t *data, size_t count,
                                   struct walsh_error *err);

/* Memory of the merging of one piece, reused from piece to piece. */
struct walsh_bpe_scratch {
    struct walsh_buffer symbols, heap;
};
enum walsh_status walsh_bpe_encode(const struct walsh_bpe *bpe, const struct walsh_vocabulary *v,
                                   struct walsh_bpe_scratch *scratch, const uint8_t *piece, size_t size,
                                   struct walsh_ids *ids, struct walsh_error *err);

/* ---- added_tokens.c: tokens that are cut out of the text before all else ---- */

struct walsh_added_token {
    uint32_t id;
    bool single_word, lstrip, rstrip, special;
};

/* A trie over bytes: node 0 is the root. */
struct walsh_trie_node {
    uint32_t child, sibling; /* 0: none */
    int32_t token;           /* index in tokens, -1: none ends here */
    uint8_t byte;
};

struct walsh_added_set {
    struct walsh_buffer nodes;  /* struct walsh_trie_node[] */
    struct walsh_buffer tokens; /* struct walsh_added_token[] */
    uint32_t first[256];        /* the root's children by byte; 0: none */
    bool any_single_word;
};

enum walsh_status walsh_added_set_add(struct walsh_added_set *set, const uint8_t *content, size_t size,
                                      const struct walsh_added_token *token, struct walsh_error *err);
void walsh_added_set_close(struct walsh_added_set *set);

/* Where the walk over a text stands. */
struct walsh_added_scan {
    const struct walsh_added_set *set;
    const struct walsh_regex *word; /* one \w character, as the regex crate means it */
    struct walsh_regex_scratch *scratch;
    const uint8_t *text;
    size_t size;
    bool plain;  /* special tokens do not count */
    size_t at;   /* the search goes on here */
    size_t done; /* text before this is handed out; the caller moves it to *end */
};
/* The next added token at or behind scan->at, leftmost then longest: its id (-1: none left, *start = *end =
 * size) and the text [*start, *end) that it takes with its stripped white space; [scan->done, *start), where
 * it is not empty, is ordinary text. */
enum walsh_status walsh_added_next(struct walsh_added_scan *scan, int32_t *id, size_t *start, size_t *end,
                                   struct walsh_error *err);

/* ---- normalize.c ---- */

/* Append the NFC form of well-formed UTF-8 to `out`. */
enum walsh_status walsh_normalize_nfc(const uint8_t *text, size_t size, struct walsh_buffer *out,
                                      struct walsh_error *err);

/* ---- pretokenizer.c: text -> pieces ---- */

enum walsh_split_behavior {
    WALSH_SPLIT_ISOLATED,
    WALSH_SPLIT_REMOVED,
    WALSH_SPLIT_MERGED_WITH_PREVIOUS,
    WALSH_SPLIT_MERGED_WITH_NEXT,
    WALSH_SPLIT_CONTIGUOUS
};

struct walsh_split {
    struct walsh_regex *regex;
    enum walsh_split_behavior behavior;
    bool invert;
    const struct walsh_fast_pattern *fast; /* NULL: PCRE2 alone */
};

struct walsh_pretokenizer {
    struct walsh_split splits[WALSH_MAX_SPLITS];
    size_t split_count;
    size_t prefix_before; /* the split (or split_count) before which ByteLevel puts a space in front of each
                             piece */
    bool add_prefix_space;
};

/* Takes each piece in the order of the text. `stable`: its bytes stay where they are until the whole encode
 * ends. */
typedef enum walsh_status walsh_piece_sink(void *argument, const uint8_t *piece, size_t size, bool stable,
                                           struct walsh_error *err);
/* `space` is scratch for added prefix spaces. */
enum walsh_status walsh_pretokenize(const struct walsh_pretokenizer *p, struct walsh_regex_scratch *scratch,
                                    struct walsh_buffer *space, const uint8_t *text, size_t size,
                                    walsh_piece_sink *sink, void *argument, struct walsh_error *err);

/* ---- fast_split.c: the split patterns that most models use, by hand for ASCII ---- */

extern const char walsh_gpt2_pattern[]; /* ByteLevel's use_regex */
/* NULL where `pattern` is not one of them, byte for byte. */
const struct walsh_fast_pattern *walsh_fast_pattern_find(const char *pattern);
/* The end of the pattern's match at text[from]; 0 where a byte >= 0x80 has a say in it: ask PCRE2. */
size_t walsh_fast_pattern_match(const struct walsh_fast_pattern *fast, const uint8_t *text, size_t size,
                                size_t from);

/* ---- the whole ---- */

struct walsh_tokenizer {
    struct walsh_vocabulary vocabulary;
    struct walsh_bpe bpe;
    struct walsh_added_set added, added_normalized; /* matched before and behind the normalizer */
    struct walsh_regex *word;                       /* NULL: no token has single_word */
    bool nfc;
    struct walsh_pretokenizer pretokenizer;
    bool byte_level_decoder; /* else the tokens' texts with a space between */
    int32_t before[WALSH_MAX_TEMPLATE], behind[WALSH_MAX_TEMPLATE];
    size_t before_count, behind_count;
    int32_t bos, eos;
    char *chat_template;
};

/* tokenizer_load.c, tokenizer_config.c: fill a zeroed tokenizer; what was built stays for
 * walsh_tokenizer_close. */
enum walsh_status walsh_tokenizer_load(struct walsh_tokenizer *t, const char *path, struct walsh_error *err);
enum walsh_status walsh_tokenizer_load_config(struct walsh_tokenizer *t, const char *directory,
                                              struct walsh_error *err);

#endif

/* text/tokenizer_internal: what the tokenizer's files share. Nobody outside src/text includes this. */
#ifndef WALSH_TEXT_TOKENIZER_INTERNAL_H
#define WALSH_TEXT_TOKENIZER_INTERNAL_H

#include <jansson.h>
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
    WALSH_MAX_STEPS = 16,         /* of the normalizer, of the decoder */
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
    WALSH_TOKEN_BYTES = 16,  /* every character is of the byte alphabet: `bytes` is what they stand for */
    WALSH_TOKEN_BYTE = 32    /* decode gathers its one byte, of a ByteFallback token, with its neighbours' */
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
/* The same among the model's own tokens: what is only added does not count. */
int32_t walsh_vocabulary_find_model(const struct walsh_vocabulary *v, const uint8_t *text, size_t size);
/* ids[b]: the model's token <0xBB> of each byte, -1 where it has none. */
void walsh_vocabulary_find_fallback(const struct walsh_vocabulary *v, int32_t ids[256]);
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
    /* Where no ByteLevel turns text to bytes, a symbol is a character, looked up by its text. */
    bool characters;
    bool byte_fallback, fuse_unknown; /* what becomes of a character without a token: its bytes' tokens, or */
    int32_t unknown;                  /* this one (-1: it is dropped), once for a run of them where fused */
    int32_t fallback_ids[256];        /* -1: none */
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

/* ---- unigram.c: pieces of text -> ids, by the most likely cut ---- */

struct walsh_unigram {
    uint32_t *sorted; /* [count] ids of the tokens that are not empty, by their bytes; NULL: no such model */
    size_t count;
    uint32_t first[257];  /* sorted[first[b], first[b + 1]) start with byte b */
    double *scores;       /* [vocabulary size] by id */
    double unknown_score; /* of a character that no token is */
    int32_t unknown;      /* -1: such a character is an error */
    bool byte_fallback;
    int32_t fallback_ids[256];
};

/* `scores` (walsh_free) becomes the model's; the ids below `count` are its tokens. */
enum walsh_status walsh_unigram_open(struct walsh_unigram *u, const struct walsh_vocabulary *v,
                                     double *scores, size_t count, struct walsh_error *err);
void walsh_unigram_close(struct walsh_unigram *u);
/* `path` is scratch, reused from piece to piece. */
enum walsh_status walsh_unigram_encode(const struct walsh_unigram *u, const struct walsh_vocabulary *v,
                                       struct walsh_buffer *path, const uint8_t *piece, size_t size,
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
    bool any_single_word, any_special;
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
    bool plain;           /* special tokens do not count */
    const size_t *guards; /* [guard_count] ascending offsets in text where no special token begins */
    size_t guard_count;
    size_t at;   /* the search goes on here */
    size_t done; /* text before this is handed out; the caller moves it to *end */
};
/* Whether a special token of the set begins with the text; the text has one byte or more. */
bool walsh_added_special(const struct walsh_added_set *set, const uint8_t *text, size_t size);
/* The next added token at or behind scan->at, leftmost then longest: its id (-1: none left, *start = *end =
 * size) and the text [*start, *end) that it takes with its stripped white space; [scan->done, *start), where
 * it is not empty, is ordinary text. */
enum walsh_status walsh_added_next(struct walsh_added_scan *scan, int32_t *id, size_t *start, size_t *end,
                                   struct walsh_error *err);

/* ---- normalize.c: Unicode's normal forms; normalizer.c: the steps of a file's normalizer ---- */

/* Append the normal form of well-formed UTF-8 to `out`. */
enum walsh_status walsh_normalize_form(const uint8_t *text, size_t size, bool compatibility, bool compose,
                                       struct walsh_buffer *out, struct walsh_error *err);

enum walsh_normalizer_kind {
    WALSH_NORMALIZE_FORM,
    WALSH_NORMALIZE_PREPEND,
    WALSH_NORMALIZE_REPLACE,
    WALSH_NORMALIZE_STRIP,
    WALSH_NORMALIZE_LOWERCASE
};

struct walsh_normalizer_step {
    enum walsh_normalizer_kind kind;
    bool compatibility, compose; /* FORM: NFC is (false, true), NFKD (true, false) */
    bool left, right;            /* STRIP: the sides that lose their white space */
    struct walsh_buffer
        content; /* PREPEND: what goes before a text that is not empty; REPLACE: the new text */
    struct walsh_buffer literal; /* REPLACE: the text sought, where there is no regex; not empty */
    struct walsh_regex *regex;
};

struct walsh_normalizer {
    struct walsh_normalizer_step steps[WALSH_MAX_STEPS];
    size_t count;
};

void walsh_normalizer_close(struct walsh_normalizer *n);
/* Append the normal form of text to `out`. *kept becomes false where a step takes the start of the text away,
 * so that what is left does not begin where the text began. */
enum walsh_status walsh_normalize(const struct walsh_normalizer *n, struct walsh_regex_scratch *scratch,
                                  const uint8_t *text, size_t size, struct walsh_buffer *out, bool *kept,
                                  struct walsh_error *err);
/* Append `text` to `out` with every `literal` (not empty) replaced. */
enum walsh_status walsh_replace_literal(const uint8_t *text, size_t size, const struct walsh_buffer *literal,
                                        const struct walsh_buffer *content, struct walsh_buffer *out,
                                        struct walsh_error *err);

/* ---- pretokenizer.c: text -> pieces ---- */

enum walsh_split_behavior {
    WALSH_SPLIT_ISOLATED,
    WALSH_SPLIT_REMOVED,
    WALSH_SPLIT_MERGED_WITH_PREVIOUS,
    WALSH_SPLIT_MERGED_WITH_NEXT,
    WALSH_SPLIT_CONTIGUOUS
};

enum walsh_prepend { WALSH_PREPEND_NEVER, WALSH_PREPEND_FIRST, WALSH_PREPEND_ALWAYS };

/* A step of the pre-tokenizer: a cut by a pattern, or Metaspace's rewriting of spaces (regex is NULL). */
struct walsh_split {
    struct walsh_buffer space;  /* rewriting: what stands for a space */
    enum walsh_prepend prepend; /* rewriting: which pieces get one in front where they lack it */
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
/* Memory of the rewritten pieces: of each step, and of added prefix spaces. */
struct walsh_pretokenizer_scratch {
    struct walsh_buffer rewritten[WALSH_MAX_SPLITS], prefixed;
};
/* `first`: the text is the start of what the caller was given (WALSH_PREPEND_FIRST). */
enum walsh_status walsh_pretokenize(const struct walsh_pretokenizer *p, struct walsh_regex_scratch *scratch,
                                    struct walsh_pretokenizer_scratch *memory, const uint8_t *text,
                                    size_t size, bool first, walsh_piece_sink *sink, void *argument,
                                    struct walsh_error *err);
void walsh_pretokenizer_close(struct walsh_pretokenizer *p);

/* ---- fast_split.c: the split patterns that most models use, by hand for ASCII ---- */

extern const char walsh_gpt2_pattern[]; /* ByteLevel's use_regex */
/* NULL where `pattern` is not one of them, byte for byte. */
const struct walsh_fast_pattern *walsh_fast_pattern_find(const char *pattern);
/* The end of the pattern's match at text[from]; 0 where a byte >= 0x80 has a say in it: ask PCRE2. */
size_t walsh_fast_pattern_match(const struct walsh_fast_pattern *fast, const uint8_t *text, size_t size,
                                size_t from);

/* ---- decode.c ---- */

enum walsh_decoder_kind {
    WALSH_DECODE_REPLACE,   /* content for each `literal` */
    WALSH_DECODE_STRIP,     /* up to `start` characters `literal` at the front, `stop` at the end */
    WALSH_DECODE_METASPACE, /* a space for each `literal`; in the first token nothing, where `drop_first` */
    WALSH_DECODE_FALLBACK,  /* runs of <0xBB> tokens to the characters that their bytes make */
    WALSH_DECODE_FUSE       /* one text of all tokens */
};

struct walsh_decoder_step {
    enum walsh_decoder_kind kind;
    struct walsh_buffer literal, content;
    size_t start, stop;
    bool drop_first;
};

/* The steps of a decoder in their order: first those that see one token, then perhaps FALLBACK, then perhaps
 * FUSE; what follows sees the text as a stream: REPLACE of a single character, and one STRIP at its start.
 * The loader refuses any other order, so that a stream decodes as a whole text does. */
struct walsh_decoder {
    struct walsh_decoder_step steps[WALSH_MAX_STEPS];
    size_t count, token_steps; /* the first token_steps see single tokens */
    bool byte_level;           /* ByteLevel alone, no steps */
    bool joined;               /* a decoder is there; else the tokens' texts with a space between */
};

/* Fill in what each token of the vocabulary is decoded to. */
enum walsh_status walsh_decoder_prepare(const struct walsh_decoder *d, struct walsh_vocabulary *v,
                                        struct walsh_error *err);
void walsh_decoder_close(struct walsh_decoder *d);

/* ---- the whole ---- */

struct walsh_tokenizer {
    struct walsh_vocabulary vocabulary;
    struct walsh_bpe bpe;
    struct walsh_unigram unigram;                   /* in use where `sorted` is not NULL */
    struct walsh_added_set added, added_normalized; /* matched before and behind the normalizer */
    struct walsh_regex *word;                       /* NULL: no token has single_word */
    struct walsh_normalizer normalizer;
    struct walsh_pretokenizer pretokenizer;
    bool byte_level; /* the pre-tokenizer ends with ByteLevel: the model sees bytes */
    struct walsh_decoder decoder;
    int32_t before[WALSH_MAX_TEMPLATE], behind[WALSH_MAX_TEMPLATE];
    size_t before_count, behind_count;
    int32_t bos, eos;
    char *chat_template, *tool_template; /* the second where a conversation has tools; NULL: none */
    char *template_file;                 /* where they come from */
    json_t *special_tokens;              /* {"bos_token": text, ...} of tokenizer_config.json; NULL: none */
};

/* tokenizer_load.c, tokenizer_config.c: fill a zeroed tokenizer; what was built stays for
 * walsh_tokenizer_close. */
enum walsh_status walsh_tokenizer_load(struct walsh_tokenizer *t, const char *path, struct walsh_error *err);
enum walsh_status walsh_tokenizer_load_config(struct walsh_tokenizer *t, const char *directory,
                                              struct walsh_error *err);

#endif

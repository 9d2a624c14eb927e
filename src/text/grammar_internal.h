/* text/grammar_internal: what the grammar's files share. */
#ifndef WALSH_TEXT_GRAMMAR_INTERNAL_H
#define WALSH_TEXT_GRAMMAR_INTERNAL_H

#include <stdatomic.h>

#include "base/memory.h"
#include "text/grammar.h"

enum {
    WALSH_GRAMMAR_DEPTH = 32,      /* arrays and objects within each other in an answer */
    WALSH_GRAMMAR_SPACE = 40,      /* bytes of white space in one place */
    WALSH_GRAMMAR_STATES = 64,     /* ways to read what was drawn that are kept at a time */
    WALSH_GRAMMAR_PROPERTIES = 64, /* of one object */
    WALSH_GRAMMAR_NODES = 4096,
    WALSH_GRAMMAR_LITERALS = 1024, /* of one enum */
    WALSH_GRAMMAR_SCHEMA = 1 << 18 /* bytes */
};
#define WALSH_GRAMMAR_ENDLESS UINT32_MAX /* no largest length; no height */

/* ---- grammar_schema.c ---- */

enum walsh_grammar_kind {
    GRAMMAR_UNION, /* one of `children` */
    GRAMMAR_STRING,
    GRAMMAR_NUMBER,
    GRAMMAR_INTEGER,
    GRAMMAR_ARRAY,
    GRAMMAR_OBJECT,
    GRAMMAR_LITERALS, /* one of `texts`, byte for byte */
    GRAMMAR_ROOT
};
struct walsh_grammar_text {
    const char *data;
    uint32_t size;
};
struct walsh_grammar_node {
    enum walsh_grammar_kind kind;
    uint32_t least, most; /* STRING: characters; ARRAY: items */
    uint32_t height;      /* the fewest arrays and objects within each other that it takes */
    uint32_t *children;   /* [count] UNION: nodes; OBJECT: of the properties; ARRAY: [1] of the items */
    struct walsh_grammar_text *texts; /* [count], sorted: LITERALS; names of an OBJECT's properties */
    uint32_t count;
    uint64_t required;   /* OBJECT: bit i: property i */
    uint32_t additional; /* OBJECT: node of other properties; ENDLESS: there are none */
};
/* Nodes that are always there. */
enum {
    GRAMMAR_NODE_ANY,
    GRAMMAR_NODE_ANY_OBJECT,
    GRAMMAR_NODE_ANY_ARRAY,
    GRAMMAR_NODE_ANY_STRING,
    GRAMMAR_NODE_ANY_NUMBER,
    GRAMMAR_NODE_WORDS,
    GRAMMAR_NODE_ROOT,
    GRAMMAR_NODE_FIRST
};

/* ---- grammar_thought.c: what may come before the document ---- */

enum { WALSH_GRAMMAR_ENDS = 2, WALSH_GRAMMAR_END_BYTES = 32 };
struct walsh_grammar_thought {
    int32_t opens; /* the token that may begin it; -1: it has begun already */
    uint8_t ends[WALSH_GRAMMAR_ENDS][WALSH_GRAMMAR_END_BYTES]; /* texts that must come, one after the other */
    uint8_t sizes[WALSH_GRAMMAR_ENDS], end_count;              /* 0: there is no thought */
};
/* Where one answer stands. */
struct walsh_grammar_thinking {
    enum { THOUGHT_MAY_BEGIN, THOUGHT_GOES_ON, THOUGHT_OVER } phase;
    uint8_t ends_met;
    uint8_t tail[WALSH_GRAMMAR_END_BYTES],
        tail_size; /* the last bytes, as many as the next end has at most */
};

struct walsh_grammar {
    atomic_uint references;
    const struct walsh_token_bytes *tokens;
    struct walsh_arena arena;
    struct walsh_grammar_node *nodes; /* [count] */
    uint32_t count, capacity;
    uint32_t root;
    struct walsh_grammar_thought thought;
};

void walsh_grammar_begin_thought(const struct walsh_grammar *g, struct walsh_grammar_thinking *thinking);
/* More bytes of a thought that goes on. What stands behind its end in the same token is not of the document.
 */
void walsh_grammar_think(const struct walsh_grammar *g, struct walsh_grammar_thinking *thinking,
                         const uint8_t *bytes, size_t size);
const struct walsh_tokenizer *walsh_token_bytes_tokenizer(const struct walsh_token_bytes *tokens);

/* ---- grammar_match.c: the automaton over bytes ---- */

/* Inside a string: where in a character or an escape. */
struct walsh_grammar_lexer {
    uint8_t state;       /* 0: between characters */
    uint8_t left;        /* continuation bytes, or hex digits */
    uint8_t least, most; /* of the next continuation byte */
    uint16_t code, high; /* of \u escapes */
};
/* One level of what is being read. No padding that is not zero: states are compared as bytes. */
struct walsh_grammar_frame {
    uint32_t node;
    uint8_t phase;
    uint8_t space;        /* white space so far in this place */
    uint16_t position;    /* in a literal or a name; digits of a number */
    uint32_t count;       /* characters, items; the exponent of a number */
    uint32_t first, last; /* texts that still fit: [first, last) */
    uint32_t child;       /* of the property whose name was read */
    uint64_t seen;        /* properties */
    struct walsh_grammar_lexer lexer;
};
struct walsh_grammar_level { /* a frame below the top one; never changed */
    struct walsh_grammar_frame frame;
    const struct walsh_grammar_level *below;
};
struct walsh_grammar_state {
    struct walsh_grammar_frame top;
    const struct walsh_grammar_level *below; /* NULL: top is the root */
    uint32_t depth;                          /* open arrays and objects */
};
/* Levels are taken from here, in order, and given back by lowering `used`. */
struct walsh_grammar_levels {
    struct walsh_grammar_level **blocks; /* of LEVELS_PER_BLOCK */
    size_t used, blocks_count, blocks_capacity;
};
struct walsh_grammar_states {
    struct walsh_grammar_state *items; /* [STATES] */
    size_t count;
};

void walsh_grammar_start(const struct walsh_grammar *g, struct walsh_grammar_states *states);
/* All states behind one more byte: `to` gets what `from` leads to. Out of memory: false in *good, and
 * nothing. */
void walsh_grammar_step(const struct walsh_grammar *g, struct walsh_grammar_levels *levels,
                        const struct walsh_grammar_states *from, uint8_t byte,
                        struct walsh_grammar_states *to, bool *good);
bool walsh_grammar_is_complete(const struct walsh_grammar *g, const struct walsh_grammar_states *states);
/* A string without bounds on what comes next but its length: how many characters may still come, or -1. */
int64_t walsh_grammar_free_text(const struct walsh_grammar *g, const struct walsh_grammar_states *states);
/* The frame with everything that no next token can tell apart made equal. */
struct walsh_grammar_frame walsh_grammar_essence(const struct walsh_grammar *g,
                                                 const struct walsh_grammar_frame *frame, uint32_t longest);
void walsh_grammar_levels_close(struct walsh_grammar_levels *levels);

#endif

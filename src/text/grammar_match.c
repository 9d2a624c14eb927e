/* The automaton of a grammar over the bytes of JSON. A state is a stack of what is open; where a schema
 * leaves several ways to read what came so far, several states are kept. From every state a whole document
 * can be reached: a byte that leads nowhere is not taken. */
#include <string.h>

#include "text/grammar_internal.h"
#include "text/utf8.h"

#define LEVELS_PER_BLOCK 64

enum {
    PHASE_START, /* nothing read yet */
    PHASE_OPEN,  /* object, array: behind the bracket */
    PHASE_KEY,   /* object: in a name */
    PHASE_COLON, /* object: behind a name */
    PHASE_VALUE, /* object: behind the colon */
    PHASE_AFTER, /* object, array: behind a value; root: the end */
    PHASE_COMMA, /* object, array: behind a comma */
    PHASE_TEXT,  /* string, literal: within */
    PHASE_MINUS, /* number: behind its sign */
    PHASE_ZERO,  /* a whole part of 0 */
    PHASE_WHOLE, /* digits of the whole part */
    PHASE_POINT, /* behind the point */
    PHASE_FRACTION,
    PHASE_E, /* behind e */
    PHASE_E_SIGN,
    PHASE_EXPONENT
};
enum { LEX_PLAIN, LEX_UTF8, LEX_ESCAPE, LEX_HEX, LEX_PAIR, LEX_PAIR_U }; /* of a string */

#define MAX_WHOLE 18     /* digits before the point: what 64 bits hold */
#define MAX_FRACTION 32  /* digits behind it */
#define MAX_EXPONENT 280 /* so that a double holds it */

struct stepper {
    const struct walsh_grammar *g;
    struct walsh_grammar_levels *levels;
    struct walsh_grammar_states *to;
    bool good;
};

/* ---- levels ---- */

static struct walsh_grammar_level *new_level(struct stepper *s)
{
    struct walsh_grammar_levels *l = s->levels;
    const size_t block = l->used / LEVELS_PER_BLOCK;
    if (block == l->blocks_count) {
        struct walsh_grammar_level *fresh;
        if (block == l->blocks_capacity) {
            struct walsh_grammar_level **more;
            const size_t capacity = block ? 2 * block : 8;
            s->good = s->good && walsh_alloc(capacity, sizeof *more, "a matcher", &more, NULL) == WALSH_OK;
            if (!s->good) return NULL;
            if (block) memcpy((void *)more, (void *)l->blocks, block * sizeof *more);
            walsh_free((void *)l->blocks);
            l->blocks = more;
            l->blocks_capacity = capacity;
        }
        s->good = s->good &&
                  walsh_alloc_zero(LEVELS_PER_BLOCK, sizeof *fresh, "a matcher", &fresh, NULL) == WALSH_OK;
        if (!s->good) return NULL;
        l->blocks[l->blocks_count++] = fresh;
    }
    return &l->blocks[block][l->used++ % LEVELS_PER_BLOCK];
}

void walsh_grammar_levels_close(struct walsh_grammar_levels *levels)
{
    for (size_t i = 0; i < levels->blocks_count; i++) walsh_free(levels->blocks[i]);
    walsh_free((void *)levels->blocks);
    *levels = (struct walsh_grammar_levels){0};
}

static bool same_below(const struct walsh_grammar_level *a, const struct walsh_grammar_level *b)
{
    for (; a != b; a = a->below, b = b->below)
        if (!a || !b || memcmp(&a->frame, &b->frame, sizeof a->frame) != 0) return false;
    return true;
}

/* Beyond STATES ways the rest is left out: what stays still leads to valid documents. */
static void add(struct stepper *s, const struct walsh_grammar_state *state)
{
    for (size_t i = 0; i < s->to->count; i++) {
        const struct walsh_grammar_state *other = &s->to->items[i];
        if (memcmp(&other->top, &state->top, sizeof state->top) == 0 &&
            same_below(other->below, state->below))
            return;
    }
    if (s->to->count < WALSH_GRAMMAR_STATES) s->to->items[s->to->count++] = *state;
}

/* ---- what may come ---- */

static bool fits(const struct stepper *s, const struct walsh_grammar_state *state, uint32_t node)
{
    const uint32_t height = s->g->nodes[node].height;
    return height <= WALSH_GRAMMAR_DEPTH && state->depth + height <= WALSH_GRAMMAR_DEPTH;
}

static bool may_add(const struct stepper *s, const struct walsh_grammar_state *state, uint32_t property)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    return !(state->top.seen >> property & 1) && fits(s, state, n->children[property]);
}

/* A property that is not there yet may follow. */
static bool may_continue(const struct stepper *s, const struct walsh_grammar_state *state)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    if (n->additional != WALSH_GRAMMAR_ENDLESS && fits(s, state, n->additional)) return true;
    for (uint32_t i = 0; i < n->count; i++)
        if (may_add(s, state, i)) return true;
    return false;
}

static bool is_space(uint8_t byte)
{
    return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
}

static void put_space(struct stepper *s, const struct walsh_grammar_state *state)
{
    struct walsh_grammar_state next = *state;
    if (next.top.space == WALSH_GRAMMAR_SPACE) return;
    next.top.space++;
    add(s, &next);
}

static void step(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte);

/* The state with its top frame done. */
static struct walsh_grammar_state pop(const struct walsh_grammar_state *state)
{
    return (struct walsh_grammar_state){
        .top = state->below->frame, .below = state->below->below, .depth = state->depth};
}

static void end_value(struct stepper *s, const struct walsh_grammar_state *state)
{
    const struct walsh_grammar_state next = pop(state);
    add(s, &next);
}

/* A value of `node` begins with this byte; `after` is the frame that goes on behind it. */
static void begin_value(struct stepper *s, const struct walsh_grammar_state *state,
                        const struct walsh_grammar_frame *after, uint32_t node, uint8_t byte)
{
    struct walsh_grammar_level *below = new_level(s);
    if (!below) return;
    below->frame = *after;
    below->below = state->below;
    struct walsh_grammar_state next = {.below = below, .depth = state->depth};
    const struct walsh_grammar_node *n = &s->g->nodes[node];
    for (uint32_t i = 0; i < (n->kind == GRAMMAR_UNION ? n->count : 1); i++) {
        next.top = (struct walsh_grammar_frame){.node = n->kind == GRAMMAR_UNION ? n->children[i] : node};
        if (fits(s, &next, next.top.node)) step(s, &next, byte);
    }
}

/* ---- strings ---- */

/* What a byte within a string gives. */
struct lexed {
    bool good, closed, character; /* a character begins (or an escape stands for one) */
    uint8_t bytes[4];             /* [count] of the text that it means */
    unsigned count;
};

static void lex_character(struct walsh_grammar_lexer *l, uint8_t byte, struct lexed *out)
{
    out->character = true;
    out->bytes[out->count++] = byte;
    out->good = byte >= 0x20;
    if (byte < 0x80) return;
    l->state = LEX_UTF8; /* table 3-7 of the Unicode standard */
    l->least = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
    l->most = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
    l->left = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : 1;
    out->good = byte >= 0xc2 && byte <= 0xf4;
}

static void lex_code(struct walsh_grammar_lexer *l, uint32_t code, struct lexed *out)
{
    out->character = true;
    if (code < 0x80) {
        out->bytes[out->count++] = (uint8_t)code;
    } else if (code < 0x800) {
        out->bytes[out->count++] = (uint8_t)(0xc0 | code >> 6);
    } else if (code < 0x10000) {
        out->bytes[out->count++] = (uint8_t)(0xe0 | code >> 12);
        out->bytes[out->count++] = (uint8_t)(0x80 | (code >> 6 & 63));
    } else {
        out->bytes[out->count++] = (uint8_t)(0xf0 | code >> 18);
        out->bytes[out->count++] = (uint8_t)(0x80 | (code >> 12 & 63));
        out->bytes[out->count++] = (uint8_t)(0x80 | (code >> 6 & 63));
    }
    if (code >= 0x80) out->bytes[out->count++] = (uint8_t)(0x80 | (code & 63));
    *l = (struct walsh_grammar_lexer){0};
}

/* A hex digit of \uXXXX. No half of a pair alone, no \u0000. */
static void lex_hex(struct walsh_grammar_lexer *l, uint8_t byte, struct lexed *out)
{
    const uint8_t lower = byte | 0x20;
    const bool digit = byte >= '0' && byte <= '9', letter = lower >= 'a' && lower <= 'f';
    out->good = digit || letter;
    if (!out->good) return;
    l->code = (uint16_t)(l->code << 4 | (digit ? byte - '0' : lower - 'a' + 10));
    l->left--;
    if (l->left == 2) { /* two digits tell a half: d8-db is the first, dc-df the second */
        const bool second = (l->code & 0xfc) == 0xdc;
        out->good = l->high ? second : !second;
    }
    if (l->left == 3 && l->high) out->good = l->code == 0xd;
    if (l->left > 0) return;
    if (l->high) {
        lex_code(l, 0x10000u + ((uint32_t)(l->high - 0xd800) << 10) + (uint32_t)(l->code - 0xdc00), out);
    } else if ((l->code & 0xfc00) == 0xd800) {
        *l = (struct walsh_grammar_lexer){.state = LEX_PAIR, .high = l->code};
    } else {
        out->good = l->code != 0;
        lex_code(l, l->code, out);
    }
}

static struct lexed lex(struct walsh_grammar_lexer *l, uint8_t byte)
{
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    struct lexed out = {.good = true};
    const char *escape;
    switch (l->state) {
    case LEX_PLAIN:
        if (byte == '"')
            out.closed = true;
        else if (byte == '\\')
            l->state = LEX_ESCAPE;
        else
            lex_character(l, byte, &out);
        break;
    case LEX_UTF8:
        out.good = byte >= l->least && byte <= l->most;
        out.bytes[out.count++] = byte;
        l->least = 0x80;
        l->most = 0xbf;
        if (--l->left == 0) *l = (struct walsh_grammar_lexer){0};
        break;
    case LEX_ESCAPE:
        escape = byte ? strchr(escapes, byte) : NULL;
        if (byte == 'u')
            *l = (struct walsh_grammar_lexer){.state = LEX_HEX, .left = 4};
        else if (escape)
            lex_code(l, (uint8_t)meanings[escape - escapes], &out);
        else
            out.good = false;
        break;
    case LEX_HEX:
        lex_hex(l, byte, &out);
        break;
    case LEX_PAIR:
        out.good = byte == '\\';
        l->state = LEX_PAIR_U;
        break;
    default:
        out.good = byte == 'u';
        l->state = LEX_HEX;
        l->left = 4;
        l->code = 0;
        break;
    }
    return out;
}

static void step_string(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    if (next.top.phase == PHASE_START) {
        next.top.phase = PHASE_TEXT;
        if (byte == '"') add(s, &next);
        return;
    }
    const struct lexed lexed = lex(&next.top.lexer, byte);
    if (!lexed.good) return;
    if (lexed.closed) {
        if (next.top.count >= n->least) end_value(s, &next);
        return;
    }
    /* An escape's first byte is held to the length too, so that it can be ended. */
    const bool begins = state->top.lexer.state == LEX_PLAIN;
    if (begins && n->most != WALSH_GRAMMAR_ENDLESS && next.top.count >= n->most) return;
    if (lexed.character && next.top.count < WALSH_GRAMMAR_ENDLESS - 1) next.top.count++;
    add(s, &next);
}

/* ---- literals ---- */

/* Narrow [first, last) to the texts with `byte` at `position`. They are sorted. */
static void narrow(const struct walsh_grammar_text *texts, uint32_t position, uint8_t byte, uint32_t *first,
                   uint32_t *last)
{
    while (*first < *last && (texts[*first].size <= position || (uint8_t)texts[*first].data[position] < byte))
        ++*first;
    uint32_t end = *first;
    while (end < *last && (uint8_t)texts[end].data[position] == byte) end++;
    *last = end;
}

static bool is_number(const struct walsh_grammar_text *text)
{
    return text->data[0] == '-' || (text->data[0] >= '0' && text->data[0] <= '9');
}

static void step_literal(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    if (next.top.phase == PHASE_START) {
        next.top.phase = PHASE_TEXT;
        next.top.last = n->count;
    }
    const bool whole = next.top.position > 0 && n->texts[next.top.first].size == next.top.position;
    narrow(n->texts, next.top.position, byte, &next.top.first, &next.top.last);
    if (next.top.first < next.top.last) {
        next.top.position++;
        const struct walsh_grammar_text *text = &n->texts[next.top.first];
        if (text->size == next.top.position && !is_number(text))
            end_value(s, &next);
        else
            add(s, &next);
    } else if (whole) { /* a number ends by what follows */
        const struct walsh_grammar_state above = pop(state);
        step(s, &above, byte);
    }
}

/* ---- numbers ---- */

static bool number_may_end(uint8_t phase)
{
    return phase == PHASE_ZERO || phase == PHASE_WHOLE || phase == PHASE_FRACTION || phase == PHASE_EXPONENT;
}

/* A digit; false: not here. */
static bool number_digit(struct walsh_grammar_frame *f, uint8_t byte)
{
    const unsigned digit = byte - '0';
    switch (f->phase) {
    case PHASE_START:
    case PHASE_MINUS:
        f->phase = digit ? PHASE_WHOLE : PHASE_ZERO;
        f->position = 1;
        return true;
    case PHASE_WHOLE:
        return ++f->position <= MAX_WHOLE;
    case PHASE_POINT:
    case PHASE_FRACTION:
        f->position = f->phase == PHASE_POINT ? 1 : (uint16_t)(f->position + 1);
        f->phase = PHASE_FRACTION;
        return f->position <= MAX_FRACTION;
    case PHASE_E:
    case PHASE_E_SIGN:
    case PHASE_EXPONENT:
        f->position = f->phase == PHASE_EXPONENT ? (uint16_t)(f->position + 1) : 1;
        f->count = f->count * 10 + digit;
        f->phase = PHASE_EXPONENT;
        return f->position <= 3 && f->count <= MAX_EXPONENT;
    default:
        return false;
    }
}

static bool number_sign(struct walsh_grammar_frame *f, uint8_t byte, bool integer)
{
    if (byte == '-' && f->phase == PHASE_START) {
        f->phase = PHASE_MINUS;
        return true;
    }
    if (integer) return false;
    if (byte == '.' && (f->phase == PHASE_ZERO || f->phase == PHASE_WHOLE)) {
        f->phase = PHASE_POINT;
        return true;
    }
    if ((byte | 0x20) == 'e' && number_may_end(f->phase) && f->phase != PHASE_EXPONENT) {
        f->phase = PHASE_E;
        f->count = 0;
        return true;
    }
    if ((byte == '+' || byte == '-') && f->phase == PHASE_E) {
        f->phase = PHASE_E_SIGN;
        return true;
    }
    return false;
}

static void step_number(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const bool integer = s->g->nodes[state->top.node].kind == GRAMMAR_INTEGER;
    struct walsh_grammar_state next = *state;
    const bool taken =
        byte >= '0' && byte <= '9' ? number_digit(&next.top, byte) : number_sign(&next.top, byte, integer);
    if (taken) {
        add(s, &next);
    } else if (number_may_end(state->top.phase)) {
        const struct walsh_grammar_state above = pop(state);
        step(s, &above, byte);
    }
}

/* ---- arrays ---- */

static void end_container(struct stepper *s, const struct walsh_grammar_state *state)
{
    struct walsh_grammar_state next = pop(state);
    next.depth--;
    add(s, &next);
}

static void begin_item(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_frame after = state->top;
    if (n->most != WALSH_GRAMMAR_ENDLESS && after.count >= n->most) return;
    after.phase = PHASE_AFTER;
    after.space = 0;
    if (after.count < WALSH_GRAMMAR_ENDLESS - 1) after.count++;
    begin_value(s, state, &after, n->children[0], byte);
}

static void step_array(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    if (state->top.phase == PHASE_START) {
        next.top.phase = PHASE_OPEN;
        next.depth++;
        if (byte == '[') add(s, &next);
        return;
    }
    if (is_space(byte)) {
        put_space(s, state);
        return;
    }
    if (byte == ']' && state->top.phase != PHASE_COMMA) {
        if (state->top.count >= n->least) end_container(s, state);
        return;
    }
    if (state->top.phase != PHASE_AFTER) {
        begin_item(s, state, byte);
        return;
    }
    const bool more = n->most == WALSH_GRAMMAR_ENDLESS || state->top.count < n->most;
    if (byte != ',' || !more || !fits(s, state, n->children[0])) return;
    next.top.phase = PHASE_COMMA;
    next.top.space = 0;
    add(s, &next);
}

/* ---- objects ---- */

/* A name may still become that of a property that may be added. */
static bool key_leads_on(const struct stepper *s, const struct walsh_grammar_state *state)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    if (n->additional != WALSH_GRAMMAR_ENDLESS && fits(s, state, n->additional)) return true;
    for (uint32_t i = state->top.first; i < state->top.last; i++)
        if (may_add(s, state, i)) return true;
    return false;
}

static void end_key(struct stepper *s, const struct walsh_grammar_state *state)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    struct walsh_grammar_frame *f = &next.top;
    const bool declared = f->first < f->last && n->texts[f->first].size == f->count;
    if (declared) {
        if (!may_add(s, state, f->first)) return;
        f->child = n->children[f->first];
        f->seen |= (uint64_t)1 << f->first;
    } else {
        if (n->additional == WALSH_GRAMMAR_ENDLESS || !fits(s, state, n->additional)) return;
        f->child = n->additional;
    }
    f->phase = PHASE_COLON;
    f->space = 0;
    f->first = f->last = f->count = 0;
    add(s, &next);
}

/* Where only declared names may come: whether one of them goes on with a character that has a short escape.
 */
static bool escape_leads_on(const struct stepper *s, const struct walsh_grammar_state *state)
{
    const struct walsh_grammar_frame *f = &state->top;
    const struct walsh_grammar_text *texts = s->g->nodes[f->node].texts;
    for (uint32_t i = f->first; i < f->last; i++)
        if (texts[i].size > f->count && memchr("\"\\/\b\f\n\r\t", texts[i].data[f->count], 8) &&
            may_add(s, state, i))
            return true;
    return false;
}

static void step_key(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    struct walsh_grammar_frame *f = &next.top;
    const bool open = n->additional != WALSH_GRAMMAR_ENDLESS && fits(s, state, n->additional);
    const struct lexed lexed = lex(&f->lexer, byte);
    if (!lexed.good) return;
    if (lexed.closed) {
        end_key(s, state);
        return;
    }
    for (unsigned i = 0; i < lexed.count; i++) {
        if (f->first < f->last) {
            narrow(n->texts, f->count, lexed.bytes[i], &f->first, &f->last);
            f->count = f->first < f->last ? f->count + 1 : 0;
        }
        if (f->first >= f->last) f->first = f->last = 0;
    }
    if (!open && f->lexer.state == LEX_ESCAPE && !escape_leads_on(s, &next)) return;
    if (!open && f->lexer.state > LEX_ESCAPE) return; /* \u: it could lead nowhere */
    if (key_leads_on(s, &next)) add(s, &next);
}

static void begin_key(struct stepper *s, const struct walsh_grammar_state *state)
{
    struct walsh_grammar_state next = *state;
    next.top.phase = PHASE_KEY;
    next.top.space = 0;
    next.top.first = next.top.count = 0;
    next.top.last = s->g->nodes[state->top.node].count;
    if (may_continue(s, state)) add(s, &next);
}

static void step_object(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    const struct walsh_grammar_node *n = &s->g->nodes[state->top.node];
    struct walsh_grammar_state next = *state;
    const uint8_t phase = state->top.phase;
    next.top.space = 0;
    if (phase == PHASE_START) {
        next.top.phase = PHASE_OPEN;
        next.depth++;
        if (byte == '{') add(s, &next);
    } else if (phase == PHASE_KEY) {
        step_key(s, state, byte);
    } else if (is_space(byte)) {
        put_space(s, state);
    } else if (phase == PHASE_COLON) {
        next.top.phase = PHASE_VALUE;
        if (byte == ':') add(s, &next);
    } else if (phase == PHASE_VALUE) {
        struct walsh_grammar_frame after = next.top;
        after.phase = PHASE_AFTER;
        after.child = 0;
        begin_value(s, state, &after, state->top.child, byte);
    } else if (byte == '}' && phase != PHASE_COMMA) {
        if ((n->required & ~state->top.seen) == 0) end_container(s, state);
    } else if (phase == PHASE_AFTER) {
        next.top.phase = PHASE_COMMA;
        if (byte == ',' && may_continue(s, state)) add(s, &next);
    } else if (byte == '"') {
        begin_key(s, state);
    }
}

/* ---- all ---- */

static void step(struct stepper *s, const struct walsh_grammar_state *state, uint8_t byte)
{
    switch (s->g->nodes[state->top.node].kind) {
    case GRAMMAR_STRING:
        step_string(s, state, byte);
        return;
    case GRAMMAR_NUMBER:
    case GRAMMAR_INTEGER:
        step_number(s, state, byte);
        return;
    case GRAMMAR_ARRAY:
        step_array(s, state, byte);
        return;
    case GRAMMAR_OBJECT:
        step_object(s, state, byte);
        return;
    case GRAMMAR_LITERALS:
        step_literal(s, state, byte);
        return;
    case GRAMMAR_ROOT:
    case GRAMMAR_UNION:
        break;
    }
    if (state->top.phase != PHASE_START) return; /* the document has ended */
    struct walsh_grammar_frame after = state->top;
    after.phase = PHASE_AFTER;
    begin_value(s, state, &after, s->g->root, byte);
}

void walsh_grammar_start(const struct walsh_grammar *g, struct walsh_grammar_states *states)
{
    (void)g;
    states->count = 1;
    memset(&states->items[0], 0, sizeof states->items[0]);
    states->items[0].top.node = GRAMMAR_NODE_ROOT;
}

void walsh_grammar_step(const struct walsh_grammar *g, struct walsh_grammar_levels *levels,
                        const struct walsh_grammar_states *from, uint8_t byte,
                        struct walsh_grammar_states *to, bool *good)
{
    struct stepper s = {.g = g, .levels = levels, .to = to, .good = true};
    to->count = 0;
    for (size_t i = 0; i < from->count; i++) step(&s, &from->items[i], byte);
    if (s.good) return;
    to->count = 0;
    *good = false;
}

bool walsh_grammar_is_complete(const struct walsh_grammar *g, const struct walsh_grammar_states *states)
{
    for (size_t i = 0; i < states->count; i++) {
        const struct walsh_grammar_frame *f = &states->items[i].top;
        const struct walsh_grammar_node *n = &g->nodes[f->node];
        if (n->kind == GRAMMAR_ROOT && f->phase == PHASE_AFTER) return true;
        const struct walsh_grammar_level *below = states->items[i].below;
        if (!below || below->below) continue; /* a number may be the document; it ends by its end */
        if ((n->kind == GRAMMAR_NUMBER || n->kind == GRAMMAR_INTEGER) && number_may_end(f->phase))
            return true;
        if (n->kind == GRAMMAR_LITERALS && f->position && n->texts[f->first].size == f->position) return true;
    }
    return false;
}

int64_t walsh_grammar_free_text(const struct walsh_grammar *g, const struct walsh_grammar_states *states)
{
    if (states->count != 1) return -1;
    const struct walsh_grammar_frame *f = &states->items[0].top;
    const struct walsh_grammar_node *n = &g->nodes[f->node];
    if (f->lexer.state != LEX_PLAIN) return -1;
    if (n->kind == GRAMMAR_OBJECT && f->phase == PHASE_KEY && f->first == f->last)
        return WALSH_GRAMMAR_ENDLESS;
    if (n->kind != GRAMMAR_STRING || f->phase != PHASE_TEXT) return -1;
    return n->most == WALSH_GRAMMAR_ENDLESS ? n->most : n->most - f->count;
}

struct walsh_grammar_frame walsh_grammar_essence(const struct walsh_grammar *g,
                                                 const struct walsh_grammar_frame *frame, uint32_t longest)
{
    const struct walsh_grammar_node *n = &g->nodes[frame->node];
    struct walsh_grammar_frame f = *frame;
    if (n->kind != GRAMMAR_STRING && n->kind != GRAMMAR_ARRAY) return f;
    const uint64_t reach = (uint64_t)f.count + longest;
    /* The least count is reached already, and the most is not within one token: the count does not matter. */
    if (f.count >= n->least && (n->most == WALSH_GRAMMAR_ENDLESS || reach < n->most)) f.count = n->least;
    if (reach < n->least) f.count = 0; /* nor where neither is within one token */
    return f;
}

/* text/template_internal: what the files of the template engine share. Nobody outside src/text/template_*.c
 * includes this. */
#ifndef WALSH_TEXT_TEMPLATE_INTERNAL_H
#define WALSH_TEXT_TEMPLATE_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "text/buffer.h"
#include "text/template.h"

/* Bytes of UTF-8, not NUL-terminated; what they belong to owns them. */
struct walsh_tpl_text {
    const char *data;
    size_t size;
};
bool walsh_tpl_text_is(struct walsh_tpl_text text, const char *other);

/* ---- template_lex.c: source -> tokens ---- */

enum walsh_tpl_token_type {
    TPL_END, /* of the source */
    TPL_DATA,
    TPL_BLOCK_BEGIN,
    TPL_BLOCK_END,
    TPL_VARIABLE_BEGIN,
    TPL_VARIABLE_END,
    TPL_NAME,
    TPL_STRING,
    TPL_INTEGER,
    TPL_FLOAT,
    TPL_OPERATOR
};
struct walsh_tpl_token {
    enum walsh_tpl_token_type type;
    uint32_t line;
    struct walsh_tpl_text text; /* DATA, NAME, STRING (its value), OPERATOR */
    int64_t integer;
    double real;
};
/* *tokens [*count], the last one TPL_END; in the arena, as all their texts. */
enum walsh_status walsh_tpl_lex(struct walsh_arena *arena, const char *source, size_t size,
                                struct walsh_tpl_token **tokens, size_t *count, struct walsh_error *err);

/* ---- template_parse.c: tokens -> a tree ---- */

enum walsh_tpl_kind {
    /* expressions */
    TPL_CONST_NONE,
    TPL_CONST_BOOL,  /* integer */
    TPL_CONST_INT,   /* integer */
    TPL_CONST_FLOAT, /* real */
    TPL_CONST_TEXT,  /* text */
    TPL_LOOKUP,      /* symbol */
    TPL_ATTRIBUTE,   /* a . text */
    TPL_ITEM,        /* a [b] */
    TPL_SLICE,       /* a [b : c : d], parts may be NULL */
    TPL_CALL,        /* a (list, keywords) */
    TPL_FILTER,      /* a | text (list, keywords) */
    TPL_TEST,        /* a is text (list, keywords) */
    TPL_LIST,        /* list */
    TPL_TUPLE,       /* list */
    TPL_DICT,        /* list: key, value, ... */
    TPL_NOT,
    TPL_NEGATIVE,
    TPL_POSITIVE,
    TPL_BINARY,  /* a op b */
    TPL_CONCAT,  /* list */
    TPL_COMPARE, /* a, then list with an op each */
    TPL_AND,
    TPL_OR,
    TPL_CHOICE, /* b if a else c; c may be NULL */
    /* statements */
    TPL_OUTPUT_TEXT, /* text */
    TPL_OUTPUT,      /* a */
    TPL_IF,          /* a, body, other */
    TPL_FOR,         /* target a in b, filter c (or NULL), body, other */
    TPL_SET,         /* target a = b */
    TPL_SET_BLOCK,   /* target a, body, filters in b (an expression on TPL_HOLE; NULL: none) */
    TPL_MACRO,       /* symbol, list: parameters (LOOKUP), keywords: defaults of the last ones, body, integer:
                        bit s where the body uses reserved symbol s */
    TPL_CALL_BLOCK,  /* a: the call; list, keywords as MACRO; body */
    TPL_FILTER_BLOCK, /* b: filters on TPL_HOLE; body */
    TPL_WITH,         /* list: target, value, ...; body */
    TPL_SCOPE,        /* body in a scope of its own (generation) */
    TPL_BREAK,
    TPL_CONTINUE,
    TPL_NAMESPACE_TARGET, /* symbol . text, as a target only */
    TPL_HOLE              /* the text of a block, as the argument of its filters */
};
enum walsh_tpl_operator {
    TPL_ADD,
    TPL_SUBTRACT,
    TPL_MULTIPLY,
    TPL_DIVIDE,
    TPL_FLOOR_DIVIDE,
    TPL_MODULO,
    TPL_POWER,
    TPL_EQUAL,
    TPL_UNEQUAL,
    TPL_LESS,
    TPL_LESS_EQUAL,
    TPL_GREATER,
    TPL_GREATER_EQUAL,
    TPL_IN,
    TPL_NOT_IN
};
struct walsh_tpl_keyword {
    struct walsh_tpl_text name;
    struct walsh_tpl_node *value;
};
struct walsh_tpl_node {
    enum walsh_tpl_kind kind;
    enum walsh_tpl_operator op;
    uint32_t line;
    uint32_t symbol;
    bool recursive; /* FOR */
    bool chained;   /* IF: `other` is that of an elif */
    struct walsh_tpl_text text;
    int64_t integer;
    double real;
    struct walsh_tpl_node *a, *b, *c, *d;
    struct walsh_tpl_node **list;
    size_t count;
    enum walsh_tpl_operator *ops; /* COMPARE [count] */
    struct walsh_tpl_keyword *keywords;
    size_t keyword_count;
    struct walsh_tpl_node *body, *other; /* lists of statements by `next` */
    struct walsh_tpl_node *next;
};

struct walsh_template {
    struct walsh_arena arena;
    char *name;
    struct walsh_tpl_node *body;
    struct walsh_tpl_text *symbols; /* [symbol_count] names of variables; the first are the reserved ones */
    size_t symbol_count;
};
enum { TPL_SYMBOL_LOOP, TPL_SYMBOL_CALLER, TPL_SYMBOL_VARARGS, TPL_SYMBOL_KWARGS, TPL_RESERVED_SYMBOLS };
enum walsh_status walsh_tpl_parse(struct walsh_template *t, const struct walsh_tpl_token *tokens,
                                  struct walsh_error *err);

/* ---- template_value.c: what expressions give ---- */

enum walsh_tpl_type {
    TPL_UNDEFINED, /* text: what was looked for */
    TPL_NONE,
    TPL_BOOL,
    TPL_INT,
    TPL_REAL,
    TPL_TEXT,
    TPL_ARRAY,     /* list: a Python list, or a tuple where `aux` says so */
    TPL_OBJECT,    /* dict */
    TPL_NAMESPACE, /* dict, changeable */
    TPL_ITERATOR,  /* list: what map, select and the like give; read once */
    TPL_VIEW,      /* list: keys, values or items of a dict */
    TPL_MACRO_VALUE,
    TPL_LOOP_VALUE,
    TPL_FUNCTION, /* aux: which */
    TPL_METHOD    /* aux: which, of *self */
};
struct walsh_tpl_value {
    uint8_t type; /* enum walsh_tpl_type */
    uint8_t aux;
    union {
        bool boolean;
        int64_t integer;
        double real;
        struct walsh_tpl_text text;
        struct walsh_tpl_list *list;
        struct walsh_tpl_dict *dict;
        struct walsh_tpl_macro *macro;
        struct walsh_tpl_loop *loop;
        const struct walsh_tpl_value *self;
    } u;
};
struct walsh_tpl_list {
    struct walsh_tpl_value *items;
    size_t count;
    size_t taken; /* of an iterator: those before are read */
};
struct walsh_tpl_pair {
    struct walsh_tpl_value key, value;
};
struct walsh_tpl_dict {
    struct walsh_tpl_pair *pairs;
    size_t count, capacity;
};
struct walsh_tpl_variable {
    uint32_t symbol;
    struct walsh_tpl_value value;
};
struct walsh_tpl_scope {
    struct walsh_tpl_scope *parent;
    struct walsh_tpl_variable *variables;
    size_t count, capacity;
};
struct walsh_tpl_macro {
    const struct walsh_tpl_node *node; /* MACRO or CALL_BLOCK */
    struct walsh_tpl_scope *scope;     /* where it was defined */
};
struct walsh_tpl_loop {
    const struct walsh_tpl_node *node;
    struct walsh_tpl_scope *scope; /* around the loop */
    struct walsh_tpl_value *items;
    size_t count, index, depth;
    struct walsh_tpl_value *changed; /* arguments of the last loop.changed(); NULL: none */
    size_t changed_count;
};
struct walsh_tpl_arguments {
    struct walsh_tpl_value *values;
    size_t count;
    struct walsh_tpl_pair *keywords; /* keys are texts */
    size_t keyword_count;
};

/* One rendering. */
struct walsh_tpl_run {
    const struct walsh_template *template;
    const struct walsh_template_limits *limits;
    struct walsh_arena arena;
    uint8_t *room; /* of the arena's last block, [room_size] free bytes */
    size_t room_size, memory;
    struct walsh_buffer out; /* the text; above a mark, one that is being made */
    uint64_t steps;
    unsigned depth;
    uint32_t line;
    int64_t now;
    struct walsh_tpl_value hole;
    struct walsh_error *err;
};
/* All calls below write their error into run->err. */
#define TPL_FAIL(run, ...) walsh_fail((run)->err, WALSH_E_FORMAT, __VA_ARGS__)

enum walsh_status walsh_tpl_spend(struct walsh_tpl_run *run, uint64_t steps);
/* Zeroed; lives as long as the run. */
enum walsh_status walsh_tpl_alloc(struct walsh_tpl_run *run, size_t count, size_t size, void *out_pointer);
enum walsh_status walsh_tpl_put(struct walsh_tpl_run *run, const void *data, size_t size);
enum walsh_status walsh_tpl_puts(struct walsh_tpl_run *run, const char *text);
/* What was put since `mark` (a former out.size) as a text; it is taken off the output. */
enum walsh_status walsh_tpl_take(struct walsh_tpl_run *run, size_t mark, struct walsh_tpl_value *out);

static inline struct walsh_tpl_value walsh_tpl_none(void)
{
    return (struct walsh_tpl_value){.type = TPL_NONE};
}
static inline struct walsh_tpl_value walsh_tpl_bool(bool b)
{
    return (struct walsh_tpl_value){.type = TPL_BOOL, .u.boolean = b};
}
static inline struct walsh_tpl_value walsh_tpl_int(int64_t i)
{
    return (struct walsh_tpl_value){.type = TPL_INT, .u.integer = i};
}
static inline struct walsh_tpl_value walsh_tpl_real(double f)
{
    return (struct walsh_tpl_value){.type = TPL_REAL, .u.real = f};
}
/* `data` outlives the run or lies in it. */
static inline struct walsh_tpl_value walsh_tpl_string(const char *data, size_t size)
{
    return (struct walsh_tpl_value){.type = TPL_TEXT, .u.text = {data, size}};
}
static inline struct walsh_tpl_value walsh_tpl_undefined(struct walsh_tpl_text name)
{
    return (struct walsh_tpl_value){.type = TPL_UNDEFINED, .u.text = name};
}
/* A list (or, `type` being another one that has a list, that) of room for `count` items. */
enum walsh_status walsh_tpl_new_list(struct walsh_tpl_run *run, enum walsh_tpl_type type, size_t count,
                                     struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_new_dict(struct walsh_tpl_run *run, enum walsh_tpl_type type, size_t capacity,
                                     struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_dict_set(struct walsh_tpl_run *run, struct walsh_tpl_dict *dict,
                                     struct walsh_tpl_value key, struct walsh_tpl_value value);
struct walsh_tpl_value *walsh_tpl_dict_get(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                           const struct walsh_tpl_value *key); /* NULL: absent */
struct walsh_tpl_value *walsh_tpl_dict_text(struct walsh_tpl_run *run, const struct walsh_tpl_dict *dict,
                                            struct walsh_tpl_text key);

enum walsh_status walsh_tpl_from_json(struct walsh_tpl_run *run, const json_t *json, unsigned depth,
                                      struct walsh_tpl_value *out);
bool walsh_tpl_truth(const struct walsh_tpl_value *v);
/* Takes steps; where they are spent, or values are nested too deeply to compare, it is false, and whatever
 * spends steps next fails. */
bool walsh_tpl_equal(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                     const struct walsh_tpl_value *b);
/* *order: < 0, 0, > 0, or 2 where one is NaN. Python's TypeError where they have none. */
enum walsh_status walsh_tpl_order(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                                  const struct walsh_tpl_value *b, int *order);
bool walsh_tpl_number(const struct walsh_tpl_value *v, double *out); /* int, float or bool */
const char *walsh_tpl_type_name(const struct walsh_tpl_value *v);    /* as Python calls it */
/* The items that a loop over it sees, as *items [*count]. An iterator is read by it. */
enum walsh_status walsh_tpl_items(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                  struct walsh_tpl_value **items, size_t *count);
enum walsh_status walsh_tpl_length(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, size_t *out);
enum walsh_status walsh_tpl_contains(struct walsh_tpl_run *run, const struct walsh_tpl_value *container,
                                     const struct walsh_tpl_value *item, bool *out);

/* ---- template_print.c: Python's str, repr and json.dumps, put to the output ---- */

enum walsh_status walsh_tpl_print(struct walsh_tpl_run *run, const struct walsh_tpl_value *v);
enum walsh_status walsh_tpl_repr(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, unsigned depth);
enum walsh_status walsh_tpl_print_real(struct walsh_tpl_run *run, double value);
struct walsh_tpl_json_style {
    bool ascii, sort_keys;
    const struct walsh_tpl_text *indent; /* NULL: on one line */
    struct walsh_tpl_text comma, colon;
};
enum walsh_status walsh_tpl_json(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                 const struct walsh_tpl_json_style *style, unsigned depth);
/* str(v): a text. */
enum walsh_status walsh_tpl_to_text(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                    struct walsh_tpl_value *out);

/* ---- template_text.c: Python's methods of str, and characters ---- */

size_t walsh_tpl_characters(struct walsh_tpl_text text);
bool walsh_tpl_is_space(uint32_t code_point);
/* text[start:stop:step] by characters, ends resolved: step != 0. */
enum walsh_status walsh_tpl_slice_text(struct walsh_tpl_run *run, struct walsh_tpl_text text, int64_t start,
                                       int64_t count, int64_t step, struct walsh_tpl_value *out);
bool walsh_tpl_text_contains(struct walsh_tpl_text text, struct walsh_tpl_text part);
/* Strip characters of `set` (NULL: white space) from the left and the right end. */
struct walsh_tpl_text walsh_tpl_strip(struct walsh_tpl_text text, const struct walsh_tpl_text *set, bool left,
                                      bool right);
enum walsh_tpl_case { TPL_UPPER, TPL_LOWER, TPL_TITLE, TPL_CAPITALIZE, TPL_SWAPCASE };
enum walsh_status walsh_tpl_change_case(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                        enum walsh_tpl_case how, struct walsh_tpl_value *out);
/* Every occurrence, or the first `limit` ones (< 0: all). */
enum walsh_status walsh_tpl_replace(struct walsh_tpl_run *run, struct walsh_tpl_text text,
                                    struct walsh_tpl_text from, struct walsh_tpl_text to, int64_t limit,
                                    struct walsh_tpl_value *out);
bool walsh_tpl_text_is_lower(struct walsh_tpl_text text, bool upper);
/* The method of str called `name`, or -1; and its call. */
int walsh_tpl_text_method(struct walsh_tpl_text name);
enum walsh_status walsh_tpl_call_text_method(struct walsh_tpl_run *run, int method,
                                             struct walsh_tpl_text self,
                                             const struct walsh_tpl_arguments *arguments,
                                             struct walsh_tpl_value *out);
/* "%s ..." % values */
enum walsh_status walsh_tpl_format(struct walsh_tpl_run *run, struct walsh_tpl_text format,
                                   const struct walsh_tpl_value *values, size_t count,
                                   struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_strftime(struct walsh_tpl_run *run, struct walsh_tpl_text format,
                                     struct walsh_tpl_value *out);

/* ---- template_filters.c, template_tests.c ---- */

/* Argument i, or the keyword `name`; NULL: not given. */
const struct walsh_tpl_value *walsh_tpl_argument(const struct walsh_tpl_arguments *arguments, size_t i,
                                                 const char *name);
enum walsh_status walsh_tpl_filter(struct walsh_tpl_run *run, struct walsh_tpl_text name,
                                   const struct walsh_tpl_value *value,
                                   const struct walsh_tpl_arguments *arguments, struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_test(struct walsh_tpl_run *run, struct walsh_tpl_text name,
                                 const struct walsh_tpl_value *value,
                                 const struct walsh_tpl_arguments *arguments, bool *out);

/* ---- template_access.c: attributes, items, methods of containers ---- */

enum walsh_status walsh_tpl_attribute(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                      struct walsh_tpl_text name, struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_item(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                 const struct walsh_tpl_value *key, struct walsh_tpl_value *out);
/* start, stop, step: NULL or none where left out. */
enum walsh_status walsh_tpl_slice(struct walsh_tpl_run *run, const struct walsh_tpl_value *v,
                                  const struct walsh_tpl_value *start, const struct walsh_tpl_value *stop,
                                  const struct walsh_tpl_value *step, struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_call_method(struct walsh_tpl_run *run, const struct walsh_tpl_value *method,
                                        const struct walsh_tpl_arguments *arguments,
                                        struct walsh_tpl_value *out);
/* The global function called `name`; false: none. */
bool walsh_tpl_find_function(struct walsh_tpl_text name, struct walsh_tpl_value *out);
enum walsh_status walsh_tpl_call_function(struct walsh_tpl_run *run, unsigned function,
                                          const struct walsh_tpl_arguments *arguments,
                                          struct walsh_tpl_value *out);

/* ---- template_arithmetic.c ---- */

enum walsh_status walsh_tpl_binary(struct walsh_tpl_run *run, enum walsh_tpl_operator op,
                                   const struct walsh_tpl_value *a, const struct walsh_tpl_value *b,
                                   struct walsh_tpl_value *out);

#endif

/* text/template_parser: what expressions and statements of the parser share. Private to text/. */
#ifndef WALSH_TEXT_TEMPLATE_PARSER_H
#define WALSH_TEXT_TEMPLATE_PARSER_H

#include <string.h>

#include "text/template_internal.h"

#define WALSH_TPL_MAX_NESTING 200 /* of expressions and blocks within each other */

struct walsh_tpl_parser {
    struct walsh_template *t;
    const struct walsh_tpl_token *token; /* the current one */
    size_t symbol_capacity;
    unsigned nesting, loops;
    unsigned reserved; /* bit s: reserved symbol s was used in the current macro */
    struct walsh_error *err;
};
typedef struct walsh_tpl_node node;

/* ---- tokens ---- */

static inline enum walsh_status wrong(const struct walsh_tpl_parser *p, const char *expected)
{
    const struct walsh_tpl_token *t = p->token;
    if (t->type == TPL_END)
        return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: the template ends, expected %s", t->line,
                          expected);
    return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: found \"%.*s\", expected %s", t->line,
                      (int)walsh_min(t->text.size, 40), t->text.data, expected);
}

static inline bool at_operator(const struct walsh_tpl_parser *p, const char *text)
{
    return p->token->type == TPL_OPERATOR && walsh_tpl_text_is(p->token->text, text);
}

static inline bool at_name(const struct walsh_tpl_parser *p, const char *text)
{
    return p->token->type == TPL_NAME && walsh_tpl_text_is(p->token->text, text);
}

static inline bool skip_operator(struct walsh_tpl_parser *p, const char *text)
{
    const bool there = at_operator(p, text);
    p->token += there;
    return there;
}

static inline bool skip_name(struct walsh_tpl_parser *p, const char *text)
{
    const bool there = at_name(p, text);
    p->token += there;
    return there;
}

static inline enum walsh_status expect_operator(struct walsh_tpl_parser *p, const char *text)
{
    char what[16] = "\"";
    if (skip_operator(p, text)) return WALSH_OK;
    strcat(what, text);
    strcat(what, "\"");
    return wrong(p, what);
}

static inline enum walsh_status expect_name(struct walsh_tpl_parser *p, struct walsh_tpl_text *name)
{
    if (p->token->type != TPL_NAME) return wrong(p, "a name");
    *name = p->token++->text;
    return WALSH_OK;
}

static inline enum walsh_status expect_block_end(struct walsh_tpl_parser *p)
{
    if (p->token->type != TPL_BLOCK_END) return wrong(p, "the end of the tag");
    p->token++;
    return WALSH_OK;
}

/* ---- memory ---- */

static inline enum walsh_status new_node(struct walsh_tpl_parser *p, enum walsh_tpl_kind kind, node **out)
{
    WALSH_TRY(walsh_arena_alloc(&p->t->arena, 1, sizeof **out, "a chat template", out, p->err));
    (*out)->kind = kind;
    (*out)->line = p->token->line;
    return WALSH_OK;
}

/* A list of nodes that grows by doubling. */
static inline enum walsh_status append(struct walsh_tpl_parser *p, node *list, node *item)
{
    if ((list->count & (list->count - 1)) == 0) { /* 0 or a power of 2: full */
        node **more;
        const size_t capacity = list->count ? 2 * list->count : 1;
        WALSH_TRY(walsh_arena_alloc(&p->t->arena, capacity, sizeof *more, "a chat template", &more, p->err));
        if (list->count) memcpy((void *)more, (void *)list->list, list->count * sizeof *more);
        list->list = more;
    }
    list->list[list->count++] = item;
    return WALSH_OK;
}

static inline enum walsh_status append_keyword(struct walsh_tpl_parser *p, node *list,
                                               struct walsh_tpl_text name, node *value)
{
    const size_t n = list->keyword_count;
    if ((n & (n - 1)) == 0) {
        struct walsh_tpl_keyword *more;
        WALSH_TRY(
            walsh_arena_alloc(&p->t->arena, n ? 2 * n : 1, sizeof *more, "a chat template", &more, p->err));
        if (n) memcpy(more, list->keywords, n * sizeof *more);
        list->keywords = more;
    }
    list->keywords[list->keyword_count++] = (struct walsh_tpl_keyword){name, value};
    return WALSH_OK;
}

static inline enum walsh_status symbol_of(struct walsh_tpl_parser *p, struct walsh_tpl_text name,
                                          uint32_t *symbol)
{
    struct walsh_template *t = p->t;
    for (size_t i = 0; i < t->symbol_count; i++) {
        if (t->symbols[i].size != name.size || memcmp(t->symbols[i].data, name.data, name.size) != 0)
            continue;
        *symbol = (uint32_t)i;
        return WALSH_OK;
    }
    if (t->symbol_count == p->symbol_capacity) {
        const size_t capacity = p->symbol_capacity ? 2 * p->symbol_capacity : 64;
        struct walsh_tpl_text *more;
        WALSH_TRY(walsh_arena_alloc(&t->arena, capacity, sizeof *more, "a chat template", &more, p->err));
        if (t->symbol_count) memcpy(more, t->symbols, t->symbol_count * sizeof *more);
        t->symbols = more;
        p->symbol_capacity = capacity;
    }
    t->symbols[t->symbol_count] = name;
    *symbol = (uint32_t)t->symbol_count++;
    return WALSH_OK;
}

static inline enum walsh_status enter(struct walsh_tpl_parser *p)
{
    if (++p->nesting > WALSH_TPL_MAX_NESTING)
        return walsh_fail(p->err, WALSH_E_CAPACITY, "line %u: nested deeper than %d", p->token->line,
                          WALSH_TPL_MAX_NESTING);
    return WALSH_OK;
}

/* ---- expressions (template_expression.c) ---- */

typedef enum walsh_status walsh_tpl_part(struct walsh_tpl_parser *p, node **out);

enum walsh_status walsh_tpl_parse_expression(struct walsh_tpl_parser *p, node **out);
/* without the conditional: what stands behind `in` of a loop */
enum walsh_status walsh_tpl_parse_or(struct walsh_tpl_parser *p, node **out);
enum walsh_status walsh_tpl_parse_name(struct walsh_tpl_parser *p, node **out);
/* One expression, or a tuple of several with commas between. `end`: a name that ends it too. `parentheses`:
 * it may be empty. */
enum walsh_status walsh_tpl_parse_tuple(struct walsh_tpl_parser *p, walsh_tpl_part *part, const char *end,
                                        bool parentheses, node **out);
/* Behind "|", or "filter" of a block: the filter of `of`. */
enum walsh_status walsh_tpl_parse_filter(struct walsh_tpl_parser *p, node *of, node **out);

#endif

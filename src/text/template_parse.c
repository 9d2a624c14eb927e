/* Tokens of a template to a tree, by recursive descent over Jinja's grammar. */
#include <string.h>

#include "text/template_internal.h"

#define MAX_NESTING 200 /* of expressions and blocks within each other */

struct parser {
    struct walsh_template *t;
    const struct walsh_tpl_token *token; /* the current one */
    size_t symbol_capacity;
    unsigned nesting, loops;
    unsigned reserved; /* bit s: reserved symbol s was used in the current macro */
    struct walsh_error *err;
};
typedef struct walsh_tpl_node node;

/* ---- tokens ---- */

static enum walsh_status wrong(const struct parser *p, const char *expected)
{
    const struct walsh_tpl_token *t = p->token;
    if (t->type == TPL_END)
        return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: the template ends, expected %s", t->line,
                          expected);
    return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: found \"%.*s\", expected %s", t->line,
                      (int)walsh_min(t->text.size, 40), t->text.data, expected);
}

static bool at_operator(const struct parser *p, const char *text)
{
    return p->token->type == TPL_OPERATOR && walsh_tpl_text_is(p->token->text, text);
}

static bool at_name(const struct parser *p, const char *text)
{
    return p->token->type == TPL_NAME && walsh_tpl_text_is(p->token->text, text);
}

static bool skip_operator(struct parser *p, const char *text)
{
    const bool there = at_operator(p, text);
    p->token += there;
    return there;
}

static bool skip_name(struct parser *p, const char *text)
{
    const bool there = at_name(p, text);
    p->token += there;
    return there;
}

static enum walsh_status expect_operator(struct parser *p, const char *text)
{
    char what[16] = "\"";
    if (skip_operator(p, text)) return WALSH_OK;
    strcat(what, text);
    strcat(what, "\"");
    return wrong(p, what);
}

static enum walsh_status expect_name(struct parser *p, struct walsh_tpl_text *name)
{
    if (p->token->type != TPL_NAME) return wrong(p, "a name");
    *name = p->token++->text;
    return WALSH_OK;
}

static enum walsh_status expect_block_end(struct parser *p)
{
    if (p->token->type != TPL_BLOCK_END) return wrong(p, "the end of the tag");
    p->token++;
    return WALSH_OK;
}

/* ---- memory ---- */

static enum walsh_status new_node(struct parser *p, enum walsh_tpl_kind kind, node **out)
{
    WALSH_TRY(walsh_arena_alloc(&p->t->arena, 1, sizeof **out, "a chat template", out, p->err));
    (*out)->kind = kind;
    (*out)->line = p->token->line;
    return WALSH_OK;
}

/* A list of nodes that grows by doubling. */
static enum walsh_status append(struct parser *p, node *list, node *item)
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

static enum walsh_status append_keyword(struct parser *p, node *list, struct walsh_tpl_text name, node *value)
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

static enum walsh_status symbol_of(struct parser *p, struct walsh_tpl_text name, uint32_t *symbol)
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

static enum walsh_status enter(struct parser *p)
{
    if (++p->nesting > MAX_NESTING)
        return walsh_fail(p->err, WALSH_E_CAPACITY, "line %u: nested deeper than %d", p->token->line,
                          MAX_NESTING);
    return WALSH_OK;
}

/* ---- expressions ---- */

static enum walsh_status parse_expression(struct parser *p, node **out);
static enum walsh_status parse_or(struct parser *p, node **out);
static enum walsh_status parse_unary(struct parser *p, bool filters, node **out);

static enum walsh_status binary(struct parser *p, enum walsh_tpl_kind kind, enum walsh_tpl_operator op,
                                node *a, node *b, node **out)
{
    const uint32_t line = a->line;
    WALSH_TRY(new_node(p, kind, out));
    (*out)->line = line;
    (*out)->op = op;
    (*out)->a = a;
    (*out)->b = b;
    return WALSH_OK;
}

/* Items up to a closing bracket, which is taken; a comma may stand before it. */
static enum walsh_status parse_items(struct parser *p, const char *close, bool pairs, node *list)
{
    while (!at_operator(p, close)) {
        if (list->count) WALSH_TRY(expect_operator(p, ","));
        if (at_operator(p, close)) break;
        node *item;
        WALSH_TRY(parse_expression(p, &item));
        WALSH_TRY(append(p, list, item));
        if (!pairs) continue;
        WALSH_TRY(expect_operator(p, ":"));
        WALSH_TRY(parse_expression(p, &item));
        WALSH_TRY(append(p, list, item));
    }
    return expect_operator(p, close);
}

static bool at_tuple_end(const struct parser *p, const char *end)
{
    return p->token->type == TPL_VARIABLE_END || p->token->type == TPL_BLOCK_END || at_operator(p, ")") ||
           (end && at_name(p, end));
}

typedef enum walsh_status parse_part(struct parser *p, node **out);

/* One expression, or a tuple of several with commas between. `end`: a name that ends it too. `parentheses`:
 * it may be empty. */
static enum walsh_status parse_tuple(struct parser *p, parse_part *part, const char *end, bool parentheses,
                                     node **out)
{
    node *tuple, *item;
    bool comma = false;
    WALSH_TRY(new_node(p, TPL_TUPLE, &tuple));
    while (!at_tuple_end(p, end)) {
        WALSH_TRY(part(p, &item));
        WALSH_TRY(append(p, tuple, item));
        if (!skip_operator(p, ",")) break;
        comma = true;
    }
    *out = comma || tuple->count == 0 ? tuple : tuple->list[0];
    return comma || tuple->count || parentheses ? WALSH_OK : wrong(p, "an expression");
}

static enum walsh_status parse_name(struct parser *p, node **out)
{
    const struct walsh_tpl_text name = p->token->text;
    WALSH_TRY(new_node(p, TPL_LOOKUP, out));
    p->token++;
    const bool yes = walsh_tpl_text_is(name, "true") || walsh_tpl_text_is(name, "True");
    if (yes || walsh_tpl_text_is(name, "false") || walsh_tpl_text_is(name, "False")) {
        (*out)->kind = TPL_CONST_BOOL;
        (*out)->integer = yes;
        return WALSH_OK;
    }
    if (walsh_tpl_text_is(name, "none") || walsh_tpl_text_is(name, "None")) {
        (*out)->kind = TPL_CONST_NONE;
        return WALSH_OK;
    }
    (*out)->text = name;
    WALSH_TRY(symbol_of(p, name, &(*out)->symbol));
    if ((*out)->symbol < TPL_RESERVED_SYMBOLS) p->reserved |= 1u << (*out)->symbol;
    return WALSH_OK;
}

/* Literals side by side are one text. */
static enum walsh_status parse_strings(struct parser *p, node **out)
{
    size_t size = 0;
    WALSH_TRY(new_node(p, TPL_CONST_TEXT, out));
    const struct walsh_tpl_token *first = p->token;
    for (; p->token->type == TPL_STRING; p->token++) size += p->token->text.size;
    (*out)->text = first->text;
    if (p->token == first + 1) return WALSH_OK;
    char *joined;
    WALSH_TRY(walsh_arena_alloc(&p->t->arena, size + 1, 1, "a chat template", &joined, p->err));
    (*out)->text = (struct walsh_tpl_text){joined, size};
    for (; first < p->token; joined += first++->text.size) memcpy(joined, first->text.data, first->text.size);
    return WALSH_OK;
}

static enum walsh_status parse_primary(struct parser *p, node **out)
{
    switch (p->token->type) {
    case TPL_NAME:
        return parse_name(p, out);
    case TPL_STRING:
        return parse_strings(p, out);
    case TPL_INTEGER:
    case TPL_FLOAT:
        WALSH_TRY(new_node(p, p->token->type == TPL_INTEGER ? TPL_CONST_INT : TPL_CONST_FLOAT, out));
        (*out)->integer = p->token->integer;
        (*out)->real = p->token->real;
        p->token++;
        return WALSH_OK;
    default:
        break;
    }
    if (skip_operator(p, "(")) {
        WALSH_TRY(parse_tuple(p, parse_expression, NULL, true, out));
        return expect_operator(p, ")");
    }
    const bool list = skip_operator(p, "[");
    if (!list && !skip_operator(p, "{")) return wrong(p, "an expression");
    WALSH_TRY(new_node(p, list ? TPL_LIST : TPL_DICT, out));
    return parse_items(p, list ? "]" : "}", !list, *out);
}

/* Behind "(": the arguments of a call. */
static enum walsh_status parse_arguments(struct parser *p, node *call)
{
    bool first = true;
    while (!at_operator(p, ")")) {
        if (!first) WALSH_TRY(expect_operator(p, ","));
        if (at_operator(p, ")")) break;
        first = false;
        node *value;
        if (at_operator(p, "*") || at_operator(p, "**"))
            return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: * and ** in a call are not supported",
                              p->token->line);
        const bool keyword = p->token->type == TPL_NAME && p->token[1].type == TPL_OPERATOR &&
                             walsh_tpl_text_is(p->token[1].text, "=");
        const struct walsh_tpl_text name = p->token->text;
        p->token += keyword ? 2 : 0;
        if (!keyword && call->keyword_count) return wrong(p, "an argument with a name");
        WALSH_TRY(parse_expression(p, &value));
        WALSH_TRY(keyword ? append_keyword(p, call, name, value) : append(p, call, value));
    }
    return expect_operator(p, ")");
}

static enum walsh_status parse_call(struct parser *p, node *callee, node **out)
{
    WALSH_TRY(new_node(p, TPL_CALL, out));
    p->token++;
    (*out)->a = callee;
    return parse_arguments(p, *out);
}

/* Behind "[": an index or a slice, and the closing bracket. */
static enum walsh_status parse_bracket(struct parser *p, node *of, node **out)
{
    node *parts[3] = {0};
    size_t n = 0;
    WALSH_TRY(new_node(p, TPL_ITEM, out));
    (*out)->a = of;
    for (;; n++) {
        if (!at_operator(p, ":") && !at_operator(p, "]")) WALSH_TRY(parse_expression(p, &parts[n]));
        if (n == 2 || !skip_operator(p, ":")) break;
    }
    if (n == 0 && !parts[0]) return wrong(p, "an index");
    (*out)->b = parts[0];
    (*out)->c = parts[1];
    (*out)->d = parts[2];
    if (n > 0) (*out)->kind = TPL_SLICE;
    return expect_operator(p, "]");
}

static enum walsh_status parse_dot(struct parser *p, node *of, node **out)
{
    WALSH_TRY(new_node(p, TPL_ATTRIBUTE, out));
    (*out)->a = of;
    if (p->token->type == TPL_INTEGER) {
        (*out)->kind = TPL_ITEM;
        return parse_primary(p, &(*out)->b);
    }
    return expect_name(p, &(*out)->text);
}

static enum walsh_status parse_postfix(struct parser *p, node **out)
{
    for (;;) {
        if (skip_operator(p, "."))
            WALSH_TRY(parse_dot(p, *out, out));
        else if (skip_operator(p, "["))
            WALSH_TRY(parse_bracket(p, *out, out));
        else if (at_operator(p, "("))
            WALSH_TRY(parse_call(p, *out, out));
        else
            return WALSH_OK;
    }
}

static enum walsh_status parse_filter(struct parser *p, node *of, node **out)
{
    WALSH_TRY(new_node(p, TPL_FILTER, out));
    (*out)->a = of;
    WALSH_TRY(expect_name(p, &(*out)->text));
    return skip_operator(p, "(") ? parse_arguments(p, *out) : WALSH_OK;
}

/* Behind "is". An argument may stand without brackets. */
static enum walsh_status parse_test(struct parser *p, node *of, node **out)
{
    node *test, *argument;
    const bool negated = skip_name(p, "not");
    WALSH_TRY(new_node(p, TPL_TEST, &test));
    test->a = of;
    WALSH_TRY(expect_name(p, &test->text));
    const enum walsh_tpl_token_type next = p->token->type;
    if (skip_operator(p, "(")) {
        WALSH_TRY(parse_arguments(p, test));
    } else if ((next == TPL_NAME || next == TPL_STRING || next == TPL_INTEGER || next == TPL_FLOAT ||
                at_operator(p, "[") || at_operator(p, "{")) &&
               !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and")) {
        if (at_name(p, "is")) return wrong(p, "no second test");
        WALSH_TRY(parse_primary(p, &argument));
        WALSH_TRY(parse_postfix(p, &argument));
        WALSH_TRY(append(p, test, argument));
    }
    *out = test;
    if (!negated) return WALSH_OK;
    WALSH_TRY(new_node(p, TPL_NOT, out));
    (*out)->a = test;
    return WALSH_OK;
}

static enum walsh_status parse_unary(struct parser *p, bool filters, node **out)
{
    WALSH_TRY(enter(p));
    if (at_operator(p, "-") || at_operator(p, "+")) {
        node *sign;
        WALSH_TRY(new_node(p, at_operator(p, "-") ? TPL_NEGATIVE : TPL_POSITIVE, &sign));
        p->token++;
        WALSH_TRY(parse_unary(p, false, &sign->a));
        *out = sign;
    } else {
        WALSH_TRY(parse_primary(p, out));
    }
    WALSH_TRY(parse_postfix(p, out));
    while (filters) {
        if (skip_operator(p, "|"))
            WALSH_TRY(parse_filter(p, *out, out));
        else if (skip_name(p, "is"))
            WALSH_TRY(parse_test(p, *out, out));
        else if (at_operator(p, "("))
            WALSH_TRY(parse_call(p, *out, out));
        else
            break;
    }
    p->nesting--;
    return WALSH_OK;
}

struct operator_name {
    const char *text;
    enum walsh_tpl_operator op;
};

static bool take_operator(struct parser *p, const struct operator_name *names, size_t count,
                          enum walsh_tpl_operator *op)
{
    for (size_t i = 0; i < count; i++) {
        if (!skip_operator(p, names[i].text)) continue;
        *op = names[i].op;
        return true;
    }
    return false;
}

static enum walsh_status parse_power(struct parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_unary(p, true, out));
    while (skip_operator(p, "**")) {
        WALSH_TRY(parse_unary(p, true, &right));
        WALSH_TRY(binary(p, TPL_BINARY, TPL_POWER, *out, right, out));
    }
    return WALSH_OK;
}

static enum walsh_status parse_product(struct parser *p, node **out)
{
    static const struct operator_name names[] = {
        {"*", TPL_MULTIPLY}, {"/", TPL_DIVIDE}, {"//", TPL_FLOOR_DIVIDE}, {"%", TPL_MODULO}};
    enum walsh_tpl_operator op;
    node *right;
    WALSH_TRY(parse_power(p, out));
    while (take_operator(p, names, 4, &op)) {
        WALSH_TRY(parse_power(p, &right));
        WALSH_TRY(binary(p, TPL_BINARY, op, *out, right, out));
    }
    return WALSH_OK;
}

static enum walsh_status parse_concat(struct parser *p, node **out)
{
    node *first, *next;
    WALSH_TRY(parse_product(p, &first));
    *out = first;
    if (!at_operator(p, "~")) return WALSH_OK;
    WALSH_TRY(new_node(p, TPL_CONCAT, out));
    WALSH_TRY(append(p, *out, first));
    while (skip_operator(p, "~")) {
        WALSH_TRY(parse_product(p, &next));
        WALSH_TRY(append(p, *out, next));
    }
    return WALSH_OK;
}

static enum walsh_status parse_sum(struct parser *p, node **out)
{
    static const struct operator_name names[] = {{"+", TPL_ADD}, {"-", TPL_SUBTRACT}};
    enum walsh_tpl_operator op;
    node *right;
    WALSH_TRY(parse_concat(p, out));
    while (take_operator(p, names, 2, &op)) {
        WALSH_TRY(parse_concat(p, &right));
        WALSH_TRY(binary(p, TPL_BINARY, op, *out, right, out));
    }
    return WALSH_OK;
}

static bool take_comparison(struct parser *p, enum walsh_tpl_operator *op)
{
    static const struct operator_name names[] = {{"==", TPL_EQUAL},      {"!=", TPL_UNEQUAL},
                                                 {"<=", TPL_LESS_EQUAL}, {">=", TPL_GREATER_EQUAL},
                                                 {"<", TPL_LESS},        {">", TPL_GREATER}};
    if (take_operator(p, names, 6, op)) return true;
    *op = TPL_IN;
    if (skip_name(p, "in")) return true;
    *op = TPL_NOT_IN;
    if (!at_name(p, "not") || p->token[1].type != TPL_NAME || !walsh_tpl_text_is(p->token[1].text, "in"))
        return false;
    p->token += 2;
    return true;
}

static enum walsh_status parse_comparison(struct parser *p, node **out)
{
    enum walsh_tpl_operator op, ops[16];
    node *compare = NULL, *first, *next;
    WALSH_TRY(parse_sum(p, &first));
    *out = first;
    while (take_comparison(p, &op)) {
        if (!compare) WALSH_TRY(new_node(p, TPL_COMPARE, &compare));
        if (compare->count == sizeof ops / sizeof *ops) return wrong(p, "a shorter chain of comparisons");
        ops[compare->count] = op;
        WALSH_TRY(parse_sum(p, &next));
        WALSH_TRY(append(p, compare, next));
    }
    if (!compare) return WALSH_OK;
    compare->a = first;
    compare->line = first->line;
    WALSH_TRY(walsh_arena_alloc(&p->t->arena, compare->count, sizeof *compare->ops, "a chat template",
                                &compare->ops, p->err));
    memcpy(compare->ops, ops, compare->count * sizeof *ops);
    *out = compare;
    return WALSH_OK;
}

static enum walsh_status parse_not(struct parser *p, node **out)
{
    if (!at_name(p, "not")) return parse_comparison(p, out);
    node *negation;
    WALSH_TRY(enter(p));
    WALSH_TRY(new_node(p, TPL_NOT, &negation));
    p->token++;
    WALSH_TRY(parse_not(p, &negation->a));
    *out = negation;
    p->nesting--;
    return WALSH_OK;
}

static enum walsh_status parse_and(struct parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_not(p, out));
    while (skip_name(p, "and")) {
        WALSH_TRY(parse_not(p, &right));
        WALSH_TRY(binary(p, TPL_AND, TPL_ADD, *out, right, out));
    }
    return WALSH_OK;
}

static enum walsh_status parse_or(struct parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_and(p, out));
    while (skip_name(p, "or")) {
        WALSH_TRY(parse_and(p, &right));
        WALSH_TRY(binary(p, TPL_OR, TPL_ADD, *out, right, out));
    }
    return WALSH_OK;
}

static enum walsh_status parse_expression(struct parser *p, node **out)
{
    WALSH_TRY(enter(p));
    WALSH_TRY(parse_or(p, out));
    while (skip_name(p, "if")) {
        node *condition;
        WALSH_TRY(parse_or(p, &condition));
        WALSH_TRY(binary(p, TPL_CHOICE, TPL_ADD, condition, *out, out));
        if (skip_name(p, "else")) WALSH_TRY(parse_expression(p, &(*out)->c));
    }
    p->nesting--;
    return WALSH_OK;
}

/* ---- statements ---- */

static enum walsh_status parse_body(struct parser *p, const char *const *ends, node **out);

/* A name, or `name.attribute` of a namespace. */
static enum walsh_status parse_target_part(struct parser *p, node **out)
{
    if (p->token->type != TPL_NAME) return wrong(p, "a name to assign to");
    WALSH_TRY(parse_name(p, out));
    if ((*out)->kind != TPL_LOOKUP) return wrong(p, "a name to assign to");
    if (!skip_operator(p, ".")) return WALSH_OK;
    (*out)->kind = TPL_NAMESPACE_TARGET;
    return expect_name(p, &(*out)->text);
}

static enum walsh_status parse_target(struct parser *p, const char *end, node **out)
{
    const bool parentheses = skip_operator(p, "(");
    WALSH_TRY(parse_tuple(p, parse_target_part, end, false, out));
    return parentheses ? expect_operator(p, ")") : WALSH_OK;
}

static enum walsh_status parse_for(struct parser *p, node *loop)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const else_ends[] = {"endfor", NULL};
    WALSH_TRY(parse_target(p, "in", &loop->a));
    if (!skip_name(p, "in")) return wrong(p, "\"in\"");
    WALSH_TRY(parse_tuple(p, parse_or, "recursive", false, &loop->b));
    if (skip_name(p, "if")) WALSH_TRY(parse_expression(p, &loop->c));
    loop->recursive = skip_name(p, "recursive");
    p->loops++;
    WALSH_TRY(parse_body(p, ends, &loop->body));
    p->loops--;
    if (!skip_name(p, "else")) {
        p->token++;
        return expect_block_end(p);
    }
    WALSH_TRY(parse_body(p, else_ends, &loop->other));
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_if(struct parser *p, node *first)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    for (node *current = first;;) {
        WALSH_TRY(parse_tuple(p, parse_or, NULL, false, &current->a));
        WALSH_TRY(parse_body(p, ends, &current->body));
        if (!skip_name(p, "elif")) {
            if (skip_name(p, "else")) WALSH_TRY(parse_body(p, &ends[2], &current->other));
            break;
        }
        current->chained = true;
        WALSH_TRY(new_node(p, TPL_IF, &current->other));
        current = current->other;
    }
    p->token++;
    return expect_block_end(p);
}

/* Filters behind each other on the text of a block; *out NULL: none. */
static enum walsh_status parse_block_filters(struct parser *p, bool first, node **out)
{
    *out = NULL;
    while (first || skip_operator(p, "|")) {
        node *of = *out;
        if (!of) WALSH_TRY(new_node(p, TPL_HOLE, &of));
        WALSH_TRY(parse_filter(p, of, out));
        first = false;
    }
    return WALSH_OK;
}

static enum walsh_status parse_set(struct parser *p, node *set)
{
    static const char *const ends[] = {"endset", NULL};
    WALSH_TRY(parse_target(p, NULL, &set->a));
    if (skip_operator(p, "=")) {
        WALSH_TRY(parse_tuple(p, parse_expression, NULL, false, &set->b));
        return expect_block_end(p);
    }
    set->kind = TPL_SET_BLOCK;
    WALSH_TRY(parse_block_filters(p, false, &set->b));
    WALSH_TRY(parse_body(p, ends, &set->body));
    p->token++;
    return expect_block_end(p);
}

/* "(a, b=1)": names in list, defaults of the last ones in keywords. */
static enum walsh_status parse_parameters(struct parser *p, node *macro)
{
    WALSH_TRY(expect_operator(p, "("));
    while (!at_operator(p, ")")) {
        node *name, *value;
        if (macro->count) WALSH_TRY(expect_operator(p, ","));
        if (p->token->type != TPL_NAME) return wrong(p, "a parameter");
        WALSH_TRY(parse_name(p, &name));
        if (name->kind != TPL_LOOKUP) return wrong(p, "a parameter");
        WALSH_TRY(append(p, macro, name));
        if (skip_operator(p, "=")) {
            WALSH_TRY(parse_expression(p, &value));
            WALSH_TRY(append_keyword(p, macro, name->text, value));
        } else if (macro->keyword_count) {
            return wrong(p, "a default for this parameter too");
        }
    }
    return expect_operator(p, ")");
}

/* A body outside of every loop, as break and continue see it. */
static enum walsh_status parse_detached_body(struct parser *p, const char *const *ends, node **out)
{
    const unsigned loops = p->loops;
    p->loops = 0;
    WALSH_TRY(parse_body(p, ends, out));
    p->loops = loops;
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_macro(struct parser *p, node *macro)
{
    static const char *const ends[] = {"endmacro", NULL};
    WALSH_TRY(expect_name(p, &macro->text));
    WALSH_TRY(symbol_of(p, macro->text, &macro->symbol));
    const unsigned reserved = p->reserved;
    p->reserved = 0;
    WALSH_TRY(parse_parameters(p, macro));
    WALSH_TRY(parse_detached_body(p, ends, &macro->body));
    macro->integer = p->reserved;
    p->reserved |= reserved;
    return WALSH_OK;
}

static enum walsh_status parse_call_block(struct parser *p, node *block)
{
    static const char *const ends[] = {"endcall", NULL};
    if (at_operator(p, "(")) WALSH_TRY(parse_parameters(p, block));
    WALSH_TRY(parse_expression(p, &block->a));
    if (block->a->kind != TPL_CALL) return wrong(p, "a call before it");
    return parse_detached_body(p, ends, &block->body);
}

static enum walsh_status parse_with(struct parser *p, node *with)
{
    static const char *const ends[] = {"endwith", NULL};
    while (p->token->type != TPL_BLOCK_END) {
        node *target, *value;
        if (with->count) WALSH_TRY(expect_operator(p, ","));
        WALSH_TRY(parse_target_part(p, &target));
        WALSH_TRY(expect_operator(p, "="));
        WALSH_TRY(parse_expression(p, &value));
        WALSH_TRY(append(p, with, target));
        WALSH_TRY(append(p, with, value));
    }
    WALSH_TRY(parse_body(p, ends, &with->body));
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_loop_control(struct parser *p, node *statement)
{
    (void)statement;
    if (p->loops == 0) return wrong(p, "a loop around it");
    return expect_block_end(p);
}

static enum walsh_status parse_filter_block(struct parser *p, node *block)
{
    static const char *const ends[] = {"endfilter", NULL};
    WALSH_TRY(parse_block_filters(p, true, &block->b));
    WALSH_TRY(parse_body(p, ends, &block->body));
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_generation(struct parser *p, node *block)
{
    static const char *const ends[] = {"endgeneration", NULL};
    return parse_detached_body(p, ends, &block->body);
}

static enum walsh_status parse_print(struct parser *p, node *output)
{
    WALSH_TRY(parse_tuple(p, parse_expression, NULL, false, &output->a));
    if (output->a->kind == TPL_TUPLE) output->a->kind = TPL_CONCAT; /* one behind the other */
    return expect_block_end(p);
}

static enum walsh_status parse_statement(struct parser *p, node **out)
{
    static const struct {
        const char *name;
        enum walsh_tpl_kind kind;
        enum walsh_status (*parse)(struct parser *p, node *statement);
    } statements[] = {
        {"for", TPL_FOR, parse_for},
        {"if", TPL_IF, parse_if},
        {"set", TPL_SET, parse_set},
        {"macro", TPL_MACRO, parse_macro},
        {"call", TPL_CALL_BLOCK, parse_call_block},
        {"filter", TPL_FILTER_BLOCK, parse_filter_block},
        {"with", TPL_WITH, parse_with},
        {"generation", TPL_SCOPE, parse_generation},
        {"break", TPL_BREAK, parse_loop_control},
        {"continue", TPL_CONTINUE, parse_loop_control},
        {"print", TPL_OUTPUT, parse_print},
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (!at_name(p, statements[i].name)) continue;
        WALSH_TRY(new_node(p, statements[i].kind, out));
        p->token++;
        return statements[i].parse(p, *out);
    }
    if (p->token->type != TPL_NAME) return wrong(p, "a tag's name");
    return walsh_fail(p->err, WALSH_E_FORMAT, "line %u: the tag \"%.*s\" is not known here", p->token->line,
                      (int)walsh_min(p->token->text.size, 40), p->token->text.data);
}

static bool at_end(const struct parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (at_name(p, *ends)) return true;
    return false;
}

/* What stands between two tags: text, outputs, blocks. With `ends` it starts at the end of the tag before and
 * stops at the name that ends it; without, it goes to the end of the template. */
static enum walsh_status parse_body(struct parser *p, const char *const *ends, node **out)
{
    node **link = out;
    *out = NULL;
    if (ends) WALSH_TRY(expect_block_end(p));
    WALSH_TRY(enter(p));
    for (;;) {
        const struct walsh_tpl_token *token = p->token;
        if (token->type == TPL_END) {
            if (ends) return wrong(p, ends[0]);
            break;
        }
        if (token->type == TPL_DATA) {
            WALSH_TRY(new_node(p, TPL_OUTPUT_TEXT, link));
            (*link)->text = token->text;
            p->token++;
        } else if (token->type == TPL_VARIABLE_BEGIN) {
            p->token++;
            WALSH_TRY(new_node(p, TPL_OUTPUT, link));
            WALSH_TRY(parse_tuple(p, parse_expression, NULL, false, &(*link)->a));
            if (p->token->type != TPL_VARIABLE_END) return wrong(p, "the end of the expression");
            p->token++;
        } else {
            p->token++;
            if (at_end(p, ends)) break;
            WALSH_TRY(parse_statement(p, link));
        }
        link = &(*link)->next;
    }
    p->nesting--;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_parse(struct walsh_template *t, const struct walsh_tpl_token *tokens,
                                  struct walsh_error *err)
{
    static const char *const reserved[TPL_RESERVED_SYMBOLS] = {"loop", "caller", "varargs", "kwargs"};
    struct parser p = {.t = t, .token = tokens, .err = err};
    for (size_t i = 0; i < TPL_RESERVED_SYMBOLS; i++) {
        uint32_t symbol;
        WALSH_TRY(symbol_of(&p, (struct walsh_tpl_text){reserved[i], strlen(reserved[i])}, &symbol));
    }
    return parse_body(&p, NULL, &t->body);
}

/* Tokens to expressions, by recursive descent over Jinja's grammar. */
#include "text/template_parser.h"

static enum walsh_status parse_unary(struct walsh_tpl_parser *p, bool filters, node **out);

static enum walsh_status binary(struct walsh_tpl_parser *p, enum walsh_tpl_kind kind,
                                enum walsh_tpl_operator op, node *a, node *b, node **out)
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
static enum walsh_status parse_items(struct walsh_tpl_parser *p, const char *close, bool pairs, node *list)
{
    while (!at_operator(p, close)) {
        if (list->count) WALSH_TRY(expect_operator(p, ","));
        if (at_operator(p, close)) break;
        node *item;
        WALSH_TRY(walsh_tpl_parse_expression(p, &item));
        WALSH_TRY(append(p, list, item));
        if (!pairs) continue;
        WALSH_TRY(expect_operator(p, ":"));
        WALSH_TRY(walsh_tpl_parse_expression(p, &item));
        WALSH_TRY(append(p, list, item));
    }
    return expect_operator(p, close);
}

static bool at_tuple_end(const struct walsh_tpl_parser *p, const char *end)
{
    return p->token->type == TPL_VARIABLE_END || p->token->type == TPL_BLOCK_END || at_operator(p, ")") ||
           (end && at_name(p, end));
}

enum walsh_status walsh_tpl_parse_tuple(struct walsh_tpl_parser *p, walsh_tpl_part *part, const char *end,
                                        bool parentheses, node **out)
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

enum walsh_status walsh_tpl_parse_name(struct walsh_tpl_parser *p, node **out)
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
static enum walsh_status parse_strings(struct walsh_tpl_parser *p, node **out)
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

static enum walsh_status parse_primary(struct walsh_tpl_parser *p, node **out)
{
    switch (p->token->type) {
    case TPL_NAME:
        return walsh_tpl_parse_name(p, out);
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
        WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_expression, NULL, true, out));
        return expect_operator(p, ")");
    }
    const bool list = skip_operator(p, "[");
    if (!list && !skip_operator(p, "{")) return wrong(p, "an expression");
    WALSH_TRY(new_node(p, list ? TPL_LIST : TPL_DICT, out));
    return parse_items(p, list ? "]" : "}", !list, *out);
}

/* Behind "(": the arguments of a call. */
static enum walsh_status parse_arguments(struct walsh_tpl_parser *p, node *call)
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
        WALSH_TRY(walsh_tpl_parse_expression(p, &value));
        WALSH_TRY(keyword ? append_keyword(p, call, name, value) : append(p, call, value));
    }
    return expect_operator(p, ")");
}

static enum walsh_status parse_call(struct walsh_tpl_parser *p, node *callee, node **out)
{
    WALSH_TRY(new_node(p, TPL_CALL, out));
    p->token++;
    (*out)->a = callee;
    return parse_arguments(p, *out);
}

/* Behind "[": an index or a slice, and the closing bracket. */
static enum walsh_status parse_bracket(struct walsh_tpl_parser *p, node *of, node **out)
{
    node *parts[3] = {0};
    size_t n = 0;
    WALSH_TRY(new_node(p, TPL_ITEM, out));
    (*out)->a = of;
    for (;; n++) {
        if (!at_operator(p, ":") && !at_operator(p, "]")) WALSH_TRY(walsh_tpl_parse_expression(p, &parts[n]));
        if (n == 2 || !skip_operator(p, ":")) break;
    }
    if (n == 0 && !parts[0]) return wrong(p, "an index");
    (*out)->b = parts[0];
    (*out)->c = parts[1];
    (*out)->d = parts[2];
    if (n > 0) (*out)->kind = TPL_SLICE;
    return expect_operator(p, "]");
}

static enum walsh_status parse_dot(struct walsh_tpl_parser *p, node *of, node **out)
{
    WALSH_TRY(new_node(p, TPL_ATTRIBUTE, out));
    (*out)->a = of;
    if (p->token->type == TPL_INTEGER) {
        (*out)->kind = TPL_ITEM;
        return parse_primary(p, &(*out)->b);
    }
    return expect_name(p, &(*out)->text);
}

static enum walsh_status parse_postfix(struct walsh_tpl_parser *p, node **out)
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

enum walsh_status walsh_tpl_parse_filter(struct walsh_tpl_parser *p, node *of, node **out)
{
    WALSH_TRY(new_node(p, TPL_FILTER, out));
    (*out)->a = of;
    WALSH_TRY(expect_name(p, &(*out)->text));
    return skip_operator(p, "(") ? parse_arguments(p, *out) : WALSH_OK;
}

/* Behind "is". An argument may stand without brackets. */
static enum walsh_status parse_test(struct walsh_tpl_parser *p, node *of, node **out)
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

static enum walsh_status parse_unary(struct walsh_tpl_parser *p, bool filters, node **out)
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
            WALSH_TRY(walsh_tpl_parse_filter(p, *out, out));
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

static bool take_operator(struct walsh_tpl_parser *p, const struct operator_name *names, size_t count,
                          enum walsh_tpl_operator *op)
{
    for (size_t i = 0; i < count; i++) {
        if (!skip_operator(p, names[i].text)) continue;
        *op = names[i].op;
        return true;
    }
    return false;
}

static enum walsh_status parse_power(struct walsh_tpl_parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_unary(p, true, out));
    while (skip_operator(p, "**")) {
        WALSH_TRY(parse_unary(p, true, &right));
        WALSH_TRY(binary(p, TPL_BINARY, TPL_POWER, *out, right, out));
    }
    return WALSH_OK;
}

static enum walsh_status parse_product(struct walsh_tpl_parser *p, node **out)
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

static enum walsh_status parse_concat(struct walsh_tpl_parser *p, node **out)
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

static enum walsh_status parse_sum(struct walsh_tpl_parser *p, node **out)
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

static bool take_comparison(struct walsh_tpl_parser *p, enum walsh_tpl_operator *op)
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

static enum walsh_status parse_comparison(struct walsh_tpl_parser *p, node **out)
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

static enum walsh_status parse_not(struct walsh_tpl_parser *p, node **out)
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

static enum walsh_status parse_and(struct walsh_tpl_parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_not(p, out));
    while (skip_name(p, "and")) {
        WALSH_TRY(parse_not(p, &right));
        WALSH_TRY(binary(p, TPL_AND, TPL_ADD, *out, right, out));
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_parse_or(struct walsh_tpl_parser *p, node **out)
{
    node *right;
    WALSH_TRY(parse_and(p, out));
    while (skip_name(p, "or")) {
        WALSH_TRY(parse_and(p, &right));
        WALSH_TRY(binary(p, TPL_OR, TPL_ADD, *out, right, out));
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_parse_expression(struct walsh_tpl_parser *p, node **out)
{
    WALSH_TRY(enter(p));
    WALSH_TRY(walsh_tpl_parse_or(p, out));
    while (skip_name(p, "if")) {
        node *condition;
        WALSH_TRY(walsh_tpl_parse_or(p, &condition));
        WALSH_TRY(binary(p, TPL_CHOICE, TPL_ADD, condition, *out, out));
        if (skip_name(p, "else")) WALSH_TRY(walsh_tpl_parse_expression(p, &(*out)->c));
    }
    p->nesting--;
    return WALSH_OK;
}

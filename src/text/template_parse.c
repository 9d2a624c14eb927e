/* Tokens of a template to a tree, by recursive descent over Jinja's grammar: statements. */
#include "text/template_parser.h"

static enum walsh_status parse_body(struct walsh_tpl_parser *p, const char *const *ends, node **out);

/* A name, or `name.attribute` of a namespace. */
static enum walsh_status parse_target_part(struct walsh_tpl_parser *p, node **out)
{
    if (p->token->type != TPL_NAME) return wrong(p, "a name to assign to");
    WALSH_TRY(walsh_tpl_parse_name(p, out));
    if ((*out)->kind != TPL_LOOKUP) return wrong(p, "a name to assign to");
    if (!skip_operator(p, ".")) return WALSH_OK;
    (*out)->kind = TPL_NAMESPACE_TARGET;
    return expect_name(p, &(*out)->text);
}

static enum walsh_status parse_target(struct walsh_tpl_parser *p, const char *end, node **out)
{
    const bool parentheses = skip_operator(p, "(");
    WALSH_TRY(walsh_tpl_parse_tuple(p, parse_target_part, end, false, out));
    return parentheses ? expect_operator(p, ")") : WALSH_OK;
}

static enum walsh_status parse_for(struct walsh_tpl_parser *p, node *loop)
{
    static const char *const ends[] = {"endfor", "else", NULL}, *const else_ends[] = {"endfor", NULL};
    WALSH_TRY(parse_target(p, "in", &loop->a));
    if (!skip_name(p, "in")) return wrong(p, "\"in\"");
    WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_or, "recursive", false, &loop->b));
    if (skip_name(p, "if")) WALSH_TRY(walsh_tpl_parse_expression(p, &loop->c));
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

static enum walsh_status parse_if(struct walsh_tpl_parser *p, node *first)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    for (node *current = first;;) {
        WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_or, NULL, false, &current->a));
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
static enum walsh_status parse_block_filters(struct walsh_tpl_parser *p, bool first, node **out)
{
    *out = NULL;
    while (first || skip_operator(p, "|")) {
        node *of = *out;
        if (!of) WALSH_TRY(new_node(p, TPL_HOLE, &of));
        WALSH_TRY(walsh_tpl_parse_filter(p, of, out));
        first = false;
    }
    return WALSH_OK;
}

static enum walsh_status parse_set(struct walsh_tpl_parser *p, node *set)
{
    static const char *const ends[] = {"endset", NULL};
    WALSH_TRY(parse_target(p, NULL, &set->a));
    if (skip_operator(p, "=")) {
        WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_expression, NULL, false, &set->b));
        return expect_block_end(p);
    }
    set->kind = TPL_SET_BLOCK;
    WALSH_TRY(parse_block_filters(p, false, &set->b));
    WALSH_TRY(parse_body(p, ends, &set->body));
    p->token++;
    return expect_block_end(p);
}

/* "(a, b=1)": names in list, defaults of the last ones in keywords. */
static enum walsh_status parse_parameters(struct walsh_tpl_parser *p, node *macro)
{
    WALSH_TRY(expect_operator(p, "("));
    while (!at_operator(p, ")")) {
        node *name, *value;
        if (macro->count) WALSH_TRY(expect_operator(p, ","));
        if (p->token->type != TPL_NAME) return wrong(p, "a parameter");
        WALSH_TRY(walsh_tpl_parse_name(p, &name));
        if (name->kind != TPL_LOOKUP) return wrong(p, "a parameter");
        WALSH_TRY(append(p, macro, name));
        if (skip_operator(p, "=")) {
            WALSH_TRY(walsh_tpl_parse_expression(p, &value));
            WALSH_TRY(append_keyword(p, macro, name->text, value));
        } else if (macro->keyword_count) {
            return wrong(p, "a default for this parameter too");
        }
    }
    return expect_operator(p, ")");
}

/* A body outside of every loop, as break and continue see it. */
static enum walsh_status parse_detached_body(struct walsh_tpl_parser *p, const char *const *ends, node **out)
{
    const unsigned loops = p->loops;
    p->loops = 0;
    WALSH_TRY(parse_body(p, ends, out));
    p->loops = loops;
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_macro(struct walsh_tpl_parser *p, node *macro)
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

static enum walsh_status parse_call_block(struct walsh_tpl_parser *p, node *block)
{
    static const char *const ends[] = {"endcall", NULL};
    if (at_operator(p, "(")) WALSH_TRY(parse_parameters(p, block));
    WALSH_TRY(walsh_tpl_parse_expression(p, &block->a));
    if (block->a->kind != TPL_CALL) return wrong(p, "a call before it");
    return parse_detached_body(p, ends, &block->body);
}

static enum walsh_status parse_with(struct walsh_tpl_parser *p, node *with)
{
    static const char *const ends[] = {"endwith", NULL};
    while (p->token->type != TPL_BLOCK_END) {
        node *target, *value;
        if (with->count) WALSH_TRY(expect_operator(p, ","));
        WALSH_TRY(parse_target_part(p, &target));
        WALSH_TRY(expect_operator(p, "="));
        WALSH_TRY(walsh_tpl_parse_expression(p, &value));
        WALSH_TRY(append(p, with, target));
        WALSH_TRY(append(p, with, value));
    }
    WALSH_TRY(parse_body(p, ends, &with->body));
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_loop_control(struct walsh_tpl_parser *p, node *statement)
{
    (void)statement;
    if (p->loops == 0) return wrong(p, "a loop around it");
    return expect_block_end(p);
}

static enum walsh_status parse_filter_block(struct walsh_tpl_parser *p, node *block)
{
    static const char *const ends[] = {"endfilter", NULL};
    WALSH_TRY(parse_block_filters(p, true, &block->b));
    WALSH_TRY(parse_body(p, ends, &block->body));
    p->token++;
    return expect_block_end(p);
}

static enum walsh_status parse_generation(struct walsh_tpl_parser *p, node *block)
{
    static const char *const ends[] = {"endgeneration", NULL};
    return parse_detached_body(p, ends, &block->body);
}

static enum walsh_status parse_print(struct walsh_tpl_parser *p, node *output)
{
    WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_expression, NULL, false, &output->a));
    if (output->a->kind == TPL_TUPLE) output->a->kind = TPL_CONCAT; /* one behind the other */
    return expect_block_end(p);
}

static enum walsh_status parse_statement(struct walsh_tpl_parser *p, node **out)
{
    static const struct {
        const char *name;
        enum walsh_tpl_kind kind;
        enum walsh_status (*parse)(struct walsh_tpl_parser *p, node *statement);
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

static bool at_end(const struct walsh_tpl_parser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (at_name(p, *ends)) return true;
    return false;
}

/* What stands between two tags: text, outputs, blocks. With `ends` it starts at the end of the tag before and
 * stops at the name that ends it; without, it goes to the end of the template. */
static enum walsh_status parse_body(struct walsh_tpl_parser *p, const char *const *ends, node **out)
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
            WALSH_TRY(walsh_tpl_parse_tuple(p, walsh_tpl_parse_expression, NULL, false, &(*link)->a));
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
    struct walsh_tpl_parser p = {.t = t, .token = tokens, .err = err};
    for (size_t i = 0; i < TPL_RESERVED_SYMBOLS; i++) {
        uint32_t symbol;
        WALSH_TRY(symbol_of(&p, (struct walsh_tpl_text){reserved[i], strlen(reserved[i])}, &symbol));
    }
    return parse_body(&p, NULL, &t->body);
}

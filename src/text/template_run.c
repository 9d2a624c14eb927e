/* The statements of a template, and its rendering. */
#include <string.h>

#include "text/template_eval.h"

typedef struct walsh_tpl_node node;
typedef struct walsh_tpl_value value;

/* How a body ended. */
enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static enum walsh_status run_body(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                  enum flow *flow);

/* The text of a body in a scope of its own. */
static enum walsh_status capture(struct walsh_tpl_run *run, struct walsh_tpl_scope *outer, const node *body,
                                 enum flow *flow, value *out)
{
    struct walsh_tpl_scope *scope;
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_new_scope(run, outer, &scope));
    WALSH_TRY(run_body(run, scope, body, flow));
    return walsh_tpl_take(run, mark, out);
}

/* Filters on the text of a block. */
static enum walsh_status apply_to(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                  const node *filters, value *text)
{
    if (!filters) return WALSH_OK;
    const value before = run->hole;
    run->hole = *text;
    WALSH_TRY(walsh_tpl_eval(run, scope, filters, text));
    run->hole = before;
    return WALSH_OK;
}

static enum walsh_status set_attribute(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                       const node *n, value v)
{
    value target;
    node lookup = *n;
    lookup.kind = TPL_LOOKUP;
    lookup.text = run->template->symbols[n->symbol];
    WALSH_TRY(walsh_tpl_eval(run, scope, &lookup, &target));
    run->line = n->line;
    if (target.type != TPL_NAMESPACE)
        return TPL_FAIL(run, "\"%.*s\" is a %s, expected a namespace", (int)walsh_min(lookup.text.size, 60),
                        lookup.text.data, walsh_tpl_type_name(&target));
    if (n->text.data[0] == '_')
        return TPL_FAIL(run, "a namespace has no attributes with an underscore in front");
    return walsh_tpl_dict_set(run, target.u.dict, walsh_tpl_string(n->text.data, n->text.size), v);
}

static enum walsh_status assign(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *target,
                                value v)
{
    if (target->kind == TPL_LOOKUP) return walsh_tpl_define(run, scope, target->symbol, v);
    if (target->kind == TPL_NAMESPACE_TARGET) return set_attribute(run, scope, target, v);
    value *items;
    size_t count;
    run->line = target->line;
    WALSH_TRY(walsh_tpl_items(run, &v, &items, &count));
    if (count != target->count) return TPL_FAIL(run, "%zu values for %zu names", count, target->count);
    for (size_t i = 0; i < count; i++) WALSH_TRY(assign(run, scope, target->list[i], items[i]));
    return WALSH_OK;
}

/* ---- loops ---- */

/* The items that the loop's filter lets through. */
static enum walsh_status filter_items(struct walsh_tpl_run *run, struct walsh_tpl_scope *outer, const node *n,
                                      value **items, size_t *count)
{
    value kept, condition;
    size_t passed = 0;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, *count, &kept));
    for (size_t i = 0; i < *count; i++) {
        struct walsh_tpl_scope *scope;
        WALSH_TRY(walsh_tpl_new_scope(run, outer, &scope));
        WALSH_TRY(assign(run, scope, n->a, (*items)[i]));
        WALSH_TRY(walsh_tpl_eval(run, scope, n->c, &condition));
        if (walsh_tpl_truth(&condition)) kept.u.list->items[passed++] = (*items)[i];
    }
    *items = kept.u.list->items;
    *count = passed;
    return WALSH_OK;
}

static enum walsh_status loop_over(struct walsh_tpl_run *run, struct walsh_tpl_scope *outer, const node *n,
                                   const value *iterable, size_t depth)
{
    struct walsh_tpl_loop *loop;
    struct walsh_tpl_scope *scope;
    enum flow flow = FLOW_NEXT;
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof *loop, &loop));
    *loop = (struct walsh_tpl_loop){.node = n, .scope = outer, .depth = depth};
    run->line = n->line;
    WALSH_TRY(walsh_tpl_items(run, iterable, &loop->items, &loop->count));
    if (n->c) WALSH_TRY(filter_items(run, outer, n, &loop->items, &loop->count));
    const value self = {.type = TPL_LOOP_VALUE, .u.loop = loop};
    for (; loop->index < loop->count && flow != FLOW_BREAK; loop->index++) {
        WALSH_TRY(walsh_tpl_spend(run, 1));
        WALSH_TRY(walsh_tpl_new_scope(run, outer, &scope));
        WALSH_TRY(walsh_tpl_define(run, scope, TPL_SYMBOL_LOOP, self));
        WALSH_TRY(assign(run, scope, n->a, loop->items[loop->index]));
        WALSH_TRY(run_body(run, scope, n->body, &flow));
    }
    if (loop->count || !n->other) return WALSH_OK;
    WALSH_TRY(walsh_tpl_new_scope(run, outer, &scope));
    return run_body(run, scope, n->other, &flow);
}

static enum walsh_status run_for(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n)
{
    value iterable;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->b, &iterable));
    return loop_over(run, scope, n, &iterable, 0);
}

enum walsh_status walsh_tpl_call_loop(struct walsh_tpl_run *run, const struct walsh_tpl_loop *loop,
                                      const struct walsh_tpl_arguments *arguments, value *out)
{
    if (!loop->node->recursive) return TPL_FAIL(run, "a loop calls itself that is not recursive");
    if (arguments->count != 1) return TPL_FAIL(run, "loop: expected one argument");
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_enter(run));
    WALSH_TRY(loop_over(run, loop->scope, loop->node, &arguments->values[0], loop->depth + 1));
    run->depth--;
    return walsh_tpl_take(run, mark, out);
}

/* ---- macros ---- */

static bool uses(const struct walsh_tpl_macro *macro, unsigned symbol)
{
    return (macro->node->integer >> symbol & 1) != 0;
}

/* Arguments behind the parameters: to varargs, where the macro asks for it. */
static enum walsh_status bind_rest(struct walsh_tpl_run *run, const struct walsh_tpl_macro *macro,
                                   const struct walsh_tpl_arguments *arguments, struct walsh_tpl_scope *scope)
{
    value rest;
    const size_t named = macro->node->count, extra = arguments->count > named ? arguments->count - named : 0;
    if (extra && !uses(macro, TPL_SYMBOL_VARARGS))
        return TPL_FAIL(run, "a macro takes %zu arguments, not %zu", named, arguments->count);
    if (!uses(macro, TPL_SYMBOL_VARARGS)) return WALSH_OK;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, extra, &rest));
    rest.aux = 1;
    for (size_t i = 0; i < extra; i++) rest.u.list->items[i] = arguments->values[named + i];
    return walsh_tpl_define(run, scope, TPL_SYMBOL_VARARGS, rest);
}

/* The keyword of this name, marked as taken; NULL: none. */
static value *take_keyword(const struct walsh_tpl_arguments *arguments, struct walsh_tpl_text name)
{
    for (size_t i = 0; i < arguments->keyword_count; i++) {
        struct walsh_tpl_pair *pair = &arguments->keywords[i];
        if (pair->key.type != TPL_TEXT || pair->key.u.text.size != name.size ||
            memcmp(pair->key.u.text.data, name.data, name.size) != 0)
            continue;
        pair->key.type = TPL_NONE;
        return &pair->value;
    }
    return NULL;
}

/* What no parameter took: caller, kwargs. */
static enum walsh_status bind_keywords(struct walsh_tpl_run *run, const struct walsh_tpl_macro *macro,
                                       const struct walsh_tpl_arguments *arguments,
                                       struct walsh_tpl_scope *scope)
{
    static const struct walsh_tpl_text caller = {"caller", 6};
    value *given = uses(macro, TPL_SYMBOL_CALLER) ? take_keyword(arguments, caller) : NULL, rest;
    if (uses(macro, TPL_SYMBOL_CALLER))
        WALSH_TRY(
            walsh_tpl_define(run, scope, TPL_SYMBOL_CALLER, given ? *given : walsh_tpl_undefined(caller)));
    WALSH_TRY(walsh_tpl_new_dict(run, TPL_OBJECT, 0, &rest));
    for (size_t i = 0; i < arguments->keyword_count; i++) {
        const struct walsh_tpl_pair *pair = &arguments->keywords[i];
        if (pair->key.type != TPL_TEXT) continue;
        if (!uses(macro, TPL_SYMBOL_KWARGS))
            return TPL_FAIL(run, "a macro has no parameter \"%.*s\"", (int)pair->key.u.text.size,
                            pair->key.u.text.data);
        WALSH_TRY(walsh_tpl_dict_set(run, rest.u.dict, pair->key, pair->value));
    }
    return uses(macro, TPL_SYMBOL_KWARGS) ? walsh_tpl_define(run, scope, TPL_SYMBOL_KWARGS, rest) : WALSH_OK;
}

/* Parameters by position, by name, by default; else they are undefined. */
static enum walsh_status bind_parameters(struct walsh_tpl_run *run, const struct walsh_tpl_macro *macro,
                                         const struct walsh_tpl_arguments *arguments,
                                         struct walsh_tpl_scope *scope)
{
    const node *n = macro->node;
    const size_t first_default = n->count - n->keyword_count;
    for (size_t i = 0; i < n->count; i++) {
        const node *parameter = n->list[i];
        value v = walsh_tpl_undefined(parameter->text), *named = take_keyword(arguments, parameter->text);
        if (named && i < arguments->count)
            return TPL_FAIL(run, "a macro got \"%.*s\" twice", (int)parameter->text.size,
                            parameter->text.data);
        if (i < arguments->count)
            v = arguments->values[i];
        else if (named)
            v = *named;
        else if (i >= first_default)
            WALSH_TRY(walsh_tpl_eval(run, scope, n->keywords[i - first_default].value, &v));
        WALSH_TRY(walsh_tpl_define(run, scope, parameter->symbol, v));
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_call_macro(struct walsh_tpl_run *run, const struct walsh_tpl_macro *macro,
                                       const struct walsh_tpl_arguments *arguments, value *out)
{
    struct walsh_tpl_scope *scope;
    enum flow flow = FLOW_NEXT;
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_enter(run));
    WALSH_TRY(walsh_tpl_new_scope(run, macro->scope, &scope));
    WALSH_TRY(bind_parameters(run, macro, arguments, scope));
    WALSH_TRY(bind_rest(run, macro, arguments, scope));
    WALSH_TRY(bind_keywords(run, macro, arguments, scope));
    WALSH_TRY(run_body(run, scope, macro->node->body, &flow));
    run->depth--;
    return walsh_tpl_take(run, mark, out);
}

static enum walsh_status make_macro(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                    value *out)
{
    struct walsh_tpl_macro *macro;
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof *macro, &macro));
    *macro = (struct walsh_tpl_macro){.node = n, .scope = scope};
    *out = (value){.type = TPL_MACRO_VALUE, .u.macro = macro};
    return WALSH_OK;
}

static enum walsh_status run_call_block(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                        const node *n)
{
    value callee, caller, result;
    struct walsh_tpl_arguments arguments;
    WALSH_TRY(make_macro(run, scope, n, &caller));
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a->a, &callee));
    WALSH_TRY(walsh_tpl_eval_arguments(run, scope, n->a, &arguments));
    arguments.keywords[arguments.keyword_count++] =
        (struct walsh_tpl_pair){walsh_tpl_string("caller", 6), caller};
    WALSH_TRY(walsh_tpl_call(run, n->a, &callee, &arguments, &result));
    return walsh_tpl_print(run, &result);
}

/* ---- the other statements ---- */

static enum walsh_status run_if(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                enum flow *flow)
{
    value condition;
    for (;;) {
        WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &condition));
        if (walsh_tpl_truth(&condition)) return run_body(run, scope, n->body, flow);
        if (!n->other || n->other->kind != TPL_IF || !n->chained) return run_body(run, scope, n->other, flow);
        n = n->other;
    }
}

static enum walsh_status run_with(struct walsh_tpl_run *run, struct walsh_tpl_scope *outer, const node *n,
                                  enum flow *flow)
{
    struct walsh_tpl_scope *scope;
    value v;
    WALSH_TRY(walsh_tpl_new_scope(run, outer, &scope));
    for (size_t i = 0; i < n->count; i += 2) {
        WALSH_TRY(walsh_tpl_eval(run, outer, n->list[i + 1], &v));
        WALSH_TRY(assign(run, scope, n->list[i], v));
    }
    return run_body(run, scope, n->body, flow);
}

static enum walsh_status run_filter_block(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                          const node *n, enum flow *flow)
{
    value text;
    WALSH_TRY(capture(run, scope, n->body, flow, &text));
    WALSH_TRY(apply_to(run, scope, n->b, &text));
    return walsh_tpl_print(run, &text);
}

static enum walsh_status run_set(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                 enum flow *flow)
{
    value v;
    if (n->kind == TPL_SET) {
        WALSH_TRY(walsh_tpl_eval(run, scope, n->b, &v));
    } else {
        WALSH_TRY(capture(run, scope, n->body, flow, &v));
        WALSH_TRY(apply_to(run, scope, n->b, &v));
    }
    return assign(run, scope, n->a, v);
}

static enum walsh_status run_statement(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                       const node *n, enum flow *flow)
{
    value v;
    struct walsh_tpl_scope *inner;
    run->line = n->line;
    switch (n->kind) {
    case TPL_OUTPUT_TEXT:
        return walsh_tpl_put(run, n->text.data, n->text.size);
    case TPL_OUTPUT:
        WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &v));
        return walsh_tpl_print(run, &v);
    case TPL_IF:
        return run_if(run, scope, n, flow);
    case TPL_FOR:
        return run_for(run, scope, n);
    case TPL_SET:
    case TPL_SET_BLOCK:
        return run_set(run, scope, n, flow);
    case TPL_MACRO:
        WALSH_TRY(make_macro(run, scope, n, &v));
        return walsh_tpl_define(run, scope, n->symbol, v);
    case TPL_CALL_BLOCK:
        return run_call_block(run, scope, n);
    case TPL_FILTER_BLOCK:
        return run_filter_block(run, scope, n, flow);
    case TPL_WITH:
        return run_with(run, scope, n, flow);
    case TPL_SCOPE:
        WALSH_TRY(walsh_tpl_new_scope(run, scope, &inner));
        return run_body(run, inner, n->body, flow);
    default:
        *flow = n->kind == TPL_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
        return WALSH_OK;
    }
}

static enum walsh_status run_body(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                  enum flow *flow)
{
    *flow = FLOW_NEXT;
    WALSH_TRY(walsh_tpl_enter(run));
    for (; n && *flow == FLOW_NEXT; n = n->next) {
        WALSH_TRY(walsh_tpl_spend(run, 1));
        WALSH_TRY(run_statement(run, scope, n, flow));
    }
    run->depth--;
    return WALSH_OK;
}

/* ---- the whole ---- */

enum walsh_status walsh_template_open(const char *name, const char *source, size_t size,
                                      struct walsh_template **out, struct walsh_error *err)
{
    struct walsh_template *t;
    struct walsh_tpl_token *tokens;
    size_t count;
    *out = NULL;
    if (size > WALSH_TEMPLATE_MAX_SIZE)
        return walsh_fail(err, WALSH_E_CAPACITY, "%s: %zu bytes, at most %zu are supported", name, size,
                          WALSH_TEMPLATE_MAX_SIZE);
    WALSH_TRY(walsh_alloc_zero(1, sizeof *t, "a chat template", &t, err));
    enum walsh_status status = walsh_arena_strdup(&t->arena, name, &t->name, err);
    if (status == WALSH_OK) status = walsh_tpl_lex(&t->arena, source, size, &tokens, &count, err);
    if (status == WALSH_OK) status = walsh_tpl_parse(t, tokens, err);
    if (status != WALSH_OK) {
        walsh_template_close(&t);
        return walsh_fail_within(err, status, "%s", name);
    }
    *out = t;
    return WALSH_OK;
}

void walsh_template_close(struct walsh_template **t)
{
    if (!t || !*t) return;
    walsh_arena_close(&(*t)->arena);
    walsh_free(*t);
    *t = NULL;
}

/* The template's variables: those of its names that `variables` has. */
static enum walsh_status define_variables(struct walsh_tpl_run *run, const json_t *variables,
                                          struct walsh_tpl_scope *scope)
{
    const struct walsh_template *t = run->template;
    for (size_t i = TPL_RESERVED_SYMBOLS; i < t->symbol_count; i++) {
        const json_t *json = json_object_getn(variables, t->symbols[i].data, t->symbols[i].size);
        value v;
        if (!json) continue;
        WALSH_TRY(walsh_tpl_from_json(run, json, 0, &v));
        WALSH_TRY(walsh_tpl_define(run, scope, (uint32_t)i, v));
    }
    return WALSH_OK;
}

static enum walsh_status render(struct walsh_tpl_run *run, const json_t *variables)
{
    struct walsh_tpl_scope *scope;
    enum flow flow;
    WALSH_TRY(walsh_tpl_new_scope(run, NULL, &scope));
    WALSH_TRY(define_variables(run, variables, scope));
    WALSH_TRY(run_body(run, scope, run->template->body, &flow));
    return walsh_buffer_append(&run->out, "", 1, run->err);
}

enum walsh_status walsh_template_render(const struct walsh_template *t, const json_t *variables, int64_t now,
                                        const struct walsh_template_limits *limits, char **text, size_t *size,
                                        struct walsh_error *err)
{
    struct walsh_error local;
    struct walsh_tpl_run run = {
        .template = t, .limits = limits, .now = now, .line = 1, .err = err ? err : &local};
    *text = NULL;
    *size = 0;
    const enum walsh_status status = render(&run, variables);
    walsh_arena_close(&run.arena);
    if (status != WALSH_OK) {
        walsh_buffer_free(&run.out);
        return walsh_fail_within(err, status, "%s: line %u", t->name, run.line);
    }
    *text = (char *)run.out.data;
    *size = run.out.size - 1;
    return WALSH_OK;
}

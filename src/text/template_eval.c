/* The evaluation of a template's expressions. */
#include <string.h>

#include "text/template_eval.h"

typedef struct walsh_tpl_node node;
typedef struct walsh_tpl_value value;

static struct walsh_tpl_variable *find_here(const struct walsh_tpl_scope *scope, uint32_t symbol)
{
    for (size_t i = 0; i < scope->count; i++)
        if (scope->variables[i].symbol == symbol) return &scope->variables[i];
    return NULL;
}

enum walsh_status walsh_tpl_new_scope(struct walsh_tpl_run *run, struct walsh_tpl_scope *parent,
                                      struct walsh_tpl_scope **out)
{
    WALSH_TRY(walsh_tpl_alloc(run, 1, sizeof **out, out));
    (*out)->parent = parent;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_define(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, uint32_t symbol,
                                   value v)
{
    struct walsh_tpl_variable *known = find_here(scope, symbol);
    if (known) {
        known->value = v;
        return WALSH_OK;
    }
    if (scope->count == scope->capacity) {
        const size_t capacity = scope->capacity ? 2 * scope->capacity : 4;
        struct walsh_tpl_variable *more;
        WALSH_TRY(walsh_tpl_alloc(run, capacity, sizeof *more, &more));
        if (scope->count) memcpy(more, scope->variables, scope->count * sizeof *more);
        scope->variables = more;
        scope->capacity = capacity;
    }
    scope->variables[scope->count++] = (struct walsh_tpl_variable){symbol, v};
    return WALSH_OK;
}

static enum walsh_status look_up(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                 value *out)
{
    for (; scope; scope = scope->parent) {
        const struct walsh_tpl_variable *variable = find_here(scope, n->symbol);
        if (variable) {
            *out = variable->value;
            return WALSH_OK;
        }
        run->steps++; /* long chains of scopes cost */
    }
    if (!walsh_tpl_find_function(n->text, out)) *out = walsh_tpl_undefined(n->text);
    return WALSH_OK;
}

static enum walsh_status eval_list(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                   value *out)
{
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, n->count, out));
    out->aux = n->kind == TPL_TUPLE;
    for (size_t i = 0; i < n->count; i++)
        WALSH_TRY(walsh_tpl_eval(run, scope, n->list[i], &out->u.list->items[i]));
    return WALSH_OK;
}

static enum walsh_status eval_dict(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                   value *out)
{
    value key, member;
    WALSH_TRY(walsh_tpl_new_dict(run, TPL_OBJECT, n->count / 2, out));
    for (size_t i = 0; i < n->count; i += 2) {
        WALSH_TRY(walsh_tpl_eval(run, scope, n->list[i], &key));
        WALSH_TRY(walsh_tpl_eval(run, scope, n->list[i + 1], &member));
        WALSH_TRY(walsh_tpl_dict_set(run, out->u.dict, key, member));
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_eval_arguments(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                           const node *n, struct walsh_tpl_arguments *out)
{
    const size_t words = n->keyword_count;
    *out = (struct walsh_tpl_arguments){.count = n->count, .keyword_count = words};
    WALSH_TRY(walsh_tpl_alloc(run, n->count + 1, sizeof *out->values, &out->values));
    WALSH_TRY(walsh_tpl_alloc(run, words + 1, sizeof *out->keywords, &out->keywords)); /* one more: caller */
    for (size_t i = 0; i < n->count; i++) WALSH_TRY(walsh_tpl_eval(run, scope, n->list[i], &out->values[i]));
    for (size_t i = 0; i < words; i++) {
        out->keywords[i].key = walsh_tpl_string(n->keywords[i].name.data, n->keywords[i].name.size);
        WALSH_TRY(walsh_tpl_eval(run, scope, n->keywords[i].value, &out->keywords[i].value));
    }
    return WALSH_OK;
}

enum walsh_status walsh_tpl_call(struct walsh_tpl_run *run, const node *n, const value *callee,
                                 const struct walsh_tpl_arguments *arguments, value *out)
{
    run->line = n->line;
    switch ((enum walsh_tpl_type)callee->type) {
    case TPL_FUNCTION:
        return walsh_tpl_call_function(run, callee->aux, arguments, out);
    case TPL_METHOD:
        return walsh_tpl_call_method(run, callee, arguments, out);
    case TPL_MACRO_VALUE:
        return walsh_tpl_call_macro(run, callee->u.macro, arguments, out);
    case TPL_LOOP_VALUE:
        return walsh_tpl_call_loop(run, callee->u.loop, arguments, out);
    case TPL_UNDEFINED:
        return TPL_FAIL(run, "\"%.*s\" is undefined", (int)walsh_min(callee->u.text.size, 60),
                        callee->u.text.data);
    default:
        return TPL_FAIL(run, "a %s cannot be called", walsh_tpl_type_name(callee));
    }
}

static enum walsh_status eval_call(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                   value *out)
{
    value callee;
    struct walsh_tpl_arguments arguments;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &callee));
    WALSH_TRY(walsh_tpl_eval_arguments(run, scope, n, &arguments));
    return walsh_tpl_call(run, n, &callee, &arguments, out);
}

static enum walsh_status eval_filter_or_test(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope,
                                             const node *n, value *out)
{
    value of;
    struct walsh_tpl_arguments arguments;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &of));
    WALSH_TRY(walsh_tpl_eval_arguments(run, scope, n, &arguments));
    run->line = n->line;
    if (n->kind == TPL_FILTER) return walsh_tpl_filter(run, n->text, &of, &arguments, out);
    *out = walsh_tpl_bool(false);
    return walsh_tpl_test(run, n->text, &of, &arguments, &out->u.boolean);
}

static enum walsh_status eval_slice(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                    value *out)
{
    value of, parts[3];
    const node *nodes[3] = {n->b, n->c, n->d};
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &of));
    for (int i = 0; i < 3; i++) {
        parts[i] = walsh_tpl_none();
        if (nodes[i]) WALSH_TRY(walsh_tpl_eval(run, scope, nodes[i], &parts[i]));
    }
    run->line = n->line;
    return walsh_tpl_slice(run, &of, &parts[0], &parts[1], &parts[2], out);
}

static enum walsh_status compare_two(struct walsh_tpl_run *run, enum walsh_tpl_operator op, const value *a,
                                     const value *b, bool *out)
{
    int order;
    if (op == TPL_EQUAL || op == TPL_UNEQUAL) {
        *out = walsh_tpl_equal(run, a, b) == (op == TPL_EQUAL);
        return walsh_tpl_spend(run, 0);
    }
    if (op == TPL_IN || op == TPL_NOT_IN) {
        WALSH_TRY(walsh_tpl_contains(run, b, a, out));
        *out = *out == (op == TPL_IN);
        return WALSH_OK;
    }
    WALSH_TRY(walsh_tpl_order(run, a, b, &order));
    *out = order != 2 && (op == TPL_LESS         ? order < 0
                          : op == TPL_LESS_EQUAL ? order <= 0
                          : op == TPL_GREATER    ? order > 0
                                                 : order >= 0);
    return WALSH_OK;
}

/* a < b < c: each pair, until one is false. */
static enum walsh_status eval_compare(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                      value *out)
{
    value left, right;
    bool holds = true;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &left));
    for (size_t i = 0; i < n->count && holds; i++) {
        WALSH_TRY(walsh_tpl_eval(run, scope, n->list[i], &right));
        run->line = n->line;
        WALSH_TRY(compare_two(run, n->ops[i], &left, &right, &holds));
        left = right;
    }
    *out = walsh_tpl_bool(holds);
    return WALSH_OK;
}

static enum walsh_status eval_binary(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                     value *out)
{
    value a, b;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &a));
    WALSH_TRY(walsh_tpl_eval(run, scope, n->b, &b));
    run->line = n->line;
    return walsh_tpl_binary(run, n->op, &a, &b, out);
}

static enum walsh_status eval_sign(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                   value *out)
{
    const value zero = walsh_tpl_int(0);
    value of;
    double number;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &of));
    run->line = n->line;
    if (!walsh_tpl_number(&of, &number)) return TPL_FAIL(run, "a sign before a %s", walsh_tpl_type_name(&of));
    if (of.type == TPL_REAL) {
        *out = walsh_tpl_real(n->kind == TPL_NEGATIVE ? -number : number);
        return WALSH_OK;
    }
    return walsh_tpl_binary(run, n->kind == TPL_NEGATIVE ? TPL_SUBTRACT : TPL_ADD, &zero, &of, out);
}

static enum walsh_status eval_concat(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                     value *out)
{
    value parts;
    WALSH_TRY(eval_list(run, scope, n, &parts));
    const size_t mark = run->out.size;
    for (size_t i = 0; i < n->count; i++) WALSH_TRY(walsh_tpl_print(run, &parts.u.list->items[i]));
    return walsh_tpl_take(run, mark, out);
}

static enum walsh_status eval_access(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                     value *out)
{
    value of, key;
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, &of));
    if (n->kind == TPL_ITEM) WALSH_TRY(walsh_tpl_eval(run, scope, n->b, &key));
    run->line = n->line;
    return n->kind == TPL_ITEM ? walsh_tpl_item(run, &of, &key, out)
                               : walsh_tpl_attribute(run, &of, n->text, out);
}

/* and, or, not, if */
static enum walsh_status eval_logic(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                    value *out)
{
    static const struct walsh_tpl_text nothing = {"an if without else", 18};
    WALSH_TRY(walsh_tpl_eval(run, scope, n->a, out));
    const bool truth = walsh_tpl_truth(out);
    switch (n->kind) {
    case TPL_NOT:
        *out = walsh_tpl_bool(!truth);
        return WALSH_OK;
    case TPL_AND:
        return truth ? walsh_tpl_eval(run, scope, n->b, out) : WALSH_OK;
    case TPL_OR:
        return truth ? WALSH_OK : walsh_tpl_eval(run, scope, n->b, out);
    default:
        break;
    }
    const node *chosen = truth ? n->b : n->c;
    if (chosen) return walsh_tpl_eval(run, scope, chosen, out);
    *out = walsh_tpl_undefined(nothing);
    return WALSH_OK;
}

static enum walsh_status eval_kind(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                   value *out)
{
    switch (n->kind) {
    case TPL_CONST_NONE:
        *out = walsh_tpl_none();
        return WALSH_OK;
    case TPL_CONST_BOOL:
        *out = walsh_tpl_bool(n->integer != 0);
        return WALSH_OK;
    case TPL_CONST_INT:
        *out = walsh_tpl_int(n->integer);
        return WALSH_OK;
    case TPL_CONST_FLOAT:
        *out = walsh_tpl_real(n->real);
        return WALSH_OK;
    case TPL_CONST_TEXT:
        *out = walsh_tpl_string(n->text.data, n->text.size);
        return WALSH_OK;
    case TPL_HOLE:
        *out = run->hole;
        return WALSH_OK;
    case TPL_LOOKUP:
        return look_up(run, scope, n, out);
    case TPL_ATTRIBUTE:
    case TPL_ITEM:
        return eval_access(run, scope, n, out);
    case TPL_SLICE:
        return eval_slice(run, scope, n, out);
    case TPL_CALL:
        return eval_call(run, scope, n, out);
    case TPL_FILTER:
    case TPL_TEST:
        return eval_filter_or_test(run, scope, n, out);
    case TPL_LIST:
    case TPL_TUPLE:
        return eval_list(run, scope, n, out);
    case TPL_DICT:
        return eval_dict(run, scope, n, out);
    case TPL_NEGATIVE:
    case TPL_POSITIVE:
        return eval_sign(run, scope, n, out);
    case TPL_BINARY:
        return eval_binary(run, scope, n, out);
    case TPL_CONCAT:
        return eval_concat(run, scope, n, out);
    case TPL_COMPARE:
        return eval_compare(run, scope, n, out);
    default:
        return eval_logic(run, scope, n, out);
    }
}

enum walsh_status walsh_tpl_enter(struct walsh_tpl_run *run)
{
    if (++run->depth > run->limits->depth)
        return walsh_fail(run->err, WALSH_E_CAPACITY, "evaluations are nested deeper than %u",
                          run->limits->depth);
    return walsh_tpl_spend(run, 1);
}

enum walsh_status walsh_tpl_eval(struct walsh_tpl_run *run, struct walsh_tpl_scope *scope, const node *n,
                                 value *out)
{
    WALSH_TRY(walsh_tpl_enter(run));
    WALSH_TRY(eval_kind(run, scope, n, out));
    run->depth--;
    return WALSH_OK;
}

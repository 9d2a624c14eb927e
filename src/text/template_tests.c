/* What may stand behind "is". */
#include <string.h>

#include "text/template_internal.h"

const struct walsh_tpl_value *walsh_tpl_argument(const struct walsh_tpl_arguments *arguments, size_t i,
                                                 const char *name)
{
    if (i < arguments->count) return &arguments->values[i];
    for (size_t k = 0; k < arguments->keyword_count; k++)
        if (walsh_tpl_text_is(arguments->keywords[k].key.u.text, name)) return &arguments->keywords[k].value;
    return NULL;
}

/* Tests of the type alone. */
static bool type_test(struct walsh_tpl_text name, const struct walsh_tpl_value *v, bool *out)
{
    const uint8_t type = v->type;
    const bool sequence =
        type == TPL_TEXT || type == TPL_ARRAY || type == TPL_OBJECT || type == TPL_UNDEFINED;
    const struct {
        const char *name;
        bool result;
    } tests[] = {
        {"defined", type != TPL_UNDEFINED},
        {"undefined", type == TPL_UNDEFINED},
        {"none", type == TPL_NONE},
        {"string", type == TPL_TEXT},
        {"mapping", type == TPL_OBJECT},
        {"sequence", sequence},
        {"iterable", sequence || type == TPL_VIEW || type == TPL_ITERATOR || type == TPL_LOOP_VALUE},
        {"number", type == TPL_INT || type == TPL_REAL || type == TPL_BOOL},
        {"integer", type == TPL_INT},
        {"float", type == TPL_REAL},
        {"boolean", type == TPL_BOOL},
        {"true", type == TPL_BOOL && v->u.boolean},
        {"false", type == TPL_BOOL && !v->u.boolean},
        {"callable", type == TPL_MACRO_VALUE || type == TPL_FUNCTION || type == TPL_METHOD ||
                         type == TPL_LOOP_VALUE || type == TPL_UNDEFINED},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (!walsh_tpl_text_is(name, tests[i].name)) continue;
        *out = tests[i].result;
        return true;
    }
    return false;
}

static bool same_object(const struct walsh_tpl_value *a, const struct walsh_tpl_value *b)
{
    if (a->type != b->type) return false;
    switch (a->type) {
    case TPL_NONE:
        return true;
    case TPL_BOOL:
        return a->u.boolean == b->u.boolean;
    case TPL_INT:
        return a->u.integer == b->u.integer;
    case TPL_REAL:
    case TPL_TEXT:
    case TPL_UNDEFINED:
        return false;
    default:
        return a->u.self == b->u.self;
    }
}

/* The comparison that a test's name stands for; false: another test. */
static bool comparison(struct walsh_tpl_text name, enum walsh_tpl_operator *op)
{
    static const struct {
        const char *name;
        enum walsh_tpl_operator op;
    } names[] = {
        {"eq", TPL_EQUAL},      {"equalto", TPL_EQUAL},       {"ne", TPL_UNEQUAL},
        {"lt", TPL_LESS},       {"lessthan", TPL_LESS},       {"le", TPL_LESS_EQUAL},
        {"gt", TPL_GREATER},    {"greaterthan", TPL_GREATER}, {"ge", TPL_GREATER_EQUAL},
        {"==", TPL_EQUAL},      {"!=", TPL_UNEQUAL},          {"<", TPL_LESS},
        {"<=", TPL_LESS_EQUAL}, {">", TPL_GREATER},           {">=", TPL_GREATER_EQUAL},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!walsh_tpl_text_is(name, names[i].name)) continue;
        *op = names[i].op;
        return true;
    }
    return false;
}

static enum walsh_status compare(struct walsh_tpl_run *run, enum walsh_tpl_operator op,
                                 const struct walsh_tpl_value *a, const struct walsh_tpl_value *b, bool *out)
{
    int order;
    if (op == TPL_EQUAL || op == TPL_UNEQUAL) {
        *out = walsh_tpl_equal(run, a, b) == (op == TPL_EQUAL);
        return walsh_tpl_spend(run, 0);
    }
    WALSH_TRY(walsh_tpl_order(run, a, b, &order));
    *out = order != 2 && (op == TPL_LESS         ? order < 0
                          : op == TPL_LESS_EQUAL ? order <= 0
                          : op == TPL_GREATER    ? order > 0
                                                 : order >= 0);
    return WALSH_OK;
}

static enum walsh_status divisible(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, int64_t by,
                                   int64_t rest, bool *out)
{
    const struct walsh_tpl_value divisor = walsh_tpl_int(by);
    struct walsh_tpl_value result;
    double number;
    WALSH_TRY(walsh_tpl_binary(run, TPL_MODULO, v, &divisor, &result));
    *out = walsh_tpl_number(&result, &number) && number == (double)rest;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_test(struct walsh_tpl_run *run, struct walsh_tpl_text name,
                                 const struct walsh_tpl_value *v, const struct walsh_tpl_arguments *arguments,
                                 bool *out)
{
    enum walsh_tpl_operator op;
    const struct walsh_tpl_value *argument = walsh_tpl_argument(arguments, 0, "other");
    struct walsh_tpl_value text;
    if (type_test(name, v, out)) return WALSH_OK;
    if (walsh_tpl_text_is(name, "odd")) return divisible(run, v, 2, 1, out);
    if (walsh_tpl_text_is(name, "even")) return divisible(run, v, 2, 0, out);
    if (walsh_tpl_text_is(name, "lower") || walsh_tpl_text_is(name, "upper")) {
        WALSH_TRY(walsh_tpl_to_text(run, v, &text));
        *out = walsh_tpl_text_is_lower(text.u.text, walsh_tpl_text_is(name, "upper"));
        return WALSH_OK;
    }
    const bool compares = comparison(name, &op), in = walsh_tpl_text_is(name, "in"),
               same = walsh_tpl_text_is(name, "sameas"), divides = walsh_tpl_text_is(name, "divisibleby");
    if (!compares && !in && !same && !divides)
        return walsh_fail(run->err, WALSH_E_UNSUPPORTED, "the test \"%.*s\" is not known",
                          (int)walsh_min(name.size, 60), name.data);
    if (!argument) return TPL_FAIL(run, "the test \"%.*s\" needs an argument", (int)name.size, name.data);
    if (compares) return compare(run, op, v, argument, out);
    if (in) return walsh_tpl_contains(run, argument, v, out);
    if (divides) {
        if (argument->type != TPL_INT) return TPL_FAIL(run, "divisibleby: expected an int");
        return divisible(run, v, argument->u.integer, 0, out);
    }
    *out = same_object(v, argument);
    return WALSH_OK;
}

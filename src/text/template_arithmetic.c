/* Operators between values, as Python has them; integers have 64 bits and overflow is an error. */
#include <math.h>
#include <string.h>

#include "text/template_internal.h"

static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};

static enum walsh_status no_operator(struct walsh_tpl_run *run, enum walsh_tpl_operator op,
                                     const struct walsh_tpl_value *a, const struct walsh_tpl_value *b)
{
    const struct walsh_tpl_value *missing = a->type == TPL_UNDEFINED   ? a
                                            : b->type == TPL_UNDEFINED ? b
                                                                       : NULL;
    if (missing)
        return TPL_FAIL(run, "%s: \"%.*s\" is undefined", names[op], (int)walsh_min(missing->u.text.size, 60),
                        missing->u.text.data);
    return TPL_FAIL(run, "%s between a %s and a %s", names[op], walsh_tpl_type_name(a),
                    walsh_tpl_type_name(b));
}

static bool whole(const struct walsh_tpl_value *v, int64_t *out)
{
    *out = v->type == TPL_INT ? v->u.integer : v->type == TPL_BOOL ? v->u.boolean : 0;
    return v->type == TPL_INT || v->type == TPL_BOOL;
}

static bool power(int64_t base, int64_t exponent, int64_t *out)
{
    *out = 1;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1 && __builtin_mul_overflow(*out, base, out)) return false;
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return false;
    }
    return true;
}

static enum walsh_status whole_numbers(struct walsh_tpl_run *run, enum walsh_tpl_operator op, int64_t i,
                                       int64_t j, struct walsh_tpl_value *out)
{
    int64_t result = 0;
    bool fits = true;
    switch (op) {
    case TPL_ADD:
        fits = !__builtin_add_overflow(i, j, &result);
        break;
    case TPL_SUBTRACT:
        fits = !__builtin_sub_overflow(i, j, &result);
        break;
    case TPL_MULTIPLY:
        fits = !__builtin_mul_overflow(i, j, &result);
        break;
    case TPL_FLOOR_DIVIDE:
    case TPL_MODULO: {
        if (j == 0) return TPL_FAIL(run, "%s: division by zero", names[op]);
        if (j == -1) { /* INT64_MIN / -1 traps */
            fits = op == TPL_MODULO || !__builtin_sub_overflow(0, i, &result);
            break;
        }
        const bool floor_down = i % j != 0 && (i % j < 0) != (j < 0);
        result = op == TPL_MODULO ? i % j + (floor_down ? j : 0) : i / j - floor_down;
        break;
    }
    default:
        fits = power(i, j, &result);
    }
    if (!fits) return TPL_FAIL(run, "%s: the result is beyond 64 bits", names[op]);
    *out = walsh_tpl_int(result);
    return WALSH_OK;
}

static enum walsh_status real_numbers(struct walsh_tpl_run *run, enum walsh_tpl_operator op, double x,
                                      double y, struct walsh_tpl_value *out)
{
    double result;
    if ((op == TPL_DIVIDE || op == TPL_FLOOR_DIVIDE || op == TPL_MODULO) && y == 0)
        return TPL_FAIL(run, "%s: division by zero", names[op]);
    switch (op) {
    case TPL_ADD:
        result = x + y;
        break;
    case TPL_SUBTRACT:
        result = x - y;
        break;
    case TPL_MULTIPLY:
        result = x * y;
        break;
    case TPL_DIVIDE:
        result = x / y;
        break;
    case TPL_FLOOR_DIVIDE:
        result = floor(x / y);
        break;
    case TPL_MODULO:
        result = fmod(x, y);
        if (result != 0 && (result < 0) != (y < 0)) result += y;
        break;
    default:
        result = pow(x, y);
        if (isnan(result) || isinf(result)) return TPL_FAIL(run, "**: the result is not a number");
    }
    *out = walsh_tpl_real(result);
    return WALSH_OK;
}

/* A text or a list, `times` times. */
static enum walsh_status repeat(struct walsh_tpl_run *run, const struct walsh_tpl_value *v, int64_t times,
                                struct walsh_tpl_value *out)
{
    size_t total;
    if (times < 0) times = 0;
    if (v->type == TPL_TEXT) {
        const size_t mark = run->out.size;
        for (int64_t i = 0; v->u.text.size && i < times; i++) {
            WALSH_TRY(walsh_tpl_spend(run, 1));
            WALSH_TRY(walsh_tpl_put(run, v->u.text.data, v->u.text.size));
        }
        return walsh_tpl_take(run, mark, out);
    }
    const struct walsh_tpl_list *list = v->u.list;
    if (!walsh_mul(list->count, (size_t)times, &total)) total = SIZE_MAX / sizeof *list->items;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, total, out));
    out->aux = v->aux;
    for (size_t i = 0; i < total; i++) out->u.list->items[i] = list->items[i % list->count];
    return WALSH_OK;
}

static enum walsh_status join_lists(struct walsh_tpl_run *run, const struct walsh_tpl_value *a,
                                    const struct walsh_tpl_value *b, struct walsh_tpl_value *out)
{
    const struct walsh_tpl_list *l = a->u.list, *m = b->u.list;
    WALSH_TRY(walsh_tpl_new_list(run, TPL_ARRAY, l->count + m->count, out));
    out->aux = a->aux;
    if (l->count) memcpy(out->u.list->items, l->items, l->count * sizeof *l->items);
    if (m->count) memcpy(out->u.list->items + l->count, m->items, m->count * sizeof *m->items);
    return WALSH_OK;
}

enum walsh_status walsh_tpl_binary(struct walsh_tpl_run *run, enum walsh_tpl_operator op,
                                   const struct walsh_tpl_value *a, const struct walsh_tpl_value *b,
                                   struct walsh_tpl_value *out)
{
    int64_t i, j;
    double x, y;
    const bool whole_a = whole(a, &i), whole_b = whole(b, &j);
    if (whole_a && whole_b && op != TPL_DIVIDE && !(op == TPL_POWER && j < 0))
        return whole_numbers(run, op, i, j, out);
    if (walsh_tpl_number(a, &x) && walsh_tpl_number(b, &y)) return real_numbers(run, op, x, y, out);
    const bool sequence_a = a->type == TPL_TEXT || a->type == TPL_ARRAY,
               sequence_b = b->type == TPL_TEXT || b->type == TPL_ARRAY;
    if (op == TPL_MULTIPLY && sequence_a && whole_b) return repeat(run, a, j, out);
    if (op == TPL_MULTIPLY && sequence_b && whole_a) return repeat(run, b, i, out);
    if (op == TPL_MODULO && a->type == TPL_TEXT) {
        const bool tuple = b->type == TPL_ARRAY && b->aux;
        return walsh_tpl_format(run, a->u.text, tuple ? b->u.list->items : b, tuple ? b->u.list->count : 1,
                                out);
    }
    if (op != TPL_ADD || a->type != b->type || !sequence_a || (a->type == TPL_ARRAY && a->aux != b->aux))
        return no_operator(run, op, a, b);
    if (a->type == TPL_ARRAY) return join_lists(run, a, b, out);
    const size_t mark = run->out.size;
    WALSH_TRY(walsh_tpl_put(run, a->u.text.data, a->u.text.size));
    WALSH_TRY(walsh_tpl_put(run, b->u.text.data, b->u.text.size));
    return walsh_tpl_take(run, mark, out);
}

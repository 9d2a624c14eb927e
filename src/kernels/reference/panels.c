/* Panels of bf16 matrices and their products, as formulas. */
#include "base/memory.h"
#include "base/scalar.h"
#include "kernels/table.h"

/* Element `column` of an output; 0 behind the last. */
static uint32_t element(const struct walsh_weights *w, bool transposed, size_t output, size_t column)
{
    const uint16_t *data = w->data;
    if (column >= (transposed ? w->rows : w->cols)) return 0;
    return transposed ? data[column * w->cols + output] : data[output * w->cols + column];
}

void walsh_pack_panels_bf16_reference(const struct walsh_weights *w, bool transposed, size_t begin,
                                      size_t end, uint32_t *panels)
{
    const size_t depth = transposed ? w->rows : w->cols;
    for (size_t column = 0; column < depth; column += WALSH_PANEL_DEPTH) {
        const size_t steps = walsh_panel_steps(walsh_min(WALSH_PANEL_DEPTH, depth - column));
        for (size_t first = begin; first < end; first += WALSH_PANEL_OUTPUTS) {
            const size_t width = walsh_round_up(walsh_min(WALSH_PANEL_OUTPUTS, end - first), 16);
            uint32_t *to = panels + walsh_panel_at(end - begin, depth, column, first - begin);
            for (size_t s = 0; s < steps; s++)
                for (size_t o = first; o < first + width; o++)
                    *to++ = o >= end ? 0
                                     : element(w, transposed, o, column + 2 * s) |
                                           element(w, transposed, o, column + 2 * s + 1) << 16;
        }
    }
}

static double wide(uint32_t bits)
{
    return (double)walsh_float_from_bits(bits << 16);
}

/* One output of one row by one block of a term. */
static double block(const struct walsh_panel_term *t, size_t column, size_t output, const uint16_t *a)
{
    const size_t first = output / WALSH_PANEL_OUTPUTS * WALSH_PANEL_OUTPUTS,
                 steps = walsh_div_up(walsh_min(WALSH_PANEL_DEPTH, t->depth - column), 2),
                 width = walsh_min(WALSH_PANEL_OUTPUTS, walsh_round_up(t->outputs, 16) - first);
    const uint32_t *panel = t->panels + walsh_panel_at(t->outputs, t->depth, column, first) + output - first;
    double sum = 0;
    for (size_t s = 0; s < steps; s++) {
        const uint32_t pair = panel[s * width];
        sum += wide(pair & 0xffff) * wide(a[column + 2 * s]) + wide(pair >> 16) * wide(a[column + 2 * s + 1]);
    }
    return sum;
}

void walsh_product_panels_bf16_reference(const struct walsh_panels_product *p)
{
    for (size_t i = 0; i < p->rows; i++)
        for (size_t o = p->begin; o < p->end; o++) {
            float *y = p->y + i * p->ldy + o;
            double sum = p->add ? (double)*y : 0;
            for (size_t n = 0; n < p->count; n++) {
                const struct walsh_panel_term *t = &p->terms[n];
                for (size_t column = 0; column < t->depth; column += WALSH_PANEL_DEPTH)
                    sum += block(t, column, o - t->shift, t->a + i * t->lda);
            }
            *y = (float)sum;
        }
}

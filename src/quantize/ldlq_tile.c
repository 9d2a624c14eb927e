#include "quantize/ldlq_tile.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/table.h"
#include "quantize/blas.h"

enum { GROUP = 8, TILE = WALSH_LDLQ_TILE, PANEL = WALSH_LDLQ_PANEL };

/* Codes of up to TILE groups and what they decode to. */
struct encoded {
    union {
        uint16_t e8p[TILE];
        uint8_t e81b[TILE];
    } stage[WALSH_MAX_STAGES];
    float value[TILE][GROUP];
};

/* All stages, each on what the ones before left. */
static void encode(const struct walsh_ldlq_state *s, const float target[TILE][GROUP], size_t rows,
                   struct encoded *out)
{
    float rest[TILE][GROUP], part[TILE][GROUP];
    memset(out->value, 0, rows * sizeof *out->value);
    for (unsigned k = 0; k < s->plan->stages; k++) {
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < GROUP; i++) rest[r][i] = (target[r][i] - out->value[r][i]) / s->scale[k];
        if (s->plan->kind[k] == WALSH_STAGE_E8P)
            s->kernels->e8p_encode_f32(out->stage[k].e8p, part[0], rest[0], rows);
        else
            s->kernels->e81b_encode_f32(out->stage[k].e81b, part[0], rest[0], rows);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < GROUP; i++) out->value[r][i] += s->scale[k] * part[r][i];
    }
}

/* Put row r of `found` at group k of the tile's row. */
static void store(const struct walsh_ldlq_state *s, const struct encoded *found, size_t r, size_t row,
                  size_t k)
{
    const size_t at = (row + r) * (s->n / GROUP) + k;
    for (unsigned stage = 0; stage < s->plan->stages; stage++) {
        if (s->plan->kind[stage] == WALSH_STAGE_E8P)
            ((uint16_t *)s->codes[stage])[at] = found->stage[stage].e8p[r];
        else
            ((uint8_t *)s->codes[stage])[at] = found->stage[stage].e81b[r];
    }
}

/* y[0..width) += sum over i < 8 of x[i] * b[i][0..width), row stride ldb. */
static void add_rank8(float *y, const float x[GROUP], const float *b, size_t ldb, size_t width)
{
    for (size_t i = 0; i < GROUP; i++)
        for (size_t j = 0; j < width; j++) y[j] += x[i] * b[i * ldb + j];
}

void walsh_ldlq_sweep(const struct walsh_ldlq_state *s, size_t row, size_t rows)
{
    const size_t n = s->n;
    const float *factor = s->input->factor;
    float feedback[TILE][PANEL], target[TILE][GROUP];
    struct encoded found;
    for (size_t panel = n - PANEL;; panel -= PANEL) {
        const size_t after = panel + PANEL;
        memset(feedback, 0, sizeof feedback);
        if (factor && after < n) /* E of the panels behind, through the factor */
            walsh_blas_multiply_add(rows, PANEL, n - after, s->error + row * n + after, n,
                                    factor + after * n + panel, n, feedback[0], PANEL);
        for (size_t column = PANEL - GROUP;; column -= GROUP) {
            const size_t at = panel + column;
            for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < GROUP; i++)
                    target[r][i] = s->target[(row + r) * n + at + i] + feedback[r][column + i];
            encode(s, target, rows, &found);
            for (size_t r = 0; r < rows; r++) {
                float *error = s->error + (row + r) * n + at;
                for (size_t i = 0; i < GROUP; i++)
                    error[i] = s->target[(row + r) * n + at + i] - found.value[r][i];
                store(s, &found, r, row, at / GROUP);
                if (factor) add_rank8(feedback[r], error, factor + at * n + panel, n, column);
            }
            if (column == 0) break;
        }
        if (panel == 0) break;
    }
}

/* d h d^T for an 8x8 block h of row stride n. */
static float quadratic(const float d[GROUP], const float *h, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < GROUP; i++) {
        float row = 0;
        for (size_t j = 0; j < GROUP; j++) row += h[i * n + j] * d[j];
        sum += d[i] * row;
    }
    return sum;
}

size_t walsh_ldlq_pass(const struct walsh_ldlq_state *s, size_t row, size_t rows)
{
    const size_t n = s->n;
    const float *h = s->input->hessian;
    float gradient[TILE][PANEL], value[TILE][GROUP], best[TILE][GROUP];
    struct encoded found;
    size_t changed = 0;
    for (size_t panel = n - PANEL;; panel -= PANEL) {
        memset(gradient, 0, sizeof gradient);
        walsh_blas_multiply_add(rows, PANEL, n, s->error + row * n, n, h + panel, n, gradient[0], PANEL);
        for (size_t column = PANEL - GROUP;; column -= GROUP) {
            const size_t at = panel + column;
            const float *inverse = s->input->inverse + at * GROUP;
            /* the unconstrained minimum of this block: what is decoded now plus (E H)_k H_kk^-1 */
            for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < GROUP; i++) {
                    value[r][i] = s->target[(row + r) * n + at + i] - s->error[(row + r) * n + at + i];
                    float step = 0;
                    for (size_t j = 0; j < GROUP; j++)
                        step += gradient[r][column + j] * inverse[j * GROUP + i];
                    best[r][i] = value[r][i] + step;
                }
            encode(s, best, rows, &found);
            for (size_t r = 0; r < rows; r++) {
                float before[GROUP], after[GROUP], change[GROUP];
                for (size_t i = 0; i < GROUP; i++) {
                    before[i] = best[r][i] - value[r][i];
                    after[i] = best[r][i] - found.value[r][i];
                    change[i] = value[r][i] - found.value[r][i];
                }
                const float *block = h + at * n + at;
                if (quadratic(after, block, n) >= quadratic(before, block, n)) continue;
                float *error = s->error + (row + r) * n + at;
                for (size_t i = 0; i < GROUP; i++) error[i] += change[i];
                store(s, &found, r, row, at / GROUP);
                add_rank8(gradient[r], change, h + at * n + panel, n, PANEL);
                changed++;
            }
            if (column == 0) break;
        }
        if (panel == 0) break;
    }
    return changed;
}

double walsh_ldlq_trace(const struct walsh_ldlq_input *input, const float *e, size_t row, size_t rows)
{
    const size_t n = input->n;
    double trace = 0;
    for (size_t panel = 0; panel < n; panel += PANEL) {
        float product[TILE][PANEL] = {{0}};
        walsh_blas_multiply_add(rows, PANEL, n, e + row * n, n, input->hessian + panel, n, product[0], PANEL);
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < PANEL; i++)
                trace += (double)product[r][i] * (double)e[(row + r) * n + panel + i];
    }
    return trace;
}

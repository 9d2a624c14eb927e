/* The optimal scalar quantizer of a coordinate of a random unit vector: levels that are the centroids of
 * their cells, cells bounded by the midpoints of the levels (Lloyd 1982, Max 1960). The density is even and
 * log-concave, so there is one optimum and it is symmetric: only the positive half is solved for. */
#include <math.h>

#include "formats/turbo.h"

#define HALF (WALSH_TURBO_MAX_LEVELS / 2)
#define NODES 16  /* of the Gauss-Legendre rule on a panel */
#define STEPS 100 /* of Newton; about eight are needed */
#define GRID 8192 /* points of the table from which Newton starts */

struct rule {
    double node[NODES], weight[NODES]; /* on [-1, 1] */
};

struct solver {
    struct rule rule;
    double dim;
    uint32_t count;                      /* levels of the positive half */
    double level[HALF], bound[HALF + 1]; /* cell i is [bound[i], bound[i + 1]]; bound[0] = 0, the last 1 */
    double mass[HALF], pull[HALF];       /* of cell i: integrals of f and of (t - level) f */
    double edge[HALF], step[HALF];
};

/* Roots of the Legendre polynomial of degree NODES by Newton's method, and the weights that belong to them.
 */
static void make_rule(struct rule *r)
{
    for (int i = 0; i < NODES; i++) {
        double x = cos(3.14159265358979323846 * (i + 0.75) / (NODES + 0.5)), slope = 1;
        for (int repeat = 0; repeat < 8; repeat++) {
            double before = 1, value = x;
            for (int k = 2; k <= NODES; k++) {
                double next = ((2 * k - 1) * x * value - (k - 1) * before) / k;
                before = value;
                value = next;
            }
            slope = NODES * (x * value - before) / (x * x - 1);
            x -= value / slope;
        }
        r->node[i] = x;
        r->weight[i] = 2 / ((1 - x * x) * slope * slope);
    }
}

static double density(double dim, double t)
{
    return pow(1 - t * t, (dim - 3) / 2);
}

struct moments {
    double zero, one, two; /* integrals of f, (t - about) f, (t - about)^2 f */
};

/* With t = sin(angle) the integrand is a power of a cosine times polynomials of a sine: smooth up to the end,
 * and of width 1/sqrt(dim), which is what a panel gets. */
static struct moments integrate(const struct solver *s, double from, double to, double about)
{
    double a = asin(from), width = asin(to) - a;
    int panels = 1 + (int)(width * sqrt(s->dim));
    struct moments m = {0, 0, 0};
    for (int p = 0; p < panels; p++)
        for (int i = 0; i < NODES; i++) {
            double angle = a + width * (p + 0.5 + 0.5 * s->rule.node[i]) / panels;
            double f = s->rule.weight[i] * pow(cos(angle), s->dim - 2), t = sin(angle) - about;
            m.zero += f;
            m.one += f * t;
            m.two += f * t * t;
        }
    double scale = width / (2 * panels);
    return (struct moments){m.zero * scale, m.one * scale, m.two * scale};
}

/* Levels at the quantiles of f^(1/3), where they are dense in the limit of many levels (Panter and Dite
 * 1951). */
static void start(struct solver *s)
{
    double most = fmin(1, 24 / sqrt(s->dim)), sum = 0, total = 0;
    for (int i = 0; i < GRID; i++) total += cbrt(density(s->dim, most * (i + 0.5) / GRID));
    uint32_t k = 0;
    for (int i = 0; i < GRID && k < s->count; i++) {
        double part = cbrt(density(s->dim, most * (i + 0.5) / GRID)), want;
        while (k < s->count && (want = total * (k + 0.5) / s->count) <= sum + part)
            s->level[k++] = most * (i + (want - sum) / part) / GRID;
        sum += part;
    }
    while (k < s->count) s->level[k++] = most; /* the rounding of the sums; the levels before it are below */
}

static void measure_cells(struct solver *s)
{
    s->bound[0] = 0;
    s->bound[s->count] = 1;
    for (uint32_t i = 1; i < s->count; i++) s->bound[i] = (s->level[i - 1] + s->level[i]) / 2;
    for (uint32_t i = 0; i < s->count; i++) {
        struct moments m = integrate(s, s->bound[i], s->bound[i + 1], s->level[i]);
        s->mass[i] = m.zero;
        s->pull[i] = m.one;
    }
}

/* Solve J step = pull, J the derivative of mass_i * (level_i - centroid_i): symmetric and tridiagonal, with
 * the edges f(bound) * gap / 4 off the diagonal. False where a pivot is not positive. */
static bool newton(struct solver *s)
{
    double diagonal[HALF];
    for (uint32_t i = 0; i < s->count; i++) {
        bool last = i + 1 == s->count;
        s->edge[i] = last ? 0 : density(s->dim, s->bound[i + 1]) * (s->level[i + 1] - s->level[i]) / 4;
        diagonal[i] = s->mass[i] - s->edge[i] - (i > 0 ? s->edge[i - 1] : 0);
        s->step[i] = s->pull[i];
    }
    for (uint32_t i = 1; i < s->count; i++) {
        if (!(diagonal[i - 1] > 0)) return false;
        double factor = s->edge[i - 1] / diagonal[i - 1];
        diagonal[i] -= factor * s->edge[i - 1];
        s->step[i] += factor * s->step[i - 1];
    }
    if (!(diagonal[s->count - 1] > 0)) return false;
    for (uint32_t i = s->count; i-- > 0;) {
        if (i + 1 < s->count) s->step[i] += s->edge[i] * s->step[i + 1];
        s->step[i] /= diagonal[i];
    }
    double below = 0;
    for (uint32_t i = 0; i < s->count; i++) {
        if (!(s->level[i] + s->step[i] > below)) return false;
        below = s->level[i] + s->step[i];
    }
    return below < 1;
}

static bool solve(struct solver *s)
{
    start(s);
    for (int n = 0; n < STEPS; n++) {
        measure_cells(s);
        if (!newton(s))
            for (uint32_t i = 0; i < s->count; i++) s->step[i] = s->pull[i] / s->mass[i]; /* Lloyd's step */
        double largest = 0;
        for (uint32_t i = 0; i < s->count; i++) {
            s->level[i] += s->step[i];
            largest = fmax(largest, fabs(s->step[i]));
        }
        if (largest * sqrt(s->dim) < 1e-12) return true;
    }
    return false;
}

/* Levels as integers: the largest value takes so many bits that rounding costs below 0.3% of the distortion,
 * and no more, since sums of codes share 32 bits with the precision of what they are multiplied by. */
static void round_levels(const struct solver *s, struct walsh_turbo_codebook *out)
{
    uint32_t half = s->count;
    out->limit = (int16_t)(out->bits <= 6 ? 1023 : out->bits == 7 ? 2047 : 4095);
    out->scale = (float)(s->level[half - 1] / out->limit);
    for (uint32_t i = 0; i < half; i++) {
        int16_t value = (int16_t)lrint(s->level[i] / s->level[half - 1] * out->limit);
        out->value[half + i] = value;
        out->value[half - 1 - i] = (int16_t)-value;
        out->optimum[half + i] = s->level[i];
        out->optimum[half - 1 - i] = -s->level[i];
    }
    for (uint32_t i = 0; i + 1 < out->levels; i++)
        out->midpoint[i] = (float)(0.5 * (out->value[i] + out->value[i + 1]) * (double)out->scale);
    for (uint32_t depth = 0; depth < out->bits; depth++)
        for (uint32_t i = 0; i < 1u << depth; i++)
            out->tree[(1u << depth) + i] = out->midpoint[((2 * i + 1) << (out->bits - 1 - depth)) - 1];
    double error = 0, mass = 0;
    for (uint32_t i = 0; i < half; i++) {
        double from = i == 0 ? 0 : (double)out->midpoint[half - 1 + i];
        double to = i + 1 == half ? 1 : (double)out->midpoint[half + i];
        struct moments m = integrate(s, from, to, (double)out->scale * out->value[half + i]);
        error += m.two;
        mass += m.zero;
    }
    out->distortion = s->dim * error / mass;
}

enum walsh_status walsh_turbo_codebook_build(uint32_t dim, unsigned bits, struct walsh_turbo_codebook *out,
                                             struct walsh_error *err)
{
    if (dim == 0 || dim % WALSH_TURBO_DIM_STEP != 0 || dim > WALSH_TURBO_MAX_DIM)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "turbo cache: head dimension %u, expected a multiple of %u up to %u", dim,
                          WALSH_TURBO_DIM_STEP, WALSH_TURBO_MAX_DIM);
    if (bits == 0 || bits > WALSH_TURBO_MAX_BITS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "turbo cache: %u bits, expected 1 to %u", bits,
                          WALSH_TURBO_MAX_BITS);
    *out = (struct walsh_turbo_codebook){.dim = dim, .bits = bits, .levels = 1u << bits};
    struct solver s = {.dim = dim, .count = out->levels / 2};
    make_rule(&s.rule);
    if (!solve(&s))
        return walsh_fail(err, WALSH_E_INTERNAL, "turbo cache: no codebook for %u bits of dimension %u", bits,
                          dim);
    round_levels(&s, out);
    return WALSH_OK;
}

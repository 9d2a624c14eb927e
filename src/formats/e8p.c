#include "formats/e8p.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

/* Coordinate of nibble i in a packed row, and sign bit of coordinate i in a code's low byte. */
static const uint8_t coordinate_of_nibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};
static const uint8_t sign_bit[8] = {0, 4, 1, 5, 2, 6, 3, 7};

enum { LAST_ROWS = 227 }; /* rows 227..255: the chosen 29 of squared norm 12 */

/* The three coordinates that are .5 in each of the last 29 rows; the other five are 1.5. */
static const char last_rows[29][4] = {
    "123", "023", "013", "012", "367", "357", "347", "356", "346", "345", "267", "257", "247", "256", "246",
    "245", "167", "157", "147", "156", "146", "045", "067", "057", "047", "056", "046", "014", "237",
};

static struct walsh_e8p_tables tables;
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

/* Next vector over {0, ..., base-1}^8 in lexicographic order, coordinate 0 most significant; 0 after the
 * last. */
static int next_vector(uint8_t v[8], uint8_t base)
{
    for (int i = 7; i >= 0; i--) {
        if (++v[i] < base) return 1;
        v[i] = 0;
    }
    return 0;
}

static unsigned base3_index(const uint8_t digits[8])
{
    unsigned index = 0;
    for (int i = 0; i < 8; i++) index = 3 * index + digits[i];
    return index;
}

static void build_e8p(void)
{
    /* |a|^2 = sum (m + 1/2)^2 = 2 + sum m(m+1) <= 10; a magnitude of 3 (3.5) alone would be 14 */
    unsigned row = 0;
    uint8_t m[8] = {0};
    do {
        unsigned excess = 0;
        for (int i = 0; i < 8; i++) excess += (unsigned)m[i] * (m[i] + 1u);
        if (excess <= 8) memcpy(tables.magnitude[row++], m, 8);
    } while (next_vector(m, 3));
    for (unsigned k = 0; k < 29; k++, row++) {
        memset(tables.magnitude[row], 1, 8);
        for (int i = 0; i < 3; i++) {
            int coordinate = last_rows[k][i] - '0';
            tables.magnitude[row][coordinate] = 0;
            tables.last29[k] |= 1u << coordinate;
        }
    }
    for (row = 0; row < 256; row++) {
        const uint8_t *v = tables.magnitude[row];
        unsigned sum = 0; /* of the values: sum m + 4 */
        for (int i = 0; i < 8; i++) {
            sum += v[i];
            tables.magnitude_bits[row] |= (uint32_t)v[i] << (2 * i);
        }
        tables.odd[row] = sum & 1;
        tables.row_of_magnitude[base3_index(v)] = (uint8_t)row;
        for (int i = 0; i < 8; i++) {
            int coordinate = coordinate_of_nibble[i];
            int twice = 2 * v[coordinate] + 1;
            if (coordinate == 7 && tables.odd[row]) twice = -twice;
            tables.packed[row] |= (uint32_t)(twice + 8) << (4 * i);
        }
    }
}

static void build_e81b(void)
{
    unsigned entry = 0;
    uint8_t v[8] = {0};
    do { /* integer vectors of even sum and squared norm <= 2; digit = 1 + value */
        int sum = 0, norm = 0;
        for (int i = 0; i < 8; i++) {
            int value = (int)v[i] - 1;
            sum += value;
            norm += value * value;
        }
        if (norm > 2 || sum % 2 != 0) continue;
        for (int i = 0; i < 8; i++) tables.e81b_x2[entry][i] = (int8_t)(2 * ((int)v[i] - 1));
        tables.e81b_of_integer[base3_index(v)] = (uint8_t)entry++;
    } while (next_vector(v, 3));
    memset(v, 0, sizeof v);
    do { /* halves of even sum; digit 0 = -1/2, 1 = +1/2 */
        int twice_sum = 0;
        for (int i = 0; i < 8; i++) twice_sum += 2 * (int)v[i] - 1;
        if (twice_sum % 4 != 0) continue;
        for (int i = 0; i < 8; i++) tables.e81b_x2[entry][i] = (int8_t)(2 * (int)v[i] - 1);
        entry++;
    } while (next_vector(v, 2));
    for (int i = 0; i < 8; i++) tables.e81b_x2[entry++][i] = 4;
    for (int i = 0; i < 7; i++) tables.e81b_x2[entry++][i] = -4;
}

static void build_tables(void)
{
    build_e8p();
    build_e81b();
}

const struct walsh_e8p_tables *walsh_e8p_tables(void)
{
    pthread_once(&tables_once, build_tables);
    return &tables;
}

void walsh_e8p_decode_x4(uint16_t code, int8_t x4[8])
{
    const uint32_t packed = walsh_e8p_tables()->packed[code >> 8];
    unsigned signs = code & 255u;
    const unsigned odd = (unsigned)__builtin_popcount(signs) & 1;
    signs ^= odd;
    for (int i = 0; i < 8; i++) {
        const int coordinate = coordinate_of_nibble[i];
        int value = 2 * ((int)((packed >> (4 * i)) & 15) - 8);
        if ((signs >> sign_bit[coordinate]) & 1) value = -value;
        x4[coordinate] = (int8_t)(value + (odd ? -1 : 1));
    }
}

void walsh_e8p_decode(uint16_t code, float w[8])
{
    int8_t x4[8];
    walsh_e8p_decode_x4(code, x4);
    for (int i = 0; i < 8; i++) w[i] = 0.25f * (float)x4[i];
}

void walsh_e81b_decode(uint8_t code, float w[8])
{
    const int8_t *x2 = walsh_e8p_tables()->e81b_x2[code];
    for (int i = 0; i < 8; i++) w[i] = 0.5f * (float)x2[i];
}

/* What the encoders search for: x on the grid, or x itself where it is far outside the codebooks. */
static void grid_point(const float x[8], double u[8])
{
    bool near = true;
    for (int i = 0; i < 8; i++) near = near && fabsf(x[i]) <= WALSH_E8P_GRID_LIMIT;
    for (int i = 0; i < 8; i++) {
        if (near)
            u[i] = ldexp(rint(ldexp((double)x[i], WALSH_E8P_GRID_BITS)), -WALSH_E8P_GRID_BITS);
        else if (isnan(x[i]))
            u[i] = 0;
        else
            u[i] = fmin(fmax((double)x[i], -(double)FLT_MAX), (double)FLT_MAX);
    }
}

/* The smallest sign byte among the nearest ones of a row in a coset: sign of u where it has one, bit 0 where
 * u is 0; where the number of set bits is odd, the cheapest coordinate is flipped. *cost is what that adds to
 * half the squared distance. */
static unsigned nearest_signs(const double u[8], const uint8_t magnitude[8], unsigned row_odd, unsigned coset,
                              double *cost)
{
    unsigned bits = 0;
    for (int i = 0; i < 8; i++) {
        unsigned negative = u[i] < 0 || (u[i] == 0 && i == 7 && row_odd);
        bits |= (negative ^ (i == 7 && row_odd)) << sign_bit[i];
    }
    *cost = 0;
    if (__builtin_popcount(bits) % 2 == 0) return bits ^ coset;
    unsigned best = 0;
    *cost = DBL_MAX;
    for (int i = 0; i < 8; i++) {
        double flip = 2 * fabs(u[i]) * (magnitude[i] + 0.5);
        unsigned candidate = (bits ^ (1u << sign_bit[i])) ^ coset;
        if (flip < *cost || (flip == *cost && candidate < best)) {
            *cost = flip;
            best = candidate;
        }
    }
    return best;
}

uint16_t walsh_e8p_encode(const float x[8], float w[8])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    /* Minimise |u - a|^2/2 = |u|^2/2 - <u, a> + |a|^2/2 over cosets (u = x -+ 1/4), rows and signs; term
     * holds what a coordinate of magnitude m + 1/2 with u's own sign adds to it. */
    double y[8], u[2][8], term[2][8][3], quarter_sum = 0;
    grid_point(x, y);
    for (int i = 0; i < 8; i++) {
        u[0][i] = y[i] - 0.25;
        u[1][i] = y[i] + 0.25;
        quarter_sum += 0.25 * y[i];
        for (int coset = 0; coset < 2; coset++)
            for (int m = 0; m < 3; m++)
                term[coset][i][m] = 0.5 * (m + 0.5) * (m + 0.5) - fabs(u[coset][i]) * (m + 0.5);
    }
    const double half_norm[2] = {-quarter_sum, quarter_sum}; /* |u|^2/2 less what the cosets share */

    double best = DBL_MAX;
    unsigned code = 0;
    for (unsigned row = 0; row < 256; row++) {
        const uint8_t *m = t->magnitude[row];
        for (unsigned coset = 0; coset < 2; coset++) {
            double distance = half_norm[coset], cost;
            for (int i = 0; i < 8; i++) distance += term[coset][i][m[i]];
            if (distance > best) continue;
            unsigned candidate = row << 8 | nearest_signs(u[coset], m, t->odd[row], coset, &cost);
            distance += cost;
            if (distance < best || (distance == best && candidate < code)) {
                best = distance;
                code = candidate;
            }
        }
    }
    if (w) walsh_e8p_decode((uint16_t)code, w);
    return (uint16_t)code;
}

uint8_t walsh_e81b_encode(const float x[8], float w[8])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    double u[8], best = DBL_MAX;
    grid_point(x, u);
    unsigned code = 0;
    for (unsigned entry = 0; entry < 256; entry++) {
        double distance = 0; /* |v|^2/2 - <u, v> */
        for (int i = 0; i < 8; i++) {
            double v = 0.5 * t->e81b_x2[entry][i];
            distance += v * (0.5 * v - u[i]);
        }
        if (distance < best) {
            best = distance;
            code = entry;
        }
    }
    if (w) walsh_e81b_decode((uint8_t)code, w);
    return (uint8_t)code;
}

enum walsh_status walsh_e8p_plan_bits(unsigned bits, struct walsh_e8p_plan *out, struct walsh_error *err)
{
    if (bits < 2 || bits > 2 * WALSH_MAX_STAGES)
        return walsh_fail(err, WALSH_E_ARGUMENT, "e8p has 2 to %d bits per weight, not %u",
                          2 * WALSH_MAX_STAGES, bits);
    memset(out, 0, sizeof *out);
    out->stages = (bits + 1) / 2;
    double product = 1;
    for (unsigned k = 0; k < out->stages; k++) {
        bool last_byte =
            bits % 2 == 1 && k + 1 == out->stages; /* an odd width ends with the 8-bit codebook */
        out->kind[k] = last_byte ? WALSH_STAGE_E81B : WALSH_STAGE_E8P;
        out->residual_scale[k] = k == 0      ? 1.0f
                                 : last_byte ? WALSH_E81B_RESIDUAL_SCALE
                                             : WALSH_E8P_RESIDUAL_SCALE;
        product *= (double)out->residual_scale[k];
        out->cumulative_inverse[k] = (float)(1 / product);
    }
    return WALSH_OK;
}

/* The nearest-code searches of E8P and E81B on many vectors at once, one vector per 32-bit lane. An
 * instruction set's encode.c defines the type `lanes` (LANES integers), the type `mask` and the small
 * functions used here, then includes this file.
 *
 * All arithmetic is on integers: coordinates are multiples of 2^-21 of magnitude at most 16 (formats/e8p.h),
 * so that scores are exact, fit 31 bits, and equal the reference's. Both searches rest on the rearrangement
 * inequality: within all sign changes and permutations of one pattern, the nearest point gives the larger
 * magnitudes to the larger |u|, and where the parity of the signs must be mended, the smallest |u|, which has
 * the smallest magnitude, is flipped. So the |u| are sorted and only a few families of patterns compared.
 * That is unambiguous while all |u| differ, none is 0 and one candidate is strictly best; the rare lanes
 * where this does not hold, and vectors beyond the grid, are left to the reference, which knows the rule for
 * ties. */
#include <limits.h>
#include <string.h>

#include "formats/e8p.h"

enum {
    ONE = 1 << WALSH_E8P_GRID_BITS,
    QUARTER = ONE / 4,
};

static const int power_of_3[8] = {2187, 729, 243, 81, 27, 9, 3, 1}; /* of coordinate i in a base-3 number */
static const int sign_mask[8] = {1, 16, 2, 32, 4, 64, 8, 128};      /* of coordinate i in an E8P code */

static inline void order(lanes *larger, lanes *smaller)
{
    lanes a = *larger, b = *smaller;
    *larger = lanes_max(a, b);
    *smaller = lanes_min(a, b);
}

/* v descending, by the 19 comparators of an optimal network for eight. */
static inline void sort8(lanes v[8])
{
    static const unsigned char network[19][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5}, {2, 6},
                                                 {3, 7}, {0, 1}, {2, 3}, {4, 5}, {6, 7}, {2, 4}, {3, 5},
                                                 {1, 4}, {3, 6}, {1, 2}, {3, 4}, {5, 6}};
#pragma GCC unroll 19
    for (int i = 0; i < 19; i++) order(&v[network[i][0]], &v[network[i][1]]);
}

/* Lanes whose sorted magnitudes v leave a choice: two equal, or a 0 whose sign is free. */
static inline mask ambiguous(const lanes v[8])
{
    mask m = lanes_equal(v[7], lanes_set(0));
#pragma GCC unroll 7
    for (int i = 0; i < 7; i++) m = mask_or(m, lanes_equal(v[i], v[i + 1]));
    return m;
}

/* The best candidate so far; `tie` where another has the same score. */
struct best {
    lanes score, id;
    mask tie;
};

static inline void challenge(struct best *b, lanes score, lanes id)
{
    mask more = lanes_less(b->score, score);
    b->tie = mask_or(mask_andnot(b->tie, more), lanes_equal(b->score, score));
    b->score = lanes_max(b->score, score);
    b->id = lanes_select(more, id, b->id);
}

/* E8P. A candidate's id: bits 0-2 the number of magnitudes that are at least 1.5, bit 3 set where one of them
 * is 2.5, bit 4 set for the last 29 rows, bits 8.. then the index among them, bit 16 the coset -1/4. */
enum { TWO = 8, LAST = 16, INDEX_SHIFT = 8, COSET = 1 << 16 };

/* The complement of each of the last 29 rows as coordinates: the three that are .5. */
static const unsigned char last_rows[29][3] = {
    {1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}, {3, 6, 7}, {3, 5, 7}, {3, 4, 7}, {3, 5, 6},
    {3, 4, 6}, {3, 4, 5}, {2, 6, 7}, {2, 5, 7}, {2, 4, 7}, {2, 5, 6}, {2, 4, 6}, {2, 4, 5},
    {1, 6, 7}, {1, 5, 7}, {1, 4, 7}, {1, 5, 6}, {1, 4, 6}, {0, 4, 5}, {0, 6, 7}, {0, 5, 7},
    {0, 4, 7}, {0, 5, 6}, {0, 4, 6}, {0, 1, 4}, {2, 3, 7}};

/* The best of the last 29 rows for magnitudes a of sum `sum`: five 1.5 gain |u| - 1 each, so the three .5 go
 * where the sum of |u| is least. In lanes of `flip` the signs' parity must be mended too; a flipped 1.5 would
 * lose to the norm-10 row with +.5 there, so the flip is among the three as well. */
static inline void challenge_last(struct best *b, const lanes a[8], lanes sum, mask flip, lanes id)
{
    struct best least = {lanes_set(INT_MIN), lanes_set(0), mask_none()};
    lanes zero = lanes_set(0);
#pragma GCC unroll 29
    for (int k = 0; k < 29; k++) {
        lanes p = a[last_rows[k][0]], q = a[last_rows[k][1]], r = a[last_rows[k][2]];
        lanes cost = lanes_add(lanes_add(p, q), r);
        cost = lanes_add(cost, lanes_keep(flip, lanes_min(lanes_min(p, q), r)));
        challenge(&least, lanes_sub(zero, cost), lanes_set(k << INDEX_SHIFT));
    }
    mask before = b->tie;
    lanes score = lanes_add(lanes_sub(sum, lanes_set(5 * ONE)), least.score);
    mask more = lanes_less(b->score, score), same = lanes_equal(b->score, score);
    b->tie = mask_or(mask_or(mask_andnot(before, more), same), mask_and(least.tie, more));
    b->score = lanes_max(b->score, score);
    b->id = lanes_select(more, lanes_or(id, lanes_or(lanes_set(LAST | 5), least.id)), b->id);
}

/* What one coset leaves for the reconstruction. */
struct coset {
    lanes u[8], a[8], v[8]; /* u, |u|, |u| sorted */
    mask odd;               /* an odd number of u is negative */
};

/* Gains over the row of all .5: a magnitude of 1.5 gains |u| - 1, one of 2.5 gains 2|u| - 3; less v[7] where
 * the parity must be mended. Scores are 4 times the gain plus 2 sum |u| -+ sum x: 4 times <u, a> - |a|^2/2 -
 * |u|^2/2 up to what all codes share. */
static inline struct best search_coset(const lanes x[8], lanes x_sum, int negative, struct coset *c)
{
    lanes sum = lanes_set(0), signs = lanes_set(0), one = lanes_set(ONE);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        c->u[i] = lanes_add(x[i], lanes_set(negative ? QUARTER : -QUARTER));
        c->a[i] = c->v[i] = lanes_abs(c->u[i]);
        sum = lanes_add(sum, c->a[i]);
        signs = lanes_xor(signs, c->u[i]);
    }
    sort8(c->v);
    c->odd = lanes_less(signs, lanes_set(0));
    const int coset = negative ? COSET : 0;
    lanes even_cost = lanes_keep(c->odd, c->v[7]), odd_cost = lanes_sub(c->v[7], even_cost);
    lanes gain1 = lanes_sub(c->v[0], one), gain2 = lanes_add(gain1, lanes_sub(c->v[1], one));
    lanes gain3 = lanes_add(gain2, lanes_sub(c->v[2], one)),
          gain4 = lanes_add(gain3, lanes_sub(c->v[3], one));
    lanes two = lanes_sub(lanes_add(gain1, gain1), one);
    struct best b = {lanes_sub(lanes_set(0), even_cost), lanes_set(coset), ambiguous(c->v)};
    mask unclear = b.tie;
    challenge(&b, lanes_sub(gain1, odd_cost), lanes_set(coset | 1));
    challenge(&b, lanes_sub(gain2, even_cost), lanes_set(coset | 2));
    challenge(&b, lanes_sub(gain3, odd_cost), lanes_set(coset | 3));
    challenge(&b, lanes_sub(gain4, even_cost), lanes_set(coset | 4));
    challenge(&b, lanes_sub(two, even_cost), lanes_set(coset | TWO | 1));
    challenge(&b, lanes_sub(lanes_add(two, lanes_sub(c->v[1], one)), odd_cost), lanes_set(coset | TWO | 2));
    challenge_last(&b, c->a, sum, mask_andnot(mask_all(), c->odd), lanes_set(coset));
    b.tie = mask_or(b.tie, unclear);
    lanes half = lanes_add(b.score, b.score);
    b.score = lanes_add(lanes_add(half, half), lanes_add(sum, sum));
    b.score = negative ? lanes_sub(b.score, x_sum) : lanes_add(b.score, x_sum);
    return b;
}

/* Codes of LANES vectors x, and their values times 4 in x4. Returns the lanes that are undecided. */
static inline mask e8p_search(const lanes x[8], lanes *code, lanes x4[8])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    lanes x_sum = x[0], zero = lanes_set(0);
#pragma GCC unroll 7
    for (int i = 1; i < 8; i++) x_sum = lanes_add(x_sum, x[i]);
    struct coset plus, minus;
    struct best best = search_coset(x, x_sum, 0, &plus), other = search_coset(x, x_sum, 1, &minus);
    mask take = lanes_less(best.score, other.score);
    mask undecided = mask_or(mask_or(best.tie, other.tie), lanes_equal(best.score, other.score));
    lanes id = lanes_select(take, other.id, best.id), u[8], a[8], v[5];
    static const int kept[5] = {0, 1, 2, 3, 7};
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        u[i] = lanes_select(take, minus.u[i], plus.u[i]);
        a[i] = lanes_select(take, minus.a[i], plus.a[i]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < 5; i++) v[i] = lanes_select(take, minus.v[kept[i]], plus.v[kept[i]]);

    /* the row: magnitudes from two thresholds, or from the index of a last row */
    lanes ones = lanes_and(id, lanes_set(7)), index = lanes_and(lanes_right(id, INDEX_SHIFT), lanes_set(31));
    lanes least1 = lanes_set(INT_MAX), key = zero;
#pragma GCC unroll 4
    for (int k = 1; k <= 4; k++) least1 = lanes_select(lanes_equal(ones, lanes_set(k)), v[k - 1], least1);
    mask last = lanes_nonzero(lanes_and(id, lanes_set(LAST)));
    lanes least2 = lanes_select(lanes_nonzero(lanes_and(id, lanes_set(TWO))), v[0], lanes_set(INT_MAX));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        lanes digit = lanes_set(power_of_3[i]);
        key = lanes_add(key, lanes_sub(digit, lanes_keep(lanes_less(a[i], least1), digit)));
        key = lanes_add(key, lanes_sub(digit, lanes_keep(lanes_less(a[i], least2), digit)));
    }
    lanes row = lanes_and(lanes_gather(t->row_of_magnitude, key), lanes_set(255));
    row = lanes_select(last, lanes_add(index, lanes_set(227)), row);
    lanes magnitudes = lanes_gather(t->magnitude_bits, lanes_left(row, 2));

    /* the signs; a last row flips the smallest of its three */
    lanes odd_row = lanes_xor(lanes_and(ones, lanes_set(1)), lanes_right(lanes_and(id, lanes_set(TWO)), 3));
    mask odd_signs = mask_select(take, minus.odd, plus.odd), odd_rows = lanes_nonzero(odd_row);
    mask flip = mask_xor(odd_signs, odd_rows);
    lanes least3 = lanes_set(INT_MAX);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        mask half = lanes_equal(lanes_and(magnitudes, lanes_set(3 << (2 * i))), zero);
        least3 = lanes_min(least3, lanes_select(half, a[i], lanes_set(INT_MAX)));
    }
    lanes flipped = lanes_select(last, least3, v[4]);
    lanes coset = lanes_right(id, 16), bits = lanes_xor(coset, lanes_left(odd_row, 7));
    lanes shift = lanes_sub(lanes_set(1), lanes_add(coset, coset));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        mask negative = mask_xor(lanes_less(u[i], zero), mask_and(flip, lanes_equal(a[i], flipped)));
        bits = lanes_xor(bits, lanes_keep(negative, lanes_set(sign_mask[i])));
        lanes m = lanes_and(lanes_right(magnitudes, 2 * i), lanes_set(3));
        m = lanes_add(lanes_left(m, 2), lanes_set(2));
        x4[i] = lanes_add(lanes_select(negative, lanes_sub(zero, m), m), shift);
    }
    *code = lanes_or(lanes_left(row, 8), bits);
    return undecided;
}

/* E81B: the best of zero, the pairs +-1 +-1, the halves, and +-2 alone (-2 e7 is not in the codebook). Scores
 * are 2<x, v> - |v|^2. x2: twice the values. */
enum { ZERO, PAIR, HALVES, AXIS };

static inline mask e81b_search(const lanes x[8], lanes *code, lanes x2[8])
{
    const struct walsh_e8p_tables *t = walsh_e8p_tables();
    lanes a[8], v[8], zero = lanes_set(0), sum = zero, signs = zero;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[i] = v[i] = lanes_abs(x[i]);
        sum = lanes_add(sum, a[i]);
        signs = lanes_xor(signs, x[i]);
    }
    sort8(v);
    mask odd = lanes_less(signs, zero);
    lanes axis = lanes_max(x[7], a[0]);
#pragma GCC unroll 6
    for (int i = 1; i < 7; i++) axis = lanes_max(axis, a[i]);
    lanes pair = lanes_add(v[0], v[1]), one2 = lanes_set(2 * ONE), least = lanes_keep(odd, v[7]);
    struct best b = {zero, lanes_set(ZERO), ambiguous(v)};
    mask unclear = b.tie;
    challenge(&b, lanes_sub(lanes_add(pair, pair), one2), lanes_set(PAIR));
    challenge(&b, lanes_sub(lanes_sub(sum, lanes_add(least, least)), one2), lanes_set(HALVES));
    challenge(&b, lanes_left(lanes_sub(axis, lanes_set(ONE)), 2), lanes_set(AXIS));
    mask undecided = mask_or(b.tie, unclear);

    lanes key = lanes_set((WALSH_E8P_PATTERNS - 1) / 2), halves = zero, on_axis = zero;
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        mask negative = lanes_less(x[i], zero), in_pair = mask_andnot(mask_all(), lanes_less(a[i], v[1]));
        lanes digit = lanes_set(power_of_3[i]);
        key = lanes_add(key, lanes_keep(in_pair, lanes_select(negative, lanes_sub(zero, digit), digit)));
        mask minus = mask_xor(negative, mask_and(odd, lanes_equal(a[i], v[7])));
        halves = lanes_or(halves, lanes_keep(mask_andnot(mask_all(), minus), lanes_set(128 >> i)));
        lanes entry = lanes_add(lanes_set(241 + i), lanes_keep(negative, lanes_set(8)));
        on_axis = lanes_or(on_axis, lanes_keep(lanes_equal(a[i], axis), entry));
    }
    lanes integer = lanes_and(lanes_gather(t->e81b_of_integer, key), lanes_set(255));
    *code = lanes_select(lanes_equal(b.id, lanes_set(ZERO)), lanes_set(56), integer);
    *code = lanes_select(lanes_equal(b.id, lanes_set(HALVES)),
                         lanes_add(lanes_right(halves, 1), lanes_set(113)), *code);
    *code = lanes_select(lanes_equal(b.id, lanes_set(AXIS)), on_axis, *code);
    lanes low = lanes_gather(t->e81b_x2, lanes_left(*code, 3));
    lanes high = lanes_gather(&t->e81b_x2[0][4], lanes_left(*code, 3));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x2[i] = lanes_right_signed(lanes_left(i < 4 ? low : high, 24 - 8 * (i % 4)), 24);
    return undecided;
}

/* Whole groups of LANES vectors; a last one that is short goes through a padded copy. */
static inline void e8p_encode(uint16_t *codes, float *w, const float *x, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        const size_t n = count - i < LANES ? count - i : LANES;
        float in[8 * LANES] = {0}, out[8 * LANES];
        uint16_t found[LANES];
        const float *source = x + 8 * i;
        if (n < LANES) source = memcpy(in, source, 8 * n * sizeof *in);
        lanes u[8], values[8], code;
        mask far = lanes_load_transposed(source, u);
        mask undecided = mask_or(e8p_search(u, &code, values), far);
        lanes_store_u16(n < LANES ? found : codes + i, code);
        float *decoded = !w || n < LANES ? out : w + 8 * i;
        if (w) lanes_store_transposed(decoded, values, 0.25f);
        uint16_t *result = n < LANES ? found : codes + i;
        for (unsigned rest = mask_bits(undecided); rest != 0; rest &= rest - 1) {
            int lane = __builtin_ctz(rest);
            result[lane] = walsh_e8p_encode(source + 8 * lane, w ? decoded + 8 * lane : NULL);
        }
        if (n == LANES) continue;
        memcpy(codes + i, found, n * sizeof *codes);
        if (w) memcpy(w + 8 * i, out, 8 * n * sizeof *w);
    }
}

static inline void e81b_encode(uint8_t *codes, float *w, const float *x, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        const size_t n = count - i < LANES ? count - i : LANES;
        float in[8 * LANES] = {0}, out[8 * LANES];
        uint8_t found[LANES];
        const float *source = x + 8 * i;
        if (n < LANES) source = memcpy(in, source, 8 * n * sizeof *in);
        lanes u[8], values[8], code;
        mask far = lanes_load_transposed(source, u);
        mask undecided = mask_or(e81b_search(u, &code, values), far);
        uint8_t *result = n < LANES ? found : codes + i;
        lanes_store_u8(result, code);
        float *decoded = !w || n < LANES ? out : w + 8 * i;
        if (w) lanes_store_transposed(decoded, values, 0.5f);
        for (unsigned rest = mask_bits(undecided); rest != 0; rest &= rest - 1) {
            int lane = __builtin_ctz(rest);
            result[lane] = walsh_e81b_encode(source + 8 * lane, w ? decoded + 8 * lane : NULL);
        }
        if (n == LANES) continue;
        memcpy(codes + i, found, n * sizeof *codes);
        if (w) memcpy(w + 8 * i, out, 8 * n * sizeof *w);
    }
}

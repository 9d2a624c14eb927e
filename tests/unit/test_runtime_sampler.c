/* The sampler: each filter by what it keeps, the draw by its frequencies. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/sampler.h"

#define VOCAB 8
#define DRAWS 200000

static const struct walsh_sampling plain = {
    .temperature = 1, .top_p = 1, .repeat_penalty = 1, .repeat_last = 64, .seed = 1};

/* log of these probabilities, in no order */
static const double probability[VOCAB] = {0.05, 0.30, 0.02, 0.25, 0.15, 0.01, 0.20, 0.02};

static void logits_of(const double *p, float *logits)
{
    for (int i = 0; i < VOCAB; i++) logits[i] = (float)(log(p[i]) + 3); /* a constant changes nothing */
}

static struct walsh_sampler *open_sampler(const struct walsh_sampling *options)
{
    struct walsh_error err;
    struct walsh_sampler *sampler;
    if (walsh_sampler_create(options, VOCAB, &sampler, &err) != WALSH_OK) fail_msg("%s", err.message);
    return sampler;
}

/* Draw often and compare with `expected` probabilities: within five standard deviations; where 0, never. */
static void check_frequencies(const struct walsh_sampling *options, const double *expected)
{
    float logits[VOCAB];
    int count[VOCAB] = {0};
    logits_of(probability, logits);
    struct walsh_sampler *sampler = open_sampler(options);
    for (int i = 0; i < DRAWS; i++) {
        int32_t id;
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
        count[id]++;
    }
    walsh_sampler_destroy(&sampler);
    for (int i = 0; i < VOCAB; i++) {
        double p = expected[i], bound = 5 * sqrt(p * (1 - p) * DRAWS);
        if (!(fabs(count[i] - p * DRAWS) <= bound))
            fail_msg("token %d: drawn %d times, expected %g +- %g", i, count[i], p * DRAWS, bound);
    }
}

/* The kept tokens' probabilities to the power of 1/temperature, normalised. */
static void expect_kept(const struct walsh_sampling *options, unsigned mask)
{
    double expected[VOCAB], sum = 0;
    for (int i = 0; i < VOCAB; i++) {
        expected[i] = mask >> i & 1 ? pow(probability[i], 1 / options->temperature) : 0;
        sum += expected[i];
    }
    for (int i = 0; i < VOCAB; i++) expected[i] /= sum;
    check_frequencies(options, expected);
}

static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    expect_kept(&plain, 0xff);
    struct walsh_sampling warm = plain, cold = plain;
    warm.temperature = 2;
    expect_kept(&warm, 0xff);
    cold.temperature = 0.5;
    expect_kept(&cold, 0xff);
}

static void filters_keep_what_they_say(void **state)
{
    (void)state;
    struct walsh_sampling o = plain;
    o.top_k = 3;
    expect_kept(&o, 1 << 1 | 1 << 3 | 1 << 6);
    o.top_k = 1;
    expect_kept(&o, 1 << 1);
    o = plain;
    o.top_k = 7; /* tokens 2 and 7 are equal: the lower id stays */
    expect_kept(&o, 0xff & ~(1 << 5));
    o.top_k = 6;
    expect_kept(&o, 0xff & ~(1 << 5 | 1 << 7));

    o = plain;
    o.top_p = 0.6; /* .30 + .25 = .55, so the third is needed */
    expect_kept(&o, 1 << 1 | 1 << 3 | 1 << 6);
    o.top_p = 0.54;
    expect_kept(&o, 1 << 1 | 1 << 3);
    o.top_p = 1e-9; /* never fewer than one */
    expect_kept(&o, 1 << 1);

    o = plain;
    o.min_p = 0.6; /* of .30: .18 */
    expect_kept(&o, 1 << 1 | 1 << 3 | 1 << 6);

    o = plain;
    o.top_k = 4; /* .30 .25 .20 .15 = .90; top-p is a share of that: .63 needs .30 + .25 + .20 */
    o.top_p = 0.7;
    expect_kept(&o, 1 << 1 | 1 << 3 | 1 << 6);
    o.min_p = 0.7; /* .21 */
    expect_kept(&o, 1 << 1 | 1 << 3);

    o = plain;
    o.temperature = 0.5; /* the filters see what the temperature made of it: .30^2 / sum = .388 */
    o.top_p = 0.38;
    expect_kept(&o, 1 << 1);
}

static void greedy_takes_the_first_of_the_largest(void **state)
{
    (void)state;
    struct walsh_sampling o = plain;
    o.temperature = 0;
    struct walsh_sampler *sampler = open_sampler(&o);
    float logits[VOCAB] = {0, 5, -1, 5, 5, 2, 1, 0};
    int32_t id;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
    assert_int_equal(id, 1);
    logits[1] = -INFINITY;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
    assert_int_equal(id, 3);
    walsh_sampler_destroy(&sampler);
}

/* Temperatures, logits and filters at the ends of their ranges: what is drawn can be drawn, and a temperature
 * near nothing is greedy. */
static void extremes_are_drawn_from(void **state)
{
    (void)state;
    static const double temperatures[] = {1e-320, 1e-300, 1e-40, 1e-38, 9e-7, 1e-6,
                                          1e-3,   1,      1e6,   1e40,  1e300};
    static const float extremes[] = {-INFINITY, -3.4e38f, -1e6f, -0.0f, 1e-45f, 30, 1e6f, 3.4e38f};
    static const int32_t excluded[] = {2};
    struct walsh_random random;
    walsh_random_seed(&random, 11);
    for (int round = 0; round < 20000; round++) {
        struct walsh_sampling o = plain;
        float logits[VOCAB];
        int32_t id = -1, best = -1;
        o.temperature = temperatures[walsh_random_u64(&random) % 11];
        o.top_k = walsh_random_u64(&random) % 3 ? 0 : 1 + (uint32_t)(walsh_random_u64(&random) % VOCAB);
        o.top_p = walsh_random_u64(&random) % 3 ? 1 : 1e-300 + walsh_random_uniform(&random) * 0.9;
        o.min_p = walsh_random_u64(&random) % 3 ? 0 : walsh_random_uniform(&random);
        o.repeat_penalty = walsh_random_u64(&random) % 3 ? 1 : 1.5;
        o.excluded = excluded;
        o.excluded_count = walsh_random_u64(&random) % 2;
        for (int i = 0; i < VOCAB; i++) logits[i] = extremes[walsh_random_u64(&random) % 8];
        logits[5] = 1;
        for (int i = 0; i < VOCAB; i++)
            if (!(o.excluded_count && i == 2) && (best < 0 || logits[i] > logits[best])) best = i;
        struct walsh_sampler *sampler = open_sampler(&o);
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
        if (!(id >= 0 && id < VOCAB && logits[id] > -INFINITY && !(o.excluded_count && id == 2)))
            fail_msg("round %d: token %d at temperature %g", round, id, o.temperature);
        if (o.temperature < WALSH_LEAST_TEMPERATURE && id != best)
            fail_msg("round %d: token %d at temperature %g, expected %d", round, id, o.temperature, best);
        walsh_sampler_destroy(&sampler);
    }
}

static void repeats_are_penalized_while_they_are_recent(void **state)
{
    (void)state;
    struct walsh_sampling o = plain;
    o.temperature = 0;
    o.repeat_penalty = 2;
    o.repeat_last = 2;
    struct walsh_sampler *sampler = open_sampler(&o);
    const float logits[VOCAB] = {4, 3, 2.5f, -1, -1.5f, -8, -8, -8};
    /* 4 wins; halved to 2 it loses to 3; then 1.5 and 2 lose to 2.5; the first is forgotten and wins again */
    static const int32_t expected[] = {0, 1, 2, 0, 1, 2};
    for (size_t i = 0; i < 6; i++) {
        int32_t id;
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
        assert_int_equal(id, expected[i]);
    }
    walsh_sampler_destroy(&sampler);

    /* a negative logit is multiplied; twice the same token is penalized once */
    sampler = open_sampler(&o);
    const float negative[VOCAB] = {-1, -1.9f, -2.1f, -9, -9, -9, -9, -9};
    int32_t id;
    walsh_sampler_note(sampler, 0);
    walsh_sampler_note(sampler, 0);
    assert_int_equal(walsh_sampler_choose(sampler, negative, &id, NULL), WALSH_OK);
    assert_int_equal(id, 1); /* -2 < -1.9, and not -4 */
    walsh_sampler_destroy(&sampler);
}

/* Excluded tokens are out before every filter, and stay out where the penalty looks at them. */
static void excluded_tokens_are_never_drawn(void **state)
{
    (void)state;
    static const int32_t excluded[] = {1, 3};
    struct walsh_sampling o = plain;
    o.excluded = excluded;
    o.excluded_count = 2;
    expect_kept(&o, 0xff & ~(1 << 1 | 1 << 3));
    o.top_k = 2;
    expect_kept(&o, 1 << 6 | 1 << 4);
    o.top_k = 0;
    o.top_p = 0.5; /* .20 + .15 of the .45 that are left: .23 are needed */
    expect_kept(&o, 1 << 6 | 1 << 4);

    o = plain;
    o.temperature = 0;
    o.repeat_penalty = 1.5;
    o.excluded = excluded;
    o.excluded_count = 2;
    struct walsh_sampler *sampler = open_sampler(&o);
    const float logits[VOCAB] = {1, 9, 2, 8, 3, 0, 0, 0};
    int32_t id;
    walsh_sampler_note(sampler, 1);
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
    assert_int_equal(id, 4);
    walsh_sampler_destroy(&sampler);
}

/* Only what was drawn counts, a token of the prompt does not; once and for each time are different things. */
static void drawn_tokens_are_penalized(void **state)
{
    (void)state;
    struct walsh_sampling o = plain;
    o.temperature = 0;
    o.presence_penalty = 1;
    const float logits[VOCAB] = {4, 3.5f, 2.9f, -9, -9, -9, -9, -9};
    struct walsh_sampler *sampler = open_sampler(&o);
    walsh_sampler_note(sampler, 0);
    /* 4; then 3.5 beats 3; then 3 beats 2.9 and 2.5; it stays there */
    static const int32_t once[] = {0, 1, 0, 0};
    for (size_t i = 0; i < 4; i++) {
        int32_t id;
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
        assert_int_equal(id, once[i]);
    }
    walsh_sampler_destroy(&sampler);
    o.presence_penalty = 0;
    o.frequency_penalty = 1;
    sampler = open_sampler(&o);
    /* 4; 3.5 beats 3; 3 beats 2.9; 2.9 beats 2.5 and 2; 2.5; 2 beats 1.9; 1.9 beats 1.5 and 1 */
    static const int32_t often[] = {0, 1, 0, 2, 1, 0, 2};
    for (size_t i = 0; i < 7; i++) {
        int32_t id;
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
        assert_int_equal(id, often[i]);
    }
    walsh_sampler_destroy(&sampler);
}

/* A bias moves the probabilities that everything behind it sees; the sampler has a copy of its own. */
static void biases_are_added(void **state)
{
    (void)state;
    int32_t ids[] = {5, 1, 5};
    float biases[] = {(float)log(10), -1e6f, (float)log(2)};
    struct walsh_sampling o = plain;
    o.bias_ids = ids;
    o.biases = biases;
    o.bias_count = 3;
    /* .01 becomes .20, .30 becomes 0: of .89 together */
    const double expected[VOCAB] = {.05 / .89, 0,         .02 / .89, .25 / .89,
                                    .15 / .89, .20 / .89, .20 / .89, .02 / .89};
    check_frequencies(&o, expected);
    float logits[VOCAB];
    int32_t id;
    logits_of(probability, logits);
    o.temperature = 0;
    struct walsh_sampler *sampler = open_sampler(&o);
    ids[1] = 3;
    biases[0] = 100;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, NULL), WALSH_OK);
    assert_int_equal(id, 3);
    walsh_sampler_destroy(&sampler);
}

static void a_seed_fixes_the_draws(void **state)
{
    (void)state;
    float logits[VOCAB];
    logits_of(probability, logits);
    struct walsh_sampling other = plain;
    other.seed = 2;
    struct walsh_sampler *a = open_sampler(&plain), *b = open_sampler(&plain), *c = open_sampler(&other);
    unsigned differ = 0;
    for (int i = 0; i < 200; i++) {
        int32_t x, y, z;
        assert_int_equal(walsh_sampler_choose(a, logits, &x, NULL), WALSH_OK);
        assert_int_equal(walsh_sampler_choose(b, logits, &y, NULL), WALSH_OK);
        assert_int_equal(walsh_sampler_choose(c, logits, &z, NULL), WALSH_OK);
        assert_int_equal(x, y);
        differ += x != z;
    }
    assert_true(differ > 50);
    walsh_sampler_destroy(&a);
    walsh_sampler_destroy(&b);
    walsh_sampler_destroy(&c);
}

static void bad_logits_and_options_are_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_sampler *sampler = open_sampler(&plain);
    float logits[VOCAB] = {0};
    int32_t id;
    logits[6] = NAN;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, &err), WALSH_E_INTERNAL);
    assert_string_equal(err.message, "the logit of token 6 is nan");
    logits[6] = INFINITY;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, &err), WALSH_E_INTERNAL);
    for (int i = 0; i < VOCAB; i++) logits[i] = -INFINITY;
    assert_int_equal(walsh_sampler_choose(sampler, logits, &id, &err), WALSH_E_INTERNAL);
    walsh_sampler_destroy(&sampler);

    struct walsh_sampling o = plain;
    o.temperature = -1;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "temperature is -1, expected 0 or more");
    assert_null(sampler);
    o = plain;
    o.top_p = 1.5;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "top_p is 1.5, expected more than 0, at most 1");
    o = plain;
    o.min_p = NAN;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    o = plain;
    o.repeat_penalty = 0;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    o = plain;
    o.frequency_penalty = NAN;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "frequency_penalty is nan, expected -1e6 to 1e6");
    int32_t bad_id = VOCAB;
    float bad_bias = 1;
    o = plain;
    o.bias_ids = &bad_id;
    o.biases = &bad_bias;
    o.bias_count = 1;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a bias for token 8: the vocabulary has ids 0 to 7");
    bad_id = 7;
    bad_bias = -INFINITY;
    assert_int_equal(walsh_sampler_create(&o, VOCAB, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "the bias of token 7 is -inf, expected -1e6 to 1e6");
}

/* Logits of many shapes: few likely ones, all alike, ties, -Inf, zeros of both signs. */
static void fill_logits(struct walsh_random *random, float *logits, uint32_t vocab)
{
    const uint64_t shape = walsh_random_u64(random) % 5;
    for (uint32_t i = 0; i < vocab; i++) {
        const double x = walsh_random_normal(random);
        logits[i] = shape == 0   ? (float)(3 * x)
                    : shape == 1 ? (float)(0.01 * x)
                    : shape == 2 ? (float)floor(2 * x)
                    : shape == 3 ? (float)(x * x * x * 5 - 20)
                                 : (x > 1 ? 0.0f : -0.0f);
        if (walsh_random_u64(random) % 50 == 0) logits[i] = -INFINITY;
    }
    logits[walsh_random_u64(random) % vocab] = 2;
}

/* The machine's kernels by instruction sets, one after the other. */
static void select_kernels(int turn, struct walsh_kernels *out)
{
    const unsigned masks[] = {0, WALSH_ISA_avx2, WALSH_ISA_avx2 | WALSH_ISA_avx512};
    walsh_kernels_select(masks[turn % 3] & walsh_cpu_isa(), out);
}

/* Every draw is the one that kernels/draw.h writes down, with all options on and off and with all kernels. */
static void draws_are_those_of_the_reference(void **state)
{
    (void)state;
    enum { MOST = 5000, ROUNDS = 300, TIMES = 6, EXCLUDED = 9, BIASES = 12 };
    static float logits[MOST], edited[MOST];
    static int32_t room[2 * MOST];
    struct walsh_random random;
    unsigned below_best = 0;
    walsh_random_seed(&random, 77);
    for (int round = 0; round < ROUNDS; round++) {
        const uint32_t vocab = 1 + (uint32_t)(walsh_random_u64(&random) % (round % 2 ? MOST : 40));
        struct walsh_sampling o = plain;
        struct walsh_kernels kernels;
        int32_t excluded[EXCLUDED], ids[BIASES];
        select_kernels(round, &kernels);
        o.kernels = &kernels;
        float biases[BIASES];
        for (int i = 0; i < EXCLUDED; i++) excluded[i] = (int32_t)(walsh_random_u64(&random) % vocab);
        for (int i = 0; i < BIASES; i++) {
            ids[i] = (int32_t)(walsh_random_u64(&random) % vocab);
            biases[i] = (float)walsh_random_normal(&random);
        }
        o.seed = walsh_random_u64(&random);
        o.temperature = walsh_random_u64(&random) % 6 ? exp(walsh_random_normal(&random)) : 0;
        if (walsh_random_u64(&random) % 2) o.top_k = 1 + (uint32_t)(walsh_random_u64(&random) % (vocab + 3));
        const bool nearly_off = walsh_random_u64(&random) % 2; /* filters that end far down */
        if (walsh_random_u64(&random) % 2)
            o.top_p = 1 - walsh_random_uniform(&random) * (nearly_off ? 1e-3 : 1);
        if (walsh_random_u64(&random) % 3 == 0)
            o.min_p = walsh_random_uniform(&random) * (nearly_off ? 1e-4 : 0.2);
        if (walsh_random_u64(&random) % 2) o.repeat_penalty = 1.3;
        if (walsh_random_u64(&random) % 2) o.presence_penalty = 0.5, o.frequency_penalty = 0.1;
        if (walsh_random_u64(&random) % 2)
            o.excluded = excluded, o.excluded_count = vocab > 20 ? EXCLUDED : 0;
        if (walsh_random_u64(&random) % 2) o.bias_ids = ids, o.biases = biases, o.bias_count = BIASES;
        o.repeat_last = 4;
        struct walsh_sampler *sampler;
        struct walsh_error err;
        if (walsh_sampler_create(&o, vocab, &sampler, &err) != WALSH_OK) fail_msg("%s", err.message);
        for (int i = 0; i < TIMES; i++) {
            struct walsh_draw d;
            int32_t id;
            fill_logits(&random, logits, vocab);
            assert_int_equal(walsh_sampler_plan(sampler, &d, &err), WALSH_OK);
            memcpy(edited, logits, vocab * sizeof *logits);
            const int32_t expected = walsh_draw_reference(&d, edited, vocab, room);
            below_best += expected != room[vocab];
            const enum walsh_status status = walsh_sampler_choose(sampler, logits, &id, &err);
            if (status != WALSH_OK) id = -1;
            if (id != expected) fail_msg("round %d: token %d, expected %d", round, id, expected);
        }
        walsh_sampler_destroy(&sampler);
    }
    assert_in_range(below_best, ROUNDS, ROUNDS * TIMES); /* not all are greedy */
}

/* Of two depths the larger one may have the larger mass, by rounding: a filter between them keeps neither. */
static void masses_that_rise_are_cut_at_the_first(void **state)
{
    (void)state;
    enum { TIMES = 100 };
    float logits[] = {0, 0, -20}, edited[3];
    int32_t room[6];
    uint64_t masses[2] = {WALSH_WHOLE_MASS, WALSH_WHOLE_MASS};
    for (float depth = 0.0005f; masses[1] <= masses[0]; depth = nextafterf(depth, 1)) {
        assert_true(depth < 0.001f);
        logits[1] = logits[2];
        logits[2] = -depth;
        masses[0] = masses[1];
        masses[1] = walsh_mass_of_decay(walsh_decay(depth));
    }
    struct walsh_sampling o = plain;
    o.min_p = (double)masses[1] / (double)WALSH_WHOLE_MASS;
    o.temperature = 1;
    struct walsh_sampler *sampler;
    struct walsh_error err;
    assert_int_equal(walsh_sampler_create(&o, 3, &sampler, &err), WALSH_OK);
    for (int i = 0; i < TIMES; i++) {
        struct walsh_draw d;
        int32_t id;
        assert_int_equal(walsh_sampler_plan(sampler, &d, &err), WALSH_OK);
        memcpy(edited, logits, sizeof logits);
        assert_int_equal(walsh_draw_reference(&d, edited, 3, room), 0);
        assert_int_equal(walsh_sampler_choose(sampler, logits, &id, &err), WALSH_OK);
        assert_int_equal(id, 0);
    }
    walsh_sampler_destroy(&sampler);
}

static void shares_of_a_mass_are_rounded_down(void **state)
{
    (void)state;
    struct walsh_random random;
    walsh_random_seed(&random, 3);
    assert_int_equal(walsh_drawn_mass(((uint64_t)1 << 53) - 1, UINT64_MAX), UINT64_MAX - 2048);
    for (int i = 0; i < 100000; i++) {
        const uint64_t share = walsh_random_u64(&random) >> 11;
        const uint64_t whole = walsh_random_u64(&random) >> walsh_random_u64(&random) % 64;
        __extension__ const unsigned __int128 product = (unsigned __int128)share * whole;
        assert_int_equal(walsh_drawn_mass(share, whole), (uint64_t)(product >> 53));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_are_those_of_the_reference),
        cmocka_unit_test(masses_that_rise_are_cut_at_the_first),
        cmocka_unit_test(shares_of_a_mass_are_rounded_down),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(filters_keep_what_they_say),
        cmocka_unit_test(greedy_takes_the_first_of_the_largest),
        cmocka_unit_test(extremes_are_drawn_from),
        cmocka_unit_test(repeats_are_penalized_while_they_are_recent),
        cmocka_unit_test(excluded_tokens_are_never_drawn),
        cmocka_unit_test(drawn_tokens_are_penalized),
        cmocka_unit_test(biases_are_added),
        cmocka_unit_test(a_seed_fixes_the_draws),
        cmocka_unit_test(bad_logits_and_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The order of codes in the pages of the KV cache: every bit at the place that the header says, nothing else
 * touched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "formats/turbo.h"
#include "formats/turbo_pages.h"

#define SEED 20250120u
#define PAGE 128

static const uint32_t dims[] = {16, 64, 80, 96, 128, 192, 256, 320, 512, 576};
enum { DIMS = sizeof dims / sizeof *dims, MOST = 576 };

static struct walsh_random start(void)
{
    struct walsh_random r;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&r, SEED);
    return r;
}

/* Bit `bit` of the code of (slot, element), by the header's words: counted in bits from the head's beginning.
 */
static size_t bit_place(enum walsh_turbo_side side, uint32_t dim, unsigned bits, uint32_t slot,
                        uint32_t element, unsigned bit)
{
    static const unsigned split[9][4] = {{0},       {1, 0},    {2, 0},    {2, 1, 0}, {4, 0},
                                         {4, 1, 0}, {4, 2, 0}, {4, 2, 1}, {8, 0}};
    unsigned w = 0, before = 0;
    for (unsigned p = 0; before + split[bits][p] <= bit; p++) before += split[bits][p];
    for (unsigned p = 0, low = 0; low <= before; low += split[bits][p++]) w = split[bits][p];
    size_t row, lane, i;
    if (side == WALSH_TURBO_KEY) {
        lane = slot % 16;
        i = element % 32;
        size_t block_bits = 16 * (size_t)dim * bits * (slot / 16);
        size_t group_bits = (size_t)bits * 512 * (element / 32);
        if (dim % 32 != 0 && element / 32 == dim / 32) {
            size_t base = block_bits + group_bits + before / 2 * 512;
            if (w == 1) return base + lane * 16 + i / 2 + 8 * (i % 2);
            return base + i / 2 / (16 / w) * 512 + lane * 32 + i / 2 % (16 / w) * w + 16 * (i % 2) +
                   (bit - before);
        }
        row = (block_bits + group_bits) / 512;
        if (dim % 32 != 0) { /* blocks are odd numbers of half rows */
            size_t base = block_bits + group_bits + before * 512;
            return base + i / 2 / (16 / w) * 512 + lane * 32 + i / 2 % (16 / w) * w + 16 * (i % 2) +
                   (bit - before);
        }
    } else {
        lane = element % 16;
        i = slot % 32;
        row = (size_t)element / 16 * (PAGE / 32) * bits + (size_t)slot / 32 * bits;
    }
    row += before + i / 2 / (16 / w);
    return row * 512 + lane * 32 + i / 2 % (16 / w) * w + 16 * (i % 2) + (bit - before);
}

static void test_every_bit_has_its_place(void **state)
{
    (void)state;
    struct walsh_random random = start();
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits++)
            for (unsigned side = 0; side < 2; side++) {
                const uint32_t dim = dims[k];
                const size_t bytes = walsh_turbo_head_bytes(dim, bits, PAGE);
                assert_int_equal(bytes, PAGE * walsh_turbo_bytes(dim, bits));
                uint8_t *head = malloc(bytes + 1), *expected = malloc(bytes + 1), codes[MOST], back[MOST];
                assert_true(head && expected);
                for (size_t i = 0; i <= bytes; i++)
                    head[i] = expected[i] = (uint8_t)walsh_random_u64(&random);
                for (int n = 0; n < 24; n++) {
                    uint32_t slot =
                        n < 2 ? (uint32_t)n * (PAGE - 1) : (uint32_t)(walsh_random_u64(&random) % PAGE);
                    uint16_t norm = (uint16_t)walsh_random_u64(&random), norm_back;
                    for (uint32_t i = 0; i < dim; i++) {
                        codes[i] = (uint8_t)(walsh_random_u64(&random) & ((1u << bits) - 1));
                        for (unsigned b = 0; b < bits; b++) {
                            size_t at = bit_place(side, dim, bits, slot, i, b);
                            expected[at / 8] &= (uint8_t) ~(1u << at % 8);
                            expected[at / 8] |= (uint8_t)((codes[i] >> b & 1) << at % 8);
                        }
                    }
                    memcpy(expected + (size_t)PAGE * dim * bits / 8 + 2 * slot, &norm, 2);
                    walsh_turbo_store(side, dim, bits, head, PAGE, slot, codes, norm);
                    assert_memory_equal(expected, head, bytes + 1);
                    walsh_turbo_load(side, dim, bits, head, PAGE, slot, back, &norm_back);
                    assert_memory_equal(codes, back, dim);
                    assert_int_equal(norm, norm_back);
                }
                free(head);
                free(expected);
            }
}

/* Every slot and element has a place of its own: all zeros, then all ones fill the codes to the last bit. */
static void test_places_are_a_permutation(void **state)
{
    (void)state;
    for (size_t k = 0; k < DIMS; k++)
        for (unsigned bits = 1; bits <= 8; bits++)
            for (unsigned side = 0; side < 2; side++) {
                const uint32_t dim = dims[k];
                const size_t bytes = walsh_turbo_head_bytes(dim, bits, PAGE);
                uint8_t *head = calloc(bytes, 1), codes[MOST];
                assert_non_null(head);
                memset(codes, (1 << bits) - 1, sizeof codes);
                for (uint32_t slot = 0; slot < PAGE; slot++)
                    walsh_turbo_store(side, dim, bits, head, PAGE, slot, codes, 0xffff);
                for (size_t i = 0; i < bytes; i++) assert_int_equal(head[i], 0xff);
                free(head);
            }
}

/* The same vectors give the same bytes in whatever order and over whatever they are stored. */
static void test_group_1_equal_bytes_in_any_order(void **state)
{
    (void)state;
    struct walsh_random random = start();
    enum { DIM = 80, BITS = 3, BYTES = PAGE * (DIM * BITS / 8 + 2) };
    static uint8_t codes[PAGE][DIM], one[BYTES], two[BYTES];
    memset(two, 0xA5, sizeof two);
    for (unsigned side = 0; side < 2; side++) {
        for (uint32_t s = 0; s < PAGE; s++)
            for (int i = 0; i < DIM; i++) codes[s][i] = (uint8_t)(walsh_random_u64(&random) & 7);
        for (uint32_t s = 0; s < PAGE; s++)
            walsh_turbo_store(side, DIM, BITS, one, PAGE, s, codes[s], (uint16_t)s);
        for (uint32_t s = PAGE; s-- > 0;)
            walsh_turbo_store(side, DIM, BITS, two, PAGE, s, codes[s], (uint16_t)s);
        assert_memory_equal(one, two, BYTES);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_bit_has_its_place),
        cmocka_unit_test(test_places_are_a_permutation),
        cmocka_unit_test(test_group_1_equal_bytes_in_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

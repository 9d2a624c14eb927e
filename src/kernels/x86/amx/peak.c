/* The ceilings of AMX: products of tiles in registers. The tiles hold random numbers: a host gives tiles of zeros a clock that no
 * product ever sees. */
#include "kernels/table.h"
#include "kernels/x86/amx/tiles.h"

enum { CHAINS = 4, MULTIPLY_ADDS = 16 * 16 * 16, TILE_WORDS = 512 };

/* Tiles 4 to 7: random bits under `mask`, the others as in `fixed`, of 16 bits each. */
static void load_random(struct tiles *t, uint16_t mask, uint16_t fixed)
{
    _Alignas(64) uint16_t words[4][TILE_WORDS];
    uint32_t random = 1;
    for (size_t n = 0; n < 4; n++)
        for (size_t i = 0; i < TILE_WORDS; i++) {
            random = random * 1664525 + 1013904223;
            words[n][i] = (uint16_t)((random >> 16 & mask) | fixed);
        }
    (void)t;
    TILE_LOAD(t, 4, words[0], 64);
    TILE_LOAD(t, 5, words[1], 64);
    TILE_LOAD(t, 6, words[2], 64);
    TILE_LOAD(t, 7, words[3], 64);
}

double walsh_peak_int8_amx(size_t rounds)
{
    const struct tile_config config = tile_shapes(16, 16);
    struct tiles t;
    tiles_open(&t, &config);
    load_random(&t, 0xffff, 0);
    for (size_t r = 0; r < rounds; r++) {
        TILE_DOT_SS(&t, 0, 4, 6);
        TILE_DOT_SS(&t, 1, 4, 7);
        TILE_DOT_SS(&t, 2, 5, 6);
        TILE_DOT_SS(&t, 3, 5, 7);
    }
    tiles_close(&t);
    return (double)rounds * CHAINS * MULTIPLY_ADDS * 4 * 2;
}

double walsh_peak_bf16_amx(size_t rounds)
{
    const struct tile_config config = tile_shapes(16, 16);
    struct tiles t;
    tiles_open(&t, &config);
    load_random(&t, 0x807f, 0x3f80); /* magnitudes of 1 to 2 */
    for (size_t r = 0; r < rounds; r++) {
        TILE_DOT_BF16(&t, 0, 4, 6);
        TILE_DOT_BF16(&t, 1, 4, 7);
        TILE_DOT_BF16(&t, 2, 5, 6);
        TILE_DOT_BF16(&t, 3, 5, 7);
    }
    tiles_close(&t);
    return (double)rounds * CHAINS * MULTIPLY_ADDS * 2 * 2;
}

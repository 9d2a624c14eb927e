/* The bit planes of E8P and E81B: relabelling, packing and its inverse. The header derives the layout. */
#include "formats/e8p_planes.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#define GROUPS (WALSH_PLANE_COLUMNS / 8) /* codes of one row in a block */
#define SPARSE 128                       /* E81B labels below it: tables; from it: signs of ±1/2 */

static struct walsh_plane_tables tables;
/* Bit i of sign_plane[x]: bit of x that carries coordinate i's sign in an E8P code; sign_byte is its inverse.
 */
static uint8_t sign_plane[256], sign_byte[256];
/* What packing looks up. abs_part[abs]: the label, and above it what T takes from the code's high byte;
 * sign_part[signs]: what T takes from its low byte. */
static uint16_t abs_part[256];
static uint8_t sign_part[256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static unsigned parity(unsigned byte)
{
    return (unsigned)__builtin_parity(byte);
}

/* The label of a pattern with a 2, or -1. */
static int label_with_two(const uint8_t m[8])
{
    int two = -1, one = -1;
    for (int i = 0; i < 8; i++) {
        if (m[i] == 2) two = i;
        if (m[i] == 1) one = i;
    }
    if (two < 0) return -1;
    return 8 | two | (one < 0 ? two : one) << 4;
}

static void build_e8p(const struct walsh_e8p_tables *e8p)
{
    unsigned next = 0; /* labels of the plain patterns, in order */
    for (unsigned abs = 0; abs < 256; abs++) {
        const uint8_t *m = e8p->magnitude[abs];
        int label = label_with_two(m);
        unsigned ones = 0;
        for (unsigned i = 0; i < 8; i++) ones |= (unsigned)(m[i] == 1) << i;
        if (label < 0) {
            while ((next & 0x88u) == 0x08u) next++;
            label = (int)next++;
        } else if (ones == 0) {
            ones = 1u << (label & 7); /* as the decoder finds it: j == i, masked by b */
        }
        tables.label[abs] = (uint8_t)label;
        tables.pattern[label] = (uint8_t)abs;
        tables.ones[label] = (uint8_t)ones;
        for (unsigned i = 0; i < 8; i++)
            tables.nibbles[label][i] = (uint8_t)((8u + 2u * m[i]) ^ (m[i] == 1 ? 14u : 0u));
    }

    static const unsigned sign_bit[8] = {0, 4, 1, 5, 2, 6, 3, 7}; /* the format's S */
    for (unsigned x = 0; x < 256; x++) {
        unsigned plane = 0;
        for (unsigned i = 0; i < 8; i++) plane |= (x >> sign_bit[i] & 1u) << i;
        sign_plane[x] = (uint8_t)plane;
        sign_byte[plane] = (uint8_t)x;
    }
}

static void build_e81b(const struct walsh_e8p_tables *e8p)
{
    unsigned next = 0;
    for (unsigned code = 0; code < 256; code++) {
        const int8_t *x2 = e8p->e81b_x2[code];
        unsigned label;
        if (x2[0] == 1 || x2[0] == -1) { /* all ±1 */
            label = SPARSE;
            for (unsigned i = 0; i < 7; i++) label |= (unsigned)(x2[i] < 0) << i;
        } else {
            label = next++;
            for (unsigned i = 0; i < 8; i++)
                for (unsigned bit = 1; bit <= 3; bit++)
                    tables.e81b[bit - 1][label] |= (uint8_t)(((unsigned)(x2[i] + 4) >> bit & 1u) << i);
        }
        tables.e81b_label[code] = (uint8_t)label;
        tables.e81b_code[label] = (uint8_t)code;
        for (unsigned i = 0; i < 8; i++) tables.e81b_nibbles[label][i] = (uint8_t)(x2[i] + 4);
    }
}

/* The plane of an E8P label's coordinates of magnitude 1.5. */
static unsigned ones_plane(const struct walsh_plane_tables *t, unsigned label)
{
    unsigned twos = (label & 0x88u) == 0x08u ? 1u << (label & 7u) : 0;
    return t->ones[label] & ~twos;
}

static void build(void)
{
    const struct walsh_e8p_tables *e8p = walsh_e8p_tables();
    build_e8p(e8p);
    build_e81b(e8p);
    for (unsigned x = 0; x < 256; x++) {
        const unsigned label = tables.label[x], p = parity(x);
        abs_part[x] = (uint16_t)(label | (ones_plane(&tables, label) ^ (unsigned)e8p->odd[x] << 7) << 8);
        sign_part[x] = (uint8_t)(sign_plane[x ^ p] ^ p);
    }
}

const struct walsh_plane_tables *walsh_plane_tables(void)
{
    pthread_once(&tables_once, build);
    return &tables;
}

size_t walsh_stage_bytes(enum walsh_stage_kind kind, uint32_t rows, uint32_t cols)
{
    return ((size_t)rows + 1) / 2 * walsh_stage_blocks(cols) * walsh_stage_block(kind);
}

/* Where a row's code of group g has its label. */
static size_t label_offset(enum walsh_stage_kind kind, uint32_t cols, uint32_t r, uint32_t g)
{
    size_t block = (size_t)(r / 2) * walsh_stage_blocks(cols) + g / GROUPS;
    return block * walsh_stage_block(kind) + walsh_plane_position(g % GROUPS, r);
}

/* The codes of two rows and 32 groups: half a block is 32 pairs of bytes, the odd row's first. */
static void pack_block(const uint16_t *even, const uint16_t *odd, uint8_t *block)
{
    uint8_t labels[64], signs[64];
    for (unsigned g = 0; g < GROUPS; g++) {
        const unsigned at = walsh_plane_position(g, 1), x = abs_part[even[g] >> 8], y = abs_part[odd[g] >> 8];
        labels[at] = (uint8_t)y;
        labels[at + 1] = (uint8_t)x;
        signs[at] = (uint8_t)(y >> 8 ^ sign_part[odd[g] & 255u]);
        signs[at + 1] = (uint8_t)(x >> 8 ^ sign_part[even[g] & 255u]);
    }
    memcpy(block, labels, sizeof labels);
    memcpy(block + sizeof labels, signs, sizeof signs);
}

void walsh_e8p_pack(uint32_t cols, const uint16_t *codes, uint32_t row_begin, uint32_t row_end, void *packed)
{
    walsh_plane_tables();
    const uint32_t groups = cols / 8, rest = groups % GROUPS;
    const size_t blocks = walsh_stage_blocks(cols);
    uint8_t *block = (uint8_t *)packed + row_begin / 2 * blocks * walsh_stage_block(WALSH_STAGE_E8P);
    for (uint32_t r = row_begin; r < row_end; r += 2) {
        const uint16_t *even = codes + (size_t)r * groups, *odd = even + groups;
        for (uint32_t g = 0; g + GROUPS <= groups; g += GROUPS, block += walsh_stage_block(WALSH_STAGE_E8P))
            pack_block(even + g, odd + g, block);
        if (rest == 0) continue;
        uint16_t last[2][GROUPS] = {{0}};
        memcpy(last[0], even + (groups - rest), rest * sizeof *even);
        memcpy(last[1], odd + (groups - rest), rest * sizeof *odd);
        pack_block(last[0], last[1], block);
        block += walsh_stage_block(WALSH_STAGE_E8P);
    }
}

uint16_t walsh_e8p_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g)
{
    const struct walsh_plane_tables *t = walsh_plane_tables();
    const uint8_t *at = (const uint8_t *)packed + label_offset(WALSH_STAGE_E8P, cols, r, g);
    unsigned p = parity(at[64]), abs = t->pattern[at[0]];
    unsigned s = at[64] ^ p ^ ones_plane(t, at[0]) ^ (unsigned)walsh_e8p_tables()->odd[abs] << 7;
    return (uint16_t)(abs << 8 | (sign_byte[s] ^ p));
}

void walsh_e81b_pack(uint32_t cols, const uint8_t *codes, uint32_t row_begin, uint32_t row_end, void *packed)
{
    const struct walsh_plane_tables *t = walsh_plane_tables();
    uint32_t groups = cols / 8, padded = (uint32_t)walsh_stage_blocks(cols) * GROUPS;
    for (uint32_t r = row_begin; r < row_end; r++) {
        for (uint32_t g = 0; g < padded; g++) {
            unsigned code = g < groups ? codes[(size_t)r * groups + g] : 0;
            ((uint8_t *)packed)[label_offset(WALSH_STAGE_E81B, cols, r, g)] = t->e81b_label[code];
        }
    }
}

uint8_t walsh_e81b_unpack(uint32_t cols, const void *packed, uint32_t r, uint32_t g)
{
    return walsh_plane_tables()
        ->e81b_code[((const uint8_t *)packed)[label_offset(WALSH_STAGE_E81B, cols, r, g)]];
}

bool walsh_stages_merge(const struct walsh_weights *w, struct walsh_merged_stages *out)
{
    memset(out, 0, sizeof *out);
    if (w->stages != 2 || w->stage[0].kind != WALSH_STAGE_E8P) return false;
    const bool e8p = w->stage[1].kind == WALSH_STAGE_E8P;
    const double ratio = 8 * (double)w->stage[1].scale * (e8p ? .25 : .5) / ((double)w->stage[0].scale * .25);
    if (!(fabs(ratio) * (e8p ? 11 : 4) < 39.5)) return false; /* 8 * 11 + 39 = 127; NaN, Inf */
    for (int u = e8p ? 2 : 0; u <= (e8p ? 13 : 8); u++)
        out->second[u] = (int8_t)rint(ratio * (e8p ? 2 * u - 15 : u - 4));
    out->scale = w->stage[0].scale * (1.0f / 32);
    return true;
}

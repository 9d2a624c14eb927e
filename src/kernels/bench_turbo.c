/* Benchmark rows of the kernels of packed keys and values: one head of 512 tokens from the cache, and heads
 * that stream from DRAM. */
#include <stdio.h>

#include "kernels/bench.h"

enum { DIM = 128, GROUP = 4, CHUNK = 512 };

struct turbo_case {
    walsh_kernel_turbo_scores *scores;
    walsh_kernel_turbo_weights *weights;
    walsh_kernel_turbo_values *values;
    struct walsh_turbo_scores s;
    struct walsh_turbo_weights w;
    struct walsh_turbo_values v;
    size_t chunks; /* of CHUNK tokens, one after the other */
};

static void run_scores(void *argument)
{
    struct turbo_case *t = argument;
    struct walsh_turbo_scores s = t->s;
    for (size_t i = 0; i < t->chunks; i++, s.codes = s.next) {
        s.next = s.codes + walsh_turbo_code_bytes(DIM, s.book->bits, CHUNK);
        t->scores(&s);
    }
}

static void run_weights(void *argument)
{
    struct turbo_case *t = argument;
    t->weights(&t->w);
}

static void run_values(void *argument)
{
    struct turbo_case *t = argument;
    struct walsh_turbo_values v = t->v;
    for (size_t i = 0; i < t->chunks; i++, v.codes = v.next) {
        v.next = v.codes + walsh_turbo_code_bytes(DIM, v.book->bits, CHUNK);
        t->values(&v);
    }
}

/* Codes of `chunks` chunks and all else that a kernel reads; false where memory is short. */
static bool prepare(struct walsh_bench *b, struct turbo_case *t, unsigned bits, size_t group)
{
    struct walsh_turbo_codebook *book = walsh_bench_alloc(b, sizeof *book);
    size_t code_bytes = walsh_turbo_code_bytes(DIM, bits, CHUNK) * t->chunks;
    uint8_t *codes = walsh_bench_alloc(b, code_bytes);
    uint16_t *norms = walsh_bench_alloc(b, CHUNK * sizeof *norms);
    int16_t *query = walsh_bench_alloc(b, GROUP * DIM * sizeof *query);
    int16_t *weights = walsh_bench_alloc(b, GROUP * CHUNK * sizeof *weights);
    float *scores = walsh_bench_alloc(b, GROUP * CHUNK * sizeof *scores);
    float *factor = walsh_bench_alloc(b, GROUP * (CHUNK / WALSH_TURBO_SPAN) * sizeof *factor);
    float *out = walsh_bench_alloc(b, GROUP * DIM * sizeof *out);
    if (!book || !codes || !norms || !query || !weights || !scores || !factor || !out) return false;
    if (walsh_turbo_codebook_build(DIM, bits, book, NULL) != WALSH_OK) return false;
    for (size_t i = 0; i < code_bytes; i++) codes[i] = (uint8_t)(i * 167 >> 3);
    for (size_t i = 0; i < CHUNK; i++) norms[i] = 0x3c00;
    for (size_t i = 0; i < GROUP * CHUNK; i++) scores[i] = 1;
    for (size_t i = 0; i < GROUP * DIM; i++) query[i] = (int16_t)(i * 37 % 8000);
    for (size_t i = 0; i < GROUP * CHUNK; i++) weights[i] = (int16_t)(i * 37 % 8000);
    t->s = (struct walsh_turbo_scores){.book = book,
                                       .codes = codes,
                                       .norms = norms,
                                       .tokens = CHUNK,
                                       .group = group,
                                       .ld = CHUNK,
                                       .query = query,
                                       .factor = factor,
                                       .scores = scores};
    t->w = (struct walsh_turbo_weights){scores, norms, CHUNK, 1.0f / 32767, weights, factor};
    t->v = (struct walsh_turbo_values){.book = book,
                                       .codes = codes,
                                       .stride = walsh_turbo_value_stride(bits, CHUNK),
                                       .tokens = CHUNK,
                                       .group = group,
                                       .ld = CHUNK,
                                       .ld_factor = CHUNK / WALSH_TURBO_SPAN,
                                       .weights = weights,
                                       .factor = factor,
                                       .out = out};
    return true;
}

static void run(struct walsh_bench *b, struct turbo_case t, void (*call)(void *))
{
    static const struct {
        unsigned bits;
        size_t group, chunks;
    } cases[] = {{2, 4, 1}, {3, 4, 1}, {4, 4, 1}, {8, 4, 1}, {4, 1, 1}, {4, 4, 512}, {3, 4, 512}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        t.chunks = cases[i].chunks;
        if (!prepare(b, &t, cases[i].bits, cases[i].group)) return;
        char size[64];
        snprintf(size, sizeof size, "%u bits, group %zu, tokens %zu", cases[i].bits, cases[i].group,
                 t.chunks * CHUNK);
        double tokens = (double)(t.chunks * CHUNK);
        walsh_bench_run(b, size, tokens * (DIM * cases[i].bits / 8.0 + 2),
                        2.0 * tokens * DIM * (double)cases[i].group, WALSH_CEILING_F32, call, &t);
    }
}

void walsh_bench_turbo_scores(struct walsh_bench *b, walsh_kernel_turbo_scores *f)
{
    run(b, (struct turbo_case){.scores = f}, run_scores);
}

void walsh_bench_turbo_values(struct walsh_bench *b, walsh_kernel_turbo_values *f)
{
    run(b, (struct turbo_case){.values = f}, run_values);
}

void walsh_bench_turbo_weights(struct walsh_bench *b, walsh_kernel_turbo_weights *f)
{
    struct turbo_case t = {.weights = f, .chunks = 1};
    if (prepare(b, &t, 4, 1))
        walsh_bench_run(b, "tokens=512", CHUNK * 8.0, CHUNK * 2.0, WALSH_CEILING_F32, run_weights, &t);
}

struct decode_case {
    walsh_kernel_turbo_decode_f32 *f;
    struct walsh_turbo_decoded t;
};

static void run_decode(void *argument)
{
    const struct decode_case *t = argument;
    t->f(&t->t);
}

void walsh_bench_turbo_decode_f32(struct walsh_bench *b, walsh_kernel_turbo_decode_f32 *f)
{
    for (unsigned bits = 3; bits <= 8; bits += bits == 4 ? 4 : 1)
        for (int side = 0; side < 2; side++) {
            struct turbo_case data = {.chunks = 1};
            if (!prepare(b, &data, bits, 1)) return;
            struct decode_case t = {f,
                                    {.book = data.s.book,
                                     .side = (enum walsh_turbo_side)side,
                                     .codes = data.s.codes,
                                     .stride = data.v.stride,
                                     .norms = data.s.norms,
                                     .tokens = CHUNK,
                                     .ld = side == WALSH_TURBO_KEY ? CHUNK : DIM,
                                     .out = walsh_bench_alloc(b, CHUNK * DIM * sizeof(float))}};
            char size[48];
            snprintf(size, sizeof size, "%s, %u bits, tokens %d", side ? "values" : "keys", bits, CHUNK);
            if (t.t.out)
                walsh_bench_run(b, size, CHUNK * (DIM * (bits / 8.0 + 4) + 2), (double)CHUNK * DIM,
                                WALSH_CEILING_F32, run_decode, &t);
        }
}

struct encode_case {
    walsh_kernel_turbo_encode_f32 *f;
    const struct walsh_turbo_codec *codec;
    const float *x;
    uint8_t *codes;
    uint16_t *norms;
};

enum { ROWS = 256 };

static void run_encode(void *argument)
{
    const struct encode_case *t = argument;
    t->f(t->codec, t->x, DIM, ROWS, t->codes, t->norms);
}

/* "Operations" are vectors encoded; no arithmetic ceiling applies. */
void walsh_bench_turbo_encode_f32(struct walsh_bench *b, walsh_kernel_turbo_encode_f32 *f)
{
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        const struct walsh_turbo_options options = {.dim = DIM, .bits = bits, .seed = 1, .stream = "key"};
        struct walsh_turbo_codec *codec;
        if (walsh_turbo_codec_open(&options, &codec, NULL) != WALSH_OK) return;
        struct encode_case t = {f, codec, walsh_bench_normal(b, ROWS * DIM), walsh_bench_alloc(b, ROWS * DIM),
                                walsh_bench_alloc(b, ROWS * 2)};
        char size[32];
        snprintf(size, sizeof size, "%u bits, vectors=%d", bits, ROWS);
        if (t.x && t.codes && t.norms)
            walsh_bench_run(b, size, ROWS * (DIM * 5.0 + 2), ROWS, WALSH_CEILING_F32, run_encode, &t);
        walsh_turbo_codec_close(&codec);
    }
}

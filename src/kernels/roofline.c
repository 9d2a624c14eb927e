/* The machine's ceilings: multiply-adds of one core and of all, and reads at each level of memory. */
#include "base/clock.h"
#include "kernels/bench.h"

#define L1_BYTES ((size_t)16 << 10)
#define L2_BYTES ((size_t)384 << 10)
#define DRAM_BYTES ((size_t)192 << 20)
#define ROUNDS ((size_t)200000)
#define REPEATS 5

/* Four chains of scalar multiply-adds: the ceiling of a machine without vectors that we know. */
static double peak_scalar(size_t rounds)
{
    volatile float sink;
    float a = 1, b = 2, c = 3, d = 4, x = 0.999f;
    for (size_t r = 0; r < rounds; r++) {
        a = a * x + x;
        b = b * x + x;
        c = c * x + x;
        d = d * x + x;
    }
    sink = a + b + c + d;
    (void)sink;
    return (double)rounds * 8;
}

static float read_scalar(const float *x, size_t n)
{
    float sum[16] = {0};
    for (size_t i = 0; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 16; j++) sum[j] += x[i + j];
    float all = 0;
    for (size_t j = 0; j < 16; j++) all += sum[j];
    return all;
}

typedef double peak_loop(size_t rounds); /* returns its operations */

struct peak {
    peak_loop *loop;
    size_t rounds;
};

static void run_peak(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct peak *p = argument;
    for (size_t i = begin; i < end; i++) p->loop(p->rounds);
}

/* The best of a few runs with the threads of `pool`, operations/s; 0 where there is no loop. More pieces than
 * threads, so that they end together. */
static double rate(peak_loop *loop, struct walsh_pool *pool)
{
    if (!loop) return 0;
    const size_t threads = walsh_pool_threads(pool), pieces = threads == 1 ? 1 : 8 * threads;
    struct peak p = {.loop = loop, .rounds = threads == 1 ? ROUNDS : ROUNDS / 8};
    const double operations = p.loop(p.rounds) * (double)pieces;
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        double start = walsh_now();
        walsh_pool_run(pool, pieces, 1, run_peak, &p);
        double seconds = walsh_now() - start;
        if (seconds > 0 && operations / seconds > best) best = operations / seconds;
    }
    return best;
}

static struct walsh_rates rates(const struct walsh_queue *q, struct walsh_pool *pool)
{
    peak_loop *f32 = peak_scalar, *bf16 = NULL, *int8 = NULL;
#if WALSH_X86
    unsigned isa = q->kernels->isa;
    if (isa & WALSH_ISA_avx2) f32 = walsh_peak_f32_avx2;
    if (isa & WALSH_ISA_avx512) f32 = walsh_peak_f32_avx512;
    if (isa & WALSH_ISA_vnni) int8 = walsh_peak_int8_vnni;
    if (isa & WALSH_ISA_bf16) bf16 = walsh_peak_bf16_bf16;
    if (isa & WALSH_ISA_amx) int8 = walsh_peak_int8_amx, bf16 = walsh_peak_bf16_amx;
#endif
    (void)q;
    return (struct walsh_rates){.f32 = rate(f32, pool), .bf16 = rate(bf16, pool), .int8 = rate(int8, pool)};
}

struct reader {
    walsh_read_floats *read;
    const float *x;
    volatile float sink;
};

static void read_floats(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    struct reader *r = argument;
    r->sink = r->read(r->x + begin, end - begin);
}

/* Bytes/s of reading `bytes` again and again with the threads of `pool`. */
static double bandwidth(struct reader *r, struct walsh_pool *pool, size_t bytes)
{
    double best = 0;
    size_t n = bytes / sizeof(float), times = DRAM_BYTES / bytes, grain = pool == NULL ? n : (size_t)1 << 18;
    for (int i = 0; i < REPEATS; i++) {
        double start = walsh_now();
        for (size_t t = 0; t < times; t++) walsh_pool_run(pool, n, grain, read_floats, r);
        double seconds = walsh_now() - start;
        if (seconds > 0 && (double)(times * bytes) / seconds > best) best = (double)(times * bytes) / seconds;
    }
    return best;
}

walsh_read_floats *walsh_roofline_reader(const struct walsh_queue *q)
{
#if WALSH_X86
    if (q->kernels->isa & WALSH_ISA_avx512) return walsh_peak_read_avx512;
    if (q->kernels->isa & WALSH_ISA_avx2) return walsh_peak_read_avx2;
#endif
    (void)q;
    return read_scalar;
}

void walsh_roofline_measure(const struct walsh_queue *q, struct walsh_roofline *out)
{
    *out = (struct walsh_roofline){.one = rates(q, NULL)};
    out->all = walsh_pool_threads(q->pool) > 1 ? rates(q, q->pool) : out->one;
    struct reader r = {.read = walsh_roofline_reader(q)};
    float *x;
    if (walsh_alloc_zero(DRAM_BYTES, 1, "the bandwidth's buffer", &x, NULL) != WALSH_OK) return;
    for (size_t i = 0; i < DRAM_BYTES / sizeof *x; i += 1024) x[i] = 1; /* its own pages */
    r.x = x;
    out->l1_bandwidth = bandwidth(&r, NULL, L1_BYTES);
    out->l2_bandwidth = bandwidth(&r, NULL, L2_BYTES);
    out->core_bandwidth = bandwidth(&r, NULL, DRAM_BYTES);
    out->read_bandwidth = bandwidth(&r, q->pool, DRAM_BYTES);
    if (out->read_bandwidth < out->core_bandwidth) out->read_bandwidth = out->core_bandwidth;
    walsh_free(x);
}

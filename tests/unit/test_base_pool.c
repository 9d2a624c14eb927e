#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/float_mode.h"
#include "base/pool.h"
#include "base/random.h"

struct job {
    uint8_t *touched; /* [count]: how often each index was run */
    size_t count, grain;
    unsigned threads;
    atomic_uint bad;
};

static void touch(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct job *job = argument;
    size_t expected_end = job->count - begin < job->grain ? job->count : begin + job->grain;
    if (begin >= end || end != expected_end || begin % job->grain != 0 || worker >= job->threads)
        atomic_fetch_add(&job->bad, 1);
    for (size_t i = begin; i < end && i < job->count; i++) job->touched[i]++;
}

typedef void run_function(struct walsh_pool *, size_t, size_t, walsh_task *, void *);

static void check_run(struct walsh_pool *pool, size_t count, size_t grain, run_function *run)
{
    struct job job = {.count = count, .grain = grain ? grain : 1, .threads = walsh_pool_threads(pool)};
    job.touched = calloc(count + 1, 1);
    run(pool, count, grain, touch, &job);
    assert_int_equal(atomic_load(&job.bad), 0);
    for (size_t i = 0; i < count; i++)
        if (job.touched[i] != 1) fail_msg("index %zu of %zu ran %u times", i, count, job.touched[i]);
    free(job.touched);
}

static void check(struct walsh_pool *pool, size_t count, size_t grain)
{
    check_run(pool, count, grain, walsh_pool_run);
    check_run(pool, count, grain, walsh_pool_run_near);
}

static void test_each_index_once(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 2, 3, 7, 64, 1000, 4097};
    static const size_t grains[] = {0, 1, 3, 64, 5000, SIZE_MAX};
    for (unsigned threads = 1; threads <= 4; threads++) {
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
        assert_int_equal(walsh_pool_threads(pool), threads);
        for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
            for (size_t g = 0; g < sizeof grains / sizeof *grains; g++) check(pool, counts[c], grains[g]);
        walsh_pool_close(&pool);
        assert_null(pool);
    }
    check(NULL, 100, 7);
    struct walsh_pool *none = NULL;
    walsh_pool_close(&none);
    assert_int_equal(walsh_pool_threads(NULL), 1);
}

/* The first piece of each of two threads: none goes on before both have one. */
struct first {
    atomic_uint arrived;
    size_t begin[2];
};
static void note_first(void *argument, size_t begin, size_t end, unsigned worker)
{
    struct first *f = argument;
    if (f->begin[worker] == SIZE_MAX) {
        f->begin[worker] = begin;
        atomic_fetch_add(&f->arrived, 1);
    }
    (void)end;
    for (double stop = walsh_now() + 60; atomic_load(&f->arrived) < 2 && walsh_now() < stop;) usleep(100);
}

/* Threads begin with their own shares, of an even number of pieces and of an odd one. */
static void test_near(void **state)
{
    (void)state;
    struct walsh_pool *pool;
    assert_int_equal(walsh_pool_open(2, &pool, NULL), WALSH_OK);
    for (size_t run = 0; run < 20; run++) {
        struct first f = {.begin = {SIZE_MAX, SIZE_MAX}};
        walsh_pool_run_near(pool, 16 + run % 2 * 4, 4, note_first, &f);
        assert_int_equal(f.begin[0], 0);
        assert_int_equal(f.begin[1], run % 2 ? 12 : 8);
    }
    walsh_pool_close(&pool);
}

#if defined(__x86_64__) || defined(__aarch64__)
#if defined(__x86_64__)
#define FLUSHING (WALSH_FLOAT_PLAIN | 0x8040u) /* FTZ, DAZ */
#else
#define FLUSHING (WALSH_FLOAT_PLAIN | 1u << 24) /* FZ */
#endif

struct halves {
    volatile float half, out[64]; /* volatile: the halves are taken here, not by the compiler */
};

static void halve(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    struct halves *h = argument;
    for (size_t i = begin; i < end; i++)
        for (unsigned again = 0; again < 2000; again++)
            h->out[i] = h->half * 0x1p-126f; /* time for all to join */
}

/* A caller whose thread flushes subnormals, as after loading NVIDIA's driver, gets the bits of any other, and keeps its mode. */
static void test_subnormals_are_kept(void **state)
{
    (void)state;
    const uint64_t before = walsh_float_mode();
    for (unsigned threads = 1; threads <= 3; threads++)
        for (unsigned near = 0; near < 2; near++) {
            struct halves h = {.half = .5f};
            struct walsh_pool *pool;
            walsh_float_mode_set(FLUSHING);
            assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
            halve(&h, 0, 1, 0);
            const float flushed = h.out[0];
            (near ? walsh_pool_run_near : walsh_pool_run)(pool, 64, 1, halve, &h);
            const uint64_t after = walsh_float_mode();
            walsh_pool_close(&pool);
            walsh_float_mode_set(before);
            assert_true(flushed == 0); /* so there was something to keep */
            for (unsigned i = 0; i < 64; i++) assert_true(h.out[i] == 0x1p-127f);
            assert_int_equal(after & ~(uint64_t)WALSH_FLOAT_FLAGS, FLUSHING);
        }
}
#endif

/* Each run reads what the one before wrote: a worker that is late, or a run that returns early, shows as a
 * wrong sum. */
struct chain {
    uint32_t *from, *to;
    size_t count;
};
static void chain_step(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    struct chain *c = argument;
    for (size_t i = begin; i < end; i++) c->to[i] = c->from[i] + c->from[(i + 1) % c->count];
}

static void test_many_short_runs(void **state)
{
    (void)state;
    enum { N = 37, RUNS = 20000 };
    uint32_t expected[N];
    for (unsigned threads = 1; threads <= 4; threads++) {
        uint32_t a[N], b[N];
        for (uint32_t i = 0; i < N; i++) a[i] = i * 2654435761u;
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
        for (unsigned run = 0; run < RUNS; run++) {
            struct chain c = {run % 2 ? b : a, run % 2 ? a : b, N};
            walsh_pool_run(pool, N, 1 + run % 11, chain_step, &c);
        }
        walsh_pool_close(&pool);
        if (threads == 1)
            memcpy(expected, a, sizeof a);
        else
            assert_memory_equal(a, expected, sizeof a);
    }
}

/* Pauses of random length between the runs: workers are caught spinning, falling asleep, and asleep. */
static void test_sleep_and_wake(void **state)
{
    (void)state;
    struct walsh_random r;
    walsh_random_seed(&r, 5);
    for (unsigned threads = 2; threads <= 4; threads++) {
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
        for (unsigned run = 0; run < 1500; run++) {
            check(pool, 8, 1);
            double stop = walsh_now() + 120e-6 * walsh_random_uniform(&r);
            if (run % 16 == 0)
                usleep(300);
            else
                while (walsh_now() < stop) continue;
        }
        walsh_pool_close(&pool);
    }
}

/* A task that sleeps makes the caller wait asleep; everybody must have been inside. */
static void sleepy(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)begin, (void)end;
    usleep(worker == 0 ? 10 : 2000);
    atomic_fetch_or((atomic_uint *)argument, 1u << worker);
}

static void test_caller_waits(void **state)
{
    (void)state;
    struct walsh_pool *pool;
    assert_int_equal(walsh_pool_open(3, &pool, NULL), WALSH_OK);
    for (unsigned run = 0; run < 20; run++) {
        atomic_uint seen = 0;
        walsh_pool_run(pool, 300, 1, sleepy, &seen);
        assert_int_equal(atomic_load(&seen), 7);
    }
    walsh_pool_close(&pool);
}

static void test_open_and_close(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 200;
         i++) { /* closed before, while and after the workers reach their first wait */
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(1 + i % 4, &pool, NULL), WALSH_OK);
        if (i % 3 == 0) check(pool, 10, 1);
        if (i % 5 == 0) usleep(200);
        walsh_pool_close(&pool);
    }
    struct walsh_error err;
    struct walsh_pool *pool;
    assert_int_equal(walsh_pool_open(0, &pool, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "0 threads asked for, expected 1 to 4096");
    assert_null(pool);
}

static void busy(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    for (size_t i = begin; i < end; i++)
        for (double stop = walsh_now() + *(double *)argument; walsh_now() < stop;) continue;
}

/* Not a check: prints what a run of one 10 us piece per thread takes beyond these 10 us while the workers are
 * hot. */
static void test_dispatch_cost(void **state)
{
    (void)state;
    double seconds = 10e-6;
    for (unsigned threads = 1; threads <= walsh_cpu_count() && threads <= 4; threads++) {
        struct walsh_pool *pool;
        assert_int_equal(walsh_pool_open(threads, &pool, NULL), WALSH_OK);
        double best = 1;
        for (unsigned round = 0; round < 20; round++) {
            double start = walsh_now();
            for (unsigned run = 0; run < 100; run++) walsh_pool_run(pool, threads, 1, busy, &seconds);
            double each = (walsh_now() - start) / 100;
            if (each < best) best = each;
        }
        print_message("%u threads: %.2f us for 10 us of work each\n", threads, best * 1e6);
        walsh_pool_close(&pool);
    }
}

static void test_cpu_count(void **state)
{
    (void)state;
    long online = sysconf(_SC_NPROCESSORS_CONF);
    assert_true(walsh_cpu_count() >= 1 && (long)walsh_cpu_count() <= online);
    assert_int_equal(walsh_cpu_quota("max 100000\n"), 0);
    assert_int_equal(walsh_cpu_quota("200000 100000\n"), 2);
    assert_int_equal(walsh_cpu_quota("150000 100000"), 2);
    assert_int_equal(walsh_cpu_quota("1000 100000"), 1);
    assert_int_equal(walsh_cpu_quota("0 100000"), 0);
    assert_int_equal(walsh_cpu_quota("100000 0"), 0);
    assert_int_equal(walsh_cpu_quota(""), 0);
    assert_int_equal(walsh_cpu_quota("18446744073709551615 1"), 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_index_once),
        cmocka_unit_test(test_near),
        cmocka_unit_test(test_many_short_runs),
        cmocka_unit_test(test_sleep_and_wake),
        cmocka_unit_test(test_caller_waits),
        cmocka_unit_test(test_open_and_close),
        cmocka_unit_test(test_dispatch_cost),
        cmocka_unit_test(test_cpu_count),
#if defined(__x86_64__) || defined(__aarch64__)
        cmocka_unit_test(test_subnormals_are_kept),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

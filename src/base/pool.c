/* How a run works. One 64-bit word, the gate, says which run it is, whether its work may still be joined, and
 * how many workers are inside:
 *
 *     run number << 32 | OPEN | WAITING | workers inside
 *
 * The caller writes the run's description, then opens the gate. A worker that sees an open gate of a run it
 * has not joined adds itself to the count by compare-and-swap, claims pieces by fetch_add until none is left,
 * and takes itself off. The caller claims pieces too; when none is left it closes the gate and waits for the
 * count to reach 0. So a worker that is asleep or not scheduled never holds a run up: it finds the gate
 * closed and stays outside. The description is rewritten only while the gate is closed with nobody inside.
 *
 * A run by shares has a counter for each worker in the place of one for all; the others' are looked at when the own is at its end.
 *
 * Sleeping: a worker registers in `sleepers` under the mutex and then looks at the gate again; the caller
 * opens the gate and then looks at `sleepers`. Both are sequentially consistent, so at least one of them sees
 * the other. The caller's own sleep needs no second word: it sets WAITING in the gate, and the worker that
 * takes the count to 0 sees it. */
#include "base/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/float_mode.h"
#include "base/memory.h"

#define OPEN ((uint64_t)1 << 31)
#define WAITING ((uint64_t)1 << 30)
#define INSIDE (WAITING - 1)

#define MAX_THREADS 4096
#define SPIN_SECONDS 50e-6        /* between two runs of a decode step there is less than this */
#define SPIN_SECONDS_CROWDED 2e-6 /* more threads than CPUs: a spinning thread keeps a working one off */

struct worker {
    struct walsh_pool *pool;
    pthread_t thread;
    unsigned index;
};

/* A worker's part of a run by shares. */
struct share {
    _Alignas(WALSH_ALIGNMENT) atomic_size_t next; /* first piece that nobody has claimed */
    size_t end;
};

struct walsh_pool {
    /* The current run: written with the gate closed and nobody inside. */
    walsh_task *task;
    void *argument;
    size_t count, grain;

    _Alignas(WALSH_ALIGNMENT) atomic_size_t next; /* first index that nobody has claimed */
    struct share *shares;                         /* [threads] */
    bool near;                                    /* a run by shares */
    _Alignas(WALSH_ALIGNMENT) _Atomic uint64_t gate;
    _Alignas(WALSH_ALIGNMENT) atomic_uint sleepers;
    atomic_bool quit;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* workers: the gate has opened or quit is set */
    pthread_cond_t idle; /* caller: nobody is inside */

    double spin_seconds;
    unsigned threads, started;
    struct worker *workers; /* threads - 1 */
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* true as soon as condition(pool, value) holds; false after spin_seconds without it */
static bool spin_until(struct walsh_pool *pool, bool (*condition)(struct walsh_pool *, uint64_t),
                       uint64_t value)
{
    double stop = 0;
    for (unsigned i = 0;; i++) {
        if (condition(pool, value)) return true;
        relax();
        if (i % 32 != 31) continue;
        double now = walsh_now();
        if (stop == 0)
            stop = now + pool->spin_seconds;
        else if (now >= stop)
            return false;
    }
}

static void work(struct walsh_pool *pool, unsigned worker)
{
    size_t count = pool->count, grain = pool->grain;
    for (;;) {
        /* Each thread overshoots `count` by one grain at most; walsh_pool_run has checked that this cannot
         * wrap. */
        size_t begin = atomic_fetch_add_explicit(&pool->next, grain, memory_order_relaxed);
        if (begin >= count) return;
        pool->task(pool->argument, begin, count - begin < grain ? count : begin + grain, worker);
    }
}

/* The worker's own share first, then what is left of the others'. */
static void work_near(struct walsh_pool *pool, unsigned worker)
{
    const size_t count = pool->count, grain = pool->grain;
    for (unsigned i = 0; i < pool->threads; i++) {
        struct share *share = &pool->shares[(worker + i) % pool->threads];
        for (;;) {
            if (i > 0 && atomic_load_explicit(&share->next, memory_order_relaxed) >= share->end) break;
            const size_t piece = atomic_fetch_add_explicit(&share->next, 1, memory_order_relaxed);
            if (piece >= share->end) break;
            const size_t begin = piece * grain;
            pool->task(pool->argument, begin, count - begin < grain ? count : begin + grain, worker);
        }
    }
}

static void work_at(struct walsh_pool *pool, unsigned worker)
{
    if (pool->near)
        work_near(pool, worker);
    else
        work(pool, worker);
}

/* Something to do for a worker that last joined the run `joined`? */
static bool called(struct walsh_pool *pool, uint64_t joined)
{
    uint64_t gate = atomic_load(&pool->gate);
    return ((gate & OPEN) && gate >> 32 != joined) || atomic_load_explicit(&pool->quit, memory_order_relaxed);
}

static void worker_sleep(struct walsh_pool *pool, uint64_t joined)
{
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    /* Not a loop: whoever is woken for nothing spins for a while, because runs are being made. */
    if (!called(pool, joined)) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void leave(struct walsh_pool *pool)
{
    uint64_t before = atomic_fetch_sub(&pool->gate, 1);
    if (!(before & WAITING) || (before & INSIDE) != 1) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_signal(&pool->idle);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument)
{
    struct worker *me = argument;
    struct walsh_pool *pool = me->pool;
    walsh_float_mode_plain();
    uint64_t joined = 0; /* the gate's first run is number 1 */
    for (;;) {
        if (!spin_until(pool, called, joined)) worker_sleep(pool, joined);
        if (atomic_load_explicit(&pool->quit, memory_order_relaxed)) return NULL;
        uint64_t gate = atomic_load(&pool->gate);
        while ((gate & OPEN) && gate >> 32 != joined) {
            if (!atomic_compare_exchange_weak(&pool->gate, &gate, gate + 1)) continue;
            joined = gate >> 32;
            work_at(pool, me->index);
            leave(pool);
            break;
        }
    }
}

/* `ignored` keeps the signature of spin_until's condition. */
static bool nobody_inside(struct walsh_pool *pool, uint64_t ignored)
{
    (void)ignored;
    return (atomic_load(&pool->gate) & INSIDE) == 0;
}

static void wait_until_idle(struct walsh_pool *pool)
{
    if (spin_until(pool, nobody_inside, 0)) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_or(&pool->gate, WAITING);
    while (!nobody_inside(pool, 0)) pthread_cond_wait(&pool->idle, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void run(struct walsh_pool *pool, size_t count, size_t grain, bool near, walsh_task *task,
                void *argument)
{
    if (grain == 0) grain = 1;
    size_t overshoot;
    bool alone = !pool || pool->threads == 1 || count <= grain ||
                 !walsh_mul(grain, (size_t)MAX_THREADS + 1, &overshoot) ||
                 !walsh_add(count, overshoot, &overshoot);
    if (alone) { /* in the same pieces as a team would make, so that a task may depend on them */
        for (size_t begin = 0; begin < count;) {
            size_t end = count - begin < grain ? count : begin + grain;
            task(argument, begin, end, 0);
            begin = end;
        }
        return;
    }
    pool->task = task;
    pool->argument = argument;
    pool->count = count;
    pool->grain = grain;
    pool->near = near;
    const size_t pieces = (count + grain - 1) / grain;
    for (unsigned i = 0; near && i < pool->threads; i++) {
        atomic_store_explicit(&pool->shares[i].next,
                              pieces / pool->threads * i + walsh_min(i, pieces % pool->threads),
                              memory_order_relaxed);
        pool->shares[i].end = pieces / pool->threads * (i + 1) + walsh_min(i + 1, pieces % pool->threads);
    }
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    uint64_t run = (uint32_t)(atomic_load_explicit(&pool->gate, memory_order_relaxed) >> 32) + (uint64_t)1;
    atomic_store(&pool->gate, (run & UINT32_MAX) << 32 | OPEN);
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
    }
    work_at(pool, 0);
    atomic_fetch_and(&pool->gate, ~OPEN);
    wait_until_idle(pool);
}

void walsh_pool_run(struct walsh_pool *pool, size_t count, size_t grain, walsh_task *task, void *argument)
{
    const uint64_t mode = walsh_float_mode_plain();
    run(pool, count, grain, false, task, argument);
    walsh_float_mode_restore(mode);
}

void walsh_pool_run_near(struct walsh_pool *pool, size_t count, size_t grain, walsh_task *task,
                         void *argument)
{
    const uint64_t mode = walsh_float_mode_plain();
    run(pool, count, grain, true, task, argument);
    walsh_float_mode_restore(mode);
}

static enum walsh_status start_workers(struct walsh_pool *pool, struct walsh_error *err)
{
    /* Signals belong to the caller's threads: a worker inherits this mask. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    enum walsh_status status = WALSH_OK;
    for (unsigned i = 1; i < pool->threads; i++) {
        struct worker *w = &pool->workers[i - 1];
        *w = (struct worker){.pool = pool, .index = i};
        int why = pthread_create(&w->thread, NULL, worker_main, w);
        if (why != 0) {
            status = walsh_fail_errno(err, why, "cannot start thread %u of %u", i + 1, pool->threads);
            break;
        }
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

enum walsh_status walsh_pool_open(unsigned threads, struct walsh_pool **out, struct walsh_error *err)
{
    *out = NULL;
    if (threads < 1 || threads > MAX_THREADS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%u threads asked for, expected 1 to %d", threads,
                          MAX_THREADS);
    struct walsh_pool *pool;
    WALSH_TRY(walsh_alloc_zero(1, sizeof *pool, "the thread pool", &pool, err));
    enum walsh_status status =
        walsh_alloc_zero(threads - 1, sizeof *pool->workers, "the threads", &pool->workers, err);
    if (status == WALSH_OK)
        status = walsh_alloc_zero(threads, sizeof *pool->shares, "the threads", &pool->shares, err);
    if (status != WALSH_OK) {
        walsh_free(pool->workers);
        walsh_free(pool);
        return status;
    }
    pool->threads = threads;
    pool->spin_seconds = threads > walsh_cpu_count() ? SPIN_SECONDS_CROWDED : SPIN_SECONDS;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->idle, NULL);
    status = start_workers(pool, err);
    if (status == WALSH_OK)
        *out = pool;
    else
        walsh_pool_close(&pool);
    return status;
}

void walsh_pool_close(struct walsh_pool **handle)
{
    struct walsh_pool *pool = *handle;
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->quit, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    walsh_free(pool->workers);
    walsh_free(pool->shares);
    walsh_free(pool);
    *handle = NULL;
}

unsigned walsh_pool_threads(const struct walsh_pool *pool)
{
    return pool ? pool->threads : 1;
}

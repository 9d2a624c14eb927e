/* The server's work queue: turns between clients, what is left at the end, many threads. */
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "serve/work.h"

#define MOST 64

/* An item that writes its name down; one with a gate tells that it runs and waits to be let go. */
struct named {
    struct work_item item;
    char name;
    sem_t *began, *gate;
};

static char order[MOST + 1];
static size_t done;
static bool stopped[MOST];

static void write_down(struct work_item *item, bool stopping)
{
    struct named *n = (struct named *)item;
    order[done] = n->name;
    stopped[done++] = stopping;
    if (n->began) sem_post(n->began);
    if (n->gate) sem_wait(n->gate);
}

struct trial {
    struct work work;
    struct named items[MOST];
    size_t count;
    sem_t began, gate;
};

static void begin(struct trial *t)
{
    memset(t, 0, sizeof *t);
    memset(order, 0, sizeof order);
    done = 0;
    sem_init(&t->began, 0, 0);
    sem_init(&t->gate, 0, 0);
    assert_true(work_open(&t->work, 1));
}

/* Each letter is an item of the client of that name; one behind '!' holds the thread until it is let go. */
static void submit(struct trial *t, const char *items)
{
    for (const char *i = items; *i; i++) {
        struct named *n = &t->items[t->count++];
        *n = (struct named){.item = {.run = write_down}};
        if (*i == '!') {
            n->began = &t->began;
            n->gate = &t->gate;
            i++;
        }
        n->name = *i;
        n->item.tenant = (uint64_t)*i;
        work_submit(&t->work, &n->item);
    }
}

static void end(struct trial *t)
{
    const struct timespec moment = {.tv_nsec = 1000000};
    while (work_pending(&t->work)) nanosleep(&moment, NULL);
    assert_int_equal(done, t->count);
    for (size_t i = 0; i < done; i++) assert_false(stopped[i]);
    work_close(&t->work);
    sem_destroy(&t->began);
    sem_destroy(&t->gate);
}

static void clients_take_turns(void **state)
{
    (void)state;
    struct trial t;
    begin(&t);
    submit(&t, "!x");
    sem_wait(&t.began); /* all others come while the thread is busy */
    submit(&t, "aaaaabbc");
    assert_int_equal(work_pending(&t.work), 9);
    sem_post(&t.gate);
    end(&t);
    assert_string_equal(order, "xabcabaaa");
}

/* Who comes later is next, and has no more turns than the others from then on. */
static void who_comes_later_has_missed_nothing(void **state)
{
    (void)state;
    struct trial t;
    begin(&t);
    submit(&t, "!x");
    sem_wait(&t.began);
    submit(&t, "aaa!aaaaa");
    sem_post(&t.gate);
    sem_wait(&t.began); /* of the fourth */
    submit(&t, "bbb");
    sem_post(&t.gate);
    end(&t);
    assert_string_equal(order, "xaaaabababaa");
}

/* A client whose items have all been taken begins anew. */
static void a_client_that_returns_is_as_new(void **state)
{
    (void)state;
    struct trial t;
    begin(&t);
    submit(&t, "aaa!a");
    sem_wait(&t.began);
    submit(&t, "bbaa");
    sem_post(&t.gate);
    end(&t);
    assert_string_equal(order, "aaaababa");
}

static void what_waits_at_the_end_is_told_to_stop(void **state)
{
    (void)state;
    struct trial t;
    begin(&t);
    submit(&t, "!x");
    sem_wait(&t.began);
    submit(&t, "abc");
    pthread_mutex_lock(&t.work.lock);
    t.work.stop = true; /* as the close that follows says; the thread must not come first */
    pthread_mutex_unlock(&t.work.lock);
    sem_post(&t.gate);
    work_close(&t.work);
    assert_string_equal(order, "xabc");
    for (size_t i = 0; i < done; i++) assert_int_equal(stopped[i], i > 0);
    assert_false(t.work.open);
    work_close(&t.work); /* again, as of one that was never opened */
    sem_destroy(&t.began);
    sem_destroy(&t.gate);
}

/* Many threads on both sides: each item once. */
#define CLIENTS 6u
#define EACH 300u

struct counted {
    struct work_item item;
    atomic_uint times;
    unsigned plain; /* of the submitter's before, of the worker's after */
};

static struct work shared;
static struct counted counted[CLIENTS][EACH];

static void count(struct work_item *item, bool stopping)
{
    struct counted *c = (struct counted *)item;
    (void)stopping;
    atomic_fetch_add(&c->times, 1);
    c->plain++;
}

static void *submit_many(void *argument)
{
    const size_t client = *(const size_t *)argument;
    for (size_t i = 0; i < EACH; i++) {
        struct counted *c = &counted[client][i];
        c->plain = 1;
        c->item = (struct work_item){.tenant = client / 2, .run = count};
        work_submit(&shared, &c->item);
    }
    return NULL;
}

static void each_item_is_run_once(void **state)
{
    (void)state;
    pthread_t threads[CLIENTS];
    size_t numbers[CLIENTS];
    assert_true(work_open(&shared, 3));
    for (size_t i = 0; i < CLIENTS; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, submit_many, &numbers[i]), 0);
    }
    for (size_t i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    work_close(&shared); /* runs what is left */
    for (size_t i = 0; i < CLIENTS; i++)
        for (size_t j = 0; j < EACH; j++) {
            assert_int_equal(atomic_load(&counted[i][j].times), 1);
            assert_int_equal(counted[i][j].plain, 2);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clients_take_turns),
        cmocka_unit_test(who_comes_later_has_missed_nothing),
        cmocka_unit_test(a_client_that_returns_is_as_new),
        cmocka_unit_test(what_waits_at_the_end_is_told_to_stop),
        cmocka_unit_test(each_item_is_run_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

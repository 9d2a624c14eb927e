/* serve/work: threads that do what takes a while before a request can be answered (parsing, templates,
 * tokenizing, grammars, adapters), so that those that speak HTTP never wait. Clients are served by turns. */
#ifndef WALSH_SERVE_WORK_H
#define WALSH_SERVE_WORK_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MOST_WORKERS 64

/* A part of what is to be done; the caller's, until `run` begins. */
struct work_item {
    struct work_item *next;
    uint64_t tenant; /* whose it is */
    uint64_t turn;   /* the n-th of a tenant's waiting items is done in the n-th turn from now */
    /* On a worker's thread. stopping: only end what was begun. */
    void (*run)(struct work_item *item, bool stopping);
};

struct work {
    pthread_mutex_t lock;
    pthread_cond_t news;
    struct work_item *first; /* by turns */
    uint64_t turn;           /* of what was taken last */
    size_t pending;          /* waiting and running */
    bool open, stop;
    pthread_t threads[MOST_WORKERS];
    unsigned count;
};

/* Start `count` threads. false: the system has none; work_close all the same. */
bool work_open(struct work *work, unsigned count);
void work_submit(struct work *work, struct work_item *item);
size_t work_pending(struct work *work);
/* Run what waits, with `stopping`, and end the threads. NULL-safe for one that was never opened. */
void work_close(struct work *work);

#endif

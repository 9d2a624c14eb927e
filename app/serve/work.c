#include "work.h"

/* Start-time fair queueing with items of equal length. */
static void insert(struct work *work, struct work_item *item)
{
    struct work_item **link = &work->first;
    item->turn = work->turn;
    for (const struct work_item *i = work->first; i; i = i->next)
        if (i->tenant == item->tenant) item->turn = i->turn + 1;
    while (*link && (*link)->turn <= item->turn) link = &(*link)->next;
    item->next = *link;
    *link = item;
}

/* The next item; NULL: stop. */
static struct work_item *take(struct work *work, bool *stopping)
{
    pthread_mutex_lock(&work->lock);
    while (!work->first && !work->stop) pthread_cond_wait(&work->news, &work->lock);
    struct work_item *item = work->first;
    if (item) {
        work->first = item->next;
        work->turn = item->turn;
    }
    *stopping = work->stop;
    pthread_mutex_unlock(&work->lock);
    return item;
}

static void *run(void *argument)
{
    struct work *work = argument;
    bool stopping;
    for (struct work_item *item; (item = take(work, &stopping));) {
        item->run(item, stopping);
        pthread_mutex_lock(&work->lock);
        work->pending--;
        pthread_mutex_unlock(&work->lock);
    }
    return NULL;
}

bool work_open(struct work *work, unsigned count)
{
    *work = (struct work){.open = true};
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->news, NULL);
    for (; work->count < count && work->count < MOST_WORKERS; work->count++)
        if (pthread_create(&work->threads[work->count], NULL, run, work) != 0) return false;
    return true;
}

void work_submit(struct work *work, struct work_item *item)
{
    pthread_mutex_lock(&work->lock);
    insert(work, item);
    work->pending++;
    pthread_cond_signal(&work->news);
    pthread_mutex_unlock(&work->lock);
}

size_t work_pending(struct work *work)
{
    pthread_mutex_lock(&work->lock);
    const size_t pending = work->pending;
    pthread_mutex_unlock(&work->lock);
    return pending;
}

void work_close(struct work *work)
{
    if (!work->open) return;
    pthread_mutex_lock(&work->lock);
    work->stop = true;
    pthread_cond_broadcast(&work->news);
    pthread_mutex_unlock(&work->lock);
    for (unsigned i = 0; i < work->count; i++) pthread_join(work->threads[i], NULL);
    pthread_cond_destroy(&work->news);
    pthread_mutex_destroy(&work->lock);
    *work = (struct work){0};
}

/* Load for walsh serve, or for anything else with /v1/completions: CLIENTS connections on loopback, each with
 * one stream at a time, until REQUESTS have ended. One thread and poll, so that it takes little of the
 * machine that it measures.
 *
 *   serve_load PORT CLIENTS REQUESTS TOKENS PROMPT_WORDS [MODEL]
 *
 * Prints one JSON object: tokens/s from the first request to the last token, median and 99th percentile of
 * the time between two events of one stream, median time to the first. An event is counted as one token:
 * `ignore_eos` is asked for, and a server that joins tokens into one event tells so by its usage. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_CLIENTS 512
#define ROOM 65536

struct client {
    int fd; /* -1: at rest */
    char buffer[ROOM];
    size_t size;
    double sent, last;
    unsigned events;
};

static struct client clients[MOST_CLIENTS];
static double *gaps, *firsts;
static size_t gap_count, first_count, started, ended, failed, events, gap_room;
static unsigned tokens, words;
static const char *model;
static unsigned long long usage_tokens;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int send_request(struct client *c, int port)
{
    static const char *const vocabulary[] = {"the", "sea",     "was",  "quiet",  "and",
                                             "old", "captain", "said", "nothing"};
    char body[ROOM / 2], head[256];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int on = 1;
    size_t n = (size_t)snprintf(body, sizeof body, "{\"prompt\": \"Story %zu:", started);
    for (unsigned i = 0; i < words; i++)
        n += (size_t)snprintf(body + n, sizeof body - n, " %s", vocabulary[(started * 31 + i * 7) % 9]);
    n += (size_t)snprintf(body + n, sizeof body - n,
                          "\", \"max_tokens\": %u, \"temperature\": 0.8, \"seed\": %zu, \"stream\": true, "
                          "\"ignore_eos\": true, "
                          "\"stream_options\": {\"include_usage\": true}%s%s%s}",
                          tokens, started, model ? ", \"model\": \"" : "", model ? model : "",
                          model ? "\"" : "");
    const int h =
        snprintf(head, sizeof head,
                 "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: "
                 "application/json\r\nContent-Length: %zu\r\n\r\n",
                 n);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) return -1;
    c->sent = now();
    c->last = 0;
    c->size = 0;
    c->events = 0;
    started++;
    if (write(c->fd, head, (size_t)h) != h || write(c->fd, body, n) != (ssize_t)n) return -1;
    return 0;
}

/* Count the events that are complete; what is not stays. */
static void read_events(struct client *c)
{
    const double time = now();
    char *at = c->buffer, *end;
    c->buffer[c->size] = 0;
    while ((end = strstr(at, "\n\n"))) {
        *end = 0;
        char *event = strstr(at, "data: {");
        const char *usage = strstr(at, "\"completion_tokens\":");
        if (usage) usage_tokens += strtoull(usage + 20, NULL, 10);
        if (event && !usage) {
            if (c->last > 0 && gap_count < gap_room)
                gaps[gap_count++] = time - c->last;
            else if (c->last == 0)
                firsts[first_count++] = time - c->sent;
            c->last = time;
            c->events++;
            events++;
        }
        at = end + 2;
    }
    c->size -= (size_t)(at - c->buffer);
    memmove(c->buffer, at, c->size);
}

static void take(struct client *c)
{
    const ssize_t n = read(c->fd, c->buffer + c->size, ROOM - 1 - c->size);
    if (n > 0) {
        c->size += (size_t)n;
        read_events(c);
        if (c->size < ROOM - 1) return;
    }
    if (n < 0 && errno == EINTR) return;
    close(c->fd);
    c->fd = -1;
    failed += c->events == 0;
    ended++;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, size_t count, double share)
{
    if (count == 0) return 0;
    qsort(values, count, sizeof *values, compare);
    return values[(size_t)(share * (double)(count - 1) + 0.5)];
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: serve_load PORT CLIENTS REQUESTS TOKENS PROMPT_WORDS [MODEL]\n");
        return 2;
    }
    const int port = atoi(argv[1]);
    const size_t count = strtoul(argv[2], NULL, 10), requests = strtoul(argv[3], NULL, 10);
    tokens = (unsigned)strtoul(argv[4], NULL, 10);
    words = (unsigned)strtoul(argv[5], NULL, 10);
    model = argc > 6 ? argv[6] : NULL;
    gap_room = requests * tokens;
    gaps = calloc(gap_room + 1, sizeof *gaps);
    firsts = calloc(requests + 1, sizeof *firsts);
    if (!gaps || !firsts || count == 0 || count > MOST_CLIENTS || words > 2000) return 2;
    for (size_t i = 0; i < count; i++) clients[i].fd = -1;
    const double begin = now();
    while (ended < requests) {
        struct pollfd polled[MOST_CLIENTS];
        for (size_t i = 0; i < count; i++) {
            if (clients[i].fd < 0 && started < requests && send_request(&clients[i], port) != 0) {
                perror("serve_load");
                return 1;
            }
            polled[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
        }
        poll(polled, (nfds_t)count, -1);
        for (size_t i = 0; i < count; i++)
            if (clients[i].fd >= 0 && polled[i].revents) take(&clients[i]);
    }
    const double seconds = now() - begin;
    const double p50 = quantile(gaps, gap_count, .5), p99 = quantile(gaps, gap_count, .99);
    const double first = quantile(firsts, first_count, .5);
    const double total = usage_tokens ? (double)usage_tokens : (double)events;
    printf("{\"clients\":%zu,\"requests\":%zu,\"failed\":%zu,\"tokens\":%.0f,\"events\":%zu,\"seconds\":%.3f,"
           "\"tokens_per_second\":%.1f,\"gap_median_ms\":%.3f,\"gap_p99_ms\":%.3f,\"gap_ratio\":%.2f,\"first_"
           "median_ms\":%.2f}\n",
           count, requests, failed, total, events, seconds, total / seconds, 1e3 * p50, 1e3 * p99, p99 / p50,
           1e3 * first);
    free(gaps);
    free(firsts);
    return failed != 0;
}

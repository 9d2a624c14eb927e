/* serve/log: one JSON object per line on standard error. Any thread. */
#ifndef WALSH_SERVE_LOG_H
#define WALSH_SERVE_LOG_H

#include <jansson.h>
#include <pthread.h>

#include "walsh_hooks.h"

struct log {
    pthread_mutex_t lock;
    bool quiet; /* warnings and errors only */
};

void log_open(struct log *log, bool quiet);
void log_close(struct log *log);
/* Write the object with time, level and event in front; takes it. level: "info", "warning", "error". */
void log_write(struct log *log, const char *level, const char *event, json_t *object);
void log_message(struct log *log, const char *level, const char *event, const char *message);

#endif

#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "output.h"

void log_open(struct log *log, bool quiet)
{
    pthread_mutex_init(&log->lock, NULL);
    log->quiet = quiet;
}

void log_close(struct log *log)
{
    pthread_mutex_destroy(&log->lock);
}

void log_write(struct log *log, const char *level, const char *event, json_t *object)
{
    if (log->quiet && strcmp(level, "info") == 0) {
        json_decref(object);
        return;
    }
    struct timespec now;
    struct tm utc;
    char stamp[40];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    const size_t n = strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(stamp + n, sizeof stamp - n, ".%03ldZ", now.tv_nsec / 1000000);
    json_t *line = json_object();
    json_put_text(line, "time", stamp);
    json_put_text(line, "level", level);
    json_put_text(line, "event", event);
    if (object) json_object_update(line, object);
    json_decref(object);
    char *text = json_dumps(line, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(6));
    json_decref(line);
    if (!text) return;
    pthread_mutex_lock(&log->lock);
    fprintf(stderr, "%s\n", text);
    pthread_mutex_unlock(&log->lock);
    free(text);
}

void log_message(struct log *log, const char *level, const char *event, const char *message)
{
    json_t *object = json_object();
    json_t *text = json_string(message);
    json_object_set_new(object, "message", text ? text : json_string("(not UTF-8)"));
    log_write(log, level, event, object);
}

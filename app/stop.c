#include "stop.h"

#include <string.h>

/* Drop what the last call gave out. */
static void forget_given(struct stop_filter *filter)
{
    if (!filter->given) return;
    memmove(filter->held.data, filter->held.data + filter->given, filter->held.size - filter->given + 1);
    filter->held.size -= filter->given;
    filter->given = 0;
}

/* Where in the held text the first stop string begins, or the first end that may become one; sets
 * filter->found. */
static size_t first_stop(struct stop_filter *filter)
{
    const char *data = filter->held.data;
    size_t size = filter->held.size;
    for (size_t at = 0; at < size; at++) {
        bool partial = false;
        for (size_t i = 0; i < filter->stops->count; i++) {
            const char *stop = filter->stops->values[i];
            size_t length = strlen(stop), rest = size - at;
            if (length == 0) continue;
            if (length <= rest && memcmp(data + at, stop, length) == 0) {
                filter->found = true;
                return at;
            }
            partial |= rest < length && memcmp(data + at, stop, rest) == 0;
        }
        if (partial) return at;
    }
    return size;
}

bool stop_filter_push(struct stop_filter *filter, const char *text, size_t size, const char **out,
                      size_t *out_size)
{
    *out = "";
    *out_size = 0;
    if (filter->found) return true;
    forget_given(filter);
    if (!text_append(&filter->held, text, size)) return false;
    filter->given = first_stop(filter);
    *out = filter->held.data;
    *out_size = filter->given;
    return true;
}

void stop_filter_finish(struct stop_filter *filter, const char **out, size_t *out_size)
{
    *out = "";
    *out_size = 0;
    if (filter->found || !filter->held.data) return;
    forget_given(filter);
    *out = filter->held.data;
    *out_size = filter->given = filter->held.size;
}

void stop_filter_free(struct stop_filter *filter)
{
    text_free(&filter->held);
    *filter = (struct stop_filter){0};
}

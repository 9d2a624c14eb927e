/* app/stop: ends a stream of text before a stop string, even where the string arrives in pieces. */
#ifndef WALSH_APP_STOP_H
#define WALSH_APP_STOP_H

#include "options.h"
#include "output.h"

struct stop_filter {
    const struct option_texts *stops;
    struct text held; /* text not given out yet */
    size_t given;     /* bytes of `held` that the last call gave out */
    bool found;       /* a stop string was met; what follows is dropped */
};

/* Take text in; *out, valid until the next call, is what can be shown: all but an end that may begin a stop
 * string. false: out of memory. */
bool stop_filter_push(struct stop_filter *filter, const char *text, size_t size, const char **out,
                      size_t *out_size);
/* The rest, where the text ends without a stop string. */
void stop_filter_finish(struct stop_filter *filter, const char **out, size_t *out_size);
void stop_filter_free(struct stop_filter *filter);

#endif

/* app/bench_requests: requests through the batch scheduler, timed as their senders see them. */
#ifndef WALSH_APP_BENCH_REQUESTS_H
#define WALSH_APP_BENCH_REQUESTS_H

#include "app.h"

struct requests_plan {
    size_t requests;           /* all sent at once */
    uint32_t prompt, generate; /* tokens of each: prompts of prompt/2 to 3*prompt/2, answers of `generate` */
    struct walsh_batch_options batch;
    uint32_t vocab;
    const struct walsh_adapter_use *adapters; /* [adapter_count] of every request, or ... */
    size_t adapter_count;
    struct walsh_adapter *const *own; /* ... [own_count] of request i own[i % own_count] alone; NULL: none */
    size_t own_count;
};
struct requests_result {
    double seconds;                 /* until the last answer ended */
    double gap_median, gap_p99;     /* seconds between two tokens of a request */
    double first_median;            /* seconds from the step that admits a request to its first token */
    uint64_t tokens, prompt_tokens; /* of all answers and prompts */
    uint64_t kv_bytes;              /* of all caches, at most */
    double rows;                    /* tokens per step that drew one, on average */
};
/* Send the requests, drive the batch until all have ended. */
enum walsh_status requests_time(const struct walsh_model *model, const struct requests_plan *plan,
                                struct requests_result *result, struct walsh_error *err);

#endif

/* runtime/eval: how well a model predicts a text. May use model and below. */
#ifndef WALSH_RUNTIME_EVAL_H
#define WALSH_RUNTIME_EVAL_H

#include "runtime/session.h"

struct walsh_evaluation {
    uint64_t tokens;  /* scored */
    double nll;       /* mean negative log-likelihood, nats */
    double nll_error; /* its standard error: sqrt(variance / tokens) */
    double kl;        /* mean KL(reference || model), nats; 0 without a reference */
    double top1_agreement;
};
/* ids are cut into non-overlapping chunks of `context` (the tail dropped), each run as a prompt from an empty
 * cache; tokens 2..context of each are scored. Log-softmax in double; sums in the order of the text.
 * A packed cache is read as decode reads it: every key and value packed, the row's own too, with the
 * bits of as many decode steps. `reference` may be NULL; it needs the same vocabulary and runs without
 * adapters, with an f16 cache where the model's is packed. Fewer ids than one chunk,
 * or another vocabulary: WALSH_E_FORMAT. NaN among the logits: WALSH_E_INTERNAL. */
enum walsh_status walsh_runtime_eval(struct walsh_runner *runner, struct walsh_runner *reference,
                                     const int32_t *ids, size_t count, uint32_t context,
                                     const struct walsh_kv_policy *policy,
                                     const struct walsh_adapter_choice *adapters, size_t adapter_count,
                                     struct walsh_evaluation *result, struct walsh_error *err);

/* Negative log-likelihood of `target` under softmax(logits[n]); *normalizer receives log(sum exp), may be
 * NULL. */
double walsh_negative_log_likelihood(const float *logits, size_t n, int32_t target, double *normalizer);

#endif

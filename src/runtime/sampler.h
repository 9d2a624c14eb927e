/* runtime/sampler: the next token from logits. May use kernels, text and base. */
#ifndef WALSH_RUNTIME_SAMPLER_H
#define WALSH_RUNTIME_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "base/random.h"
#include "base/status.h"
#include "kernels/table.h"
#include "text/grammar.h"

/* A temperature below it is greedy: logits one step of f32 apart differ by more than a factor of e^0.1 there,
 * and its reciprocal would leave f32 in the end. */
#define WALSH_LEAST_TEMPERATURE 1e-6

/* Applied in this order: repeat penalty, presence and frequency penalty, bias, temperature, top-k, top-p,
 * min-p; the filters as in Hugging Face's logits processors. */
struct walsh_sampling {
    double temperature;    /* >= 0; below WALSH_LEAST_TEMPERATURE: the largest logit, ties to the lowest id */
    uint32_t top_k;        /* 0: off */
    double top_p;          /* in (0, 1]; 1: off (Holtzman et al. 2020, nucleus sampling) */
    double min_p;          /* in [0, 1]: drop tokens below min_p * the largest probability; 0: off */
    double repeat_penalty; /* > 0: positive logits of recent tokens are divided by it, negative ones
                              multiplied; 1: off */
    uint32_t repeat_last;  /* tokens that count as recent; 0: none */
    uint64_t seed;
    const int32_t
        *excluded; /* [excluded_count] ids that are never drawn, borrowed; each below the vocabulary */
    size_t excluded_count;
    /* Subtracted from the logits of drawn tokens: once, and once for each time (OpenAI's API reference). */
    double presence_penalty, frequency_penalty;
    const int32_t *bias_ids; /* [bias_count] ids, and what is added to their logits; copied by the sampler */
    const float *biases;
    size_t bias_count;
    const struct walsh_grammar *grammar; /* what answers look like; NULL: free. The sampler keeps it */
    const struct walsh_kernels *kernels; /* of the CPU; NULL: this machine's. All draw the same */
};

struct walsh_candidate {
    float logit; /* after penalties and bias */
    float decay; /* kernels/draw.h's */
    int32_t id;
};

struct walsh_sampler {
    struct walsh_sampling options;
    uint32_t vocab;
    struct walsh_random random;
    walsh_kernel_logit_range *logit_range;
    walsh_kernel_sum_masses *sum_masses;
    float *logits;                      /* [vocab], after penalties and biases, where there are some */
    struct walsh_reach reach;           /* room for [vocab] */
    struct walsh_candidate *candidates; /* [vocab] those of reach, by depth */
    int32_t *recent;                    /* ring [repeat_last] */
    uint64_t accepted;                  /* tokens so far */
    uint32_t *drawn;                /* [vocab]: how often each was drawn; NULL where no penalty asks for it */
    uint32_t distinct;              /* ids in it that are not 0 */
    struct walsh_logit_edit *edits; /* [edit_room], of the last plan */
    uint32_t edit_count, edit_room;
    uint32_t *place;               /* [vocab] 1 + its place in edits, while they are collected; else 0 */
    struct walsh_matcher *matcher; /* NULL: no grammar */
    int32_t *bias_ids;             /* [options.bias_count] */
    float *biases;
};

/* Options out of their ranges and biases of ids outside the vocabulary: WALSH_E_ARGUMENT, naming option,
 * value and range. */
enum walsh_status walsh_sampling_check(const struct walsh_sampling *options, uint32_t vocab,
                                       struct walsh_error *err);
/* Replace the options' biases by copies of the caller's, in *ids and *biases (walsh_free, also on failure).
 */
enum walsh_status walsh_sampling_copy_bias(struct walsh_sampling *options, int32_t **ids, float **biases,
                                           struct walsh_error *err);
/* Checks them too. */
enum walsh_status walsh_sampler_create(const struct walsh_sampling *options, uint32_t vocab,
                                       struct walsh_sampler **out, struct walsh_error *err);
void walsh_sampler_destroy(struct walsh_sampler **sampler);
/* A token that was seen. */
void walsh_sampler_note(struct walsh_sampler *sampler, int32_t id);
/* What its next draw is, as walsh_sampler_choose does it; valid until the sampler's next call. Nothing is drawn
 * by it: a token that was drawn so elsewhere is given to walsh_sampler_take, which moves the sampler on. */
enum walsh_status walsh_sampler_plan(struct walsh_sampler *sampler, struct walsh_draw *out,
                                     struct walsh_error *err);
enum walsh_status walsh_sampler_take(struct walsh_sampler *sampler, int32_t id, struct walsh_error *err);
/* Draw from logits [vocab] and note the result. NaN or +Inf among them, or nothing but -Inf:
 * WALSH_E_INTERNAL. */
enum walsh_status walsh_sampler_choose(struct walsh_sampler *sampler, const float *logits, int32_t *id,
                                       struct walsh_error *err);

#endif

/* quantize/merge: a model with adapters becomes a plain checkpoint: W + sum of s B A in place of W, quantized
 * linears decoded. May use model and below. */
#ifndef WALSH_QUANTIZE_MERGE_H
#define WALSH_QUANTIZE_MERGE_H

#include "base/hooks.h"
#include "model/adapter.h"

struct walsh_merging {
    const struct walsh_model_graph *graph; /* opened from a directory */
    const struct walsh_adapter_set *set;   /* of this graph, best stored in f32; NULL: only decode */
    enum walsh_dtype dtype;                /* WALSH_BF16 or WALSH_F32, of every weight that is written */
};
/* Write `destination`, which must not exist: a Hugging Face directory with the graph's config, tokenizer and
 * generation files. Sums in double precision, rounded once. *bytes: of its safetensors file. On failure
 * nothing is left behind. An update of an lm_head that shares the embedding's weights: WALSH_E_UNSUPPORTED.
 */
enum walsh_status walsh_merge_job(const struct walsh_queue *q, const struct walsh_hooks *hooks,
                                  const struct walsh_merging *merging, const char *destination,
                                  uint64_t *bytes, struct walsh_error *err);

#endif

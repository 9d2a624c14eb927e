/* quantize/head: the head of a vocabulary in int8: rotated on the input side, each row rounded to the nearest
 * with a scale of its own. Private to quantize/.
 *
 *   HEAD.weight        I8  [vocab][hidden padded]  rint(W~ / scale) of W~ = W diag(SV) H
 *   HEAD.weight_scale  F32 [vocab][1]              max |W~| of the row / 127
 *   HEAD.SV            F16 [hidden padded]
 * It stands beside the embedding also where the source ties both: config.json then says tie_word_embeddings
 * false, and the embedding stays as it was. */
#ifndef WALSH_QUANTIZE_HEAD_H
#define WALSH_QUANTIZE_HEAD_H

#include "quantize/output.h"
#include "model/model.h"

/* Declare the tensors; the source's own head counts as replaced. A head that is quantized already is
 * WALSH_E_ARGUMENT. */
enum walsh_status walsh_head_plan(const struct walsh_model_graph *graph, struct walsh_safetensors_plan *plan,
                                  struct walsh_error *err);
/* Encode and write it, signs by `seed`. NaN or Inf in the weights: WALSH_E_FORMAT. */
enum walsh_status walsh_head_write(const struct walsh_queue *q, const struct walsh_model_graph *graph,
                                   uint64_t seed, struct walsh_output *output, struct walsh_error *err);

#endif

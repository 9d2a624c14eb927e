/* text/tokenizer_parts: the parts of tokenizer.json around the model. */
#ifndef WALSH_TEXT_TOKENIZER_PARTS_H
#define WALSH_TEXT_TOKENIZER_PARTS_H

#include <jansson.h>

#include "text/tokenizer_internal.h"

/* version, normalizer, pre_tokenizer and decoder of the root object. */
enum walsh_status walsh_load_parts(struct walsh_tokenizer *t, const json_t *root, struct walsh_error *err);
/* `processor` may be NULL. The vocabulary is there: ids are checked against it. */
enum walsh_status walsh_load_post_processor(struct walsh_tokenizer *t, const json_t *processor,
                                            struct walsh_error *err);

#endif

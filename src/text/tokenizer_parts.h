/* text/tokenizer_parts: the parts of tokenizer.json around the model. */
#ifndef WALSH_TEXT_TOKENIZER_PARTS_H
#define WALSH_TEXT_TOKENIZER_PARTS_H

#include <jansson.h>

#include "text/tokenizer_internal.h"

/* version, normalizer, pre_tokenizer and decoder of the root object. */
enum walsh_status walsh_load_parts(struct walsh_tokenizer *t, const json_t *root, struct walsh_error *err);
/* `part` may be NULL. */
enum walsh_status walsh_load_normalizer(struct walsh_normalizer *n, const json_t *part, unsigned depth,
                                        struct walsh_error *err);
enum walsh_status walsh_load_decoder(struct walsh_decoder *d, const json_t *part, struct walsh_error *err);
/* The replacement and the prepend_scheme of a Metaspace; `sign` is empty before. */
enum walsh_status walsh_load_metaspace(const json_t *part, const char *where, struct walsh_buffer *sign,
                                       enum walsh_prepend *scheme, struct walsh_error *err);

/* ---- what the parts have in common; `where` names the part in messages ---- */

/* The `type` of an object. */
enum walsh_status walsh_part_type(const json_t *part, const char *where, const char **type,
                                  struct walsh_error *err);
/* WALSH_E_UNSUPPORTED with the list of `known` types. */
enum walsh_status walsh_part_unknown(struct walsh_error *err, const char *where, const char *type,
                                     const char *known);
/* The list of a Sequence, which stands `depth` sequences deep. */
enum walsh_status walsh_part_members(const json_t *sequence, const char *where, const char *key,
                                     unsigned depth, const json_t **list, struct walsh_error *err);

/* `processor` may be NULL. The vocabulary is there: ids are checked against it. */
enum walsh_status walsh_load_post_processor(struct walsh_tokenizer *t, const json_t *processor,
                                            struct walsh_error *err);

#endif

/* checkpoint/model_name: what a model is called, to tell an adapter of another one. May use base. */
#ifndef WALSH_CHECKPOINT_MODEL_NAME_H
#define WALSH_CHECKPOINT_MODEL_NAME_H

#include "checkpoint/checkpoint.h"

/* *out: the name that a copy of the model is to keep: "_name_or_path" of its config.json, as Hugging Face
 * writes it, else the last component of its directory, or "org/name" of a Hugging Face cache's directory.
 * walsh_free. */
enum walsh_status walsh_model_name(const struct walsh_checkpoint *ck, char **out, struct walsh_error *err);

/* Does the model go by the last component of `id` ("hub/Base-1B", "/models/base/")? Its directory, one above
 * it or "_name_or_path" is called so, or so with something behind it ("Base-1B-e8p"). True for an empty id.
 */
bool walsh_model_goes_by(const struct walsh_checkpoint *ck, const char *id);

#endif

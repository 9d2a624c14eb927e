/* app/files: finding models and shipped texts, reading small files. The only reader of HF_HOME and
 * WALSH_DATA. */
#ifndef WALSH_APP_FILES_H
#define WALSH_APP_FILES_H

#include "output.h"

#include "walsh_status.h"

/* The whole file; "-" is standard input. *out is freed with text_free. */
enum walsh_status file_read(const char *path, struct text *out, struct walsh_error *err);

/* The directory (or file) that `model` names: a path that exists, or else a Hugging Face id ("org/name") in
 * the local cache ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub), or else the name of a model that
 * ships with walsh ("bookworm-8m"). *path is freed by the caller. */
enum walsh_status model_find(const char *model, char **path, struct walsh_error *err);

/* A text that ships with walsh ("calibration.txt"): in $WALSH_DATA, beside an installed program, or in the
 * source tree. *path is freed by the caller. */
enum walsh_status data_find(const char *name, char **path, struct walsh_error *err);

#endif

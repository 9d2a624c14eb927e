/* checkpoint/peft_config: adapter_config.json of a LoRA as the PEFT library writes it (peft 0.21, class
 * LoraConfig).
 *
 * Keys that matter only for training or as a record are skipped. Every other key that walsh does not read,
 * known or not, must be off (null, false, [], {} or ""): else an error that names key and value, because a
 * feature that is silently skipped gives wrong text. */
#ifndef WALSH_CHECKPOINT_PEFT_CONFIG_H
#define WALSH_CHECKPOINT_PEFT_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "checkpoint/peft_pattern.h"

#define WALSH_MAX_LORA_RANK 256

/* A key of rank_pattern or alpha_pattern. The first that matches, in the file's order, decides. */
struct walsh_peft_override {
    struct walsh_peft_pattern pattern;
    double value;
};
/* Which modules: none, names (a whole name, or its last components), a regular expression, or all linears but
 * lm_head. */
enum walsh_peft_selection { WALSH_PEFT_NONE, WALSH_PEFT_NAMES, WALSH_PEFT_REGEX, WALSH_PEFT_ALL_LINEAR };
struct walsh_peft_selector {
    enum walsh_peft_selection kind;
    const char **names;
    size_t count;
    struct walsh_peft_pattern pattern; /* REGEX */
};

struct walsh_peft_config {
    const char *path;       /* of adapter_config.json, for messages */
    const char *base_model; /* base_model_name_or_path, "" where absent */
    uint32_t rank;
    double alpha;
    bool rank_stabilized; /* use_rslora: scale alpha/sqrt(r) instead of alpha/r */
    struct walsh_peft_override *ranks, *alphas;
    size_t rank_count, alpha_count;
    struct walsh_peft_selector targets, excluded; /* target_modules, exclude_modules */
    const char **parameters;                      /* target_parameters */
    size_t parameter_count;
    struct walsh_arena arena;
};
/* Parse `size` bytes of adapter_config.json; `path` is for messages. Closes *out itself on failure. */
enum walsh_status walsh_peft_config_parse(const char *path, const char *json, size_t size,
                                          struct walsh_peft_config *out, struct walsh_error *err);
void walsh_peft_config_close(struct walsh_peft_config *config); /* safe on a zeroed struct */

/* Does the adapter target this module ("model.layers.0.mlp.up_proj") through target_modules and
 * exclude_modules? */
enum walsh_status walsh_peft_config_targets(const struct walsh_peft_config *config, const char *module,
                                            bool *targeted, struct walsh_error *err);
/* Does it target this stacked parameter ("model.layers.0.mlp.experts.down_proj")? */
bool walsh_peft_config_targets_parameter(const struct walsh_peft_config *config, const char *parameter);
/* Rank and scale (alpha/r or alpha/sqrt(r)) of a module or a stacked parameter. */
enum walsh_status walsh_peft_config_rank(const struct walsh_peft_config *config, const char *name,
                                         uint32_t *rank, double *scale, struct walsh_error *err);

#endif

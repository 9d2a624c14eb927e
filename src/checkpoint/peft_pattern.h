/* checkpoint/peft_pattern: the patterns of adapter_config.json. They come from an untrusted file: no JIT, a
 * match limit. */
#ifndef WALSH_CHECKPOINT_PEFT_PATTERN_H
#define WALSH_CHECKPOINT_PEFT_PATTERN_H

#include <stdbool.h>

#include "base/memory.h"
#include "base/status.h"

enum walsh_peft_match {
    WALSH_PEFT_WHOLE, /* the pattern matches the whole name: target_modules, exclude_modules */
    WALSH_PEFT_SUFFIX /* `(.*\.)?(PATTERN)$` matches from the start: keys of rank_pattern, alpha_pattern */
};
struct walsh_peft_pattern {
    const char *text; /* borrowed from the arena given to compile */
    enum walsh_peft_match kind;
    struct pcre2_real_code_8 *code; /* NULL: only letters, digits, '_', '-' and '.' (any character) */
};
/* A pattern that does not compile or is longer than 65,536 bytes: WALSH_E_FORMAT, the message starts with the
 * pattern. */
enum walsh_status walsh_peft_pattern_compile(const char *text, enum walsh_peft_match kind,
                                             struct walsh_arena *arena, struct walsh_peft_pattern *out,
                                             struct walsh_error *err);
void walsh_peft_pattern_close(struct walsh_peft_pattern *pattern); /* safe on a zeroed struct */
/* WALSH_E_UNSUPPORTED where the match needs more than a fixed number of steps. */
enum walsh_status walsh_peft_pattern_match(const struct walsh_peft_pattern *pattern, const char *name,
                                           bool *matched, struct walsh_error *err);

#endif

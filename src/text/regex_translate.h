/* text/regex_translate: an Oniguruma split pattern rewritten for PCRE2 (see regex.h). */
#ifndef WALSH_TEXT_REGEX_TRANSLATE_H
#define WALSH_TEXT_REGEX_TRANSLATE_H

#include "text/buffer.h"

/* Append the PCRE2 pattern to `out`, without a NUL. WALSH_E_UNSUPPORTED names what has no counterpart. */
enum walsh_status walsh_regex_translate(const char *pattern, struct walsh_buffer *out,
                                        struct walsh_error *err);

#endif

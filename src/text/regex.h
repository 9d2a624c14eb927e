/* text/regex: the split patterns of tokenizer.json, which are written for Oniguruma, run on PCRE2.
 *
 * The pattern is checked construct by construct: what means the same in both goes through, what has another
 * name is rewritten (\s is \p{White_Space}, \w is letters, marks, decimal digits and connectors, script names
 * mean the Script property), and what would mean something else is an error that names it. Differences that
 * remain: code points newer than PCRE2's Unicode version (10.42: 14.0), and case-insensitive literals of
 * several letters that fold to one (Oniguruma lets (?i:ss) match U+00DF).
 *
 * A pattern comes from a file that nobody vouches for: no JIT, and limits on steps and memory. */
#ifndef WALSH_TEXT_REGEX_H
#define WALSH_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct walsh_regex;
struct walsh_regex_scratch; /* what a search writes: one per thread, for any pattern */

/* `literal`: the pattern is plain text. WALSH_E_UNSUPPORTED names a construct outside the common ground,
 * WALSH_E_FORMAT carries PCRE2's message. */
enum walsh_status walsh_regex_open(const char *pattern, bool literal, struct walsh_regex **out,
                                   struct walsh_error *err);
void walsh_regex_close(struct walsh_regex **regex);

enum walsh_status walsh_regex_scratch_open(struct walsh_regex_scratch **out, struct walsh_error *err);
void walsh_regex_scratch_close(struct walsh_regex_scratch **scratch);

/* The first match in well-formed UTF-8 at or behind `from`, look-behind seeing all of text. *found false:
 * none. A match that needs more steps or memory than the limits is WALSH_E_FORMAT. */
enum walsh_status walsh_regex_find(const struct walsh_regex *regex, struct walsh_regex_scratch *scratch,
                                   const uint8_t *text, size_t size, size_t from, bool *found, size_t *start,
                                   size_t *end, struct walsh_error *err);

#endif

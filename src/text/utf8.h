/* text/utf8: one character of UTF-8 at a time, by table 3-7 of the Unicode standard (well-formed byte
 * sequences). */
#ifndef WALSH_TEXT_UTF8_H
#define WALSH_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum walsh_utf8 {
    WALSH_UTF8_VALID,  /* a whole character */
    WALSH_UTF8_BROKEN, /* no continuation makes these bytes a character: one U+FFFD stands for them */
    WALSH_UTF8_CUT     /* the text ends inside a character that is well formed so far */
};

/* The bytes that the first character of size > 0 bytes takes. BROKEN and CUT give the length of the maximal
 * subpart (1 to 3 bytes), the unit that Python's "replace" and Rust's from_utf8_lossy replace by one U+FFFD.
 */
size_t walsh_utf8_step(const uint8_t *text, size_t size, enum walsh_utf8 *kind);

/* The code point of a VALID character. */
uint32_t walsh_utf8_decode(const uint8_t *character);

bool walsh_utf8_white_space(uint32_t code_point); /* Unicode's White_Space */
/* Where the character that ends at `end` > 0 of well-formed text starts. */
size_t walsh_utf8_before(const uint8_t *text, size_t end);

/* Copy size bytes to `out` with each ill-formed part replaced by U+FFFD (a CUT one at the end too); returns
 * the bytes of the copy, at most 3 * size. NULL for `out` only measures. */
size_t walsh_utf8_clean(const uint8_t *text, size_t size, uint8_t *out);

#endif

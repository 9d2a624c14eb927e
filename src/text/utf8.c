#include "text/utf8.h"

#include <string.h>

size_t walsh_utf8_step(const uint8_t *text, size_t size, enum walsh_utf8 *kind)
{
    uint8_t lead = text[0];
    if (lead < 0x80) {
        *kind = WALSH_UTF8_VALID;
        return 1;
    }
    if (lead < 0xc2 || lead > 0xf4) {
        *kind = WALSH_UTF8_BROKEN;
        return 1;
    }
    size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    /* The second byte is narrower after four leads: no overlong forms, no surrogates, nothing above U+10FFFF.
     */
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < length; i++) {
        if (i == size) {
            *kind = WALSH_UTF8_CUT;
            return i;
        }
        if (text[i] < low || text[i] > high) {
            *kind = WALSH_UTF8_BROKEN;
            return i;
        }
        low = 0x80;
        high = 0xbf;
    }
    *kind = WALSH_UTF8_VALID;
    return length;
}

uint32_t walsh_utf8_decode(const uint8_t *character)
{
    uint32_t lead = character[0];
    if (lead < 0x80) return lead;
    if (lead < 0xe0) return (lead & 0x1f) << 6 | (character[1] & 0x3fu);
    if (lead < 0xf0) return (lead & 0x0f) << 12 | (character[1] & 0x3fu) << 6 | (character[2] & 0x3fu);
    return (lead & 0x07) << 18 | (character[1] & 0x3fu) << 12 | (character[2] & 0x3fu) << 6 |
           (character[3] & 0x3fu);
}

bool walsh_utf8_white_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

size_t walsh_utf8_before(const uint8_t *text, size_t end)
{
    size_t start = end - 1;
    while (start > 0 && (text[start] & 0xc0) == 0x80) start--;
    return start;
}

/* The length of the ASCII run at the start. */
static size_t ascii_run(const uint8_t *text, size_t size)
{
    size_t i = 0;
    for (; size - i >= 8; i += 8) {
        uint64_t word;
        memcpy(&word, text + i, 8);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    while (i < size && text[i] < 0x80) i++;
    return i;
}

size_t walsh_utf8_clean(const uint8_t *text, size_t size, uint8_t *out)
{
    size_t written = 0;
    for (size_t i = 0; i < size;) {
        enum walsh_utf8 kind = WALSH_UTF8_VALID;
        size_t length = ascii_run(text + i, size - i);
        if (length == 0) length = walsh_utf8_step(text + i, size - i, &kind);
        const uint8_t *from = kind == WALSH_UTF8_VALID ? text + i : (const uint8_t *)"\xef\xbf\xbd";
        size_t bytes = kind == WALSH_UTF8_VALID ? length : 3;
        if (out) memcpy(out + written, from, bytes);
        written += bytes;
        i += length;
    }
    return written;
}

#include "text/regex_translate.h"

#include <stdbool.h>
#include <string.h>

/* Oniguruma's \w: Alphabetic, marks, decimal digits, connector punctuation and, by its table for Latin-1, the
 * superscripts and fractions there. PCRE2 10.42's \w is another set. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

struct translation {
    const char *pattern, *at;
    struct walsh_buffer *out;
    struct walsh_error *err;
};

static enum walsh_status refuse(const struct translation *t, const char *construct, size_t length)
{
    return walsh_fail(t->err, WALSH_E_UNSUPPORTED, "regex construct \"%.*s\" is not supported, in \"%.200s\"",
                      (int)length, construct, t->pattern);
}

static enum walsh_status emit(struct translation *t, const char *text)
{
    return walsh_buffer_append(t->out, text, strlen(text), t->err);
}

/* Copy `length` bytes of the pattern as they are. */
static enum walsh_status copy(struct translation *t, size_t length)
{
    WALSH_TRY(walsh_buffer_append(t->out, t->at, length, t->err));
    t->at += length;
    return WALSH_OK;
}

static bool is_one_of(char c, const char *set)
{
    return c != '\0' && strchr(set, c) != NULL;
}

/* \p{L} and \P{^Lu} stay. A longer name is a script: Oniguruma means the Script property, a bare PCRE2 name
 * means Script_Extensions. */
static enum walsh_status property(struct translation *t)
{
    const char *start = t->at, *name = start + 3;
    const char *close = start[2] == '{' ? strchr(name, '}') : NULL;
    if (!close) return refuse(t, start, 2);
    bool negated = *name == '^';
    if (negated) name++;
    size_t length = (size_t)(close - name);
    bool script = length > 2;
    for (size_t i = 0; i < length; i++)
        if (!is_one_of(name[i], "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"))
            return refuse(t, start, (size_t)(close + 1 - start));
    WALSH_TRY(walsh_buffer_append(t->out, start, 3, t->err)); /* "\p{" */
    if (negated) WALSH_TRY(emit(t, "^"));
    if (script) WALSH_TRY(emit(t, "sc:"));
    t->at = name;
    return copy(t, length + 1);
}

/* \uHHHH, \x{H...} and \xHH below 0x80 (above, Oniguruma means a byte of the encoding, PCRE2 a code point).
 */
static enum walsh_status code_point(struct translation *t)
{
    static const char hex[] = "0123456789abcdefABCDEF";
    const char *start = t->at;
    if (start[1] == 'x' && start[2] == '{') {
        size_t digits = strspn(start + 3, hex);
        if (digits == 0 || start[3 + digits] != '}') return refuse(t, start, 3);
        return copy(t, 4 + digits);
    }
    size_t digits = start[1] == 'u' ? 4 : 2;
    if (strspn(start + 2, hex) < digits) return refuse(t, start, 2);
    if (start[1] == 'x' && !is_one_of(start[2], "01234567")) return refuse(t, start, 4);
    WALSH_TRY(emit(t, "\\x{"));
    t->at += 2;
    WALSH_TRY(copy(t, digits));
    return emit(t, "}");
}

static enum walsh_status escape(struct translation *t, bool in_class)
{
    char c = t->at[1];
    const char *replacement = NULL;
    switch (c) {
    case 'p':
    case 'P':
        return property(t);
    case 'u':
    case 'x':
        return code_point(t);
    case 's':
        replacement = "\\p{White_Space}";
        break;
    case 'S':
        replacement = "\\P{White_Space}";
        break;
    case 'd':
        replacement = "\\p{Nd}";
        break;
    case 'D':
        replacement = "\\P{Nd}";
        break;
    case 'v':
        replacement = "\\x{0b}";
        break;
    case 'w':
        replacement = in_class ? WORD : "[" WORD "]";
        break;
    case 'W':
        replacement = in_class ? NULL : "[^" WORD "]";
        break;
    case 'A':
    case 'z': /* start and end of the text */
        if (!in_class) return copy(t, 2);
        break;
    default:
        if (is_one_of(c, "rntfae") || is_one_of(c, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ ")) return copy(t, 2);
        break;
    }
    if (!replacement) return refuse(t, t->at, c ? 2 : 1);
    t->at += 2;
    return emit(t, replacement);
}

static enum walsh_status character_class(struct translation *t)
{
    WALSH_TRY(copy(t, t->at[1] == '^' ? 2 : 1));
    if (*t->at == ']') return refuse(t, "[]", 2);
    while (*t->at != ']') {
        if (*t->at == '\0') return refuse(t, "[", 1);                       /* never closed */
        if (*t->at == '[') return refuse(t, t->at, 2);                      /* set in a set, [:name:] */
        if (t->at[0] == '&' && t->at[1] == '&') return refuse(t, t->at, 2); /* intersection */
        WALSH_TRY(*t->at == '\\' ? escape(t, true) : copy(t, 1));
    }
    return copy(t, 1);
}

/* What may follow "(?": a group, look-around, an atomic group or the flag i. Other flags differ (Oniguruma's
 * m is PCRE2's s), and so do verbs and callouts. */
static enum walsh_status group(struct translation *t)
{
    if (t->at[1] == '*') return refuse(t, "(*", 2);
    if (t->at[1] != '?') return copy(t, 1);
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(t->at, known[i], strlen(known[i])) == 0) return copy(t, strlen(known[i]));
    return refuse(t, t->at, strnlen(t->at, 4));
}

/* {n}, {n,} and {n,m}; the first may be absent in Oniguruma only. {n,m}+ is possessive in PCRE2, a repeated
 * repeat in Oniguruma. */
static enum walsh_status interval(struct translation *t)
{
    const char *digits = "0123456789";
    size_t length = 1 + strspn(t->at + 1, digits);
    if (length == 1) return refuse(t, "{", 1);
    if (t->at[length] == ',') {
        length++;
        length += strspn(t->at + length, digits);
    }
    if (t->at[length] != '}') return refuse(t, "{", 1);
    length++;
    if (t->at[length] == '+') return refuse(t, t->at, length + 1);
    return copy(t, length);
}

enum walsh_status walsh_regex_translate(const char *pattern, struct walsh_buffer *out,
                                        struct walsh_error *err)
{
    struct translation t = {pattern, pattern, out, err};
    while (*t.at) {
        switch (*t.at) {
        case '\\':
            WALSH_TRY(escape(&t, false));
            break;
        case '[':
            WALSH_TRY(character_class(&t));
            break;
        case '(':
            WALSH_TRY(group(&t));
            break;
        case '{':
            WALSH_TRY(interval(&t));
            break;
        default:
            WALSH_TRY(copy(&t, 1));
            break;
        }
    }
    return WALSH_OK;
}

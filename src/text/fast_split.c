/* Every pattern here covers any text: each character belongs to some alternative, so a match starts where it
 * is asked for. A byte >= 0x80 that could lengthen or change the match makes the answer 0, and PCRE2 is the
 * only authority on what is a letter, a number or white space beyond ASCII. */
#include <string.h>

#include "text/tokenizer_internal.h"

const char walsh_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

struct walsh_fast_pattern {
    const char *pattern;
    bool gpt2; /* a space may lead words and numbers; contractions in lower case only; no line breaks */
    size_t max_digits; /* of a number */
};

static const struct walsh_fast_pattern patterns[] = {
    {walsh_gpt2_pattern, true, SIZE_MAX},
    /* Llama 3 and GPT-4's cl100k */
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     false, 3},
    /* Qwen 2 and 3 */
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     false, 1},
};

const struct walsh_fast_pattern *walsh_fast_pattern_find(const char *pattern)
{
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (strcmp(patterns[i].pattern, pattern) == 0) return &patterns[i];
    return NULL;
}

enum class { LETTER = 1, DIGIT = 2, SPACE = 4, OTHER = 8, UNKNOWN = 16 };

/* The class of a byte. */
/* clang-format off */
static const uint8_t classes[256] = {
    8, 8, 8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8,
    4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 8, 8, 8, 8, 8, 8,
    8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 8, 8, 8, 8,
    8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 8, 8, 8, 8,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
    16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16,
};
/* clang-format on */

struct view {
    const uint8_t *text;
    size_t size;
};

/* The class at position i; 0 behind the end. */
static unsigned class_at(struct view v, size_t i)
{
    return i < v.size ? classes[v.text[i]] : 0;
}

static bool is_break(uint8_t c)
{
    return c == '\r' || c == '\n';
}

/* The end of the run of `class` from i on, at most `limit` long; 0 where an unknown byte ends it. */
static size_t run(struct view v, size_t i, unsigned class, size_t limit)
{
    size_t start = i;
    while (i < v.size && i - start < limit && (classes[v.text[i]] & class)) i++;
    return i - start < limit && class_at(v, i) == UNKNOWN ? 0 : i;
}

/* 's 't 're 've 'm 'll 'd at an apostrophe: the end, or `from` where there is none. */
static size_t contraction(struct view v, size_t from, bool any_case)
{
    uint8_t letters[2] = {0, 0};
    for (size_t i = 0; i < 2 && from + 1 + i < v.size; i++) {
        letters[i] = v.text[from + 1 + i];
        if (any_case && letters[i] >= 'A' && letters[i] <= 'Z') letters[i] |= 0x20;
    }
    uint8_t a = letters[0], b = letters[1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return from + 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return from + 3;
    return from;
}

/* White space up to the end or the last one before something else; `breaks`: up to the last line break first.
 */
static size_t white_space(struct view v, size_t from, bool breaks)
{
    size_t end = run(v, from, SPACE, SIZE_MAX);
    if (end == 0) return 0;
    for (size_t i = end; breaks && i > from; i--)
        if (is_break(v.text[i - 1])) return i;
    return end == v.size || end == from + 1 ? end : end - 1;
}

size_t walsh_fast_pattern_match(const struct walsh_fast_pattern *fast, const uint8_t *text, size_t size,
                                size_t from)
{
    struct view v = {text, size};
    uint8_t first = text[from];
    unsigned class = classes[first];
    if (class == UNKNOWN) return 0;
    if (first == '\'') {
        size_t end = contraction(v, from, !fast->gpt2);
        if (end != from) return end;
    }
    /* What one leading character may stand in front of: gpt2 lets a space lead anything but white space; the
     * others let a space lead OTHER, and any character but a line break or a number lead letters. */
    unsigned next = class_at(v, from + 1);
    bool leads = fast->gpt2 ? first == ' ' && (next & (LETTER | DIGIT | OTHER))
                            : ((class & (SPACE | OTHER)) && !is_break(first) && next == LETTER) ||
                                  (first == ' ' && next == OTHER);
    size_t body = leads ? from + 1 : from;
    switch (leads ? next : class) {
    case LETTER:
        return run(v, body, LETTER, SIZE_MAX);
    case DIGIT:
        return run(v, body, DIGIT, fast->max_digits);
    case OTHER: {
        size_t end = run(v, body, OTHER, SIZE_MAX);
        while (!fast->gpt2 && end != 0 && end < size && is_break(text[end])) end++;
        return end;
    }
    default:
        return white_space(v, from, !fast->gpt2);
    }
}

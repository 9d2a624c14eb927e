/* The text of a template to tokens: what Jinja's lexer does with trim_blocks (a line break behind a tag goes)
 * and lstrip_blocks (blanks before a tag that stands first in its line go), its marks - and + in tags, raw
 * blocks, comments, and the literals of expressions. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "text/template_internal.h"
#include "text/utf8.h"

struct lexer {
    struct walsh_arena *arena;
    const char *source; /* line breaks normalised */
    size_t size, at;
    uint32_t line;
    bool line_starting; /* the last thing read ended with a line break */
    struct walsh_tpl_token *tokens;
    size_t count, capacity;
    char brackets[64]; /* that are open in the current tag */
    size_t open;
    struct walsh_error *err;
};

bool walsh_tpl_text_is(struct walsh_tpl_text text, const char *other)
{
    return strlen(other) == text.size && memcmp(text.data, other, text.size) == 0;
}

static enum walsh_status wrong(struct lexer *l, const char *what)
{
    return walsh_fail(l->err, WALSH_E_FORMAT, "line %u: %s", l->line, what);
}

static enum walsh_status add(struct lexer *l, enum walsh_tpl_token_type type, const char *data, size_t size)
{
    if (l->count == l->capacity) {
        const size_t capacity = l->capacity ? 2 * l->capacity : 256;
        struct walsh_tpl_token *more;
        WALSH_TRY(walsh_arena_alloc(l->arena, capacity, sizeof *more, "a chat template", &more, l->err));
        if (l->count) memcpy(more, l->tokens, l->count * sizeof *more);
        l->tokens = more;
        l->capacity = capacity;
    }
    l->tokens[l->count++] = (struct walsh_tpl_token){.type = type, .line = l->line, .text = {data, size}};
    return WALSH_OK;
}

/* Go on to position `end`, counting lines. */
static void advance(struct lexer *l, size_t end)
{
    for (size_t i = l->at; i < end; i++) l->line += l->source[i] == '\n';
    if (end > l->at) l->line_starting = l->source[end - 1] == '\n';
    l->at = end;
}

/* The end of the white space that starts at `from`, as Python's \s means it. */
static size_t skip_space(const struct lexer *l, size_t from)
{
    while (from < l->size) {
        enum walsh_utf8 kind;
        const uint8_t *p = (const uint8_t *)l->source + from;
        const size_t n = walsh_utf8_step(p, l->size - from, &kind);
        if (kind != WALSH_UTF8_VALID || !walsh_tpl_is_space(walsh_utf8_decode(p))) break;
        from += n;
    }
    return from;
}

static bool starts(const struct lexer *l, size_t at, const char *text)
{
    const size_t n = strlen(text);
    return l->size - at >= n && memcmp(l->source + at, text, n) == 0;
}

/* Where the text [begin, end) before a tag ends once the tag's sign has had its say. `blanks`: blanks between
 * a line's start and the tag go. */
static size_t strip_before(const struct lexer *l, size_t begin, size_t end, char sign, bool blanks)
{
    struct walsh_tpl_text text = {l->source + begin, end - begin};
    if (sign == '-') return begin + walsh_tpl_strip(text, NULL, false, true).size;
    if (sign == '+' || !blanks) return end;
    size_t from = end;
    while (from > begin && l->source[from - 1] != '\n') from--;
    if (from == begin && !l->line_starting) return end;
    text = (struct walsh_tpl_text){l->source + from, end - from};
    return walsh_tpl_strip(text, NULL, false, true).size == 0 ? from : end;
}

static enum walsh_status add_data(struct lexer *l, size_t begin, size_t end)
{
    return end > begin ? add(l, TPL_DATA, l->source + begin, end - begin) : WALSH_OK;
}

/* The end of a tag's closing mark "%}" or "#}" at `at` with what it takes behind it: white space after -,
 * else a line break, but after +. 0: it does not stand there. */
static size_t tag_end(const struct lexer *l, size_t at, const char *mark)
{
    const char sign = at < l->size ? l->source[at] : 0;
    const size_t signs = sign == '-' || sign == '+';
    if (at + signs > l->size || !starts(l, at + signs, mark)) return 0;
    const size_t end = at + signs + strlen(mark);
    if (sign == '-') return skip_space(l, end);
    if (sign == '+' || end == l->size) return end;
    return end + (l->source[end] == '\n');
}

/* "{% raw %}" at `at`: the end of the tag; 0: something else. */
static size_t raw_begin(const struct lexer *l, size_t at)
{
    at += 2;
    at += at < l->size && (l->source[at] == '-' || l->source[at] == '+');
    at = skip_space(l, at);
    if (!starts(l, at, "raw")) return 0;
    at = skip_space(l, at + 3);
    if (starts(l, at, "-%}")) return skip_space(l, at + 3);
    return starts(l, at, "%}") ? at + 2 : 0;
}

static enum walsh_status lex_raw(struct lexer *l)
{
    const size_t begin = l->at;
    for (size_t at = begin; at < l->size; at++) {
        if (!starts(l, at, "{%")) continue;
        size_t name = at + 2;
        const char sign = name < l->size ? l->source[name] : 0;
        name += sign == '-' || sign == '+';
        name = skip_space(l, name);
        if (!starts(l, name, "endraw")) continue;
        const size_t end = tag_end(l, skip_space(l, name + 6), "%}");
        if (!end) continue;
        WALSH_TRY(add_data(l, begin, strip_before(l, begin, at, sign, true)));
        advance(l, end);
        return WALSH_OK;
    }
    return wrong(l, "a raw block has no end");
}

static enum walsh_status lex_comment(struct lexer *l)
{
    for (size_t at = l->at; at < l->size; at++) {
        const size_t end = tag_end(l, at, "#}");
        if (!end) continue;
        advance(l, end);
        return WALSH_OK;
    }
    return wrong(l, "a comment has no end");
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static int hex_digit(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The end of the digits at `at`, with single underscores between them. */
static size_t digits_end(const struct lexer *l, size_t at, int base)
{
    while (at < l->size) {
        const size_t digit = l->source[at] == '_' ? at + 1 : at;
        const int value = digit < l->size ? hex_digit(l->source[digit]) : -1;
        if (value < 0 || value >= base) break;
        at = digit + 1;
    }
    return at;
}

static enum walsh_status lex_number(struct lexer *l)
{
    size_t at = l->at, end;
    int base = 10;
    const char next = at + 1 < l->size ? (char)(l->source[at + 1] | 0x20) : 0;
    if (l->source[at] == '0' && (next == 'x' || next == 'o' || next == 'b')) {
        base = next == 'x' ? 16 : next == 'o' ? 8 : 2;
        end = digits_end(l, at + 2, base);
        if (end == at + 2) return wrong(l, "a number without digits");
        at += 2;
    } else {
        end = digits_end(l, at, 10);
    }
    bool real = false;
    if (base == 10) {
        size_t more = end;
        if (more + 1 < l->size && l->source[more] == '.' && is_digit(l->source[more + 1])) {
            end = more = digits_end(l, more + 1, 10);
            real = true;
        }
        if (more < l->size && (l->source[more] | 0x20) == 'e') {
            more++;
            more += more < l->size && (l->source[more] == '+' || l->source[more] == '-');
            if (more < l->size && is_digit(l->source[more])) {
                end = digits_end(l, more, 10);
                real = true;
            }
        }
    }
    char digits[64];
    size_t n = 0;
    for (size_t i = at; i < end; i++) {
        if (l->source[i] == '_') continue;
        if (n + 1 >= sizeof digits) return wrong(l, "a number is too long");
        digits[n++] = l->source[i];
    }
    digits[n] = '\0';
    WALSH_TRY(add(l, real ? TPL_FLOAT : TPL_INTEGER, l->source + l->at, end - l->at));
    struct walsh_tpl_token *token = &l->tokens[l->count - 1];
    errno = 0;
    if (real)
        token->real = strtod(digits, NULL);
    else
        token->integer = strtoll(digits, NULL, base);
    if (!real && errno == ERANGE) return wrong(l, "an integer is beyond 64 bits");
    advance(l, end);
    return WALSH_OK;
}

static size_t put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* The escape behind the backslash at `at` of Python's string literals; *n bytes to `out`. Returns its end, 0:
 * not an escape of Unicode. */
static size_t lex_escape(const struct lexer *l, size_t at, size_t limit, char *out, size_t *n)
{
    static const char names[] = "\\'\"abfnrtv", values[] = "\\'\"\a\b\f\n\r\t\v";
    const char c = l->source[at + 1];
    const char *known = c ? strchr(names, c) : NULL;
    *n = 0;
    if (c == '\n') return at + 2;
    if (known) {
        out[(*n)++] = values[known - names];
        return at + 2;
    }
    uint32_t code = 0;
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0, i = at + 2;
    if (digits) {
        for (; digits; digits--, i++) {
            const int value = i < limit ? hex_digit(l->source[i]) : -1;
            if (value < 0) return 0;
            code = code << 4 | (uint32_t)value;
        }
    } else if (c >= '0' && c <= '7') {
        for (i = at + 1; i < limit && i < at + 4 && l->source[i] >= '0' && l->source[i] <= '7'; i++)
            code = code << 3 | (uint32_t)(l->source[i] - '0');
    } else { /* none: the backslash stands for itself */
        out[(*n)++] = '\\';
        return c == 'N' ? 0 : at + 1;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return 0;
    *n = put_utf8(out, code);
    return i;
}

static enum walsh_status lex_string(struct lexer *l)
{
    const char quote = l->source[l->at];
    size_t end = l->at + 1;
    while (end < l->size && l->source[end] != quote) end += l->source[end] == '\\' ? 2 : 1;
    if (end >= l->size) return wrong(l, "a string has no end");
    char *value;
    size_t size = 0;
    WALSH_TRY(walsh_arena_alloc(l->arena, end - l->at, 1, "a chat template", &value, l->err));
    for (size_t at = l->at + 1; at < end;) {
        if (l->source[at] != '\\') {
            value[size++] = l->source[at++];
            continue;
        }
        size_t n; /* an escape is never shorter than what it stands for */
        at = lex_escape(l, at, end, value + size, &n);
        if (at == 0) return wrong(l, "a string has an escape that is not supported");
        size += n;
    }
    WALSH_TRY(add(l, TPL_STRING, value, size));
    advance(l, end + 1);
    return WALSH_OK;
}

static enum walsh_status lex_operator(struct lexer *l)
{
    static const char *const operators[] = {"==", "!=", ">=", "<=", "//", "**", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!starts(l, l->at, operators[i])) continue;
        const char c = operators[i][0];
        if (c == '(' || c == '[' || c == '{') {
            if (l->open == sizeof l->brackets) return wrong(l, "brackets are nested too deeply");
            l->brackets[l->open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (c == ')' || c == ']' || c == '}') {
            if (l->open == 0 || l->brackets[l->open - 1] != c)
                return wrong(l, "a bracket is closed that was not opened");
            l->open--;
        }
        WALSH_TRY(add(l, TPL_OPERATOR, operators[i], strlen(operators[i])));
        advance(l, l->at + strlen(operators[i]));
        return WALSH_OK;
    }
    const unsigned char c = (unsigned char)l->source[l->at];
    return walsh_fail(l->err, WALSH_E_FORMAT,
                      c >= 0x20 && c < 0x7f ? "line %u: unexpected '%c'" : "line %u: unexpected byte %d",
                      l->line, c);
}

/* What stands in a tag, and its end. */
static enum walsh_status lex_tag(struct lexer *l, bool block)
{
    const char *mark = block ? "%}" : "}}";
    l->open = 0;
    for (;;) {
        advance(l, skip_space(l, l->at));
        if (l->at == l->size) return wrong(l, "a tag has no end");
        size_t end = 0;
        if (l->open == 0 && block) end = tag_end(l, l->at, mark);
        if (l->open == 0 && !block) {
            if (starts(l, l->at, "-}}"))
                end = skip_space(l, l->at + 3);
            else if (starts(l, l->at, mark))
                end = l->at + 2;
        }
        if (end) {
            WALSH_TRY(add(l, block ? TPL_BLOCK_END : TPL_VARIABLE_END, mark, 2));
            advance(l, end);
            return WALSH_OK;
        }
        const char c = l->source[l->at];
        if (is_digit(c)) {
            WALSH_TRY(lex_number(l));
        } else if (is_word(c)) {
            end = l->at;
            while (end < l->size && is_word(l->source[end])) end++;
            WALSH_TRY(add(l, TPL_NAME, l->source + l->at, end - l->at));
            advance(l, end);
        } else if (c == '\'' || c == '"') {
            WALSH_TRY(lex_string(l));
        } else {
            WALSH_TRY(lex_operator(l));
        }
    }
}

/* The next tag's start at or behind `at`. */
static size_t find_tag(const struct lexer *l, size_t at)
{
    for (; at + 1 < l->size; at++)
        if (l->source[at] == '{' &&
            (l->source[at + 1] == '{' || l->source[at + 1] == '%' || l->source[at + 1] == '#'))
            return at;
    return l->size;
}

static enum walsh_status lex_root(struct lexer *l)
{
    while (l->at < l->size) {
        const size_t begin = l->at, tag = find_tag(l, begin);
        if (tag == l->size) {
            WALSH_TRY(add_data(l, begin, tag));
            break;
        }
        const char kind = l->source[tag + 1], sign = tag + 2 < l->size ? l->source[tag + 2] : 0;
        const size_t raw = kind == '%' ? raw_begin(l, tag) : 0;
        WALSH_TRY(add_data(l, begin, strip_before(l, begin, tag, sign, kind != '{')));
        if (raw) {
            advance(l, raw);
            WALSH_TRY(lex_raw(l));
            continue;
        }
        advance(l, tag + 2 + (sign == '-' || sign == '+'));
        if (kind == '#') {
            WALSH_TRY(lex_comment(l));
            continue;
        }
        WALSH_TRY(add(l, kind == '%' ? TPL_BLOCK_BEGIN : TPL_VARIABLE_BEGIN, l->source + tag, 2));
        WALSH_TRY(lex_tag(l, kind == '%'));
    }
    return add(l, TPL_END, "", 0);
}

/* A copy with \r\n and \r as \n, and without the last line break. */
static enum walsh_status normalise(struct lexer *l, const char *source, size_t size)
{
    char *copy;
    WALSH_TRY(walsh_arena_alloc(l->arena, size + 1, 1, "a chat template", &copy, l->err));
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        if (source[i] == '\r') {
            copy[n++] = '\n';
            i += i + 1 < size && source[i + 1] == '\n';
        } else {
            copy[n++] = source[i];
        }
    }
    if (n && copy[n - 1] == '\n') n--;
    l->source = copy;
    l->size = n;
    return WALSH_OK;
}

enum walsh_status walsh_tpl_lex(struct walsh_arena *arena, const char *source, size_t size,
                                struct walsh_tpl_token **tokens, size_t *count, struct walsh_error *err)
{
    struct lexer l = {.arena = arena, .line = 1, .line_starting = true, .err = err};
    WALSH_TRY(normalise(&l, source, size));
    for (size_t i = 0, n; i < l.size; i += n) {
        enum walsh_utf8 kind;
        n = walsh_utf8_step((const uint8_t *)l.source + i, l.size - i, &kind);
        if (kind != WALSH_UTF8_VALID || l.source[i] == '\0')
            return walsh_fail(err, WALSH_E_FORMAT, "byte %zu is not UTF-8 text", i);
    }
    WALSH_TRY(lex_root(&l));
    *tokens = l.tokens;
    *count = l.count;
    return WALSH_OK;
}

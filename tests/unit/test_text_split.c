/* The hand-written splits against PCRE2, and the translation of patterns. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>

#include "text/regex_translate.h"
#include "text/tokenizer_internal.h"
#include "text/utf8.h"
#include "unit/text_fixtures.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define SPACES "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static void compare_with_pcre2(const char *pattern)
{
    const struct walsh_fast_pattern *fast = walsh_fast_pattern_find(pattern);
    assert_non_null(fast);
    struct walsh_regex *regex;
    struct walsh_regex_scratch *scratch;
    assert_int_equal(walsh_regex_open(pattern, false, &regex, NULL), WALSH_OK);
    assert_int_equal(walsh_regex_scratch_open(&scratch, NULL), WALSH_OK);
    struct reader strings = reader_open("hard_strings.bin");
    size_t asked = 0, answered = 0;
    for (unsigned i = 0; i < 10000; i++) {
        struct hard_string s = next_hard_string(&strings);
        size_t size = walsh_utf8_clean((const uint8_t *)s.text, s.size, NULL);
        uint8_t *text = malloc(size + 1);
        assert_non_null(text);
        walsh_utf8_clean((const uint8_t *)s.text, s.size, text);
        for (size_t at = 0; at < size;) {
            size_t start = 0, end = 0, fast_end = walsh_fast_pattern_match(fast, text, size, at);
            bool found;
            assert_int_equal(walsh_regex_find(regex, scratch, text, size, at, &found, &start, &end, NULL),
                             WALSH_OK);
            assert_true(found);
            assert_int_equal(start, at);
            if (fast_end != 0 && fast_end != end)
                fail_msg("hard string %u at byte %zu: by hand to %zu, PCRE2 to %zu, %s", i, at, fast_end, end,
                         pattern);
            asked++;
            answered += fast_end != 0;
            /* every character as a start, but along the matches in long runs */
            enum walsh_utf8 kind;
            at = size > 400 ? end : at + walsh_utf8_step(text + at, size - at, &kind);
        }
        free(text);
    }
    assert_true(answered * 5 > asked); /* the strings are mostly not ASCII */
    reader_close(&strings);
    walsh_regex_scratch_close(&scratch);
    walsh_regex_close(&regex);
}

static void test_fast_patterns(void **state)
{
    (void)state;
    compare_with_pcre2(walsh_gpt2_pattern);
    compare_with_pcre2(CONTRACTIONS "\\p{N}{1,3}" SPACES);
    compare_with_pcre2(CONTRACTIONS "\\p{N}" SPACES);
    assert_null(walsh_fast_pattern_find(CONTRACTIONS "\\p{N}{1,2}" SPACES));
}

/* All texts of up to five characters out of those that the patterns treat apart. */
static void test_fast_patterns_exhaustively(void **state)
{
    (void)state;
    static const char *const parts[] = {"a",  "S",  "l", "'",        "1",        " ",
                                        "\n", "\t", "!", "\xc5\xbf", "\xc2\xa0", "\xc3\xa9"};
    enum { PARTS = sizeof parts / sizeof *parts };
    static const char *const patterns[] = {walsh_gpt2_pattern, CONTRACTIONS "\\p{N}{1,3}" SPACES,
                                           CONTRACTIONS "\\p{N}" SPACES};
    struct walsh_regex_scratch *scratch;
    assert_int_equal(walsh_regex_scratch_open(&scratch, NULL), WALSH_OK);
    for (size_t p = 0; p < 3; p++) {
        const struct walsh_fast_pattern *fast = walsh_fast_pattern_find(patterns[p]);
        struct walsh_regex *regex;
        assert_int_equal(walsh_regex_open(patterns[p], false, &regex, NULL), WALSH_OK);
        for (size_t code = 0; code < (size_t)PARTS * PARTS * PARTS * PARTS * PARTS; code++) {
            char text[32] = "";
            for (size_t c = code, i = 0; i < 5; i++, c /= PARTS) strcat(text, parts[c % PARTS]);
            size_t size = strlen(text), start, end,
                   fast_end = walsh_fast_pattern_match(fast, (uint8_t *)text, size, 0);
            bool found;
            if (fast_end == 0) continue;
            assert_int_equal(
                walsh_regex_find(regex, scratch, (uint8_t *)text, size, 0, &found, &start, &end, NULL),
                WALSH_OK);
            if (!found || start != 0 || end != fast_end)
                fail_msg("\"%s\": by hand to %zu, PCRE2 to %zu, %s", text, fast_end, end, patterns[p]);
        }
        walsh_regex_close(&regex);
    }
    walsh_regex_scratch_close(&scratch);
}

static void test_translation(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a?+b*+c++d{2,3}?", "a?+b*+c++d{2,3}?"},
        {"\\s[^\\s\\S]", "\\p{White_Space}[^\\p{White_Space}\\P{White_Space}]"},
        {"\\p{L}\\P{^Lu}\\p{Han}", "\\p{L}\\P{^Lu}\\p{sc:Han}"},
        {"\\u4e00\\x{10FFFF}\\x7f", "\\x{4e00}\\x{10FFFF}\\x{7f}"},
        {"\\d\\v\\.\\[(?i:x)(?<!y)[\\]-]", "\\p{Nd}\\x{0b}\\.\\[(?i:x)(?<!y)[\\]-]"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct walsh_buffer out = {0};
        assert_int_equal(walsh_regex_translate(cases[i][0], &out, NULL), WALSH_OK);
        assert_int_equal(out.size, strlen(cases[i][1]));
        if (out.size) assert_memory_equal(out.data, cases[i][1], out.size);
        walsh_buffer_free(&out);
    }
}

/* What the two engines read differently is refused by name. */
static void test_refused_constructs(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a\\h", "\\h"},    {"\\bx", "\\b"},     {"(a)\\1", "\\1"},     {"\\K", "\\K"},
        {"[a[bc]]", "[b"},  {"[a&&b]", "&&"},    {"[[:alpha:]]", "[:"}, {"[]a]", "[]"},
        {"(?m:a)", "(?m:"}, {"(?<n>a)", "(?<n"}, {"(*ACCEPT)", "(*"},   {"x{1,3}+", "{1,3}+"},
        {"x{,3}", "{"},     {"\\xe9", "\\xe9"},  {"\\pL", "\\p"},       {"[\\W]", "\\W"},
        {"[abc", "["},      {"\\", "\\"},        {"\\p{L", "\\p"},      {"\\p{L1}", "\\p{L1}"},
        {"(?i)a", "(?i)"},  {"(?R)", "(?R)"},    {"\\u12", "\\u"},      {"\\x{}", "\\x{"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct walsh_error err = {0};
        struct walsh_regex *regex;
        char message[200];
        assert_int_equal(walsh_regex_open(cases[i][0], false, &regex, &err), WALSH_E_UNSUPPORTED);
        snprintf(message, sizeof message, "regex construct \"%s\" is not supported, in \"%s\"", cases[i][1],
                 cases[i][0]);
        assert_string_equal(err.message, message);
        assert_null(regex);
    }
}

/* A pattern that backtracks without end stops at the limit, with an error. */
static void test_step_limit(void **state)
{
    (void)state;
    struct walsh_regex *regex;
    struct walsh_regex_scratch *scratch;
    struct walsh_error err = {0};
    uint8_t text[64];
    bool found;
    size_t start, end;
    memset(text, 'a', sizeof text);
    assert_int_equal(walsh_regex_open("(a|a)*(a|a)*(a|a)*[bc]", false, &regex, NULL), WALSH_OK);
    assert_int_equal(walsh_regex_scratch_open(&scratch, NULL), WALSH_OK);
    assert_int_equal(walsh_regex_find(regex, scratch, text, sizeof text, 0, &found, &start, &end, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(err.message, "splitting the text at byte 0 of 64: match limit exceeded");
    walsh_regex_scratch_close(&scratch);
    walsh_regex_close(&regex);
}

/* The maximal subparts of table 3-8 of the Unicode standard, and around the narrow second bytes. */
static void test_utf8(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", "????????A"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", "????????A"},
        {"\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", "?????A??B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", "????A"},
        {"\xf0\x9f\x98", "?"},
        {"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf", "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t out[64], expected[64];
        size_t size = walsh_utf8_clean((const uint8_t *)cases[i][0], strlen(cases[i][0]), out),
               expected_size = 0;
        for (const char *p = cases[i][1]; *p; p++) {
            bool broken = *p == '?';
            memcpy(expected + expected_size, broken ? "\xef\xbf\xbd" : p, broken ? 3 : 1);
            expected_size += broken ? 3 : 1;
        }
        assert_int_equal(size, expected_size);
        assert_memory_equal(out, expected, size);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fast_patterns), cmocka_unit_test(test_fast_patterns_exhaustively),
        cmocka_unit_test(test_translation),   cmocka_unit_test(test_refused_constructs),
        cmocka_unit_test(test_step_limit),    cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests_name("text_split", tests, NULL, NULL);
}

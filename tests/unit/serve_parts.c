/* Parts of the server by themselves: thoughts and words told apart however the text is cut, keys. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#undef fail /* the program has a function of that name */
#include "serve/keys.h"
#include "serve/reasoning.h"

/* Whole, by bytes, and by pieces of every size. */
static void check(enum reasoning_style style, bool thinking, const char *text, const char *said,
                  const char *thought)
{
    const size_t size = strlen(text);
    for (size_t piece = 1; piece <= size + 1; piece++) {
        struct reasoning r;
        struct text content = {0}, thoughts = {0};
        reasoning_open(&r, style, thinking);
        for (size_t at = 0; at < size; at += piece)
            assert_true(
                reasoning_push(&r, text + at, size - at < piece ? size - at : piece, &content, &thoughts));
        assert_true(reasoning_finish(&r, &content, &thoughts));
        const bool good = strcmp(content.data ? content.data : "", said) == 0 &&
                          strcmp(thoughts.data ? thoughts.data : "", thought) == 0;
        if (!good)
            print_error("\"%s\" in pieces of %zu: said \"%s\", thought \"%s\"\n", text, piece, content.data,
                        thoughts.data);
        assert_true(good);
        reasoning_close(&r);
        text_free(&content);
        text_free(&thoughts);
    }
}

static void thoughts_in_tags(void **state)
{
    (void)state;
    check(REASONING_THINK, false, "<think>\nHm, 1 < 2.\n</think>\n\nYes.", "Yes.", "Hm, 1 < 2.\n");
    check(REASONING_THINK, false, "\n <think>a</think>b", "b", "a");
    check(REASONING_THINK, false, "No thought.", "No thought.", "");
    check(REASONING_THINK, false, "<thin air", "<thin air", "");
    check(REASONING_THINK, false, "Later <think>x</think>", "Later <think>x</think>", "");
    check(REASONING_THINK, false, "<think>cut off </thin", "", "cut off </thin");
    check(REASONING_THINK, false, "<think>", "", "");
    check(REASONING_THINK, false, " \n ", " \n ", "");
    check(REASONING_THINK, true, "\nopen already</think>so", "so", "open already");
    check(REASONING_THINK, false, "<think></think>\n\nx  y", "x  y", "");
    check(REASONING_NONE, false, "<think>a</think>b", "<think>a</think>b", "");
}

static void thoughts_in_channels(void **state)
{
    (void)state;
    check(REASONING_CHANNELS, false,
          "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final<|message|>It "
          "is 4.<|return|>",
          "It is 4.", "Let me see.");
    check(REASONING_CHANNELS, false, "<|channel|>final<|message|>At once", "At once", "");
    check(REASONING_CHANNELS, false, "<|channel|>analysis<|message|>cut off <|en", "", "cut off <|en");
    check(REASONING_CHANNELS, false, "<|channel|>anal", "", "");
    check(REASONING_CHANNELS, false,
          "<|channel|>commentary to=f "
          "<|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>a<b",
          "a<b", "{}");
}

static void keys_are_whole_lines(void **state)
{
    (void)state;
    char path[] = "/tmp/walsh-keys.XXXXXX";
    static const char text[] = "# comment\n\nfirst-key\r\n  \nsecond-key-that-is-longer";
    struct keys keys;
    struct walsh_error err;
    bool shared;
    const int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, sizeof text - 1) == (ssize_t)(sizeof text - 1));
    close(fd);
    assert_int_equal(keys_read(&keys, path, &shared, &err), WALSH_OK);
    unlink(path);
    assert_false(shared);
    assert_int_equal(keys.count, 2);
    assert_ptr_equal(keys_find(&keys, "first-key"), keys.keys[0]);
    assert_ptr_equal(keys_find(&keys, "second-key-that-is-longer"), keys.keys[1]);
    static const char *const wrong[] = {"",          "first-ke",  "first-key1",
                                        "First-key", "# comment", "second-key-that-is-longeR"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) assert_null(keys_find(&keys, wrong[i]));
    char longest[MOST_KEY_BYTES + 1];
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_null(keys_find(&keys, longest));
    keys_free(&keys);
    assert_null(keys_find(&keys, "first-key"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thoughts_in_tags),
        cmocka_unit_test(thoughts_in_channels),
        cmocka_unit_test(keys_are_whole_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

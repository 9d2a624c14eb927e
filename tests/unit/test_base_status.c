#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/hooks.h"
#include "base/random.h"
#include "base/status.h"

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(walsh_status_name(WALSH_OK), "ok");
    assert_string_equal(walsh_status_name(WALSH_E_NOT_FOUND), "not_found");
    assert_string_equal(walsh_status_name(WALSH_E_INTERNAL), "internal");
    assert_string_equal(walsh_status_name(WALSH_E_BUSY), "busy");
    assert_string_equal(walsh_status_name((enum walsh_status)99), "unknown");
}

static void test_messages(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    assert_int_equal(walsh_fail(&err, WALSH_E_FORMAT, "%s: %d found", "a", 3), WALSH_E_FORMAT);
    assert_int_equal(err.status, WALSH_E_FORMAT);
    assert_string_equal(err.message, "a: 3 found");
    assert_int_equal(walsh_fail_within(&err, WALSH_E_IO, "file %d", 7), WALSH_E_IO);
    assert_string_equal(err.message, "file 7: a: 3 found");
    assert_int_equal(walsh_fail_errno(&err, ENOSPC, "x"), WALSH_E_IO);
    assert_string_equal(err.message, "x: No space left on device");
    assert_int_equal(walsh_fail_errno(&err, ENOMEM, "x"), WALSH_E_MEMORY);
    assert_int_equal(walsh_fail(NULL, WALSH_E_IO, "x"), WALSH_E_IO);
    assert_int_equal(walsh_fail_errno(NULL, ENOMEM, "x"), WALSH_E_MEMORY);
    assert_int_equal(walsh_fail_within(NULL, WALSH_E_IO, "x"), WALSH_E_IO);
}

/* A tensor's name may hold anything; a terminal must not obey it. */
static void test_control_characters(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    walsh_fail(&err, WALSH_E_IO, "%s", "a\x1b[2J\x7f\tb\n\xc3\xa9");
    assert_string_equal(err.message, "a?[2J?\tb\n\xc3\xa9");
    walsh_fail_within(&err, WALSH_E_IO, "%s", "\r");
    assert_string_equal(err.message, "?: a?[2J?\tb\n\xc3\xa9");
    walsh_fail_errno(&err, EIO, "%s", "\b");
    assert_string_equal(err.message, "?: Input/output error");
}

static void test_long_messages_are_cut(void **state)
{
    (void)state;
    char text[3000];
    memset(text, 'y', sizeof text);
    text[sizeof text - 1] = 0;
    struct walsh_error err = {0};
    walsh_fail(&err, WALSH_E_IO, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    walsh_fail_errno(&err, EIO, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
    walsh_fail_within(&err, WALSH_E_IO, "%s", text);
    assert_int_equal(strlen(err.message), sizeof err.message - 1);
}

struct seen {
    char line[64];
    double done;
    bool stop;
};
static void see_line(void *user, enum walsh_log_level level, const char *line)
{
    snprintf(((struct seen *)user)->line, 64, "%d %s", (int)level, line);
}
static void see_progress(void *user, const char *stage, double done, double total, const char *unit)
{
    assert_string_equal(stage, "copy");
    assert_string_equal(unit, "rows");
    ((struct seen *)user)->done = done / total;
}
static bool see_abort(void *user)
{
    return ((struct seen *)user)->stop;
}

static void test_hooks(void **state)
{
    (void)state;
    struct seen seen = {.stop = false};
    struct walsh_hooks hooks = {&seen, see_line, see_progress, see_abort};
    struct walsh_error err;
    walsh_log(&hooks, WALSH_LOG_WARNING, "n = %d", 5);
    assert_string_equal(seen.line, "2 n = 5");
    walsh_progress(&hooks, "copy", 1, 4, "rows");
    assert_true(seen.done == 0.25);
    assert_int_equal(walsh_check_abort(&hooks, &err), WALSH_OK);
    seen.stop = true;
    assert_int_equal(walsh_check_abort(&hooks, &err), WALSH_E_ABORTED);
    assert_string_equal(err.message, "stopped on request");
    struct walsh_hooks empty = {0};
    walsh_log(&empty, WALSH_LOG_INFO, "x");
    walsh_log(NULL, WALSH_LOG_INFO, "x");
    walsh_progress(NULL, "copy", 1, 1, "rows");
    assert_int_equal(walsh_check_abort(NULL, &err), WALSH_OK);
}

/* First outputs of xoshiro256** from the state {1, 2, 3, 4} and of SplitMix64 from the seed 1234567, as the
 * authors' programs print them. */
static void test_random_known_answers(void **state)
{
    (void)state;
    struct walsh_random r = {.state = {1, 2, 3, 4}};
    static const uint64_t expected[] = {11520u, 0u, 1509978240u, 1215971899390074240u};
    for (unsigned i = 0; i < 4; i++) assert_true(walsh_random_u64(&r) == expected[i]);
    walsh_random_seed(&r, 1234567);
    static const uint64_t mixed[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                     4593380528125082431u};
    for (unsigned i = 0; i < 4; i++) assert_true(r.state[i] == mixed[i]);
}

static void test_random_moments(void **state)
{
    (void)state;
    struct walsh_random r;
    walsh_random_seed(&r, 7);
    double mean = 0, square = 0, uniform = 0;
    const unsigned n = 200000;
    for (unsigned i = 0; i < n; i++) {
        double u = walsh_random_uniform(&r), z = walsh_random_normal(&r);
        assert_true(u >= 0 && u < 1);
        uniform += u / n;
        mean += z / n;
        square += z * z / n;
    }
    assert_true(uniform > 0.497 && uniform < 0.503); /* 4.6 standard errors */
    assert_true(mean > -0.011 && mean < 0.011);
    assert_true(square > 0.985 && square < 1.015);
}

static void test_clock(void **state)
{
    (void)state;
    double a = walsh_now(), b = walsh_now();
    assert_true(a > 0 && b >= a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_control_characters),
        cmocka_unit_test(test_long_messages_are_cut),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_random_known_answers),
        cmocka_unit_test(test_random_moments),
        cmocka_unit_test(test_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What a model is called: by its config.json, its directory, or a Hugging Face cache's directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/memory.h"
#include "checkpoint/model_name.h"

static struct walsh_checkpoint model(const char *directory, const char *config)
{
    return (struct walsh_checkpoint){
        .directory = (char *)(uintptr_t)directory,
        .config_json = (char *)(uintptr_t)config,
        .config_size = strlen(config),
    };
}

static void assert_name(const char *directory, const char *config, const char *expected)
{
    const struct walsh_checkpoint ck = model(directory, config);
    char *name = NULL;
    assert_int_equal(walsh_model_name(&ck, &name, NULL), WALSH_OK);
    assert_string_equal(name, expected);
    walsh_free(name);
}

static void names(void **state)
{
    (void)state;
    assert_name("/no/such/base-8m/", "{}", "base-8m");
    assert_name("/no/such/base-8m", "{\"_name_or_path\": \"org/Base-1B\"}", "org/Base-1B");
    assert_name("/no/such/base-8m", "{\"_name_or_path\": \"\"}", "base-8m");
    assert_name("/hub/models--org--Base-1B/snapshots/0123abcd", "{}", "org/Base-1B");
    assert_name("/hub/models--Base/snapshots/0123abcd", "{}", "0123abcd");
    assert_name("/", "{}", "");
}

static bool goes_by(const char *directory, const char *config, const char *id)
{
    const struct walsh_checkpoint ck = model(directory, config);
    return walsh_model_goes_by(&ck, id);
}

static void who_goes_by_what(void **state)
{
    (void)state;
    assert_true(goes_by("/no/Base-1B", "{}", "hub/Base-1B"));
    assert_true(goes_by("/no/Base-1B", "{}", "/home/somebody/Base-1B/"));
    assert_true(goes_by("/no/Base-1B-e8p-2bpw", "{}", "hub/Base-1B"));
    assert_true(goes_by("/no/Base-1B/quantized", "{}", "hub/Base-1B"));
    assert_true(goes_by("/hub/models--org--Base-1B/snapshots/0123abcd", "{}", "org/Base-1B"));
    assert_true(goes_by("/no/small", "{\"_name_or_path\": \"hub/Base-1B\"}", "somebody/Base-1B"));
    assert_true(goes_by("/no/small", "{}", ""));
    assert_false(goes_by("/no/small", "{}", "hub/Base-1B"));
    assert_false(goes_by("/no/Base-1Bis", "{}", "hub/Base-1B"));
    assert_false(goes_by("/no/Base-10B", "{}", "hub/Base-1"));
    assert_false(goes_by("/no/another", "{\"_name_or_path\": \"Base-1B/x\"}", "hub/Base-1B"));
    assert_false(goes_by("/hub/models--org--Base-1B/snapshots/0123abcd", "{}", "org/Based"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(who_goes_by_what)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

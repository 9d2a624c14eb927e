/* Chat templates: conversations and expressions as the jinja2 package renders them (tools/chat_fixtures.py;
 * an argument is a further file of cases), and templates that want too much. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "text/template.h"

#define FIXTURES WALSH_SOURCE_DIR "/tests/fixtures/chat/"
#define NOW 1751619903 /* 2025-07-04 09:05:03 */

static const char *more_cases; /* a file; NULL: none */

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *cases = json_load_file(path, 0, &error);
    if (!cases) fail_msg("%s: line %d: %s", path, error.line, error.text);
    return cases;
}

static enum walsh_status render(const char *source, const json_t *variables, char **text,
                                struct walsh_error *err)
{
    const struct walsh_template_limits limits = WALSH_TEMPLATE_LIMITS;
    struct walsh_template *t;
    size_t size;
    *text = NULL;
    const enum walsh_status opened = walsh_template_open("t", source, strlen(source), &t, err);
    if (opened != WALSH_OK) return opened;
    const enum walsh_status status = walsh_template_render(t, variables, NOW, &limits, text, &size, err);
    if (status == WALSH_OK) assert_int_equal(size, strlen(*text));
    walsh_template_close(&t);
    return status;
}

/* The same text, or an error of both; where the template raised it, its message. */
static unsigned check(const char *source, const json_t *variables, const json_t *expected, size_t i)
{
    struct walsh_error err = {0};
    char *text;
    const enum walsh_status status = render(source, variables, &text, &err);
    const char *wanted = json_string_value(json_object_get(expected, "text")),
               *refusal = json_string_value(json_object_get(expected, "error"));
    const bool same = wanted ? status == WALSH_OK && strcmp(text, wanted) == 0
                             : status == WALSH_E_FORMAT || status == WALSH_E_CAPACITY ||
                                   status == WALSH_E_UNSUPPORTED ||
                                   (status == WALSH_E_ARGUMENT && strstr(err.message, refusal));
    if (!same)
        print_message("case %zu: %.200s\n  expected: %s\n  found:    %s\n", i, source,
                      wanted ? wanted : refusal, status == WALSH_OK ? text : err.message);
    walsh_free(text);
    return !same;
}

static void replay(const char *path, const char *templates, size_t least)
{
    json_t *cases = load(path);
    const json_t *common = json_object_get(json_array_get(cases, 0), "variables");
    unsigned failures = 0;
    size_t i, texts = 0;
    json_t *expected;
    json_array_foreach(cases, i, expected)
    {
        char *loaded = NULL;
        size_t size;
        const json_t *own = json_object_get(expected, "variables");
        const char *source = json_string_value(json_object_get(expected, "template"));
        if (!source) continue; /* the common variables */
        if (templates) {
            char file[512];
            snprintf(file, sizeof file, "%s%s", templates, source);
            assert_int_equal(walsh_file_read_text(file, 1 << 20, &loaded, &size, NULL), WALSH_OK);
        }
        failures += check(loaded ? loaded : source, own ? own : common, expected, i);
        texts += json_object_get(expected, "text") != NULL;
        walsh_free(loaded);
    }
    json_decref(cases);
    if (texts < least) fail_msg("%s: %zu cases have a text, expected %zu", path, texts, least);
    if (failures) fail_msg("%s: %u cases differ", path, failures);
}

static void conversations_are_as_jinja_renders_them(void **state)
{
    (void)state;
    replay(FIXTURES "cases.json", FIXTURES, 150);
    if (more_cases) replay(more_cases, NULL, 1);
}

static void expressions_are_as_jinja_evaluates_them(void **state)
{
    (void)state;
    replay(FIXTURES "expressions.json", NULL, 200);
}

/* What stands in the message, behind "t: line N: ". */
static void refuses(const char *source, enum walsh_status expected, const char *message)
{
    struct walsh_error err = {0};
    char *text;
    json_t *variables = json_pack("{s:[i,i,i],s:{s:s},s:s}", "l", 1, 2, 3, "d", "k", "v", "s", "text");
    const enum walsh_status status = render(source, variables, &text, &err);
    if (status != expected || !strstr(err.message, message))
        fail_msg("%.100s: status %d, %s; expected %d, %s", source, status,
                 status == WALSH_OK ? "no error" : err.message, expected, message);
    json_decref(variables);
    walsh_free(text);
}

static void bombs_are_stopped(void **state)
{
    (void)state;
    refuses("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            WALSH_E_CAPACITY, "more than");
    refuses("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", WALSH_E_CAPACITY, "nested deeper");
    refuses("{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{% if 1 %}{{ f([x]) }}{% endif %}"
            "{% endmacro %}{{ f(1) }}",
            WALSH_E_CAPACITY, "nested deeper");
    refuses("{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", WALSH_E_CAPACITY, "nested deeper");
    refuses("{{ 'x' * 999999999999 }}", WALSH_E_CAPACITY, "text of more than");
    refuses("{{ [1] * 999999999999 }}", WALSH_E_CAPACITY, "more than");
    refuses("{{ [1] * 9223372036854775807 }}", WALSH_E_CAPACITY, "more than");
    refuses("{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(99) %}"
            "{% set ns.x = ns.x + ns.x %}{% endfor %}",
            WALSH_E_CAPACITY, "more than");
    refuses("{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            WALSH_E_CAPACITY, "more than");
    refuses("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", WALSH_E_CAPACITY, "text of more than");
    refuses("{{ range(100001) }}", WALSH_E_CAPACITY, "100000 items");
    refuses("{{ range(-9223372036854775807, 9223372036854775807) }}", WALSH_E_CAPACITY, "100000 items");
    refuses("{{ 9 ** 9 ** 9 ** 9 }}", WALSH_E_FORMAT, "beyond 64 bits");
    refuses("{{ s.replace('', s * 99999) * 9999 }}", WALSH_E_CAPACITY, "text of more than");
    refuses("{{ ('x' * 999999).rsplit('x' * 499999 ~ 'y') }}", WALSH_E_CAPACITY, "more than");
    refuses("{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
            "{{ ns.x }}",
            WALSH_E_CAPACITY, "nested too deeply");
    refuses("{% set ns = namespace(x=1) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}"
            "{{ ns.x < [ns.x] }}",
            WALSH_E_CAPACITY, "nested too deeply");
    refuses("{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
            "{{ ns.x == ns.x + [] }}",
            WALSH_E_CAPACITY, "more than");
    refuses("{% set ns = namespace(x=1) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
            "{{ ns.x | tojson }}",
            WALSH_E_CAPACITY, "more than");
    refuses("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", WALSH_E_CAPACITY, "nested too deeply");
}

static void sources_nested_deeply_are_refused(void **state)
{
    (void)state;
    static char source[40010];
    const char *const parts[] = {"(", "[", "{1:", "-", "not ", "1 if 1 else ", "a|f(", "a is b(", "a.b["};
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        struct walsh_template *t;
        struct walsh_error err;
        strcpy(source, "{{ ");
        for (size_t i = 0; i < 3000; i++) strcat(source + 3, parts[p]);
        const enum walsh_status status = walsh_template_open("t", source, strlen(source), &t, &err);
        assert_true(status == WALSH_E_CAPACITY || status == WALSH_E_FORMAT);
        assert_non_null(strstr(err.message, "t: line 1: "));
    }
    strcpy(source, "");
    for (size_t i = 0; i < 3000; i++) strcat(source, "{% if 1 %}");
    refuses(source, WALSH_E_CAPACITY, "nested deeper");
}

static void tricks_reach_nothing(void **state)
{
    (void)state;
    refuses("{{ s.__class__.__mro__ }}", WALSH_E_FORMAT, "out of reach");
    refuses("{{ s['__class__'] }}", WALSH_E_FORMAT, "out of reach");
    refuses("{{ s|attr('__class__') }}", WALSH_E_FORMAT, "out of reach");
    refuses("{{ [s]|map(attribute='__class__')|list }}", WALSH_E_FORMAT, "out of reach");
    refuses("{{ l.append(4) }}", WALSH_E_FORMAT, "\"append\" changes its list");
    refuses("{{ d.pop('k') }}", WALSH_E_FORMAT, "\"pop\" changes its dict");
    refuses("{{ self.x }}", WALSH_E_FORMAT, "\"self\" is undefined");
    refuses("{{ namespace(__x=1) }}", WALSH_E_FORMAT, "underscore");
    refuses("{% set ns = namespace() %}{% set ns._x = 1 %}", WALSH_E_FORMAT, "underscore");
    refuses("{% set d.k = 1 %}", WALSH_E_FORMAT, "expected a namespace");
    refuses("{% include '/etc/passwd' %}", WALSH_E_FORMAT, "the tag \"include\" is not known");
    refuses("{% import 'x' as y %}", WALSH_E_FORMAT, "the tag \"import\" is not known");
    refuses("{{ '%(a)s' % d }}", WALSH_E_FORMAT, "not supported");
    refuses("{{ '%*d' % l }}", WALSH_E_FORMAT, "not supported");
    refuses("{{ strftime_now('%n') }}", WALSH_E_FORMAT, "not supported");
    refuses("{{ open('/etc/passwd') }}", WALSH_E_FORMAT, "\"open\" is undefined");
}

static void messages_name_the_line(void **state)
{
    (void)state;
    refuses("a\nb\n{{ s.x.y }}\n", WALSH_E_FORMAT, "t: line 3: \"x\" is undefined");
    refuses("{#\n\n#}{% if 1 %}\n{{ raise_exception('no: ' ~ s) }}{% endif %}", WALSH_E_ARGUMENT,
            "t: line 4: no: text");
    refuses("\n\n{% if 1 %}\n", WALSH_E_FORMAT, "t: line 3: the template ends");
    refuses("\n{{ 1 +\n }}", WALSH_E_FORMAT, "t: line 3: found \"}}\", expected an expression");
    refuses("\n{{ 'a\n", WALSH_E_FORMAT, "t: line 2: a string has no end");
    refuses("\n\xff", WALSH_E_FORMAT, "t: byte 1 is not UTF-8");
    refuses("{{ s|nothing }}", WALSH_E_UNSUPPORTED, "t: line 1: the filter \"nothing\" is not known");
    refuses("{{ s is nothing }}", WALSH_E_UNSUPPORTED, "t: line 1: the test \"nothing\" is not known");
}

int main(int count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversations_are_as_jinja_renders_them),
        cmocka_unit_test(expressions_are_as_jinja_evaluates_them),
        cmocka_unit_test(bombs_are_stopped),
        cmocka_unit_test(sources_nested_deeply_are_refused),
        cmocka_unit_test(tricks_reach_nothing),
        cmocka_unit_test(messages_name_the_line),
    };
    if (count > 1) more_cases = arguments[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}

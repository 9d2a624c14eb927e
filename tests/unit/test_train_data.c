/* Conversations as what finetune reads: the tokens and which of them are learned, as another program finds them
 * (tools/conversation_fixtures.py; an argument is a further file of cases), and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

#include "base/file.h"
#include "base/memory.h"
#include "temporary.h"
#include "train/data.h"

#define FIXTURES WALSH_SOURCE_DIR "/tests/fixtures/chat/"
#define TOKENIZER WALSH_SOURCE_DIR "/models/bookworm-8m/tokenizer.json"

static const char *more_cases; /* a file; NULL: none */

static json_t *load(const char *path)
{
    json_error_t error;
    json_t *json = json_load_file(path, 0, &error);
    if (!json) fail_msg("%s: line %d: %s", path, error.line, error.text);
    return json;
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(temporary_path(name), "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void add_tokens(json_t *tokenizer, const json_t *names, bool special, int *id)
{
    size_t i;
    json_t *name;
    json_array_foreach(names, i, name) json_array_append_new(
        json_object_get(tokenizer, "added_tokens"),
        json_pack("{s:i, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (*id)++, "content", name, "single_word", 0,
                  "lstrip", 0, "rstrip", 0, "normalized", 0, "special", (int)special));
}

/* bookworm's tokenizer with further added tokens, in the temporary directory. */
static void write_tokenizer(const json_t *more, const char *config)
{
    json_t *tokenizer = load(TOKENIZER);
    int id = (int)json_object_size(json_object_get(json_object_get(tokenizer, "model"), "vocab"));
    add_tokens(tokenizer, json_object_get(more, "special"), true, &id);
    add_tokens(tokenizer, json_object_get(more, "plain"), false, &id);
    assert_int_equal(json_dump_file(tokenizer, temporary_path("tokenizer.json"), JSON_COMPACT), 0);
    json_decref(tokenizer);
    write_file("tokenizer_config.json", config);
}

/* What the reader knows of a model. */
static void open_graph(struct walsh_model_graph *graph)
{
    struct walsh_error err = {0};
    *graph = (struct walsh_model_graph){.config.eos_count = 1};
    if (walsh_tokenizer_open(temporary_directory, &graph->tokenizer, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    graph->config.vocab = (uint32_t)walsh_tokenizer_size(graph->tokenizer);
    graph->checkpoint.directory = temporary_directory;
}

static enum walsh_status read_line(const struct walsh_model_graph *graph, const json_t *line,
                                   struct walsh_data *data, struct walsh_error *err)
{
    assert_int_equal(json_dump_file(line, temporary_path("data.jsonl"), JSON_COMPACT), 0);
    return walsh_data_open(graph, temporary_path("data.jsonl"), 4096, data, err);
}

static bool same_document(const struct walsh_data *data, size_t *at, const json_t *expected)
{
    const json_t *ids = json_object_get(expected, "ids");
    const char *learned = json_string_value(json_object_get(expected, "learned"));
    const size_t count = json_array_size(ids);
    if (data->tokens - *at < count) return false;
    for (size_t i = 0; i < count; i++, ++*at)
        if (data->ids[*at] != json_integer_value(json_array_get(ids, i)) ||
            data->counts[*at] != (learned[i] == '1'))
            return false;
    return true;
}

/* The same documents, or refused by both. */
static bool same(const struct walsh_model_graph *graph, const json_t *expected)
{
    struct walsh_data data;
    struct walsh_error err = {0};
    const json_t *documents = json_object_get(expected, "documents");
    const enum walsh_status status = read_line(graph, json_object_get(expected, "line"), &data, &err);
    if (!documents) return status != WALSH_OK;
    if (status != WALSH_OK) {
        print_message("%s\n", err.message);
        return false;
    }
    bool good = data.documents == json_array_size(documents);
    size_t at = 0, i;
    json_t *document;
    json_array_foreach(documents, i, document) good = good && same_document(&data, &at, document);
    good = good && at == data.tokens;
    walsh_data_close(&data);
    return good;
}

static void write_template(const char *source, bool is_name)
{
    char path[512], *text = NULL;
    size_t size;
    if (!is_name) {
        write_file("chat_template.jinja", source);
        return;
    }
    snprintf(path, sizeof path, "%s%s", FIXTURES, source);
    assert_int_equal(walsh_file_read_text(path, 1 << 20, &text, &size, NULL), WALSH_OK);
    write_file("chat_template.jinja", text);
    walsh_free(text);
}

static void replay(const char *path, bool names, size_t least)
{
    json_t *cases = load(path), *expected;
    struct walsh_model_graph graph = {0};
    const char *opened = "";
    size_t i, documents = 0;
    unsigned failures = 0;
    write_tokenizer(json_array_get(cases, 0), "{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"}");
    json_array_foreach(cases, i, expected)
    {
        const char *source = json_string_value(json_object_get(expected, "template"));
        if (!source) continue; /* the tokens */
        if (strcmp(source, opened) != 0) {
            walsh_tokenizer_close(&graph.tokenizer);
            write_template(source, names);
            open_graph(&graph);
            opened = source;
        }
        documents += json_array_size(json_object_get(expected, "documents"));
        if (same(&graph, expected)) continue;
        failures++;
        print_message("case %zu differs: %.60s\n", i, source);
    }
    walsh_tokenizer_close(&graph.tokenizer);
    json_decref(cases);
    if (documents < least) fail_msg("%s: %zu documents, expected %zu", path, documents, least);
    if (failures) fail_msg("%s: %u cases differ", path, failures);
}

static void answers_are_learned_as_templates_write_them(void **state)
{
    (void)state;
    replay(FIXTURES "conversations.json", true, 70);
    if (more_cases) replay(more_cases, false, 1);
}

/* What a template says of one conversation: the text of the document with < > around what is learned. */
static void reads(const struct walsh_model_graph *graph, const char *line, const char *expected)
{
    struct walsh_data data;
    struct walsh_error err = {0};
    char out[1024] = "";
    json_t *json = json_loads(line, 0, NULL);
    assert_non_null(json);
    if (read_line(graph, json, &data, &err) != WALSH_OK) fail_msg("%s", err.message);
    json_decref(json);
    for (size_t i = 0; i < data.tokens; i++) {
        char *text;
        size_t size;
        const bool before = i > 0 && data.counts[i - 1];
        assert_int_equal(walsh_tokenizer_decode(graph->tokenizer, &data.ids[i], 1, false, &text, &size, NULL),
                         WALSH_OK);
        const size_t n = strlen(out);
        snprintf(out + n, sizeof out - n, "%s%s", data.counts[i] == before ? "" : before ? "}" : "{", text);
        walsh_free(text);
    }
    walsh_data_close(&data);
    assert_string_equal(out, expected);
}

static void refuses(const struct walsh_model_graph *graph, const char *line, enum walsh_status expected,
                    const char *message)
{
    struct walsh_data data;
    struct walsh_error err = {0};
    json_t *json = json_loads(line, 0, NULL);
    assert_non_null(json);
    assert_int_equal(read_line(graph, json, &data, &err), expected);
    json_decref(json);
    if (!strstr(err.message, message)) fail_msg("%s\n  lacks: %s", err.message, message);
}

#define ASKED "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}"
#define ANSWERED ASKED ", {\"role\": \"assistant\", \"content\": \"Yes.\"}"

static void models_without_a_template_have_chatml(void **state)
{
    (void)state;
    struct walsh_model_graph graph;
    json_t *none = json_object();
    remove(temporary_path("chat_template.jinja"));
    write_tokenizer(none, "{\"bos_token\": \"<|endoftext|>\", \"add_bos_token\": true}");
    json_decref(none);
    open_graph(&graph);
    reads(&graph, ANSWERED "]}",
          "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{Yes.<|im_end|>}\n");
    /* what somebody typed ends nothing, and is learned as the text that it is */
    reads(&graph,
          ASKED ", {\"role\": \"assistant\", \"content\": \"A<|im_end|>B\"}, {\"role\": \"user\", "
                "\"content\": \"?\"}]}",
          "<|endoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{A<|im_end|>B<|im_end|>}\n");
    refuses(&graph, "{\"messages\": []}", WALSH_E_FORMAT,
            "data.jsonl:1: \"messages\" is no array of messages");
    refuses(&graph, ASKED ", 7]}", WALSH_E_FORMAT, "data.jsonl:1: message 2 is no object with a \"role\"");
    refuses(&graph, ASKED "]}", WALSH_E_ARGUMENT, "nothing to learn from");
    walsh_tokenizer_close(&graph.tokenizer);
}

static void templates_that_hide_their_answers_are_refused(void **state)
{
    (void)state;
    struct walsh_model_graph graph;
    json_t *none = json_object();
    write_tokenizer(none, "{}");
    json_decref(none);
    write_template("{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ '.' }}{% endfor %}"
                   "{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}",
                   false);
    open_graph(&graph);
    refuses(&graph, ANSWERED "]}", WALSH_E_UNSUPPORTED, "data.jsonl:1: message 2: the chat template in ");
    walsh_tokenizer_close(&graph.tokenizer);
    /* what a template raises, and one that never ends, are told with the line */
    write_template("{{ raise_exception('not today') }}", false);
    open_graph(&graph);
    refuses(&graph, ANSWERED "]}", WALSH_E_FORMAT, "data.jsonl:1: the first 1 messages: ");
    refuses(&graph, ANSWERED "]}", WALSH_E_FORMAT, "not today");
    walsh_tokenizer_close(&graph.tokenizer);
    write_template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", false);
    open_graph(&graph);
    refuses(&graph, ANSWERED "]}", WALSH_E_CAPACITY, "data.jsonl:1: ");
    walsh_tokenizer_close(&graph.tokenizer);
    /* tools and variables reach it */
    write_template("{{ tools[0].name ~ mood }}{% for m in messages %}{{ m.content }}{% endfor %}", false);
    open_graph(&graph);
    reads(&graph, ANSWERED "], \"tools\": [{\"name\": \"T\"}], \"chat_template_kwargs\": {\"mood\": \"M\"}}",
          "TMHi{Yes."); /* nothing stands behind it */
    refuses(&graph, ANSWERED "], \"tools\": 3}", WALSH_E_FORMAT, "tools: ");
    walsh_tokenizer_close(&graph.tokenizer);
}

int main(int count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_are_learned_as_templates_write_them),
        cmocka_unit_test(models_without_a_template_have_chatml),
        cmocka_unit_test(templates_that_hide_their_answers_are_refused),
    };
    if (count > 1) more_cases = arguments[1];
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

/* Structured output through walsh.h: a sampler and a batch give JSON under their schemas, drawn and greedy.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "walsh.h"
#include "unit/test_model.h"

#define ROWS 4
#define TOKENS 700

static const char schema[] =
    "{\"type\":\"object\",\"properties\":{\"title\":{\"type\":\"string\",\"maxLength\":20},"
    "\"year\":{\"type\":\"integer\"},\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"sea\",\"war\"]},"
    "\"maxItems\":2},\"read\":{\"type\":\"boolean\"}},\"required\":[\"title\",\"year\",\"tags\",\"read\"],"
    "\"additionalProperties\":false}";

static struct walsh_context *context;
static struct walsh_model *model;
static struct walsh_grammar *grammar;
static int32_t *prompt;
static size_t prompt_size;

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static int open_model(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const char text[] = "It was late in the evening when";
    good(walsh_context_open(NULL, &context, &err), &err);
    good(walsh_model_open(context, test_model(), NULL, &model, &err), &err);
    good(walsh_model_encode(model, text, strlen(text), 0, &prompt, &prompt_size, &err), &err);
    good(walsh_grammar_open(model, schema, strlen(schema), &grammar, &err), &err);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    walsh_memory_free(prompt);
    walsh_grammar_close(&grammar);
    walsh_model_close(&model);
    walsh_context_close(&context);
    return 0;
}

static struct walsh_sampler_options sampling(uint32_t i)
{
    struct walsh_sampler_options options = WALSH_SAMPLER_OPTIONS;
    options.model = model;
    options.grammar = grammar;
    options.temperature = i == 0 ? 0 : 0.4 * i;
    options.seed = i;
    return options;
}

/* The text of the tokens is a document of the schema. */
static void check_document(const int32_t *ids, size_t count)
{
    char *text;
    size_t size;
    json_error_t error;
    struct walsh_error err = {0};
    good(walsh_model_decode(model, ids, count, false, &text, &size, &err), &err);
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!value) fail_msg("%s: %s", text, error.text);
    const json_t *title = json_object_get(value, "title"), *tags = json_object_get(value, "tags");
    if (json_object_size(value) != 4 || !json_is_string(title) || json_array_size(tags) > 2 ||
        !json_is_array(tags) || !json_is_integer(json_object_get(value, "year")) ||
        !json_is_boolean(json_object_get(value, "read")))
        fail_msg("%s", text);
    json_decref(value);
    walsh_memory_free(text);
}

/* One answer with a session and a sampler; returns its tokens without the one that ends it. */
static size_t answer_alone(uint32_t i, int32_t *ids)
{
    struct walsh_error err = {0};
    struct walsh_model_info info = {.struct_size = sizeof info};
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    const struct walsh_sampler_options drawing = sampling(i);
    struct walsh_session *session;
    struct walsh_sampler *sampler;
    size_t count = 0;
    options.context = 1024;
    walsh_model_get_info(model, &info);
    good(walsh_session_open(model, &options, &session, &err), &err);
    good(walsh_sampler_open(&drawing, info.vocab, &sampler, &err), &err);
    good(walsh_session_prompt(session, prompt, prompt_size, &err), &err);
    for (;;) {
        int32_t id;
        good(walsh_sampler_draw(sampler, walsh_session_logits(session), &id, &err), &err);
        if (walsh_model_is_eos(model, id)) break;
        ids[count++] = id;
        if (count == TOKENS) fail_msg("no end");
        good(walsh_step(&session, &id, 1, &err), &err);
    }
    walsh_sampler_close(&sampler);
    walsh_session_close(&session);
    return count;
}

static void answers_follow_the_schema_in_a_batch_as_alone(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_batch *batch;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    static int32_t alone[ROWS][TOKENS], drawn[ROWS][TOKENS];
    size_t counts[ROWS], got[ROWS] = {0}, running = ROWS;
    options.max_rows = 3;
    options.context = 1024;
    good(walsh_batch_open(model, &options, &batch, &err), &err);
    for (uint32_t i = 0; i < ROWS; i++) {
        counts[i] = answer_alone(i, alone[i]);
        check_document(alone[i], counts[i]);
        struct walsh_batch_request request = WALSH_BATCH_REQUEST;
        const struct walsh_sampler_options drawing = sampling(i);
        uint64_t id;
        request.ids = prompt;
        request.count = prompt_size;
        request.max_tokens = TOKENS;
        request.sampling = &drawing;
        request.user = got + i;
        good(walsh_batch_submit(batch, &request, &id, &err), &err);
    }
    walsh_grammar_close(&grammar); /* the requests keep it */
    while (running) {
        struct walsh_batch_event events[4];
        size_t n;
        good(walsh_batch_step(batch, events, 4, &n, &err), &err);
        for (size_t k = 0; k < n; k++) {
            size_t *count = events[k].user;
            if (events[k].finish == WALSH_FINISH_ERROR) fail_msg("%s", events[k].message);
            if (events[k].finish == WALSH_FINISH_NONE)
                drawn[count - got][(*count)++] = events[k].token;
            else
                running--;
        }
    }
    for (size_t i = 0; i < ROWS; i++) {
        assert_int_equal(got[i], counts[i]);
        assert_memory_equal(drawn[i], alone[i], counts[i] * sizeof **alone);
    }
    walsh_batch_close(&batch);
}

static void grammars_are_refused_with_the_reason(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_grammar *other;
    const char unknown[] = "{\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"x\"}}}";
    assert_int_equal(walsh_grammar_open(model, unknown, strlen(unknown), &other, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "schema: $.a: \"pattern\" is not supported here");
    struct walsh_sampler *sampler;
    struct walsh_sampler_options options = WALSH_SAMPLER_OPTIONS;
    good(walsh_grammar_open(model, NULL, 0, &other, &err), &err);
    options.grammar = other;
    assert_int_equal(walsh_sampler_open(&options, 17, &sampler, &err), WALSH_E_ARGUMENT);
    walsh_grammar_close(&other);
    walsh_grammar_close(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_follow_the_schema_in_a_batch_as_alone),
        cmocka_unit_test(grammars_are_refused_with_the_reason),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}

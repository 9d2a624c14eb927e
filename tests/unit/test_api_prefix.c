/* Prefix stores through walsh.h: options, two sessions of one store, salts, forks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "temporary.h"
#include "walsh.h"
#include "unit/test_model.h"

#define TOKENS 600

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static void options_are_checked(void **state)
{
    struct walsh_context *context = *state;
    struct walsh_prefix_store *store;
    struct walsh_error err;
    struct walsh_prefix_store_options options = WALSH_PREFIX_STORE_OPTIONS;
    options.struct_size = 4096;
    assert_int_equal(walsh_prefix_store_open(context, temporary_path("options"), &options, &store, &err),
                     WALSH_E_ARGUMENT);
    assert_null(store);
    good(walsh_prefix_store_open(context, temporary_path("options"), NULL, &store, &err), &err);
    walsh_prefix_store_close(&store);
    assert_null(store);
    walsh_prefix_store_close(&store);
}

static void a_synthetic_model_is_refused(void **state)
{
    struct walsh_context *context = *state;
    struct walsh_prefix_store *store;
    struct walsh_session *session;
    struct walsh_model *model;
    struct walsh_error err;
    struct walsh_shape shape = WALSH_SHAPE;
    shape.hidden = shape.intermediate = shape.vocab = 64;
    shape.layers = shape.heads = shape.kv_heads = 1;
    shape.head_dim = shape.max_positions = 64;
    good(walsh_model_synthesize(context, &shape, "bf16", 0, 1, NULL, &model, &err), &err);
    good(walsh_session_open(model, NULL, &session, &err), &err);
    good(walsh_prefix_store_open(context, temporary_path("synthetic"), NULL, &store, &err), &err);
    assert_int_equal(walsh_session_set_prefix_store(session, store, NULL, 0, &err), WALSH_E_UNSUPPORTED);
    walsh_session_close(&session);
    walsh_prefix_store_close(&store);
    walsh_model_close(&model);
}

static struct walsh_prefix_info prompt(struct walsh_session *session, const int32_t *ids)
{
    struct walsh_error err;
    struct walsh_prefix_info info = {.struct_size = sizeof info};
    good(walsh_session_trim(session, 0, &err), &err);
    good(walsh_session_prompt(session, ids, TOKENS, &err), &err);
    assert_int_equal(walsh_session_length(session), TOKENS);
    assert_non_null(walsh_session_logits(session));
    walsh_session_get_prefix_info(session, &info);
    return info;
}

static void sessions_share_what_their_salts_share(void **state)
{
    struct walsh_context *context = *state;
    struct walsh_prefix_store *store;
    struct walsh_session *a, *b, *fork;
    struct walsh_model *model;
    struct walsh_error err;
    struct walsh_prefix_info info;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = i * 13 % 8192;
    good(walsh_model_open(context, test_model(), NULL, &model, &err), &err);
    good(walsh_session_open(model, NULL, &a, &err), &err);
    good(walsh_session_open(model, NULL, &b, &err), &err);
    good(walsh_prefix_store_open(context, temporary_path("shared"), NULL, &store, &err), &err);
    info = prompt(a, ids); /* without a store */
    assert_int_equal(info.tokens + info.stored, 0);
    good(walsh_session_set_prefix_store(a, store, "tenant a", 8, &err), &err);
    good(walsh_session_set_prefix_store(b, store, "tenant b", 8, &err), &err);
    info = prompt(a, ids);
    assert_int_equal(info.tokens, 0);
    assert_int_equal(info.stored, TOKENS);
    info = prompt(a, ids);
    assert_int_equal(info.tokens, TOKENS);
    assert_int_equal(info.stored, 0);
    assert_true(info.saved_seconds > 0 && info.seconds > 0);
    info = prompt(b, ids);
    assert_int_equal(info.tokens, 0);
    good(walsh_session_set_prefix_store(b, store, "tenant a", 8, &err), &err);
    info = prompt(b, ids);
    assert_int_equal(info.tokens, TOKENS);
    assert_memory_equal(walsh_session_logits(a), walsh_session_logits(b), 8192 * sizeof(float));

    /* Logits of all positions are computed, store or not; so is what a fork reads. */
    float *logits = malloc(sizeof *logits * TOKENS * 8192);
    assert_non_null(logits);
    good(walsh_session_trim(b, 0, &err), &err);
    good(walsh_session_prompt_logits(b, ids, TOKENS, logits, &err), &err);
    assert_memory_equal(logits + (size_t)(TOKENS - 1) * 8192, walsh_session_logits(a), 8192 * sizeof(float));
    free(logits);
    good(walsh_session_fork(a, &fork, &err), &err);
    info = prompt(fork, ids);
    assert_int_equal(info.tokens + info.stored, 0);
    good(walsh_session_set_prefix_store(a, NULL, NULL, 0, &err), &err);
    info = prompt(a, ids);
    assert_int_equal(info.tokens + info.stored, 0);
    walsh_session_close(&fork);
    walsh_session_close(&a);
    walsh_session_close(&b);
    walsh_prefix_store_close(&store);
    walsh_model_close(&model);
}

static int setup(void **state)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    return temporary_make(state) == 0 &&
                   walsh_context_open(&options, (struct walsh_context **)state, NULL) == WALSH_OK
               ? 0
               : -1;
}

static int teardown(void **state)
{
    walsh_context_close((struct walsh_context **)state);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(a_synthetic_model_is_refused),
        cmocka_unit_test(sessions_share_what_their_salts_share),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

/* The determinism contract: not a bit changes with the number of threads, nor, in decode, with the batch, nor
 * with how a prompt is cut into calls. On a real model and on synthetic ones of each format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "walsh.h"
#include "unit/test_model.h"

#define BATCH 5
#define STEPS 6
#define PROMPT_MAX 600 /* beyond one chunk */

static const struct subject {
    const char *name;
    const char *format; /* NULL: of unit/test_model.h */
    unsigned bits;
    bool sparse;
    enum walsh_activation_mode activations;
} subjects[] = {
    {"dense, f32", NULL, 0, false, WALSH_ACTIVATIONS_F32},
    {"dense, auto", NULL, 0, false, WALSH_ACTIVATIONS_AUTO},
    {"e8p 2", "e8p", 2, false, WALSH_ACTIVATIONS_AUTO},
    {"e8p 3", "e8p", 3, false, WALSH_ACTIVATIONS_AUTO},
    {"e8p 4, f32", "e8p", 4, false, WALSH_ACTIVATIONS_F32},
    {"experts, bf16", "bf16", 0, true, WALSH_ACTIVATIONS_AUTO},
    {"experts, e8p 3", "e8p", 3, true, WALSH_ACTIVATIONS_AUTO},
    {"experts, e8p 2, f32", "e8p", 2, true, WALSH_ACTIVATIONS_F32},
};
#define SUBJECTS (sizeof subjects / sizeof *subjects)

/* Prompts of different lengths: within a page, across pages, across a chunk. */
static uint32_t prompt_length[BATCH] = {1, 37, 300, PROMPT_MAX, 256};

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

static struct walsh_context *open_context(unsigned threads)
{
    struct walsh_error err;
    struct walsh_context *context;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = threads;
    good(walsh_context_open(&options, &context, &err), &err);
    return context;
}

static struct walsh_model *open_model(struct walsh_context *context, const struct subject *s)
{
    struct walsh_error err;
    struct walsh_model *model;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.activations = s->activations;
    if (!s->format) {
        good(walsh_model_open(context, test_model(), &options, &model, &err), &err);
        return model;
    }
    struct walsh_shape shape = WALSH_SHAPE;
    shape.name = s->name;
    shape.hidden = test_small() ? 192 : 320; /* 128+64, 256+64 */
    shape.intermediate = test_small() ? 192 : 896;
    shape.layers = test_small() ? 1 : 2;
    shape.heads = test_small() ? 2 : 6;
    shape.kv_heads = test_small() ? 1 : 2;
    shape.head_dim = 64;
    shape.vocab = test_small() ? 300 : 1000;
    shape.max_positions = 1024;
    if (s->sparse) {
        shape.experts = 8;
        shape.experts_per_token = 3;
        shape.expert_intermediate = test_tiny() ? 64 : 192;
    }
    good(walsh_model_synthesize(context, &shape, s->format, s->bits, 7, &options, &model, &err), &err);
    return model;
}

static int32_t token(uint32_t sequence, uint32_t position)
{
    return (int32_t)((sequence * 7919u + position * 104729u + position * position * 31u) % 300u);
}

static struct walsh_session *open_session(const struct walsh_model *model)
{
    struct walsh_error err;
    struct walsh_session *session;
    const struct walsh_session_options options = {.struct_size = sizeof options, .context = 1024};
    good(walsh_session_open(model, &options, &session, &err), &err);
    return session;
}

/* The prompt of `sequence` in pieces of at most `piece` tokens. */
static struct walsh_session *start(const struct walsh_model *model, uint32_t sequence, uint32_t piece)
{
    struct walsh_error err;
    struct walsh_session *session = open_session(model);
    int32_t ids[PROMPT_MAX];
    uint32_t n = prompt_length[sequence];
    for (uint32_t i = 0; i < n; i++) ids[i] = token(sequence, i);
    for (uint32_t at = 0; at < n; at += piece)
        good(walsh_session_prompt(session, ids + at, n - at < piece ? n - at : piece, &err), &err);
    return session;
}

static size_t vocabulary(const struct walsh_model *model)
{
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(model, &info);
    return info.vocab;
}

/* Logits behind the prompt and behind each step, of BATCH sequences stepped in groups of `group`:
 * [BATCH][1 + STEPS][vocab]; free(). */
static float *run(const struct walsh_model *model, uint32_t group, uint32_t piece)
{
    struct walsh_error err;
    size_t vocab = vocabulary(model), row = vocab * sizeof(float);
    float *out = malloc(BATCH * (1 + STEPS) * row);
    assert_non_null(out);
    for (uint32_t first = 0; first < BATCH; first += group) {
        uint32_t n = BATCH - first < group ? BATCH - first : group;
        struct walsh_session *sessions[BATCH];
        for (uint32_t i = 0; i < n; i++) {
            sessions[i] = start(model, first + i, piece);
            memcpy(out + (first + i) * (1 + STEPS) * vocab, walsh_session_logits(sessions[i]), row);
        }
        for (uint32_t step = 0; step < STEPS; step++) {
            int32_t ids[BATCH];
            for (uint32_t i = 0; i < n; i++) ids[i] = token(first + i, prompt_length[first + i] + step);
            good(walsh_step(sessions, ids, n, &err), &err);
            for (uint32_t i = 0; i < n; i++)
                memcpy(out + ((first + i) * (1 + STEPS) + 1 + step) * vocab,
                       walsh_session_logits(sessions[i]), row);
        }
        for (uint32_t i = 0; i < n; i++) walsh_session_close(&sessions[i]);
    }
    return out;
}

static void same_bits(const struct subject *s, const char *what, const float *a, const float *b, size_t vocab)
{
    for (size_t i = 0; i < BATCH * (1 + STEPS); i++)
        if (memcmp(a + i * vocab, b + i * vocab, vocab * sizeof *a) != 0)
            fail_msg("%s: %s: sequence %zu differs behind step %zu", s->name, what, i / (1 + STEPS),
                     i % (1 + STEPS));
}

static bool varied(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!(x[i] == x[i])) return false;
    for (size_t i = 1; i < n; i++)
        if (x[i] != x[0]) return true;
    return false;
}

static void check(const struct subject *s)
{
    float *expected = NULL;
    size_t vocab = 0;
    for (unsigned threads = 1; threads <= (test_tiny() ? 2 : 3); threads++) {
        struct walsh_context *context = open_context(threads);
        struct walsh_model *model = open_model(context, s);
        vocab = vocabulary(model);
        float *logits;
        if (threads == 1) {
            expected = run(model, 1, PROMPT_MAX);
            assert_true(varied(expected, BATCH * (1 + STEPS) * vocab));
        } else if (!test_tiny()) { /* else 2 threads are those of the batch and of the pieces below */
            logits = run(model, 1, PROMPT_MAX);
            same_bits(s, threads == 2 ? "2 threads" : "3 threads", expected, logits, vocab);
            free(logits);
        }
        if (threads == 2) {
            for (uint32_t group = test_tiny() ? BATCH : 2; group <= BATCH; group += test_small() ? 3 : 1) {
                logits = run(model, group, PROMPT_MAX);
                same_bits(s, "in a batch", expected, logits, vocab);
                free(logits);
            }
            logits = run(model, 1, 137);
            same_bits(s, "a prompt in pieces", expected, logits, vocab);
            free(logits);
        }
        walsh_model_close(&model);
        walsh_context_close(&context);
    }
    free(expected);
}

static void bits_do_not_change(void **state)
{
    (void)state;
    for (size_t i = 0; i < SUBJECTS; i++) check(&subjects[i]);
}

/* One session forgets what it generated and goes on: the bits of a fresh one. */
static void trimming_forgets(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_context *context = open_context(2);
    struct walsh_model *model = open_model(context, &subjects[3]);
    size_t vocab = vocabulary(model);
    struct walsh_session *a = start(model, 2, PROMPT_MAX), *b = start(model, 2, PROMPT_MAX);
    for (uint32_t i = 0; i < 4; i++) {
        int32_t id = token(9, i);
        good(walsh_step(&a, &id, 1, &err), &err);
    }
    good(walsh_session_trim(a, prompt_length[2], &err), &err);
    assert_null(walsh_session_logits(a));
    int32_t id = 11;
    good(walsh_step(&a, &id, 1, &err), &err);
    good(walsh_step(&b, &id, 1, &err), &err);
    assert_memory_equal(walsh_session_logits(a), walsh_session_logits(b), vocab * sizeof(float));
    walsh_session_close(&a);
    walsh_session_close(&b);
    walsh_model_close(&model);
    walsh_context_close(&context);
}

/* The logits at every position of a prompt are those that shorter prompts end with. */
static void every_position_is_the_last_of_a_shorter_prompt(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_context *context = open_context(2);
    for (size_t s = 0; s < SUBJECTS; s += 5) {
        struct walsh_model *model = open_model(context, &subjects[s]);
        size_t vocab = vocabulary(model);
        int32_t ids[530];
        for (uint32_t i = 0; i < 530; i++) ids[i] = token(4, i);
        float *all = malloc(530 * vocab * sizeof *all);
        assert_non_null(all);
        struct walsh_session *session = open_session(model);
        good(walsh_session_prompt_logits(session, ids, 530, all, &err), &err);
        assert_memory_equal(walsh_session_logits(session), all + 529 * vocab, vocab * sizeof *all);
        for (uint32_t n = 1; n <= 530; n += 176) {
            good(walsh_session_trim(session, 0, &err), &err);
            good(walsh_session_prompt(session, ids, n, &err), &err);
            assert_memory_equal(walsh_session_logits(session), all + (n - 1) * vocab, vocab * sizeof *all);
        }
        walsh_session_close(&session);
        walsh_model_close(&model);
        free(all);
    }
    walsh_context_close(&context);
}

int main(void)
{
    if (test_small()) {
        prompt_length[2] = test_tiny() ? 60 : 130;
        prompt_length[3] = 530;
        prompt_length[4] = test_tiny() ? 9 : 128;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_change),
        cmocka_unit_test(trimming_forgets),
        cmocka_unit_test(every_position_is_the_last_of_a_shorter_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

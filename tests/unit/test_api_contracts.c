/* walsh.h as a caller meets it: options, refusals with their figures, aborts, evaluation, reports. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/machine.h"
#include "walsh.h"
#include "unit/test_model.h"

static struct walsh_context *context;
static struct walsh_model *model;
static unsigned aborts_left; /* the abort hook says stop when this reaches 0; 0: never */
static unsigned progress_calls;
static double progress_first, progress_done, progress_total;

static bool on_abort(void *user)
{
    (void)user;
    return aborts_left > 0 && --aborts_left == 0;
}

static void on_progress(void *user, const char *stage, double done, double total, const char *unit)
{
    (void)user;
    assert_true(strcmp(stage, "prompt") == 0 || strcmp(stage, "eval") == 0);
    assert_string_equal(unit, "tokens");
    assert_true(done > 0 && done <= total);
    if (progress_calls++ == 0) progress_first = done;
    progress_done = done;
    progress_total = total;
}

static int open_model(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    options.hooks = (struct walsh_hooks){.abort = on_abort, .progress = on_progress};
    if (walsh_context_open(&options, &context, &err) != WALSH_OK) return -1;
    return walsh_model_open(context, test_model(), NULL, &model, &err) == WALSH_OK ? 0 : -1;
}

static int close_model(void **state)
{
    (void)state;
    walsh_model_close(&model);
    walsh_context_close(&context);
    return model || context ? -1 : 0;
}

static struct walsh_session *open_session(uint32_t capacity)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = capacity;
    if (walsh_session_open(model, &options, &session, &err) != WALSH_OK) fail_msg("%s", err.message);
    return session;
}

static void contexts_refuse_what_they_do_not_know(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_context *other;
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.cpu = "sse9";
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "cpu is \"sse9\", expected best, reference, avx2, avx512 or amx");
    options.cpu = NULL;
    options.device = "tpu";
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "device is \"tpu\", expected cpu, cuda or cuda:N");
    options.device = "cuda:1x";
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_E_ARGUMENT);
    options.device = "cpu";
    options.threads = 5000;
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_E_ARGUMENT);
    options.threads = 1;
    options.struct_size = sizeof options + 8; /* of a later walsh.h */
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_E_ARGUMENT);
    assert_non_null(strstr(err.message, "walsh_context_options: struct_size is "));
    assert_null(other);
    walsh_context_close(&other);
    /* of an earlier one that ended behind `threads`: what follows is not read */
    options.struct_size = offsetof(struct walsh_context_options, cpu);
    options.cpu = "sse9";
    assert_int_equal(walsh_context_open(&options, &other, &err), WALSH_OK);
    assert_int_equal(walsh_context_threads(other), 1);
    walsh_context_close(&other);
    assert_null(other);
}

static void models_say_what_they_are(void **state)
{
    (void)state;
    struct walsh_error err;
    struct walsh_model *bookworm;
    struct walsh_model_info info = {.struct_size = sizeof info};
    assert_int_equal(walsh_model_open(context, TEST_MODEL, NULL, &bookworm, &err), WALSH_OK);
    walsh_model_get_info(bookworm, &info);
    assert_int_equal(info.struct_size, sizeof info);
    assert_string_equal(info.architecture, "LlamaForCausalLM");
    assert_string_equal(info.format, "bf16");
    assert_true(info.bits_per_weight == 16);
    assert_int_equal(info.vocab, 8192);
    assert_int_equal(info.checkpoint_bytes, 16314224);
    /* 5 layers of 320*320*2 + 2*64*320 + 3*896*320 weights */
    assert_int_equal(info.linear_parameters, 5 * (320 * 320 * 2 + 2 * 64 * 320 + 3 * 896 * 320));
    assert_int_equal(info.parameters, info.linear_parameters + 8192 * 320 + 11 * 320);
    assert_true(info.has_tokenizer);
    assert_int_equal(info.decode_bytes, 2 * info.linear_parameters + 2 * 8192 * 320 + 2 * 320 + 4 * 11 * 320);
    assert_int_equal(info.head_weights, 8192 * 320);
    assert_int_equal(info.decode_weights, info.linear_parameters + 8192 * 320);
    struct walsh_tensor_info tensor = {.struct_size = sizeof tensor};
    uint64_t weights = 0;
    size_t count = 0;
    for (; walsh_model_tensor(bookworm, count, &tensor); count++)
        if (strcmp(tensor.part, "head") != 0) weights += tensor.rows * tensor.cols;
    assert_int_equal(weights, info.parameters);
    assert_int_equal(count, 1 + 5 * 9 + 2); /* tied head listed as well */
    assert_true(walsh_model_is_eos(bookworm, 0));
    assert_true(walsh_model_is_eos(bookworm, 2));
    assert_false(walsh_model_is_eos(bookworm, 1));
    struct walsh_sampler_options defaults;
    walsh_sampler_defaults(bookworm, &defaults);
    assert_true(defaults.temperature == 0.8 && defaults.top_p == 0.95 && defaults.repeat_penalty == 1);
    assert_int_equal(defaults.top_k, 0);
    assert_int_equal(defaults.repeat_last, 64);
    assert_ptr_equal(defaults.model, bookworm);
    walsh_model_close(&bookworm);
}

/* Every option means what it says: none of them takes 0 for "not given". */
static void samplers_take_their_options_literally(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_sampler *sampler;
    struct walsh_sampler_options options = WALSH_SAMPLER_OPTIONS;
    options.top_p = 0;
    assert_int_equal(walsh_sampler_open(&options, 4, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "top_p is 0, expected more than 0, at most 1");
    options.top_p = 1;
    options.model = model;
    assert_int_equal(walsh_sampler_open(&options, 4, &sampler, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "a sampler of 4 ids for a model of 8192");
    const float logits[4] = {1, 3, 2, 0};
    for (uint32_t last = 0; last < 2; last++) { /* greedy; 3 / 2 < 2 while token 1 is recent */
        options = (struct walsh_sampler_options)WALSH_SAMPLER_OPTIONS;
        options.repeat_penalty = 2;
        options.repeat_last = last;
        int32_t id;
        assert_int_equal(walsh_sampler_open(&options, 4, &sampler, &err), WALSH_OK);
        walsh_sampler_accept(sampler, 1);
        assert_int_equal(walsh_sampler_draw(sampler, logits, &id, &err), WALSH_OK);
        assert_int_equal(id, last ? 2 : 1);
        walsh_sampler_close(&sampler);
    }
}

static void contexts_of_sessions_have_limits(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = 1025;
    assert_int_equal(walsh_session_open(model, &options, &session, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "context of 1025 tokens: the model has positions for 1 to 1024");
    assert_null(session);

    int32_t ids[20] = {5, 6, 7};
    session = open_session(16);
    assert_null(walsh_session_logits(session));
    assert_int_equal(walsh_session_prompt(session, ids, 17, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "prompt of 17 tokens: the context holds 16, 0 are in use");
    assert_int_equal(walsh_session_length(session), 0);
    assert_int_equal(walsh_session_prompt(session, ids, 15, &err), WALSH_OK);
    assert_int_equal(walsh_session_prompt(session, ids, 2, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "prompt of 2 tokens: the context holds 16, 15 are in use");
    assert_int_equal(walsh_step(&session, ids, 1, &err), WALSH_OK);
    assert_int_equal(walsh_step(&session, ids, 1, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "the context is full: 17 tokens wanted, it holds 16");
    assert_int_equal(walsh_session_length(session), 16);
    assert_non_null(walsh_session_logits(session));
    assert_int_equal(walsh_session_trim(session, 17, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_session_prompt(session, ids, 0, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_session_trim(session, 3, &err), WALSH_OK);
    ids[1] = 8192;
    assert_int_equal(walsh_session_prompt(session, ids, 2, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "token 1 is id 8192, the vocabulary has ids 0 to 8191");
    ids[1] = -1;
    assert_int_equal(walsh_session_prompt(session, ids, 2, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_session_length(session), 3);
    struct walsh_session *twice[] = {session, session};
    assert_int_equal(walsh_step(twice, ids, 2, &err), WALSH_E_ARGUMENT);
    ids[1] = 1;
    assert_int_equal(walsh_step(twice, ids, 2, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "step: session 1 is in the list twice");
    twice[1] = NULL;
    assert_int_equal(walsh_step(twice, ids, 2, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "step: session 1 of 2 is NULL");
    struct walsh_sampler *none = NULL;
    assert_int_equal(walsh_step_draw(&session, &none, ids, 1, ids, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "step: sampler 0 of 1 is NULL");
    assert_int_equal(walsh_step(NULL, NULL, 0, &err), WALSH_OK);
    assert_int_equal(walsh_session_length(session), 3);
    assert_int_equal(walsh_step(&session, ids, 1, &err), WALSH_OK); /* and the refusal left no mark */
    walsh_session_close(&session);
    walsh_session_close(&session);
}

/* A batch in which one session is full leaves all of them as they were. */
static void a_step_is_all_or_nothing(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const int32_t ids[4] = {9, 8, 7, 6};
    struct walsh_session *sessions[] = {open_session(8), open_session(4)};
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(walsh_session_prompt(sessions[i], ids, 4, &err), WALSH_OK);
    assert_int_equal(walsh_step(sessions, ids, 2, &err), WALSH_E_CAPACITY);
    assert_int_equal(walsh_session_length(sessions[0]), 4);
    assert_int_equal(walsh_session_length(sessions[1]), 4);
    for (size_t i = 0; i < 2; i++) walsh_session_close(&sessions[i]);
}

static void aborted_prompts_leave_no_trace(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    int32_t ids[1024];
    for (int i = 0; i < 1024; i++) ids[i] = i * 7;
    struct walsh_session *session = open_session(1024);
    assert_int_equal(walsh_session_prompt(session, ids, 10, &err), WALSH_OK);
    float before[8];
    memcpy(before, walsh_session_logits(session), sizeof before);
    aborts_left = 2; /* behind the first chunk */
    assert_int_equal(walsh_session_prompt(session, ids, 1000, &err), WALSH_E_ABORTED);
    aborts_left = 0;
    assert_int_equal(walsh_session_length(session), 10);
    assert_memory_equal(walsh_session_logits(session), before, sizeof before);
    progress_calls = 0;
    assert_int_equal(walsh_session_prompt(session, ids, 1014, &err), WALSH_OK);
    assert_int_equal(walsh_session_length(session), 1024);
    assert_int_equal(progress_calls, 2);
    assert_true(progress_first == 502); /* cut at position 512, then 1024 */
    assert_true(progress_done == 1014 && progress_total == 1014);
    walsh_session_close(&session);
}

/* A shape whose cache no machine holds. */
static void a_cache_that_cannot_fit_is_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_shape shape = WALSH_SHAPE;
    shape.hidden = 4;
    shape.intermediate = 16;
    shape.layers = 256;
    shape.heads = shape.kv_heads = 512;
    shape.head_dim = 32;
    shape.vocab = 8;
    shape.max_positions = 1u << 20; /* cut to 2^17 */
    struct walsh_model *wide;
    assert_int_equal(walsh_model_synthesize(context, &shape, "bf16", 0, 1, NULL, &wide, &err), WALSH_OK);
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    struct walsh_session *session;
    options.context = (1u << 17) + 1;
    assert_int_equal(walsh_session_open(wide, &options, &session, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "context of 131073 tokens: walsh runs at most 131072");
    options.context = 1u << 17;
    /* 2^17 tokens x 256 layers x 2 x 512 x 32 x 2 bytes = 2 TiB */
    assert_int_equal(walsh_session_bytes(wide, &options), UINT64_C(1) << 41);
    assert_int_equal(walsh_session_open(wide, &options, &session, &err), WALSH_E_MEMORY);
    assert_ptr_equal(
        strstr(err.message,
               "the KV cache of a context of 131072 tokens needs 2097152.0 MiB, this machine has "),
        err.message);
    options.kv.type = WALSH_KV_CACHE_F32;
    assert_int_equal(walsh_session_bytes(wide, &options), UINT64_C(1) << 42);

    /* two caches of which each alone fits */
    const uint64_t available = walsh_memory_available();
    options.kv.type = WALSH_KV_CACHE_F16;
    options.context =
        (uint32_t)(available / (UINT64_C(1) << 24) / 4 * 3); /* 16 MiB per token: three quarters */
    if (options.context >= 512 && options.context < 1u << 17) {
        assert_int_equal(walsh_sessions_check(wide, &options, 1, &err), WALSH_OK);
        assert_int_equal(walsh_sessions_check(wide, &options, 2, &err), WALSH_E_MEMORY);
        int32_t *ids = calloc(options.context, sizeof *ids);
        struct walsh_eval_options eval = WALSH_EVAL_OPTIONS;
        struct walsh_eval_result result = {.struct_size = sizeof result};
        eval.context = options.context;
        eval.kv.type = WALSH_KV_CACHE_F16;
        eval.reference = wide;
        aborts_left = 1; /* should it begin */
        assert_int_equal(walsh_eval_ids(wide, ids, eval.context, &eval, &result, &err), WALSH_E_MEMORY);
        aborts_left = 0;
        assert_ptr_equal(strstr(err.message, "the KV caches of model and reference with a context of "),
                         err.message);
        free(ids);
    }
    assert_int_equal(walsh_sessions_check(wide, &options, SIZE_MAX, &err), WALSH_E_MEMORY);
    walsh_model_close(&wide);
}

static void synthetic_models_are_checked(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model *synthetic;
    struct walsh_shape shape;
    assert_int_equal(walsh_shape_named("llama-9", &shape, &err), WALSH_E_NOT_FOUND);
    assert_ptr_equal(strstr(err.message, "no shape is named \"llama-9\"; known: "), err.message);
    size_t names = 0;
    for (const char *name; (name = walsh_shape_name(names)); names++) {
        assert_int_equal(walsh_shape_named(name, &shape, &err), WALSH_OK);
        assert_non_null(strstr(
            "llama-1b llama-3b llama-8b llama-70b llama-2-7b smollm2-135m smollm3-3b qwen3-30b-a3b", name));
    }
    assert_true(names >= 6);
    assert_int_equal(walsh_shape_named("llama-1b", &shape, &err), WALSH_OK);
    assert_int_equal(walsh_model_synthesize(context, &shape, "q4_k", 0, 1, NULL, &synthetic, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(
        err.message,
        "format is \"q4_k\"; synthetic models know: bf16, e8p, mxfp4, nvfp4, mxfp8, fp8, int8, int4");
    assert_int_equal(walsh_model_synthesize(context, &shape, "e8p", 9, 1, NULL, &synthetic, &err),
                     WALSH_E_ARGUMENT);
    shape.kv_heads = 5;
    assert_int_equal(walsh_model_synthesize(context, &shape, "e8p", 2, 1, NULL, &synthetic, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "shape: heads 32 is not a multiple of kv_heads 5");
    shape.kv_heads = 8;
    shape.layers = 4096;
    shape.intermediate = 1u << 20;
    assert_int_equal(walsh_model_synthesize(context, &shape, "bf16", 0, 1, NULL, &synthetic, &err),
                     WALSH_E_MEMORY);
    assert_ptr_equal(strstr(err.message, "a synthetic llama-1b in bf16 needs "), err.message);

    struct walsh_shape small = WALSH_SHAPE;
    small.hidden = 80;
    small.intermediate = 200;
    small.layers = 2;
    small.heads = 3;
    small.kv_heads = 1;
    small.head_dim = 16;
    small.vocab = 50;
    small.max_positions = 64;
    small.tied_embeddings = true;
    assert_int_equal(walsh_model_synthesize(context, &small, "e8p", 3, 1, NULL, &synthetic, &err), WALSH_OK);
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(synthetic, &info);
    assert_string_equal(info.format, "e8p");
    assert_int_equal(info.activations, WALSH_ACTIVATIONS_INT8);
    assert_int_equal(info.checkpoint_bytes, 0);
    assert_false(info.has_tokenizer);
    /* padded, at 3 bits: q 48x128, k v 16x128, o 80x64, gate up 208x128, down 80x256 */
    double bits = 3.0 * (48 * 128 + 2 * 16 * 128 + 80 * 64 + 2 * 208 * 128 + 80 * 256);
    double weights = 48 * 80 + 2 * 16 * 80 + 80 * 48 + 3 * 200 * 80;
    assert_true(fabs(info.bits_per_weight - bits / weights) < 1e-9);
    struct walsh_tensor_info tensor = {.struct_size = sizeof tensor};
    assert_true(walsh_model_tensor(synthetic, 7, &tensor));
    assert_string_equal(tensor.name, "model.layers.0.mlp.gate_proj.weight");
    assert_string_equal(tensor.rotation, "in 128, out 128+64+16");
    int32_t *ids;
    size_t count;
    assert_int_equal(walsh_model_encode(synthetic, "x", 1, 0, &ids, &count, &err), WALSH_E_NOT_FOUND);
    const char *bytes;
    assert_int_equal(walsh_model_token_bytes(synthetic, 1, &bytes, &count, &err), WALSH_E_NOT_FOUND);
    walsh_model_close(&synthetic);
}

/* Mean and error of ppl from log-probabilities that the test takes itself; chunks, the dropped tail,
 * max_tokens. */
static void evaluation_follows_the_protocol(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    enum { CONTEXT = 40, COUNT = 3 * CONTEXT + 17, VOCAB = 8192 };
    int32_t ids[COUNT];
    for (int i = 0; i < COUNT; i++) ids[i] = (i * 37 + i * i) % 8000;
    float *logits = malloc(CONTEXT * VOCAB * sizeof *logits);
    assert_non_null(logits);
    double sum = 0, squares = 0;
    int n = 0;
    struct walsh_session *session = open_session(CONTEXT);
    for (int chunk = 0; chunk < 3; chunk++) {
        assert_int_equal(walsh_session_trim(session, 0, &err), WALSH_OK);
        assert_int_equal(walsh_session_prompt_logits(session, ids + chunk * CONTEXT, CONTEXT, logits, &err),
                         WALSH_OK);
        for (int i = 0; i + 1 < CONTEXT; i++, n++) {
            double total = 0;
            for (int j = 0; j < VOCAB; j++) total += exp((double)logits[i * VOCAB + j]);
            double nll = log(total) - (double)logits[i * VOCAB + ids[chunk * CONTEXT + i + 1]];
            sum += nll;
            squares += nll * nll;
        }
    }
    walsh_session_close(&session);
    free(logits);
    double mean = sum / n, deviation = sqrt((squares / n - mean * mean) * n / (n - 1));

    struct walsh_eval_options options = WALSH_EVAL_OPTIONS;
    options.context = CONTEXT;
    struct walsh_eval_result result = {.struct_size = sizeof result};
    progress_calls = 0;
    assert_int_equal(walsh_eval_ids(model, ids, COUNT, &options, &result, &err), WALSH_OK);
    assert_int_equal(result.tokens, n);
    assert_int_equal(result.context, CONTEXT);
    assert_true(fabs(result.nll - mean) < 1e-6);
    assert_true(fabs(result.ppl / exp(mean) - 1) < 1e-6);
    assert_true(fabs(result.ppl_error / (exp(mean) * deviation / sqrt(n)) - 1) < 1e-6);
    assert_false(result.has_reference);
    assert_int_equal(progress_calls, 3);
    assert_true(progress_done == 3 * CONTEXT && progress_total == 3 * CONTEXT);

    options.max_tokens = 2 * CONTEXT + 5;
    assert_int_equal(walsh_eval_ids(model, ids, COUNT, &options, &result, &err), WALSH_OK);
    assert_int_equal(result.tokens, 2 * (CONTEXT - 1));
    options.max_tokens = CONTEXT - 1;
    assert_int_equal(walsh_eval_ids(model, ids, COUNT, &options, &result, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message,
                        "the text has 39 tokens, one chunk of the context 40: use a smaller context");
    options.max_tokens = 0;
    options.context = 1;
    assert_int_equal(walsh_eval_ids(model, ids, COUNT, &options, &result, &err), WALSH_E_ARGUMENT);
    options.context = CONTEXT;
    aborts_left = 2;
    assert_int_equal(walsh_eval_ids(model, ids, COUNT, &options, &result, &err), WALSH_E_ABORTED);
    aborts_left = 0;
}

static void a_reference_measures_the_difference(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    int32_t ids[200];
    for (int i = 0; i < 200; i++) ids[i] = (i * 37 + i * i) % 8000;
    struct walsh_eval_options options = WALSH_EVAL_OPTIONS;
    options.context = 100;
    options.reference = model;
    struct walsh_eval_result result = {.struct_size = sizeof result};
    assert_int_equal(walsh_eval_ids(model, ids, 200, &options, &result, &err), WALSH_OK);
    assert_true(result.has_reference);
    assert_true(fabs(result.kl) < 1e-12);
    assert_true(result.top1_agreement == 1);

    /* the same model in bf16: nearly that in f32, and not exactly */
    struct walsh_model *exact, *rounded;
    struct walsh_model_options model_options = WALSH_MODEL_OPTIONS;
    model_options.activations = WALSH_ACTIVATIONS_F32;
    model_options.no_mmap = true;
    assert_int_equal(walsh_model_open(context, test_model(), &model_options, &exact, &err), WALSH_OK);
    model_options.activations = WALSH_ACTIVATIONS_BF16;
    assert_int_equal(walsh_model_open(context, test_model(), &model_options, &rounded, &err), WALSH_OK);
    options.reference = exact;
    assert_int_equal(walsh_eval_ids(rounded, ids, 200, &options, &result, &err), WALSH_OK);
    assert_true(result.kl > 0 && result.kl < 1e-2);
    assert_true(result.top1_agreement > 0.8);

    /* a reference of another vocabulary */
    struct walsh_shape shape = WALSH_SHAPE;
    shape.hidden = shape.intermediate = 64;
    shape.layers = shape.heads = shape.kv_heads = 1;
    shape.head_dim = 64;
    shape.vocab = 50;
    shape.max_positions = 128;
    struct walsh_model *other;
    assert_int_equal(walsh_model_synthesize(context, &shape, "bf16", 0, 1, NULL, &other, &err), WALSH_OK);
    options.reference = other;
    assert_int_equal(walsh_eval_ids(model, ids, 200, &options, &result, &err), WALSH_E_FORMAT);
    assert_string_equal(err.message, "the reference model has a vocabulary of 50, the model one of 8192");
    walsh_model_close(&other);
    walsh_model_close(&rounded);
    walsh_model_close(&exact);
}

static void text_goes_in_and_out(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    const char text[] = "The caf\xc3\xa9 was closed; he waited.";
    int32_t *ids;
    size_t count, size;
    char *back;
    assert_int_equal(walsh_model_encode(model, text, sizeof text - 1, 0, &ids, &count, &err), WALSH_OK);
    assert_true(count > 3 && count < sizeof text);
    assert_int_equal(walsh_model_decode(model, ids, count, true, &back, &size, &err), WALSH_OK);
    assert_string_equal(back, text);
    struct walsh_text_stream *stream;
    char streamed[200] = "";
    const char *piece;
    assert_int_equal(walsh_text_stream_open(model, true, &stream, &err), WALSH_OK);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(walsh_text_stream_next(stream, ids[i], &piece, &size, &err), WALSH_OK);
        strncat(streamed, piece, size);
    }
    assert_int_equal(walsh_text_stream_finish(stream, &piece, &size, &err), WALSH_OK);
    strncat(streamed, piece, size);
    assert_string_equal(streamed, text);
    walsh_text_stream_close(&stream);
    walsh_memory_free(ids);
    walsh_memory_free(back);
    /* tokens by themselves: their bytes make the text, and one of them has a part of a character */
    const char whole[] = "\xe6\x97\xa5\xe6\x9c\xac<|im_end|>", *bytes;
    char joined[100] = "";
    bool part = false;
    assert_int_equal(walsh_model_encode(model, whole, sizeof whole - 1, 0, &ids, &count, &err), WALSH_OK);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(walsh_model_token_bytes(model, ids[i], &bytes, &size, &err), WALSH_OK);
        part = part || (i + 1 < count && size % 3 != 0);
        strncat(joined, bytes, size);
    }
    assert_string_equal(joined, whole);
    assert_true(part);
    assert_int_equal(walsh_model_token_bytes(model, 8192, &bytes, &size, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_model_token_bytes(model, -1, &bytes, &size, &err), WALSH_E_ARGUMENT);
    walsh_memory_free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts_refuse_what_they_do_not_know),
        cmocka_unit_test(models_say_what_they_are),
        cmocka_unit_test(samplers_take_their_options_literally),
        cmocka_unit_test(contexts_of_sessions_have_limits),
        cmocka_unit_test(a_step_is_all_or_nothing),
        cmocka_unit_test(aborted_prompts_leave_no_trace),
        cmocka_unit_test(a_cache_that_cannot_fit_is_refused),
        cmocka_unit_test(synthetic_models_are_checked),
        cmocka_unit_test(evaluation_follows_the_protocol),
        cmocka_unit_test(a_reference_measures_the_difference),
        cmocka_unit_test(text_goes_in_and_out),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}

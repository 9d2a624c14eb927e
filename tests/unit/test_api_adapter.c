/* Adapters through walsh.h: each of a layer's linears counts, rows of a step that use different adapters are
 * what they are alone, also behind the head, forks keep theirs, larger sets after smaller ones, loading and
 * unloading beside running sessions, stacks, memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>

#include "api/api.h"
#include "base/random.h"
#include "checkpoint/safetensors.h"
#include "unit/temporary.h"

#include "unit/checkpoint_files.h"
#include "unit/share.h"

#define MODEL WALSH_SOURCE_DIR "/models/bookworm-8m"
#define LORA WALSH_SOURCE_DIR "/models/shakespeare-lora-8m"
#define VOCAB 8192
#define MOST_PROMPT 24
#define PROMPT (test_tiny() ? 3u : test_small() ? 8u : MOST_PROMPT)
#define STEPS (test_tiny() ? 2u : 4u)

static const char *const modules[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                      "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                      "mlp.down_proj"};
#define MODULES (sizeof modules / sizeof *modules)

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

/* A context and a model in it. format NULL: bookworm-8m, else a synthetic one, of experts where `sparse`. */
struct bench {
    struct walsh_context *context;
    struct walsh_model *model;
    uint32_t vocab;
};

static struct bench open_bench(unsigned threads, const char *format, bool sparse,
                               enum walsh_activation_mode activations)
{
    struct walsh_error err;
    struct bench b;
    struct walsh_context_options context = WALSH_CONTEXT_OPTIONS;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    context.threads = threads;
    options.activations = activations;
    good(walsh_context_open(&context, &b.context, &err), &err);
    struct walsh_shape shape = WALSH_SHAPE;
    shape.name = "test";
    shape.hidden = test_small() ? 64 : 320;
    shape.intermediate = test_small() ? 96 : 896;
    shape.layers = 2;
    shape.heads = test_small() ? 1 : 5;
    shape.kv_heads = 1;
    shape.head_dim = 64;
    shape.vocab = test_small() ? 300 : 1000;
    shape.max_positions = 256;
    if (sparse) {
        shape.experts = 8;
        shape.experts_per_token = 3;
        shape.expert_intermediate = test_small() ? 64 : 192;
    }
    if (format)
        good(walsh_model_synthesize(b.context, &shape, format, 3, 7, &options, &b.model, &err), &err);
    else
        good(walsh_model_open(b.context, MODEL, &options, &b.model, &err), &err);
    b.vocab = format ? shape.vocab : VOCAB;
    return b;
}

static void close_bench(struct bench *b)
{
    walsh_model_close(&b->model);
    walsh_context_close(&b->context);
}

static struct walsh_adapter *open_adapter(const struct bench *b, const char *path, const char *name)
{
    struct walsh_error err;
    struct walsh_adapter *adapter;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.name = name;
    good(walsh_adapter_open(b->model, path, &options, &adapter, &err), &err);
    return adapter;
}

static struct walsh_session *open_session(const struct bench *b, const struct walsh_adapter_use *uses,
                                          size_t count)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = 64;
    good(walsh_session_open(b->model, &options, &session, &err), &err);
    good(walsh_session_set_adapters(session, uses, count, &err), &err);
    return session;
}

static int32_t token(const struct bench *b, size_t session, size_t i)
{
    return (int32_t)((session * 7919 + i * 104729 + 11) % b->vocab);
}

static void prompt(const struct bench *b, struct walsh_session *session, size_t number)
{
    struct walsh_error err;
    int32_t ids[MOST_PROMPT];
    for (size_t i = 0; i < PROMPT; i++) ids[i] = token(b, number, i);
    good(walsh_session_prompt(session, ids, PROMPT, &err), &err);
}

/* Logits of the steps of one session that runs alone: [STEPS][vocab]. */
static float *run_alone(const struct bench *b, const struct walsh_adapter_use *uses, size_t count,
                        size_t number)
{
    struct walsh_error err;
    float *logits = malloc(STEPS * b->vocab * sizeof *logits);
    struct walsh_session *session = open_session(b, uses, count);
    prompt(b, session, number);
    for (size_t i = 0; i < STEPS; i++) {
        const int32_t id = token(b, number, PROMPT + i);
        good(walsh_step(&session, &id, 1, &err), &err);
        memcpy(logits + i * b->vocab, walsh_session_logits(session), b->vocab * sizeof *logits);
    }
    walsh_session_close(&session);
    return logits;
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    return worst;
}

static bool same_bits(const struct bench *b, const float *x, const float *y)
{
    return memcmp(x, y, STEPS * b->vocab * sizeof *x) == 0;
}

/* --- each linear counts --- */

/* A copy of the shipped adapter with B of one module zero (NULL: of none). */
static const char *copy_without(const char *name, const char *module)
{
    struct walsh_error err;
    struct walsh_safetensors st;
    const char *directory = temporary_path(name);
    char path[700], config[4096];
    mkdir(directory, 0700);
    FILE *from = fopen(LORA "/adapter_config.json", "rb");
    assert_non_null(from);
    const size_t size = fread(config, 1, sizeof config, from);
    fclose(from);
    snprintf(path, sizeof path, "%s/adapter_config.json", directory);
    FILE *to = fopen(path, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(config, 1, size, to), size);
    fclose(to);

    good(walsh_safetensors_open(LORA "/adapter_model.safetensors", true, &st, &err), &err);
    const uint8_t *data = st.file.data;
    uint8_t *copy = malloc(st.file.size);
    memcpy(copy, data, st.file.size);
    size_t zeroed = 0;
    for (size_t i = 0; module && i < st.count; i++) {
        const struct walsh_tensor *t = &st.tensors[i];
        if (!strstr(t->name, module) || !strstr(t->name, "lora_B")) continue;
        memset(copy + ((const uint8_t *)t->data - data), 0, t->bytes);
        zeroed++;
    }
    assert_int_equal(zeroed, module ? 1 : 0);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", directory);
    to = fopen(path, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(copy, 1, st.file.size, to), st.file.size);
    fclose(to);
    free(copy);
    walsh_safetensors_close(&st);
    return directory;
}

static void test_each_linear_counts(void **state)
{
    (void)state;
    struct bench b = open_bench(2, NULL, false, WALSH_ACTIVATIONS_F32);
    struct walsh_adapter *whole = open_adapter(&b, LORA, NULL),
                         *copy = open_adapter(&b, copy_without("copy", NULL), NULL);
    float *base = run_alone(&b, NULL, 0, 0),
          *full = run_alone(&b, &(struct walsh_adapter_use){whole, 1}, 1, 0);
    float *again = run_alone(&b, &(struct walsh_adapter_use){copy, 1}, 1, 0);
    assert_true(same_bits(&b, full, again));
    const double effect = largest_difference(base, full, STEPS * b.vocab);
    assert_true(effect > 0.5);
    for (unsigned m = 0; m < MODULES; m++) {
        char module[64];
        snprintf(module, sizeof module, "layers.2.%s.", modules[m]);
        struct walsh_adapter *part = open_adapter(&b, copy_without(modules[m], module), NULL);
        float *less = run_alone(&b, &(struct walsh_adapter_use){part, 1}, 1, 0);
        const double difference = largest_difference(full, less, STEPS * b.vocab);
        print_message("without %s: logits differ by %.3f, without the adapter by %.3f\n", module, difference,
                      effect);
        assert_true(difference > 1e-3);
        free(less);
        walsh_adapter_close(&part);
    }
    free(base), free(full), free(again);
    walsh_adapter_close(&whole);
    walsh_adapter_close(&copy);
    close_bench(&b);
}

/* --- batches --- */

#define SESSIONS 9
#define ADAPTERS 3

/* Which adapters session i uses: none, one, another, two in both orders, one with scales. */
static size_t choose(struct walsh_adapter *const adapters[ADAPTERS], size_t i,
                     struct walsh_adapter_use uses[2])
{
    static const struct {
        size_t count;
        unsigned which[2];
        float scale[2];
    } choices[SESSIONS] = {{0, {0}, {0}},          {1, {0}, {1}},      {1, {1}, {1}},
                           {2, {0, 1}, {1, 0.5f}}, {1, {0}, {1}},      {0, {0}, {0}},
                           {2, {1, 0}, {0.5f, 1}}, {1, {0}, {-0.25f}}, {1, {2}, {1}}};
    for (size_t n = 0; n < choices[i].count; n++)
        uses[n] = (struct walsh_adapter_use){adapters[choices[i].which[n]], choices[i].scale[n]};
    return choices[i].count;
}

/* Sessions order[0], order[1], ... in one batch; logits [SESSIONS][STEPS][vocab] by session. */
static void run_together(const struct bench *b, struct walsh_adapter *const adapters[ADAPTERS],
                         const size_t order[SESSIONS], float *logits)
{
    struct walsh_error err;
    struct walsh_session *sessions[SESSIONS];
    struct walsh_adapter_use uses[2];
    for (size_t i = 0; i < SESSIONS; i++) {
        sessions[i] = open_session(b, uses, choose(adapters, order[i], uses));
        prompt(b, sessions[i], order[i]);
    }
    for (size_t s = 0; s < STEPS; s++) {
        int32_t ids[SESSIONS];
        for (size_t i = 0; i < SESSIONS; i++) ids[i] = token(b, order[i], PROMPT + s);
        good(walsh_step(sessions, ids, SESSIONS, &err), &err);
        for (size_t i = 0; i < SESSIONS; i++)
            memcpy(logits + (order[i] * STEPS + s) * b->vocab, walsh_session_logits(sessions[i]),
                   b->vocab * sizeof *logits);
    }
    for (size_t i = 0; i < SESSIONS; i++) walsh_session_close(&sessions[i]);
}

static void check_batches(const char *format, bool sparse, enum walsh_activation_mode activations)
{
    static const size_t orders[2][SESSIONS] = {{0, 1, 2, 3, 4, 5, 6, 7, 8}, {4, 8, 1, 0, 7, 3, 6, 2, 5}};
    float *expected[SESSIONS] = {NULL};
    for (unsigned threads = 1; threads <= 3; threads += test_small() ? 2 : 1) {
        struct bench b = open_bench(threads, format, sparse, activations);
        struct walsh_error err;
        struct walsh_adapter *adapters[ADAPTERS];
        const size_t row = STEPS * b.vocab;
        for (uint32_t i = 0; i < ADAPTERS; i++) {
            char name[8] = {(char)('a' + i), 0};
            struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
            options.name = name;
            good(walsh_adapter_random(b.model, i == 2 ? 17 : 16, i + 1, &options, &adapters[i], &err), &err);
        }
        for (size_t i = 0; i < SESSIONS; i++) { /* alone, the same with any number of threads */
            struct walsh_adapter_use uses[2];
            float *alone = run_alone(&b, uses, choose(adapters, i, uses), i);
            if (!expected[i]) expected[i] = alone;
            assert_true(same_bits(&b, expected[i], alone));
            if (expected[i] != alone) free(alone);
        }
        float *logits = malloc(SESSIONS * row * sizeof *logits);
        for (unsigned o = 0; o < 2; o++) {
            run_together(&b, adapters, orders[o], logits);
            for (size_t i = 0; i < SESSIONS; i++) {
                if (same_bits(&b, expected[i], logits + i * row)) continue;
                fail_msg("%s%s, %u threads, order %u: session %zu differs by %g from its run alone", format,
                         sparse ? " with experts" : "", threads, o, i,
                         largest_difference(expected[i], logits + i * row, row));
            }
        }
        free(logits);
        for (unsigned i = 0; i < ADAPTERS; i++) walsh_adapter_close(&adapters[i]);
        close_bench(&b);
    }
    for (size_t i = 0; i < SESSIONS; i++) free(expected[i]);
}

static void test_batches(void **state)
{
    (void)state;
    check_batches("bf16", false, WALSH_ACTIVATIONS_AUTO);
    check_batches("e8p", false, WALSH_ACTIVATIONS_AUTO);
    check_batches("e8p", false, WALSH_ACTIVATIONS_F32);
    check_batches("e8p", true, WALSH_ACTIVATIONS_AUTO);
    check_batches("bf16", true, WALSH_ACTIVATIONS_F32);
}

/* What a session says depends on its adapter, not on its place: two sessions of the same tokens exchange
 * their adapters and so their logits. */
static void test_exchange(void **state)
{
    (void)state;
    struct bench b = open_bench(2, NULL, false, WALSH_ACTIVATIONS_AUTO);
    struct walsh_error err;
    struct walsh_adapter *adapter = open_adapter(&b, LORA, NULL);
    float *first[2];
    for (unsigned turn = 0; turn < 2; turn++) {
        const struct walsh_adapter_use use = {adapter, 1};
        struct walsh_session *sessions[2];
        for (unsigned i = 0; i < 2; i++) {
            sessions[i] = open_session(&b, &use, i == turn);
            prompt(&b, sessions[i], 3);
        }
        const int32_t ids[2] = {token(&b, 3, PROMPT), token(&b, 3, PROMPT)};
        good(walsh_step(sessions, ids, 2, &err), &err);
        for (unsigned i = 0; i < 2; i++) {
            float *logits = malloc(b.vocab * sizeof *logits);
            memcpy(logits, walsh_session_logits(sessions[i]), b.vocab * sizeof *logits);
            if (turn == 0) {
                first[i] = logits;
            } else {
                assert_memory_equal(logits, first[1 - i], b.vocab * sizeof *logits);
                free(logits);
            }
            walsh_session_close(&sessions[i]);
        }
    }
    assert_true(largest_difference(first[0], first[1], b.vocab) > 0.5);
    free(first[0]), free(first[1]);
    walsh_adapter_close(&adapter);
    close_bench(&b);
}

/* --- forks --- */

/* A fork goes on as its original does, adapters and scale included, and keeps them when the original goes. */
static void test_fork(void **state)
{
    (void)state;
    struct bench b = open_bench(2, NULL, false, WALSH_ACTIVATIONS_AUTO);
    struct walsh_error err;
    struct walsh_adapter *adapter = open_adapter(&b, LORA, NULL);
    const struct walsh_adapter_use use = {adapter, 0.5f};
    float *expected = run_alone(&b, &use, 1, 4), *base = run_alone(&b, NULL, 0, 4);
    assert_true(largest_difference(expected, base, STEPS * b.vocab) > 0.2);
    struct walsh_session *session = open_session(&b, &use, 1), *fork;
    prompt(&b, session, 4);
    good(walsh_session_fork(session, &fork, &err), &err);
    assert_int_equal(walsh_sessions_adapter_bytes(&fork, 1), walsh_sessions_adapter_bytes(&session, 1));
    for (size_t s = 0; s < STEPS; s++) {
        const int32_t id = token(&b, 4, PROMPT + s);
        if (s < STEPS / 2) {
            good(walsh_step(&session, &id, 1, &err), &err);
            assert_memory_equal(walsh_session_logits(session), expected + s * b.vocab,
                                b.vocab * sizeof(float));
        } else if (session) {
            walsh_session_close(&session);
            walsh_adapter_close(&adapter);
        }
        good(walsh_step(&fork, &id, 1, &err), &err);
        assert_memory_equal(walsh_session_logits(fork), expected + s * b.vocab, b.vocab * sizeof(float));
    }
    free(expected), free(base);
    walsh_session_close(&fork);
    close_bench(&b);
}

/* --- models of one small layer --- */

static struct bench open_tiny(uint32_t vocab, uint32_t positions)
{
    struct walsh_error err;
    struct bench b = {.vocab = vocab};
    struct walsh_context_options context = WALSH_CONTEXT_OPTIONS;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    context.threads = 2;
    good(walsh_context_open(&context, &b.context, &err), &err);
    struct walsh_shape shape = WALSH_SHAPE;
    shape.name = "tiny";
    shape.hidden = 64;
    shape.intermediate = 96;
    shape.layers = 1;
    shape.heads = 1;
    shape.kv_heads = 1;
    shape.head_dim = 64;
    shape.vocab = vocab;
    shape.max_positions = positions;
    shape.tied_embeddings = false;
    good(walsh_model_synthesize(b.context, &shape, "bf16", 0, 7, &options, &b.model, &err), &err);
    return b;
}

static struct walsh_session *open_tiny_session(const struct bench *b, uint32_t context,
                                               const struct walsh_adapter_use *uses, size_t count)
{
    struct walsh_error err;
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = context;
    good(walsh_session_open(b->model, &options, &session, &err), &err);
    good(walsh_session_set_adapters(session, uses, count, &err), &err);
    return session;
}

static struct walsh_adapter *open_random(const struct bench *b, const char *name, uint32_t rank,
                                         uint64_t seed)
{
    struct walsh_error err;
    struct walsh_adapter *adapter;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.name = name;
    good(walsh_adapter_random(b->model, rank, seed, &options, &adapter, &err), &err);
    return adapter;
}

/* --- the head --- */

#define WIDE_VOCAB 131072u
#define WIDE_SESSIONS 45
#define HEAD_RANK 3

/* An adapter of the head alone, with random weights. */
static struct walsh_adapter *open_head_adapter(const struct bench *b, const char *name, uint64_t seed)
{
    const char *directory = temporary_path(name);
    char path[700];
    const size_t a_size = HEAD_RANK * 64, b_size = (size_t)WIDE_VOCAB * HEAD_RANK;
    float *values = malloc((a_size + b_size) * sizeof *values);
    assert_non_null(values);
    struct walsh_random random;
    walsh_random_seed(&random, seed);
    for (size_t i = 0; i < a_size + b_size; i++) values[i] = (float)(walsh_random_uniform(&random) - 0.5);
    mkdir(directory, 0700);
    snprintf(path, sizeof path, "%s/adapter_config.json", directory);
    put_text(path, "{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 6, "
                   "\"target_modules\": [\"lm_head\"]}");
    const struct planned tensors[2] = {
        {"base_model.model.lm_head.lora_A.weight", WALSH_F32, 2, {HEAD_RANK, 64}, values},
        {"base_model.model.lm_head.lora_B.weight", WALSH_F32, 2, {WIDE_VOCAB, HEAD_RANK}, values + a_size}};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", directory);
    put_tensors(path, tensors, 2);
    free(values);
    return open_adapter(b, directory, name);
}

/* The set of session i: none, one of two adapters of the head, one of the layer, and stacks of them. */
static size_t choose_wide(struct walsh_adapter *const adapters[3], size_t i, struct walsh_adapter_use uses[3])
{
    static const unsigned char sets[7][3] = {{0, 1, 0}, {0, 0, 0}, {1, 0, 0}, {1, 1, 0},
                                             {0, 0, 1}, {0, 1, 1}, {1, 1, 1}};
    size_t n = 0;
    for (unsigned a = 0; a < 3; a++)
        if (sets[i % 7][a]) uses[n++] = (struct walsh_adapter_use){adapters[a], a == 1 ? 0.5f : 1};
    return n;
}

/* A step of more rows than the head takes at once, with updates of the head: each piece of the rows has its
 * part of the sets. */
static void test_head_in_pieces(void **state)
{
    (void)state;
    struct bench b = open_tiny(WIDE_VOCAB, 16);
    struct walsh_error err;
    const size_t bytes = b.vocab * sizeof(float), rows = b.model->runner->logit_rows;
    assert_in_range(rows, 2, WIDE_SESSIONS - 8); /* the sets of the rest start inside and end behind it */
    struct walsh_adapter *adapters[3] = {open_head_adapter(&b, "head", 11),
                                         open_head_adapter(&b, "other", 12), open_random(&b, "layer", 9, 13)};
    struct walsh_session *sessions[WIDE_SESSIONS];
    float *expected[WIDE_SESSIONS];
    int32_t ids[WIDE_SESSIONS];
    for (size_t i = 0; i < WIDE_SESSIONS; i++) {
        struct walsh_adapter_use uses[3];
        const size_t count = choose_wide(adapters, i, uses);
        ids[i] = token(&b, i / 7, 0); /* seven sessions of the same token, each with another set */
        sessions[i] = open_tiny_session(&b, 4, uses, count);
        struct walsh_session *alone = open_tiny_session(&b, 4, uses, count);
        good(walsh_step(&alone, &ids[i], 1, &err), &err);
        expected[i] = malloc(bytes);
        assert_non_null(expected[i]);
        memcpy(expected[i], walsh_session_logits(alone), bytes);
        walsh_session_close(&alone);
    }
    for (size_t i = 0; i < 7; i++)
        for (size_t j = 0; j < i; j++)
            assert_true(largest_difference(expected[i], expected[j], b.vocab) > 1e-2);
    good(walsh_step(sessions, ids, WIDE_SESSIONS, &err), &err);
    for (size_t i = 0; i < WIDE_SESSIONS; i++) {
        if (memcmp(walsh_session_logits(sessions[i]), expected[i], bytes) != 0)
            fail_msg("session %zu differs by %g from its run alone", i,
                     largest_difference(walsh_session_logits(sessions[i]), expected[i], b.vocab));
        walsh_session_close(&sessions[i]);
        free(expected[i]);
    }
    for (unsigned i = 0; i < 3; i++) walsh_adapter_close(&adapters[i]);
    close_bench(&b);
}

/* --- larger sets after smaller ones --- */

#define CHUNK 512
#define MANY                                                                                                 \
    300 /* sets of two adapters, each for a row of its own: more updates than a chunk of one adapter */

/* Logits of a chunk's prompt with two adapters, then of a step of MANY rows that each have another set:
 * [1 + MANY][vocab]. `small_first`: in a model that has run a chunk with a small adapter before. */
static float *run_large(bool small_first)
{
    struct bench b = open_tiny(64, CHUNK);
    struct walsh_error err;
    struct walsh_adapter *small = open_random(&b, "small", 1, 1),
                         *large[2] = {open_random(&b, "a", 100, 2), open_random(&b, "b", 256, 3)};
    int32_t ids[CHUNK];
    for (size_t i = 0; i < CHUNK; i++) ids[i] = token(&b, 2, i);
    float *logits = malloc((1 + MANY) * b.vocab * sizeof *logits);
    assert_non_null(logits);
    for (int turn = !small_first; turn < 2; turn++) {
        const struct walsh_adapter_use one = {small, 1}, two[2] = {{large[0], 1}, {large[1], 0.5f}};
        struct walsh_session *session = open_tiny_session(&b, CHUNK, turn ? two : &one, turn ? 2 : 1);
        good(walsh_session_prompt(session, ids, CHUNK, &err), &err);
        memcpy(logits, walsh_session_logits(session), b.vocab * sizeof *logits);
        walsh_session_close(&session);
    }
    struct walsh_session *sessions[MANY];
    for (size_t i = 0; i < MANY; i++) {
        const struct walsh_adapter_use uses[2] = {{large[0], 1 + (float)i / MANY}, {large[1], 1}};
        sessions[i] = open_tiny_session(&b, 4, uses, 2);
    }
    good(walsh_step(sessions, ids, MANY, &err), &err);
    for (size_t i = 0; i < MANY; i++) {
        memcpy(logits + (1 + i) * b.vocab, walsh_session_logits(sessions[i]), b.vocab * sizeof *logits);
        walsh_session_close(&sessions[i]);
    }
    walsh_adapter_close(&small);
    for (unsigned i = 0; i < 2; i++) walsh_adapter_close(&large[i]);
    close_bench(&b);
    return logits;
}

/* The workspace grows with the sets; where it did not, the address sanitizer would see it at the latest. */
static void test_larger_set_later(void **state)
{
    (void)state;
    float *fresh = run_large(false), *after = run_large(true);
    assert_memory_equal(fresh, after, (1 + MANY) * 64 * sizeof *fresh);
    free(fresh), free(after);
}

/* --- prefill and decode --- */

static void test_prefill_and_decode_agree(void **state)
{
    (void)state;
    struct bench b = open_bench(2, NULL, false, WALSH_ACTIVATIONS_F32);
    struct walsh_error err;
    struct walsh_adapter *adapter = open_adapter(&b, LORA, NULL);
    const struct walsh_adapter_use use = {adapter, 1};
    struct walsh_session *decode = open_session(&b, &use, 1), *prefill = open_session(&b, &use, 1);
    float *logits = malloc(PROMPT * b.vocab * sizeof *logits);
    int32_t ids[MOST_PROMPT];
    for (size_t i = 0; i < PROMPT; i++) ids[i] = token(&b, 1, i);
    good(walsh_session_prompt_logits(prefill, ids, PROMPT, logits, &err), &err);
    for (size_t i = 0; i < PROMPT; i++) {
        good(walsh_step(&decode, &ids[i], 1, &err), &err);
        const double difference =
            largest_difference(walsh_session_logits(decode), logits + i * b.vocab, b.vocab);
        if (!(difference < 1e-3)) fail_msg("token %zu: prefill and decode differ by %g", i, difference);
    }
    free(logits);
    walsh_session_close(&decode);
    walsh_session_close(&prefill);
    walsh_adapter_close(&adapter);
    close_bench(&b);
}

/* --- stacks --- */

static void test_stacks(void **state)
{
    (void)state;
    struct bench b = open_bench(1, NULL, false, WALSH_ACTIVATIONS_F32);
    struct walsh_adapter *a = open_adapter(&b, LORA, "a"), *c = open_adapter(&b, LORA, "c");
    float *base = run_alone(&b, NULL, 0, 0), *full = run_alone(&b, &(struct walsh_adapter_use){a, 1}, 1, 0);
    float *none = run_alone(&b, &(struct walsh_adapter_use){a, 0}, 1, 0);
    float *halves = run_alone(&b, (struct walsh_adapter_use[]){{a, 0.25f}, {c, 0.75f}}, 2, 0);
    float *undone = run_alone(&b, (struct walsh_adapter_use[]){{a, 1}, {c, -1}}, 2, 0);
    float *half = run_alone(&b, &(struct walsh_adapter_use){a, 0.5f}, 1, 0);
    const size_t n = STEPS * b.vocab;
    assert_true(same_bits(&b, base, none));
    assert_true(largest_difference(full, halves, n) < 1e-3);
    assert_true(largest_difference(base, undone, n) < 1e-3);
    assert_true(largest_difference(half, base, n) > 0.2 && largest_difference(half, full, n) > 0.2);
    free(base), free(full), free(none), free(halves), free(undone), free(half);
    walsh_adapter_close(&a);
    walsh_adapter_close(&c);
    close_bench(&b);
}

/* --- loading and unloading beside a session that runs --- */

static void test_unload(void **state)
{
    (void)state;
    struct bench b = open_bench(2, NULL, false, WALSH_ACTIVATIONS_AUTO);
    struct walsh_error err = {0};
    struct walsh_adapter *adapter = open_adapter(&b, LORA, NULL), *other = (void *)&b;
    const struct walsh_adapter_use use = {adapter, 1};
    float *expected = run_alone(&b, &use, 1, 0), *base = run_alone(&b, NULL, 0, 0);
    struct walsh_session *session = open_session(&b, &use, 1), *plain = open_session(&b, NULL, 0);
    prompt(&b, session, 0);
    prompt(&b, plain, 0);
    walsh_adapter_close(&adapter); /* the session keeps it */
    assert_null(adapter);
    for (size_t s = 0; s < STEPS; s++) {
        /* loads that fail, one that succeeds, and one that is taken away again */
        struct walsh_adapter_info info = {.struct_size = sizeof info};
        assert_int_not_equal(walsh_adapter_open(b.model, temporary_path("absent"), NULL, &other, &err),
                             WALSH_OK);
        assert_null(other);
        assert_int_not_equal(walsh_adapter_random(b.model, 257, 1, NULL, &other, &err), WALSH_OK);
        assert_string_equal(err.message, "a random adapter of rank 257, expected 1 to 256");
        assert_int_equal(walsh_adapter_random(b.model, 64, s, NULL, &other, &err), WALSH_OK);
        walsh_adapter_get_info(other, &info);
        assert_string_equal(info.name, "random");
        assert_int_equal(info.linears, 35);
        assert_int_equal(info.least_rank, 64);
        const struct walsh_adapter_use twice[2] = {{other, 1}, {other, 1}}, wrong = {other, INFINITY};
        assert_int_equal(walsh_session_set_adapters(session, twice, 2, &err), WALSH_E_EXISTS);
        assert_string_equal(err.message, "adapter random is given twice");
        assert_int_equal(walsh_session_set_adapters(session, &wrong, 1, &err), WALSH_E_ARGUMENT);
        struct walsh_session *third = open_session(&b, &(struct walsh_adapter_use){other, 1}, 1);
        prompt(&b, third, 5);
        walsh_adapter_close(&other);

        const int32_t id = token(&b, 0, PROMPT + s), ids[3] = {token(&b, 5, PROMPT), id, id};
        struct walsh_session *const sessions[3] = {third, session, plain};
        good(walsh_step(sessions, ids, 3, &err), &err);
        assert_memory_equal(walsh_session_logits(session), expected + s * b.vocab, b.vocab * sizeof(float));
        assert_memory_equal(walsh_session_logits(plain), base + s * b.vocab, b.vocab * sizeof(float));
        walsh_session_close(&third);
    }
    /* without its adapter the session is a plain one */
    good(walsh_session_set_adapters(session, NULL, 0, &err), &err);
    good(walsh_session_trim(session, 0, &err), &err);
    prompt(&b, session, 0);
    const int32_t id = token(&b, 0, PROMPT);
    good(walsh_step(&session, &id, 1, &err), &err);
    assert_memory_equal(walsh_session_logits(session), base, b.vocab * sizeof(float));
    free(expected), free(base);
    walsh_session_close(&session);
    walsh_session_close(&plain);
    close_bench(&b);
}

static void test_memory(void **state)
{
    (void)state;
    struct bench b = open_bench(1, NULL, false, WALSH_ACTIVATIONS_AUTO);
    struct walsh_adapter *a = open_adapter(&b, LORA, "a"), *c = open_adapter(&b, LORA, "c");
    struct walsh_adapter_info info = {.struct_size = sizeof info};
    walsh_adapter_get_info(a, &info);
    assert_string_equal(info.base_model, "bookworm-8m");
    assert_string_equal(info.format, "bf16");
    /* 5 layers of seven linears, r 16; bf16; no dimension needs padding */
    assert_int_equal(info.parameters, 5 * 16 * (2 * (320 + 320) + 2 * (320 + 64) + 3 * (320 + 896)));
    assert_int_equal(info.memory_bytes, 2 * info.parameters);
    const struct walsh_adapter_use both[2] = {{a, 1}, {c, 1}};
    struct walsh_session *sessions[4] = {open_session(&b, both, 1), open_session(&b, both, 2),
                                         open_session(&b, NULL, 0), open_session(&b, both, 1)};
    assert_int_equal(walsh_sessions_adapter_bytes(sessions, 1), info.memory_bytes);
    assert_int_equal(walsh_sessions_adapter_bytes(sessions, 4), 2 * info.memory_bytes);
    assert_int_equal(walsh_sessions_adapter_bytes(sessions + 2, 2), info.memory_bytes);
    assert_int_equal(walsh_sessions_adapter_bytes(sessions + 2, 1), 0);
    for (unsigned i = 0; i < 4; i++) walsh_session_close(&sessions[i]);
    walsh_adapter_close(&a);
    walsh_adapter_close(&c);
    close_bench(&b);
}

/* Adapters of another model: of other shapes, and of the same shapes but another object. */
static void test_another_model(void **state)
{
    (void)state;
    struct bench b = open_bench(1, NULL, false, WALSH_ACTIVATIONS_AUTO),
                 other = open_bench(1, "bf16", false, 0);
    struct walsh_error err = {0};
    struct walsh_adapter *adapter;
    assert_int_equal(walsh_adapter_open(other.model, LORA, NULL, &adapter, &err), WALSH_E_FORMAT);
    if (test_small())
        assert_non_null(strstr(err.message, "(the adapter was made for bookworm-8m)"));
    else
        assert_string_equal(
            err.message,
            LORA "/adapter_model.safetensors: tensor "
                 "base_model.model.model.layers.2.mlp.down_proj.lora_A.weight: the model has no linear "
                 "model.layers.2.mlp.down_proj (the adapter was made for bookworm-8m)");
    assert_null(adapter);
    good(walsh_adapter_random(other.model, 4, 1, NULL, &adapter, &err), &err);
    struct walsh_session *session = open_session(&b, NULL, 0);
    assert_int_equal(walsh_session_set_adapters(session, &(struct walsh_adapter_use){adapter, 1}, 1, &err),
                     WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "adapter random belongs to another model than the session");
    const struct walsh_adapter_use missing = {NULL, 1};
    assert_int_equal(walsh_session_set_adapters(session, &missing, 1, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "adapter 0 of a list is NULL");
    walsh_session_close(&session);
    walsh_adapter_close(&adapter);
    close_bench(&b);
    close_bench(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_linear_counts),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_head_in_pieces),
        cmocka_unit_test(test_larger_set_later),
        cmocka_unit_test(test_prefill_and_decode_agree),
        cmocka_unit_test(test_stacks),
        cmocka_unit_test(test_unload),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_another_model),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

/* Reference outputs: a model of known weights must give the logits, the log-probabilities and the greedy text
 * that an independent implementation gave for it, and the perplexities of known texts.
 *
 *   golden MODEL OUTPUTS [TEXT TOKENS PPL]   one model; PPL of the first TOKENS tokens of TEXT
 *   golden --proof MODELS [OUTPUTS TEXTS]    every model of the table below in the directory MODELS; the two
 * others are MODELS/../golden and MODELS/../text where not given All with f32 activations and an f32 cache.
 * Exit 0: all agree; 1: something differs; 2: usage, or nothing was there. An absent model is reported and
 * counts as not passed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walsh.h"

#include "checkpoint/safetensors.h"

#define LOGIT_TOLERANCE 2e-3
#define LOGPROB_TOLERANCE 1e-3
#define PPL_TOLERANCE 2e-4 /* relative */
#define PROMPT 16          /* tokens before the greedy continuation */

static const char *const proof_texts[] = {"valid", "test", "shakespeare-valid", "wikitext2-test"};
#define PROOF_TEXTS (sizeof proof_texts / sizeof *proof_texts)
static const struct {
    const char *model;
    double ppl[PROOF_TEXTS]; /* fp32, Hugging Face transformers, context 1024 */
} proof_models[] = {
    {"bookworm-8m", {23.5192, 31.2126, 33.9043, 156.8461}},
    {"bookworm-26m", {20.6217, 28.5431, 33.7625, 170.0779}},
    {"bookworm-moe-12m", {28.5137, 36.5796, 40.5199, 188.0791}},
};

static unsigned failures;

static void expect(bool good, const char *what, double found, double bound)
{
    printf("  %-4s %s %.3g (at most %.3g)\n", good ? "ok" : "FAIL", what, found, bound);
    if (!good) failures++;
}

/* Every step of this program can stop it: the message, then exit 1. */
static void need(enum walsh_status status, const struct walsh_error *err)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "golden: %s\n", err->message);
    exit(1);
}

static const void *tensor(const struct walsh_safetensors *st, const char *name, enum walsh_dtype dtype,
                          size_t *elements)
{
    const struct walsh_tensor *t = walsh_safetensors_find(st, name);
    if (!t || t->dtype != dtype) {
        fprintf(stderr, "golden: %s: no tensor %s of the expected type\n", st->file.path, name);
        exit(1);
    }
    *elements = walsh_tensor_elements(t);
    return t->data;
}

static struct walsh_session *open_session(const struct walsh_model *model)
{
    struct walsh_error err;
    struct walsh_session *session;
    const struct walsh_session_options options = {.struct_size = sizeof options, .context = 128};
    need(walsh_session_open(model, &options, &session, &err), &err);
    return session;
}

static double log_probability(const float *logits, size_t vocab, int32_t id)
{
    double best = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++) best = fmax(best, (double)logits[i]);
    for (size_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - best);
    return (double)logits[id] - best - log(sum);
}

static void check_logits(const struct walsh_model *model, const struct walsh_safetensors *st, size_t vocab)
{
    struct walsh_error err;
    size_t n, positions, count;
    const int32_t *ids = tensor(st, "input_ids", WALSH_I32, &n);
    const int32_t *position = tensor(st, "positions", WALSH_I32, &positions);
    const float *expected = tensor(st, "logits", WALSH_F32, &count);
    const float *log_probabilities = tensor(st, "target_logprobs", WALSH_F32, &count);
    struct walsh_session *session = open_session(model);
    float *logits = malloc(n * vocab * sizeof *logits);
    if (!logits) exit(1);
    need(walsh_session_prompt_logits(session, ids, n, logits, &err), &err);
    double worst = 0, worst_target = 0;
    for (size_t i = 0; i < positions; i++)
        for (size_t j = 0; j < vocab; j++)
            worst = fmax(worst, fabs((double)logits[(size_t)position[i] * vocab + j] -
                                     (double)expected[i * vocab + j]));
    for (size_t i = 0; i + 1 < n; i++)
        worst_target = fmax(worst_target, fabs(log_probability(logits + i * vocab, vocab, ids[i + 1]) -
                                               (double)log_probabilities[i]));
    expect(worst <= LOGIT_TOLERANCE, "logits, largest difference", worst, LOGIT_TOLERANCE);
    expect(worst_target <= LOGPROB_TOLERANCE, "target log-probabilities, largest difference", worst_target,
           LOGPROB_TOLERANCE);
    free(logits);
    walsh_session_close(&session);
}

/* The prompt by prefill, then one decode step per token. */
static void check_greedy(const struct walsh_model *model, const struct walsh_safetensors *st, size_t vocab)
{
    struct walsh_error err;
    size_t n, wrong = 0;
    const int32_t *ids = tensor(st, "greedy_ids", WALSH_I32, &n);
    struct walsh_session *session = open_session(model);
    struct walsh_sampler *sampler;
    const struct walsh_sampler_options greedy = {.struct_size = sizeof greedy};
    need(walsh_sampler_open(&greedy, (uint32_t)vocab, &sampler, &err), &err);
    need(walsh_session_prompt(session, ids, PROMPT, &err), &err);
    for (size_t i = PROMPT; i < n; i++) {
        int32_t id;
        need(walsh_sampler_draw(sampler, walsh_session_logits(session), &id, &err), &err);
        if (id != ids[i]) wrong++;
        need(walsh_step(&session, &ids[i], 1, &err), &err);
    }
    expect(wrong == 0, "greedy tokens that differ", (double)wrong, 0);
    walsh_sampler_close(&sampler);
    walsh_session_close(&session);
}

static char *read_file(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = NULL;
    size_t room = 0;
    *size = 0;
    for (;;) {
        if (*size == room) {
            room = room ? 2 * room : 1 << 20;
            char *more = realloc(text, room);
            if (!more) exit(1);
            text = more;
        }
        size_t got = fread(text + *size, 1, room - *size, f);
        if (got == 0) break;
        *size += got;
    }
    fclose(f);
    return text;
}

/* false where the text is absent. */
static bool check_ppl(const struct walsh_model *model, const char *path, uint64_t tokens, double expected)
{
    struct walsh_error err;
    size_t size;
    char *text = read_file(path, &size);
    if (!text) {
        printf("  FAIL %s is absent\n", path);
        failures++;
        return false;
    }
    struct walsh_eval_options options = WALSH_EVAL_OPTIONS;
    options.context = 1024;
    options.max_tokens = tokens;
    struct walsh_eval_result result = {.struct_size = sizeof result};
    need(walsh_eval_text(model, text, size, &options, &result, &err), &err);
    free(text);
    printf("  %s: ppl %.4f +- %.2f over %llu tokens in %.1f s, expected %.4f\n", path, result.ppl,
           result.ppl_error, (unsigned long long)result.tokens, result.seconds, expected);
    double difference = fabs(result.ppl / expected - 1);
    expect(difference <= PPL_TOLERANCE, "ppl, relative difference", difference, PPL_TOLERANCE);
    return true;
}

static struct walsh_model *open_model(struct walsh_context *context, const char *path)
{
    struct walsh_error err;
    struct walsh_model *model;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.activations = WALSH_ACTIVATIONS_F32;
    need(walsh_model_open(context, path, &options, &model, &err), &err);
    return model;
}

static void check_outputs(const struct walsh_model *model, const char *path)
{
    struct walsh_error err;
    struct walsh_safetensors outputs;
    need(walsh_safetensors_open(path, true, &outputs, &err), &err);
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(model, &info);
    check_logits(model, &outputs, info.vocab);
    check_greedy(model, &outputs, info.vocab);
    walsh_safetensors_close(&outputs);
}

static void prove(struct walsh_context *context, const char *models, const char *outputs, const char *texts)
{
    char path[4096];
    for (size_t i = 0; i < sizeof proof_models / sizeof *proof_models; i++) {
        const char *name = proof_models[i].model;
        printf("%s\n", name);
        snprintf(path, sizeof path, "%s/%s/config.json", models, name);
        FILE *there = fopen(path, "rb");
        if (!there) {
            printf("  FAIL %s/%s is absent\n", models, name);
            failures++;
            continue;
        }
        fclose(there);
        snprintf(path, sizeof path, "%s/%s", models, name);
        struct walsh_model *model = open_model(context, path);
        snprintf(path, sizeof path, "%.2048s/%.64s.safetensors", outputs, name);
        check_outputs(model, path);
        for (size_t t = 0; t < PROOF_TEXTS; t++) {
            snprintf(path, sizeof path, "%.2048s/%.64s.txt", texts, proof_texts[t]);
            check_ppl(model, path, 0, proof_models[i].ppl[t]);
            fflush(stdout);
        }
        walsh_model_close(&model);
    }
}

int main(int argc, char **argv)
{
    bool proof = argc >= 3 && strcmp(argv[1], "--proof") == 0;
    if (!(proof ? argc == 3 || argc == 5 : argc == 3 || argc == 6)) {
        fprintf(stderr,
                "usage: golden MODEL OUTPUTS [TEXT TOKENS PPL] | golden --proof MODELS [OUTPUTS TEXTS]\n");
        return 2;
    }
    struct walsh_error err;
    struct walsh_context *context;
    need(walsh_context_open(NULL, &context, &err), &err);
    if (proof) {
        char outputs[2048], texts[2048];
        snprintf(outputs, sizeof outputs, "%s/../golden", argv[2]);
        snprintf(texts, sizeof texts, "%s/../text", argv[2]);
        prove(context, argv[2], argc == 5 ? argv[3] : outputs, argc == 5 ? argv[4] : texts);
    } else {
        struct walsh_model *model = open_model(context, argv[1]);
        printf("%s\n", argv[1]);
        check_outputs(model, argv[2]);
        if (argc == 6) check_ppl(model, argv[3], strtoull(argv[4], NULL, 10), strtod(argv[5], NULL));
        walsh_model_close(&model);
    }
    walsh_context_close(&context);
    printf("%s\n", failures ? "golden: FAILED" : "golden: all agree");
    return failures ? 1 : 0;
}

/* Reference outputs: a model of known weights must give the logits, the log-probabilities and the greedy text
 * that an independent implementation gave for it, and the perplexities of known texts.
 *
 *   golden MODEL OUTPUTS [TEXT TOKENS PPL]   one model; PPL of the first TOKENS tokens of TEXT, in a context of 1024,
 *                                            or of half of them where they are fewer than two of these
 *   golden --adapter DIR MODEL OUTPUTS [TEXT TOKENS PPL]   the model with an adapter: the outputs adapter_*
 *   golden --proof MODELS [OUTPUTS TEXTS]    every model of the table below in the directory MODELS; the two
 * others are MODELS/../golden and MODELS/../text where not given
 *   --cpu LEVEL, --device NAME before all that: an instruction set, or where to compute
 * All with f32 activations and an f32 cache. Exit 0: all agree; 1: something differs; 2: usage, or nothing
 * was there. An absent model is reported and counts as not passed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walsh.h"

#include "checkpoint/safetensors.h"

#define LOGIT_TOLERANCE 2e-3
#define LOGPROB_TOLERANCE 1e-3
#define PPL_TOLERANCE 2e-4 /* relative */
#define ADAPTER_PPL_TOLERANCE 5e-4
#define PROMPT 16 /* tokens before the greedy continuation */

static const char *const proof_texts[] = {"valid", "test", "shakespeare-valid", "wikitext2-test"};
#define PROOF_TEXTS (sizeof proof_texts / sizeof *proof_texts)
static const struct {
    const char *model;
    double ppl[PROOF_TEXTS]; /* fp32, Hugging Face transformers, context 1024 */
    const char *adapter;
    double adapter_ppl[PROOF_TEXTS];
} proof_models[] = {
    {"bookworm-8m",
     {23.5192, 31.2126, 33.9043, 156.8461},
     "shakespeare-lora-8m",
     {24.4782, 31.8573, 26.9965, 164.8522}},
    {"bookworm-26m",
     {20.6217, 28.5431, 33.7625, 170.0779},
     "shakespeare-lora-26m",
     {21.2492, 28.4290, 24.7164, 161.4975}},
    {"bookworm-moe-12m",
     {28.5137, 36.5796, 40.5199, 188.0791},
     "shakespeare-lora-moe-12m",
     {29.4685, 37.4862, 31.8367, 208.4779}},
};

/* A model, and an adapter where the outputs are those with it. */
struct subject {
    struct walsh_model *model;
    struct walsh_adapter *adapter; /* NULL: none */
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

static const void *tensor(const struct walsh_safetensors *st, bool adapter, const char *output,
                          enum walsh_dtype dtype, size_t *elements)
{
    char name[80];
    snprintf(name, sizeof name, "%s%s", adapter ? "adapter_" : "", output);
    const struct walsh_tensor *t = walsh_safetensors_find(st, name);
    if (!t || t->dtype != dtype) {
        fprintf(stderr, "golden: %s: no tensor %s of the expected type\n", st->file.path, name);
        exit(1);
    }
    *elements = walsh_tensor_elements(t);
    return t->data;
}

/* A context of just these tokens: a longrope goes by it. */
static struct walsh_session *open_session(const struct subject *s, size_t tokens)
{
    struct walsh_error err;
    struct walsh_session *session;
    const struct walsh_session_options options = {.struct_size = sizeof options, .context = (uint32_t)tokens};
    need(walsh_session_open(s->model, &options, &session, &err), &err);
    const struct walsh_adapter_use use = {s->adapter, 1};
    need(walsh_session_set_adapters(session, &use, s->adapter ? 1 : 0, &err), &err);
    return session;
}

static double log_probability(const float *logits, size_t vocab, int32_t id)
{
    double best = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++) best = fmax(best, (double)logits[i]);
    for (size_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - best);
    return (double)logits[id] - best - log(sum);
}

static void check_logits(const struct subject *s, const struct walsh_safetensors *st, size_t vocab)
{
    struct walsh_error err;
    size_t n, positions, count;
    const int32_t *ids = tensor(st, false, "input_ids", WALSH_I32, &n);
    const int32_t *position = tensor(st, false, "positions", WALSH_I32, &positions);
    const float *expected = tensor(st, s->adapter, "logits", WALSH_F32, &count);
    const float *log_probabilities = tensor(st, s->adapter, "target_logprobs", WALSH_F32, &count);
    struct walsh_session *session = open_session(s, n);
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

/* The same logits by decode steps alone. */
static void check_decode(const struct subject *s, const struct walsh_safetensors *st, size_t vocab)
{
    struct walsh_error err;
    size_t n, positions, count, next = 0;
    const int32_t *ids = tensor(st, false, "input_ids", WALSH_I32, &n);
    const int32_t *position = tensor(st, false, "positions", WALSH_I32, &positions);
    const float *expected = tensor(st, s->adapter, "logits", WALSH_F32, &count);
    struct walsh_session *session = open_session(s, n);
    double worst = 0;
    for (size_t i = 0; i < n && next < positions; i++) {
        need(walsh_step(&session, &ids[i], 1, &err), &err);
        if ((size_t)position[next] != i) continue;
        const float *logits = walsh_session_logits(session);
        for (size_t j = 0; j < vocab; j++)
            worst = fmax(worst, fabs((double)logits[j] - (double)expected[next * vocab + j]));
        next++;
    }
    if (next < positions) worst = INFINITY;
    expect(worst <= LOGIT_TOLERANCE, "logits of decode steps, largest difference", worst, LOGIT_TOLERANCE);
    walsh_session_close(&session);
}

/* The prompt by prefill, then one decode step per token. */
static void check_greedy(const struct subject *s, const struct walsh_safetensors *st, size_t vocab)
{
    struct walsh_error err;
    size_t n, wrong = 0;
    const int32_t *ids = tensor(st, s->adapter, "greedy_ids", WALSH_I32, &n);
    struct walsh_session *session = open_session(s, n);
    struct walsh_sampler *sampler;
    const struct walsh_sampler_options greedy = WALSH_SAMPLER_OPTIONS;
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
static bool check_ppl(const struct subject *s, const char *path, uint64_t tokens, double expected)
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
    options.context = tokens > 0 && tokens < 2048 ? (uint32_t)tokens / 2 : 1024;
    options.max_tokens = tokens;
    const struct walsh_adapter_use use = {s->adapter, 1};
    options.adapters = &use;
    options.adapter_count = s->adapter ? 1 : 0;
    struct walsh_eval_result result = {.struct_size = sizeof result};
    need(walsh_eval_text(s->model, text, size, &options, &result, &err), &err);
    free(text);
    printf("  %s: ppl %.4f +- %.2f over %llu tokens in %.1f s, expected %.4f\n", path, result.ppl,
           result.ppl_error, (unsigned long long)result.tokens, result.seconds, expected);
    double difference = fabs(result.ppl / expected - 1);
    const double tolerance = s->adapter ? ADAPTER_PPL_TOLERANCE : PPL_TOLERANCE;
    expect(difference <= tolerance, "ppl, relative difference", difference, tolerance);
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

static struct walsh_adapter *open_adapter(const struct walsh_model *model, const char *path,
                                          enum walsh_adapter_storage storage)
{
    struct walsh_error err;
    struct walsh_adapter *adapter;
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.storage = storage;
    need(walsh_adapter_open(model, path, &options, &adapter, &err), &err);
    return adapter;
}

static void check_outputs(const struct subject *s, const char *path)
{
    struct walsh_error err;
    struct walsh_safetensors outputs;
    need(walsh_safetensors_open(path, true, &outputs, &err), &err);
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(s->model, &info);
    check_logits(s, &outputs, info.vocab);
    check_decode(s, &outputs, info.vocab);
    if (walsh_safetensors_find(&outputs, s->adapter ? "adapter_greedy_ids" : "greedy_ids"))
        check_greedy(s, &outputs, info.vocab);
    walsh_safetensors_close(&outputs);
}

static bool is_there(const char *directory, const char *name, const char *file)
{
    char path[4096];
    snprintf(path, sizeof path, "%.2048s/%.64s/%.64s", directory, name, file);
    FILE *there = fopen(path, "rb");
    if (there) {
        fclose(there);
        return true;
    }
    printf("  FAIL %s/%s is absent\n", directory, name);
    failures++;
    return false;
}

static void check_texts(const struct subject *s, const char *texts, const double *ppl)
{
    char path[4096];
    for (size_t t = 0; t < PROOF_TEXTS; t++) {
        snprintf(path, sizeof path, "%.2048s/%.64s.txt", texts, proof_texts[t]);
        check_ppl(s, path, 0, ppl[t]);
        fflush(stdout);
    }
}

/* The outputs with the adapter as it is in its file; the perplexities with it in bf16, as it is used. */
static void prove_adapter(struct walsh_model *model, size_t i, const char *models, const char *outputs,
                          const char *texts)
{
    char path[4096];
    const char *name = proof_models[i].adapter;
    printf("%s with %s\n", proof_models[i].model, name);
    if (!is_there(models, name, "adapter_config.json")) return;
    snprintf(path, sizeof path, "%.2048s/%.64s", models, name);
    struct subject s = {model, open_adapter(model, path, WALSH_ADAPTER_F32)};
    struct walsh_adapter *narrow = open_adapter(model, path, WALSH_ADAPTER_BF16);
    snprintf(path, sizeof path, "%.2048s/%.64s.safetensors", outputs, proof_models[i].model);
    check_outputs(&s, path);
    walsh_adapter_close(&s.adapter);
    s.adapter = narrow;
    check_texts(&s, texts, proof_models[i].adapter_ppl);
    walsh_adapter_close(&s.adapter);
}

static void prove(struct walsh_context *context, const char *models, const char *outputs, const char *texts)
{
    char path[4096];
    for (size_t i = 0; i < sizeof proof_models / sizeof *proof_models; i++) {
        const char *name = proof_models[i].model;
        printf("%s\n", name);
        if (!is_there(models, name, "config.json")) continue;
        snprintf(path, sizeof path, "%.2048s/%.64s", models, name);
        struct subject s = {.model = open_model(context, path)};
        snprintf(path, sizeof path, "%.2048s/%.64s.safetensors", outputs, name);
        check_outputs(&s, path);
        check_texts(&s, texts, proof_models[i].ppl);
        prove_adapter(s.model, i, models, outputs, texts);
        walsh_model_close(&s.model);
    }
}

/* MODEL OUTPUTS [TEXT TOKENS PPL] */
static void check_one(struct walsh_context *context, const char *adapter, char *const *arguments, int count)
{
    struct subject s = {.model = open_model(context, arguments[0])};
    printf("%s\n", arguments[0]);
    if (adapter) s.adapter = open_adapter(s.model, adapter, WALSH_ADAPTER_AUTO);
    check_outputs(&s, arguments[1]);
    if (count == 5) check_ppl(&s, arguments[2], strtoull(arguments[3], NULL, 10), strtod(arguments[4], NULL));
    walsh_adapter_close(&s.adapter);
    walsh_model_close(&s.model);
}

int main(int argc, char **argv)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    for (; argc >= 3; argv += 2, argc -= 2)
        if (strcmp(argv[1], "--cpu") == 0)
            options.cpu = argv[2];
        else if (strcmp(argv[1], "--device") == 0)
            options.device = argv[2];
        else
            break;
    const bool proof = argc >= 3 && strcmp(argv[1], "--proof") == 0;
    const bool adapter = argc >= 3 && strcmp(argv[1], "--adapter") == 0;
    const int first = adapter ? 3 : 1, count = argc - first;
    if (!(proof ? argc == 3 || argc == 5 : count == 2 || count == 5)) {
        fprintf(
            stderr,
            "usage: golden [--cpu LEVEL] [--device NAME] [--adapter DIR] MODEL OUTPUTS [TEXT TOKENS PPL]\n"
            "       golden [--cpu LEVEL] [--device NAME] --proof MODELS [OUTPUTS TEXTS]\n");
        return 2;
    }
    struct walsh_error err;
    struct walsh_context *context;
    need(walsh_context_open(&options, &context, &err), &err);
    if (proof) {
        char outputs[2048], texts[2048];
        snprintf(outputs, sizeof outputs, "%s/../golden", argv[2]);
        snprintf(texts, sizeof texts, "%s/../text", argv[2]);
        prove(context, argv[2], argc == 5 ? argv[3] : outputs, argc == 5 ? argv[4] : texts);
    } else {
        check_one(context, adapter ? argv[2] : NULL, argv + first, count);
    }
    walsh_context_close(&context);
    printf("%s\n", failures ? "golden: FAILED" : "golden: all agree");
    return failures ? 1 : 0;
}

/* The soak of the batch scheduler: 200 requests of random length, sampling and adapters, each of which has
 * run alone, join and leave one batch, some of them cancelled, round after round; in each round a quarter of
 * them is replaced by new ones. Every token and every bit of the logits must be that of the run alone, and
 * memory must stay flat.
 *
 *   soak MODEL ADAPTER [--seconds N] [--seed N] [--kv auto|f16|f32|turbo] [--kv-key-bits N] [--kv-value-bits
 * N]
 *        [--kv-skip N] [--kv-recent N]
 *
 * Prints one JSON object in one line; exit 1 where something is wrong. */
#include <malloc.h>
#include <time.h>
#include <unistd.h>

#include "unit/batch_requests.h"

#define REQUESTS 200
#define LEAST_ROUNDS 3
#define SLACK_HEAP ((size_t)256 << 10) /* bytes: the prompts differ from round to round */

/* Freed blocks that AddressSanitizer keeps would look like growth. */
const char *__asan_default_options(void);
__attribute__((visibility("default"))) const char *__asan_default_options(void)
{
    return "quarantine_size_mb=8:allocator_release_to_os_interval_ms=0";
}
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

static size_t heap_in_use(void)
{
    if (__sanitizer_get_current_allocated_bytes) return __sanitizer_get_current_allocated_bytes();
    const struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* Bytes of memory that the process holds. */
static size_t resident(void)
{
    size_t pages = 0, held = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%zu %zu", &pages, &held) != 2) held = 0;
    fclose(f);
    return held * (size_t)sysconf(_SC_PAGESIZE);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct soak {
    double seconds;
    uint64_t seed;
    struct walsh_kv_options kv;
    struct trial trial;
    struct walsh_batch *batch;
    struct walsh_batch_event events[REQUESTS];
    struct wanted wanted[REQUESTS];
    struct seen seen;
    unsigned rounds;
    /* behind a round: the second, the largest from the third on, the largest of all */
    size_t heap_first, heap_most, resident_first, resident_most;
};

static const char *one_schedule(struct soak *s)
{
    static struct running running[REQUESTS];
    memset(running, 0, sizeof running);
    struct schedule schedule = {.wanted = s->wanted,
                                .running = running,
                                .count = REQUESTS,
                                .cancel_one_in = 10,
                                .batch = s->batch,
                                .events = s->events,
                                .max_rows = REQUESTS,
                                .seen = &s->seen};
    return run_schedule(&s->trial, &schedule);
}

static const char *one_round(struct soak *s)
{
    const char *bad = NULL;
    for (size_t i = 0; i < REQUESTS && !bad; i++) {
        if (s->rounds > 0 && i % 4 != s->rounds % 4) continue;
        wanted_free(&s->wanted[i]);
        bad = wanted_make(&s->trial, &s->wanted[i], &s->kv);
    }
    if (!bad) bad = one_schedule(s);
    if (bad) return bad;
    s->rounds++;
    const size_t heap = heap_in_use(), held = resident();
    if (s->rounds == 2) {
        s->heap_first = s->heap_most = heap;
        s->resident_first = s->resident_most = held;
    }
    if (s->rounds > 2) {
        if (heap > s->heap_most) s->heap_most = heap;
        if (held > s->resident_most) s->resident_most = held;
        if (heap > s->heap_first + SLACK_HEAP)
            bad = trial_fail("round %u: %zu bytes in use, behind the second round %zu", s->rounds, heap,
                             s->heap_first);
        if (held > s->resident_first + s->resident_first / 4 + ((size_t)32 << 20))
            bad = trial_fail("round %u: %zu bytes resident, behind the second round %zu", s->rounds, held,
                             s->resident_first);
    }
    return bad;
}

static enum walsh_status open_all(struct soak *s, const char *path, const char *lora,
                                  struct walsh_context **context, struct walsh_model **model,
                                  struct walsh_error *err)
{
    struct walsh_adapter_options named = WALSH_ADAPTER_OPTIONS;
    named.name = "other";
    enum walsh_status status = walsh_context_open(NULL, context, err);
    if (status == WALSH_OK) status = walsh_model_open(*context, path, NULL, model, err);
    if (status == WALSH_OK) status = walsh_adapter_open(*model, lora, NULL, &s->trial.adapters[0], err);
    if (status == WALSH_OK) status = walsh_adapter_random(*model, 8, 1, NULL, &s->trial.adapters[1], err);
    if (status == WALSH_OK) status = walsh_adapter_random(*model, 16, 2, &named, &s->trial.adapters[2], err);
    if (status != WALSH_OK) return status;
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(*model, &info);
    s->trial.model = *model;
    s->trial.vocab = info.vocab;
    s->trial.context = info.max_positions < 2048 ? info.max_positions : 2048;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    options.max_rows = REQUESTS;
    options.prefill_tokens = 300;
    options.context = s->trial.context;
    options.kv_tokens = (uint64_t)REQUESTS * 256; /* about half of the requests at a time */
    options.max_queued = 100;
    options.kv = s->kv;
    return walsh_batch_open(*model, &options, &s->batch, err);
}

static bool read_kv_type(const char *name, enum walsh_kv *type)
{
    static const char *const names[] = {"auto", "f16", "f32", "turbo"};
    static const enum walsh_kv types[] = {WALSH_KV_CACHE_AUTO, WALSH_KV_CACHE_F16, WALSH_KV_CACHE_F32,
                                          WALSH_KV_CACHE_TURBO};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *type = types[i];
            return true;
        }
    return false;
}

static bool read_options(struct soak *s, int argc, char **argv)
{
    for (int i = 3; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        const unsigned number = (unsigned)strtoul(value, NULL, 10);
        if (strcmp(name, "--seconds") == 0)
            s->seconds = strtod(value, NULL);
        else if (strcmp(name, "--seed") == 0)
            s->seed = strtoull(value, NULL, 10);
        else if (strcmp(name, "--kv-key-bits") == 0)
            s->kv.key_bits = number;
        else if (strcmp(name, "--kv-value-bits") == 0)
            s->kv.value_bits = number;
        else if (strcmp(name, "--kv-skip") == 0)
            s->kv.skip = number;
        else if (strcmp(name, "--kv-recent") == 0)
            s->kv.recent = number;
        else if (strcmp(name, "--kv") != 0 || !read_kv_type(value, &s->kv.type))
            return false;
    }
    return argc >= 3 && argc % 2 == 1;
}

static void report(const struct soak *s, double seconds, const char *bad)
{
    struct walsh_batch_metrics m = {.struct_size = sizeof m};
    if (s->batch) walsh_batch_get_metrics(s->batch, &m);
    printf("{\"test\": \"soak\", \"ok\": %s, \"seconds\": %.1f, \"seed\": %" PRIu64
           ", \"sanitized\": %s, \"rounds\": %u, "
           "\"requests\": %" PRIu64 ", \"finished\": %" PRIu64 ", \"cancelled\": %" PRIu64
           ", \"tokens\": %" PRIu64 ", \"prompt_tokens\": %" PRIu64 ", \"steps\": %" PRIu64
           ", \"most_rows\": %u, \"most_adapter_sets\": %u, "
           "\"steps_with_prefill_beside_decode\": %u, \"heap_first\": %zu, \"heap_most\": %zu, "
           "\"resident_first\": %zu, "
           "\"resident_most\": %zu}\n",
           bad ? "false" : "true", seconds, s->seed,
           __sanitizer_get_current_allocated_bytes ? "true" : "false", s->rounds, m.submitted, m.finished,
           m.cancelled, m.generated_tokens, m.prompt_tokens, m.steps, s->seen.most_rows, s->seen.most_sets,
           s->seen.prefill_beside, s->heap_first, s->heap_most, s->resident_first, s->resident_most);
    if (bad) fprintf(stderr, "soak: %s\n", bad);
}

int main(int argc, char **argv)
{
    static struct soak s = {.seconds = 600, .seed = 1, .kv = WALSH_KV_OPTIONS};
    struct walsh_error err;
    struct walsh_context *context = NULL;
    struct walsh_model *model = NULL;
    const char *bad = NULL;
    if (!read_options(&s, argc, argv)) {
        fprintf(
            stderr,
            "usage: soak MODEL ADAPTER [--seconds N] [--seed N] [--kv auto|f16|f32|turbo] [--kv-key-bits N] "
            "[--kv-value-bits N] [--kv-skip N] [--kv-recent N]\n");
        return 2;
    }
    walsh_random_seed(&s.trial.random, s.seed);
    if (open_all(&s, argv[1], argv[2], &context, &model, &err) != WALSH_OK) bad = err.message;
    const double started = now();
    while (!bad && (s.rounds < LEAST_ROUNDS || now() - started < s.seconds)) bad = one_round(&s);
    if (!bad && (s.seen.most_rows < 30 || s.seen.most_sets < 3 || s.seen.prefill_beside == 0))
        bad = "the schedules were too tame to prove anything";
    report(&s, now() - started, bad);
    for (size_t i = 0; i < REQUESTS; i++) wanted_free(&s.wanted[i]);
    walsh_batch_close(&s.batch);
    for (size_t i = 0; i < TRIAL_ADAPTERS; i++) walsh_adapter_close(&s.trial.adapters[i]);
    walsh_model_close(&model);
    walsh_context_close(&context);
    return bad ? 1 : 0;
}

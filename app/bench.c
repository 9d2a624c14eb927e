/* walsh bench: tokens per second of a model or of a synthetic one, or the speed of each kernel. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters.h"
#include "bench_kernels.h"
#include "bench_requests.h"
#include "kv.h"
#include "output.h"
#include "shape.h"

struct bench_settings {
    struct command command;
    const char *shape, *format, *head, *kernels;
    struct kv_settings kv;
    int64_t bits, prompt, generate, repeat, requests, prefill;
    struct option_integers batch, depth;
    struct option_texts adapters;
    bool mixed;
};

#define AT(member) offsetof(struct bench_settings, member)

static const struct option bench_options[] = {
    {.name = "shape",
     .argument = "NAME|FILE",
     .kind = OPTION_TEXT,
     .offset = AT(shape),
     .help = "measure a synthetic model instead of MODEL: a known shape, or a config.json"},
    {.name = "format",
     .argument = "FORMAT",
     .kind = OPTION_CHOICE,
     .choices = "bf16|e8p|mxfp4|nvfp4|mxfp8|fp8|int8|int4",
     .fallback = "e8p",
     .offset = AT(format),
     .help = "weights of the synthetic model"},
    {.name = "head",
     .argument = "bf16|int8",
     .kind = OPTION_CHOICE,
     .choices = "bf16|int8",
     .fallback = "bf16",
     .offset = AT(head),
     .help = "the synthetic model's head, as quantize writes it with this option"},
    {.name = "bits",
     .letter = 'b',
     .aliases = "bpw",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 2,
     .most = 8,
     .fallback = "4",
     .offset = AT(bits),
     .help = "bits per weight of the synthetic model in format e8p"},
    {.name = "prompt",
     .letter = 'p',
     .aliases = "n-prompt",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 1e7,
     .fallback = "512",
     .offset = AT(prompt),
     .help = "tokens of the prompt test; 0 leaves it out"},
    {.name = "generate",
     .letter = 'n',
     .aliases = "n-gen",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 1e7,
     .fallback = "128",
     .offset = AT(generate),
     .help = "tokens per sequence of the generation test; 0 leaves it out"},
    {.name = "batch",
     .aliases = "batch-size",
     .argument = "N,...",
     .kind = OPTION_INTEGERS,
     .least = 1,
     .most = 4096,
     .fallback = "1",
     .offset = AT(batch),
     .help = "sequences that generate together"},
    {.name = "depth",
     .letter = 'd',
     .aliases = "n-depth",
     .argument = "N,...",
     .kind = OPTION_INTEGERS,
     .least = 0,
     .most = 1e7,
     .fallback = "0",
     .offset = AT(depth),
     .help = "tokens in the cache before the test"},
    {.name = "repeat",
     .letter = 'r',
     .aliases = "repetitions",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = 1000,
     .fallback = "3",
     .offset = AT(repeat),
     .help = "times that each test runs; the median is reported"},
    {.name = "requests",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 1e6,
     .fallback = "0",
     .offset = AT(requests),
     .help = "also send N requests at once to the batch scheduler, which runs --batch of them at a time: "
             "prompts of "
             "about --prompt tokens, answers of --generate"},
    {.name = "prefill",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = 512,
     .fallback = "0",
     .offset = AT(prefill),
     .help =
         "prompt tokens that a step of the scheduler reads at most, beside the rows that decode; 0: as walsh "
         "serve does without its --prefill"},
    KV_OPTIONS(AT(kv)),
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help =
         "measure without and with this LoRA adapter, by turns, and how much slower it is; random:r=N is a "
         "synthetic one of rank N; may be repeated"},
    {.name = "mixed",
     .kind = OPTION_FLAG,
     .offset = AT(mixed),
     .help = "each sequence of a batch uses one --adapter of its own, in turn, instead of all of them; a "
             "synthetic "
             "one is made anew for each"},
    {.name = "kernels",
     .argument = "PATTERN",
     .kind = OPTION_MAYBE,
     .offset = AT(kernels),
     .help = "measure each kernel whose name contains PATTERN instead; also as an argument"},
    {0},
};

/* The model under test and where the results go. */
struct bench {
    struct bench_settings *settings;
    struct walsh_model *model;
    struct walsh_model_info info;
    struct walsh_bench_ceilings ceilings;
    struct adapter_list adapters;
    struct walsh_adapter **own; /* --mixed: of each sequence of the largest batch */
    size_t own_count;
    json_t *results;
};

enum { MAX_REPEAT = 1000 };

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Ids that look like a text to the embedding table: spread over the vocabulary, the same in every run. */
static int32_t some_id(const struct bench *bench, uint64_t i)
{
    return (int32_t)((i * 2654435761u + 12345) % bench->info.vocab);
}

static enum walsh_status prompt_tokens(const struct bench *bench, struct walsh_session *session, size_t count,
                                       struct walsh_error *err)
{
    if (count == 0) return WALSH_OK;
    int32_t *ids = calloc(count, sizeof *ids);
    if (!ids) return fail(err, WALSH_E_MEMORY, "out of memory for %zu tokens", count);
    for (size_t i = 0; i < count; i++) ids[i] = some_id(bench, i);
    enum walsh_status status = walsh_session_prompt(session, ids, count, err);
    free(ids);
    return status;
}

/* What a test measured: [0] without, [1] with adapters, run by turns. */
struct timing {
    double seconds[2][MAX_REPEAT];
    uint64_t cache_bytes; /* of all sessions */
    uint64_t adapter_bytes;
};

/* The median over the pairs of runs of how much longer the one with adapters took. */
static double overhead(const struct timing *timing, size_t count)
{
    double ratio[MAX_REPEAT];
    for (size_t r = 0; r < count; r++) ratio[r] = timing->seconds[1][r] / timing->seconds[0][r];
    return median(ratio, count) - 1;
}

/* Operations/s of all threads at the activations' type; 0: not known. */
static double compute_ceiling(const struct bench *bench)
{
    const struct walsh_bench_rates *all = &bench->ceilings.all;
    switch (bench->info.activations) {
    case WALSH_ACTIVATIONS_INT8:
        return all->dot_i8;
    case WALSH_ACTIVATIONS_BF16:
        return all->dot_bf16 > 0 ? all->dot_bf16 : all->fma_f32;
    default:
        return all->fma_f32;
    }
}

/* What a rate of tokens is in weights and of the ceilings: `decode` reads its bytes once for all rows of a
 * batch; a prompt multiplies all but the head with each token. NAN: not known. */
struct shares {
    double weights; /* multiplied with, per second */
    double read;    /* bytes per second; NAN for a prompt */
    double ceiling; /* share of the bandwidth (decode, one row) or of the arithmetic */
};
static struct shares shares(const struct bench *bench, bool decode, double rate, int64_t batch)
{
    const struct walsh_model_info *info = &bench->info;
    const double bandwidth = bench->ceilings.read_bandwidth, compute = compute_ceiling(bench);
    const uint64_t weights = decode ? info->decode_weights : info->decode_weights - info->head_weights;
    struct shares s = {.weights = (double)weights * rate, .read = NAN, .ceiling = NAN};
    if (decode) s.read = (double)info->decode_bytes * rate / (double)batch;
    if (decode && batch == 1 && bandwidth > 0)
        s.ceiling = s.read / bandwidth;
    else if (compute > 0)
        s.ceiling = 2 * s.weights / compute;
    return s;
}

static const char *number_or_dash(double x, int decimals, char *out, size_t size)
{
    if (isnan(x))
        snprintf(out, size, "-");
    else
        snprintf(out, size, "%.*f", decimals, x);
    return out;
}

/* One line or object for each side of the timing. */
static enum walsh_status put_result(struct bench *bench, const char *test, int64_t tokens, int64_t batch,
                                    int64_t depth, struct timing *timing, struct walsh_error *err)
{
    struct command *command = &bench->settings->command;
    const size_t repeat = (size_t)bench->settings->repeat;
    const bool decode = strcmp(test, "generate") == 0, adapters = bench->adapters.count > 0;
    const double slower = adapters ? overhead(timing, repeat) : NAN;
    progress_clear(&command->progress);
    for (int side = 0; side <= adapters; side++) {
        const double seconds = median(timing->seconds[side], repeat),
                     rate = (double)(tokens * batch) / seconds;
        const struct shares s = shares(bench, decode, rate, batch);
        if (command->json) {
            json_t *item = json_object();
            json_put_text(item, "test", test);
            json_put_integer(item, "tokens", (unsigned long long)tokens);
            json_put_integer(item, "batch", (unsigned long long)batch);
            json_put_integer(item, "depth", (unsigned long long)depth);
            json_put_real(item, "tokens_per_second", rate);
            json_put_integer(item, "weight_bytes", bench->info.decode_bytes);
            json_put_real(item, "bandwidth_gbps", s.read / 1e9);
            json_put_real(item, "weights_per_second", s.weights);
            json_put_real(item, "share_of_ceiling", s.ceiling);
            json_put_integer(item, "cache_bytes", timing->cache_bytes);
            if (adapters) json_object_set_new(item, "adapter", json_boolean(side));
            if (side) json_put_integer(item, "adapter_bytes", timing->adapter_bytes);
            if (side) json_put_real(item, "overhead", slower);
            json_array_append_new(bench->results, item);
            continue;
        }
        char gigabytes[24], share[24], text[24] = "";
        if (side) snprintf(text, sizeof text, "  %+.1f%% time", 100 * slower);
        printf("%-9s %7lld %6lld %7lld %12.2f %8s %10.2f %8s%s%s\n", test, (long long)tokens,
               (long long)batch, (long long)depth, rate,
               number_or_dash(s.read / 1e9, 2, gigabytes, sizeof gigabytes), s.weights / 1e9,
               number_or_dash(100 * s.ceiling, 1, share, sizeof share), side ? "  with adapters" : "", text);
    }
    return fflush(stdout) == 0 ? WALSH_OK : fail_errno(err, "cannot write to standard output");
}

/* Have the sessions run with their adapters, or without any. */
static enum walsh_status use_adapters(const struct bench *bench, struct walsh_session *const *sessions,
                                      size_t batch, bool on, struct walsh_error *err)
{
    for (size_t i = 0; i < batch; i++) {
        struct walsh_adapter_use own = {.scale = 1};
        const struct walsh_adapter_use *uses = bench->adapters.uses;
        size_t count = on ? bench->adapters.count : 0;
        if (on && bench->own_count) {
            own.adapter = bench->own[i];
            uses = &own;
            count = 1;
        }
        TRY(walsh_session_set_adapters(sessions[i], uses, count, err));
    }
    return WALSH_OK;
}

static enum walsh_status check_interrupt(struct walsh_error *err)
{
    return interrupted() ? fail(err, WALSH_E_ABORTED, "stopped on request") : WALSH_OK;
}

static enum walsh_status time_prompt(struct bench *bench, struct walsh_session *session, int64_t depth,
                                     struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    struct timing timing = {0};
    for (int64_t r = 0; r < settings->repeat; r++)
        for (int side = 0; side <= (bench->adapters.count > 0); side++) {
            TRY(check_interrupt(err));
            TRY(use_adapters(bench, &session, 1, side, err));
            const double started = seconds_now();
            TRY(prompt_tokens(bench, session, (size_t)settings->prompt, err));
            timing.seconds[side][r] = seconds_now() - started;
            timing.cache_bytes = walsh_session_cache_bytes(session);
            TRY(walsh_session_trim(session, (uint32_t)depth, err));
            if (side) timing.adapter_bytes = walsh_sessions_adapter_bytes(&session, 1);
        }
    return put_result(bench, "prompt", settings->prompt, 1, depth, &timing, err);
}

/* `count` decode steps of all sessions; *seconds is their time. */
static enum walsh_status generate_tokens(struct bench *bench, struct walsh_session *const *sessions,
                                         size_t batch, int64_t count, double *seconds,
                                         struct walsh_error *err)
{
    int32_t *ids = calloc(batch, sizeof *ids);
    if (!ids) return fail(err, WALSH_E_MEMORY, "out of memory for %zu tokens", batch);
    enum walsh_status status = WALSH_OK;
    double started = seconds_now();
    for (int64_t t = 0; t < count && status == WALSH_OK; t++) {
        for (size_t i = 0; i < batch; i++) ids[i] = some_id(bench, (uint64_t)t * batch + i);
        status = walsh_step(sessions, ids, batch, err);
        if (status == WALSH_OK) status = check_interrupt(err);
    }
    *seconds = seconds_now() - started;
    free(ids);
    return status;
}

static enum walsh_status time_generation(struct bench *bench, struct walsh_session *const *sessions,
                                         size_t batch, int64_t depth, struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    struct timing timing = {0};
    for (int64_t r = -1; r < settings->repeat; r++) /* -1: two steps to warm up, not counted */
        for (int side = 0; side <= (bench->adapters.count > 0); side++) {
            double unused;
            TRY(use_adapters(bench, sessions, batch, side, err));
            TRY(r < 0 ? generate_tokens(bench, sessions, batch, settings->generate < 2 ? 1 : 2, &unused, err)
                      : generate_tokens(bench, sessions, batch, settings->generate, &timing.seconds[side][r],
                                        err));
            timing.cache_bytes = 0;
            for (size_t i = 0; i < batch; i++) timing.cache_bytes += walsh_session_cache_bytes(sessions[i]);
            for (size_t i = 0; i < batch; i++) TRY(walsh_session_trim(sessions[i], (uint32_t)depth, err));
            if (side) timing.adapter_bytes = walsh_sessions_adapter_bytes(sessions, batch);
        }
    return put_result(bench, "generate", settings->generate, (int64_t)batch, depth, &timing, err);
}

/* Both tests at one depth and batch; the prompt test does not depend on the batch and runs with the first
 * only. */
static enum walsh_status time_point(struct bench *bench, struct walsh_session **sessions, size_t batch,
                                    int64_t depth, bool with_prompt, struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    int64_t longest = settings->prompt > settings->generate ? settings->prompt : settings->generate;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = (uint32_t)(depth + longest);
    TRY(kv_options(&settings->kv, &options.kv, err));
    if (batch > 1) TRY(walsh_sessions_check(bench->model, &options, batch, err));
    for (size_t i = 0; i < batch; i++) {
        TRY(walsh_session_open(bench->model, &options, &sessions[i], err));
        TRY(prompt_tokens(bench, sessions[i], (size_t)depth, err));
    }
    if (with_prompt && settings->prompt) TRY(time_prompt(bench, sessions[0], depth, err));
    return settings->generate ? time_generation(bench, sessions, batch, depth, err) : WALSH_OK;
}

static enum walsh_status put_requests(struct bench *bench, const struct requests_plan *plan,
                                      const struct requests_result *r, struct walsh_error *err)
{
    struct command *command = &bench->settings->command;
    progress_clear(&command->progress);
    if (!command->json) {
        printf("%-9s %7u %6u %7d %12.2f %8s  %zu requests, %.1f rows a step; between tokens %.2f ms, p99 "
               "%.2f ms; first "
               "token %.2f ms\n",
               "requests", plan->generate, plan->batch.max_rows, 0, (double)r->tokens / r->seconds, "-",
               plan->requests, r->rows, 1e3 * r->gap_median, 1e3 * r->gap_p99, 1e3 * r->first_median);
        return fflush(stdout) == 0 ? WALSH_OK : fail_errno(err, "cannot write to standard output");
    }
    json_t *item = json_object();
    json_put_text(item, "test", "requests");
    json_put_integer(item, "tokens", plan->generate);
    json_put_integer(item, "batch", plan->batch.max_rows);
    json_put_integer(item, "depth", 0);
    json_put_integer(item, "requests", plan->requests);
    json_put_integer(item, "prefill", plan->batch.prefill_tokens);
    json_put_real(item, "tokens_per_second", (double)r->tokens / r->seconds);
    json_put_real(item, "prompt_tokens_per_second", (double)r->prompt_tokens / r->seconds);
    json_put_real(item, "rows", r->rows);
    json_put_real(item, "seconds_between_tokens", r->gap_median);
    json_put_real(item, "seconds_between_tokens_p99", r->gap_p99);
    json_put_real(item, "seconds_to_first_token", r->first_median);
    json_put_integer(item, "kv_bytes", r->kv_bytes);
    json_array_append_new(bench->results, item);
    return WALSH_OK;
}

/* Requests with an answer of --generate each, `rows` at a time. */
static enum walsh_status time_requests(struct bench *bench, uint32_t rows, struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    struct requests_plan plan = {.requests = (size_t)settings->requests,
                                 .prompt = (uint32_t)settings->prompt,
                                 .generate = (uint32_t)settings->generate,
                                 .batch = WALSH_BATCH_OPTIONS,
                                 .vocab = bench->info.vocab,
                                 .adapters = bench->adapters.uses,
                                 .adapter_count = bench->adapters.count,
                                 .own = bench->own,
                                 .own_count = bench->own_count};
    plan.batch.max_rows = rows;
    plan.batch.prefill_tokens = (uint32_t)settings->prefill;
    plan.batch.context = plan.prompt + plan.prompt / 2 + plan.generate;
    plan.batch.max_queued = (uint32_t)settings->requests;
    TRY(kv_options(&settings->kv, &plan.batch.kv, err));
    struct requests_result result;
    TRY(requests_time(bench->model, &plan, &result, err));
    return put_requests(bench, &plan, &result, err);
}

static enum walsh_status time_model(struct bench *bench, struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    enum walsh_status status = WALSH_OK;
    for (size_t d = 0; d < settings->depth.count && status == WALSH_OK; d++) {
        for (size_t b = 0; b < settings->batch.count && status == WALSH_OK; b++) {
            size_t batch = (size_t)settings->batch.values[b];
            struct walsh_session **sessions = calloc(batch, sizeof(struct walsh_session *));
            if (!sessions) return fail(err, WALSH_E_MEMORY, "out of memory for %zu sessions", batch);
            status = time_point(bench, sessions, batch, settings->depth.values[d], b == 0, err);
            for (size_t i = 0; i < batch; i++) walsh_session_close(&sessions[i]);
            free(sessions);
        }
    }
    for (size_t b = 0; settings->requests && b < settings->batch.count && status == WALSH_OK; b++)
        status = time_requests(bench, (uint32_t)settings->batch.values[b], err);
    return status;
}

static void print_heading(const struct bench *bench, const struct walsh_context *context, const char *name)
{
    const struct walsh_model_info *info = &bench->info;
    char weights[32];
    printf("%s: %.2f million parameters, %s, %.2f bits per weight, %s activations, %s read per decoded "
           "token, %u threads\n",
           name, (double)info->parameters / 1e6, info->format, info->bits_per_weight,
           activations_name(info->activations),
           bytes_text((double)info->decode_bytes, weights, sizeof weights), walsh_context_threads(context));
    if (bench->ceilings.read_bandwidth > 0)
        printf("ceilings: %.1f GB/s read, %.0f Gop/s in %s by all threads\n",
               bench->ceilings.read_bandwidth / 1e9, compute_ceiling(bench) / 1e9,
               activations_name(info->activations));
    printf("\n%-9s %7s %6s %7s %12s %8s %10s %8s\n", "test", "tokens", "batch", "depth", "tokens/s", "GB/s",
           "Gweights/s", "% roof");
}

static enum walsh_status print_json(struct bench *bench, const struct walsh_context *context,
                                    const char *name, struct walsh_error *err)
{
    const struct walsh_model_info *info = &bench->info;
    json_t *object = json_object();
    json_put_text(object, "model", name);
    json_put_text(object, "format", info->format);
    json_put_real(object, "bits_per_weight", info->bits_per_weight);
    json_put_text(object, "activations", activations_name(info->activations));
    json_put_integer(object, "parameters", info->parameters);
    json_put_integer(object, "memory_bytes", info->memory_bytes);
    json_put_real(object, "load_seconds", info->load_seconds);
    json_put_integer(object, "threads", walsh_context_threads(context));
    json_object_set_new(object, "adapters", adapters_json(&bench->adapters));
    json_object_set_new(object, "ceilings", bench_ceilings_json(&bench->ceilings));
    json_object_set_new(object, "mixed", json_boolean(bench->settings->mixed));
    json_object_set(object, "results", bench->results);
    return json_print(object, err);
}

static enum walsh_status open_model(struct bench *bench, struct walsh_context *context,
                                    struct walsh_error *err)
{
    struct bench_settings *settings = bench->settings;
    struct command *command = &settings->command;
    if (!settings->shape)
        return command_open_model(command, context, command->arguments[0], &bench->model, err);
    struct walsh_shape shape;
    TRY(shape_find(settings->shape, &shape, err));
    shape.head_int8 = strcmp(settings->head, "int8") == 0;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.activations = command_activations(command);
    enum walsh_status status = walsh_model_synthesize(
        context, &shape, settings->format, (unsigned)settings->bits, 1, &options, &bench->model, err);
    if (status == WALSH_E_ARGUMENT) /* the options were checked before: what is left is the file's fault */
        err->status = status = WALSH_E_FORMAT;
    return status;
}

/* The adapters, and with --mixed one for each sequence of the largest batch. */
static enum walsh_status open_adapters(struct bench *bench, struct walsh_error *err)
{
    const struct bench_settings *settings = bench->settings;
    TRY(adapters_open(&settings->command, bench->model, &settings->adapters, ADAPTERS_SYNTHETIC,
                      &bench->adapters, err));
    if (!settings->mixed) return WALSH_OK;
    const size_t count = bench->adapters.count;
    size_t most = 0;
    for (size_t b = 0; b < settings->batch.count; b++)
        if ((size_t)settings->batch.values[b] > most) most = (size_t)settings->batch.values[b];
    bench->own = calloc(most, sizeof(struct walsh_adapter *));
    if (!bench->own) return fail(err, WALSH_E_MEMORY, "out of memory for %zu adapters", most);
    for (; bench->own_count < most; bench->own_count++) {
        const size_t i = bench->own_count;
        struct walsh_adapter **own = &bench->own[i];
        if (i >= count)
            TRY(adapter_random(bench->model, settings->adapters.values[i % count], i + 1, own, err));
        if (!*own) *own = bench->adapters.adapters[i % count];
    }
    return WALSH_OK;
}

static void close_adapters(struct bench *bench)
{
    for (size_t i = bench->adapters.count; i < bench->own_count; i++) /* the first are the list's */
        if (bench->own[i] != bench->adapters.adapters[i % bench->adapters.count])
            walsh_adapter_close(&bench->own[i]);
    free(bench->own);
    adapters_close(&bench->adapters);
}

static enum walsh_status bench_model(struct bench_settings *settings, struct walsh_context *context,
                                     struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_kv_options kv;
    TRY(kv_options(&settings->kv, &kv, err)); /* before anything is measured */
    struct bench bench = {
        .settings = settings, .info = {.struct_size = sizeof bench.info}, .results = json_array()};
    const char *name = settings->shape ? settings->shape : command->arguments[0];
    enum walsh_status status =
        walsh_bench_measure(context, &bench.ceilings, err); /* before the model's room */
    if (status == WALSH_OK) status = open_model(&bench, context, err);
    if (status == WALSH_OK) status = open_adapters(&bench, err);
    if (status == WALSH_OK) {
        progress_clear(&command->progress);
        walsh_model_get_info(bench.model, &bench.info);
        if (!command->json) print_heading(&bench, context, name);
        status = time_model(&bench, err);
    }
    if (status == WALSH_OK && command->json) status = print_json(&bench, context, name, err);
    json_decref(bench.results);
    close_adapters(&bench);
    walsh_model_close(&bench.model);
    return status;
}

static enum walsh_status run_bench(struct command *command, struct walsh_error *err)
{
    struct bench_settings *settings = (struct bench_settings *)command;
    const char *argument = command->argument_count ? command->arguments[0] : NULL;
    if (settings->kernels && settings->shape)
        return fail(err, WALSH_E_ARGUMENT, "--kernels and --shape exclude each other");
    if (settings->kernels && settings->adapters.count)
        return fail(err, WALSH_E_ARGUMENT, "--kernels and --adapter exclude each other");
    if (settings->mixed && settings->adapters.count == 0)
        return fail(err, WALSH_E_ARGUMENT, "--mixed needs an --adapter");
    if (settings->shape && argument) return fail(err, WALSH_E_ARGUMENT, "give MODEL or --shape, not both");
    if (!settings->kernels && !settings->shape && !argument)
        return fail(err, WALSH_E_ARGUMENT, "MODEL is missing (or --shape, or --kernels)");
    if (settings->kernels && *settings->kernels && argument)
        return fail(err, WALSH_E_ARGUMENT, "unexpected argument '%s'", argument);
    if (!settings->kernels && !settings->prompt && !settings->generate)
        return fail(err, WALSH_E_ARGUMENT, "--prompt 0 and --generate 0 leave nothing to measure");
    if (settings->requests && (!settings->prompt || !settings->generate))
        return fail(err, WALSH_E_ARGUMENT, "--requests needs a --prompt and --generate of at least 1 token");
    struct walsh_context *context;
    TRY(command_open_context(command, &context, err));
    enum walsh_status status;
    if (settings->kernels)
        status = bench_kernels(command, context, *settings->kernels ? settings->kernels : argument, err);
    else
        status = bench_model(settings, context, err);
    walsh_context_close(&context);
    return status;
}

const struct verb verb_bench = {
    .name = "bench",
    .usage = "MODEL | --shape NAME|FILE | --kernels [PATTERN]",
    .summary = "measure tokens per second of a model, or the speed of each kernel",
    .details =
        "The prompt test appends tokens as a prompt; the generation test decodes them one by one, for each "
        "--batch, "
        "both with --depth tokens in the cache. GB/s: bytes of weights that a decode step reads, times steps "
        "per second. % roof: of one row, these against the bandwidth of reading, which models that fit "
        "into the cache exceed; else the multiplications against what the dot products of the activations' "
        "type reach, both measured before. With --requests the time between two tokens of a request, as its "
        "sender sees it, is "
        "reported too, its "
        "median and the 99th percentile. A synthetic model has random weights and needs no download; its "
        "time per token is real.",
    .positionals = {"MODEL"},
    .least_arguments = 0,
    .options = bench_options,
    .uses = USES_MODEL,
    .tokenizer_optional = true,
    .settings_size = sizeof(struct bench_settings),
    .run = run_bench,
};

/* Sessions with a prefix store: a hit is a fresh run bit for bit, whatever the cache stores; anything that a
 * bit depends on is in the key; what was not computed by prefill is never stored; faults cost time and
 * nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "kernels/device.h"
#include "runtime/prefix.h"
#include "runtime/prefix_identity.h"
#include "temporary.h"
#include "unit/test_model.h"

#define ADAPTER WALSH_SOURCE_DIR "/models/shakespeare-lora-8m"
#define VOCAB 8192
#define HIDDEN 320 /* at most */
#define CONTEXT 1024
#define STEPS 6
#define LONG (test_tiny() ? 540u : 1000u) /* tokens of a prompt of two chunks */
#define LOGITS ((1 + STEPS) * VOCAB)

static void good(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_OK) fail_msg("%s", err->message);
}

/* Warnings, and the chunks after which to abort. */
static struct {
    unsigned count;
    char last[1200];
    int abort_after; /* calls of the abort hook; -1: never */
} told;

static void on_log(void *user, enum walsh_log_level level, const char *line)
{
    (void)user;
    if (level != WALSH_LOG_WARNING) return;
    told.count++;
    snprintf(told.last, sizeof told.last, "%s", line);
}
static bool on_abort(void *user)
{
    (void)user;
    return told.abort_after >= 0 && told.abort_after-- == 0;
}
static const struct walsh_hooks hooks = {.log = on_log, .abort = on_abort};

/* A model that is ready to run. */
struct machine {
    struct walsh_pool *pool;
    struct walsh_queue queue;
    struct walsh_model_graph *graph;
    struct walsh_runner *runner;
};

static void open_machine(struct machine *m, const char *model, unsigned threads, enum walsh_cpu_level level,
                         enum walsh_activation_type activations)
{
    struct walsh_error err;
    const struct walsh_load_options options = {
        .use_mmap = true, .rotated = activations, .dense = activations};
    good(walsh_pool_open(threads, &m->pool, &err), &err);
    good(walsh_queue_open(level, m->pool, &m->queue, &err), &err);
    good(walsh_graph_open(model, &options, &m->queue, &m->graph, &err), &err);
    good(walsh_runner_open(m->graph, &m->queue, &hooks, &m->runner, &err), &err);
    told.count = 0;
    told.abort_after = -1;
}

static void close_machine(struct machine *m)
{
    walsh_runner_close(&m->runner);
    walsh_graph_close(&m->graph);
    walsh_queue_close(&m->queue);
    walsh_pool_close(&m->pool);
}

static struct walsh_prefix_store *open_store(const char *name)
{
    struct walsh_error err;
    struct walsh_prefix_store *store;
    good(walsh_store_open(temporary_path(name), WALSH_PREFIX_LIMIT, &hooks, &store, &err), &err);
    return store;
}

/* A prompt of two sequences that share their first `common` tokens. */
static void make_prompt(int32_t *ids, size_t count, unsigned sequence, size_t common)
{
    for (size_t i = 0; i < count; i++) {
        const size_t s = i < common ? 0 : sequence;
        ids[i] = (int32_t)((s * 7919 + i * 104729 + i * i * 31) % VOCAB);
    }
}

struct run {
    struct walsh_prefix_store *store; /* NULL: none */
    const struct walsh_kv_policy *policy;
    const struct walsh_adapter_choice *adapters;
    size_t adapter_count, piece; /* tokens of a call of walsh_runtime_prompt; 0: all */
    const char *salt;
};
/* What a run leaves: bits to compare, and what the store did. */
struct result {
    float logits[LOGITS]; /* behind the prompt and behind each step, always of the likeliest token */
    uint8_t *cache;       /* [cache_bytes] of the prompt's tokens */
    size_t cache_bytes;
    struct walsh_prefix_use use;
};

static int32_t likeliest(const float *logits)
{
    int32_t best = 0;
    for (int32_t i = 1; i < VOCAB; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static struct walsh_session *open_session(const struct machine *m, const struct run *run)
{
    struct walsh_error err;
    struct walsh_session *session;
    good(walsh_runtime_session_open(m->runner, CONTEXT, run->policy, &session, &err), &err);
    good(walsh_runtime_set_adapters(session, run->adapters, run->adapter_count, &err), &err);
    good(walsh_runtime_set_store(session, run->store, run->salt, run->salt ? strlen(run->salt) : 0, &err),
         &err);
    return session;
}

/* As a scheduler does it: the prompt is begun, then comes in pieces. */
static void prompt_in_pieces(struct walsh_session *session, const int32_t *ids, size_t count, size_t piece)
{
    struct walsh_error err;
    static float hidden[CONTEXT * HIDDEN];
    walsh_prefix_begin(session, ids, count);
    for (size_t at = session->kv->length, n; at < count; at += n) {
        n = count - at < piece ? count - at : piece;
        const struct walsh_prompt_outputs outputs = {.hidden = hidden};
        good(walsh_runtime_prompt(session, ids + at, n, at + n < count ? &outputs : NULL, NULL, &err), &err);
    }
}

static struct result *execute(const struct machine *m, const struct run *run, const int32_t *ids,
                              size_t count)
{
    struct walsh_error err;
    struct result *result;
    struct walsh_session *session = open_session(m, run);
    good(walsh_alloc_zero(1, sizeof *result, "a result", &result, &err), &err);
    if (run->piece)
        prompt_in_pieces(session, ids, count, run->piece);
    else
        good(walsh_runtime_prompt(session, ids, count, NULL, NULL, &err), &err);
    assert_int_equal(session->kv->length, count);
    assert_true(session->has_logits);
    if (session->prefix) result->use = session->prefix->use;
    result->cache_bytes = walsh_kv_export_bytes(session->kv, (uint32_t)count);
    good(walsh_alloc(result->cache_bytes, 1, "a cache's bytes", &result->cache, &err), &err);
    good(walsh_kv_export(session->kv, 0, (uint32_t)count, result->cache, &err), &err);
    for (int step = 0;; step++) {
        memcpy(result->logits + step * VOCAB, session->logits, VOCAB * sizeof(float));
        if (step == STEPS) break;
        const int32_t id = likeliest(session->logits);
        good(walsh_runtime_step(&session, &id, 1, &err), &err);
    }
    walsh_runtime_session_close(&session);
    return result;
}

static void drop(struct result **result)
{
    walsh_free((*result)->cache);
    walsh_free(*result);
    *result = NULL;
}

/* The prompt with a store is `fresh` to the bit, with so many tokens from the store. */
static void expect(const char *what, const struct machine *m, const struct run *run, const int32_t *ids,
                   size_t count, const struct result *fresh, uint32_t tokens, uint32_t stored)
{
    struct result *got = execute(m, run, ids, count);
    if (got->use.tokens != tokens || got->use.stored != stored)
        fail_msg("%s, %zu tokens: %u from the store and %u into it, expected %u and %u", what, count,
                 got->use.tokens, got->use.stored, tokens, stored);
    if (memcmp(got->logits, fresh->logits, sizeof fresh->logits) != 0)
        fail_msg("%s, %zu tokens: other logits than a fresh run's", what, count);
    if (got->cache_bytes != fresh->cache_bytes || memcmp(got->cache, fresh->cache, fresh->cache_bytes) != 0)
        fail_msg("%s, %zu tokens: another cache than a fresh run's", what, count);
    drop(&got);
}

static const struct {
    const char *name;
    struct walsh_kv_policy policy;
} caches[] = {
    {"f32", {.type = WALSH_KV_F32}},
    {"f16", {.type = WALSH_KV_F16}},
    {"turbo K4V4", {.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4, .seed = 42}},
    {"turbo K3V5", {.type = WALSH_KV_TURBO, .key_bits = 3, .value_bits = 5, .seed = 42}},
    {"turbo between f16", {.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4, .seed = 42, .skip = 1}},
    {"turbo, recent 40", {.type = WALSH_KV_TURBO, .key_bits = 2, .value_bits = 2, .seed = 42, .recent = 40}},
    {"turbo between f16, recent 600",
     {.type = WALSH_KV_TURBO, .key_bits = 3, .value_bits = 3, .seed = 42, .skip = 1, .recent = 600}},
};
#define CACHES (sizeof caches / sizeof *caches)

static void a_hit_is_a_fresh_run(void **state)
{
    (void)state;
    const uint32_t counts[] = {1, 512, test_tiny() ? 530 : 800};
    int32_t ids[CONTEXT];
    for (size_t c = 0; c < CACHES; c++) {
        struct machine one, three;
        open_machine(&one, test_model(), 1, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
        open_machine(&three, test_model(), 3, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
        for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
            if (test_small() && i != c % 3) continue;
            const uint32_t count = counts[i], whole = count / 512 * 512;
            const uint32_t more = test_tiny() ? whole + 30 : CONTEXT - STEPS;
            char name[40];
            snprintf(name, sizeof name, "hit-%zu-%zu", c, i);
            struct walsh_prefix_store *store = open_store(name);
            const struct run plain = {.policy = &caches[c].policy},
                             with = {.store = store, .policy = &caches[c].policy};
            make_prompt(ids, CONTEXT, 1, CONTEXT);
            struct result *fresh = execute(&three, &plain, ids, count);
            expect(caches[c].name, &one, &with, ids, count, fresh, 0, count);
            expect(caches[c].name, &three, &with, ids, count, fresh, count, 0);
            expect(caches[c].name, &one, &with, ids, count, fresh, count, 0);
            drop(&fresh);
            /* Another end: what is common is taken over in whole chunks. */
            make_prompt(ids, CONTEXT, 2, whole ? whole + 1 : 0);
            fresh = execute(&one, &plain, ids, more);
            expect(caches[c].name, &three, &with, ids, more, fresh, whole, more - whole);
            drop(&fresh);
            walsh_store_close(&store);
        }
        assert_int_equal(told.count, 0);
        close_machine(&one);
        close_machine(&three);
    }
}

static void pieces_are_stored_where_they_leave_the_same_bits(void **state)
{
    (void)state;
    static const size_t pieces[] = {100, 256, 512, 1000};
    int32_t ids[CONTEXT];
    struct machine m;
    open_machine(&m, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_BF16);
    make_prompt(ids, CONTEXT, 1, 0);
    for (size_t c = 1; c < 3; c++) /* f16, turbo */
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i += test_tiny() ? 2 : 1) {
            char name[40];
            snprintf(name, sizeof name, "pieces-%zu-%zu", c, i);
            struct walsh_prefix_store *store = open_store(name);
            const struct run plain = {.policy = &caches[c].policy},
                             cut = {.store = store, .policy = &caches[c].policy, .piece = pieces[i]},
                             with = {.store = store, .policy = &caches[c].policy};
            /* A packed cache's chunks that do not come whole have other bits: none of them is stored. */
            const uint32_t stored = c == 1 || pieces[i] >= 512 ? LONG : 0;
            struct result *fresh = execute(&m, &plain, ids, LONG), *first = execute(&m, &cut, ids, LONG);
            assert_int_equal(first->use.stored, stored);
            if (stored) assert_memory_equal(first->logits, fresh->logits, sizeof fresh->logits);
            expect("pieces", &m, &with, ids, LONG, fresh, stored, LONG - stored);
            expect("pieces", &m, &cut, ids, LONG, fresh, LONG, 0);
            drop(&fresh);
            drop(&first);
            walsh_store_close(&store);
        }
    close_machine(&m);
}

/* ---- keys */

static void copy_file(const char *from, const char *to, long flip)
{
    static uint8_t data[32 << 20];
    FILE *file = fopen(from, "rb");
    assert_non_null(file);
    const size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    if (flip > 0) data[size - (size_t)flip] ^= 1;
    file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* A copy of the model; `flip` > 0: with the lowest bit of the byte so far from the end of its weights
 * changed; `text`: behind config.json. */
static const char *copy_model(const char *name, long flip, const char *text)
{
    char path[100], from[600];
    assert_int_equal(mkdir(temporary_path(name), 0700), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", name);
    snprintf(from, sizeof from, "%s/model.safetensors", test_model());
    copy_file(from, temporary_path(path), flip);
    snprintf(path, sizeof path, "%s/config.json", name);
    snprintf(from, sizeof from, "%s/config.json", test_model());
    copy_file(from, temporary_path(path), 0);
    FILE *file = fopen(temporary_path(path), "ab");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    return temporary_path(name);
}

static struct walsh_adapter *random_adapter(const struct machine *m, const char *name, uint64_t seed)
{
    struct walsh_error err;
    struct walsh_adapter *adapter;
    good(walsh_adapter_synthesize(name, 4, seed, m->graph, WALSH_FORMAT_F32, &adapter, &err), &err);
    return adapter;
}

/* Roots seen so far; no two alternatives may have the same. */
struct roots {
    struct walsh_prefix_key keys[64];
    const char *names[64];
    size_t count;
};

static void add_root(struct roots *roots, const char *name, const struct walsh_prefix_root *root)
{
    struct walsh_error err;
    struct walsh_prefix_key key, again;
    good(walsh_prefix_root_key(root, &key, &err), &err);
    good(walsh_prefix_root_key(root, &again, &err), &err);
    assert_memory_equal(&key, &again, sizeof key);
    for (size_t i = 0; i < roots->count; i++)
        if (memcmp(&roots->keys[i], &key, sizeof key) == 0)
            fail_msg("%s and %s have the same key", name, roots->names[i]);
    assert_true(roots->count < 64);
    roots->names[roots->count] = name;
    roots->keys[roots->count++] = key;
}

static struct walsh_prefix_root root_of(const struct machine *m, struct walsh_prefix_key *model,
                                        const struct walsh_kv_shape *shape)
{
    struct walsh_error err;
    good(walsh_prefix_model_key(m->graph, &m->queue, model, &err), &err);
    return (struct walsh_prefix_root){.model = model, .graph = m->graph, .queue = &m->queue, .shape = shape};
}

static void add_caches(struct roots *roots, struct walsh_prefix_root root, const struct machine *m)
{
    const struct walsh_kv_policy turbo = {.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4, .seed = 42};
    struct {
        const char *name;
        struct walsh_kv_policy policy;
    } variants[] = {{"f32", {.type = WALSH_KV_F32}},
                    {"turbo", turbo},
                    {"key bits", turbo},
                    {"value bits", turbo},
                    {"skip", turbo},
                    {"recent", turbo},
                    {"seed", turbo},
                    {"prod", turbo},
                    {"no rotation", turbo},
                    {"no correction", turbo}};
    variants[2].policy.key_bits = 5;
    variants[3].policy.value_bits = 5;
    variants[4].policy.skip = 1;
    variants[5].policy.recent = 8;
    variants[6].policy.seed = 43;
    variants[7].policy.prod_keys = true;
    variants[8].policy.no_rotation = true;
    variants[9].policy.no_correction = true;
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        const struct walsh_kv_shape shape = walsh_session_kv_shape(m->graph, CONTEXT, &variants[i].policy);
        root.shape = &shape;
        add_root(roots, variants[i].name, &root);
    }
    bool windowed[5] = {[2] = true};
    struct walsh_kv_shape shape = walsh_session_kv_shape(m->graph, CONTEXT, &turbo);
    shape.windowed = windowed;
    root.shape = &shape;
    add_root(roots, "a layer with a window", &root);
}

static void add_adapters(struct roots *roots, struct walsh_prefix_root root, const struct machine *m)
{
    struct walsh_error err;
    struct walsh_adapter *a = random_adapter(m, "a", 1), *b = random_adapter(m, "b", 2);
    const struct {
        const char *name;
        struct walsh_adapter_choice choices[2];
        size_t count;
    } variants[] = {
        {"adapter a", {{a, 1}}, 1},    {"adapter b", {{b, 1}}, 1},    {"scale", {{a, 0.5f}}, 1},
        {"a, b", {{a, 1}, {b, 1}}, 2}, {"b, a", {{b, 1}, {a, 1}}, 2},
    };
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        struct walsh_adapter_set *set;
        good(walsh_adapter_set_open(variants[i].choices, variants[i].count, &set, &err), &err);
        root.adapters = set;
        add_root(roots, variants[i].name, &root);
        walsh_adapter_set_close(&set);
    }
    /* The last bit of the last update. */
    struct walsh_adapter_linear *u = &a->updates[a->count - 1];
    uint32_t *value = (uint32_t *)(uintptr_t)u->b;
    value[u->rank * 16 - 1] ^= 1;
    struct walsh_adapter_set *set;
    good(walsh_adapter_set_open(variants[0].choices, 1, &set, &err), &err);
    root.adapters = set;
    add_root(roots, "another bit of the adapter", &root);
    walsh_adapter_set_close(&set);
    walsh_adapter_release(&a);
    walsh_adapter_release(&b);
}

/* Kernels that this machine does not choose by itself; BEST where it has one kind only. */
static enum walsh_cpu_level other_kernels(void)
{
    const char *features = walsh_cpu_features();
    if (strstr(features, "avx512bw")) return WALSH_CPU_AVX2;
    return strstr(features, "avx2") ? WALSH_CPU_REFERENCE : WALSH_CPU_BEST;
}

static void everything_that_matters_is_in_the_key(void **state)
{
    (void)state;
    struct roots roots = {.count = 0};
    struct machine m, other;
    struct walsh_prefix_key key, other_key;
    open_machine(&m, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    const struct walsh_kv_shape shape = walsh_session_kv_shape(m.graph, CONTEXT, &caches[1].policy);
    struct walsh_prefix_root root = root_of(&m, &key, &shape), variant = root;
    add_root(&roots, "itself", &root);
    variant.build = "another build";
    add_root(&roots, "build", &variant);
    variant = root;
    variant.salt = "tenant 1";
    variant.salt_size = 8;
    add_root(&roots, "salt", &variant);
    variant.salt_size = 7;
    add_root(&roots, "shorter salt", &variant);
    add_caches(&roots, root, &m);
    add_adapters(&roots, root, &m);

    const struct {
        const char *name;
        enum walsh_cpu_level level;
        enum walsh_activation_type activations;
    } machines[] = {{"bf16 activations", WALSH_CPU_BEST, WALSH_ACTIVATION_BF16},
                    {"other kernels", other_kernels(), WALSH_ACTIVATION_F32}};
    for (size_t i = 0; i < (other_kernels() == WALSH_CPU_BEST ? 1 : sizeof machines / sizeof *machines);
         i++) {
        open_machine(&other, test_model(), 1, machines[i].level, machines[i].activations);
        variant = root_of(&other, &other_key, &shape);
        assert_memory_equal(&other_key, &key, sizeof key); /* threads and kernels are not the model's */
        add_root(&roots, machines[i].name, &variant);
        close_machine(&other);
    }
    const struct {
        const char *name;
        long flip;
        const char *text;
    } models[] = {{"first", test_small() ? 600000 : 16000000, ""}, {"last", 1, ""}, {"text", 0, "\n"}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        open_machine(&other, copy_model(models[i].name, models[i].flip, models[i].text), 1, WALSH_CPU_BEST,
                     WALSH_ACTIVATION_F32);
        variant = root_of(&other, &other_key, &shape);
        add_root(&roots, models[i].name, &variant);
        close_machine(&other);
    }
    /* And a copy of the model elsewhere is the same model; so is the same cache of another capacity. */
    open_machine(&other, copy_model("copy", 0, ""), 3, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    const struct walsh_kv_shape smaller = walsh_session_kv_shape(m.graph, 600, &caches[1].policy);
    variant = root_of(&other, &other_key, &smaller);
    struct walsh_error err;
    good(walsh_prefix_root_key(&variant, &key, &err), &err);
    assert_memory_equal(&key, &roots.keys[0], sizeof key);
    close_machine(&other);
    close_machine(&m);
}

/* One store for all: each of these runs finds nothing at first, and itself afterwards. */
static void other_circumstances_miss(void **state)
{
    (void)state;
    int32_t ids[CONTEXT];
    struct walsh_error err;
    struct machine m, bf16, lesser, changed;
    open_machine(&m, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    open_machine(&bf16, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_BF16);
    open_machine(&lesser, test_model(), 2, other_kernels(), WALSH_ACTIVATION_F32);
    open_machine(&changed, copy_model("changed", test_small() ? 300000 : 5000000, ""), 2, WALSH_CPU_BEST,
                 WALSH_ACTIVATION_F32);
    struct walsh_adapter *lora;
    const struct walsh_adapter_loading loading = {.use_mmap = true, .storage = WALSH_FORMAT_F32};
    if (test_small())
        lora = random_adapter(&m, "lora", 5);
    else
        good(walsh_adapter_load("lora", ADAPTER, m.graph, &loading, NULL, &lora, &err), &err);
    const struct walsh_adapter_choice full = {lora, 1}, half = {lora, 0.5f};
    struct walsh_prefix_store *store = open_store("circumstances");
    const struct {
        const char *name;
        const struct machine *machine;
        struct run run;
    } variants[] = {
        {"f16", &m, {.policy = &caches[1].policy}},
        {"f32", &m, {.policy = &caches[0].policy}},
        {"turbo", &m, {.policy = &caches[2].policy}},
        {"turbo of other bits", &m, {.policy = &caches[3].policy}},
        {"turbo with f16 layers", &m, {.policy = &caches[4].policy}},
        {"bf16 activations", &bf16, {.policy = &caches[1].policy}},
        {"other kernels", &lesser, {.policy = &caches[1].policy}},
        {"a changed weight", &changed, {.policy = &caches[1].policy}},
        {"a salt", &m, {.policy = &caches[1].policy, .salt = "x"}},
        {"an adapter", &m, {.policy = &caches[1].policy, .adapters = &full, .adapter_count = 1}},
        {"an adapter at half scale",
         &m,
         {.policy = &caches[1].policy, .adapters = &half, .adapter_count = 1}},
    };
    make_prompt(ids, CONTEXT, 1, 0);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        struct run run = variants[i].run;
        if (variants[i].machine == &lesser && other_kernels() == WALSH_CPU_BEST) continue;
        if (test_tiny() && i > 2 && i % 2 == 0) continue; /* their keys differ: the test above */
        struct result *fresh = execute(variants[i].machine, &run, ids, 520);
        run.store = store;
        expect(variants[i].name, variants[i].machine, &run, ids, 520, fresh, 0, 520);
        expect(variants[i].name, variants[i].machine, &run, ids, 520, fresh, 520, 0);
        ids[519] ^= 1; /* the last token: the chunk before it serves still */
        struct result *another = execute(variants[i].machine, &run, ids, 520);
        assert_int_equal(another->use.tokens, 512);
        ids[519] ^= 1;
        drop(&another);
        drop(&fresh);
        if (test_tiny() && i > 0) continue;
        ids[0] ^= 1;
        another = execute(variants[i].machine, &run, ids, 520);
        assert_int_equal(another->use.tokens, 0);
        ids[0] ^= 1;
        drop(&another);
    }
    walsh_store_close(&store);
    walsh_adapter_release(&lora);
    close_machine(&m);
    close_machine(&bf16);
    close_machine(&lesser);
    close_machine(&changed);
}

/* ---- what is never stored */

static size_t count_blocks(const char *store)
{
    size_t count = 0;
    DIR *list = opendir(temporary_path(store));
    struct dirent *entry;
    while (list && (entry = readdir(list))) count += strstr(entry->d_name, ".block") != NULL;
    if (list) closedir(list);
    return count;
}

static void decoded_tokens_are_never_stored(void **state)
{
    (void)state;
    int32_t ids[CONTEXT];
    struct walsh_error err;
    struct machine m;
    open_machine(&m, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    make_prompt(ids, CONTEXT, 1, 0);
    struct walsh_prefix_store *store = open_store("decoded");
    const struct run run = {.store = store, .policy = &caches[1].policy};

    /* A prompt, decoded tokens beyond the chunk, and a second prompt behind them. */
    struct walsh_session *session = open_session(&m, &run);
    good(walsh_runtime_prompt(session, ids, 500, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);
    for (int i = 0; i < 40; i++) good(walsh_runtime_step(&session, ids + i, 1, &err), &err);
    good(walsh_runtime_prompt(session, ids, LONG - 516, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);

    /* Decoded tokens where the prompt under way had its own: the rest of the prompt is no chain any more. */
    static float hidden[CONTEXT * HIDDEN];
    const struct walsh_prompt_outputs outputs = {.hidden = hidden};
    good(walsh_runtime_trim(session, 0, &err), &err);
    walsh_prefix_begin(session, ids, LONG);
    good(walsh_runtime_prompt(session, ids, 500, &outputs, NULL, &err), &err);
    good(walsh_runtime_trim(session, 490, &err), &err);
    for (int i = 490; i < 500; i++) good(walsh_runtime_step(&session, ids + i, 1, &err), &err);
    good(walsh_runtime_prompt(session, ids + 500, LONG - 500, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);

    /* Another prompt than the one that was begun. */
    int32_t other[CONTEXT];
    make_prompt(other, CONTEXT, 2, 0);
    good(walsh_runtime_trim(session, 0, &err), &err);
    walsh_prefix_begin(session, ids, 600);
    good(walsh_runtime_prompt(session, other, 600, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);

    /* A decoded token in the middle. */
    good(walsh_runtime_trim(session, 0, &err), &err);
    walsh_prefix_begin(session, ids, LONG);
    good(walsh_runtime_prompt(session, ids, 500, &outputs, NULL, &err), &err);
    good(walsh_runtime_step(&session, ids + 500, 1, &err), &err);
    good(walsh_runtime_prompt(session, ids + 501, LONG - 501, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);

    /* Decode arithmetic, whatever it is called. */
    walsh_runtime_session_close(&session);
    struct walsh_kv_shape shape = walsh_session_kv_shape(m.graph, CONTEXT, &caches[2].policy);
    shape.rows = WALSH_CHUNK_ROWS;
    good(walsh_runtime_session_open_shape(m.runner, &shape, &session, &err), &err);
    good(walsh_runtime_set_store(session, store, NULL, 0, &err), &err);
    walsh_prefix_begin(session, ids, 600);
    const struct walsh_prompt_outputs decode = {.hidden = hidden, .decode = true};
    good(walsh_runtime_prompt(session, ids, 600, &decode, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);

    /* Other adapters in the middle. */
    walsh_runtime_session_close(&session);
    struct walsh_adapter *a = random_adapter(&m, "a", 1);
    const struct walsh_adapter_choice choice = {a, 1};
    session = open_session(&m, &run);
    walsh_prefix_begin(session, ids, LONG);
    good(walsh_runtime_prompt(session, ids, 100, &outputs, NULL, &err), &err);
    good(walsh_runtime_set_adapters(session, &choice, 1, &err), &err);
    good(walsh_runtime_prompt(session, ids + 100, LONG - 100, NULL, NULL, &err), &err);
    assert_int_equal(count_blocks("decoded"), 1);
    walsh_runtime_session_close(&session);
    walsh_adapter_release(&a);
    walsh_store_close(&store);
    close_machine(&m);
}

static void synthetic_models_and_devices_have_no_store(void **state)
{
    (void)state;
    struct walsh_error err;
    struct machine m;
    open_machine(&m, test_model(), 1, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    m.graph->checkpoint.file_count = 0; /* as a synthetic model's */
    struct walsh_prefix_store *store = open_store("synthetic");
    const struct run run = {.policy = &caches[1].policy};
    struct walsh_session *session = open_session(&m, &run);
    assert_int_equal(walsh_runtime_set_store(session, store, NULL, 0, &err), WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message, "a synthetic model has no files to know it by: no prefix store");
    m.graph->checkpoint.file_count = 1;
    const struct walsh_memory nameless = {0};
    m.queue.memory = &nameless; /* as a device's queue has it */
    assert_int_equal(walsh_runtime_set_store(session, store, NULL, 0, &err), WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message, "this device cannot be told from others: no prefix store");
    m.queue.memory = NULL;
    assert_int_equal(walsh_runtime_set_store(session, store, NULL, 0, &err), WALSH_OK);
    assert_int_equal(walsh_runtime_set_store(session, NULL, NULL, 0, &err), WALSH_OK);
    assert_null(session->prefix);
    walsh_runtime_session_close(&session);
    walsh_store_close(&store);
    close_machine(&m);
}

/* ---- faults */

/* The file of the prompt's block number `number`, changed at `at`. */
static void damage_block(const struct machine *m, const struct run *run, const int32_t *ids, uint32_t number,
                         long at)
{
    struct walsh_error err;
    char text[WALSH_PREFIX_KEY_TEXT], path[200];
    struct walsh_prefix_key model, key;
    const struct walsh_kv_shape shape = walsh_session_kv_shape(m->graph, CONTEXT, run->policy);
    const struct walsh_prefix_root root = root_of(m, &model, &shape);
    good(walsh_prefix_root_key(&root, &key, &err), &err);
    for (uint32_t i = 0; i <= number; i++)
        good(walsh_prefix_key_chain(&key, ids + i * 512, i < 1 ? 512 : LONG - 512, &key, &err), &err);
    snprintf(path, sizeof path, "faults/%s.block", walsh_prefix_key_text(&key, text));
    const int fd = open(temporary_path(path), O_RDWR);
    assert_true(fd >= 0);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 8;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void faults_cost_time_only(void **state)
{
    (void)state;
    int32_t ids[CONTEXT];
    struct walsh_error err;
    struct machine m;
    open_machine(&m, test_model(), 2, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    make_prompt(ids, CONTEXT, 1, 0);
    struct walsh_prefix_store *store = open_store("faults");
    const struct run plain = {.policy = &caches[2].policy},
                     with = {.store = store, .policy = &caches[2].policy};
    struct result *fresh = execute(&m, &plain, ids, LONG);

    /* A full disk. */
    struct rlimit before, small = {1000, 0};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    struct result *full = execute(&m, &with, ids, LONG);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_memory_equal(full->logits, fresh->logits, sizeof fresh->logits);
    assert_int_equal(full->use.stored, 0);
    assert_int_equal(told.count, 1);
    assert_non_null(strstr(told.last, "a block of the prompt is not stored: "));
    drop(&full);
    expect("after a full disk", &m, &with, ids, LONG, fresh, 0, LONG);

    /* A damaged block is computed again, with what is behind it, and replaced. */
    for (uint32_t number = 0; number < 2; number++) {
        told.count = 0;
        damage_block(&m, &with, ids, number, number ? 5000 : 9000);
        expect("damaged", &m, &with, ids, LONG, fresh, number * 512, LONG - number * 512);
        assert_int_equal(told.count, 1);
        assert_non_null(strstr(told.last, "skipped: its checksum is wrong"));
        expect("repaired", &m, &with, ids, LONG, fresh, LONG, 0);
    }

    /* An abort before the second chunk leaves the session empty and the first chunk stored. */
    assert_int_equal(temporary_remove_entry(temporary_path("faults/lock"), NULL, 0, NULL), 0);
    make_prompt(ids, CONTEXT, 3, 0);
    struct walsh_session *session = open_session(&m, &with);
    told.abort_after = 1;
    assert_int_equal(walsh_runtime_prompt(session, ids, LONG, NULL, NULL, &err), WALSH_E_ABORTED);
    assert_int_equal(session->kv->length, 0);
    assert_false(session->has_logits);
    assert_false(session->prefix->active);
    told.abort_after = 0;
    assert_int_equal(walsh_runtime_prompt(session, ids, LONG, NULL, NULL, &err), WALSH_E_ABORTED);
    assert_int_equal(session->prefix->use.tokens, 512);
    assert_int_equal(session->kv->length, 0);
    told.abort_after = -1;
    walsh_runtime_session_close(&session);
    drop(&fresh);
    fresh = execute(&m, &plain, ids, LONG);
    expect("after an abort", &m, &with, ids, LONG, fresh, 512, LONG - 512);
    drop(&fresh);
    walsh_store_close(&store);
    close_machine(&m);
}

static int process_child(const struct result *fresh, const int32_t *ids)
{
    struct machine m;
    open_machine(&m, test_model(), 1, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    struct walsh_prefix_store *store = open_store("processes");
    const struct run with = {.store = store, .policy = &caches[2].policy};
    uint32_t reused = 0;
    for (int i = 0; i < 5; i++) {
        struct result *got = execute(&m, &with, ids, LONG);
        if (memcmp(got->logits, fresh->logits, sizeof fresh->logits) != 0) return 2;
        reused += got->use.tokens;
        drop(&got);
    }
    walsh_store_close(&store);
    close_machine(&m);
    return told.count ? 3 : reused >= 4 * LONG ? 0 : 4;
}

static void two_processes_agree(void **state)
{
    (void)state;
    int32_t ids[CONTEXT];
    struct machine m;
    make_prompt(ids, CONTEXT, 1, 0);
    open_machine(&m, test_model(), 1, WALSH_CPU_BEST, WALSH_ACTIVATION_F32);
    const struct run plain = {.policy = &caches[2].policy};
    struct result *fresh = execute(&m, &plain, ids, LONG);
    close_machine(&m);
    fflush(NULL);
    pid_t children[2];
    for (int i = 0; i < 2; i++)
        if ((children[i] = fork()) == 0) _exit(process_child(fresh, ids));
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) != 0) fail_msg("child %d ended with %d", i, WEXITSTATUS(status));
    }
    assert_int_equal(count_blocks("processes"), 2);
    drop(&fresh);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hit_is_a_fresh_run),
        cmocka_unit_test(pieces_are_stored_where_they_leave_the_same_bits),
        cmocka_unit_test(everything_that_matters_is_in_the_key),
        cmocka_unit_test(other_circumstances_miss),
        cmocka_unit_test(decoded_tokens_are_never_stored),
        cmocka_unit_test(synthetic_models_and_devices_have_no_store),
        cmocka_unit_test(faults_cost_time_only),
        cmocka_unit_test(two_processes_agree),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

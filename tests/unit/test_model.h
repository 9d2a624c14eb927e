/* The model that tests of whole models run: models/bookworm-8m, or where a test is to be small (unit/share.h) a random one of the
 * same kind and vocabulary that takes a twentieth of its time per token. */
#ifndef WALSH_TESTS_TEST_MODEL_H
#define WALSH_TESTS_TEST_MODEL_H

#include <ftw.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/random.h"
#include "base/scalar.h"
#include "checkpoint/safetensors.h"
#include "unit/share.h"

#define TEST_MODEL WALSH_SOURCE_DIR "/models/bookworm-8m"

static char test_model_path[256];

static inline int test_model_remove_entry(const char *path, const struct stat *info, int kind,
                                          struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static inline void test_model_remove(void)
{
    (void)nftw(test_model_path, test_model_remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static inline void test_model_require(enum walsh_status status, const struct walsh_error *err)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "the small model: %s\n", err->message);
    exit(2);
}

/* Random bf16 weights as large as a trained model's, norms of 1. */
static inline void test_model_write_tensors(const char *path)
{
    enum { HIDDEN = 32, WIDE = 48, LAYERS = 3, HEAD = 64, VOCAB = 8192 };
    static const struct {
        const char *name;
        uint32_t rows, cols;
    } parts[] = {{"input_layernorm", HIDDEN, 0},     {"self_attn.q_proj", HEAD, HIDDEN},
                 {"self_attn.k_proj", HEAD, HIDDEN}, {"self_attn.v_proj", HEAD, HIDDEN},
                 {"self_attn.o_proj", HIDDEN, HEAD}, {"post_attention_layernorm", HIDDEN, 0},
                 {"mlp.gate_proj", WIDE, HIDDEN},    {"mlp.up_proj", WIDE, HIDDEN},
                 {"mlp.down_proj", HIDDEN, WIDE}};
    struct walsh_safetensors_plan plan = {0};
    struct walsh_random random;
    struct walsh_error err = {0};
    const uint64_t table[] = {VOCAB, HIDDEN}, norm[] = {HIDDEN};
    uint8_t *file;
    test_model_require(walsh_plan_add(&plan, "model.embed_tokens.weight", WALSH_BF16, 2, table, &err), &err);
    test_model_require(walsh_plan_add(&plan, "model.norm.weight", WALSH_BF16, 1, norm, &err), &err);
    for (unsigned layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            char name[100];
            const uint64_t shape[] = {parts[i].rows, parts[i].cols};
            snprintf(name, sizeof name, "model.layers.%u.%s.weight", layer, parts[i].name);
            test_model_require(walsh_plan_add(&plan, name, WALSH_BF16, parts[i].cols ? 2 : 1, shape, &err),
                               &err);
        }
    test_model_require(walsh_plan_finish(&plan, &err), &err);
    test_model_require(walsh_alloc_zero(plan.file_bytes, 1, "a file", &file, &err), &err);
    memcpy(file, plan.header, plan.header_bytes);
    walsh_random_seed(&random, 1);
    for (size_t t = 0; t < plan.count; t++)
        for (size_t i = 0; i < plan.tensors[t].bytes / 2; i++) {
            const double value = plan.tensors[t].rank == 1 ? 1 : .15 * walsh_random_normal(&random);
            const uint16_t half = walsh_bf16_from_f32((float)value);
            memcpy(file + plan.offsets[t] + 2 * i, &half, sizeof half);
        }
    test_model_require(walsh_file_write(path, file, plan.file_bytes, &err), &err);
    walsh_free(file);
    walsh_plan_close(&plan);
}

/* Its directory, with bookworm's tokenizer; removed when the program ends. */
static inline const char *test_model(void)
{
    static const char config[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 32, \"intermediate_size\": 48, "
        "\"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 1, \"head_dim\": 64, \"vocab_size\": 8192, \"max_position_embeddings\": "
        "1024, "
        "\"rms_norm_eps\": 1e-05, \"tie_word_embeddings\": true, \"bos_token_id\": 0, \"eos_token_id\": 0}\n";
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    struct walsh_error err = {0};
    char path[300], target[600];
    if (!test_small()) return TEST_MODEL;
    if (test_model_path[0]) return test_model_path;
    const char *root = getenv("TMPDIR");
    snprintf(test_model_path, sizeof test_model_path, "%s/walsh-test-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(test_model_path)) exit(2);
    atexit(test_model_remove);
    snprintf(path, sizeof path, "%s/config.json", test_model_path);
    test_model_require(walsh_file_write(path, config, sizeof config - 1, &err), &err);
    snprintf(path, sizeof path, "%s/model.safetensors", test_model_path);
    test_model_write_tensors(path);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", test_model_path, files[i]);
        snprintf(target, sizeof target, "%s/%s", TEST_MODEL, files[i]);
        if (symlink(target, path) != 0) exit(2);
    }
    return test_model_path;
}

#endif

/* Model directories: good ones, sharded and single, and every way that one can be incomplete. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>

#include "checkpoint/checkpoint.h"
#include "unit/temporary.h"
#include "unit/checkpoint_files.h"

#define GGUF_ADVICE                                                                                          \
    ": GGUF is not read. walsh reads Hugging Face directories (config.json, tokenizer.json, "                \
    "*.safetensors): get the "                                                                               \
    "model's original repository, or convert the file (transformers: from_pretrained(DIRECTORY, "            \
    "gguf_file=FILE), then "                                                                                 \
    "save_pretrained)"

/* An empty directory of this name under the temporary one */
static const char *fresh(const char *name)
{
    const char *path = temporary_path(name);
    assert_int_equal(mkdir(path, 0777), 0);
    return path;
}

static const char *in(const char *directory, const char *name)
{
    static char buffers[8][600];
    static unsigned turn;
    char *buffer = buffers[turn++ % 8];
    snprintf(buffer, sizeof buffers[0], "%s/%s", directory, name);
    return buffer;
}

static void refuse(const char *path, enum walsh_status status, const char *message)
{
    struct walsh_error err = {0};
    struct walsh_checkpoint ck;
    assert_int_equal(walsh_checkpoint_open(path, true, &ck, &err), status);
    assert_string_equal(without_directory(err.message), message);
    assert_null(ck.files);
    assert_null(ck.config_json);
}

static const float four[4] = {1, -2.5f, 0, 3};
static const struct planned some[] = {
    {"model.norm.weight", WALSH_F32, 1, {4}, four},
    {"lm_head.weight", WALSH_BF16, 2, {2, 4}, NULL},
};

static void test_single(void **state)
{
    (void)state;
    const char *path = fresh("single");
    put_text(in(path, "config.json"), SMALL_CONFIG);
    put_text(in(path, "generation_config.json"), "{\"temperature\":0.5,\"eos_token_id\":[3]}");
    put_tensors(in(path, "model.safetensors"), some, 2);
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    assert_string_equal(ck.directory, path);
    assert_string_equal(ck.config_json, SMALL_CONFIG);
    assert_int_equal(ck.config_size, strlen(SMALL_CONFIG));
    assert_int_equal(ck.config.hidden, 4);
    assert_true(ck.generation.temperature == 0.5);
    assert_int_equal(ck.file_count, 1);
    assert_int_equal(ck.tensor_count, 2);
    assert_int_equal(ck.bytes, ck.files[0].file.size);
    assert_string_equal(ck.tensors[0]->name, "lm_head.weight");
    assert_null(walsh_checkpoint_find(&ck, "absent"));

    float out[4];
    const struct walsh_tensor *t;
    const uint64_t shape[2] = {4, 4};
    assert_int_equal(walsh_checkpoint_take(&ck, "model.norm.weight", WALSH_FLOAT_DTYPES, 1, shape, &t, &err),
                     WALSH_OK);
    walsh_tensor_to_f32(t, out);
    assert_memory_equal(out, four, sizeof out);
    walsh_checkpoint_close(&ck);
    walsh_checkpoint_close(&ck);
}

static void test_take_refuses(void **state)
{
    (void)state;
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    const struct walsh_tensor *t;
    const uint64_t shape[3] = {2, 4, 1}, other[2] = {4, 2};
    if (walsh_checkpoint_open(temporary_path("single"), true, &ck, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    assert_int_equal(walsh_checkpoint_take(&ck, "absent", WALSH_FLOAT_DTYPES, 2, shape, &t, &err),
                     WALSH_E_NOT_FOUND);
    assert_string_equal(without_directory(err.message), "DIR/single: tensor absent is missing");
    assert_int_equal(
        walsh_checkpoint_take(&ck, "lm_head.weight", 1u << WALSH_F32 | 1u << WALSH_I64, 2, shape, &t, &err),
        WALSH_E_FORMAT);
    assert_string_equal(
        without_directory(err.message),
        "DIR/single/model.safetensors: tensor lm_head.weight: dtype BF16, expected F32 or I64");
    assert_int_equal(walsh_checkpoint_take(&ck, "lm_head.weight", WALSH_FLOAT_DTYPES & ~(1u << WALSH_BF16), 2,
                                           shape, &t, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(
        without_directory(err.message),
        "DIR/single/model.safetensors: tensor lm_head.weight: dtype BF16, expected F32 or F16");
    assert_int_equal(walsh_checkpoint_take(&ck, "lm_head.weight", WALSH_FLOAT_DTYPES, 2, other, &t, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        "DIR/single/model.safetensors: tensor lm_head.weight: shape [2, 4], expected [4, 2]");
    assert_int_equal(walsh_checkpoint_take(&ck, "lm_head.weight", WALSH_FLOAT_DTYPES, 3, shape, &t, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(
        without_directory(err.message),
        "DIR/single/model.safetensors: tensor lm_head.weight: shape [2, 4], expected [2, 4, 1]");
    assert_int_equal(walsh_checkpoint_take_rank(&ck, "lm_head.weight", WALSH_FLOAT_DTYPES, 1, &t, &err),
                     WALSH_E_FORMAT);
    assert_string_equal(
        without_directory(err.message),
        "DIR/single/model.safetensors: tensor lm_head.weight: shape [2, 4], expected 1 dimensions");

    /* None of these counts as a use. */
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        "DIR/single/model.safetensors: tensor lm_head.weight (and 1 more) has no place in "
                        "LlamaForCausalLM as config.json describes it");
    assert_int_equal(walsh_checkpoint_take(&ck, "lm_head.weight", WALSH_FLOAT_DTYPES, 2, shape, &t, &err),
                     WALSH_OK);
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_E_FORMAT);
    assert_string_equal(without_directory(err.message),
                        "DIR/single/model.safetensors: tensor model.norm.weight has no "
                        "place in LlamaForCausalLM as config.json describes it");
    assert_int_equal(walsh_checkpoint_take_rank(&ck, "model.norm.weight", WALSH_FLOAT_DTYPES, 1, &t, &err),
                     WALSH_OK);
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_OK);
    walsh_checkpoint_close(&ck);
}

static void test_to_f32(void **state)
{
    (void)state;
    /* An odd address, as a mapped file may have it */
    uint8_t raw[1 + 3 * 4];
    float out[3];
    const float values[3] = {1.5f, -0.25f, 1024};
    struct walsh_tensor t = {.name = "t", .rank = 1, .shape = {3}, .data = raw + 1};
    for (unsigned kind = 0; kind < 3; kind++) {
        for (unsigned i = 0; i < 3; i++) {
            uint16_t half = kind == 1 ? walsh_f16_from_f32(values[i]) : walsh_bf16_from_f32(values[i]);
            if (kind == 0)
                memcpy(raw + 1 + 4 * i, &values[i], 4);
            else
                memcpy(raw + 1 + 2 * i, &half, 2);
        }
        t.dtype = kind == 0 ? WALSH_F32 : kind == 1 ? WALSH_F16 : WALSH_BF16;
        t.bytes = 3 * walsh_dtype_size(t.dtype);
        walsh_tensor_to_f32(&t, out);
        assert_memory_equal(out, values, sizeof out);
    }
}

static void test_old_buffers_may_stay(void **state)
{
    (void)state;
    const char *path = fresh("buffers");
    static const struct planned tensors[] = {
        {"model.layers.0.self_attn.rotary_emb.inv_freq", WALSH_F32, 1, {2}, NULL}};
    put_text(in(path, "config.json"), SMALL_CONFIG);
    put_tensors(in(path, "model.safetensors"), tensors, 1);
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    assert_int_equal(walsh_checkpoint_open(path, false, &ck, &err), WALSH_OK);
    assert_true(ck.generation.temperature == 1 && ck.generation.bos == -1); /* no generation_config.json */
    assert_int_equal(walsh_checkpoint_all_used(&ck, &err), WALSH_OK);
    walsh_checkpoint_close(&ck);
}

static void test_not_a_model(void **state)
{
    (void)state;
    refuse(temporary_path("nowhere"), WALSH_E_NOT_FOUND, "DIR/nowhere: no such directory");
    const char *path = fresh("empty");
    refuse(path, WALSH_E_NOT_FOUND, "DIR/empty: no config.json, expected a Hugging Face model directory");
    put_text(in(path, "pytorch_model.bin"), "x");
    refuse(path, WALSH_E_NOT_FOUND,
           "DIR/empty: no config.json; pytorch_model.bin looks like PyTorch weights, which are not read: "
           "convert them to "
           "safetensors (transformers: save_pretrained)");
    put_text(in(path, "config.json"), SMALL_CONFIG);
    refuse(path, WALSH_E_NOT_FOUND,
           "DIR/empty: no model.safetensors or model.safetensors.index.json; pytorch_model.bin looks like "
           "PyTorch "
           "weights, which are not read: convert them to safetensors (transformers: save_pretrained)");
    unlink(in(path, "pytorch_model.bin"));
    refuse(path, WALSH_E_NOT_FOUND,
           "DIR/empty: no model.safetensors or model.safetensors.index.json, expected a Hugging "
           "Face model directory");
    put_text(temporary_path("notes.txt"), "hello");
    refuse(temporary_path("notes.txt"), WALSH_E_ARGUMENT,
           "DIR/notes.txt: is a file, expected a Hugging Face directory (config.json, tokenizer.json, "
           "*.safetensors)");
}

static void test_gguf(void **state)
{
    (void)state;
    refuse(temporary_path("absent.gguf"), WALSH_E_UNSUPPORTED, "DIR/absent.gguf" GGUF_ADVICE);
    put_text(temporary_path("model-without-suffix"), "GGUF\3");
    refuse(temporary_path("model-without-suffix"), WALSH_E_UNSUPPORTED,
           "DIR/model-without-suffix" GGUF_ADVICE);
    const char *path = fresh("gguf");
    put_text(in(path, "model-Q4_K_M.gguf"), "GGUF\3");
    refuse(path, WALSH_E_UNSUPPORTED, "DIR/gguf/model-Q4_K_M.gguf" GGUF_ADVICE);
    put_text(in(path, "config.json"), SMALL_CONFIG);
    refuse(path, WALSH_E_UNSUPPORTED, "DIR/gguf/model-Q4_K_M.gguf" GGUF_ADVICE);
    /* A GGUF file beside the safetensors does not matter. */
    put_tensors(in(path, "model.safetensors"), some, 2);
    struct walsh_checkpoint ck;
    assert_int_equal(walsh_checkpoint_open(path, true, &ck, NULL), WALSH_OK);
    walsh_checkpoint_close(&ck);
}

static void test_bad_files_in_it(void **state)
{
    (void)state;
    const char *path = fresh("bad");
    put_text(in(path, "config.json"), "{\"architectures\":[\"BertModel\"]}");
    put_tensors(in(path, "model.safetensors"), some, 2);
    refuse(path, WALSH_E_UNSUPPORTED,
           "DIR/bad/config.json: architecture \"BertModel\" is not supported; known: LlamaForCausalLM, "
           "MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
           "GptOssForCausalLM, "
           "SmolLM3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, Lfm2ForCausalLM");
    put_text(in(path, "config.json"), "{");
    refuse(path, WALSH_E_FORMAT,
           "DIR/bad/config.json: invalid JSON at line 1, column 1: string or '}' expected near end of file");
    put_text(in(path, "config.json"), SMALL_CONFIG);
    put_text(in(path, "generation_config.json"), "{\"top_k\":-1}");
    refuse(path, WALSH_E_FORMAT, "DIR/bad/generation_config.json: top_k is -1, expected 0 to 16777216");
    unlink(in(path, "generation_config.json"));
    put_text(in(path, "model.safetensors"), "abc");
    refuse(path, WALSH_E_FORMAT,
           "DIR/bad/model.safetensors: 3 bytes, expected at least 8 for the header's length");
    unlink(in(path, "model.safetensors"));
    assert_int_equal(mkdir(in(path, "model.safetensors"), 0777), 0);
    refuse(path, WALSH_E_IO, "DIR/bad/model.safetensors: is a directory, expected a file");
    assert_int_equal(rmdir(in(path, "model.safetensors")), 0);
    put_tensors(in(path, "model.safetensors"), some, 2);
    if (geteuid() != 0) { /* root reads everything */
        chmod(in(path, "model.safetensors"), 0);
        refuse(path, WALSH_E_IO, "DIR/bad/model.safetensors: cannot open: Permission denied");
    }
}

static const struct planned first[] = {{"a", WALSH_F32, 1, {4}, four}, {"c", WALSH_U8, 1, {3}, NULL}};
static const struct planned second[] = {{"b", WALSH_F16, 1, {2}, NULL}};

static void put_index(const char *path, const char *weight_map)
{
    char text[1000];
    snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":23},\"weight_map\":%s}", weight_map);
    for (char *p = text; *p; p++)
        if (*p == '\'') *p = '"';
    put_text(in(path, "model.safetensors.index.json"), text);
}

static void test_shards(void **state)
{
    (void)state;
    const char *path = fresh("shards");
    put_text(in(path, "config.json"), SMALL_CONFIG);
    put_tensors(in(path, "one.safetensors"), first, 2);
    put_tensors(in(path, "two.safetensors"), second, 1);
    put_index(path, "{'a':'one.safetensors','b':'two.safetensors','c':'one.safetensors'}");
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    if (walsh_checkpoint_open(path, true, &ck, &err) != WALSH_OK) fail_msg("%s", err.message);
    assert_int_equal(ck.file_count, 2);
    assert_int_equal(ck.tensor_count, 3);
    assert_string_equal(ck.tensors[1]->name, "b");
    assert_string_equal(without_directory(ck.tensors[1]->file), "DIR/shards/two.safetensors");
    assert_memory_equal(walsh_checkpoint_find(&ck, "a")->data, four, sizeof four);
    assert_int_equal(ck.bytes, ck.files[0].file.size + ck.files[1].file.size);
    walsh_checkpoint_close(&ck);

    put_index(path, "{'a':'one.safetensors','b':'two.safetensors'}");
    refuse(path, WALSH_E_FORMAT,
           "DIR/shards/model.safetensors.index.json: tensor c is in one.safetensors, but not in the index");
    put_index(path, "{'a':'one.safetensors','b':'two.safetensors','c':'two.safetensors'}");
    refuse(path, WALSH_E_FORMAT,
           "DIR/shards/model.safetensors.index.json: tensor c is in one.safetensors, but the index "
           "says two.safetensors");
    put_index(path,
              "{'a':'one.safetensors','b':'two.safetensors','c':'one.safetensors','d':'one.safetensors'}");
    refuse(path, WALSH_E_FORMAT,
           "DIR/shards/model.safetensors.index.json: tensor d is not in one.safetensors nor in any "
           "other shard");
    put_index(path, "{'a':'one.safetensors','b':'three.safetensors','c':'one.safetensors'}");
    refuse(path, WALSH_E_NOT_FOUND,
           "DIR/shards/three.safetensors: is missing, but "
           "DIR/shards/model.safetensors.index.json names it: fetch all shards of the model");
    put_tensors(in(path, "three.safetensors"), first, 1);
    put_index(path, "{'a':'one.safetensors','b':'two.safetensors','c':'three.safetensors'}");
    refuse(path, WALSH_E_FORMAT,
           "tensor a is in two shards: DIR/shards/one.safetensors and DIR/shards/three.safetensors");
}

static void test_bad_index(void **state)
{
    (void)state;
    const char *path = fresh("index");
    put_text(in(path, "config.json"), SMALL_CONFIG);
    static const char *const names[] = {"'../one.safetensors'", "'/etc/passwd'", "''", "'one.bin'", "7"};
    static const char *const shown[] = {"../one.safetensors", "/etc/passwd", "", "one.bin", "an integer"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char map[100], message[300];
        snprintf(map, sizeof map, "{'a':%s}", names[i]);
        put_index(path, map);
        snprintf(message, sizeof message,
                 "DIR/index/model.safetensors.index.json: tensor a: its shard is %s, expected the name of a "
                 ".safetensors "
                 "file in the same directory",
                 shown[i]);
        refuse(path, WALSH_E_FORMAT, message);
    }
    put_index(path, "{}");
    refuse(path, WALSH_E_FORMAT, "DIR/index/model.safetensors.index.json: weight_map is empty");
    put_index(path, "7");
    refuse(path, WALSH_E_FORMAT,
           "DIR/index/model.safetensors.index.json: weight_map is an integer, expected an object");
    put_index(path, "{'a':'one.safetensors','a':'one.safetensors'}");
    refuse(path, WALSH_E_FORMAT,
           "DIR/index/model.safetensors.index.json: invalid JSON at line 1, column 69: duplicate "
           "object key near '\"a\"'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_single),          cmocka_unit_test(test_take_refuses),
        cmocka_unit_test(test_to_f32),          cmocka_unit_test(test_old_buffers_may_stay),
        cmocka_unit_test(test_not_a_model),     cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_bad_files_in_it), cmocka_unit_test(test_shards),
        cmocka_unit_test(test_bad_index),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

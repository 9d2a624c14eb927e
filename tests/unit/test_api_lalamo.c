/* A checkpoint of lalamo as a caller meets it: its older layout, several rows in one step, what each low-rank
 * part does, and files that are not as they should be. That the logits are lalamo's is golden_tiny_lalamo's
 * business. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/safetensors.h"
#include "unit/temporary.h"
#include "walsh.h"

#define FIXTURE WALSH_SOURCE_DIR "/tests/fixtures/golden/tiny-lalamo"
#define VOCAB 256
#define TOKENS 24

static struct walsh_context *context;

/* --- a file in memory, to be changed and written --- */

struct image {
    char *config, *weights;
    size_t config_size, weights_size;
};

static struct image read_image(void)
{
    struct image m;
    struct walsh_error err;
    if (walsh_file_read_text(FIXTURE "/config.json", 1 << 20, &m.config, &m.config_size, &err) != WALSH_OK ||
        walsh_file_read_text(FIXTURE "/model.safetensors", 1 << 20, &m.weights, &m.weights_size, &err) !=
            WALSH_OK)
        fail_msg("%s", err.message);
    return m;
}

static const char *write_image(const struct image *m)
{
    static char path[600];
    char file[700];
    snprintf(path, sizeof path, "%s", temporary_path("lalamo"));
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/config.json", path);
    assert_int_equal(walsh_file_write(file, m->config, m->config_size, NULL), WALSH_OK);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    assert_int_equal(walsh_file_write(file, m->weights, m->weights_size, NULL), WALSH_OK);
    snprintf(file, sizeof file, "%s/tokenizer.json", path);
    assert_int_equal(walsh_copy_file(FIXTURE "/tokenizer.json", file, NULL), WALSH_OK);
    return path;
}

static void close_image(struct image *m)
{
    walsh_free(m->config);
    walsh_free(m->weights);
}

static void replace(char *text, size_t size, const char *from, const char *to)
{
    const size_t n = strlen(from);
    assert_int_equal(n, strlen(to));
    char *at = memmem(text, size, from, n);
    if (!at) fail_msg("no %s in the fixture", from);
    memcpy(at, to, n);
}

/* --- logits --- */

static struct walsh_model *open_model(const char *path, enum walsh_activation_mode activations)
{
    struct walsh_error err;
    struct walsh_model *model;
    struct walsh_model_options options = WALSH_MODEL_OPTIONS;
    options.activations = activations;
    if (walsh_model_open(context, path, &options, &model, &err) != WALSH_OK) fail_msg("%s", err.message);
    return model;
}

static struct walsh_session *open_session(const struct walsh_model *model)
{
    struct walsh_session *session;
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = 64;
    assert_int_equal(walsh_session_open(model, &options, &session, NULL), WALSH_OK);
    return session;
}

static int32_t id_of(size_t i, size_t sequence)
{
    return (int32_t)((i * 37 + sequence * 101 + 5) % VOCAB);
}

/* logits [TOKENS][VOCAB] */
static void prompt_logits(const char *path, enum walsh_activation_mode activations, float *logits)
{
    struct walsh_model *model = open_model(path, activations);
    struct walsh_session *session = open_session(model);
    int32_t ids[TOKENS];
    for (size_t i = 0; i < TOKENS; i++) ids[i] = id_of(i, 0);
    assert_int_equal(walsh_session_prompt_logits(session, ids, TOKENS, logits, NULL), WALSH_OK);
    walsh_session_close(&session);
    walsh_model_close(&model);
}

/* Three sequences together have the bits that each has alone. */
static void test_batch(void **state)
{
    (void)state;
    struct walsh_model *model = open_model(FIXTURE, WALSH_ACTIVATIONS_AUTO);
    struct walsh_session *together[3], *alone[3];
    for (size_t s = 0; s < 3; s++) {
        together[s] = open_session(model);
        alone[s] = open_session(model);
        for (size_t i = 0; i <= s; i++) { /* of different lengths */
            const int32_t id = id_of(i, s);
            assert_int_equal(walsh_step(&together[s], &id, 1, NULL), WALSH_OK);
            assert_int_equal(walsh_step(&alone[s], &id, 1, NULL), WALSH_OK);
        }
    }
    for (size_t i = 3; i < 12; i++) {
        int32_t ids[3];
        for (size_t s = 0; s < 3; s++) ids[s] = id_of(i, s);
        assert_int_equal(walsh_step(together, ids, 3, NULL), WALSH_OK);
        for (size_t s = 0; s < 3; s++) {
            assert_int_equal(walsh_step(&alone[s], &ids[s], 1, NULL), WALSH_OK);
            assert_memory_equal(walsh_session_logits(together[s]), walsh_session_logits(alone[s]),
                                VOCAB * sizeof(float));
        }
    }
    for (size_t s = 0; s < 3; s++) {
        walsh_session_close(&together[s]);
        walsh_session_close(&alone[s]);
    }
    walsh_model_close(&model);
}

/* --- the layout before 0.17: scales and zero points by rows, no gates in the name of q, k and v --- */

static uint64_t nibble(const uint8_t *data, size_t at)
{
    return data[at / 2] >> 4 * (at % 2) & 15;
}

/* [groups][rows] -> [rows][groups] of elements of `bits` */
static size_t transpose(const uint8_t *from, size_t groups, size_t rows, unsigned bits, uint8_t *to)
{
    const size_t bytes = bits / 8, line = bits == 4 ? walsh_div_up(groups, 2) : groups * bytes;
    memset(to, 0, rows * line);
    for (size_t g = 0; g < groups; g++)
        for (size_t r = 0; r < rows; r++) {
            if (bits == 4)
                to[r * line + g / 2] |= (uint8_t)(nibble(from, g * rows + r) << 4 * (g % 2));
            else
                memcpy(to + r * line + g * bytes, from + (g * rows + r) * bytes, bytes);
        }
    return rows * line;
}

static char *renamed(const char *name)
{
    static char text[400];
    const char *at = strstr(name, "qkvg_projection");
    if (!at) return strcpy(text, name);
    snprintf(text, sizeof text, "%.*sqkv_projection%s", (int)(at - name), name,
             at + strlen("qkvg_projection"));
    return text;
}

static bool ends_with(const char *text, const char *suffix)
{
    const size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

static void to_older(struct image *m)
{
    struct walsh_safetensors st;
    assert_int_equal(walsh_safetensors_open(FIXTURE "/model.safetensors", false, &st, NULL), WALSH_OK);
    json_t *header = json_object(), *metadata = json_object();
    uint8_t *data = calloc(1, m->weights_size * 2);
    size_t used = 0;
    assert_non_null(data);
    for (size_t i = 0; i < st.metadata_count; i++)
        json_object_set_new(metadata, renamed(st.metadata_keys[i]), json_string(st.metadata_values[i]));
    json_object_set_new(header, "__metadata__", metadata);
    for (size_t i = 0; i < st.count; i++) {
        const struct walsh_tensor *t = &st.tensors[i];
        json_t *shape = json_array();
        size_t bytes = t->bytes;
        const bool zeros = ends_with(t->name, ".zero_points");
        if (t->rank == 2 && (zeros || (ends_with(t->name, ".scales") && !strstr(t->name, "norm")))) {
            char codes[400];
            snprintf(codes, sizeof codes, "%.*s.weights", (int)(strrchr(t->name, '.') - t->name), t->name);
            const size_t groups = (size_t)t->shape[0],
                         rows = (size_t)walsh_safetensors_find(&st, codes)->shape[0];
            const unsigned bits = !zeros                ? 8 * (unsigned)walsh_dtype_size(t->dtype)
                                  : t->shape[1] == rows ? 8
                                                        : 4;
            bytes = transpose(t->data, groups, rows, bits, data + used);
            json_array_append_new(shape, json_integer((json_int_t)rows));
            json_array_append_new(shape, json_integer((json_int_t)(bytes / rows / (zeros ? 1 : bits / 8))));
        } else {
            memcpy(data + used, t->data, bytes);
            for (unsigned d = 0; d < t->rank; d++)
                json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        }
        json_object_set_new(header, renamed(t->name),
                            json_pack("{s:s, s:o, s:[I,I]}", "dtype", walsh_dtype_name(t->dtype), "shape",
                                      shape, "data_offsets", (json_int_t)used, (json_int_t)(used + bytes)));
        used += bytes;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    const uint64_t size = strlen(text);
    walsh_free(m->weights);
    m->weights_size = 8 + size + used;
    assert_int_equal(walsh_alloc(m->weights_size, 1, "a file", &m->weights, NULL), WALSH_OK);
    memcpy(m->weights, &size, 8);
    memcpy(m->weights + 8, text, size);
    memcpy(m->weights + 8 + size, data, used);
    free(text);
    free(data);
    json_decref(header);
    walsh_safetensors_close(&st);
}

static void test_older_layout(void **state)
{
    (void)state;
    static float now[TOKENS * VOCAB], before[TOKENS * VOCAB];
    struct image m = read_image();
    to_older(&m);
    prompt_logits(FIXTURE, WALSH_ACTIVATIONS_AUTO, now);
    prompt_logits(write_image(&m), WALSH_ACTIVATIONS_AUTO, before);
    assert_memory_equal(now, before, sizeof now);
    close_image(&m);
}

/* Without the part of any one matrix the logits are others. */
static void test_each_low_rank_part(void **state)
{
    (void)state;
    static float whole[TOKENS * VOCAB], less[TOKENS * VOCAB];
    struct walsh_safetensors st;
    unsigned parts = 0;
    assert_int_equal(walsh_safetensors_open(FIXTURE "/model.safetensors", false, &st, NULL), WALSH_OK);
    prompt_logits(FIXTURE, WALSH_ACTIVATIONS_F32, whole);
    for (size_t i = 0; i < st.count; i++) {
        if (!ends_with(st.tensors[i].name, ".adapter.up_projection")) continue;
        const size_t at = (size_t)((const uint8_t *)st.tensors[i].data - st.file.data);
        /* half of q's rows each, k's, v's; those of up and of gate; all */
        const size_t pieces = strstr(st.tensors[i].name, "qkvg")     ? 4
                              : strstr(st.tensors[i].name, "mlp.up") ? 2
                                                                     : 1;
        for (size_t part = 0; part < pieces; part++) {
            const size_t bytes = st.tensors[i].bytes / pieces;
            struct image one = read_image();
            memset(one.weights + at + part * bytes, 0, bytes);
            prompt_logits(write_image(&one), WALSH_ACTIVATIONS_F32, less);
            double most = 0;
            for (size_t j = 0; j < TOKENS * VOCAB; j++) {
                const double difference = (double)whole[j] - (double)less[j];
                if (difference > most) most = difference;
            }
            if (most < 1e-2) fail_msg("%s, part %zu: no difference above %g", st.tensors[i].name, part, most);
            close_image(&one);
            parts++;
        }
    }
    assert_int_equal(parts, 12);
    walsh_safetensors_close(&st);
}

/* --- what is refused --- */

static void refuse_image(struct image *m, enum walsh_status status, const char *message)
{
    struct walsh_error err = {0};
    struct walsh_model *model = NULL;
    const enum walsh_status found = walsh_model_open(context, write_image(m), NULL, &model, &err);
    if (found != status || !strstr(err.message, message))
        fail_msg("status %d, \"%s\", expected %d, \"%s\"", (int)found, err.message, (int)status, message);
    assert_null(model);
    close_image(m);
}

static void refuse_weights(const char *from, const char *to, enum walsh_status status, const char *message)
{
    struct image m = read_image();
    replace(m.weights, m.weights_size, from, to);
    refuse_image(&m, status, message);
}

static void refuse_config(const char *from, const char *to, enum walsh_status status, const char *message)
{
    struct image m = read_image();
    replace(m.config, m.config_size, from, to);
    refuse_image(&m, status, message);
}

#define KEY(name) "\\\"" name "\\\": " /* as it stands in a string of the header */

static void test_specs_refused(void **state)
{
    (void)state;
    refuse_weights("IntSpec", "MLXSpec", WALSH_E_UNSUPPORTED,
                   "spec \"MLXSpec\" is not supported; known: FullPrecisionSpec, IntSpec, and HybridSpec");
    refuse_weights("HybridSpec", "LloydMSpec", WALSH_E_UNSUPPORTED, "spec \"LloydMSpec\" is not supported");
    refuse_weights("LowRankSpec", "DoRA___Spec", WALSH_E_UNSUPPORTED,
                   "adapter_spec.type is DoRA___Spec, expected LowRankSpec");
    refuse_weights(KEY("incoherence_block_size") "32", KEY("incoherence_block_size") "16",
                   WALSH_E_UNSUPPORTED, "incoherence_block_size is an integer, expected null, 32, 64 or 128");
    refuse_weights("input_output\\\"}", "output_other\\\"}", WALSH_E_UNSUPPORTED,
                   "incoherence_processing_mode is output_other");
    refuse_weights(KEY("bits") "4", KEY("bits") "6", WALSH_E_UNSUPPORTED,
                   "bits is an integer, expected 4 or 8");
    refuse_weights(KEY("group_size") "32", KEY("group_size") "24", WALSH_E_UNSUPPORTED,
                   "group_size is an integer, expected a power of two from 32 on");
    refuse_weights(KEY("rank") "4", KEY("rank") "0", WALSH_E_FORMAT, "rank is 0, expected 1 to 256");
    refuse_weights("layers.0.mlp.up_projection.weights.spec", "layers.0.mlp.up_projection.weights.spek",
                   WALSH_E_FORMAT,
                   "no metadata decoder.transformer.layers.0.mlp.up_projection.weights.spec in its files");
    refuse_weights("adapter.up_projection", "adapter.up_projectioN", WALSH_E_NOT_FOUND,
                   "adapter.up_projection is missing");
    refuse_weights("pre_mlp_norm.scales", "pre_mlp_norm.scaleZ", WALSH_E_NOT_FOUND,
                   "pre_mlp_norm.scales is missing");
}

static void test_tensors_refused(void **state)
{
    (void)state;
    struct walsh_safetensors st;
    assert_int_equal(walsh_safetensors_open(FIXTURE "/model.safetensors", false, &st, NULL), WALSH_OK);
    struct image m = read_image();
    const struct walsh_tensor *signs = walsh_safetensors_find(
        &st, "decoder.transformer.layers.0.mixer.out_projection.weights.incoherence_signs.output_signs");
    const int32_t two = 2;
    memcpy(m.weights + ((const uint8_t *)signs->data - st.file.data) + 12, &two, 4);
    refuse_image(&m, WALSH_E_FORMAT,
                 "out_projection.weights.incoherence_signs.output_signs: element 3 is 2, expected 1 or -1");
    m = read_image();
    const struct walsh_tensor *scales = walsh_safetensors_find(
        &st, "decoder.transformer.layers.1.mixer.out_projection.weights.quantized.scales");
    const uint32_t nan = 0x7fc00000;
    memcpy(m.weights + ((const uint8_t *)scales->data - st.file.data), &nan, 4);
    refuse_image(&m, WALSH_E_FORMAT, "out_projection.weights.quantized.scales");
    walsh_safetensors_close(&st);
}

static void test_configs_refused(void **state)
{
    (void)state;
    refuse_config("LanguageModelConfig", "ClassifierMo_Config", WALSH_E_UNSUPPORTED,
                  "config.json: type \"ClassifierMo_Config\" is not supported; known: LanguageModelConfig");
    refuse_config(
        "AttentionConfig", "DeltaNet_Config", WALSH_E_UNSUPPORTED,
        "layer_configs[0].mixer_config.type \"DeltaNet_Config\" is not supported; known: AttentionConfig, "
        "ShortConvConfig");
    refuse_config(
        "DenseMLPConfig", "Mixture_Config", WALSH_E_UNSUPPORTED,
        "layer_configs[0].mlp_config.type \"Mixture_Config\" is not supported; known: DenseMLPConfig");
    refuse_config("LlamaRoPEConfig", "OtherRoPEConfig", WALSH_E_UNSUPPORTED,
                  "rope_config.type \"OtherRoPEConfig\" is not supported");
    refuse_config("UntiedEmbeddingConfig", "HashedEmbeddingConfig", WALSH_E_UNSUPPORTED,
                  "embedding_config.type \"HashedEmbeddingConfig\" is not supported");
    refuse_config("\"SiLU\"", "\"ReLU\"", WALSH_E_UNSUPPORTED, "activation.type \"ReLU\" is not supported");
    refuse_config("\"has_gate\": false", "\"has_gate\": true ", WALSH_E_UNSUPPORTED,
                  "layer_configs[0].mixer_config.has_gate is set, which walsh does not know");
}

static int setup(void **state)
{
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 2;
    if (walsh_context_open(&options, &context, NULL) != WALSH_OK) return -1;
    return temporary_make(state);
}

static int teardown(void **state)
{
    walsh_context_close(&context);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_older_layout),
        cmocka_unit_test(test_each_low_rank_part),
        cmocka_unit_test(test_specs_refused),
        cmocka_unit_test(test_tensors_refused),
        cmocka_unit_test(test_configs_refused),
    };
    return cmocka_run_group_tests_name("api_lalamo", tests, setup, teardown);
}

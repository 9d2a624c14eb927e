/* Graphs from checkpoints: every tensor consumed or named, shapes, tied heads, tokenizers; and what a graph
 * says of itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "unit/temporary.h"

#include "unit/checkpoint_files.h"

#include "model/model.h"

#define TIED_CONFIG                                                                                          \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4,\"intermediate_size\":8,"                   \
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":16,\"max_position_embeddings\":32,"    \
    "\"tie_word_embeddings\":true}"

/* All of SMALL_CONFIG's tensors, in three dtypes. */
static const struct planned small[] = {
    {"model.embed_tokens.weight", WALSH_F32, 2, {16, 4}, NULL},
    {"model.norm.weight", WALSH_F16, 1, {4}, NULL},
    {"model.layers.0.input_layernorm.weight", WALSH_F32, 1, {4}, NULL},
    {"model.layers.0.post_attention_layernorm.weight", WALSH_BF16, 1, {4}, NULL},
    {"model.layers.0.self_attn.q_proj.weight", WALSH_BF16, 2, {4, 4}, NULL},
    {"model.layers.0.self_attn.k_proj.weight", WALSH_F16, 2, {4, 4}, NULL},
    {"model.layers.0.self_attn.v_proj.weight", WALSH_F32, 2, {4, 4}, NULL},
    {"model.layers.0.self_attn.o_proj.weight", WALSH_BF16, 2, {4, 4}, NULL},
    {"model.layers.0.mlp.gate_proj.weight", WALSH_BF16, 2, {8, 4}, NULL},
    {"model.layers.0.mlp.up_proj.weight", WALSH_BF16, 2, {8, 4}, NULL},
    {"model.layers.0.mlp.down_proj.weight", WALSH_BF16, 2, {4, 8}, NULL},
    {"lm_head.weight", WALSH_BF16, 2, {16, 4}, NULL},
};
enum { SMALL = sizeof small / sizeof *small, HEAD = SMALL - 1, ROOM = SMALL + 4 };

static struct walsh_queue queue;

/* A directory `name` with these tensors. */
static const char *directory(const char *name, const char *config, const struct planned *tensors,
                             size_t count)
{
    const char *path = temporary_path(name);
    char file[600];
    mkdir(path, 0700);
    snprintf(file, sizeof file, "%s/config.json", path);
    put_text(file, config);
    snprintf(file, sizeof file, "%s/model.safetensors", path);
    put_tensors(file, tensors, count);
    return path;
}

static enum walsh_status open_graph(const char *path, bool tokenizer, struct walsh_model_graph **graph,
                                    struct walsh_error *err)
{
    const struct walsh_load_options options = {.use_mmap = true,
                                               .tokenizer = tokenizer,
                                               .rotated = WALSH_ACTIVATION_INT8,
                                               .dense = WALSH_ACTIVATION_BF16};
    return walsh_graph_open(path, &options, &queue, graph, err);
}

static void refused(const char *path, bool tokenizer, enum walsh_status status, const char *message)
{
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    assert_int_equal(open_graph(path, tokenizer, &graph, &err), status);
    assert_null(graph);
    assert_string_equal(without_directory(err.message), message);
}

static void accepted(const char *path)
{
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    if (open_graph(path, false, &graph, &err) != WALSH_OK) fail_msg("%s", err.message);
    walsh_graph_close(&graph);
    assert_null(graph);
}

static void a_whole_checkpoint_opens(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    if (open_graph(directory("whole", SMALL_CONFIG, small, SMALL), false, &graph, &err) != WALSH_OK)
        fail_msg("%s", err.message);
    /* the activation type follows the format of each linear, the router's and the head's too */
    assert_int_equal(graph->layers[0].q.activation, WALSH_ACTIVATION_BF16);
    assert_int_equal(graph->layers[0].k.activation, WALSH_ACTIVATION_F32);
    assert_int_equal(graph->layers[0].v.activation, WALSH_ACTIVATION_F32);
    assert_int_equal(graph->head.activation, WALSH_ACTIVATION_BF16);
    assert_int_equal(graph->embedding.format, WALSH_FORMAT_F32);
    assert_null(graph->layers[0].q_norm);
    assert_null(graph->layers[0].experts);

    assert_int_equal(graph->tensor_count, SMALL);
    assert_string_equal(graph->tensors[0].name, "model.embed_tokens.weight");
    assert_string_equal(graph->tensors[2].name, "model.layers.0.self_attn.q_proj.weight");
    assert_string_equal(graph->tensors[2].part, "attention");
    assert_string_equal(graph->tensors[SMALL - 1].name, "lm_head.weight");
    /* 2 x 16*4 of embedding and head, 3 norms of 4, 4 linears of 16, 3 of 32 */
    assert_int_equal(graph->totals.parameters, 128 + 12 + 64 + 96);
    assert_int_equal(graph->totals.linear_parameters, 64 + 96);
    assert_true(graph->totals.linear_bits == 16 * (16 + 16 + 16 + 96) + 32 * 16);
    /* one row of the embedding in f32, norms as f32, linears and head as stored */
    assert_int_equal(graph->totals.decode_bytes, 16 + 12 * 4 + (48 * 2 + 16 * 4) + 96 * 2 + 64 * 2);
    walsh_graph_close(&graph);
    walsh_graph_close(&graph);
}

static void every_tensor_is_consumed_or_named(void **state)
{
    (void)state;
    struct planned tensors[ROOM];
    memcpy(tensors, small, sizeof small);
    tensors[SMALL] = (struct planned){"model.layers.0.self_attn.q_proj.bias", WALSH_BF16, 1, {4}, NULL};
    tensors[SMALL + 1] = (struct planned){"model.layers.1.mlp.up_proj.weight", WALSH_BF16, 1, {4}, NULL};
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    assert_int_equal(open_graph(directory("more", SMALL_CONFIG, tensors, SMALL + 2), false, &graph, &err),
                     WALSH_E_FORMAT);
    assert_non_null(strstr(err.message, "model.layers.0.self_attn.q_proj.bias"));

    /* rotary frequencies carry nothing */
    tensors[SMALL] =
        (struct planned){"model.layers.0.self_attn.rotary_emb.inv_freq", WALSH_F32, 1, {1}, NULL};
    accepted(directory("rotary", SMALL_CONFIG, tensors, SMALL + 1));
    tensors[SMALL] =
        (struct planned){"model.layers.0.self_attn.rotary_emb.inv_freqs", WALSH_F32, 1, {1}, NULL};
    assert_int_equal(open_graph(directory("almost", SMALL_CONFIG, tensors, SMALL + 1), false, &graph, &err),
                     WALSH_E_FORMAT);
}

static void wrong_tensors_are_named(void **state)
{
    (void)state;
    struct planned tensors[ROOM];
    memcpy(tensors, small, sizeof small);
    tensors[8].shape[0] = 7;
    refused(directory("shape", SMALL_CONFIG, tensors, SMALL), false, WALSH_E_FORMAT,
            "DIR/shape/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: shape [7, 4], expected "
            "[8, 4]");
    memcpy(tensors, small, sizeof small);
    tensors[8].dtype = WALSH_I8;
    refused(directory("dtype", SMALL_CONFIG, tensors, SMALL), false, WALSH_E_FORMAT,
            "DIR/dtype/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: dtype I8, expected "
            "F32, F16 or BF16");
    memcpy(tensors, small, sizeof small);
    refused(directory("headless", SMALL_CONFIG, tensors, HEAD), false, WALSH_E_NOT_FOUND,
            "DIR/headless: tensor lm_head.weight is missing");
}

static void a_tied_head_must_be_the_embedding(void **state)
{
    (void)state;
    struct planned tensors[ROOM];
    static const float table[64] = {1, 2, 3}, other[64] = {1, 2, 4};
    memcpy(tensors, small, sizeof small);
    tensors[0].data = table;
    tensors[HEAD].dtype = WALSH_F32;
    tensors[HEAD].data = table;
    accepted(directory("tied", TIED_CONFIG, tensors, HEAD));
    accepted(directory("tied-twice", TIED_CONFIG, tensors, SMALL));
    tensors[HEAD].data = other;
    refused(
        directory("tied-badly", TIED_CONFIG, tensors, SMALL), false, WALSH_E_FORMAT,
        "DIR/tied-badly/model.safetensors: lm_head.weight differs from model.embed_tokens.weight although "
        "tie_word_embeddings is true");
}

static void a_missing_tokenizer_is_an_error(void **state)
{
    (void)state;
    refused(directory("mute", SMALL_CONFIG, small, SMALL), true, WALSH_E_NOT_FOUND,
            "DIR/mute/tokenizer.json: no such file (a model directory needs its tokenizer.json)");
}

/* A config whose tables alone are larger than any machine's memory is refused before they are made. */
static void impossible_positions_are_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    const char *path =
        directory("deep",
                  "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":2048,\"intermediate_size\":8,"
                  "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":1,"
                  "\"max_position_embeddings\":268435456}",
                  (const struct planned[]){
                      {"model.embed_tokens.weight", WALSH_BF16, 2, {1, 2048}, NULL},
                      {"model.norm.weight", WALSH_BF16, 1, {2048}, NULL},
                      {"model.layers.0.input_layernorm.weight", WALSH_BF16, 1, {2048}, NULL},
                      {"model.layers.0.post_attention_layernorm.weight", WALSH_BF16, 1, {2048}, NULL},
                      {"model.layers.0.self_attn.q_proj.weight", WALSH_BF16, 2, {2048, 2048}, NULL},
                      {"model.layers.0.self_attn.k_proj.weight", WALSH_BF16, 2, {2048, 2048}, NULL},
                      {"model.layers.0.self_attn.v_proj.weight", WALSH_BF16, 2, {2048, 2048}, NULL},
                      {"model.layers.0.self_attn.o_proj.weight", WALSH_BF16, 2, {2048, 2048}, NULL},
                      {"model.layers.0.mlp.gate_proj.weight", WALSH_BF16, 2, {8, 2048}, NULL},
                      {"model.layers.0.mlp.up_proj.weight", WALSH_BF16, 2, {8, 2048}, NULL},
                      {"model.layers.0.mlp.down_proj.weight", WALSH_BF16, 2, {2048, 8}, NULL},
                      {"lm_head.weight", WALSH_BF16, 2, {1, 2048}, NULL},
                  },
                  SMALL);
    assert_int_equal(open_graph(path, false, &graph, &err), WALSH_E_MEMORY); /* 1 TiB */
    assert_non_null(
        strstr(err.message, "the rope tables of max_position_embeddings positions needs 1048576.0 MiB"));
}

static int open_queue(void **state)
{
    if (temporary_make(state) != 0) return -1;
    return walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, NULL) == WALSH_OK ? 0 : -1;
}

static int close_queue(void **state)
{
    walsh_queue_close(&queue);
    return temporary_remove(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_checkpoint_opens),
        cmocka_unit_test(every_tensor_is_consumed_or_named),
        cmocka_unit_test(wrong_tensors_are_named),
        cmocka_unit_test(a_tied_head_must_be_the_embedding),
        cmocka_unit_test(a_missing_tokenizer_is_an_error),
        cmocka_unit_test(impossible_positions_are_refused),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

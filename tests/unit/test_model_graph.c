/* Graphs from checkpoints: every tensor consumed or named, shapes, tied heads, tokenizers; and what a graph
 * says of itself. */
#include <math.h>
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
    assert_int_equal(graph->totals.decode_weights, 64 + 96 + 64);
    assert_int_equal(graph->totals.head_weights, 64);
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

#define CONFIG_WITH(keys)                                                                                    \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":1,\"vocab_size\":16," keys "}"

/* Files name millions of positions; tables are made for as many as walsh runs. */
static void positions_are_cut_to_the_limit(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    const char *path = directory("deep",
                                 CONFIG_WITH("\"hidden_size\":4,\"intermediate_size\":8,"
                                             "\"num_attention_heads\":2,"
                                             "\"max_position_embeddings\":268435456"),
                                 small, SMALL);
    if (open_graph(path, false, &graph, &err) != WALSH_OK) fail_msg("%s", err.message);
    assert_int_equal(graph->config.max_positions, 131072);
    assert_int_equal(graph->checkpoint.config.max_positions, 268435456);
    assert_true(graph->rope.cosine[131071] == (float)cos(131071));
    assert_true(graph->arena.bytes < (2u << 20)); /* two tables of 512 KiB */
    walsh_graph_close(&graph);
}

/* What the kernels' scratch does not hold is refused before a tensor is looked for. */
static void sizes_beyond_the_kernels_are_refused(void **state)
{
    (void)state;
    refused(
        directory("group",
                  CONFIG_WITH("\"hidden_size\":4,\"intermediate_size\":8,\"num_attention_heads\":40000,"
                              "\"num_key_value_heads\":1,\"head_dim\":2,"
                              "\"max_position_embeddings\":32"),
                  small, SMALL),
        false, WALSH_E_UNSUPPORTED,
        "DIR/group: 40000 attention heads for 1 key-value heads are 40000 for each, expected at most 256");
    refused(directory("wide",
                      CONFIG_WITH("\"hidden_size\":4,\"intermediate_size\":8,\"num_attention_heads\":512,"
                                  "\"num_key_value_heads\":512,\"head_dim\":1024,"
                                  "\"max_position_embeddings\":32"),
                      small, SMALL),
            false, WALSH_E_UNSUPPORTED, "DIR/wide: heads times head_dim is 524288, expected at most 262144");
    refused(directory("broad",
                      CONFIG_WITH("\"hidden_size\":4,\"intermediate_size\":262145,"
                                  "\"num_attention_heads\":2,\"max_position_embeddings\":32"),
                      small, SMALL),
            false, WALSH_E_UNSUPPORTED, "DIR/broad: intermediate size is 262145, expected at most 262144");
}

/* Experts of a synthetic model, as the quantizer makes them: signs of their own, which gate and up share. */
static void synthetic_experts_have_their_own_signs(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_model_graph *graph;
    struct walsh_config config = {.architecture = WALSH_ARCH_QWEN3_MOE,
                                  .hidden = 64,
                                  .layers = 1,
                                  .heads = 2,
                                  .kv_heads = 1,
                                  .head_dim = 32,
                                  .vocab = 16,
                                  .max_positions = 32,
                                  .rms_epsilon = 1e-5,
                                  .rope = {.theta = 10000, .factor = 1},
                                  .qk_norm = true,
                                  .experts = 2,
                                  .experts_per_token = 1,
                                  .expert_intermediate = 64};
    const struct walsh_load_options options = {.rotated = WALSH_ACTIVATION_INT8};
    if (walsh_graph_synthesize(&config, WALSH_FORMAT_E8P, 2, false, 1, &options, &queue, &graph, &err) !=
        WALSH_OK)
        fail_msg("%s", err.message);
    const struct walsh_layer *layer = &graph->layers[0];
    /* one expert of two: 3 matrices of 64 x hidden */
    assert_int_equal(graph->totals.decode_weights - graph->totals.head_weights,
                     graph->totals.linear_parameters - 3 * 64 * graph->config.hidden +
                         graph->config.layers * 2 * graph->config.hidden);
    const struct walsh_expert *a = &layer->experts[0], *b = &layer->experts[1];
    assert_true(walsh_rotation_equal(&a->gate.in_rotation, &a->up.in_rotation));
    assert_ptr_equal(a->gate.in_rotation.signs, a->up.in_rotation.signs);
    assert_false(walsh_rotation_equal(&a->gate.in_rotation, &b->gate.in_rotation));
    assert_ptr_equal(layer->q.in_rotation.signs, layer->v.in_rotation.signs);
    walsh_graph_close(&graph);

    config.hidden = 65600; /* 65536 + 64 columns */
    assert_int_equal(
        walsh_graph_synthesize(&config, WALSH_FORMAT_E8P, 2, false, 1, &options, &queue, &graph, &err),
        WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message,
                        "model.layers.0.self_attn.q_proj: 65600 columns in e8p, expected at most 65536");
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
        cmocka_unit_test(positions_are_cut_to_the_limit),
        cmocka_unit_test(sizes_beyond_the_kernels_are_refused),
        cmocka_unit_test(synthetic_experts_have_their_own_signs),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

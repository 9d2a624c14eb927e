/* Writes a Llama checkpoint of random bf16 weights, to see what memory large checkpoints take:
 *   random_checkpoint DIR HIDDEN INTERMEDIATE LAYERS VOCAB
 * DIR must exist; config.json and model.safetensors are written there. Heads are 64 wide, four query heads
 * share a key head, embeddings are tied. */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shape {
    uint64_t hidden, intermediate, layers, vocab;
};

/* One pass over all tensors: `emit` gets each name and its shape (cols 0: a vector). */
static void for_each_tensor(const struct shape *s, void (*emit)(void *, const char *, uint64_t, uint64_t),
                            void *user)
{
    uint64_t keys = s->hidden / 4;
    const struct {
        const char *name;
        uint64_t rows, cols;
    } parts[] = {
        {"input_layernorm", s->hidden, 0},
        {"self_attn.q_proj", s->hidden, s->hidden},
        {"self_attn.k_proj", keys, s->hidden},
        {"self_attn.v_proj", keys, s->hidden},
        {"self_attn.o_proj", s->hidden, s->hidden},
        {"post_attention_layernorm", s->hidden, 0},
        {"mlp.gate_proj", s->intermediate, s->hidden},
        {"mlp.up_proj", s->intermediate, s->hidden},
        {"mlp.down_proj", s->hidden, s->intermediate},
    };
    char name[128];
    emit(user, "model.embed_tokens.weight", s->vocab, s->hidden);
    for (uint64_t layer = 0; layer < s->layers; layer++) {
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            snprintf(name, sizeof name, "model.layers.%" PRIu64 ".%s.weight", layer, parts[i].name);
            emit(user, name, parts[i].rows, parts[i].cols);
        }
    }
    emit(user, "model.norm.weight", s->hidden, 0);
}

struct writer {
    FILE *file;
    char *header;
    size_t length, capacity;
    uint64_t offset, random;
};

static void put_header(void *user, const char *name, uint64_t rows, uint64_t cols)
{
    struct writer *w = user;
    uint64_t end = w->offset + 2 * rows * (cols ? cols : 1);
    char shape[64];
    snprintf(shape, sizeof shape, cols ? "[%" PRIu64 ",%" PRIu64 "]" : "[%" PRIu64 "]", rows, cols);
    int n = snprintf(w->header + w->length, w->capacity - w->length,
                     "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                     w->length == 1 ? "" : ",", name, shape, w->offset, end);
    w->length += (size_t)n;
    w->offset = end;
}

static void put_data(void *user, const char *name, uint64_t rows, uint64_t cols)
{
    struct writer *w = user;
    uint64_t left = rows * (cols ? cols : 1);
    static uint16_t block[1 << 16];
    bool norm = strstr(name, "norm") != NULL;
    while (left) {
        size_t count = left < sizeof block / 2 ? (size_t)left : sizeof block / 2;
        for (size_t i = 0; i < count; i++) {
            w->random = w->random * 6364136223846793005u + 1442695040888963407u;
            float value = norm ? 1.0f : ((float)(w->random >> 40) / 8388608.0f - 1.0f) * 0.03f;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            block[i] = (uint16_t)(bits >> 16);
        }
        fwrite(block, 2, count, w->file);
        left -= count;
    }
}

static FILE *create(const char *directory, const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    if (!file) perror(path);
    return file;
}

static bool write_config(const char *directory, const struct shape *s)
{
    FILE *file = create(directory, "config.json");
    if (!file) return false;
    fprintf(
        file,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": \"silu\",\n"
        " \"hidden_size\": %" PRIu64 ", \"intermediate_size\": %" PRIu64 ", \"num_hidden_layers\": %" PRIu64
        ",\n"
        " \"num_attention_heads\": %" PRIu64 ", \"num_key_value_heads\": %" PRIu64 ", \"head_dim\": 64,\n"
        " \"vocab_size\": %" PRIu64 ", \"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-05,\n"
        " \"rope_theta\": 10000.0, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\",\n"
        " \"bos_token_id\": 0, \"eos_token_id\": 0}\n",
        s->hidden, s->intermediate, s->layers, s->hidden / 64, s->hidden / 256, s->vocab);
    return fclose(file) == 0;
}

static bool write_tensors(const char *directory, const struct shape *s)
{
    struct writer w = {.capacity = 4096 + (size_t)s->layers * 2048, .length = 1, .random = 1};
    w.header = calloc(w.capacity, 1);
    w.file = create(directory, "model.safetensors");
    if (!w.header || !w.file) return false;
    w.header[0] = '{';
    for_each_tensor(s, put_header, &w);
    w.header[w.length++] = '}';
    while (w.length % 8) w.header[w.length++] = ' ';
    uint64_t length = w.length;
    fwrite(&length, sizeof length, 1, w.file);
    fwrite(w.header, 1, w.length, w.file);
    for_each_tensor(s, put_data, &w);
    bool good = !ferror(w.file);
    good = fclose(w.file) == 0 && good;
    free(w.header);
    return good;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: random_checkpoint DIR HIDDEN INTERMEDIATE LAYERS VOCAB\n");
        return 2;
    }
    struct shape s = {strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10),
                      strtoull(argv[5], NULL, 10)};
    if (!s.hidden || s.hidden % 256 || !s.intermediate || !s.layers || s.layers > 1000 || !s.vocab) {
        fprintf(stderr, "random_checkpoint: HIDDEN is a multiple of 256, the others are at least 1\n");
        return 2;
    }
    return write_config(argv[1], &s) && write_tensors(argv[1], &s) ? 0 : 1;
}

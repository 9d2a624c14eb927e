/* libFuzzer target: model.safetensors.index.json before two shards. */
#include "fuzz/fuzz_files.h"

#include "checkpoint/checkpoint.h"

static void make_shards(void)
{
    static const char config[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4,\"intermediate_size\":8,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":16,\"max_position_embeddings\":32}";
    static const char one[] = "a U8 2\nb U8", two[] = "c F32 1 2";
    fuzz_write("config.json", config, sizeof config - 1);
    fuzz_write_tensors("1.safetensors", (struct fuzz_part){one, sizeof one - 1}, NULL, 0);
    fuzz_write_tensors("2.safetensors", (struct fuzz_part){two, sizeof two - 1}, NULL, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool made;
    struct walsh_checkpoint ck;
    struct walsh_error err = {0};
    if (!made) make_shards();
    made = true;
    fuzz_write("model.safetensors.index.json", data, size);
    if (walsh_checkpoint_open(fuzz_path(""), false, &ck, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    FUZZ_REQUIRE(ck.file_count >= 1 && ck.file_count <= 2 && ck.tensor_count <= 3);
    for (size_t i = 0; i < ck.tensor_count; i++)
        FUZZ_REQUIRE(walsh_checkpoint_find(&ck, ck.tensors[i]->name) == ck.tensors[i]);
    walsh_checkpoint_close(&ck);
    return 0;
}

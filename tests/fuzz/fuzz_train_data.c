/* libFuzzer target: a file of training data. The first byte chooses plain text or JSON lines. */
#include "fuzz/fuzz_files.h"

#include "base/memory.h"
#include "train/data.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct walsh_model_graph graph; /* what the reader knows of a model */
    struct walsh_error err = {0};
    struct walsh_data d;
    if (!graph.tokenizer) {
        FUZZ_REQUIRE(walsh_tokenizer_open(fuzz_source("models/bookworm-8m"), &graph.tokenizer, &err) ==
                     WALSH_OK);
        graph.config.vocab = (uint32_t)walsh_tokenizer_size(graph.tokenizer);
        graph.config.eos_count = 1;
    }
    if (size == 0) return 0;
    const char *name = data[0] & 1 ? "data.txt" : "data.jsonl";
    fuzz_write(name, data + 1, size - 1);
    if (walsh_data_open(&graph, fuzz_path(name), 16, &d, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    for (size_t i = 0; i < d.piece_count; i++) {
        FUZZ_REQUIRE(d.pieces[i].count >= 2 && d.pieces[i].count <= 16);
        FUZZ_REQUIRE(d.pieces[i].begin + d.pieces[i].count <= d.tokens);
    }
    for (size_t i = 0; i < d.tokens; i++)
        FUZZ_REQUIRE(d.ids[i] >= 0 && (uint32_t)d.ids[i] < graph.config.vocab);
    walsh_data_close(&d);
    return 0;
}

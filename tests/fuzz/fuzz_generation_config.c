/* libFuzzer target: generation_config.json. */
#include "fuzz/fuzz_files.h"

#include "checkpoint/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct walsh_generation_config g;
    struct walsh_error err = {0};
    if (walsh_generation_config_parse("generation_config.json", (const char *)data, size, &g, &err) !=
        WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    FUZZ_REQUIRE(g.temperature >= 0 && g.top_p >= 0 && g.top_p <= 1 && g.min_p >= 0 && g.min_p <= 1);
    FUZZ_REQUIRE(g.repetition_penalty > 0 && g.eos_count <= WALSH_MAX_EOS && g.bos >= -1);
    return 0;
}

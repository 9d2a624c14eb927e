/* libFuzzer target: config.json, of all architectures. What is accepted is within what the rest relies on. */
#include "fuzz/fuzz_files.h"

#include "checkpoint/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct walsh_config c;
    struct walsh_error err = {0};
    if (walsh_config_parse("config.json", (const char *)data, size, &c, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    FUZZ_REQUIRE(c.architecture < WALSH_ARCH_COUNT && c.architecture_name[0]);
    FUZZ_REQUIRE(c.hidden && c.layers && c.layers <= WALSH_MAX_LAYERS && c.vocab);
    FUZZ_REQUIRE(c.experts ? c.expert_intermediate : c.intermediate);
    FUZZ_REQUIRE(c.heads && c.kv_heads && c.head_dim && c.heads % c.kv_heads == 0 && c.max_positions);
    FUZZ_REQUIRE(c.rotary_dim <= c.head_dim && c.rotary_dim % 2 == 0);
    FUZZ_REQUIRE(c.rope.theta > 0 && c.rms_epsilon >= 0);
    FUZZ_REQUIRE(c.eos_count <= WALSH_MAX_EOS && c.bos >= -1);
    FUZZ_REQUIRE(c.experts == 0 || (c.experts_per_token >= 1 && c.experts_per_token <= c.experts));
    FUZZ_REQUIRE(c.conv_taps <= WALSH_MAX_CONV_TAPS);
    for (uint32_t l = 0; l < c.layers; l++) {
        FUZZ_REQUIRE(!(c.layer_flags[l] & WALSH_LAYER_WINDOWED) || c.window > 0);
        FUZZ_REQUIRE(!(c.layer_flags[l] & WALSH_LAYER_CONV) || c.conv_taps > 0);
    }
    return 0;
}

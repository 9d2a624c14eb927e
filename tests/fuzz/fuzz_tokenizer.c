/* libFuzzer target: a tokenizer's files. The input is tokenizer.json, NUL, tokenizer_config.json, NUL, a text
 * that is encoded and decoded with it; the last two may be missing. */
#include "fuzz/fuzz_round_trip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = " Hello, w\xc3\xb6rld!  12 345\n\t<s>\xe4\xb8\xad\xe6\x96\x87 "
                               "a\xcc\x81\xf0\x9f\x99\x82 \xff don't</s>";
    struct walsh_tokenizer *t;
    struct walsh_error err = {0};
    const struct fuzz_part json = fuzz_next(&data, &size), config = fuzz_next(&data, &size);
    fuzz_write("tokenizer.json", json.text, json.size);
    fuzz_write("tokenizer_config.json", config.size ? config.text : "{}", config.size ? config.size : 2);
    if (walsh_tokenizer_open(fuzz_path(""), &t, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    const size_t ids = walsh_tokenizer_size(t);
    FUZZ_REQUIRE(walsh_tokenizer_bos(t) >= -1 && walsh_tokenizer_bos(t) < (int64_t)ids);
    FUZZ_REQUIRE(walsh_tokenizer_eos(t) >= -1 && walsh_tokenizer_eos(t) < (int64_t)ids);
    fuzz_round_trip(t, text, sizeof text - 1, WALSH_ENCODE_SPECIAL, NULL);
    fuzz_round_trip(t, (const char *)data, size, 0, NULL);
    walsh_tokenizer_close(&t);
    return 0;
}

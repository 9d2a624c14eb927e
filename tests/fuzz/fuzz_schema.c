/* libFuzzer target: JSON schemas, and the first tokens under those that compile. */
#include "fuzz/fuzz_files.h"

#include "text/grammar.h"

static bool is_eos(const void *user, int32_t id)
{
    (void)user;
    return id == 2;
}

/* Follow the lowest token that is admitted: there is one as long as the text is not complete. */
static void follow(const struct walsh_grammar *grammar)
{
    struct walsh_matcher *matcher;
    const uint64_t *mask;
    if (walsh_matcher_open(grammar, &matcher, NULL) != WALSH_OK) return;
    for (int n = 0; n < 20; n++) {
        int32_t id = 0;
        if (walsh_matcher_mask(matcher, &mask, NULL) != WALSH_OK) break;
        const int32_t vocab = (int32_t)walsh_grammar_vocab(grammar);
        while (id < vocab && !(mask[id / 64] >> id % 64 & 1)) id++;
        if (id == vocab || walsh_matcher_advance(matcher, id, NULL) != WALSH_OK) __builtin_trap();
        if (id == 2) break;
    }
    walsh_matcher_close(&matcher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct walsh_tokenizer *tokenizer; /* opened once */
    static struct walsh_token_bytes *tokens;
    struct walsh_error err = {0};
    struct walsh_grammar *grammar;
    if (!tokens) {
        if (walsh_tokenizer_open(fuzz_source("models/bookworm-8m"), &tokenizer, &err) != WALSH_OK ||
            walsh_token_bytes_open(tokenizer, (uint32_t)walsh_tokenizer_size(tokenizer), is_eos, NULL,
                                   &tokens, &err) != WALSH_OK)
            __builtin_trap();
    }
    if (walsh_grammar_compile(tokens, (const char *)data, size, &grammar, &err) != WALSH_OK) {
        if (!err.message[0]) __builtin_trap();
        return 0;
    }
    follow(grammar);
    walsh_grammar_release(grammar);
    return 0;
}

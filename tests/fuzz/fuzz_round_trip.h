/* Text to ids and back, and what must hold whatever the tokenizer and the text. */
#ifndef WALSH_TESTS_FUZZ_ROUND_TRIP_H
#define WALSH_TESTS_FUZZ_ROUND_TRIP_H

#include "fuzz/fuzz_files.h"

#include "base/memory.h"
#include "text/tokenizer.h"

/* The ids decoded one by one. malloc'ed. */
static inline char *fuzz_stream(const struct walsh_tokenizer *t, const int32_t *ids, size_t count,
                                bool skip_special, size_t *size)
{
    struct walsh_decode_stream s;
    struct walsh_error err = {0};
    char *all = malloc(1);
    *size = 0;
    walsh_decode_stream_init(&s, t, skip_special);
    for (size_t i = 0; i <= count; i++) {
        char *part;
        size_t part_size;
        FUZZ_REQUIRE((i < count ? walsh_decode_stream_next(&s, ids[i], &part, &part_size, &err)
                                : walsh_decode_stream_finish(&s, &part, &part_size, &err)) == WALSH_OK);
        all = realloc(all, *size + part_size + 1);
        FUZZ_REQUIRE(all);
        memcpy(all + *size, part, part_size);
        *size += part_size;
        walsh_free(part);
    }
    return all;
}

/* Encode, decode as a whole and by stream. exact: the text must come back (a vocabulary of all bytes, no
 * normalizer, and a text in valid UTF-8 without added tokens); NULL: it need not. */
static inline void fuzz_round_trip(const struct walsh_tokenizer *t, const char *text, size_t size,
                                   unsigned flags, const bool *exact)
{
    struct walsh_error err = {0};
    int32_t *ids;
    size_t count, decoded_size, streamed_size;
    char *decoded;
    if (walsh_tokenizer_encode(t, text, size, flags, &ids, &count, &err) != WALSH_OK) {
        FUZZ_REQUIRE(err.message[0] && !exact);
        return;
    }
    for (size_t i = 0; i < count; i++) FUZZ_REQUIRE(walsh_tokenizer_has(t, ids[i]));
    for (int skip = 0; skip < 2; skip++) {
        FUZZ_REQUIRE(walsh_tokenizer_decode(t, ids, count, skip, &decoded, &decoded_size, &err) == WALSH_OK);
        FUZZ_REQUIRE(strlen(decoded) <= decoded_size);
        char *streamed = fuzz_stream(t, ids, count, skip, &streamed_size);
        if (exact) {
            FUZZ_REQUIRE(streamed_size == decoded_size && memcmp(streamed, decoded, decoded_size) == 0);
            FUZZ_REQUIRE(!*exact || skip || (decoded_size == size && memcmp(decoded, text, size) == 0));
        }
        free(streamed);
        walsh_free(decoded);
    }
    walsh_free(ids);
}

#endif

/* libFuzzer target: the file of a prefix store's block. Of an input that begins with '=' the rest is written
 * over a good file, from the place that the next two bytes say, so that what is behind the checksum is
 * reached too. */
#include "fuzz/fuzz_files.h"

#include "base/memory.h"
#include "cache/prefix_directory.h"
#include "cache/prefix_store.h"

#define TOKENS 4
#define PAYLOAD 64
enum { CHECKSUM = 104, CHECKSUM_BYTES = 16 }; /* place in the header */
#define FILE_BYTES (128 + TOKENS * 4 + PAYLOAD)

static const int32_t tokens[TOKENS] = {1, 2, 3, 4};
static struct walsh_prefix_block block = {
    .position = 256, .tokens = tokens, .count = TOKENS, .bytes = PAYLOAD};
static uint8_t good[FILE_BYTES], payload[PAYLOAD];
static char name[WALSH_PREFIX_NAME + 8];
static struct walsh_prefix_store *store;

static void make_store(void)
{
    struct walsh_error err = {0};
    memset(payload, 0x5a, sizeof payload);
    FUZZ_REQUIRE(walsh_prefix_key_chain(&block.parent, tokens, TOKENS, &block.key, &err) == WALSH_OK);
    FUZZ_REQUIRE(walsh_store_open(fuzz_path("store"), 1 << 20, NULL, &store, &err) == WALSH_OK);
    FUZZ_REQUIRE(walsh_store_put(store, &block, payload, 1.5, 0));
    memcpy(name, "store/", 6);
    walsh_prefix_block_name(&block.key, name + 6);
    FILE *file = fopen(fuzz_path(name), "rb");
    FUZZ_REQUIRE(file && fread(good, 1, sizeof good, file) == sizeof good && getc(file) == EOF);
    fclose(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t found[PAYLOAD], file[FILE_BYTES];
    double seconds = -1;
    if (!store) make_store();
    if (size > 3 && data[0] == '=') {
        const size_t at = (data[1] | (size_t)data[2] << 8) % sizeof file;
        const size_t n = walsh_min(size - 3, sizeof file - at);
        memcpy(file, good, sizeof file);
        memcpy(file + at, data + 3, n);
        fuzz_write(name, file, sizeof file);
        data = file;
        size = sizeof file;
    } else {
        fuzz_write(name, data, size);
    }
    const bool same = size == sizeof good && memcmp(data, good, size) == 0;
    const bool taken = walsh_store_get(store, &block, found, &seconds);
    FUZZ_REQUIRE(taken || !same);
    /* libFuzzer sees what the checksum is compared with, and writes it: then another file is a good one. */
    FUZZ_REQUIRE(same || !taken || memcmp(data + CHECKSUM, good + CHECKSUM, CHECKSUM_BYTES) != 0);
    if (!same) return 0;
    FUZZ_REQUIRE(memcmp(found, payload, sizeof found) == 0 && seconds == 1.5);
    return 0;
}

/* Encodes whole texts and compares the ids with those of the `tokenizers` package:
 *   encode_texts MODEL TABLE TEXTS
 * TABLE has a line per text: name, bytes, tokens, FNV-1a hash of the ids as little-endian int32. Prints ok,
 * FAILED or absent for each text in the directory TEXTS, with the speed on one core. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "walsh.h"

#define SLOWEST 5.0 /* MB/s on one core */

static uint64_t hash_ids(const int32_t *ids, size_t count)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++)
        for (unsigned byte = 0; byte < 4; byte++)
            hash = (hash ^ ((uint32_t)ids[i] >> (8 * byte) & 0xff)) * 0x100000001b3u;
    return hash;
}

/* At most `size` bytes of the file into text; the number read, 0 where it is absent. */
static size_t read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t got = fread(text, 1, size, file);
    fclose(file);
    return got;
}

static int check_text(const struct walsh_model *model, const char *directory, const char *name, size_t bytes,
                      size_t tokens, uint64_t hash)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    char *text = malloc(bytes + 1);
    size_t size = text ? read_text(path, text, bytes + 1) : 0;
    if (size == 0) {
        printf("absent  %s: its ids\n", path);
        free(text);
        return 0;
    }
    int32_t *ids = NULL;
    size_t count = 0;
    struct timespec began, ended;
    struct walsh_error err = {0};
    clock_gettime(CLOCK_MONOTONIC, &began);
    enum walsh_status status = walsh_model_encode(model, text, size, 0, &ids, &count, &err);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    double seconds = (double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec);
    double speed = (double)size / 1e6 / seconds;
    bool good = status == WALSH_OK && size == bytes && count == tokens && hash_ids(ids, count) == hash &&
                speed >= SLOWEST;
    printf("%s  %s: %zu ids, expected %zu, %.1f MB/s%s%s\n", good ? "ok    " : "FAILED", name, count, tokens,
           speed, status == WALSH_OK ? "" : ": ", status == WALSH_OK ? "" : err.message);
    walsh_memory_free(ids);
    free(text);
    return good ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: encode_texts MODEL TABLE TEXTS\n");
        return 2;
    }
    struct walsh_error err = {0};
    struct walsh_context_options options = WALSH_CONTEXT_OPTIONS;
    options.threads = 1;
    struct walsh_context *context = NULL;
    struct walsh_model *model = NULL;
    FILE *table = fopen(argv[2], "r");
    if (!table || walsh_context_open(&options, &context, &err) != WALSH_OK ||
        walsh_model_open(context, argv[1], NULL, &model, &err) != WALSH_OK) {
        fprintf(stderr, "encode_texts: %s\n", table ? err.message : argv[2]);
        return 1;
    }
    char name[256];
    size_t bytes, tokens;
    uint64_t hash;
    int failures = 0;
    while (fscanf(table, "%255s %zu %zu %" SCNx64, name, &bytes, &tokens, &hash) == 4)
        failures += check_text(model, argv[3], name, bytes, tokens, hash);
    fclose(table);
    walsh_model_close(&model);
    walsh_context_close(&context);
    return failures ? 1 : 0;
}

/* The ids of long texts against the hashes of the `tokenizers` package's, and the speed of encoding:
 *   tokenizer_texts MODEL_DIRECTORY TEXTS_TSV TEXT_DIRECTORY
 * One line for each row of the table: ok, FAILED or absent. Exit 1 where one failed, 3 where one is absent.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "text/tokenizer.h"

enum outcome { OK, FAILED, ABSENT };

/* FNV-1a, 64 bits */
static uint64_t fnv(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < size; i++) h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* Encode five times, the best of which is the speed, and decode once. */
static enum outcome check(const struct walsh_tokenizer *t, const char *name, const struct walsh_file *file,
                          size_t expected_count, uint64_t expected_hash)
{
    struct walsh_error err = {0};
    int32_t *ids = NULL;
    size_t count = 0, size = 0;
    double best = 1e30;
    for (int i = 0; i < 5; i++) {
        walsh_free(ids);
        double start = walsh_now();
        if (walsh_tokenizer_encode(t, (const char *)file->data, file->size, 0, &ids, &count, &err) !=
            WALSH_OK) {
            printf("FAILED  %s: %s\n", name, err.message);
            return FAILED;
        }
        double seconds = walsh_now() - start;
        if (seconds < best) best = seconds;
    }
    char *text = NULL;
    bool same = walsh_tokenizer_decode(t, ids, count, false, &text, &size, &err) == WALSH_OK &&
                size == file->size && memcmp(text, file->data, size) == 0;
    bool right = count == expected_count && fnv(ids, count * sizeof *ids) == expected_hash;
    printf("%-7s %s: %zu tokens%s, %.1f MB/s\n", right && same ? "ok" : "FAILED", name, count,
           right ? same ? "" : ", decoded to another text" : ", other ids than expected",
           (double)file->size / best / 1e6);
    walsh_free(ids);
    walsh_free(text);
    return right && same ? OK : FAILED;
}

static enum outcome check_row(const struct walsh_tokenizer *t, const char *row, const char *directory)
{
    char name[128], path[4096];
    size_t bytes, count;
    uint64_t hash;
    if (sscanf(row, "%127[^\t] %zu %zu %" SCNx64, name, &bytes, &count, &hash) != 4) {
        printf("FAILED  a row of the table cannot be read: %s\n", row);
        return FAILED;
    }
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (!walsh_path_exists(path)) {
        printf("absent  %s\n", path);
        return ABSENT;
    }
    struct walsh_file file;
    struct walsh_error err = {0};
    enum outcome outcome = FAILED;
    if (walsh_file_open(path, true, &file, &err) != WALSH_OK) {
        printf("FAILED  %s\n", err.message);
        return FAILED;
    }
    if (file.size == bytes)
        outcome = check(t, name, &file, count, hash);
    else
        printf("FAILED  %s: %zu bytes, expected %zu\n", path, file.size, bytes);
    walsh_file_close(&file);
    return outcome;
}

int main(int argc, char **argv)
{
    struct walsh_error err = {0};
    struct walsh_tokenizer *t = NULL;
    char *table = NULL;
    size_t size;
    unsigned outcomes[3] = {0};
    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL_DIRECTORY TEXTS_TSV TEXT_DIRECTORY\n", argv[0]);
        return 2;
    }
    if (walsh_tokenizer_open(argv[1], &t, &err) != WALSH_OK ||
        walsh_file_read_text(argv[2], 1 << 20, &table, &size, &err) != WALSH_OK) {
        fprintf(stderr, "%s\n", err.message);
        walsh_tokenizer_close(&t);
        return 1;
    }
    char *rest = NULL;
    for (char *row = strtok_r(table, "\n", &rest); row; row = strtok_r(NULL, "\n", &rest))
        outcomes[check_row(t, row, argv[3])]++;
    walsh_free(table);
    walsh_tokenizer_close(&t);
    return outcomes[FAILED] ? 1 : outcomes[ABSENT] ? 3 : 0;
}

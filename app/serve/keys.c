#include "keys.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "files.h"
#include "output.h"

#define LEAST_KEY_BYTES 8

static enum walsh_status add_line(struct keys *keys, const char *path, size_t number, const char *line,
                                  size_t size, struct walsh_error *err)
{
    while (size && (line[size - 1] == '\r' || line[size - 1] == ' ' || line[size - 1] == '\t')) size--;
    if (size == 0 || *line == '#') return WALSH_OK;
    for (size_t i = 0; i < size; i++)
        if (line[i] <= ' ' || line[i] == 0x7f)
            return fail(err, WALSH_E_FORMAT, "%s: line %zu: a key is made of visible ASCII characters", path,
                        number);
    if (size < LEAST_KEY_BYTES || size >= MOST_KEY_BYTES)
        return fail(err, WALSH_E_FORMAT, "%s: line %zu: a key of %zu characters, expected %d to %d", path,
                    number, size, LEAST_KEY_BYTES, MOST_KEY_BYTES - 1);
    if (keys->count == MOST_KEYS) return fail(err, WALSH_E_FORMAT, "%s: more than %d keys", path, MOST_KEYS);
    memcpy(keys->keys[keys->count++], line, size);
    return WALSH_OK;
}

enum walsh_status keys_read(struct keys *keys, const char *path, bool *shared, struct walsh_error *err)
{
    struct text text = {0};
    struct stat stat_of;
    *keys = (struct keys){0};
    *shared = stat(path, &stat_of) == 0 && (stat_of.st_mode & 07) != 0;
    TRY(file_read(path, &text, err));
    keys->keys = calloc(MOST_KEYS, sizeof *keys->keys);
    enum walsh_status status =
        keys->keys ? WALSH_OK : fail(err, WALSH_E_MEMORY, "out of memory for the keys");
    size_t number = 1;
    for (size_t at = 0; at < text.size && status == WALSH_OK; number++) {
        const char *end = memchr(text.data + at, '\n', text.size - at);
        const size_t size = end ? (size_t)(end - text.data) - at : text.size - at;
        status = add_line(keys, path, number, text.data + at, size, err);
        at += size + 1;
    }
    if (status == WALSH_OK && keys->count == 0)
        status = fail(err, WALSH_E_FORMAT, "%s: there is no key in it", path);
    text_free(&text);
    if (status != WALSH_OK) keys_free(keys);
    return status;
}

void keys_free(struct keys *keys)
{
    if (keys->keys) explicit_bzero(keys->keys, MOST_KEYS * sizeof *keys->keys);
    free(keys->keys);
    *keys = (struct keys){0};
}

const char *keys_find(const struct keys *keys, const char *presented)
{
    char padded[MOST_KEY_BYTES] = {0};
    const size_t size = strlen(presented);
    size_t found = keys->count;
    if (size >= sizeof padded) return NULL; /* longer than any key can be */
    memcpy(padded, presented, size);
    for (size_t k = 0; k < keys->count; k++) {
        unsigned different = 0;
        for (size_t i = 0; i < sizeof padded; i++)
            different |=
                (unsigned)((const volatile char *)keys->keys[k])[i] ^ (unsigned)((volatile char *)padded)[i];
        /* without a branch on `different` */
        const size_t equal = (size_t)(((uint64_t)different - 1) >> 63);
        found = equal * k + (1 - equal) * found;
    }
    return found < keys->count ? keys->keys[found] : NULL;
}

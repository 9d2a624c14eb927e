/* Without libFuzzer: every file of a directory through the target, and random changes of each.
 *
 *   fuzz_NAME_replay DIRECTORY [ROUNDS [SEED]]
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_BYTES 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

static uint64_t state;

static uint64_t draw(void) /* SplitMix64 */
{
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Flip, overwrite, cut, double: a few at a time. */
static size_t change(uint8_t *data, size_t size)
{
    for (unsigned n = 1 + draw() % 4; n > 0 && size > 1; n--) {
        const size_t at = draw() % size;
        switch (draw() % 5) {
        case 0:
            data[at] ^= (uint8_t)(1u << draw() % 8);
            break;
        case 1:
            data[at] = (uint8_t) "\"\\{}[]:,0-9.e"[draw() % 13];
            break;
        case 2:
            memmove(data + at, data + at + 1, --size - at);
            break;
        case 3:
            size = at + 1;
            break;
        default: {
            const size_t length = 1 + draw() % (size - at);
            if (size + length > MOST_BYTES) break;
            memmove(data + at + length, data + at, size - at);
            size += length;
        }
        }
    }
    return size;
}

static void replay(const uint8_t *seed, size_t size, unsigned long rounds)
{
    uint8_t *work = malloc(MOST_BYTES);
    if (!work) return;
    for (unsigned long i = 0; i <= rounds; i++) {
        memcpy(work, seed, size);
        const size_t changed = i ? change(work, size) : size;
        uint8_t *exact = malloc(changed ? changed : 1); /* its end is guarded by a sanitizer */
        if (!exact) break;
        memcpy(exact, work, changed);
        LLVMFuzzerTestOneInput(exact, changed);
        free(exact);
    }
    free(work);
}

int main(int argc, char **argv)
{
    static uint8_t data[MOST_BYTES];
    const unsigned long rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    DIR *directory = argc > 1 ? opendir(argv[1]) : NULL;
    unsigned files = 0;
    if (!directory) {
        fprintf(stderr, "usage: %s DIRECTORY [ROUNDS [SEED]]\n", argv[0]);
        return 2;
    }
    if (LLVMFuzzerInitialize) LLVMFuzzerInitialize(&argc, &argv);
    state = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    printf("seed %llu\n", (unsigned long long)state);
    for (struct dirent *entry; (entry = readdir(directory));) {
        char path[1024];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        FILE *file = fopen(path, "rb");
        if (!file) continue;
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        replay(data, size, rounds);
        files++;
    }
    closedir(directory);
    printf("%u files\n", files);
    return files ? 0 : 1;
}

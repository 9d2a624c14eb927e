/* libFuzzer target: the state of a training that --resume goes on with. The input is lines that
 * name the tensors of training_state.safetensors, NUL, the first bytes of its data (fuzz_write_tensors). */
#include "fuzz/fuzz_files.h"

#include "base/memory.h"
#include "train/data.h"
#include "train/output.h"

#define PARAMETERS 4
#define PIECES 3

/* What a job does first at the place it is sent to. */
static void read_on(uint64_t epoch, uint64_t next)
{
    static int32_t ids[] = {1, 2, 3, 4, 5, 6};
    static uint8_t counts[] = {1, 1, 1, 1, 1, 1};
    static struct walsh_piece pieces[PIECES] = {{0, 2}, {2, 2}, {4, 2}};
    const struct walsh_data data = {
        .ids = ids, .counts = counts, .tokens = 6, .pieces = pieces, .piece_count = PIECES, .context = 4};
    struct walsh_reader reader;
    struct walsh_packed packed;
    struct walsh_error err = {0};
    FUZZ_REQUIRE(walsh_reader_open(&data, 1, true, &reader, &err) == WALSH_OK);
    FUZZ_REQUIRE(walsh_packed_open(4, 2, &packed, &err) == WALSH_OK);
    walsh_reader_seek(&reader, epoch, next);
    FUZZ_REQUIRE(walsh_reader_next(&reader, 2, true, &packed));
    walsh_packed_close(&packed);
    walsh_reader_close(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    float values[PARAMETERS], m[PARAMETERS], v[PARAMETERS], best_values[PARAMETERS];
    static bool made;
    struct walsh_error err = {0};
    const struct walsh_train_job job = {.output = fuzz_path("")};
    struct walsh_train_state s = {
        .values = values, .m = m, .v = v, .best_values = best_values, .count = PARAMETERS};
    bool found;
    if (!made) FUZZ_REQUIRE(mkdir(fuzz_path("checkpoint-1"), 0700) == 0);
    made = true;
    if (size && data[0] == '!') { /* a job without validation */
        s.best_values = NULL;
        data++;
        size--;
    }
    const struct fuzz_part tensors = fuzz_next(&data, &size);
    fuzz_write_tensors("checkpoint-1/training_state.safetensors", tensors, data, size);
    if (walsh_checkpoint_load(&s, &job, "rank 4\nseed 1\n", PIECES, &found, &err) == WALSH_OK) {
        FUZZ_REQUIRE(found && s.step == 1 && s.log);
        read_on(s.epoch, s.next);
    } else {
        fuzz_refused(&err);
    }
    walsh_free(s.log);
    return 0;
}

/* Loading, measured: weights of real shapes from a file in the page cache, beside what it is made of: the pool's threads that
 * read the file into pinned memory, or copy it from its mapping, and the copy of pinned memory to the device. The rows' roofline
 * is the rate over the slower of the file, the faster way, and the copy. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "formats/stored.h"
#include "kernels/cuda/backend.h"

#define FILE_BYTES ((size_t)2 << 30)
#define READ_BYTES ((size_t)256 << 10) /* that a thread reads at a time, as in weights.c */
#define REPEATS 3 /* the fastest counts: the first one faults pages of pinned memory in */

struct measured {
    const struct walsh_queue *q;
    struct cuda_device *d;
    struct walsh_file file; /* as walsh_file_open makes it */
    const char *pattern;
    void (*row)(void *user, const struct walsh_device_bench_row *row);
    void *user;
    double slower; /* bytes/s */
};

static void report(const struct measured *m, const char *kernel, const char *size, double bytes,
                   double seconds)
{
    struct walsh_device_bench_row row = {
        .kernel = kernel, .bytes = bytes, .seconds = seconds, .roofline = bytes / seconds / m->slower};
    snprintf(row.size, sizeof row.size, "%s", size);
    if (m->row) m->row(m->user, &row);
}

/* A file of memory alone, mapped as a checkpoint is: bytes below 0x80, which are numbers in every format. */
static enum walsh_status open_file(struct walsh_file *out, struct walsh_error *err)
{
    const int fd = memfd_create("walsh-bench", MFD_CLOEXEC);
    if (fd < 0) return walsh_fail(err, WALSH_E_IO, "memfd_create fails");
    uint8_t *p = MAP_FAILED;
    if (ftruncate(fd, (off_t)FILE_BYTES) == 0)
        p = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) close(fd);
    if (p == MAP_FAILED)
        return walsh_fail(err, WALSH_E_MEMORY, "%zu bytes to measure loading with cannot be mapped",
                          FILE_BYTES);
    uint32_t word = 1;
    for (size_t i = 0; i < FILE_BYTES; i += sizeof word, word = word * 1664525u + 1013904223u) {
        const uint32_t bytes = (word ^ word >> 15) & 0x7f7f7f7fu;
        memcpy(p + i, &bytes, sizeof bytes);
    }
    walsh_file_read_once(p, FILE_BYTES);
    *out = (struct walsh_file){.data = p, .size = FILE_BYTES, .mapped = true, .fd = fd};
    return WALSH_OK;
}

/* --- the two parts --- */

struct piece {
    const struct walsh_file *file; /* NULL: copied from the mapping */
    const uint8_t *from;
    uint8_t *to;
};

static void read_pieces(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct piece *p = argument;
    (void)worker;
    atomic_int why = 0;
    walsh_file_copy(p->file, p->from + begin * READ_BYTES, (end - begin) * READ_BYTES,
                    p->to + begin * READ_BYTES, &why);
    if (!p->file) walsh_file_read_once(p->from + begin * READ_BYTES, (end - begin) * READ_BYTES);
}

static double read_file(const struct measured *m, bool mapped)
{
    const double start = walsh_now();
    for (size_t at = 0; at < FILE_BYTES; at += CUDA_PINNED_BYTES) {
        struct piece p = {mapped ? NULL : &m->file, m->file.data + at,
                          m->d->pinned[at / CUDA_PINNED_BYTES % 2]};
        walsh_pool_run(m->q->pool, CUDA_PINNED_BYTES / READ_BYTES, 1, read_pieces, &p);
    }
    return walsh_now() - start;
}

static double copy_pinned(const struct measured *m, struct walsh_error *err)
{
    const double start = walsh_now();
    for (size_t at = 0; at < FILE_BYTES; at += CUDA_PINNED_BYTES) {
        const size_t b = at / CUDA_PINNED_BYTES % 2;
        cudaMemcpyAsync((uint8_t *)m->d->scratch + b * CUDA_PINNED_BYTES, m->d->pinned[b], CUDA_PINNED_BYTES,
                        cudaMemcpyHostToDevice, m->d->stream);
    }
    cuda_note(m->d, "a copy");
    return cuda_memory.synchronize(m->q, err) == WALSH_OK ? walsh_now() - start : 0;
}

/* --- whole matrices --- */

/* Matrices of one shape, one behind the other in the file. */
struct matrices {
    struct walsh_stored_weights stored;
    struct walsh_weights w;
    const struct walsh_file *file;
    const uint8_t *array[WALSH_MAX_STAGES];
};

static bool read_matrix(const struct walsh_stored_weights *stored, unsigned array, size_t begin, size_t end,
                        void *to)
{
    const struct matrices *m = (const struct matrices *)stored;
    const size_t unit = walsh_stored_unit_bytes(&m->w, array);
    atomic_int why = 0;
    return walsh_file_copy(m->file, m->array[array] + begin * unit, (end - begin) * unit, to, &why);
}

static enum walsh_status refuse(const struct walsh_stored_weights *stored, struct walsh_error *err)
{
    (void)stored;
    return walsh_fail(err, WALSH_E_INTERNAL, "a measurement");
}

static enum walsh_status load(const struct measured *m, const struct walsh_weights *shape, void *room,
                              double *bytes, struct walsh_error *err)
{
    size_t matrix = 0, at = 0;
    struct matrices *all; /* they stay until they are read */
    for (unsigned k = 0; k < walsh_stored_arrays(shape); k++)
        matrix += walsh_stored_units(shape) * walsh_stored_unit_bytes(shape, k);
    enum walsh_status status = walsh_alloc(FILE_BYTES / matrix, sizeof *all, "a measurement", &all, err);
    for (size_t n = 0; status == WALSH_OK && at + matrix <= FILE_BYTES; at += matrix, n++) {
        struct walsh_weights placed;
        struct matrices *from = &all[n];
        *from = (struct matrices){
            .stored = {.read = read_matrix, .refuse = refuse}, .w = *shape, .file = &m->file};
        const uint8_t *array = m->file.data + at;
        for (unsigned k = 0; k < walsh_stored_arrays(shape); k++) {
            from->array[k] = array;
            array += walsh_stored_units(shape) * walsh_stored_unit_bytes(shape, k);
        }
        from->w.stored = &from->stored;
        status = cuda_memory.place_weights(m->q, &from->w, "a measurement", room, &placed, err);
    }
    *bytes = (double)at;
    if (status == WALSH_OK) status = cuda_memory.synchronize(m->q, err);
    walsh_free(all);
    return status;
}

static enum walsh_status measure_load(const struct measured *m, const char *kernel,
                                      const struct walsh_weights *shape, struct walsh_error *err)
{
    void *room;
    double best = 0, bytes = 0;
    char size[64];
    if (m->pattern && !strstr(kernel, m->pattern)) return WALSH_OK;
    WALSH_TRY(cuda_memory.alloc(m->q, cuda_weights_bytes(m->q, shape), kernel, &room, err));
    enum walsh_status status = WALSH_OK;
    for (int r = 0; r < REPEATS && status == WALSH_OK; r++) {
        const double start = walsh_now();
        status = load(m, shape, room, &bytes, err);
        const double seconds = walsh_now() - start;
        if (r == 0 || seconds < best) best = seconds;
    }
    cuda_memory.free(m->q, room);
    snprintf(size, sizeof size, "%ux%u", shape->rows, shape->cols);
    if (status == WALSH_OK) report(m, kernel, size, bytes, best);
    return status;
}

static enum walsh_status measure(struct measured *m, struct walsh_error *err)
{
    static const struct {
        const char *name;
        struct walsh_weights w;
    } shapes[] = {
        {"load_bf16", {.format = WALSH_FORMAT_BF16, .rows = 8192, .cols = 8192}},
        {"load_e8p_2bpw",
         {.format = WALSH_FORMAT_E8P,
          .rows = 8192,
          .cols = 28672,
          .stages = 1,
          .stage = {{.kind = WALSH_STAGE_E8P}}}},
        {"load_e8p_3bpw",
         {.format = WALSH_FORMAT_E8P,
          .rows = 8192,
          .cols = 28672,
          .stages = 2,
          .stage = {{.kind = WALSH_STAGE_E8P}, {.kind = WALSH_STAGE_E81B}}}},
        {"load_e8p_2bpw",
         {.format = WALSH_FORMAT_E8P,
          .rows = 2048,
          .cols = 2048,
          .stages = 1,
          .stage = {{.kind = WALSH_STAGE_E8P}}}},
        {"load_mxfp4",
         {.format = WALSH_FORMAT_MXFP4,
          .rows = 8192,
          .cols = 28672,
          .block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32},
          .tensor_scale = 1}},
        {"load_mxfp4",
         {.format = WALSH_FORMAT_MXFP4,
          .rows = 2048,
          .cols = 2048,
          .block = {WALSH_CODE_E2M1, WALSH_SCALE_E8M0, 32},
          .tensor_scale = 1}},
    };
    double file = 0, mapped = 0, copy = 0;
    for (int r = 0; r < REPEATS; r++) {
        const double read = read_file(m, false), faulted = read_file(m, true), sent = copy_pinned(m, err);
        if (sent == 0) return err ? err->status : WALSH_E_INTERNAL;
        if (r == 0 || read < file) file = read;
        if (r == 0 || faulted < mapped) mapped = faulted;
        if (r == 0 || sent < copy) copy = sent;
    }
    const double source = file < mapped ? file : mapped;
    m->slower = (double)FILE_BYTES / (source > copy ? source : copy);
    report(m, "load_file", "read, in the page cache", (double)FILE_BYTES, file);
    report(m, "load_file", "mapped, in the page cache", (double)FILE_BYTES, mapped);
    report(m, "load_copy", "pinned memory to the device", (double)FILE_BYTES, copy);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        WALSH_TRY(measure_load(m, shapes[i].name, &shapes[i].w, err));
    return WALSH_OK;
}

enum walsh_status cuda_bench_load(const struct walsh_queue *q, const char *pattern,
                                  void (*row)(void *user, const struct walsh_device_bench_row *row),
                                  void *user, struct walsh_error *err)
{
    struct measured m = {.q = q, .d = cuda_device_of(q), .pattern = pattern, .row = row, .user = user};
    if (pattern && !strstr("load_bf16 load_e8p_2bpw load_e8p_3bpw load_mxfp4", pattern)) return WALSH_OK;
    WALSH_TRY(cuda_memory.synchronize(q, err));
    WALSH_TRY(open_file(&m.file, err));
    const enum walsh_status status = measure(&m, err);
    walsh_file_close(&m.file);
    return status;
}

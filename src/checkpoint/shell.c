#include "checkpoint/shell.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "checkpoint/glq.h"

#define CODEBOOK "e8_codebook.pt"
#define NAME_BYTES 1200 /* of a tensor's name while it is put together */

/* Of a ZIP archive (APPNOTE 6.3, 4.3): the end record, an entry of the central directory, a local header. */
#define END_BYTES 22
#define ENTRY_BYTES 46
#define LOCAL_BYTES 30
#define MAX_COMMENT 65535

static uint32_t read_u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t read_u32(const uint8_t *p)
{
    return read_u16(p) | read_u16(p + 2) << 16;
}

/* Where the end record is; size where there is none. */
static size_t find_end(const struct walsh_file *file)
{
    for (size_t back = END_BYTES; back <= file->size && back <= END_BYTES + MAX_COMMENT; back++)
        if (memcmp(file->data + file->size - back, "PK\5\6", 4) == 0) return file->size - back;
    return file->size;
}

static bool names_data(const uint8_t *name, size_t size)
{
    static const char suffix[] = "/data/0";
    const size_t n = sizeof suffix - 1;
    return size > n && memcmp(name + size - n, suffix, n) == 0;
}

/* The bytes of the member NAME/data/0, which torch stores uncompressed. */
static enum walsh_status find_member(const struct walsh_file *file, const uint8_t **data, size_t *size,
                                     struct walsh_error *err)
{
    const size_t end = find_end(file);
    if (end == file->size)
        return walsh_fail(err, WALSH_E_FORMAT, "%s: is no ZIP archive, expected one that torch.save wrote",
                          file->path);
    size_t at = read_u32(file->data + end + 16);
    for (uint32_t entries = read_u16(file->data + end + 10); entries > 0; entries--) {
        if (at > end || end - at < ENTRY_BYTES || memcmp(file->data + at, "PK\1\2", 4) != 0) break;
        const uint8_t *entry = file->data + at;
        const size_t name = read_u16(entry + 28);
        const size_t next = ENTRY_BYTES + name + read_u16(entry + 30) + read_u16(entry + 32);
        if (end - at < next) break;
        if (!names_data(entry + ENTRY_BYTES, name)) {
            at += next;
            continue;
        }
        const size_t local = read_u32(entry + 42), bytes = read_u32(entry + 24);
        if (read_u16(entry + 10) != 0 || bytes != read_u32(entry + 20))
            return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: its member data/0 is compressed", file->path);
        if (local > end || end - local < LOCAL_BYTES) break;
        const size_t start =
            local + LOCAL_BYTES + read_u16(file->data + local + 26) + read_u16(file->data + local + 28);
        if (start > end || end - start < bytes) break;
        *data = file->data + start;
        *size = bytes;
        return WALSH_OK;
    }
    return walsh_fail(err, WALSH_E_FORMAT, "%s: no member NAME/data/0 within the archive", file->path);
}

/* A point of E8: coordinates all integers or all halves of odd ones, with an even sum. */
static bool read_point(const uint8_t *from, int8_t twice[8])
{
    int sum = 0;
    for (unsigned i = 0; i < 8; i++) {
        float value;
        memcpy(&value, from + 4 * i, 4);
        const float doubled = 2 * value;
        if (!(fabsf(doubled) <= 127) || doubled != rintf(doubled)) return false;
        twice[i] = (int8_t)doubled;
        if ((twice[i] ^ twice[0]) & 1) return false;
        sum += twice[i];
    }
    return sum % 4 == 0;
}

static enum walsh_status read_points(const struct walsh_file *file, struct walsh_shell_points *out,
                                     struct walsh_error *err)
{
    const uint8_t *data = NULL;
    size_t size = 0;
    WALSH_TRY(find_member(file, &data, &size, err));
    if (size == 0 || size % 32 != 0 || size / 32 > 65536)
        return walsh_fail(err, WALSH_E_FORMAT,
                          "%s: data/0 has %zu bytes, expected 32 for each of 1 to 65536 points", file->path,
                          size);
    out->count = (uint32_t)(size / 32);
    WALSH_TRY(walsh_alloc(out->count, sizeof *out->twice, "a codebook", &out->twice, err));
    for (uint32_t p = 0; p < out->count; p++) {
        if (!read_point(data + 32 * (size_t)p, out->twice[p]))
            return walsh_fail(err, WALSH_E_FORMAT, "%s: point %u of data/0 is not of the lattice E8",
                              file->path, p);
        for (unsigned i = 0; i < 8; i++) {
            const int magnitude = out->twice[p][i] < 0 ? -out->twice[p][i] : out->twice[p][i];
            if (magnitude > out->most) out->most = magnitude;
        }
    }
    return WALSH_OK;
}

enum walsh_status walsh_shell_points_open(const struct walsh_checkpoint *ck, struct walsh_shell_points *out,
                                          struct walsh_error *err)
{
    *out = (struct walsh_shell_points){0};
    char *path;
    struct walsh_file file;
    WALSH_TRY(walsh_path_join(ck->directory, CODEBOOK, &path, err));
    enum walsh_status status = walsh_file_open(path, true, &file, err);
    walsh_free(path);
    WALSH_TRY(status);
    status = read_points(&file, out, err);
    walsh_file_close(&file);
    if (status != WALSH_OK) walsh_shell_points_close(out);
    return status;
}

void walsh_shell_points_close(struct walsh_shell_points *points)
{
    walsh_free(points->twice);
    *points = (struct walsh_shell_points){0};
}

static const char *codes_name(const char *module, unsigned stage, char *buffer)
{
    char number[16] = "";
    if (stage > 0) snprintf(number, sizeof number, "%u", stage + 1);
    snprintf(buffer, NAME_BYTES, "%s.Qidxs%s", module, number);
    return buffer;
}

bool walsh_shell_present(const struct walsh_checkpoint *ck, const char *module)
{
    char name[NAME_BYTES];
    return walsh_checkpoint_find(ck, codes_name(module, 0, name)) != NULL;
}

static uint64_t next_power(uint32_t n)
{
    uint64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

static enum walsh_status infer_sizes(const struct walsh_tensor *t, uint32_t out_features,
                                     uint32_t in_features, struct walsh_shell_linear *out,
                                     struct walsh_error *err)
{
    const uint64_t rows = t->shape[0], columns = t->shape[1];
    const bool same = rows == out_features && in_features % 8 == 0 && columns == in_features / 8;
    const bool padded = rows == next_power(out_features) && 8 * columns == next_power(in_features);
    if (!same && !padded)
        return walsh_fail(
            err, WALSH_E_FORMAT,
            "%s: tensor %s: shape [%llu, %llu], expected [%u, %u/8] or both padded to powers of two", t->file,
            t->name, (unsigned long long)rows, (unsigned long long)columns, out_features, in_features);
    out->m_pad = (uint32_t)rows;
    out->n_pad = (uint32_t)columns * 8;
    return WALSH_OK;
}

enum walsh_status walsh_shell_take(const struct walsh_checkpoint *ck, const char *module,
                                   uint32_t out_features, uint32_t in_features,
                                   struct walsh_shell_linear *out, struct walsh_error *err)
{
    *out = (struct walsh_shell_linear){.stages = 1, .inv_resid_scale = {1}};
    char name[NAME_BYTES];
    WALSH_TRY(
        walsh_checkpoint_take_rank(ck, codes_name(module, 0, name), 1u << WALSH_I16, 2, &out->codes[0], err));
    WALSH_TRY(infer_sizes(out->codes[0], out_features, in_features, out, err));
    const uint64_t shape[] = {out->m_pad, out->n_pad / 8};
    for (; out->stages < WALSH_MAX_STAGES; out->stages++) {
        if (!walsh_checkpoint_find(ck, codes_name(module, out->stages, name))) break;
        WALSH_TRY(walsh_checkpoint_take(ck, name, 1u << WALSH_I16, 2, shape, &out->codes[out->stages], err));
        walsh_glq_scale_name(module, out->stages, name, sizeof name);
        WALSH_TRY(walsh_glq_take_scalar(ck, name, &out->inv_resid_scale[out->stages], err));
    }
    WALSH_TRY(walsh_glq_take_signs(ck, module, "SU", out->m_pad, &out->su, err));
    WALSH_TRY(walsh_glq_take_signs(ck, module, "SV", out->n_pad, &out->sv, err));
    snprintf(name, sizeof name, "%s.Wscale", module);
    return walsh_glq_take_scalar(ck, name, &out->wscale, err);
}

uint32_t walsh_shell_code(const struct walsh_shell_linear *linear, const struct walsh_shell_points *points,
                          unsigned stage, size_t row, size_t group)
{
    uint16_t code;
    memcpy(&code, (const uint8_t *)linear->codes[stage]->data + 2 * (row * (linear->n_pad / 8) + group),
           sizeof code);
    return code < points->count ? code : UINT32_MAX;
}

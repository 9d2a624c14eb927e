#include "checkpoint/blocks.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"

#define NAME_SIZE 320
#define SCALES_READ ((size_t)64 << 10) /* bytes of scales that are read at a time */
#define DTYPE(type) (1u << WALSH_##type)
#define FLOAT_SCALES (DTYPE(F32) | DTYPE(F16) | DTYPE(BF16))
#define MX_SCALES (DTYPE(U8) | DTYPE(F8_E8M0))

static const char *tensor_name(const char *module, const char *suffix, char *buffer)
{
    snprintf(buffer, NAME_SIZE, "%s%s", module, suffix);
    return buffer;
}

static struct walsh_tensor *find(const struct walsh_checkpoint *ck, const char *module, const char *suffix)
{
    char name[NAME_SIZE];
    return walsh_checkpoint_find(ck, tensor_name(module, suffix, name));
}

/* Is it a tensor of codes, not of plain weights? */
static bool holds_codes(const struct walsh_tensor *t)
{
    return t && (t->dtype == WALSH_U8 || t->dtype == WALSH_I8 || t->dtype == WALSH_F8_E4M3 ||
                 t->dtype == WALSH_F8_E5M2);
}

bool walsh_blocks_present(const struct walsh_checkpoint *ck, const char *module, bool stack)
{
    if (stack) return find(ck, module, "_blocks") != NULL;
    if (find(ck, module, ".weight_packed")) return true;
    return holds_codes(find(ck, module, ".weight")) &&
           (find(ck, module, ".weight_scale") || find(ck, module, ".weight_scale_inv") ||
            find(ck, module, ".scale"));
}

/* What a call looks at. */
struct taking {
    const struct walsh_checkpoint *ck;
    const char *module;
    uint32_t rows, cols; /* of the stored matrix */
    struct walsh_block_source *out;
    struct walsh_error *err;
};

static enum walsh_status take(const struct taking *t, const char *suffix, unsigned dtypes, uint64_t rows,
                              uint64_t cols, const struct walsh_tensor **out)
{
    char name[NAME_SIZE];
    const uint64_t shape[] = {rows, cols};
    return walsh_checkpoint_take(t->ck, tensor_name(t->module, suffix, name), dtypes, 2, shape, out, t->err);
}

/* An F32 tensor of one element, positive and finite. */
static enum walsh_status take_number(const struct taking *t, const char *suffix, float *out)
{
    char name[NAME_SIZE];
    struct walsh_tensor *found = walsh_checkpoint_find(t->ck, tensor_name(t->module, suffix, name));
    const struct walsh_tensor *number;
    WALSH_TRY(walsh_checkpoint_take_rank(t->ck, name, DTYPE(F32), found ? found->rank : 0, &number, t->err));
    if (number->bytes != sizeof *out)
        return walsh_fail(t->err, WALSH_E_FORMAT, "%s: tensor %s has %zu elements, expected 1", number->file,
                          name, number->bytes / sizeof *out);
    memcpy(out, number->data, sizeof *out);
    if (!(*out > 0) || !isfinite(*out))
        return walsh_fail(t->err, WALSH_E_FORMAT, "%s: tensor %s is %g, expected a positive number",
                          number->file, name, (double)*out);
    return WALSH_OK;
}

static enum walsh_scale scale_type(enum walsh_dtype dtype)
{
    return dtype == WALSH_U8 || dtype == WALSH_F8_E8M0 ? WALSH_SCALE_E8M0
           : dtype == WALSH_F8_E4M3                    ? WALSH_SCALE_E4M3
           : dtype == WALSH_BF16                       ? WALSH_SCALE_BF16
                                                       : WALSH_SCALE_F32; /* F16 becomes F32 */
}

/* Scales of a fixed group. */
static enum walsh_status take_scales(const struct taking *t, const char *suffix, unsigned dtypes,
                                     uint32_t group)
{
    struct walsh_block_source *s = t->out;
    s->scale_ld = (uint32_t)walsh_div_up(t->cols, group);
    s->scale_rows = 1;
    s->block.group = group;
    WALSH_TRY(take(t, suffix, dtypes, t->rows, s->scale_ld, &s->scales));
    s->block.scale = scale_type(s->scales->dtype);
    return WALSH_OK;
}

/* Scales whose group follows from their shape: [rows][groups], [rows], or one for all. */
static enum walsh_status take_any_scales(const struct taking *t, const char *suffix)
{
    char name[NAME_SIZE];
    struct walsh_block_source *s = t->out;
    struct walsh_tensor *found = walsh_checkpoint_find(t->ck, tensor_name(t->module, suffix, name));
    WALSH_TRY(
        walsh_checkpoint_take_rank(t->ck, name, FLOAT_SCALES, found ? found->rank : 2, &s->scales, t->err));
    const struct walsh_tensor *scales = s->scales;
    s->block.scale = scale_type(scales->dtype);
    s->block.group = 0;
    s->scale_ld = 1;
    s->scale_rows = 1;
    if (walsh_tensor_elements(scales) == 1) {
        s->scale_rows = UINT32_MAX;
        return WALSH_OK;
    }
    const uint64_t groups = scales->rank == 2 ? scales->shape[1] : 1;
    if (scales->rank < 1 || scales->rank > 2 || scales->shape[0] != t->rows || groups == 0 ||
        t->cols % groups != 0) {
        char shape[256];
        return walsh_fail(
            t->err, WALSH_E_FORMAT,
            "%s: tensor %s: shape %s, expected [%u, groups] with groups that divide %u columns", scales->file,
            name, walsh_shape_text(scales->shape, scales->rank, shape, sizeof shape), t->rows, t->cols);
    }
    const uint64_t group = t->cols / groups;
    if (groups == 1) return WALSH_OK;
    if (group < WALSH_BLOCK_COLUMNS || (group & (group - 1)) != 0)
        return walsh_fail(t->err, WALSH_E_UNSUPPORTED,
                          "%s: tensor %s has groups of %" PRIu64
                          " columns, expected a power of two from %d on",
                          scales->file, name, group, WALSH_BLOCK_COLUMNS);
    s->scale_ld = (uint32_t)groups;
    s->block.group = (uint32_t)group;
    return WALSH_OK;
}

/* DeepSeek's [rows/128][cols/128]. */
static enum walsh_status take_square_scales(const struct taking *t, const char *suffix, unsigned dtypes)
{
    struct walsh_block_source *s = t->out;
    s->block.group = 128;
    s->scale_rows = 128;
    s->scale_ld = (uint32_t)walsh_div_up(t->cols, 128);
    WALSH_TRY(take(t, suffix, dtypes, walsh_div_up(t->rows, 128), s->scale_ld, &s->scales));
    s->block.scale = scale_type(s->scales->dtype);
    return WALSH_OK;
}

/* --- the layouts --- */

static void set_codes(struct walsh_block_source *s, enum walsh_format format, enum walsh_code code)
{
    s->format = format;
    s->block.code = code;
    s->row_bytes = walsh_code_bits(code) == 4 ? walsh_div_up(s->cols, 2) : s->cols;
}

/* Two codes of E2M1 per byte at `suffix`: NVFP4 by the type of its scales, else MXFP4. */
static enum walsh_status take_fp4(const struct taking *t, const char *codes, const char *scales)
{
    struct walsh_block_source *s = t->out;
    const struct walsh_tensor *found = find(t->ck, t->module, scales);
    const bool nvfp4 = found && found->dtype == WALSH_F8_E4M3;
    set_codes(s, nvfp4 ? WALSH_FORMAT_NVFP4 : WALSH_FORMAT_MXFP4, WALSH_CODE_E2M1);
    WALSH_TRY(take(t, codes, DTYPE(U8) | DTYPE(I8), t->rows, s->row_bytes, &s->codes));
    WALSH_TRY(take_scales(t, scales, nvfp4 ? DTYPE(F8_E4M3) : MX_SCALES, nvfp4 ? 16 : 32));
    if (!nvfp4) return WALSH_OK;
    if (find(t->ck, t->module, ".weight_scale_2")) return take_number(t, ".weight_scale_2", &s->tensor_scale);
    WALSH_TRY(take_number(t, ".weight_global_scale", &s->tensor_scale));
    s->tensor_scale = 1 / s->tensor_scale;
    return WALSH_OK;
}

static enum walsh_status check_shape(const struct taking *t)
{
    char name[NAME_SIZE];
    struct walsh_tensor *shape = walsh_checkpoint_find(t->ck, tensor_name(t->module, ".weight_shape", name));
    if (!shape) return WALSH_OK;
    int64_t size[2] = {0, 0};
    int32_t narrow[2];
    shape->used = true;
    if (shape->dtype == WALSH_I64 && shape->bytes == sizeof size)
        memcpy(size, shape->data, sizeof size);
    else if (shape->dtype == WALSH_I32 && shape->bytes == sizeof narrow) {
        memcpy(narrow, shape->data, sizeof narrow);
        size[0] = narrow[0];
        size[1] = narrow[1];
    }
    if (size[0] != t->rows || size[1] != t->cols)
        return walsh_fail(t->err, WALSH_E_FORMAT,
                          "%s: tensor %s is [%" PRId64 ", %" PRId64 "], expected [%u, %u]", shape->file, name,
                          size[0], size[1], t->rows, t->cols);
    return WALSH_OK;
}

/* Zero points: I32 words along the rows, or bytes. */
static enum walsh_status take_zeros(const struct taking *t, unsigned bits)
{
    struct walsh_block_source *s = t->out;
    const struct walsh_tensor *found = find(t->ck, t->module, ".weight_zero_point");
    if (!found) return WALSH_OK;
    s->zeros_in_words = found->dtype == WALSH_I32;
    const uint64_t rows = s->zeros_in_words ? walsh_div_up((uint64_t)t->rows * bits, 32) : t->rows;
    return take(t, ".weight_zero_point", s->zeros_in_words ? DTYPE(I32) : DTYPE(I8), rows, s->scale_ld,
                &s->zeros);
}

/* Words of 32 bits: the number of bits follows from their count. */
static enum walsh_status take_words(const struct taking *t, const struct walsh_tensor *packed)
{
    struct walsh_block_source *s = t->out;
    const bool four = packed->rank == 2 && packed->shape[1] == walsh_div_up(t->cols, 8);
    const uint64_t words = walsh_div_up(t->cols, four ? 8 : 4);
    set_codes(s, four ? WALSH_FORMAT_INT4 : WALSH_FORMAT_INT8, four ? WALSH_CODE_U4 : WALSH_CODE_U8);
    s->row_bytes = (size_t)words * 4;
    WALSH_TRY(take(t, ".weight_packed", DTYPE(I32), t->rows, words, &s->codes));
    WALSH_TRY(check_shape(t));
    WALSH_TRY(take_any_scales(t, ".weight_scale"));
    return take_zeros(t, four ? 4 : 8);
}

static enum walsh_status take_int8(const struct taking *t)
{
    struct walsh_block_source *s = t->out;
    set_codes(s, WALSH_FORMAT_INT8, WALSH_CODE_U8);
    s->flip = 0x80;
    WALSH_TRY(take(t, ".weight", DTYPE(I8), t->rows, t->cols, &s->codes));
    WALSH_TRY(take_any_scales(t, ".weight_scale"));
    return take_zeros(t, 8);
}

static enum walsh_status take_fp8(const struct taking *t, const struct walsh_tensor *weight)
{
    struct walsh_block_source *s = t->out;
    const struct walsh_tensor *scale = find(t->ck, t->module, ".weight_scale");
    const bool mx = scale && (MX_SCALES >> scale->dtype & 1);
    set_codes(s, mx ? WALSH_FORMAT_MXFP8 : WALSH_FORMAT_FP8,
              weight->dtype == WALSH_F8_E5M2 ? WALSH_CODE_E5M2 : WALSH_CODE_E4M3);
    WALSH_TRY(take(t, ".weight", DTYPE(F8_E4M3) | DTYPE(F8_E5M2), t->rows, t->cols, &s->codes));
    if (mx) return take_scales(t, ".weight_scale", MX_SCALES, 32);
    if (find(t->ck, t->module, ".scale")) return take_square_scales(t, ".scale", MX_SCALES | FLOAT_SCALES);
    if (find(t->ck, t->module, ".weight_scale_inv"))
        return take_square_scales(t, ".weight_scale_inv", FLOAT_SCALES);
    return take_any_scales(t, ".weight_scale");
}

static enum walsh_status take_stack(const struct taking *t, uint32_t stack)
{
    struct walsh_block_source *s = t->out;
    char name[NAME_SIZE];
    set_codes(s, WALSH_FORMAT_MXFP4, WALSH_CODE_E2M1);
    s->block.scale = WALSH_SCALE_E8M0;
    s->block.group = 32;
    s->scale_rows = 1;
    s->scale_ld = t->cols / 32;
    const uint64_t blocks[] = {stack, t->rows, s->scale_ld, 16};
    if (t->cols % 32 != 0)
        return walsh_fail(t->err, WALSH_E_UNSUPPORTED, "%s: %s has %u columns, expected a multiple of 32",
                          t->ck->directory, t->module, t->cols);
    WALSH_TRY(walsh_checkpoint_take(t->ck, tensor_name(t->module, "_blocks", name), DTYPE(U8), 4, blocks,
                                    &s->codes, t->err));
    return walsh_checkpoint_take(t->ck, tensor_name(t->module, "_scales", name), MX_SCALES, 3, blocks,
                                 &s->scales, t->err);
}

static enum walsh_status take_layout(const struct taking *t, uint32_t stack)
{
    if (stack) return take_stack(t, stack);
    const struct walsh_tensor *packed = find(t->ck, t->module, ".weight_packed");
    if (packed)
        return packed->dtype == WALSH_I32 ? take_words(t, packed)
                                          : take_fp4(t, ".weight_packed", ".weight_scale");
    const struct walsh_tensor *weight = find(t->ck, t->module, ".weight");
    if (weight->dtype == WALSH_U8) return take_fp4(t, ".weight", ".weight_scale");
    if (weight->dtype != WALSH_I8) return take_fp8(t, weight);
    return find(t->ck, t->module, ".scale") ? take_fp4(t, ".weight", ".scale") : take_int8(t);
}

enum walsh_status walsh_blocks_take(const struct walsh_checkpoint *ck, const char *module, uint32_t rows,
                                    uint32_t cols, const struct walsh_block_rows *part,
                                    struct walsh_block_source *out, struct walsh_error *err)
{
    static const char *const passed_over[] = {".input_scale", ".input_global_scale"};
    const struct walsh_block_rows all = {.rows = rows};
    if (!part) part = &all;
    *out = (struct walsh_block_source){.tensor_scale = 1,
                                       .rows = rows,
                                       .cols = cols,
                                       .first = part->row,
                                       .step = part->step ? part->step : 1,
                                       .matrix = part->matrix,
                                       .matrix_rows = part->rows ? part->rows : rows};
    if (cols > WALSH_BLOCK_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: %s has %u columns, expected at most %u",
                          ck->directory, module, cols, WALSH_BLOCK_MAX_COLUMNS);
    const struct taking t = {ck, module, out->matrix_rows, cols, out, err};
    WALSH_TRY(take_layout(&t, part->stack));
    for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over; i++) {
        struct walsh_tensor *static_scale = find(ck, module, passed_over[i]);
        if (static_scale) static_scale->used = true;
    }
    return WALSH_OK;
}

/* --- packing --- */

struct walsh_weights walsh_blocks_weights(const struct walsh_block_source *s)
{
    return (struct walsh_weights){.format = s->format,
                                  .rows = s->rows,
                                  .cols = s->cols,
                                  .block = s->block,
                                  .tensor_scale = s->tensor_scale};
}

/* Row r of the linear among the rows of its tensor. */
static size_t stored_row(const struct walsh_block_source *s, size_t r)
{
    return (size_t)s->matrix * s->matrix_rows + s->first + s->step * r;
}

/* A scale in the bits of its run-time type. */
static uint32_t scale_bits(const struct walsh_block_source *s, size_t row, size_t group)
{
    const size_t m = stored_row(s, row) / s->scale_rows;
    const size_t at = s->by_group ? group * s->scale_ld + m : m * s->scale_ld + group;
    const uint8_t *data = s->scales->data;
    uint32_t word;
    uint16_t half;
    switch (s->scales->dtype) {
    case WALSH_F32:
        memcpy(&word, data + 4 * at, 4);
        return word;
    case WALSH_BF16:
        memcpy(&half, data + 2 * at, 2);
        return half;
    case WALSH_F16:
        memcpy(&half, data + 2 * at, 2);
        return walsh_bits_from_float(walsh_f32_from_f16(half));
    default:
        return data[at];
    }
}

static uint8_t zero_bits(const struct walsh_block_source *s, size_t row, size_t group)
{
    const uint8_t *data = s->zeros->data;
    const size_t m = stored_row(s, row);
    if (s->zero_bytes) {
        const size_t line = s->by_group ? group : m, at = s->by_group ? m : group;
        if (walsh_code_bits(s->block.code) == 8) return data[line * s->zero_bytes + at];
        return data[line * s->zero_bytes + at / 2] >> 4 * (at % 2) & 15;
    }
    if (!s->zeros_in_words) return data[m * s->scale_ld + group] ^ 0x80;
    const unsigned bits = walsh_code_bits(s->block.code), in_word = 32 / bits;
    uint32_t word;
    memcpy(&word, data + (m / in_word * s->scale_ld + group) * 4, 4);
    return (uint8_t)(word >> bits * (m % in_word) & ((1u << bits) - 1));
}

static const uint8_t *codes_of(const struct walsh_block_source *s, size_t row)
{
    return (const uint8_t *)s->codes->data + stored_row(s, row) * s->row_bytes;
}

/* NaN and Inf by their bits; without a branch, so that many are looked at together. */
static bool codes_are_numbers(const struct walsh_block_source *s, const uint8_t *codes)
{
    const uint8_t mask = s->block.code == WALSH_CODE_E5M2 ? 0x7c : 0x7f;
    uint8_t broken = 0;
    if (s->block.code != WALSH_CODE_E4M3 && s->block.code != WALSH_CODE_E5M2) return true;
    for (size_t k = 0; k < s->cols; k++) broken = (uint8_t)(broken | ((codes[k] & mask) == mask));
    return !broken;
}

/* Scales of a byte each that lie in rows as the groups do: nearly all there are, and many. */
static bool are_byte_rows(const struct walsh_block_source *s)
{
    const enum walsh_dtype t = s->scales->dtype;
    return walsh_scale_bytes(s->block.scale) == 1 && !s->by_group && s->scale_rows == 1 && t != WALSH_F32 &&
           t != WALSH_BF16 && t != WALSH_F16;
}

/* A tile's, whose first row is at `rows`. */
static bool pack_byte_rows(const struct walsh_block_source *s, size_t groups, size_t tile,
                           const uint8_t *rows, uint8_t *scales)
{
    const uint8_t none = s->block.scale == WALSH_SCALE_E8M0 ? 0xff : 0x7f; /* E4M3: either sign's */
    uint8_t broken = 0;
    for (size_t i = 0; i < WALSH_BLOCK_ROWS; i++) {
        const size_t row = tile * WALSH_BLOCK_ROWS + i;
        if (row >= s->rows) {
            for (size_t g = 0; g < groups; g++) scales[g * WALSH_BLOCK_ROWS + i] = 0;
            continue;
        }
        const uint8_t *from = rows + i * s->step * s->scale_ld;
        for (size_t g = 0; g < groups; g++) {
            scales[g * WALSH_BLOCK_ROWS + i] = from[g];
            broken = (uint8_t)(broken | ((from[g] & none) == none));
        }
    }
    return !broken;
}

static const uint8_t *byte_row(const struct walsh_block_source *s, size_t row)
{
    return (const uint8_t *)s->scales->data + stored_row(s, row) * s->scale_ld;
}

/* Scales and zero points (NULL: not wanted) of a tile, at the beginning of `scales` and `zeros`. */
static bool pack_scales(const struct walsh_block_source *s, const struct walsh_weights *w, size_t tile,
                        void *scales, uint8_t *zeros)
{
    const size_t groups = walsh_block_groups(w), first = tile * WALSH_BLOCK_ROWS;
    bool good = true;
    if (scales && !zeros && are_byte_rows(s))
        return pack_byte_rows(s, groups, tile, byte_row(s, first), scales);
    for (size_t i = 0; i < WALSH_BLOCK_ROWS; i++)
        for (size_t g = 0; g < groups; g++) {
            const bool exists = first + i < s->rows;
            const uint32_t bits = scales && exists ? scale_bits(s, first + i, g) : 0;
            good = good && walsh_scale_is_number(s->block.scale, bits);
            if (scales) walsh_block_put_scale(w, i, g, bits, scales);
            if (zeros) zeros[walsh_block_group_at(w, i, g)] = exists ? zero_bits(s, first + i, g) : 0;
        }
    return good;
}

bool walsh_blocks_pack(const struct walsh_block_source *s, size_t begin, size_t end, uint32_t *data,
                       void *scales, uint8_t *zeros)
{
    const struct walsh_weights w = walsh_blocks_weights(s);
    const size_t count = walsh_block_groups(&w) * WALSH_BLOCK_ROWS; /* scales of a tile */
    bool good = true;
    for (size_t tile = begin; tile < end; tile++) {
        const size_t row = tile * WALSH_BLOCK_ROWS;
        walsh_block_pack_codes(&w, tile, codes_of(s, row), s->step * s->row_bytes, s->flip, data);
        for (size_t r = row; r < row + WALSH_BLOCK_ROWS && r < s->rows; r++)
            good = codes_are_numbers(s, codes_of(s, r)) && good;
        good = pack_scales(s, &w, tile, (uint8_t *)scales + tile * count * walsh_scale_bytes(s->block.scale),
                           zeros ? zeros + tile * count : NULL) &&
               good;
    }
    return good;
}

/* Codes of rows [first, last), one behind the other. */
static bool read_codes(const struct walsh_block_source *s, const struct walsh_block_files *files,
                       size_t first, size_t last, size_t bytes, uint8_t *to)
{
    bool good = true;
    if (s->step == 1 && bytes == s->row_bytes) {
        if (!walsh_file_copy(files->codes, codes_of(s, first), (last - first) * bytes, to, files->codes_why))
            return false;
    } else {
        for (size_t r = first; r < last; r++) memcpy(to + (r - first) * bytes, codes_of(s, r), bytes);
        if (files->codes) walsh_file_read_once(codes_of(s, first), (last - first) * s->step * s->row_bytes);
    }
    for (size_t r = first; r < last; r++) good = codes_are_numbers(s, to + (r - first) * bytes) && good;
    return good;
}

/* Scales that are byte rows, and whole rows of the file, through a small buffer. */
static bool read_byte_rows(const struct walsh_block_source *s, const struct walsh_block_files *files,
                           size_t begin, size_t end, uint8_t *to)
{
    uint8_t rows[SCALES_READ];
    const size_t groups = s->scale_ld, unit = WALSH_BLOCK_ROWS * groups, at_once = sizeof rows / unit;
    bool good = true;
    for (size_t tile = begin, next; tile < end; tile = next) {
        const size_t first = tile * WALSH_BLOCK_ROWS;
        next = walsh_min(tile + at_once, end);
        const size_t last = walsh_min(next * WALSH_BLOCK_ROWS, s->rows);
        if (!walsh_file_copy(files->scales, byte_row(s, first), (last - first) * groups, rows,
                             files->scales_why))
            return false;
        for (size_t i = tile; i < next; i++, to += unit)
            good = pack_byte_rows(s, groups, i, rows + (i - tile) * unit, to) && good;
    }
    return good;
}

bool walsh_blocks_read(const struct walsh_block_source *s, const struct walsh_block_files *files,
                       unsigned array, size_t begin, size_t end, void *to)
{
    static const struct walsh_block_files memory;
    const struct walsh_weights w = walsh_blocks_weights(s);
    const size_t groups = walsh_block_groups(&w), count = groups * WALSH_BLOCK_ROWS,
                 first = begin * WALSH_BLOCK_ROWS, last = walsh_min(end * WALSH_BLOCK_ROWS, s->rows);
    uint8_t *at = to;
    bool good = true;
    if (!files) files = &memory;
    if (array == WALSH_STORED_CODES) return read_codes(s, files, first, last, walsh_stored_row_bytes(&w), at);
    if (array == WALSH_STORED_SCALES && are_byte_rows(s) && s->step == 1 && groups == s->scale_ld &&
        count <= SCALES_READ)
        return read_byte_rows(s, files, begin, end, at);
    for (size_t tile = begin; tile < end; tile++) {
        if (array == WALSH_STORED_ZEROS)
            good = pack_scales(s, &w, tile, NULL, at) && good;
        else
            good = pack_scales(s, &w, tile, at, NULL) && good;
        at += count * (array == WALSH_STORED_ZEROS ? 1 : walsh_scale_bytes(s->block.scale));
    }
    if (array == WALSH_STORED_SCALES && files->scales && !s->by_group && s->scale_rows == 1) {
        const size_t row = s->scale_ld * walsh_dtype_size(s->scales->dtype);
        walsh_file_read_once((const uint8_t *)s->scales->data + stored_row(s, first) * row,
                             (last - first) * s->step * row);
    }
    return good;
}

enum walsh_status walsh_blocks_fail(const struct walsh_block_source *s, struct walsh_error *err)
{
    const struct walsh_weights w = walsh_blocks_weights(s);
    const unsigned bytes = (unsigned)walsh_scale_bytes(s->block.scale);
    for (size_t r = 0; r < s->rows; r++) {
        for (size_t g = 0; g < walsh_block_groups(&w); g++) {
            const uint32_t bits = scale_bits(s, r, g);
            if (!walsh_scale_is_number(s->block.scale, bits))
                return walsh_fail(err, WALSH_E_FORMAT,
                                  "%s: tensor %s: the scale of row %zu, group %zu is no number (bits 0x%0*x)",
                                  s->scales->file, s->scales->name, stored_row(s, r), g, (int)(2 * bytes),
                                  bits);
        }
        if (!codes_are_numbers(s, codes_of(s, r)))
            return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: row %zu holds NaN or Inf", s->codes->file,
                              s->codes->name, stored_row(s, r));
    }
    return walsh_fail(err, WALSH_E_INTERNAL, "%s: tensor %s was refused without reason", s->codes->file,
                      s->codes->name);
}

void walsh_blocks_release(const struct walsh_checkpoint *ck, const char *module, bool stack)
{
    static const char *const single[] = {".weight",
                                         ".weight_packed",
                                         ".weight_scale",
                                         ".weight_scale_2",
                                         ".weight_scale_inv",
                                         ".weight_global_scale",
                                         ".weight_zero_point",
                                         ".weight_shape",
                                         ".scale",
                                         ".input_scale",
                                         ".input_global_scale"};
    static const char *const stacked[] = {"", "_blocks", "_scales"};
    const char *const *suffixes = stack ? stacked : single;
    const size_t count = stack ? sizeof stacked / sizeof *stacked : sizeof single / sizeof *single;
    for (size_t i = 0; i < count; i++) {
        struct walsh_tensor *t = find(ck, module, suffixes[i]);
        if (t) t->used = false;
    }
}

#include "checkpoint/glq.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/e8p_planes.h"
#include "rotation/rotation.h"

#define NAME_BYTES 1200 /* of a tensor's name while it is put together */

/* Bits 0, 4, ..., 28 of x to bits 0..7, and back */
static uint32_t gather_stride_4(uint32_t x)
{
    x &= 0x11111111u;
    x = (x | x >> 3) & 0x03030303u;
    x = (x | x >> 6) & 0x000f000fu;
    return (x | x >> 12) & 0xffu;
}

static uint32_t spread_stride_4(uint32_t x)
{
    x = (x | x << 12) & 0x000f000fu;
    x = (x | x << 6) & 0x03030303u;
    return (x | x << 3) & 0x11111111u;
}

void walsh_glq_unpack_e8p(const void *stored, size_t m_pad, size_t n_pad, uint16_t *codes)
{
    const uint8_t *p = stored;
    size_t groups = n_pad / 8;
    for (size_t mt = 0; mt < m_pad / 16; mt++) {
        for (size_t kt = 0; kt < n_pad / 64; kt++) {
            for (size_t r = 0; r < 8; r++) {
                for (size_t c = 0; c < 4; c++) {
                    uint32_t high, low; /* the codes' high bytes; the bits of their low bytes */
                    memcpy(&high, p, 4);
                    memcpy(&low, p + 4, 4);
                    p += 8;
                    uint16_t *at = codes + (16 * mt + 2 * r) * groups + 8 * kt + 2 * c;
                    for (unsigned i = 0; i < 4; i++)
                        at[(i & 1) * groups + (i >> 1)] =
                            (uint16_t)((high >> (8 * i) & 0xffu) << 8 | gather_stride_4(low >> i));
                }
            }
        }
    }
}

void walsh_glq_pack_e8p(const uint16_t *codes, size_t m_pad, size_t n_pad, void *stored)
{
    uint8_t *p = stored;
    size_t groups = n_pad / 8;
    for (size_t mt = 0; mt < m_pad / 16; mt++) {
        for (size_t kt = 0; kt < n_pad / 64; kt++) {
            for (size_t r = 0; r < 8; r++) {
                for (size_t c = 0; c < 4; c++) {
                    const uint16_t *at = codes + (16 * mt + 2 * r) * groups + 8 * kt + 2 * c;
                    uint32_t high = 0, low = 0;
                    for (unsigned i = 0; i < 4; i++) {
                        uint32_t code = at[(i & 1) * groups + (i >> 1)];
                        high |= code >> 8 << (8 * i);
                        low |= spread_stride_4(code & 0xffu) << i;
                    }
                    memcpy(p, &high, 4);
                    memcpy(p + 4, &low, 4);
                    p += 8;
                }
            }
        }
    }
}

void walsh_glq_unpack_e81b(const void *stored, size_t m_pad, size_t n_pad, uint8_t *codes)
{
    memcpy(codes, stored, m_pad * (n_pad / 8));
}

void walsh_glq_pack_e81b(const uint8_t *codes, size_t m_pad, size_t n_pad, void *stored)
{
    memcpy(stored, codes, m_pad * (n_pad / 8));
}

const char *walsh_glq_codes_name(const char *module, unsigned stage, enum walsh_stage_kind kind, char *buffer,
                                 size_t size)
{
    char number[16] = "";
    if (stage > 0) snprintf(number, sizeof number, "%u", stage + 1);
    snprintf(buffer, size, "%s.Qidxs%s_%s", module, number, kind == WALSH_STAGE_E8P ? "e8p" : "e81b");
    return buffer;
}

const char *walsh_glq_scale_name(const char *module, unsigned stage, char *buffer, size_t size)
{
    char number[16] = "";
    if (stage > 1) snprintf(number, sizeof number, "%u", stage);
    snprintf(buffer, size, "%s.inv_resid_scale%s", module, number);
    return buffer;
}

bool walsh_glq_present(const struct walsh_checkpoint *ck, const char *module)
{
    char name[NAME_BYTES];
    return walsh_checkpoint_find(ck, walsh_glq_codes_name(module, 0, WALSH_STAGE_E8P, name, sizeof name)) !=
           NULL;
}

/* The stored shape of a stage; returns its rank. */
static unsigned stage_shape(enum walsh_stage_kind kind, uint32_t m_pad, uint32_t n_pad, uint64_t shape[4])
{
    if (kind == WALSH_STAGE_E8P) {
        memcpy(shape, (const uint64_t[]){m_pad / 16, n_pad / 64, 8, 4}, 4 * sizeof *shape);
        return 4;
    }
    memcpy(shape, (const uint64_t[]){m_pad, n_pad / 64}, 2 * sizeof *shape);
    return 2;
}

/* m_pad and n_pad from the shape of the first stage */
static enum walsh_status infer_sizes(const struct walsh_tensor *t, uint32_t out_features,
                                     uint32_t in_features, struct walsh_glq_linear *out,
                                     struct walsh_error *err)
{
    struct walsh_blocks rows, columns, legacy_rows, legacy_columns;
    WALSH_TRY(walsh_blocks_binary(out_features, WALSH_MIN_BLOCK_ROWS, &rows, err));
    WALSH_TRY(walsh_blocks_binary(in_features, WALSH_MIN_BLOCK_COLUMNS, &columns, err));
    WALSH_TRY(walsh_blocks_pow2(out_features, WALSH_MIN_BLOCK_ROWS, &legacy_rows, err));
    WALSH_TRY(walsh_blocks_pow2(in_features, WALSH_MIN_BLOCK_COLUMNS, &legacy_columns, err));
    if (t->shape[0] == rows.padded / 16)
        out->m_pad = rows.padded;
    else if (t->shape[0] == legacy_rows.padded / 16)
        out->m_pad = legacy_rows.padded;
    if (t->shape[1] == columns.padded / 64)
        out->n_pad = columns.padded;
    else if (t->shape[1] == legacy_columns.padded / 64)
        out->n_pad = legacy_columns.padded;
    if (out->m_pad && out->n_pad && t->shape[2] == 8 && t->shape[3] == 4) {
        if (out->n_pad <= WALSH_STAGE_MAX_COLUMNS) return WALSH_OK;
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s: tensor %s: %u columns, expected at most %u", t->file,
                          t->name, out->n_pad, WALSH_STAGE_MAX_COLUMNS);
    }

    char found[128], expected[128], legacy[128];
    uint64_t shape[4], legacy_shape[4];
    stage_shape(WALSH_STAGE_E8P, rows.padded, columns.padded, shape);
    stage_shape(WALSH_STAGE_E8P, legacy_rows.padded, legacy_columns.padded, legacy_shape);
    bool differ = memcmp(shape, legacy_shape, sizeof shape) != 0;
    walsh_shape_text(legacy_shape, 4, legacy, sizeof legacy);
    return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: shape %s, expected %s%s%s for a weight of %u x %u",
                      t->file, t->name, walsh_shape_text(t->shape, 4, found, sizeof found),
                      walsh_shape_text(shape, 4, expected, sizeof expected), differ ? " or " : "",
                      differ ? legacy : "", out_features, in_features);
}

/* The stages from the second on, as far as there are any */
static enum walsh_status take_residuals(const struct walsh_checkpoint *ck, const char *module,
                                        struct walsh_glq_linear *out, struct walsh_error *err)
{
    for (; out->stages < WALSH_MAX_STAGES; out->stages++) {
        char e8p[NAME_BYTES], e81b[NAME_BYTES];
        walsh_glq_codes_name(module, out->stages, WALSH_STAGE_E8P, e8p, sizeof e8p);
        walsh_glq_codes_name(module, out->stages, WALSH_STAGE_E81B, e81b, sizeof e81b);
        const struct walsh_tensor *full = walsh_checkpoint_find(ck, e8p),
                                  *half = walsh_checkpoint_find(ck, e81b);
        if (!full && !half) break;
        if (full && half)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: tensors %s and %s are both there, expected one of them", full->file, e8p,
                              e81b);
        struct walsh_glq_stage *stage = &out->stage[out->stages];
        stage->kind = full ? WALSH_STAGE_E8P : WALSH_STAGE_E81B;
        uint64_t shape[4];
        unsigned rank = stage_shape(stage->kind, out->m_pad, out->n_pad, shape);
        WALSH_TRY(
            walsh_checkpoint_take(ck, full ? e8p : e81b, 1u << WALSH_I64, rank, shape, &stage->codes, err));
    }
    return WALSH_OK;
}

enum walsh_status walsh_glq_take_scalar(const struct walsh_checkpoint *ck, const char *name, float *out,
                                        struct walsh_error *err)
{
    const struct walsh_tensor *t = walsh_checkpoint_find(ck, name);
    const uint64_t one = 1;
    WALSH_TRY(walsh_checkpoint_take(ck, name, 1u << WALSH_F32, t && t->rank == 1 ? 1 : 0, &one, &t, err));
    memcpy(out, t->data, sizeof *out);
    if (!isfinite(*out))
        return walsh_fail(err, WALSH_E_FORMAT, "%s: tensor %s: is %g, expected a finite number", t->file,
                          name, (double)*out);
    return WALSH_OK;
}

enum walsh_status walsh_glq_take_signs(const struct walsh_checkpoint *ck, const char *module,
                                       const char *which, uint64_t size, const struct walsh_tensor **out,
                                       struct walsh_error *err)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%s", module, which);
    const struct walsh_tensor *t = walsh_checkpoint_find(ck, name);
    const bool overlap = t && t->rank == 2;
    const uint64_t shape[] = {2, size};
    WALSH_TRY(walsh_checkpoint_take(ck, name, 1u << WALSH_F16, overlap ? 2 : 1, overlap ? shape : shape + 1,
                                    out, err));
    for (uint64_t i = 0; i < size * (overlap ? 2 : 1); i++) {
        uint16_t h;
        memcpy(&h, (const uint8_t *)(*out)->data + 2 * i, sizeof h);
        if ((h & 0x7c00u) == 0x7c00u)
            return walsh_fail(err, WALSH_E_FORMAT,
                              "%s: tensor %s: element %llu is %g, expected a finite number", (*out)->file,
                              name, (unsigned long long)i, (double)walsh_f32_from_f16(h));
    }
    return WALSH_OK;
}

enum walsh_status walsh_glq_take(const struct walsh_checkpoint *ck, const char *module, uint32_t out_features,
                                 uint32_t in_features, struct walsh_glq_linear *out, struct walsh_error *err)
{
    *out = (struct walsh_glq_linear){.stages = 1, .inv_resid_scale = {1}};
    char name[NAME_BYTES];
    walsh_glq_codes_name(module, 0, WALSH_STAGE_E8P, name, sizeof name);
    out->stage[0].kind = WALSH_STAGE_E8P;
    WALSH_TRY(walsh_checkpoint_take_rank(ck, name, 1u << WALSH_I64, 4, &out->stage[0].codes, err));
    WALSH_TRY(infer_sizes(out->stage[0].codes, out_features, in_features, out, err));
    WALSH_TRY(take_residuals(ck, module, out, err));
    WALSH_TRY(walsh_glq_take_signs(ck, module, "SU", out->m_pad, &out->su, err));
    WALSH_TRY(walsh_glq_take_signs(ck, module, "SV", out->n_pad, &out->sv, err));
    snprintf(name, sizeof name, "%s.Wscale", module);
    WALSH_TRY(walsh_glq_take_scalar(ck, name, &out->wscale, err));
    for (unsigned i = 1; i < out->stages; i++) {
        walsh_glq_scale_name(module, i, name, sizeof name);
        WALSH_TRY(walsh_glq_take_scalar(ck, name, &out->inv_resid_scale[i], err));
    }
    return WALSH_OK;
}

static enum walsh_status plan_signs(struct walsh_safetensors_plan *plan, const char *module,
                                    const char *which, const struct walsh_rotation *r,
                                    struct walsh_error *err)
{
    char name[NAME_BYTES];
    const uint64_t shape[] = {2, r->blocks.padded};
    const bool overlap = r->kind == WALSH_ROTATION_OVERLAP;
    snprintf(name, sizeof name, "%s.%s", module, which);
    return walsh_plan_add(plan, name, WALSH_F16, overlap ? 2 : 1, overlap ? shape : shape + 1, err);
}

enum walsh_status walsh_glq_plan(struct walsh_safetensors_plan *plan, const char *module,
                                 const struct walsh_rotation *out, const struct walsh_rotation *in,
                                 unsigned stages, const enum walsh_stage_kind *kinds, struct walsh_error *err)
{
    char name[NAME_BYTES];
    const uint32_t m_pad = out->blocks.padded, n_pad = in->blocks.padded;
    for (unsigned i = 0; i < stages; i++) {
        uint64_t shape[4];
        unsigned rank = stage_shape(kinds[i], m_pad, n_pad, shape);
        walsh_glq_codes_name(module, i, kinds[i], name, sizeof name);
        WALSH_TRY(walsh_plan_add(plan, name, WALSH_I64, rank, shape, err));
        if (i == 0) continue;
        walsh_glq_scale_name(module, i, name, sizeof name);
        WALSH_TRY(walsh_plan_add(plan, name, WALSH_F32, 0, NULL, err));
    }
    WALSH_TRY(plan_signs(plan, module, "SU", out, err));
    WALSH_TRY(plan_signs(plan, module, "SV", in, err));
    snprintf(name, sizeof name, "%s.Wscale", module);
    return walsh_plan_add(plan, name, WALSH_F32, 0, NULL, err);
}

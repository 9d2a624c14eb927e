/* E8P codes of walsh_ops.h: quantizing a matrix, decoding it, the order of GLQ checkpoints. */
#include <math.h>
#include <string.h>

#include "api/ops_codes.h"
#include "base/memory.h"
#include "checkpoint/glq.h"
#include "formats/e8p_planes.h"
#include "quantize/ldlq.h"

_Static_assert(WALSH_OPS_STAGES == WALSH_MAX_STAGES, "the stages of a matrix");

#define CODE_ELEMENTS (1u << WALSH_ELEMENT_U16 | 1u << WALSH_ELEMENT_U8)

static enum walsh_element element_of(enum walsh_stage_kind kind)
{
    return kind == WALSH_STAGE_E8P ? WALSH_ELEMENT_U16 : WALSH_ELEMENT_U8;
}

enum walsh_status walsh_ops_code_stages(unsigned bits, uint32_t *stages,
                                        enum walsh_element elements[WALSH_OPS_STAGES],
                                        struct walsh_error *err)
{
    struct walsh_e8p_plan plan;
    WALSH_TRY(walsh_ops_need("walsh_ops_code_stages", "stages", stages, err));
    WALSH_TRY(walsh_ops_need("walsh_ops_code_stages", "elements", elements, err));
    *stages = 0;
    WALSH_TRY(walsh_e8p_plan_bits(bits, &plan, err));
    *stages = plan.stages;
    for (unsigned k = 0; k < plan.stages; k++) elements[k] = element_of(plan.kind[k]);
    return WALSH_OK;
}

static const char *stage_name(unsigned stage)
{
    static const char *const names[WALSH_OPS_STAGES] = {"codes[0]", "codes[1]", "codes[2]", "codes[3]"};
    return names[stage];
}

/* ---------------------------------------------------------------------------------------- checks */

/* Padded sizes as the formats want them. */
static enum walsh_status check_sizes(const char *call, uint64_t rows, uint64_t cols, struct walsh_error *err)
{
    if (rows < 1 || rows % 16 != 0 || rows > WALSH_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: %llu padded outputs, expected a multiple of 16 up to %u", call,
                          (unsigned long long)rows, WALSH_MAX_COLUMNS);
    if (cols < 1 || cols % 64 != 0 || cols > WALSH_STAGE_MAX_COLUMNS)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %llu padded inputs, expected a multiple of 64 up to %u",
                          call, (unsigned long long)cols, WALSH_STAGE_MAX_COLUMNS);
    return WALSH_OK;
}

enum walsh_status walsh_ops_codes_check(const char *call, const struct walsh_ops_codes *codes, bool scales,
                                        struct walsh_ops_matrix *out, struct walsh_error *err)
{
    if (!codes) return walsh_fail(err, WALSH_E_ARGUMENT, "%s: codes is NULL", call);
    if (codes->stages < 1 || codes->stages > WALSH_OPS_STAGES)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: codes: stages is %u, expected 1 to %d", call,
                          codes->stages, WALSH_OPS_STAGES);
    *out = (struct walsh_ops_matrix){.stages = codes->stages};
    const struct walsh_view *first = &codes->codes[0];
    if (first->rank != 2 || first->shape[0] < 1 || first->shape[1] < 1 ||
        first->shape[0] > WALSH_MAX_COLUMNS || first->shape[1] > WALSH_STAGE_MAX_COLUMNS / 8)
        return walsh_fail(
            err, WALSH_E_ARGUMENT,
            "%s: codes[0]: rank %u with shape [%lld, %lld], expected [rows, cols / 8] with up to %u rows "
            "and %u columns",
            call, first->rank, (long long)first->shape[0], (long long)first->shape[1], WALSH_MAX_COLUMNS,
            WALSH_STAGE_MAX_COLUMNS);
    out->rows = (uint32_t)first->shape[0];
    out->cols = (uint32_t)first->shape[1] * 8;
    WALSH_TRY(check_sizes(call, out->rows, out->cols, err));
    for (unsigned k = 0; k < codes->stages; k++) {
        const struct walsh_ops_argument a = {call, stage_name(k), &codes->codes[k], NULL};
        struct walsh_ops_rows rows;
        WALSH_TRY(walsh_ops_dense(&a, CODE_ELEMENTS, 2, first->shape, &rows, err));
        if (scales && !isfinite(codes->scale[k]))
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: scale[%u] is %g, expected a finite number", call, k,
                              (double)codes->scale[k]);
        out->kind[k] = rows.element == WALSH_ELEMENT_U16 ? WALSH_STAGE_E8P : WALSH_STAGE_E81B;
        out->codes[k] = rows.data;
    }
    return WALSH_OK;
}

enum walsh_status walsh_ops_rotations_check(const char *call, const struct walsh_ops_rotation *in,
                                            const struct walsh_ops_rotation *out,
                                            const struct walsh_ops_matrix *matrix, struct walsh_error *err)
{
    if (in && in->rotation.blocks.padded != matrix->cols)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: the rotation of the input has %u padded elements, the codes %u", call,
                          in->rotation.blocks.padded, matrix->cols);
    if (out && out->rotation.blocks.padded != matrix->rows)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "%s: the rotation of the output has %u padded elements, the codes %u", call,
                          out->rotation.blocks.padded, matrix->rows);
    return WALSH_OK;
}

/* ---------------------------------------------------------------------------------------- encode */

struct encode {
    const struct walsh_queue *q;
    const struct walsh_rotation *in, *out;
    struct walsh_ops_rows w, hessian;
    bool has_hessian;
    struct walsh_ldlq_options options;
};

static enum walsh_status check_signs(const char *name, const struct walsh_rotation *r,
                                     struct walsh_error *err)
{
    const size_t count = walsh_rotation_signs(r);
    for (size_t i = 0; i < count; i++)
        if (r->signs[i] == 0)
            return walsh_fail(err, WALSH_E_ARGUMENT,
                              "walsh_ops_encode: %s: sign %zu is 0, expected another number", name, i);
    return WALSH_OK;
}

static enum walsh_status check_finite(const float *x, size_t n, const char *name, struct walsh_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return walsh_fail(err, WALSH_E_ARGUMENT,
                              "walsh_ops_encode: %s: element %zu is %g, expected a finite number", name, i,
                              (double)x[i]);
    return WALSH_OK;
}

/* The queue is held. */
static enum walsh_status run_encode(const struct encode *e, const struct walsh_hooks *hooks,
                                    struct walsh_ldlq_result *result, struct walsh_error *err)
{
    const size_t in = e->in->size, out = e->out->size;
    const float *hessian = e->has_hessian ? (const float *)(const void *)e->hessian.data : NULL;
    if (hessian) WALSH_TRY(check_finite(hessian, in * in, "hessian", err));
    float *w;
    WALSH_TRY(walsh_alloc(in * out, sizeof *w, "weights to encode", &w, err));
    walsh_ops_load_rows(e->q, &e->w, w, in);
    struct walsh_ldlq_input input = {0};
    enum walsh_status status = check_finite(w, in * out, "w", err);
    if (status == WALSH_OK)
        status = walsh_ldlq_input_open(e->q, e->in, hessian, "walsh_ops_encode", hooks, &input, err);
    if (status == WALSH_OK)
        status = walsh_ldlq_quantize(e->q, &input, e->out, w, &e->options, result, NULL, err);
    walsh_ldlq_input_close(&input);
    walsh_free(w);
    return status;
}

/* What encode writes must be what the width needs. */
static enum walsh_status check_codes(struct walsh_ops_codes *codes, const struct encode *e,
                                     struct walsh_error *err)
{
    static const char call[] = "walsh_ops_encode";
    struct walsh_ops_matrix matrix;
    uint32_t stages;
    enum walsh_element elements[WALSH_OPS_STAGES];
    WALSH_TRY(walsh_ops_code_stages(e->options.bits, &stages, elements, err));
    WALSH_TRY(check_sizes(call, e->out->blocks.padded, e->in->blocks.padded, err));
    struct walsh_ops_codes all = *codes;
    all.stages = stages;
    WALSH_TRY(walsh_ops_codes_check(call, &all, false, &matrix, err));
    if (matrix.rows != e->out->blocks.padded || matrix.cols != e->in->blocks.padded)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: codes are of %u x %u weights, expected %u x %u", call,
                          matrix.rows, matrix.cols, e->out->blocks.padded, e->in->blocks.padded);
    for (unsigned k = 0; k < stages; k++) {
        const enum walsh_element found = codes->codes[k].element;
        if (found != elements[k])
            return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s: element is %s, expected %s for %u bits", call,
                              stage_name(k), found == WALSH_ELEMENT_U8 ? "u8" : "u16",
                              elements[k] == WALSH_ELEMENT_U8 ? "u8" : "u16", e->options.bits);
        for (unsigned j = 0; j < k; j++) {
            const struct walsh_ops_argument a = {call, stage_name(j), &codes->codes[j], NULL},
                                            b = {call, stage_name(k), &codes->codes[k], NULL};
            struct walsh_ops_rows first, second;
            WALSH_TRY(walsh_ops_rows(&a, CODE_ELEMENTS, 1, matrix.cols / 8, &first, err));
            WALSH_TRY(walsh_ops_rows(&b, CODE_ELEMENTS, 1, matrix.cols / 8, &second, err));
            WALSH_TRY(walsh_ops_apart(&a, &first, &b, &second, false, err));
        }
    }
    return WALSH_OK;
}

static enum walsh_status read_encode(const struct walsh_ops_rotation *in,
                                     const struct walsh_ops_rotation *out, const struct walsh_view *w,
                                     const struct walsh_ops_encode_options *options, struct encode *e,
                                     struct walsh_error *err)
{
    static const char call[] = "walsh_ops_encode";
    struct walsh_ops_encode_options o = WALSH_OPS_ENCODE_OPTIONS;
    WALSH_TRY(walsh_options_read(&o, sizeof o, options, "walsh_ops_encode_options", err));
    if (!in || !out)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s is NULL, expected a rotation", call,
                          in ? "out" : "in");
    if (o.passes < -1 || o.passes > 1000)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: passes is %d, expected -1 to 1000", call, o.passes);
    *e = (struct encode){
        .in = &in->rotation, .out = &out->rotation, .has_hessian = walsh_ops_given(&o.hessian)};
    e->options = (struct walsh_ldlq_options){.bits = o.bits ? o.bits : 4,
                                             .passes = o.passes < 0 ? WALSH_LDLQ_PASSES : (unsigned)o.passes,
                                             .tune = !o.plain};
    WALSH_TRY(check_signs("in", e->in, err));
    WALSH_TRY(check_signs("out", e->out, err));
    const struct walsh_ops_argument a = {call, "w", w, NULL}, h = {call, "hessian", &o.hessian, NULL};
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, e->in->size, &e->w, err));
    if (e->w.rows != e->out->size)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: w has %zu rows, expected %u", call, e->w.rows,
                          e->out->size);
    if (!e->has_hessian) return WALSH_OK;
    const int64_t square[] = {(int64_t)e->in->size, (int64_t)e->in->size};
    return walsh_ops_dense(&h, 1u << WALSH_ELEMENT_F32, 2, square, &e->hessian, err);
}

enum walsh_status walsh_ops_encode(struct walsh_ops_queue *queue, const struct walsh_ops_rotation *in,
                                   const struct walsh_ops_rotation *out, const struct walsh_view *w,
                                   const struct walsh_ops_encode_options *options,
                                   struct walsh_ops_codes *codes, double *error, struct walsh_error *err)
{
    struct encode e;
    struct walsh_ldlq_result result = {0};
    WALSH_TRY(walsh_ops_need("walsh_ops_encode", "queue", queue, err));
    WALSH_TRY(walsh_ops_need("walsh_ops_encode", "codes", codes, err));
    WALSH_TRY(read_encode(in, out, w, options, &e, err));
    WALSH_TRY(check_codes(codes, &e, err));
    e.q = walsh_ops_enter_host(queue);
    enum walsh_status status = run_encode(&e, &queue->context->hooks, &result, err);
    walsh_ops_leave(queue);
    if (status == WALSH_OK) {
        codes->stages = result.plan.stages;
        for (unsigned k = 0; k < result.plan.stages; k++) {
            memcpy(codes->codes[k].data, result.codes[k],
                   (size_t)result.m * (result.n / 8) * walsh_element_size(codes->codes[k].element));
            codes->scale[k] = result.wscale * result.cumulative_inverse[k];
        }
        if (error) *error = result.proxy;
    }
    walsh_ldlq_result_close(&result);
    return status;
}

/* ---------------------------------------------------------------------------------------- decode */

struct decode {
    const struct walsh_ops_matrix *matrix;
    const struct walsh_ops_codes *codes;
    float *w; /* [rows][cols] */
};

static void decode_rows(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct decode *t = argument;
    const size_t groups = t->matrix->cols / 8;
    float v[8];
    (void)worker;
    memset(t->w + begin * t->matrix->cols, 0, (end - begin) * t->matrix->cols * sizeof *t->w);
    for (unsigned k = 0; k < t->matrix->stages; k++)
        for (size_t g = begin * groups; g < end * groups; g++) {
            if (t->matrix->kind[k] == WALSH_STAGE_E8P)
                walsh_e8p_decode(((const uint16_t *)t->matrix->codes[k])[g], v);
            else
                walsh_e81b_decode(((const uint8_t *)t->matrix->codes[k])[g], v);
            for (size_t i = 0; i < 8; i++) t->w[g * 8 + i] += t->codes->scale[k] * v[i];
        }
}

/* w [out.size][in.size] from W^, by the quantizer's own way back. */
static enum walsh_status decode_rotated(const struct walsh_queue *q, const struct walsh_rotation *in,
                                        const struct walsh_rotation *out,
                                        const struct walsh_ops_matrix *matrix,
                                        const struct walsh_ops_codes *codes, float *w,
                                        struct walsh_error *err)
{
    struct walsh_ldlq_result result = {.m = matrix->rows, .n = matrix->cols, .wscale = 1};
    result.plan.stages = matrix->stages;
    for (unsigned k = 0; k < matrix->stages; k++) {
        result.plan.kind[k] = matrix->kind[k];
        result.codes[k] = (void *)(uintptr_t)matrix->codes[k]; /* which it only reads */
        result.cumulative_inverse[k] = codes->scale[k];
    }
    return walsh_ldlq_decode(q, in, out, &result, w, err);
}

enum walsh_status walsh_ops_decode(struct walsh_ops_queue *queue, const struct walsh_ops_rotation *in,
                                   const struct walsh_ops_rotation *out, const struct walsh_ops_codes *codes,
                                   const struct walsh_view *w, struct walsh_error *err)
{
    static const char call[] = "walsh_ops_decode";
    struct walsh_ops_matrix matrix;
    struct walsh_ops_rows to;
    WALSH_TRY(walsh_ops_need(call, "queue", queue, err));
    WALSH_TRY(walsh_ops_codes_check(call, codes, true, &matrix, err));
    if (!in != !out)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: %s is NULL, expected both rotations or neither", call,
                          in ? "out" : "in");
    WALSH_TRY(walsh_ops_rotations_check(call, in, out, &matrix, err));
    const size_t rows = out ? out->rotation.size : matrix.rows, cols = in ? in->rotation.size : matrix.cols;
    const struct walsh_ops_argument a = {call, "w", w, NULL};
    WALSH_TRY(walsh_ops_rows(&a, WALSH_OPS_FLOATS, 1, cols, &to, err));
    if (to.rows != rows)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%s: w has %zu rows, expected %zu", call, to.rows, rows);
    float *decoded;
    WALSH_TRY(walsh_alloc(rows * cols, sizeof *decoded, "decoded weights", &decoded, err));
    const struct walsh_queue *q = walsh_ops_enter_host(queue);
    enum walsh_status status = WALSH_OK;
    if (in) {
        status = decode_rotated(q, &in->rotation, &out->rotation, &matrix, codes, decoded, err);
    } else {
        struct decode t = {&matrix, codes, decoded};
        walsh_pool_run(q->pool, rows, 4, decode_rows, &t);
    }
    if (status == WALSH_OK) walsh_ops_store_rows(q, decoded, cols, &to);
    walsh_ops_leave(queue);
    walsh_free(decoded);
    return status;
}

/* ---------------------------------------------------------------------------------------- GLQ */

/* Both views of one stage, checked; *matrix has its kind and sizes. */
static enum walsh_status glq_views(const char *call, const struct walsh_view *codes,
                                   const struct walsh_view *stored, struct walsh_ops_matrix *matrix,
                                   void **glq, struct walsh_error *err)
{
    if (!codes || !stored) return walsh_fail(err, WALSH_E_ARGUMENT, "%s: a view is NULL", call);
    struct walsh_ops_codes one = {.stages = 1, .codes = {*codes}};
    WALSH_TRY(walsh_ops_codes_check(call, &one, false, matrix, err));
    const int64_t e8p[] = {matrix->rows / 16, matrix->cols / 64, 8, 4},
                  e81b[] = {matrix->rows, matrix->cols / 64};
    const bool tiled = matrix->kind[0] == WALSH_STAGE_E8P;
    const struct walsh_ops_argument a = {call, "stored", stored, NULL}, b = {call, "codes", codes, NULL};
    struct walsh_ops_rows rows, plain;
    WALSH_TRY(walsh_ops_dense(&a, 1u << WALSH_ELEMENT_I64, tiled ? 4 : 2, tiled ? e8p : e81b, &rows, err));
    WALSH_TRY(walsh_ops_rows(&b, CODE_ELEMENTS, 1, matrix->cols / 8, &plain, err));
    *glq = rows.data;
    return walsh_ops_apart(&a, &rows, &b, &plain, false, err);
}

enum walsh_status walsh_ops_codes_from_glq(const struct walsh_view *stored, const struct walsh_view *codes,
                                           struct walsh_error *err)
{
    struct walsh_ops_matrix m;
    void *glq;
    WALSH_TRY(glq_views("walsh_ops_codes_from_glq", codes, stored, &m, &glq, err));
    if (m.kind[0] == WALSH_STAGE_E8P)
        walsh_glq_unpack_e8p(glq, m.rows, m.cols, codes->data);
    else
        walsh_glq_unpack_e81b(glq, m.rows, m.cols, codes->data);
    return WALSH_OK;
}

enum walsh_status walsh_ops_codes_to_glq(const struct walsh_view *codes, const struct walsh_view *stored,
                                         struct walsh_error *err)
{
    struct walsh_ops_matrix m;
    void *glq;
    WALSH_TRY(glq_views("walsh_ops_codes_to_glq", codes, stored, &m, &glq, err));
    if (m.kind[0] == WALSH_STAGE_E8P)
        walsh_glq_pack_e8p(m.codes[0], m.rows, m.cols, glq);
    else
        walsh_glq_pack_e81b(m.codes[0], m.rows, m.cols, glq);
    return WALSH_OK;
}

/* What an engine does with walsh: its own buffers of activations through a transform and a packed linear,
 * without a copy and without an allocation per call. Four rows of a batch, in bf16 within a larger buffer of
 * the engine's, meet a matrix of 4 bits per weight; the result is compared with the plain product.
 *
 *   packed_linear */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walsh_ops.h"

enum { IN = 320, OUT = 96, IN_PADDED = 320, OUT_PADDED = 96, ROWS = 4, LD = 512 };

/* What the calls below open; NULL is fine for every close. */
struct objects {
    struct walsh_context *context;
    struct walsh_ops_queue *queue;
    struct walsh_ops_rotation *in, *out;
    struct walsh_ops_linear *linear;
    void *workspace;
};

static float w[OUT * IN], y[ROWS * OUT];
static uint16_t codes[2][OUT_PADDED * (IN_PADDED / 8)]; /* 4 bits: two stages of 16-bit codes */
static uint16_t x[ROWS * LD];                           /* bf16: the first IN of every LD elements are ours */

/* Numbers in [-1, 1) without a pattern. */
static float noise(uint32_t i)
{
    i = (i ^ i >> 16) * 0x7feb352du;
    i = (i ^ i >> 15) * 0x846ca68bu;
    return (float)(i >> 16) / 32768.0f - 1.0f;
}

static float bf16(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Once, when a model is loaded: here the codes are made, where an engine would read them from a checkpoint
 * (walsh_ops_codes_from_glq) together with the signs. */
static enum walsh_status load(struct objects *o, struct walsh_error *err)
{
    struct walsh_ops_rotation_options in = WALSH_OPS_ROTATION_OPTIONS, out = WALSH_OPS_ROTATION_OPTIONS;
    const int64_t matrix[] = {OUT, IN}, packed[] = {OUT_PADDED, IN_PADDED / 8};
    const struct walsh_view weights = walsh_view_dense(w, WALSH_ELEMENT_F32, 2, matrix);
    struct walsh_ops_codes c = {.codes = {walsh_view_dense(codes[0], WALSH_ELEMENT_U16, 2, packed),
                                          walsh_view_dense(codes[1], WALSH_ELEMENT_U16, 2, packed)}};
    struct walsh_ops_linear_options linear = WALSH_OPS_LINEAR_OPTIONS;
    in.size = IN;
    out.size = OUT;
    out.min_block = 16;
    out.seed = 1;
    enum walsh_status status = walsh_context_open(NULL, &o->context, err);
    if (status == WALSH_OK) status = walsh_ops_queue_open(o->context, NULL, &o->queue, err);
    if (status == WALSH_OK) status = walsh_ops_rotation_open(o->queue, &in, &o->in, err);
    if (status == WALSH_OK) status = walsh_ops_rotation_open(o->queue, &out, &o->out, err);
    if (status == WALSH_OK) status = walsh_ops_encode(o->queue, o->in, o->out, &weights, NULL, &c, NULL, err);
    linear.in = o->in;
    linear.out = o->out;
    return status == WALSH_OK ? walsh_ops_linear_open(o->queue, &c, &linear, &o->linear, err) : status;
}

/* At every step. */
static enum walsh_status step(struct objects *o, struct walsh_error *err)
{
    const int64_t inputs[] = {ROWS, IN}, outputs[] = {ROWS, OUT};
    struct walsh_view from = walsh_view_dense(x, WALSH_ELEMENT_BF16, 2, inputs);
    const struct walsh_view to = walsh_view_dense(y, WALSH_ELEMENT_F32, 2, outputs);
    struct walsh_ops_call call = WALSH_OPS_CALL; /* decode rows */
    from.strides[0] = LD;
    call.workspace = o->workspace;
    call.workspace_size = walsh_ops_linear_workspace(o->linear, ROWS, NULL, 0);
    return walsh_ops_linear_apply(o->queue, o->linear, &from, &to, &call, err);
}

/* There and back: the transform by itself, in place on the engine's buffer. */
static enum walsh_status rotate(struct objects *o, struct walsh_error *err)
{
    const int64_t shape[] = {ROWS, IN};
    struct walsh_view view = walsh_view_dense(x, WALSH_ELEMENT_BF16, 2, shape);
    view.strides[0] = LD;
    enum walsh_status status = walsh_ops_rotate(o->queue, o->in, &view, &view, err);
    return status == WALSH_OK ? walsh_ops_unrotate(o->queue, o->in, &view, &view, err) : status;
}

static double relative_error(void)
{
    double distance = 0, norm = 0;
    for (int row = 0; row < ROWS; row++)
        for (int r = 0; r < OUT; r++) {
            double sum = 0;
            for (int c = 0; c < IN; c++) sum += (double)w[r * IN + c] * (double)bf16(x[row * LD + c]);
            distance += ((double)y[row * OUT + r] - sum) * ((double)y[row * OUT + r] - sum);
            norm += sum * sum;
        }
    return sqrt(distance / norm);
}

int main(void)
{
    struct objects o = {0};
    struct walsh_error err = {0};
    for (int i = 0; i < OUT * IN; i++) w[i] = noise((uint32_t)i);
    for (int row = 0; row < ROWS; row++)
        for (int c = 0; c < LD; c++) {
            const float value = noise((uint32_t)(OUT * IN + row * LD + c));
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            x[row * LD + c] = (uint16_t)(bits >> 16);
        }
    enum walsh_status status = load(&o, &err);
    const size_t bytes = status == WALSH_OK ? walsh_ops_linear_workspace(o.linear, ROWS, NULL, 0) : 0;
    if (status == WALSH_OK && !(o.workspace = aligned_alloc(WALSH_OPS_ALIGNMENT, bytes)))
        status = WALSH_E_MEMORY;
    if (status == WALSH_OK) status = step(&o, &err);
    if (status == WALSH_OK) printf("%d x %d by 4 bits, relative error %.4f\n", OUT, IN, relative_error());
    if (status == WALSH_OK) status = rotate(&o, &err);
    if (status == WALSH_OK) printf("rotated and back in place, relative error %.4f\n", relative_error());
    if (status != WALSH_OK) fprintf(stderr, "packed_linear: %s\n", err.message);
    free(o.workspace);
    walsh_ops_linear_close(&o.linear);
    walsh_ops_rotation_close(&o.out);
    walsh_ops_rotation_close(&o.in);
    walsh_ops_queue_close(&o.queue);
    walsh_context_close(&o.context);
    return status == WALSH_OK ? 0 : 1;
}

/* A mixture of experts over an engine's own weights: eight experts in MXFP4, each three matrices whose codes and
 * scales lie in the engine's memory, a router in bf16, and rows of a batch that pick two experts each. The result
 * is compared with plain loops over the decoded weights.
 *
 *   experts */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walsh_ops.h"

enum { EXPERTS = 8, CHOSEN = 2, ROWS = 5, HIDDEN = 64, MIDDLE = 96, GROUP = 32, MATRICES = 3 };

/* MXFP4: two codes of 4 bits per byte, a power of two for each 32 columns. gate, up: [MIDDLE][HIDDEN], down the
 * other way round; all of one size. */
static uint8_t codes[EXPERTS][MATRICES][MIDDLE * HIDDEN / 2],
    scales[EXPERTS][MATRICES][MIDDLE * HIDDEN / GROUP];
static uint16_t router[EXPERTS * HIDDEN]; /* bf16 */
static float x[ROWS * HIDDEN], y[ROWS * HIDDEN], logits[ROWS * EXPERTS], weight[ROWS * CHOSEN];
static int32_t chosen[ROWS * CHOSEN];

struct objects {
    struct walsh_context *context;
    struct walsh_ops_queue *queue;
    struct walsh_ops_linear *router, *linears[EXPERTS][MATRICES];
    struct walsh_ops_expert experts[EXPERTS];
    void *workspace;
};

static uint32_t noise(uint32_t i)
{
    i = (i ^ i >> 16) * 0x7feb352du;
    i = (i ^ i >> 15) * 0x846ca68bu;
    return i >> 16;
}

static struct walsh_view view(void *data, enum walsh_element element, int64_t rows, int64_t cols)
{
    const int64_t shape[] = {rows, cols};
    return walsh_view_dense(data, element, 2, shape);
}

/* Once, when a model is loaded. The codes may be released afterwards; dense weights, the router's, are read in place. */
static enum walsh_status load(struct objects *o, struct walsh_error *err)
{
    enum walsh_status status = walsh_context_open(NULL, &o->context, err);
    if (status == WALSH_OK) status = walsh_ops_queue_open(o->context, NULL, &o->queue, err);
    for (int e = 0; e < EXPERTS; e++)
        for (int m = 0; m < MATRICES && status == WALSH_OK; m++) {
            struct walsh_ops_weights w = WALSH_OPS_WEIGHTS;
            w.format = WALSH_OPS_MXFP4;
            w.rows = m == 2 ? HIDDEN : MIDDLE;
            w.cols = m == 2 ? MIDDLE : HIDDEN;
            w.data = view(codes[e][m], WALSH_ELEMENT_U8, w.rows, w.cols / 2);
            w.scales = view(scales[e][m], WALSH_ELEMENT_U8, w.rows, w.cols / GROUP);
            status = walsh_ops_linear_open_weights(o->queue, &w, NULL, &o->linears[e][m], err);
        }
    for (int e = 0; e < EXPERTS; e++)
        o->experts[e] = (struct walsh_ops_expert){o->linears[e][0], o->linears[e][1], o->linears[e][2]};
    struct walsh_ops_weights w = WALSH_OPS_WEIGHTS;
    w.rows = EXPERTS;
    w.cols = HIDDEN;
    w.data = view(router, WALSH_ELEMENT_BF16, EXPERTS, HIDDEN);
    return status == WALSH_OK ? walsh_ops_linear_open_weights(o->queue, &w, NULL, &o->router, err) : status;
}

/* At every step: the router, its choice, the experts. One workspace serves both calls. */
static enum walsh_status step(struct objects *o, struct walsh_error *err)
{
    const struct walsh_view in = view(x, WALSH_ELEMENT_F32, ROWS, HIDDEN),
                            out = view(y, WALSH_ELEMENT_F32, ROWS, HIDDEN),
                            scores = view(logits, WALSH_ELEMENT_F32, ROWS, EXPERTS),
                            index = view(chosen, WALSH_ELEMENT_I32, ROWS, CHOSEN),
                            weights = view(weight, WALSH_ELEMENT_F32, ROWS, CHOSEN);
    struct walsh_ops_call route = WALSH_OPS_CALL;
    struct walsh_ops_experts_call call = WALSH_OPS_EXPERTS_CALL;
    route.workspace_size = walsh_ops_linear_workspace(o->router, ROWS, NULL, 0);
    call.workspace_size = walsh_ops_experts_workspace(o->experts, EXPERTS, ROWS, CHOSEN);
    if (route.workspace_size > call.workspace_size) call.workspace_size = route.workspace_size;
    if (!o->workspace) o->workspace = aligned_alloc(WALSH_OPS_ALIGNMENT, call.workspace_size);
    route.workspace = call.workspace = o->workspace;
    enum walsh_status status = walsh_ops_linear_apply(o->queue, o->router, &in, &scores, &route, err);
    if (status == WALSH_OK) status = walsh_ops_route(o->queue, &scores, true, &index, &weights, err);
    if (status == WALSH_OK)
        status =
            walsh_ops_experts_apply(o->queue, o->experts, EXPERTS, &in, &index, &weights, &out, &call, err);
    return status;
}

static double weight_of(int e, int m, int row, int col, int cols)
{
    static const double magnitude[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const unsigned code = (unsigned)codes[e][m][(row * cols + col) / 2] >> 4 * (col % 2) & 15u;
    const double scale = ldexp(1, scales[e][m][(row * cols + col) / GROUP] - 127);
    return (code & 8 ? -scale : scale) * magnitude[code & 7];
}

/* Row `row` through expert e: its down(silu(gate) up), added to sum with its weight. */
static void add_expert(int e, int row, double factor, double *sum)
{
    double middle[MIDDLE];
    for (int i = 0; i < MIDDLE; i++) {
        double g = 0, u = 0;
        for (int c = 0; c < HIDDEN; c++) {
            g += weight_of(e, 0, i, c, HIDDEN) * (double)x[row * HIDDEN + c];
            u += weight_of(e, 1, i, c, HIDDEN) * (double)x[row * HIDDEN + c];
        }
        middle[i] = g / (1 + exp(-g)) * u;
    }
    for (int r = 0; r < HIDDEN; r++)
        for (int i = 0; i < MIDDLE; i++) sum[r] += factor * weight_of(e, 2, r, i, MIDDLE) * middle[i];
}

static double relative_error(void)
{
    double distance = 0, norm = 0;
    for (int row = 0; row < ROWS; row++) {
        double sum[HIDDEN] = {0};
        for (int j = 0; j < CHOSEN; j++)
            add_expert(chosen[row * CHOSEN + j], row, (double)weight[row * CHOSEN + j], sum);
        for (int r = 0; r < HIDDEN; r++) {
            distance += ((double)y[row * HIDDEN + r] - sum[r]) * ((double)y[row * HIDDEN + r] - sum[r]);
            norm += sum[r] * sum[r];
        }
    }
    return sqrt(distance / norm);
}

int main(void)
{
    struct objects o = {0};
    struct walsh_error err = {0};
    uint8_t *code = codes[0][0], *scale = scales[0][0];
    for (uint32_t i = 0; i < sizeof codes; i++) code[i] = (uint8_t)noise(i);
    for (uint32_t i = 0; i < sizeof scales; i++) scale[i] = (uint8_t)(122 + noise(i + 1) % 3);
    for (uint32_t i = 0; i < ROWS * HIDDEN; i++) x[i] = (float)noise(i + 7) / 32768 - 1;
    for (uint32_t i = 0; i < EXPERTS * HIDDEN; i++) router[i] = (uint16_t)(0x3d00 + (noise(i) & 0x807f));
    enum walsh_status status = load(&o, &err);
    if (status == WALSH_OK) status = step(&o, &err);
    if (status == WALSH_OK)
        printf("%d of %d experts in MXFP4, %d rows, relative error %.4f\n", CHOSEN, EXPERTS, ROWS,
               relative_error());
    if (status != WALSH_OK) fprintf(stderr, "experts: %s\n", err.message);
    free(o.workspace);
    walsh_ops_linear_close(&o.router);
    for (int e = 0; e < EXPERTS; e++)
        for (int m = 0; m < MATRICES; m++) walsh_ops_linear_close(&o.linears[e][m]);
    walsh_ops_queue_close(&o.queue);
    walsh_context_close(&o.context);
    return status == WALSH_OK ? 0 : 1;
}

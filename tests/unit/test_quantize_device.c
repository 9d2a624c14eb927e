/* Quantizing on a device, seen by one that is the host: its memory is the host's, its searches are the CPU's tile by tile. What
 * it is given and what comes back make the codes that the CPU finds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "kernels/device.h"
#include "kernels/quantize.h"
#include "quantize/hessian.h"
#include "quantize/job.h"
#include "quantize/ldlq_tile.h"

enum { M = 112, N = 192, LDX = N + 3, TOKENS = 150, SEED = 77 };

static struct walsh_queue queue, device;
static struct {
    size_t blocks, hessians, sweeps, passes, traces,
        failing; /* blocks: held; failing: the download that fails */
} seen;

static enum walsh_status host_alloc(const struct walsh_queue *q, size_t bytes, const char *what, void *out,
                                    struct walsh_error *err)
{
    void *p;
    (void)q;
    WALSH_TRY(walsh_alloc(bytes, 1, what, out, err));
    memcpy(&p, out, sizeof p);
    memset(p, 0xff, bytes); /* nothing there is read before it is written */
    seen.blocks++;
    return WALSH_OK;
}
static void host_free(const struct walsh_queue *q, void *p)
{
    (void)q;
    if (p) seen.blocks--;
    walsh_free(p);
}
static enum walsh_status host_upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                     struct walsh_error *err)
{
    (void)q, (void)err;
    memcpy(to, from, bytes);
    return WALSH_OK;
}
static enum walsh_status host_download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                       struct walsh_error *err)
{
    if (seen.failing > 0 && --seen.failing == 0)
        return walsh_fail(err, WALSH_E_INTERNAL, "the device is gone");
    return host_upload(q, to, from, bytes, err);
}
static void host_fill(const struct walsh_queue *q, void *p, int byte, size_t bytes)
{
    (void)q;
    memset(p, byte, bytes);
}
static const struct walsh_memory memory = {.alloc = host_alloc,
                                           .free = host_free,
                                           .upload = host_upload,
                                           .download = host_download,
                                           .fill = host_fill};

static void hessian_add(const struct walsh_queue *q, float *sum, uint32_t n, const float *x, size_t ldx,
                        size_t rows)
{
    (void)q;
    struct walsh_hessian h = {.n = n, .sum = sum};
    walsh_hessian_add(&queue, &h, x, ldx, rows);
    seen.hessians++;
}

/* The CPU's state for the rows of a device. */
struct borrowed {
    struct walsh_ldlq_input input;
    struct walsh_e8p_plan plan;
    struct walsh_ldlq_state state;
};
static void borrow(struct borrowed *b, const struct walsh_ldlq_rows *r)
{
    memset(b, 0, sizeof *b);
    b->input.n = r->n;
    b->input.hessian = (float *)(uintptr_t)r->hessian;
    b->input.factor = (float *)(uintptr_t)r->factor;
    b->input.inverse = (float *)(uintptr_t)r->inverse;
    b->plan.stages = r->stages;
    b->state.kernels = queue.kernels;
    b->state.input = &b->input;
    b->state.plan = &b->plan;
    b->state.m = M;
    b->state.n = r->n;
    b->state.target = r->target;
    b->state.error = r->error;
    for (unsigned k = 0; k < r->stages; k++) {
        b->plan.kind[k] = r->stage[k].kind;
        b->state.codes[k] = r->stage[k].codes;
        b->state.scale[k] = r->stage[k].scale;
    }
}

static size_t tile_rows(const struct walsh_ldlq_rows *r, size_t i)
{
    return walsh_min(WALSH_LDLQ_TILE, r->rows - i);
}

static void sweep(const struct walsh_queue *q, const struct walsh_ldlq_rows *r)
{
    struct borrowed b;
    (void)q;
    borrow(&b, r);
    for (size_t i = 0; i < r->rows; i += WALSH_LDLQ_TILE)
        walsh_ldlq_sweep(&b.state, i * r->step, tile_rows(r, i));
    seen.sweeps++;
}
static void pass(const struct walsh_queue *q, const struct walsh_ldlq_rows *r)
{
    struct borrowed b;
    (void)q;
    borrow(&b, r);
    for (size_t i = 0; i < r->rows; i += WALSH_LDLQ_TILE)
        *r->changed += (uint32_t)walsh_ldlq_pass(&b.state, i * r->step, tile_rows(r, i));
    seen.passes++;
}
static void trace(const struct walsh_queue *q, const struct walsh_ldlq_rows *r, const float *e, double *sums)
{
    struct borrowed b;
    (void)q;
    borrow(&b, r);
    for (size_t i = 0; i < r->rows;
         i += WALSH_LDLQ_TILE) { /* all of a tile's on its first row: the CPU's sums */
        memset(sums + i, 0, tile_rows(r, i) * sizeof *sums);
        sums[i] = walsh_ldlq_trace(&b.input, e, i * r->step, tile_rows(r, i));
    }
    seen.traces++;
}
static const struct walsh_quantize_ops quantize_ops = {hessian_add, sweep, pass, trace};

/* --- a linear --- */

static float x[TOKENS * LDX], w[M * N], signs[M + N + 64];
static struct walsh_rotation in = {.kind = WALSH_ROTATION_BLOCKS, .size = N},
                             out = {.kind = WALSH_ROTATION_BLOCKS, .size = M};

static void quantize(const struct walsh_queue *there, const struct walsh_ldlq_input *input, unsigned bits,
                     bool tune, struct walsh_ldlq_result *result)
{
    struct walsh_error err = {0};
    const struct walsh_ldlq_options options = {.bits = bits, .passes = 4, .tune = tune, .device = there};
    if (walsh_ldlq_quantize(&queue, input, &out, w, &options, result, NULL, &err) != WALSH_OK)
        fail_msg("%s", err.message);
}

static void same_results(const struct walsh_ldlq_result *a, const struct walsh_ldlq_result *b)
{
    assert_true(a->wscale == b->wscale);
    assert_true(a->proxy == b->proxy && a->proxy > 0);
    for (unsigned k = 0; k < a->plan.stages; k++)
        assert_memory_equal(a->codes[k], b->codes[k],
                            (size_t)a->m * (a->n / 8) * (a->plan.kind[k] == WALSH_STAGE_E8P ? 2 : 1));
}

static void a_device_finds_the_same_codes(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_hessian here, there;
    struct walsh_ldlq_input input;
    assert_int_equal(walsh_hessian_open(N, &here, &err), WALSH_OK);
    assert_int_equal(walsh_hessian_open(N, &there, &err), WALSH_OK);
    assert_int_equal(walsh_hessian_place(&there, &device, &err), WALSH_OK);
    for (size_t at = 0; at < TOKENS; at += 60) { /* the last call is shorter */
        walsh_hessian_add(&queue, &here, x + at * LDX, LDX, walsh_min(60, TOKENS - at));
        walsh_hessian_add(&queue, &there, x + at * LDX, LDX, walsh_min(60, TOKENS - at));
    }
    assert_int_equal(walsh_hessian_fetch(&there, &err), WALSH_OK);
    walsh_hessian_finish(&here);
    walsh_hessian_finish(&there);
    assert_int_equal(seen.hessians, 3);
    assert_int_equal(there.tokens, TOKENS);
    assert_memory_equal(here.sum, there.sum, sizeof(float) * N * N);
    assert_int_equal(walsh_ldlq_input_open(&queue, &in, here.sum, "test", NULL, &input, &err), WALSH_OK);
    for (unsigned bits = 2; bits <= 4; bits++) {
        struct walsh_ldlq_result a, b;
        quantize(NULL, &input, bits, bits > 2, &a);
        memset(&seen.sweeps, 0, 3 * sizeof seen.sweeps);
        quantize(&device, &input, bits, bits > 2, &b);
        assert_true(bits > 2 ? seen.sweeps > 2 : seen.sweeps == 1);
        assert_true(seen.passes >= seen.sweeps && seen.traces >= 2);
        same_results(&a, &b);
        walsh_ldlq_result_close(&a);
        walsh_ldlq_result_close(&b);
    }
    walsh_ldlq_input_close(&input);
    walsh_hessian_close(&here);
    walsh_hessian_close(&there);
    assert_int_equal(seen.blocks, 0);
}

/* Whatever fails there ends the call, with its words. */
static void a_failing_device_is_told(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_ldlq_input input;
    struct walsh_ldlq_result result;
    assert_int_equal(walsh_ldlq_input_open(&queue, &in, NULL, "test", NULL, &input, &err), WALSH_OK);
    const struct walsh_ldlq_options options = {.bits = 2, .tune = true, .device = &device};
    for (size_t i = 1; i <= 3; i++) {
        seen.failing = i;
        assert_int_equal(walsh_ldlq_quantize(&queue, &input, &out, w, &options, &result, NULL, &err),
                         WALSH_E_INTERNAL);
        assert_string_equal(err.message, "the device is gone");
        assert_int_equal(seen.blocks, 0);
    }
    seen.failing = 0;
    walsh_ldlq_input_close(&input);
}

static char told[200];

static void note(void *user, enum walsh_log_level level, const char *message)
{
    (void)user, (void)level;
    snprintf(told, sizeof told, "%s", message);
}

static void what_a_device_has_no_part_in_is_told(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_job_report report;
    struct walsh_job_options options = {.format = WALSH_FORMAT_MXFP4, .outputs = 1};
    const struct walsh_hooks hooks = {.log = note};
    const char *to = "nowhere";
    assert_int_equal(walsh_quantize_job(&device, &hooks, "nothing", &to, &options, &report, &err),
                     WALSH_E_NOT_FOUND); /* it went on, and looked for the source */
    assert_string_equal(told, "rounding to mxfp4 is done on the CPU: the device has no part in it");
    struct walsh_ops without = *device.ops;
    struct walsh_queue bare = device;
    without.quantize = NULL;
    bare.ops = &without;
    options.format = WALSH_FORMAT_E8P;
    assert_int_equal(walsh_quantize_job(&bare, NULL, "nothing", &to, &options, &report, &err),
                     WALSH_E_UNSUPPORTED);
    assert_string_equal(err.message, "quantize: this device has no searches of codes");
}

static int open_queue(void **state)
{
    static struct walsh_ops ops;
    struct walsh_random r;
    (void)state;
    if (walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, NULL) != WALSH_OK) return -1;
    ops = *queue.ops;
    ops.quantize = &quantize_ops;
    device = queue;
    device.ops = &ops;
    device.memory = &memory;
    walsh_random_seed(&r, SEED);
    for (size_t i = 0; i < TOKENS * LDX; i++)
        x[i] = (float)(walsh_random_normal(&r) + 2 * sin((double)(i / LDX)) * cos(0.3 * (double)(i % LDX)));
    for (size_t i = 0; i < M * N; i++) w[i] = (float)(0.05 * walsh_random_normal(&r));
    if (walsh_blocks_binary(N, WALSH_MIN_BLOCK_COLUMNS, &in.blocks, NULL) != WALSH_OK ||
        walsh_blocks_binary(M, WALSH_MIN_BLOCK_ROWS, &out.blocks, NULL) != WALSH_OK)
        return -1;
    walsh_random_signs(SEED, "in", signs, N);
    walsh_random_signs(SEED, "out", signs + N, M);
    in.signs = signs;
    out.signs = signs + N;
    printf("seed %d\n", SEED);
    return 0;
}

static int close_queue(void **state)
{
    (void)state;
    walsh_queue_close(&queue);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_finds_the_same_codes),
        cmocka_unit_test(a_failing_device_is_told),
        cmocka_unit_test(what_a_device_has_no_part_in_is_told),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

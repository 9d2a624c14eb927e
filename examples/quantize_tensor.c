/* Quantize one matrix to 2, 3 and 4 bits per weight and say what is left of it: the codes are the caller's,
 * ready for a checkpoint or for examples/packed_linear.c. Without arguments the matrix is made up;
 * walsh_ops.h has the details.
 *
 *   quantize_tensor [ROWS COLS] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "walsh_ops.h"

/* What the calls below open; NULL is fine for every close. */
struct objects {
    struct walsh_context *context;
    struct walsh_ops_queue *queue;
    struct walsh_ops_rotation *in, *out;
};

/* Numbers in [-1, 1) without a pattern. */
static float noise(uint32_t i)
{
    i = (i ^ i >> 16) * 0x7feb352du;
    i = (i ^ i >> 15) * 0x846ca68bu;
    return (float)(i >> 16) / 32768.0f - 1.0f;
}

static enum walsh_status open_all(struct objects *o, uint32_t rows, uint32_t cols, struct walsh_error *err)
{
    struct walsh_ops_rotation_options in = WALSH_OPS_ROTATION_OPTIONS, out = WALSH_OPS_ROTATION_OPTIONS;
    in.size = cols;
    out.size = rows;
    out.min_block = 16; /* outputs are padded to 16, inputs to 64: what GLQ checkpoints have */
    in.seed = 1;        /* other signs for either side */
    out.seed = 2;
    enum walsh_status status = walsh_context_open(NULL, &o->context, err);
    if (status == WALSH_OK) status = walsh_ops_queue_open(o->context, NULL, &o->queue, err);
    if (status == WALSH_OK) status = walsh_ops_rotation_open(o->queue, &in, &o->in, err);
    return status == WALSH_OK ? walsh_ops_rotation_open(o->queue, &out, &o->out, err) : status;
}

/* One width: encode, decode, and compare with w. */
static enum walsh_status try_width(const struct objects *o, const struct walsh_view *w, unsigned bits,
                                   struct walsh_error *err)
{
    struct walsh_ops_rotation_info in = {.struct_size = sizeof in}, out = {.struct_size = sizeof out};
    struct walsh_ops_encode_options options = WALSH_OPS_ENCODE_OPTIONS;
    struct walsh_ops_codes codes = {0};
    enum walsh_element elements[WALSH_OPS_STAGES];
    uint32_t stages = 0;
    size_t bytes = 0;
    walsh_ops_rotation_get_info(o->in, &in);
    walsh_ops_rotation_get_info(o->out, &out);
    enum walsh_status status = walsh_ops_code_stages(bits, &stages, elements, err);
    const int64_t shape[] = {out.padded, in.padded / 8};
    for (uint32_t k = 0; k < stages; k++) {
        const size_t size = (size_t)shape[0] * (size_t)shape[1] * (elements[k] == WALSH_ELEMENT_U16 ? 2 : 1);
        codes.codes[k] = walsh_view_dense(malloc(size), elements[k], 2, shape);
        bytes += size;
    }
    options.bits = bits;
    double error = 0, distance = 0, norm = 0;
    const size_t count = (size_t)w->shape[0] * (size_t)w->shape[1];
    float *decoded = malloc(count * sizeof *decoded);
    const float *original = w->data;
    const struct walsh_view result = walsh_view_dense(decoded, WALSH_ELEMENT_F32, 2, w->shape);
    if (status == WALSH_OK)
        status = walsh_ops_encode(o->queue, o->in, o->out, w, &options, &codes, &error, err);
    if (status == WALSH_OK) status = walsh_ops_decode(o->queue, o->in, o->out, &codes, &result, err);
    for (size_t i = 0; i < count && status == WALSH_OK; i++) {
        distance += (double)(decoded[i] - original[i]) * (double)(decoded[i] - original[i]);
        norm += (double)original[i] * (double)original[i];
    }
    if (status == WALSH_OK)
        printf("%u bits: %zu bytes of %zu, relative error %.4f\n", bits, bytes, count * sizeof *original,
               sqrt(distance / norm));
    for (uint32_t k = 0; k < stages; k++) free(codes.codes[k].data);
    free(decoded);
    return status;
}

int main(int argc, char **argv)
{
    const long rows = argc == 3 ? atol(argv[1]) : 96, cols = argc == 3 ? atol(argv[2]) : 320;
    if ((argc != 1 && argc != 3) || rows < 1 || cols < 1 || rows > 65536 || cols > 65536) {
        fprintf(stderr, "usage: quantize_tensor [ROWS COLS]\n");
        return 2;
    }
    const int64_t shape[] = {rows, cols};
    float *data = malloc((size_t)rows * (size_t)cols * sizeof *data);
    struct objects o = {0};
    struct walsh_error err = {0};
    enum walsh_status status = data ? open_all(&o, (uint32_t)rows, (uint32_t)cols, &err) : WALSH_E_MEMORY;
    for (long i = 0; data && i < rows * cols;
         i++) /* with an outlier now and then, which the transform spreads */
        data[i] = noise((uint32_t)i) * (i % 1000 == 0 ? 8.0f : 1.0f);
    const struct walsh_view w = walsh_view_dense(data, WALSH_ELEMENT_F32, 2, shape);
    for (unsigned bits = 2; bits <= 4 && status == WALSH_OK; bits++) status = try_width(&o, &w, bits, &err);
    if (status != WALSH_OK) fprintf(stderr, "quantize_tensor: %s\n", err.message);
    walsh_ops_rotation_close(&o.out);
    walsh_ops_rotation_close(&o.in);
    walsh_ops_queue_close(&o.queue);
    walsh_context_close(&o.context);
    free(data);
    return status == WALSH_OK ? 0 : 1;
}

/* walsh_ops.h: views, handles and calls that are wrong get an error that names the argument, what was found
 * and what was expected, and nothing is touched; DLPack. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "unit/ops_data.h"

static struct walsh_context *context;
static struct walsh_ops_queue *queue;
static struct walsh_error err;

static int open_queue(void **state)
{
    (void)state;
    return ops_open(1, 0, &context, &queue, NULL);
}

static int close_queue(void **state)
{
    (void)state;
    walsh_ops_queue_close(&queue);
    walsh_ops_queue_close(&queue); /* nothing, as of NULL */
    walsh_ops_queue_close(NULL);
    return ops_close(&context, &queue);
}

static struct walsh_ops_rotation *open_rotation(uint32_t size, uint32_t min_block)
{
    struct walsh_ops_rotation *r;
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
    o.size = size;
    o.min_block = min_block;
    OPS_WORKS(walsh_ops_rotation_open(queue, &o, &r, &err));
    return r;
}

/* One member of a view is changed; what the message must say. */
#define WITH(member, value)                                                                                  \
    view = x.view;                                                                                           \
    view.member = value
#define REFUSED(...)                                                                                         \
    OPS_REFUSED(walsh_ops_rotate(queue, r, &view, &y.view, &err), WALSH_E_ARGUMENT, "walsh_ops_rotate: x",   \
                __VA_ARGS__)

static void hostile_views(void **state)
{
    (void)state;
    struct walsh_ops_rotation *r = open_rotation(100, 64);
    struct ops_tensor x = ops_tensor(WALSH_ELEMENT_F32, 4, 100, 100),
                      y = ops_tensor(WALSH_ELEMENT_F32, 4, 128, 128);
    memset(x.view.data, 0, 4 * 100 * sizeof(float));
    struct walsh_view view;

    WITH(rank, 0);
    REFUSED("rank is 0", "1 to 8");
    WITH(rank, 9);
    REFUSED("rank is 9");
    WITH(rank, UINT32_MAX);
    REFUSED("rank is 4294967295");
    WITH(data, NULL);
    REFUSED("data is NULL", "1600 bytes");
    WITH(element, WALSH_ELEMENT_U8);
    REFUSED("element is u8", "f32 or f16 or bf16");
    WITH(element, (enum walsh_element)1000000);
    REFUSED("element is unknown");
    WITH(device, WALSH_VIEW_CUDA);
    REFUSED("device is 2:0", "CPU");
    WITH(data, (uint8_t *)x.view.data + 2);
    REFUSED("data is at", "multiple of 4");
    WITH(shape[1], 99);
    REFUSED("shape is [4, 99]", "[.., 100]");
    WITH(shape[1], -100);
    REFUSED("shape is [4, -100]", "negative");
    WITH(shape[0], -1);
    REFUSED("shape is [-1, 100]", "negative");
    WITH(shape[0], INT64_MIN);
    REFUSED("negative");
    WITH(strides[1], 2);
    REFUSED("strides are [100, 2]", "1 for the last dimension");
    WITH(strides[1], -1);
    REFUSED("strides are [100, -1]");
    WITH(strides[1], 0);
    REFUSED("strides are [100, 0]");
    WITH(strides[0], -100);
    REFUSED("strides are [-100, 1]", "apart");
    WITH(strides[0], 0);
    REFUSED("strides are [0, 1]", "apart");
    WITH(strides[0], 99);
    REFUSED("strides are [99, 1]", "apart");
    WITH(strides[0], INT64_MIN);
    REFUSED("apart");
    WITH(strides[0], INT64_MAX);
    REFUSED("does not fit into memory");
    WITH(strides[0], INT64_MAX / 3);
    REFUSED("does not fit into memory");
    WITH(shape[0], INT64_MAX);
    REFUSED("does not fit into memory");
    WITH(shape[0], 1ll << 55);
    REFUSED("does not fit into memory");
    WITH(data, (void *)(UINTPTR_MAX - 3));
    REFUSED("does not fit into memory");
    WITH(rank, 3); /* [2, 2, 100] */
    view.shape[0] = view.shape[1] = 2, view.shape[2] = 100;
    view.strides[0] = 300, view.strides[1] = 100, view.strides[2] = 1;
    REFUSED("strides are [300, 100, 1]", "one stride for all rows");
    view.strides[0] = 100, view.strides[1] = 200;
    REFUSED("one stride for all rows");
    view.shape[0] = view.shape[1] = 1ll << 33, view.strides[0] = INT64_MAX;
    REFUSED("one stride");
    view.strides[0] = 0, view.strides[1] = 1ll << 31; /* their product wraps round to 0 */
    REFUSED("one stride");

    /* the other argument, and both together */
    view = y.view;
    view.shape[0] = 3;
    OPS_REFUSED(walsh_ops_rotate(queue, r, &x.view, &view, &err), WALSH_E_ARGUMENT, "y has 3 rows",
                "expected 4");
    OPS_REFUSED(walsh_ops_rotate(queue, r, &x.view, NULL, &err), WALSH_E_ARGUMENT, "y is NULL");
    view = y.view;
    view.data = ops_at(&x, 2, 0);
    OPS_REFUSED(walsh_ops_rotate(queue, r, &x.view, &view, &err), WALSH_E_ARGUMENT, "x and y overlap");
    struct walsh_ops_rotation *square = open_rotation(64, 64);
    struct walsh_view a = x.view, b = x.view;
    a.shape[1] = b.shape[1] = 64;
    b.data = ops_at(&x, 0, 36); /* two slices that share columns */
    OPS_REFUSED(walsh_ops_rotate(queue, square, &a, &b, &err), WALSH_E_ARGUMENT, "overlap", "or the same");
    a.shape[0] = b.shape[0] = 3;
    b.data = ops_at(&x, 1, 64); /* behind its columns, but into the next row */
    OPS_REFUSED(walsh_ops_rotate(queue, square, &a, &b, &err), WALSH_E_ARGUMENT, "overlap");
    OPS_REFUSED(walsh_ops_unrotate(queue, square, &b, &a, &err), WALSH_E_ARGUMENT, "walsh_ops_unrotate",
                "overlap");
    a.shape[0] = b.shape[0] = 2;
    b.data = ops_at(&x, 2, 0);
    OPS_WORKS(walsh_ops_rotate(queue, square, &a, &b, &err));
    walsh_ops_rotation_close(&square);

    /* what looks odd and is right: no rows, and strides of dimensions of one element */
    view = x.view;
    view.shape[0] = 0;
    view.strides[0] = -7;
    struct walsh_view none = y.view;
    none.shape[0] = 0;
    OPS_WORKS(walsh_ops_rotate(queue, r, &view, &none, &err));
    view = x.view;
    view.shape[0] = none.shape[0] = 1;
    view.strides[0] = none.strides[0] = -1000;
    OPS_WORKS(walsh_ops_rotate(queue, r, &view, &none, &err));
    assert_int_equal(walsh_ops_rotate(queue, r, NULL, NULL, NULL), WALSH_E_ARGUMENT); /* no message wanted */
    ops_check_guards(&x);
    ops_check_guards(&y);
    ops_free(&x);
    ops_free(&y);
    walsh_ops_rotation_close(&r);
    assert_null(r);
    walsh_ops_rotation_close(&r);
}

static void dense_views(void **state)
{
    (void)state;
    const int64_t shape[] = {2, 3, 4}, huge[] = {1ll << 40, 1ll << 40, 1},
                  many[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    struct walsh_view v = walsh_view_dense(&v, WALSH_ELEMENT_I32, 3, shape);
    assert_int_equal(v.rank, 3);
    assert_int_equal(v.strides[0], 12);
    assert_int_equal(v.strides[2], 1);
    assert_int_equal(walsh_view_dense(&v, WALSH_ELEMENT_I32, 3, huge).rank, 0);
    assert_int_equal(walsh_view_dense(&v, WALSH_ELEMENT_I32, 9, many).rank, 0);
}

/* DLTensor as dlpack.h has it. */
struct dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

static void dlpack(void **state)
{
    (void)state;
    float data[24];
    int64_t shape[] = {2, 12}, strides[] = {1, 2};
    struct dl_tensor t = {data, {1, 3}, 2, {2, 32, 1}, shape, NULL, 8};
    struct walsh_view v;
    OPS_WORKS(walsh_view_from_dlpack(&t, &v, &err));
    assert_ptr_equal(v.data, &data[2]);
    assert_true(v.element == WALSH_ELEMENT_F32 && v.device == WALSH_VIEW_CPU && v.device_id == 0);
    assert_true(v.rank == 2 && v.shape[1] == 12 && v.strides[0] == 12 && v.strides[1] == 1);
    t.strides = strides;
    t.device.type = 2;
    t.dtype.code = 4, t.dtype.bits = 16;
    OPS_WORKS(walsh_view_from_dlpack(&t, &v, &err));
    assert_true(v.element == WALSH_ELEMENT_BF16 && v.device == WALSH_VIEW_CUDA && v.device_id == 3);
    assert_true(v.strides[0] == 1 && v.strides[1] == 2);
    t.device.type = 3; /* pinned memory is the host's */
    OPS_WORKS(walsh_view_from_dlpack(&t, &v, &err));
    assert_true(v.device == WALSH_VIEW_CPU);

    struct dl_tensor back;
    memset(&back, 0x5a, sizeof back);
    OPS_WORKS(walsh_view_to_dlpack(&v, &back, &err));
    assert_true(back.data == v.data && back.byte_offset == 0 && back.ndim == 2 && back.device.type == 1);
    assert_true(back.dtype.code == 4 && back.dtype.bits == 16 && back.dtype.lanes == 1);
    assert_true(back.shape == v.shape && back.strides == v.strides);

    t.dtype.bits = 8;
    OPS_REFUSED(walsh_view_from_dlpack(&t, &v, &err), WALSH_E_UNSUPPORTED, "code 4 of 8 bits");
    t.dtype.bits = 16, t.dtype.lanes = 4;
    OPS_REFUSED(walsh_view_from_dlpack(&t, &v, &err), WALSH_E_UNSUPPORTED, "4 lanes");
    t.dtype.lanes = 1, t.device.type = 7;
    OPS_REFUSED(walsh_view_from_dlpack(&t, &v, &err), WALSH_E_UNSUPPORTED, "device_type is 7");
    t.device.type = 1, t.ndim = 0;
    OPS_REFUSED(walsh_view_from_dlpack(&t, &v, &err), WALSH_E_UNSUPPORTED, "ndim is 0");
    t.ndim = 2, shape[0] = 1ll << 62;
    OPS_REFUSED(walsh_view_from_dlpack(&t, &v, &err), WALSH_E_ARGUMENT, "does not fit");
    OPS_REFUSED(walsh_view_from_dlpack(NULL, &v, &err), WALSH_E_ARGUMENT, "NULL");
    OPS_REFUSED(walsh_view_to_dlpack(&v, &back, &err), WALSH_E_ARGUMENT, "rank 0");
}

static void handles(void **state)
{
    (void)state;
    struct walsh_ops_queue *q;
    struct walsh_ops_queue_options queue_options = WALSH_OPS_QUEUE_OPTIONS;
    queue_options.stream = &q;
    OPS_REFUSED(walsh_ops_queue_open(context, &queue_options, &q, &err), WALSH_E_ARGUMENT, "stream", "CPU");
    assert_null(q);
    OPS_REFUSED(walsh_ops_queue_open(NULL, NULL, &q, &err), WALSH_E_ARGUMENT, "context is NULL");

    struct walsh_ops_rotation *r;
    struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
#define ROTATION_REFUSED(...)                                                                                \
    OPS_REFUSED(walsh_ops_rotation_open(queue, &o, &r, &err), WALSH_E_ARGUMENT, __VA_ARGS__);                \
    assert_null(r)
    ROTATION_REFUSED("walsh_ops_rotation_open", "size is 0", "1 to 262144");
    o.size = 262145;
    ROTATION_REFUSED("size is 262145");
    o.size = 200000, o.kind = "pow2", o.min_block = 65536;
    OPS_WORKS(walsh_ops_rotation_open(queue, &o, &r, &err));
    walsh_ops_rotation_close(&r);
    o.kind = "spin";
    ROTATION_REFUSED("kind is \"spin\"", "block, pow2 or overlap");
    o.kind = NULL, o.min_block = 48;
    ROTATION_REFUSED("min_block is 48", "power of two");
    o.min_block = 1u << 31;
    ROTATION_REFUSED("min_block is 2147483648");
    o.min_block = 64, o.size = 130, o.parts = 2;
    OPS_REFUSED(walsh_ops_rotation_open(queue, &o, &r, &err), WALSH_E_UNSUPPORTED, "walsh_ops_rotation_open",
                "130");
    o.kind = "overlap";
    ROTATION_REFUSED("parts is 2");
    o.kind = NULL, o.parts = 0, o.size = 128;
    float signs[128];
    for (size_t i = 0; i < 128; i++) signs[i] = 1;
    const int64_t wrong[] = {127}, right[] = {128};
    o.signs = walsh_view_dense(signs, WALSH_ELEMENT_F32, 1, wrong);
    ROTATION_REFUSED("signs", "[127]", "[128]");
    o.signs = walsh_view_dense(signs, WALSH_ELEMENT_F32, 1, right);
    signs[77] = NAN;
    ROTATION_REFUSED("signs", "element 77");
    o.struct_size = 3;
    ROTATION_REFUSED("struct_size is 3");
    o.struct_size = sizeof o + 8;
    ROTATION_REFUSED("struct_size");
}

/* Nothing can be encoded in coordinates that a sign of 0 has taken away, on either side. */
static void refuse_zero_signs(const struct walsh_view *w, const struct walsh_ops_encode_options *e,
                              struct walsh_ops_codes *codes, const struct walsh_ops_rotation *in,
                              const struct walsh_ops_rotation *out)
{
    for (int side = 0; side < 2; side++) {
        float signs[128];
        const int64_t count[] = {side ? 32 : 128};
        struct walsh_ops_rotation_options o = WALSH_OPS_ROTATION_OPTIONS;
        struct walsh_ops_rotation *zero;
        for (size_t i = 0; i < 128; i++) signs[i] = i == 9 ? 0 : 1;
        o.size = (uint32_t)count[0], o.min_block = side ? 16 : 64;
        o.signs = walsh_view_dense(signs, WALSH_ELEMENT_F32, 1, count);
        OPS_WORKS(walsh_ops_rotation_open(queue, &o, &zero, &err));
        OPS_REFUSED(walsh_ops_encode(queue, side ? in : zero, side ? zero : out, w, e, codes, NULL, &err),
                    WALSH_E_ARGUMENT, side ? "out: sign 9 is 0" : "in: sign 9 is 0");
        walsh_ops_rotation_close(&zero);
    }
}

/* Codes and linears: sizes, kinds, roles, workspaces. */
static void linears(void **state)
{
    (void)state;
    enum walsh_element elements[WALSH_OPS_STAGES];
    uint32_t stages;
    OPS_REFUSED(walsh_ops_code_stages(9, &stages, elements, &err), WALSH_E_ARGUMENT, "9");
    OPS_WORKS(walsh_ops_code_stages(7, &stages, elements, &err));
    assert_true(stages == 4 && elements[2] == WALSH_ELEMENT_U16 && elements[3] == WALSH_ELEMENT_U8);

    static uint16_t code[32 * 16];
    static uint8_t residual[32 * 16];
    static float w[32 * 128];
    for (size_t i = 0; i < 32 * 128; i++) w[i] = (float)(i % 7) - 3;
    const int64_t shape[] = {32, 16}, narrow[] = {32, 12}, flat[] = {32, 128}, tiles[] = {2, 2, 8, 4},
                  bias[] = {33};
    struct walsh_ops_rotation *in = open_rotation(128, 64), *out = open_rotation(32, 16),
                              *other = open_rotation(192, 64);
    struct walsh_ops_codes codes = {
        .stages = 1, .codes = {walsh_view_dense(code, WALSH_ELEMENT_U16, 2, shape)}, .scale = {1}};
    struct walsh_view weights = walsh_view_dense(w, WALSH_ELEMENT_F32, 2, flat);
    struct walsh_ops_encode_options e = WALSH_OPS_ENCODE_OPTIONS;
#define ENCODE_REFUSED(i, ...)                                                                               \
    OPS_REFUSED(walsh_ops_encode(queue, i, out, &weights, &e, &codes, NULL, &err), WALSH_E_ARGUMENT,         \
                __VA_ARGS__)
    e.bits = 3;
    ENCODE_REFUSED(in, "walsh_ops_encode", "codes[1]"); /* there is none */
    codes.codes[1] = walsh_view_dense(code, WALSH_ELEMENT_U16, 2, shape);
    ENCODE_REFUSED(in, "codes[1]", "u16", "u8");
    codes.codes[1] = walsh_view_dense(code, WALSH_ELEMENT_U8, 2, shape);
    ENCODE_REFUSED(in, "codes[0] and codes[1] overlap");
    codes.codes[1] = walsh_view_dense(residual, WALSH_ELEMENT_U8, 2, narrow);
    ENCODE_REFUSED(in, "codes[1]", "[32, 12]", "[32, 16]");
    ENCODE_REFUSED(NULL, "in is NULL");
    ENCODE_REFUSED(other, "w", "[32, 128]", "[.., 192]");
    e.passes = -2;
    ENCODE_REFUSED(in, "passes is -2");
    e.passes = 0, e.bits = 2;
    w[40] = INFINITY;
    ENCODE_REFUSED(in, "w: element 40", "finite");
    w[40] = 0;
    e.hessian = walsh_view_dense(w, WALSH_ELEMENT_F32, 2, flat);
    ENCODE_REFUSED(in, "hessian", "[32, 128]", "[128, 128]");
    e.hessian.data = NULL;
    refuse_zero_signs(&weights, &e, &codes, in, out);
    OPS_WORKS(walsh_ops_encode(queue, in, out, &weights, &e, &codes, NULL, &err));

    struct walsh_view stored = walsh_view_dense(w, WALSH_ELEMENT_I64, 4, tiles), wide = weights;
    OPS_WORKS(walsh_ops_codes_to_glq(&codes.codes[0], &stored, &err));
    stored.shape[1] = 3;
    OPS_REFUSED(walsh_ops_codes_from_glq(&stored, &codes.codes[0], &err), WALSH_E_ARGUMENT, "stored",
                "[2, 3, 8, 4]", "[2, 2, 8, 4]");
    OPS_REFUSED(walsh_ops_decode(queue, in, NULL, &codes, &wide, &err), WALSH_E_ARGUMENT, "out is NULL",
                "both");
    OPS_REFUSED(walsh_ops_decode(queue, other, out, &codes, &wide, &err), WALSH_E_ARGUMENT, "192", "128");

    struct walsh_ops_linear *linear;
    struct walsh_ops_linear_options o = WALSH_OPS_LINEAR_OPTIONS;
#define LINEAR_REFUSED(...)                                                                                  \
    OPS_REFUSED(walsh_ops_linear_open(queue, &codes, &o, &linear, &err), WALSH_E_ARGUMENT,                   \
                "walsh_ops_linear_open", __VA_ARGS__);                                                       \
    assert_null(linear)
    codes.stages = 5;
    LINEAR_REFUSED("stages is 5");
    codes.stages = 1, codes.scale[0] = NAN;
    LINEAR_REFUSED("scale[0]");
    codes.scale[0] = 1, codes.codes[0].shape[0] = 24;
    LINEAR_REFUSED("24 padded outputs", "multiple of 16");
    codes.codes[0].shape[0] = 32, codes.codes[0].shape[1] = 1 << 14;
    LINEAR_REFUSED("codes[0]", "65536 columns");
    codes.codes[0].shape[1] = 16, codes.codes[0].strides[0] = 20;
    LINEAR_REFUSED("codes[0]", "strides are [20, 1]", "dense");
    codes.codes[0].strides[0] = 16, o.in = other;
    LINEAR_REFUSED("192", "128");
    o.in = in, o.out = out, o.bias = walsh_view_dense(w, WALSH_ELEMENT_F32, 1, bias);
    LINEAR_REFUSED("bias", "[33]", "[32]");
    o.bias.data = NULL, o.activations = (enum walsh_activation_mode)9;
    LINEAR_REFUSED("activations is 9");
    o.activations = WALSH_ACTIVATIONS_AUTO;
    OPS_WORKS(walsh_ops_linear_open(queue, &codes, &o, &linear, &err));

    assert_true(walsh_ops_linear_workspace(linear, 1, NULL, 0) > 0);
    assert_true(walsh_ops_linear_workspace(linear, 64, NULL, 0) >
                walsh_ops_linear_workspace(linear, 1, NULL, 0));
    assert_int_equal(walsh_ops_linear_workspace(linear, SIZE_MAX / 2, NULL, 0), 0);
    static float y[32 * 32];
    const int64_t square[] = {32, 32};
    struct walsh_view result = walsh_view_dense(y, WALSH_ELEMENT_F32, 2, square);
    struct walsh_ops_call call = WALSH_OPS_CALL;
#define CALL_REFUSED(...)                                                                                    \
    OPS_REFUSED(walsh_ops_linear_apply(queue, linear, &weights, &result, &call, &err), WALSH_E_ARGUMENT,     \
                __VA_ARGS__)
    CALL_REFUSED("workspace_size is 0", "expected at least");
    call.workspace_size = walsh_ops_linear_workspace(linear, 32, NULL, 0);
    CALL_REFUSED("workspace_size is 0");
    call.workspace = ops_aligned(call.workspace_size + 64);
    call.workspace_size--;
    CALL_REFUSED("workspace_size is", "expected at least");
    call.workspace_size += 64, call.workspace = (uint8_t *)call.workspace + 16;
    CALL_REFUSED("workspace is at");
    call.workspace = (uint8_t *)call.workspace - 16, call.adapter_count = 1;
    CALL_REFUSED("1 adapters");
    const struct walsh_ops_adapter *none[17] = {NULL};
    call.adapters = none;
    CALL_REFUSED("adapters[0] is not of this linear");
    call.adapter_count = 17;
    CALL_REFUSED("17 adapters", "at most 16");
    call.adapter_count = 0, call.role = (enum walsh_ops_role)7;
    CALL_REFUSED("role is 7");
    call.role = WALSH_OPS_DECODE;
    result.shape[0] = 31;
    CALL_REFUSED("y has 31 rows, expected 32");
    result.shape[0] = 32, weights.shape[0] = 31;
    CALL_REFUSED("y has 32 rows, expected 31");
    weights.shape[0] = 32;
    OPS_WORKS(walsh_ops_linear_apply(queue, linear, &weights, &result, &call, &err));

    struct walsh_ops_adapter *adapter;
    const int64_t a[] = {4, 128}, b[] = {32, 4}, none_a[] = {0, 128};
    struct walsh_view va = walsh_view_dense(w, WALSH_ELEMENT_F32, 2, a),
                      vb = walsh_view_dense(y, WALSH_ELEMENT_F32, 2, b);
#define ADAPTER_REFUSED(scale, ...)                                                                          \
    OPS_REFUSED(walsh_ops_adapter_open(linear, &va, &vb, scale, WALSH_ADAPTER_AUTO, &adapter, &err),         \
                WALSH_E_ARGUMENT, "walsh_ops_adapter_open", __VA_ARGS__);                                    \
    assert_null(adapter)
    ADAPTER_REFUSED(NAN, "scale");
    vb.shape[0] = 31;
    ADAPTER_REFUSED(1, "b has 31 rows", "expected 32");
    vb.shape[0] = 32;
    y[5] = NAN;
    ADAPTER_REFUSED(1, "NaN or Inf");
    va = walsh_view_dense(w, WALSH_ELEMENT_F32, 2, none_a);
    ADAPTER_REFUSED(1, "a has 0 rows", "1 to 256");
    free(call.workspace);
    walsh_ops_linear_close(&linear);
    walsh_ops_linear_close(&linear);
    walsh_ops_rotation_close(&in), walsh_ops_rotation_close(&out), walsh_ops_rotation_close(&other);
}

/* The headers' version is the library's. */
static void version(void **state)
{
    (void)state;
    char text[40];
    snprintf(text, sizeof text, "%d.%d.%d", WALSH_VERSION_MAJOR, WALSH_VERSION_MINOR, WALSH_VERSION_PATCH);
    assert_string_equal(walsh_version(), WALSH_VERSION_STRING);
    assert_string_equal(walsh_version(), text);
    assert_int_equal(WALSH_VERSION_NUMBER,
                     WALSH_VERSION_MAJOR * 1000000 + WALSH_VERSION_MINOR * 1000 + WALSH_VERSION_PATCH);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_views), cmocka_unit_test(dense_views), cmocka_unit_test(dlpack),
        cmocka_unit_test(handles),       cmocka_unit_test(linears),     cmocka_unit_test(version),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

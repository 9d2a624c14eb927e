/* The reader against every way a file can be wrong, each with its exact message; the writer's plan against
 * the reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>

#include "base/random.h"
#include "checkpoint/safetensors.h"
#include "unit/temporary.h"

static uint8_t data[4096]; /* what the tensors of the tests hold: byte i is i mod 251 */

/* PATH: the header's length (or `length` where it is not SIZE_MAX), the header, then data_bytes of data */
static void put_raw(const char *path, size_t length, const char *header, size_t header_bytes,
                    size_t data_bytes)
{
    struct walsh_writer w;
    uint8_t bytes[8];
    if (length == SIZE_MAX) length = header_bytes;
    for (unsigned i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
    assert_int_equal(walsh_writer_open(path, &w, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, bytes, 8, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, header, header_bytes, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_append(&w, data, data_bytes, NULL), WALSH_OK);
    assert_int_equal(walsh_writer_commit(&w, NULL), WALSH_OK);
}

/* Single quotes stand for double ones, so that headers can be read. */
static void put(const char *path, const char *header, size_t data_bytes)
{
    char text[4096];
    snprintf(text, sizeof text, "%s", header);
    for (char *p = text; *p; p++)
        if (*p == '\'') *p = '"';
    put_raw(path, SIZE_MAX, text, strlen(text), data_bytes);
}

static void expect_failure(const char *path, enum walsh_status status, const char *message)
{
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        struct walsh_error err = {0};
        struct walsh_safetensors st;
        assert_int_equal(walsh_safetensors_open(path, use_mmap, &st, &err), status);
        assert_string_equal(without_directory(err.message), message);
        assert_null(st.tensors);
        assert_null(st.file.data);
        assert_int_equal(walsh_safetensors_open(path, use_mmap, &st, NULL), status);
    }
}

/* One header that must be refused */
static void refuse(const char *header, size_t data_bytes, enum walsh_status status, const char *message)
{
    const char *path = temporary_path("x.safetensors");
    put(path, header, data_bytes);
    expect_failure(path, status, message);
}

static void test_read(void **state)
{
    (void)state;
    const char *path = temporary_path("good.safetensors");
    /* Out of order in the header, an empty tensor in the middle, a scalar, padding behind the JSON */
    put(path,
        "{'b':{'dtype':'F32','shape':[],'data_offsets':[12,16]},'__metadata__':{'format':'pt','a':'\\u00e9'},"
        "'a':{'dtype':'BF16','shape':[2,3],'data_offsets':[0,12]},"
        "'none':{'dtype':'I64','shape':[5,0],'data_offsets':[12,12]},"
        "'c':{'dtype':'U8','shape':[1,1,1,1,1,1,1,7],'data_offsets':[16,23]}}       ",
        23);
    for (int use_mmap = 0; use_mmap < 2; use_mmap++) {
        struct walsh_safetensors st;
        struct walsh_error err = {0};
        if (walsh_safetensors_open(path, use_mmap, &st, &err) != WALSH_OK) fail_msg("%s", err.message);
        assert_int_equal(st.count, 4);
        static const char *const names[] = {"a", "b", "c", "none"};
        static const size_t begins[] = {0, 12, 16, 12}, sizes[] = {12, 4, 7, 0}, elements[] = {6, 1, 7, 0};
        for (size_t i = 0; i < 4; i++) {
            const struct walsh_tensor *t = &st.tensors[i];
            assert_string_equal(t->name, names[i]);
            assert_ptr_equal(t, walsh_safetensors_find(&st, names[i]));
            assert_int_equal(t->bytes, sizes[i]);
            assert_int_equal(walsh_tensor_elements(t), elements[i]);
            assert_memory_equal(t->data, data + begins[i], sizes[i]);
            assert_string_equal(t->file, path);
            assert_false(t->used);
        }
        assert_int_equal(st.tensors[0].dtype, WALSH_BF16);
        assert_int_equal(st.tensors[0].rank, 2);
        assert_int_equal(st.tensors[0].shape[1], 3);
        assert_int_equal(st.tensors[1].rank, 0);
        assert_int_equal(st.tensors[2].rank, 8);
        assert_null(walsh_safetensors_find(&st, "d"));
        assert_int_equal(st.metadata_count, 2);
        assert_string_equal(st.metadata_keys[0], "format");
        assert_string_equal(st.metadata_values[1], "\xc3\xa9");
        walsh_safetensors_close(&st);
        walsh_safetensors_close(&st);
    }
}

static void test_read_no_tensors(void **state)
{
    (void)state;
    struct walsh_safetensors st;
    put(temporary_path("none.safetensors"), "{}", 0);
    assert_int_equal(walsh_safetensors_open(temporary_path("none.safetensors"), true, &st, NULL), WALSH_OK);
    assert_int_equal(st.count, 0);
    assert_null(walsh_safetensors_find(&st, "a"));
    walsh_safetensors_close(&st);
}

static void test_not_a_file(void **state)
{
    (void)state;
    expect_failure(temporary_path("absent"), WALSH_E_NOT_FOUND, "DIR/absent: no such file");
    expect_failure(temporary_directory, WALSH_E_IO, "DIR: is a directory, expected a file");
    walsh_file_write(temporary_path("x"), "GGUF\3\0\0\0\0\0\0\0", 12, NULL);
    expect_failure(temporary_path("x"), WALSH_E_UNSUPPORTED, "DIR/x: is a GGUF file, expected safetensors");
    walsh_file_write(temporary_path("x"), "version https://git-lfs.github.com/spec/v1\n", 43, NULL);
    expect_failure(temporary_path("x"), WALSH_E_FORMAT,
                   "DIR/x: is a Git LFS pointer, not the tensors: fetch the file itself (git lfs pull)");
}

static void test_header_length(void **state)
{
    (void)state;
    const char *path = temporary_path("x");
    walsh_file_write(path, "", 0, NULL);
    expect_failure(path, WALSH_E_FORMAT, "DIR/x: 0 bytes, expected at least 8 for the header's length");
    walsh_file_write(path, "\2\0\0\0\0\0\0", 7, NULL);
    expect_failure(path, WALSH_E_FORMAT, "DIR/x: 7 bytes, expected at least 8 for the header's length");
    put_raw(path, 100000001, "{}", 2, 0);
    expect_failure(path, WALSH_E_FORMAT, "DIR/x: header of 100000001 bytes, expected at most 100000000");
    put_raw(path, SIZE_MAX - 1, "{}", 2, 0);
    expect_failure(path, WALSH_E_FORMAT,
                   "DIR/x: header of 18446744073709551614 bytes, expected at most 100000000");
    put_raw(path, 3, "{}", 2, 0);
    expect_failure(path, WALSH_E_FORMAT,
                   "DIR/x: header of 3 bytes ends beyond the file of 10 bytes: it is truncated");
    put_raw(path, 100000000, "{}", 2, 0);
    expect_failure(path, WALSH_E_FORMAT,
                   "DIR/x: header of 100000000 bytes ends beyond the file of 10 bytes: it is truncated");
    put_raw(path, 0, "{}", 2, 0);
    expect_failure(path, WALSH_E_FORMAT, "DIR/x: the header does not start with '{'");
    put_raw(path, 3, " {}", 3, 0);
    expect_failure(path, WALSH_E_FORMAT, "DIR/x: the header does not start with '{'");
}

static void test_header_json(void **state)
{
    (void)state;
    refuse("{'a':1", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: invalid JSON at line 1, column 6: '}' expected near end of file");
    refuse("{'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1]},'a':{'dtype':'U8','shape':[1],'data_offsets'"
           ":[0,1]}}",
           1, WALSH_E_FORMAT,
           "DIR/x.safetensors: invalid JSON at line 1, column 56: duplicate object key near '\"a\"'");
    refuse("{'a':{'dtype':'U8','dtype':'U8','shape':[1],'data_offsets':[0,1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: invalid JSON at line 1, column 26: duplicate object key near '\"dtype\"'");
    refuse("{} x", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: invalid JSON at line 1, column 4: end of file expected near 'x'");
    char deep[1000] = "{'a':";
    memset(deep + 5, '[', 900);
    refuse(deep, 0, WALSH_E_FORMAT, "DIR/x.safetensors: JSON nested deeper than 64 levels");
    /* Brackets in strings, and quotes behind backslashes, are not nesting. */
    char harmless[1000] = "{'__metadata__':{'a\\\"";
    memset(harmless + strlen(harmless), '[', 200);
    strcat(harmless, "':1}}");
    refuse(harmless, 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: __metadata__ "
           "\"a\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["
           "[[[[[[[[[[[[[[[[[[[[[[[[[[\" is an integer, expected a string");
    refuse("{'__metadata__':7}", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: __metadata__ is an integer, expected an object");
}

static void test_entry(void **state)
{
    (void)state;
    refuse("{'a':7}", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: its entry is an integer, expected an object");
    refuse("{'a':{'shape':[1],'data_offsets':[0,1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: dtype is missing");
    refuse("{'a':{'dtype':'F4','shape':[2],'data_offsets':[0,1]}}", 1, WALSH_E_UNSUPPORTED,
           "DIR/x.safetensors: tensor a: unknown dtype \"F4\"; known: BOOL, U8, I8, F8_E5M2, F8_E4M3, "
           "F8_E8M0, I16, U16, "
           "F16, BF16, I32, U32, F32, F64, I64, U64");
    refuse("{'a':{'dtype':'U8','data_offsets':[0,1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: shape is nothing, expected a list of integers");
    refuse("{'a':{'dtype':'U8','shape':[1,-1],'data_offsets':[0,1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: shape[1] is not an integer of 0 or more");
    refuse("{'a':{'dtype':'U8','shape':[1.0],'data_offsets':[0,1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: shape[0] is not an integer of 0 or more");
    refuse("{'a':{'dtype':'U8','shape':[1,1,1,1,1,1,1,1,1],'data_offsets':[0,1]}}", 1, WALSH_E_UNSUPPORTED,
           "DIR/x.safetensors: tensor a: rank 9, expected at most 8");
    refuse("{'a':{'dtype':'U8','shape':[1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets are not two integers of 0 or more");
    refuse("{'a':{'dtype':'U8','shape':[1],'data_offsets':[-1,0]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets are not two integers of 0 or more");
    refuse("{'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1,2]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets are not two integers of 0 or more");
    refuse("{'a':{'dtype':'U8','shape':[1],'data_offsets':[1,0]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets [1, 0] run backwards");
    refuse("{'a':{'dtype':'U8','shape':[1],'data_offsets':[0,1],'strides':[1]}}", 1, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: unknown key \"strides\" in its entry");
    refuse("{'a':{'dtype':'BF16','shape':[2,3],'data_offsets':[0,10]}}", 10, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets hold 10 bytes, expected 12 for BF16 [2, 3]");
    refuse("{'a':{'dtype':'F64','shape':[],'data_offsets':[0,4]}}", 4, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data_offsets hold 4 bytes, expected 8 for F64 []");
    refuse("{'a':{'dtype':'F32','shape':[4611686018427387904],'data_offsets':[0,0]}}", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: the size of shape [4611686018427387904] overflows");
    refuse("{'a':{'dtype':'U8','shape':[4294967296,4294967296],'data_offsets':[0,0]}}", 0, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: the size of shape [4294967296, 4294967296] overflows");
    char name[1100], header[1300], message[1300];
    memset(name, 'n', 1025);
    name[1025] = 0;
    snprintf(header, sizeof header, "{'%s':{'dtype':'U8','shape':[1],'data_offsets':[0,1]}}", name);
    snprintf(message, sizeof message,
             "DIR/x.safetensors: a tensor's name has 1025 bytes, expected at most 1024: %.60s...", name);
    refuse(header, 1, WALSH_E_FORMAT, message);
}

static void test_ranges(void **state)
{
    (void)state;
#define A "'a':{'dtype':'U8','shape':[8],'data_offsets':[0,8]}"
    refuse("{" A "}", 7, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor a: data ends at byte 8 of the data, but the file holds 7 bytes of "
           "data: it is "
           "truncated");
    refuse("{" A ",'b':{'dtype':'U8','shape':[4],'data_offsets':[9223372036854775803,9223372036854775807]}}",
           8, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensor b: data ends at byte 9223372036854775807 of the data, but the file "
           "holds 8 bytes of "
           "data: it is truncated");
    refuse("{" A "}", 9, WALSH_E_FORMAT, "DIR/x.safetensors: bytes 8 to 9 of the data belong to no tensor");
    refuse("{}", 1, WALSH_E_FORMAT, "DIR/x.safetensors: bytes 0 to 1 of the data belong to no tensor");
    refuse("{'b':{'dtype':'U8','shape':[4],'data_offsets':[6,10]}," A "}", 10, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensors a and b overlap: bytes 6 to 8 of the data");
    refuse("{" A ",'b':{'dtype':'U8','shape':[4],'data_offsets':[7,11]}}", 11, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensors a and b overlap: bytes 7 to 8 of the data");
    refuse("{" A ",'b':{'dtype':'U8','shape':[8],'data_offsets':[0,8]}}", 8, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensors a and b overlap: bytes 0 to 8 of the data");
    refuse("{'b':{'dtype':'U8','shape':[4],'data_offsets':[10,14]}," A "}", 14, WALSH_E_FORMAT,
           "DIR/x.safetensors: bytes 8 to 10 of the data belong to no tensor; the next is b");
    refuse("{'b':{'dtype':'U8','shape':[4],'data_offsets':[1,5]}}", 5, WALSH_E_FORMAT,
           "DIR/x.safetensors: bytes 0 to 1 of the data belong to no tensor; the next is b");
    refuse("{" A ",'b':{'dtype':'U8','shape':[0],'data_offsets':[4,4]}}", 8, WALSH_E_FORMAT,
           "DIR/x.safetensors: tensors a and b overlap: bytes 4 to 4 of the data");
}

/* Every prefix of a good file, and every file with one byte of its header changed, is refused or read without
 * a fault. */
static void test_cut_and_changed(void **state)
{
    (void)state;
    const char *path = temporary_path("small"), *cut = temporary_path("cut");
    put(path, "{" A ",'b':{'dtype':'F16','shape':[2,2],'data_offsets':[8,16]}}", 16);
#undef A
    struct walsh_file good;
    assert_int_equal(walsh_file_open(path, false, &good, NULL), WALSH_OK);
    uint8_t copy[256];
    assert_true(good.size < sizeof copy);
    struct walsh_safetensors st;
    for (size_t size = 0; size < good.size; size++) {
        assert_int_equal(walsh_file_write(cut, good.data, size, NULL), WALSH_OK);
        assert_int_not_equal(walsh_safetensors_open(cut, true, &st, NULL), WALSH_OK);
    }
    unsigned accepted = 0;
    struct walsh_random r;
    walsh_random_seed(&r, 3);
    for (size_t i = 0; i < good.size - 16; i++) {
        memcpy(copy, good.data, good.size);
        copy[i] ^= (uint8_t)(1u << (walsh_random_u64(&r) & 7));
        assert_int_equal(walsh_file_write(cut, copy, good.size, NULL), WALSH_OK);
        if (walsh_safetensors_open(cut, false, &st, NULL) != WALSH_OK) continue;
        accepted++; /* a letter of a name, or U8 that has become I8 */
        walsh_safetensors_close(&st);
    }
    assert_true(accepted < 10);
    walsh_file_close(&good);
}

static void test_names(void **state)
{
    (void)state;
    char text[64];
    const uint64_t shape[3] = {320, 896, UINT64_MAX};
    assert_string_equal(walsh_shape_text(shape, 0, text, sizeof text), "[]");
    assert_string_equal(walsh_shape_text(shape, 1, text, sizeof text), "[320]");
    assert_string_equal(walsh_shape_text(shape, 3, text, sizeof text), "[320, 896, 18446744073709551615]");
    walsh_shape_text(shape, 3, text, 8);
    assert_string_equal(text, "[320, 8");
    for (unsigned i = 0; i < WALSH_DTYPE_COUNT; i++) {
        enum walsh_dtype dtype;
        assert_true(walsh_dtype_from_name(walsh_dtype_name((enum walsh_dtype)i), &dtype));
        assert_int_equal(dtype, i);
    }
    enum walsh_dtype dtype;
    assert_false(walsh_dtype_from_name("f32", &dtype));
    assert_int_equal(walsh_dtype_size(WALSH_BF16), 2);
    assert_int_equal(walsh_dtype_size(WALSH_I64), 8);
    assert_int_equal(walsh_dtype_size(WALSH_F8_E4M3), 1);
}

/* The header byte for byte as the reference writer (safetensors 0.8.0, Python) makes it for these tensors. */
static void test_plan_header(void **state)
{
    (void)state;
    struct walsh_safetensors_plan plan = {0};
    const uint64_t two[] = {2, 3}, one[] = {5};
    assert_int_equal(walsh_plan_add(&plan, "b", WALSH_BF16, 2, two, NULL), WALSH_OK);
    assert_int_equal(walsh_plan_add(&plan, "a", WALSH_BF16, 1, one, NULL), WALSH_OK);
    assert_int_equal(walsh_plan_add(&plan, "z", WALSH_I64, 0, NULL, NULL), WALSH_OK);
    assert_int_equal(walsh_plan_add(&plan, "h", WALSH_F16, 1, one, NULL), WALSH_OK);
    assert_int_equal(walsh_plan_finish(&plan, NULL), WALSH_OK);
    static const char expected[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"z\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
        "\"a\":{\"dtype\":\"BF16\",\"shape\":[5],\"data_offsets\":[8,18]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[18,30]},"
        "\"h\":{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[30,40]}}";
    size_t length = sizeof expected - 1, padded = (length + 7) / 8 * 8;
    assert_int_equal(plan.header_bytes, padded + 8);
    assert_int_equal((uint8_t)plan.header[0] | (uint8_t)plan.header[1] << 8, padded);
    assert_memory_equal(plan.header + 8, expected, length);
    for (size_t i = length; i < padded; i++) assert_int_equal(plan.header[8 + i], ' ');
    assert_int_equal(plan.file_bytes, padded + 8 + 40);
    assert_int_equal(plan.offsets[walsh_plan_find(&plan, "b")], padded + 8 + 18);
    assert_true(walsh_plan_find(&plan, "c") == SIZE_MAX);
    walsh_plan_close(&plan);
}

/* Many tensors planned at random, written out of order, read back. */
static void test_plan_round_trip(void **state)
{
    (void)state;
    enum { COUNT = 300 };
    const uint64_t seed = 77;
    print_message("seed %llu\n", (unsigned long long)seed);
    struct walsh_random r;
    walsh_random_seed(&r, seed);
    struct walsh_safetensors_plan plan = {0};
    for (unsigned i = 0; i < COUNT; i++) {
        char name[64];
        uint64_t shape[3] = {walsh_random_u64(&r) % 5, walsh_random_u64(&r) % 7, walsh_random_u64(&r) % 3};
        snprintf(name, sizeof name, "layer.%llu.\"q\\\xc3\xa9.%u",
                 (unsigned long long)(walsh_random_u64(&r) % 97), i);
        enum walsh_dtype dtype = (enum walsh_dtype)(walsh_random_u64(&r) % WALSH_DTYPE_COUNT);
        assert_int_equal(
            walsh_plan_add(&plan, name, dtype, (unsigned)(walsh_random_u64(&r) % 4), shape, NULL), WALSH_OK);
    }
    assert_int_equal(walsh_plan_finish(&plan, NULL), WALSH_OK);
    uint8_t *file = calloc(plan.file_bytes, 1);
    memcpy(file, plan.header, plan.header_bytes);
    for (size_t i = 0; i < COUNT; i++) {
        assert_int_equal(plan.offsets[i] % walsh_dtype_size(plan.tensors[i].dtype),
                         0); /* aligned as its dtype */
        memset(file + plan.offsets[i], (int)(i % 251), plan.tensors[i].bytes);
    }
    const char *path = temporary_path("plan.safetensors");
    assert_int_equal(walsh_file_write(path, file, plan.file_bytes, NULL), WALSH_OK);
    free(file);
    struct walsh_safetensors st;
    struct walsh_error err = {0};
    if (walsh_safetensors_open(path, true, &st, &err) != WALSH_OK) fail_msg("%s", err.message);
    assert_int_equal(st.count, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        const struct walsh_tensor *t = &st.tensors[i];
        size_t p = walsh_plan_find(&plan, t->name);
        assert_true(p < COUNT);
        assert_int_equal(t->dtype, plan.tensors[p].dtype);
        assert_int_equal(t->rank, plan.tensors[p].rank);
        assert_memory_equal(t->shape, plan.tensors[p].shape, t->rank * sizeof *t->shape);
        for (size_t j = 0; j < t->bytes; j++) assert_int_equal(((const uint8_t *)t->data)[j], p % 251);
    }
    assert_string_equal(st.metadata_keys[0], "format");
    assert_string_equal(st.metadata_values[0], "pt");
    walsh_safetensors_close(&st);
    walsh_plan_close(&plan);
}

static void test_plan_refuses(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_safetensors_plan plan = {0};
    const uint64_t huge[] = {1ull << 62, 4}, one[] = {1};
    assert_int_equal(walsh_plan_add(&plan, "a", WALSH_U8, 2, huge, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "tensor a: its rank, name or size is too large for safetensors");
    assert_int_equal(walsh_plan_add(&plan, "a", WALSH_U8, 9, one, &err), WALSH_E_ARGUMENT);
    assert_int_equal(walsh_plan_add(&plan, "a", WALSH_U8, 1, one, &err), WALSH_OK);
    assert_int_equal(walsh_plan_add(&plan, "a", WALSH_F32, 1, one, &err), WALSH_OK);
    assert_int_equal(walsh_plan_finish(&plan, &err), WALSH_E_ARGUMENT);
    assert_string_equal(err.message, "tensor a is planned twice");
    walsh_plan_close(&plan);
    assert_int_equal(walsh_plan_add(&plan, "bad \xff", WALSH_U8, 1, one, &err), WALSH_OK);
    assert_int_equal(walsh_plan_finish(&plan, &err), WALSH_E_ARGUMENT);
    walsh_plan_close(&plan);
    assert_int_equal(walsh_plan_finish(&plan, &err), WALSH_OK); /* no tensors at all is a file too */
    walsh_plan_close(&plan);
}

int main(void)
{
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i % 251);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_no_tensors),
        cmocka_unit_test(test_not_a_file),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_header_json),
        cmocka_unit_test(test_entry),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_cut_and_changed),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_plan_header),
        cmocka_unit_test(test_plan_round_trip),
        cmocka_unit_test(test_plan_refuses),
    };
    return cmocka_run_group_tests(tests, temporary_make, temporary_remove);
}

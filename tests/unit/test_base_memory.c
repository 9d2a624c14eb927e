#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/memory.h"

static void test_checked_arithmetic(void **state)
{
    (void)state;
    size_t n;
    assert_true(walsh_mul(SIZE_MAX, 1, &n) && n == SIZE_MAX);
    assert_false(walsh_mul(SIZE_MAX / 2 + 1, 2, &n));
    assert_true(walsh_add(SIZE_MAX - 1, 1, &n) && n == SIZE_MAX);
    assert_false(walsh_add(SIZE_MAX, 1, &n));
    assert_int_equal(walsh_round_up(65, 64), 128);
    assert_int_equal(walsh_round_up(64, 64), 64);
    assert_int_equal(walsh_div_up(SIZE_MAX, 2), SIZE_MAX / 2 + 1);
}

static void test_alloc(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4095, (size_t)4 << 20, ((size_t)4 << 20) + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *p = NULL;
        assert_int_equal(walsh_alloc(sizes[i], 1, "test", &p, NULL), WALSH_OK);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % WALSH_ALIGNMENT, 0);
        memset(p, 0xa5, sizes[i]);
        walsh_free(p);
        assert_int_equal(walsh_alloc_zero(sizes[i], 1, "test", &p, NULL), WALSH_OK);
        for (size_t j = 0; j < sizes[i]; j++) assert_int_equal(p[j], 0);
        walsh_free(p);
    }
    walsh_free(NULL);
}

static void test_alloc_too_much(void **state)
{
    (void)state;
    struct walsh_error err;
    int x;
    void *p = &x;
    assert_int_equal(walsh_alloc(SIZE_MAX, 2, "a matrix", &p, &err), WALSH_E_MEMORY);
    assert_null(p);
    assert_string_equal(err.message, "out of memory: a matrix needs 18446744073709551615 x 2 bytes");
    assert_int_equal(walsh_alloc(SIZE_MAX - 8, 1, "a matrix", &p, &err), WALSH_E_MEMORY);
    assert_string_equal(err.message, "out of memory: a matrix needs 18446744073709551607 bytes");
    assert_int_equal(walsh_alloc_zero(SIZE_MAX / 4, 1, "a matrix", &p, NULL), WALSH_E_MEMORY);
    struct walsh_arena arena = {0};
    assert_int_equal(walsh_arena_alloc(&arena, SIZE_MAX, 2, "a table", &p, &err), WALSH_E_MEMORY);
    assert_int_equal(walsh_arena_alloc(&arena, SIZE_MAX - 70, 1, "a table", &p, &err), WALSH_E_MEMORY);
    walsh_arena_close(&arena);
}

static void test_arena(void **state)
{
    (void)state;
    struct walsh_arena arena = {0};
    uint8_t *blocks[300];
    for (size_t i = 0; i < 300; i++) {
        size_t size = i % 50 == 49 ? 200000 : i * 7;
        assert_int_equal(walsh_arena_alloc(&arena, size, 1, "test", &blocks[i], NULL), WALSH_OK);
        assert_int_equal((uintptr_t)blocks[i] % WALSH_ALIGNMENT, 0);
        for (size_t j = 0; j < size; j++) assert_int_equal(blocks[i][j], 0);
        memset(blocks[i], (int)(i & 0xff), size);
    }
    for (size_t i = 0; i < 300; i++) /* no block runs into another */
        for (size_t j = 0; j < (i % 50 == 49 ? 200000 : i * 7); j++) assert_int_equal(blocks[i][j], i & 0xff);
    char *text;
    assert_int_equal(walsh_arena_strdup(&arena, "hello", &text, NULL), WALSH_OK);
    assert_string_equal(text, "hello");
    assert_true(arena.bytes > 1000000);
    walsh_arena_close(&arena);
    assert_null(arena.last);
    /* Memory that was used before, as malloc hands it out again, is zeroed too. */
    for (unsigned round = 0; round < 2; round++) {
        assert_int_equal(walsh_arena_alloc(&arena, 30000, 1, "test", &text, NULL), WALSH_OK);
        for (size_t j = 0; j < 30000; j++) assert_int_equal(text[j], 0);
        memset(text, 1, 30000);
        walsh_arena_close(&arena);
    }
    walsh_arena_close(&arena);
}

/* Read by AddressSanitizer, which would end the program where the system's allocator returns NULL. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checked_arithmetic),
        cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_alloc_too_much),
        cmocka_unit_test(test_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

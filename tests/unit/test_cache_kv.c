/* The paged KV cache: sizes, growth on demand, capacity, trimming. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "cache/kv.h"

static const struct walsh_kv_shape small = {
    .policy = {.type = WALSH_KV_F16}, .layers = 3, .kv_heads = 2, .head_dim = 64, .capacity = 700};

static void bytes_count_whole_pages(void **state)
{
    (void)state;
    /* 700 tokens are 3 pages of 256; 3 layers, K and V, 2 heads of 64, 2 bytes each */
    assert_int_equal(walsh_kv_bytes(&small), 3u * 256 * 3 * 2 * 2 * 64 * 2);
    struct walsh_kv_shape wide = small;
    wide.policy.type = WALSH_KV_F32;
    assert_int_equal(walsh_kv_bytes(&wide), 2 * walsh_kv_bytes(&small));
    wide.layers = wide.kv_heads = wide.head_dim = wide.capacity = UINT32_MAX;
    assert_true(walsh_kv_bytes(&wide) == UINT64_MAX);
}

static void pages_come_on_demand(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_kv_cache *kv;
    assert_int_equal(walsh_kv_open(&small, &kv, &err), WALSH_OK);
    assert_int_equal(walsh_kv_allocated(kv), 0);
    assert_int_equal(walsh_kv_reserve(kv, 1, &err), WALSH_OK);
    assert_int_equal(kv->pages, 1);
    assert_int_equal(walsh_kv_reserve(kv, 256, &err), WALSH_OK);
    assert_int_equal(kv->pages, 1);
    void *first = kv->views[1].v_pages[0];
    assert_int_equal(walsh_kv_reserve(kv, 257, &err), WALSH_OK);
    assert_int_equal(kv->pages, 2);
    assert_ptr_equal(kv->views[1].v_pages[0], first); /* pages never move */
    assert_int_equal(walsh_kv_reserve(kv, 700, &err), WALSH_OK);
    assert_int_equal(walsh_kv_allocated(kv), walsh_kv_bytes(&small));

    /* Every page of every layer is its own memory, aligned, and zero at first. */
    size_t page = 2 * 256 * 64 * 2;
    for (uint32_t layer = 0; layer < 3; layer++) {
        for (uint32_t p = 0; p < 3; p++) {
            unsigned char *k = kv->views[layer].k_pages[p], *v = kv->views[layer].v_pages[p];
            assert_int_equal((uintptr_t)k % WALSH_ALIGNMENT, 0);
            assert_int_equal((uintptr_t)v % WALSH_ALIGNMENT, 0);
            for (size_t i = 0; i < page; i++) assert_int_equal(k[i] | v[i], 0);
            memset(k, (int)(1 + layer * 6 + p * 2), page);
            memset(v, (int)(2 + layer * 6 + p * 2), page);
        }
    }
    for (uint32_t layer = 0; layer < 3; layer++) {
        for (uint32_t p = 0; p < 3; p++) {
            const unsigned char *k = kv->views[layer].k_pages[p], *v = kv->views[layer].v_pages[p];
            assert_int_equal(k[0], 1 + layer * 6 + p * 2);
            assert_int_equal(k[page - 1], 1 + layer * 6 + p * 2);
            assert_int_equal(v[0], 2 + layer * 6 + p * 2);
            assert_int_equal(v[page - 1], 2 + layer * 6 + p * 2);
        }
    }
    walsh_kv_close(&kv);
    assert_null(kv);
    walsh_kv_close(&kv);
}

static void a_full_cache_says_so(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_kv_cache *kv;
    assert_int_equal(walsh_kv_open(&small, &kv, &err), WALSH_OK);
    assert_int_equal(walsh_kv_reserve(kv, 10, &err), WALSH_OK);
    assert_int_equal(walsh_kv_reserve(kv, 701, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "the context is full: 701 tokens wanted, it holds 700");
    assert_int_equal(kv->pages, 1);
    kv->length = 10;
    walsh_kv_trim(kv, 20);
    assert_int_equal(kv->length, 10);
    walsh_kv_trim(kv, 4);
    assert_int_equal(kv->length, 4);
    assert_int_equal(kv->pages, 1);
    walsh_kv_close(&kv);
}

static void empty_shapes_are_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    struct walsh_kv_cache *kv;
    struct walsh_kv_shape bad = small;
    bad.capacity = 0;
    assert_int_equal(walsh_kv_open(&bad, &kv, &err), WALSH_E_ARGUMENT);
    assert_null(kv);
    bad = small;
    bad.layers = bad.head_dim = bad.kv_heads = UINT32_MAX;
    assert_int_equal(walsh_kv_open(&bad, &kv, &err), WALSH_E_MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_count_whole_pages),
        cmocka_unit_test(pages_come_on_demand),
        cmocka_unit_test(a_full_cache_says_so),
        cmocka_unit_test(empty_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

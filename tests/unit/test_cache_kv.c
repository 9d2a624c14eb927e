/* The paged KV cache: sizes, growth on demand, capacity, trimming. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

static void recent_tokens_are_bounded_by_the_context(void **state)
{
    (void)state;
    struct walsh_kv_shape packed = {.policy = {.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4},
                                    .layers = 3,
                                    .kv_heads = 2,
                                    .head_dim = 64,
                                    .capacity = 512};
    struct walsh_kv_shape half = packed;
    half.policy = (struct walsh_kv_policy){.type = WALSH_KV_F16};
    const uint64_t without = walsh_kv_bytes(&packed);
    packed.policy.recent = 65536;
    assert_int_equal(walsh_kv_bytes(&packed), without + walsh_kv_bytes(&half));
    packed.policy.recent = 64;
    assert_true(walsh_kv_bytes(&packed) > without &&
                walsh_kv_bytes(&packed) < without + walsh_kv_bytes(&half));
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

/* AddressSanitizer keeps memory of its own beside each block, and what was freed. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static size_t resident(void)
{
    size_t pages = 0, held = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%zu %zu", &pages, &held), 2);
    fclose(f);
    return held * (size_t)sysconf(_SC_PAGESIZE);
}

/* What the process holds for a full cache of 32768 tokens. */
static size_t held_by(const struct walsh_kv_policy *policy, struct walsh_kv_cache **kv)
{
    struct walsh_error err = {0};
    const struct walsh_kv_shape shape = {
        .policy = *policy, .layers = 16, .kv_heads = 2, .head_dim = 128, .capacity = 32768};
    const size_t before = resident();
    assert_int_equal(walsh_kv_open(&shape, kv, &err), WALSH_OK);
    assert_int_equal(walsh_kv_reserve(*kv, shape.capacity, &err), WALSH_OK);
    return resident() - before;
}

static void a_packed_cache_takes_a_quarter_of_the_memory(void **state)
{
    (void)state;
    if (SANITIZED) skip();
    struct walsh_kv_cache *packed, *half;
    const size_t small_bytes =
        held_by(&(struct walsh_kv_policy){.type = WALSH_KV_TURBO, .key_bits = 3, .value_bits = 4, .seed = 42},
                &packed);
    const size_t half_bytes = held_by(&(struct walsh_kv_policy){.type = WALSH_KV_F16}, &half);
    printf("K3 V4: %zu bytes, f16: %zu bytes, ratio %.3f\n", small_bytes, half_bytes,
           (double)half_bytes / (double)small_bytes);
    assert_true(half_bytes >= walsh_kv_bytes(&half->shape)); /* nothing of it was there before */
    assert_true((double)half_bytes >= 4.3 * (double)small_bytes);
    walsh_kv_close(&packed);
    walsh_kv_close(&half);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_count_whole_pages),
        cmocka_unit_test(recent_tokens_are_bounded_by_the_context),
        cmocka_unit_test(pages_come_on_demand),
        cmocka_unit_test(a_full_cache_says_so),
        cmocka_unit_test(a_packed_cache_takes_a_quarter_of_the_memory),
        cmocka_unit_test(empty_shapes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

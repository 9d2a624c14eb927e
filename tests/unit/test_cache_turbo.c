/* Caches that pack: sizes, types per layer, the bytes of pages, forks, trims, export. Test groups of
 * docs/kv-cache.md: 1, 4, 7, 8. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/scalar.h"
#include "cache/kv.h"
#include "kernels/turbo.h"

#define SEED 20250607u
#define TOKENS 700u
#define LAYERS 4u
#define HEADS 2u

static struct walsh_queue queue;

/* Keys, then values, of every layer and token: [LAYERS][2][TOKENS][HEADS * dim]. */
static float *data;
static uint32_t dim;

static int open_queue(void **state)
{
    (void)state;
    struct walsh_error err;
    return walsh_queue_open(WALSH_CPU_BEST, NULL, &queue, &err) == WALSH_OK ? 0 : -1;
}

static int close_queue(void **state)
{
    (void)state;
    walsh_queue_close(&queue);
    return 0;
}

static void make_data(uint32_t head_dim)
{
    struct walsh_random random;
    print_message("seed %u\n", SEED);
    walsh_random_seed(&random, SEED);
    dim = head_dim;
    const size_t n = (size_t)LAYERS * 2 * TOKENS * HEADS * dim;
    data = malloc(n * sizeof *data);
    assert_non_null(data);
    for (size_t i = 0; i < n; i++) data[i] = (float)walsh_random_normal(&random);
}

static struct walsh_kv_shape shape_of(unsigned key_bits, unsigned value_bits, uint32_t skip, uint32_t recent)
{
    return (struct walsh_kv_shape){.policy = {.type = WALSH_KV_TURBO,
                                              .key_bits = key_bits,
                                              .value_bits = value_bits,
                                              .skip = skip,
                                              .recent = recent,
                                              .seed = 7},
                                   .layers = LAYERS,
                                   .kv_heads = HEADS,
                                   .head_dim = dim,
                                   .capacity = TOKENS};
}

static struct walsh_kv_cache *open_cache(const struct walsh_kv_shape *shape)
{
    struct walsh_error err;
    struct walsh_kv_cache *kv;
    if (walsh_kv_open(shape, &kv, &err) != WALSH_OK) fail_msg("%s", err.message);
    return kv;
}

/* Tokens [kv->length, end), `at_once` in a call. `from`: the data of token 0. */
static void append_from(struct walsh_kv_cache *kv, uint32_t end, uint32_t at_once, uint32_t from)
{
    struct walsh_error err;
    struct walsh_attention_row rows[TOKENS];
    const struct walsh_attention_shape shape = {
        .heads = HEADS, .kv_heads = HEADS, .head_dim = dim, .scale = 1};
    const size_t ld = (size_t)HEADS * dim;
    while (kv->length < end) {
        const uint32_t n = (uint32_t)walsh_min(at_once, end - kv->length);
        if (walsh_kv_reserve(kv, kv->length + n, &err) != WALSH_OK) fail_msg("%s", err.message);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            for (uint32_t i = 0; i < n; i++)
                rows[i] = (struct walsh_attention_row){&kv->views[layer], kv->length + i};
            const float *k = data + (((size_t)layer * 2) * TOKENS + from + kv->length) * ld;
            queue.ops->kv_append(&queue, rows, n, k, k + TOKENS * ld, ld, &shape);
        }
        kv->length += n;
    }
}

static void append(struct walsh_kv_cache *kv, uint32_t end, uint32_t at_once)
{
    append_from(kv, end, at_once, 0);
}

/* The bytes of all tokens; the caller frees them. */
static uint8_t *bytes_of(const struct walsh_kv_cache *kv, size_t *size)
{
    struct walsh_error err;
    *size = walsh_kv_export_bytes(kv, kv->length);
    uint8_t *bytes = malloc(*size);
    assert_non_null(bytes);
    memset(bytes, 0xa5, *size);
    if (walsh_kv_export(kv, 0, kv->length, bytes, &err) != WALSH_OK) fail_msg("%s", err.message);
    return bytes;
}

static void assert_same(const struct walsh_kv_cache *a, const struct walsh_kv_cache *b)
{
    size_t n, m;
    uint8_t *x = bytes_of(a, &n), *y = bytes_of(b, &m);
    assert_int_equal(a->length, b->length);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void test_group_8_cache_bytes_drop(void **state)
{
    (void)state;
    dim = 128;
    /* 700 tokens are 3 pages of 256; an f16 vector takes 256 bytes, one of 3 or 4 bits 50 or 66 */
    struct walsh_kv_shape shape = shape_of(3, 4, 0, 0), f16 = shape;
    f16.policy = (struct walsh_kv_policy){.type = WALSH_KV_F16};
    assert_int_equal(walsh_kv_bytes(&f16), 3u * 256 * LAYERS * HEADS * 2 * 256);
    assert_int_equal(walsh_kv_bytes(&shape), 3u * 256 * LAYERS * HEADS * (50 + 66));
    assert_true(4.3 * (double)walsh_kv_bytes(&shape) < (double)walsh_kv_bytes(&f16));
    shape.policy.skip = 1; /* two of the four layers stay f16 */
    assert_int_equal(walsh_kv_bytes(&shape), 3u * 256 * HEADS * 2 * (50 + 66 + 512));
    shape.policy.recent = 100; /* a ring of at most 3 pages of 64 tokens for each of the two */
    assert_int_equal(walsh_kv_bytes(&shape),
                     3u * 256 * HEADS * 2 * (50 + 66 + 512) + 2u * 3 * 64 * HEADS * 512);
    const bool windowed[LAYERS] = {false, true, false, false};
    shape.policy.skip = shape.policy.recent = 0;
    shape.windowed = windowed;
    assert_int_equal(walsh_kv_bytes(&shape), 3u * 256 * HEADS * (3 * (50 + 66) + 512));

    /* what a cache holds is what was said, and its layers have their types */
    shape.policy.recent = 100;
    make_data(128);
    struct walsh_kv_cache *kv = open_cache(&shape);
    assert_int_equal(walsh_kv_allocated(kv), 0);
    append(kv, 10, 10);
    assert_int_equal(walsh_kv_allocated(kv),
                     256u * HEADS * (3 * (50 + 66) + 512) + 3u * 3 * 64 * HEADS * 512);
    append(kv, TOKENS, 256);
    assert_int_equal(walsh_kv_allocated(kv), walsh_kv_bytes(&shape));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        assert_int_equal(kv->views[layer].type, windowed[layer] ? WALSH_KV_F16 : WALSH_KV_TURBO);
        assert_int_equal(kv->views[layer].recent != NULL, !windowed[layer]);
    }
    walsh_kv_close(&kv);
    free(data);
}

static void test_group_1_equal_bytes_however_appended(void **state)
{
    (void)state;
    static const struct {
        uint32_t dim, skip, recent;
        unsigned key_bits, value_bits;
        bool prod;
    } cases[] = {{64, 0, 0, 4, 4, false},   {128, 1, 0, 3, 4, false}, {80, 0, 64, 2, 3, false},
                 {96, 1, 100, 5, 1, false}, {64, 0, 1, 8, 7, false},  {192, 0, 0, 6, 2, false},
                 {64, 0, 0, 3, 4, true}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        make_data(cases[c].dim);
        struct walsh_kv_shape shape =
            shape_of(cases[c].key_bits, cases[c].value_bits, cases[c].skip, cases[c].recent);
        shape.policy.prod_keys = cases[c].prod;
        struct walsh_kv_cache *whole = open_cache(&shape), *single = open_cache(&shape);
        append(whole, 333, 333);
        append(single, 333, 1);
        assert_same(whole, single);
        /* tokens of other data, forgotten, leave nothing behind */
        append_from(single, 600, 50, 100);
        walsh_kv_trim(single, 301);
        append(whole, 345, 7);
        append(single, 345, 1);
        if (cases[c].recent <= 345 - 301) assert_same(whole, single);
        walsh_kv_trim(single, 0);
        append(single, 345, 100);
        assert_same(whole, single);
        /* what is forgotten is not exported, whether it was overwritten or not */
        walsh_kv_trim(single, 0);
        append(single, 600, 300);
        if (cases[c].recent == 0) {
            walsh_kv_trim(single, 345);
            assert_same(whole, single);
        }
        /* the bytes are there at all: another token, other bytes */
        walsh_kv_trim(single, 0);
        append_from(single, 345, 345, 1);
        size_t n, m;
        uint8_t *x = bytes_of(whole, &n), *y = bytes_of(single, &m);
        assert_memory_not_equal(x, y, n);
        free(x);
        free(y);
        walsh_kv_close(&whole);
        walsh_kv_close(&single);
        free(data);
    }
}

/* The ring holds each of the newest tokens, rotated, in f16. */
static void test_group_1_recent_tokens_are_in_the_ring(void **state)
{
    (void)state;
    make_data(64);
    const struct walsh_kv_shape shape = shape_of(4, 4, 0, 70);
    struct walsh_kv_cache *kv = open_cache(&shape);
    append(kv, 400, 3);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const struct walsh_kv_view *recent = kv->views[layer].recent;
        const struct walsh_turbo_codecs *codecs = kv->views[layer].turbo;
        for (uint32_t token = 330; token < 400; token++)
            for (uint32_t side = 0; side < 2; side++) {
                const struct walsh_turbo_codec *codec = side ? codecs->value : codecs->key;
                const float *x = data + ((((size_t)layer * 2 + side) * TOKENS) + token) * HEADS * dim + dim;
                const uint16_t *page =
                    (side ? recent->v_pages : recent->k_pages)[token / recent->page_tokens];
                page += (1 * recent->page_tokens + token % recent->page_tokens) * (size_t)dim; /* head 1 */
                float y[64];
                walsh_rotate_forward(&codec->rotation, x, y);
                for (uint32_t i = 0; i < dim; i++) assert_int_equal(page[i], walsh_f16_from_f32(y[i]));
            }
    }
    walsh_kv_close(&kv);
    free(data);
}

static void test_group_4_forks_copy_on_write(void **state)
{
    (void)state;
    struct walsh_error err;
    make_data(64);
    const struct walsh_kv_shape shape = shape_of(3, 3, 1, 40);
    struct walsh_kv_cache *kv = open_cache(&shape), *fork, *other = open_cache(&shape), *second;
    append(kv, 300, 300);
    append(other, 300, 300);
    assert_int_equal(walsh_kv_fork(kv, &fork, &err), WALSH_OK);
    assert_int_equal(walsh_kv_fork(fork, &second, &err), WALSH_OK);
    assert_same(kv, fork);
    assert_ptr_equal(kv->page[0], fork->page[0]);
    assert_ptr_equal(kv->page[1], second->page[1]);
    /* the fork goes its own way: only the page that it writes to becomes its own */
    append_from(fork, 320, 1, 50);
    assert_ptr_equal(kv->page[0], fork->page[0]);
    assert_ptr_not_equal(kv->page[1], fork->page[1]);
    assert_same(kv, other);
    assert_same(second, other);
    append(kv, 560, 20);
    append(other, 560, 20);
    assert_same(kv, other);
    /* a fork that forgets what it shares does not clear it */
    walsh_kv_trim(second, 10);
    append_from(second, 300, 10, 30);
    walsh_kv_close(&fork);
    assert_same(kv, other);
    walsh_kv_trim(second, 0);
    append(second, 560, 560);
    walsh_kv_close(&kv);
    assert_same(second, other);
    walsh_kv_close(&second);
    walsh_kv_close(&other);
    free(data);
}

static void test_group_4_capacity_exactly_full(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    make_data(64);
    const struct walsh_kv_shape shape = shape_of(4, 4, 0, 10);
    struct walsh_kv_cache *kv = open_cache(&shape), *other = open_cache(&shape);
    append(kv, TOKENS, 256);
    append(other, TOKENS, 1);
    assert_same(kv, other);
    assert_int_equal(walsh_kv_reserve(kv, TOKENS + 1, &err), WALSH_E_CAPACITY);
    assert_string_equal(err.message, "the context is full: 701 tokens wanted, it holds 700");
    assert_same(kv, other);
    walsh_kv_trim(kv, TOKENS - 1);
    assert_int_equal(walsh_kv_reserve(kv, TOKENS, &err), WALSH_OK);
    walsh_kv_close(&kv);
    walsh_kv_close(&other);
    free(data);
}

static void test_group_7_bytes_travel(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    for (uint32_t recent = 0; recent <= 64; recent += 64) {
        make_data(64);
        const struct walsh_kv_shape shape = shape_of(3, 4, 1, recent); /* f16 and packed layers */
        struct walsh_kv_cache *kv = open_cache(&shape), *copy = open_cache(&shape);
        append(kv, 512, 512);
        const size_t first = walsh_kv_export_bytes(kv, 512), rest = walsh_kv_export_bytes(kv, 90);
        assert_int_equal(first, 2 * kv->page_bytes + (recent ? 2u * 2 * HEADS * 64 * 64 * 2 : 0));
        uint8_t *chunk = malloc(first), *tail = malloc(rest);
        assert_int_equal(walsh_kv_export(kv, 0, 512, chunk, &err), WALSH_OK);
        append(kv, 602, 90);
        assert_int_equal(walsh_kv_export(kv, 512, 90, tail, &err), WALSH_OK);
        append_from(copy, 200, 200, 60); /* anything before */
        walsh_kv_trim(copy, 0);
        assert_int_equal(walsh_kv_import(copy, 512, chunk, &err), WALSH_OK);
        assert_int_equal(walsh_kv_import(copy, 90, tail, &err), WALSH_OK);
        assert_same(kv, copy);
        append(kv, 650, 1);
        append(copy, 650, 1);
        assert_same(kv, copy);

        assert_int_equal(walsh_kv_import(copy, 10, tail, &err), WALSH_E_ARGUMENT);
        assert_string_equal(err.message, "KV cache: tokens are imported at multiples of 256, it holds 650");
        assert_int_equal(walsh_kv_export(copy, 100, 100, chunk, &err), WALSH_E_ARGUMENT);
        assert_int_equal(walsh_kv_export(copy, 512, 139, chunk, &err), WALSH_E_ARGUMENT);
        if (recent) {
            assert_int_equal(walsh_kv_export(copy, 0, 512, chunk, &err), WALSH_E_ARGUMENT);
            assert_string_equal(err.message,
                                "KV cache: the recent tokens before 512 are not in f16 any more, it "
                                "holds 650 tokens");
        } else {
            assert_int_equal(walsh_kv_export(copy, 0, 512, chunk, &err), WALSH_OK);
        }
        walsh_kv_trim(copy, 512);
        assert_int_equal(walsh_kv_import(copy, 189, chunk, &err), WALSH_E_CAPACITY);
        assert_int_equal(copy->length, 512);
        free(chunk);
        free(tail);
        walsh_kv_close(&kv);
        walsh_kv_close(&copy);
        free(data);
    }
}

static void wrong_policies_are_refused(void **state)
{
    (void)state;
    struct walsh_error err = {0};
    dim = 64;
    static const struct {
        struct walsh_kv_policy policy;
        uint32_t dim;
        const char *message;
    } cases[] = {
        {{.type = WALSH_KV_TURBO, .key_bits = 9, .value_bits = 4},
         64,
         "KV cache: 9 bits per element of a key, expected 1 to 8"},
        {{.type = WALSH_KV_TURBO, .key_bits = 1, .value_bits = 4, .prod_keys = true},
         64,
         "KV cache: 1 bits per element of a Prod key, expected 2 to 8"},
        {{.type = WALSH_KV_TURBO, .key_bits = 4},
         64,
         "KV cache: 0 bits per element of a value, expected 1 to 8"},
        {{.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4},
         72,
         "KV cache: heads of 72 elements cannot be packed, only multiples of 16 up to 1024"},
        {{.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4, .skip = 2},
         64,
         "KV cache: no layer of 4 is left to pack when the first and last 2 stay f16"},
        {{.type = WALSH_KV_TURBO, .key_bits = 4, .value_bits = 4, .recent = 65537},
         64,
         "KV cache: 65537 recent tokens in f16, expected 0 to 65536"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct walsh_kv_shape shape = shape_of(4, 4, 0, 0);
        struct walsh_kv_cache *kv;
        shape.policy = cases[i].policy;
        shape.head_dim = cases[i].dim;
        assert_int_equal(walsh_kv_open(&shape, &kv, &err), WALSH_E_ARGUMENT);
        assert_string_equal(err.message, cases[i].message);
        assert_null(kv);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_8_cache_bytes_drop),
        cmocka_unit_test(test_group_1_equal_bytes_however_appended),
        cmocka_unit_test(test_group_1_recent_tokens_are_in_the_ring),
        cmocka_unit_test(test_group_4_forks_copy_on_write),
        cmocka_unit_test(test_group_4_capacity_exactly_full),
        cmocka_unit_test(test_group_7_bytes_travel),
        cmocka_unit_test(wrong_policies_are_refused),
    };
    return cmocka_run_group_tests(tests, open_queue, close_queue);
}

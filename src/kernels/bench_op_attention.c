/* Benchmark rows of the op attention: one decode row of a Llama shape over caches that stream from memory, on
 * all threads of the queue. The rows of packed caches are held against the f16 cache of the same length. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/bench.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/turbo.h"
#if WALSH_X86
#include <emmintrin.h>
#endif

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, PAGE = 256, CHUNK = 512, MOST_LAYERS = 32 };

static const struct walsh_attention_shape shape = {
    .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .scale = 0.088f};

/* A step's attention: of each layer in turn. */
struct step {
    const struct walsh_queue *q;
    struct walsh_kv_view layers[MOST_LAYERS];
    uint32_t layer_count, tokens;
    const float *query;
    float *out;
    struct walsh_kv_view unpacked; /* f16: where packed layers are unpacked to before they are read */
};

static void run_step(void *argument)
{
    const struct step *t = argument;
    for (uint32_t l = 0; l < t->layer_count; l++) {
        const struct walsh_attention_row row = {&t->layers[l], t->tokens - 1};
        t->q->ops->attention(t->q, t->out, HEADS * DIM, t->query, HEADS * DIM, &row, 1, &shape, WALSH_DECODE);
    }
}

/* n f16 numbers past the caches, as nobody reads them before all are written. */
static void stream(uint16_t *to, const uint16_t *from, size_t n)
{
#if WALSH_X86
    for (size_t i = 0; i < n; i += 8)
        _mm_stream_si128((__m128i *)(void *)(to + i),
                         _mm_loadu_si128((const __m128i *)(const void *)(from + i)));
#else
    memcpy(to, from, n * sizeof *to);
#endif
}

struct unpacking {
    const struct step *step;
    uint32_t layer;
};

/* A unit is a page of one head. Keys are unpacked as if they stood as values do, which spares a
 * transposition. */
static void unpack_units(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct unpacking *u = argument;
    const struct walsh_queue *q = u->step->q;
    const struct walsh_kv_view *kv = &u->step->layers[u->layer], *to = &u->step->unpacked;
    const struct walsh_turbo_codebook *book = &kv->turbo->value->book;
    const size_t head_bytes = walsh_turbo_head_bytes(DIM, book->bits, PAGE);
    float *tile = (float *)(void *)q->scratch[worker];
    uint16_t *half = (uint16_t *)(void *)(tile + (size_t)PAGE * DIM);
    for (size_t i = begin; i < end; i++) {
        const size_t page = i / KV_HEADS, head = i % KV_HEADS;
        for (unsigned side = 0; side < 2; side++) {
            const uint8_t *codes = (const uint8_t *)kv->v_pages[page] + head * head_bytes;
            const struct walsh_turbo_decoded d = {
                .book = book,
                .side = WALSH_TURBO_VALUE,
                .codes = codes,
                .stride = walsh_turbo_value_stride(book->bits, PAGE),
                .norms =
                    (const uint16_t *)(const void *)(codes + walsh_turbo_code_bytes(DIM, book->bits, PAGE)),
                .tokens = PAGE,
                .ld = DIM,
                .out = tile,
            };
            q->kernels->turbo_decode_f32(&d);
            q->kernels->f16_from_f32(half, tile, (size_t)PAGE * DIM);
            uint16_t *page_out = side == 0 ? to->k_pages[page] : to->v_pages[page];
            stream(page_out + head * PAGE * DIM, half, (size_t)PAGE * DIM);
        }
    }
}
_Static_assert(PAGE *DIM * 6 <= WALSH_SCRATCH_BYTES, "a page of one head in f32 and in f16");

static void run_unpacking_step(void *argument)
{
    struct step *t = argument;
    for (uint32_t l = 0; l < t->layer_count; l++) {
        struct unpacking u = {t, l};
        walsh_pool_run(t->q->pool, (size_t)t->tokens / PAGE * KV_HEADS, 1, unpack_units, &u);
        const struct walsh_attention_row row = {&t->unpacked, t->tokens - 1};
        t->q->ops->attention(t->q, t->out, HEADS * DIM, t->query, HEADS * DIM, &row, 1, &shape, WALSH_DECODE);
    }
}

static bool make_layer(struct walsh_bench *b, struct walsh_turbo_codecs *codecs, uint32_t tokens,
                       struct walsh_kv_view *out)
{
    /* As in a session's cache a page's keys and values are neighbours, in memory that lies in huge pages. */
    const uint32_t count = tokens / PAGE;
    size_t key = (size_t)KV_HEADS * PAGE * DIM * 2, value = key;
    if (codecs) {
        key = KV_HEADS * walsh_turbo_page_head_bytes(codecs, WALSH_TURBO_KEY, PAGE);
        value = KV_HEADS * walsh_turbo_page_head_bytes(codecs, WALSH_TURBO_VALUE, PAGE);
    }
    void **k = walsh_bench_alloc(b, 2 * count * sizeof *k), **v = k + count;
    char *page = walsh_bench_alloc(b, count * (key + value));
    for (uint32_t p = 0; k && page && p < count; p++, page += key + value) {
        k[p] = page;
        v[p] = page + key;
    }
    *out = (struct walsh_kv_view){.type = codecs ? WALSH_KV_TURBO : WALSH_KV_F16,
                                  .page_tokens = PAGE,
                                  .k_pages = k,
                                  .v_pages = v,
                                  .turbo = codecs};
    return k && page;
}

/* The peer of the f16 rows: all keys and values of a step are read, a page of one head at a time, and nothing
 * is computed. */
static void read_pages(void *argument, size_t begin, size_t end, unsigned worker)
{
    const struct step *t = argument;
    walsh_read_floats *read = walsh_roofline_reader(t->q);
    volatile float sink;
    (void)worker;
    for (size_t i = begin; i < end; i++) {
        const struct walsh_kv_view *kv = &t->layers[i / (t->tokens / PAGE)];
        const size_t page = i % (t->tokens / PAGE),
                     n = (size_t)KV_HEADS * PAGE * DIM / 2; /* two f16 in a float */
        sink = read(kv->k_pages[page], n);
        sink = read(kv->v_pages[page], n);
    }
    (void)sink;
}

static void run_reading_step(void *argument)
{
    struct step *t = argument;
    walsh_pool_run(t->q->pool, (size_t)t->layer_count * (t->tokens / PAGE), 1, read_pages, t);
}

/* The same normal numbers in every chunk. */
static void fill_layer(const struct walsh_queue *q, const struct walsh_kv_view *kv, const float *x,
                       uint32_t tokens)
{
    struct walsh_attention_row rows[CHUNK];
    for (uint32_t first = 0; first < tokens; first += CHUNK) {
        for (uint32_t i = 0; i < CHUNK; i++) rows[i] = (struct walsh_attention_row){kv, first + i};
        q->ops->kv_append(q, rows, CHUNK, x, x + DIM, KV_HEADS * DIM, &shape);
    }
}

/* Bytes of one token, all heads of both sides. */
static double token_bytes(const struct walsh_turbo_codecs *codecs)
{
    if (!codecs) return 2.0 * KV_HEADS * DIM * 2;
    return KV_HEADS * (double)(walsh_turbo_bytes(DIM, codecs->key->book.bits) +
                               walsh_turbo_bytes(DIM, codecs->value->book.bits));
}

enum variant { ATTEND, READ, UNPACK };

static void time_step(struct walsh_bench *b, const struct walsh_queue *q, struct walsh_turbo_codecs *codecs,
                      uint32_t tokens, enum variant variant)
{
    struct step t = {.q = q, .tokens = tokens, .layer_count = 65536 / tokens};
    const float *x = walsh_bench_normal(b, (size_t)CHUNK * KV_HEADS * DIM + DIM);
    t.query = walsh_bench_normal(b, HEADS * DIM);
    t.out = walsh_bench_alloc(b, HEADS * DIM * sizeof(float));
    if (!x || !t.query || !t.out || (variant == UNPACK && !make_layer(b, NULL, tokens, &t.unpacked))) return;
    for (uint32_t l = 0; l < t.layer_count; l++) {
        if (!make_layer(b, codecs, tokens, &t.layers[l])) return;
        fill_layer(q, &t.layers[l], x, tokens);
    }
    char size[64];
    snprintf(size, sizeof size, "tokens=%u layers=%u %u thr.", tokens, t.layer_count,
             walsh_pool_threads(q->pool));
    walsh_bench_run_op(b, size, t.layer_count * tokens * token_bytes(codecs),
                       variant == UNPACK ? run_unpacking_step
                       : variant == READ ? run_reading_step
                                         : run_step,
                       &t);
}

void walsh_bench_op_attention(struct walsh_bench *b, const struct walsh_queue *q)
{
    static const struct {
        const char *name;
        unsigned key_bits, value_bits;
        enum variant variant;
    } caches[] = {{"f16", 0, 0, ATTEND},
                  {"f16 read", 0, 0, READ},
                  {"K4 V4", 4, 4, ATTEND},
                  {"K3 V4", 3, 4, ATTEND},
                  {"unpacked", 4, 4, UNPACK}};
    for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
        struct walsh_turbo_codec *key = NULL, *value = NULL;
        struct walsh_turbo_options options = {
            .dim = DIM, .bits = caches[c].key_bits, .seed = 1, .stream = "key"};
        if (options.bits != 0) {
            if (walsh_turbo_codec_open(&options, &key, NULL) != WALSH_OK) return;
            options.bits = caches[c].value_bits;
            options.stream = "value";
            if (walsh_turbo_codec_open(&options, &value, NULL) != WALSH_OK) {
                walsh_turbo_codec_close(&key);
                return;
            }
        }
        struct walsh_turbo_codecs codecs = {.key = key, .value = value};
        walsh_bench_begin_op(b, "op_attention", caches[c].name, c == 0);
        for (uint32_t tokens = 2048; tokens <= 32768; tokens *= 4)
            time_step(b, q, key ? &codecs : NULL, tokens, caches[c].variant);
        walsh_turbo_codec_close(&key);
        walsh_turbo_codec_close(&value);
    }
}

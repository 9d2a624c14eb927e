#include "api/shapes.h"

#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "checkpoint/architectures.h"

#define MAX_DIMENSION (1u << 20)
#define NAMED_POSITIONS 32768 /* of every named shape: as deep as a measurement goes */

/* The widths of published models. */
static const struct walsh_shape named[] = {
    {.name = "smollm2-135m",
     .hidden = 576,
     .intermediate = 1536,
     .layers = 30,
     .heads = 9,
     .kv_heads = 3,
     .head_dim = 64,
     .vocab = 49152,
     .tied_embeddings = true},
    {.name = "llama-1b",
     .hidden = 2048,
     .intermediate = 8192,
     .layers = 16,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 64,
     .vocab = 128256,
     .tied_embeddings = true},
    {.name = "llama-3b",
     .hidden = 3072,
     .intermediate = 8192,
     .layers = 28,
     .heads = 24,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 128256,
     .tied_embeddings = true},
    {.name = "smollm3-3b",
     .hidden = 2048,
     .intermediate = 11008,
     .layers = 36,
     .heads = 16,
     .kv_heads = 4,
     .head_dim = 128,
     .vocab = 128256,
     .tied_embeddings = true},
    {.name = "llama-2-7b",
     .hidden = 4096,
     .intermediate = 11008,
     .layers = 32,
     .heads = 32,
     .kv_heads = 32,
     .head_dim = 128,
     .vocab = 32000,
     .tied_embeddings = false},
    {.name = "llama-8b",
     .hidden = 4096,
     .intermediate = 14336,
     .layers = 32,
     .heads = 32,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 128256,
     .tied_embeddings = false},
    {.name = "llama-70b",
     .hidden = 8192,
     .intermediate = 28672,
     .layers = 80,
     .heads = 64,
     .kv_heads = 8,
     .head_dim = 128,
     .vocab = 128256,
     .tied_embeddings = false},
    {.name = "qwen3-30b-a3b",
     .hidden = 2048,
     .intermediate = 6144,
     .layers = 48,
     .heads = 32,
     .kv_heads = 4,
     .head_dim = 128,
     .vocab = 151936,
     .tied_embeddings = false,
     .experts = 128,
     .experts_per_token = 8,
     .expert_intermediate = 768},
};
#define NAMED_COUNT (sizeof named / sizeof *named)

const char *walsh_shape_name(size_t i)
{
    return i < NAMED_COUNT ? named[i].name : NULL;
}

enum walsh_status walsh_shape_named(const char *name, struct walsh_shape *out, struct walsh_error *err)
{
    char known[500] = "";
    for (size_t i = 0; i < NAMED_COUNT; i++) {
        if (strcmp(name, named[i].name) == 0) {
            *out = named[i];
            out->struct_size = sizeof *out;
            out->max_positions = NAMED_POSITIONS;
            return WALSH_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", named[i].name);
    }
    return walsh_fail(err, WALSH_E_NOT_FOUND, "no shape is named \"%.100s\"; known: %s", name, known);
}

static enum walsh_status check_range(const char *what, uint32_t value, uint32_t least, uint32_t most,
                                     struct walsh_error *err)
{
    if (value >= least && value <= most) return WALSH_OK;
    return walsh_fail(err, WALSH_E_ARGUMENT, "shape: %s is %u, expected %u to %u", what, value, least, most);
}

enum walsh_status walsh_shape_config(const struct walsh_shape *shape, struct walsh_config *out,
                                     struct walsh_error *err)
{
    struct walsh_shape s = WALSH_SHAPE;
    WALSH_TRY(walsh_options_read(&s, sizeof s, shape, "walsh_shape", err));
    bool sparse = s.experts > 0;
    const struct {
        const char *what;
        uint32_t value, least, most;
    } ranges[] = {
        {"hidden", s.hidden, 1, MAX_DIMENSION},
        {"intermediate", s.intermediate, sparse ? 0 : 1, MAX_DIMENSION},
        {"layers", s.layers, 1, 4096},
        {"heads", s.heads, 1, 65536},
        {"kv_heads", s.kv_heads, 1, 65536},
        {"head_dim", s.head_dim, 2, 1024},
        {"vocab", s.vocab, 1, 1u << 24},
        {"max_positions", s.max_positions, 1, 1u << 28},
        {"experts", s.experts, 0, 65536},
        {"experts_per_token", s.experts_per_token, sparse ? 1 : 0, s.experts},
        {"expert_intermediate", s.expert_intermediate, sparse ? 1 : 0, MAX_DIMENSION},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        WALSH_TRY(check_range(ranges[i].what, ranges[i].value, ranges[i].least, ranges[i].most, err));
    if (s.heads % s.kv_heads != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "shape: heads %u is not a multiple of kv_heads %u", s.heads,
                          s.kv_heads);
    if (s.head_dim % 2 != 0)
        return walsh_fail(err, WALSH_E_ARGUMENT, "shape: head_dim is %u, expected an even number",
                          s.head_dim);

    enum walsh_architecture architecture = sparse ? WALSH_ARCH_QWEN3_MOE : WALSH_ARCH_LLAMA;
    *out = (struct walsh_config){
        .architecture = architecture,
        .torch_dtype = "bfloat16",
        .hidden = s.hidden,
        .intermediate = s.intermediate,
        .layers = s.layers,
        .heads = s.heads,
        .kv_heads = s.kv_heads,
        .head_dim = s.head_dim,
        .vocab = s.vocab,
        .max_positions = s.max_positions,
        .rms_epsilon = 1e-5,
        .rope = {.type = WALSH_ROPE_DEFAULT, .theta = 10000, .factor = 1},
        .tied_embeddings = s.tied_embeddings && !s.head_int8,
        .qk_norm = walsh_architectures[architecture].qk_norm,
        .experts = s.experts,
        .experts_per_token = s.experts_per_token,
        .expert_intermediate = s.expert_intermediate,
        .normalize_topk = true,
        .bos = -1,
    };
    snprintf(out->architecture_name, sizeof out->architecture_name, "%s",
             walsh_architectures[architecture].name);
    return WALSH_OK;
}

uint64_t walsh_shape_bytes(const struct walsh_config *c, unsigned bits)
{
    double heads = (double)c->heads * c->head_dim, kv = (double)c->kv_heads * c->head_dim;
    double attention = 2 * (heads + kv) * c->hidden;
    double mlp = 3.0 * c->hidden *
                 (c->experts ? (double)c->experts * c->expert_intermediate : (double)c->intermediate);
    double router = 2.0 * c->experts * c->hidden;
    double tables = (c->tied_embeddings ? 2.0 : 4.0) * c->vocab * c->hidden;
    double rope = 4.0 * (double)walsh_min(c->max_positions, WALSH_MAX_POSITIONS) * c->head_dim;
    double bytes = c->layers * ((attention + mlp) * (bits ? bits : 16) / 8 + router) + tables + rope;
    return bytes < 1.8e19 ? (uint64_t)bytes : UINT64_MAX;
}

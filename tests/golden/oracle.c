/* Gradients of a whole model against double precision: the loss of a batch as a plain forward in double gives
 * it on the decoded weights (rotations multiplied out), and, of every trained matrix, the gradient along
 * random directions by central differences of that loss. Nothing of the forward or backward that is tested is
 * used.
 *
 *   oracle [--bf16] [--device] MODEL [FORMAT]
 *
 * With FORMAT (mxfp4, e8p, nvfp4, ...) random weights in it take the place of MODEL's, whose hidden sizes are
 * doubled to 64 and more. For small dense models and mixtures of experts in any format: swiglu, rotary
 * positions, optional norms of q and k. The norm of a gradient's error is estimated from DIRECTIONS
 * directions: E (d . v)^2 = |d|^2 for normal v. --device: on the first device of the CUDA module; exit 77 where there is none. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/scalar.h"
#include "formats/weights.h"
#include "kernels/kernels.h"
#include "model/sites.h"
#include "train/parameters.h"
#include "train/pass.h"
#include "device.h"

enum { TOKENS = 24, DOCUMENTS = 2, RANK = 4, DIRECTIONS = 6, MOST_DOCUMENT = 16 };
enum { LINEARS = 4096 }; /* more than any model here has */
#define STEP 1e-4

static struct walsh_error error;

static void need(enum walsh_status status)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "oracle: %s\n", error.message);
    exit(1);
}

static void *memory(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p) exit(1);
    return p;
}

/* A linear as a dense matrix [out][in] in double, its rotations multiplied out. */
struct matrix {
    double *w;
    size_t out, in;
    const float *bias;
};

struct oracle {
    const struct walsh_model_graph *graph;
    struct matrix *of_linear; /* by walsh_linear.index */
    const struct walsh_parameters *p;
    const float *gradients; /* of the parameters */
    double *values;
    const int32_t *ids, *targets;
    const uint32_t *begin;
};

static struct matrix multiply_out(const struct walsh_linear *l)
{
    const size_t rows = l->weights.rows, cols = l->weights.cols;
    struct matrix m = {memory((size_t)l->out * l->in, sizeof(double)), l->out, l->in, l->bias};
    float *w = memory(rows * cols, sizeof *w);
    double *unit = memory(l->in, sizeof *unit), *x = memory(cols, sizeof *x), *z = memory(rows, sizeof *z),
           *y = memory(rows, sizeof *y);
    walsh_weights_decode_f32(&l->weights, 0, rows, w, cols);
    for (size_t j = 0; j < l->in; j++) {
        memset(unit, 0, l->in * sizeof *unit);
        unit[j] = 1;
        memcpy(x, unit, l->in * sizeof *x);
        if (l->in_rotation.kind != WALSH_ROTATION_NONE) walsh_rotate_forward_f64(&l->in_rotation, unit, x);
        for (size_t r = 0; r < rows; r++) {
            z[r] = 0;
            for (size_t c = 0; c < cols; c++) z[r] += (double)w[r * cols + c] * x[c];
        }
        memcpy(y, z, rows * sizeof *y);
        if (l->out_rotation.kind != WALSH_ROTATION_NONE) walsh_rotate_inverse_f64(&l->out_rotation, z, y);
        for (size_t o = 0; o < l->out; o++) m.w[o * l->in + j] = y[o];
    }
    free(w), free(unit), free(x), free(z), free(y);
    return m;
}

/* y = W x + bias + s B A x of one row. */
static void apply(const struct oracle *t, const struct walsh_linear *l, const double *x, double *y)
{
    const struct matrix *m = &t->of_linear[l->index];
    const struct walsh_lora *lora = t->p->by_linear[l->index];
    double inner[256] = {0};
    for (size_t o = 0; o < m->out; o++) {
        y[o] = m->bias ? (double)m->bias[o] : 0;
        for (size_t i = 0; i < m->in; i++) y[o] += m->w[o * m->in + i] * x[i];
    }
    if (!lora) return;
    const double *a = t->values + (lora->a - t->p->values), *b = t->values + (lora->b - t->p->values);
    for (uint32_t r = 0; r < lora->rank; r++) {
        for (size_t i = 0; i < m->in; i++) inner[r] += a[r * m->in + i] * x[i];
        for (size_t o = 0; o < m->out; o++) y[o] += (double)lora->scale * inner[r] * b[r * m->out + o];
    }
}

static void norm(const struct oracle *t, double *y, const double *x, const float *weight, size_t n)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += x[i] * x[i];
    const double r = 1 / sqrt(squares / (double)n + t->graph->config.rms_epsilon);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * r * (double)weight[i];
}

static void rope(const struct walsh_rope_table *table, double *x, size_t heads, size_t dim, size_t position)
{
    const size_t half = table->dim / 2;
    for (size_t h = 0; h < heads; h++, x += dim)
        for (size_t i = 0; i < half; i++) {
            const double c = (double)table->cosine[position * half + i],
                         s = (double)table->sine[position * half + i], a = x[i], b = x[i + half];
            x[i] = a * c - b * s;
            x[i + half] = b * c + a * s;
        }
}

/* Causal attention of a document's rows; q is overwritten by its output. */
static void attend(const struct walsh_config *c, double *q, const double *k, const double *v, size_t rows)
{
    const size_t dim = c->head_dim, width = c->heads * dim, kv_width = c->kv_heads * dim;
    double score[MOST_DOCUMENT], out[256];
    for (size_t h = 0; h < c->heads; h++)
        for (size_t i = rows; i-- > 0;) {
            const size_t kv = h / (c->heads / c->kv_heads) * dim;
            double top = -INFINITY, sum = 0;
            for (size_t j = 0; j <= i; j++) {
                score[j] = 0;
                for (size_t n = 0; n < dim; n++)
                    score[j] += q[i * width + h * dim + n] * k[j * kv_width + kv + n];
                score[j] /= sqrt((double)dim);
                top = fmax(top, score[j]);
            }
            for (size_t j = 0; j <= i; j++) sum += score[j] = exp(score[j] - top);
            for (size_t n = 0; n < dim; n++) {
                out[n] = 0;
                for (size_t j = 0; j <= i; j++) out[n] += score[j] / sum * v[j * kv_width + kv + n];
            }
            memcpy(q + i * width + h * dim, out, dim * sizeof *out);
        }
}

static void gated(const struct oracle *t, const struct walsh_linear *const l[3], size_t wide, const double *x,
                  double *y)
{
    double *g = memory(wide, sizeof *g), *u = memory(wide, sizeof *u);
    apply(t, l[0], x, g);
    apply(t, l[1], x, u);
    for (size_t i = 0; i < wide; i++) g[i] = g[i] / (1 + exp(-g[i])) * u[i];
    apply(t, l[2], g, y);
    free(g), free(u);
}

static void experts(const struct oracle *t, const struct walsh_layer *layer, const double *x, double *y)
{
    const struct walsh_config *c = &t->graph->config;
    double logits[256], sum = 0, kept = 0, *part = memory(c->hidden, sizeof *part);
    uint32_t chosen[64];
    apply(t, &layer->router, x, logits);
    double top = -INFINITY;
    for (uint32_t e = 0; e < c->experts; e++) top = fmax(top, logits[e]);
    for (uint32_t e = 0; e < c->experts; e++) sum += logits[e] = exp(logits[e] - top);
    for (uint32_t k = 0; k < c->experts_per_token; k++) {
        chosen[k] = UINT32_MAX;
        for (uint32_t e = 0; e < c->experts; e++) {
            bool taken = false;
            for (uint32_t j = 0; j < k; j++) taken = taken || chosen[j] == e;
            if (!taken && (chosen[k] == UINT32_MAX || logits[e] > logits[chosen[k]])) chosen[k] = e;
        }
        kept += logits[chosen[k]];
    }
    memset(y, 0, c->hidden * sizeof *y);
    for (uint32_t k = 0; k < c->experts_per_token; k++) {
        const struct walsh_expert *expert = &layer->experts[chosen[k]];
        const struct walsh_linear *const l[3] = {&expert->gate, &expert->up, &expert->down};
        gated(t, l, c->expert_intermediate, x, part);
        for (size_t i = 0; i < c->hidden; i++)
            y[i] += logits[chosen[k]] / (c->normalize_topk ? kept : sum) * part[i];
    }
    free(part);
}

static void layer_rows(const struct oracle *t, const struct walsh_layer *layer, double *x, size_t rows)
{
    const struct walsh_config *c = &t->graph->config;
    const size_t hidden = c->hidden, width = c->heads * (size_t)c->head_dim,
                 kv = c->kv_heads * (size_t)c->head_dim;
    double *normed = memory(hidden, sizeof *normed), *q = memory(rows * width, sizeof *q),
           *k = memory(rows * kv, sizeof *k), *v = memory(rows * kv, sizeof *v),
           *d = memory(hidden, sizeof *d);
    for (size_t i = 0; i < rows; i++) {
        norm(t, normed, x + i * hidden, layer->input_norm, hidden);
        apply(t, &layer->q, normed, q + i * width);
        apply(t, &layer->k, normed, k + i * kv);
        apply(t, &layer->v, normed, v + i * kv);
        for (size_t h = 0; layer->q_norm && h < c->heads; h++)
            norm(t, q + i * width + h * c->head_dim, q + i * width + h * c->head_dim, layer->q_norm,
                 c->head_dim);
        for (size_t h = 0; layer->k_norm && h < c->kv_heads; h++)
            norm(t, k + i * kv + h * c->head_dim, k + i * kv + h * c->head_dim, layer->k_norm, c->head_dim);
        rope(layer->rope, q + i * width, c->heads, c->head_dim, i);
        rope(layer->rope, k + i * kv, c->kv_heads, c->head_dim, i);
    }
    attend(c, q, k, v, rows);
    for (size_t i = 0; i < rows; i++) {
        double *row = x + i * hidden;
        apply(t, &layer->o, q + i * width, d);
        for (size_t j = 0; j < hidden; j++) row[j] += d[j];
        norm(t, normed, row, layer->mlp_norm, hidden);
        const struct walsh_linear *const l[3] = {&layer->gate, &layer->up, &layer->down};
        if (layer->experts)
            experts(t, layer, normed, d);
        else
            gated(t, l, c->intermediate, normed, d);
        for (size_t j = 0; j < hidden; j++) row[j] += d[j];
    }
    free(normed), free(q), free(k), free(v), free(d);
}

/* The mean loss of the rows with a target. */
static double loss_of(const struct oracle *t)
{
    const struct walsh_config *c = &t->graph->config;
    double loss = 0, *x = memory(MOST_DOCUMENT * (size_t)c->hidden, sizeof *x),
           *logits = memory(c->vocab, sizeof *logits);
    size_t counted = 0;
    for (size_t d = 0; d < DOCUMENTS; d++) {
        const size_t begin = t->begin[d], rows = t->begin[d + 1] - begin;
        for (size_t i = 0; i < rows; i++) {
            float row[4096];
            walsh_weights_decode_f32(&t->graph->embedding, (size_t)t->ids[begin + i], 1, row, c->hidden);
            for (size_t j = 0; j < c->hidden; j++) x[i * c->hidden + j] = (double)row[j];
        }
        for (uint32_t l = 0; l < c->layers; l++) layer_rows(t, &t->graph->layers[l], x, rows);
        for (size_t i = 0; i < rows; i++) {
            if (t->targets[begin + i] < 0) continue;
            norm(t, x + i * c->hidden, x + i * c->hidden, t->graph->final_norm, c->hidden);
            apply(t, &t->graph->head, x + i * c->hidden, logits);
            double top = -INFINITY, sum = 0;
            for (size_t j = 0; j < c->vocab; j++) top = fmax(top, logits[j]);
            for (size_t j = 0; j < c->vocab; j++) sum += exp(logits[j] - top);
            loss += log(sum) + top - logits[t->targets[begin + i]];
            counted++;
        }
    }
    free(x), free(logits);
    return loss / (double)counted;
}

/* Of values [at, at + n): the estimated error of their gradient as a share of its norm. */
static double error_of(struct oracle *t, size_t at, size_t n, struct walsh_random *random)
{
    double squares = 0, norm = 0, *kept = memory(n, sizeof *kept), *v = memory(n, sizeof *v);
    memcpy(kept, t->values + at, n * sizeof *kept);
    for (size_t i = 0; i < n; i++) norm += pow((double)t->gradients[at + i], 2);
    for (int d = 0; d < DIRECTIONS; d++) {
        double along = 0, side[2];
        for (size_t i = 0; i < n; i++) {
            v[i] = walsh_random_normal(random);
            along += v[i] * (double)t->gradients[at + i];
        }
        for (int s = 0; s < 2; s++) {
            for (size_t i = 0; i < n; i++)
                t->values[at + i] = kept[i] + (s ? -STEP : STEP) * v[i] / sqrt((double)n);
            side[s] = loss_of(t);
        }
        squares += pow((side[0] - side[1]) / (2 * STEP) * sqrt((double)n) - along, 2);
    }
    memcpy(t->values + at, kept, n * sizeof *kept);
    free(kept), free(v);
    if (norm == 0) return squares < 1e-18 ? 0 : INFINITY; /* an expert that no row has chosen */
    return sqrt(squares / DIRECTIONS / norm);
}

/* The model, or, where there is a format, random weights in it, in the model's shape. */
static struct walsh_model_graph *open_graph(const char *model, const char *name,
                                            const struct walsh_load_options *load,
                                            const struct walsh_queue *queue)
{
    struct walsh_model_graph *graph;
    need(walsh_graph_open(model, load, queue, &graph, &error));
    if (!name) return graph;
    struct walsh_config config = graph->config;
    enum walsh_format format = WALSH_FORMAT_F32;
    while (format < WALSH_FORMAT_COUNT && strcmp(walsh_format_name(format), name) != 0) format++;
    if (format == WALSH_FORMAT_COUNT) exit(2);
    config.hidden = 64;
    config.intermediate = 96;
    config.expert_intermediate = 32;
    walsh_graph_close(&graph);
    need(walsh_graph_synthesize(&config, format, 4, false, 3, load, queue, &graph, &error));
    return graph;
}

int main(int argc, char **argv)
{
    bool bf16 = false, on_device = false;
    for (; argc > 1 && argv[1][0] == '-'; argv++, argc--) {
        bf16 = bf16 || strcmp(argv[1], "--bf16") == 0;
        on_device = on_device || strcmp(argv[1], "--device") == 0;
    }
    if (argc != 2 && argc != 3)
        return fprintf(stderr, "usage: oracle [--bf16] [--device] MODEL [FORMAT]\n"), 2;
    struct walsh_pool *pool;
    struct walsh_queue queue;
    struct walsh_model_graph *graph;
    const struct walsh_device_module *module = NULL;
    struct walsh_random random;
    need(walsh_pool_open(2, &pool, &error));
    need(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &error));
    const struct walsh_queue host = queue;
    if (on_device && !golden_device(&queue, &module)) return 77;
    const enum walsh_activation_type compute =
        bf16 && walsh_queue_has_bf16(&queue) ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32;
    const struct walsh_load_options load = {.use_mmap = true, .dense = compute};
    graph = open_graph(argv[1], argc == 3 ? argv[2] : NULL, &load, &queue);
    struct walsh_model_graph *plain =
        module ? open_graph(argv[1], argc == 3 ? argv[2] : NULL, &load, &host) : graph;
    const struct walsh_config *c = &graph->config;
    struct walsh_parameters p;
    const struct walsh_parameter_options options = {RANK, 2 * RANK, "all-linear", c->experts > 0,
                                                    compute == WALSH_ACTIVATION_BF16};
    need(walsh_parameters_open(graph, &options, &p, &error));
    const uint64_t seed = 5;
    printf("seed %llu\n", (unsigned long long)seed);
    walsh_random_seed(&random, seed);
    double *values = memory(p.count, sizeof *values);
    for (size_t i = 0; i < p.count; i++) values[i] = p.values[i] = (float)(.1 * walsh_random_normal(&random));
    need(walsh_parameters_upload(&p, &queue, &error));

    int32_t ids[TOKENS], targets[TOKENS];
    const uint32_t begin[DOCUMENTS + 1] = {0, 15, TOKENS};
    for (size_t i = 0; i < TOKENS; i++) ids[i] = (int32_t)(walsh_random_u64(&random) % c->vocab);
    for (size_t i = 0; i < TOKENS; i++) targets[i] = i == 14 || i == TOKENS - 1 || i == 4 ? -1 : ids[i + 1];
    const struct walsh_train_batch batch = {ids, targets, {.begin = begin, .count = DOCUMENTS}, TOKENS};
    const struct walsh_pass_options pass_options = {.layers = {.compute = compute,
                                                               .max_rows = TOKENS,
                                                               .max_rank = RANK,
                                                               .narrow = p.pairs != NULL,
                                                               .loras = p.by_linear}};
    struct walsh_pass pass;
    need(walsh_pass_open(graph, &queue, &pass_options, &pass, &error));
    double loss, worst = 0;
    size_t count;
    float *gradients = memory(p.count, sizeof *gradients);
    walsh_queue_zero(&queue, p.gradients, p.count * sizeof *gradients);
    walsh_parameters_refresh(&p, &queue);
    need(walsh_pass_run(&pass, &batch, 1 / (float)(TOKENS - 3), &loss, &count, &error));
    need(walsh_parameters_download(&p, p.gradients, gradients, &error));
    loss /= (double)count;

    struct oracle t = {plain, NULL, &p, gradients, values, ids, targets, begin};
    struct walsh_site_walk walk = {.graph = plain};
    struct walsh_site site;
    t.of_linear = memory(LINEARS, sizeof *t.of_linear);
    while (walsh_site_next(&walk, &site))
        for (unsigned i = 0; i < site.count; i++) {
            if (site.linears[i]->index >= LINEARS) exit(1);
            t.of_linear[site.linears[i]->index] = multiply_out(site.linears[i]);
        }
    const double want = loss_of(&t), loss_bound = bf16 ? 2e-2 : 1e-4, gradient_bound = bf16 ? .1 : 1e-3;
    unsigned failures = fabs(loss - want) > loss_bound;
    size_t reached = 0;
    for (size_t i = 0; i < p.update_count; i++) {
        const struct walsh_lora *u = &p.updates[i];
        const double of_a = error_of(&t, (size_t)(u->a - p.values), (size_t)u->rank * u->in, &random),
                     of_b = error_of(&t, (size_t)(u->b - p.values), (size_t)u->rank * u->out, &random);
        reached += of_a > 0;
        worst = fmax(worst, fmax(of_a, of_b));
        if (of_a > gradient_bound || of_b > gradient_bound) {
            failures++;
            printf("FAIL update %zu: %.3g, %.3g of the norm\n", i, of_a, of_b);
        }
    }
    failures += reached < p.update_count / 2;
    printf("%s, %s: loss %.7f against %.7f, worst gradient %.2g of its norm, %zu of %zu updates reached\n",
           walsh_format_name(c->experts ? graph->layers[0].experts[0].gate.weights.format
                                        : graph->layers[0].gate.weights.format),
           compute == WALSH_ACTIVATION_BF16 ? "bf16" : "f32", loss, want, worst, reached, p.update_count);
    for (size_t i = 0; i < LINEARS; i++) free(t.of_linear[i].w);
    free(t.of_linear);
    free(values);
    free(gradients);
    walsh_pass_close(&pass);
    walsh_parameters_close(&p);
    if (plain != graph) walsh_graph_close(&plain);
    walsh_graph_close(&graph);
    if (module) module->close(&queue);
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    return failures > 0;
}

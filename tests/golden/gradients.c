/* Reference gradients: the loss of a known batch under a known adapter, the gradient of each of its tensors,
 * and the losses of ten AdamW steps, as an independent implementation gave them.
 *
 *   gradients [--bf16] [--device] [--once] [--steps N] [--threads N] MODEL OUTPUTS
 *
 * OUTPUTS holds input_ids [rows][tokens], loss, losses [10], and init.NAME and grad.NAME for each tensor NAME
 * of the adapter. A small file (tools/lora_gradients.py --rank) has neither init, which then follows the rule of `initial`, nor
 * most of grad: sketch.NAME holds the norm of the gradient and its products with SKETCH vectors of random signs, whose
 * differences have, in the mean square, the length of the gradient's own error. (alpha = 2 rank; learning rate 1e-3, betas .9 and .999, epsilon 1e-8, no decay, no
 * clipping). f32, all layers kept; then with layers checkpointed, whose gradients must have the same bits.
 * --bf16: products in bf16, with wider bounds. --device: on the first device of the CUDA module, exit 77 where there is none. Exit 0: all
 * agree. --once: the first loss and its gradients alone, for an emulator. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/safetensors.h"
#include "kernels/kernels.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/pass.h"
#include "device.h"

static unsigned failures;
static struct walsh_error error;

static void need(enum walsh_status status)
{
    if (status == WALSH_OK) return;
    fprintf(stderr, "gradients: %s\n", error.message);
    exit(1);
}

static void expect(bool good, const char *what, double found, double bound)
{
    if (!good) printf("  FAIL %s %.3g (at most %.3g)\n", what, found, bound);
    if (!good) failures++;
}

#define SKETCH 16

/* KIND.NAME of a matrix of a module; NULL: it is not there. */
static const struct walsh_tensor *find(const struct walsh_safetensors *st, const char *kind,
                                       const char *module, char matrix)
{
    char name[400];
    snprintf(name, sizeof name, "%s.base_model.model.%s.lora_%c.weight", kind, module, matrix);
    const struct walsh_tensor *t = walsh_safetensors_find(st, name);
    if (t) ((struct walsh_tensor *)(uintptr_t)t)->used = true;
    return t;
}

/* Number i of a sequence that a word and the name of a matrix begin: the finaliser of splitmix64 (Steele et al. 2014) over a
 * counter that starts at the text's FNV-1a. */
static uint64_t drawn(const char *word, const char *module, char matrix, size_t i)
{
    char name[400];
    snprintf(name, sizeof name, "%s base_model.model.%s.lora_%c.weight", word, module, matrix);
    uint64_t z = 0xcbf29ce484222325u;
    for (const char *c = name; *c; c++) z = (z ^ (uint8_t)*c) * 0x100000001b3u;
    z += i * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A within +-1 / sqrt(in), B within +-0.05, uniform. */
static void initial(const struct walsh_module *m, char matrix, float *to, size_t n)
{
    const double bound = matrix == 'A' ? 1 / sqrt((double)m->in) : 0.05;
    for (size_t i = 0; i < n; i++)
        to[i] = (float)(bound * ((double)(drawn("init", m->name, matrix, i) >> 40) / 0x1p23 - 1));
}

/* Norm, and products with vectors of signs. */
static void sketch(const struct walsh_module *m, char matrix, const float *x, size_t n,
                   double out[1 + SKETCH])
{
    memset(out, 0, (1 + SKETCH) * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        const uint64_t signs = drawn("sign", m->name, matrix, i);
        out[0] += (double)x[i] * (double)x[i];
        for (int k = 0; k < SKETCH; k++) out[1 + k] += signs >> k & 1 ? -(double)x[i] : (double)x[i];
    }
    out[0] = sqrt(out[0]);
}

static float *copy(const struct walsh_tensor *t)
{
    float *out;
    need(walsh_alloc(walsh_tensor_elements(t), sizeof *out, t->name, &out, &error));
    memcpy(out, t->data, t->bytes);
    return out;
}

static void load(struct walsh_parameters *p, const struct walsh_safetensors *st)
{
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        const size_t size[2] = {(size_t)m->experts * m->rank * m->in, (size_t)m->out * m->rank * m->experts};
        float *matrix[2];
        for (int k = 0; k < 2; k++) {
            const struct walsh_tensor *t = find(st, "init", m->name, "AB"[k]);
            if (t) {
                matrix[k] = copy(t);
                continue;
            }
            need(walsh_alloc(size[k], sizeof(float), "a matrix", &matrix[k], &error));
            initial(m, "AB"[k], matrix[k], size[k]);
        }
        float *a = matrix[0], *b = matrix[1];
        walsh_module_import(p, m, p->values, a, b);
        walsh_free(a);
        walsh_free(b);
    }
}

/* |found - expected| / |expected|. */
static double distance(const float *found, const float *expected, size_t n)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += pow((double)found[i] - (double)expected[i], 2);
        norm += pow((double)expected[i], 2);
    }
    return sqrt(difference / norm);
}

/* The distance of a gradient from what the file has of it, relative to its norm. */
static double compare_matrix(const struct walsh_safetensors *st, const struct walsh_module *m, char matrix,
                             const float *found, size_t n)
{
    const struct walsh_tensor *t = find(st, "grad", m->name, matrix);
    if (t) {
        float *want = copy(t);
        const double d = distance(found, want, n);
        walsh_free(want);
        return d;
    }
    t = find(st, "sketch", m->name, matrix);
    if (!t) {
        fprintf(stderr, "gradients: nothing of %s.lora_%c\n", m->name, matrix);
        exit(1);
    }
    double got[1 + SKETCH], sum = 0;
    sketch(m, matrix, found, n, got);
    const double *want = t->data;
    for (int k = 0; k < SKETCH; k++) sum += pow(got[1 + k] - want[1 + k], 2);
    return fmax(sqrt(sum / SKETCH), fabs(got[0] - want[0])) / want[0];
}

static double compare(const struct walsh_parameters *p, const float *gradients,
                      const struct walsh_safetensors *st, double bound)
{
    double worst = 0;
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        float *got[2];
        const size_t size[2] = {(size_t)m->experts * m->rank * m->in, (size_t)m->out * m->rank * m->experts};
        for (int k = 0; k < 2; k++) need(walsh_alloc(size[k], sizeof(float), "a gradient", &got[k], &error));
        walsh_module_export(p, m, gradients, got[0], got[1]);
        for (int k = 0; k < 2; k++) {
            const double d = compare_matrix(st, m, "AB"[k], got[k], size[k]);
            worst = fmax(worst, d);
            expect(d <= bound, m->name, d, bound);
            walsh_free(got[k]);
        }
    }
    return worst;
}

struct subject {
    struct walsh_model_graph *graph;
    const struct walsh_queue *queue;
    struct walsh_parameters p;
    struct walsh_train_batch batch;
    bool bf16, once;
    int steps;
};

/* The loss of the batch; its gradients, in `gradients` too, of the host. */
static double step(struct subject *s, struct walsh_pass *pass, float *gradients)
{
    double loss;
    size_t count = s->batch.rows - s->batch.documents.count;
    walsh_parameters_refresh(&s->p, s->queue);
    walsh_queue_zero(s->queue, s->p.gradients, s->p.count * sizeof(float));
    need(walsh_pass_run(pass, &s->batch, 1 / (float)count, &loss, &count, &error));
    need(walsh_parameters_download(&s->p, s->p.gradients, gradients, &error));
    return loss / (double)count;
}

static struct walsh_pass open_pass(const struct subject *s, bool checkpoint)
{
    struct walsh_pass pass;
    const struct walsh_pass_options options = {
        .layers = {.compute = s->bf16 ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32,
                   .max_rows = s->batch.rows,
                   .max_rank = s->p.modules[0].rank,
                   .narrow = s->p.pairs != NULL,
                   .loras = s->p.by_linear},
        .checkpoint = checkpoint};
    need(walsh_pass_open(s->graph, s->queue, &options, &pass, &error));
    return pass;
}

/* Checkpointed gradients have the bits of `before`; then the losses of s->steps steps of AdamW. */
static void check_steps(struct subject *s, struct walsh_pass *pass, const float *losses, double bound,
                        const float *before, float *after)
{
    struct walsh_adamw adamw = {.beta1 = .9, .beta2 = .999, .epsilon = 1e-8, .count = s->p.count};
    const size_t bytes = s->p.count * sizeof(float);
    need(walsh_queue_alloc(s->queue, sizeof(double), "a norm", &adamw.length, &error));
    need(walsh_queue_alloc(s->queue, bytes, "moments", &adamw.m, &error));
    need(walsh_queue_alloc(s->queue, bytes, "moments", &adamw.v, &error));
    walsh_queue_zero(s->queue, adamw.m, bytes);
    walsh_queue_zero(s->queue, adamw.v, bytes);
    struct walsh_pass again = open_pass(s, true);
    step(s, &again, after);
    expect(memcmp(before, after, bytes) == 0, "bits of checkpointed gradients differ", 1, 0);
    walsh_pass_close(&again);

    double loss = 0, worst = 0, length;
    for (int i = 0; i < s->steps; i++) {
        loss = step(s, pass, after);
        worst = fmax(worst, fabs(loss - (double)losses[i]));
        need(walsh_adamw_step(&adamw, s->queue, s->p.values, s->p.gradients, 1e-3, &length, &error));
    }
    expect(worst <= bound, "losses of ten steps", worst, bound);
    printf("  step %d: %.6f, worst difference %.2g\n", s->steps, loss, worst);
    walsh_queue_free(s->queue, adamw.length);
    walsh_queue_free(s->queue, adamw.m);
    walsh_queue_free(s->queue, adamw.v);
}

static void check(struct subject *s, const struct walsh_safetensors *st)
{
    const float *losses = walsh_safetensors_find(st, "losses")->data;
    const double loss_bound = s->bf16 ? 5e-3 : 1e-4, gradient_bound = s->bf16 ? 5e-2 : 1e-3;
    struct walsh_pass pass = open_pass(s, false);
    float *before, *after;
    need(walsh_alloc(s->p.count, sizeof *before, "gradients", &before, &error));
    need(walsh_alloc(s->p.count, sizeof *after, "gradients", &after, &error));
    const double loss = step(s, &pass, before);
    expect(fabs(loss - (double)losses[0]) <= loss_bound, "loss", fabs(loss - (double)losses[0]), loss_bound);
    const double worst = compare(&s->p, before, st, gradient_bound);
    printf("  loss %.6f, worst gradient %.2g of its norm\n", loss, worst);
    if (!s->once) check_steps(s, &pass, losses, 10 * loss_bound, before, after);
    walsh_pass_close(&pass);
    walsh_free(before);
    walsh_free(after);
}

static void run(struct subject *s, const char *model, const char *outputs)
{
    struct walsh_safetensors st;
    need(walsh_safetensors_open(outputs, true, &st, &error));
    const struct walsh_tensor *ids = walsh_safetensors_find(&st, "input_ids");
    const struct walsh_load_options load_options = {
        .use_mmap = true, .dense = s->bf16 ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32};
    need(walsh_graph_open(model, &load_options, s->queue, &s->graph, &error));
    const size_t sequences = ids->shape[0], tokens = ids->shape[1];
    int32_t *input, *targets;
    uint32_t begin[17];
    need(walsh_alloc(sequences * tokens, sizeof *input, "ids", &input, &error));
    need(walsh_alloc(sequences * tokens, sizeof *targets, "ids", &targets, &error));
    memcpy(input, ids->data, ids->bytes);
    for (size_t i = 0; i <= sequences; i++) begin[i] = (uint32_t)(i * tokens);
    for (size_t i = 0; i < sequences * tokens; i++) targets[i] = i % tokens == tokens - 1 ? -1 : input[i + 1];
    s->batch =
        (struct walsh_train_batch){input, targets, {.begin = begin, .count = sequences}, sequences * tokens};

    char name[400];
    snprintf(name, sizeof name, "init.base_model.model.%s.lora_A.weight", s->graph->layers[0].q.name);
    const struct walsh_tensor *a = walsh_safetensors_find(&st, name),
                              *stored = walsh_safetensors_find(&st, "rank");
    if (!a && !stored) {
        fprintf(stderr, "gradients: neither %s nor a rank\n", name);
        exit(1);
    }
    const uint32_t rank = a ? (uint32_t)a->shape[0] : (uint32_t) * (const int32_t *)stored->data;
    const struct walsh_parameter_options options = {rank, 2.0 * rank, "all-linear",
                                                    s->graph->config.experts > 0, s->bf16};
    need(walsh_parameters_open(s->graph, &options, &s->p, &error));
    load(&s->p, &st);
    need(walsh_parameters_upload(&s->p, s->queue, &error));
    check(s, &st);
    for (size_t i = 0; i < st.count; i++)
        if ((strncmp(st.tensors[i].name, "grad.", 5) == 0 ||
             strncmp(st.tensors[i].name, "sketch.", 7) == 0) &&
            !st.tensors[i].used)
            expect(false, st.tensors[i].name, 1, 0);
    walsh_parameters_close(&s->p);
    walsh_graph_close(&s->graph);
    walsh_free(input);
    walsh_free(targets);
    walsh_safetensors_close(&st);
}

int main(int argc, char **argv)
{
    struct subject s = {.steps = 10};
    unsigned threads = 2;
    bool on_device = false;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--bf16") == 0)
            s.bf16 = true;
        else if (strcmp(argv[i], "--device") == 0)
            on_device = true;
        else if (strcmp(argv[i], "--once") == 0)
            s.once = true;
        else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            s.steps = atoi(argv[++i]);
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            threads = (unsigned)atoi(argv[++i]);
        else
            break;
    }
    if (argc - i != 2) {
        fprintf(stderr,
                "usage: gradients [--bf16] [--device] [--once] [--steps N] [--threads N] MODEL OUTPUTS\n");
        return 2;
    }
    struct walsh_pool *pool;
    struct walsh_queue queue;
    need(walsh_pool_open(threads, &pool, &error));
    need(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &error));
    s.queue = &queue;
    const struct walsh_device_module *module = NULL;
    if (on_device && !golden_device(&queue, &module)) return 77;
    s.bf16 = s.bf16 && walsh_queue_has_bf16(&queue);
    run(&s, argv[i], argv[i + 1]);
    if (module) module->close(&queue);
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    printf("%s\n", failures ? "gradients differ" : "gradients agree");
    return failures > 0;
}

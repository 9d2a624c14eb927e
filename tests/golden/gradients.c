/* Reference gradients: the loss of a known batch under a known adapter, the gradient of each of its tensors,
 * and the losses of ten AdamW steps, as an independent implementation gave them.
 *
 *   gradients [--bf16] [--threads N] MODEL OUTPUTS
 *
 * OUTPUTS holds input_ids [rows][tokens], loss, losses [10], and init.NAME and grad.NAME for each tensor NAME
 * of the adapter (alpha = 2 rank; learning rate 1e-3, betas .9 and .999, epsilon 1e-8, no decay, no
 * clipping). f32, all layers kept; then with layers checkpointed, whose gradients must have the same bits.
 * --bf16: products in bf16, with wider bounds. Exit 0: all agree. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/safetensors.h"
#include "kernels/kernels.h"
#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/pass.h"

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

static const struct walsh_tensor *find(const struct walsh_safetensors *st, const char *kind,
                                       const char *module, char matrix)
{
    char name[400];
    snprintf(name, sizeof name, "%s.base_model.model.%s.lora_%c.weight", kind, module, matrix);
    const struct walsh_tensor *t = walsh_safetensors_find(st, name);
    if (!t) {
        fprintf(stderr, "gradients: no tensor %s\n", name);
        exit(1);
    }
    ((struct walsh_tensor *)(uintptr_t)t)->used = true;
    return t;
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
        float *a = copy(find(st, "init", m->name, 'A')), *b = copy(find(st, "init", m->name, 'B'));
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

static double compare(const struct walsh_parameters *p, const struct walsh_safetensors *st, double bound)
{
    double worst = 0;
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        float *want[2] = {copy(find(st, "grad", m->name, 'A')), copy(find(st, "grad", m->name, 'B'))},
              *got[2];
        const size_t size[2] = {(size_t)m->experts * m->rank * m->in, (size_t)m->out * m->rank * m->experts};
        for (int k = 0; k < 2; k++) need(walsh_alloc(size[k], sizeof(float), "a gradient", &got[k], &error));
        walsh_module_export(p, m, p->gradients, got[0], got[1]);
        for (int k = 0; k < 2; k++) {
            const double d = distance(got[k], want[k], size[k]);
            worst = fmax(worst, d);
            expect(d <= bound, m->name, d, bound);
            walsh_free(want[k]);
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
    bool bf16;
};

static double step(struct subject *s, struct walsh_pass *pass)
{
    double loss;
    size_t count = s->batch.rows - s->batch.documents.count;
    walsh_parameters_refresh(&s->p, s->queue);
    memset(s->p.gradients, 0, s->p.count * sizeof(float));
    walsh_pass_run(pass, &s->batch, 1 / (float)count, &loss, &count);
    return loss / (double)count;
}

static struct walsh_pass open_pass(const struct subject *s, bool checkpoint)
{
    struct walsh_pass pass;
    const struct walsh_pass_options options = {
        .layers = {.compute = s->bf16 ? WALSH_ACTIVATION_BF16 : WALSH_ACTIVATION_F32,
                   .max_rows = s->batch.rows,
                   .max_rank = s->p.modules[0].rank,
                   .loras = s->p.by_linear},
        .checkpoint = checkpoint};
    need(walsh_pass_open(s->graph, s->queue, &options, &pass, &error));
    return pass;
}

static void check(struct subject *s, const struct walsh_safetensors *st)
{
    const float *losses = walsh_safetensors_find(st, "losses")->data;
    const double loss_bound = s->bf16 ? 5e-3 : 1e-4, gradient_bound = s->bf16 ? 5e-2 : 1e-3;
    struct walsh_pass pass = open_pass(s, false);
    struct walsh_adamw adamw = {.beta1 = .9, .beta2 = .999, .epsilon = 1e-8, .count = s->p.count};
    float *before;
    need(walsh_alloc(s->p.count, sizeof *before, "gradients", &before, &error));
    need(walsh_alloc_zero(s->p.count, sizeof(float), "moments", &adamw.m, &error));
    need(walsh_alloc_zero(s->p.count, sizeof(float), "moments", &adamw.v, &error));
    double loss = step(s, &pass), worst;
    expect(fabs(loss - (double)losses[0]) <= loss_bound, "loss", fabs(loss - (double)losses[0]), loss_bound);
    worst = compare(&s->p, st, gradient_bound);
    printf("  loss %.6f, worst gradient %.2g of its norm\n", loss, worst);

    memcpy(before, s->p.gradients, s->p.count * sizeof *before);
    struct walsh_pass again = open_pass(s, true);
    step(s, &again);
    expect(memcmp(before, s->p.gradients, s->p.count * sizeof *before) == 0,
           "bits of checkpointed gradients differ", 1, 0);
    walsh_pass_close(&again);

    worst = 0;
    for (int i = 0; i < 10; i++) {
        loss = step(s, &pass);
        worst = fmax(worst, fabs(loss - (double)losses[i]));
        walsh_adamw_step(&adamw, s->queue, s->p.values, s->p.gradients, 1e-3);
    }
    expect(worst <= 10 * loss_bound, "losses of ten steps", worst, 10 * loss_bound);
    printf("  ten steps: %.6f, worst difference %.2g\n", loss, worst);
    walsh_pass_close(&pass);
    walsh_free(before);
    walsh_free(adamw.m);
    walsh_free(adamw.v);
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
    s->batch = (struct walsh_train_batch){input, targets, {begin, sequences}, sequences * tokens};

    char name[400];
    snprintf(name, sizeof name, "init.base_model.model.%s.lora_A.weight", s->graph->layers[0].q.name);
    const struct walsh_tensor *a = walsh_safetensors_find(&st, name);
    const uint32_t rank = (uint32_t)a->shape[0];
    const struct walsh_parameter_options options = {rank, 2.0 * rank, "all-linear",
                                                    s->graph->config.experts > 0, s->bf16};
    need(walsh_parameters_open(s->graph, &options, &s->p, &error));
    load(&s->p, &st);
    check(s, &st);
    for (size_t i = 0; i < st.count; i++)
        if (strncmp(st.tensors[i].name, "grad.", 5) == 0 && !st.tensors[i].used)
            expect(false, st.tensors[i].name, 1, 0);
    walsh_parameters_close(&s->p);
    walsh_graph_close(&s->graph);
    walsh_free(input);
    walsh_free(targets);
    walsh_safetensors_close(&st);
}

int main(int argc, char **argv)
{
    struct subject s = {0};
    unsigned threads = 2;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--bf16") == 0)
            s.bf16 = true;
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            threads = (unsigned)atoi(argv[++i]);
        else
            break;
    }
    if (argc - i != 2) {
        fprintf(stderr, "usage: gradients [--bf16] [--threads N] MODEL OUTPUTS\n");
        return 2;
    }
    struct walsh_pool *pool;
    struct walsh_queue queue;
    need(walsh_pool_open(threads, &pool, &error));
    need(walsh_queue_open(WALSH_CPU_BEST, pool, &queue, &error));
    s.queue = &queue;
    s.bf16 = s.bf16 && walsh_queue_has_bf16(&queue);
    run(&s, argv[i], argv[i + 1]);
    walsh_queue_close(&queue);
    walsh_pool_close(&pool);
    printf("%s\n", failures ? "gradients differ" : "gradients agree");
    return failures > 0;
}

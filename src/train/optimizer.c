#include "train/optimizer.h"

#include <math.h>

#include "base/memory.h"
#include "train/device.h"

#define PI 3.14159265358979323846
#define BLOCK 16384 /* elements whose squares are summed at once */

struct adamw {
    struct walsh_adamw *o;
    float *values;
    const float *gradients;
    double rate, factor, correction1, correction2;
};

static void update(void *argument, size_t begin, size_t end, unsigned worker)
{
    (void)worker;
    const struct adamw *t = argument;
    const struct walsh_adamw *o = t->o;
    for (size_t i = begin; i < end; i++) {
        const double g = t->factor * (double)t->gradients[i];
        const double m = o->beta1 * (double)o->m[i] + (1 - o->beta1) * g;
        const double v = o->beta2 * (double)o->v[i] + (1 - o->beta2) * g * g;
        const double value = (double)t->values[i] * (1 - t->rate * o->weight_decay);
        o->m[i] = (float)m;
        o->v[i] = (float)v;
        t->values[i] =
            (float)(value - t->rate * (m * t->correction1) / (sqrt(v * t->correction2) + o->epsilon));
    }
}

static double norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        double block = 0;
        for (size_t j = i; j < walsh_min(i + BLOCK, n); j++) block += (double)x[j] * (double)x[j];
        sum += block;
    }
    return sqrt(sum);
}

enum walsh_status walsh_adamw_step(struct walsh_adamw *o, const struct walsh_queue *q, float *values,
                                   const float *gradients, double rate, double *length,
                                   struct walsh_error *err)
{
    const double correction1 = 1 / (1 - pow(o->beta1, (double)(o->steps + 1))),
                 correction2 = 1 / (1 - pow(o->beta2, (double)(o->steps + 1)));
    if (walsh_train_device(q)) {
        const struct walsh_adamw_update u = {values,  o->m,        o->v,        gradients,  o->count,
                                             rate,    o->beta1,    o->beta2,    o->epsilon, o->weight_decay,
                                             o->clip, correction1, correction2, o->length};
        q->ops->train->adamw(q, &u);
        WALSH_TRY(walsh_queue_download(q, length, o->length, sizeof *length, err));
        o->steps += isfinite(*length) != 0;
        return WALSH_OK;
    }
    *length = norm(gradients, o->count);
    if (!isfinite(*length)) return WALSH_OK;
    o->steps++;
    struct adamw t = {
        o,           values,     gradients, rate, o->clip > 0 && *length > o->clip ? o->clip / *length : 1,
        correction1, correction2};
    walsh_pool_run(q->pool, o->count, BLOCK, update, &t);
    return WALSH_OK;
}

double walsh_schedule_factor(enum walsh_schedule schedule, uint64_t step, uint64_t steps, uint64_t warmup,
                             double last)
{
    if (step < warmup) return (double)(step + 1) / (double)warmup;
    if (schedule == WALSH_SCHEDULE_CONSTANT || steps <= warmup) return 1;
    const double done = fmin((double)(step - warmup) / (double)(steps - warmup), 1);
    if (schedule == WALSH_SCHEDULE_LINEAR) return 1 - (1 - last) * done;
    return last + (1 - last) * (1 + cos(PI * done)) / 2;
}

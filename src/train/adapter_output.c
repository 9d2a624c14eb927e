/* The adapter as the PEFT library writes it. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "train/output.h"

#define NAME_SIZE 400
#define PEFT_VERSION "0.21.0" /* whose layout this is; of stacked experts it is the version that says so */

static const char *last_component(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot ? dot + 1 : name;
}

/* false: out of memory. */
static bool add_once(json_t *list, const char *text)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (strcmp(json_string_value(json_array_get(list, i)), text) == 0) return true;
    return json_array_append_new(list, json_string(text)) == 0;
}

/* The names that PEFT finds the modules by: of linears their last component, of stacked parameters the last
 * components of the module ("mlp.experts") and the parameter. false: out of memory. */
static bool list_targets(const struct walsh_parameters *p, json_t *modules, json_t *parameters)
{
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        if (!m->parameter) {
            if (!add_once(modules, last_component(m->name))) return false;
            continue;
        }
        char name[NAME_SIZE];
        const char *experts = strstr(m->name, ".experts"), *begin = experts ? experts : m->name;
        while (begin > m->name && begin[-1] != '.') begin--;
        const size_t length = experts ? (size_t)(experts - begin) + strlen(".experts") : strlen(begin);
        snprintf(name, sizeof name, "%.*s.%s", (int)length, begin, m->parameter);
        if (!add_once(parameters, name)) return false;
    }
    return true;
}

static enum walsh_status write_config(const char *directory, const struct walsh_parameters *p,
                                      const struct walsh_train_job *job, struct walsh_error *err)
{
    json_t *modules = json_array(), *parameters = json_array();
    const bool listed = list_targets(p, modules, parameters);
    const char *base = job->base_name ? job->base_name : p->graph->checkpoint.directory;
    if (!listed || json_array_size(parameters) == 0) {
        json_decref(parameters);
        parameters = NULL;
    }
    json_t *base_name = json_string(base ? base : "");
    if (!base_name) base_name = json_string(""); /* a path that is not UTF-8 */
    json_t *config = json_pack(
        "{s:s, s:s, s:o, s:s, s:I, s:f, s:f, s:s, s:b, s:b, s:b, s:b, s:b, s:n, s:o, s:o?}", "peft_type",
        "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", base_name, "peft_version", PEFT_VERSION,
        "r", (json_int_t)p->modules[0].rank, "lora_alpha", job->parameters.alpha, "lora_dropout", 0.0, "bias",
        "none", "use_rslora", 0, "use_dora", 0, "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights",
        1, "modules_to_save", "target_modules", modules, "target_parameters", parameters);
    if (!listed || !config) {
        json_decref(config);
        return walsh_fail(err, WALSH_E_MEMORY, "no memory for adapter_config.json");
    }
    char *text = json_dumps(config, JSON_INDENT(2)), *path = NULL;
    json_decref(config);
    if (!text) return walsh_fail(err, WALSH_E_MEMORY, "no memory for adapter_config.json");
    enum walsh_status status = walsh_path_join(directory, "adapter_config.json", &path, err);
    if (status == WALSH_OK) status = walsh_file_write(path, text, strlen(text), err);
    free(text);
    walsh_free(path);
    return status;
}

static void tensor_name(const struct walsh_module *m, char matrix, char *name)
{
    snprintf(name, NAME_SIZE, "base_model.model.%s.lora_%c.weight", m->name, matrix);
}

/* One tensor at its place in the image of the file. */
static float *place(const struct walsh_safetensors_plan *plan, uint8_t *image, const char *name)
{
    return (float *)(void *)(image + plan->offsets[walsh_plan_find(plan, name)]);
}

static enum walsh_status plan_adapter(const struct walsh_parameters *p, struct walsh_safetensors_plan *plan,
                                      struct walsh_error *err)
{
    char name[NAME_SIZE];
    for (size_t i = 0; i < p->module_count; i++) {
        const struct walsh_module *m = &p->modules[i];
        const uint64_t a[] = {(uint64_t)m->experts * m->rank, m->in},
                       b[] = {m->out, (uint64_t)m->rank * m->experts};
        tensor_name(m, 'A', name);
        WALSH_TRY(walsh_plan_add(plan, name, WALSH_F32, 2, a, err));
        tensor_name(m, 'B', name);
        WALSH_TRY(walsh_plan_add(plan, name, WALSH_F32, 2, b, err));
    }
    return walsh_plan_finish(plan, err);
}

static enum walsh_status write_tensors(const char *directory, const struct walsh_parameters *p,
                                       const float *flat, struct walsh_error *err)
{
    struct walsh_safetensors_plan plan = {0};
    uint8_t *image = NULL;
    char *path = NULL;
    enum walsh_status status = plan_adapter(p, &plan, err);
    if (status == WALSH_OK) status = walsh_alloc_zero(plan.file_bytes, 1, "the adapter's file", &image, err);
    if (status == WALSH_OK) {
        memcpy(image, plan.header, plan.header_bytes);
        for (size_t i = 0; i < p->module_count; i++) {
            char a[NAME_SIZE], b[NAME_SIZE];
            tensor_name(&p->modules[i], 'A', a);
            tensor_name(&p->modules[i], 'B', b);
            walsh_module_export(p, &p->modules[i], flat, place(&plan, image, a), place(&plan, image, b));
        }
        status = walsh_path_join(directory, "adapter_model.safetensors", &path, err);
    }
    if (status == WALSH_OK) status = walsh_file_write(path, image, plan.file_bytes, err);
    walsh_free(path);
    walsh_free(image);
    walsh_plan_close(&plan);
    return status;
}

enum walsh_status walsh_adapter_save(const char *directory, const struct walsh_parameters *p,
                                     const float *flat, const struct walsh_train_job *job,
                                     struct walsh_error *err)
{
    WALSH_TRY(write_tensors(directory, p, flat, err));
    return write_config(directory, p, job, err);
}

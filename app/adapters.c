#include "adapters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"

/* "[NAME=]DIR[:SCALE]" taken apart. */
struct adapter_option {
    char name[128], path[4096];
    float scale;
};

/* A number that fills the text, into *out. */
static bool whole_number(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0;
}

/* An existing path is taken as it is; else what stands behind the last colon is the scale where it is a
 * number, and what stands before the first = is the name where it holds no slash. */
static enum walsh_status parse_option(const char *option, struct adapter_option *out, struct walsh_error *err)
{
    *out = (struct adapter_option){.scale = 1};
    const char *path = option;
    size_t length = strlen(path);
    if (access(option, F_OK) != 0) {
        const char *equals = strchr(option, '=');
        if (equals && !memchr(option, '/', (size_t)(equals - option))) {
            const size_t size = (size_t)(equals - option);
            if (size == 0 || size >= sizeof out->name)
                return fail(err, WALSH_E_ARGUMENT,
                            "--adapter '%s': a name of 1 to %zu characters stands before =", option,
                            sizeof out->name - 1);
            memcpy(out->name, option, size);
            path = equals + 1;
            length = strlen(path);
        }
        const char *colon = strrchr(path, ':');
        double scale;
        if (colon && access(path, F_OK) != 0 && whole_number(colon + 1, &scale)) {
            if (!isfinite((float)scale))
                return fail(err, WALSH_E_ARGUMENT, "--adapter '%s': the scale is not a finite number",
                            option);
            out->scale = (float)scale;
            length = (size_t)(colon - path);
        }
    }
    if (length == 0)
        return fail(err, WALSH_E_ARGUMENT, "--adapter '%s': no directory; expected " ADAPTER_ARGUMENT,
                    option);
    if (length >= sizeof out->path)
        return fail(err, WALSH_E_ARGUMENT, "--adapter: a path of %zu characters", length);
    memcpy(out->path, path, length);
    return WALSH_OK;
}

/* Does the option ask for a synthetic adapter? A directory of that name is a directory, and one that is
 * called "random" can have a scale. */
static bool is_random(const char *option)
{
    return strncmp(option, "random:", 7) == 0 && access(option, F_OK) != 0 &&
           (strncmp(option, "random:r=", 9) == 0 || access("random", F_OK) != 0);
}

enum walsh_status adapter_random(const struct walsh_model *model, const char *option, uint64_t seed,
                                 struct walsh_adapter **out, struct walsh_error *err)
{
    *out = NULL;
    if (!is_random(option)) return WALSH_OK;
    unsigned rank = 0;
    int length = 0;
    if (sscanf(option, "random:r=%3u%n", &rank, &length) != 1 || option[length] || rank < 1 || rank > 256 ||
        strspn(option + 9, "0123456789") != strlen(option + 9))
        return fail(err, WALSH_E_ARGUMENT, "--adapter '%s': expected random:r=N with N from 1 to 256",
                    option);
    char name[32];
    snprintf(name, sizeof name, "random-%llu", (unsigned long long)seed);
    struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
    options.name = name;
    return walsh_adapter_random(model, rank, seed, &options, out, err);
}

static enum walsh_status open_one(const struct command *command, const struct walsh_model *model,
                                  const char *option, unsigned flags, struct adapter_list *list,
                                  struct walsh_error *err)
{
    struct walsh_adapter *adapter = NULL;
    struct adapter_option parsed = {.scale = 1};
    if (flags & ADAPTERS_SYNTHETIC)
        TRY(adapter_random(model, option, list->count + 1, &adapter, err));
    else if (is_random(option))
        return fail(err, WALSH_E_ARGUMENT,
                    "--adapter '%s': a synthetic adapter is for walsh bench; expected " ADAPTER_ARGUMENT,
                    option);
    if (!adapter) {
        TRY(parse_option(option, &parsed, err));
        struct walsh_adapter_options options = WALSH_ADAPTER_OPTIONS;
        options.name = parsed.name[0] ? parsed.name : NULL;
        options.no_mmap = command->no_mmap;
        if (flags & ADAPTERS_EXACT) options.storage = WALSH_ADAPTER_F32;
        TRY(walsh_adapter_open(model, parsed.path, &options, &adapter, err));
    }
    list->adapters[list->count] = adapter;
    list->uses[list->count++] = (struct walsh_adapter_use){adapter, parsed.scale};
    return WALSH_OK;
}

static enum walsh_status check_names(const struct adapter_list *list, struct walsh_error *err)
{
    struct walsh_adapter_info last = {.struct_size = sizeof last}, other = last;
    walsh_adapter_get_info(list->adapters[list->count - 1], &last);
    for (size_t i = 0; i + 1 < list->count; i++) {
        walsh_adapter_get_info(list->adapters[i], &other);
        if (strcmp(last.name, other.name) == 0)
            return fail(err, WALSH_E_ARGUMENT,
                        "--adapter: two adapters are named '%s'; give one another with NAME=", last.name);
    }
    return WALSH_OK;
}

enum walsh_status adapters_open(const struct command *command, const struct walsh_model *model,
                                const struct option_texts *options, unsigned flags, struct adapter_list *out,
                                struct walsh_error *err)
{
    *out = (struct adapter_list){0};
    enum walsh_status status = WALSH_OK;
    for (size_t i = 0; i < options->count && status == WALSH_OK; i++) {
        status = open_one(command, model, options->values[i], flags, out, err);
        if (status == WALSH_OK) status = check_names(out, err);
    }
    if (status != WALSH_OK) adapters_close(out);
    return status;
}

void adapters_close(struct adapter_list *list)
{
    for (size_t i = 0; i < list->count; i++) walsh_adapter_close(&list->adapters[i]);
    list->count = 0;
}

json_t *adapters_json(const struct adapter_list *list)
{
    json_t *adapters = json_array();
    struct walsh_adapter_info info = {.struct_size = sizeof info};
    for (size_t i = 0; i < list->count; i++) {
        walsh_adapter_get_info(list->adapters[i], &info);
        json_t *item = json_object();
        json_put_text(item, "name", info.name);
        json_put_real(item, "scale", (double)list->uses[i].scale);
        json_put_text(item, "base_model", info.base_model);
        json_put_text(item, "format", info.format);
        json_put_integer(item, "linears", info.linears);
        json_put_integer(item, "least_rank", info.least_rank);
        json_put_integer(item, "most_rank", info.most_rank);
        json_put_integer(item, "parameters", info.parameters);
        json_put_integer(item, "memory_bytes", info.memory_bytes);
        json_array_append_new(adapters, item);
    }
    return adapters;
}

/* walsh inspect: architecture, formats, rotation blocks and bytes of a model. */
#include <stdio.h>
#include <string.h>

#include "adapters.h"
#include "output.h"

struct inspect_settings {
    struct command command;
    bool tensors;
    struct option_texts adapters;
};

#define AT(member) offsetof(struct inspect_settings, member)

static const struct option inspect_options[] = {
    {.name = "tensors", .kind = OPTION_FLAG, .offset = AT(tensors), .help = "list every tensor"},
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help = "show the LoRA adapter in DIR too; may be repeated"},
    {0},
};

/* Tensors of one part of the model: same part, format and rotation. */
struct part {
    const char *name;
    char format[16], rotation[160];
    uint64_t tensors, weights, bytes;
};
enum { MAX_PARTS = 64 };

/* Add the tensor to its part; a model with more kinds than fit lumps the rest into the last. */
static void count_tensor(struct part *parts, size_t *count, const struct walsh_tensor_info *tensor)
{
    size_t i = 0;
    while (i < *count &&
           (strcmp(parts[i].name, tensor->part) != 0 || strcmp(parts[i].format, tensor->format) != 0 ||
            strcmp(parts[i].rotation, tensor->rotation) != 0))
        i++;
    if (i == MAX_PARTS) i--;
    if (i == *count) {
        parts[i] = (struct part){.name = tensor->part};
        snprintf(parts[i].format, sizeof parts[i].format, "%s", tensor->format);
        snprintf(parts[i].rotation, sizeof parts[i].rotation, "%s", tensor->rotation);
        ++*count;
    }
    parts[i].tensors++;
    parts[i].weights += tensor->rows * tensor->cols;
    parts[i].bytes += tensor->bytes;
}

static size_t count_parts(const struct walsh_model *model, struct part *parts)
{
    size_t count = 0;
    struct walsh_tensor_info tensor = {.struct_size = sizeof tensor};
    for (size_t i = 0; walsh_model_tensor(model, i, &tensor); i++) count_tensor(parts, &count, &tensor);
    return count;
}

static json_t *info_json(const struct walsh_model_info *info)
{
    json_t *object = json_object();
    json_put_text(object, "architecture", info->architecture);
    json_put_text(object, "format", info->format);
    json_put_real(object, "bits_per_weight", info->bits_per_weight);
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {
        {"hidden", info->hidden},
        {"intermediate", info->intermediate},
        {"layers", info->layers},
        {"heads", info->heads},
        {"kv_heads", info->kv_heads},
        {"head_dim", info->head_dim},
        {"vocab", info->vocab},
        {"max_positions", info->max_positions},
        {"experts", info->experts},
        {"experts_per_token", info->experts_per_token},
        {"parameters", info->parameters},
        {"linear_parameters", info->linear_parameters},
        {"checkpoint_bytes", info->checkpoint_bytes},
        {"memory_bytes", info->memory_bytes},
        {"decode_bytes", info->decode_bytes},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        json_put_integer(object, numbers[i].key, numbers[i].value);
    json_put_text(object, "activations", activations_name(info->activations));
    json_put_real(object, "load_seconds", info->load_seconds);
    json_object_set_new(object, "tokenizer", json_boolean(info->has_tokenizer));
    return object;
}

static json_t *tensors_json(const struct walsh_model *model)
{
    json_t *tensors = json_array();
    struct walsh_tensor_info tensor = {.struct_size = sizeof tensor};
    for (size_t i = 0; walsh_model_tensor(model, i, &tensor); i++) {
        json_t *item = json_object();
        json_put_text(item, "name", tensor.name);
        json_put_text(item, "part", tensor.part);
        json_put_text(item, "format", tensor.format);
        json_put_text(item, "rotation", tensor.rotation);
        json_put_integer(item, "rows", tensor.rows);
        json_put_integer(item, "cols", tensor.cols);
        json_put_integer(item, "bytes", tensor.bytes);
        json_put_real(item, "bits_per_weight", tensor.bits_per_weight);
        json_array_append_new(tensors, item);
    }
    return tensors;
}

static enum walsh_status print_json(const struct walsh_model *model, const struct walsh_model_info *info,
                                    const struct inspect_settings *settings,
                                    const struct adapter_list *adapters, struct walsh_error *err)
{
    json_t *object = info_json(info), *list = json_array();
    struct part parts[MAX_PARTS];
    size_t count = count_parts(model, parts);
    for (size_t i = 0; i < count; i++) {
        json_t *item = json_object();
        json_put_text(item, "part", parts[i].name);
        json_put_text(item, "format", parts[i].format);
        json_put_text(item, "rotation", parts[i].rotation);
        json_put_integer(item, "tensors", parts[i].tensors);
        json_put_integer(item, "weights", parts[i].weights);
        json_put_integer(item, "bytes", parts[i].bytes);
        json_array_append_new(list, item);
    }
    json_object_set_new(object, "parts", list);
    if (adapters->count) json_object_set_new(object, "adapters", adapters_json(adapters));
    if (settings->tensors) json_object_set_new(object, "tensors", tensors_json(model));
    return json_print(object, err);
}

static void print_summary(const struct walsh_model_info *info)
{
    char a[32], b[32], c[32], name[128];
    printf("architecture  %s\n", printable(info->architecture, name, sizeof name));
    printf("dimensions    hidden %u, intermediate %u, %u layers, %u heads of %u, %u key-value heads\n",
           info->hidden, info->intermediate, info->layers, info->heads, info->head_dim, info->kv_heads);
    if (info->experts) printf("experts       %u, %u per token\n", info->experts, info->experts_per_token);
    printf("vocabulary    %u%s\n", info->vocab, info->has_tokenizer ? "" : " (no tokenizer.json)");
    printf("context       at most %u tokens\n", info->max_positions);
    printf("parameters    %.2f million, %.2f million of them in the layers' linears\n",
           (double)info->parameters / 1e6, (double)info->linear_parameters / 1e6);
    printf("format        %s, %.2f bits per weight, %s activations\n", info->format, info->bits_per_weight,
           activations_name(info->activations));
    printf("bytes         %s on disk, %s in anonymous memory, %s read per decoded token\n",
           bytes_text((double)info->checkpoint_bytes, a, sizeof a),
           bytes_text((double)info->memory_bytes, b, sizeof b),
           bytes_text((double)info->decode_bytes, c, sizeof c));
    printf("loaded in     %.2f s\n", info->load_seconds);
}

static void print_parts(const struct walsh_model *model)
{
    struct part parts[MAX_PARTS];
    size_t count = count_parts(model, parts);
    printf("\n%-10s %8s %-6s %14s %14s  %s\n", "part", "tensors", "format", "weights", "bytes", "rotation");
    for (size_t i = 0; i < count; i++)
        printf("%-10s %8llu %-6s %14llu %14llu  %s\n", parts[i].name, (unsigned long long)parts[i].tensors,
               parts[i].format, (unsigned long long)parts[i].weights, (unsigned long long)parts[i].bytes,
               parts[i].rotation);
}

static void print_adapters(const struct adapter_list *list)
{
    printf("\n%-24s %7s %9s %8s %-6s %12s %14s  %s\n", "adapter", "scale", "rank", "linears", "format",
           "parameters", "bytes", "made for");
    struct walsh_adapter_info info = {.struct_size = sizeof info};
    uint64_t bytes = 0;
    for (size_t i = 0; i < list->count; i++) {
        walsh_adapter_get_info(list->adapters[i], &info);
        char rank[24], name[256], base[1024];
        snprintf(rank, sizeof rank, info.least_rank == info.most_rank ? "%u" : "%u..%u", info.least_rank,
                 info.most_rank);
        printf("%-24s %7g %9s %8u %-6s %12llu %14llu  %s\n", printable(info.name, name, sizeof name),
               (double)list->uses[i].scale, rank, info.linears, info.format,
               (unsigned long long)info.parameters, (unsigned long long)info.memory_bytes,
               printable(info.base_model, base, sizeof base));
        bytes += info.memory_bytes;
    }
    printf("%llu bytes of adapters in memory, whatever the number of sessions that use them\n",
           (unsigned long long)bytes);
}

static void print_tensors(const struct walsh_model *model)
{
    printf("\n%-48s %16s %-6s %6s %12s  %s\n", "tensor", "shape", "format", "bits", "bytes", "rotation");
    struct walsh_tensor_info tensor = {.struct_size = sizeof tensor};
    for (size_t i = 0; walsh_model_tensor(model, i, &tensor); i++) {
        char shape[48], name[256];
        snprintf(shape, sizeof shape, "%llu x %llu", (unsigned long long)tensor.rows,
                 (unsigned long long)tensor.cols);
        printf("%-48s %16s %-6s %6.2f %12llu  %s\n", printable(tensor.name, name, sizeof name), shape,
               tensor.format, tensor.bits_per_weight, (unsigned long long)tensor.bytes, tensor.rotation);
    }
}

static enum walsh_status inspect(struct inspect_settings *settings, struct walsh_context *context,
                                 struct walsh_error *err)
{
    struct command *command = &settings->command;
    struct walsh_model *model;
    TRY(command_open_model(command, context, command->arguments[0], &model, err));
    progress_clear(&command->progress);
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(model, &info);
    struct adapter_list adapters;
    enum walsh_status status = adapters_open(command, model, &settings->adapters, 0, &adapters, err);
    if (status == WALSH_OK && command->json) {
        status = print_json(model, &info, settings, &adapters, err);
    } else if (status == WALSH_OK) {
        print_summary(&info);
        print_parts(model);
        if (adapters.count) print_adapters(&adapters);
        if (settings->tensors) print_tensors(model);
    }
    adapters_close(&adapters);
    walsh_model_close(&model);
    return status;
}

static enum walsh_status run_inspect(struct command *command, struct walsh_error *err)
{
    struct walsh_context *context;
    TRY(command_open_context(command, &context, err));
    enum walsh_status status = inspect((struct inspect_settings *)command, context, err);
    walsh_context_close(&context);
    return status;
}

const struct verb verb_inspect = {
    .name = "inspect",
    .usage = "MODEL",
    .summary = "show the architecture, formats, rotation blocks and bytes of a model",
    .positionals = {"MODEL"},
    .least_arguments = 1,
    .options = inspect_options,
    .uses = USES_MODEL,
    .tokenizer_optional = true,
    .settings_size = sizeof(struct inspect_settings),
    .run = run_inspect,
};

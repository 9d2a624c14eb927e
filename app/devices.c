/* walsh devices: what this machine has and which kernels were chosen for it. */
#include <stdio.h>

#include "app.h"
#include "output.h"

static void put_devices(json_t *devices)
{
    struct walsh_device device;
    for (size_t i = 0; walsh_device_find(i, &device); i++) {
        json_t *item = json_object();
        json_put_text(item, "device", device.device);
        json_object_set_new(item, "usable", json_boolean(device.usable));
        if (device.usable) json_put_text(item, "name", device.name);
        json_put_text(item, "detail", device.detail);
        json_array_append_new(devices, item);
    }
}

static enum walsh_status print_json(const struct walsh_context *context, struct walsh_error *err)
{
    json_t *object = json_object(), *devices = json_array(), *cpu = json_object(), *kernels = json_object();
    const char *kernel, *implementation;
    for (size_t i = 0; walsh_context_kernel(context, i, &kernel, &implementation); i++)
        json_put_text(kernels, kernel, implementation);
    json_put_text(cpu, "device", "cpu");
    json_put_integer(cpu, "threads", walsh_context_threads(context));
    json_put_text(cpu, "features", walsh_context_cpu_features(context));
    json_object_set_new(cpu, "kernels", kernels);
    json_array_append_new(devices, cpu);
    put_devices(devices);
    json_object_set_new(object, "devices", devices);
    return json_print(object, err);
}

static void print_table(const struct walsh_context *context)
{
    printf("device    cpu\nthreads   %u\nfeatures  %s\n\n", walsh_context_threads(context),
           walsh_context_cpu_features(context));
    struct walsh_device device;
    for (size_t i = 0; walsh_device_find(i, &device); i++)
        printf("device    %s%s%s\n          %s\n\n", device.device, device.usable ? ", " : ": not used",
               device.name, device.detail);
    printf("%-28s implementation\n", "kernel");
    const char *kernel, *implementation;
    for (size_t i = 0; walsh_context_kernel(context, i, &kernel, &implementation); i++)
        printf("%-28s %s\n", kernel, implementation);
}

static enum walsh_status run_devices(struct command *command, struct walsh_error *err)
{
    struct walsh_context *context;
    TRY(command_open_context(command, &context, err));
    enum walsh_status status = WALSH_OK;
    if (command->json)
        status = print_json(context, err);
    else
        print_table(context);
    walsh_context_close(&context);
    return status;
}

const struct verb verb_devices = {
    .name = "devices",
    .usage = "",
    .summary = "list the devices of this machine and the kernels chosen for them",
    .uses = USES_THREADS | USES_DEVICE | USES_CPU,
    .settings_size = sizeof(struct command),
    .run = run_devices,
};

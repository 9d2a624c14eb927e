/* Finding and loading the module of a device; memory of a queue, whatever it is. */
#include "kernels/device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/float_mode.h"
#include "base/memory.h"

#define MODULE_NAME "libwalsh-cuda.so"
#define PATH_SIZE 4096

/* Cut the path behind its last '/'; false where there is none. */
static bool directory_of(char *path)
{
    char *slash = strrchr(path, '/');
    if (!slash) return false;
    slash[1] = 0;
    return true;
}

static bool program_directory(char *path)
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_SIZE - 1);
    if (length <= 0) return false;
    path[length] = 0;
    return directory_of(path);
}

/* Of what holds this code: libwalsh.so, or a program that was linked with the archive. */
static bool library_directory(char *path)
{
    Dl_info info;
    static const char here;
    if (!dladdr(&here, &info) || !info.dli_fname || strlen(info.dli_fname) >= PATH_SIZE) return false;
    strcpy(path, info.dli_fname);
    return directory_of(path);
}

/* The first module in one of the places (NULL at the end) seen from `directory`; NULL: none is there. */
static void *open_below(const char *directory, const char *const *places)
{
    char path[PATH_SIZE + 64];
    for (; *places; places++) {
        snprintf(path, sizeof path, "%s%s%s", directory, *places, MODULE_NAME);
        if (access(path, R_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return NULL;
}

static void *open_installed(void)
{
    static const char *const of_library[] = {"", "walsh/", NULL};
    static const char *const of_program[] = {"",
                                             "../lib/",
                                             "../lib/walsh/",
                                             "../" WALSH_MODULE_DIRECTORY "/",
                                             "../lib/" WALSH_MULTIARCH "/walsh/",
                                             NULL};
    char directory[PATH_SIZE];
    void *module = NULL;
    if (library_directory(directory)) module = open_below(directory, of_library);
    if (!module && program_directory(directory)) module = open_below(directory, of_program);
    return module ? module : dlopen(MODULE_NAME, RTLD_NOW | RTLD_LOCAL);
}

enum walsh_status walsh_device_load(const char *path, const struct walsh_device_module **out,
                                    struct walsh_error *err)
{
    *out = NULL;
    const uint64_t mode = walsh_float_mode(); /* constructors of what the module needs may change it */
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : open_installed();
    walsh_float_mode_set(mode);
    if (!library) {
        const char *why = dlerror();
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "the CUDA module is not there: %s",
                          why ? why : MODULE_NAME);
    }
    walsh_device_module_function *get;
    void *symbol = dlsym(library, WALSH_DEVICE_MODULE_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* ISO C knows no cast from an object to a function */
    const struct walsh_device_module *module = symbol ? get() : NULL;
    if (!module || module->module_size != sizeof *module ||
        module->queue_size != sizeof(struct walsh_queue) || module->ops_size != sizeof(struct walsh_ops) ||
        strcmp(module->version, WALSH_VERSION) != 0) {
        dlclose(library);
        return walsh_fail(err, WALSH_E_UNSUPPORTED, "%s is not of this build of walsh %s",
                          path ? path : MODULE_NAME, WALSH_VERSION);
    }
    *out = module;
    return WALSH_OK;
}

enum walsh_status walsh_queue_alloc(const struct walsh_queue *q, size_t bytes, const char *what,
                                    void *out_pointer, struct walsh_error *err)
{
    return q->memory ? q->memory->alloc(q, bytes, what, out_pointer, err)
                     : walsh_alloc(bytes, 1, what, out_pointer, err);
}

void walsh_queue_free(const struct walsh_queue *q, void *p)
{
    if (q && q->memory)
        q->memory->free(q, p);
    else
        walsh_free(p);
}

enum walsh_status walsh_queue_upload(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                     struct walsh_error *err)
{
    if (q->memory) return q->memory->upload(q, to, from, bytes, err);
    memcpy(to, from, bytes);
    return WALSH_OK;
}

enum walsh_status walsh_queue_download(const struct walsh_queue *q, void *to, const void *from, size_t bytes,
                                       struct walsh_error *err)
{
    if (q->memory) return q->memory->download(q, to, from, bytes, err);
    memcpy(to, from, bytes);
    return WALSH_OK;
}

void walsh_queue_zero(const struct walsh_queue *q, void *p, size_t bytes)
{
    if (q->memory)
        q->memory->fill(q, p, 0, bytes);
    else
        memset(p, 0, bytes);
}

void walsh_queue_copy(const struct walsh_queue *q, void *to, const void *from, size_t bytes)
{
    if (q->memory)
        q->memory->copy(q, to, from, bytes);
    else
        memcpy(to, from, bytes);
}

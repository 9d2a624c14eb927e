#include "base/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

/* The number behind `key` at the start of a line; false where absent. */
static bool find_number(const char *text, const char *key, uint64_t *out)
{
    size_t size = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (strncmp(line, key, size) != 0) continue;
        char *end;
        unsigned long long value = strtoull(line + size, &end, 10);
        if (end == line + size) return false;
        *out = value;
        return true;
    }
    return false;
}

uint64_t walsh_meminfo_available(const char *meminfo)
{
    uint64_t kib;
    if (!find_number(meminfo, "MemAvailable:", &kib) || kib > UINT64_MAX / 1024) return UINT64_MAX;
    return kib * 1024;
}

uint64_t walsh_cgroup_available(const char *max, const char *current, const char *stat)
{
    uint64_t limit, used, inactive = 0, active = 0;
    if (!find_number(max, "", &limit) || !find_number(current, "", &used)) return UINT64_MAX; /* "max" */
    find_number(stat, "inactive_file ", &inactive);
    find_number(stat, "active_file ", &active);
    uint64_t cache = inactive + active;
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

/* A file of the cgroup /sys/fs/cgroup<group>, NULL where it cannot be read; walsh_free. */
static char *read_cgroup_file(const char *group, size_t length, const char *name)
{
    char path[4096], *text;
    size_t size;
    snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/%s", (int)walsh_min(length, 3500), group, name);
    return walsh_file_read_text(path, 1 << 16, &text, &size, NULL) == WALSH_OK ? text : NULL;
}

/* The least that the process's cgroup and those above it leave. */
static uint64_t cgroups_available(void)
{
    char *text;
    size_t size;
    if (walsh_file_read_text("/proc/self/cgroup", 1 << 16, &text, &size, NULL) != WALSH_OK) return UINT64_MAX;
    const char *line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::"); /* the v2 hierarchy */
    if (line && *line == '\n') line++;
    size_t length = line ? strcspn(line + 3, "\n") : 0;
    uint64_t least = UINT64_MAX;
    while (line) {
        char *max = read_cgroup_file(line + 3, length, "memory.max");
        char *current = read_cgroup_file(line + 3, length, "memory.current");
        char *stat = read_cgroup_file(line + 3, length, "memory.stat");
        if (max && current) {
            uint64_t left = walsh_cgroup_available(max, current, stat ? stat : "");
            if (left < least) least = left;
        }
        walsh_free(max);
        walsh_free(current);
        walsh_free(stat);
        if (length == 0) break;
        do length--;
        while (length > 0 && line[3 + length] != '/');
    }
    walsh_free(text);
    return least;
}

uint64_t walsh_memory_available(void)
{
    char *text;
    size_t size;
    uint64_t available = UINT64_MAX;
    if (walsh_file_read_text("/proc/meminfo", 1 << 16, &text, &size, NULL) == WALSH_OK) {
        available = walsh_meminfo_available(text);
        walsh_free(text);
    }
    uint64_t limit = cgroups_available();
    return limit < available ? limit : available;
}

enum walsh_status walsh_memory_check(const char *what, uint64_t bytes, struct walsh_error *err)
{
    uint64_t available = walsh_memory_available();
    if (bytes <= available) return WALSH_OK;
    return walsh_fail(err, WALSH_E_MEMORY, "%s needs %.1f MiB, this machine has %.1f MiB available", what,
                      (double)bytes / 1048576, (double)available / 1048576);
}

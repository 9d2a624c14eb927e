/* How many CPUs this process may use. */
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/pool.h"

#define MAX_CPUS 4096 /* a larger quota is as good as none */

unsigned walsh_cpu_quota(const char *cpu_max)
{
    unsigned long long quota, period;
    if (sscanf(cpu_max, "%llu %llu", &quota, &period) != 2 || quota == 0 || period == 0) return 0;
    unsigned long long cpus = quota / period + (quota % period != 0);
    return cpus < MAX_CPUS ? (unsigned)cpus : MAX_CPUS;
}

/* The smallest quota of this process's control group and the groups above it; 0: none, or no cgroup v2 */
static unsigned cgroup_quota(void)
{
    char *text, path[4096];
    size_t size;
    if (walsh_file_read_text("/proc/self/cgroup", 1 << 16, &text, &size, NULL) != WALSH_OK) return 0;
    const char *line = strncmp(text, "0::", 3) == 0 ? text : strstr(text, "\n0::"); /* the v2 hierarchy */
    if (line && *line == '\n') line++;
    size_t length = line ? strcspn(line + 3, "\n") : 0;
    unsigned smallest = 0;
    while (line) {
        char *limit;
        snprintf(path, sizeof path, "/sys/fs/cgroup%.*s/cpu.max", (int)walsh_min(length, 3500), line + 3);
        if (walsh_file_read_text(path, 4096, &limit, &size, NULL) == WALSH_OK) {
            unsigned cpus = walsh_cpu_quota(limit);
            if (cpus && (!smallest || cpus < smallest)) smallest = cpus;
            walsh_free(limit);
        }
        if (length == 0) break;
        do length--;
        while (length > 0 && line[3 + length] != '/');
    }
    walsh_free(text);
    return smallest;
}

unsigned walsh_cpu_count(void)
{
    unsigned allowed = 1;
    for (size_t cpus = 1024; cpus <= 1 << 16; cpus *= 4) { /* EINVAL: the kernel's mask is larger than ours */
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (!set) break;
        size_t size = CPU_ALLOC_SIZE(cpus);
        bool known = sched_getaffinity(0, size, set) == 0;
        if (known) allowed = (unsigned)CPU_COUNT_S(size, set);
        CPU_FREE(set);
        if (known) break;
    }
    unsigned quota = cgroup_quota();
    if (quota && quota < allowed) allowed = quota;
    return allowed ? allowed : 1;
}

/* base/machine: what this machine offers to the process. */
#ifndef WALSH_BASE_MACHINE_H
#define WALSH_BASE_MACHINE_H

#include <stdint.h>

#include "base/status.h"

/* Bytes that the process can still allocate without swapping: MemAvailable of /proc/meminfo and what is left
 * below the memory limits of its control groups (v2), page cache counted as free, whichever is less.
 * UINT64_MAX where unknown. */
uint64_t walsh_memory_available(void);

/* MemAvailable in the text of /proc/meminfo, in bytes; UINT64_MAX where absent. */
uint64_t walsh_meminfo_available(const char *meminfo);
/* What is left below a cgroup's limit: the texts of its memory.max, memory.current and memory.stat.
 * UINT64_MAX: no limit. */
uint64_t walsh_cgroup_available(const char *max, const char *current, const char *stat);

/* WALSH_E_MEMORY, with both figures, where `bytes` for `what` are more than walsh_memory_available(). */
enum walsh_status walsh_memory_check(const char *what, uint64_t bytes, struct walsh_error *err);

#endif

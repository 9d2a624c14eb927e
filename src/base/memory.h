/* base/memory: checked size arithmetic, aligned allocation, arenas. */
#ifndef WALSH_BASE_MEMORY_H
#define WALSH_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_ALIGNMENT 64 /* bytes: a cache line and a zmm register */

/* *out = a*b or a+b; false where it does not fit, *out then unspecified. */
static inline bool walsh_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool walsh_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* n up to the next multiple of m (m > 0); the caller knows that n + m fits. */
static inline size_t walsh_round_up(size_t n, size_t m)
{
    return (n + m - 1) / m * m;
}
static inline size_t walsh_div_up(size_t n, size_t d)
{
    return n / d + (n % d != 0);
}
static inline size_t walsh_min(size_t a, size_t b)
{
    return a < b ? a : b;
}
static inline size_t walsh_max(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* count*size bytes aligned to WALSH_ALIGNMENT, uninitialised; free with walsh_free. Large blocks ask for huge
 * pages. A count of 0 gives a valid pointer. On failure *out is NULL and the message says how many bytes
 * `what` wanted. */
enum walsh_status walsh_alloc(size_t count, size_t size, const char *what, void *out_pointer,
                              struct walsh_error *err);
/* As walsh_alloc, filled with zero bytes. */
enum walsh_status walsh_alloc_zero(size_t count, size_t size, const char *what, void *out_pointer,
                                   struct walsh_error *err);
void walsh_free(void *p); /* NULL is fine */

/* A growing arena: blocks live until the arena is closed. Not thread-safe. */
struct walsh_arena {
    struct walsh_arena_block *last;
    size_t bytes; /* handed out so far */
};
/* Zeroed block of count*size bytes, aligned to WALSH_ALIGNMENT; owned by the arena. */
enum walsh_status walsh_arena_alloc(struct walsh_arena *arena, size_t count, size_t size, const char *what,
                                    void *out_pointer, struct walsh_error *err);
/* As walsh_arena_alloc, not zeroed: for large blocks whose every byte the caller writes, where the threads
 * that fill it should be the first to touch its pages. */
enum walsh_status walsh_arena_alloc_uninitialised(struct walsh_arena *arena, size_t count, size_t size,
                                                  const char *what, void *out_pointer,
                                                  struct walsh_error *err);
/* One block for the next `bytes` of the arena, each allocation rounded up to WALSH_ALIGNMENT: what is used
 * together then lies together, in huge pages where it is large. */
enum walsh_status walsh_arena_reserve(struct walsh_arena *arena, size_t bytes, const char *what,
                                      struct walsh_error *err);
/* A copy of the NUL-terminated text. */
enum walsh_status walsh_arena_strdup(struct walsh_arena *arena, const char *text, char **out,
                                     struct walsh_error *err);
void walsh_arena_close(struct walsh_arena *arena); /* frees all blocks; the arena is empty and usable again */

#endif

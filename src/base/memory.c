#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)     /* x86-64 and arm64 with 4 KiB base pages */
#define HUGE_BLOCK ((size_t)4 << 20)    /* blocks from here on ask for huge pages */
#define ARENA_BLOCK ((size_t)64 << 10)  /* smallest block that an arena asks for */
#define ARENA_GROWTH ((size_t)32 << 20) /* largest block that it asks for beyond what is wanted */

static enum walsh_status out_of_memory(struct walsh_error *err, size_t count, size_t size, const char *what)
{
    size_t bytes;
    if (!walsh_mul(count, size, &bytes))
        return walsh_fail(err, WALSH_E_MEMORY, "out of memory: %s needs %zu x %zu bytes", what, count, size);
    return walsh_fail(err, WALSH_E_MEMORY, "out of memory: %s needs %zu bytes", what, bytes);
}

/* NULL where the system has no memory or the size does not fit. *bytes: what the caller asked for. */
static void *allocate(size_t count, size_t size, size_t *bytes)
{
    size_t total;
    if (!walsh_mul(count, size, &total)) return NULL;
    *bytes = total;
    size_t alignment = total >= HUGE_BLOCK ? HUGE_PAGE : WALSH_ALIGNMENT;
    size_t padded;
    if (!walsh_add(total ? total : 1, alignment - 1, &padded)) return NULL;
    padded = padded / alignment * alignment;
    void *p = aligned_alloc(alignment, padded);
    /* Whole pages only: of the last one a few bytes may be used. Advice: a kernel without huge pages refuses
     * and nothing is lost. */
    if (p && total >= HUGE_BLOCK) (void)madvise(p, total / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return p;
}

enum walsh_status walsh_alloc(size_t count, size_t size, const char *what, void *out_pointer,
                              struct walsh_error *err)
{
    size_t bytes;
    void *p = allocate(count, size, &bytes);
    memcpy(out_pointer, &p, sizeof p);
    return p ? WALSH_OK : out_of_memory(err, count, size, what);
}

enum walsh_status walsh_alloc_zero(size_t count, size_t size, const char *what, void *out_pointer,
                                   struct walsh_error *err)
{
    size_t bytes = 0;
    void *p = allocate(count, size, &bytes);
    memcpy(out_pointer, &p, sizeof p);
    if (!p) return out_of_memory(err, count, size, what);
    memset(p, 0, bytes);
    return WALSH_OK;
}

void walsh_free(void *p)
{
    free(p);
}

/* The header sits at the front of its block and takes a whole alignment unit, so that what follows is
 * aligned. */
struct walsh_arena_block {
    _Alignas(WALSH_ALIGNMENT) struct walsh_arena_block *previous;
    size_t size, used; /* bytes, header included */
};

/* A new last block of at least `bytes`. */
static enum walsh_status add_block(struct walsh_arena *arena, size_t bytes, const char *what,
                                   struct walsh_error *err)
{
    struct walsh_arena_block *block;
    size_t wanted;
    if (!walsh_add(bytes, sizeof *block, &wanted)) return out_of_memory(err, bytes, 1, what);
    /* As much again as it holds already: the many matrices of a model share huge pages then, where blocks of
     * their own, each smaller than HUGE_BLOCK, would get small ones. Memory that is never touched costs
     * nothing. */
    size_t least = arena->bytes < ARENA_BLOCK    ? ARENA_BLOCK
                   : arena->bytes > ARENA_GROWTH ? ARENA_GROWTH
                                                 : arena->bytes;
    if (wanted < least) wanted = least;
    WALSH_TRY(walsh_alloc(wanted, 1, what, &block, err));
    block->size = wanted;
    block->used = sizeof *block;
    block->previous = arena->last;
    arena->last = block;
    return WALSH_OK;
}

static bool has_room(const struct walsh_arena *arena, size_t bytes)
{
    return arena->last && arena->last->size - arena->last->used >= bytes;
}

enum walsh_status walsh_arena_reserve(struct walsh_arena *arena, size_t bytes, const char *what,
                                      struct walsh_error *err)
{
    return has_room(arena, bytes) ? WALSH_OK : add_block(arena, bytes, what, err);
}

/* *padded_bytes receives count*size rounded up. */
static enum walsh_status take(struct walsh_arena *arena, size_t count, size_t size, const char *what,
                              void *out_pointer, size_t *padded_bytes, struct walsh_error *err)
{
    void *p = NULL;
    memcpy(out_pointer, &p, sizeof p);
    size_t bytes, padded;
    if (!walsh_mul(count, size, &bytes) || !walsh_add(bytes, WALSH_ALIGNMENT - 1, &padded))
        return out_of_memory(err, count, size, what);
    padded = padded / WALSH_ALIGNMENT * WALSH_ALIGNMENT;

    if (!has_room(arena, padded)) WALSH_TRY(add_block(arena, padded, what, err));
    struct walsh_arena_block *block = arena->last;
    p = (char *)block + block->used;
    block->used += padded;
    arena->bytes += padded;
    *padded_bytes = padded;
    memcpy(out_pointer, &p, sizeof p);
    return WALSH_OK;
}

enum walsh_status walsh_arena_alloc(struct walsh_arena *arena, size_t count, size_t size, const char *what,
                                    void *out_pointer, struct walsh_error *err)
{
    size_t bytes = 0;
    void *p;
    WALSH_TRY(take(arena, count, size, what, out_pointer, &bytes, err));
    memcpy(&p, out_pointer, sizeof p);
    memset(p, 0, bytes);
    return WALSH_OK;
}

enum walsh_status walsh_arena_alloc_uninitialised(struct walsh_arena *arena, size_t count, size_t size,
                                                  const char *what, void *out_pointer,
                                                  struct walsh_error *err)
{
    size_t bytes;
    return take(arena, count, size, what, out_pointer, &bytes, err);
}

enum walsh_status walsh_arena_strdup(struct walsh_arena *arena, const char *text, char **out,
                                     struct walsh_error *err)
{
    size_t size = strlen(text) + 1;
    WALSH_TRY(walsh_arena_alloc(arena, size, 1, "a string", out, err));
    memcpy(*out, text, size);
    return WALSH_OK;
}

void walsh_arena_close(struct walsh_arena *arena)
{
    struct walsh_arena_block *block = arena->last;
    while (block) {
        struct walsh_arena_block *previous = block->previous;
        walsh_free(block);
        block = previous;
    }
    *arena = (struct walsh_arena){0};
}

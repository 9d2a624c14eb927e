/* How much a test does. With WALSH_TEST_SHARE=PERCENT (1 to 100) in the environment a test draws that share of its random
 * cases, never fewer than one of each kind, and takes smaller models and shorter texts where it can: for emulators, where
 * floating point takes twenty to a hundred times as long (docs/robustness.md). */
#ifndef WALSH_TESTS_SHARE_H
#define WALSH_TESTS_SHARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static inline unsigned test_share(void)
{
    static unsigned share;
    const char *text = getenv("WALSH_TEST_SHARE");
    char *end = NULL;
    if (share != 0) return share;
    const long percent = text ? strtol(text, &end, 10) : 100;
    if (percent < 1 || percent > 100 || (end && *end)) {
        fprintf(stderr, "WALSH_TEST_SHARE=%s: expected a percentage from 1 to 100\n", text ? text : "");
        exit(2);
    }
    if (percent < 100) printf("WALSH_TEST_SHARE=%ld: fewer random cases\n", percent);
    share = (unsigned)percent;
    return share;
}

/* Of `all` random cases, at least `least` of them: the kinds that there are. */
static inline size_t test_cases(size_t all, size_t least)
{
    const size_t cases = (all * test_share() + 99) / 100;
    return cases < least ? least : cases;
}

/* Whether to take the smaller of two sizes. */
static inline bool test_small(void)
{
    return test_share() < 100;
}

/* Whether an emulator runs the test: prompts are hardly longer than a page or a chunk then, where they are to be longer. */
static inline bool test_tiny(void)
{
    return test_share() <= 5;
}

#endif

/* text/template: chat templates, a sandboxed subset of Jinja (docs/chat-templates.md). A template computes
 * from the data that it is given and from nothing else; what it may take of steps, depth, memory and text is
 * limited. Equal to the jinja2 package in the environment that Hugging Face's library makes
 * (ImmutableSandboxedEnvironment, trim_blocks, lstrip_blocks, loop controls, its tojson). May use base. */
#ifndef WALSH_TEXT_TEMPLATE_H
#define WALSH_TEXT_TEMPLATE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WALSH_TEMPLATE_MAX_SIZE ((size_t)1 << 20) /* bytes of a template */

/* Immutable; any number of threads may render it at a time. */
struct walsh_template;

/* `name` begins every message. A syntax error, or a tag that is not supported: WALSH_E_FORMAT with the line.
 */
enum walsh_status walsh_template_open(const char *name, const char *source, size_t size,
                                      struct walsh_template **out, struct walsh_error *err);
void walsh_template_close(struct walsh_template **t);

struct walsh_template_limits {
    uint64_t steps; /* expressions and statements evaluated, items and bytes/64 touched */
    unsigned depth; /* of nested evaluations: macros and expressions within each other */
    size_t memory;  /* bytes of values */
    size_t output;  /* bytes of text, intermediate ones too */
};
#define WALSH_TEMPLATE_LIMITS                                                                                \
    {                                                                                                        \
        .steps = 20000000, .depth = 500, .memory = (size_t)64 << 20, .output = (size_t)16 << 20              \
    }

/* `variables`: an object; its members are the template's variables. `now`: what strftime_now shows, in
 * seconds since 1970-01-01 00:00, without a time zone. *text: NUL-terminated, walsh_free. WALSH_E_ARGUMENT:
 * the template calls raise_exception. WALSH_E_FORMAT: what Jinja calls an error (an undefined value's
 * attribute, a sum of a text and a number), a method that is not supported. WALSH_E_UNSUPPORTED: a filter or
 * a test that is not known. WALSH_E_CAPACITY: a limit. */
enum walsh_status walsh_template_render(const struct walsh_template *t, const json_t *variables, int64_t now,
                                        const struct walsh_template_limits *limits, char **text, size_t *size,
                                        struct walsh_error *err);

#endif

/* The smallest program that uses the library: continue a prompt, always with the likeliest token.
 *
 *   generate MODEL PROMPT
 *
 * tests/cli.cmake builds it. */
#include <stdio.h>
#include <string.h>

#include "walsh.h"

/* What the calls below open, so that one place closes it. NULL is fine for every close. */
struct objects {
    struct walsh_context *context;
    struct walsh_model *model;
    struct walsh_session *session;
    struct walsh_sampler *sampler;
    struct walsh_text_stream *stream;
};

static enum walsh_status open_all(struct objects *o, const char *path, struct walsh_error *err)
{
    enum walsh_status status = walsh_context_open(NULL, &o->context, err);
    if (status == WALSH_OK) status = walsh_model_open(o->context, path, NULL, &o->model, err);
    if (status == WALSH_OK) status = walsh_session_open(o->model, NULL, &o->session, err);
    if (status != WALSH_OK) return status;

    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(o->model, &info);
    struct walsh_sampler_options greedy = WALSH_SAMPLER_OPTIONS;
    greedy.model = o->model;
    status = walsh_sampler_open(&greedy, info.vocab, &o->sampler, err);
    return status == WALSH_OK ? walsh_text_stream_open(o->model, true, &o->stream, err) : status;
}

static enum walsh_status append_prompt(struct objects *o, const char *prompt, struct walsh_error *err)
{
    int32_t *ids;
    size_t count;
    enum walsh_status status =
        walsh_model_encode(o->model, prompt, strlen(prompt), WALSH_TEXT_SPECIAL, &ids, &count, err);
    if (status != WALSH_OK) return status;
    status = walsh_session_prompt(o->session, ids, count, err);
    walsh_memory_free(ids);
    return status;
}

static enum walsh_status generate(struct objects *o, unsigned tokens, struct walsh_error *err)
{
    const char *text;
    size_t size;
    enum walsh_status status = WALSH_OK;
    for (unsigned i = 0; i < tokens && status == WALSH_OK; i++) {
        int32_t id;
        status = walsh_sampler_draw(o->sampler, walsh_session_logits(o->session), &id, err);
        if (status != WALSH_OK || walsh_model_is_eos(o->model, id)) break;
        status = walsh_text_stream_next(o->stream, id, &text, &size, err); /* whole characters only */
        if (status == WALSH_OK) fwrite(text, 1, size, stdout);
        if (status == WALSH_OK && i + 1 < tokens) status = walsh_step(&o->session, &id, 1, err);
    }
    if (status == WALSH_OK) status = walsh_text_stream_finish(o->stream, &text, &size, err);
    if (status == WALSH_OK) fwrite(text, 1, size, stdout);
    return status;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: generate MODEL PROMPT\n");
        return 2;
    }
    struct objects o = {0};
    struct walsh_error err = {0};
    enum walsh_status status = open_all(&o, argv[1], &err);
    if (status == WALSH_OK) status = append_prompt(&o, argv[2], &err);
    if (status == WALSH_OK) status = generate(&o, 24, &err);
    putchar('\n');
    if (status != WALSH_OK) fprintf(stderr, "generate: %s\n", err.message);
    walsh_text_stream_close(&o.stream);
    walsh_sampler_close(&o.sampler);
    walsh_session_close(&o.session);
    walsh_model_close(&o.model);
    walsh_context_close(&o.context);
    return status == WALSH_OK ? 0 : 1;
}

/* Continue several prompts at once: requests join a batch, which advances them together, and leave it as they
 * end. The answers are those of examples/generate.c, whatever runs beside them; each is printed when it is
 * complete.
 *
 *   batch MODEL PROMPT...
 *
 * tests/cli.cmake builds it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walsh.h"

#define ROWS 4u /* more prompts than this wait for their turn */
#define TOKENS 24u

/* What an answer needs, handed back by the batch with each event. */
struct answer {
    size_t number;
    int32_t ids[TOKENS];
    size_t count;
};

static enum walsh_status submit(const struct walsh_model *model, struct walsh_batch *batch,
                                const char *prompt, struct answer *answer, struct walsh_error *err)
{
    int32_t *ids;
    size_t count;
    uint64_t id;
    enum walsh_status status =
        walsh_model_encode(model, prompt, strlen(prompt), WALSH_TEXT_SPECIAL, &ids, &count, err);
    if (status != WALSH_OK) return status;
    struct walsh_batch_request request = WALSH_BATCH_REQUEST; /* no sampling options: the likeliest token */
    request.ids = ids;
    request.count = count;
    request.max_tokens = TOKENS;
    request.user = answer;
    status = walsh_batch_submit(batch, &request, &id, err);
    walsh_memory_free(ids);
    return status;
}

/* Take one event; *open counts the requests that have not ended. */
static enum walsh_status take(const struct walsh_model *model, const struct walsh_batch_event *event,
                              size_t *open, struct walsh_error *err)
{
    struct answer *answer = event->user;
    char *text;
    size_t size;
    if (event->finish == WALSH_FINISH_ERROR) {
        fprintf(stderr, "batch: prompt %zu: %s\n", answer->number, event->message);
    } else {
        if (event->finish != WALSH_FINISH_EOS) answer->ids[answer->count++] = event->token;
        if (event->finish == WALSH_FINISH_NONE) return WALSH_OK;
        const enum walsh_status status =
            walsh_model_decode(model, answer->ids, answer->count, true, &text, &size, err);
        if (status != WALSH_OK) return status;
        printf("%zu:%s\n", answer->number, text);
        walsh_memory_free(text);
    }
    --*open;
    return WALSH_OK;
}

static enum walsh_status run(const struct walsh_model *model, struct walsh_batch *batch, char **prompts,
                             struct answer *answers, size_t count, struct walsh_error *err)
{
    struct walsh_batch_event events[ROWS];
    enum walsh_status status = WALSH_OK;
    size_t open = count, n;
    for (size_t i = 0; i < count && status == WALSH_OK; i++) {
        answers[i].number = i + 1;
        status = submit(model, batch, prompts[i], &answers[i], err);
    }
    while (open > 0 && status == WALSH_OK) {
        status = walsh_batch_step(batch, events, ROWS, &n, err);
        for (size_t i = 0; i < n && status == WALSH_OK; i++) status = take(model, &events[i], &open, err);
    }
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: batch MODEL PROMPT...\n");
        return 2;
    }
    const size_t count = (size_t)argc - 2;
    struct answer *answers = calloc(count, sizeof *answers);
    struct walsh_error err = {0};
    struct walsh_context *context = NULL;
    struct walsh_model *model = NULL;
    struct walsh_batch *batch = NULL;
    struct walsh_batch_options options = WALSH_BATCH_OPTIONS;
    options.max_rows = ROWS;
    enum walsh_status status = answers ? WALSH_OK : WALSH_E_MEMORY;
    if (status == WALSH_OK) status = walsh_context_open(NULL, &context, &err);
    if (status == WALSH_OK) status = walsh_model_open(context, argv[1], NULL, &model, &err);
    if (status == WALSH_OK) status = walsh_batch_open(model, &options, &batch, &err);
    if (status == WALSH_OK) status = run(model, batch, argv + 2, answers, count, &err);
    if (status != WALSH_OK) fprintf(stderr, "batch: %s\n", err.message);
    walsh_batch_close(&batch);
    walsh_model_close(&model);
    walsh_context_close(&context);
    free(answers);
    return status == WALSH_OK ? 0 : 1;
}

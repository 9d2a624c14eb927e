/* walsh run: a prompt in, text out. One turn, or a conversation with the same session on a terminal. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "adapters.h"
#include "chat.h"
#include "files.h"
#include "kv.h"
#include "prefix.h"
#include "stop.h"

struct run_settings {
    struct command command;
    const char *prompt, *file;
    struct kv_settings kv;
    struct prefix_settings prefix;
    int64_t tokens, top_k, repeat_last, seed;
    double temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    bool plain_text, chat;
    const char *system, *chat_variables;
    struct option_texts stops, adapters;
};

#define AT(member) offsetof(struct run_settings, member)

static const struct option run_options[] = {
    {.name = "prompt",
     .letter = 'p',
     .argument = "TEXT",
     .kind = OPTION_TEXT,
     .offset = AT(prompt),
     .help = "the prompt"},
    {.name = "file",
     .letter = 'f',
     .argument = "FILE",
     .kind = OPTION_TEXT,
     .offset = AT(file),
     .help = "read the prompt from FILE, - for standard input"},
    {.name = "chat",
     .kind = OPTION_FLAG,
     .offset = AT(chat),
     .help =
         "a conversation by the model's chat template: PROMPT is a user's turn, or each line that is read"},
    {.name = "system",
     .argument = "TEXT",
     .kind = OPTION_TEXT,
     .offset = AT(system),
     .help = "the system message of --chat"},
    {.name = "chat-variables",
     .argument = "JSON",
     .kind = OPTION_TEXT,
     .offset = AT(chat_variables),
     .help = "variables of the chat template, such as {\"enable_thinking\": false}"},
    {.name = "plain-text",
     .kind = OPTION_FLAG,
     .offset = AT(plain_text),
     .help = "texts of special tokens in the prompt are plain text, not tokens"},
    {.name = "tokens",
     .letter = 'n',
     .aliases = "n-predict predict max-new-tokens max-tokens",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 1,
     .most = INT32_MAX,
     .fallback = "256",
     .offset = AT(tokens),
     .help = "generate at most N tokens"},
    {.name = "temp",
     .aliases = "temperature",
     .argument = "T",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 100,
     .offset = AT(temperature),
     .help = "temperature, 0 (or below 1e-6) for the likeliest token; default: the model's"},
    {.name = "top-k",
     .argument = "K",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = INT32_MAX,
     .offset = AT(top_k),
     .help = "draw from the K likeliest tokens, 0 for all; default: the model's"},
    {.name = "top-p",
     .argument = "P",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 1,
     .offset = AT(top_p),
     .help = "draw from the likeliest tokens that hold probability P; default: the model's"},
    {.name = "min-p",
     .argument = "P",
     .kind = OPTION_REAL,
     .least = 0,
     .most = 1,
     .offset = AT(min_p),
     .help = "drop tokens less likely than P times the likeliest; default: the model's"},
    {.name = "repeat-penalty",
     .aliases = "repetition-penalty",
     .argument = "R",
     .kind = OPTION_REAL,
     .least = 0.01,
     .most = 100,
     .offset = AT(repeat_penalty),
     .help = "make recent tokens less likely, 1 for off"},
    {.name = "repeat-last",
     .aliases = "repeat-last-n",
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = 0,
     .most = INT32_MAX,
     .offset = AT(repeat_last),
     .help = "tokens that the repeat penalty looks at, 0 for none; default: 64"},
    {.name = "presence-penalty",
     .argument = "P",
     .kind = OPTION_REAL,
     .least = -100,
     .most = 100,
     .fallback = "0",
     .offset = AT(presence_penalty),
     .help = "subtract P from the logits of tokens that were generated"},
    {.name = "frequency-penalty",
     .argument = "P",
     .kind = OPTION_REAL,
     .least = -100,
     .most = 100,
     .fallback = "0",
     .offset = AT(frequency_penalty),
     .help = "subtract P from the logits of tokens for each time that they were generated"},
    {.name = "stop",
     .aliases = "reverse-prompt",
     .argument = "TEXT",
     .kind = OPTION_TEXTS,
     .offset = AT(stops),
     .help = "end before TEXT; may be repeated"},
    {.name = "seed",
     .letter = 's',
     .argument = "N",
     .kind = OPTION_INTEGER,
     .least = -0x1.fffffffffffffp62, /* the lowest of 64 bits stands for none */
     .most = 9.3e18,
     .offset = AT(seed),
     .help = "seed of the draws, of 64 bits, -1 being the last one; default: a new one each time, which is "
             "reported"},
    KV_OPTIONS(AT(kv)),
    PREFIX_OPTIONS(AT(prefix)),
    {.name = "adapter",
     .aliases = "lora",
     .argument = ADAPTER_ARGUMENT,
     .kind = OPTION_TEXTS,
     .offset = AT(adapters),
     .help = ADAPTER_HELP},
    {0},
};

/* A session and what belongs to it. */
struct talk {
    struct run_settings *settings;
    struct walsh_context *context;
    struct walsh_model *model;
    struct adapter_list adapters;
    struct walsh_session *session;
    struct prefix_use prefix;
    struct walsh_sampler *sampler;
    struct chat chat;
    uint64_t seed;
    int32_t pending; /* a generated token that is not in the session yet; -1: none */
};

/* One answer. */
struct answer {
    struct text text;
    const char *finish; /* "eos" | "stop" | "length" | "context" | "interrupted" */
    uint64_t prompt_tokens, tokens, steps;
    uint64_t reused; /* of prompt_tokens, from the prefix store */
    uint64_t kept;   /* of them, in the session from the turn before */
    double started, prompt_seconds, first_token_seconds, step_seconds;
};

static enum walsh_status open_sampler(struct talk *talk, struct walsh_error *err)
{
    const struct run_settings *settings = talk->settings;
    struct walsh_sampler_options options = {.struct_size = sizeof options};
    walsh_sampler_defaults(talk->model, &options);
    if (!isnan(settings->temperature)) options.temperature = settings->temperature;
    if (settings->top_k != OPTION_UNSET) options.top_k = (uint32_t)settings->top_k;
    if (!isnan(settings->top_p)) options.top_p = settings->top_p;
    if (!isnan(settings->min_p)) options.min_p = settings->min_p;
    if (!isnan(settings->repeat_penalty)) options.repeat_penalty = settings->repeat_penalty;
    if (settings->repeat_last != OPTION_UNSET) options.repeat_last = (uint32_t)settings->repeat_last;
    options.presence_penalty = settings->presence_penalty;
    options.frequency_penalty = settings->frequency_penalty;
    if (settings->seed != OPTION_UNSET) {
        talk->seed = (uint64_t)settings->seed;
    } else {
        uint32_t fresh = 0; /* 32 bits: a number that one can type again */
        if (getrandom(&fresh, sizeof fresh, 0) != (ssize_t)sizeof fresh) fresh = (uint32_t)getpid();
        talk->seed = fresh;
    }
    options.seed = talk->seed;
    struct walsh_model_info info = {.struct_size = sizeof info};
    walsh_model_get_info(talk->model, &info);
    return walsh_sampler_open(&options, info.vocab, &talk->sampler, err);
}

static enum walsh_status open_talk(struct talk *talk, struct walsh_error *err)
{
    struct command *command = &talk->settings->command;
    TRY(command_open_context(command, &talk->context, err));
    TRY(command_open_model(command, talk->context, command->arguments[0], &talk->model, err));
    struct walsh_session_options options = WALSH_SESSION_OPTIONS;
    options.context = command->context == OPTION_UNSET ? 0 : (uint32_t)command->context;
    TRY(kv_options(&talk->settings->kv, &options.kv, err));
    TRY(walsh_session_open(talk->model, &options, &talk->session, err));
    TRY(adapters_open(command, talk->model, &talk->settings->adapters, 0, &talk->adapters, err));
    TRY(walsh_session_set_adapters(talk->session, talk->adapters.uses, talk->adapters.count, err));
    TRY(prefix_open(&talk->settings->prefix, command, talk->context, talk->session, &talk->prefix, err));
    talk->pending = -1;
    return open_sampler(talk, err);
}

static void close_talk(struct talk *talk)
{
    chat_close(&talk->chat);
    walsh_sampler_close(&talk->sampler);
    walsh_session_close(&talk->session);
    prefix_close(&talk->prefix);
    adapters_close(&talk->adapters);
    walsh_model_close(&talk->model);
    walsh_context_close(&talk->context);
}

/* Put the conversation with this turn of the user's into the session, which keeps what it has of its
 * beginning. */
static enum walsh_status take_turn(struct talk *talk, const char *text, size_t size, struct answer *answer,
                                   struct walsh_error *err)
{
    struct chat *chat = &talk->chat;
    int32_t *ids = NULL;
    size_t count = 0;
    TRY(chat_add(chat, "user", text, size, err));
    TRY(chat_encode(chat, talk->model, &ids, &count, err));
    const size_t kept = chat_common(chat, ids, count);
    talk->pending = -1;
    answer->started = seconds_now();
    enum walsh_status status = walsh_session_trim(talk->session, (uint32_t)kept, err);
    if (status == WALSH_OK) {
        chat->count = kept;
        status = walsh_session_prompt(talk->session, ids + kept, count - kept, err);
    }
    if (status == WALSH_OK) status = chat_hold(chat, ids, count, err);
    answer->prompt_seconds = seconds_now() - answer->started;
    answer->prompt_tokens = count;
    answer->kept = kept;
    if (kept == 0 && status == WALSH_OK) {
        struct walsh_prefix_info info = {.struct_size = sizeof info};
        walsh_session_get_prefix_info(talk->session, &info);
        answer->reused = info.tokens;
    }
    for (size_t i = kept; status == WALSH_OK && i < count; i++) walsh_sampler_accept(talk->sampler, ids[i]);
    walsh_memory_free(ids);
    return status;
}

/* Append the text (and the token that the last answer left over) to the session. */
static enum walsh_status take_prompt(struct talk *talk, const char *text, size_t size, struct answer *answer,
                                     struct walsh_error *err)
{
    int32_t *ids = NULL;
    size_t count = 0;
    const bool first = walsh_session_length(talk->session) == 0;
    unsigned flags = first ? WALSH_TEXT_SPECIAL : 0;
    if (talk->settings->plain_text) flags |= WALSH_TEXT_PLAIN;
    TRY(walsh_model_encode(talk->model, text, size, flags, &ids, &count, err));
    answer->started = seconds_now();
    enum walsh_status status = WALSH_OK;
    if (count == 0) status = fail(err, WALSH_E_FORMAT, "the prompt is empty");
    if (status == WALSH_OK && talk->pending >= 0) {
        status = walsh_session_prompt(talk->session, &talk->pending, 1, err);
        if (status == WALSH_OK) talk->pending = -1;
    }
    if (status == WALSH_OK) status = walsh_session_prompt(talk->session, ids, count, err);
    answer->prompt_seconds = seconds_now() - answer->started;
    answer->prompt_tokens = count;
    if (first && status == WALSH_OK) {
        struct walsh_prefix_info info = {.struct_size = sizeof info};
        walsh_session_get_prefix_info(talk->session, &info);
        answer->reused = info.tokens;
    }
    for (size_t i = 0; status == WALSH_OK && i < count; i++) walsh_sampler_accept(talk->sampler, ids[i]);
    walsh_memory_free(ids);
    return status;
}

/* Show the text now, or keep it for the JSON object. */
static enum walsh_status show(struct talk *talk, struct answer *answer, const char *text, size_t size,
                              struct walsh_error *err)
{
    if (!text_append(&answer->text, text, size))
        return fail(err, WALSH_E_MEMORY, "out of memory for the text");
    if (talk->settings->command.json || size == 0) return WALSH_OK;
    progress_clear(&talk->settings->command.progress);
    if (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0)
        return fail_errno(err, "cannot write to standard output");
    return WALSH_OK;
}

/* One decode step and the draw behind it, timed. */
static enum walsh_status step(struct talk *talk, int32_t id, int32_t *next, struct answer *answer,
                              struct walsh_error *err)
{
    double started = seconds_now();
    enum walsh_status status = walsh_step_draw(&talk->session, &talk->sampler, &id, 1, next, err);
    answer->step_seconds += seconds_now() - started;
    answer->steps++;
    if (status == WALSH_OK && talk->chat.messages) status = chat_hold_one(&talk->chat, id, err);
    return status;
}

static enum walsh_status generate(struct talk *talk, struct walsh_text_stream *stream,
                                  struct stop_filter *filter, struct answer *answer, struct walsh_error *err)
{
    uint64_t limit = (uint64_t)talk->settings->tokens;
    const char *text;
    size_t size;
    int32_t next;
    TRY(walsh_sampler_draw(talk->sampler, walsh_session_logits(talk->session), &next, err));
    while (!answer->finish) {
        const int32_t id = next;
        if (answer->tokens == 0) answer->first_token_seconds = seconds_now() - answer->started;
        if (walsh_model_is_eos(talk->model, id)) {
            answer->finish = "eos";
            break;
        }
        answer->tokens++;
        talk->pending = id;
        TRY(walsh_text_stream_next(stream, id, &text, &size, err));
        if (!stop_filter_push(filter, text, size, &text, &size))
            return fail(err, WALSH_E_MEMORY, "out of memory");
        TRY(show(talk, answer, text, size, err));
        if (filter->found)
            answer->finish = "stop";
        else if (answer->tokens == limit)
            answer->finish = "length";
        else if (walsh_session_length(talk->session) == walsh_session_context(talk->session))
            answer->finish = "context";
        else if (interrupted())
            answer->finish = "interrupted";
        else
            TRY(step(talk, id, &next, answer, err));
        if (!answer->finish) talk->pending = -1;
    }
    TRY(walsh_text_stream_finish(stream, &text, &size, err));
    if (!stop_filter_push(filter, text, size, &text, &size))
        return fail(err, WALSH_E_MEMORY, "out of memory");
    TRY(show(talk, answer, text, size, err));
    stop_filter_finish(filter, &text, &size);
    return show(talk, answer, text, size, err);
}

static double per_second(uint64_t count, double seconds)
{
    return count && seconds > 0 ? (double)count / seconds : NAN;
}

/* Of the tokens that were computed. */
static double prompt_rate(const struct answer *answer)
{
    return per_second(answer->prompt_tokens - answer->reused - answer->kept, answer->prompt_seconds);
}

/* " (12.3 tokens/s)" or nothing. */
static const char *rate_text(double rate, char *buffer, size_t size)
{
    *buffer = 0;
    if (isfinite(rate)) snprintf(buffer, size, " (%.1f tokens/s)", rate);
    return buffer;
}

static void report_speed(struct talk *talk, const struct answer *answer)
{
    char prompt[48], decode[48], reused[64] = "";
    if (answer->kept)
        snprintf(reused, sizeof reused, ", %llu of them kept from before", (unsigned long long)answer->kept);
    if (answer->reused)
        snprintf(reused, sizeof reused, ", %llu of them from the prefix store",
                 (unsigned long long)answer->reused);
    progress_note(&talk->settings->command.progress,
                  "prompt %llu tokens%s%s, generated %llu tokens%s, end: %s, seed %lld",
                  (unsigned long long)answer->prompt_tokens, reused,
                  rate_text(prompt_rate(answer), prompt, sizeof prompt), (unsigned long long)answer->tokens,
                  rate_text(per_second(answer->steps, answer->step_seconds), decode, sizeof decode),
                  answer->finish, (long long)talk->seed);
}

static enum walsh_status print_json(const struct talk *talk, const struct answer *answer,
                                    struct walsh_error *err)
{
    json_t *object = json_object();
    json_put_bytes(object, "text", &answer->text);
    json_put_integer(object, "tokens", answer->tokens);
    json_put_integer(object, "prompt_tokens", answer->prompt_tokens);
    json_put_real(object, "prompt_tokens_per_second", prompt_rate(answer));
    json_put_real(object, "tokens_per_second", per_second(answer->steps, answer->step_seconds));
    json_put_real(object, "first_token_seconds", answer->first_token_seconds);
    if (talk->prefix.store) prefix_put(object, &talk->prefix, talk->session, answer->first_token_seconds);
    json_put_integer(object, "cache_bytes", walsh_session_cache_bytes(talk->session));
    json_put_text(object, "finish", answer->finish);
    json_put_integer(object, "seed", talk->seed);
    return json_print(object, err);
}

static enum walsh_status reply(struct talk *talk, const char *prompt, size_t size, struct walsh_error *err)
{
    struct answer answer = {0};
    struct stop_filter filter = {.stops = &talk->settings->stops};
    struct walsh_text_stream *stream = NULL;
    enum walsh_status status =
        (talk->chat.messages ? take_turn : take_prompt)(talk, prompt, size, &answer, err);
    if (status == WALSH_OK) status = walsh_text_stream_open(talk->model, true, &stream, err);
    if (status == WALSH_OK) status = generate(talk, stream, &filter, &answer, err);
    if (status == WALSH_OK && talk->settings->command.json) status = print_json(talk, &answer, err);
    if (!talk->settings->command.json && answer.text.size) {
        putchar('\n');
        fflush(stdout);
    }
    if (status == WALSH_OK) report_speed(talk, &answer);
    if (status == WALSH_OK && talk->chat.messages)
        status = chat_add(&talk->chat, "assistant", answer.text.size ? answer.text.data : "",
                          answer.text.size, err);
    walsh_text_stream_close(&stream);
    stop_filter_free(&filter);
    text_free(&answer.text);
    return status;
}

/* A line that cannot be answered (longer than the context, or no token at all) or whose prompt Ctrl-C
 * stopped: say why; the next line is read. */
static bool skip_line(enum walsh_status status, const struct walsh_error *err)
{
    if (status != WALSH_E_CAPACITY && status != WALSH_E_FORMAT && status != WALSH_E_ABORTED) return false;
    fprintf(stderr, "%s\n", err->message);
    return true;
}

/* The turn again, without what came before. */
static enum walsh_status shorten(struct talk *talk, const char *line, size_t length, struct walsh_error *err)
{
    if (!chat_shorten(&talk->chat)) return err->status;
    progress_note(&talk->settings->command.progress,
                  "The context of %u tokens is full; earlier turns are forgotten.",
                  walsh_session_context(talk->session));
    chat_drop_last(&talk->chat); /* it comes again */
    return reply(talk, line, length, err);
}

/* Lines from the terminal until Ctrl-D, each appended to the same session; a full session starts afresh. */
static enum walsh_status converse(struct talk *talk, struct walsh_error *err)
{
    struct progress *progress = &talk->settings->command.progress;
    if (isatty(STDIN_FILENO))
        progress_note(progress, "Type a text%s. Ctrl-C stops an answer, Ctrl-D ends.",
                      talk->chat.messages ? "" : " to continue");
    char *line = NULL;
    size_t capacity = 0;
    enum walsh_status status = WALSH_OK;
    while (status == WALSH_OK) {
        interrupt_arm();
        if (isatty(STDIN_FILENO)) fputs("> ", stderr);
        ssize_t length = getline(&line, &capacity, stdin);
        if (length < 0) break;
        if (length > 0 && line[length - 1] == '\n') length--;
        if (length == 0) continue;
        status = reply(talk, line, (size_t)length, err);
        if (status == WALSH_E_CAPACITY && talk->chat.messages) {
            status = shorten(talk, line, (size_t)length, err);
        } else if (status == WALSH_E_CAPACITY && walsh_session_length(talk->session) > 0) {
            progress_note(progress, "The context of %u tokens is full; starting afresh.",
                          walsh_session_context(talk->session));
            talk->pending = -1;
            status = walsh_session_trim(talk->session, 0, err);
            if (status == WALSH_OK) status = reply(talk, line, (size_t)length, err);
        }
        if (status != WALSH_OK && talk->chat.messages) chat_drop_last(&talk->chat); /* it was not answered */
        if (skip_line(status, err)) status = WALSH_OK;
    }
    if (isatty(STDIN_FILENO)) fputc('\n', stderr);
    free(line);
    return status;
}

/* The prompt's text: argument, -p, -f or standard input. *found is false where the terminal is to be asked.
 */
static enum walsh_status find_prompt(const struct run_settings *settings, struct text *prompt, bool *found,
                                     struct walsh_error *err)
{
    const struct command *command = &settings->command;
    const char *argument = command->argument_count > 1 ? command->arguments[1] : NULL;
    const char *file = settings->file;
    if (argument && strcmp(argument, "-") == 0) {
        file = argument;
        argument = NULL;
    }
    if ((argument != NULL) + (settings->prompt != NULL) + (settings->file != NULL) > 1 ||
        (file != settings->file && (settings->prompt || settings->file)))
        return fail(err, WALSH_E_ARGUMENT, "give one prompt: PROMPT, --prompt or --file");
    *found = true;
    if (settings->prompt) argument = settings->prompt;
    if (argument) {
        if (!text_append(prompt, argument, strlen(argument)))
            return fail(err, WALSH_E_MEMORY, "out of memory");
    } else if (file || (!isatty(STDIN_FILENO) && !settings->chat)) {
        return file_read(file ? file : "-", prompt, err);
    } else if (command->json) {
        return fail(err, WALSH_E_ARGUMENT, "--json needs a prompt: PROMPT, --prompt or --file");
    } else {
        *found = false;
    }
    return WALSH_OK;
}

static enum walsh_status run_run(struct command *command, struct walsh_error *err)
{
    struct talk talk = {.settings = (struct run_settings *)command};
    struct text prompt = {0};
    bool found = false;
    if (talk.settings->top_p <= 0) /* NaN: not given */
        return fail(err, WALSH_E_ARGUMENT, "--top-p: %g is out of range: above 0, at most 1",
                    talk.settings->top_p);
    if (!talk.settings->chat && (talk.settings->system || talk.settings->chat_variables))
        return fail(err, WALSH_E_ARGUMENT, "%s needs --chat",
                    talk.settings->system ? "--system" : "--chat-variables");
    if (talk.settings->chat && talk.settings->plain_text)
        return fail(err, WALSH_E_ARGUMENT, "--plain-text and --chat exclude each other");
    TRY(prefix_check(&talk.settings->prefix, err));
    TRY(find_prompt(talk.settings, &prompt, &found, err));
    enum walsh_status status = open_talk(&talk, err);
    progress_clear(&command->progress);
    if (status == WALSH_OK && talk.settings->chat)
        status = chat_open(&talk.chat, talk.settings->system, talk.settings->chat_variables, err);
    if (status == WALSH_OK)
        status = found ? reply(&talk, prompt.data, prompt.size, err) : converse(&talk, err);
    close_talk(&talk);
    text_free(&prompt);
    return status;
}

const struct verb verb_run = {
    .name = "run",
    .usage = "MODEL [PROMPT | -]",
    .summary = "continue a prompt",
    .details = "The prompt is an argument, --prompt, --file or standard input; without one, on a terminal, "
               "lines are read "
               "and continued in one session. The text goes to standard output as it is generated, without "
               "the prompt; "
               "speeds go to standard error. Ctrl-C ends the text.\n\n"
               "With --chat the prompt is a turn of a conversation that the model's chat template puts into "
               "words; without one, each line of standard input is, and answers see the turns before. A "
               "model without a chat template is an error.\n\n"
               "Texts of special tokens in the prompt (<|im_start|> and the like) become those tokens; with "
               "--plain-text they stay text.\n\n"
               "Sampling options that are not given are those of the model's generation_config.json.",
    .positionals = {"MODEL", "PROMPT"},
    .least_arguments = 1,
    .options = run_options,
    .uses = USES_MODEL | USES_CONTEXT,
    .settings_size = sizeof(struct run_settings),
    .run = run_run,
};

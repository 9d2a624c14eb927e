#include "train/data.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/file.h"
#include "base/random.h"
#include "train/conversation.h"

#define MAX_FILE_BYTES ((size_t)4 << 30)
#define MAX_PATH_FILES 65536

/* --- tokens --- */

struct reading {
    const struct walsh_model_graph *graph;
    struct walsh_data *data;
    const char *path;
    size_t line;  /* 0: the file as a whole */
    size_t begin; /* of the document being read */
    struct walsh_error *err;
};

static enum walsh_status reserve(struct walsh_data *d, size_t more, struct walsh_error *err)
{
    if (d->tokens + more <= d->room) return WALSH_OK;
    const size_t room = walsh_max(2 * d->room, d->tokens + more + 1024);
    int32_t *ids;
    uint8_t *counts = NULL;
    WALSH_TRY(walsh_alloc(room, sizeof *ids, "the tokens of the data", &ids, err));
    const enum walsh_status status =
        walsh_alloc(room, sizeof *counts, "the tokens of the data", &counts, err);
    if (status != WALSH_OK) {
        walsh_free(ids);
        return status;
    }
    if (d->tokens) memcpy(ids, d->ids, d->tokens * sizeof *ids);
    if (d->tokens) memcpy(counts, d->counts, d->tokens * sizeof *counts);
    walsh_free(d->ids);
    walsh_free(d->counts);
    d->ids = ids;
    d->counts = counts;
    d->room = room;
    return WALSH_OK;
}

static enum walsh_status add_id(struct reading *r, int32_t id, bool counts)
{
    WALSH_TRY(reserve(r->data, 1, r->err));
    r->data->ids[r->data->tokens] = id;
    r->data->counts[r->data->tokens++] = counts;
    return WALSH_OK;
}

static enum walsh_status check_ids(const struct reading *r, const int32_t *ids, size_t count)
{
    const uint32_t vocab = r->graph->config.vocab;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab)
            return walsh_fail(r->err, WALSH_E_FORMAT, "%s: token %d is outside the model's vocabulary of %u",
                              r->path, ids[i], vocab);
    return WALSH_OK;
}

static enum walsh_status add_text(struct reading *r, const char *text, size_t size, unsigned flags,
                                  bool counts)
{
    int32_t *ids;
    size_t count;
    WALSH_TRY(walsh_tokenizer_encode(r->graph->tokenizer, text, size, flags, &ids, &count, r->err));
    enum walsh_status status = check_ids(r, ids, count);
    if (status == WALSH_OK) status = reserve(r->data, count, r->err);
    if (status == WALSH_OK && count > 0) {
        memcpy(r->data->ids + r->data->tokens, ids, count * sizeof *ids);
        memset(r->data->counts + r->data->tokens, counts, count);
        r->data->tokens += count;
    }
    walsh_free(ids);
    return status;
}

/* What the tokenizer puts in front of a text: BOS, or nothing. */
static enum walsh_status begin_document(struct reading *r)
{
    r->begin = r->data->tokens;
    const int32_t bos = walsh_tokenizer_bos(r->graph->tokenizer);
    int32_t *ids;
    size_t count;
    WALSH_TRY(walsh_tokenizer_encode(r->graph->tokenizer, "", 0, WALSH_ENCODE_SPECIAL, &ids, &count, r->err));
    const bool has_bos = count > 0 && bos >= 0 && ids[0] == bos;
    walsh_free(ids);
    return has_bos ? add_id(r, bos, false) : WALSH_OK;
}

static int32_t end_id(const struct walsh_model_graph *g)
{
    if (g->config.eos_count > 0) return g->config.eos[0];
    return walsh_tokenizer_eos(g->tokenizer);
}

static enum walsh_status add_piece(struct walsh_data *d, size_t begin, size_t count, struct walsh_error *err)
{
    if (d->piece_count == d->piece_room) {
        const size_t room = walsh_max(2 * d->piece_room, 256);
        struct walsh_piece *pieces;
        WALSH_TRY(walsh_alloc(room, sizeof *pieces, "the pieces of the data", &pieces, err));
        if (d->piece_count) memcpy(pieces, d->pieces, d->piece_count * sizeof *pieces);
        walsh_free(d->pieces);
        d->pieces = pieces;
        d->piece_room = room;
    }
    d->pieces[d->piece_count++] = (struct walsh_piece){begin, (uint32_t)count};
    return WALSH_OK;
}

/* Cut the document into pieces; one that nothing is learnt from is left out. */
static enum walsh_status end_document(struct reading *r)
{
    struct walsh_data *d = r->data;
    for (size_t at = r->begin; at < d->tokens; at += d->context) {
        const size_t count = walsh_min(d->context, d->tokens - at);
        bool counts = false;
        for (size_t i = at + 1; i < at + count; i++) counts = counts || d->counts[i];
        if (counts) WALSH_TRY(add_piece(d, at, count, r->err));
    }
    d->documents++;
    return WALSH_OK;
}

/* --- documents --- */

static enum walsh_status add_plain(struct reading *r, const char *text, size_t size)
{
    const int32_t end = end_id(r->graph);
    WALSH_TRY(begin_document(r));
    WALSH_TRY(add_text(r, text, size, WALSH_ENCODE_PLAIN, true));
    if (end >= 0) WALSH_TRY(add_id(r, end, true));
    return end_document(r);
}

static enum walsh_status add_completion(struct reading *r, const json_t *prompt, const json_t *completion)
{
    const int32_t end = end_id(r->graph);
    WALSH_TRY(begin_document(r));
    WALSH_TRY(add_text(r, json_string_value(prompt), json_string_length(prompt), WALSH_ENCODE_PLAIN, false));
    WALSH_TRY(
        add_text(r, json_string_value(completion), json_string_length(completion), WALSH_ENCODE_PLAIN, true));
    if (end >= 0) WALSH_TRY(add_id(r, end, true));
    return end_document(r);
}

/* A conversation, or the part of one that stands by itself. */
static enum walsh_status add_turns(void *context, const struct walsh_turns *turns, struct walsh_error *err)
{
    struct reading *r = context;
    (void)err; /* the reading has it */
    r->begin = r->data->tokens;
    if (!turns->templated) WALSH_TRY(begin_document(r));
    WALSH_TRY(check_ids(r, turns->ids, turns->count));
    WALSH_TRY(reserve(r->data, turns->count, r->err));
    memcpy(r->data->ids + r->data->tokens, turns->ids, turns->count * sizeof *turns->ids);
    memcpy(r->data->counts + r->data->tokens, turns->learned, turns->count);
    r->data->tokens += turns->count;
    return end_document(r);
}

static enum walsh_status add_messages(struct reading *r, const json_t *line)
{
    char *where;
    const size_t room = strlen(r->path) + 32;
    WALSH_TRY(walsh_alloc(room, 1, "the name of a line", &where, r->err));
    snprintf(where, room, "%s:%zu", r->path, r->line);
    const enum walsh_status status = walsh_conversation_read(r->graph, where, line, add_turns, r, r->err);
    walsh_free(where);
    return status;
}

static enum walsh_status add_object(struct reading *r, const json_t *object)
{
    const json_t *text = json_object_get(object, "text"), *prompt = json_object_get(object, "prompt"),
                 *completion = json_object_get(object, "completion"),
                 *messages = json_object_get(object, "messages");
    if (messages) return add_messages(r, object);
    if (json_is_string(prompt) && json_is_string(completion)) return add_completion(r, prompt, completion);
    if (json_is_string(text)) return add_plain(r, json_string_value(text), json_string_length(text));
    return walsh_fail(
        r->err, WALSH_E_FORMAT,
        "%s:%zu: expected an object with \"text\", with \"prompt\" and \"completion\", or with \"messages\"",
        r->path, r->line);
}

static enum walsh_status add_line(struct reading *r, const char *line, size_t size)
{
    json_error_t error;
    json_t *object = json_loadb(line, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!json_is_object(object)) {
        const bool parsed = object != NULL;
        json_decref(object);
        return walsh_fail(r->err, WALSH_E_FORMAT, "%s:%zu: %s", r->path, r->line,
                          parsed ? "expected a JSON object" : error.text);
    }
    const enum walsh_status status = add_object(r, object);
    json_decref(object);
    return status;
}

static enum walsh_status add_lines(struct reading *r, const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        const char *line = text + at, *newline = memchr(line, '\n', size - at);
        const size_t length = newline ? (size_t)(newline - line) : size - at;
        r->line++;
        at += length + 1;
        if (strspn(line, " \t\r") < length) WALSH_TRY(add_line(r, line, length));
    }
    return WALSH_OK;
}

/* --- files --- */

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static bool is_lines(const char *path)
{
    return ends_with(path, ".jsonl") || ends_with(path, ".json");
}

static enum walsh_status add_file(struct walsh_data *d, const struct walsh_model_graph *graph,
                                  const char *path, struct walsh_error *err)
{
    char *text;
    size_t size;
    struct reading r = {.graph = graph, .data = d, .path = path, .err = err};
    WALSH_TRY(walsh_file_read_text(path, MAX_FILE_BYTES, &text, &size, err));
    const enum walsh_status status = is_lines(path) ? add_lines(&r, text, size) : add_plain(&r, text, size);
    walsh_free(text);
    return status;
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The directory's files of data, sorted; in the arena. */
static enum walsh_status list_files(const char *directory, struct walsh_arena *arena, char ***out,
                                    size_t *count, struct walsh_error *err)
{
    DIR *dir = opendir(directory);
    if (!dir) return walsh_fail(err, WALSH_E_IO, "%s: the directory cannot be read", directory);
    enum walsh_status status =
        walsh_arena_alloc(arena, MAX_PATH_FILES, sizeof **out, "a list of files", out, err);
    *count = 0;
    for (const struct dirent *entry; status == WALSH_OK && (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.' || !(is_lines(entry->d_name) || ends_with(entry->d_name, ".txt")))
            continue;
        char *path = NULL;
        if (*count == MAX_PATH_FILES) {
            status = walsh_fail(err, WALSH_E_ARGUMENT, "%s: more than %d files", directory, MAX_PATH_FILES);
            break;
        }
        status = walsh_path_join(directory, entry->d_name, &path, err);
        if (status == WALSH_OK) status = walsh_arena_strdup(arena, path, &(*out)[(*count)++], err);
        walsh_free(path);
    }
    closedir(dir);
    if (status == WALSH_OK) qsort(*out, *count, sizeof **out, compare_text);
    return status;
}

static enum walsh_status add_path(struct walsh_data *d, const struct walsh_model_graph *graph,
                                  const char *path, struct walsh_error *err)
{
    if (!walsh_path_is_directory(path)) return add_file(d, graph, path, err);
    struct walsh_arena arena = {0};
    char **files = NULL;
    size_t count = 0;
    enum walsh_status status = list_files(path, &arena, &files, &count, err);
    for (size_t i = 0; i < count && status == WALSH_OK; i++) status = add_file(d, graph, files[i], err);
    walsh_arena_close(&arena);
    return status;
}

enum walsh_status walsh_data_open(const struct walsh_model_graph *graph, const char *path, uint32_t context,
                                  struct walsh_data *out, struct walsh_error *err)
{
    *out = (struct walsh_data){.context = context};
    enum walsh_status status = add_path(out, graph, path, err);
    if (status == WALSH_OK && out->piece_count == 0)
        status =
            walsh_fail(err, WALSH_E_ARGUMENT, "%s: nothing to learn from: no document has two tokens", path);
    if (status != WALSH_OK) walsh_data_close(out);
    return status;
}

void walsh_data_close(struct walsh_data *d)
{
    if (d->room > 0) { /* else the tokens are another's */
        walsh_free(d->ids);
        walsh_free(d->counts);
    }
    walsh_free(d->pieces);
    *d = (struct walsh_data){0};
}

/* A permutation of [0, n) by Fisher and Yates. */
static void shuffle(uint32_t *order, size_t n, uint64_t seed)
{
    struct walsh_random random;
    walsh_random_seed(&random, seed);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        const size_t j = (size_t)(walsh_random_uniform(&random) * (double)i);
        const uint32_t kept = order[i - 1];
        order[i - 1] = order[j];
        order[j] = kept;
    }
}

enum walsh_status walsh_data_split(struct walsh_data *d, double share, uint64_t seed, struct walsh_data *held,
                                   struct walsh_error *err)
{
    *held =
        (struct walsh_data){.ids = d->ids, .counts = d->counts, .tokens = d->tokens, .context = d->context};
    const size_t count = walsh_max(1, (size_t)(share * (double)d->piece_count));
    if (count >= d->piece_count)
        return walsh_fail(err, WALSH_E_ARGUMENT,
                          "the data has %zu pieces of %u tokens: too few to hold some back", d->piece_count,
                          d->context);
    uint32_t *order;
    WALSH_TRY(walsh_alloc(d->piece_count, sizeof *order, "an order", &order, err));
    shuffle(order, d->piece_count, walsh_mix64(seed ^ 0x5eed0fda7au));
    struct walsh_piece *rest;
    enum walsh_status status =
        walsh_alloc(d->piece_count - count, sizeof *rest, "the pieces of the data", &rest, err);
    size_t kept = 0;
    for (size_t i = 0; i < d->piece_count && status == WALSH_OK; i++) {
        const struct walsh_piece piece = d->pieces[order[i]];
        if (i < count)
            status = add_piece(held, piece.begin, piece.count, err);
        else
            rest[kept++] = piece;
    }
    walsh_free(order);
    if (status != WALSH_OK) {
        walsh_free(rest);
        return status;
    }
    walsh_free(d->pieces);
    d->pieces = rest;
    d->piece_count = d->piece_room = kept;
    return WALSH_OK;
}

uint64_t walsh_data_hash(const struct walsh_data *d)
{
    uint64_t hash = XXH3_64bits_withSeed(d->ids, d->tokens * sizeof *d->ids, d->context);
    hash = XXH3_64bits_withSeed(d->counts, d->tokens, hash);
    for (size_t i = 0; i < d->piece_count; i++)
        hash = walsh_mix64(hash ^ d->pieces[i].begin ^ (uint64_t)d->pieces[i].count << 40);
    return hash;
}

/* --- sequences --- */

static void make_order(struct walsh_reader *r)
{
    if (r->shuffled)
        shuffle(r->order, r->data->piece_count, walsh_mix64(r->seed + walsh_mix64(r->epoch)));
    else
        for (size_t i = 0; i < r->data->piece_count; i++) r->order[i] = (uint32_t)i;
}

enum walsh_status walsh_reader_open(const struct walsh_data *data, uint64_t seed, bool shuffled,
                                    struct walsh_reader *out, struct walsh_error *err)
{
    *out = (struct walsh_reader){.data = data, .seed = seed, .shuffled = shuffled};
    WALSH_TRY(walsh_alloc(data->piece_count, sizeof *out->order, "the order of the data", &out->order, err));
    make_order(out);
    return WALSH_OK;
}

void walsh_reader_close(struct walsh_reader *r)
{
    walsh_free(r->order);
    *r = (struct walsh_reader){0};
}

void walsh_reader_seek(struct walsh_reader *r, uint64_t epoch, uint64_t next)
{
    r->epoch = epoch;
    r->next = next;
    make_order(r);
}

enum walsh_status walsh_packed_open(uint32_t context, uint32_t sequences, struct walsh_packed *out,
                                    struct walsh_error *err)
{
    *out = (struct walsh_packed){0};
    if (!walsh_mul(context, sequences, &out->room) || out->room > UINT32_MAX / 2)
        return walsh_fail(err, WALSH_E_ARGUMENT, "%u sequences of %u tokens are too many at once", sequences,
                          context);
    enum walsh_status status = walsh_alloc(out->room, sizeof *out->ids, "a batch", &out->ids, err);
    if (status == WALSH_OK)
        status = walsh_alloc(out->room, sizeof *out->targets, "a batch", &out->targets, err);
    if (status == WALSH_OK)
        status = walsh_alloc(out->room / 2 + 1, sizeof *out->begin, "a batch", &out->begin, err);
    if (status != WALSH_OK) walsh_packed_close(out);
    return status;
}

void walsh_packed_close(struct walsh_packed *p)
{
    walsh_free(p->ids);
    walsh_free(p->targets);
    walsh_free(p->begin);
    *p = (struct walsh_packed){0};
}

/* One document more: row i predicts token i + 1 of the piece, the last row nothing. */
static void put_piece(const struct walsh_data *d, const struct walsh_piece *piece, struct walsh_packed *out)
{
    out->begin[out->documents++] = (uint32_t)out->rows;
    memcpy(out->ids + out->rows, d->ids + piece->begin, piece->count * sizeof *out->ids);
    for (size_t i = 0; i < piece->count; i++) {
        const size_t next = piece->begin + i + 1;
        const bool counts = i + 1 < piece->count && d->counts[next];
        out->targets[out->rows + i] = counts ? d->ids[next] : -1;
        out->counted += counts;
    }
    out->rows += piece->count;
    out->begin[out->documents] = (uint32_t)out->rows;
}

bool walsh_reader_next(struct walsh_reader *r, uint32_t sequences, bool wrap, struct walsh_packed *out)
{
    const struct walsh_data *d = r->data;
    out->rows = out->documents = out->counted = 0;
    for (uint32_t s = 0; s < sequences; s++) {
        size_t used = 0;
        for (;;) {
            if (r->next == d->piece_count) {
                if (!wrap) break;
                walsh_reader_seek(r, r->epoch + 1, 0);
            }
            const struct walsh_piece *piece = &d->pieces[r->order[r->next]];
            if (used + piece->count > d->context) break;
            used += piece->count;
            put_piece(d, piece, out);
            r->next++;
        }
    }
    return out->rows > 0;
}

uint64_t walsh_reader_sequences(const struct walsh_reader *r)
{
    const struct walsh_data *d = r->data;
    uint64_t sequences = 0;
    size_t used = d->context;
    for (size_t i = 0; i < d->piece_count; i++) {
        const size_t count = d->pieces[r->order[i]].count;
        if (used + count > d->context) {
            sequences++;
            used = 0;
        }
        used += count;
    }
    return sequences;
}

/* train/data: what is trained on. Files become documents of tokens, each token with or without loss;
 * documents are cut into pieces of at most one context; pieces are packed into sequences in a shuffled order
 * that a seed and the number of the epoch fix. May use model and below. */
#ifndef WALSH_TRAIN_DATA_H
#define WALSH_TRAIN_DATA_H

#include "base/hooks.h"
#include "model/model.h"

struct walsh_piece {
    size_t begin;
    uint32_t count; /* 2..context */
};
struct walsh_data {
    int32_t *ids;    /* all documents */
    uint8_t *counts; /* does the loss of predicting this token count? */
    size_t tokens, room;
    struct walsh_piece *pieces;
    size_t piece_count, piece_room;
    size_t documents;
    uint32_t context;
};
/* Read `path`: a file, or every *.txt, *.jsonl and *.json of a directory in the order of their names. *.jsonl
 * and *.json hold a JSON object per line: {"text"}, or {"prompt", "completion"} with loss on the completion,
 * or {"messages": [{"role", "content"}]} by the model's chat template with loss on what the assistant says
 * (train/conversation.h). Any other file is one document of plain text. Documents but conversations end with
 * the model's first end-of-sequence id, and begin with BOS where the tokenizer puts one. Errors name the file
 * and the line. */
enum walsh_status walsh_data_open(const struct walsh_model_graph *graph, const char *path, uint32_t context,
                                  struct walsh_data *out, struct walsh_error *err);
void walsh_data_close(struct walsh_data *d); /* safe on a zeroed struct */
/* Move `share` of the pieces, drawn by the seed, from *d to *held, which then borrows d's tokens. */
enum walsh_status walsh_data_split(struct walsh_data *d, double share, uint64_t seed, struct walsh_data *held,
                                   struct walsh_error *err);
uint64_t walsh_data_hash(const struct walsh_data *d);

/* Sequences in their order. */
struct walsh_reader {
    const struct walsh_data *data;
    uint64_t seed, epoch, next; /* the next piece: order[next] of this epoch */
    bool shuffled;
    uint32_t *order; /* [piece_count] */
};
enum walsh_status walsh_reader_open(const struct walsh_data *data, uint64_t seed, bool shuffled,
                                    struct walsh_reader *out, struct walsh_error *err);
void walsh_reader_close(struct walsh_reader *r);
/* Go to a place that another reader of the same data and seed had. */
void walsh_reader_seek(struct walsh_reader *r, uint64_t epoch, uint64_t next);

/* Packed sequences: rows of up to `sequences` * context tokens. */
struct walsh_packed {
    int32_t *ids, *targets; /* [room] */
    uint32_t *begin;        /* [room / 2 + 1]: documents */
    size_t rows, documents, counted, room;
};
enum walsh_status walsh_packed_open(uint32_t context, uint32_t sequences, struct walsh_packed *out,
                                    struct walsh_error *err);
void walsh_packed_close(struct walsh_packed *p);
/* The next `sequences` sequences: pieces one behind the other as long as one fits into the sequence, over the
 * end of an epoch where `wrap`. false: there was none left (not with wrap). */
bool walsh_reader_next(struct walsh_reader *r, uint32_t sequences, bool wrap, struct walsh_packed *out);
/* Sequences of one epoch in the reader's present order. */
uint64_t walsh_reader_sequences(const struct walsh_reader *r);

#endif

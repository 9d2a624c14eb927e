/* app/kv: the options of the key-value cache, the same for every verb that runs a model. */
#ifndef WALSH_APP_KV_H
#define WALSH_APP_KV_H

#include "app.h"

struct kv_settings {
    const char *type, *key_codec;
    double bits;
    int64_t key_bits, value_bits, skip, recent, seed;
    bool no_rotation, no_correction;
};

/* Lines of an option table; `at` is the offset of a struct kv_settings in the verb's settings. */
#define KV_OPTIONS(at)                                                                                       \
    {.name = "kv",                                                                                           \
     .environment = "WALSH_KV",                                                                              \
     .argument = "TYPE",                                                                                     \
     .kind = OPTION_CHOICE,                                                                                  \
     .choices = "auto|f16|f32|turbo",                                                                        \
     .fallback = "auto",                                                                                     \
     .offset = (at) + offsetof(struct kv_settings, type),                                                    \
     .help = "type of the key-value cache; turbo packs keys and values to a few bits"},                      \
        {.name = "kv-bits",                                                                                  \
         .environment = "WALSH_KV_BITS",                                                                     \
         .argument = "B",                                                                                    \
         .kind = OPTION_REAL,                                                                                \
         .least = 1,                                                                                         \
         .most = 8,                                                                                          \
         .offset = (at) + offsetof(struct kv_settings, bits),                                                \
         .help = "bits per element of a turbo cache; of 3.5 keys get 3 and values 4; default: 4"},           \
        {.name = "kv-key-bits",                                                                              \
         .environment = "WALSH_KV_KEY_BITS",                                                                 \
         .argument = "B",                                                                                    \
         .kind = OPTION_INTEGER,                                                                             \
         .least = 1,                                                                                         \
         .most = 8,                                                                                          \
         .offset = (at) + offsetof(struct kv_settings, key_bits),                                            \
         .help = "bits per element of its keys"},                                                            \
        {.name = "kv-value-bits",                                                                            \
         .environment = "WALSH_KV_VALUE_BITS",                                                               \
         .argument = "B",                                                                                    \
         .kind = OPTION_INTEGER,                                                                             \
         .least = 1,                                                                                         \
         .most = 8,                                                                                          \
         .offset = (at) + offsetof(struct kv_settings, value_bits),                                          \
         .help = "bits per element of its values"},                                                          \
        {.name = "kv-skip",                                                                                  \
         .environment = "WALSH_KV_SKIP",                                                                     \
         .argument = "N",                                                                                    \
         .kind = OPTION_INTEGER,                                                                             \
         .least = 0,                                                                                         \
         .most = 1000,                                                                                       \
         .offset = (at) + offsetof(struct kv_settings, skip),                                                \
         .help = "keep the first N and the last N layers in f16; default: 0"},                               \
    {                                                                                                        \
        .name = "kv-recent", .environment = "WALSH_KV_RECENT", .argument = "N", .kind = OPTION_INTEGER,      \
        .least = 0, .most = 65536, .offset = (at) + offsetof(struct kv_settings, recent),                    \
        .help = "decode reads the newest N tokens in f16; default: 0"                                        \
    }

/* What only measurements want. */
#define KV_MEASUREMENT_OPTIONS(at)                                                                           \
    {.name = "kv-key-codec",                                                                                 \
     .argument = "CODEC",                                                                                    \
     .kind = OPTION_CHOICE,                                                                                  \
     .choices = "mse|prod",                                                                                  \
     .offset = (at) + offsetof(struct kv_settings, key_codec),                                               \
     .help = "codec of a turbo cache's keys; prod is experimental; default: mse"},                           \
        {.name = "kv-seed",                                                                                  \
         .argument = "N",                                                                                    \
         .kind = OPTION_INTEGER,                                                                             \
         .least = 1,                                                                                         \
         .most = 9e15,                                                                                       \
         .offset = (at) + offsetof(struct kv_settings, seed),                                                \
         .help = "seed of its rotations; default: 42"},                                                      \
        {.name = "kv-no-rotation",                                                                           \
         .kind = OPTION_FLAG,                                                                                \
         .offset = (at) + offsetof(struct kv_settings, no_rotation),                                         \
         .help = "pack keys and values without rotating them"},                                              \
    {                                                                                                        \
        .name = "kv-no-correction", .kind = OPTION_FLAG,                                                     \
        .offset = (at) + offsetof(struct kv_settings, no_correction),                                        \
        .help = "store the lengths of keys and values uncorrected"                                           \
    }

/* WALSH_E_ARGUMENT where options contradict each other or need --kv turbo. */
enum walsh_status kv_options(const struct kv_settings *settings, struct walsh_kv_options *out,
                             struct walsh_error *err);

#endif

/* libFuzzer target: one safetensors file. What is accepted is planned anew and read again: the same tensors.
 */
#include "fuzz/fuzz_files.h"

#include "checkpoint/safetensors.h"

static void check_tensors(const struct walsh_safetensors *st)
{
    size_t bytes = 0;
    for (size_t i = 0; i < st->count; i++) {
        const struct walsh_tensor *t = &st->tensors[i];
        const uint8_t *data = t->data;
        FUZZ_REQUIRE(walsh_safetensors_find(st, t->name) == t);
        FUZZ_REQUIRE(data >= st->file.data && data + t->bytes <= st->file.data + st->file.size);
        FUZZ_REQUIRE(t->bytes == walsh_tensor_elements(t) * walsh_dtype_size(t->dtype));
        bytes += t->bytes;
    }
    FUZZ_REQUIRE(bytes < st->file.size);
}

static void write_again(const struct walsh_safetensors *st)
{
    struct walsh_safetensors_plan plan = {0};
    struct walsh_safetensors again;
    struct walsh_error err = {0};
    uint8_t *file;
    for (size_t i = 0; i < st->count; i++) {
        const struct walsh_tensor *t = &st->tensors[i];
        FUZZ_REQUIRE(walsh_plan_add(&plan, t->name, t->dtype, t->rank, t->shape, &err) == WALSH_OK);
    }
    FUZZ_REQUIRE(walsh_plan_finish(&plan, &err) == WALSH_OK);
    FUZZ_REQUIRE(walsh_alloc_zero(plan.file_bytes, 1, "a file", &file, &err) == WALSH_OK);
    memcpy(file, plan.header, plan.header_bytes);
    for (size_t i = 0; i < st->count; i++) {
        const struct walsh_tensor *t = &st->tensors[i];
        memcpy(file + plan.offsets[walsh_plan_find(&plan, t->name)], t->data, t->bytes);
    }
    fuzz_write("again.safetensors", file, plan.file_bytes);
    FUZZ_REQUIRE(walsh_safetensors_open(fuzz_path("again.safetensors"), false, &again, &err) == WALSH_OK);
    FUZZ_REQUIRE(again.count == st->count);
    for (size_t i = 0; i < st->count; i++) {
        const struct walsh_tensor *a = &st->tensors[i], *b = &again.tensors[i];
        FUZZ_REQUIRE(strcmp(a->name, b->name) == 0 && a->dtype == b->dtype && a->rank == b->rank);
        FUZZ_REQUIRE(a->bytes == b->bytes && memcmp(a->data, b->data, a->bytes) == 0);
    }
    walsh_safetensors_close(&again);
    walsh_free(file);
    walsh_plan_close(&plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct walsh_safetensors st;
    struct walsh_error err = {0};
    fuzz_write("one.safetensors", data, size);
    if (walsh_safetensors_open(fuzz_path("one.safetensors"), false, &st, &err) != WALSH_OK) {
        fuzz_refused(&err);
        return 0;
    }
    check_tensors(&st);
    write_again(&st);
    walsh_safetensors_close(&st);
    return 0;
}

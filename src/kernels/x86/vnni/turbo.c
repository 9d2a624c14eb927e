#include "kernels/x86/avx512/turbo_words.h"

#undef VECTOR_NAME
#define VECTOR_NAME(kernel) walsh_##kernel##_vnni

#include "kernels/x86/turbo.inc"

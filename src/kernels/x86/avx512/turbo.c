#include "kernels/x86/avx512/turbo_words.h"

#include "kernels/x86/turbo.inc"

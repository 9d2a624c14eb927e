#include "kernels/x86/avx2/turbo_words.h"

#include "kernels/x86/turbo.inc"

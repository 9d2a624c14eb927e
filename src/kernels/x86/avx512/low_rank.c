#include "kernels/x86/avx512/vector.h"

#include "kernels/x86/low_rank.inc"

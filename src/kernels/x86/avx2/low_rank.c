#include "kernels/x86/avx2/vector.h"

#include "kernels/x86/low_rank.inc"

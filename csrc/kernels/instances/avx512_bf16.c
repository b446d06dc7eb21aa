/* AVX-512, bfloat16 logits. */
#if defined(__x86_64__)
#include "../simd_avx512.h"

#include "../dtype_bf16.h"

#include "../instance.inc.h"
#endif

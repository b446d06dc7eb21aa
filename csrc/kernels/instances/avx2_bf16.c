/* AVX2, bfloat16 logits. */
#if defined(__x86_64__)
#include "../simd_avx2.h"

#include "../dtype_bf16.h"

#include "../instance.inc.h"
#endif

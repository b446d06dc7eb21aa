/* AVX-512, float16 logits. */
#if defined(__x86_64__)
#include "../simd_avx512.h"

#include "../dtype_f16.h"

#include "../instance.inc.h"
#endif

/* AVX2, float32 logits. */
#if defined(__x86_64__)
#include "../simd_avx2.h"

#include "../dtype_f32.h"

#include "../instance.inc.h"
#endif

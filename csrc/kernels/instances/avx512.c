/* AVX-512: what does not depend on the dtype of the logits. */
#if defined(__x86_64__)
#include "../simd_avx512.h"

#include "../target.inc.h"
#endif

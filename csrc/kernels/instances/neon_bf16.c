/* NEON, bfloat16 logits. */
#if defined(__AARCH64EL__)
#include "../simd_neon.h"

#include "../dtype_bf16.h"

#include "../instance.inc.h"
#endif

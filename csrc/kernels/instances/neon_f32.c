/* NEON, float32 logits. */
#if defined(__AARCH64EL__)
#include "../simd_neon.h"

#include "../dtype_f32.h"

#include "../instance.inc.h"
#endif

/* NEON, float64 logits. */
#if defined(__AARCH64EL__)
#include "../simd_neon.h"

#include "../dtype_f64.h"

#include "../instance.inc.h"
#endif

/* Plain C with fma, float64 logits. */
#if defined(__x86_64__)
#include "../simd_plain_fma.h"

#include "../dtype_f64.h"

#include "../instance.inc.h"
#endif

/* Plain C with fma, bfloat16 logits. */
#if defined(__x86_64__)
#include "../simd_plain_fma.h"

#include "../dtype_bf16.h"

#include "../instance.inc.h"
#endif

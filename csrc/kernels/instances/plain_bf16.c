/* Plain C, bfloat16 logits. */
#include "../simd_plain.h"

#include "../dtype_bf16.h"

#include "../instance.inc.h"

/* Plain C, float16 logits. */
#include "../simd_plain.h"

#include "../dtype_f16.h"

#include "../instance.inc.h"

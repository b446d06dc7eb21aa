/* Plain C, float32 logits. */
#include "../simd_plain.h"

#include "../dtype_f32.h"

#include "../instance.inc.h"

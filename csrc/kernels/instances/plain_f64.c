/* Plain C, float64 logits. */
#include "../simd_plain.h"

#include "../dtype_f64.h"

#include "../instance.inc.h"

/* Plain C: what does not depend on the dtype of the logits. */
#include "../simd_plain.h"

#include "../target.inc.h"

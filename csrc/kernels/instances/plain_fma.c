/* Plain C with fma: what does not depend on the dtype of the logits. */
#if defined(__x86_64__)
#include "../simd_plain_fma.h"

#include "../target.inc.h"
#endif

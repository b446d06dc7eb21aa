/* NEON: what does not depend on the dtype of the logits. */
#if defined(__AARCH64EL__)
#include "../simd_neon.h"

#include "../target.inc.h"
#endif

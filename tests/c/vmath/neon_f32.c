#if defined(__AARCH64EL__)
#include "simd_neon.h"

#include "f32.inc.h"
#endif

#if defined(__AARCH64EL__)
#include "simd_neon.h"

#include "f64.inc.h"
#endif

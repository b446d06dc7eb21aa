#if defined(__x86_64__)
#include "simd_plain_fma.h"

#include "f32.inc.h"
#endif

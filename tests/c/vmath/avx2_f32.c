#if defined(__x86_64__)
#include "simd_avx2.h"

#include "f32.inc.h"
#endif

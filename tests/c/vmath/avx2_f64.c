#if defined(__x86_64__)
#include "simd_avx2.h"

#include "f64.inc.h"
#endif

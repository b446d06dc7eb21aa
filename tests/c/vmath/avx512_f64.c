#if defined(__x86_64__)
#include "simd_avx512.h"

#include "f64.inc.h"
#endif

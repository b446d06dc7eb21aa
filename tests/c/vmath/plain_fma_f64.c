#if defined(__x86_64__)
#include "simd_plain_fma.h"

#include "f64.inc.h"
#endif

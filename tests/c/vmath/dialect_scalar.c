#define INLINE static __attribute__((noinline, unused))
#include "kernels.h"
#include "simd_scalar.h"

#include "dialect.inc.h"
DIALECT(scalar);

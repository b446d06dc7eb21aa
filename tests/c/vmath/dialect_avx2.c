#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define INLINE static inline __attribute__((always_inline))
#include "kernels.h"
#include "simd_avx2.h"

#include "dialect.inc.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
DIALECT(avx2);
#else
typedef int no_avx2;
#endif

/* The kernels in AVX2 with FMA and F16C. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#ifndef INLINE /* sanitizers take minutes over what is inlined */
#define INLINE static inline __attribute__((always_inline))
#endif
#include "kernels.h"
#include "simd_avx2.h"

#include "vmath.inc.h"

#include "elementwise.inc.h"
#include "stamp.inc.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

static int supported(void);
KERNELS(avx2, supported);

static int supported(void) {
    /* Every processor with AVX2 and FMA has F16C, which older compilers can't ask for. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
typedef int pyce_no_avx2;
#endif

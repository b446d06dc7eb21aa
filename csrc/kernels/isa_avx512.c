/* The kernels in AVX-512. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),                   \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#ifndef INLINE /* sanitizers take minutes over what is inlined */
#define INLINE static inline __attribute__((always_inline))
#endif
#include "kernels.h"
#include "simd_avx512.h"

#include "vmath.inc.h"

#include "elementwise.inc.h"
#include "stamp.inc.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

static int supported(void);
KERNELS(avx512, supported);

static int supported(void) {
    /* These look at the operating system's state too, not at CPUID alone. */
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}
#else
typedef int pyce_no_avx512;
#endif

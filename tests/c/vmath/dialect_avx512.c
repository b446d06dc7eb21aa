#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))),                   \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define INLINE static inline __attribute__((always_inline))
#include "kernels.h"
#include "simd_avx512.h"

#include "dialect.inc.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
DIALECT(avx512);
#else
typedef int no_avx512;
#endif

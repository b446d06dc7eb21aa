/* The vector operations of simd_plain.h for processors with fma in hardware that not every processor of
 * the architecture has.
 */
#define TARGET plain_fma
#define TARGET_NAME "scalar"
#define TARGET_SUPPORTED PLAIN_FMA_SUPPORTED
#define PLAIN_FMA

#include "cpu_x86.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("fma"))), apply_to = function)
#define TARGET_END _Pragma("clang attribute pop")
#else
#pragma GCC push_options
#define TARGET_END _Pragma("GCC pop_options")
#pragma GCC target("fma")
#endif

#include "simd_plain.h"

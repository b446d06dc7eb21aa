/* The instruction sets that an x86-64 processor has and whose registers the operating system saves.
 *
 * __builtin_cpu_supports would answer the same question where the compiler's library is linked that
 * fills its table: clang does not link it on Windows, and that of zig leaves the table empty.
 */
#ifndef PYCE_CPU_X86_H
#define PYCE_CPU_X86_H

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>
#if defined(__APPLE__)
#include <stdlib.h>
#include <sys/sysctl.h>
#endif

/* FMA also stands for F16C, which every processor with FMA and AVX2 has; AVX-512 for F, BW, DQ
   and VL. */
enum { CPU_FMA = 1, CPU_AVX2 = 2, CPU_AVX512 = 4 };

/* The sets that follow from register C of CPUID's leaf 1, register B of its leaf 7, and the states that
 * the system saves (XCR0): SSE 1 and AVX 2; masks 5, low halves 6 and high registers 7 of AVX-512. */
static inline unsigned cpu_features(uint32_t leaf1_c, uint32_t leaf7_b, uint32_t saved) {
    const uint32_t avx = 1u << 28, fma = avx | 1u << 12 | 1u << 29;
    const uint32_t avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    unsigned found = 0;
    if ((saved & 0x6) != 0x6) return 0;
    if ((leaf1_c & fma) == fma) found |= CPU_FMA;
    if ((leaf1_c & avx) && (leaf7_b & avx2)) found |= CPU_AVX2;
    if ((saved & 0xe0) == 0xe0 && (found & CPU_AVX2) && (leaf7_b & avx512) == avx512) {
        found |= CPU_AVX512;
    }
    return found;
}

/* The states that the system saves. */
static inline uint32_t cpu_saved_states(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
#if defined(__APPLE__)
    /* macOS saves AVX-512 for a thread from its first use on, and XCR0 does not show it before. Up to
       Darwin 21.2, signals can damage the masks. */
    int present = 0;
    char release[32] = "", *rest;
    size_t size = sizeof present, length = sizeof release - 1;
    low &= ~0xe0u;
    if (!sysctlbyname("hw.optional.avx512f", &present, &size, NULL, 0) && present &&
        !sysctlbyname("kern.osrelease", release, &length, NULL, 0)) {
        const long major = strtol(release, &rest, 10);
        const long minor = *rest == '.' ? strtol(rest + 1, NULL, 10) : 0;
        if (major > 21 || (major == 21 && minor >= 3)) low |= 0xe0;
    }
#endif
    return low;
}

/* Whether this machine has all the `wanted` sets (CPU_…). */
static inline int cpu_has(unsigned wanted) {
    unsigned a, b, c, d, leaf7_b = 0;
    const unsigned has_xgetbv = 1u << 27;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & has_xgetbv)) return 0;
    const uint32_t leaf1_c = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) leaf7_b = b;
    return (cpu_features(leaf1_c, leaf7_b, cpu_saved_states()) & wanted) == wanted;
}
#endif

#endif

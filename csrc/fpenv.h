/* The floating-point environment of the kernels: round to nearest, subnormal numbers, no traps.
 *
 * Another library may have set flush-to-zero in the calling thread. The results must not depend on it,
 * and the environment of the caller must not change, its exception flags included. */
#ifndef PYCE_FPENV_H
#define PYCE_FPENV_H

#include <stdint.h>

#if defined(__x86_64__)
typedef uint32_t pyce_fpenv;
static inline pyce_fpenv pyce_fpenv_enter(void) {
    const uint32_t before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    return before;
}
static inline void pyce_fpenv_leave(pyce_fpenv before) { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
typedef struct {
    uint64_t control, status;
} pyce_fpenv;
static inline pyce_fpenv pyce_fpenv_enter(void) {
    pyce_fpenv before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(before.status));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return before;
}
static inline void pyce_fpenv_leave(pyce_fpenv before) {
    __asm__ volatile("msr fpcr, %0" : : "r"(before.control));
    __asm__ volatile("msr fpsr, %0" : : "r"(before.status));
}
#else
#include <fenv.h>
typedef fenv_t pyce_fpenv;
static inline pyce_fpenv pyce_fpenv_enter(void) {
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}
static inline void pyce_fpenv_leave(pyce_fpenv before) { fesetenv(&before); }
#endif

#endif

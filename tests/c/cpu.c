/* Prints what csrc/kernels/cpu_x86.h finds, for test_cpu.py, as the sum of CPU_… constants.
 *
 *     cpu                      on this machine, and what the compiler's own check finds
 *     cpu LEAF1_C LEAF7_B XCR0     for these contents of registers
 */
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu_x86.h"

static uint32_t number(const char *text) { return (uint32_t)strtoull(text, NULL, 0); }

int main(int count, char **words) {
    if (count == 4) {
        printf("%u\n", cpu_features(number(words[1]), number(words[2]), number(words[3])));
        return 0;
    }
    int found = 0, expected = 0;
    for (unsigned set = CPU_FMA; set <= CPU_AVX512; set *= 2) found += cpu_has(set) ? (int)set : 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("fma")) expected += CPU_FMA;
    if (__builtin_cpu_supports("avx2")) expected += CPU_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        expected += CPU_AVX512;
    }
    printf("%d %d\n", found, expected);
    return 0;
}

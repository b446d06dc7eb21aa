/* What depends on the operating system or the processor's architecture, outside the kernels; fpenv.h has
 * the floating-point environment. Everything else is C11 and POSIX threads.
 *
 * Include this file first: on Linux, declarations of the system headers depend on _GNU_SOURCE.
 */
#ifndef PYCE_PLATFORM_H
#define PYCE_PLATFORM_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

/* -- time ------------------------------------------------------------------------------------------ */

/* Tells the processor that a loop waits for another thread. */
static inline void platform_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Nanoseconds of a clock that never goes back. */
static inline int64_t platform_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* -- memory ---------------------------------------------------------------------------------------- */

/* At least `size` bytes at a multiple of 64, or NULL; to be freed by platform_free. */
static inline void *platform_allocate(size_t size) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) ? NULL : memory;
}
static inline void platform_free(void *memory) { free(memory); }

/* Bytes of the largest data cache of the first processor; 0 or less if unknown. Linux is asked by its
   files, since sysconf returns the sum over a socket in some C libraries. */
static inline int64_t platform_cache_size(void) {
    int64_t largest = 0;
#if defined(__linux__)
    for (int i = 0; i < 8; i++) {
        char path[80], unit = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        FILE *file = fopen(path, "r");
        if (!file) break;
        long long size = 0;
        const int found = fscanf(file, "%lld%c", &size, &unit);
        fclose(file);
        if (found < 1 || size < 0 || size > (1LL << 40)) continue;
        if (unit == 'K') size <<= 10;
        if (unit == 'M') size <<= 20;
        if (size > largest) largest = size;
    }
#endif
#if defined(_SC_LEVEL3_CACHE_SIZE)
    if (!largest) largest = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (largest <= 0) largest = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return largest;
}

/* -- processors ------------------------------------------------------------------------------------ */

/* A set of processors that a thread may use. Where a system has no such sets, platform_processor
   returns −1 and the other functions are not called. */
#if defined(__linux__)
typedef cpu_set_t platform_cpus;

/* The processor that runs the calling thread, or −1. */
static inline int platform_processor(void) { return sched_getcpu(); }

/* The processors that the calling thread may use; returns 0, or an error. */
static inline int platform_get_affinity(platform_cpus *cpus) {
    return pthread_getaffinity_np(pthread_self(), sizeof *cpus, cpus);
}

static inline int platform_same_cpus(const platform_cpus *a, const platform_cpus *b) {
    return CPU_EQUAL(a, b);
}

/* Let a thread use `cpus` without `excluded` (−1: all of them, as also where nothing would be left).
   The system may refuse; the thread then stays where it was. */
static inline void platform_set_affinity(pthread_t thread, const platform_cpus *cpus,
                                         int excluded) {
    cpu_set_t allowed = *cpus;
    if (excluded >= 0) CPU_CLR((size_t)excluded, &allowed);
    if (CPU_COUNT(&allowed) == 0) allowed = *cpus;
    (void)pthread_setaffinity_np(thread, sizeof allowed, &allowed);
}
#else
typedef char platform_cpus;
static inline int platform_processor(void) { return -1; }
static inline int platform_get_affinity(platform_cpus *cpus) {
    *cpus = 0;
    return -1;
}
static inline int platform_same_cpus(const platform_cpus *a, const platform_cpus *b) {
    return *a == *b;
}
static inline void platform_set_affinity(pthread_t thread, const platform_cpus *cpus,
                                         int excluded) {
    (void)thread;
    (void)cpus;
    (void)excluded;
}
#endif

#endif

/* The functions that platform.h declares, on Linux, macOS and other systems with POSIX threads. */
#ifndef PYCE_PLATFORM_POSIX_H
#define PYCE_PLATFORM_POSIX_H

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/mman.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static inline int64_t platform_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void *platform_allocate(size_t size) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, size) ? NULL : memory;
}
static inline void platform_free(void *memory) { free(memory); }

static inline void platform_request_huge_pages(void *memory, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)memory + size) / page * page;
    if (begin < end) (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)size;
#endif
}

/* Linux is asked by its files, since sysconf returns the sum over a socket in some C libraries and
   nothing in musl. macOS lists the caches of the fastest processors first. */
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
#elif defined(__APPLE__)
    static const char *const names[] = {"hw.l3cachesize", "hw.perflevel0.l2cachesize",
                                        "hw.l2cachesize"};
    for (int i = 0; i < 3 && largest <= 0; i++) {
        size_t bytes = sizeof largest;
        if (sysctlbyname(names[i], &largest, &bytes, NULL, 0)) largest = 0;
    }
#endif
#if defined(_SC_LEVEL3_CACHE_SIZE)
    if (!largest) largest = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (largest <= 0) largest = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return largest;
}

typedef pthread_t platform_thread;
typedef void *platform_thread_result;

static inline int platform_start_thread(platform_thread *thread,
                                        platform_thread_result (*run)(void *), void *argument) {
    /* A thread inherits the mask of its creator. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int error = pthread_create(thread, &attributes, run, argument);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

typedef pthread_mutex_t platform_lock;
static inline void platform_init_lock(platform_lock *lock) { pthread_mutex_init(lock, NULL); }
static inline void platform_acquire(platform_lock *lock) { pthread_mutex_lock(lock); }
static inline void platform_release(platform_lock *lock) { pthread_mutex_unlock(lock); }

typedef pthread_cond_t platform_condition;
static inline void platform_init_condition(platform_condition *condition) {
    pthread_cond_init(condition, NULL);
}
static inline void platform_wait(platform_condition *condition, platform_lock *lock) {
    pthread_cond_wait(condition, lock);
}
static inline void platform_wake_one(platform_condition *condition) {
    pthread_cond_signal(condition);
}
static inline void platform_wake_all(platform_condition *condition) {
    pthread_cond_broadcast(condition);
}

typedef pthread_key_t platform_key;
static inline int platform_create_key(platform_key *key, void (*free_value)(void *)) {
    return pthread_key_create(key, free_value);
}
static inline void *platform_get_value(platform_key key) { return pthread_getspecific(key); }
static inline int platform_set_value(platform_key key, void *value) {
    return pthread_setspecific(key, value);
}

static inline void platform_on_fork(void (*in_child)(void)) {
    pthread_atfork(NULL, NULL, in_child);
}

#if defined(__linux__)
typedef cpu_set_t platform_cpus;
static inline int platform_processor(void) { return sched_getcpu(); }
static inline int platform_get_affinity(platform_cpus *cpus) {
    return sched_getaffinity(0, sizeof *cpus, cpus); /* of the calling thread */
}
static inline int platform_same_cpus(const platform_cpus *a, const platform_cpus *b) {
    return CPU_EQUAL(a, b);
}
static inline void platform_set_affinity(platform_thread thread, const platform_cpus *cpus,
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
static inline void platform_set_affinity(platform_thread thread, const platform_cpus *cpus,
                                         int excluded) {
    (void)thread;
    (void)cpus;
    (void)excluded;
}
#endif

#endif

/* The functions that platform.h declares, on Windows 7 and later. */
#ifndef PYCE_PLATFORM_WINDOWS_H
#define PYCE_PLATFORM_WINDOWS_H

#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <windows.h>

static inline int64_t platform_now_ns(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    const int64_t second = 1000000000, rest = now.QuadPart % frequency.QuadPart;
    return now.QuadPart / frequency.QuadPart * second + rest * second / frequency.QuadPart;
}

static inline void *platform_allocate(size_t size) { return _aligned_malloc(size, 64); }
static inline void platform_free(void *memory) { _aligned_free(memory); }

static inline void platform_request_huge_pages(void *memory, size_t size) {
    (void)memory;
    (void)size;
}

static inline int64_t platform_cache_size(void) {
    int64_t largest = 0;
    DWORD size = 0;
    GetLogicalProcessorInformation(NULL, &size);
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION *found = malloc(size + 1);
    if (found && GetLogicalProcessorInformation(found, &size)) {
        for (size_t i = 0; i < size / sizeof *found; i++) {
            const CACHE_DESCRIPTOR *cache = &found[i].Cache;
            if (found[i].Relationship == RelationCache && (found[i].ProcessorMask & 1) &&
                (cache->Type == CacheData || cache->Type == CacheUnified) &&
                cache->Size > largest) {
                largest = cache->Size;
            }
        }
    }
    free(found);
    return largest;
}

typedef char platform_thread; /* not used */
typedef DWORD platform_thread_result;

/* Keep the library loaded until the process ends, since threads run its code. Returns 0, or an
   error. */
static inline int platform_stay_loaded(void) {
    static const char inside = 0;
    HMODULE library;
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS;
    return GetModuleHandleExW(flags, (LPCWSTR)(uintptr_t)&inside, &library) ? 0 : -1;
}

static inline int platform_start_thread(platform_thread *thread,
                                        platform_thread_result (*run)(void *), void *argument) {
    *thread = 0;
    if (platform_stay_loaded()) return -1;
    const HANDLE started = CreateThread(NULL, 0, run, argument, 0, NULL);
    if (!started) return -1;
    CloseHandle(started);
    return 0;
}

typedef SRWLOCK platform_lock;
static inline void platform_init_lock(platform_lock *lock) { InitializeSRWLock(lock); }
static inline void platform_acquire(platform_lock *lock) { AcquireSRWLockExclusive(lock); }
static inline void platform_release(platform_lock *lock) { ReleaseSRWLockExclusive(lock); }

typedef CONDITION_VARIABLE platform_condition;
static inline void platform_init_condition(platform_condition *condition) {
    InitializeConditionVariable(condition);
}
static inline void platform_wait(platform_condition *condition, platform_lock *lock) {
    SleepConditionVariableSRW(condition, lock, INFINITE, 0);
}
static inline void platform_wake_one(platform_condition *condition) {
    WakeConditionVariable(condition);
}
static inline void platform_wake_all(platform_condition *condition) {
    WakeAllConditionVariable(condition);
}

/* Of the kinds of thread-local storage, only that of fibers calls a function when a thread ends. */
typedef DWORD platform_key;
static inline int platform_create_key(platform_key *key, void (*free_value)(void *)) {
    *key = FlsAlloc(free_value);
    return *key == FLS_OUT_OF_INDEXES ? -1 : 0;
}
static inline void *platform_get_value(platform_key key) { return FlsGetValue(key); }
static inline int platform_set_value(platform_key key, void *value) {
    return platform_stay_loaded() || !FlsSetValue(key, value) ? -1 : 0;
}

static inline void platform_on_fork(void (*in_child)(void)) { (void)in_child; }

/* The affinity of a process holds for all of its threads. */
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

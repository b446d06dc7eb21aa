/* Functions that depend on the operating system or the processor's architecture, outside the
 * kernels; fpenv.h has the floating-point environment. Everything else is C11 with the extensions of
 * GCC and clang.
 *
 * This file declares the functions; platform_posix.h and platform_windows.h define them. Nothing
 * here or above it depends on Python: no function is called by, or calls, an interpreter.
 *
 * Include this file first: on Linux, declarations of the system headers depend on _GNU_SOURCE.
 */
#ifndef PYCE_PLATFORM_H
#define PYCE_PLATFORM_H

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if !defined(__clang__)
#error "GCC does not align vectors of 32 and 64 bytes on the stack of Windows; compile with clang"
#endif
#include "platform_windows.h"
#else
#include "platform_posix.h"
#endif

/* -- time ------------------------------------------------------------------------------------------ */

/* Tells the processor that a loop waits for another thread. */
static inline void platform_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Nanoseconds of a clock that never goes back. */
static inline int64_t platform_now_ns(void);

/* -- memory ---------------------------------------------------------------------------------------- */

/* At least `size` bytes at a multiple of 64, or NULL; to be freed by platform_free. */
static inline void *platform_allocate(size_t size);
static inline void platform_free(void *memory);

/* Ask for huge pages in a range of memory, which the system then provides in fewer steps. Has no
   effect where there are none. */
static inline void platform_request_huge_pages(void *memory, size_t size);

/* Bytes of the largest data cache of the first processor; 0 or less if unknown. */
static inline int64_t platform_cache_size(void);

/* -- threads --------------------------------------------------------------------------------------- */

/* Start a thread that nobody waits for and that handles no signals. Returns 0, or an error. */
static inline int platform_start_thread(platform_thread *thread,
                                        platform_thread_result (*run)(void *), void *argument);

static inline void platform_init_lock(platform_lock *lock);
static inline void platform_acquire(platform_lock *lock);
static inline void platform_release(platform_lock *lock);

static inline void platform_init_condition(platform_condition *condition);
/* With the lock held, which is released while the thread waits. May return without a signal. */
static inline void platform_wait(platform_condition *condition, platform_lock *lock);
static inline void platform_wake_one(platform_condition *condition);
static inline void platform_wake_all(platform_condition *condition);

/* A pointer of each thread, NULL at first. A thread that ends passes its own to `free_value` if it is
   not NULL. Functions that return int return 0, or an error. */
static inline int platform_create_key(platform_key *key, void (*free_value)(void *));
static inline void *platform_get_value(platform_key key);
static inline int platform_set_value(platform_key key, void *value);

/* Call `in_child` in the child of every fork, on systems that have forks. */
static inline void platform_on_fork(void (*in_child)(void));

/* -- processors ------------------------------------------------------------------------------------ */

/* The processor that runs the calling thread, or −1 where workers need not be placed: the following
   functions are not called then. */
static inline int platform_processor(void);
/* The processors that the calling thread may use. Returns 0, or an error. */
static inline int platform_get_affinity(platform_cpus *cpus);
static inline int platform_same_cpus(const platform_cpus *a, const platform_cpus *b);
/* Let a thread use `cpus` without `excluded` (−1: all of them, as also where nothing would be left).
   The system may refuse; the thread then stays where it was. */
static inline void platform_set_affinity(platform_thread thread, const platform_cpus *cpus,
                                         int excluded);

#endif

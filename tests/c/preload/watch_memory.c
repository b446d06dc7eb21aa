/* Preloaded into Python, this library lets allocations of pyce's extension fail: of those of a thread, the
 * `number`-th after refuse_memory(number, later), counted from 0, and all that follow it if `later`. From the
 * first such call on, it counts what the extension has allocated, in any thread, and not freed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The functions of the GNU C library that these replace. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

#define OF_A_THREAD static _Thread_local __attribute__((tls_model("initial-exec")))

/* Allocations until the one that fails; −1 if none does. */
OF_A_THREAD int left = -1;
OF_A_THREAD int refuses_later, has_refused;

/* -- the allocations that are not freed ------------------------------------------------------------ */

/* A table of their addresses. An address selects an entry, and is in that one or in one of the next. `free`
   recognises them by this table and not by its caller: where it is the last call of a function, the compiler
   jumps to it, so that its return address is not in the extension. */
enum { SIZE = 1 << 16, NEXT = 16 };
static _Atomic(void *) kept[SIZE + NEXT];
static _Atomic int started, count;

/* Replace `from` by `to` in an entry for this address. Returns whether there was one with `from`. */
static int replace(const void *memory, void *from, void *to) {
    _Atomic(void *) *entry = kept + (uintptr_t)memory / 16 % SIZE;
    for (int i = 0; i < NEXT; i++) {
        void *expected = from;
        if (atomic_compare_exchange_strong(entry + i, &expected, to)) return 1;
    }
    return 0;
}

static void *keep(void *memory) {
    if (memory && replace(memory, NULL, memory)) count++;
    return memory;
}

int allocations(void) { return count; }

/* -- refusals -------------------------------------------------------------------------------------- */

void refuse_memory(int number, int later) {
    left = number;
    refuses_later = later;
    has_refused = 0;
    started = 1;
}

/* Stops. Returns whether no allocation failed. */
int was_not_refused(void) {
    left = -1;
    return !has_refused;
}

static int is_of_pyce(const void *caller) {
    Dl_info found;
    return started && dladdr(caller, &found) && strstr(found.dli_fname, "_pyce");
}

/* Whether an allocation of pyce fails. */
static int refuses(void) {
    if (left < 0) return 0;
    if (left > 0) {
        left--;
        return 0;
    }
    has_refused = 1;
    if (!refuses_later) left = -1;
    return 1;
}

/* -- the functions --------------------------------------------------------------------------------- */

void *malloc(size_t size) {
    if (!is_of_pyce(__builtin_return_address(0))) return __libc_malloc(size);
    return refuses() ? NULL : keep(__libc_malloc(size));
}

void *calloc(size_t number, size_t size) {
    if (!is_of_pyce(__builtin_return_address(0))) return __libc_calloc(number, size);
    return refuses() ? NULL : keep(__libc_calloc(number, size));
}

int posix_memalign(void **to, size_t alignment, size_t size) {
    const int counts = is_of_pyce(__builtin_return_address(0));
    if (counts && refuses()) return ENOMEM;
    *to = __libc_memalign(alignment, size);
    if (counts) keep(*to);
    return *to ? 0 : ENOMEM;
}

void free(void *memory) {
    if (memory && started && replace(memory, memory, NULL)) count--;
    __libc_free(memory);
}

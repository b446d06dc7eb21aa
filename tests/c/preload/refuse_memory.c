/* Preloaded into Python, this library lets allocations of pyce's extension fail: of those of a thread, the
 * `number`-th after refuse_memory(number, later), counted from 0, and all that follow it if `later`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

/* The functions of the GNU C library that these replace. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

#define OF_A_THREAD static _Thread_local __attribute__((tls_model("initial-exec")))

/* Allocations until the one that fails; −1 if none does. */
OF_A_THREAD int left = -1;
OF_A_THREAD int refuses_later, has_refused;

void refuse_memory(int number, int later) {
    left = number;
    refuses_later = later;
    has_refused = 0;
}

/* Stops. Returns whether no allocation failed. */
int was_not_refused(void) {
    left = -1;
    return !has_refused;
}

static int refuses(const void *caller) {
    Dl_info found;
    if (left < 0 || !dladdr(caller, &found) || !strstr(found.dli_fname, "_pyce")) return 0;
    if (left > 0) {
        left--;
        return 0;
    }
    has_refused = 1;
    if (!refuses_later) left = -1;
    return 1;
}

void *malloc(size_t size) {
    return refuses(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return refuses(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

int posix_memalign(void **to, size_t alignment, size_t size) {
    if (refuses(__builtin_return_address(0))) return ENOMEM;
    *to = __libc_memalign(alignment, size);
    return *to ? 0 : ENOMEM;
}

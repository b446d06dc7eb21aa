/* Preloaded into Python, this library lets one allocation of pyce's extension fail: of those of a thread,
 * the `number`-th after refuse_memory(number), counted from 0. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

/* The functions of the GNU C library that these replace. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

/* Allocations until the one that fails; −1 if none does. */
static _Thread_local int left __attribute__((tls_model("initial-exec"))) = -1;

void refuse_memory(int number) { left = number; }

/* Stops. Returns whether no allocation failed. */
int was_not_refused(void) {
    const int result = left >= 0;
    left = -1;
    return result;
}

static int refuses(const void *caller) {
    Dl_info found;
    if (left < 0 || !dladdr(caller, &found) || !strstr(found.dli_fname, "_pyce")) return 0;
    return left-- == 0;
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

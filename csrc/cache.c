/* The size of the last-level cache, which decides what is streamed and what is computed again.
 */
#include "platform.h"

#include <stdatomic.h>

#include "internal.h"

/* Where the system does not tell. */
#define USUAL_SIZE ((int64_t)32 << 20)

/* 0 until it is first needed. */
static _Atomic int64_t known_size;

int64_t pyce_last_cache(void) {
    int64_t size = known_size;
    if (!size) {
        size = platform_cache_size();
        if (size <= 0) size = USUAL_SIZE;
        known_size = size;
    }
    return size;
}

int64_t pyce_set_cache(int64_t bytes) {
    const int64_t before = pyce_last_cache();
    known_size = bytes > 0 ? bytes : 0;
    return before;
}

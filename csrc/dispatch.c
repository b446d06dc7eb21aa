#include "dispatch.h"

#include <stdatomic.h>
#include <string.h>

/* Widest first. */
#define ENTRY(target) &pyce_kernels_##target,
static const pyce_kernels *const table[] = {PYCE_TARGETS(ENTRY)};
#undef ENTRY
enum { COUNT = sizeof table / sizeof *table };

static _Atomic(const pyce_kernels *) in_use;

const char *pyce_isa(int i) {
    for (int k = 0; k < COUNT && i >= 0; k++) {
        if (table[k]->supported() && i-- == 0) return table[k]->name;
    }
    return NULL;
}

const pyce_kernels *pyce_dispatch(void) {
    const pyce_kernels *kernels = atomic_load_explicit(&in_use, memory_order_acquire);
    for (int k = 0; !kernels && k < COUNT; k++) {
        if (table[k]->supported()) kernels = table[k];
    }
    atomic_store_explicit(&in_use, kernels, memory_order_release);
    return kernels;
}

const char *pyce_isa_in_use(void) { return pyce_dispatch()->name; }

int pyce_set_isa(const char *name) {
    for (int k = 0; name && k < COUNT; k++) {
        if (strcmp(table[k]->name, name) == 0 && table[k]->supported()) {
            atomic_store_explicit(&in_use, table[k], memory_order_release);
            return PYCE_OK;
        }
    }
    return PYCE_BAD_ARGUMENT;
}

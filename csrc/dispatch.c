/* The table of instruction sets, and which of them is in use: for all threads of the process, the
 * widest that the machine supports, until pyce_set_isa chooses another.
 */
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
    const pyce_kernels *chosen = atomic_load_explicit(&in_use, memory_order_acquire);
    if (chosen) return chosen;
    int k = 0;
    while (!table[k]->supported()) k++; /* plain C always is */
    /* pyce_set_isa may have chosen one in the meantime; then that one stays. */
    return atomic_compare_exchange_strong(&in_use, &chosen, table[k]) ? table[k] : chosen;
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

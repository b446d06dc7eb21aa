/* Threads that share the pieces of a job. */
#ifndef PYCE_POOL_H
#define PYCE_POOL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    /* Does pieces begin…end with `scratch` bytes of 64-byte aligned memory of its own. */
    void (*work)(void *context, int64_t begin, int64_t end, void *scratch);
    void *context;
    int64_t pieces;
    int64_t grain; /* pieces that are taken at a time */
    size_t scratch;
} pyce_work;

/* Run every piece once, on the calling thread and at most threads − 1 others, and return when all
 * are done: 0, or −1 when there was no memory for the caller's scratch (then nothing ran).
 *
 * One caller at a time has the pool's threads; others meanwhile run their pieces alone, so there
 * are never more threads than callers + the largest threads − 1. Where the system refuses a thread,
 * the others do its work. Safe after fork: the child starts with a pool of its own and no threads.
 * Threads are created when first needed, in the default floating-point environment, and end with
 * the process or by pyce_pool_limit. */
int pyce_pool_run(const pyce_work *work, int threads);

/* Keep no more than threads − 1 from now on: those beyond end when they are idle. */
void pyce_pool_limit(int threads);

/* Whether a worker would come at once, so that sharing a short job pays; and what a caller says who
 * did a short job alone, so that the next one just after it is shared. */
int pyce_pool_ready(void);
void pyce_pool_note(void);

#endif

/* A pool of threads that share the pieces of a job. */
#ifndef PYCE_POOL_H
#define PYCE_POOL_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    /* Run pieces begin…end with `scratch` bytes of private memory, aligned to 64 bytes. */
    void (*work)(void *context, int64_t begin, int64_t end, void *scratch);
    void *context;
    int64_t pieces;
    int64_t grain; /* pieces that a thread draws at a time */
    size_t scratch;
} pyce_work;

/* Run every piece once, on the calling thread and at most threads − 1 others, and return when all
 * pieces are done. Returns 0, or −1 if the caller's scratch memory could not be allocated; then no
 * piece was run.
 *
 * One caller at a time uses the threads of the pool. Other callers run their pieces alone meanwhile,
 * so the process never computes on more threads than the number of callers + the largest
 * threads − 1. If the system refuses to create a thread, the others do its work. Forking is safe: a
 * child process starts with an empty pool. Threads are created when first needed, in the default
 * floating-point environment, and end with the process or by pyce_pool_limit. */
int pyce_pool_run(const pyce_work *work, int threads);

/* Allocate the calling thread's memory for jobs with at most `scratch` bytes, so that pyce_pool_run runs
   them. Returns 0, or −1 as pyce_pool_run does. */
int pyce_pool_reserve(size_t scratch);

/* Keep at most threads − 1 threads from now on. Those beyond end when they become idle. */
void pyce_pool_limit(int threads);

/* Whether a thread would start on a new job at once, so that sharing a short job is worthwhile. */
int pyce_pool_is_warm(void);

/* Tell the pool that a caller ran a short job alone, so that a job soon after it is shared. */
void pyce_pool_note_call(void);

#endif

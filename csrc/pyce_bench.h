/* The part of the C interface for tests and measurements; build_ffi.py reads this file, too.
 *
 * No result depends on the settings here.
 */
#ifndef PYCE_BENCH_H
#define PYCE_BENCH_H

#include <stdint.h>

/* Copy or read `bytes` bytes with the same threads as the kernels, whose time this bounds from below.
 * With `streaming` the copy bypasses the caches, and `to` must be aligned to 64 bytes. Return a
 * status. */
int pyce_copy(void *to, const void *from, int64_t bytes, int streaming, int threads);
int pyce_read(const void *from, int64_t bytes, int threads);

/* Set the size of the last-level cache that the library assumes, in bytes (0: the size that the system
 * reports), and return the size assumed before. The size decides whether results are streamed past
 * the caches and whether exponentials are computed again rather than saved. */
int64_t pyce_set_cache(int64_t bytes);

/* Get and set the thread thresholds, in element equivalents (elements + PYCE_ROW_OVERHEAD for each
 * row): the work worth one more thread, and the work worth waking a sleeping thread. */
void pyce_get_thread_thresholds(int64_t *share, int64_t *wake);
void pyce_set_thread_thresholds(int64_t share, int64_t wake);

#endif

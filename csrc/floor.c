/* Copying and reading memory with the threads of the pool: the lower bounds of a kernel's time.
 */
#include <string.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"

/* Bytes of a piece. */
#define PIECE ((int64_t)1 << 18)

typedef struct {
    const pyce_kernels *kernels;
    char *to; /* NULL: read only */
    const char *from;
    int64_t bytes;
    int streaming;
} copy_work;

static void copy_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const copy_work *c = context;
    (void)scratch;
    const int64_t first = begin * PIECE;
    const int64_t last = end * PIECE < c->bytes ? end * PIECE : c->bytes;
    const size_t size = (size_t)(last - first);
    if (!c->to) {
        /* The result is not used, but must be computed. */
        volatile uint64_t sink = c->kernels->read(c->from + first, size);
        (void)sink;
    } else if (c->streaming) {
        c->kernels->copy(c->to + first, c->from + first, size);
    } else {
        memcpy(c->to + first, c->from + first, size);
    }
}

static int copy_or_read(void *to, const void *from, int64_t bytes, int streaming, int threads) {
    if (bytes < 0 || bytes > INT64_MAX - PIECE || threads < 1) return PYCE_BAD_ARGUMENT;
    if (streaming && (uintptr_t)to % 64) return PYCE_BAD_ARGUMENT;
    if (bytes && !pyce_copy_is_valid(to, from, bytes)) return PYCE_BAD_ARGUMENT;
    const int64_t pieces = (bytes + PIECE - 1) / PIECE;
    copy_work context = {
        .kernels = pyce_dispatch(), .to = to, .from = from, .bytes = bytes, .streaming = streaming};
    const pyce_work work = {.work = copy_pieces,
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = 64};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}

int pyce_copy(void *to, const void *from, int64_t bytes, int streaming, int threads) {
    if (bytes && !to) return PYCE_BAD_ARGUMENT;
    return copy_or_read(to, from, bytes, streaming, threads);
}

int pyce_read(const void *from, int64_t bytes, int threads) {
    return copy_or_read(NULL, from, bytes, 0, threads);
}

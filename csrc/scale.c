/* The backward pass from a saved gradient: pieces that threads share.
 */
#include <math.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"

/* Elements of a piece. */
enum { PIECE = 16384 };
/* An element costs a fraction of a softmax's. */
enum { ELEMENTS_FOR_ONE = 4 };

typedef struct {
    const pyce_row_kernels *kernels;
    const pyce_scaling *s;
    double factor;
} piece_work;

static void run_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const piece_work *w = context;
    const pyce_scaling *s = w->s;
    const int64_t first = begin * PIECE, last = end * PIECE < s->n ? end * PIECE : s->n;
    (void)scratch;
    w->kernels->scale((const char *)s->saved + (size_t)first * pyce_saved_size(s->dtype),
                      (char *)s->result + (size_t)first * pyce_item_size(s->dtype), last - first,
                      w->factor);
}

/* Not inlined: see pyce_run_problem. */
__attribute__((noinline)) int pyce_run_scaling(const pyce_scaling *s, int threads) {
    const int64_t pieces = (s->n + PIECE - 1) / PIECE;
    piece_work context = {.kernels = pyce_dispatch()->rows[s->dtype],
                          .s = s,
                          .factor = pyce_number_at(s->factor, s->factor_dtype, 0)};
    if (!isfinite(context.factor)) return PYCE_BAD_ARGUMENT;
    if (context.factor == 1 && s->result == s->saved) return PYCE_OK;
    threads = pyce_threads_for(s->n / ELEMENTS_FOR_ONE, threads);
    const pyce_work work = {.work = run_pieces,
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = 64};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}

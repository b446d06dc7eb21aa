/* The Bernoulli loss: pieces of fixed size that threads share, whose sums are added in a fixed tree.
 */
#include <stdlib.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"
#include "reduce.h"

/* Elements of a piece, each worth a thread: an element costs some four of a softmax. */
enum { PIECE = 16384 };
_Static_assert(PYCE_BERNOULLI_SERIAL_BELOW == 2 * PIECE, "two whole pieces are shared");

typedef struct {
    const pyce_kernels *kernels;
    const pyce_bernoulli *b;
    double *sums;
} piece_work;

static void run_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const piece_work *w = context;
    const pyce_bernoulli *b = w->b;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * PIECE;
        const int64_t last = first + PIECE < b->n ? first + PIECE : b->n;
        w->sums[i] = w->kernels->bernoulli[b->dtype](first, last, b->logits, b->target, b->weight,
                                                     b->pos_weight, b->losses, b->grad, b->scale);
    }
}

/* Not inlined: see pyce_run_problem. */
__attribute__((noinline)) int pyce_run_bernoulli(const pyce_bernoulli *b, int threads,
                                                 double *total) {
    const int64_t pieces = (b->n + PIECE - 1) / PIECE, useful = b->n / PIECE;
    double on_stack[64];
    double *sums = pieces <= 64 ? on_stack : malloc((size_t)pieces * sizeof *sums);
    if (!sums) return PYCE_NO_MEMORY;
    if (useful > 1) pyce_pool_limit(threads);
    if (threads > useful) threads = useful < 1 ? 1 : (int)useful;
    piece_work context = {.kernels = pyce_dispatch(), .b = b, .sums = sums};
    const pyce_work work = {.work = run_pieces,
                            .context = &context,
                            .pieces = pieces,
                            .grain = pyce_grain(pieces, threads),
                            .scratch = 64};
    const int status = pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
    if (status == PYCE_OK) *total = sum_by_halves(sums, pieces);
    if (sums != on_stack) free(sums);
    return status;
}

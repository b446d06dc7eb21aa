/* Decisions that follow from a problem alone: the coefficients of its rows, the sizes of tiles, what is
 * streamed, and how many threads share the work.
 */
#include <stdatomic.h>

#include "internal.h"
#include "pool.h"

/* -- threads --------------------------------------------------------------------------------------- */

/* Element equivalents (about 0.2 ns each) that are worth one more thread, and that are worth waking
   a sleeping one. */
static _Atomic int64_t share_threshold = 65536, wake_threshold = 262144;

void pyce_get_thread_thresholds(int64_t *share, int64_t *wake) {
    *share = share_threshold;
    *wake = wake_threshold;
}

void pyce_set_thread_thresholds(int64_t share, int64_t wake) {
    share_threshold = share > 0 ? share : 1;
    wake_threshold = wake;
}

int64_t pyce_serial_below(void) {
    const int64_t share = share_threshold;
    return share > INT64_MAX / 2 ? INT64_MAX : 2 * share;
}

int pyce_threads_for(int64_t work, int allowed) {
    int64_t useful = work / share_threshold;
    if (useful > 1) pyce_pool_limit(allowed);
    if (allowed > 1 && useful > 1 && work / 2 < wake_threshold && !pyce_pool_is_warm()) {
        pyce_pool_note_call();
        useful = 1;
    }
    return useful < 1 ? 1 : allowed < useful ? allowed : (int)useful;
}

/* About 16 draws a thread balance the load. */
int64_t pyce_grain(int64_t pieces, int threads) {
    const int64_t grain = threads == 1 ? pieces : pieces / ((int64_t)threads * 16);
    return grain < 1 ? 1 : grain;
}

/* -- rows ------------------------------------------------------------------------------------------ */

/* The most elements of a tile that has more than the least number of rows. */
enum { TILE_ELEMENTS = 32768 };
/* Results are streamed past the caches if logits, results and labels take more than this share of the
   last one: labels are a third of the bytes of three classes. */
static const double STREAMED_SHARE = 0.9;
/* The number of threads whose saved exponentials shall fit the last-level cache. */
enum { THREADS_OF_A_CACHE = 16 };
/* The blocks for each thread that a shared row has at least, to balance the load. */
enum { SHARED_BLOCKS = 4 };

/* Tiles are powers of two, for the sum by halves, and whole vectors of 16 rows. */
_Static_assert(PYCE_LEAST_TILE % 16 == 0, "lanes of a vector are not split between tiles");
_Static_assert((PYCE_LEAST_TILE & (PYCE_LEAST_TILE - 1)) == 0, "tiles are summed by halves");
_Static_assert((PYCE_TILE & (PYCE_TILE - 1)) == 0 && PYCE_TILE >= PYCE_LEAST_TILE,
               "tiles are doubled from the least to the largest size");
/* Contiguous rows of several blocks are dealt one by one, with a tile of one row, and run.c sums their
   losses in tiles of the least size: the size for as many classes that are not contiguous. */
_Static_assert(TILE_ELEMENTS / (2 * PYCE_LEAST_TILE) < PYCE_BLOCK,
               "rows of several blocks have the least tile");
/* Only such rows are shared. */
_Static_assert(PYCE_FEW < PYCE_BLOCK && SHARED_BLOCKS > 1, "shared rows have several blocks");

/* The factors of the label's term and of the soft-target term, with the errors of their rounding. */
static void plan_coefficients(const pyce_problem *p, pyce_job *job) {
    const int smooth = p->smoothing > 0;
    const double classes = (double)p->classes;
    job->on_value = 1.0 - p->smoothing;
    job->on_value_error = (1.0 - job->on_value) - p->smoothing;
    job->off_value = p->smoothing / classes;
    job->off_value_error = __builtin_fma(-job->off_value, classes, p->smoothing) / classes;
    job->label_part = 1.0;
    job->soft = SOFT_NONE;
    if (p->target == PYCE_PROBABILITIES) {
        job->soft = SOFT_PROBS;
        job->soft_part = 1.0;
        job->blended = p->weight || smooth;
    } else if (p->target != PYCE_NO_TARGET && smooth) {
        job->soft = p->weight ? SOFT_WEIGHT : SOFT_ONE;
        job->label_part = job->on_value;
        job->label_part_error = job->on_value_error;
        job->soft_part = job->off_value;
        job->soft_part_error = job->off_value_error;
    }
    job->unweighted = !(p->weight && p->labels) && !p->sample_weight && !p->grad_losses &&
                      p->lse_square_scale == 0;
}

/* The pivot: only the label's gradient contains p − 1, except that with smoothing, class weights can
   bring another class close to it. Softmax divides by the sum of all exponentials. */
static int pivot_of(const pyce_problem *p) {
    if (p->operation == PYCE_SOFTMAX) return PIVOT_NONE;
    if (p->labels && !(p->smoothing > 0 && p->weight)) return PIVOT_LABEL;
    return PIVOT_MAX;
}

static int64_t tile_of(const pyce_problem *p) {
    if (p->inner == 1 && p->classes > PYCE_BLOCK) return 1;
    int64_t tile = PYCE_LEAST_TILE;
    while (tile < PYCE_TILE && tile * 2 <= TILE_ELEMENTS / p->classes) tile *= 2;
    return tile;
}

/* The bytes of logits, result and labels. */
static double bytes_of(const pyce_problem *p, int64_t classes) {
    const double rows = (double)(p->outer * p->inner);
    double row = 2.0 * (double)classes * (double)pyce_item_size(p->dtype);
    if (p->target == PYCE_INDEX64) row += sizeof(int64_t);
    if (p->target == PYCE_INDEX32) row += sizeof(int32_t);
    return rows * row;
}

void pyce_plan(const pyce_problem *p, const pyce_job *cuts, pyce_job *job) {
    const int64_t blocks = pyce_blocks_of(p->classes);
    *job = cuts ? *cuts : (pyce_job){.blocks = blocks, .last = blocks};
    job->p = p;
    plan_coefficients(p, job);
    job->pivot = pivot_of(p);
    job->tile = tile_of(p);
    const double cache = (double)pyce_last_cache(), classes = (double)p->classes;
    const int64_t here = cuts ? pyce_own_classes(cuts->shards) : p->classes;
    job->streaming = bytes_of(p, here) > STREAMED_SHARE * cache;
    /* Each thread saves one row of exponentials, unless the rows of many threads exceed the cache. */
    const double saved = classes * (p->dtype == PYCE_FLOAT64 ? sizeof(double) : sizeof(float));
    job->recompute = saved * THREADS_OF_A_CACHE > cache && job->blocks > 1;
}

int pyce_shares_rows(const pyce_job *job, int threads) {
    const pyce_problem *p = job->p;
    return p->inner == 1 && threads > 1 && p->outer < 2 * (int64_t)threads &&
           job->last - job->first >= SHARED_BLOCKS * (int64_t)threads;
}

/* Runs a valid problem: find the denominator, share the rows among threads, reduce their losses.
 */
#include "platform.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "factors.h"
#include "internal.h"
#include "pool.h"
#include "reduce.h"

typedef void run_function(const pyce_job *job, int64_t begin, int64_t end, void *scratch,
                          double *sums);

typedef struct {
    const pyce_kernels *kernels;
    const pyce_job *job;
    double *sums; /* of the losses of each tile, or NULL */
    /* If the threads share the rows: */
    run_function *run;
    /* If the threads share a row: */
    int64_t row;
    pyce_block *blocks;
    void *row_state;
} row_work;

/* -- memory ---------------------------------------------------------------------------------------- */

/* Up to so many sums of tiles need no allocation. */
enum { FEW_TILES = 256 };

/* The memory of a problem's runs, apart from that of the threads. The first run allocates it, and later ones
   use it again: they follow writes of results, after which no memory may be refused. */
typedef struct {
    double *few;  /* FEW_TILES numbers */
    double *sums; /* of the losses of each tile */
    void *blocks; /* of a row that threads share, and before them its state */
} run_memory;

static void free_memory(const run_memory *m) {
    if (m->sums != m->few) free(m->sums);
    platform_free(m->blocks);
}

/* -- rows ------------------------------------------------------------------------------------------ */

static void run_tiles(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    const pyce_job *job = w->job;
    const int64_t rows = job->p->outer * job->p->inner;
    const int64_t last = end * job->tile < rows ? end * job->tile : rows;
    w->run(job, begin * job->tile, last, scratch, w->sums);
}

/* Threads share the rows, tile by tile. */
static int run_rows(const pyce_job *job, run_function *run, size_t scratch, int threads,
                    double *sums) {
    const int64_t rows = job->p->outer * job->p->inner;
    const int64_t tiles = (rows + job->tile - 1) / job->tile;
    row_work context = {.job = job, .sums = sums, .run = run};
    const pyce_work work = {.work = run_tiles,
                            .context = &context,
                            .pieces = tiles,
                            .grain = pyce_grain(tiles, threads),
                            .scratch = scratch};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}

/* Blocks are counted from the first that is there. */
static void find_statistics(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    const int64_t first = w->job->first;
    w->kernels->rows[w->job->p->dtype]->statistics(w->job, w->row, first + begin, first + end,
                                                   w->blocks, scratch);
}

static void write_blocks(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    const int64_t first = w->job->first;
    w->kernels->rows[w->job->p->dtype]->write(w->job, w->row, first + begin, first + end, w->blocks,
                                              w->row_state, scratch);
}

/* The rows one after the other; threads share each of them, block by block. Of shards, the
   statistics of blocks become the state of the row, or the states of all shards take their
   place. */
static int run_shared(const pyce_kernels *kernels, const pyce_job *job, int threads, run_memory *m,
                      double *sums) {
    const pyce_problem *p = job->p;
    const pyce_row_kernels *k = kernels->rows[p->dtype];
    /* The row state begins a whole number of cache lines before the blocks. */
    _Static_assert(PYCE_STATE_BYTES % 64 == 0, "blocks are aligned");
    const size_t size = PYCE_STATE_BYTES + (size_t)job->blocks * sizeof(pyce_block);
    if (!m->blocks) m->blocks = platform_allocate(size);
    const size_t scratch = job->shards ? k->shard_scratch(job) : k->scratch(job);
    if (!m->blocks || pyce_pool_reserve(scratch)) return PYCE_NO_MEMORY;
    row_work context = {.kernels = kernels,
                        .job = job,
                        .blocks = (void *)((char *)m->blocks + PYCE_STATE_BYTES),
                        .row_state = m->blocks};
    pyce_work statistics = {.work = find_statistics,
                            .context = &context,
                            .pieces = job->last - job->first,
                            .grain = pyce_grain(job->last - job->first, threads),
                            .scratch = scratch};
    pyce_work write = statistics;
    write.work = write_blocks;
    for (int64_t row = 0; row < p->outer; row++) {
        context.row = row;
        if (!job->states) (void)pyce_pool_run(&statistics, threads);
        if (job->state) {
            k->pack(job, row, context.blocks);
            continue;
        }
        double losses[PYCE_TILE];
        (job->states ? k->combine : k->finalize)(job, row, context.blocks, context.row_state,
                                                 losses, sums);
        if (pyce_has_result(p)) (void)pyce_pool_run(&write, threads);
    }
    return PYCE_OK;
}

/* -- sums ------------------------------------------------------------------------------------------ */

/* Eight sums and their errors in turn, so that additions need not wait for each other. */
static double sum_of_weights(const double *values, int64_t n, int dtype, int *extreme) {
    double sum[8] = {0}, error[8] = {0};
    for (int64_t i = 0; i < n; i++) {
        *extreme |= pyce_is_extreme(values[i], dtype);
        compensated_add(sum + (i & 7), values[i], error + (i & 7));
    }
    return sum_by_halves(sum, 8) + sum_by_halves(error, 8);
}

/* What find_weights finds. */
typedef struct {
    int64_t valid_rows; /* that are not ignored */
    double sum;         /* of their weights: the denominator of the mean */
    int extreme;        /* whether one of them is */
} row_weights;

static int find_weights(const pyce_kernels *kernels, pyce_problem *p, int threads,
                        row_weights *found) {
    const int64_t rows = p->outer * p->inner;
    *found = (row_weights){.valid_rows = rows, .sum = (double)rows};
    if (rows && p->labels) {
        return pyce_scan_labels(kernels, p, threads, &found->valid_rows, &found->sum,
                                &found->extreme);
    }
    if (rows && p->sample_weight) {
        found->sum = sum_of_weights(p->sample_weight, rows, p->dtype, &found->extreme);
    }
    return PYCE_OK;
}

/* The sum of all losses from those of the tiles, in place. Rows that were dealt one by one are summed
   in tiles of the least size first. */
static double sum_of_losses(const pyce_job *job, double *sums) {
    const int64_t rows = job->p->outer * job->p->inner;
    if (job->tile > 1) return sum_by_halves(sums, (rows + job->tile - 1) / job->tile);
    const int64_t n = (rows + PYCE_LEAST_TILE - 1) / PYCE_LEAST_TILE;
    for (int64_t i = 0; i < n; i++) {
        double tile[PYCE_LEAST_TILE] = {0};
        const int64_t first = i * PYCE_LEAST_TILE, left = rows - first;
        const int64_t count = left < PYCE_LEAST_TILE ? left : PYCE_LEAST_TILE;
        memcpy(tile, sums + first, (size_t)count * sizeof *tile);
        sums[i] = sum_of_tile(tile, PYCE_LEAST_TILE, job->p->dtype == PYCE_FLOAT64);
    }
    return sum_by_halves(sums, n);
}

static void write_loss(pyce_problem *p, double loss) {
    p->loss = loss;
    if (!p->reduced) return;
    if (p->dtype == PYCE_FLOAT64) {
        memcpy(p->reduced, &loss, sizeof loss);
    } else {
        const float rounded = (float)loss;
        memcpy(p->reduced, &rounded, sizeof rounded);
    }
}

/* -- all of it ------------------------------------------------------------------------------------- */

/* Runs a job. *total receives the sum of the losses if they are reduced. */
static int run_job(const pyce_kernels *kernels, const pyce_job *job, int threads, run_memory *m,
                   double *total) {
    const pyce_problem *p = job->p;
    const int64_t rows = p->outer * p->inner, tiles = (rows + job->tile - 1) / job->tile;
    double *sums = NULL;
    if (pyce_has_loss(p) && p->reduction != PYCE_NONE) {
        if (!m->sums) m->sums = tiles <= FEW_TILES ? m->few : malloc((size_t)tiles * sizeof *sums);
        if (!m->sums) return PYCE_NO_MEMORY;
        sums = m->sums;
    }
    int status = PYCE_OK;
    const pyce_row_kernels *k = kernels->rows[p->dtype];
    if (rows && pyce_shares_rows(job, threads)) {
        status = run_shared(kernels, job, threads, m, sums);
    } else if (rows && job->shards) {
        status = run_rows(job, k->complete, k->shard_scratch(job), threads, sums);
    } else if (rows) {
        status = run_rows(job, k->run, k->scratch(job), threads, sums);
    }
    if (sums && status == PYCE_OK) *total = sum_of_losses(job, sums);
    return status;
}

/* -- shards ---------------------------------------------------------------------------------------- */

/* The work for the classes of a shard, or for all, in element equivalents. */
static int64_t work_of(const pyce_problem *p, int64_t classes) {
    const int64_t rows = p->outer * p->inner;
    return rows * classes + PYCE_ROW_OVERHEAD * rows;
}

/* The blocks of all shards: the fields of a job about them. Returns memory to be freed, or NULL
   if there is none. */
static int64_t *cut_blocks(const pyce_shards *shards, pyce_job *cuts) {
    *cuts = (pyce_job){.shards = shards, .base = shards->bounds[shards->own]};
    for (int s = 0; s < shards->count; s++) {
        if (s == shards->own) cuts->first = cuts->blocks;
        cuts->blocks += pyce_blocks_of(shards->bounds[s + 1] - shards->bounds[s]);
        if (s == shards->own) cuts->last = cuts->blocks;
    }
    int64_t *begins = malloc(((size_t)cuts->blocks + 1) * sizeof *begins), k = 0;
    if (!begins) return NULL;
    for (int s = 0; s < shards->count; s++) {
        for (int64_t c = shards->bounds[s]; c < shards->bounds[s + 1]; c += PYCE_BLOCK) {
            begins[k++] = c;
        }
    }
    begins[k] = shards->bounds[shards->count];
    cuts->begins = begins;
    return begins;
}

/* -- a problem ------------------------------------------------------------------------------------- */

/* What a run of a problem depends on besides the problem. */
typedef struct {
    const pyce_kernels *kernels;
    const pyce_job *cuts; /* NULL, or has the fields of a job about shards */
    run_memory *memory;
    int threads, all_valid;
    double grad_scale, grad_scale_error;
} run_options;

/* The gradient, and in *total the sum of the losses if they are reduced. */
static int run_with(const pyce_problem *p, const run_options *o, double *total) {
    pyce_job job;
    pyce_plan(p, o->cuts, &job);
    job.grad_scale = o->grad_scale;
    job.grad_scale_error = isfinite(o->grad_scale_error) ? o->grad_scale_error : 0;
    job.all_valid = o->all_valid;
    return run_job(o->kernels, &job, o->threads, o->memory, total);
}

/* A problem with extreme factors: the loss, and then the gradient. *loss receives the reduced loss. */
static int run_extreme(const pyce_problem *p, run_options o, double weights, double *loss) {
    pyce_factors f = {.given = p};
    double total = 0, unused;
    if (pyce_find_factors(&f, weights)) return PYCE_NO_MEMORY;
    if (f.takes_scale) o.grad_scale = 1, o.grad_scale_error = 0;
    int status = PYCE_OK;
    if (pyce_has_loss(p)) {
        pyce_prepare_loss(&f);
        status = run_with(&f.problem, &o, &total);
        if (status == PYCE_OK && pyce_sum_is_too_small(&f, total)) {
            pyce_prepare_loss(&f);
            status = run_with(&f.problem, &o, &total);
        }
    }
    if (pyce_has_result(p) && status == PYCE_OK) {
        pyce_prepare_gradient(&f);
        status = run_with(&f.problem, &o, &unused);
        const int64_t classes = o.cuts ? pyce_own_classes(o.cuts->shards) : p->classes;
        if (status == PYCE_OK) pyce_finish_gradient(&f, classes);
    }
    if (pyce_has_loss(p) && status == PYCE_OK) *loss = pyce_finish_loss(&f, total);
    free(f.memory);
    return status;
}

/* `cuts` is NULL, or has the fields of a job about shards. */
static int run_problem(pyce_problem *p, const pyce_job *cuts) {
    const pyce_kernels *kernels = pyce_dispatch();
    const int64_t rows = p->outer * p->inner;
    const int64_t classes = cuts ? pyce_own_classes(cuts->shards) : p->classes;
    const int threads = pyce_threads_for(work_of(p, classes), p->threads);

    row_weights weights;
    double loss = 0;
    int status = find_weights(kernels, p, threads, &weights);
    if (status != PYCE_OK) return status;
    double denominator = p->reduction == PYCE_MEAN ? weights.sum : 1;
    if (p->reduction == PYCE_QUOTIENT) denominator = p->normalizer;
    const double grad_scale = p->grad_loss / denominator;
    double few[FEW_TILES];
    run_memory memory = {.few = few};
    const run_options options = {.kernels = kernels,
                                 .cuts = cuts,
                                 .memory = &memory,
                                 .threads = threads,
                                 .all_valid = weights.valid_rows == rows,
                                 .grad_scale = grad_scale,
                                 .grad_scale_error =
                                     fma(-grad_scale, denominator, p->grad_loss) / denominator};
    if (weights.valid_rows &&
        pyce_has_extreme_factor(p, denominator, grad_scale, weights.extreme)) {
        status = run_extreme(p, options, weights.sum, &loss);
    } else {
        double total = 0;
        status = run_with(p, &options, &total);
        const int empty = weights.valid_rows == 0 && p->reduction == PYCE_QUOTIENT;
        loss = empty ? 0.0 : total / denominator;
    }
    free_memory(&memory);
    if (pyce_has_loss(p) && p->reduction != PYCE_NONE && status == PYCE_OK) write_loss(p, loss);
    return status;
}

/* Not inlined: a compiler may move arithmetic past the instruction that sets the floating-point
   environment, but not past a call. */
__attribute__((noinline)) int pyce_run_problem(pyce_problem *p) { return run_problem(p, NULL); }

__attribute__((noinline)) int pyce_run_partial(pyce_problem *p, const pyce_shards *shards,
                                               double *state) {
    const pyce_kernels *kernels = pyce_dispatch();
    pyce_job cuts, job;
    int64_t *begins = cut_blocks(shards, &cuts);
    if (!begins) return PYCE_NO_MEMORY;
    run_memory memory = {0};
    cuts.state = state;
    const int threads = pyce_threads_for(work_of(p, pyce_own_classes(shards)), p->threads);
    row_weights weights;
    int status = find_weights(kernels, p, threads, &weights);
    if (status == PYCE_OK && p->outer) {
        pyce_plan(p, &cuts, &job);
        const pyce_row_kernels *k = kernels->rows[p->dtype];
        status = pyce_shares_rows(&job, threads)
                     ? run_shared(kernels, &job, threads, &memory, NULL)
                     : run_rows(&job, k->partial, k->shard_scratch(&job), threads, NULL);
    }
    free_memory(&memory);
    free(begins);
    return status;
}

__attribute__((noinline)) int pyce_run_complete(pyce_problem *p, const pyce_shards *shards,
                                                const double *const *states) {
    pyce_job cuts;
    int64_t *begins = cut_blocks(shards, &cuts);
    if (!begins) return PYCE_NO_MEMORY;
    cuts.states = states;
    const int status = run_problem(p, &cuts);
    free(begins);
    return status;
}

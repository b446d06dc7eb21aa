/* The exported functions: check, decide, share the rows among threads, reduce.
 *
 * The Python side has checked its arguments already; what is checked here protects callers of the C
 * interface: enumerations; sizes, strides and addresses, whose products and sums must fit; pointers,
 * which are there if and only if the operation needs them, are aligned, and share no memory with what
 * is written; and, in the one pass over the labels that finds the denominator, every label. Nothing
 * is written before all of it holds and all memory is there.
 *
 * What computes does so in the default floating-point environment, entered and left by the exported
 * function; the pool's threads are always in it.
 */
#include "pyce.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dispatch.h"
#include "fpenv.h"
#include "pool.h"
#include "reduce.h"

/* What a row costs beside its elements, in elements; and what is worth a thread, in the same measure
   (about 0.2 ns): where one looks out for work, and where it must be woken. */
#define ELEMENTS_PER_ROW 32
static _Atomic int64_t worth_sharing = 65536, worth_waking = 262144;
/* Labels looked at as one piece: fixes the order in which class weights are added up. */
#define LABEL_PIECE 16384
/* Rows that are always added up together, so that the sum does not depend on how they are dealt. */
#define LEAST_TILE 16
/* Elements of the pieces of the Bernoulli loss, and bytes of those of a copy. */
#define BERNOULLI_PIECE 16384
#define COPY_PIECE ((int64_t)1 << 18)

static const size_t item_size[] = {4, 8, 2, 2};
static const size_t item_alignment[] = {_Alignof(float), _Alignof(double), _Alignof(uint16_t),
                                        _Alignof(uint16_t)};

/* -- the machine ------------------------------------------------------------------------------------ */

/* Bytes of the largest data cache that the first processor sees, as Linux tells it; sysconf, which
   some C libraries answer with the sum over a whole socket, is asked only where that fails; 32 MiB
   where nobody says. */
static int64_t find_last_cache(void) {
    int64_t largest = 0;
    for (int i = 0; i < 8; i++) {
        char path[80], unit = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        FILE *file = fopen(path, "r");
        if (!file) break;
        long long size = 0;
        const int found = fscanf(file, "%lld%c", &size, &unit);
        fclose(file);
        if (found < 1 || size < 0 || size > (1LL << 40)) continue;
        if (unit == 'K') size <<= 10;
        if (unit == 'M') size <<= 20;
        if (size > largest) largest = size;
    }
#if defined(_SC_LEVEL3_CACHE_SIZE)
    if (!largest) largest = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (largest <= 0) largest = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return largest > 0 ? largest : (int64_t)32 << 20;
}

static _Atomic int64_t known_cache;

static int64_t last_cache(void) {
    int64_t size = known_cache;
    if (!size) known_cache = size = find_last_cache();
    return size;
}

void pyce_set_worth(int64_t sharing, int64_t waking) {
    worth_sharing = sharing > 0 ? sharing : 1;
    worth_waking = waking;
}

int64_t pyce_set_cache(int64_t bytes) {
    const int64_t before = last_cache();
    known_cache = bytes > 0 ? bytes : 0;
    return before;
}

/* -- one job ------------------------------------------------------------------------------------------ */

typedef struct {
    const pyce_kernels *kernels;
    const pyce_job *job;
    double *sums;
    /* For a row that threads share. */
    int64_t row;
    pyce_block *blocks;
    void *state;
} row_work;

static void work_rows(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    const pyce_job *job = w->job;
    const int64_t rows = job->p->outer * job->p->inner;
    const int64_t last = end * job->tile < rows ? end * job->tile : rows;
    w->kernels->rows[job->p->dtype]->run(job, begin * job->tile, last, scratch, w->sums);
}

static void work_measure(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    w->kernels->rows[w->job->p->dtype]->statistics(w->job, w->row, begin, end, w->blocks, scratch);
}

static void work_write(void *context, int64_t begin, int64_t end, void *scratch) {
    const row_work *w = context;
    w->kernels->rows[w->job->p->dtype]->write(w->job, w->row, begin, end, w->blocks, w->state,
                                              scratch);
}

/* Pieces that are taken at a time: few enough to share evenly, many enough to run on. */
static int64_t grain_of(int64_t pieces, int threads) {
    const int64_t grain = pieces / ((int64_t)threads * 16);
    return grain < 1 || threads == 1 ? (threads == 1 ? pieces + !pieces : 1) : grain;
}

typedef struct {
    int64_t count, bad;
    double weight;
} label_piece;

typedef struct {
    const pyce_kernels *kernels;
    const pyce_problem *p;
    label_piece *pieces;
} label_work;

static void work_labels(void *context, int64_t begin, int64_t end, void *scratch) {
    const label_work *w = context;
    const int64_t rows = w->p->outer * w->p->inner;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * LABEL_PIECE;
        const int64_t last = first + LABEL_PIECE < rows ? first + LABEL_PIECE : rows;
        label_piece *piece = w->pieces + i;
        piece->bad = w->kernels->labels[w->p->target == PYCE_INDEX64](
            w->p, first, last, &piece->count, &piece->weight);
    }
}

/* Check every label; find how many rows count and the mean's own denominator. */
static int scan_labels(const pyce_kernels *kernels, pyce_problem *p, int threads, int64_t *count,
                       double *weight) {
    const int64_t rows = p->outer * p->inner, n = (rows + LABEL_PIECE - 1) / LABEL_PIECE;
    label_piece few[16];
    label_piece *pieces = n <= 16 ? few : malloc((size_t)n * sizeof *pieces);
    if (!pieces) return PYCE_NO_MEMORY;
    label_work context = {kernels, p, pieces};
    if (n <= 4) {
        work_labels(&context, 0, n, NULL);
    } else {
        const pyce_work work = {work_labels, &context, n, 2, 64};
        if (pyce_pool_run(&work, threads)) {
            if (pieces != few) free(pieces);
            return PYCE_NO_MEMORY;
        }
    }
    int status = PYCE_OK;
    double lost = 0;
    *count = 0;
    *weight = 0;
    for (int64_t i = 0; i < n && status == PYCE_OK; i++) {
        const int64_t bad = pieces[i].bad;
        if (bad >= 0) {
            p->bad_row = bad;
            p->bad_value = p->target == PYCE_INDEX64 ? ((const int64_t *)p->labels)[bad]
                                                     : ((const int32_t *)p->labels)[bad];
            status = PYCE_BAD_LABEL;
        }
        compensated_add(weight, pieces[i].weight, &lost);
        *count += pieces[i].count;
    }
    *weight += lost;
    if (pieces != few) free(pieces);
    return status;
}

/* The memory of arrays that are used together. */
typedef struct {
    uintptr_t begin, end;
    int solid; /* every byte in between is the array's */
    int written;
} extent;
typedef struct {
    extent of[13];
    int count;
} extents;

/* One more array: elements low…high from `data` on. Whether it can be. */
static int add_extent(extents *all, const void *data, int64_t low, int64_t high, size_t size,
                      size_t alignment, int solid, int written) {
    extent *e = all->of + all->count++;
    int64_t first, last;
    if (!data || (uintptr_t)data % alignment) return 0;
    if (__builtin_mul_overflow(low, (int64_t)size, &first)) return 0;
    if (__builtin_add_overflow(high, 1, &high)) return 0;
    if (__builtin_mul_overflow(high, (int64_t)size, &last)) return 0;
    if (__builtin_add_overflow((uintptr_t)data, first, &e->begin)) return 0;
    if (__builtin_add_overflow((uintptr_t)data, last, &e->end)) return 0;
    e->solid = solid;
    e->written = written;
    return 1;
}

/* A flat array, which must be there if it is `needed` and may not be if it is not `allowed`. */
static int add_flat(extents *all, const void *data, int64_t n, size_t size, size_t alignment,
                    int needed, int allowed, int written) {
    if (!data) return !needed;
    return allowed && add_extent(all, data, 0, n - 1, size, alignment, 1, written);
}
static int add_doubles(extents *all, const double *data, int64_t n, int needed, int allowed,
                       int written) {
    return add_flat(all, data, n, sizeof *data, _Alignof(double), needed, allowed, written);
}

/* How far `step` times (count − 1) reaches, added to *low or *high. */
static int reach(int64_t count, int64_t step, int64_t *low, int64_t *high) {
    int64_t distance, *end = step < 0 ? low : high;
    return !__builtin_mul_overflow(count - 1, step, &distance) &&
           !__builtin_add_overflow(*end, distance, end);
}

static int add_operand(extents *all, const pyce_problem *p, const pyce_operand *a, int dtype,
                       int needed, int written) {
    if (!needed) return a->data == NULL;
    int64_t low = 0, high = p->inner - 1;
    int solid = p->classes == 1 || a->class_stride == p->inner;
    if (!reach(p->classes, a->class_stride, &low, &high)) return 0;
    if (a->offsets) {
        /* What they say is taken as it is. */
        solid = 0;
        if (!add_flat(all, a->offsets, p->outer, sizeof *a->offsets, _Alignof(int64_t), 1, 1, 0)) {
            return 0;
        }
    } else {
        solid = solid && (p->outer == 1 || a->outer_stride == p->classes * p->inner);
        if (!reach(p->outer, a->outer_stride, &low, &high)) return 0;
    }
    if (written && ((p->classes > 1 && a->class_stride == 0) ||
                    (p->outer > 1 && !a->offsets && a->outer_stride == 0))) {
        return 0; /* one element for many */
    }
    return add_extent(all, a->data, low, high, item_size[dtype], item_alignment[dtype], solid,
                      written);
}

/* Whether nothing that is written is anything else, as far as that is certain: what lies in gaps is
   not looked at. Where labels or offsets changed, what was checked would be in vain. */
static int nothing_shared(const extents *all) {
    for (int i = 0; i < all->count; i++) {
        const extent *a = all->of + i;
        for (int k = 0; k < i; k++) {
            const extent *b = all->of + k;
            if ((a->written || b->written) && a->solid && b->solid && a->begin < b->end &&
                b->begin < a->end) {
                return 0;
            }
        }
    }
    return 1;
}

static int same_operand(const pyce_operand *a, const pyce_operand *b) {
    return a->data == b->data && a->offsets == b->offsets && a->outer_stride == b->outer_stride &&
           a->class_stride == b->class_stride;
}

static int arguments_fit(const pyce_problem *p) {
    int64_t rows, size, work;
    if (p->operation < PYCE_FORWARD || p->operation > PYCE_LOGSUMEXP) return 0;
    if (p->dtype < PYCE_FLOAT32 || p->dtype > PYCE_BFLOAT16) return 0;
    if (p->target < PYCE_NO_TARGET || p->target > PYCE_PROBABILITIES) return 0;
    if (p->probs_dtype < PYCE_FLOAT32 || p->probs_dtype > PYCE_BFLOAT16) return 0;
    if (p->reduction < PYCE_MEAN || p->reduction > PYCE_QUOTIENT) return 0;
    if (p->threads < 1 || p->classes < 1 || p->outer < 0 || p->inner < 0) return 0;
    if (__builtin_mul_overflow(p->outer, p->inner, &rows)) return 0;
    if (__builtin_mul_overflow(rows, p->classes, &size)) return 0;
    if (size > INT64_MAX / 8 - 4096) return 0;
    if (__builtin_mul_overflow(rows, ELEMENTS_PER_ROW, &work)) return 0;
    if (__builtin_add_overflow(size, work, &work)) return 0;
    if (!(p->smoothing >= 0 && p->smoothing <= 1)) return 0;
    if (rows == 0) return 1;

    const int losses = p->operation <= PYCE_BACKWARD, backward = p->operation == PYCE_BACKWARD;
    if (losses != (p->target != PYCE_NO_TARGET)) return 0;
    const int index = p->target == PYCE_INDEX32 || p->target == PYCE_INDEX64;
    const size_t label_size = p->target == PYCE_INDEX64 ? 8 : 4;
    const size_t label_alignment =
        p->target == PYCE_INDEX64 ? _Alignof(int64_t) : _Alignof(int32_t);
    const int result = pyce_has_result(p);
    const int in_place = result && same_operand(&p->logits, &p->result);
    const int rows_wanted = losses && !backward && p->reduction == PYCE_NONE;
    const int lse_needed = backward || p->operation == PYCE_LOGSUMEXP;
    const int loss_dtype = p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    extents all = {.count = 0};
    return (in_place || add_operand(&all, p, &p->logits, p->dtype, 1, 0)) &&
           add_operand(&all, p, &p->result, p->dtype, result, 1) &&
           add_operand(&all, p, &p->probs, p->probs_dtype, p->target == PYCE_PROBABILITIES, 0) &&
           add_flat(&all, p->labels, rows, label_size, label_alignment, index, index, 0) &&
           add_doubles(&all, p->weight, p->classes, 0, losses, 0) &&
           add_doubles(&all, p->sample_weight, rows, 0, losses, 0) &&
           add_doubles(&all, p->grad_losses, rows, 0, losses && result, 0) &&
           add_doubles(&all, p->lse, rows, lse_needed, losses || lse_needed, !backward) &&
           add_flat(&all, p->losses, rows, item_size[loss_dtype], item_alignment[loss_dtype],
                    rows_wanted, rows_wanted, 1) &&
           add_flat(&all, p->reduced, 1, item_size[loss_dtype], item_alignment[loss_dtype], 0,
                    losses && !backward && !rows_wanted, 1) &&
           nothing_shared(&all);
}

/* Σ sample_weight. */
static double sum_of(const double *values, int64_t n) {
    /* Eight running sums and what they lost, so that they need not wait for each other. */
    double sum[8] = {0}, lost[8] = {0};
    for (int64_t i = 0; i < n; i++) compensated_add(sum + (i & 7), values[i], lost + (i & 7));
    return sum_by_halves(sum, 8) + sum_by_halves(lost, 8);
}

static void describe(const pyce_problem *p, pyce_job *job) {
    const int64_t rows = p->outer * p->inner;
    const int smooth = p->smoothing > 0;
    memset(job, 0, sizeof *job);
    job->p = p;
    job->pivot = PIVOT_MAX;
    job->soft = SOFT_NONE;
    /* In double precision, S is known well enough only with the largest term apart. */
    if (p->operation == PYCE_SOFTMAX && p->dtype != PYCE_FLOAT64) job->pivot = PIVOT_NONE;
    const double classes = (double)p->classes;
    job->on_value = 1.0 - p->smoothing;
    job->on_value_error = (1.0 - job->on_value) - p->smoothing;
    job->off_value = p->smoothing / classes;
    job->off_value_error = __builtin_fma(-job->off_value, classes, p->smoothing) / classes;
    job->label_part = 1.0;
    job->soft_part = 0;
    if (p->target == PYCE_PROBABILITIES) {
        job->soft = SOFT_PROBS;
        job->soft_part = 1.0;
        job->blended = p->weight || smooth;
    } else if (p->target != PYCE_NO_TARGET) {
        if (smooth) {
            job->soft = p->weight ? SOFT_WEIGHT : SOFT_ONE;
            job->label_part = job->on_value;
            job->label_part_error = job->on_value_error;
            job->soft_part = job->off_value;
            job->soft_part_error = job->off_value_error;
        }
        /* Only the label's gradient has p − 1 in it, unless class weights can do that to another. */
        if (!smooth || !p->weight) job->pivot = PIVOT_LABEL;
    }
    job->unweighted = !(p->weight && p->labels) && !p->sample_weight && !p->grad_losses;
    /* Rows go past the caches only where result and logits together would not stay in them. */
    const double bytes = 2.0 * (double)rows * (double)p->classes * (double)item_size[p->dtype];
    job->streaming = bytes > (double)last_cache();
    job->blocks = (p->classes + PYCE_BLOCK - 1) / PYCE_BLOCK;
    /* A row of exponentials a thread; beyond this, those of many threads would live in no cache. */
    const double kept = (double)p->classes * (p->dtype == PYCE_FLOAT64 ? 8 : 4);
    job->recompute = kept * 16 > (double)last_cache() && job->blocks > 1;
    job->tile = LEAST_TILE;
    while (job->tile < PYCE_TILE && job->tile * 2 <= 32768 / p->classes) job->tile *= 2;
    /* Long rows are dealt one by one; rows side by side fill a vector. */
    if (job->tile == LEAST_TILE && p->inner == 1 && p->classes > 2048) job->tile = 1;
}

/* Rows dealt to threads, tile by tile. */
static int run_rows(const pyce_kernels *kernels, const pyce_job *job, int threads, double *sums) {
    const int64_t rows = job->p->outer * job->p->inner;
    const int64_t tiles = (rows + job->tile - 1) / job->tile;
    row_work context = {.kernels = kernels, .job = job, .sums = sums};
    const pyce_work work = {work_rows, &context, tiles, grain_of(tiles, threads),
                            kernels->rows[job->p->dtype]->scratch(job)};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}

/* Rows one after the other, each shared by the threads, block by block. */
static int run_shared(const pyce_kernels *kernels, const pyce_job *job, int threads, double *sums) {
    const pyce_problem *p = job->p;
    const int result = pyce_has_result(p);
    void *memory = NULL;
    if (posix_memalign(&memory, 64, PYCE_STATE_BYTES + (size_t)job->blocks * sizeof(pyce_block))) {
        return PYCE_NO_MEMORY;
    }
    pyce_block *blocks = (void *)((char *)memory + PYCE_STATE_BYTES);
    row_work context = {.kernels = kernels, .job = job, .blocks = blocks};
    context.state = memory;
    const int64_t grain = grain_of(job->blocks, threads);
    const size_t scratch = kernels->rows[p->dtype]->scratch(job);
    const pyce_work measure = {work_measure, &context, job->blocks, grain, scratch};
    const pyce_work write = {work_write, &context, job->blocks, grain, scratch};
    int status = PYCE_OK;
    for (int64_t row = 0; row < p->outer && status == PYCE_OK; row++) {
        context.row = row;
        if (pyce_pool_run(&measure, threads)) status = PYCE_NO_MEMORY;
        if (status != PYCE_OK) break;
        double losses[PYCE_TILE];
        kernels->rows[p->dtype]->finalize(job, row, blocks, context.state, losses, sums);
        if (result && pyce_pool_run(&write, threads)) status = PYCE_NO_MEMORY;
    }
    free(memory);
    return status;
}

/* Threads for a job of a size: fewer than allowed where more would cost more than they do. */
static int threads_for(int64_t size, int allowed) {
    int64_t worth = size / worth_sharing;
    if (worth > 1) pyce_pool_limit(allowed);
    if (allowed > 1 && worth > 1 && size / 2 < worth_waking && !pyce_pool_ready()) {
        pyce_pool_note();
        worth = 1;
    }
    return worth < 1 ? 1 : allowed < worth ? allowed : (int)worth;
}

/* Not inlined: the compiler may move arithmetic past what sets the environment, but not past a call. */
__attribute__((noinline)) static int run(pyce_problem *p) {
    if (!arguments_fit(p)) return PYCE_BAD_ARGUMENT;
    const pyce_kernels *kernels = pyce_dispatch();
    const int64_t rows = p->outer * p->inner;
    const int threads = threads_for(rows * p->classes + ELEMENTS_PER_ROW * rows, p->threads);

    int64_t count = rows;
    double denominator = (double)rows;
    if (p->labels && rows) {
        const int status = scan_labels(kernels, p, threads, &count, &denominator);
        if (status != PYCE_OK) return status;
    } else if (p->labels || !rows) {
        denominator = 0;
    } else if (p->sample_weight) {
        denominator = sum_of(p->sample_weight, rows);
    }
    if (p->reduction != PYCE_MEAN) denominator = 1;
    if (p->reduction == PYCE_QUOTIENT) denominator = p->normalizer;

    pyce_job job;
    describe(p, &job);
    job.grad_scale = p->grad_loss / denominator;
    const double lost = fma(-job.grad_scale, denominator, p->grad_loss) / denominator;
    job.grad_scale_error = isfinite(lost) ? lost : 0;

    const int64_t tiles = (rows + job.tile - 1) / job.tile;
    const int reduce = p->operation <= PYCE_FORWARD_BACKWARD && p->reduction != PYCE_NONE;
    double few[256];
    double *sums = NULL;
    if (reduce) {
        sums = tiles <= 256 ? few : malloc((size_t)tiles * sizeof *sums);
        if (!sums) return PYCE_NO_MEMORY;
    }
    int status = PYCE_OK;
    if (rows) {
        const int wide = p->inner == 1 && p->classes > PYCE_FEW;
        const int share = wide && threads > 1 && rows < 2 * (int64_t)threads &&
                          job.blocks >= 4 * (int64_t)threads;
        status = share ? run_shared(kernels, &job, threads, sums)
                       : run_rows(kernels, &job, threads, sums);
    }
    if (reduce && status == PYCE_OK) {
        int64_t n = tiles;
        if (job.tile == 1) {
            n = (rows + LEAST_TILE - 1) / LEAST_TILE;
            for (int64_t i = 0; i < n; i++) {
                double group[LEAST_TILE] = {0};
                const int64_t first = i * LEAST_TILE, left = rows - first;
                memcpy(group, sums + first, (size_t)(left < LEAST_TILE ? left : LEAST_TILE) * 8);
                sums[i] = sum_of_tile(group, LEAST_TILE, p->dtype == PYCE_FLOAT64);
            }
        }
        const double total = sum_by_halves(sums, n);
        const int empty = count == 0 && p->reduction == PYCE_QUOTIENT;
        p->loss = empty ? 0.0 : total / denominator;
        if (p->reduced && p->dtype == PYCE_FLOAT64) memcpy(p->reduced, &p->loss, sizeof p->loss);
        if (p->reduced && p->dtype != PYCE_FLOAT64) {
            const float loss = (float)p->loss;
            memcpy(p->reduced, &loss, sizeof loss);
        }
    }
    if (sums != few) free(sums);
    return status;
}

int pyce_run(pyce_problem *p) {
    if (!p || (uintptr_t)p % _Alignof(pyce_problem)) return PYCE_BAD_ARGUMENT;
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = run(p);
    pyce_fpenv_leave(before);
    return status;
}

int pyce_cross_entropy(int operation, int dtype, int reduction, int threads, int64_t outer,
                       int64_t classes, int64_t inner, const void *logits, const int64_t *labels,
                       const double *weight, void *grad, double smoothing, int64_t ignore_index,
                       void *loss) {
    int64_t stride;
    if (!loss || operation < PYCE_FORWARD || operation > PYCE_FORWARD_BACKWARD ||
        reduction < PYCE_MEAN || reduction > PYCE_NONE ||
        __builtin_mul_overflow(classes, inner, &stride)) {
        return PYCE_BAD_ARGUMENT;
    }
    pyce_problem p = {
        .operation = operation,
        .dtype = dtype,
        .target = PYCE_INDEX64,
        .reduction = reduction,
        .threads = threads,
        .outer = outer,
        .classes = classes,
        .inner = inner,
        .logits = {(void *)(uintptr_t)logits, NULL, stride, inner},
        .result = {grad, NULL, stride, inner},
        .labels = labels,
        .weight = weight,
        .grad_loss = 1.0,
        .smoothing = smoothing,
        .ignore_index = ignore_index,
        .losses = reduction == PYCE_NONE ? loss : NULL,
        .reduced = reduction == PYCE_NONE ? NULL : loss,
    };
    return pyce_run(&p);
}

/* -- the Bernoulli loss ------------------------------------------------------------------------------- */

typedef struct {
    const pyce_kernels *kernels;
    int dtype;
    int64_t n;
    const void *x, *t, *w, *pw;
    void *losses, *grad;
    double scale;
    double *sums;
} bernoulli_work;

static void work_bernoulli(void *context, int64_t begin, int64_t end, void *scratch) {
    const bernoulli_work *b = context;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * BERNOULLI_PIECE;
        const int64_t last = first + BERNOULLI_PIECE < b->n ? first + BERNOULLI_PIECE : b->n;
        b->sums[i] = b->kernels->bernoulli[b->dtype](first, last, b->x, b->t, b->w, b->pw,
                                                     b->losses, b->grad, b->scale);
    }
}

__attribute__((noinline)) static int run_bernoulli(bernoulli_work *b, int threads, double *total) {
    const int64_t pieces = (b->n + BERNOULLI_PIECE - 1) / BERNOULLI_PIECE;
    double few[64];
    b->sums = pieces <= 64 ? few : malloc((size_t)pieces * sizeof *b->sums);
    if (!b->sums) return PYCE_NO_MEMORY;
    const int64_t worth = b->n / BERNOULLI_PIECE;
    if (worth > 1) pyce_pool_limit(threads);
    const int use = worth < 1 ? 1 : threads < worth ? threads : (int)worth;
    const pyce_work work = {work_bernoulli, b, pieces, grain_of(pieces, use), 64};
    const int status = pyce_pool_run(&work, use) ? PYCE_NO_MEMORY : PYCE_OK;
    if (status == PYCE_OK) *total = sum_by_halves(b->sums, pieces);
    if (b->sums != few) free(b->sums);
    return status;
}

int pyce_binary_cross_entropy(int dtype, int64_t n, const void *logits, const void *target,
                              const void *weight, const void *pos_weight, void *losses, void *grad,
                              double scale, int threads, double *total) {
    if (dtype != PYCE_FLOAT32 && dtype != PYCE_FLOAT64) return PYCE_BAD_ARGUMENT;
    if (n < 0 || n > INT64_MAX / 8 - 4096 || threads < 1) return PYCE_BAD_ARGUMENT;
    if (!total || (uintptr_t)total % _Alignof(double)) return PYCE_BAD_ARGUMENT;
    if (n == 0) {
        *total = 0;
        return PYCE_OK;
    }
    if (!logits || !target) return PYCE_BAD_ARGUMENT;
    const struct {
        const void *data;
        int written;
    } arrays[] = {{grad == logits ? NULL : logits, 0},
                  {target, 0},
                  {weight, 0},
                  {pos_weight, 0},
                  {losses, 1},
                  {grad, 1}};
    extents all = {.count = 0};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        if (!add_flat(&all, arrays[i].data, n, item_size[dtype], item_alignment[dtype], 0, 1,
                      arrays[i].written)) {
            return PYCE_BAD_ARGUMENT;
        }
    }
    if (!nothing_shared(&all)) return PYCE_BAD_ARGUMENT;
    bernoulli_work context = {pyce_dispatch(), dtype,  n,    logits, target, weight,
                              pos_weight,      losses, grad, scale,  NULL};
    const pyce_fpenv before = pyce_fpenv_enter();
    const int status = run_bernoulli(&context, threads, total);
    pyce_fpenv_leave(before);
    return status;
}

/* -- limits to measure against ------------------------------------------------------------------------ */

typedef struct {
    const pyce_kernels *kernels;
    char *to;
    const char *from;
    int64_t bytes;
    int streaming;
} copy_work;

static void work_copy(void *context, int64_t begin, int64_t end, void *scratch) {
    const copy_work *c = context;
    (void)scratch;
    const int64_t first = begin * COPY_PIECE;
    const int64_t last = end * COPY_PIECE < c->bytes ? end * COPY_PIECE : c->bytes;
    const size_t size = (size_t)(last - first);
    if (!c->to) {
        /* The reader's result goes nowhere but must be computed. */
        volatile uint64_t sink = c->kernels->read(c->from + first, size);
        (void)sink;
    } else if (c->streaming) {
        c->kernels->copy(c->to + first, c->from + first, size);
    } else {
        memcpy(c->to + first, c->from + first, size);
    }
}

static int copy_or_read(void *to, const void *from, int64_t bytes, int streaming, int threads) {
    if (bytes < 0 || bytes > INT64_MAX - COPY_PIECE || threads < 1) return PYCE_BAD_ARGUMENT;
    if (streaming && (uintptr_t)to % 64) return PYCE_BAD_ARGUMENT;
    extents all = {.count = 0};
    if (bytes && !(add_flat(&all, from, bytes, 1, 1, 1, 1, 0) &&
                   add_flat(&all, to, bytes, 1, 1, 0, 1, 1) && nothing_shared(&all))) {
        return PYCE_BAD_ARGUMENT;
    }
    copy_work context = {pyce_dispatch(), to, from, bytes, streaming};
    const int64_t pieces = (bytes + COPY_PIECE - 1) / COPY_PIECE;
    const pyce_work work = {work_copy, &context, pieces, grain_of(pieces, threads), 64};
    return pyce_pool_run(&work, threads) ? PYCE_NO_MEMORY : PYCE_OK;
}

int pyce_copy(void *to, const void *from, int64_t bytes, int streaming, int threads) {
    if (bytes && !to) return PYCE_BAD_ARGUMENT;
    return copy_or_read(to, from, bytes, streaming, threads);
}

int pyce_read(const void *from, int64_t bytes, int threads) {
    return copy_or_read(NULL, from, bytes, 0, threads);
}

/* -- words -------------------------------------------------------------------------------------------- */

const char *pyce_status_text(int status) {
    switch (status) {
    case PYCE_OK: return "success";
    case PYCE_BAD_LABEL: return "a label is out of range";
    case PYCE_BAD_ARGUMENT: return "an argument is invalid";
    case PYCE_NO_MEMORY: return "out of memory";
    default: return "unknown status";
    }
}

const char *pyce_compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

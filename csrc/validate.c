/* Checks of everything that a caller of the C interface passes.
 *
 * Enumerations must be in range. Sizes, strides and addresses must have products and sums that fit. A
 * pointer must be there if and only if the operation needs it, must be aligned, and must not share
 * memory with anything written. Labels are checked in the same pass that finds the denominator.
 */
#include <stdlib.h>

#include "dispatch.h"
#include "internal.h"
#include "pool.h"
#include "reduce.h"

/* -- memory ---------------------------------------------------------------------------------------- */

/* The address range of one array. */
typedef struct {
    uintptr_t begin, end;
    const pyce_operand *strided; /* NULL: every byte in between belongs to the array */
    int64_t size;                /* of an element */
    int written;
} extent;

/* The arrays of one call. */
typedef struct {
    extent of[16];
    int count;
    int64_t outer, classes, inner; /* of the operands */
} extents;

/* Add the array of elements data[low…high]. Returns whether it is aligned and fits the address
   space. */
static int add_extent(extents *all, const void *data, int64_t low, int64_t high, size_t size,
                      size_t alignment, const pyce_operand *strided, int written) {
    extent *e = all->of + all->count++;
    int64_t first, last;
    if (!data || (uintptr_t)data % alignment) return 0;
    if (__builtin_mul_overflow(low, (int64_t)size, &first)) return 0;
    if (__builtin_add_overflow(high, 1, &high)) return 0;
    if (__builtin_mul_overflow(high, (int64_t)size, &last)) return 0;
    if (__builtin_add_overflow((uintptr_t)data, first, &e->begin)) return 0;
    if (__builtin_add_overflow((uintptr_t)data, last, &e->end)) return 0;
    e->strided = strided;
    e->size = (int64_t)size;
    e->written = written;
    return 1;
}

/* Add a flat array. It must not be NULL if it is `needed` and must be NULL unless `allowed`. */
static int add_flat(extents *all, const void *data, int64_t n, size_t size, size_t alignment,
                    int needed, int allowed, int written) {
    if (!data) return !needed;
    return allowed && add_extent(all, data, 0, n - 1, size, alignment, NULL, written);
}
static int add_doubles(extents *all, const double *data, int64_t n, int needed, int allowed,
                       int written) {
    return add_flat(all, data, n, sizeof *data, _Alignof(double), needed, allowed, written);
}
static int add_losses(extents *all, const void *data, int64_t n, int dtype, int needed,
                      int allowed) {
    const int loss_dtype = dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    return add_flat(all, data, n, pyce_item_size(loss_dtype), pyce_item_alignment(loss_dtype),
                    needed, allowed, 1);
}

/* Extend low…high by an axis of `count` elements and a stride. */
static int add_axis(int64_t count, int64_t stride, int64_t *low, int64_t *high) {
    int64_t distance, *end = stride < 0 ? low : high;
    return !__builtin_mul_overflow(count - 1, stride, &distance) &&
           !__builtin_add_overflow(*end, distance, end);
}

static int add_operand(extents *all, const pyce_problem *p, const pyce_operand *a, int dtype,
                       int needed, int written) {
    if (!needed) return a->data == NULL;
    int64_t low = 0, high = p->inner - 1;
    int contiguous = p->classes == 1 || a->class_stride == p->inner;
    if (!add_axis(p->classes, a->class_stride, &low, &high)) return 0;
    if (a->offsets) {
        /* The values of the offsets are not checked. */
        contiguous = 0;
        if (!add_flat(all, a->offsets, p->outer, sizeof *a->offsets, _Alignof(int64_t), 1, 1, 0)) {
            return 0;
        }
    } else {
        contiguous = contiguous && (p->outer == 1 || a->outer_stride == p->classes * p->inner);
        if (!add_axis(p->outer, a->outer_stride, &low, &high)) return 0;
    }
    /* A stride of 0 would write one element for several. */
    if (written && ((p->classes > 1 && a->class_stride == 0) ||
                    (p->outer > 1 && !a->offsets && a->outer_stride == 0))) {
        return 0;
    }
    return add_extent(all, a->data, low, high, pyce_item_size(dtype), pyce_item_alignment(dtype),
                      contiguous ? NULL : a, written);
}

/* Steps of `step` bytes, `count` − 1 at most. */
typedef struct {
    int64_t step, count;
} axis;

/* The axes of one or two operands, the largest step first. */
typedef struct {
    axis of[4];
    int count;
} axes;

static void insert_axis(axes *all, axis added) {
    int i = 0;
    while (i < all->count && all->of[i].step > added.step) i++;
    if (i < all->count && all->of[i].step == added.step) {
        all->of[i].count += added.count - 1;
        return;
    }
    for (int k = all->count++; k > i; k--) all->of[k] = all->of[k - 1];
    all->of[i] = added;
}

/* An array consists of runs of bytes that follow each other. Adds the axes from run to run, and returns
   the length of a run. */
static int64_t add_runs(const extents *all, const extent *e, axes *to) {
    const pyce_operand *a = e->strided;
    if (!a) return (int64_t)(e->end - e->begin);
    int64_t length = all->inner * e->size;
    axes own = {.count = 0};
    if (all->outer > 1) insert_axis(&own, (axis){llabs(a->outer_stride) * e->size, all->outer});
    if (all->classes > 1) insert_axis(&own, (axis){llabs(a->class_stride) * e->size, all->classes});
    for (int i = own.count - 1; i >= 0; i--) {
        if (own.of[i].step <= length) {
            length += own.of[i].step * (own.of[i].count - 1);
        } else {
            insert_axis(to, own.of[i]);
        }
    }
    return length;
}

/* Whether steps along the axes from `depth` on can add up to low…high. It may say no after `work` tries. */
static int adds_up(const axes *a, int depth, int64_t low, int64_t high, int *work) {
    int64_t rest = 0; /* the most that the further axes add */
    if (depth == a->count) return low <= 0 && high >= 0;
    for (int i = depth + 1; i < a->count; i++) rest += a->of[i].step * (a->of[i].count - 1);
    const int64_t step = a->of[depth].step, missing = low - rest;
    int64_t k = missing > 0 ? (missing + step - 1) / step : 0;
    for (; k < a->of[depth].count && k * step <= high && --*work >= 0; k++) {
        if (adds_up(a, depth + 1, low - k * step, high - k * step, work)) return 1;
    }
    return 0;
}

/* Whether arrays whose address ranges overlap certainly share a byte. */
static int share_bytes(const extents *all, const extent *a, const extent *b) {
    const uintptr_t most = (uintptr_t)1 << 60; /* of bytes, more than any memory has */
    if (a->end - a->begin > most || b->end - b->begin > most) return 0;
    if ((a->strided && a->strided->offsets) || (b->strided && b->strided->offsets)) return 0;
    /* A run of `a` that is k·step above its first one, and a run of `b` that is l·step below its last one,
       share a byte if these two distances add up to the following. */
    axes both = {.count = 0};
    int work = 1000;
    const int64_t lengths = add_runs(all, a, &both) + add_runs(all, b, &both);
    const int64_t distance = (int64_t)(b->end - a->begin);
    return adds_up(&both, 0, distance - lengths + 1, distance - 1, &work);
}

/* Whether no array that is written certainly overlaps another. If labels or offsets were overwritten,
   checking them would be in vain. */
static int nothing_overlaps(const extents *all) {
    for (int i = 0; i < all->count; i++) {
        const extent *a = all->of + i;
        for (int k = 0; k < i; k++) {
            const extent *b = all->of + k;
            if ((a->written || b->written) && a->begin < b->end && b->begin < a->end &&
                share_bytes(all, a, b)) {
                return 0;
            }
        }
    }
    return 1;
}

/* -- arguments ------------------------------------------------------------------------------------- */

/* Strides along which there is one element may differ. */
static int same_operand(const pyce_problem *p, const pyce_operand *a, const pyce_operand *b) {
    return a->data == b->data && a->offsets == b->offsets &&
           (a->offsets || p->outer == 1 || a->outer_stride == b->outer_stride) &&
           (p->classes == 1 || a->class_stride == b->class_stride);
}

/* Sizes of scratch memory, in bytes, must fit 64 bits. */
#define MOST_ELEMENTS (INT64_MAX / (int64_t)sizeof(double) - 4096)

/* Whether a problem is valid; its arrays are added to the extents. */
static int add_problem(extents *all, const pyce_problem *p) {
    int64_t rows, size, work;
    if (p->operation < PYCE_FORWARD || p->operation > PYCE_LOGSUMEXP) return 0;
    if (p->dtype < PYCE_FLOAT32 || p->dtype > PYCE_BFLOAT16) return 0;
    if (p->target < PYCE_NO_TARGET || p->target > PYCE_PROBABILITIES) return 0;
    if (p->probs_dtype < PYCE_FLOAT32 || p->probs_dtype > PYCE_BFLOAT16) return 0;
    if (p->reduction < PYCE_MEAN || p->reduction > PYCE_QUOTIENT) return 0;
    if (p->threads < 1 || p->classes < 1 || p->outer < 0 || p->inner < 0) return 0;
    if (__builtin_mul_overflow(p->outer, p->inner, &rows)) return 0;
    if (__builtin_mul_overflow(rows, p->classes, &size)) return 0;
    if (size > MOST_ELEMENTS) return 0;
    if (__builtin_mul_overflow(rows, PYCE_ROW_OVERHEAD, &work)) return 0;
    if (__builtin_add_overflow(size, work, &work)) return 0;
    if (!(p->smoothing >= 0 && p->smoothing <= 1)) return 0;
    if (p->lse_square_scale - p->lse_square_scale != 0) return 0;

    const int backward = p->operation == PYCE_BACKWARD, loss = pyce_has_loss(p);
    const int has_target = loss || backward;
    if (has_target != (p->target != PYCE_NO_TARGET)) return 0;
    if (!has_target && p->lse_square_scale != 0) return 0;
    const int row_losses = loss && p->reduction == PYCE_NONE;
    /* The arrays that have elements without rows, too. */
    if (!add_doubles(all, p->weight, p->classes, 0, has_target, 0) ||
        !add_losses(all, p->reduced, 1, p->dtype, 0, loss && !row_losses)) {
        return 0;
    }
    if (rows == 0) return 1;

    all->outer = p->outer;
    all->classes = p->classes;
    all->inner = p->inner;
    const int index = p->target == PYCE_INDEX32 || p->target == PYCE_INDEX64;
    const int wide = p->target == PYCE_INDEX64;
    const size_t label_size = wide ? sizeof(int64_t) : sizeof(int32_t);
    const size_t label_alignment = wide ? _Alignof(int64_t) : _Alignof(int32_t);
    const int result = pyce_has_result(p);
    const int in_place = result && same_operand(p, &p->logits, &p->result);
    const int lse_needed = backward || p->operation == PYCE_LOGSUMEXP;
    return (in_place || add_operand(all, p, &p->logits, p->dtype, 1, 0)) &&
           add_operand(all, p, &p->result, p->dtype, result, 1) &&
           add_operand(all, p, &p->probs, p->probs_dtype, p->target == PYCE_PROBABILITIES, 0) &&
           add_flat(all, p->labels, rows, label_size, label_alignment, index, index, 0) &&
           add_doubles(all, p->sample_weight, rows, 0, has_target, 0) &&
           add_doubles(all, p->grad_losses, rows, 0, has_target && result, 0) &&
           add_doubles(all, p->lse, rows, lse_needed, has_target || lse_needed, !backward) &&
           add_losses(all, p->losses, rows, p->dtype, row_losses, row_losses);
}

int pyce_problem_is_valid(const pyce_problem *p) {
    extents all;
    all.count = 0;
    return add_problem(&all, p) && nothing_overlaps(&all);
}

int pyce_is_apart(const pyce_problem *p, const void *data, size_t size) {
    extents all;
    all.count = 0;
    return add_flat(&all, data, 1, size, size, 1, 1, 1) && add_problem(&all, p) &&
           nothing_overlaps(&all);
}

int pyce_shards_are_valid(const pyce_problem *p, const pyce_shards *shards, double *state,
                          const double *const *states) {
    static const double none = 0; /* in place of the logits of a shard without classes */
    extents all;
    all.count = 0;
    if (!add_flat(&all, shards, 1, sizeof *shards, _Alignof(pyce_shards), 1, 1, 0)) return 0;
    if (shards->count < 1 || shards->own < 0 || shards->own >= shards->count) return 0;
    const int64_t *bounds = shards->bounds;
    if (!add_flat(&all, bounds, (int64_t)shards->count + 1, sizeof *bounds, _Alignof(int64_t), 1, 1,
                  0)) {
        return 0;
    }
    if (bounds[0] != 0 || bounds[shards->count] != p->classes) return 0;
    for (int s = 0; s < shards->count; s++) {
        if (bounds[s] > bounds[s + 1]) return 0;
    }
    if (p->inner != 1 || p->weight || p->lse || !pyce_has_loss(p)) return 0;
    if (p->dtype < PYCE_FLOAT32 || p->dtype > PYCE_BFLOAT16) return 0;
    /* The arrays are as large as the own shard; all classes must fit as well. */
    int64_t size;
    if (p->classes < 1 || p->outer < 0 || __builtin_mul_overflow(p->outer, p->classes, &size) ||
        size > MOST_ELEMENTS / (int64_t)sizeof(double)) {
        return 0;
    }
    pyce_problem own = *p;
    own.classes = pyce_own_classes(shards);
    if (own.classes == 0) {
        if (p->operation != PYCE_FORWARD || p->probs.data) return 0;
        own.classes = 1;
        own.logits = (pyce_operand){.data = (void *)&none};
        if (p->target == PYCE_PROBABILITIES) own.probs = own.logits;
    }
    if (!add_problem(&all, &own)) return 0;
    if (p->outer == 0) return nothing_overlaps(&all);
    if (!state &&
        !add_flat(&all, states, shards->count, sizeof *states, _Alignof(double *), 1, 1, 0)) {
        return 0;
    }
    const int count = all.count;
    for (int s = 0; s < shards->count; s++) {
        if (state && s != shards->own) continue;
        const int64_t n = p->outer * pyce_state_size(p, bounds[s + 1] - bounds[s]);
        all.count = count;
        if (n && !add_doubles(&all, state ? state : states[s], n, 1, 1, state != NULL)) return 0;
        if (!nothing_overlaps(&all)) return 0;
    }
    return 1;
}

int pyce_bernoulli_is_valid(const pyce_bernoulli *b, const double *total) {
    extents all;
    all.count = 0;
    if (!add_doubles(&all, total, 1, 1, 1, 1)) return 0;
    if (b->dtype != PYCE_FLOAT32 && b->dtype != PYCE_FLOAT64) return 0;
    if (b->n < 0 || b->n > MOST_ELEMENTS) return 0;
    if (b->n == 0) return 1;
    if (!b->logits || !b->target) return 0;
    const struct {
        const void *data;
        int written;
    } arrays[] = {
        {b->grad == b->logits ? NULL : b->logits, 0},
        {b->target, 0},
        {b->weight, 0},
        {b->pos_weight, 0},
        {b->losses, 1},
        {b->grad, 1},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        if (!add_flat(&all, arrays[i].data, b->n, pyce_item_size(b->dtype),
                      pyce_item_alignment(b->dtype), 0, 1, arrays[i].written)) {
            return 0;
        }
    }
    return nothing_overlaps(&all);
}

int pyce_scaling_is_valid(const pyce_scaling *s) {
    if (s->dtype < PYCE_FLOAT32 || s->dtype > PYCE_BFLOAT16) return 0;
    if (s->factor_dtype < PYCE_FLOAT32 || s->factor_dtype > PYCE_BFLOAT16) return 0;
    if (s->n < 0 || s->n > MOST_ELEMENTS) return 0;
    const int in_place = s->result == s->saved && s->dtype != PYCE_FLOAT16;
    const size_t saved = pyce_saved_size(s->dtype), size = pyce_item_size(s->dtype);
    const size_t factor = pyce_item_size(s->factor_dtype);
    extents all;
    all.count = 0;
    /* Numbers are aligned to their size here. */
    if (!add_flat(&all, s->factor, 1, factor, factor, 1, 1, 0)) return 0;
    if (s->n == 0) return 1;
    return (in_place || add_flat(&all, s->saved, s->n, saved, saved, 1, 1, 0)) &&
           add_flat(&all, s->result, s->n, size, size, 1, 1, 1) && nothing_overlaps(&all);
}

int pyce_selective_is_valid(const pyce_selective *s) {
    extents all;
    all.count = 0;
    if (!(s->temperature > 0 && s->temperature - s->temperature == 0)) return 0;
    /* A problem that has these logits, and nothing else but their sizes. */
    const pyce_problem p = {
        .operation = PYCE_FORWARD,
        .dtype = s->dtype,
        .target = PYCE_PROBABILITIES,
        .probs_dtype = s->dtype,
        .reduction = PYCE_SUM,
        .threads = s->threads,
        .outer = s->outer,
        .classes = s->classes,
        .inner = s->inner,
        .logits = s->logits,
        .probs = s->logits,
    };
    /* Scratch memory has three arrays of at least one row. */
    int64_t count;
    if (!add_problem(&all, &p) || p.classes > MOST_ELEMENTS / (int64_t)sizeof(double)) return 0;
    const int64_t rows = p.outer * p.inner;
    if (s->chosen < 0 || __builtin_mul_overflow(rows, s->chosen, &count)) return 0;
    if (count > MOST_ELEMENTS) return 0;
    if (count && (!add_flat(&all, s->index, count, sizeof(int64_t), _Alignof(int64_t), 1, 1, 0) ||
                  !add_losses(&all, s->log_probs, count, p.dtype, 1, 1))) {
        return 0;
    }
    if (rows == 0) return 1;
    return add_losses(&all, s->entropy, rows, p.dtype, 0, 1) &&
           add_doubles(&all, s->softmax, rows * p.classes, 0, 1, 1) &&
           add_doubles(&all, s->log_softmax, rows * p.classes, 0, 1, 1) && nothing_overlaps(&all);
}

int pyce_copy_is_valid(void *to, const void *from, int64_t bytes) {
    extents all;
    all.count = 0;
    return add_flat(&all, from, bytes, 1, 1, 1, 1, 0) && add_flat(&all, to, bytes, 1, 1, 0, 1, 1) &&
           nothing_overlaps(&all);
}

/* -- labels ---------------------------------------------------------------------------------------- */

/* Labels that are scanned as one piece: fixes the order in which their weights are added. */
enum { LABEL_PIECE = 16384 };
/* Up to so many pieces the calling thread scans them alone. */
enum { FEW_PIECES = 4 };

typedef struct {
    int64_t valid_rows;
    int64_t bad_row; /* or −1 */
    double weight;
    int extreme;
} label_piece;

typedef struct {
    const pyce_kernels *kernels;
    const pyce_problem *p;
    label_piece *pieces;
} label_work;

static void scan_pieces(void *context, int64_t begin, int64_t end, void *scratch) {
    const label_work *w = context;
    const int64_t rows = w->p->outer * w->p->inner;
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        const int64_t first = i * LABEL_PIECE;
        const int64_t last = first + LABEL_PIECE < rows ? first + LABEL_PIECE : rows;
        label_piece *piece = w->pieces + i;
        piece->bad_row = w->kernels->labels[w->p->target == PYCE_INDEX64](
            w->p, first, last, &piece->valid_rows, &piece->weight, &piece->extreme);
    }
}

int pyce_scan_labels(const pyce_kernels *kernels, pyce_problem *p, int threads, int64_t *valid_rows,
                     double *weight, int *extreme) {
    const int64_t rows = p->outer * p->inner, n = (rows + LABEL_PIECE - 1) / LABEL_PIECE;
    label_piece on_stack[16];
    label_piece *pieces = n <= 16 ? on_stack : malloc((size_t)n * sizeof *pieces);
    if (!pieces) return PYCE_NO_MEMORY;
    label_work context = {.kernels = kernels, .p = p, .pieces = pieces};
    int status = PYCE_OK;
    if (n <= FEW_PIECES) {
        scan_pieces(&context, 0, n, NULL);
    } else {
        const pyce_work work = {
            .work = scan_pieces, .context = &context, .pieces = n, .grain = 2, .scratch = 64};
        if (pyce_pool_run(&work, threads)) status = PYCE_NO_MEMORY;
    }
    double error = 0;
    *valid_rows = 0;
    *weight = 0;
    *extreme = 0;
    for (int64_t i = 0; i < n && status == PYCE_OK; i++) {
        const int64_t bad = pieces[i].bad_row;
        if (bad >= 0) {
            p->bad_row = bad;
            p->bad_value = p->target == PYCE_INDEX64 ? ((const int64_t *)p->labels)[bad]
                                                     : ((const int32_t *)p->labels)[bad];
            status = PYCE_BAD_LABEL;
        }
        compensated_add(weight, pieces[i].weight, &error);
        *valid_rows += pieces[i].valid_rows;
        *extreme |= pieces[i].extreme;
    }
    *weight += error;
    if (pieces != on_stack) free(pieces);
    return status;
}

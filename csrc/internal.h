/* The functions that the files of the C core offer each other; see pyce.h and pyce_bench.h for
   what is exported. */
#ifndef PYCE_INTERNAL_H
#define PYCE_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/half_types.h"
#include "kernels/kernels.h"
#include "pyce.h"
#include "pyce_bench.h"

/* Bytes and alignment of an element of a dtype. */
static inline size_t pyce_item_size(int dtype) {
    static const size_t size[] = {4, 8, 2, 2};
    return size[dtype];
}
static inline size_t pyce_item_alignment(int dtype) {
    static const size_t alignment[] = {_Alignof(float), _Alignof(double), _Alignof(uint16_t),
                                       _Alignof(uint16_t)};
    return alignment[dtype];
}

/* Element i of an array of a dtype. */
static inline double pyce_number_at(const void *data, int dtype, int64_t i) {
    switch (dtype) {
    case PYCE_FLOAT32: return ((const float *)data)[i];
    case PYCE_FLOAT64: return ((const double *)data)[i];
    case PYCE_FLOAT16: return from_f16(((const uint16_t *)data)[i]);
    default: return from_bf16(((const uint16_t *)data)[i]);
    }
}

/* Makes x, rounded first to float for half types, element i. */
static inline void pyce_set_number(void *data, int dtype, int64_t i, double x) {
    switch (dtype) {
    case PYCE_FLOAT32: ((float *)data)[i] = (float)x; return;
    case PYCE_FLOAT64: ((double *)data)[i] = x; return;
    case PYCE_FLOAT16: ((uint16_t *)data)[i] = to_f16((float)x); return;
    default: ((uint16_t *)data)[i] = to_bf16((float)x);
    }
}

/* Bytes of an element of a saved gradient (kernels/scale.inc.h). */
static inline size_t pyce_saved_size(int dtype) {
    return dtype == PYCE_FLOAT16 ? sizeof(float) : pyce_item_size(dtype);
}

/* Whether an operation computes a loss. */
static inline int pyce_has_loss(const pyce_problem *p) {
    return p->operation == PYCE_FORWARD || p->operation == PYCE_FORWARD_BACKWARD;
}

/* One call of pyce_binary_cross_entropy. */
typedef struct {
    int dtype;
    int64_t n;
    const void *logits, *target, *weight, *pos_weight;
    void *losses, *grad;
    double scale;
} pyce_bernoulli;

/* One call of pyce_scale_at. */
typedef struct {
    int dtype;
    int64_t n;
    const void *saved;
    void *result;
    const void *factor;
    int factor_dtype;
} pyce_scaling;

/* validate.c: whether arguments are valid; nothing is written. */
int pyce_problem_is_valid(const pyce_problem *p);
/* Moreover, `size` bytes at `data`, aligned to their size, are written. */
int pyce_is_apart(const pyce_problem *p, const void *data, size_t size);
int pyce_shards_are_valid(const pyce_problem *p, const pyce_shards *shards, double *state,
                          const double *const *states);
int pyce_bernoulli_is_valid(const pyce_bernoulli *b, const double *total);
int pyce_scaling_is_valid(const pyce_scaling *s);
int pyce_selective_is_valid(const pyce_selective *s);
int pyce_copy_is_valid(void *to, const void *from, int64_t bytes);

/* validate.c: check every label, count the rows that are not ignored and sum their weights, the
   denominator of the mean; *extreme tells whether a sample weight is. Returns a status; for PYCE_BAD_LABEL,
   the label is in `p`. */
int pyce_scan_labels(const pyce_kernels *kernels, pyce_problem *p, int threads, int64_t *valid_rows,
                     double *weight, int *extreme);

/* The smallest number of rows whose losses are summed as one leaf of the reduction tree. */
enum { PYCE_LEAST_TILE = 16 };

/* The number of classes that a process has. */
static inline int64_t pyce_own_classes(const pyce_shards *shards) {
    return shards->bounds[shards->own + 1] - shards->bounds[shards->own];
}

/* plan.c: everything of a job that does not depend on the denominator. `cuts` is NULL, or has
   the fields of the job about shards. */
void pyce_plan(const pyce_problem *p, const pyce_job *cuts, pyce_job *job);
/* plan.c: whether the threads share each row, instead of the rows. */
int pyce_shares_rows(const pyce_job *job, int threads);
/* plan.c: the number of threads for work of a size in element equivalents, at most `allowed`. */
int pyce_threads_for(int64_t work, int allowed);
/* plan.c: the number of pieces that a thread draws at a time. */
int64_t pyce_grain(int64_t pieces, int threads);

/* run.c, bernoulli.c, scale.c and selective.c: run what was validated; return a status. */
int pyce_run_problem(pyce_problem *p);
int pyce_run_partial(pyce_problem *p, const pyce_shards *shards, double *state);
int pyce_run_complete(pyce_problem *p, const pyce_shards *shards, const double *const *states);
int pyce_run_bernoulli(const pyce_bernoulli *b, int threads, double *total);
int pyce_run_scaling(const pyce_scaling *s, int threads);
int pyce_run_selective(const pyce_selective *s);

/* cache.c: bytes of the last-level cache. */
int64_t pyce_last_cache(void);

#endif

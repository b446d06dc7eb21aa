/* What passes between pyce.c and the kernels of one instruction set. */
#ifndef PYCE_KERNELS_H
#define PYCE_KERNELS_H

#include <stddef.h>
#include <string.h>
#include <stdint.h>

#include "../pyce.h"

/* Before a loop over an array of vectors, so that they stay in registers. */
#define UNROLL _Pragma("GCC unroll 16")

/* Classes that share one normaliser; rows are cut here when threads share them. */
#define PYCE_BLOCK 2048
/* Up to this many classes, rows go in lanes (lanes.inc.h); above, lanes along a row (short.inc.h up to
   PYCE_BLOCK classes, then wide.inc.h). */
#define PYCE_NARROW 64
/* Up to this many classes, rows that lie one after the other are loaded whole and sorted by class. */
#define PYCE_TINY 8
/* Bounds of the rows whose losses are added up as one leaf of the reduction tree. */
#define PYCE_TILE 1024
/* Bytes that hold what the kernels know of a settled row. */
#define PYCE_SETTLED 12288

/* Which class stays out of a row's sum and gets its gradient from the sum of the others. */
enum { OWN_NONE, OWN_LABEL, OWN_MAX };
/* What multiplies every class in loss and gradient, beside the label: see row_coefficients. */
enum { DENSE_NONE, DENSE_ONE, DENSE_WEIGHT, DENSE_PROBS };

/* A checked problem and what follows from it once for all rows. */
typedef struct {
    const pyce_problem *p;
    int own;               /* OWN_… */
    int dense;             /* DENSE_… */
    int plain;             /* no weights of labels or rows */
    int blended;           /* DENSE_PROBS whose b are not the targets: class weights or smoothing */
    int streaming;         /* whether results go past the caches */
    int recompute;         /* whether exponentials are computed again rather than kept for a row */
    double label_part;     /* factor of the label's term: 1, or 1 − smoothing */
    double dense_part;     /* factor of the dense terms: smoothing/classes, or 1 */
    double label_part_low; /* what rounding these two lost */
    double dense_part_low;
    double certain, certain_low; /* 1 − smoothing */
    double even, even_low;       /* smoothing/classes */
    double grad_scale;           /* of every row: grad_loss / denominator */
    double grad_scale_low;       /* what rounding that lost */
    int64_t tile;                /* rows of one leaf of the reduction, a power of two */
    int64_t blocks;              /* of PYCE_BLOCK classes in a row */
} pyce_job;

/* Statistics of one block of a row, for rows that several threads share. */
typedef struct {
    double max;               /* of the block */
    double scale;             /* from the block's normaliser to the row's */
    double sum;               /* of e over the block without its own class */
    double sum_low;           /* what rounding sum lost; double logits only */
    double dense, dense_loss; /* Σ b and Σ b·(max − x) */
    double dense_low, dense_loss_low;
    int64_t own; /* class left out, or −1 */
} pyce_block;

typedef struct {
    const char *name;
    int (*supported)(void);
    /* By dtype. Rows begin…end, begin a multiple of job->tile; one sum of losses per tile. */
    void (*rows[4])(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums);
    size_t (*scratch[4])(const pyce_job *job);
    /* A row that threads share: statistics of blocks first…last, what follows for the row (kept in
       `settled`, PYCE_SETTLED bytes; the loss as by `rows`), then the result of blocks first…last. */
    void (*measure[4])(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                       pyce_block *blocks, void *scratch);
    void (*settle[4])(const pyce_job *job, int64_t row, pyce_block *blocks, void *settled,
                      double *losses, double *sums);
    void (*write[4])(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                     const pyce_block *blocks, const void *settled, void *scratch);
    /* Labels begin…end: how many count, their summed weights, and the first that is out of range
       (or −1). */
    int64_t (*labels[2])(const pyce_problem *p, int64_t begin, int64_t end, int64_t *count,
                         double *weight);
    double (*bernoulli[2])(int64_t begin, int64_t end, const void *x, const void *t, const void *w,
                           const void *pw, void *losses, void *grad, double scale);
    void (*copy)(char *to, const char *from, size_t bytes);
    uint64_t (*read)(const char *from, size_t bytes);
} pyce_kernels;

extern const pyce_kernels pyce_kernels_avx512, pyce_kernels_avx2, pyce_kernels_scalar;

#endif

/* The interface between the core (plan, threads, reduction) and the kernels of one target. */
#ifndef PYCE_KERNELS_H
#define PYCE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "../pyce.h"
#include "targets.h"

/* Classes that share one normaliser. A row that several threads share is cut at multiples of it. */
#define PYCE_BLOCK 2048
/* Up to this many classes, one row per lane (few.inc.h); above, vectors run along the class axis
   (medium.inc.h up to PYCE_BLOCK classes, then many.inc.h). */
#define PYCE_FEW 64
/* Upper bound on the rows of a tile: rows whose losses one leaf of the reduction adds up. */
#define PYCE_TILE 1024
/* Upper bound on sizeof(row_state), see row_state.inc.h. */
#define PYCE_STATE_BYTES 12288

/* Which class a row's sum leaves out. Its gradient comes from the sum of the other classes, so that
   p − 1 is never formed. */
enum { PIVOT_NONE, PIVOT_LABEL, PIVOT_MAX };
/* The factors b of the soft-target term, one per class: none; 1; the class weights; or the
   probability targets, with class weights and smoothing applied. See finalize.inc.h. */
enum { SOFT_NONE, SOFT_ONE, SOFT_WEIGHT, SOFT_PROBS };

/* A checked problem and what all of its rows have in common. A field *_error is the rounding error
   of the field before it. */
typedef struct {
    const pyce_problem *p;
    int pivot;      /* PIVOT_… */
    int soft;       /* SOFT_… */
    int unweighted; /* no weights of labels or rows, and no lse_square_scale */
    int all_valid;  /* whether no row is ignored */
    int blended;    /* SOFT_PROBS where b are not the targets: class weights or smoothing */
    int streaming;  /* whether results bypass the caches */
    int recompute;  /* whether exponentials are computed twice instead of being stored for a row */
    double label_part; /* factor of the label's term: 1, or 1 − smoothing */
    double soft_part;  /* factor of the soft-target term: smoothing/classes, or 1 */
    double label_part_error;
    double soft_part_error;
    double on_value, on_value_error;   /* 1 − smoothing */
    double off_value, off_value_error; /* smoothing/classes */
    double grad_scale;                 /* factor of every row's gradient: grad_loss/denominator */
    double grad_scale_error;
    int64_t tile;   /* rows of a tile, a power of two */
    int64_t blocks; /* of at most PYCE_BLOCK classes in a row */
    /* The blocks first…last − 1 are there: all of them, or those of the own shard. */
    int64_t first, last;
    int64_t base; /* the class that logits, result and probs begin with */
    /* Where the classes are cut into shards: */
    const pyce_shards *shards;
    const int64_t *begins; /* (blocks + 1): the first class of each block; NULL: k·PYCE_BLOCK */
    double *state;         /* of the own shard, to be written */
    const double *const *states; /* of all shards */
} pyce_job;

/* Statistics of one block of a row: e is relative to the block's normaliser. */
typedef struct {
    double max;
    double scale;               /* from the block's normaliser to the row's, times 2^BIAS */
    double sum;                 /* of e over the block without its pivot */
    double sum_error;           /* float64 logits only */
    double soft_sum, soft_loss; /* Σ b and Σ b·(max − x) */
    double soft_sum_error, soft_loss_error;
    int64_t pivot; /* the class left out, or −1 */
} pyce_block;

/* The kernels for one dtype of logits. */
typedef struct {
    /* Rows begin…end, begin a multiple of job->tile; one sum of losses per tile. */
    void (*run)(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums);
    size_t (*scratch)(const pyce_job *job);
    /* A row that threads share, in three steps: statistics of blocks first…last; what follows for the
       row (in `state`, PYCE_STATE_BYTES bytes; the loss as `run` has it); the result of blocks
       first…last. */
    void (*statistics)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                       pyce_block *blocks, void *scratch);
    void (*finalize)(const pyce_job *job, int64_t row, pyce_block *blocks, void *state,
                     double *losses, double *sums);
    void (*write)(const pyce_job *job, int64_t row, int64_t first, int64_t last,
                  const pyce_block *blocks, const void *state, void *scratch);
    /* Rows of shards (partial.inc.h): as `run`, except that `partial` has no losses. */
    void (*partial)(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums);
    void (*complete)(const pyce_job *job, int64_t begin, int64_t end, void *scratch, double *sums);
    size_t (*shard_scratch)(const pyce_job *job);
    /* Such a row that threads share: its state from the statistics of the shard's blocks; and as
       `finalize`, from the states of all shards. */
    void (*pack)(const pyce_job *job, int64_t row, const pyce_block *blocks);
    void (*combine)(const pyce_job *job, int64_t row, pyce_block *blocks, void *state,
                    double *losses, double *sums);
    /* n numbers of a saved gradient times a factor (scale.inc.h). */
    void (*scale)(const void *saved, void *result, int64_t n, double factor);
} pyce_row_kernels;

/* How the logits of rows with a temperature are divided by it (../selective.c). */
typedef struct {
    double before;        /* a power of two that double logits are multiplied by */
    double first, second; /* powers of two that differences are multiplied by */
    double divisor, inverse;
    double leading, trailing; /* the divisor, of which the products with such parts are exact */
    double second_inverse;    /* second · inverse */
} pyce_division;

/* Σ p·e, Σ p·q with its error, and Σ p·q·e of a row with a temperature. */
typedef struct {
    double b, s, s_error, d;
} pyce_selective_sums;

/* The kernels of one target. */
typedef struct {
    const char *name; /* in the public interface */
    int (*supported)(void);
    const pyce_row_kernels *rows[4]; /* by dtype */
    /* Labels begin…end, by width (32 and 64 bits): the number of valid ones, their summed weights,
       whether a sample weight is extreme, and the first that is out of range (or −1). */
    int64_t (*labels[2])(const pyce_problem *p, int64_t begin, int64_t end, int64_t *count,
                         double *weight, int *extreme);
    /* By dtype: float32 and float64. */
    double (*bernoulli[2])(int64_t begin, int64_t end, const void *x, const void *t, const void *w,
                           const void *pw, void *losses, void *grad, double scale);
    void (*copy)(char *to, const char *from, size_t bytes);
    uint64_t (*read)(const char *from, size_t bytes);
    /* Of a contiguous row of n floats or doubles with a temperature (selective.inc.h): the quotients q,
       and their errors unless e is NULL; returns the first class with the quotient 0, or 0. */
    int64_t (*selective_quotients)(const void *x, int is_double, int64_t n, const pyce_division *by,
                                   double *q, double *e);
    /* `g` is p, minus 1 at a class with q = e = 0; e may be NULL. Without the entropy, b alone. */
    pyce_selective_sums (*selective_sums)(const double *g, const double *q, const double *e,
                                          int64_t n, int with_entropy);
} pyce_kernels;

/* Whether the operation writes an array of the shape of the logits. */
static inline int pyce_has_result(const pyce_problem *p) {
    return p->operation != PYCE_FORWARD && p->operation != PYCE_LOGSUMEXP;
}

/* Factors outside of these limits are extreme, unless they are 0 or NaN: the product of a few may be too
   large or too small for the kernels of a dtype, which compute e·factor in the compute type. See
   factors.c. */
#define PYCE_LEAST_FACTOR 0x1p-200
#define PYCE_MOST_FACTOR_OF_DOUBLES 0x1p200
#define PYCE_MOST_FACTOR_OF_FLOATS 0x1p36
static inline int pyce_is_extreme(double factor, int dtype) {
    const double size = factor < 0 ? -factor : factor;
    const double most =
        dtype == PYCE_FLOAT64 ? PYCE_MOST_FACTOR_OF_DOUBLES : PYCE_MOST_FACTOR_OF_FLOATS;
    return size > most || (size < PYCE_LEAST_FACTOR && size > 0);
}

/* The blocks of `classes` classes that follow each other. */
static inline int64_t pyce_blocks_of(int64_t classes) {
    return classes / PYCE_BLOCK + (classes % PYCE_BLOCK != 0);
}

/* A row's state after the classes of a shard: with labels, the logit at the label (0 where it is in
   another shard); and for each block max, sum, with float64 logits its error, with soft targets the two
   sums of these and their errors, with probabilities the pivot and its b. */
static inline int64_t pyce_state_head(const pyce_problem *p) {
    return p->target == PYCE_INDEX32 || p->target == PYCE_INDEX64;
}
static inline int64_t pyce_block_numbers(const pyce_problem *p) {
    const int soft = p->target == PYCE_PROBABILITIES || p->smoothing > 0;
    return 2 + (p->dtype == PYCE_FLOAT64) + 4 * soft + 2 * (p->target == PYCE_PROBABILITIES);
}

#define PYCE_DECLARE_TARGET(target)                                                                \
    extern const pyce_kernels pyce_kernels_##target;                                               \
    extern const pyce_row_kernels pyce_rows_##target##_f32, pyce_rows_##target##_f64,              \
        pyce_rows_##target##_f16, pyce_rows_##target##_bf16;
PYCE_TARGETS(PYCE_DECLARE_TARGET)
#undef PYCE_DECLARE_TARGET

/* Functions of the loops that take most of the time: inlined even where INLINE leaves that to the
   compiler. */
#ifndef HOT
#define HOT INLINE
#endif

/* Before a loop over an array of vectors, so that they stay in registers. */
#define UNROLL _Pragma("GCC unroll 16")

_Static_assert(PYCE_TILE >= 8 && (PYCE_TILE & (PYCE_TILE - 1)) == 0,
               "a tile is added up by halves, eight lanes at a time");
_Static_assert(PYCE_FEW < PYCE_BLOCK, "rows of few classes are rows of one block");
/* Class numbers within a block are compared as numbers of the compute type. */
_Static_assert(PYCE_BLOCK <= 1 << 24, "a float holds every class number of a block");

#endif

/* The C interface of pyce: the only declarations that Python sees (build_ffi.py reads this file).
 *
 * Every function returns or takes plain values; none prints, aborts, or keeps a pointer. Arrays
 * belong to the caller. Sizes and strides count elements.
 *
 * What can be known from the arguments and the labels is checked, and anything wrong with them is a
 * status: sizes, strides and addresses that do not fit 64 bits or the address space; a pointer that is
 * missing, not needed, or not aligned to its elements; an output that surely shares memory with
 * something else. What can't be known is promised by the caller: that arrays are as large as the
 * sizes, strides and offsets say, and that where a strided output has gaps, what lies in them is not
 * another array's element.
 */
#ifndef PYCE_H
#define PYCE_H

#include <stdint.h>

enum { PYCE_FLOAT32, PYCE_FLOAT64, PYCE_FLOAT16, PYCE_BFLOAT16 };

enum {
    PYCE_FORWARD,          /* loss, and lse where given */
    PYCE_FORWARD_BACKWARD, /* the same and the gradient */
    PYCE_BACKWARD,         /* the gradient from the lse of a forward */
    PYCE_SOFTMAX,
    PYCE_LOG_SOFTMAX,
    PYCE_LOGSUMEXP
};

enum { PYCE_NO_TARGET, PYCE_INDEX32, PYCE_INDEX64, PYCE_PROBABILITIES };

/* PYCE_QUOTIENT: the sum over `normalizer`. */
enum { PYCE_MEAN, PYCE_SUM, PYCE_NONE, PYCE_QUOTIENT };

enum {
    PYCE_OK,
    PYCE_BAD_LABEL,    /* bad_row and bad_value say which; nothing else was written */
    PYCE_BAD_ARGUMENT, /* nothing was written */
    PYCE_NO_MEMORY     /* nothing was written */
};

/* A logits-shaped array seen as (outer, classes, inner): element (o, c, i) stands at
 * data[(offsets ? offsets[o] : o * outer_stride) + c * class_stride + i]. */
typedef struct {
    void *data;
    const int64_t *offsets;
    int64_t outer_stride;
    int64_t class_stride;
} pyce_operand;

/* One computation over rows = outer * inner rows of `classes` numbers each. Pointers that an
 * operation does not need are NULL. Flat arrays have one element per row, in (outer, inner) order. */
typedef struct {
    int32_t operation;
    int32_t dtype; /* of logits and result */
    int32_t target;
    int32_t probs_dtype;
    int32_t reduction;
    int32_t threads; /* at most; at least 1 */
    int64_t outer;
    int64_t classes;
    int64_t inner;
    pyce_operand logits;
    pyce_operand result; /* gradient, softmax or log-softmax; may be exactly the logits */
    pyce_operand probs;
    const void *labels;          /* int32_t or int64_t (rows) */
    const double *weight;        /* (classes) or NULL */
    const double *sample_weight; /* (rows) or NULL */
    const double *grad_losses;   /* (rows) or NULL: factors of the gradient beside grad_loss */
    double grad_loss;
    double normalizer; /* the denominator of PYCE_QUOTIENT */
    double smoothing;
    int64_t ignore_index;
    double *lse;   /* (rows): written by the forward, read by PYCE_BACKWARD; or NULL */
    void *losses;  /* (rows): float, or double for PYCE_FLOAT64; PYCE_NONE only */
    void *reduced; /* the same type, but for PYCE_NONE: the reduced loss, rounded once; or NULL */
    /* Results; what the status does not call for stays as it was. */
    double loss;       /* PYCE_OK: the reduced loss of a forward, but for PYCE_NONE */
    int64_t bad_row;   /* PYCE_BAD_LABEL */
    int64_t bad_value; /* PYCE_BAD_LABEL */
} pyce_problem;

/* Run one computation; returns a status. Any number of threads may call at once. An lse that is not the
 * one of these logits makes PYCE_BACKWARD write numbers without a meaning, and nothing worse. */
int pyce_run(pyce_problem *problem);

/* The common case with less to fill in: contiguous logits (outer, classes, inner), 64-bit labels, class
 * weights or NULL, any reduction but PYCE_QUOTIENT. PYCE_FORWARD, or PYCE_FORWARD_BACKWARD into `grad`.
 * The loss, for PYCE_NONE the losses of the rows, is float, or double for PYCE_FLOAT64. */
int pyce_cross_entropy(int operation, int dtype, int reduction, int threads, int64_t outer,
                       int64_t classes, int64_t inner, const void *logits, const int64_t *labels,
                       const double *weight, void *grad, double smoothing, int64_t ignore_index,
                       void *loss);

/* Bernoulli loss of n elements of PYCE_FLOAT32 or PYCE_FLOAT64, all contiguous; weight, pos_weight,
 * losses and grad may be NULL, and grad may be the logits. Writes the sum of the weighted losses to
 * *total. */
int pyce_binary_cross_entropy(int dtype, int64_t n, const void *logits, const void *target,
                              const void *weight, const void *pos_weight, void *losses, void *grad,
                              double scale, int threads, double *total);

/* The limits that the kernels are measured against: copy or read `bytes` with the same threads. */
int pyce_copy(void *to, const void *from, int64_t bytes, int streaming, int threads);
int pyce_read(const void *from, int64_t bytes, int threads);

/* Instruction sets, widest first: name of the i-th that this machine runs, NULL past the last. */
const char *pyce_isa(int i);
const char *pyce_isa_in_use(void);
int pyce_set_isa(const char *name);

/* Take the last-level cache to have `bytes` (0: what the system says), which decides whether results
 * go past it; returns what it was taken for. For tests and measurements: no result depends on it. */
int64_t pyce_set_cache(int64_t bytes);

/* How large a job must be for a thread: with workers that are awake, and to wake them. Elements, and 32
 * for each row. For tests and measurements. */
void pyce_set_worth(int64_t sharing, int64_t waking);

const char *pyce_status_text(int status);
const char *pyce_compiler(void);

#endif

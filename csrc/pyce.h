/* The C interface of pyce. build_ffi.py reads the declarations here and in pyce_bench.h for Python.
 *
 * No function prints, aborts, or keeps a pointer after it returns. Arrays belong to the caller. Sizes
 * and strides count elements.
 *
 * What can be known from the arguments and the labels is checked, and an error is a status: sizes,
 * strides and addresses that do not fit 64 bits or the address space; a pointer that is missing, not
 * needed, or not aligned to its elements; an output that shares memory with another array. Such memory
 * is not looked for in arrays with offsets, and the search ends where strides make it long. Without
 * rows, only the arrays are checked that have elements nevertheless: `weight` and `reduced`.
 *
 * The caller is responsible for the rest: arrays must be as large as the sizes, strides and offsets
 * say, and no output may share memory with another array. Gaps of a strided output are not written.
 */
#ifndef PYCE_H
#define PYCE_H

#include <stdint.h>

enum { PYCE_FLOAT32, PYCE_FLOAT64, PYCE_FLOAT16, PYCE_BFLOAT16 };

enum {
    PYCE_FORWARD,          /* the loss, and lse if it is not NULL */
    PYCE_FORWARD_BACKWARD, /* the same and the gradient */
    PYCE_BACKWARD,         /* the gradient from the lse that a forward wrote */
    PYCE_SOFTMAX,
    PYCE_LOG_SOFTMAX,
    PYCE_LOGSUMEXP
};

enum { PYCE_NO_TARGET, PYCE_INDEX32, PYCE_INDEX64, PYCE_PROBABILITIES };

/* PYCE_QUOTIENT: the sum divided by `normalizer`. */
enum { PYCE_MEAN, PYCE_SUM, PYCE_NONE, PYCE_QUOTIENT };

enum {
    PYCE_OK,
    PYCE_BAD_LABEL,    /* bad_row and bad_value tell which; nothing else was written */
    PYCE_BAD_ARGUMENT, /* nothing was written */
    PYCE_NO_MEMORY     /* nothing was written */
};

/* An array of the logits' shape (outer, classes, inner). Element (o, c, i) is
 * data[(offsets ? offsets[o] : o * outer_stride) + c * class_stride + i]. */
typedef struct {
    void *data;
    const int64_t *offsets;
    int64_t outer_stride;
    int64_t class_stride;
} pyce_operand;

/* One computation over rows = outer * inner rows of `classes` numbers each. Pointers that an
 * operation does not need are NULL. Flat arrays of `rows` elements are in (outer, inner) order. */
typedef struct {
    int32_t operation;
    int32_t dtype; /* of logits and result */
    int32_t target;
    int32_t probs_dtype;
    int32_t reduction;
    int32_t threads; /* the most to be used, 1 or more */
    int64_t outer;
    int64_t classes;
    int64_t inner;
    pyce_operand logits;
    pyce_operand result; /* gradient, softmax or log-softmax; may be the operand `logits` */
    pyce_operand probs;
    const void *labels;          /* int32_t or int64_t (rows) */
    const double *weight;        /* (classes) or NULL */
    const double *sample_weight; /* (rows) or NULL */
    const double *grad_losses;   /* (rows) or NULL: further factors of the gradients of rows */
    double grad_loss;            /* factor of the gradient */
    double normalizer;           /* the denominator of PYCE_QUOTIENT */
    double smoothing;
    double lse_square_scale; /* λ of λ·lse², added to the losses; finite, 0 without a target */
    int64_t ignore_index;
    double *lse;   /* (rows) or NULL: written by the forward, read by PYCE_BACKWARD */
    void *losses;  /* (rows), PYCE_NONE only: float, or double for PYCE_FLOAT64 */
    void *reduced; /* NULL, or the same type: the reduced loss, rounded once; not PYCE_NONE */
    /* Results. Only the fields that belong to the returned status are written. */
    double loss;       /* PYCE_OK: the reduced loss of a forward; not PYCE_NONE */
    int64_t bad_row;   /* PYCE_BAD_LABEL */
    int64_t bad_value; /* PYCE_BAD_LABEL */
} pyce_problem;

/* Run one computation; returns a status. Any number of threads may call at once. If `lse` does
 * not belong to these logits, PYCE_BACKWARD writes meaningless numbers but accesses no other
 * memory. */
int pyce_run(pyce_problem *problem);

/* Rows whose classes are cut into shards, which several processes may hold. Shard s has the
 * classes bounds[s]…bounds[s + 1] − 1, none if the bounds are equal; bounds[0] is 0 and
 * bounds[count] the number of all classes. */
typedef struct {
    int32_t count;
    int32_t own; /* the shard that a problem has */
    const int64_t *bounds;
} pyce_shards;

/* The loss and the gradient of such rows, in two steps. In between, the processes exchange the
 * states of their shards. The problem is a forward, with or without a backward, of rows with
 * inner = 1, without class weights and lse. Its `classes` are all classes, and its labels count
 * from the first of all. Its logits, result and probs are those of the own shard; if that has no
 * classes, it is a PYCE_FORWARD without probs, and the logits are not accessed.
 *
 * pyce_state_size: the numbers of one row's state after the classes of a shard, if there are so
 * many. pyce_partial: writes the states of all rows after the classes of the own shard.
 * pyce_complete: from the states of all shards, the loss of all classes, which is the same in
 * every process, and the gradient of the own classes.
 *
 * The states have `rows` times pyce_state_size numbers, which depends on the dtype, the target
 * and the smoothing of the problem, and is 0 if the problem is NULL or `classes` negative.
 * States depend on the dtype, target, labels, smoothing and ignore_index, which must be the same
 * in both steps and for all shards. Where all shards begin at multiples of 2048 classes, and
 * there are more than 64 classes, loss and gradient have the bytes that pyce_run gives for the
 * whole rows, but for the sign of a NaN. If states do not belong to these logits, pyce_complete
 * writes meaningless numbers but accesses no other memory. The functions pyce_partial and
 * pyce_complete return a status. */
int64_t pyce_state_size(const pyce_problem *problem, int64_t classes);
int pyce_partial(pyce_problem *problem, const pyce_shards *shards, double *state);
int pyce_complete(pyce_problem *problem, const pyce_shards *shards, const double *const *states);

/* The common case of pyce_run with fewer arguments: contiguous logits (outer, classes, inner), 64-bit
 * labels, class weights or NULL, any reduction except PYCE_QUOTIENT. `operation` is PYCE_FORWARD, or
 * PYCE_FORWARD_BACKWARD to write the gradient to `grad`. `loss` receives the reduced loss, or for
 * PYCE_NONE the losses of the rows, as float, or as double for PYCE_FLOAT64. */
int pyce_cross_entropy(int operation, int dtype, int reduction, int threads, int64_t outer,
                       int64_t classes, int64_t inner, const void *logits, const int64_t *labels,
                       const double *weight, void *grad, double smoothing, int64_t ignore_index,
                       void *loss);

/* The same with addresses as numbers, 0 for NULL: a Python program has the addresses of tensors,
 * and to make pointers of them would take as long as a small batch. In place of `labels`,
 * `probs` may be the target: contiguous probabilities of the dtype `probs_dtype`. `loss_dtype`
 * is the dtype of the loss: that of pyce_cross_entropy, or for the reduced loss of any dtype but
 * PYCE_FLOAT64 a half type, to which it is rounded. */
int pyce_cross_entropy_at(int operation, int dtype, int reduction, int threads, int64_t outer,
                          int64_t classes, int64_t inner, uintptr_t logits, uintptr_t labels,
                          uintptr_t probs, int probs_dtype, uintptr_t weight, uintptr_t grad,
                          double smoothing, int64_t ignore_index, uintptr_t loss, int loss_dtype);

/* The backward pass from a saved gradient of n elements: `result` receives `saved` times the
 * number at `factor`, which is of the dtype `factor_dtype` and must be finite. `dtype` is that
 * of the logits and of `result`. `saved` has it as well and may be `result`, except that it is
 * float for PYCE_FLOAT16. Addresses are numbers. Returns a status. */
int pyce_scale_at(int dtype, int64_t n, int threads, uintptr_t saved, uintptr_t result,
                  uintptr_t factor, int factor_dtype);

/* The Bernoulli loss of n elements; all arrays are contiguous and PYCE_FLOAT32 or PYCE_FLOAT64.
 * weight, pos_weight, losses and grad may be NULL, and grad may be the logits. Writes the sum of the
 * weighted losses to *total, and the gradient times `scale` to grad. Returns a status. */
int pyce_binary_cross_entropy(int dtype, int64_t n, const void *logits, const void *target,
                              const void *weight, const void *pos_weight, void *losses, void *grad,
                              double scale, int threads, double *total);

/* The log-softmax of `rows` = outer * inner rows x of `classes` logits each, divided by a
 * temperature T that is positive and finite, and what follows from it. Flat arrays are in (outer,
 * inner) order. Any of the results may be NULL. */
typedef struct {
    int32_t dtype;
    int32_t threads; /* the most to be used, 1 or more */
    int64_t outer;
    int64_t classes;
    int64_t inner;
    pyce_operand logits;
    double temperature;
    int64_t chosen;       /* the number of classes chosen in each row */
    const int64_t *index; /* (rows, chosen): these classes; NULL for none */
    void *log_probs;      /* (rows, chosen): float, or double for PYCE_FLOAT64; NULL for none */
    void *entropy;        /* (rows), of the same type */
    double *softmax;      /* (rows, classes) */
    double *log_softmax;  /* (rows, classes) */
} pyce_selective;

/* Returns a status: PYCE_BAD_ARGUMENT also for a class that is out of range. */
int pyce_selective_log_softmax(const pyce_selective *s);

/* Handlers of XLA's foreign function interface: `call_frame` is an XLA_FFI_CallFrame, and the
 * result an XLA_FFI_Error, NULL for success (xla_ffi.c). They run on at most as many threads as
 * pyce_xla_set_threads was last given, at first 1. The second one may leave out the gradient of
 * a forward pass, and tells the backward pass of the first one. */
void *pyce_xla_cross_entropy(void *call_frame);
void *pyce_xla_cross_entropy_saving(void *call_frame);
void pyce_xla_set_threads(int threads);

/* The cost of a row in addition to its elements, in elements. */
enum { PYCE_ROW_OVERHEAD = 32 };
/* The work, in elements + PYCE_ROW_OVERHEAD for each row, below which the calling thread runs a problem
 * alone, so that its caller need not find out how many threads to allow. */
int64_t pyce_serial_below(void);
/* The same for the elements of pyce_binary_cross_entropy. */
enum { PYCE_BERNOULLI_SERIAL_BELOW = 32768 };

/* The name of the i-th instruction set that this machine supports, widest first; NULL past the last. */
const char *pyce_isa(int i);
/* The name of the instruction set in use: the widest, unless pyce_set_isa chose another. */
const char *pyce_isa_in_use(void);
/* Choose an instruction set by its name, for all threads. Returns a status. */
int pyce_set_isa(const char *name);

/* A description of a status. */
const char *pyce_status_text(int status);
/* The compiler that built the library. */
const char *pyce_compiler(void);

#endif

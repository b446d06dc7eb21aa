/* Rows with an extreme factor: see factors.c. */
#ifndef PYCE_FACTORS_H
#define PYCE_FACTORS_H

#include "pyce.h"

/* (value + error)·2^exponent. value is 0, not finite, or between 1/2 and 1. */
typedef struct {
    double value, error;
    int64_t exponent;
} pyce_number;

/* A problem and what its extreme factors are replaced by. */
typedef struct {
    const pyce_problem *given;
    pyce_problem problem; /* without extreme factors: of the loss, then of the gradient */
    int takes_scale; /* whether they contain grad_loss/denominator, and kernels get 1 instead */
    /* The rest belongs to factors.c. */
    pyce_number denominator, scale; /* scale: grad_loss/denominator */
    int64_t loss_exponent;          /* of the largest factor of a loss, if losses are reduced */
    int by_rows;                    /* whether pyce_finish_loss sums the losses, not the kernels */
    int64_t soft_exponent;          /* class weights of soft targets are divided by this power */
    pyce_number soft_factor;        /* this power */
    double *sample_weight, *grad_losses;
    void *losses;
    double *memory; /* of the arrays, for the caller to free */
} pyce_factors;

/* Whether a row may have one. `grad_scale` is grad_loss/denominator, and `extreme_samples` tells
   whether a sample weight is extreme. */
int pyce_has_extreme_factor(const pyce_problem *p, double denominator, double grad_scale,
                            int extreme_samples);
/* Prepares the rest, before which only `given` is set; `weights` is the denominator of the mean. Returns
   a status. */
int pyce_find_factors(pyce_factors *f, double weights);
/* Make `problem` that of the loss, a PYCE_FORWARD whose losses of rows are requested, and that of the
   gradient. */
void pyce_prepare_loss(pyce_factors *f);
void pyce_prepare_gradient(pyce_factors *f);
/* Whether the kernels' sum of the losses may lack some that are not 0. If so, the loss is prepared and
   computed again, and pyce_finish_loss sums the losses of the rows. */
int pyce_sum_is_too_small(pyce_factors *f, double total);
/* The results of the rows of `given` from those of the two problems; of the gradient, of so many classes.
   The first one returns the reduced loss; `total` is the sum of the losses of the problem. */
double pyce_finish_loss(const pyce_factors *f, double total);
void pyce_finish_gradient(const pyce_factors *f, int64_t classes);

#endif

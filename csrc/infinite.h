/* Rows with an infinite factor: see infinite.c. */
#ifndef PYCE_INFINITE_H
#define PYCE_INFINITE_H

#include "pyce.h"

/* A problem without infinite factors. */
typedef struct {
    pyce_problem problem; /* the losses of its rows are requested if it has a loss */
    double *memory;       /* of its arrays, for the caller to free */
} pyce_finite;

/* Whether a row may have one. `weights` is the sum of all coefficients that the denominator adds
   up, and `grad_scale` is grad_loss/denominator. */
int pyce_has_infinite_factor(const pyce_problem *p, double weights, double grad_scale);
/* Finds the problem without them, and changes *grad_scale if it is infinite. Returns a status. */
int pyce_make_finite(const pyce_problem *p, double *grad_scale, pyce_finite *f);
/* Gives the rows of `p` their results from those of the finite problem, gradients of so many classes;
   `grad_scale` is the one before. Returns what must be added to the sum of the losses. */
double pyce_make_infinite(const pyce_problem *p, int64_t classes, double grad_scale,
                          const pyce_finite *f);

#endif

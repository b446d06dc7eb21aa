/* vmath.inc.h of every target and precision, as functions that a test can call. */
#ifndef PYCE_TEST_VMATH_H
#define PYCE_TEST_VMATH_H

#include "targets.h"

/* Numbers that the functions below take at once: eight vectors. */
enum { FLOATS = 128, DOUBLES = 64 };

/* Bounds are those stated in vmath.inc.h. */
typedef struct {
    /* e of `x` relative to the normaliser of `max`; returns the normaliser's exponent. */
    double (*exps)(const float *x, float max, float *e);
    /* e of each number of `max` relative to its own normaliser, and the normalisers' exponents. */
    void (*maxima)(const float *max, double *e, float *exponents);
    double exp_ulp, exp_max;
} vmath_f32;

typedef struct {
    const char *name;
    int (*supported)(void);
    double (*exps)(const double *x, double max, double *e);
    /* exp(−|x|) of the Bernoulli loss. */
    void (*bernoulli_exps)(const double *minus_size, double *e);
    /* exp(z)·2^−n as *hi + *lo, and the n. */
    void (*reduced_exps)(const double *z, double *hi, double *lo, double *n);
    void (*exps_of)(const double *shift, double exponent, double *e);
    void (*log1ps)(const double *q, int exact, double *log, double *error);
    double exp_ulp, reduced_exp, exp_of_ulp, log1p_ulp, log1p_short;
} vmath_f64;

#define DECLARE(target)                                                                            \
    extern const vmath_f32 vmath_##target##_f32;                                                   \
    extern const vmath_f64 vmath_##target##_f64;
PYCE_TARGETS(DECLARE)
#undef DECLARE

#define VMATH3(target, precision) vmath_##target##_##precision
#define VMATH2(target, precision) VMATH3(target, precision)
#define VMATH(precision) VMATH2(TARGET, precision)

#endif

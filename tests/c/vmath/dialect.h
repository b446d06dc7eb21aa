/* vmath.inc.h of one instruction set, as functions that a test can call. */
#ifndef PYCE_TEST_DIALECT_H
#define PYCE_TEST_DIALECT_H

/* Numbers that the functions below take at once: eight vectors. */
enum { FLOATS = 128, DOUBLES = 64 };

typedef struct {
    const char *name;
    /* e of `x` beside the maximum, and the same as high·(1 + rest); the normaliser's exponent. */
    double (*float_exps)(const float *x, float max, float *e, float *high, float *rest);
    double (*double_exps)(const double *x, double max, double *e);
    /* exp(−|x|) of the Bernoulli loss. */
    void (*bernoulli_exps)(const double *minus_size, double *e);
    /* exp(z)·2^−n as *hi + *lo, and the n. */
    void (*reduced_exps)(const double *z, double *hi, double *lo, double *n);
    void (*exps_of)(const double *shift, double exponent, double *e);
    void (*log1ps)(const double *q, int exact, double *log, double *low);
    /* Bounds stated in vmath.inc.h. */
    double float_exp_ulp, float_parts, double_exp_ulp, reduced_exp, exp_of_ulp, log1p_ulp,
        log1p_short;
} dialect;

extern const dialect dialect_avx512, dialect_avx2, dialect_scalar;

#endif

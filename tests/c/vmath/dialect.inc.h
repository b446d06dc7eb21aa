/* The functions of dialect.h, for the vocabulary that stands above. */
#include "vmath.inc.h"
#include "dialect.h"

static double float_exps(const float *x, float max, float *e, float *high, float *rest) {
    const vf_normaliser s = vf_normalise(vf_set1(max));
    vf v[8];
    for (int i = 0; i < 8; i++) {
        vf part;
        v[i] = vf_load(x + 16 * i);
        vf_store(high + 16 * i, vf_exp_parts(v[i], s, &part));
        vf_store(rest + 16 * i, part);
    }
    vf_exp8(v, s);
    for (int i = 0; i < 8; i++) vf_store(e + 16 * i, v[i]);
    float exponent[16];
    vf_store(exponent, s.exponent);
    return exponent[0];
}

static double double_exps(const double *x, double max, double *e) {
    const vd_normaliser s = vd_normalise(vd_set1(max));
    vd v[8];
    for (int i = 0; i < 8; i++) v[i] = vd_load(x + 8 * i);
    vd_exp8(v, s);
    for (int i = 0; i < 8; i++) vd_store(e + 8 * i, v[i]);
    double exponent[8];
    vd_store(exponent, s.exponent);
    return exponent[0];
}

static void bernoulli_exps(const double *minus_size, double *e) {
    const vd zero = vd_set1(0);
    const vd_normaliser s = vd_normaliser_of(zero, zero, vd_set1(-707.0));
    for (int i = 0; i < DOUBLES; i += 8) vd_store(e + i, vd_exp(vd_load(minus_size + i), s));
}

static void reduced_exps(const double *z, double *hi, double *lo, double *n) {
    for (int i = 0; i < DOUBLES; i += 8) {
        const vd v = vd_load(z + i), k = vd_round(vd_mul(v, vd_set1(0x1.71547652b82fep+0)));
        vd r, low, a, b;
        vd_reduce(v, k, &r, &low);
        vd_exp_reduced(r, low, &a, &b);
        vd_store(hi + i, a);
        vd_store(lo + i, b);
        vd_store(n + i, k);
    }
}

static void exps_of(const double *shift, double exponent, double *e) {
    for (int i = 0; i < DOUBLES; i += 8)
        vd_store(e + i, exp_of(vd_load(shift + i), vd_set1(exponent)));
}

static void log1ps(const double *q, int exact, double *log, double *low) {
    for (int i = 0; i < DOUBLES; i += 8) {
        const vd v = vd_load(q + i);
        vd lost = vd_set1(0);
        vd_store(log + i, exact ? vd_log1p(v, 1, &lost) : vd_log1p(v, 0, &lost));
        vd_store(low + i, lost);
    }
}

#define DIALECT(isa)                                                                               \
    const dialect dialect_##isa = {#isa,         float_exps,    double_exps,    bernoulli_exps,    \
                                   reduced_exps, exps_of,       log1ps,         VF_EXP_ULP,        \
                                   VF_EXP_PARTS, VD_EXP_ULP,    VD_EXP_REDUCED, EXP_OF_ULP,        \
                                   VD_LOG1P_ULP, VD_LOG1P_SHORT}

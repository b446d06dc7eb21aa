/* vmath_f64 of the target whose operations are included above. */
#include "real_f64.h"

#include "pairs.inc.h"
#include "vmath.inc.h"
#include "vmath.h"

static double double_exps(const double *x, double max, double *e) {
    const normaliser s = normalise(vd_set1(max));
    for (int i = 0; i < DOUBLES; i += STEP_VECTORS * 8) {
        vd v[STEP_VECTORS];
        for (int j = 0; j < STEP_VECTORS; j++) v[j] = vd_load(x + i + 8 * j);
        exps(v, STEP_VECTORS, s);
        for (int j = 0; j < STEP_VECTORS; j++) vd_store(e + i + 8 * j, v[j]);
    }
    double exponent[8];
    vd_store(exponent, s.exponent);
    return exponent[0];
}

static void bernoulli_exps(const double *minus_size, double *e) {
    const vd zero = vd_set1(0);
    const normaliser s = normaliser_from(zero, zero, vd_set1(-707.0));
    for (int i = 0; i < DOUBLES; i += 8) vd_store(e + i, exp1(vd_load(minus_size + i), s));
}

static void reduced_exps(const double *z, double *hi, double *lo, double *n) {
    for (int i = 0; i < DOUBLES; i += 8) {
        const vd v = vd_load(z + i), k = vd_round(vd_mul(v, vd_set1(LOG2_E)));
        vd r, error, a, b;
        vd_reduce(v, k, &r, &error);
        vd_exp_reduced(r, error, &a, &b);
        vd_store(hi + i, a);
        vd_store(lo + i, b);
        vd_store(n + i, k);
    }
}

static void exps_of(const double *shift, double exponent, double *e) {
    for (int i = 0; i < DOUBLES; i += 8)
        vd_store(e + i, exp_of(vd_load(shift + i), vd_set1(exponent)));
}

static void log1ps(const double *q, int exact, double *log, double *error) {
    for (int i = 0; i < DOUBLES; i += 8) {
        const vd v = vd_load(q + i);
        vd lost = vd_set1(0);
        vd_store(log + i, exact ? vd_log1p(v, 1, &lost) : vd_log1p(v, 0, &lost));
        vd_store(error + i, lost);
    }
}

#if defined(TARGET_END)
TARGET_END
#endif

static int supported(void) { return TARGET_SUPPORTED; }

const vmath_f64 VMATH(f64) = {
    .name = TARGET_NAME,
    .supported = supported,
    .exps = double_exps,
    .bernoulli_exps = bernoulli_exps,
    .reduced_exps = reduced_exps,
    .exps_of = exps_of,
    .log1ps = log1ps,
    .exp_ulp = VD_EXP_ULP,
    .reduced_exp = VD_EXP_REDUCED,
    .exp_of_ulp = EXP_OF_ULP,
    .log1p_ulp = VD_LOG1P_ULP,
    .log1p_short = VD_LOG1P_SHORT,
};

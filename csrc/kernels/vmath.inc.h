/* Exponential and logarithm, and the normaliser of exponentials.
 *
 * The normaliser of a set of numbers with maximum m is 2^exponent·exp(shift), where
 *     shift    = m if |m| ≥ LIMIT, else 0
 *     exponent = round((m − shift)·log2 e) − BIAS
 * and e(x) = exp(x − shift)·2^−exponent, between 0 and about 2^BIAS. Subtracting the shift is exact
 * for every x within RANGE of m (Sterbenz), and scaling by a power of two is exact, so the maximum
 * adds no rounding to e: its only error is the exponential's. Numbers more than RANGE below m give
 * exactly 0, and no number gives a subnormal. The bias keeps numbers representable that are tiny
 * compared with exp(m): a model that is confident by 100 still has a loss.
 *
 * The exponential: x − shift = n·(ln 2)/STEPS + r, and e = 2^(n/STEPS − exponent)·exp(r). n is
 * found by adding a number so large that the sum is rounded to an integer, `magic`, which contains the
 * normaliser's exponent. Of floats, it contains the bias of the exponent field (EXP_FIELD) as well, so
 * that the sum's lowest bits, shifted, are the power of two that exp(r) is multiplied by: a product, so
 * that NaN remains NaN whatever its bits are. Of doubles they are added to the exponent field.
 * Doubles have a table of 2^(i/STEPS), rounded, and one of the rounding errors: the lowest bits of the
 * sum select the entry.
 *
 *            error of e                STEPS   LIMIT   RANGE   BIAS
 *   float    below VF_EXP_ULP              1     256     126     60
 *   double   below VD_EXP_ULP              8    2048     748     60
 *
 * tests/c/vmath/check_vmath.c checks every stated error: of floats, for each float. coefficients.py
 * computes the tables and the errors of the polynomials.
 */

/* Errors in units in the last place (ULP) or relative to the result. */
#define VF_EXP_ULP 0.9         /* exps of floats */
#define VF_EXP_MAX 0x1p-27     /* exp_max */
#define VD_EXP_ULP 0.75        /* exps of doubles */
#define VD_EXP_REDUCED 0x1p-55 /* vd_reduce and vd_exp_reduced */
#define EXP_OF_ULP 0.7         /* exp_of */
#define VD_LOG1P_ULP 1.0       /* vd_log1p, exact */
#define VD_LOG1P_SHORT 0x1p-43 /* vd_log1p, not exact */

#define BIAS 60
#define BIAS_FACTOR 0x1p60
#define LN2_HI 0x1.62e42fefa39efp-1
#define LN2_LO 0x1.abc9e3b39803fp-56

/* -- the normaliser ------------------------------------------------------------------------------ */

typedef struct {
    vreal shift, exponent;
    vreal magic; /* EXP_MAGIC − STEPS·exponent */
    vreal least; /* magic plus the n of EXP_RANGE below the maximum: e is 0 below it */
} normaliser;

/* The normaliser of one row, or of one block of it. */
typedef struct {
    real shift, magic, least;
} row_normaliser;

INLINE normaliser normaliser_from(vreal shift, vreal exponent, vreal least) {
    normaliser r;
    r.shift = shift;
    r.exponent = exponent;
    r.magic = v_fnma(exponent, v_set1(EXP_STEPS), v_set1(EXP_MAGIC + EXP_FIELD));
    r.least = v_fma(least, v_set1(EXP_STEPS * LOG2_E), r.magic);
    return r;
}
/* The normaliser for each lane's maximum; 0 replaces a maximum that is not finite. */
INLINE normaliser normalise(vreal max) {
    const vreal m = v_keep(v_eq(v_sub(max, max), v_set1(0)), max);
    const vreal size = v_max(m, v_sub(v_set1(0), m));
    const vreal shift = v_keep(v_nlt(size, v_set1(SHIFT_LIMIT)), m);
    const vreal z = v_sub(m, shift);
    const vreal n = v_sub(v_fma(z, v_set1(LOG2_E), v_set1(EXP_MAGIC)), v_set1(EXP_MAGIC));
    return normaliser_from(shift, v_sub(n, v_set1(BIAS)), v_sub(z, v_set1(EXP_RANGE)));
}

/* -- e of the compute type ------------------------------------------------------------------------ */

/* exps_with computes e of `count` vectors in place, each operation for all of them before the next: one
   vector's operations form a dependent chain that is longer than a processor looks ahead. Each constant
   is loaded for all of them just before its use. `row` is NULL, or the same normaliser as `s`; see
   row_exponential in block.inc.h. */
#define TOGETHER                                                                                   \
    UNROLL                                                                                         \
    for (int j = 0; j < count; j++)
#include EXP_INC

HOT void exps(vreal v[], const int count, normaliser s) {
    exps_with(v, count, &s, 0, &constants_of_exp);
}
INLINE vreal exp1(vreal x, normaliser s) {
    exps(&x, 1, s);
    return x;
}
/* -- double precision, whatever the compute type ----------------------------------------------------- */

/* exp(r) ≈ 1 + r + r²·(1/2 + r·(REDUCED_3 + r·(… + r·REDUCED_12))). */
#define REDUCED_3 0x1.5555555555557p-3
#define REDUCED_4 0x1.5555555555556p-5
#define REDUCED_5 0x1.11111111100cep-7
#define REDUCED_6 0x1.6c16c16c162cbp-10
#define REDUCED_7 0x1.a01a01abef415p-13
#define REDUCED_8 0x1.a01a01a6dd25ep-16
#define REDUCED_9 0x1.71de021a90822p-19
#define REDUCED_10 0x1.27e4db564eedfp-22
#define REDUCED_11 0x1.af4e196027428p-26
#define REDUCED_12 0x1.1f732018166a0p-29

/* exp(r + error) = *hi + *lo for |r| ≤ 0.35, to VD_EXP_REDUCED. The polynomial is within 2^−61 of
   exp(r). */
INLINE void vd_exp_reduced(vd r, vd error, vd *hi, vd *lo) {
    vd q = vd_set1(REDUCED_12);
    q = vd_fma(q, r, vd_set1(REDUCED_11));
    q = vd_fma(q, r, vd_set1(REDUCED_10));
    q = vd_fma(q, r, vd_set1(REDUCED_9));
    q = vd_fma(q, r, vd_set1(REDUCED_8));
    q = vd_fma(q, r, vd_set1(REDUCED_7));
    q = vd_fma(q, r, vd_set1(REDUCED_6));
    q = vd_fma(q, r, vd_set1(REDUCED_5));
    q = vd_fma(q, r, vd_set1(REDUCED_4));
    q = vd_fma(q, r, vd_set1(REDUCED_3));
    q = vd_fma(q, r, vd_set1(0.5));
    const vd one = vd_set1(1.0);
    const vd top = vd_add(one, r);
    const vd rest = vd_add(vd_sub(r, vd_sub(top, one)), error);
    const vd tail = vd_fma(vd_mul(r, r), q, rest);
    *hi = vd_add(top, tail);
    *lo = vd_sub(tail, vd_sub(*hi, top));
}

/* z − n·ln 2 as *r + *error. */
INLINE void vd_reduce(vd z, vd n, vd *r, vd *error) {
    const vd first = vd_fnma(n, vd_set1(LN2_HI), z);
    *r = vd_fnma(n, vd_set1(LN2_LO), first);
    *error = vd_fnma(n, vd_set1(LN2_LO), vd_sub(first, *r));
}

INLINE vd vd_round(vd x) { return vd_sub(vd_add(x, vd_set1(0x1.8p52)), vd_set1(0x1.8p52)); }

/* exp(shift)·2^exponent, at most 2^1000; 0 where it is below 2^−1000. Within EXP_OF_ULP. */
INLINE vd exp_of(vd shift, vd exponent) {
    const vd n = vd_round(vd_mul(shift, vd_set1(0x1.71547652b82fep+0)));
    vd r, error, hi, lo;
    vd_reduce(shift, n, &r, &error);
    vd_exp_reduced(r, error, &hi, &lo);
    const vd k = vd_add(n, exponent);
    const vd result = vd_exp2(vd_nlt(k, vd_set1(-1000.0)), hi, k);
    return vd_keep(vd_nlt(shift, vd_set1(-4000.0)), result);
}
/* Of one number. */
INLINE double exp_of_one(double shift, double exponent) {
    double result[8];
    vd_store(result, exp_of(vd_set1(shift), vd_set1(exponent)));
    return result[0];
}

/* (2·artanh s)/s ≈ 2 + z·(LOG_1 + z·(… + z·LOG_7)), z = s², and the same shorter. */
#define LOG_1 6.666666666666735130e-01
#define LOG_2 3.999999999940941908e-01
#define LOG_3 2.857142874366239149e-01
#define LOG_4 2.222219843214978396e-01
#define LOG_5 1.818357216161805012e-01
#define LOG_6 1.531383769920937332e-01
#define LOG_7 1.479819860511658591e-01
#define LOG_SHORT_1 0.6666666666737519
#define LOG_SHORT_2 0.399999987972117
#define LOG_SHORT_3 0.2857175456161631
#define LOG_SHORT_4 0.22191399198523978
#define LOG_SHORT_5 0.19362685422902242
/* ln 2 in two parts, the first with 20 trailing zeros. */
#define LN2_UPPER 6.93147180369123816490e-01
#define LN2_LOWER 1.90821492927058770002e-10

/* log(1 + q) for q ≥ 0. With u = 1 + q = 2^k·(1 + f) and s = f/(2 + f), log(1 + f) = 2·artanh s; where
 * q < √2 − 1, f = q without rounding. If `exact`, within VD_LOG1P_ULP, and *result_error is the
 * rounding error of the result: log(1 + f) = f − f²/2 + s·(f²/2 + R(s²)), after FreeBSD's e_log.c (Sun
 * Microsystems, 1993), which the coefficients are from. Otherwise within VD_LOG1P_SHORT. */
INLINE vd vd_log1p(vd q, int exact, vd *result_error) {
    const vd one = vd_set1(1.0);
    const vd u = vd_add(one, q);
    vd m = vd_mantissa(u), k = vd_exponent(u);
    const vdm upper = vd_nlt(m, vd_set1(0x1.6a09e667f3bcdp+0));
    m = vd_select(upper, vd_mul(m, vd_set1(0.5)), m);
    k = vd_select(upper, vd_add(k, one), k);
    const vdm large = vd_nlt(q, vd_set1(0x1.a827999fcef34p-2));
    k = vd_keep(large, k);
    vd correction = vd_set1(0);
    if (exact) {
        correction = vd_keep(large, vd_div(error_of_finite_sum(one, q, u), u));
    }
    const vd f = vd_select(large, vd_sub(m, one), q);

    const vd s = vd_div(f, vd_add(vd_set1(2.0), f));
    const vd z = vd_mul(s, s);
    if (!exact) {
        /* 2·artanh s to 2^−43. */
        vd r = vd_set1(LOG_SHORT_5);
        r = vd_fma(r, z, vd_set1(LOG_SHORT_4));
        r = vd_fma(r, z, vd_set1(LOG_SHORT_3));
        r = vd_fma(r, z, vd_set1(LOG_SHORT_2));
        r = vd_fma(r, z, vd_set1(LOG_SHORT_1));
        r = vd_fma(r, z, vd_set1(2.0));
        return vd_fma(k, vd_set1(LN2_HI), vd_mul(s, r));
    }
    vd r = vd_set1(LOG_7);
    r = vd_fma(r, z, vd_set1(LOG_6));
    r = vd_fma(r, z, vd_set1(LOG_5));
    r = vd_fma(r, z, vd_set1(LOG_4));
    r = vd_fma(r, z, vd_set1(LOG_3));
    r = vd_fma(r, z, vd_set1(LOG_2));
    r = vd_fma(r, z, vd_set1(LOG_1));
    r = vd_mul(r, z);
    const vd half = vd_mul(vd_mul(vd_set1(0.5), f), f);
    /* k·LN2_UPPER is exact for every exponent. */
    const vd error = vd_fma(k, vd_set1(LN2_LOWER), correction);
    const vd inner = vd_sub(half, vd_fma(s, vd_add(half, r), error));
    const vd high = vd_mul(k, vd_set1(LN2_UPPER)), minus = vd_sub(inner, f);
    const vd result = vd_sub(high, minus);
    const vd zero = vd_set1(0);
    *result_error = vd_sub(error_of_sum(high, vd_sub(zero, minus), result),
                           error_of_sum(inner, vd_sub(zero, f), minus));
    return result;
}

/* Exponential and logarithm in the kernels' vocabulary, and the normaliser they share.
 *
 * The normaliser of a set of numbers with maximum m is 2^exponent·exp(shift), where
 *     shift    = m if |m| ≥ LIMIT, else 0
 *     exponent = round((m − shift)·log2 e) − BIAS
 * and e(x) = exp(x − shift)·2^−exponent, between 0 and about 2^BIAS. Subtracting the shift is exact
 * for every x within RANGE of m (Sterbenz), and scaling by a power of two is exact, so the maximum
 * puts no rounding into e: its only error is the exponential's. Numbers more than RANGE below m give
 * exactly 0, and no number gives a subnormal. The bias keeps what is tiny beside m representable:
 * a model that is confident by 100 still has a loss.
 *
 * The exponential: x − shift = n·(ln 2)/STEPS + r, and e = 2^(n/STEPS − exponent)·exp(r). A table
 * holds 2^(i/STEPS), rounded (HIGH) and what that lost (LOW); the rest of n goes to the exponent's
 * bits. n is found by adding a number so large that the sum is rounded to an integer, `magic`, which
 * has the normaliser's exponent in it: the sum's lowest bits choose from the table and, moved up, are
 * what is added to the bits of HIGH. exp(r) − 1 ≤ 0.045 is all that is rounded more than once.
 *
 *            error of e                STEPS   LIMIT   RANGE   BIAS
 *   float    below VF_EXP_ULP             16     256     126     60
 *   double   below VD_EXP_ULP              8    2048     748     60
 *
 * What is stated of errors here, tests/c/vmath/check_vmath.c holds; of floats, each one.
 */

/* Errors in units in the last place (ULP) or relative to the result. */
#define VF_EXP_ULP 0.57        /* vf_exps */
#define VF_EXP_PARTS 0x1p-27   /* vf_exp_parts */
#define VD_EXP_ULP 0.75        /* vd_exps */
#define VD_EXP_REDUCED 0x1p-55 /* vd_reduce and vd_exp_reduced */
#define EXP_OF_ULP 0.7         /* exp_of */
#define VD_LOG1P_ULP 1.0       /* vd_log1p, exact */
#define VD_LOG1P_SHORT 0x1p-43 /* vd_log1p, not exact */

#define NOT_A_NUMBER __builtin_nan("")
#define INFINITE __builtin_inf()
#define BIAS 60
#define BIAS_FACTOR 0x1p60

typedef struct {
    vf shift, exponent;
    vf magic; /* 1.5·2^23 − STEPS·exponent */
    vf least; /* magic plus the n of RANGE below the maximum: less gives 0 */
} vf_normaliser;
typedef struct {
    vd shift, exponent, magic, least;
} vd_normaliser;

/* The normaliser for each lane's maximum; 0 stands in for a maximum that is not finite. */
#define NORMALISER(p, V, LIMIT, RANGE, MAGIC, LOG2E, STEPS)                                        \
    INLINE p##_normaliser p##_normaliser_of(V shift, V exponent, V least) {                        \
        p##_normaliser r;                                                                          \
        r.shift = shift;                                                                           \
        r.exponent = exponent;                                                                     \
        r.magic = p##_fnma(exponent, p##_set1(STEPS), p##_set1(MAGIC));                            \
        r.least = p##_fma(least, p##_set1(STEPS * LOG2E), r.magic);                                \
        return r;                                                                                  \
    }                                                                                              \
    INLINE p##_normaliser p##_normalise(V max) {                                                   \
        const V m = p##_keep(p##_eq(p##_sub(max, max), p##_set1(0)), max);                         \
        const V size = p##_max(m, p##_sub(p##_set1(0), m));                                        \
        const V shift = p##_keep(p##_nlt(size, p##_set1(LIMIT)), m);                               \
        const V z = p##_sub(m, shift);                                                             \
        const V n = p##_sub(p##_fma(z, p##_set1(LOG2E), p##_set1(MAGIC)), p##_set1(MAGIC));        \
        return p##_normaliser_of(shift, p##_sub(n, p##_set1(BIAS)), p##_sub(z, p##_set1(RANGE)));  \
    }
NORMALISER(vf, vf, 256.0f, 126.0f, 0x1.8p23f, 0x1.715476p+0f, 16)
NORMALISER(vd, vd, 2048.0, 748.0, 0x1.8p52, 0x1.71547652b82fep+0, 8)
#undef NORMALISER

#define LN2_HI 0x1.62e42fefa39efp-1
#define LN2_LO 0x1.abc9e3b39803fp-56

/* The bits of HIGH have their index taken away where `raise` puts it. */
#define ALIGNED __attribute__((aligned(64)))
ALIGNED static const float vf_high[16] = {
    0x1.000000p+0f, 0x1.fb5586p-1f, 0x1.f72b84p-1f, 0x1.f387a6p-1f, 0x1.f06fe0p-1f, 0x1.edea64p-1f,
    0x1.ebfdaep-1f, 0x1.eab07ep-1f, 0x1.ea09e6p-1f, 0x1.ea1148p-1f, 0x1.eace54p-1f, 0x1.ec4918p-1f,
    0x1.ee89fap-1f, 0x1.f199bep-1f, 0x1.f5818ep-1f, 0x1.fa4afap-1f};
ALIGNED static const float vf_low[16] = {0,
                                         0x1.8d96d4p-25f,
                                         -0x1.9c0c22p-27f,
                                         0x1.964904p-25f,
                                         0x1.125002p-25f,
                                         0x1.370be4p-25f,
                                         -0x1.0a3550p-25f,
                                         -0x1.00d8acp-27f,
                                         0x1.26055cp-26f,
                                         -0x1.05cb44p-25f,
                                         0x1.67a1cap-28f,
                                         0x1.a3b5e4p-28f,
                                         -0x1.f9c304p-27f,
                                         -0x1.6961b4p-28f,
                                         -0x1.a5217cp-28f,
                                         0x1.61428ep-28f};
ALIGNED static const double vd_high[8] = {
    0x1.0000000000000p+0, 0x1.f72b83c7d517bp-1, 0x1.f06fe0a31b715p-1, 0x1.ebfdad5362a27p-1,
    0x1.ea09e667f3bcdp-1, 0x1.eace5422aa0dbp-1, 0x1.ee89f995ad3adp-1, 0x1.f5818dcfba487p-1};
ALIGNED static const double vd_low[8] = {0,
                                         -0x1.01b15eaa59348p-55,
                                         0x1.34d754db0abb6p-55,
                                         0x1.690cebb7aafb0p-56,
                                         -0x1.3b3efbf5e2228p-54,
                                         0x1.db72fc1f0eab4p-55,
                                         0x1.c1a7792cb3387p-55,
                                         0x1.4a385a63d07a7p-56};

/* e of VF_TOGETHER vectors at once: step by step for all of them, since one after the other their
   chains of dependent operations are more than a processor looks ahead. The polynomial is within
   2^−29 of exp(r) − 1. */
#define TOGETHER                                                                                   \
    UNROLL                                                                                         \
    for (int j = 0; j < count; j++)
INLINE void vf_exps(vf v[], const int count, vf_normaliser s) {
    vf r[8], q[8], t[8];
    TOGETHER v[j] = vf_sub(v[j], s.shift);
    TOGETHER t[j] = vf_fma(v[j], vf_set1(0x1.715476p+4f), s.magic);
    TOGETHER r[j] = vf_sub(t[j], s.magic);
    TOGETHER q[j] = vf_fnma(r[j], vf_set1(0x1.62e43p-5f), v[j]);
    TOGETHER r[j] = vf_fnma(r[j], vf_set1(-0x1.05c61p-33f), q[j]);
    TOGETHER q[j] = vf_fma(vf_set1(0x1.55574ap-3f), r[j], vf_set1(0x1.00022p-1f));
    TOGETHER q[j] = vf_fma(q[j], r[j], vf_set1(1.0f));
    TOGETHER q[j] = vf_fma(q[j], r[j], vf_lookup(t[j], vf_low));
    TOGETHER v[j] = vf_raise(vf_lookup(t[j], vf_high), t[j]);
    TOGETHER v[j] = vf_fma_keep(vf_nlt(t[j], s.least), v[j], q[j], v[j]);
}
/* e(x) = high·(1 + *rest), before that is rounded: known to VF_EXP_PARTS. */
INLINE vf vf_exp_parts(vf x, vf_normaliser s, vf *rest) {
    const vf z = vf_sub(x, s.shift);
    const vf t = vf_fma(z, vf_set1(0x1.715476p+4f), s.magic);
    const vf n = vf_sub(t, s.magic);
    const vf r = vf_fnma(n, vf_set1(-0x1.05c61p-29f / 16), vf_fnma(n, vf_set1(0x1.62e43p-5f), z));
    vf q = vf_fma(vf_set1(0x1.55574ap-3f), r, vf_set1(0x1.00022p-1f));
    q = vf_fma(q, r, vf_set1(1.0f));
    *rest = vf_fma(q, r, vf_lookup(t, vf_low));
    return vf_raise(vf_lookup(t, vf_high), t);
}
INLINE vf vf_exp(vf x, vf_normaliser s) {
    vf_exps(&x, 1, s);
    return x;
}

/* exp(r) = *hi + *lo for |r| ≤ 0.35 given as r + low, to VD_EXP_REDUCED. The polynomial is within
   2^−61 of it. */
INLINE void vd_exp_reduced(vd r, vd low, vd *hi, vd *lo) {
    vd q = vd_set1(0x1.1f732018166a0p-29);
    q = vd_fma(q, r, vd_set1(0x1.af4e196027428p-26));
    q = vd_fma(q, r, vd_set1(0x1.27e4db564eedfp-22));
    q = vd_fma(q, r, vd_set1(0x1.71de021a90822p-19));
    q = vd_fma(q, r, vd_set1(0x1.a01a01a6dd25ep-16));
    q = vd_fma(q, r, vd_set1(0x1.a01a01abef415p-13));
    q = vd_fma(q, r, vd_set1(0x1.6c16c16c162cbp-10));
    q = vd_fma(q, r, vd_set1(0x1.11111111100cep-7));
    q = vd_fma(q, r, vd_set1(0x1.5555555555556p-5));
    q = vd_fma(q, r, vd_set1(0x1.5555555555557p-3));
    q = vd_fma(q, r, vd_set1(0.5));
    const vd one = vd_set1(1.0);
    const vd top = vd_add(one, r);
    const vd rest = vd_add(vd_sub(r, vd_sub(top, one)), low);
    const vd tail = vd_fma(vd_mul(r, r), q, rest);
    *hi = vd_add(top, tail);
    *lo = vd_sub(tail, vd_sub(*hi, top));
}

/* z − n·ln 2 as *r + *low. */
INLINE void vd_reduce(vd z, vd n, vd *r, vd *low) {
    const vd first = vd_fnma(n, vd_set1(LN2_HI), z);
    *r = vd_fnma(n, vd_set1(LN2_LO), first);
    *low = vd_fnma(n, vd_set1(LN2_LO), vd_sub(first, *r));
}

INLINE vd vd_round(vd x) { return vd_sub(vd_add(x, vd_set1(0x1.8p52)), vd_set1(0x1.8p52)); }

/* The polynomial is within 2^−56 of exp(r) − 1. */
INLINE void vd_exps(vd v[], const int count, vd_normaliser s) {
    vd r[8], q[8], t[8];
    TOGETHER v[j] = vd_sub(v[j], s.shift);
    TOGETHER t[j] = vd_fma(v[j], vd_set1(0x1.71547652b82fep+3), s.magic);
    TOGETHER r[j] = vd_sub(t[j], s.magic);
    TOGETHER q[j] = vd_fnma(r[j], vd_set1(LN2_HI / 8), v[j]);
    TOGETHER r[j] = vd_fnma(r[j], vd_set1(LN2_LO / 8), q[j]);
    TOGETHER q[j] = vd_fma(vd_set1(0x1.a01e2c15a33f3p-13), r[j], vd_set1(0x1.6c1b7131a0993p-10));
    TOGETHER q[j] = vd_fma(q[j], r[j], vd_set1(0x1.1111110e10556p-7));
    TOGETHER q[j] = vd_fma(q[j], r[j], vd_set1(0x1.5555554e93acap-5));
    TOGETHER q[j] = vd_fma(q[j], r[j], vd_set1(0x1.555555555556ap-3));
    TOGETHER q[j] = vd_fma(q[j], r[j], vd_set1(0.5));
    TOGETHER v[j] = vd_fma(vd_mul(r[j], r[j]), q[j], vd_lookup(t[j], vd_low));
    TOGETHER q[j] = vd_add(v[j], r[j]);
    TOGETHER v[j] = vd_raise(vd_lookup(t[j], vd_high), t[j]);
    TOGETHER v[j] = vd_fma_keep(vd_nlt(t[j], s.least), v[j], q[j], v[j]);
}
INLINE vd vd_exp(vd x, vd_normaliser s) {
    vd_exps(&x, 1, s);
    return x;
}

/* e of eight vectors in place. */
INLINE void vf_exp8(vf v[8], vf_normaliser s) {
    UNROLL
    for (int j = 0; j < 8; j += VF_TOGETHER) vf_exps(v + j, VF_TOGETHER, s);
}
INLINE void vd_exp8(vd v[8], vd_normaliser s) {
    UNROLL
    for (int j = 0; j < 8; j += VD_TOGETHER) vd_exps(v + j, VD_TOGETHER, s);
}

/* exp(shift)·2^exponent, 0 below 2^−1000; for at most 2^1000. Within EXP_OF_ULP. */
INLINE vd exp_of(vd shift, vd exponent) {
    const vd n = vd_round(vd_mul(shift, vd_set1(0x1.71547652b82fep+0)));
    vd r, low, hi, lo;
    vd_reduce(shift, n, &r, &low);
    vd_exp_reduced(r, low, &hi, &lo);
    const vd k = vd_add(n, exponent);
    const vd result = vd_exp2(vd_nlt(k, vd_set1(-1000.0)), hi, k);
    return vd_keep(vd_nlt(shift, vd_set1(-4000.0)), result);
}
/* The same for one number. */
INLINE double exp_of_one(double shift, double exponent) {
    double result[8];
    vd_store(result, exp_of(vd_set1(shift), vd_set1(exponent)));
    return result[0];
}

/* a + b − sum exactly, where sum is a + b rounded; 0 where that is not finite. */
INLINE vd lost_in_sum(vd a, vd b, vd sum) {
    const vd back = vd_sub(sum, a);
    const vd lost = vd_add(vd_sub(a, vd_sub(sum, back)), vd_sub(b, back));
    return vd_keep(vd_eq(lost, lost), lost);
}

/* An unevaluated sum: high is rounded, low is small beside it. */
typedef struct {
    vd high, low;
} vd_pair;

INLINE vd_pair pair_of(vd high, vd low) { return (vd_pair){high, low}; }
INLINE vd_pair pair_add(vd_pair a, vd_pair b) {
    const vd sum = vd_add(a.high, b.high);
    return pair_of(sum, vd_add(lost_in_sum(a.high, b.high, sum), vd_add(a.low, b.low)));
}
INLINE vd_pair pair_sub(vd_pair a, vd_pair b) {
    const vd zero = vd_set1(0);
    return pair_add(a, pair_of(vd_sub(zero, b.high), vd_sub(zero, b.low)));
}
INLINE vd_pair pair_mul(vd_pair a, vd_pair b) {
    const vd product = vd_mul(a.high, b.high);
    const vd lost = vd_fma(a.high, b.high, vd_sub(vd_set1(0), product));
    return pair_of(product, vd_fma(a.high, b.low, vd_fma(a.low, b.high, lost)));
}
INLINE vd_pair pair_select(vdm mask, vd_pair a, vd_pair b) {
    return pair_of(vd_select(mask, a.high, b.high), vd_select(mask, a.low, b.low));
}
/* As one number; where high is infinite, low is no number and means 0. */
INLINE vd pair_value(vd_pair a) { return vd_add(a.high, vd_keep(vd_eq(a.low, a.low), a.low)); }

/* log(1 + q) for q ≥ 0. With u = 1 + q = 2^k·(1 + f) and s = f/(2 + f), log(1 + f) = 2·artanh s; where
 * q < √2 − 1, f = q without rounding. If `exact`, within VD_LOG1P_ULP, with what rounding lost in
 * *lost_low: log(1 + f) = f − f²/2 + s·(f²/2 + R(s²)), after FreeBSD's e_log.c (Sun
 * Microsystems, 1993), whose coefficients these are. Else to VD_LOG1P_SHORT. */
INLINE vd vd_log1p(vd q, int exact, vd *lost_low) {
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
        const vd back = vd_sub(u, one);
        const vd lost = vd_add(vd_sub(q, back), vd_sub(one, vd_sub(u, back)));
        correction = vd_keep(large, vd_div(lost, u));
    }
    const vd f = vd_select(large, vd_sub(m, one), q);

    const vd s = vd_div(f, vd_add(vd_set1(2.0), f));
    const vd z = vd_mul(s, s);
    if (!exact) {
        /* 2·artanh s to 2^−43. */
        vd r = vd_set1(0.19362685422902242);
        r = vd_fma(r, z, vd_set1(0.22191399198523978));
        r = vd_fma(r, z, vd_set1(0.2857175456161631));
        r = vd_fma(r, z, vd_set1(0.399999987972117));
        r = vd_fma(r, z, vd_set1(0.6666666666737519));
        r = vd_fma(r, z, vd_set1(2.0));
        return vd_fma(k, vd_set1(0.6931471805599453), vd_mul(s, r));
    }
    vd r = vd_set1(1.479819860511658591e-01);
    r = vd_fma(r, z, vd_set1(1.531383769920937332e-01));
    r = vd_fma(r, z, vd_set1(1.818357216161805012e-01));
    r = vd_fma(r, z, vd_set1(2.222219843214978396e-01));
    r = vd_fma(r, z, vd_set1(2.857142874366239149e-01));
    r = vd_fma(r, z, vd_set1(3.999999999940941908e-01));
    r = vd_fma(r, z, vd_set1(6.666666666666735130e-01));
    r = vd_mul(r, z);
    const vd half = vd_mul(vd_mul(vd_set1(0.5), f), f);
    /* k·ln 2 in two parts, the first with 20 trailing zeros: exact for every exponent. */
    const vd low = vd_fma(k, vd_set1(1.90821492927058770002e-10), correction);
    const vd inner = vd_sub(half, vd_fma(s, vd_add(half, r), low));
    const vd high = vd_mul(k, vd_set1(6.93147180369123816490e-01)), minus = vd_sub(inner, f);
    const vd result = vd_sub(high, minus);
    const vd zero = vd_set1(0);
    *lost_low = vd_sub(lost_in_sum(high, vd_sub(zero, minus), result),
                       lost_in_sum(inner, vd_sub(zero, f), minus));
    return result;
}

/* e of the first `count` of eight vectors in place; 0 for the others. */
INLINE void vf_exp_some(vf v[8], int count, vf_normaliser s) {
    if (count > 4) {
        vf_exp8(v, s);
    } else if (count > 2) {
        UNROLL
        for (int j = 0; j < 4; j += VF_TOGETHER) vf_exps(v + j, VF_TOGETHER, s);
    } else {
        vf_exps(v, 2, s);
    }
    UNROLL
    for (int j = 1; j < 8; j++) {
        if (j >= count) v[j] = vf_set1(0);
    }
}
INLINE void vd_exp_some(vd v[8], int count, vd_normaliser s) {
    if (count > 4) {
        vd_exp8(v, s);
    } else {
        UNROLL
        for (int j = 0; j < 4; j += VD_TOGETHER) vd_exps(v + j, VD_TOGETHER, s);
    }
    UNROLL
    for (int j = 1; j < 8; j++) {
        if (j >= count) v[j] = vd_set1(0);
    }
}

/* -- sums --------------------------------------------------------------------------------------- */

/* The eight lanes added up in a fixed tree. */
INLINE double tree8(const double a[8]) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

/* Sums of many vectors, lane by lane: floats are carried as doubles, doubles with what rounding
   lost of them. */
typedef struct {
    vd lo, hi;
} vf_sum;
typedef struct {
    vd sum, lost;
} vd_sum;

INLINE vf_sum vf_sum_zero(void) {
    const vf_sum s = {vd_set1(0), vd_set1(0)};
    return s;
}
INLINE vd_sum vd_sum_zero(void) {
    const vd_sum s = {vd_set1(0), vd_set1(0)};
    return s;
}
INLINE void vf_sum_add(vf_sum *s, vf a) {
    s->lo = vd_add(s->lo, vf_widen_lo(a));
    s->hi = vd_add(s->hi, vf_widen_hi(a));
}
INLINE void vd_sum_add(vd_sum *s, vd a) {
    const vd total = vd_add(s->sum, a);
    s->lost = vd_add(s->lost, lost_in_sum(s->sum, a, total));
    s->sum = total;
}
/* Adds eight vectors of finite numbers one by one: one term is often nearly all of the sum, and
   roundings on the way to double precision would be the loss's. */
INLINE void vf_sum_add8(vf_sum *s, const vf v[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) vf_sum_add(s, v[i]);
}
INLINE void vd_sum_add8(vd_sum *s, const vd v[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        const vd total = vd_add(s->sum, v[i]), back = vd_sub(total, s->sum);
        const vd lost = vd_add(vd_sub(s->sum, vd_sub(total, back)), vd_sub(v[i], back));
        s->lost = vd_add(s->lost, lost);
        s->sum = total;
    }
}

/* Adds the first `count`, where the others are 0. */
INLINE void vf_sum_add_each(vf_sum *s, const vf v[8], int count) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        if (i < count) vf_sum_add(s, v[i]);
    }
}
INLINE void vd_sum_add_each(vd_sum *s, const vd v[8], int count) {
    (void)count;
    vd_sum_add8(s, v);
}
/* Of eight vectors of doubles, what rounding lost of them before they came here. */
INLINE void vf_sum_add_low(vf_sum *s, const vf v[8]) {
    (void)s;
    (void)v;
}
INLINE void vd_sum_add_low(vd_sum *s, const vd v[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) s->lost = vd_add(s->lost, v[i]);
}

/* Adds b·(max − x), 0 where b is 0 whatever x is: of floats in double precision, of doubles with
   what is lost, b + b_low for b. With `one`, b is 1 everywhere. */
INLINE void vf_sum_add_loss(vf_sum *s, int one, vf b, vf b_low, vf max, vf x) {
    (void)b_low;
    if (one) {
        s->lo = vd_add(s->lo, vf_widen_lo(x));
        s->hi = vd_add(s->hi, vf_widen_hi(x));
        return;
    }
    x = vf_select(vf_eq(b, vf_set1(0)), max, x); /* whatever x is there */
    const vd lo = vd_sub(vf_widen_lo(max), vf_widen_lo(x));
    const vd hi = vd_sub(vf_widen_hi(max), vf_widen_hi(x));
    s->lo = vd_fma(vf_widen_lo(b), lo, s->lo);
    s->hi = vd_fma(vf_widen_hi(b), hi, s->hi);
}
/* Σ(max − x) of n numbers from what add_loss summed for b = 1: floats as n·max − Σx. Where those
   are so far apart in size that a sum of doubles rounds, so far apart are max and x; where they are
   not, it is exact. */
INLINE vd vf_distance(vd sum, vd max, double n) {
    return vd_fma(vd_set1(n), max, vd_sub(vd_set1(0), sum));
}
INLINE vd vd_distance(vd sum, vd max, double n) {
    (void)max;
    (void)n;
    return sum;
}
INLINE double vf_distance_one(double sum, double max, double n) {
    return __builtin_fma(n, max, 0.0 - sum);
}
INLINE double vd_distance_one(double sum, double max, double n) {
    (void)max;
    (void)n;
    return sum;
}
INLINE void vd_sum_add_loss(vd_sum *s, int one, vd b, vd b_low, vd max, vd x) {
    const vd zero = vd_set1(0);
    const vd from = vd_sub(max, x), less = lost_in_sum(max, vd_sub(zero, x), from);
    if (one) {
        vd_sum_add(s, from);
        s->lost = vd_add(s->lost, less);
        return;
    }
    const vd product = vd_mul(b, from);
    const vd lost = vd_fma(b, from, vd_sub(zero, product));
    const vd low = vd_fma(b, less, vd_fma(b_low, from, lost));
    const vdm none = vd_eq(b, zero);
    vd_sum_add(s, vd_drop(none, product));
    s->lost = vd_add(s->lost, vd_drop(none, vd_keep(vd_eq(low, low), low)));
}

/* Eight vectors and what they lost, added up lane by lane; *low is what that loses. */
INLINE vd vd_fold(const vd a[8], const vd b[8], vd *low) {
    vd total = a[0], lost = b[0];
    for (int i = 1; i < 8; i++) {
        const vd next = vd_add(total, a[i]);
        lost = vd_add(lost, vd_add(b[i], lost_in_sum(total, a[i], next)));
        total = next;
    }
    *low = lost;
    return total;
}

/* tree8(a) + tree8(b) per lane must match whether classes run along lanes (vd_sum_total) or rows do:
   lanes.inc.h adds eight sums with this. */
INLINE vd vd_tree(const vd a[8]) {
    return vd_add(vd_add(vd_add(a[0], a[4]), vd_add(a[2], a[6])),
                  vd_add(vd_add(a[1], a[5]), vd_add(a[3], a[7])));
}

/* All lanes of one sum. */
INLINE double vf_sum_total(vf_sum s, double *low) {
    double a[8];
    vd_store(a, vd_add(s.lo, s.hi));
    *low = 0;
    return tree8(a);
}
INLINE double vd_sum_total(vd_sum s, double *low) {
    double a[8], b[8], total[8], lost[8];
    vd lanes[8], lows[8], rest;
    vd_store(a, s.sum);
    vd_store(b, s.lost);
    for (int i = 0; i < 8; i++) {
        lanes[i] = vd_set1(a[i]);
        lows[i] = vd_set1(b[i]);
    }
    vd_store(total, vd_fold(lanes, lows, &rest));
    vd_store(lost, rest);
    *low = lost[0];
    return total[0];
}
/* sum_total of eight sums. */
INLINE void vf_sum_totals(const vf_sum s[8], double *to, double *low) {
    vd v[8];
    (void)low;
    UNROLL
    for (int i = 0; i < 8; i++) v[i] = vd_add(s[i].lo, s[i].hi);
    vd_transpose(v);
    vd_store(to, vd_tree(v));
}
INLINE void vd_sum_totals(const vd_sum s[8], double *to, double *low) {
    vd v[8], lost[8], rest;
    UNROLL
    for (int i = 0; i < 8; i++) {
        v[i] = s[i].sum;
        lost[i] = s[i].lost;
    }
    vd_transpose(v);
    vd_transpose(lost);
    vd_store(to, vd_fold(v, lost, &rest));
    vd_store(low, rest);
}
/* Each lane of one sum, as doubles. */
INLINE void vf_sum_lanes(vf_sum s, double *to, double *low) {
    (void)low;
    vd_store(to, s.lo);
    vd_store(to + 8, s.hi);
}
INLINE void vd_sum_lanes(vd_sum s, double *to, double *low) {
    vd_store(to, s.sum);
    vd_store(low, s.lost);
}

/* The sums over a row's classes: e without the row's own, b, b·(max − x), and max − x. */
enum { SUM_E, SUM_B, SUM_LOSS, SUM_DISTANCE };

/* Conversions between a vector of the compute type and an array of doubles. */
INLINE void vf_to_doubles(vf a, double *to) {
    vd_store(to, vf_widen_lo(a));
    vd_store(to + 8, vf_widen_hi(a));
}
INLINE void vd_to_doubles(vd a, double *to) { vd_store(to, a); }
INLINE vf vf_from_doubles(const double *from) {
    return vf_narrow(vd_load(from), vd_load(from + 8));
}
INLINE vd vd_from_doubles(const double *from) { return vd_load(from); }

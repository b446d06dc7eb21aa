/* e of doubles: n in steps of (ln 2)/8 and a polynomial of degree 7. See vmath.inc.h. */

/* 2^(i/8) rounded, with the bits that vd_raise adds for index i subtracted. */
ALIGNED static const double exp_table[8] = {
    0x1.0000000000000p+0, 0x1.f72b83c7d517bp-1, 0x1.f06fe0a31b715p-1, 0x1.ebfdad5362a27p-1,
    0x1.ea09e667f3bcdp-1, 0x1.eace5422aa0dbp-1, 0x1.ee89f995ad3adp-1, 0x1.f5818dcfba487p-1};
/* 2^(i/8) minus its rounded value, over 2^(i/8). */
ALIGNED static const double exp_table_error[8] = {0,
                                                  -0x1.01b15eaa59348p-55,
                                                  0x1.34d754db0abb6p-55,
                                                  0x1.690cebb7aafb0p-56,
                                                  -0x1.3b3efbf5e2228p-54,
                                                  0x1.db72fc1f0eab4p-55,
                                                  0x1.c1a7792cb3387p-55,
                                                  0x1.4a385a63d07a7p-56};

/* exp(r) − 1 ≈ r + r²·(1/2 + r·(EXP_3 + r·(EXP_4 + r·(EXP_5 + r·(EXP_6 + r·EXP_7))))), within 2^−55. */
#define EXP_3 0x1.555555555556ap-3
#define EXP_4 0x1.5555554e93acap-5
#define EXP_5 0x1.1111110e10556p-7
#define EXP_6 0x1.6c1b7131a0993p-10
#define EXP_7 0x1.a01e2c15a33f3p-13

typedef struct {
    double log2_e, ln2_hi, ln2_lo, c7, c6, c5, c4, c3, half;
} exp_constants;
static const exp_constants constants_of_exp = {EXP_STEPS * LOG2_E,
                                               LN2_HI / EXP_STEPS,
                                               LN2_LO / EXP_STEPS,
                                               EXP_7,
                                               EXP_6,
                                               EXP_5,
                                               EXP_4,
                                               EXP_3,
                                               0.5};

HOT void exps_with(vd v[], const int count, const normaliser *s, const row_normaliser *row,
                   const exp_constants *k) {
    vd r[8], q[8], t[8];
    vd c = row ? vd_set1(row->shift) : s->shift;
    TOGETHER v[j] = vd_sub(v[j], c);
    c = vd_set1(k->log2_e);
    TOGETHER t[j] = vd_fma(v[j], c, s->magic);
    TOGETHER r[j] = vd_sub(t[j], s->magic);
    c = vd_set1(k->ln2_hi);
    TOGETHER q[j] = vd_fnma(r[j], c, v[j]);
    c = vd_set1(k->ln2_lo);
    TOGETHER r[j] = vd_fnma(r[j], c, q[j]);
    const vd c7 = vd_set1(k->c7);
    c = vd_set1(k->c6);
    TOGETHER q[j] = vd_fma(c7, r[j], c);
    c = vd_set1(k->c5);
    TOGETHER q[j] = vd_fma(q[j], r[j], c);
    c = vd_set1(k->c4);
    TOGETHER q[j] = vd_fma(q[j], r[j], c);
    c = vd_set1(k->c3);
    TOGETHER q[j] = vd_fma(q[j], r[j], c);
    c = vd_set1(k->half);
    TOGETHER q[j] = vd_fma(q[j], r[j], c);
    TOGETHER v[j] = vd_fma(vd_mul(r[j], r[j]), q[j], vd_lookup(t[j], exp_table_error));
    TOGETHER q[j] = vd_add(v[j], r[j]);
    TOGETHER v[j] = vd_raise(vd_lookup(t[j], exp_table), t[j]);
    c = row ? vd_set1(row->least) : s->least;
    TOGETHER v[j] = vd_fma_keep(vd_nlt(t[j], c), v[j], q[j], v[j]);
}

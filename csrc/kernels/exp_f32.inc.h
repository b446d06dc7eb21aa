/* e of floats: n in steps of ln 2 and a polynomial of degree 6. See vmath.inc.h. */

/* exp(r) ≈ 1 + r·(1 + r·(EXP_2 + r·(… + r·EXP_6))). */
#define EXP_2 0x1.fffffcp-2f
#define EXP_3 0x1.55549p-3f
#define EXP_4 0x1.5558bcp-5f
#define EXP_5 0x1.123b5cp-7f
#define EXP_6 0x1.6a445ap-10f
/* ln 2 = LN2F_HI + LN2F_LO. */
#define LN2F_HI 0x1.62e43p-1f
#define LN2F_LO (-0x1.05c61p-29f)

typedef struct {
    float log2_e, ln2_hi, ln2_lo, c6, c5, c4, c3, c2, one;
} exp_constants;
static const exp_constants constants_of_exp = {LOG2_E, LN2F_HI, LN2F_LO, EXP_6, EXP_5,
                                               EXP_4,  EXP_3,   EXP_2,   1.0f};

HOT void exps_with(vf v[], const int count, const normaliser *s, const row_normaliser *row,
                   const exp_constants *k) {
    vf r[8], q[8], t[8];
    vf c = row ? vf_set1(row->shift) : s->shift;
    TOGETHER v[j] = vf_sub(v[j], c);
    c = vf_set1(k->log2_e);
    TOGETHER t[j] = vf_fma(v[j], c, s->magic);
    TOGETHER r[j] = vf_sub(t[j], s->magic);
    c = vf_set1(k->ln2_hi);
    TOGETHER q[j] = vf_fnma(r[j], c, v[j]);
    c = vf_set1(k->ln2_lo);
    TOGETHER r[j] = vf_fnma(r[j], c, q[j]);
    const vf c6 = vf_set1(k->c6);
    c = vf_set1(k->c5);
    TOGETHER q[j] = vf_fma(c6, r[j], c);
    c = vf_set1(k->c4);
    TOGETHER q[j] = vf_fma(q[j], r[j], c);
    c = vf_set1(k->c3);
    TOGETHER q[j] = vf_fma(q[j], r[j], c);
    c = vf_set1(k->c2);
    TOGETHER q[j] = vf_fma(q[j], r[j], c);
    c = vf_set1(k->one);
    TOGETHER q[j] = vf_fma(q[j], r[j], c);
    TOGETHER q[j] = vf_fma(q[j], r[j], c);
    c = row ? vf_set1(row->least) : s->least;
    TOGETHER v[j] = vf_raise(vf_nlt(t[j], c), q[j], t[j]);
}

/* e of maxima relative to their own normaliser `s`, in double precision: within VF_EXP_MAX. *rounded is
   e as exps computes it. */
INLINE void exp_max(vf max, normaliser s, vd e[2], vf *rounded) {
    const vf z = vf_sub(max, s.shift);
    const vf t = vf_fma(z, vf_set1(LOG2_E), s.magic);
    const vf n = vf_sub(t, s.magic);
    const vf r = vf_fnma(n, vf_set1(LN2F_LO), vf_fnma(n, vf_set1(LN2F_HI), z));
    vf q = vf_fma(vf_set1(EXP_6), r, vf_set1(EXP_5));
    q = vf_fma(q, r, vf_set1(EXP_4));
    q = vf_fma(q, r, vf_set1(EXP_3));
    q = vf_fma(q, r, vf_set1(EXP_2));
    const vf p = vf_fma(vf_fma(q, r, vf_set1(1.0f)), r, vf_set1(1.0f));
    *rounded = vf_raise(vf_nlt(t, s.least), p, t);
    /* e = 2^BIAS·(1 + r + r²·q): only r must be more exact than a float. */
    UNROLL
    for (int i = 0; i < 2; i++) {
        const vd exact = vd_fnma(v_eight(n, 8 * i), vd_set1(LN2_HI), v_eight(z, 8 * i));
        const vd rest = vd_fma(vd_mul(exact, exact), v_eight(q, 8 * i), exact);
        e[i] = vd_mul(vd_add(rest, vd_set1(1.0)), vd_set1(BIAS_FACTOR));
    }
}

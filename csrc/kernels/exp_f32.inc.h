/* e of floats: n in steps of (ln 2)/16 and a cubic. See vmath.inc.h. */

/* 2^(i/16) rounded, with the bits that v_raise adds for index i subtracted. */
ALIGNED static const float exp_table[16] = {
    0x1.000000p+0f, 0x1.fb5586p-1f, 0x1.f72b84p-1f, 0x1.f387a6p-1f, 0x1.f06fe0p-1f, 0x1.edea64p-1f,
    0x1.ebfdaep-1f, 0x1.eab07ep-1f, 0x1.ea09e6p-1f, 0x1.ea1148p-1f, 0x1.eace54p-1f, 0x1.ec4918p-1f,
    0x1.ee89fap-1f, 0x1.f199bep-1f, 0x1.f5818ep-1f, 0x1.fa4afap-1f};
/* 2^(i/16) minus its rounded value, over 2^(i/16). */
ALIGNED static const float exp_table_error[16] = {0,
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

/* exp(r) − 1 ≈ r·(1 + r·(EXP_2 + r·EXP_3)), within 2^−29. */
#define EXP_2 0x1.00022p-1f
#define EXP_3 0x1.55574ap-3f
/* ln 2 = LN2F_HI + LN2F_LO. */
#define LN2F_HI 0x1.62e43p-1f
#define LN2F_LO (-0x1.05c61p-29f)

INLINE void exps(vf v[], const int count, normaliser s) {
    vf r[8], q[8], t[8];
    TOGETHER v[j] = vf_sub(v[j], s.shift);
    TOGETHER t[j] = vf_fma(v[j], vf_set1(EXP_STEPS * LOG2_E), s.magic);
    TOGETHER r[j] = vf_sub(t[j], s.magic);
    TOGETHER q[j] = vf_fnma(r[j], vf_set1(LN2F_HI / EXP_STEPS), v[j]);
    TOGETHER r[j] = vf_fnma(r[j], vf_set1(LN2F_LO / EXP_STEPS), q[j]);
    TOGETHER q[j] = vf_fma(vf_set1(EXP_3), r[j], vf_set1(EXP_2));
    TOGETHER q[j] = vf_fma(q[j], r[j], vf_set1(1.0f));
    TOGETHER q[j] = vf_fma(q[j], r[j], vf_lookup(t[j], exp_table_error));
    TOGETHER v[j] = vf_raise(vf_lookup(t[j], exp_table), t[j]);
    TOGETHER v[j] = vf_fma_keep(vf_nlt(t[j], s.least), v[j], q[j], v[j]);
}
/* Returns high, with e(x) = high·(1 + *rest) before that is rounded: within VF_EXP_PARTS. */
INLINE vf exp_parts(vf x, normaliser s, vf *rest) {
    const vf z = vf_sub(x, s.shift);
    const vf t = vf_fma(z, vf_set1(EXP_STEPS * LOG2_E), s.magic);
    const vf n = vf_sub(t, s.magic);
    const vf r =
        vf_fnma(n, vf_set1(LN2F_LO / EXP_STEPS), vf_fnma(n, vf_set1(LN2F_HI / EXP_STEPS), z));
    vf q = vf_fma(vf_set1(EXP_3), r, vf_set1(EXP_2));
    q = vf_fma(q, r, vf_set1(1.0f));
    *rest = vf_fma(q, r, vf_lookup(t, exp_table_error));
    return vf_raise(vf_lookup(t, exp_table), t);
}

/* vmath_f32 of the target whose operations are included above. */
#include "real_f32.h"

#include "pairs.inc.h"
#include "vmath.inc.h"
#include "vmath.h"

static double float_exps(const float *x, float max, float *e) {
    const normaliser s = normalise(vf_set1(max));
    for (int i = 0; i < FLOATS; i += STEP_VECTORS * 16) {
        vf v[STEP_VECTORS];
        for (int j = 0; j < STEP_VECTORS; j++) v[j] = vf_load(x + i + 16 * j);
        exps(v, STEP_VECTORS, s);
        for (int j = 0; j < STEP_VECTORS; j++) vf_store(e + i + 16 * j, v[j]);
    }
    float exponent[16];
    vf_store(exponent, s.exponent);
    return exponent[0];
}

static void maxima(const float *max, double *e, float *exponents) {
    for (int i = 0; i < FLOATS; i += 16) {
        const vf m = vf_load(max + i);
        const normaliser s = normalise(m);
        vd exact[2];
        vf rounded;
        exp_max(m, s, exact, &rounded);
        vd_store(e + i, exact[0]);
        vd_store(e + i + 8, exact[1]);
        float found[16], expected[16];
        vf_store(found, rounded);
        vf_store(expected, exp1(m, s));
        /* A number that no bound allows. */
        if (memcmp(found, expected, sizeof found)) e[i] = -1;
        vf_store(exponents + i, s.exponent);
    }
}

#if defined(TARGET_END)
TARGET_END
#endif

const vmath_f32 VMATH(f32) = {
    .exps = float_exps,
    .maxima = maxima,
    .exp_ulp = VF_EXP_ULP,
    .exp_max = VF_EXP_MAX,
};

/* vmath_f32 of the target whose operations are included above. */
#include "real_f32.h"

#include "pairs.inc.h"
#include "vmath.inc.h"
#include "vmath.h"

static double float_exps(const float *x, float max, float *e, float *high, float *rest) {
    const normaliser s = normalise(vf_set1(max));
    vf v[8];
    for (int i = 0; i < 8; i++) {
        vf part;
        v[i] = vf_load(x + 16 * i);
        vf_store(high + 16 * i, exp_parts(v[i], s, &part));
        vf_store(rest + 16 * i, part);
    }
    exp8(v, s);
    for (int i = 0; i < 8; i++) vf_store(e + 16 * i, v[i]);
    float exponent[16];
    vf_store(exponent, s.exponent);
    return exponent[0];
}

#if defined(TARGET_END)
TARGET_END
#endif

const vmath_f32 VMATH(f32) = {.exps = float_exps, .exp_ulp = VF_EXP_ULP, .exp_parts = VF_EXP_PARTS};

/* Names that depend on the precision: float logits and half types are computed in float.
 * real_f32.h and real_f64.h define the same names. */
#define EXP_INC "exp_f32.inc.h"
#define SUMS_INC "sums_f32.inc.h"
#define SOFT_TARGET_INC "soft_target_f32.inc.h"
#define FINALIZE_INC "finalize_f32.inc.h"

typedef float real;
typedef vf vreal;
typedef vfm vmask;
#define LANES 16

/* The normaliser and the exponential: see vmath.inc.h. */
#define SHIFT_LIMIT 256.0f
#define EXP_RANGE 126.0f
#define EXP_MAGIC 0x1.8p23f
#define LOG2_E 0x1.715476p+0f
#define EXP_STEPS 1
#define EXP_FIELD 127.0f
#define STEP_VECTORS VF_STEP

/* A factor of at least this size times any e is normal or rounds as its exact product. */
#define LEAST_FACTOR 0x1p-125
/* Whether sums and products carry their rounding errors: sums of floats are doubles. */
#define COMPENSATED 0
/* Whether a row's saved lse (a double) is exact enough to take the place of its maximum. */
#define LSE_SUFFICES 1
/* Whether the dtypes have m_load_rows and m_store_rows. */
#define ROWS_BY_FOURS 1
/* Vectors in one step of the loops over classes whose rows are lanes: each has a normaliser. */
#define LANE_STEP_VECTORS VF_LANE_STEP

#define v_set1 vf_set1
#define v_load vf_load
#define v_loadn vf_loadn
#define v_store vf_store
#define v_storen vf_storen
#define v_add vf_add
#define v_sub vf_sub
#define v_mul vf_mul
#define v_fma vf_fma
#define v_fnma vf_fnma
#define v_max vf_max
#define v_nlt vf_nlt
#define v_eq vf_eq
#define v_lane vf_lane
#define v_first vf_first
#define v_keep vf_keep
#define v_drop vf_drop
#define v_select vf_select
#define v_reduce_max vf_reduce_max
#define v_transpose vf_transpose

INLINE void v_to_doubles(vreal a, double *to) {
    vd_store(to, vf_widen_lo(a));
    vd_store(to + 8, vf_widen_hi(a));
}
INLINE vreal v_from_doubles(const double *from) {
    return vf_narrow(vd_load(from), vd_load(from + 8));
}
/* Lanes i…i+7 as doubles; i is 0 or 8. */
INLINE vd v_eight(vreal a, int i) { return i ? vf_widen_hi(a) : vf_widen_lo(a); }

/* e·(factor + error). */
INLINE vreal v_scaled(vreal e, vreal factor, vreal error) {
    (void)error;
    return vf_mul(e, factor);
}

/* Names that depend on the precision: double logits are computed in double.
 * real_f32.h and real_f64.h define the same names. */
#define EXP_INC "exp_f64.inc.h"
#define SUMS_INC "sums_f64.inc.h"
#define SOFT_TARGET_INC "soft_target_f64.inc.h"
#define FINALIZE_INC "finalize_f64.inc.h"

typedef double real;
typedef vd vreal;
typedef vdm vmask;
#define LANES 8

/* The normaliser and the exponential: see vmath.inc.h. */
#define SHIFT_LIMIT 2048.0
#define EXP_RANGE 748.0
#define EXP_MAGIC 0x1.8p52
#define LOG2_E 0x1.71547652b82fep+0
#define EXP_STEPS 8
#define EXP_FIELD 0.0
#define STEP_VECTORS VD_STEP

/* A factor of at least this size times any e is normal or rounds as its exact product. */
#define LEAST_FACTOR 0x1p-1021
/* Whether sums and products carry their rounding errors. */
#define COMPENSATED 1
/* Whether a row's saved lse (a double) is exact enough to take the place of its maximum. */
#define LSE_SUFFICES 0
/* Doubles are transposed eight classes at a time: see real_f32.h. */
#define ROWS_BY_FOURS 0
#define m_load_rows(v, x, stride, width) ((void)(v), (void)(x), (void)(width))
#define m_store_rows(x, stride, v, width) ((void)(x), (void)(v), (void)(width))
#define LANE_STEP_VECTORS VD_LANE_STEP

#define v_set1 vd_set1
#define v_load vd_load
#define v_loadn vd_loadn
#define v_store vd_store
#define v_storen vd_storen
#define v_add vd_add
#define v_sub vd_sub
#define v_mul vd_mul
#define v_fma vd_fma
#define v_fnma vd_fnma
#define v_max vd_max
#define v_nlt vd_nlt
#define v_eq vd_eq
#define v_lane vd_lane
#define v_first vd_first
#define v_keep vd_keep
#define v_drop vd_drop
#define v_select vd_select
#define v_reduce_max vd_reduce_max
#define v_transpose vd_transpose

INLINE void v_to_doubles(vreal a, double *to) { vd_store(to, a); }
INLINE vreal v_from_doubles(const double *from) { return vd_load(from); }
/* Lanes i…i+7; i is 0. */
INLINE vd v_eight(vreal a, int i) {
    (void)i;
    return a;
}

/* e·(factor + error). */
INLINE vreal v_scaled(vreal e, vreal factor, vreal error) {
    return vd_fma(e, factor, vd_mul(e, error));
}

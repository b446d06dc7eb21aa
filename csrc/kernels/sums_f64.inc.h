/* Sums of doubles, carried with their rounding errors. sums_f32.inc.h says what the functions do.
 */
typedef struct {
    vd sum, error;
} vsum;

INLINE vsum sum_zero(void) {
    const vsum s = {vd_set1(0), vd_set1(0)};
    return s;
}
INLINE void sum_add(vsum *s, vd a) {
    const vd total = vd_add(s->sum, a);
    s->error = vd_add(s->error, error_of_sum(s->sum, a, total));
    s->sum = total;
}
HOT void sum_add_from(vsum *s, const double *m) {
    const vd a = vd_load(m), total = vd_add(s->sum, a);
    s->error = vd_add(s->error, error_of_finite_sum(s->sum, a, total));
    s->sum = total;
}
INLINE void sum_add8(vsum *s, const vd v[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        const vd total = vd_add(s->sum, v[i]);
        s->error = vd_add(s->error, error_of_finite_sum(s->sum, v[i], total));
        s->sum = total;
    }
}
INLINE void sum_add_some(vsum *s, const vd v[8], int count) {
    (void)count;
    sum_add8(s, v);
}
INLINE void sum_add_errors(vsum *s, const vd errors[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) s->error = vd_add(s->error, errors[i]);
}
INLINE void sum_add_loss(vsum *s, int one, vd b, vd b_error, vd max, vd x) {
    const vd zero = vd_set1(0);
    const vd distance = vd_sub(max, x);
    const vd distance_error = error_of_sum(max, vd_sub(zero, x), distance);
    if (one) {
        sum_add(s, distance);
        s->error = vd_add(s->error, distance_error);
        return;
    }
    const vd product = vd_mul(b, distance);
    const vd product_error = vd_fma(b, distance, vd_sub(zero, product));
    const vd error = vd_fma(b, distance_error, vd_fma(b_error, distance, product_error));
    const vdm none = vd_eq(b, zero), at_max = vd_eq(distance, zero);
    sum_add(s, vd_drop(at_max, vd_drop(none, product)));
    s->error = vd_add(s->error, vd_drop(none, finite_error(error)));
}
/* sum_add_loss adds up the distances themselves. */
INLINE vd sum_distance(vd sum, vd max, double n) {
    (void)max;
    (void)n;
    return sum;
}
INLINE double sum_distance_one(double sum, double max, double n) {
    (void)max;
    (void)n;
    return sum;
}
INLINE double sum_loss_fill(int one, double max) {
    (void)one;
    return max;
}

INLINE double sum_total(vsum s, double *error) {
    double a[8], b[8], total[8], errors[8];
    vd lanes[8], lane_errors[8];
    vd_store(a, s.sum);
    vd_store(b, s.error);
    for (int i = 0; i < 8; i++) {
        lanes[i] = vd_set1(a[i]);
        lane_errors[i] = vd_set1(b[i]);
    }
    const vd_pair all = vd_fold(lanes, lane_errors);
    vd_store(total, all.value);
    vd_store(errors, all.error);
    *error = errors[0];
    return total[0];
}
INLINE void sum_totals_across(const vsum along[8], double *to, double *errors) {
    vd sums[8], sum_errors[8];
    for (int l = 0; l < 8; l++) {
        sums[l] = along[l].sum;
        sum_errors[l] = along[l].error;
    }
    const vd_pair all = vd_fold(sums, sum_errors);
    vd_store(to, all.value);
    vd_store(errors, all.error);
}
INLINE void sum_totals(const vsum s[8], double *to, double *errors) {
    vd sums[8], sum_errors[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        sums[i] = s[i].sum;
        sum_errors[i] = s[i].error;
    }
    vd_transpose(sums);
    vd_transpose(sum_errors);
    const vd_pair all = vd_fold(sums, sum_errors);
    vd_store(to, all.value);
    vd_store(errors, all.error);
}
INLINE void sum_lanes(vsum s, double *to, double *errors) {
    vd_store(to, s.sum);
    vd_store(errors, s.error);
}

/* Sums of floats, carried as doubles. */
typedef struct {
    vd lo, hi; /* of lanes 0 to 7 and 8 to 15 */
} vsum;

INLINE vsum sum_zero(void) {
    const vsum s = {vd_set1(0), vd_set1(0)};
    return s;
}
INLINE void sum_add(vsum *s, vf a) {
    s->lo = vd_add(s->lo, vf_widen_lo(a));
    s->hi = vd_add(s->hi, vf_widen_hi(a));
}
/* Adds the vector in memory. */
HOT void sum_add_from(vsum *s, const float *m) {
    s->lo = vd_add(s->lo, vd_widen(m));
    s->hi = vd_add(s->hi, vd_widen(m + 8));
}
/* Adds eight vectors of finite numbers. */
INLINE void sum_add8(vsum *s, const vf v[8]) {
    UNROLL
    for (int i = 0; i < 8; i++) sum_add(s, v[i]);
}
/* Adds the first `count`, where the others are 0. */
INLINE void sum_add_some(vsum *s, const vf v[8], int count) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        if (i < count) sum_add(s, v[i]);
    }
}
/* Adds the rounding errors of eight vectors that were added before: floats have none. */
INLINE void sum_add_errors(vsum *s, const vf errors[8]) {
    (void)s;
    (void)errors;
}
/* Adds b·(max − x), 0 where one of them is 0 whatever the other is. With `one`, b is 1 everywhere and
   only x is added: see sum_distance. */
INLINE void sum_add_loss(vsum *s, int one, vf b, vf b_error, vf max, vf x) {
    (void)b_error;
    if (one) {
        sum_add(s, x);
        return;
    }
    x = vf_select(vf_eq(b, vf_set1(0)), max, x);
    b = vf_drop(vf_eq(x, max), b);
    const vd lo = vd_sub(vf_widen_lo(max), vf_widen_lo(x));
    const vd hi = vd_sub(vf_widen_hi(max), vf_widen_hi(x));
    s->lo = vd_fma(vf_widen_lo(b), lo, s->lo);
    s->hi = vd_fma(vf_widen_hi(b), hi, s->hi);
}
/* Adds b and b·(max − x) of eight classes to halves of sums. Where a term is not finite, *loss
   is not finite from then on; where all are, these are the sums that sum_add_loss and sum_add
   find, with the same bits: terms of 0 need no rule then. */
INLINE void sum_add_finite(vd *total, vd *loss, vd b, vd x, vd max) {
    *total = vd_add(*total, b);
    *loss = vd_fma(b, vd_sub(max, x), *loss);
}
/* Whether all of it is finite. */
INLINE int sum_is_finite(vsum s) {
    const vd both = vd_add(vd_sub(s.lo, s.lo), vd_sub(s.hi, s.hi));
    return vd_first(vd_nlt(vd_set1(-1.0), both)) < 0;
}
/* Σ(max − x) of n numbers from what sum_add_loss added up with `one`: n·max − Σx. Where a sum of
   doubles rounds because x differ that much in size, max and x differ as much; elsewhere it is
   exact. */
INLINE vd sum_distance(vd sum, vd max, double n) {
    return vd_fma(vd_set1(n), max, vd_sub(vd_set1(0), sum));
}
INLINE double sum_distance_one(double sum, double max, double n) {
    return __builtin_fma(n, max, 0.0 - sum);
}
/* Fills the vector of x at the end of a row, so that the lanes past it add nothing. */
INLINE float sum_loss_fill(int one, float max) { return one ? 0 : max; }

/* All lanes of one sum. */
INLINE double sum_total(vsum s, double *error) {
    double a[8];
    vd_store(a, vd_add(s.lo, s.hi));
    *error = 0;
    return tree8(a);
}
/* sum_total of eight sums. */
INLINE void sum_totals(const vsum s[8], double *to, double *errors) {
    vd v[8];
    (void)errors;
    UNROLL
    for (int i = 0; i < 8; i++) v[i] = vd_add(s[i].lo, s[i].hi);
    vd_transpose(v);
    vd_store(to, vd_tree(v));
}
/* sum_total of one row per lane, from the row's sums in the lanes of along[0…15]. */
INLINE void sum_totals_across(const vsum along[16], double *to, double *errors) {
    vd lo[8], hi[8];
    (void)errors;
    for (int l = 0; l < 8; l++) {
        lo[l] = vd_add(along[l].lo, along[l + 8].lo);
        hi[l] = vd_add(along[l].hi, along[l + 8].hi);
    }
    vd_store(to, vd_tree(lo));
    vd_store(to + 8, vd_tree(hi));
}
/* Each lane of one sum, as doubles. */
INLINE void sum_lanes(vsum s, double *to, double *errors) {
    (void)errors;
    vd_store(to, s.lo);
    vd_store(to + 8, s.hi);
}

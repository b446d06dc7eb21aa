/* Two-sum and numbers carried as pairs, in double precision. */
#include "../reduce.h"

#define ALIGNED __attribute__((aligned(64)))
#define NOT_A_NUMBER __builtin_nan("")
#define INFINITE __builtin_inf()

/* a + b − sum exactly, where sum is a + b rounded and finite (Knuth's two-sum). */
INLINE vd error_of_finite_sum(vd a, vd b, vd sum) {
    const vd back = vd_sub(sum, a);
    return vd_add(vd_sub(a, vd_sub(sum, back)), vd_sub(b, back));
}
/* An error that may be added: 0 where it is not finite, so that an infinite or NaN sum stays what it
   is. two_sum of reduce.h has the same rule, and says why. */
INLINE vd finite_error(vd error) { return vd_keep(vd_eq(vd_sub(error, error), vd_set1(0)), error); }
INLINE vd error_of_sum(vd a, vd b, vd sum) { return finite_error(error_of_finite_sum(a, b, sum)); }

/* a·b, and 0 where one of them is 0, whatever the other is. */
INLINE vd product_or_0(vd a, vd b) {
    const vd zero = vd_set1(0);
    return vd_drop(vd_eq(b, zero), vd_drop(vd_eq(a, zero), vd_mul(a, b)));
}

/* An unevaluated sum value + error: error is small compared with value. */
typedef struct {
    vd value, error;
} vd_pair;

INLINE vd_pair pair_of(vd value, vd error) { return (vd_pair){value, error}; }
INLINE vd_pair pair_add(vd_pair a, vd_pair b) {
    const vd sum = vd_add(a.value, b.value);
    return pair_of(sum, vd_add(error_of_sum(a.value, b.value, sum), vd_add(a.error, b.error)));
}
INLINE vd_pair pair_sub(vd_pair a, vd_pair b) {
    const vd zero = vd_set1(0);
    return pair_add(a, pair_of(vd_sub(zero, b.value), vd_sub(zero, b.error)));
}
INLINE vd_pair pair_mul(vd_pair a, vd_pair b) {
    const vd product = vd_mul(a.value, b.value);
    const vd error = vd_fma(a.value, b.value, vd_sub(vd_set1(0), product));
    return pair_of(product, vd_fma(a.value, b.error, vd_fma(a.error, b.value, error)));
}
/* a·factor. */
INLINE vd_pair pair_scale(vd_pair a, vd factor) {
    const vd product = vd_mul(a.value, factor);
    const vd error = vd_fma(a.value, factor, vd_sub(vd_set1(0), product));
    return pair_of(product, vd_add(error, vd_mul(a.error, factor)));
}
INLINE vd_pair pair_select(vdm mask, vd_pair a, vd_pair b) {
    return pair_of(vd_select(mask, a.value, b.value), vd_select(mask, a.error, b.error));
}
/* As one number. */
INLINE vd pair_value(vd_pair a) { return vd_add(a.value, finite_error(a.error)); }

/* The eight lanes added up in a fixed tree. vd_tree does the same for each lane of eight vectors: a
   row's sum has the same bits whether classes run along the lanes or rows do. */
INLINE double tree8(const double a[8]) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
INLINE vd vd_tree(const vd a[8]) {
    return vd_add(vd_add(vd_add(a[0], a[4]), vd_add(a[2], a[6])),
                  vd_add(vd_add(a[1], a[5]), vd_add(a[3], a[7])));
}

/* Eight vectors and their errors, added up in order, lane by lane. */
INLINE vd_pair vd_fold(const vd a[8], const vd b[8]) {
    vd total = a[0], error = b[0];
    for (int i = 1; i < 8; i++) {
        const vd next = vd_add(total, a[i]);
        error = vd_add(error, vd_add(b[i], error_of_sum(total, a[i], next)));
        total = next;
    }
    return pair_of(total, error);
}

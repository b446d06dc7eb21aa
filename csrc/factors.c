/* Rows with an extreme factor: infinite, or so large or small that a product of factors could overflow or
 * underflow although the result does not.
 *
 * The loss and the gradient of a row are multiplied by its sample weight, by w_y if its target is a
 * label without smoothing, and the gradient also by grad_loss/denominator. The kernels get 1 or −1 in
 * the place of an extreme factor. The product of those of a row is computed with an exponent of its own.
 * As much of it as fits goes to the kernels, as one factor of the row. Afterwards their results are
 * multiplied by the rest, a power of two or infinity, where a number that is 0 stays 0. So an exponential
 * that is tiny times a factor beyond the largest double is exact. The other rows have the bits that they
 * would have without such rows.
 *
 * The loss and the gradient have different products, and are computed one after the other.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "factors.h"
#include "internal.h"
#include "reduce.h"

/* The exponents of the product that the kernels get. No result of theirs underflows that is normal
 * after the multiplication by the rest, and none overflows that is finite then: an exponential is at
 * least 2^−181 of floats and 2^−1080 of doubles. The two terms of soft targets, which are subtracted, are
 * finite, as is the product with a derivative of λ·lse² for the largest float. With the factors that are
 * not extreme, no product leaves the range of doubles. */
enum {
    LEAST_PRODUCT = -400,
    MOST_OF_DOUBLES = 400,
    MOST_OF_FLOATS = 180,
    MOST_OF_SOFT_FLOATS = 100,
    MOST_WITH_LSE = 40
};

/* Reduced losses are summed by the kernels, relative to the largest factor. If factors are further apart
   than this power of two, or the sum is this small, losses that count may be rounded to 0, and infinite
   ones and NaN vanish with their factors. Then the losses of the rows are summed here, each with an
   exponent of its own. */
enum { MOST_RANGE = 1000 };
#define LEAST_SUM 0x1p-700

static int is_infinite(double x) { return x == x && x - x != 0; }

/* -- numbers ---------------------------------------------------------------------------------------- */

static pyce_number normalised(double value, double error, int64_t exponent) {
    pyce_number n = {value, 0, 0};
    if (value == 0 || value - value != 0) return n;
    int e;
    n.value = frexp(value, &e);
    n.error = ldexp(error, -e);
    n.exponent = exponent + e;
    return n;
}
static pyce_number number_from(double x) { return normalised(x, 0, 0); }

static pyce_number times(pyce_number a, pyce_number b) {
    const double product = a.value * b.value;
    const double error = fma(a.value, b.value, -product) + a.value * b.error + a.error * b.value;
    return normalised(product, error, a.exponent + b.exponent);
}
static pyce_number divided(pyce_number a, pyce_number b) {
    const double quotient = a.value / b.value, rest = fma(-quotient, b.value, a.value) + a.error;
    return normalised(quotient, (rest - quotient * b.error) / b.value, a.exponent - b.exponent);
}

/* x·2^exponent. */
static double scaled(double x, int64_t exponent) {
    const int64_t limit = 10000;
    return ldexp(x, (int)(exponent > limit ? limit : exponent < -limit ? -limit : exponent));
}
static double double_of(pyce_number n, int64_t exponent) {
    return scaled(n.value + n.error, n.exponent + exponent);
}

static int64_t label_of(const pyce_problem *p, int64_t row) {
    if (p->target == PYCE_INDEX64) return ((const int64_t *)p->labels)[row];
    if (p->target == PYCE_INDEX32) return ((const int32_t *)p->labels)[row];
    return 0;
}

/* -- factors ---------------------------------------------------------------------------------------- */

/* Whether a row's class weight is a factor of its whole loss. */
static int weighs_rows(const pyce_problem *p) {
    return p->weight && p->labels && (p->classes == 1 || !(p->smoothing > 0));
}
/* Whether extreme class weights are replaced. With one class, p is 1 and the weight has no effect. */
static int replaces_weights(const pyce_problem *p) {
    return p->weight && (p->classes == 1 || weighs_rows(p));
}
static int is_soft(const pyce_problem *p) {
    return p->target == PYCE_PROBABILITIES || p->smoothing > 0;
}

/* Whether λ·lse² has no class weight. */
static int is_square_unweighted(const pyce_problem *p) { return !p->labels; }

/* The power of two by which the class weights of soft targets are divided: 0 unless the largest of them
   is extreme, or the numbers of the compute type that the kernels make of them may be 0. So is an
   unweighted λ, which does not exceed 1 then. */
static int64_t soft_exponent(const pyce_problem *p) {
    if (!p->weight || !is_soft(p) || p->classes == 1) return 0;
    double largest[4] = {0};
    for (int64_t c = 0; c < p->classes; c++) {
        const double w = fabs(p->weight[c]);
        if (w > largest[c & 3] && w - w == 0) largest[c & 3] = w;
    }
    for (int i = 1; i < 4; i++) {
        if (largest[i] > largest[0]) largest[0] = largest[i];
    }
    const int is_small = largest[0] > 0 && largest[0] < 0x1p-60;
    if (!is_small && !pyce_is_extreme(largest[0], p->dtype)) return 0;
    const int64_t exponent = number_from(largest[0]).exponent;
    if (p->lse_square_scale == 0 || !is_square_unweighted(p)) return exponent;
    const int64_t of_square = number_from(p->lse_square_scale).exponent;
    return of_square > exponent ? of_square : exponent;
}

static int any_extreme(const double *values, int64_t n, int dtype) {
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= pyce_is_extreme(values[i], dtype);
    return found;
}
/* Whether the class weight of a label is extreme. */
static int any_extreme_weight(const pyce_problem *p) {
    const int64_t rows = p->outer * p->inner;
    int found = 0;
    if (rows > p->classes && !any_extreme(p->weight, p->classes, p->dtype)) return 0;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t label = label_of(p, row);
        if (p->labels && label == p->ignore_index) continue;
        found |= pyce_is_extreme(p->weight[label], p->dtype);
    }
    return found;
}

/* Whether the kernels cannot use grad_loss/denominator, or it may have lost digits. */
static int is_extreme_scale(const pyce_problem *p, double denominator, double grad_scale) {
    const double grad_loss = fabs(p->grad_loss), size = fabs(denominator);
    return pyce_is_extreme(grad_scale, p->dtype) || (grad_scale == 0 && grad_loss != 0) ||
           !(size < 0x1p900) || size < 0x1p-900 || grad_loss > 0x1p900 ||
           (grad_loss < 0x1p-900 && grad_loss != 0);
}

int pyce_has_extreme_factor(const pyce_problem *p, double denominator, double grad_scale,
                            int extreme_samples) {
    const int64_t rows = p->outer * p->inner;
    if (p->target == PYCE_NO_TARGET) return 0;
    if (extreme_samples || is_extreme_scale(p, denominator, grad_scale)) return 1;
    if (p->weight && (p->labels || p->classes == 1) && any_extreme_weight(p)) return 1;
    if (soft_exponent(p)) return 1;
    return pyce_has_result(p) && p->grad_losses && any_extreme(p->grad_losses, rows, p->dtype);
}

/* The factors of a row. */
typedef struct {
    /* The products that take the place of extreme factors: of the loss, that of the sample weight; of the
       gradient, that of the sample weight and grad_losses. */
    pyce_number of_loss, of_grad;
    int64_t others_of_loss,
        others_of_grad; /* the exponents of those that the kernels have besides */
    int in_grad;        /* whether the gradient has an extreme factor */
    int is_nothing;     /* whether the row is ignored or has an s·w_y of 0 */
} row_factors;

static row_factors factors_of(const pyce_factors *f, int64_t row) {
    const pyce_problem *p = f->given;
    row_factors r = {.of_loss = number_from(1), .of_grad = number_from(1)};
    const int64_t label = label_of(p, row);
    const double s = p->sample_weight ? p->sample_weight[row] : 1;
    const double grad_loss = p->grad_losses ? p->grad_losses[row] : 1;
    r.is_nothing = 1;
    if (s == 0 || (p->labels && label == p->ignore_index)) return r;
    const double w = weighs_rows(p) ? p->weight[label] : 1;
    if (w == 0) return r;
    r.is_nothing = 0;
    r.of_loss = times(number_from(s), f->soft_factor);
    if (pyce_is_extreme(w, p->dtype)) {
        r.of_loss = times(r.of_loss, number_from(fabs(w)));
    } else {
        r.others_of_loss = number_from(w).exponent;
    }
    /* 0 · inf = 0 */
    r.of_grad = grad_loss == 0 || p->grad_loss == 0 ? number_from(0)
                                                    : times(r.of_loss, number_from(grad_loss));
    r.others_of_grad = r.others_of_loss;
    if (f->takes_scale && r.of_grad.value != 0) {
        r.of_grad = times(r.of_grad, f->scale);
    } else {
        r.others_of_grad += f->scale.exponent;
    }
    r.in_grad = pyce_is_extreme(s, p->dtype) || pyce_is_extreme(w, p->dtype) || f->takes_scale ||
                f->soft_exponent || pyce_is_extreme(grad_loss, p->dtype);
    return r;
}

/* The denominator of the mean with an exponent of its own, if that of the kernels may have overflowed or
   lost digits. */
static pyce_number exact_denominator(const pyce_problem *p, double weights) {
    const int64_t rows = p->outer * p->inner;
    const pyce_number found = number_from(weights);
    if (fabs(weights) > 0x1p-900 && fabs(weights) < 0x1p900) return found;
    int64_t largest = INT64_MIN;
    double sum = 0, error = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t row = 0; row < rows; row++) {
            const int64_t label = label_of(p, row);
            if (p->labels && label == p->ignore_index) continue;
            const double s = p->sample_weight ? p->sample_weight[row] : 1;
            const double w = p->labels && p->weight ? p->weight[label] : 1;
            if (s == 0 || w == 0) continue;
            const pyce_number term = times(number_from(s), number_from(w));
            if (term.value - term.value != 0) return found;
            if (pass == 0) {
                if (term.exponent > largest) largest = term.exponent;
            } else {
                compensated_add(&sum, double_of(term, -largest), &error);
            }
        }
    }
    return normalised(sum + error, 0, largest);
}

int pyce_find_factors(pyce_factors *f, double weights) {
    const pyce_problem *p = f->given;
    const int64_t rows = p->outer * p->inner;
    f->soft_exponent = soft_exponent(p);
    const int64_t classes = replaces_weights(p) || f->soft_exponent ? p->classes : 0;
    f->soft_factor = (pyce_number){0.5, 0, f->soft_exponent + 1};
    f->problem = *p;
    f->memory = malloc(sizeof(double) * (size_t)(3 * rows + classes));
    if (!f->memory) return PYCE_NO_MEMORY;
    f->sample_weight = f->memory;
    f->grad_losses = f->sample_weight + rows;
    f->losses = f->grad_losses + rows;
    double *weight = f->memory + 3 * rows;
    for (int64_t c = 0; c < classes; c++) {
        const double w = p->weight[c];
        weight[c] = f->soft_exponent               ? scaled(w, -f->soft_exponent)
                    : pyce_is_extreme(w, p->dtype) ? copysign(1, w)
                                                   : w;
    }
    if (classes) f->problem.weight = weight;
    if (is_square_unweighted(p)) {
        f->problem.lse_square_scale = scaled(p->lse_square_scale, -f->soft_exponent);
    }

    f->denominator = number_from(1);
    if (p->reduction == PYCE_QUOTIENT) f->denominator = number_from(p->normalizer);
    if (p->reduction == PYCE_MEAN) f->denominator = exact_denominator(p, weights);
    f->scale = divided(number_from(p->grad_loss), f->denominator);
    const double denominator = double_of(f->denominator, 0);
    f->takes_scale = is_extreme_scale(p, denominator, double_of(f->scale, 0));

    /* Reduced losses are summed relative to the largest factor. */
    f->loss_exponent = 0;
    if (!pyce_has_loss(p) || p->reduction == PYCE_NONE) return PYCE_OK;
    int64_t largest = INT64_MIN, smallest = INT64_MAX;
    for (int64_t row = 0; row < rows; row++) {
        const row_factors r = factors_of(f, row);
        if (r.is_nothing || r.of_loss.value - r.of_loss.value != 0) continue;
        const int64_t exponent = r.of_loss.exponent + r.others_of_loss;
        if (exponent > largest) largest = exponent;
        if (exponent < smallest) smallest = exponent;
    }
    if (largest != INT64_MIN) {
        f->loss_exponent = largest;
        f->by_rows = largest - smallest > MOST_RANGE;
    }
    return PYCE_OK;
}

/* A factor for the kernels, so that the exponent of its product with the others is at least `least` and
   at most `most`. *left is the exponent of what is left, INT64_MAX for infinity. */
static double factor_within(pyce_number n, int64_t others, int64_t least, int64_t most,
                            int64_t *left) {
    *left = 0;
    if (is_infinite(n.value)) {
        *left = INT64_MAX;
        return scaled(copysign(1, n.value), most - others);
    }
    const int64_t exponent = n.exponent + others;
    if (n.value == 0 || n.value != n.value) return n.value;
    if (exponent > most) *left = exponent - most;
    if (exponent < least) *left = exponent - least;
    return double_of(n, -*left);
}

/* Multiplies element i by 2^exponent, an infinite power if that is INT64_MAX; 0 and NaN remain what they
   are. */
static void multiply(void *data, int dtype, int64_t i, int64_t exponent) {
    const double x = pyce_number_at(data, dtype, i);
    if (exponent == 0 || x == 0 || x != x) return;
    const double infinite = copysign(INFINITY, x);
    pyce_set_number(data, dtype, i, exponent == INT64_MAX ? infinite : scaled(x, exponent));
}

/* -- the loss ---------------------------------------------------------------------------------------- */

static int is_reduced(const pyce_problem *p) { return p->reduction != PYCE_NONE; }

/* The row's sample weight for the kernels. */
static double loss_factor(const pyce_factors *f, const row_factors *r, int64_t row, int64_t *left) {
    const pyce_problem *p = f->given;
    *left = 0;
    if (r->is_nothing) return p->sample_weight && p->sample_weight[row] == 0 ? 0 : 1;
    if (is_reduced(p) && !is_infinite(r->of_loss.value)) {
        return f->by_rows ? factor_within(r->of_loss, r->others_of_loss, 0, 0, left)
                          : double_of(r->of_loss, -f->loss_exponent);
    }
    return factor_within(r->of_loss, r->others_of_loss, LEAST_PRODUCT, MOST_OF_DOUBLES, left);
}

void pyce_prepare_loss(pyce_factors *f) {
    const pyce_problem *p = f->given;
    f->problem.operation = PYCE_FORWARD;
    f->problem.sample_weight = f->sample_weight;
    f->problem.losses = f->losses;
    if (pyce_has_result(p)) f->problem.lse = NULL; /* written with the gradient */
    for (int64_t row = 0; row < p->outer * p->inner; row++) {
        const row_factors r = factors_of(f, row);
        int64_t left;
        f->sample_weight[row] = loss_factor(f, &r, row, &left);
    }
}

int pyce_sum_is_too_small(pyce_factors *f, double total) {
    if (f->by_rows || !is_reduced(f->given) || !(fabs(total) < LEAST_SUM)) return 0;
    f->by_rows = 1;
    return 1;
}

/* The sum of the rows' losses, those with an infinite factor complete, times 2^−*exponent. */
static double sum_of_rows(const pyce_factors *f, int dtype, int64_t *exponent) {
    int64_t largest = INT64_MIN;
    double sum = 0, error = 0, not_finite = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t row = 0; row < f->given->outer * f->given->inner; row++) {
            const row_factors r = factors_of(f, row);
            const double loss = pyce_number_at(f->losses, dtype, row);
            int64_t left;
            loss_factor(f, &r, row, &left);
            const pyce_number n = normalised(loss, 0, left);
            if (loss == 0) continue;
            if (loss - loss != 0) {
                if (pass == 0) not_finite += loss;
            } else if (pass == 0) {
                if (n.exponent > largest) largest = n.exponent;
            } else {
                compensated_add(&sum, double_of(n, -largest), &error);
            }
        }
    }
    *exponent = largest == INT64_MIN ? 0 : largest;
    return not_finite != 0 ? not_finite : sum + error;
}

double pyce_finish_loss(const pyce_factors *f, double total) {
    const pyce_problem *p = f->given;
    const int dtype = p->dtype == PYCE_FLOAT64 ? PYCE_FLOAT64 : PYCE_FLOAT32;
    int64_t exponent = f->loss_exponent;
    for (int64_t row = 0; row < p->outer * p->inner; row++) {
        const row_factors r = factors_of(f, row);
        int64_t left;
        loss_factor(f, &r, row, &left);
        if (f->by_rows && left != INT64_MAX) continue;
        if (left == INT64_MAX && weighs_rows(p) && p->classes > 1 &&
            pyce_number_at(f->losses, dtype, row) == 0) {
            /* With several classes, the loss of a label is positive, even if it is rounded to 0. */
            const double w = p->weight[label_of(p, row)];
            const double sign = copysign(1, r.of_loss.value) * copysign(1, w);
            pyce_set_number(f->losses, dtype, row, sign);
        }
        multiply(f->losses, dtype, row, left);
        const double loss = pyce_number_at(f->losses, dtype, row);
        if (left == INT64_MAX) total += loss;
        if (!is_reduced(p)) pyce_set_number(p->losses, dtype, row, loss);
    }
    if (f->by_rows) total = sum_of_rows(f, dtype, &exponent);
    return scaled(total / f->denominator.value, exponent - f->denominator.exponent);
}

/* -- the gradient ------------------------------------------------------------------------------------ */

static double gradient_factor(const pyce_factors *f, const row_factors *r, int64_t *left) {
    const pyce_problem *p = f->given;
    const int64_t most = p->dtype == PYCE_FLOAT64   ? MOST_OF_DOUBLES
                         : p->lse_square_scale != 0 ? MOST_WITH_LSE
                         : is_soft(p)               ? MOST_OF_SOFT_FLOATS
                                                    : MOST_OF_FLOATS;
    return factor_within(r->of_grad, r->others_of_grad, LEAST_PRODUCT, most, left);
}

void pyce_prepare_gradient(pyce_factors *f) {
    const pyce_problem *p = f->given;
    f->problem.operation = p->operation;
    f->problem.lse = p->lse;
    f->problem.losses = NULL;
    f->problem.reduction = PYCE_SUM;
    f->problem.sample_weight = p->sample_weight ? f->sample_weight : NULL;
    f->problem.grad_losses = f->grad_losses;
    for (int64_t row = 0; row < p->outer * p->inner; row++) {
        const row_factors r = factors_of(f, row);
        const double s = p->sample_weight ? p->sample_weight[row] : 1;
        f->sample_weight[row] = s;
        f->grad_losses[row] = p->grad_losses ? p->grad_losses[row] : 1;
        if (!r.in_grad) continue;
        int64_t left;
        f->sample_weight[row] = 1;
        f->grad_losses[row] = gradient_factor(f, &r, &left);
    }
}

void pyce_finish_gradient(const pyce_factors *f, int64_t classes) {
    const pyce_problem *p = f->given;
    const pyce_operand *g = &p->result;
    for (int64_t row = 0; row < p->outer * p->inner; row++) {
        const row_factors r = factors_of(f, row);
        int64_t left = 0;
        if (r.in_grad) gradient_factor(f, &r, &left);
        if (left == 0) continue;
        const int64_t outer = row / p->inner;
        int64_t at = g->offsets ? g->offsets[outer] : outer * g->outer_stride;
        at += row % p->inner;
        for (int64_t c = 0; c < classes; c++) {
            multiply(g->data, p->dtype, at + c * g->class_stride, left);
        }
    }
}

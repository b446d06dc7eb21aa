/* Rows with an infinite factor.
 *
 * The loss and the gradient of a row are multiplied by its sample weight, by w_y if its target is a
 * label without smoothing, and the gradient also by grad_loss/denominator. If one of these is
 * infinite, the kernels would compute inf − inf and 0·inf. So they get 1 or −1 in its place, and
 * afterwards their results are multiplied by infinity, where a number that is 0 stays 0. The other
 * rows have the bits that they would have without such rows.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "infinite.h"
#include "internal.h"

/* The first factor of the gradients of such rows, so that none becomes 0 when it is rounded
   to a half type. */
#define LARGE 0x1p64

static int is_infinite(double x) { return x == x && x - x != 0; }
static int has_infinite(const double *values, int64_t n) {
    /* Eight sums that become NaN, so that additions need not wait for each other. */
    double sum[8] = {0};
    for (int64_t i = 0; i < n; i++) sum[i & 7] += values[i] - values[i];
    for (int i = 1; i < 8; i++) sum[0] += sum[i];
    return sum[0] != 0;
}

/* Whether a row's class weight is a factor of its whole loss. */
static int weighs_rows(const pyce_problem *p) {
    return p->weight && p->labels && (p->classes == 1 || !(p->smoothing > 0));
}
/* Whether infinite class weights are replaced. With one class, p is 1 and the weight has no effect. */
static int replaces_weights(const pyce_problem *p) {
    return p->weight && (p->classes == 1 || weighs_rows(p));
}

int pyce_has_infinite_factor(const pyce_problem *p, double weights, double grad_scale) {
    const int64_t rows = p->outer * p->inner;
    if (p->target == PYCE_NO_TARGET) return 0;
    if (pyce_has_result(p)) {
        if (is_infinite(grad_scale)) return 1;
        if (p->grad_losses && has_infinite(p->grad_losses, rows)) return 1;
    }
    /* A finite sum has finite terms. With smoothing, terms may lack sample weights, where w_y is
       0; and of one class the weight may not be in the sum. */
    if (weights - weights == 0 && !(p->weight && (p->smoothing > 0 || p->classes == 1))) return 0;
    return (p->sample_weight && has_infinite(p->sample_weight, rows)) ||
           (replaces_weights(p) && has_infinite(p->weight, p->classes));
}

/* The factors of a row. */
typedef struct {
    double weight, sample_weight, grad_loss;
    int in_loss; /* whether its loss has an infinite factor */
    int in_grad; /* the same of its gradient */
} row_factors;

static row_factors factors_of(const pyce_problem *p, double grad_scale, int64_t row) {
    row_factors f = {.weight = 1, .sample_weight = 1, .grad_loss = 1};
    int64_t label = 0;
    if (p->target == PYCE_INDEX64) label = ((const int64_t *)p->labels)[row];
    if (p->target == PYCE_INDEX32) label = ((const int32_t *)p->labels)[row];
    if (p->grad_losses) f.grad_loss = p->grad_losses[row];
    if (p->sample_weight) f.sample_weight = p->sample_weight[row];
    if (p->labels && label == p->ignore_index) return f;
    if (weighs_rows(p)) f.weight = p->weight[label];
    if (f.sample_weight == 0 || f.weight == 0) return f; /* all coefficients are 0 */
    f.in_loss = is_infinite(f.sample_weight) || is_infinite(f.weight);
    if (f.in_loss || is_infinite(grad_scale) || is_infinite(f.grad_loss)) {
        const double factor = grad_scale * f.sample_weight * f.grad_loss * f.weight;
        f.in_grad = is_infinite(factor);
        f.grad_loss = f.in_grad ? copysign(LARGE, f.grad_loss) : factor;
    }
    return f;
}

/* 1 or −1 in place of an infinite factor. */
static double finite_factor(double x) { return is_infinite(x) ? copysign(1, x) : x; }

int pyce_make_finite(const pyce_problem *p, double *grad_scale, pyce_finite *f) {
    const int64_t rows = p->outer * p->inner;
    const int64_t classes = replaces_weights(p) ? p->classes : 0;
    f->problem = *p;
    f->memory = malloc(sizeof(double) * (size_t)(3 * rows + classes));
    if (!f->memory) return PYCE_NO_MEMORY;
    double *sample_weight = f->memory, *grad_losses = sample_weight + rows;
    double *losses = grad_losses + rows, *weight = losses + rows;
    for (int64_t row = 0; row < rows; row++) {
        const row_factors of = factors_of(p, *grad_scale, row);
        sample_weight[row] = finite_factor(of.sample_weight);
        grad_losses[row] = of.grad_loss;
    }
    for (int64_t c = 0; c < classes; c++) weight[c] = finite_factor(p->weight[c]);
    if (classes) f->problem.weight = weight;
    if (p->sample_weight) f->problem.sample_weight = sample_weight;
    if (pyce_has_result(p)) f->problem.grad_losses = grad_losses;
    if (pyce_has_loss(p) && !p->losses) f->problem.losses = losses;
    *grad_scale = finite_factor(*grad_scale);
    return PYCE_OK;
}

/* Makes what is neither 0 nor NaN infinite, with its sign. */
static void make_infinite(void *number, int dtype) {
    static const uint64_t infinities[] = {0x7f800000, 0x7ff0000000000000, 0x7c00, 0x7f80};
    const uint64_t infinity = infinities[dtype];
    const size_t size = pyce_item_size(dtype);
    const uint64_t sign = (uint64_t)1 << (8 * size - 1);
    uint16_t two = 0;
    uint32_t four = 0;
    uint64_t bits;
    if (size == 2) {
        memcpy(&two, number, size);
        bits = two;
    } else if (size == 4) {
        memcpy(&four, number, size);
        bits = four;
    } else {
        memcpy(&bits, number, size);
    }
    const uint64_t magnitude = bits & (sign - 1);
    if (magnitude == 0 || magnitude > infinity) return;
    bits = (bits & sign) | infinity;
    two = (uint16_t)bits;
    four = (uint32_t)bits;
    memcpy(number, size == 2 ? (void *)&two : size == 4 ? (void *)&four : (void *)&bits, size);
}

static double number_of(const void *number, int is_double) {
    return is_double ? *(const double *)number : *(const float *)number;
}

double pyce_make_infinite(const pyce_problem *p, int64_t classes, double grad_scale,
                          const pyce_finite *f) {
    const int64_t rows = p->outer * p->inner;
    const int is_double = p->dtype == PYCE_FLOAT64, loss_dtype = is_double;
    const size_t size = pyce_item_size(p->dtype), loss_size = pyce_item_size(loss_dtype);
    double sum = 0;
    _Static_assert(PYCE_FLOAT32 == 0 && PYCE_FLOAT64 == 1, "the dtype of the loss");
    for (int64_t row = 0; row < rows; row++) {
        const row_factors of = factors_of(p, grad_scale, row);
        if (of.in_loss && pyce_has_loss(p)) {
            char *loss = (char *)f->problem.losses + (size_t)row * loss_size;
            /* With several classes, the loss of a label is positive, even if it is rounded to 0. */
            if (weighs_rows(p) && p->classes > 1 && number_of(loss, is_double) == 0) {
                const double sign = copysign(1, of.sample_weight) * copysign(1, of.weight);
                if (is_double) {
                    *(double *)loss = sign;
                } else {
                    *(float *)loss = (float)sign;
                }
            }
            make_infinite(loss, loss_dtype);
            sum += number_of(loss, is_double);
        }
        if (of.in_grad && pyce_has_result(p)) {
            const pyce_operand *g = &p->result;
            const int64_t outer = row / p->inner;
            int64_t at = g->offsets ? g->offsets[outer] : outer * g->outer_stride;
            at += row % p->inner;
            for (int64_t c = 0; c < classes; c++) {
                const int64_t of_class = at + c * g->class_stride;
                make_infinite((char *)g->data + of_class * (int64_t)size, p->dtype);
            }
        }
    }
    return sum;
}

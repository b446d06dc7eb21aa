/* Compensated sums of doubles, for api.c, bernoulli.c and the kernels.
 *
 * Each sum has a fixed order, so that its bits depend on nothing but the numbers and their count. The
 * compiler's vector extension stands for eight doubles here: every instruction set computes the same
 * operations, elementwise, and the result has the same bits as eight scalars.
 */
#ifndef PYCE_REDUCE_H
#define PYCE_REDUCE_H

#include <stdint.h>
#include <string.h>

/* a + b, rounded; *error is what the rounding lost: a + b = sum + *error exactly (Knuth's TwoSum).
 *
 * The error is 0 where it would not be finite, everywhere and for one reason: an infinite or NaN sum
 * must stay what it is when its error is added. After an overflow, and for infinite operands, TwoSum
 * computes inf − inf = NaN, so a test for NaN catches all but one case: where |a| is the largest
 * finite double, an intermediate result can overflow although the sum is finite, and the error is
 * infinite (Boldo, Graillat and Muller, 2017). Finite errors pass unchanged. */
static inline double two_sum(double a, double b, double *error) {
    const double sum = a + b, b_part = sum - a;
    const double lost = (a - (sum - b_part)) + (b - b_part);
    *error = lost - lost == 0 ? lost : 0;
    return sum;
}

/* *sum += term; what the rounding lost is added to *error. */
static inline void compensated_add(double *sum, double term, double *error) {
    double lost;
    *sum = two_sum(*sum, term, &lost);
    *error += lost;
}

/* The sum of n values by halves, in place: a tree whose shape depends on n alone. The errors are added
   at the end. */
static inline double sum_by_halves(double *values, int64_t n) {
    int64_t size = 1;
    double error = 0;
    while (size < n) size *= 2;
    for (int64_t half = size / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i + half < n && i < half; i++) {
            compensated_add(values + i, values[i + half], &error);
        }
        if (n > half) n = half;
    }
    return n ? values[0] + error : 0.0;
}

/* The sum of a tile's row losses by halves, in place: `rows`, a power of two, is the size of the tile,
 * and rows that the tile lacks are zeros. With `compensated` (double logits) the errors are added at
 * the end; float losses have bits to spare in a double. Kernels sum the rows of a tile that they
 * compute together, api.c those of a tile whose rows were dealt one by one: the bits are the same. */
static inline double sum_of_tile(double *losses, int64_t rows, int compensated) {
    typedef double eight __attribute__((vector_size(64)));
    eight errors = {0};
    int64_t half = rows / 2;
    for (; half >= 8; half /= 2) {
        for (int64_t i = 0; i < half; i += 8) {
            eight a, b;
            memcpy(&a, losses + i, sizeof a);
            memcpy(&b, losses + i + half, sizeof b);
            const eight sum = a + b;
            if (compensated) { /* two_sum, for each element */
                const eight b_part = sum - a, lost = (a - (sum - b_part)) + (b - b_part);
                errors += (eight)((lost - lost == 0) & (__typeof__(lost - lost == 0))lost);
            }
            memcpy(losses + i, &sum, sizeof sum);
        }
    }
    double error = 0;
    for (; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; i++) compensated_add(losses + i, losses[i + half], &error);
    }
    if (!compensated) return losses[0];
    const double left = (errors[0] + errors[4]) + (errors[2] + errors[6]);
    const double right = (errors[1] + errors[5]) + (errors[3] + errors[7]);
    return losses[0] + (error + (left + right));
}

#endif

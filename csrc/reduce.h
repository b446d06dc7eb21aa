/* Compensated sums of doubles, for the core and the kernels.
 *
 * Each sum has a fixed order, so that its bits depend on nothing but the numbers and their count. The
 * vectors here are the compiler's extension: every instruction set computes the same operations,
 * elementwise, and the bits are those of scalars. GCC compiles vectors of four doubles well for
 * registers of 128, 256 and 512 bits, longer ones only for 512.
 */
#ifndef PYCE_REDUCE_H
#define PYCE_REDUCE_H

#include <stdint.h>
#include <string.h>

/* The rounded sum of a and b, and its rounding error: a + b = sum + *error exactly (Knuth's TwoSum).
 *
 * An error that is not finite is replaced by 0, so that an infinite or NaN sum does not change when
 * its error is added. After an overflow, and for infinite operands, TwoSum computes inf − inf = NaN.
 * A test for NaN would miss one case: if |a| is the largest finite double, an intermediate result can
 * overflow although the sum is finite, and then the error is infinite (Boldo, Graillat and Muller,
 * "On the robustness of the 2Sum and Fast2Sum algorithms", 2017). Finite errors are never changed. */
static inline double two_sum(double a, double b, double *error) {
    const double sum = a + b, b_part = sum - a;
    const double exact = (a - (sum - b_part)) + (b - b_part);
    *error = exact - exact == 0 ? exact : 0;
    return sum;
}

/* *sum += term; the rounding error is added to *error. */
static inline void compensated_add(double *sum, double term, double *error) {
    double new_error;
    *sum = two_sum(*sum, term, &new_error);
    *error += new_error;
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

typedef double pyce_four __attribute__((vector_size(4 * sizeof(double))));

/* sums[0…3] += terms[0…3], with compensated_add's errors if `compensated`. */
static inline void add_four(double *sums, const double *terms, int compensated, pyce_four *errors) {
    typedef int64_t mask __attribute__((vector_size(4 * sizeof(int64_t))));
    pyce_four a, b;
    memcpy(&a, sums, sizeof a);
    memcpy(&b, terms, sizeof b);
    const pyce_four sum = a + b;
    memcpy(sums, &sum, sizeof sum);
    if (compensated) {
        const pyce_four b_part = sum - a, exact = (a - (sum - b_part)) + (b - b_part);
        const mask finite = exact - exact == 0;
        *errors += (pyce_four)(finite & (mask)exact);
    }
}

/* The sum of a tile's row losses by halves, in place: `rows`, a power of two, is the size of the tile,
 * and rows that the tile lacks are zeros. With `compensated` (double logits) the errors are added at
 * the end; the losses of float logits are summed in double precision without compensation. Kernels
 * sum the rows of a tile that they compute together, run.c those of a tile whose rows were dealt one
 * by one: the bits are the same. */
static inline double sum_of_tile(double *losses, int64_t rows, int compensated) {
    pyce_four even = {0}, odd = {0}; /* errors of every other four */
    int64_t half = rows / 2;
    for (; half >= 8; half /= 2) {
        for (int64_t i = 0; i < half; i += 8) {
            add_four(losses + i, losses + i + half, compensated, &even);
            add_four(losses + i + 4, losses + i + 4 + half, compensated, &odd);
        }
    }
    double error = 0;
    for (; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; i++) compensated_add(losses + i, losses[i + half], &error);
    }
    if (!compensated) return losses[0];
    const pyce_four e = even + odd;
    return losses[0] + (error + ((e[0] + e[2]) + (e[1] + e[3])));
}

#endif

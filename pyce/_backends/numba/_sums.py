"""Sums of many numbers, in an order that depends on their number alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyce._backends.numba._jit import U0, U1, U2, U3, U4, U8, U16, U32, Index, U, jit
from pyce._backends.numba._math import finite_or_zero, two_sum
from pyce._types import Array

# Elements of a row, or of a flat array, that are added at a time; a power of two.
BLOCK = 512
# Length of the arrays of partial sums.
PARTIAL = BLOCK // 4


@jit
def sum_float32(terms: Array, n: Index, partial: Array, partial_error: Array) -> Any:
    """Σ terms[:n] in float64, n ≤ BLOCK, as a pair with error 0.

    terms (BLOCK,) is overwritten from n on; partial and partial_error (PARTIAL,) are workspace.
    """
    for c in range(n, U(BLOCK)):
        terms[c] = 0.0
    for c in range(U32):
        total = np.float64(terms[c])
        for i in range(U1, U16):
            total += np.float64(terms[U32 * i + c])
        partial[c] = total
    for c in range(U16):
        partial[c] += partial[U16 + c]
    for c in range(U8):
        partial[c] += partial[U8 + c]
    for c in range(U4):
        partial[c] += partial[U4 + c]
    return (partial[U0] + partial[U1]) + (partial[U2] + partial[U3]), 0.0


@jit
def sum_float64(terms: Array, n: Index, partial: Array, partial_error: Array) -> Any:
    """Σ terms[:n], n ≤ BLOCK, as a pair. Arguments as for `sum_float32`."""
    for c in range(n, U(BLOCK)):
        terms[c] = 0.0
    width = U(PARTIAL)
    for c in range(width):
        first, first_error = two_sum(terms[c], terms[width + c])
        second, second_error = two_sum(terms[U2 * width + c], terms[U3 * width + c])
        partial[c], error = two_sum(first, second)
        partial_error[c] = finite_or_zero(first_error + second_error + error)
    while width > U1:
        width = width >> U1
        for c in range(width):
            partial[c], error = two_sum(partial[c], partial[width + c])
            partial_error[c] += partial_error[width + c] + finite_or_zero(error)
    return partial[U0], partial_error[U0]


def quotient_of_sum(values: Array, denominator: float, result: Array) -> None:
    """result[0] = Σ values / denominator for float64 values, correct but for a rounding or two.

    Not decorated: `_launch` compiles it with a file in Numba's cache.
    """
    terms, terms_error = np.zeros(BLOCK), np.zeros(BLOCK)
    partial, partial_error = np.empty(PARTIAL), np.empty(PARTIAL)
    for begin in range(U0, U(values.size), U(BLOCK)):
        for i in range(min(U(BLOCK), U(values.size) - begin)):
            terms[i], error = two_sum(terms[i], values[begin + i])
            terms_error[i] += finite_or_zero(error)
    sum_, sum_error = sum_float64(terms, U(BLOCK), partial, partial_error)
    error, _ = sum_float32(terms_error, U(BLOCK), partial, partial_error)
    result[0] = (sum_ + (sum_error + error)) / denominator

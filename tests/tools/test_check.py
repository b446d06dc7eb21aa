"""`python -m pyce check`: its verdict where the promises hold, and where one is broken."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import oracle
import pytest

import pyce
from pyce import _problem
from pyce.__main__ import main
from pyce._backends import numpy as numpy_backend
from pyce._check import accuracy, check, findings, promises, real_data, regimes, same_bytes

QUICK = ["check", "--backend", "numpy", "--dtype", "float32", "--regime", "confident30"]
# Makes a check of everything quick, for a program in another process.
SMALL = """
from pyce._check import accuracy, check, same_bytes
check.SHAPES = ((30, 10), (3, 65))
accuracy.CLASSES = (1, 17)
accuracy.ROWS = {"lengths": "1 to 17 classes", "shared": "shared"}
same_bytes.LARGE = ((20_000, 10),)
"""


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(check, "SHAPES", ((30, 10), (3, 65)))
    monkeypatch.setattr(accuracy, "CLASSES", (1, 17))
    monkeypatch.setattr(same_bytes, "LARGE", ((20_000, 10),))


@pytest.fixture
def few_rows(monkeypatch):
    """Only two rows of the table."""
    monkeypatch.setattr(accuracy, "ROWS", {"lengths": "1 to 17 classes", "shared": "shared"})


def broken(monkeypatch, function, spoil, backend=numpy_backend):
    """Replace the backend's function by one whose results `spoil` changes."""
    right = getattr(backend, function)

    def wrong(*arguments):
        result = right(*arguments)
        changed = spoil(*arguments)
        return result if changed is None else changed

    monkeypatch.setattr(backend, function, wrong)


# ---------------------------------------------------------------------------------------------
# The promises hold


BOUNDS = {
    r"every backend: the loss is within (\d) units": ("cross-entropy", "loss"),
    r"normal number of the gradient,.* within (\d) units": ("cross-entropy", "gradient"),
    r"`softmax` and `.*` are within (\d) units": ("cross-entropy", "softmax"),
    r"and `log_softmax` are within (\d) units": ("cross-entropy", "log_softmax"),
    r"binary_.*: the loss is within (\d) units": ("binary cross-entropy", "loss"),
    r"gradient within (\d) units of its larger": ("binary cross-entropy", "gradient"),
}


def test_the_bounds_are_those_of_the_semantics():
    semantics = Path(__file__).parents[2] / "docs" / "semantics.md"
    text = semantics.read_text(encoding="utf-8")
    for pattern, (work, kind) in BOUNDS.items():
        (found,) = set(re.findall(pattern, text))
        assert promises.LIMITS[work][kind] == float(found), (work, kind)
    assert sum(map(len, promises.LIMITS.values())) == len(BOUNDS)


def test_the_promises_hold(backend, capsys, few_rows, monkeypatch):
    """On every backend, in every dtype, with a generated regime and a real text."""
    if backend.isa not in (None, pyce.info()["isas"][0]):
        return  # the command takes the instruction sets itself
    monkeypatch.setattr(accuracy, "shared", lambda *_: None)  # Numba would compile another kernel
    # In float32 alone with Numba, which compiles anew for each.
    dtypes = ["float32"] if backend.name == "numba" else list(check.DTYPES)
    options = ["--dtype", ",".join(dtypes), "--regime", "runner-up,text"]
    assert main(["check", "-b", backend.name, *options]) == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    assert "verdict: right: 1 backend (" + backend.name in text
    assert " 2 regimes, " in text
    for dtype in check.FLOATS:
        assert (f"{dtype}: largest errors in ULP" in text) == (dtype in dtypes)
    for line in (promises.LABELS, promises.SPECIAL):
        assert f"{line}: yes" in text
    assert (f"{promises.HALF} (float16, bfloat16): yes" in text) == ("float16" in dtypes)
    if backend.name == "c":
        if len(pyce.info()["isas"]) > 1:
            assert f"{promises.ISAS} ({', '.join(pyce.info()['isas'])}): yes" in text
        assert f"{promises.MACHINES}: yes" in text
        assert f"{promises.PLACE}: yes" in text


def test_every_row_of_the_table(capsys, tmp_path):
    path = tmp_path / "new" / "accuracy.json"
    assert main([*QUICK, "--json", "-o", str(path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert json.loads(path.read_text(encoding="utf-8")) == found
    assert (found["command"], found["verdict"], found["failures"]) == ("check", "right", [])
    assert found["machine"]["kind"] and "bandwidth" not in found["machine"]
    assert found["versions"]["numpy"] == np.__version__
    assert found["numbers"] > 1000
    about = found["results"]["float32"]["confident30"]["numpy"]
    for kind in ("loss", "gradient"):
        assert 0 < about[kind]["right"] <= 1
        assert (
            0
            <= about[kind]["median"]
            <= about[kind]["max"]
            <= promises.LIMITS["cross-entropy"][kind]
        )
        assert sum(about[kind]["histogram"]) == about[kind]["numbers"] > 0
    assert set(found["targets"]["float32"]) == set(accuracy.ROWS) - {"shared"}
    assert set(found["titles"]) >= {*regimes.REGIMES, *found["targets"]["float32"]}


def test_work_shared_among_threads(c_backends, many_processors, few_rows, capsys):
    """Some rows of a large batch are compared, with one thread and with all."""
    pyce.set_num_threads(2)
    assert main(["check", "-b", "c", "--dtype", "float32", "--regime", "random"]) == 0
    text = capsys.readouterr().out
    assert f"{promises.THREADS} (1 and 2): yes" in text
    pyce.set_num_threads(1)
    assert main(["check", "-b", "c", "--dtype", "float32", "--regime", "random", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets"]["float32"]["shared"]["c"]["gradient"]["numbers"] > 0
    assert found["left_out"]["threads"] == "this process may use only one"
    assert promises.THREADS not in found["checks"]


def test_every_regime_has_a_title():
    assert set(regimes.TITLES) == set(regimes.REGIMES)
    assert set(regimes.PROMISED) <= set(regimes.TITLES)


SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
IN_ASCII = str.maketrans({**{power: str(i) for i, power in enumerate(SUPERSCRIPTS)}, "−": "-"})


def _number(text):
    """A number of a title, for example −10⁴, 0.3 or finfo.min."""
    if text == "finfo.min":
        return np.finfo(np.float64).min
    return float(re.sub(f"10(?=[{SUPERSCRIPTS}])", "1e", text).translate(IN_ASCII))


def test_the_regimes_are_those_of_their_titles():
    """Logits have the range, the margin, the offset or the masked value that the title names."""
    for name, title in regimes.TITLES.items():
        x, y, _ = regimes.Case(name, 60, 400).make("float64")
        target = np.arange(60) == y[:, None]
        own, others = x[target], x[~target].reshape(400, 59)
        numbers = title.split(" ")[-1]
        if title.startswith("spread"):
            ends = numbers.split("…") if "…" in numbers else (f"−{numbers[1:]}", numbers[1:])
            low, high = map(_number, ends)
            margin = (high - low) / 1000
            assert low <= x.min() < low + margin and high - margin < x.max() <= high, name
        elif title.startswith("confident"):
            ahead = own - others.max(1)
            assert ahead.min() == pytest.approx(_number(numbers)), name
        elif title.startswith("wrong"):
            behind = others.min(1) - own
            assert behind.min() == pytest.approx(_number(numbers)), name
        elif title.startswith("offset"):
            offset = x - _number(numbers)
            assert abs(offset).max() < 250 and abs(offset.mean()) < 1, name
        elif title.startswith(("masked", "all others")):
            masked = others == _number(numbers)
            assert masked.all() if "all" in title else 0.3 < masked.mean() < 0.5, name
            assert (abs(own) < 100).all(), name
        elif title.startswith("all"):
            assert (x == _number(numbers)).all(), name
        else:
            assert title in ("random", "with a runner-up", "nearly equal", "sorted"), name


def test_regimes_without_numbers():
    """Those that the titles describe in words: a runner-up, nearly equal logits, sorted ones."""
    x, y, _ = regimes.Case("runner-up", 60, 400).make("float64")
    first, second, third = np.sort(x, 1)[:, :-4:-1].T
    assert (np.argmax(x, 1) == y).all() and (first - second >= 10).all()
    assert (second - third >= np.log(60)).all()
    x, _, _ = regimes.Case("small", 60, 400).make("float64")
    assert 0 < np.std(x) < 2e-4 and abs(x).max() < 1e-3
    x, _, _ = regimes.Case("climbing", 60, 400).make("float64")
    assert (np.diff(x[1::2]) >= 0).all() and (np.diff(x[::2]) <= 0).all()


# ---------------------------------------------------------------------------------------------
# Broken promises are found


@pytest.fixture
def found_in(tmp_path, capsys):
    """A function that runs a failing check, and returns its failures and its output."""
    return lambda arguments=QUICK: _found_in(tmp_path / "accuracy.json", capsys, arguments)


def _found_in(path, capsys, arguments):
    assert main([*arguments, "-o", str(path)]) == 1
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["verdict"] == "wrong"
    text = capsys.readouterr().out
    assert "verdict: WRONG" in text
    assert text.count("BROKEN ") == min(len(content["failures"]), check.MOST)
    assert content["failures"][0]["text"] in text
    return content["failures"], text


def off(array, ulps):
    """Move the numbers away from 0 by this many units in the last place."""
    bits = array.view(f"i{array.itemsize}")
    bits[(array != 0) & np.isfinite(array)] += ulps


def test_wrong_losses(monkeypatch, found_in, few_rows):
    broken(monkeypatch, "forward", lambda p: off(p.losses, 5) if p.losses is not None else None)
    failures, text = found_in()
    first = failures[0]
    assert (first["check"], first["backend"], first["dtype"]) == ("accuracy", "numpy", "float32")
    assert "confident30" in first["case"] and first["what"].startswith("loss at")
    assert 4 < first["error"] < 6 and first["limit"] == 2
    assert "confident30-30x10" in text and "ULP off, at most 2 promised" in text
    assert "! / " in text


@pytest.mark.parametrize("function", ["forward_backward", "backward"])
def test_wrong_gradients(monkeypatch, found_in, few_rows, function):
    broken(monkeypatch, function, lambda p: off(p.grad, 6))
    failures, text = found_in()
    assert any(f["check"] == "accuracy" and f["what"].startswith("gradient") for f in failures)
    assert "at most 4 promised" in text


def test_a_subnormal_gradient_with_the_wrong_sign(monkeypatch, found_in, few_rows):
    def spoil(p):
        p.grad[np.abs(p.grad) < 1e-38] *= -1

    broken(monkeypatch, "forward_backward", spoil)
    arguments = [*QUICK[:-1], "spread140"]
    failures, text = found_in(arguments)
    assert "infinitely wrong" in text
    assert failures[0]["error"] == findings.INFINITE


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_wrong_softmax(monkeypatch, found_in, few_rows, function):
    broken(monkeypatch, function, lambda x, axis, out: off(out, 6))
    failures, _ = found_in()
    assert {f["what"].split(" at ")[0] for f in failures} == {function}


def test_one_kind_of_target_is_wrong(monkeypatch, found_in):
    """Errors with class weights alone are found, and only in the rows with weights."""

    def spoil(p):
        if p.weight is not None:
            off(p.grad, 8)

    broken(monkeypatch, "forward_backward", spoil)
    failures, _ = found_in()
    assert all("weight" in f["case"] or "mean" in f["case"] or "sum" in f["case"] for f in failures)


def test_wrong_half_types(monkeypatch, found_in, few_rows):
    def spoil(p):
        if p.dtype_name == "float16":
            off(p.grad, 1)

    broken(monkeypatch, "backward", spoil)
    failures, text = found_in(["check", "-b", "numpy", "--dtype", "float16"])
    assert {f["check"] for f in failures} >= {"half types"}
    assert f"{promises.HALF} (float16): NO" in text


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_bad_label_that_is_found_after_writing(monkeypatch, found_in, dtype, few_rows):
    right = _problem.Problem.check_labels

    def late(self):
        if self.grad is not None and self.grad.size:
            self.grad.flat[-1] = 0.5
        right(self)

    monkeypatch.setattr(_problem.Problem, "check_labels", late)
    failures, text = found_in(["check", "-b", "numpy", "--dtype", dtype, "--regime", "random"])
    assert {f["check"] for f in failures} == {"errors"}
    assert {f["got"] for f in failures} == {"out was written"}
    assert f"{promises.LABELS}: NO" in text


@pytest.mark.parametrize("error", [ValueError, None])
def test_a_bad_label_without_its_error(monkeypatch, found_in, error, few_rows):
    right = _problem.Problem.check_labels

    def other(self):
        try:
            right(self)
        except IndexError as right_one:
            if error:
                raise error(str(right_one)) from None
            self.labels = np.zeros_like(self.labels)

    monkeypatch.setattr(_problem.Problem, "check_labels", other)
    failures, _ = found_in(["check", "-b", "numpy", "--dtype", "float16"])
    wanted = "ValueError" if error else "no error"
    assert any(f["check"] == "errors" and f["got"].startswith(wanted) for f in failures)


def test_a_nan_that_spreads(monkeypatch, found_in, few_rows):
    def spoil(p):
        if np.isnan(p.grad).any():
            p.grad[...] = np.nan

    broken(monkeypatch, "forward_backward", spoil)
    failures, text = found_in()
    assert {f["check"] for f in failures} == {"special values"}
    assert f"{promises.SPECIAL}: NO" in text
    assert "NaN at the target" in text


def test_an_exception_does_not_end_the_check(monkeypatch, found_in, few_rows):
    def wrong(p):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(numpy_backend, "backward", wrong)
    failures, text = found_in()
    assert any(f["got"] == "RuntimeError: no such instruction" for f in failures)
    assert "special values" in {f["check"] for f in failures}
    assert "no such instruction" in text


def test_other_bytes(monkeypatch, found_in, few_rows, c_backends):
    """A difference of one bit on one instruction set, which no error bound would find."""
    from pyce._backends import c

    last = str(c_backends[-1])

    def spoil(p):
        if c.isa() == c_backends[-1].isa:
            off(p.grad, 1)

    broken(monkeypatch, "forward_backward", spoil, c)
    arguments = ["check", "-b", "c", "--dtype", "float32", "--regime", "random"]
    failures, text = found_in(arguments)
    assert {(f["check"], f["backend"]) for f in failures} == {("bytes", last)}
    assert f"{promises.MACHINES}: NO" in text
    if len(c_backends) > 1:
        assert f"{promises.ISAS} (" in text and "): NO" in text


def test_other_bytes_of_inputs_that_are_compared_with_exact_results(monkeypatch, c_backends):
    """Their bytes are compared among the instruction sets, too."""
    from pyce._backends import c

    *others, last = c_backends

    def spoil(p):
        if c.isa() == last.isa:
            off(p.grad, 1)

    broken(monkeypatch, "forward_backward", spoil, c)
    found = findings.Findings()
    work = accuracy.of_case("random", regimes.Case("random", 10, 30), "float32")
    accuracy.compare(found, work, c_backends)
    if others:  # than the widest of this machine, which is the portable one
        assert [(f.check, f.backend) for f in found.failures] == [("bytes", str(last))]
        assert found.held[promises.ISAS] == [len(others) - 1, 1]


@pytest.mark.parametrize("kind", ["threads", "place"])
def test_bytes_that_depend_on_something(
    monkeypatch, found_in, few_rows, c_backends, many_processors, kind
):
    from pyce._backends import c

    pyce.set_num_threads(2)

    def spoil(p):
        alone = p.rows == 1 and p.classes > 10
        if pyce.get_num_threads() == 1 if kind == "threads" else alone:
            off(p.grad, 1)

    broken(monkeypatch, "forward_backward", spoil, c)
    arguments = ["check", "-b", "c", "--dtype", "float32", "--regime", "random"]
    failures, _ = found_in(arguments)
    assert {f["check"] for f in failures} == {"bytes"}
    line = promises.THREADS if kind == "threads" else promises.PLACE
    cases = " ".join(f["case"] for f in failures if line in f["what"])
    assert ("20000x10" in cases and "4300x1000" in cases) if kind == "threads" else "alone" in cases


# ---------------------------------------------------------------------------------------------
# The command


def test_requests_that_cannot_be_checked(capsys, monkeypatch, tmp_path):
    assert main(["check", "-b", "cuda"]) == 2
    assert "cuda" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["check", "--dtype", "float128"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["check", "--regime", "rndom"])
    assert ended.value.code == 2
    (tmp_path / "file").touch()
    assert main([*QUICK, "-o", str(tmp_path / "file" / "accuracy.json")]) == 2
    monkeypatch.setenv("PYCE_BACKEND", "cuda")
    monkeypatch.setattr("pyce._backends._loaded", {})
    assert main(QUICK) == 2


def test_interrupted(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "compare", interrupted)
    assert main(QUICK) == 130
    assert capsys.readouterr().err == "pyce: interrupted\n"


WITHOUT = """
import sys
blocked = ("pyce._pyce", "numba", "rich", "ml_dtypes", "sklearn", "torch")
sys.modules.update(dict.fromkeys(blocked))
{small}
from pyce.__main__ import main
sys.exit(main({arguments}))
"""


def test_with_numpy_alone(run_python):
    """Without the C extension and all optional packages, the output says what is not checked."""
    arguments = ["check", "--dtype", "float32,float16", "--regime", "text,random", "--peers"]
    done = run_python("-c", WITHOUT.format(small=SMALL, arguments=arguments))
    assert done.stderr == ""
    assert "not checked: c: the C extension was not built" in done.stdout
    for name in ("numba: ", "bfloat16: ml_dtypes", "digits: scikit-learn", "PyTorch: "):
        assert f"not checked: {name}" in done.stdout
    assert re.search(r"^real: letters of a text  +0\.\d\d / 0\.\d\d$", done.stdout, re.MULTILINE)
    assert "verdict: right: 1 backend (numpy), 2 regimes, " in done.stdout
    arguments = ["check", "-b", "c"]
    done = run_python("-c", WITHOUT.format(small=SMALL, arguments=arguments), check=False)
    assert done.returncode == 2
    assert "the C extension was not built" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_pipe(run_python):
    """There is no error message, and the exit status is that of the check."""
    code = SMALL + f"from pyce.__main__ import main\nimport sys\nsys.exit(main({QUICK}))"
    spoiled = "from pyce import _problem\n_problem.Problem.check_labels = lambda self: None\n"
    for program, status in ((code, 0), (spoiled + code, 1)):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.close()
            errors = process.stderr.read()
        assert errors == b""
        assert process.returncode == status


class Peer:
    """A library that computes the textbook formulas in float32."""

    @staticmethod
    def answer(work):
        x = work.logits
        e = np.exp(x - x.max(1, keepdims=True))
        p = e / e.sum(1, keepdims=True)
        rows = np.arange(len(x))
        with np.errstate(divide="ignore"):
            loss = -np.log(p[rows, work.target])
        grad = p.copy()
        grad[rows, work.target] -= 1
        return [("loss", "loss", loss), ("gradient", "gradient", grad)]


def test_errors_of_peers_are_no_failures(monkeypatch, capsys, few_rows, tmp_path):
    real = check.importlib.util.find_spec
    monkeypatch.setattr(
        check.importlib.util, "find_spec", lambda name: "torch" if name == "torch" else real(name)
    )
    monkeypatch.setattr(check, "_torch", Peer.answer)
    path = tmp_path / "accuracy.json"
    assert main([*QUICK, "--peers", "-o", str(path)]) == 0
    text = capsys.readouterr().out
    assert "PyTorch" in text and "!" not in text.split("ULP")[1].split("beyond")[1]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["results"]["float32"]["confident30"]["PyTorch"]["gradient"]["max"] > 1000


def test_the_exact_results_of_real_data():
    """A text has a loss of two to three nats, and −inf for pairs of letters that never occur."""
    logits, labels = real_data.text()
    right = oracle.reference(logits, labels, reduction="mean")
    assert 1.5 < right.loss.hi < 3.5
    assert np.isneginf(logits).any()


def test_the_logits_of_digits(monkeypatch):
    """Those of a softmax regression after 200 steps, here along pyce's gradient.

    The images are other ones: to import scikit-learn would take seconds.
    """
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 4, (90, 64)).astype(np.float64), rng.integers(0, 10, 90)
    datasets = types.ModuleType("sklearn.datasets")
    datasets.load_digits = lambda return_X_y: (images, labels)
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)
    x = np.column_stack([images / 16, np.ones(90)])
    w = np.zeros((65, 10))
    for _ in range(200):
        _, grad = pyce.cross_entropy_with_grad(x @ w, labels)
        w -= 2.0 * (x.T @ grad)
    logits, found = real_data.digits()
    np.testing.assert_allclose(logits, x @ w, rtol=1e-8, atol=1e-8)
    assert (found == labels).all()

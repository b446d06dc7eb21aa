"""Selecting a backend: for the process, for a block of a thread or task, and by default."""

import asyncio
import contextvars
import enum
import importlib.util
import os
import threading
import types

import numpy as np
import pytest
from conftest import join

import pyce
from pyce import _backends
from pyce._info import describe
from pyce._selection import selections


def others(name):
    return [other for other in pyce.backends() if other != name]


@pytest.fixture
def undecided(monkeypatch):
    """No backend is loaded, "auto" is not decided, and the environment selects nothing."""
    monkeypatch.setattr(_backends, "_loaded", {})
    monkeypatch.setattr(_backends, "_broken", {})
    monkeypatch.setattr(_backends, "_auto_reason", "")
    for name in ("PYCE_BACKEND", "PYCE_ISA", "NUMBA_DISABLE_JIT"):
        monkeypatch.delenv(name, raising=False)
    pyce.set_backend("auto")


@pytest.fixture
def plain_c(undecided, c_backends, monkeypatch):
    """A processor for which the C backend has only its plain kernels."""
    from pyce._backends import c

    monkeypatch.setattr(c, "isas", lambda: ["scalar"])


@pytest.fixture
def numba_here(undecided, monkeypatch):
    """The Numba backend is available: a substitute, which is not compiled."""
    monkeypatch.setitem(_backends._loaded, "numba", types.SimpleNamespace(NAME="numba"))


@pytest.fixture
def other(backend, monkeypatch):
    """The name of another backend than `backend`; of a substitute where there is no other."""
    if not others(backend.name):
        monkeypatch.setitem(_backends._loaded, "numba", types.SimpleNamespace(NAME="numba"))
    return others(backend.name)[0]


def test_selections_for_tools():
    found = [str(selection) for selection in selections(["numpy", "c"])]
    assert found == ["numpy", *(f"c-{isa}" for isa in pyce.info()["isas"])]
    before = pyce.get_backend(), pyce.get_num_threads()
    with selections(["numpy"])[0].selected(threads=1):
        assert (pyce.get_backend(), pyce.get_num_threads()) == ("numpy", 1)
    assert (pyce.get_backend(), pyce.get_num_threads()) == before


def test_backends_are_listed_fastest_first():
    order = ["c", "numba", "numpy"]
    info = pyce.info()
    if info["isas"] == ["scalar"] and not os.environ.get("PYCE_ISA"):
        order = ["numba", "c", "numpy"]
    listed = pyce.backends()
    assert listed == [name for name in order if name in listed]
    assert list(info["backends"]) == order
    assert listed[-1] == "numpy"


def test_auto_prefers_vector_kernels_of_c(undecided, numba_here, c_backends, monkeypatch):
    from pyce._backends import c

    for isa in ("avx512", "avx2"):
        monkeypatch.setattr(c, "isas", lambda isa=isa: [isa, "scalar"])
        assert pyce.backends() == ["c", "numba", "numpy"]
        _backends._loaded.pop("auto", None)
        assert pyce.get_backend() == "c"
        assert "vector kernels" in pyce.info()["reason"]


def test_auto_prefers_numba_to_slow_plain_c(plain_c, numba_here, recwarn):
    assert pyce.backends() == ["numba", "c", "numpy"]
    assert pyce.get_backend() == "numba"
    info = pyce.info()
    assert list(info["backends"]) == ["numba", "c", "numpy"]
    assert "plain kernels" in info["reason"] and "Numba" in info["reason"]
    # C can be used on request.
    with pyce.use_backend("c"):
        assert pyce.get_backend() == "c"
    assert not recwarn.list


def test_auto_runs_plain_c_without_numba(plain_c, monkeypatch, recwarn):
    monkeypatch.setattr(_backends, "_broken", {"numba": "left out"})
    found = importlib.util.find_spec
    hidden = lambda name: None if name == "numba" else found(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert pyce.backends() == ["c", "numpy"]
    assert pyce.get_backend() == "c"
    assert "Numba would be faster, but is not available" in pyce.info()["reason"]
    assert not recwarn.list


def test_an_instruction_set_in_the_environment_asks_for_c(plain_c, numba_here, monkeypatch):
    monkeypatch.setenv("PYCE_ISA", "scalar")
    assert pyce.backends() == ["c", "numba", "numpy"]
    assert pyce.get_backend() == "c"
    assert "PYCE_ISA=scalar" in pyce.info()["reason"]


@pytest.mark.parametrize(
    ("value", "disabled"), [("1", True), ("2", True), ("0", False), ("", False), ("x", False)]
)
def test_numba_is_unavailable_without_its_compiler(undecided, monkeypatch, value, disabled):
    pytest.importorskip("numba")
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    reason = pyce.info()["backends"]["numba"]
    assert reason == ("NUMBA_DISABLE_JIT is set" if disabled else None)
    assert ("numba" in pyce.backends()) != disabled
    if disabled:
        with pytest.raises(ValueError, match="NUMBA_DISABLE_JIT is set; available: "):
            pyce.set_backend("numba")


def test_info_says_why_a_backend_was_selected(undecided, monkeypatch):
    monkeypatch.setenv("PYCE_BACKEND", "numpy")
    assert pyce.info()["reason"] == "PYCE_BACKEND=numpy selects it"
    monkeypatch.setenv("PYCE_BACKEND", "auto")  # decided once
    assert pyce.info()["reason"] == "PYCE_BACKEND=numpy selects it"
    pyce.set_backend("numpy")
    assert pyce.info()["reason"] == "set_backend selects it"
    with pyce.use_backend("numpy"):
        assert pyce.info()["reason"] == "use_backend selects it"
        with pyce.use_backend("auto"):
            assert pyce.info()["reason"] == "PYCE_BACKEND=numpy selects it"


def test_use_backend_nests(backend):
    assert pyce.get_backend() == backend.name
    for other in others(backend.name):
        with pyce.use_backend(other):
            assert pyce.get_backend() == other
            with pyce.use_backend(backend.name):
                assert pyce.get_backend() == backend.name
            assert pyce.get_backend() == other
            with pyce.use_backend("auto"):
                assert pyce.get_backend() in pyce.backends()
        assert pyce.get_backend() == backend.name


def test_use_backend_ends_with_an_error(backend):
    with pytest.raises(ZeroDivisionError), pyce.use_backend(pyce.backends()[-1]):
        1 / 0  # noqa: B018
    assert pyce.get_backend() == backend.name


def test_one_use_backend_in_itself(backend, other):
    """The same object, entered twice."""
    again = pyce.use_backend(other)
    with again:
        with again:
            assert pyce.get_backend() != backend.name
        assert pyce.get_backend() != backend.name
    assert pyce.get_backend() == backend.name


def test_set_backend():
    for name in pyce.backends():
        pyce.set_backend(name)
        assert pyce.get_backend() == name
        assert pyce.info()["backend"] == name
        for other in others(name):
            with pyce.use_backend(other):
                assert pyce.get_backend() == other
                pyce.set_backend(name)  # `use_backend` takes precedence
                assert pyce.get_backend() == other
    pyce.set_backend("auto")
    assert pyce.get_backend() == pyce.backends()[0]


@pytest.mark.parametrize("name", ["c", "numba"])
def test_a_backend_that_is_not_available(monkeypatch, name):
    """A request raises with the reason and the available backends; no other backend is used."""
    monkeypatch.setattr(_backends, "_loaded", {})
    monkeypatch.setattr(_backends, "_broken", {name: "left out"})
    before = _backends._default
    for ask in (pyce.set_backend, lambda n: pyce.use_backend(n).__enter__()):
        with pytest.raises(ValueError, match=rf"{name}.*left out.*available: .*numpy"):
            ask(name)
        assert _backends._default == before
    monkeypatch.setenv("PYCE_BACKEND", name)
    pyce.set_backend("auto")
    with pytest.raises(ValueError, match="left out"):
        pyce.cross_entropy([[1.0, 2.0]], [0])
    assert name not in pyce.backends()


@pytest.mark.parametrize(
    ("missing", "name", "much"),
    [
        (("c", "numba"), "numpy", "numpy, many times slower than"),
        (("c",), "numba", "numba, slower"),
    ],
)
def test_auto_warns_without_c(undecided, monkeypatch, missing, name, much):
    """The fastest available backend is used, and one warning says that it is not C."""
    if name not in pyce.backends():
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(_backends, "_broken", dict.fromkeys(missing, "left out"))
    with pytest.warns(RuntimeWarning, match="left out") as caught:
        assert pyce.get_backend() == name
        pyce.cross_entropy([[1.0, 2.0]], [0])
    assert len(caught) == 1 and much in str(caught[0].message)
    assert ("many times" in describe()) is (name == "numpy")
    assert "without the C extension" in pyce.info()["reason"]


@pytest.mark.parametrize(
    "call",
    [
        pyce.get_backend,
        pyce.info,
        lambda: pyce.cross_entropy([[1.0, 2.0]], [0]),
        lambda: pyce.softmax([1.0, 2.0]),
        lambda: pyce.binary_cross_entropy([1.0], [1]),
        lambda: pyce.linear_cross_entropy([[1.0]], [[1.0], [2.0]], [0]),
    ],
    ids=["get_backend", "info", "cross_entropy", "softmax", "binary", "linear"],
)
def test_the_warning_is_about_the_line_of_the_caller(undecided, monkeypatch, call):
    """However many functions of pyce are in between."""
    monkeypatch.setattr(_backends, "_broken", dict.fromkeys(("c", "numba"), "left out"))
    with pytest.warns(RuntimeWarning, match="left out") as caught:
        call()
    assert [warning.filename for warning in caught] == [__file__]


def test_the_chosen_backend_is_the_one_that_runs(backend, monkeypatch):
    calls = []
    module = _backends.load(backend.name)
    real = module.forward_backward
    monkeypatch.setattr(module, "forward_backward", lambda p: calls.append(backend.name) or real(p))
    pyce.cross_entropy_with_grad(np.eye(3), [0, 1, 2])
    assert calls == [backend.name]


def test_use_backend_is_of_its_thread(backend, other):
    pyce.set_backend(backend.name)
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def elsewhere():
        with pyce.use_backend(other):
            seen.append(pyce.get_backend())
            inside.set()
            leave.wait(300)
            seen.append(pyce.get_backend())
        seen.append(pyce.get_backend())

    thread = threading.Thread(daemon=True, target=elsewhere)
    thread.start()
    assert inside.wait(300)
    assert pyce.get_backend() == backend.name
    leave.set()
    join([thread])
    assert seen == [other, other, backend.name]


def test_use_backend_is_of_its_task(backend):
    names = pyce.backends()

    async def task(name):
        with pyce.use_backend(name):
            for _ in range(3):
                await asyncio.sleep(0)
                assert pyce.get_backend() == name
        return pyce.get_backend()

    async def main():
        return await asyncio.gather(*(task(name) for name in names * 2))

    assert asyncio.run(main()) == [backend.name] * (2 * len(names))


def test_a_block_that_ends_in_another_thread(backend, other):
    """As that of a generator may. The choice of neither thread changes."""
    block = pyce.use_backend(other)
    errors = []

    def leave():
        try:
            block.__exit__(None, None, None)
        except RuntimeError as error:
            errors.append(str(error))

    with block:
        thread = threading.Thread(daemon=True, target=leave)
        thread.start()
        join([thread])
        assert pyce.get_backend() == other
    assert pyce.get_backend() == backend.name
    assert errors == ["use_backend ends in another thread or task than it began in"]


def test_members_of_an_enumeration_of_strings(backend, other):
    """str() does not turn them into their values."""
    names = enum.Enum("names", {"Auto": "auto", "Own": backend.name, "Other": other}, type=str)
    for member in names:
        with pyce.use_backend(member.value):
            expected = pyce.info()
        with pyce.use_backend(member):
            assert pyce.info() == expected
    with pyce.use_backend("auto"):
        pass
    pyce.set_backend(names.Own)
    assert _backends._default is not names.Own
    assert _backends._default == backend.name


def test_a_copied_context_carries_the_choice(backend, other):
    context = contextvars.copy_context()
    with pyce.use_backend(other):
        assert context.run(pyce.get_backend) == backend.name


def test_unknown_instruction_set_in_the_test_hook(c_backend):
    from pyce._backends import c

    with pytest.raises(ValueError, match="scalar") as caught:
        c.set_isa("mmx")
    assert "'mmx'" in str(caught.value)
    assert c.isa() == c_backend.isa

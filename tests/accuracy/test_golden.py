"""The C backend gives the bytes of golden.json: with any threads, alignment, batch and process."""

import concurrent.futures
import multiprocessing

import golden
import numpy as np
import pytest
from conftest import C_BACKENDS
from every import every

import pyce

EXPECTED = golden.read()
FEW = golden.FEW
QUESTIONS = [*golden.QUESTIONS, *golden.FEW_QUESTIONS]

# The tests that compute a case in many ways.
few = every("case", FEW)


def test_every_case_is_written_down():
    assert list(EXPECTED) == [str(case) for case in golden.CASES]
    assert len(FEW) == len(golden.FEW_SHAPES) * len(golden.DTYPES)


def test_a_shorter_recording_has_every_kernel_and_dtype():
    assert set(FEW) < set(golden.SHORTER) < set(golden.CASES)
    assert {case for case in golden.CASES if case.classes < 1000} < set(golden.SHORTER)


@every("case", golden.CASES)
def test_bytes(c_backend, case):
    assert golden.digests(case) == EXPECTED[str(case)]


# Instruction sets share the code that distributes work; test_determinism.py has more of them.
THREADS = [(b, n) for b in C_BACKENDS for n in ((1, 2, 3, 7, 64) if b == C_BACKENDS[0] else (3,))]


@pytest.mark.parametrize(("c_backend", "threads"), THREADS, ids=str, indirect=["c_backend"])
def test_bytes_with_any_number_of_threads(c_backend, many_processors, threads):
    """Small work is shared among threads, too, as `Backend.selected` asks for."""
    pyce.set_num_threads(threads)
    for case in golden.CASES[::3]:
        assert golden.digests(case) == EXPECTED[str(case)], case


def at(shift, array):
    """A copy of `array` that begins `shift` bytes after a multiple of 64."""
    memory = np.zeros(array.nbytes + 192, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + shift
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@few
def test_bytes_at_any_alignment(c_backend, case):
    inputs = case.inputs()
    # Each of the long rows begins at another alignment by itself: they take most of the time.
    for shift in range(0, 64, 1 if case.classes <= 100 else 5):
        moved = [at((shift + 8 * i) % 64, array) for i, array in enumerate(inputs)]
        question = QUESTIONS[shift % len(QUESTIONS)]

        def out(like=inputs[0], shift=shift):
            return at((5 * shift + 3) % 64, like)

        got = golden.digest(golden.of_rows(*moved, question, out))
        assert got == EXPECTED[str(case)][question], (shift, question)
        if shift % 4 == 0:
            assert golden.digest(golden.of_softmax(moved[0], out)) == EXPECTED[str(case)]["softmax"]


@few
@every("size", [1, 2, 7, 16])
def test_bytes_of_slices_of_the_batch(c_backend, case, size):
    """A row alone, or in any part of the batch, has the same bytes as in the whole batch."""
    x, y, w, s, t = case.inputs()
    parts = [slice(i, i + size) for i in range(0, case.outer, size)]
    for question in QUESTIONS:
        got = [golden.of_rows(x[p], y[p], w, s[p], t[p], question) for p in parts]
        whole = [np.concatenate(values) for values in zip(*got, strict=True)]
        assert golden.digest(whole) == EXPECTED[str(case)][question], question
    got = [golden.of_softmax(x[p]) for p in parts]
    whole = [np.concatenate(values) for values in zip(*got, strict=True)]
    assert golden.digest(whole) == EXPECTED[str(case)]["softmax"]


@few
def test_bytes_past_the_caches_and_in_place(c_backend, past_the_cache, case):
    """Results stored past the caches, as very large ones are, and written over the logits."""
    assert past_the_cache(golden.digests, case) == EXPECTED[str(case)]
    x, y, *_ = case.inputs()
    expected = pyce.cross_entropy_with_grad(x, y, axis=1, reduction="none")[1]
    for call in (lambda function, *args, **kwargs: function(*args, **kwargs), past_the_cache):
        out = x.copy()
        call(pyce.cross_entropy_with_grad, out, y, axis=1, reduction="none", out=out)
        assert golden.digest([out]) == golden.digest([expected])


def test_bytes_among_many_callers(c_backend):
    """Callers in eight threads, each with cases of its own, use the pool at the same time."""
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        results = executor.map(_digests_on_c, FEW, timeout=600)
        for case, found in zip(FEW, results, strict=True):
            assert found == EXPECTED[str(case)], case


def _digests_on_c(case):
    with pyce.use_backend("c"):
        return golden.digests(case)


def _hold_to(isa):
    from pyce._backends import c

    c.set_isa(isa)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_bytes_in_another_process(c_backend, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    golden.digests(FEW[0])  # starts threads, which a child process does not have
    context = multiprocessing.get_context(method)
    # Not by variables: processes of the fork server have the environment of its first use.
    with context.Pool(2, _hold_to, [c_backend.isa]) as pool:
        found = pool.map_async(_digests_on_c, FEW).get(timeout=600)
    assert found == [EXPECTED[str(case)] for case in FEW]

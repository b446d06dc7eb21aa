"""Many callers, forks in the middle of it, and never more threads than asked for."""

import collections
import threading
import time

import numpy as np
import pytest

import pyce


def problems():
    """Small ones that run in the caller and large ones that are shared, of several kinds."""
    rng = np.random.default_rng(0)
    for rows, classes, dtype in (
        (64, 10, np.float32),
        (20_000, 10, np.float32),
        (300, 1000, np.float32),
        (2000, 65, np.float64),
        (1, 200_000, np.float32),
        (5000, 3, np.float16),
    ):
        yield rng.normal(size=(rows, classes)).astype(dtype), rng.integers(0, classes, rows)


def test_sixteen_callers(backend):
    work = list(problems())
    expected = [pyce.cross_entropy_with_grad(x, y) for x, y in work]
    start = threading.Barrier(16)
    wrong = []

    def caller(number):
        with pyce.use_backend(backend.name):
            start.wait()
            for turn in range(8):
                which = (number + turn) % len(work)
                x, y = work[which]
                try:
                    loss, grad = pyce.cross_entropy_with_grad(x, y)
                    if not (loss == expected[which][0] and (grad == expected[which][1]).all()):
                        wrong.append((number, which))
                except BaseException as error:
                    wrong.append(error)
                    raise

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_interpreter_is_free_meanwhile(backend):
    """Another thread gets on with Python while one and the same call runs."""
    x = np.zeros((2000, 2000), np.float32)
    y = np.zeros(2000, int)
    out = np.empty_like(x)
    pyce.set_num_threads(1)
    pyce.cross_entropy_with_grad(x, y, out=out)  # compiled
    running = None  # the number of the call that is being made
    seen_enough = threading.Event()

    def caller():
        nonlocal running
        with pyce.use_backend(backend.name):
            for number in range(300):
                running = number
                pyce.cross_entropy_with_grad(x, y, out=out)
                running = None
                if seen_enough.is_set():
                    break

    thread = threading.Thread(target=caller)
    thread.start()
    looks = collections.Counter()
    while thread.is_alive():
        time.sleep(1e-4)
        looks[running] += 1
        if running is not None and looks[running] >= 4:
            seen_enough.set()
    thread.join()
    assert seen_enough.is_set()


FORK = """
import os, signal, sys, threading, time
import numpy as np, pyce
from pyce import _threads
_threads._affinity = lambda: 3
_threads._quota_now = lambda: 3.0

rng = np.random.default_rng(0)
work = [(rng.normal(size=s).astype(np.float32), rng.integers(0, s[1], s[0]))
        for s in ((64, 10), (20_000, 10), (400, 1000), (1, 200_000))]

def answers():
    return [pyce.cross_entropy_with_grad(x, y) for x, y in work]

def right(got, expected):
    return all(a == c and (b == d).all() for (a, b), (c, d) in zip(got, expected))

expected = answers()
stop = threading.Event()
bad = []

def busy():
    while not stop.is_set():
        if not right(answers(), expected):
            bad.append('a caller in the parent')

threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for t in threads: t.start()

def child(generation):
    signal.alarm(30)  # a hang is an error, not a wait
    if not right(answers(), expected):
        return 3
    if generation:
        return fork(generation - 1)
    return 0

def fork(generation):
    pid = os.fork()
    if pid == 0:
        status = 4
        try:
            status = child(generation)
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return 0 if status == 0 else 5

failures = []
for i in range(8):
    time.sleep(0.003 * i)
    failures.append(fork(1 if i % 4 == 0 else 0))

# A fork from a thread that is not the first.
def elsewhere():
    failures.append(fork(0))
t = threading.Thread(target=elsewhere)
t.start(); t.join()

stop.set()
for t in threads: t.join(60)
assert not any(t.is_alive() for t in threads), 'a caller in the parent hangs'
assert right(answers(), expected)
assert not bad, bad
assert not any(failures), failures
print('fine')
"""


def test_fork_in_the_middle_of_it(backend, run_python):
    done = run_python(
        "-W", "ignore", "-c", backend.share_small_work + FORK, timeout=120, **backend.environment
    )
    assert done.stdout.split() == ["fine"]


COUNT = """
import os, threading, time
import numpy as np, pyce
from pyce import _threads
_threads._affinity = lambda: 64
_threads._quota_now = lambda: 64.0
threads, callers = {threads}, {callers}
pyce.set_num_threads(threads)
assert pyce.get_num_threads() == threads
# What NumPy and the compiler start is not ours: one small call, in the caller alone.
x = np.zeros((4, 3), np.float32); pyce.cross_entropy_with_grad(x, [0] * 4)
before = len(os.listdir('/proc/self/task'))
big = np.zeros((600, 2000), np.float32), np.zeros(600, int)
many = np.zeros((40_000, 3), np.float32), np.zeros(40_000, int)
one = np.zeros((1, 500_000), np.float32), np.zeros(1, int)
stop = threading.Event()
def call():
    for _ in range({turns}):
        for x, y in (big, many, one):
            pyce.cross_entropy_with_grad(x, y)
            pyce.softmax(x)
most = 0
started = [threading.Thread(target=call) for _ in range(callers)]
for t in started: t.start()
while any(t.is_alive() for t in started):
    most = max(most, len(os.listdir('/proc/self/task')) - before)
    time.sleep(0.0005)
for t in started: t.join()
call()
# A thread that has been joined is still listed for a moment.
patience = time.monotonic() + 2
while len(os.listdir('/proc/self/task')) - before >= threads and time.monotonic() < patience:
    time.sleep(0.01)
most = max(most, len(os.listdir('/proc/self/task')) - before + callers)
print(most)
"""


@pytest.mark.parametrize(("threads", "callers"), [(1, 1), (1, 4), (3, 1), (3, 5)])
def test_never_more_threads_than_asked_for(backend, run_python, threads, callers):
    """The callers' threads and, beside them, one less than asked for."""
    if backend.isa and backend.isa != pyce.info()["isas"][0]:
        return  # one pool for all instruction sets
    code = COUNT.format(threads=threads, callers=callers, turns=4)
    variables = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(threads)}
    done = run_python("-c", backend.share_small_work + code, **backend.environment, **variables)
    assert int(done.stdout) <= callers + threads - 1


def test_set_num_threads_from_any_thread(backend):
    """It is one setting for the process, whoever sets it; calls in flight are not disturbed."""
    x = np.random.default_rng(0).normal(size=(3000, 100)).astype(np.float32)
    y = np.zeros(3000, int)
    expected = pyce.cross_entropy(x, y)
    wrong = []

    def caller():
        with pyce.use_backend(backend.name):
            for turn in range(20):
                pyce.set_num_threads(1 + turn % 3)
                if pyce.cross_entropy(x, y) != expected:
                    wrong.append(turn)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

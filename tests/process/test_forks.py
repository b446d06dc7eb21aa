"""Forks before, after and during calls, from the main and from other threads, nested.

Child and parent must have the right results, and none may hang. A few forks for each backend; a
thousand with PYCE_TEST_STRESS=1 (`make test-stress`), with PyTorch and Numba loaded as well.
"""

import os

import pytest
from conftest import SANITIZED, one_isa

pytestmark = pytest.mark.skipif(
    SANITIZED, reason="a child may wait for ever in AddressSanitizer's own allocator"
)

STRESS = os.environ.get("PYCE_TEST_STRESS") == "1"

FORK = """
import faulthandler, os, signal, sys, threading, time
import numpy as np
{imports}
import pyce
from pyce import _threads
_threads.processors = lambda: 3
_threads._quota_now = lambda: 3.0

rng = np.random.default_rng(0)
work = [(rng.normal(size=s).astype(t), rng.integers(0, s[1], s[0])) for s, t in (
    ((64, 10), 'f4'), ((4000, 10), 'f4'), ((100, 1000), 'f4'), ((1, 50_000), 'f4'),
    ((300, 65), 'f8'))]
# What the parent forks before its first call can't know of it.
expected = [(np.float32(0), None)] * len(work)

def answers():
    return [pyce.cross_entropy_with_grad(x, y) for x, y in work]

def right(got, expected):
    return all(a == c and (b == d).all() for (a, b), (c, d) in zip(got, expected))

faulthandler.register(signal.SIGALRM, chain=True)

TASKS = '/proc/self/task'
ADDED = 2 if os.path.isdir(TASKS) else 0

def threads():
    return len(os.listdir(TASKS)) if ADDED else 0

def child(generation):
    signal.alarm(300)  # a hang is an error, not a wait
    inherited = threads()  # PyTorch starts one in a child that a thread forked
    first = answers()
    if expected[0][1] is not None and not right(first, expected):
        return 3
    # It has threads of its own; with Numba it does without.
    if pyce.get_backend() == 'c' and threads() - inherited != ADDED:
        return 7
    # And it may have callers of its own.
    others = [threading.Thread(target=answers) for _ in range(2)]
    for t in others: t.start()
    if not right(answers(), first):
        return 4
    if generation and fork(generation - 1):
        return 5
    for t in others: t.join()
    return 0

def fork(generation=0):
    pid = os.fork()
    if pid == 0:
        status = 6
        try:
            status = child(generation)
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]

failures = []

def forks(count, what):
    for i in range(count):
        status = fork(2 if i % 8 == 0 else 0)
        if status:
            failures.append((what, i, status))

def elsewhere(count, what):
    t = threading.Thread(target=forks, args=(count, what))
    t.start()
    return t

total = {forks}
part = total // 5
{use}
forks(1, 'before the first call')
elsewhere(1, 'before the first call, in a thread').join()
expected = answers()
pyce.set_num_threads(1)
assert right(answers(), expected)  # Numba compiles what it will run in a child
pyce.set_num_threads(3)
forks(part, 'after a call')
elsewhere(part, 'after a call, in a thread').join()

stop = threading.Event()

def busy():
    while not stop.is_set():
        if not right(answers(), expected):
            failures.append('a caller in the parent')

callers = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
for t in callers: t.start()
# In the middle of calls of other threads; and two threads that fork at a time.
forks(part, 'during calls')
two = [elsewhere(part, 'during calls, in a thread') for _ in range(2)]
for t in two: t.join()
stop.set()
for t in callers: t.join(300)
assert not any(t.is_alive() for t in callers), 'a caller in the parent hangs'
assert right(answers(), expected)
assert not failures, failures
print('fine')
"""

# Programs that start the threads of other libraries in the parent.
USE_NUMBA = """
@numba.njit(parallel=True)
def start(out):
    for i in numba.prange(out.size):
        out[i] += i
start(np.zeros(8))
"""
USE_TORCH = """
torch.set_num_threads(2)
torch.nn.functional.cross_entropy(torch.randn(500, 500, requires_grad=True),
                                  torch.zeros(500, dtype=torch.long)).backward()
"""


def forks(backend, run_python, count, timeout, imports="", use="", **variables):
    code = FORK.format(forks=count, imports=imports, use=use)
    done = run_python(
        "-W",
        "ignore",
        "-c",
        backend.share_small_work + code,
        timeout=timeout,
        **backend.environment,
        **variables,
    )
    assert done.stdout.split() == ["fine"]


def test_forks(backend, run_python):
    forks(backend, run_python, 20, 900)


@one_isa
def test_forks_and_numba(backend, run_python):
    """Numba's own parallel work in the parent, in a layer that does not survive a fork."""
    pytest.importorskip("numba")
    forks(backend, run_python, 5, 900, "import numba", USE_NUMBA, NUMBA_NUM_THREADS="3")


@pytest.mark.skipif(not STRESS, reason="PYCE_TEST_STRESS=1 has it run; see make test-stress")
def test_a_thousand_forks(backend, run_python):
    """With torch and Numba loaded, and used in the parent."""
    imports, use = "import torch, numba", USE_TORCH + USE_NUMBA
    forks(backend, run_python, 1000, 3600, imports, use, NUMBA_NUM_THREADS="3")


MULTIPROCESSING = """
import multiprocessing, sys
import numpy as np, pyce

x = np.float32(np.random.default_rng(0).normal(size=(5000, 30)))
y = np.zeros(5000, int)

def job(n):
    return float(pyce.cross_entropy(x, y)), pyce.softmax(x).tobytes()

if __name__ == '__main__':
    expected = job(0)
    with multiprocessing.get_context('fork').Pool(2) as pool:
        assert pool.map_async(job, range(8)).get(300) == [expected] * 8
    print('fine')
"""


def test_a_pool_of_forked_processes(backend, run_python):
    """As data loaders and grid searches use one."""
    code = backend.share_small_work + MULTIPROCESSING
    done = run_python("-W", "ignore", "-c", code, **backend.environment)
    assert done.stdout.split() == ["fine"]

"""Many callers, and never more threads than asked for or than the system allows."""

import itertools
import threading
import time
import tracemalloc

import numpy as np
import pytest
from conftest import join, needs_proc, one_isa

import pyce
from pyce import _threads


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
            start.wait(300)
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

    threads = [threading.Thread(daemon=True, target=caller, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    join(threads)
    assert not wrong


def test_the_interpreter_is_free_meanwhile(backend):
    """Another thread runs Python code in the middle of a call, not only at its ends."""
    pyce.set_num_threads(1)
    pyce.cross_entropy(np.zeros((2, 2000), np.float32), [0, 0])  # compiled
    rows, span = 250, (0.0, 0.0)

    def caller():
        nonlocal span
        with pyce.use_backend(backend.name):
            begin = time.perf_counter()
            pyce.cross_entropy(x, y)
            span = begin, time.perf_counter()

    while span[1] - span[0] < 0.05:
        rows *= 2
        x, y = np.zeros((rows, 2000), np.float32), np.zeros(rows, int)  # pages that take no memory
        caller()
    for _ in range(50):  # on a busy machine, this thread may have to wait for a processor
        thread = threading.Thread(daemon=True, target=caller)
        thread.start()
        looks = []
        while thread.is_alive():
            looks.append(time.perf_counter())
            time.sleep(1e-3)
        begin, end = span
        inside = [begin, *(look for look in looks if begin < look < end), end]
        if np.diff(inside).max() < (end - begin) / 2:
            return
    pytest.fail("no Python code ran for half of each call")


COUNT = """
import os, threading, time
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 64
_threads._quota_now = lambda: 64.0
threads = {threads}
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
for callers in {callers}:
    most = 0
    started = [threading.Thread(target=call) for _ in range(callers)]
    for t in started: t.start()
    while any(t.is_alive() for t in started):
        most = max(most, len(os.listdir('/proc/self/task')) - before)
        time.sleep(0.0005)
    for t in started: t.join()
    call()
    # A thread that has been joined is still listed for a moment.
    patience = time.monotonic() + 100
    while len(os.listdir('/proc/self/task')) - before >= threads and time.monotonic() < patience:
        time.sleep(0.01)
    most = max(most, len(os.listdir('/proc/self/task')) - before + callers)
    print(most)
"""


@one_isa
@pytest.mark.parametrize(("threads", "callers"), [(1, (1, 4)), (3, (1, 5))])
@needs_proc
def test_never_more_threads_than_asked_for(backend, run_python, threads, callers):
    """The threads of the callers and one less than asked for."""
    code = COUNT.format(threads=threads, callers=callers, turns=4)
    variables = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(threads)}
    done = run_python("-c", backend.share_small_work + code, **backend.environment, **variables)
    most = map(int, done.stdout.split())
    assert all(found <= n + threads - 1 for found, n in zip(most, callers, strict=True))


@pytest.mark.parametrize(("threads", "callers"), [(2, 1), (2, 5)])
def test_numba_computes_on_no_more_threads_than_asked_for(monkeypatch, threads, callers):
    pytest.importorskip("numba")
    from pyce._backends import numba as backend
    from pyce._backends.numba import _launch

    if threads > _launch.config.NUMBA_NUM_THREADS:
        return
    lock, computing, most = threading.Lock(), 0, []
    entry_point = _launch.entry_point
    counters = {}

    def counted(function, arguments):
        found = entry_point(function, arguments)

        def run(*given):
            nonlocal computing
            with lock:
                computing += 1
                most.append(computing)
            try:
                time.sleep(1e-3)
                return found(*given)
            finally:
                with lock:
                    computing -= 1

        return found if function is _launch.linger else counters.setdefault(found, run)

    for module in (backend, _launch):
        monkeypatch.setattr(module, "entry_point", counted)
    monkeypatch.setattr(_launch, "PARALLEL_WORK", 2**12)
    monkeypatch.setattr(_threads, "_unlimited", lambda *most: float(threads))
    x, y = np.zeros((600, 200), np.float32), np.zeros(600, int)

    # The first calls may end before the other threads, which take a while to wake, have begun.
    patience = time.monotonic() + 100

    def call():
        with pyce.use_backend("numba"):
            for turn in itertools.count():
                pyce.cross_entropy_with_grad(x, y)
                if turn >= 20 and (max(most) >= threads or time.monotonic() > patience):
                    break

    started = [threading.Thread(daemon=True, target=call) for _ in range(callers)]
    for thread in started:
        thread.start()
    join(started)
    assert len(most) >= 20 * callers
    assert threads <= max(most) <= callers + threads - 1


def test_a_late_helper_of_numba_allocates_nothing(monkeypatch):
    """Memory that is allocated without the GIL while tracemalloc stops ends the process."""
    pytest.importorskip("numba")
    from pyce._backends.numba import _launch

    tasks = []
    monkeypatch.setattr(_launch._Helpers, "call", lambda self, number, *task: tasks.append(task))
    monkeypatch.setattr(_launch, "PARALLEL_WORK", 2**12)
    monkeypatch.setattr(_threads, "_unlimited", lambda *most: 2.0)
    monkeypatch.setattr(_launch.config, "NUMBA_NUM_THREADS", 2)
    x, y = np.zeros((20, 50_000), np.float32), np.zeros(20, int)
    with pyce.use_backend("numba"):
        for _ in range(2):
            pyce.cross_entropy_with_grad(x, y)
    entry, arguments = tasks[-1]
    tracemalloc.start()
    try:
        entry(*arguments)
        assert tracemalloc.get_traced_memory()[1] < x[0].nbytes / 4
    finally:
        tracemalloc.stop()


def test_set_num_threads_from_any_thread(backend):
    """The setting belongs to the process; running calls are not disturbed."""
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

    threads = [threading.Thread(daemon=True, target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    join(threads)
    assert not wrong


RESIZE = """
import itertools, os, threading, time
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 64
_threads._quota_now = lambda: 64.0
rng = np.random.default_rng(0)
work = [(np.float32(rng.normal(size=s)), rng.integers(0, s[1], s[0]))
        for s in ((20_000, 10), (400, 1000), (1, 100_000))]

def right():
    return all(a == c and (b == d).all() for (a, b), (c, d) in zip(answers(), expected))

def answers():
    return [pyce.cross_entropy_with_grad(x, y) for x, y in work]

def tasks():
    return len(os.listdir('/proc/self/task'))

pyce.set_num_threads(1)
expected = answers()
before = tasks()
stop = threading.Event()
wrong = []

def call():
    while not stop.is_set():
        if not right():
            wrong.append('a caller')

threads = [threading.Thread(target=call) for _ in range(4)]
for t in threads: t.start()
end = time.monotonic() + {seconds}
for n in itertools.cycle((1, 5, 2, 8, 1, 3)):
    pyce.set_num_threads(n)
    time.sleep(0.002)
    if time.monotonic() > end:
        break
stop.set()
for t in threads: t.join()
assert not wrong
pyce.set_num_threads(4)
# For C, a thread that is about to end may still be counted when the next call begins.
end = time.monotonic() + (60 if pyce.get_backend() == 'c' else 0)
while True:
    assert right()
    if tasks() - before >= 3 or time.monotonic() >= end:
        break
print(tasks() - before)
pyce.set_num_threads(1)
assert right()
# C's threads have been told to end; those of the Numba backend sleep.
patience = time.monotonic() + (100 if pyce.get_backend() == 'c' else 0)
while tasks() > before and time.monotonic() < patience:
    time.sleep(0.01)
print(tasks() - before)
"""


@one_isa
@needs_proc
def test_the_number_of_threads_changes_while_calls_run(backend, run_python):
    """Results stay correct, and the next large call ends the threads that are too many."""
    code = backend.share_small_work + RESIZE.format(seconds=1)
    variables = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "4"}
    done = run_python("-c", code, **backend.environment, **variables)
    with_four, with_one = map(int, done.stdout.split())
    if backend.name == "c":
        assert with_four >= 3
        assert with_one == 0


TOO_MANY = """
import os, time
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 64
_threads._quota_now = lambda: 64.0

def tasks():
    return len(os.listdir('/proc/self/task'))

before = tasks()
x = np.zeros(2 * 16384)  # the smallest number of logits that threads share
pyce.set_num_threads(4)
pyce.cross_entropy(np.zeros((4000, 1000), np.float32), np.zeros(4000, int))
assert tasks() == before + 3
pyce.set_num_threads(2)
pyce.binary_cross_entropy(x, x)
patience = time.monotonic() + 100
while tasks() > before + 1 and time.monotonic() < patience:
    time.sleep(0.01)
assert tasks() == before + 1
"""


@needs_proc
def test_a_binary_loss_ends_the_threads_that_are_too_many(run_python, c_backends):
    run_python("-c", TOO_MANY, PYCE_BACKEND="c", OPENBLAS_NUM_THREADS="1")


CALLERS = """
import os, threading, time
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 64
_threads._quota_now = lambda: 64.0
rng = np.random.default_rng(0)
work = [(np.float32(rng.normal(size=s)), rng.integers(0, s[1], s[0]))
        for s in ((64, 10), (20_000, 3), (300, 1000), (1, 100_000))]
pyce.set_num_threads(1)
expected = [pyce.cross_entropy_with_grad(x, y) for x, y in work]
pyce.set_num_threads(3)
before = len(os.listdir('/proc/self/task'))
start = threading.Barrier(64)
wrong = []

def call(number):
    start.wait()
    for turn in range(8):
        x, y = work[(number + turn) % 4]
        loss, grad = pyce.cross_entropy_with_grad(x, y)
        expected_loss, expected_grad = expected[(number + turn) % 4]
        if loss != expected_loss or (grad != expected_grad).any():
            wrong.append((number, turn))

threads = [threading.Thread(target=call, args=(i,)) for i in range(64)]
for t in threads: t.start()
most = 0
while any(t.is_alive() for t in threads):
    most = max(most, len(os.listdir('/proc/self/task')) - before)
    time.sleep(0.0005)
assert not wrong, wrong
print(most)
"""


@one_isa
@needs_proc
def test_sixty_four_callers(backend, run_python):
    """There is no deadlock, results are correct, and two threads are added to the callers."""
    code = backend.share_small_work + CALLERS
    variables = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "3"}
    done = run_python("-c", code, **backend.environment, **variables)
    assert int(done.stdout) <= 64 + 2


REFUSED = """
import os, resource, sys
if len(sys.argv) == 1:  # again, with stacks for new threads that no machine has the room for
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (2**39, hard))
    os.execv(sys.executable, [sys.executable, '-c', os.environ['CODE'], 'again'])
import threading
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 4
_threads._quota_now = lambda: 4.0
# AddressSanitizer has reserved terabytes.
with open('/proc/self/statm') as file:
    reserved = int(file.read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (reserved + 2**38, hard))
try:
    threading.Thread(target=int).start()
except RuntimeError:
    pass
else:
    raise SystemExit('a thread was started nevertheless')
before = len(os.listdir('/proc/self/task'))
x = np.float32(np.random.default_rng(0).normal(size=(3000, 100)))
y = np.zeros(3000, int)

def answers():
    return [np.asarray(a).tobytes() for a in (
        *pyce.cross_entropy_with_grad(x, y), pyce.softmax(x.reshape(1, -1)))]

refused = [answers() for _ in range(3)]
assert len(os.listdir('/proc/self/task')) == before
pyce.set_num_threads(1)
assert refused == [answers()] * 3
print('fine')
"""


@needs_proc
def test_no_thread_is_to_be_had(backend, run_python):
    """Where the system refuses threads, the caller does all the work."""
    code = backend.share_small_work + REFUSED
    variables = {"OPENBLAS_NUM_THREADS": "1", "CODE": code}
    done = run_python("-c", code, **backend.environment, **variables)
    assert done.stdout.split() == ["fine"]


CALLERS_AND_FORKS = """
import os, signal, sys, threading
import numpy as np, numba, pyce
from pyce import _threads
_threads.processors = lambda: 4
_threads._quota_now = lambda: 4.0
pyce.set_backend('numba')
rng = np.random.default_rng(0)
work = [(np.float32(rng.normal(size=s)), rng.integers(0, s[1], s[0]))
        for s in ((20_000, 10), (400, 100), (300, 1000))]

def answers():
    return [pyce.cross_entropy_with_grad(x, y)[1].tobytes() for x, y in work]

def child():
    signal.alarm(300)
    os._exit(0 if answers() == expected else 3)

def fork():
    pid = os.fork()
    if pid == 0:
        child()
    if os.waitpid(pid, 0)[1]:
        failures.append('a child')

failures = []
pyce.set_num_threads(1)
expected = answers()  # compiled for the children, who work alone
pyce.set_num_threads(4)
assert answers() == expected
assert _launch._helpers.count == 3

def call(turns):
    for _ in range(turns):
        if answers() != expected:
            failures.append('a caller')

threads = [threading.Thread(target=call, args=(12,)) for _ in range(8)]
for t in threads: t.start()
for _ in range(5):
    fork()
t = threading.Thread(target=fork)
t.start()
for t in [t, *threads]: t.join()
assert not failures, failures
assert answers() == expected
print('fine')
"""


def test_many_callers_and_forks_with_numba(run_python):
    """Many callers at a time, and forks among them; the children share their work, too."""
    pytest.importorskip("numba")
    smaller = "from pyce._backends.numba import _launch; _launch.PARALLEL_WORK = 2**12\n"
    done = run_python("-W", "ignore", "-c", smaller + CALLERS_AND_FORKS, NUMBA_NUM_THREADS="4")
    assert done.stdout.split() == ["fine"], done.stderr


OLDER = """
import os, signal, sys
import numba, numpy as np

@numba.njit(parallel=True)
def start(out):
    for i in numba.prange(out.size):
        out[i] += i
start(np.zeros(8))
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
signal.alarm(500)  # it compiles
import pyce
from pyce._backends.numba import _launch
_launch.PARALLEL_WORK = 2**12
pyce.set_backend('numba')
x = np.float32(np.random.default_rng(0).normal(size=(20_000, 10)))
loss = pyce.cross_entropy(x, np.zeros(20_000, int))
os._exit(0 if np.isfinite(loss) else 3)
"""


def test_numba_was_started_before_the_fork_and_pyce_after(run_python):
    """pyce does not use Numba's own threads, which do not exist in the child."""
    pytest.importorskip("numba")
    run_python("-W", "ignore", "-c", OLDER, NUMBA_NUM_THREADS="4")


WHERE_WORKERS_RUN = """
import os
import numpy as np
import pyce
from pyce import _threads

_threads.processors = lambda: 3
_threads._quota_now = lambda: 3.0
pyce.set_num_threads(3)
x, y = np.zeros((4000, 1000), np.float32), np.zeros(4000, int)
before = set(os.listdir("/proc/self/task"))
pyce.cross_entropy(x, y)
workers = [int(task) for task in set(os.listdir("/proc/self/task")) - before]
assert len(workers) == 2
every = os.sched_getaffinity(0)
for allowed in [{cpu} for cpu in every]:
    os.sched_setaffinity(0, allowed)
    pyce.cross_entropy(x, y)
    assert [os.sched_getaffinity(worker) for worker in workers] == [allowed, allowed]
os.sched_setaffinity(0, every)
pyce.cross_entropy(x, y)
places = [os.sched_getaffinity(worker) for worker in workers]
assert all(len(place) >= len(every) - 1 for place in places), places
"""


@needs_proc
def test_workers_run_where_the_caller_may(run_python, c_backends):
    run_python("-c", WHERE_WORKERS_RUN, PYCE_BACKEND="c")

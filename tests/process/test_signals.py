"""Signals while calls run, and an interpreter that ends while they do."""

import pytest
from conftest import needs_proc, one_isa

import pyce

BEGIN = """
import os, signal, subprocess, sys, threading, time
import numpy as np, pyce
from pyce import _threads
_threads.processors = lambda: 3
_threads._quota_now = lambda: 3.0
rng = np.random.default_rng(0)
x = np.float32(rng.normal(size=(3000, 500)))
y = rng.integers(0, 500, 3000)
out = np.empty_like(x)

def call():
    return pyce.cross_entropy_with_grad(x, y, out=out)[0]

loss = call()
expected = out.copy()
"""

INTERRUPT = """
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
turns, interrupted, inside = 0, 0, 0
main = threading.main_thread().ident
armed = []  # no Event: an interrupt in the middle of setting one would leave its lock taken

def interrupt():
    for i in range(40):
        while not armed:
            time.sleep(0.0001)
        armed.clear()
        time.sleep(0.0007 * i)
        signal.pthread_kill(main, signal.SIGINT)
        # Python drops an exception that comes in the middle of a callback.
        patience = time.monotonic() + 30
        while interrupted == i:
            time.sleep(0.0001)
            if time.monotonic() > patience:
                signal.pthread_kill(main, signal.SIGINT)
                patience += 30

thread = threading.Thread(target=interrupt, daemon=True)
thread.start()
while interrupted < 40:
    running = False
    try:
        armed.append(1)
        while True:
            out.fill(7)
            running = True
            call()
            running = False
            turns += 1
    except KeyboardInterrupt:
        interrupted += 1
        inside += running
        # Nothing was written, or everything.
        if {whole}:
            assert (out == 7).all() or (out == expected).all() or not running, 'half an output'
thread.join()
assert call() == loss and (out == expected).all()
with_threads = {threads}
assert with_threads, 'threads are no longer used'
print('fine', inside)
"""

# Whether large work is still shared among threads.
THREADS = {
    "c": "not os.path.isdir('/proc/self/task') or len(os.listdir('/proc/self/task')) >= 3",
    "numba": "not _launch._callers and _launch._helpers.count == 2",
    "numpy": "True",
}


@one_isa
def test_interrupted_calls(backend, run_python):
    """Ctrl-C ends a call with KeyboardInterrupt; the process and its threads go on."""
    code = INTERRUPT.format(whole=backend.name == "c", threads=THREADS[backend.name])
    variables = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "3"}
    code = backend.share_small_work + BEGIN + code
    word, inside = run_python("-c", code, **backend.environment, **variables).stdout.split()
    assert word == "fine"
    assert int(inside) > 0, "no call was interrupted"


BACKGROUND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, '-m', 'pytest', *sys.argv[1:]])
"""


@pytest.mark.skipif("c" not in pyce.backends(), reason="the C extension is not built")
def test_interrupts_in_a_suite_that_was_started_in_the_background(run_python):
    """A shell lets its background jobs ignore SIGINT, and child processes inherit that."""
    which = ["-q", "-p", "no:cacheprovider", __file__, "-k", "test_interrupted_calls and c-"]
    done = run_python("-c", BACKGROUND, *which)
    assert "1 passed" in done.stdout


STORM = """
seen = {signal.SIGALRM: 0, signal.SIGCHLD: 0}

def handler(number, frame):
    seen[number] += 1

for number in seen:
    signal.signal(number, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
children = []
end = time.monotonic() + 1
turns = 0
while time.monotonic() < end or turns < 10 or seen[signal.SIGALRM] < 10 or not seen[signal.SIGCHLD]:
    if turns % 10 == 0 and len(children) < 20:
        children.append(subprocess.Popen(['true']))
    out.fill(7)
    assert call() == loss and (out == expected).all()
    turns += 1
signal.setitimer(signal.ITIMER_REAL, 0)
for child in children: child.wait(300)
print('fine')
"""


@one_isa
def test_a_storm_of_signals(backend, run_python):
    """Signals that interrupt system calls in any thread."""
    code = backend.share_small_work + BEGIN + STORM
    done = run_python("-c", code, NUMBA_NUM_THREADS="3", **backend.environment)
    assert done.stdout.split() == ["fine"]


BLOCKED = """
masks = {}
for task in os.listdir('/proc/self/task'):
    with open(f'/proc/self/task/{task}/status') as file:
        line = next(line for line in file if line.startswith('SigBlk'))
    masks[int(task)] = int(line.split()[1], 16)
del masks[threading.get_native_id()]
assert len(masks) == 2, masks
for mask in masks.values():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1):
        assert mask >> (number - 1) & 1, (number, hex(mask))
print('fine')
"""


@needs_proc
def test_signals_are_for_the_threads_of_the_application(c_backend, run_python):
    code = c_backend.share_small_work + BEGIN + BLOCKED
    done = run_python("-c", code, OPENBLAS_NUM_THREADS="1", **c_backend.environment)
    assert done.stdout.split() == ["fine"]


NESTED = """
def handler(number, frame):
    # A handler may call as well, in the middle of what it interrupted.
    global nested, inside
    if inside:
        return
    inside = True
    nested += pyce.cross_entropy(x, y) == loss
    inside = False

nested, inside = 0, False
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
others = [threading.Thread(target=lambda: [pyce.softmax(x) for _ in range(5)]) for _ in range(2)]
for t in others: t.start()
end = time.monotonic() + 0.5
while time.monotonic() < end or nested < 3:
    assert call() == loss and (out == expected).all()
signal.setitimer(signal.ITIMER_REAL, 0)
for t in others: t.join()
print('fine')
"""


@one_isa
def test_a_handler_that_calls(backend, run_python):
    code = backend.share_small_work + BEGIN + NESTED
    done = run_python("-c", code, **backend.environment, NUMBA_NUM_THREADS="3")
    assert done.stdout.split() == ["fine"]


EXIT = """
def busy():
    while True:
        call()

outs = threading.local()
def call():
    if not hasattr(outs, 'out'):
        outs.out = np.empty_like(x)
    pyce.cross_entropy_with_grad(x, y, out=outs.out)
    pyce.softmax(x.reshape(3, -1), out=outs.out.reshape(3, -1))

for _ in range(4):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.1)
print('leaving', flush=True)
"""

WAYS = {
    "end": ("", 0),
    "sys.exit": ("sys.exit(7)", 7),
    "os._exit": ("os._exit(7)", 7),
    "from a thread": ("threading.Thread(target=lambda: os._exit(7)).start(); time.sleep(300)", 7),
    "fork": (
        "pid = os.fork()\nif pid: sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "assert pyce.cross_entropy(x, y) == loss\nsys.exit(7)",
        7,
    ),
    "terminated": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(300)", -15),
}


@one_isa
@pytest.mark.parametrize("way", WAYS)
def test_exit_while_calls_run(backend, run_python, way):
    """The process ends with the right status and writes nothing to stderr."""
    if backend.name == "numpy":
        return  # it has no threads
    last, status = WAYS[way]
    code = backend.share_small_work + BEGIN + EXIT + last
    variables = {"NUMBA_NUM_THREADS": "3"}
    done = run_python("-W", "ignore", "-c", code, check=False, **backend.environment, **variables)
    assert (done.returncode, done.stdout.split(), done.stderr) == (status, ["leaving"], "")


WHILE_COMPILING = """
import signal, threading, time
import numpy as np, pyce
pyce.set_backend('numba')
signal.signal(signal.SIGINT, signal.default_int_handler)
x, y = np.zeros((300, 1000), np.float32), np.zeros(300, int)
out, interrupted = np.full_like(x, 7), False
main = threading.main_thread().ident
from pyce._backends.numba import _launch
uninterrupted, threads = _launch._uninterrupted, []
def noted(work):
    return uninterrupted(lambda: (threads.append(threading.get_ident()), work())[1])
_launch._uninterrupted = noted
threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT)).start()
try:
    pyce.cross_entropy_with_grad(x, y, out=out)
    time.sleep(2)
except KeyboardInterrupt:
    interrupted = True
assert interrupted and (out == 7).all()
loss, _ = pyce.cross_entropy_with_grad(x, y, out=out)
assert abs(loss - np.log(1000)) < 1e-5 and (out != 7).all()
assert threads and main not in threads
print('fine')
"""


@pytest.mark.skipif("numba" not in pyce.backends(), reason="Numba is not available")
def test_an_interrupt_while_numba_compiles(run_python, tmp_path):
    """LLVM calls back to Python, where an interrupt of the main thread would end the process."""
    # It calls back as often without optimisation, and is done earlier.
    variables = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "0"}
    done = run_python("-c", WHILE_COMPILING, **variables)
    assert done.stdout.split() == ["fine"]

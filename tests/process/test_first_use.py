"""First use of pyce by many threads at once, which switch every few bytecodes.

On free-threaded builds of Python they run at the same time, and the settings and caches that the
GIL protected are shared without it.
"""

from conftest import one_isa

CALLERS = """
import sys, threading, warnings
import numpy as np
import pyce

sys.setswitchinterval(1e-6)
CALLERS = 24
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 7)), rng.integers(0, 7, 40)
shared = pyce.use_backend("numpy")
start = threading.Barrier(CALLERS)
seen, wrong = [], []

def caller(number):
    try:
        start.wait(300)
        seen.append(pyce.get_backend())
        for turn in range(12):
            loss, grad = pyce.cross_entropy_with_grad(x, y)
            seen.append((float(loss), grad.tobytes()))
            with shared:
                assert pyce.get_backend() == "numpy"
                with pyce.use_backend("auto"):
                    assert pyce.get_backend() == seen[0]
                assert pyce.get_backend() == "numpy"
            assert pyce.get_backend() == seen[0]
            pyce.set_num_threads(1 + (number + turn) % 3)
            assert 1 <= pyce.get_num_threads() <= 3
            report = pyce.info()
            assert report["backend"] == seen[0] and report["reason"]
            assert pyce.backends() == [n for n, why in report["backends"].items() if why is None]
    except BaseException as error:
        wrong.append(repr(error))
        raise

threads = [threading.Thread(daemon=True, target=caller, args=(i,)) for i in range(CALLERS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(500)
    assert not thread.is_alive()
assert not wrong, wrong
assert len(set(seen)) == 2, "a backend, and one result"
print(seen[0], getattr(sys, "_is_gil_enabled", lambda: True)())
"""


@one_isa
def test_the_first_use_by_many_threads(backend, run_python):
    done = run_python("-c", CALLERS, **backend.environment)
    assert done.stdout.split()[0] == backend.name


def test_the_choice_of_the_backend_by_many_threads(run_python):
    """Without PYCE_BACKEND, the threads decide together."""
    run_python("-W", "ignore", "-c", CALLERS, PYCE_BACKEND="")

"""threadpoolctl sees pyce and limits it, whichever is imported first."""

import threadpoolctl
from conftest import needs_proc, one_isa

import pyce
from pyce import _threads

ORDERS = {
    "pyce first": "import pyce, threadpoolctl",
    "threadpoolctl first": "import threadpoolctl, pyce",
    "pyce only looked for it": (
        "import pyce, importlib.util, sys\n"
        "assert importlib.util.find_spec('threadpoolctl')\n"
        "assert 'threadpoolctl' not in sys.modules\n"
        "import threadpoolctl"
    ),
    "pyce has been called": (
        "import pyce\npyce.softmax([[0.0, 1.0]])\nfrom threadpoolctl import threadpool_limits\n"
        "import threadpoolctl"
    ),
}

# Test isolation and notebooks import modules again.
CLEAR = "for name in [n for n in sys.modules if n.split('.')[0] == 'pyce']: del sys.modules[name]"
AGAIN = {
    "reload": "import importlib, pyce\nimportlib.reload(pyce)\nimport threadpoolctl",
    "reload, both known": "import importlib, pyce, threadpoolctl\nimportlib.reload(pyce)",
    "cleared": f"import sys, pyce\n{CLEAR}\nimport pyce, threadpoolctl",
    "cleared, both known": f"import sys, pyce, threadpoolctl\n{CLEAR}\nimport pyce",
    "three times": f"import sys, pyce\n{CLEAR}\nimport pyce\n{CLEAR}\nimport pyce, threadpoolctl",
}

LIMIT = """
import os, sys, time
import numpy as np
from pyce import _threads
_threads.processors = lambda: 8
_threads._quota_now = lambda: 8.0

def seen():
    return [i for i in threadpoolctl.threadpool_info() if i['user_api'] == 'pyce']

x, y = np.zeros((20_000, 100), np.float32), np.zeros(20_000, int)
before = {str(t) for t in os.listdir('/proc/self/task')}
with threadpoolctl.threadpool_limits(limits=1):
    for _ in range(3):
        pyce.cross_entropy(x, y)
    assert pyce.get_num_threads() == 1
    # Numba compiles in a thread that ends; threads that compute would remain.
    end = time.monotonic() + 100
    while set(os.listdir('/proc/self/task')) - before:
        assert time.monotonic() < end, 'threads were made'
        time.sleep(0.01)
assert pyce.get_num_threads() == 8
assert len(seen()) == 1 and seen()[0]['num_threads'] == 8
assert seen()[0]['version'] == pyce.__version__
assert not [f for f in sys.meta_path if type(f).__module__.startswith('pyce')]
assert not type(threadpoolctl.__spec__.loader).__module__.startswith('pyce')
print('fine')
"""


@one_isa
@needs_proc
def test_in_any_order(backend, run_python):
    if "c" not in pyce.backends():
        return  # threadpoolctl inspects loaded libraries: without the extension there is none
    for order in ORDERS.values():
        code = backend.share_small_work.replace("from pyce", order + "\nfrom pyce", 1) or order
        variables = {"OPENBLAS_NUM_THREADS": "1", **backend.environment}
        done = run_python("-c", code + "\n" + LIMIT, **variables)
        assert done.stdout.split() == ["fine"], order


@needs_proc
def test_a_second_import(run_python):
    """The finder of the first import is replaced; limits act on the module that is imported now."""
    if "c" not in pyce.backends():
        return
    for again in AGAIN.values():
        done = run_python("-c", f"{again}\n{LIMIT}", OPENBLAS_NUM_THREADS="1")
        assert done.stdout.split() == ["fine"], again


def test_a_finder_that_searches_all_finders(run_python):
    """Another finder that does as pyce's does: they do not ask each other without end."""
    code = """
import sys, pyce

class Other:
    def find_spec(self, name, path=None, target=None):
        if name == "threadpoolctl":
            for finder in sys.meta_path:
                if finder is not self and (spec := finder.find_spec(name, path, target)):
                    return spec

sys.meta_path.insert(1, Other())
import threadpoolctl
print(sum(i['user_api'] == 'pyce' for i in threadpoolctl.threadpool_info()))
"""
    assert run_python("-c", code).stdout.split() == ["1" if "c" in pyce.backends() else "0"]


def test_it_is_not_imported(run_python):
    code = "import sys, pyce\npyce.softmax([[0.0, 1.0]])\nprint('threadpoolctl' in sys.modules)"
    assert run_python("-c", code).stdout.split() == ["False"]


def test_without_it(run_python):
    """It cannot be imported at first, and later it can."""
    code = """
import sys, pyce
path, sys.path[:] = sys.path[:], []
try:
    import threadpoolctl
except ImportError:
    sys.path[:] = path
import threadpoolctl
print(sum(i['user_api'] == 'pyce' for i in threadpoolctl.threadpool_info()))
"""
    expected = "1" if "c" in pyce.backends() else "0"
    assert run_python("-c", code).stdout.split() == [expected]


def test_an_old_version(run_python, tmp_path):
    """A version without registration of controllers does no harm."""
    (tmp_path / "threadpoolctl.py").write_text("LibController = object\n")
    for first in ("import pyce, threadpoolctl", "import threadpoolctl, pyce"):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{first}\n"
        code += "print(threadpoolctl.__file__, pyce.get_num_threads() >= 1)"
        assert run_python("-c", code).stdout.split() == [str(tmp_path / "threadpoolctl.py"), "True"]


def eight(monkeypatch):
    monkeypatch.setattr(_threads, "processors", lambda: 8)
    monkeypatch.setattr(_threads, "_quota_now", lambda: 8.0)


def test_limits_nest(backend, monkeypatch):
    if "c" not in pyce.backends():
        return
    eight(monkeypatch)
    with threadpoolctl.threadpool_limits(limits={"pyce": 4}):
        assert pyce.get_num_threads() == 4
        with threadpoolctl.threadpool_limits(1):
            assert pyce.get_num_threads() == 1
            with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
                assert pyce.get_num_threads() == 1
        assert pyce.get_num_threads() == 4
        with threadpoolctl.threadpool_limits(100):
            assert pyce.get_num_threads() == 8
        assert pyce.get_num_threads() == 4
    assert pyce.get_num_threads() == 8
    controller = threadpoolctl.ThreadpoolController()
    for _ in range(2):
        with controller.limit(limits=2):
            assert pyce.get_num_threads() == 2
        assert pyce.get_num_threads() == 8


def test_after_a_limit_everything_is_as_before(backend, monkeypatch):
    """The requested number, or that of the processors, which may have changed."""
    if "c" not in pyce.backends():
        return
    eight(monkeypatch)
    monkeypatch.setattr(_threads, "_asked", None)
    with threadpoolctl.threadpool_limits(2):
        pass
    monkeypatch.setattr(_threads, "_quota_now", lambda: 64.0)
    for processors in (3, 16, 8):
        monkeypatch.setattr(_threads, "processors", lambda n=processors: n)
        assert pyce.get_num_threads() == processors
    with threadpoolctl.threadpool_limits(2):
        pyce.set_num_threads(5)
        assert pyce.get_num_threads() == 2
    assert pyce.get_num_threads() == 5

"""How pytest-xdist shares the tests among processes, and when it gives up.

A test that ends its process fails, and the others run. A test that hangs ends its process after
`faulthandler_timeout` seconds. If no test has ended for half as long again, all end.
"""

import signal
from collections import OrderedDict
from contextlib import suppress
from pathlib import PurePath

import pytest
from _pytest.runner import runtestprotocol
from xdist.scheduler import LoadFileScheduling

# CPU seconds of the files that take longest, on two cores of a Zen 4 server. They are begun first,
# the longest of all before the others, so that no process is left with one of them at the end.
SECONDS = {
    # These two compile most of what Numba keeps on disk; at the same time, both would compile it.
    **{"test_accuracy.py": 105, "test_grid.py": 41},
    **{"test_torch_autograd.py": 44, "test_torch_operators.py": 42, "test_bench.py": 36},
    **{"test_signals.py": 36, "test_numba_compiled.py": 35, "test_dask_cluster.py": 35},
    **{"test_memory.py": 32, "test_torch_linear.py": 31, "test_nonfinite.py": 31},
    **{"test_zero_coefficients.py": 31, "test_threads.py": 30, "test_jax.py": 29},
    **{"test_dask.py": 25, "test_peers.py": 25, "test_golden.py": 24, "test_large.py": 24},
    **{"test_fpenv.py": 23, "test_vmath.py": 22, "test_layouts.py": 20, "test_forks.py": 20},
    **{"test_torch_selective.py": 19, "test_hot_loops.py": 19, "test_shards.py": 18},
    **{"test_mpi.py": 18, "test_torch.py": 17, "test_determinism.py": 17, "test_sklearn.py": 16},
    **{"test_check.py": 16, "test_demo.py": 15, "test_ddp_example.py": 13},
    **{"test_numba_cache.py": 12, "test_language_model.py": 12, "test_report.py": 12},
}


def size(file, tests):
    """The time that a file takes, where that is known, and its number of tests."""
    return SECONDS.get(PurePath(file).name, 0), len(tests)


class Files(LoadFileScheduling):
    """`--dist loadfile`, which up to pytest-xdist 3.8 mishandles a process that ended: it repeats
    the test, which ends the next process; and it hands out files that were finished already, or a
    file with one test that is left, and then waits for ever for a process that has nothing to do.
    """

    ordered = False

    def remove_node(self, node):
        work = {
            file: tests
            for file, tests in self.assigned_work.pop(node).items()
            if not all(tests.values())
        }
        if not work:
            return None
        tests = next(iter(work.values()))
        crashed = next(test for test, ended in tests.items() if not ended)
        tests[crashed] = True  # xdist reports it as failed
        self.workqueue.update((f, tests) for f, tests in work.items() if not all(tests.values()))
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _assign_work_unit(self, node):
        if not self.ordered:
            self.ordered = True
            files = sorted(self.workqueue.items(), key=lambda item: size(*item), reverse=True)
            self.workqueue = OrderedDict(files)
        with suppress(OSError):  # the process has ended, and `remove_node` will hand it out again
            super()._assign_work_unit(node)

    def _reschedule(self, node):
        if node not in self.registered_collections:  # it has begun a moment ago
            return
        # A process runs a test once it knows the next one, or that there is none.
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)

    def running(self):
        """The tests that were begun."""
        for files in self.assigned_work.values():
            unfinished = (test for tests in files.values() for test in tests if not tests[test])
            yield from list(unfinished)[:1]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Run a test in a process of pytest-xdist, without messages of what needs none: its beginning,
    and fixtures that passed. Those of 3000 empty tests took 3 s of 6 s of processor time.
    """
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    scheduler = Files(config, log)
    patience = int(1.5 * float(config.getini("faulthandler_timeout")))

    class Watch:
        @pytest.hookimpl(optionalhook=True)
        def pytest_xdist_node_collection_finished(self):
            signal.alarm(patience)

        def pytest_runtest_logfinish(self):
            signal.alarm(patience)

        def pytest_sessionfinish(self):
            signal.alarm(0)

    def give_up(*_):
        names = ", ".join(scheduler.running()) or "none"
        pytest.exit(f"no test has ended for {patience} s; running: {names}")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(patience)
    config.pluginmanager.register(Watch())
    return scheduler

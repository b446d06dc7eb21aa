"""How pytest-xdist shares the tests among processes, and when it gives up.

A test that ends its process fails, and the others run. A test that hangs ends its process after
`faulthandler_timeout` seconds. If no test has ended for half as long again, all end.
"""

import signal
from collections import OrderedDict
from contextlib import suppress
from pathlib import PurePath

import pytest
from xdist.scheduler import LoadFileScheduling

# Files whose few tests take long. They come after the two largest files, which compile most of what
# Numba keeps on disk, so that no process is left with one of them at the end.
LONG = {
    *("test_bench.py", "test_dask_cluster.py", "test_ddp_example.py", "test_forks.py"),
    *("test_hot_loops.py", "test_large.py", "test_memory.py", "test_mpi.py", "test_mutation.py"),
    *("test_numba_compiled.py", "test_signals.py", "test_threads.py", "test_vmath.py"),
}


def size(file, tests):
    """The number of tests that take as long as those of a file, where that is known."""
    return max(len(tests), 3000 if PurePath(file).name in LONG else 0)


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
            files = sorted(self.workqueue.items(), key=lambda item: -size(*item))
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

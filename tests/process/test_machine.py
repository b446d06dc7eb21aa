"""The bandwidth of the machine that times were measured on."""

import pytest

from pyce._bench import floors


def test_bandwidth_is_that_of_work_that_was_done(monkeypatch):
    """A copy that is refused takes no time at all."""
    if floors.lib is None:
        pytest.skip("no C extension")
    statuses = []

    class Watched:
        def __init__(self, lib):
            self.lib = lib

        def __getattr__(self, name):
            def call(*arguments):
                statuses.append(getattr(self.lib, name)(*arguments))
                return statuses[-1]

            return call

    monkeypatch.setattr(floors, "_LARGE", 2**24)
    monkeypatch.setattr(floors, "lib", Watched(floors.lib))
    found = floors.bandwidth()
    assert sorted(found) == ["copy", "read"] and min(found.values()) > 0
    assert len(statuses) >= 3 and not any(statuses)

"""The progress that a session of measurements shows, and how long it is expected to take."""

import re
import types

import pyce
from pyce._bench import candidates, progress
from pyce._bench.progress import Progress
from pyce._bench.suite.plan import Plan
from pyce._bench.workloads import matching


def test_progress_shows_the_time_left(capsys):
    plan = Plan(workloads=matching(["64x10"]), candidates=[])
    with Progress(plan, digits=True) as display:
        display.doing("64x10", 0.5, "something")
        display.done("64x10")
        display.doing("digits", 0, "training")
        display.done("digits")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[1/2] 64x10", "[2/2] digits"]
    assert lines[-1].endswith(" 0:00 left")
    assert re.search(r" \d+:\d\d left$", lines[0])


def test_the_time_left_follows_from_the_time_so_far(monkeypatch, capsys):
    """From the estimate alone at first; later also from how far off it was."""
    now = [50.0]
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "expected_seconds", lambda *_: {"a": 100.0, "b": 60.0, "c": 40.0})
    with Progress(None, digits=False) as display:
        assert display.remaining(0.0) == "3:20 left"
        now[0] += 150
        display.done("a")
        now[0] += 90
        display.done("b")
        assert display.remaining(200.0) == display.remaining(300.0) == "0:00 left"
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[1/3] a, 2:30 left", "[2/3] b, 1:00 left"]


def test_more_work_is_expected_to_take_longer():
    def of(names, operations=("fused", "head-fused"), backends=("c",)):
        who = candidates.backends(backends, [pyce.get_num_threads()])
        found = progress.expected_seconds(Plan(matching(names), operations, who), False)
        assert all(seconds > 0 for seconds in found.values())
        return sum(found.values())

    large = ["2048x32000"]
    assert of(["64x10"]) < of(["1024x1000"]) < of(large)
    assert of(large) < of([*large, "64x10"]) < of([*large, "1024x1000"])
    assert of(large) < of(["2048x32000-float64"])
    assert of(large) < of(large, ("fused", "forward"))
    assert of(large) < of(large, backends=("c", "numpy"))
    small_head, head = ["head-256x256x8192"], ["head-1024x768x50257"]
    assert of(["1024x50257"]) < of(head)
    assert of(small_head) < of(head) / 5
    assert of(head) < of(head, backends=("c", "numpy"))

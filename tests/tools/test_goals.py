"""The project's goals: which of them a run meets."""

import json
import math

from bench_scripts import FOLDER, goals
from run_files import written_run

from pyce._bench import workloads
from pyce._bench.report import goal_files


def test_goals_that_were_measured(tmp_path):
    run = written_run(
        tmp_path,
        "a.json",
        {
            ("64x10", "fused", "floor"): [1.0],
            ("64x10", "fused", "pyce c"): [2.0],
            ("64x10", "fused", "pyce numpy"): [5.0],
            ("64x10", "fused", "torch"): [2.5],
        },
    )
    lines = {line.about: line for line in goals.lines(run)}
    assert set(lines) == {
        "fused, times faster than the best peer",
        "the backend chosen over the fastest",
    }
    peers = lines["fused, times faster than the best peer"]
    assert math.isclose(peers.figure, 1.25)
    assert (peers.limit, peers.met) == ("≥ 1.5", False)
    assert lines["the backend chosen over the fastest"].met


def test_every_goal_is_about_workloads_that_exist():
    names = {workload.name for workload in workloads.WORKLOADS}
    assert all(set(goal.workloads) <= names for goal in goals.GOALS)


def test_goals_as_a_table_and_as_a_file(tmp_path, run_python):
    times = {"floor": 1.0, "pyce c": 1.4, "pyce numba": 2.1}
    made = {("2048x32000", "fused", name): [over] for name, over in times.items()}
    run = written_run(tmp_path, "a.json", made)
    script = str(FOLDER / "goals.py")
    shown = run_python(script, str(run.path)).stdout
    assert "fused, time over the copy floor" in shown and "missed" in shown
    printed = json.loads(run_python(script, "--json", str(run.path)).stdout)
    assert goal_files.is_goals(printed)
    assert goal_files.lines_of(printed) == goals.lines(run)

"""The project's goals: which of them a run meets."""

import json
import math

from bench_scripts import FOLDER, goals
from run_files import written_run

from pyce._bench import workloads
from pyce._bench.report import goal_files


def test_goals_of_a_run(tmp_path):
    run = written_run(
        tmp_path,
        "a.json",
        {
            ("64x10", "fused", "floor"): [1.0],
            ("64x10", "fused", "pyce c"): [2.0],
            ("64x10", "fused", "pyce numpy"): [5.0],
            ("64x10", "fused", "torch"): [2.5],
        },
        isa="avx512",
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


def test_the_baselines_have_the_workloads_of_the_registry():
    """Else a run of today could not be compared with them."""
    measured = {
        one["extra_info"]["workload"]
        for path in (FOLDER / "baselines").glob("*.json")
        for one in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    }
    assert measured - {"digits"} <= {workload.name for workload in workloads.WORKLOADS}


def limits(run):
    return {(line.about, line.workload): line.limit for line in goals.lines(run)}


TIMES = {"floor": 1.0, "pyce c": 2.0, "pyce numba": 3.0, "torch": 9.0, "JAX + optax": 5.0}


def test_goals_depend_on_the_instruction_set(tmp_path):
    times = {("1024x1000", "fused", name): [over] for name, over in TIMES.items()}
    times["1024x1000", "fused", "pyce c, 1 thread"] = [4.0]
    found = {
        isa: limits(written_run(tmp_path, f"{isa}.json", times, isa=isa))
        for isa in ("avx512", "avx2", "scalar", "another", None)
    }
    everywhere = {
        ("the backend chosen over the fastest", "1024x1000"): "≤ 1.1",
        ("two threads over one", "1024x1000"): "≤ 1.05",
    }
    assert found["another"] == found[None] == everywhere
    assert found["avx512"] == {
        **everywhere,
        (goals.PEERS, "1024x1000"): "≥ 3",
        (goals.FLOOR, "1024x1000"): "≤ 2",
        ("Numba over C", "1024x1000"): "≤ 2",
    }
    assert found["avx2"] == {
        **everywhere,
        (goals.PEERS, "1024x1000"): "≥ 3",
        ("Numba over C", "1024x1000"): "≤ 1.6",
    }
    assert found["scalar"] == {
        **everywhere,
        ("nanoseconds an element on one thread", "1024x1000"): "≤ 1.5",
    }


def test_nanoseconds_of_an_element(tmp_path):
    times = {("1024x1000", "fused", "pyce c, 1 thread"): [1.4, 1.5, 1.6]}
    (line,) = goals.lines(written_run(tmp_path, "a.json", times, isa="scalar"))
    assert math.isclose(line.figure, 1.5)  # microseconds for a thousand elements
    assert line.met


def test_goals_of_one_thread(tmp_path):
    """A run on one processor is compared with JAX on one thread; no other goal is about it."""
    times = {("1024x1000", "fused", name): [over] for name, over in TIMES.items()}
    run = written_run(tmp_path, "a.json", times, isa="avx2", threads=1)
    (line,) = goals.lines(run)
    assert (line.limit, line.figure, line.met) == ("≥ 1.9", 2.5, True)
    assert "one thread" in line.about and "JAX" in line.about
    assert goals.lines(written_run(tmp_path, "b.json", times, isa="avx512", threads=1)) == []


def test_the_backend_chosen_is_that_of_the_run(tmp_path):
    times = {("64x10", "fused", name): [over] for name, over in TIMES.items()}
    for backend, figure in (("c", 1.0), ("numba", 1.5)):
        run = written_run(tmp_path, f"{backend}.json", times, isa="another", backend=backend)
        (line,) = goals.lines(run)
        assert (line.about, line.figure) == ("the backend chosen over the fastest", figure)


def test_goals_of_a_head(tmp_path):
    name = "head-1024x768x50257"
    times = {
        (name, "head-forward", "pyce c"): [1.1],
        (name, "head-fused", "pyce c"): [3.2],
        (name, "head-fused", "pyce torch"): [3.5],
        (name, "head-fused", "torch"): [4.2],
        (name, "head-fused", "torch chunked"): [21.0],
        (name, "head-filtered", "pyce c"): [1.8],
    }
    run = written_run(tmp_path, "a.json", times, isa="another")
    run.items[name, "head-fused", "pyce c"].about["memory"] = 70 * 2**20
    found = {line.about: (round(line.figure, 6), line.met) for line in goals.lines(run)}
    assert found == {
        "head, loss alone, in products": (1.1, True),
        "head, loss and gradients, in products": (3.2, True),
        "head, columns left out, in products": (1.8, False),
        "head, MiB added to arrays and gradients": (70, False),
        "head, times faster than PyTorch's best": (1.3125, False),
        "head, pyce.torch, times faster than PyTorch's best": (1.2, False),
    }


def test_every_goal_is_about_workloads_that_exist():
    names = {workload.name for workload in workloads.WORKLOADS}
    sets = (goals.EVERYWHERE, *goals.GOALS.values(), *goals.ONE_THREAD.values())
    assert all(set(goal.workloads) <= names for each in sets for goal in each)


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

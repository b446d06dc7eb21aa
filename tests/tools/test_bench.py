"""`python -m pyce bench` and `compare`: what is measured, what is kept, what counts as a change."""

import json
import math
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyce
from pyce import __main__ as pyce_main
from pyce.__main__ import parser
from pyce._bench import baseline, bench, changes, compare, goals, machine, results, workloads
from pyce._bench.candidates import Candidate, backends
from pyce._bench.measure import Effort, Figures, Wrong, in_turn, measure
from pyce._bench.terminal import FAILED, FINE, INTERRUPTED, UNUSABLE, Unusable
from pyce._bench.workloads import WORKLOADS, Data, matching

ROOT = Path(pyce.__file__).parents[1]
SMALL = next(w for w in WORKLOADS if w.name == "64x10")
SHORT = Effort(blocks=2, rounds=2, seconds=0.01, most=0.5)
# One backend that is there whatever is installed.
FEW = ("-w", "64x10", "-b", "numpy", "--operation", "fused")


# ---------------------------------------------------------------------------------------------
# The registry of workloads


def test_names_are_unique():
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    assert sum(workload.quick for workload in WORKLOADS) > 5


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["64x10"], {"64x10"}),
        (["llama"], {"512x128256"}),
        (["*-axis1"], {"8x21x512x512-axis1"}),
        (["gpt-2", "Gemma*"], {"1024x50257", "256x262144"}),
        (["1024x1000-b"], {"1024x1000-bfloat16"}),
    ],
)
def test_workloads_are_chosen_by_name(patterns, expected):
    assert {workload.name for workload in matching(patterns)} == expected


def test_a_name_that_nothing_has():
    with pytest.raises(ValueError, match=r"'nothing'.*64x10"):
        matching(["64x10", "nothing"])


@pytest.mark.parametrize("name", ["64x10", "1024x1000-probabilities", "1024x1000-weight"])
def test_arrays_made_anew_hold_the_same(name):
    data = Data(matching([name])[0])
    before = data.logits.copy(), np.copy(data.target)
    data.logits.fill(7)
    data.renew()
    np.testing.assert_array_equal(data.logits, before[0])
    np.testing.assert_array_equal(data.target, before[1])
    assert data.logits.ctypes.data % 64 == data.grad.ctypes.data % 64 == 0


def test_bytes_of_an_operation():
    data = Data(SMALL)
    copied = data.logits.nbytes + data.grad.nbytes
    assert SMALL.bytes_moved("fused", "copy", True) == copied
    assert SMALL.bytes_moved("fused", "copy", False) == copied + data.target.nbytes
    assert SMALL.bytes_moved("forward", "read", True) == data.logits.nbytes
    soft = Data(matching(["1024x1000-probabilities"])[0])
    assert soft.workload.target_bytes == soft.target.nbytes


def test_a_wrong_result_is_noticed():
    data = Data(SMALL)
    loss, grad = pyce.cross_entropy_with_grad(data.logits, data.target)
    data.check_loss(loss)
    data.check_grad(grad)
    with pytest.raises(AssertionError):
        data.check_loss(np.float32(loss) * np.float32(1 + 1e-5))
    grad[5, 3] *= np.float32(1 + 1e-5)
    with pytest.raises(AssertionError, match="gradients differ"):
        data.check_grad(grad)


# ---------------------------------------------------------------------------------------------
# Measuring


def candidate(name, call, kind="peer", **options):
    return Candidate(name, kind, lambda data, operation: call, pyce.get_num_threads(), **options)


def test_candidates_take_turns():
    order = []
    names = ["a", "b", "c"]
    calls = {name: lambda name=name: order.append(name) for name in names}
    chosen = {name: candidate(name, calls[name]) for name in names}
    samples = in_turn(calls, chosen, SHORT)
    assert {name: len(found) for name, (found, _) in samples.items()} == dict.fromkeys(names, 2)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    # Once each to see how long it takes, then two rounds.
    assert turns == names * 3


def test_every_block_has_its_median_over_the_floor():
    own = pyce.get_num_threads()
    found = measure(Data(SMALL), ["forward", "fused"], backends(["numpy"], [own]), SHORT)
    assert set(found) == {(o, n) for o in ("forward", "fused") for n in ("floor", "pyce numpy")}
    for figures in found.values():
        assert isinstance(figures, Figures), figures
        assert len(figures.blocks) == len(figures.over_floor) == SHORT.blocks
        assert all(len(block) == SHORT.rounds for block in figures.blocks)
        assert len(figures.samples) == SHORT.blocks * SHORT.rounds
    assert min(found["fused", "pyce numpy"].over_floor) > 1
    assert found["fused", "floor"].over_floor == [1, 1]


def test_who_is_wrong_is_not_measured():
    data = Data(SMALL)
    grad = np.zeros_like(data.logits)

    def fails():
        raise RuntimeError("no such thing")

    who = [
        candidate("wrong", lambda: (np.float32(1), grad)),
        candidate("fails", fails),
        candidate("right", lambda: pyce.cross_entropy_with_grad(data.logits, data.target)),
    ]
    found = measure(data, ["fused"], who, SHORT)
    assert isinstance(found["fused", "wrong"], Wrong)
    assert "no such thing" in str(found["fused", "fails"])
    assert isinstance(found["fused", "right"], Figures)


def test_a_gradient_that_another_left_does_not_pass():
    data = Data(SMALL)
    lazy = candidate("lazy", lambda: (pyce.cross_entropy(data.logits, data.target), data.grad))
    pyce.cross_entropy_with_grad(data.logits, data.target, out=data.grad)
    found = measure(data, ["fused"], [lazy], SHORT)
    assert isinstance(found["fused", "lazy"], Wrong)


def test_slow_candidates_are_called_less():
    calls = []

    def slow():
        calls.append(1)
        np.linalg.norm(np.ones(2**14))
        import time

        time.sleep(0.03)

    effort = Effort(blocks=10, rounds=10, seconds=0.01, most=0.05)
    who = [candidate("slow", slow, result=False)]
    found = measure(Data(SMALL), ["fused"], who, effort)
    assert 1 <= len(found["fused", "slow"].blocks) <= 3
    assert len(calls) < 20


def test_threads_are_as_before():
    before = pyce.get_num_threads()
    with backends(["numpy"], [1])[1].selected():
        assert pyce.get_num_threads() == 1
        assert pyce.get_backend() == "numpy"
    assert pyce.get_num_threads() == before


# ---------------------------------------------------------------------------------------------
# The command


def run_bench(run_python, *arguments, **options):
    return run_python("-m", "pyce", "bench", *arguments, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of the command, and the program that wrote it."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    command = [sys.executable, "-m", "pyce", "bench", *FEW, "--output", str(path)]
    command += ["--baseline", str(path.parent / "baselines")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert done.returncode == FINE, done.stdout + done.stderr
    return path, done


def test_the_file_is_that_of_pytest_benchmark(written):
    path, _ = written
    content = json.loads(path.read_text())
    assert {"machine_info", "benchmarks", "datetime", "version"} <= set(content)
    names = {one["name"] for one in content["benchmarks"]}
    assert "bench_loss[64x10-fused-pyce numpy]" in names
    for one in content["benchmarks"]:
        about, stats = one["extra_info"], one["stats"]
        assert len(about["blocks"]) == Effort().blocks
        assert stats["rounds"] == len(stats["data"])
        assert stats["min"] <= stats["median"] <= stats["max"]
        assert min(about["blocks"]) <= stats["median"] <= max(about["blocks"])
        assert one["group"] == "64x10 fused"


def test_the_tools_of_pytest_benchmark_read_it(written, run_python):
    path, _ = written
    (kept,) = (path.parent / "baselines").glob("*.json")
    files = (str(path), str(kept))
    done = run_python("-m", "pytest_benchmark", "compare", *files, "--group-by=group")
    assert "benchmark '64x10 fused': 6 tests" in done.stdout
    assert "pyce numpy" in done.stdout


def test_what_is_measured_again_is_the_same(written):
    path, _ = written
    threads = str(pyce.get_num_threads())
    run = results.load(path)
    assert compare.again(run)[:2] == ["--backend", "numpy"]
    assert compare.again(run)[2:] == ["--threads", threads]
    run.items["64x10", "fused", "pyce numpy"].about["kind"] = "variant"
    run.items["64x10", "fused", "floor"].about.update(kind="backend", backend="c", threads=7)
    assert compare.again(run) == ["--backend", "c", "--threads", "7", "--peers"]


def test_what_is_read_is_what_was_written(written):
    path, done = written
    run = results.load(path)
    assert run.workloads == ["64x10"]
    item = run.items["64x10", "fused", "pyce numpy"]
    assert item.about["threads"] == pyce.get_num_threads()
    assert item.rate == item.about["bytes"] / item.seconds
    assert item.over_floor > 1
    assert "64x10" in done.stdout
    assert re.search(r"\x1b", done.stdout) is None


def test_the_baseline_names_no_host(written):
    path, _ = written
    (kept,) = (path.parent / "baselines").glob("*.json")
    before, after = results.load(path), results.load(kept)
    assert kept.name.startswith(before.machine["kind"])
    assert set(after.items) == set(before.items)
    for key, item in before.items.items():
        assert after.items[key].seconds == pytest.approx(item.seconds, rel=1e-4)
        assert after.items[key].over_floor == pytest.approx(item.over_floor, rel=1e-4)
        assert after.items[key].about["blocks"] == pytest.approx(item.about["blocks"], rel=1e-4)
    content = kept.read_text()
    assert '"node"' not in content
    assert '"data"' not in content
    assert f'"{socket.gethostname()}"' not in content
    assert len(content) < len(path.read_text()) / 2
    # What pytest-benchmark's tables and histograms read.
    figures = {"min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ld15iqr", "hd15iqr"}
    figures |= {"outliers", "ops", "rounds", "iterations"}
    assert all(figures <= set(one["stats"]) for one in after.content["benchmarks"])
    assert "UNSERIALIZABLE" not in path.read_text()


def test_a_baseline_is_drawn(written, run_python, tmp_path):
    pytest.importorskip("matplotlib")
    path, _ = written
    (kept,) = (path.parent / "baselines").glob("*.json")
    run_python("-m", "pyce", "report", str(path), str(kept), "--output", str(tmp_path))
    assert "64x10" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_json_is_all_that_is_printed(run_python, tmp_path):
    path = tmp_path / "one.json"
    done = run_bench(run_python, *FEW, "--json", "-o", str(path))
    assert json.loads(done.stdout) == json.loads(path.read_text())
    assert "64x10" in done.stderr  # progress goes there


def test_every_workload_is_listed(run_python):
    done = run_bench(run_python, "--list", "--json")
    assert [one["name"] for one in json.loads(done.stdout)] == [w.name for w in WORKLOADS]
    shown = run_bench(run_python, "--list").stdout
    assert all(w.stands_for in shown for w in WORKLOADS)


def test_other_plugins_and_options_have_no_say(run_python, tmp_path):
    path = tmp_path / "one.json"
    run_bench(run_python, *FEW, "-o", str(path), PYTEST_ADDOPTS="--benchmark-disable -k nothing")
    assert results.load(path).candidates("backend") == ["pyce numpy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-w", "nothing"), "no workload matches 'nothing'"),
        (("-b", "fortran"), "fortran: no such backend"),
        (("--threads", "99999"), "this process may use"),
        (("-w", "64x10", "--dtype", "float64"), "no workload is left"),
    ],
)
def test_what_cant_be_measured(run_python, tmp_path, arguments, words):
    path = tmp_path / "kept.json"
    path.write_text("as it was")
    done = run_bench(run_python, *arguments, "-o", str(path), check=False)
    assert done.returncode == UNUSABLE
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == "as it was"


def test_the_output_is_never_removed(run_python, tmp_path):
    """What is there may be a device: it is written to, as any program's output is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # open at both ends, so that nobody waits
    try:
        run_bench(run_python, "-w", "nothing", "-o", str(pipe), check=False)
        done = run_bench(run_python, *FEW, "-o", str(pipe))
        assert "written" in done.stdout
        assert pipe.is_fifo()
        assert os.read(reader, 1) == b"{"
    finally:
        os.close(reader)


def test_an_output_that_cant_be_written(run_python, tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "folder"
    for option, place in (("-o", tmp_path), ("-o", inside), ("--baseline", inside)):
        where = ("-o", str(tmp_path / "fine.json"), option, str(place))
        done = run_bench(run_python, *FEW, *where, check=False)
        assert done.returncode == UNUSABLE
        assert f"can't write {place}" in done.stderr
        assert "[1/1]" not in done.stderr  # said before anything is measured
        assert "Traceback" not in done.stderr


def test_what_was_there_stays_when_nothing_is_measured(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    path.write_text("as it was")
    monkeypatch.setattr(bench, "_measure", lambda *_: (INTERRUPTED, []))
    options = parser().parse_args(["bench", *FEW, "-o", str(path)])
    with pytest.raises(KeyboardInterrupt):
        bench.main(options)
    assert path.read_text() == "as it was"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PYCE_BACKEND", "fortran"), ("PYCE_NUM_THREADS", "0"), ("PYCE_NUM_THREADS", "many")],
)
def test_an_environment_that_cant_be(run_python, tmp_path, variable, value):
    path = str(tmp_path / "one.json")
    done = run_bench(run_python, *FEW, "-o", path, check=False, **{variable: value})
    assert done.returncode == UNUSABLE
    assert done.stderr.startswith(f"pyce: {variable} must be")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_that_knows_ascii_alone(run_python, tmp_path):
    path = str(tmp_path / "one.json")
    done = run_bench(run_python, *FEW, "-o", path, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert re.search(r"\d (us|ms)", done.stdout)


@pytest.mark.parametrize("how", ["closed", "full"])
def test_nothing_can_be_printed(tmp_path, how):
    """What was measured is kept, and nobody sees a traceback."""
    path = tmp_path / "one.json"
    if how == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    redirected = {"closed": ">&-", "full": ">/dev/full"}[how]
    command = shlex.join([sys.executable, "-m", "pyce", "bench", *FEW, "-o", str(path)])
    done = subprocess.run(
        f"{command} {redirected}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == (FINE if how == "closed" else UNUSABLE)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert results.load(path).workloads == ["64x10"]


@pytest.mark.parametrize("option", ["--backend", "--threads", "--dtype", "--operation"])
def test_what_an_option_lists(capsys, option):
    with pytest.raises(SystemExit):
        parser().parse_args(["bench", option, ","])
    assert option in capsys.readouterr().err
    name = {"--backend": "c", "--threads": "1", "--dtype": "float32", "--operation": "fused"}[
        option
    ]
    options = vars(parser().parse_args(["bench", option, f"{name},{name}"]))
    assert [str(one) for one in options[option.removeprefix("--")]] == [name]


WRONG = """
import sys
import numpy as np
from pyce._backends import numpy as backend
right = backend.forward_backward
def wrong(p):
    loss = right(p)
    if p.dtype_name == "float32":
        p.grad[3, 3] += 1e-3
    return loss
backend.forward_backward = wrong
from pyce.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""


def test_a_backend_that_is_wrong_fails(run_python, tmp_path):
    arguments = [*FEW, "-o", str(tmp_path / "wrong.json")]
    done = run_python("-c", WRONG, *arguments, check=False)
    assert done.returncode == FAILED
    assert "pyce numpy" in done.stderr
    assert "gradients differ" in done.stderr
    # The floor was measured, and is there.
    assert results.load(tmp_path / "wrong.json").candidates("backend") == []
    assert results.load(tmp_path / "wrong.json").candidates("floor") != []


ODD_PEERS = """
import sys
import numpy as np
from pyce._bench import peers
def wrong(data):
    return lambda: np.float32(1), lambda: (np.float32(1), np.zeros_like(data.logits))
def broken(data):
    raise RuntimeError("out of order")
peers.PEERS.clear()
peers.PEERS.update({"wrong": wrong, "broken": broken})
from pyce.__main__ import main
sys.exit(main(["bench", "--peers", *sys.argv[1:]]))
"""


def test_a_peer_that_fails_is_left_out(run_python, tmp_path):
    done = run_python("-c", ODD_PEERS, *FEW, "-o", str(tmp_path / "one.json"))
    assert "left out: wrong: " in done.stderr
    assert "left out: broken: out of order" in done.stderr
    run = results.load(tmp_path / "one.json")
    assert run.candidates("backend") == ["pyce numpy"]
    assert run.candidates("peer") == []


def test_what_was_measured_before_ctrl_c_is_kept(tmp_path):
    path = tmp_path / "half.json"
    command = [sys.executable, "-m", "pyce", "bench", "-w", "64x10", "-w", "2048x32000"]
    command += ["-b", "numpy", "--dtype", "float32", "-o", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("[1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=120) == INTERRUPTED, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert results.load(path).workloads == ["64x10"]


def test_nothing_was_measured_before_ctrl_c(run_python, tmp_path):
    code = (
        "import sys; from pyce._bench.suite import plan\n"
        "def stop(self, workload): raise KeyboardInterrupt\n"
        "plan.Plan._measure = stop\n"
        "from pyce.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = run_python("-c", code, "bench", *FEW, "-o", str(tmp_path / "no.json"), check=False)
    assert done.returncode == INTERRUPTED
    assert done.stderr.splitlines()[-1] == "pyce: interrupted"
    assert "Warning" not in done.stderr
    assert not (tmp_path / "no.json").exists()


def test_ctrl_c_while_the_commands_are_imported(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(pyce_main, "parser", stop)
    assert pyce_main.main(["bench"]) == INTERRUPTED
    assert capsys.readouterr().err == "pyce: interrupted\n"


def test_the_suite_runs_under_pytest_itself(run_python):
    suite = Path(bench.__file__).parent / "suite"
    arguments = ("-c", str(suite / "pytest.ini"), "-k", "64x10-fused-floor", str(suite))
    done = run_python("-m", "pytest", "--benchmark-disable", *arguments)
    assert " passed" in done.stdout


# ---------------------------------------------------------------------------------------------
# Terminal manners


@pytest.mark.parametrize("command", [(), ("bench",), ("check",), ("report",), ("compare",)])
def test_help_needs_no_extra(run_python, command):
    hide = "for name in ('pytest', 'pytest_benchmark', 'rich', 'matplotlib', 'jinja2', 'scipy'):\n"
    code = f"import sys\n{hide}    sys.modules[name] = None\n"
    code += f"from pyce.__main__ import main; main([*{command!r}, '--help'])"
    assert "usage: python -m pyce" in run_python("-c", code).stdout


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("pytest_benchmark", ["bench"]), ("scipy", ["compare", "a.json", "b.json"])],
)
def test_an_extra_that_is_not_installed(run_python, module, arguments):
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += f"from pyce.__main__ import main; sys.exit(main({arguments!r}))"
    done = run_python("-c", code, check=False)
    assert done.returncode == UNUSABLE
    assert f"needs {module}" in done.stderr
    assert "pip install 'pyce[bench]'" in done.stderr


def test_tables_without_rich(run_python):
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from pyce._bench.terminal import table\n"
        "table('Title', ('name', 'figure'), [('a', '1.5'), ('a', '22')])"
    )
    expected = ["Title", "name  figure", "a        1.5", "          22"]
    assert run_python("-c", code).stdout.splitlines() == expected


@pytest.mark.parametrize("arguments", [(), ("bench", "--list")])
def test_a_reader_that_has_seen_enough(arguments):
    """As in `python -m pyce | head -0`."""
    ends = os.pipe()
    os.close(ends[0])
    command = [sys.executable, "-m", "pyce", *arguments]
    done = subprocess.run(
        command, stdout=ends[1], stderr=subprocess.PIPE, cwd=ROOT, timeout=120, check=False
    )
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (FINE, b"")


def test_progress_tells_the_time_that_is_left(capsys):
    from pyce._bench.suite.plan import Plan

    plan = Plan(workloads=[SMALL], candidates=[])
    with bench.progress(plan, digits=True) as display:
        display.doing("64x10", 0.5, "something")
        display.done("64x10")
        display.doing("digits", 0, "training")
        display.done("digits")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[1/2] 64x10", "[2/2] digits"]
    assert lines[-1].endswith(" 0:00 left")
    assert re.search(r" \d+:\d\d left$", lines[0])


# ---------------------------------------------------------------------------------------------
# The machine


def test_fingerprint():
    about = machine.fingerprint()
    assert re.fullmatch(r"[a-z0-9-]+", about["kind"])
    assert f"{pyce.get_num_threads()}-threads" in about["kind"]
    assert about["processors"] >= 1
    assert all(10**3 < size < 10**10 for size in about["caches"].values())
    assert all(value > 1e6 for value in about["bandwidth"].values())
    assert about["versions"]["numpy"] == np.__version__
    assert socket.gethostname() not in json.dumps(about).split('"')


def test_kinds_differ_where_figures_would():
    about = {
        "processor": "Some CPU @ 2.5 GHz",
        "processors": 8,
        "caches": {"L1d": 2**15, "L3": 2**25},
        "isa": "avx2",
        "threads": 8,
        "system": "Linux x86_64",
    }
    kind = machine.kind(about)
    assert kind == "some-cpu-2-5-ghz-linux-x86-64-8-processors-32-mib-avx2-8-threads"
    for name, other in (("processors", 4), ("isa", None), ("threads", 4), ("processor", "Else")):
        assert machine.kind({**about, name: other}) != kind


# ---------------------------------------------------------------------------------------------
# Changes


def run_of(tmp_path, name, items, kind="some-kind", when="2026-01-01T00:00:00", floor=1.0):
    """A file with `items`: {(workload, operation, candidate): [time over the floor, by block]}.

    `floor` is how many times as fast it was as one that takes a microsecond.
    """
    benchmarks = []
    for (workload, operation, who), over in items.items():
        info = {
            "workload": workload,
            "operation": operation,
            "candidate": who,
            "kind": "floor" if who == "floor" else "peer" if who == "torch" else "backend",
            "bytes": 1000,
            "target_bytes": 0,
            "threads": 2,
            "blocks": [value * 1e-6 / floor for value in over],
            "over_floor": list(over),
        }
        benchmarks.append({"extra_info": info, "stats": {"median": statistics.median(over) * 1e-6}})
    content = {
        "machine_info": {"pyce": {"kind": kind, "pyce": "1.0"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": when,
        "benchmarks": benchmarks,
    }
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return results.load(path)


def noisy(seed, factor=1.0, blocks=8, noise=0.05):
    rng = np.random.default_rng(seed)
    return {
        (f"w{i}", "fused", "pyce c"): (
            (factor if i < 3 else 1.0) * (2 + i) * np.exp(rng.normal(0, noise, blocks))
        ).tolist()
        for i in range(50)
    }


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_change(tmp_path, seed):
    before = run_of(tmp_path, "a.json", noisy(seed))
    after = run_of(tmp_path, "b.json", noisy(1000 + seed))
    verdicts = {change.verdict for change in changes.compare(before, after)}
    assert verdicts == {"same"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "slower"), (0.7, "faster")])
def test_a_change_is_found(tmp_path, factor, verdict):
    before = run_of(tmp_path, "a.json", noisy(1))
    after = run_of(tmp_path, "b.json", noisy(2, factor))
    found = changes.compare(before, after)
    assert {c.key[0] for c in found if c.verdict == verdict} == {"w0", "w1", "w2"}
    assert {c.verdict for c in found} == {verdict, "same"}
    for change in found[:3]:
        assert change.p < changes.LEVEL
        assert change.ratio == pytest.approx(factor, rel=0.1)


def test_a_change_is_found_among_all_that_a_run_measures(tmp_path):
    before = {(f"w{i}", "fused", "pyce c"): [1 + 0.001 * b for b in range(10)] for i in range(340)}
    after = {key: [value + 0.0001 for value in over] for key, over in before.items()}
    after["w7", "fused", "pyce c"] = [value * 1.3 for value in before["w7", "fused", "pyce c"]]
    runs = run_of(tmp_path, "a.json", before), run_of(tmp_path, "b.json", after)
    changed = [c.key[0] for c in changes.compare(*runs) if c.verdict != "same"]
    assert changed == ["w7"]


@pytest.mark.parametrize("seed", range(5))
def test_noise_between_runs_is_no_change(tmp_path, seed):
    """Every item a few percent off in all of its blocks; the one that changed still stands out."""
    before, after = noisy(seed, noise=0.01), noisy(1000 + seed, noise=0.01)
    off = np.exp(np.random.default_rng(seed).normal(0, 0.03, len(after)))
    off[7] *= 1.4
    after = {key: [v * f for v in over] for (key, over), f in zip(after.items(), off, strict=True)}
    runs = run_of(tmp_path, "a.json", before), run_of(tmp_path, "b.json", after)
    found = changes.compare(*runs)
    assert {change.key[0] for change in found if change.verdict != "same"} == {"w7"}


@pytest.mark.parametrize(("factor", "floor"), [(1.3, 1.3), (1.0, 0.7)])
def test_what_only_the_floor_shows_or_only_the_clock_is_no_change(tmp_path, factor, floor):
    """Memory became faster and nothing took longer; or all became slower, and memory with it."""
    before = run_of(tmp_path, "a.json", noisy(1))
    after = run_of(tmp_path, "b.json", noisy(2, factor), floor=floor)
    changed = changes.compare(before, after)[:3]
    assert {change.verdict for change in changed} == {"same"}


def test_a_change_of_everything_is_found(tmp_path):
    before, after = noisy(1), {k: [1.2 * v for v in over] for k, over in noisy(2).items()}
    found = changes.compare(run_of(tmp_path, "a.json", before), run_of(tmp_path, "b.json", after))
    assert sum(change.verdict == "slower" for change in found) > 25


def test_certain_but_small_is_no_change(tmp_path):
    before = run_of(tmp_path, "a.json", noisy(1, noise=1e-4))
    after = run_of(tmp_path, "b.json", noisy(2, 1.02, noise=1e-4))
    found = changes.compare(before, after)
    assert found[0].p < changes.LEVEL
    assert found[0].verdict == "same"


def test_few_blocks_tell_nothing(tmp_path):
    before = run_of(tmp_path, "a.json", noisy(1, blocks=3))
    after = run_of(tmp_path, "b.json", noisy(2, 2.0, blocks=3))
    assert {change.verdict for change in changes.compare(before, after)} == {"unknown"}


def test_what_others_take_is_no_change_of_ours(tmp_path):
    items = {("w", "fused", who): [1.0] * 8 for who in ("floor", "torch", "pyce c")}
    run = run_of(tmp_path, "a.json", items)
    assert [change.key[2] for change in changes.compare(run, run)] == ["pyce c"]


def test_a_file_without_a_kind_of_machine(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"machine_info": {"pyce": {}}, "benchmarks": []}')
    with pytest.raises(Unusable, match="was not written by"):
        results.load(path)


def test_outside_of_a_repository_there_is_no_commit(tmp_path):
    run = run_of(tmp_path, "a.json", {})
    run.content["commit_info"] = {"id": "unversioned", "dirty": False}
    assert run.commit == ""


def test_holm():
    assert changes.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert changes.holm([0.9, 0.8]) == [1.0, 1.0]


def test_only_what_is_slower_twice_is_slower(tmp_path):
    before = run_of(tmp_path, "a.json", noisy(1))
    found = changes.compare(before, run_of(tmp_path, "b.json", noisy(2, 1.3)))
    asked = []

    def again(workloads):
        asked.extend(workloads)
        items = noisy(3, 1.3)
        items["w0", "fused", "pyce c"] = noisy(4)["w0", "fused", "pyce c"]
        return run_of(tmp_path, "c.json", items)

    kept = {c.key[0]: c.verdict for c in compare.confirmed(found, before, again)}
    assert set(asked) == {"w0", "w1", "w2"}
    assert (kept["w0"], kept["w1"], kept["w2"]) == ("not confirmed", "slower", "slower")
    assert {kept[f"w{i}"] for i in range(3, 50)} == {"same"}


def compared(run_python, *arguments):
    return run_python("-m", "pyce", "compare", *map(str, arguments), check=False)


def test_the_command_fails_for_a_slow_down(run_python, tmp_path):
    before = run_of(tmp_path, "a.json", noisy(1)).path
    after = run_of(tmp_path, "b.json", noisy(2, 1.3)).path
    done = compared(run_python, before, after)
    assert done.returncode == FAILED
    assert "w0" in done.stdout
    assert "3 slower, 47 same" in done.stdout
    assert compared(run_python, after, before).returncode == FINE
    done = compared(run_python, before, after, "--json")
    assert done.returncode == FAILED
    verdicts = [change["verdict"] for change in json.loads(done.stdout)["changes"]]
    assert verdicts.count("slower") == 3


def test_the_newest_baseline_of_the_kind_is_taken(run_python, tmp_path):
    folder = tmp_path / "baselines"
    folder.mkdir()
    new = run_of(tmp_path, "new.json", noisy(2)).path
    assert compared(run_python, folder, new).returncode == UNUSABLE
    run_of(folder, "z.json", noisy(1), when="2025-01-01T00:00:00")
    run_of(folder, "a.json", noisy(1), when="2025-02-01T00:00:00")
    run_of(folder, "b.json", noisy(1), kind="another", when="2026-03-01T00:00:00")
    done = compared(run_python, folder, new)
    assert done.returncode == FINE
    assert "against a.json of 2025-02-01 012345678" in done.stdout


def test_machines_of_different_kinds_are_not_compared(run_python, tmp_path):
    before = run_of(tmp_path, "a.json", noisy(1), kind="another").path
    done = compared(run_python, before, run_of(tmp_path, "b.json", noisy(2)).path)
    assert done.returncode == UNUSABLE
    assert "another" in done.stderr


@pytest.mark.parametrize("content", ["{", "[]", '{"benchmarks": []}', '{"machine_info": {}}', None])
def test_what_is_no_file_of_bench(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unusable, match=re.escape(str(path))):
        results.load(path)


# ---------------------------------------------------------------------------------------------
# The goals


def test_goals_that_were_measured(tmp_path):
    run = run_of(
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


def test_a_kept_baseline_can_be_compared(written, run_python, tmp_path):
    path, _ = written
    kept = baseline.keep(path, tmp_path)
    done = compared(run_python, tmp_path, path)
    assert done.returncode == FINE, done.stderr
    assert kept.name in done.stdout

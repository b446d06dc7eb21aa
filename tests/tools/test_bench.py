"""`python -m pyce bench`: the files that it writes, its options, and baselines of its files."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bench_scripts import FOLDER, baseline
from programs import running

import pyce
from pyce.__main__ import main, parser
from pyce._bench import bench, compare, results
from pyce._bench.measure import Effort
from pyce._bench.workloads import WORKLOADS
from pyce._cli import FAILED, FINE, INTERRUPTED, UNUSABLE, Unusable

ROOT = Path(pyce.__file__).parents[1]
# One backend, which is always available.
FEW = ("-w", "64x10", "-b", "numpy", "--operation", "fused")


# The command, with fewer and shorter measurements, and the bandwidth of small arrays: for tests
# that read none of the times.
SHORT = """
import sys
from pyce._bench import floors
from pyce._bench.measure import Effort
Effort.__init__.__defaults__ = 2, 1, 0.001, 0.01
floors._LARGE = 2**20
from pyce.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""


def run_bench(run_python, *arguments, **options):
    return run_python("-c", SHORT, *arguments, **options)


def refused(capsys, *arguments):
    """What the command, in this process, says before it ends because it cannot be carried out."""
    assert main(["bench", *arguments]) == UNUSABLE
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of the command, and the finished process that wrote it."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    command = [sys.executable, "-m", "pyce", "bench", *FEW, "--output", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False
    )
    assert done.returncode == FINE, done.stdout + done.stderr
    baseline.keep(path, path.parent / "baselines")
    return path, done


def test_the_file_has_the_format_of_pytest_benchmark(written):
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


def test_pytest_benchmark_can_compare_the_files(written, run_python):
    path, _ = written
    (kept,) = (path.parent / "baselines").glob("*.json")
    files = (str(path), str(kept))
    done = run_python("-m", "pytest_benchmark", "compare", *files, "--group-by=group")
    assert "benchmark '64x10 fused': 6 tests" in done.stdout
    assert "pyce numpy" in done.stdout


def test_options_that_measure_the_same_candidates_again(written):
    path, _ = written
    threads = str(pyce.get_num_threads())
    run = results.load(path)
    assert compare.again(run)[:2] == ["--backend", "numpy"]
    assert compare.again(run)[2:] == ["--threads", threads]
    run.items["64x10", "fused", "pyce numpy"].about["kind"] = "variant"
    run.items["64x10", "fused", "floor"].about.update(kind="backend", backend="c", threads=7)
    assert compare.again(run) == ["--backend", "c", "--threads", "7", "--peers"]


def test_a_file_is_read_as_it_was_written(written):
    path, done = written
    run = results.load(path)
    assert run.workloads == ["64x10"]
    item = run.items["64x10", "fused", "pyce numpy"]
    assert item.about["threads"] == pyce.get_num_threads()
    assert item.rate == item.about["bytes"] / item.seconds
    assert item.over_floor > 1
    assert "64x10" in done.stdout
    assert re.search(r"\x1b", done.stdout) is None


def test_a_baseline_has_the_times_but_no_host_name(written):
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


def test_report_accepts_a_baseline(written, run_python, tmp_path):
    pytest.importorskip("matplotlib")
    path, _ = written
    (kept,) = (path.parent / "baselines").glob("*.json")
    run_python("-m", "pyce", "report", str(path), str(kept), "--output", str(tmp_path))
    assert "64x10" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_json_prints_nothing_else(run_python, tmp_path):
    path = tmp_path / "one.json"
    done = run_bench(run_python, *FEW, "--json", "-o", str(path))
    assert json.loads(done.stdout) == json.loads(path.read_text())
    assert "64x10" in done.stderr  # progress goes there


def test_every_workload_is_listed(capsys):
    assert main(["bench", "--list", "--json"]) == FINE
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found] == [w.name for w in WORKLOADS]
    assert main(["bench", "--list"]) == FINE
    shown = capsys.readouterr().out
    assert all(w.stands_for in shown for w in WORKLOADS)


def test_other_plugins_and_options_have_no_effect(run_python, tmp_path):
    path = tmp_path / "one.json"
    run_bench(run_python, *FEW, "-o", str(path), PYTEST_ADDOPTS="--benchmark-disable -k nothing")
    assert results.load(path).candidates("backend") == ["pyce numpy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-w", "nothing"), "no workload matches 'nothing'"),
        (("-b", "fortran"), "fortran: no such backend"),
        (("--threads", "99999"), "this process may use"),
        (("--isa", "mmx"), "--isa mmx: "),
        (("-w", "64x10", "--dtype", "float64"), "no workload is left"),
    ],
)
def test_requests_that_cannot_be_measured(capsys, tmp_path, arguments, words):
    path = tmp_path / "kept.json"
    path.write_text("as it was")
    assert words in refused(capsys, *arguments, "-o", str(path))
    assert path.read_text() == "as it was"


def test_a_number_of_threads_beyond_64_bits(tmp_path):
    options = parser().parse_args(["bench", *FEW, "--threads", "9" * 20, "-o", str(tmp_path / "x")])
    with pytest.raises(Unusable, match="threads must"):
        bench.main(options)


def test_an_output_that_is_a_device_is_written_to(run_python, capsys, tmp_path):
    """The output may be a device or a pipe, which must not be replaced by a file."""
    pipe = tmp_path / "two\nlines"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # open at both ends, so that no open() blocks
    try:
        refused(capsys, "-w", "nothing", "-o", str(pipe))
        done = run_bench(run_python, *FEW, "-o", str(pipe))
        assert re.search(r"written: .*two\\nlines", done.stdout)
        assert pipe.is_fifo()
        assert os.read(reader, 1) == b"{"
    finally:
        os.close(reader)


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "folder"
    for place in (tmp_path, inside):
        said = refused(capsys, *FEW, "-o", str(place))
        assert f"can't write {place}" in said
        assert "[1/1]" not in said  # the error comes before the measurements


def test_the_output_is_kept_if_nothing_is_measured(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    path.write_text("as it was")
    monkeypatch.setattr(bench, "_measure", lambda *_: (INTERRUPTED, []))
    options = parser().parse_args(["bench", *FEW, "-o", str(path)])
    with pytest.raises(KeyboardInterrupt):
        bench.main(options)
    assert path.read_text() == "as it was"


def test_c_is_held_to_an_instruction_set(run_python, tmp_path, c_backend):
    path = tmp_path / "held.json"
    options = ("-w", "64x10", "-b", "c", "--operation", "fused", "--threads", "1")
    done = run_bench(run_python, *options, "--isa", c_backend.isa, "-o", str(path))
    run = results.load(path)
    assert run.machine["isa"] == c_backend.isa
    item = run.items["64x10", "fused", run.candidates("backend")[0]]
    assert item.about["isa"] == c_backend.isa
    widest = pyce.info()["isas"][0]
    held = f"C held to {c_backend.isa}, the processor has {widest}"
    assert (held in " ".join(done.stdout.split())) == (c_backend.isa != widest)
    assert (f"{c_backend.isa}-of-{widest}" in run.machine["kind"]) == (c_backend.isa != widest)
    assert ("--isa" in compare.again(run)) == (c_backend.isa != widest)


def test_an_instruction_set_without_c(run_python, tmp_path):
    code = (
        "import sys; sys.modules['pyce._pyce'] = None\n"
        "from pyce.__main__ import main; sys.exit(main(['bench', *sys.argv[1:]]))"
    )
    arguments = (*FEW, "--isa", "avx2", "-o", str(tmp_path / "one.json"))
    done = run_python("-c", code, *arguments, check=False)
    assert done.returncode == UNUSABLE
    assert "--isa avx2: the C extension was not built" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PYCE_BACKEND", "fortran"), ("PYCE_NUM_THREADS", "0"), ("PYCE_NUM_THREADS", "many")],
)
def test_invalid_environment_variables(run_python, tmp_path, variable, value):
    path = str(tmp_path / "one.json")
    done = run_bench(run_python, *FEW, "-o", path, check=False, **{variable: value})
    assert done.returncode == UNUSABLE
    assert done.stderr.startswith(f"pyce: {variable} must be")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_with_ascii_only(run_python, tmp_path):
    path = str(tmp_path / "one.json")
    done = run_bench(run_python, *FEW, "-o", path, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert re.search(r"\d (us|ms)", done.stdout)


@pytest.mark.parametrize("how", ["closed", "full"])
def test_results_are_kept_if_nothing_can_be_printed(tmp_path, how):
    """The file is written, and there is no traceback."""
    path = tmp_path / "one.json"
    if how == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    redirected = {"closed": ">&-", "full": ">/dev/full"}[how]
    command = shlex.join([sys.executable, "-c", SHORT, *FEW, "-o", str(path)])
    done = subprocess.run(
        f"{command} {redirected}",
        shell=True,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == (FINE if how == "closed" else UNUSABLE)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert results.load(path).workloads == ["64x10"]


@pytest.mark.parametrize("option", ["--backend", "--threads", "--dtype", "--operation"])
def test_options_that_take_lists(capsys, option):
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
from pyce._backends import numpy as backend
right = backend.forward_backward
def wrong(p):
    loss = right(p)
    if p.dtype_name == "float32":
        p.grad[3, 3] += 1e-3
    return loss
backend.forward_backward = wrong
"""


def test_a_wrong_backend_fails(run_python, tmp_path):
    arguments = [*FEW, "-o", str(tmp_path / "wrong.json")]
    done = run_python("-c", WRONG + SHORT, *arguments, check=False)
    assert done.returncode == FAILED
    assert "pyce numpy" in done.stderr
    assert "gradients differ" in done.stderr
    # The floor is measured and in the file.
    assert results.load(tmp_path / "wrong.json").candidates("backend") == []
    assert results.load(tmp_path / "wrong.json").candidates("floor") != []


# Without the variants, as those of pyce.torch and pyce.jax import these libraries.
ODD_PEERS = """
import sys
from pyce._bench import candidates, peers
candidates.variants = list
def wrong(data):
    return lambda: np.float32(1), lambda: (np.float32(1), np.zeros_like(data.logits))
def broken(data):
    raise RuntimeError("out of order")
peers.PEERS.clear()
peers.PEERS.update({"wrong": wrong, "broken": broken})
"""


def test_another_library_that_fails_is_left_out(run_python, tmp_path):
    done = run_python("-c", ODD_PEERS + SHORT, "--peers", *FEW, "-o", str(tmp_path / "one.json"))
    assert "left out: wrong: " in done.stderr
    assert "left out: broken: out of order" in done.stderr
    run = results.load(tmp_path / "one.json")
    assert run.candidates("backend") == ["pyce numpy"]
    assert run.candidates("peer") == []


def test_ctrl_c_keeps_the_results_so_far(tmp_path):
    path = tmp_path / "half.json"
    options = ("-w", "64x10", "-w", "1024x1000", "-b", "numpy", "--dtype", "float32")
    with running("bench", *options, "-o", str(path), text=True) as process:
        for line in process.stderr:
            if line.startswith("[1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait() == INTERRUPTED, rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert results.load(path).workloads == ["64x10"]


def test_ctrl_c_before_the_first_result(run_python, tmp_path):
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


def test_the_suite_runs_as_an_ordinary_pytest_suite(run_python):
    suite = Path(bench.__file__).parent / "suite"
    arguments = ("-c", str(suite / "pytest.ini"), "-k", "64x10-fused-floor", str(suite))
    # Numba would compile for half a minute: all candidates of a workload are measured at once.
    code = "import sys; sys.modules['numba'] = None\nimport pytest; sys.exit(pytest.main())"
    done = run_python("-c", code, "--benchmark-disable", *arguments)
    assert " passed" in done.stdout
    done = run_python("-c", code, *arguments[:2], "-q", "--collect-only", str(suite))
    for backend in (name for name in pyce.backends() if name != "numba"):
        assert f"bench_digits.py::bench_digits[{backend}]" in done.stdout


@pytest.mark.parametrize("own", [1, 3])
def test_pyces_own_number_of_threads_and_one(own, tmp_path, monkeypatch):
    """Each is measured once."""
    plans = []

    def measure(plan, *_):
        plans.append(plan)
        return INTERRUPTED, []

    monkeypatch.setattr(pyce, "get_num_threads", lambda: own)
    monkeypatch.setattr(pyce, "set_num_threads", lambda count: None)
    monkeypatch.setattr(bench, "_measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench.main(parser().parse_args(["bench", *FEW, "-o", str(tmp_path / "none.json")]))
    (plan,) = plans
    floors = [c.threads for c in plan.candidates if c.kind == "floor"]
    assert floors == ([own, 1] if own > 1 else [1])


def test_compare_accepts_a_folder_of_baselines(written, run_python, tmp_path):
    path, _ = written
    kept = run_python(str(FOLDER / "baseline.py"), str(path), str(tmp_path)).stdout
    done = run_python("-m", "pyce", "compare", str(tmp_path), str(path))
    (name,) = (path.name for path in tmp_path.iterdir())
    assert kept == f"baseline: {tmp_path / name}\n"
    assert name in done.stdout


def test_a_folder_of_baselines_that_cannot_be_written(written, run_python, tmp_path):
    path, _ = written
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "folder"
    done = run_python(str(FOLDER / "baseline.py"), str(path), str(inside), check=False)
    assert done.returncode == UNUSABLE
    assert f"can't write {inside}" in done.stderr
    assert "Traceback" not in done.stderr

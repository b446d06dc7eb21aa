"""`python -m pyce compare`: which differences between two runs are significant."""

import copy
import json
import re

import numpy as np
import pytest
from run_files import noisy, written_run

from pyce.__main__ import main
from pyce._bench import compare, results, significance
from pyce._cli import FAILED, FINE, UNUSABLE, Unusable


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_change(tmp_path, seed):
    before = written_run(tmp_path, "a.json", noisy(seed))
    after = written_run(tmp_path, "b.json", noisy(1000 + seed))
    verdicts = {change.verdict for change in significance.compare(before, after)}
    assert verdicts == {"same"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "slower"), (0.7, "faster")])
def test_a_change_is_found(tmp_path, factor, verdict):
    before = written_run(tmp_path, "a.json", noisy(1))
    after = written_run(tmp_path, "b.json", noisy(2, factor))
    found = significance.compare(before, after)
    assert {c.key[0] for c in found if c.verdict == verdict} == {"w0", "w1", "w2"}
    assert {c.verdict for c in found} == {verdict, "same"}
    for change in found[:3]:
        assert change.p < significance.LEVEL
        assert change.ratio == pytest.approx(factor, rel=0.1)


def test_a_change_is_found_among_all_that_a_run_measures(tmp_path):
    before = {(f"w{i}", "fused", "pyce c"): [1 + 0.001 * b for b in range(10)] for i in range(340)}
    after = {key: [value + 0.0001 for value in over] for key, over in before.items()}
    after["w7", "fused", "pyce c"] = [value * 1.3 for value in before["w7", "fused", "pyce c"]]
    runs = written_run(tmp_path, "a.json", before), written_run(tmp_path, "b.json", after)
    changed = [c.key[0] for c in significance.compare(*runs) if c.verdict != "same"]
    assert changed == ["w7"]


@pytest.mark.parametrize("seed", range(5))
def test_noise_between_runs_is_no_change(tmp_path, seed):
    """Blocks of an item differ by a few percent between runs; a larger change is still found."""
    before, after = noisy(seed, noise=0.01), noisy(1000 + seed, noise=0.01)
    off = np.exp(np.random.default_rng(seed).normal(0, 0.03, len(after)))
    off[7] *= 1.4
    after = {key: [v * f for v in over] for (key, over), f in zip(after.items(), off, strict=True)}
    runs = written_run(tmp_path, "a.json", before), written_run(tmp_path, "b.json", after)
    found = significance.compare(*runs)
    assert {change.key[0] for change in found if change.verdict != "same"} == {"w7"}


@pytest.mark.parametrize(("factor", "floor"), [(1.3, 1.3), (1.0, 0.7), (1.3, 1.9)])
def test_a_change_in_one_view_only_is_no_change(tmp_path, factor, floor):
    """Only memory became faster, or the whole machine became slower, or an item was faster, but
    less so than its floor.
    """
    before = written_run(tmp_path, "a.json", noisy(1))
    after = written_run(tmp_path, "b.json", noisy(2, factor), floor=floor)
    changed = significance.compare(before, after)[:3]
    assert {change.verdict for change in changed} == {"same"}


def test_a_change_of_everything_is_found(tmp_path):
    before, after = noisy(1), {k: [1.2 * v for v in over] for k, over in noisy(2).items()}
    found = significance.compare(
        written_run(tmp_path, "a.json", before), written_run(tmp_path, "b.json", after)
    )
    assert sum(change.verdict == "slower" for change in found) > 25


def test_certain_but_small_is_no_change(tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1, noise=1e-4))
    after = written_run(tmp_path, "b.json", noisy(2, 1.02, noise=1e-4))
    found = significance.compare(before, after)
    assert found[0].p < significance.LEVEL
    assert found[0].verdict == "same"


def test_few_blocks_tell_nothing(tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1, blocks=3))
    after = written_run(tmp_path, "b.json", noisy(2, 2.0, blocks=3))
    assert {change.verdict for change in significance.compare(before, after)} == {"unknown"}


def test_only_backends_and_variants_are_compared(tmp_path):
    items = {("w", "fused", who): [1.0] * 8 for who in ("floor", "torch", "pyce c")}
    run = written_run(tmp_path, "a.json", items)
    assert [change.key[2] for change in significance.compare(run, run)] == ["pyce c"]


def test_a_file_without_a_kind_of_machine(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"machine_info": {"pyce": {}}, "benchmarks": []}')
    with pytest.raises(Unusable, match="was not written by"):
        results.load(path)


def test_outside_of_a_repository_there_is_no_commit(tmp_path):
    run = written_run(tmp_path, "a.json", {})
    run.content["commit_info"] = {"id": "unversioned", "dirty": False}
    assert run.commit == ""


def test_holm():
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_slow_down_must_be_confirmed(tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1))
    found = significance.compare(before, written_run(tmp_path, "b.json", noisy(2, 1.3)))
    asked = []

    def again(workloads):
        asked.extend(workloads)
        items = noisy(3, 1.3)
        items["w0", "fused", "pyce c"] = noisy(4)["w0", "fused", "pyce c"]
        return written_run(tmp_path, "c.json", items)

    kept = {c.key[0]: c.verdict for c in compare.confirmed(found, before, again)}
    assert set(asked) == {"w0", "w1", "w2"}
    assert (kept["w0"], kept["w1"], kept["w2"]) == ("not confirmed", "slower", "slower")
    assert {kept[f"w{i}"] for i in range(3, 50)} == {"same"}


@pytest.fixture
def compared(capsys):
    """A function that runs the command, and returns its exit status, output and errors."""

    def run(*arguments):
        status = main(["compare", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_command_fails_for_a_slow_down(compared, tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1)).path
    after = written_run(tmp_path, "b.json", noisy(2, 1.3)).path
    status, text, _ = compared(before, after)
    assert status == FAILED
    assert "w0" in text
    assert "3 slower, 47 same" in text
    assert compared(after, before)[0] == FINE
    status, text, _ = compared(before, after, "--json")
    assert status == FAILED
    verdicts = [change["verdict"] for change in json.loads(text)["changes"]]
    assert verdicts.count("slower") == 3


def test_a_measurement_is_repeated_by_the_command(compared, tmp_path, monkeypatch):
    """Of the workloads that seem slower; its file is read before it is removed."""
    before = written_run(tmp_path, "a.json", noisy(1)).path
    after = written_run(tmp_path, "b.json", noisy(2, 1.3)).path
    again = written_run(tmp_path, "c.json", noisy(3)).path
    command = tmp_path / "python"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\ncp {again} "$6"\nexit $STATUS\n')
    command.chmod(0o700)
    monkeypatch.setattr(compare.sys, "executable", str(command))
    monkeypatch.setenv("STATUS", "0")
    status, text, errors = compared(before, after, "--confirm")
    assert status == FINE
    assert errors == "measuring again: w0, w1, w2\n"
    assert "3 not confirmed, 47 same" in text
    called = (tmp_path / "called").read_text()
    assert called.startswith("-m pyce bench --json --output ")
    assert called.endswith(" --exactly w0 --exactly w1 --exactly w2\n")
    monkeypatch.setenv("STATUS", "3")
    status, text, errors = compared(before, after, "--confirm")
    assert status == UNUSABLE
    assert text == "" and "measuring again ended with status 3" in errors


def test_the_newest_baseline_of_the_kind_is_taken(compared, tmp_path):
    folder = tmp_path / "baselines"
    folder.mkdir()
    new = written_run(tmp_path, "new.json", noisy(2)).path
    assert compared(folder, new)[0] == UNUSABLE
    written_run(folder, "z.json", noisy(1), when="2025-01-01T00:00:00")
    written_run(folder, "a.json", noisy(1), when="2025-02-01T00:00:00")
    written_run(folder, "b.json", noisy(1), kind="another", when="2026-03-01T00:00:00")
    status, text, _ = compared(folder, new)
    assert status == FINE
    assert "against a.json of 2025-02-01 012345678" in text


def test_a_file_from_outside_of_a_repository_has_no_commit(compared, tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1)).path
    made = json.loads(before.read_text("utf-8"))
    del made["commit_info"]
    before.write_text(json.dumps(made), "utf-8")
    _, text, _ = compared(before, written_run(tmp_path, "b.json", noisy(2)).path)
    assert "against a.json of 2026-01-01: " in text


def test_machines_of_different_kinds_are_not_compared(compared, tmp_path):
    before = written_run(tmp_path, "a.json", noisy(1), kind="another").path
    status, _, errors = compared(before, written_run(tmp_path, "b.json", noisy(2)).path)
    assert status == UNUSABLE
    assert "another" in errors


@pytest.mark.parametrize(
    "content",
    ["{", "[" * 100_000, "[]", '{"benchmarks": []}', '{"machine_info": {}}', None],
    ids=["cut off", "deep", "list", "no machine", "no benchmarks", "no file"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(Unusable, match=re.escape(str(path))):
        results.load(path)


def without(content, path):
    """A copy of a file's content without the entry at `path`."""
    made = copy.deepcopy(content)
    part = made
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return made


@pytest.mark.parametrize(
    "path",
    [
        ("datetime",),
        ("benchmarks",),
        ("machine_info",),
        ("machine_info", "pyce", "kind"),
        ("benchmarks", 0, "stats"),
        ("benchmarks", 0, "stats", "median"),
        *(("benchmarks", 0, "extra_info", name) for name in ("workload", "operation", "blocks")),
        *(("benchmarks", 0, "extra_info", name) for name in ("candidate", "kind", "over_floor")),
    ],
    ids=lambda path: path[-1],
)
def test_a_file_that_lacks_an_entry(compared, capsys, tmp_path, path):
    """One line says which file and entry, whichever of the two files it is."""
    whole = written_run(tmp_path, "whole.json", noisy(1))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(without(whole.content, path)))
    orders = [(broken, whole.path), (whole.path, broken)]
    # Only the date of the earlier file is shown.
    for files in orders[:1] if path == ("datetime",) else orders:
        status, text, errors = compared(*files)
        assert status == UNUSABLE
        assert errors.startswith("pyce: ") and errors.count("\n") == 1
        assert str(broken) in errors
        assert text == ""
    assert main(["report", str(broken), "-o", str(tmp_path / "report")]) == UNUSABLE
    errors = capsys.readouterr().err
    assert errors.startswith("pyce: ") and errors.count("\n") == 1 and str(broken) in errors


@pytest.mark.parametrize(
    "value", ["fast", None, [1.0], 10**400], ids=["text", "none", "list", "too large"]
)
def test_a_file_whose_times_are_not_numbers(compared, tmp_path, value):
    whole = written_run(tmp_path, "whole.json", noisy(1))
    content = copy.deepcopy(whole.content)
    content["benchmarks"][0]["stats"]["median"] = value
    (tmp_path / "broken.json").write_text(json.dumps(content))
    status, _, errors = compared(tmp_path / "broken.json", whole.path)
    assert status == UNUSABLE and "broken.json" in errors


@pytest.mark.parametrize("value", [[], {}, None, 3])
@pytest.mark.parametrize("name", ["workload", "operation", "candidate"])
def test_a_file_whose_names_are_not_text(compared, tmp_path, name, value):
    whole = written_run(tmp_path, "whole.json", noisy(1))
    content = copy.deepcopy(whole.content)
    content["benchmarks"][0]["extra_info"][name] = value
    (tmp_path / "broken.json").write_text(json.dumps(content))
    for files in ((tmp_path / "broken.json", whole.path), (whole.path, tmp_path / "broken.json")):
        status, _, errors = compared(*files)
        assert status == UNUSABLE
        assert "broken.json" in errors and "Traceback" not in errors


@pytest.mark.parametrize("value", ["x", -1, [None], {"id": None}])
def test_a_file_without_the_description_of_a_commit(tmp_path, value):
    run = written_run(tmp_path, "a.json", noisy(1))
    run.content["commit_info"] = value
    assert run.commit == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("part", ["median", "blocks", "over_floor"])
def test_times_that_are_no_times_are_unknown(compared, tmp_path, value, part):
    """They are not "same", and the other items are compared as if they were not there."""
    before = written_run(tmp_path, "a.json", noisy(1))
    content = written_run(tmp_path, "b.json", noisy(2, 1.3)).content
    entry = content["benchmarks"][5]
    if part == "median":
        entry["stats"]["median"] = value
    else:
        entry["extra_info"][part] = [value] * 8
    (tmp_path / "b.json").write_text(json.dumps(content))
    for files in ((before.path, tmp_path / "b.json"), (tmp_path / "b.json", before.path)):
        status, text, _ = compared(*files, "--json")
        changes = json.loads(text)["changes"]
        assert [c["workload"] for c in changes if c["verdict"] == "unknown"] == ["w5"]
        assert changes[5]["ratio"] is None
        verdict = "slower" if files[0] is before.path else "faster"
        assert [c["workload"] for c in changes if c["verdict"] == verdict] == ["w0", "w1", "w2"]
        assert status == (FAILED if verdict == "slower" else FINE)
        status, text, _ = compared(*files)
        assert "w5" in text and "1 unknown" in text and "not positive numbers" in text
        assert text.index("w5") < text.index("w0")  # above all changes

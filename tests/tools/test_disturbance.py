"""The time that other programs take during a measurement, and where it is shown."""

import multiprocessing
import sys
import time

import pytest
from bench_scripts import readme_tables
from run_files import written_run

from pyce._bench import bench, disturbance
from pyce._bench.disturbance import OtherPrograms
from pyce._bench.report.goal_files import Line


def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def spin_until(begun, ended):
    begun.set()
    while not ended.is_set():
        spin(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_another_process_is_counted_and_this_one_is_not():
    context = multiprocessing.get_context("spawn")
    begun, ended = context.Event(), context.Event()
    other = context.Process(target=spin_until, args=(begun, ended), daemon=True)
    other.start()
    assert begun.wait(300)
    others = OtherPrograms()
    spin(1.0)
    with_it = others.processors()
    ended.set()
    other.join()
    # The kernel's clock ticks every 10 ms. Other tests may run at the same time, which adds
    # to it; with more processes than processors, the two share them.
    assert with_it >= 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_this_process_is_not_counted(monkeypatch):
    times = iter([disturbance._Times(0.0, 10.0, 1.0), disturbance._Times(2.0, 13.0, 3.5)])
    monkeypatch.setattr(disturbance, "_now", lambda: next(times))
    assert OtherPrograms().processors() == 0.25


@pytest.mark.parametrize("known", ["before", "after", "neither", "the same time"])
def test_without_two_times_the_answer_is_none(monkeypatch, known):
    some = disturbance._Times(1.0, 10.0, 1.0)
    found = {
        "before": (some, None),
        "after": (None, some),
        "neither": (None, None),
        "the same time": (some, some),
    }
    times = iter(found[known])
    monkeypatch.setattr(disturbance, "_now", lambda: next(times))
    assert OtherPrograms().processors() is None


@pytest.mark.parametrize("text", ["", "cpu 1 2 3\n", "cpu a b c d e f g h\n"])
def test_an_unknown_proc_gives_none(monkeypatch, tmp_path, text):
    stat = tmp_path / "stat"
    stat.write_text(text)
    monkeypatch.setattr("builtins.open", lambda *_, **__: stat.open())
    assert OtherPrograms().processors() is None


ITEMS = {
    ("64x10", "fused", "floor"): [1.0],
    ("64x10", "fused", "pyce c"): [2.0],
}


@pytest.mark.parametrize(("others", "said"), [(None, False), (0.05, False), (0.7, True)])
def test_a_disturbed_run_says_so(tmp_path, capsys, others, said):
    run = written_run(tmp_path, "a.json", ITEMS, others=others)
    assert bool(run.disturbed) is said
    assert ("0.7 processors" in run.disturbed) is said
    bench.show_times(run)
    assert ("other programs used 0.7 processors" in capsys.readouterr().out) is said


def test_the_table_has_a_ratio_for_all_but_the_floor(tmp_path, capsys):
    bench.show_times(written_run(tmp_path, "a.json", ITEMS))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "64x10" in line]
    assert line.split() == ["64x10", "fused", "2", "1", "µs", "2", "µs", "(2)"]


def test_the_table_says_what_its_floors_are(tmp_path, capsys):
    bench.show_times(written_run(tmp_path, "a.json", ITEMS))
    text = capsys.readouterr().out
    assert "floor of fused: a copy of the logits" in text and "product" not in text
    heads = {("head-1x2x3", "head-fused", name): [1.0] for name in ("floor", "pyce c")}
    bench.show_times(written_run(tmp_path, "b.json", heads))
    text = capsys.readouterr().out
    assert "floor of head-fused: one product" in text and "copy" not in text


def test_a_missed_goal_never_looks_like_its_limit():
    assert Line("a", "b", 2.0201, "≤ 2", False).measured == "2.02"
    assert Line("a", "b", 2.0004, "≤ 2", False).measured == "2.0004"
    assert Line("a", "b", 6.99999, "≥ 7", False).measured == "6.99999"
    assert Line("a", "b", 1.99999, "≤ 2", True).measured == "2"
    assert Line("a", "b", 234.56, "≤ 2", False).measured == "235"
    assert readme_tables._missed("Goals", [Line("a", "b", 2.0004, "≤ 2", False)]).endswith(
        "a: b 2.0004 (≤ 2)."
    )

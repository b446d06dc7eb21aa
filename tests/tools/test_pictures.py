"""The pictures of `python -m pyce report` show the numbers of the files."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from run_files import ELEMENTS, content, item, run_of
from test_report import check_content

from pyce._bench.report import check_files, summaries
from pyce._bench.results import Run

pytest.importorskip("matplotlib")

from pyce._bench.report import plots
from pyce._bench.report.plots import panels

SLOW = ("64x10", "fused", "pyce c", 10)  # other candidates are faster
CLOSE = ("1024x1000", "forward", "JAX + optax", 0.6)  # takes 1.5 times as long as pyce
HALF = "1024x1000-half"


@pytest.fixture(scope="module")
def shown():
    made = content(slower=[SLOW, CLOSE])
    half = item(HALF, 1_024_000, "fused", "pyce c", 2.0)
    half["extra_info"]["dtype"] = "float16"
    made["benchmarks"].append(half)
    return summaries.Shown(Run(Path("x"), made))


@pytest.fixture(scope="module")
def check():
    return check_files.Check(Path("x"), check_content())


@pytest.fixture(scope="module")
def pictures(shown, check):
    return {p.name: p for p in plots.draw(shown) + plots.draw_errors(check, 1)}


@pytest.fixture(scope="module")
def drawn(pictures):
    """{name of a picture: its panels}."""
    return {
        name: [panel for panel in picture.figure.axes if panel.get_visible()]
        for name, picture in pictures.items()
    }


def points(panel, label):
    """The coordinates of the only curve or markers of this label."""
    (line,) = [line for line in panel.lines if line.get_label() == label]
    return list(line.get_xdata()), list(line.get_ydata())


def inside(panel, line):
    ends = [sorted(panel.get_xlim()), sorted(panel.get_ylim())]
    return all(
        low <= value <= high
        for (low, high), values in zip(ends, line.get_data(), strict=True)
        for value in values
    )


def test_every_point_is_inside_its_panel(drawn):
    for name, some in drawn.items():
        for panel in some:
            assert panel.get_title() or panel.get_title("left"), name
            for line in panel.lines:
                if line.get_transform() == panel.transData:
                    assert inside(panel, line), (name, line)
            for ticks in (panel.get_xticks(), panel.get_yticks()):
                assert 1 < len(ticks) <= 10, (name, ticks)


def test_ratios_to_the_floor_stand_in_the_line_of_their_workload(shown, drawn):
    for operation, panel in zip(shown.operations, drawn["over-floor"], strict=True):
        taken = set()
        for name in shown.names:
            x, y = points(panel, name)
            ratios = [shown.over_floor((w, operation), name) for w in shown.workloads]
            lines = [line for line, ratio in enumerate(ratios) if ratio]
            assert x == [ratio for ratio in ratios if ratio]
            assert [round(at) for at in y] == lines
            assert not taken & set(y)
            taken |= set(y)
        shades = [(patch.get_y(), patch.get_height()) for patch in panel.patches]
        assert shades == [(-0.5, 1), (1.5, 1)]  # of the first and the third line
        bottom, top = panel.get_ylim()
        assert top < 0 and bottom > 2  # the first line is the highest
        rings, _ = points(panel, "another is faster than pyce c")
        assert rings == ([shown.over_floor(SLOW[:2], "pyce c")] if operation == "fused" else [])


def test_bars_of_speed_ups(shown, drawn, pictures):
    """One for each other candidate and workload, to the left of 1 where pyce is slower."""
    assert "2 of 18 bars are to the left of 1" in pictures["speed-up"].alt
    for operation, panel in zip(("fused", "forward"), drawn["speed-up"], strict=True):
        ratios = [
            ratio
            for name in shown.names
            for w in shown.workloads
            if name not in ("pyce c", "pyce numba") and (ratio := shown.ratio((w, operation), name))
        ]
        ends = [bar.get_x() + bar.get_width() for bar in panel.patches if bar.get_height() < 1]
        assert ends == pytest.approx(ratios)
        slower = [text for text in panel.texts if text.get_text().endswith(" slower")]
        assert len(slower) == sum(ratio < 1 for ratio in ratios) == 2 * (operation == "fused")
        bars = sorted((p.get_y(), p.get_height()) for p in panel.patches if p.get_height() < 1)
        assert all(y + height <= above for (y, height), (above, _) in pairwise(bars))


def test_the_roof_and_the_throughputs(shown, drawn):
    for operation, panel in zip(shown.operations, drawn["roofline"], strict=True):
        x, y = points(panel, "pyce c")
        assert x == [4 * n for n in ELEMENTS.values()]
        items = [shown.places[w, operation]["pyce c"] for w in ELEMENTS]
        rates = [one.about["bytes"] / one.seconds / 1e9 for one in items]
        assert y == pytest.approx(rates)
        x, y = points(panel, "floor (copy or read)")
        assert x == [4 * n for n in ELEMENTS.values()]
        assert (np.array(y) > rates).all()
        half = [
            line.get_xdata()
            for line in panel.lines
            if line.get_marker() == "o" and line.get_linestyle() == "None"
        ]
        assert [list(x) for x in half] == [[2 * 1_024_000] if operation == "fused" else []]


def test_speed_ups_by_threads(shown, drawn):
    for operation, panel in zip(shown.operations, drawn["threads"], strict=True):
        x, y = points(panel, "pyce c")
        assert x == [shown.scaling[w, operation]["pyce c"][2] for w in ELEMENTS]
        assert [round(at) for at in y] == [0, 1, 2]
        x, floors = points(panel, "floor (copy or read)")
        assert x == [shown.scaling[w, operation]["floor"][2] for w in ELEMENTS]
        assert [round(at) for at in floors] == [0, 1, 2] and not set(y) & set(floors)
        assert points(panel, "ideal")[0] == [2, 2]


def test_curves_of_trainings(shown, drawn):
    losses, apart = drawn["digits"]
    for name in ("numpy", "c"):
        _, y = points(losses, f"{name}: 100 ms, 96.0% right")
        assert y == shown.training[name].about["losses"]
    widths = [line.get_linewidth() for line in losses.lines]
    assert widths == sorted(set(widths), reverse=True)  # the last one hides no other
    assert points(apart, "c")[1] == [0] * 30
    assert all(panel.get_legend() for panel in (losses, apart))


def test_errors_of_check(check, drawn):
    for limit, panel in zip((1.5, 2.5), drawn["errors-1-1"], strict=True):
        (line,) = panel.lines
        assert list(line.get_xdata()) == [limit, limit]  # after the bin that ends at the limit
        assert sum(bar.get_height() for bar in panel.patches) == pytest.approx(2)
        spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches)
        assert len(spans) == 8
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert [round((begin + end) / 2) for begin, end in spans] == [0, 0, 1, 1, 2, 2, 3, 3]
        said = [text.get_text() for text in panel.get_xticklabels()]
        assert said == ["nearest\nnumber", "≤ 1", "≤ 2", "> 2"]
        (text,) = panel.texts
        assert limit < text.get_position()[0] < limit + 0.5
    loss, gradient = drawn["errors-1-2"]
    assert points(loss, "pyce c")[0] == [0.8, 0.8]
    assert [round(at) for at in points(loss, "pyce c")[1]] == [0, 1]
    assert points(loss, "PyTorch")[0] == [0.8]
    (y,) = points(loss, "PyTorch")[1]
    assert round(y) == 0 and y not in points(loss, "pyce c")[1]
    assert [text.get_text() for text in gradient.texts] == ["all subnormal"] * 2
    assert points(gradient, "promised at most")[0] == [2, 2]


def test_a_history_has_the_intervals_of_its_runs():
    pytest.importorskip("scipy")
    elements = {f"{rows}x10": 10 * rows for rows in range(1, 6)}  # four panels above the fifth
    one = {"elements": elements, "times": {"pyce c": 2.0}}
    runs = [run_of(seed=seed, day=seed, **one) for seed in (1, 2, 3)]
    (history,) = summaries.histories(runs)
    (picture,) = plots.draw_history([history])[history.kind]
    assert picture.name == "history-1-1"
    seen = [panel for panel in picture.figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in seen] == list(elements)
    assert not plots.draw_history(summaries.histories(runs[:1]))
    for panel in seen:
        for operation, bars in zip(("fused", "forward", "backward"), panel.containers, strict=True):
            series = history.series((panel.get_title(), operation), "pyce c")
            line, _, (spans,) = bars.lines
            assert list(line.get_xdata()) == [0, 1, 2] and inside(panel, line)
            assert list(line.get_ydata()) == [found.middle for found in series.values()]
            ends = np.array(spans.get_segments())[..., 1]
            np.testing.assert_allclose(ends, [(f.low, f.high) for f in series.values()])
        low, high = panel.get_ylim()
        assert high / low == pytest.approx(2)  # noise looks small
        assert list(panel.get_xticks()) == [0, 1, 2]
        labelled = any(text.get_text() for text in panel.get_xticklabels())
        assert labelled is (panel is seen[-1])


def test_panels_without_a_title_are_hidden():
    for count in (1, 3, 5):
        titles = [str(number) for number in range(count)]
        made, some = panels.grid(titles)
        assert [panel.get_title() for panel in some] == titles
        assert [panel.get_title() for panel in made.axes if panel.get_visible()] == titles

"""`python -m pyce report`: its page and pictures, and the files that it refuses."""

import copy
import json
import random
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bench_scripts import goals
from run_files import ELEMENTS, MACHINE, TIMES, content, item, run_of

import pyce.__main__
from pyce import _cli
from pyce._bench import results
from pyce._bench.report import check_files, goal_files, summaries
from pyce._bench.report import page as report_page
from pyce._bench.results import Run

HOSTILE = "<script>alert(1)</script>&\"'$\\frac{$"


def check_content():
    def statistics(largest):
        return {
            "numbers": 100,
            "right": 0.9,
            "median": 0.3,
            "99.9%": largest,
            "max": largest,
            "histogram": [90, 9, 1, 0],
        }

    kinds = {"loss": statistics(0.8), "gradient": statistics(None)}
    return {
        "command": "check",
        "verdict": "wrong",
        "failures": [{"text": "c, float32, random: <b>wrong</b>"}],
        "titles": {"random": "random logits"},
        "edges": [0.5, 1, 2],
        "limits": {"cross-entropy": {"loss": 1.0, "gradient": 2.0}},
        "machine": MACHINE,
        "results": {"float32": {"random": {"c": kinds, "PyTorch": kinds}, "odd": {"c": kinds}}},
    }


def goals_of(made):
    """The content of a file of goals, for the content of a file of bench."""
    return goal_files.content_of(goals.lines(Run(Path("made.json"), made)))


def write(folder, name, made):
    path = folder / name
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def report(*arguments):
    return pyce.__main__.main(["report", *map(str, arguments)])


# ---------------------------------------------------------------------------------------------
# Figures


def test_faster_candidates_are_listed_worst_first():
    run = run_of(
        slower=[("64x10", "fused", "pyce c", 10), ("1024x1000", "forward", "JAX + optax", 0.16)]
    )
    losses = summaries.Shown(run).losses
    assert [(x.workload, x.operation, x.faster) for x in losses] == [
        ("64x10", "fused", "pyce numba"),
        ("64x10", "fused", "JAX + optax"),
        ("1024x1000", "forward", "JAX + optax"),
        ("64x10", "fused", "torch"),
    ]
    assert losses[0].ratio == pytest.approx(5)


def test_the_summary_is_of_all_threads():
    shown = summaries.Shown(run_of())
    assert shown.threads == 2
    assert shown.names == list(TIMES)
    for here in shown.places.values():
        assert {one.about["threads"] for one in here.values()} == {2}
    item = shown.places["64x10", "fused"]["pyce c"]
    over = statistics.median(item.about["over_floor"])
    assert shown.over_floor(("64x10", "fused"), "pyce c") == over != 2
    assert over == pytest.approx(2, rel=0.05)
    item.about["over_floor"] = []  # as without a floor in the same rounds
    assert shown.over_floor(("64x10", "fused"), "pyce c") == pytest.approx(2, rel=1e-3)
    assert shown.over_floor(("64x10", "fused"), "another") is None
    assert shown.over_floor(("another", "fused"), "pyce c") is None
    assert shown.scaling["2048x32000", "fused"]["pyce c"] == {1: 1, 2: pytest.approx(2, rel=1e-3)}


def test_variants_are_no_candidates():
    """They are among all figures, and neither in pictures nor among what is faster."""
    made = content()
    variant = item("64x10", 640, "fused", "pyce c, in place", 0.5)
    variant["extra_info"].update(kind="variant", backend="c")
    made["benchmarks"].append(variant)
    shown = summaries.Shown(Run(Path("x"), made))
    assert shown.names == list(TIMES) and shown.losses == []
    assert "pyce c, in place" not in shown.places["64x10", "fused"]
    assert any(variant.key[2] == "pyce c, in place" for variant in shown.run.items.values())


def test_a_run_without_pyces_number_of_threads():
    made = content()
    some = [b for b in made["benchmarks"] if b["extra_info"]["threads"] == 1]
    shown = summaries.Shown(Run(Path("x"), {**made, "benchmarks": some}))
    assert (shown.threads, shown.names) == (1, ["pyce c"])
    assert shown.over_floor(("64x10", "fused"), "pyce c") is not None
    assert not shown.scaling


@pytest.mark.parametrize(
    ("count", "ends"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (8, (0, 7)), (9, (1, 7))]
)
def test_intervals_contain_the_median_with_95_percent(count, ends):
    """With probability 2·Σ C(n, i)/2ⁿ, i < k, the median is beyond the k smallest or largest."""
    values = list(range(count))
    random.Random(0).shuffle(values)
    found = summaries.interval(values)
    assert (found.low, found.high) == ends
    assert found.middle == (count - 1) / 2


def test_history_marks_a_significant_slow_down_only():
    pytest.importorskip("scipy")
    place, name = ("1024x1000", "fused"), "pyce c"
    runs = [run_of(seed=1, day=1), run_of(seed=2, day=2)]
    runs += [run_of(seed=s, day=s, slower=[(*place, name, 1.3)]) for s in (3, 4)]
    (history,) = summaries.histories(runs)
    assert history.verdicts(place, name) == {2: "slower"}
    marked = {
        (p, n): found
        for p in history.places
        for n in history.backends
        if (found := history.verdicts(p, n))
    }
    assert marked == {(place, name): {2: "slower"}}
    assert [c.key for c in history.since_first if c.verdict == "slower"] == [(*place, name)]
    (back,) = summaries.histories([runs[3], runs[0]])
    assert back.verdicts(place, name) == {1: "faster"}


def test_history_marks_nothing_in_equal_runs():
    pytest.importorskip("scipy")
    (history,) = summaries.histories([run_of(seed=seed) for seed in range(10, 16)])
    assert [len(changes) for changes in history.changes] == [27] * 5  # the backends, not the peers
    assert all(c.verdict == "same" for changes in history.changes for c in changes)


def test_runs_of_one_version_are_named_by_their_files():
    """An installed pyce knows no commit."""
    runs = [Run(Path(f"{name}.json"), run_of(seed=seed).content) for seed, name in enumerate("ab")]
    (history,) = summaries.histories(runs)
    assert len(set(history.labels)) == 1 and history.last_two() == ("a.json", "b.json")
    runs[1].machine["pyce"] = "0.2.0"
    (history,) = summaries.histories(runs)
    assert history.last_two() == tuple(history.labels) != ("a.json", "b.json")


def test_other_kinds_of_machines_are_never_compared():
    runs = [run_of(kind="a"), run_of(kind="b"), run_of(kind="a", seed=1)]
    found = summaries.histories(runs)
    assert [(history.kind, len(history.runs)) for history in found] == [("a", 2), ("b", 1)]


# ---------------------------------------------------------------------------------------------
# The command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "can't read"),
        ("{", "is not JSON"),
        ("[]", "neither"),
        ('{"results": {}}', "neither"),
        (
            '{"benchmarks": [{"extra_info": {}}], "machine_info": {"pyce": {"kind": "k"}}}',
            "neither",
        ),
        ('{"benchmarks": [], "machine_info": {"pyce": {"kind": "k"}}}', "no figures"),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, text, said):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert report(path, "-o", tmp_path / "out") == _cli.UNUSABLE
    message = capsys.readouterr().err
    assert message.startswith("pyce: ") and said in message and "file.json" in message
    assert not (tmp_path / "out").exists()


def test_missing_extras_are_named(tmp_path, capsys, monkeypatch):
    path = write(tmp_path, "run.json", content())
    monkeypatch.setattr(_cli.importlib.util, "find_spec", lambda name: None)
    assert report(path, "-o", tmp_path / "out") == _cli.UNUSABLE
    message = capsys.readouterr().err
    assert "matplotlib, jinja2" in message and "scipy" not in message and "[bench]" in message
    assert report(path, write(tmp_path, "b.json", content())) == _cli.UNUSABLE
    assert "scipy" in capsys.readouterr().err


def test_kinds_of_files_are_distinguished():
    assert check_files.is_check(check_content()) and not results.is_run(check_content())
    assert results.is_run(content()) and not check_files.is_check(content())
    for entry in ("histogram", "max"):
        broken = check_content()
        del broken["results"]["float32"]["random"]["c"]["loss"][entry]
        assert not check_files.is_check(broken)
    longer = check_content()
    longer["edges"].append(4)
    assert not check_files.is_check(longer)


def test_a_check_without_a_verdict_is_judged_by_its_failures():
    for failures, verdict in (([], "right"), ([{"text": "x"}], "wrong"), (["x"], "wrong")):
        check = check_files.Check(Path("x"), {"failures": failures})
        assert check.verdict == verdict
        assert check.failures == ["x"][: len(failures)]
        assert check_files.Check(Path("x"), {**check.content, "verdict": "odd"}).verdict == "odd"


# ---------------------------------------------------------------------------------------------
# The page


class Parsed(HTMLParser):
    """Text, ids and references of a page; tags must be closed in order."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.tags, self.alts = [], [], [], []
        self.rows, self.text = [], []
        self._open = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self._open += [] if tag in self.VOID else [tag]
        self._note(tag, dict(attributes))

    def handle_startendtag(self, tag, attributes):
        self._note(tag, dict(attributes))

    def _note(self, tag, attributes):
        self.tags.append(tag)
        self.rows += [[]] if tag == "tr" else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(value)
            self.references += re.findall(r"url\((.+?)\)", value or "")
        if tag == "svg":
            self.alts.append(attributes.get("aria-label"))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a report: two runs of one machine, one of another, a check, and goals."""
    for name in ("matplotlib", "jinja2", "scipy"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("report")
    elements = {**ELEMENTS, HOSTILE: 5000}
    losses = [("64x10", "fused", "torch", 0.1), (HOSTILE, "forward", "JAX + optax", 0.2)]
    slower = [("1024x1000", "fused", "pyce c", 1.3), ("64x10", "fused", "pyce c", 0.7)]
    made = [
        content(seed=1, elements=elements, day=1),
        content(seed=2, elements=elements, day=2, slower=[*losses, *slower]),
        content(seed=3, elements=elements, day=1, kind="other"),
    ]
    for name, over in (("floor", 1.0), ("pyce c", 3.5)):
        head = item("head-60x24x360", 60 * 360, "head-fused", name, over)
        head["extra_info"]["memory"] = 3 * 2**20 if name == "pyce c" else None
        made[1]["benchmarks"].append(head)
    paths = [write(folder, f"{i}.json", one) for i, one in enumerate(made)]
    paths.insert(0, write(folder, "check.json", check_content()))
    paths.append(write(folder, "goals.json", goals_of(made[1])))
    assert report(*paths, "--output", folder / "out") == 0
    return folder / "out"


@pytest.fixture(scope="module")
def page(written):
    return Parsed((written / "index.html").read_text(encoding="utf-8"))


def test_page_has_every_workload_and_every_loss(page):
    for workload in (*ELEMENTS, HOSTILE):
        assert any(row[:1] == [workload] for row in page.rows)
    losses = [row for row in page.rows if len(row) == 6 and row[3].endswith("as fast")]
    assert [row[:4] for row in losses] == [
        [HOSTILE, "loss alone", "JAX + optax", "2 × as fast"],
        ["64x10", "loss and gradient", "torch", "1.56 × as fast"],
    ]
    (goal,) = [
        row for row in page.rows if row[:2] == ["fused, time over the copy floor", "2048x32000"]
    ]
    assert re.fullmatch(r"missed by [56]\d(\.\d)? %", goal[2]) and goal[3] == "≤ 1.2"


def test_page_marks_the_change_of_the_history(page):
    changes = [row for row in page.rows if row[-1:] in (["slower"], ["faster"])]
    assert [(*row[:4], row[-1]) for row in changes] == [
        ("2", "1024x1000", "loss and gradient", "pyce c", "slower"),
        ("2", "64x10", "loss and gradient", "pyce c", "faster"),
    ]
    alts = [alt for alt in page.alts if "marked: 1 slower than the run before, 1 faster" in alt]
    assert len(alts) == 1 and "pyce c" in alts[0]


def test_page_shows_the_check(page):
    text = "".join(page.text)
    assert "1 promise is broken" in text and "c, float32, random: <b>wrong</b>" in text
    assert ["random logits", "0.80 / –", "0.80 / –"] in page.rows
    assert ["odd", "0.80 / –", "– / –"] in page.rows
    assert ["loss / gradient, ULP", "pyce c", "PyTorch"] in page.rows


def test_page_shows_the_heads(page):
    heads = [row for row in page.rows if row[0] == "head-60x24x360"]
    assert [(row[1], row[2], *row[4:]) for row in heads] == [
        ("loss and gradients", "one product", heads[0][4]),
        ("loss and gradients", "pyce c", heads[1][4], "3 MiB"),
    ]
    assert float(heads[0][4]) == pytest.approx(1, rel=0.1)
    assert float(heads[1][4]) == pytest.approx(3.5, rel=0.1)


def test_page_has_all_figures(page):
    figures = [row for row in page.rows if row[1:2] == ["a test"]]
    names = {row[2] for row in figures}
    assert names == {*TIMES, "floor", "floor, 1 thread", "pyce c, 1 thread"}
    for _, _, name, threads, *numbers in figures:
        assert threads == ("1" if name.endswith(", 1 thread") else "2")
        # Time, GB/s, the ratio to the floor with its interval, and those to C and NumPy.
        assert len(numbers) == (4 if name.startswith("floor") else 6), (name, numbers)


def test_words_are_on_the_left_and_numbers_on_the_right(written):
    text = (written / "index.html").read_text(encoding="utf-8")
    headers = re.findall(r'<th scope="col"( class="n")?>([^<]*)</th>', text)
    on_the_right = {name for right, name in headers if right}
    on_the_left = {name for right, name in headers if not right}
    assert on_the_right >= {"limit", "held-out accuracy", "by", "p", "GB/s", "memory added"}
    assert on_the_left >= {"goal", "backend", "loss / gradient, ULP", "faster", "file", ""}
    assert not on_the_left & {"limit", "held-out accuracy", "by", "p", "GB/s", "memory added"}
    assert not on_the_right & {"goal", "backend", "loss / gradient, ULP", "faster", "file"}
    assert '<td class="n">missed' not in text and '<td class="n">pyce' not in text


def test_page_is_escaped_and_needs_no_other_files(written, page):
    text = (written / "index.html").read_text(encoding="utf-8")
    assert "script" not in page.tags and "b" not in page.tags
    assert "<script>alert" not in text
    assert all(reference.startswith("#") for reference in page.references)
    assert {r[1:] for r in page.references} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "//" not in re.sub(r"\s//\s", "", re.sub(r"<style>.*?</style>", "", text, flags=re.S))
    assert "@import" not in text
    assert "a-host-name" not in text
    assert str(written) not in text


def test_pictures_have_alternatives_and_colours_of_the_theme(written, page):
    text = (written / "index.html").read_text(encoding="utf-8")
    assert len(page.alts) == len(list(written.glob("*.png"))) >= 9
    assert all(page.alts) and len(set(page.alts)) == len(page.alts)
    assert "prefers-color-scheme: dark" in text
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= set(re.findall(r"(--\w+):", text))
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        assert not re.findall(r"(?:fill|stroke): ?#", svg)  # would be the same on light and dark
        assert not (ElementTree.fromstring(svg).text or "").strip()


def test_pictures_are_not_blank(written):
    from matplotlib.image import imread

    for path in written.glob("*.png"):
        pixels = imread(path)[..., :3]
        colours = {tuple(colour) for colour in pixels[::4, ::4].reshape(-1, 3).round(1)}
        inked = (pixels.min(axis=-1) < 0.9).mean()
        assert len(colours) > 8 and 0.01 < inked < 0.9, path.name


def test_a_picture_for_each_part(written):
    names = {path.stem for path in written.glob("*.png")}
    assert names == {
        *("roofline", "over-floor", "speed-up", "threads", "digits"),
        *("history-1-1", "history-1-2", "history-1-3"),
        *("errors-1-1", "errors-1-2"),
    }


def test_several_numbers_of_threads_are_curves(tmp_path):
    pytest.importorskip("matplotlib")
    from pyce._bench.report import plots

    made = content(elements={"64x10": 640, "1024x1000": 1_024_000})
    more = [
        item(workload, elements, "fused", name, 2.0, threads)
        for workload, elements in ELEMENTS.items()
        for name in ("floor", "pyce c")
        for threads in (4, 8)
    ]
    for one in more:
        one["extra_info"]["candidate"] += f", {one['extra_info']['threads']} threads"
    made["benchmarks"] += more
    shown = summaries.Shown(Run(Path("x"), made))
    assert shown.thread_counts == [1, 2, 4, 8]
    (threads,) = [p for p in plots.draw(shown) if p.name == "threads"]
    assert "1, 2, 4 and 8 threads" in threads.alt
    panels = [axes for axes in threads.figure.axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == list(ELEMENTS)
    for panel, workload in zip(panels, ELEMENTS, strict=True):
        curves = {line.get_label(): line.get_data() for line in panel.lines}
        here = shown.scaling[workload, "fused"]
        assert curves.keys() == {"ideal", "floor (copy)", "pyce c"}
        assert all(map(np.array_equal, curves["ideal"], [[1, 2, 4, 8]] * 2))
        for label, name in (("floor (copy)", "floor"), ("pyce c", "pyce c")):
            counts, speed_ups = curves[label]
            assert dict(zip(counts, speed_ups, strict=True)) == here[name]
            for (low, high), values in (
                (panel.get_xlim(), counts),
                (panel.get_ylim(), speed_ups),
            ):
                assert low < min(values) <= max(values) < high


def test_json_has_the_files_and_the_facts(tmp_path, capsys):
    for name in ("matplotlib", "jinja2"):
        pytest.importorskip(name)
    made = content(elements={"64x10": 640}, slower=[("64x10", "fused", "torch", 0.1)])
    made["benchmarks"] = [b for b in made["benchmarks"] if "losses" not in b["extra_info"]]
    path = write(tmp_path, "run.json", made)
    wanted = write(tmp_path, "goals.json", goals_of(made))
    assert report(path, wanted, "--json", "-o", tmp_path / "out") == 0
    said = json.loads(capsys.readouterr().out)
    assert all(Path(path).stat().st_size > 1000 for path in said["written"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {Path(p).name for p in said["written"]}
    assert [(x["workload"], x["faster"]) for x in said["losses"]] == [("64x10", "torch")]
    assert said["goals"]["missed"][0]["workload"] == "64x10"


def test_the_ratio_to_the_floor_is_a_range_only_of_several(tmp_path):
    for sizes, several in ((ELEMENTS, True), ({"64x10": 640}, False)):
        made = content(elements=sizes)
        made["benchmarks"] = [
            b for b in made["benchmarks"] if b["extra_info"]["operation"] == "fused"
        ]
        shown = summaries.Shown(Run(Path("x"), made))
        (said,) = report_page._of_floor(shown, {})
        assert (said.count("loss and gradient)") == 2) is several, said
        assert " times as long as the floor, which is a copy of the logits" in said


def test_a_file_of_a_picture_says_which_machine(written, page):
    """The lowest line of the file, which the page's own picture does not have."""
    from matplotlib.image import imread

    about = "Some CPU, 2 threads, avx2"
    assert about in (written / "index.html").read_text("utf-8")
    for path in written.glob("*.png"):
        pixels = imread(path)[..., :3].min(axis=-1)
        assert (pixels[-30:] < 0.6).any(axis=0).sum() > 100, path.name
        assert (pixels[-36:-29] > 0.9).all(), f"{path.name}: the line touches the legend"


def test_a_check_alone(tmp_path, capsys):
    for name in ("matplotlib", "jinja2"):
        pytest.importorskip(name)
    path = write(tmp_path, "check.json", check_content())
    folder = tmp_path / "two\x85lines"
    assert report(path, "-o", folder) == 0
    said = capsys.readouterr().out
    assert "1 promise is broken" in said
    assert r"two\x85lines" in said
    assert said.endswith("index.html and 2 pictures in the same folder\n")
    assert len(list(folder.glob("errors-*.png"))) == 2


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    for name in ("matplotlib", "jinja2"):
        pytest.importorskip(name)
    path = write(tmp_path, "check.json", check_content())
    before = path.read_bytes()
    assert report(path, "-o", path) == _cli.UNUSABLE
    assert f"can't write to {path}: " in capsys.readouterr().err
    assert path.read_bytes() == before


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path, run_python):
    for name in ("matplotlib", "jinja2"):
        pytest.importorskip(name)
    path = write(tmp_path, "check.json", check_content())
    code = (
        "import sys, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 33\n"
        "def settings():\n"
        "    # Asking for the backend would choose one.\n"
        "    return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from pyce.__main__ import main\n"
        f"assert main(['report', {str(path)!r}, '-o', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert settings() == before\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "False"


def test_the_input_is_left_as_it_is():
    made = content()
    before = copy.deepcopy(made)
    shown = summaries.Shown(Run(Path("x"), made))
    assert shown.losses == [] and made == before

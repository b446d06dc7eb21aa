"""The measured tables of the README and of the documentation."""

import json
import re

import pytest
from bench_scripts import FOLDER, readme_tables
from run_files import ELEMENTS, content, run_of

from pyce import _cli
from pyce._check import findings


def test_the_table_of_peers_marks_faster_ones_in_bold():
    text = readme_tables.peers_markdown(run_of(slower=[("64x10", "fused", "torch", 0.1)]))
    rows = [line for line in text.splitlines() if line.startswith("| 64x10, a test")]
    assert [re.findall(r"\*\*(.+?)\*\*", row) for row in rows] == [["0.45 ×"], []]
    assert "| workload | floor | pyce c | pyce numba | pyce numpy | torch | JAX + optax |" in text
    assert "1 thread" not in text and "digits" not in text
    goal = r"\| fused, time over the copy floor \| 2048x32000 \| ≤ 1.2 \| \*\*(.+)\*\* \|"
    assert float(re.search(goal, text)[1]) == pytest.approx(2, rel=0.05)
    assert "| two threads over one | 1024x1000 | ≤ 1.05 | 0.501 |" in text
    short = readme_tables.peers_markdown(
        run_of(slower=[("64x10", "fused", "torch", 0.1)]), full=False
    )
    assert rows[0] in short and "Loss alone" not in short and "| limit |" not in short
    assert re.search(r"Missed: .*time over the copy floor: 2048x32000 \S+ \(≤ 1.2\)", short)


def test_the_headline_has_the_measured_ratios():
    text = " ".join(readme_tables.headline(run_of()).split())
    assert text.startswith("**AVX2**: loss and gradient together take less time than in torch, JAX")
    assert "JAX + optax at every shape measured" in text
    assert "2.5 to 4.5 times as fast with 32,000 classes and more" in text
    assert "at least 2.5 times with fewer" in text
    assert "Measured on 2026-01-01 at commit 000000001 on Some CPU with 2 threads, avx2." in text
    text = readme_tables.headline(run_of(slower=[("64x10", "fused", "torch", 0.1)]))
    assert "at most shapes measured" in text and "at least 0.45 times" in text


def test_the_table_of_torch_marks_slow_downs_in_bold():
    times = {"pyce c": 2.0, "torch": 9.0, "torch.compile": 6.0, "pyce torch": 3.0}
    slow = [("64x10", "fused", "pyce torch", 4)]
    run = run_of(times=times, slower=slow)
    run.machine["versions"]["torch"] = "2.13"
    rows = [
        line.split(" | ")
        for line in readme_tables.torch_markdown(run).splitlines()
        if "a test" in line
    ]
    assert [row[0] for row in rows] == [f"| {name}, a test" for name in ELEMENTS]
    assert [row[-1] for row in rows] == ["**0.5** |", "2 |", "2 |"]


def of_heads(tmp_path, name="head.json", day=1, machine=None, both=True):
    """A file of bench with two heads, the second one larger."""
    file = content(times=ALL_TIMES, day=day)
    file["machine_info"]["pyce"].update(machine or TORCH)
    file["machine_info"]["pyce"]["versions"] = {"numpy": "2.4", "torch": "2.13"}
    if not both:
        file["benchmarks"] = []
    for rows, features, classes in ((8, 16, 100), (1024, 768, 50257)):
        workload = f"head-{rows}x{features}x{classes}"
        for operation, over in (("head-forward", 1.1), ("head-fused", 3.2), ("head-filtered", 1.5)):
            for who, factor in (("floor", 1 / over), ("pyce c", 1.0), ("torch", 2.0)):
                if who == "torch" and operation == "head-filtered":
                    continue
                about = {
                    "workload": workload,
                    "stands_for": "a test",
                    "shape": [rows, classes],
                    "features": features,
                    "elements": rows * classes,
                    "dtype": "float32",
                    "target": "index",
                    "axis": -1,
                    "operation": operation,
                    "candidate": who,
                    "kind": {"floor": "floor", "torch": "peer"}.get(who, "backend"),
                    "backend": "c" if who == "pyce c" else None,
                    "threads": 2,
                    "bytes": 1,
                    "target_bytes": 1,
                    "blocks": [over * factor],
                    "over_floor": [over * factor],
                    "memory": None if who == "floor" else 64 * 2**20,
                }
                one = {"extra_info": about, "stats": {"median": over * factor}}
                file["benchmarks"].append(one)
    path = tmp_path / name
    path.write_text(json.dumps(file))
    return path


def test_tables_of_heads(tmp_path):
    run = readme_tables.results.load(of_heads(tmp_path))
    text = readme_tables.head_markdown(run)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[:2] == [
        "| 8×16×100, a test | loss | loss and gradients | the same, columns left out | memory |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    assert rows[2:5] == [
        "| `pyce`, C backend | 1.1 s (1.1) | 3.2 s (3.2) | 1.5 s (1.5) | 64 MiB |",
        "| PyTorch, all logits | 2.2 s (2.2) | 6.4 s (6.4) | – | 64 MiB |",
        "| one product alone | 1 s (1) | – | – | – |",
    ]
    assert rows[5].startswith("| 1024×768×50257, a test |")
    assert "| head, columns left out, in products | head-1024x768x50257 | ≤ 1.7 | 1.5 |" in rows
    short = readme_tables.head_markdown(run, full=False)
    assert "1024×768×50257" in short and "8×16×100" not in short and "Goals" not in short
    # The other tables have no head.
    assert "head-" not in readme_tables.peers_markdown(run)
    assert "head-" not in readme_tables.headline(run) + readme_tables.torch_markdown(run)


def test_heads_come_from_the_newest_file_that_has_them(tmp_path, page, monkeypatch, capsys):
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    blocks = [f"{block}-{isa}" for block in ("bench-head", "bench-head-full") for isa in ISAS]
    text = "".join(f"<!-- {b}:begin -->\nold\n<!-- {b}:end -->\n" for b in blocks)
    page.write_text(page.read_text("utf-8") + text)
    made(tmp_path, "peers.json", times=ALL_TIMES, day=9, machine=TORCH)
    of_heads(tmp_path, "head.json", day=4, both=False)
    of_heads(tmp_path, "peers-old.json", day=2)
    write_tables(page)
    found = parts(page)
    for block in ("bench-head", "bench-head-full"):
        assert "Measured on 2026-01-04" in found[f"{block}-avx2"]
        assert found[f"{block}-avx512"] == "old"
        assert f"{block}-avx512 stays as it is" in capsys.readouterr().out or block != "bench-head"
    assert "Measured on 2026-01-09" in found["bench-avx2"]


def made(tmp_path, name, **options):
    """A file of bench; `options` are those of `content`, and `machine`."""
    machine = options.pop("machine", {})
    file = content(**options)
    file["machine_info"]["pyce"].update(machine)
    path = tmp_path / name
    path.write_text(json.dumps(file))
    return path


ISAS = ("avx512", "avx2")
BLOCKS = ("bench-headline", "bench-torch", "bench", "bench-full")
ALL_TIMES = {"pyce c": 2.0, "torch": 9.0, "torch.compile": 6.0, "pyce torch": 3.0}
TORCH = {"versions": {"Python": "3.12.1", "torch": "2.13"}}


@pytest.fixture
def page(tmp_path):
    """A page with every block, for two instruction sets."""
    path = tmp_path / "page.md"
    blocks = [f"{block}-{isa}" for isa in ("avx512", "avx2") for block in BLOCKS]
    path.write_text("".join(f"<!-- {b}:begin -->\nold {b}\n<!-- {b}:end -->\n" for b in blocks))
    return path


def parts(page):
    """{block: the text between its markers}"""
    found = re.findall(
        r"<!-- ([a-z0-9-]+):begin -->\n(.*?)\n<!-- \1:end -->", page.read_text("utf-8"), re.DOTALL
    )
    return dict(found)


def write_tables(*arguments):
    options = readme_tables.parser().parse_args([str(argument) for argument in arguments])
    return readme_tables.main(options)


def test_tables_of_another_instruction_set_stay(tmp_path, page, capsys):
    measured = made(tmp_path, "avx2.json", times=ALL_TIMES, machine=TORCH)
    assert write_tables(page, "--bench", measured) == 0
    found = parts(page)
    dated = "Measured on 2026-01-01 at commit 000000001 on Some CPU with 2 threads, avx2"
    said = capsys.readouterr().out
    for block in BLOCKS:
        assert dated in found[f"{block}-avx2"]
        assert found[f"{block}-avx512"] == f"old {block}-avx512"
        assert f"{block}-avx512 stays as it is" in said
        assert f"{block}-avx2 stays" not in said
    # The other instruction set, measured later.
    machine = {**TORCH, "isa": "avx512", "isas": ["avx512", "avx2"], "model": "family 26, model 2"}
    other = made(tmp_path, "avx512.json", times=ALL_TIMES, day=2, machine=machine)
    write_tables(page, "--bench", other)
    after = parts(page)
    for block in BLOCKS:
        assert after[f"{block}-avx2"] == found[f"{block}-avx2"]
        about = after[f"{block}-avx512"]
        assert "2026-01-02 at commit 000000002 on Some CPU (family 26, model 2) with" in about
    assert "| fused, time over the copy floor | 2048x32000 | ≤ 1.25 |" in after["bench-full-avx512"]
    assert "| fused, time over the copy floor | 2048x32000 | ≤ 1.2 |" in after["bench-full-avx2"]


def test_the_newest_file_of_an_instruction_set_is_used(tmp_path, page, monkeypatch):
    """Without options, all files of bench/results are read."""
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    for name, day in (("peers.json", 5), ("peers-avx2.json", 3)):
        made(tmp_path, name, times=ALL_TIMES, day=day, machine=TORCH)
    one = {**TORCH, "threads": 1}
    times = {**ALL_TIMES, "JAX + optax": 5.0}
    made(tmp_path, "one-thread.json", times=times, day=4, machine=one)
    write_tables(page)
    found = parts(page)
    assert all("2026-01-05" in found[f"{block}-avx2"] for block in BLOCKS)
    for block in ("bench-avx2", "bench-full-avx2"):
        assert "Goals on one processor. Measured on 2026-01-04" in found[block]
        assert "with 1 thread, avx2" in found[block]
    goal = "| fused on one thread, times faster than JAX | 1024x1000 | ≥ 1.9 | 2.5 |"
    assert goal in found["bench-full-avx2"]


def test_a_table_says_that_c_was_held(tmp_path, page):
    held = {**TORCH, "isas": ["avx512", "avx2", "scalar"]}
    write_tables(page, "--bench", made(tmp_path, "a.json", times=ALL_TIMES, machine=held))
    found = parts(page)
    for block in BLOCKS:
        assert "avx2, to which C was held on a processor with avx512" in found[f"{block}-avx2"]
    assert "other libraries use all that the processor has" in found["bench-avx2"]
    assert found["bench-avx512"] == "old bench-avx512"


def test_errors_that_were_not_measured_stay(tmp_path, page, capsys):
    """On another machine only the speed is measured again."""
    text = "<!-- accuracy:begin -->\nold\n<!-- accuracy:end -->\n" + page.read_text("utf-8")
    page.write_text(text)
    measured = made(tmp_path, "a.json", times=ALL_TIMES, machine=TORCH)
    write_tables(page, "--bench", measured, "--accuracy", tmp_path / "none.json")
    assert parts(page)["accuracy"] == "old"
    assert "accuracy stays as it is" in capsys.readouterr().out
    assert "Measured on" in parts(page)["bench-avx2"]


@pytest.mark.parametrize("name", ["bench", "bench-full", "bench-mmx", "accuracies"])
def test_markers_without_an_instruction_set(tmp_path, name):
    path = tmp_path / "page.md"
    path.write_text(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n")
    with pytest.raises(_cli.Unusable, match="bench-avx2:begin"):
        write_tables(path)


def test_pages_of_the_project_have_tables_of_both_instruction_sets():
    """Each block that depends on the processor is there for AVX-512 and for AVX2."""
    root = FOLDER.parent
    for name, blocks in {
        "README.md": {"bench-headline", "bench", "bench-head"},
        "docs/speed.md": {"bench-full"},
        "docs/torch.md": {"bench-torch"},
        "docs/language-model-head.md": {"bench-head-full"},
        "docs/sklearn.md": {"fit-times"},
    }.items():
        found = parts(root / name)
        assert {f"{block}-{isa}" for block in blocks for isa in ("avx512", "avx2")} <= set(found)
        for block in blocks:
            assert "Measured on 20" in found[f"{block}-avx512"]


def test_replace_changes_only_the_text_between_the_markers(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nz\n", encoding="utf-8")
    readme_tables.replace(path, "bench", "new ≤\n")
    expected = "a\n<!-- bench:begin -->\n\nnew ≤\n\n<!-- bench:end -->\nz\n"
    assert path.read_text(encoding="utf-8") == expected
    with pytest.raises(_cli.Unusable, match="accuracy:begin"):
        readme_tables.replace(path, "accuracy", "new")
    assert path.read_text(encoding="utf-8") == expected


def test_the_table_of_accuracy(tmp_path):
    about = {"numbers": 2, "right": 0.5, "median": 0.4, "99.9%": 1.0, "histogram": [2]}

    def of(loss, gradient):
        return {"loss": {**about, "max": loss}, "gradient": {**about, "max": gradient}}

    results = {
        "random": {"c": of(0.67, 1.88), "PyTorch": of(4.32, 2e7)},
        "text": {"c": of(0.5, 0.5), "PyTorch": of(1.0, 1.0)},
        "confident100": {"c": of(None, None), "PyTorch": of(None, findings.INFINITE)},
    }
    found = {
        "versions": {"Python": "3.12", "numpy": "2.4.6", "torch": "2.13.0"},
        "shapes": [[3000, 10], [3, 32000]],
        "results": {"float32": results},
    }
    saved, page = tmp_path / "accuracy.json", tmp_path / "README.md"
    saved.write_text(json.dumps(found))
    page.write_text("before\n<!-- accuracy:begin -->\nold\n<!-- accuracy:end -->\nafter\n")
    options = readme_tables.parser().parse_args([str(page), "--accuracy", str(saved)])
    assert readme_tables.main(options) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- accuracy:begin -->\n\nLargest errors in units")
    assert text.endswith("\n<!-- accuracy:end -->\nafter\n")
    assert "over 3000×10, 3×32000; those beyond 2 / 4 in bold" in text
    assert "numpy 2.4.6, torch 2.13.0." in text
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| float32 | c | PyTorch |",
        "| --- | ---: | ---: |",
        "| random | 0.67 / 1.88 | **4.32** / **2e7** |",
        "| confident by 100 | – / – | – / **∞** |",
    ]
    page.write_text("no markers")
    with pytest.raises(_cli.Unusable, match="must have the lines"):
        readme_tables.main(options)

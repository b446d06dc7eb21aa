"""The example that fits classifiers on frozen features: a small run."""

from pathlib import Path

import pytest

pytest.importorskip("sklearn", minversion="1.6")
EXAMPLE = Path(__file__).parents[2] / "examples" / "frozen_features.py"
if not EXAMPLE.exists():
    pytest.skip("examples are not part of an installed package", allow_module_level=True)


def test_a_small_run(run_python):
    options = ["--samples=3000", "--features=8", "--classes=5", "--max-iter=3"]
    out = run_python(str(EXAMPLE), *options).stdout.splitlines()
    assert out[0].startswith("3000 × 8 float32 features, 5 classes; ")
    assert any(line.startswith("iteration 3 of at most 3: objective ") for line in out)
    rows = [line.strip("| ").split(" | ") for line in out if line.startswith("|")]
    head, _, theirs, ours = rows
    assert [len(row) for row in rows] == [len(head)] * 4
    assert (theirs[0], ours[0]) == ("LogisticRegression", "SoftmaxRegression")
    assert theirs[1] == ours[1] == "3"
    assert float(ours[-1]) == pytest.approx(float(theirs[-1]), abs=0.01)

"""Whether the installed pyce is the one of a wheel, and computes: what every package is tried with.

python -I smoke.py [BACKEND]: the one that must be in use, "c" unless told otherwise.
"""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

import pyce
from pyce._selection import selections

CLONE = Path(__file__).resolve().parents[1]
expected = sys.argv[1] if len(sys.argv) > 1 else "c"

assert Path(pyce.__file__).parents[1] != CLONE, "this is the clone, not what was installed"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    report = pyce.info()
assert report["backend"] == expected, report
slow = [str(w.message) for w in caught if "many times slower" in str(w.message)]
assert bool(slow) == (expected != "c"), slow  # never slow in silence

command = [sys.executable, "-I", "-W", "ignore", "-m", "pyce", "--json"]
assert json.loads(subprocess.check_output(command)) == report

rng = np.random.default_rng(0)
x, labels = rng.normal(size=(2000, 1000)), rng.integers(0, 1000, 2000)
shifted = x - x.max(1, keepdims=True)
p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
right = -np.log(p[np.arange(2000), labels]).mean()
p[np.arange(2000), labels] -= 1
for selection in selections([expected]):
    with selection.selected():
        loss, grad = pyce.cross_entropy_with_grad(x, labels)
    np.testing.assert_allclose(loss, right, rtol=1e-12)
    np.testing.assert_allclose(grad, p / 2000, rtol=1e-9, atol=1e-16)
print(json.dumps(report))

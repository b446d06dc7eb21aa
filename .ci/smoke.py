"""Checks an installed package: that pyce is imported from it, not from the clone, and computes.

    python -I smoke.py [BACKEND]

BACKEND must be the backend in use; it is "c" by default.
"""

import json
import subprocess
import sys
import sysconfig
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
slow = [str(w.message) for w in caught if "slower than it could" in str(w.message)]
assert bool(slow) == (expected != "c"), slow  # a slow backend warns

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
# On a free-threaded Python, nothing that was imported has switched the GIL on.
free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
assert not free_threaded or not sys._is_gil_enabled(), "the GIL was enabled"
print(json.dumps(report))

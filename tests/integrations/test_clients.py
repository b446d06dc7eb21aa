"""Programs that use pyce through other tools, which `make test-clients` installs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyce

ROOT = Path(pyce.__file__).resolve().parents[1]
PROGRAM = """
import json, sys
import numpy as np
import pyce

found = []
for name in pyce.backends():
    with pyce.use_backend(name):
        found.append(float(pyce.cross_entropy(np.eye(3), [0, 1, 2])))
assert sys.frozen
print(json.dumps([pyce.info(), found]))
"""


def test_a_frozen_program(tmp_path):
    """PyInstaller includes every backend without further options."""
    pytest.importorskip("PyInstaller")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    left_out = ["torch", "jax", "sklearn", "scipy", "dask", "distributed", "mpi4py", "matplotlib"]
    left_out += ["PIL", "pandas", "ml_dtypes"]
    options = ["--noconfirm", "--log-level", "WARN", "--paths", str(ROOT)]
    for name in left_out:
        options += ["--exclude-module", name]
    freeze = [sys.executable, "-m", "PyInstaller", *options, "program.py"]
    subprocess.run(freeze, cwd=tmp_path, check=True, timeout=600)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYCE_", "PYTHON"))}
    clean["HOME"] = str(tmp_path)  # for Numba's cache
    program = tmp_path / "dist" / "program" / "program"
    said = subprocess.run([program], env=clean, cwd="/", capture_output=True, text=True, check=True)
    report, found = json.loads(said.stdout)
    available = list(pyce.backends())
    assert [n for n, reason in report["backends"].items() if reason is None] == available
    assert report["isas"] == pyce.info()["isas"]
    assert found == pytest.approx([pyce.cross_entropy([[1.0, 0.0, 0.0]], [0])] * len(available))

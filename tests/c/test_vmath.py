"""The kernels' exponentials and logarithms against the bounds that vmath.inc.h states.

tests/c/vmath/check_vmath.c checks them, built here with the extension's compiler: every instruction
set of this machine, and that all give the same bits. PYCE_TEST_EXHAUSTIVE=1 checks every float.
csrc/kernels/coefficients.py checks the tables and coefficients.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import WITHOUT_C

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
KERNELS = ROOT / "csrc" / "kernels"
PROGRAM = sorted((TESTS / "c" / "vmath").glob("*.c"))
# As csrc/build_ffi.py has them.
FLAGS = ["-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unused-function"]

# The reference is computed in long double, which on some processors is no longer than double.
needs_long_double = pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason="long double is double"
)

EXHAUSTIVE = os.environ.get("PYCE_TEST_EXHAUSTIVE") == "1"
STEP, TIMEOUT = (1, 3600) if EXHAUSTIVE else (101, 900)


def compiler():
    command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(command[0]) is None:
        if WITHOUT_C:
            pytest.skip("no C compiler, and PYCE_TEST_WITHOUT_C=1")
        pytest.fail(f"no C compiler: {command[0]}")
    return command


def build(directory, kernels=KERNELS, flags=()):
    program = directory / "check_vmath"
    sources = [str(path) for path in PROGRAM]
    command = [*compiler(), *FLAGS, *flags, f"-I{kernels}", "-o", str(program), *sources, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run(program, step):
    command = [str(program), str(step), "2"]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


@needs_long_double
def test_exponentials_and_logarithms_are_as_exact_as_stated(tmp_path):
    done = run(build(tmp_path), STEP)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    # All the floats from -382 to 256, and of them each STEP-th.
    seen = int(re.search(r"^float exp, ulp +(\d+) ", done.stdout, re.MULTILINE)[1])
    floats = 0x43800000 + 0x43BF0000
    assert seen >= floats / STEP


@needs_long_double
def test_plain_c_has_the_same_bits_without_fma_in_hardware(tmp_path):
    """Where an x86-64 processor has fma, the plain C for those without does not run otherwise."""
    done = run(build(tmp_path, flags=["-DPLAIN_FMA_SUPPORTED=0"]), 9973)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^instruction sets:.* scalar; differing bits: 0;", done.stdout, re.MULTILINE)


# One unit in the last place of a table, and a range that is a little too small.
MUTATIONS = {
    "a float": ("exp_f32.inc.h", "EXP_3 0x1.55549p-3f", "EXP_3 0x1.55589p-3f"),
    "a double": ("exp_f64.inc.h", "0x1.ebfdad5362a27p-1", "0x1.ebfdad5362a28p-1"),
    "the range": ("real_f32.h", "EXP_RANGE 126.0f", "EXP_RANGE 125.0f"),
}


@needs_long_double
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_check_sees_a_small_mistake(tmp_path, name):
    """What holds the functions to their bounds fails where one is slightly off."""
    file, right, wrong = MUTATIONS[name]
    for folder in (KERNELS.parent, KERNELS):
        copy = tmp_path / folder.relative_to(KERNELS.parent.parent)
        copy.mkdir()
        for path in folder.glob("*.h"):
            (copy / path.name).write_bytes(path.read_bytes())
    kernels = tmp_path / "csrc" / "kernels"
    text = (kernels / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (kernels / file).write_text(text.replace(right, wrong), encoding="utf-8")
    done = run(build(tmp_path, kernels, flags=["-O1"]), 9973)
    assert done.returncode == 1, done.stdout
    assert re.search("EXCEEDED|out of range: [1-9]", done.stdout)


def number(file, name):
    text = (KERNELS / file).read_text(encoding="utf-8")
    return float(re.search(rf"^#define {name} ([\d.]+)", text, re.MULTILINE)[1])


def test_the_pages_quote_the_constants():
    page = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
    for precision, bound in (("f32", "VF_EXP_ULP"), ("f64", "VD_EXP_ULP")):
        limit, width = (number(f"real_{precision}.h", n) for n in ("SHIFT_LIMIT", "EXP_RANGE"))
        error = number("vmath.inc.h", bound)
        assert f"| float{precision[1:]} | {limit:g} | {width:g} | {error:g} |" in page
    bound = number("vmath.inc.h", "VF_EXP_ULP")
    notes = (KERNELS / "README.md").read_text(encoding="utf-8")
    assert f"an error below {bound} ULP" in notes
    inside = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")
    assert f"computed in float32 to {bound} units" in inside


def run_coefficients(folder):
    command = [sys.executable, str(folder / "coefficients.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_coefficients_are_those_that_the_script_computes():
    done = run_coefficients(KERNELS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong", "name"),
    [
        ("exp_f32.inc.h", "EXP_3 0x1.55549p-3f", "EXP_3 0x1.5555p-3f", "exp of floats"),
        ("vmath.inc.h", "0.2857175456161631", "0.2857175466161631", "log1p short"),
    ],
)
def test_the_script_sees_a_small_mistake(tmp_path, file, right, wrong, name):
    for path in [*KERNELS.glob("*.h"), KERNELS / "coefficients.py"]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong), encoding="utf-8")
    done = run_coefficients(tmp_path)
    assert done.returncode == 1
    assert f"{name}" in done.stdout.splitlines()[-1]

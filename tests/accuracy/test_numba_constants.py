"""The coefficients of the Numba backend are those that csrc/kernels/coefficients.py derives."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
mpmath = pytest.importorskip("mpmath")

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"


@pytest.fixture
def derived(monkeypatch):
    """The module coefficients.py, which also reads the constants of the headers."""
    monkeypatch.syspath_prepend(str(KERNELS))
    with mpmath.workprec(mpmath.mp.prec):  # the module sets another precision
        import coefficients

        yield coefficients
    del sys.modules["coefficients"]


@pytest.mark.parametrize(
    ("header", "prefix", "name"),
    [
        ("exp_f32.inc.h", "EXP_", "EXP_32"),
        ("vmath.inc.h", "REDUCED_", "EXP_64"),
        ("vmath.inc.h", "LOG_", "LOG"),
    ],
)
def test_polynomials(derived, header, prefix, name):
    from pyce._backends.numba import _math

    (polynomial,) = [p for p in derived.POLYNOMIALS[header] if p.prefix == prefix]
    text = derived.header(header)
    found = [float(c) for c in getattr(_math, name)]
    assert found == [derived.constant(text, f"{prefix}{k}") for k in polynomial.powers]
    assert polynomial.worst([derived.mp.mpf(c) for c in found], polynomial.size) < polynomial.bound


def test_logarithms_of_two(derived):
    from pyce._backends.numba import _math

    ln2 = derived.LN2
    assert float(_math.LOG2E_32) == derived.rounded(1 / ln2, 24)
    assert derived.rounded(1 / ln2, 53) == _math.LOG2E_64
    for high, low, bits in (
        (_math.LN2_HIGH_32, _math.LN2_LOW_32, 24),
        (_math.LN2_HIGH_64, _math.LN2_LOW_64, 53),
    ):
        assert float(high) == derived.rounded(ln2, bits)
        assert float(low) == derived.rounded(ln2 - float(high), bits)
    text = derived.header("vmath.inc.h")
    assert derived.constant(text, "LN2_UPPER") == _math.LN2_UPPER
    assert derived.constant(text, "LN2_LOWER") == _math.LN2_LOWER

"""Compute the constants of the exponentials and logarithms, and check the headers against them.

    python csrc/kernels/coefficients.py

Tables and split constants are compared bit for bit. A polynomial of the headers is compared by its
error: it is close to the minimax polynomial for the weight given here, which is computed by Remez's
exchange, with rounded coefficients, so its error may exceed the least error by a stated factor; and
it must keep the bound that the header states. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp

FOLDER = Path(__file__).resolve().parent
GRID = 600
# How far the error of rounded coefficients may exceed the least error, as a factor.
CLOSE = mp.mpf("1.02")

mp.mp.prec = 240


def header(name: str) -> str:
    """Text of a header without its comments."""
    return re.sub(r"/\*.*?\*/", "", (FOLDER / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def number(text: str) -> float:
    """A constant as C reads it, float constants being doubles with fewer bits."""
    text = text.strip().strip("()")
    if "x" in text:
        return float.fromhex(text.rstrip("f"))
    return float(text)


def constant(text: str, name: str) -> float:
    return number(re.search(rf"^#define {name} (.+)$", text, re.MULTILINE)[1])


def table(text: str, name: str) -> list[float]:
    body = re.search(rf"\b{name}\[\d+\] = {{(.*?)}}", text, re.DOTALL)[1]
    return [number(entry) for entry in body.split(",")]


def rounded(x: mp.mpf, bits: int) -> float:
    """The number with a significand of `bits` bits that is nearest to x."""
    with mp.workprec(bits):
        return float(+x)


def without_index(x: float, index: int, steps: int) -> float:
    """x with `index` subtracted where vd_raise adds it: just below the exponent field."""
    raw = struct.unpack("<Q", struct.pack("<d", x))[0]
    return struct.unpack("<d", struct.pack("<Q", raw - index * ((1 << 52) // steps)))[0]


def exp_tables(steps: int) -> tuple[list[float], list[float]]:
    """2^(i/steps) rounded, without the index; and the relative errors of the rounded values."""
    values, errors = [], []
    for i in range(steps):
        exact = mp.mpf(2) ** (mp.mpf(i) / steps)
        value = rounded(exact, 53)
        values.append(without_index(value, i, steps))
        errors.append(rounded(exact / value - 1, 53))
    return values, errors


def one(x: mp.mpf) -> mp.mpf:
    return mp.mpf(1)


@dataclass
class Polynomial:
    """Coefficients c of `target` ≈ sum of c[k]·x^powers[k] on an interval."""

    name: str
    prefix: str  # of the constants' names
    powers: range
    target: Callable
    interval: tuple
    weight: Callable  # the largest error/weight is the least
    bound: mp.mpf  # of error/size
    size: Callable = one
    close: mp.mpf = CLOSE

    def error(self, coefficients: list, x: mp.mpf) -> mp.mpf:
        value = mp.fsum(c * x**k for c, k in zip(coefficients, self.powers, strict=True))
        return value - self.target(x)

    def points(self) -> list[mp.mpf]:
        """Chebyshev's points of the interval, both ends included."""
        low, high = self.interval
        middle, half = (low + high) / 2, (high - low) / 2
        # The cosine of π/2 is computed as about 1e-73.
        return [mp.chop(middle - half * mp.cos(mp.pi * i / GRID)) for i in range(GRID + 1)]

    def worst(self, coefficients: list, size: Callable) -> mp.mpf:
        return max(abs(self.error(coefficients, x)) / size(x) for x in self.points() if x != 0)

    def side(self, x: mp.mpf) -> int:
        """The sign of the lowest power: errors alternate times this."""
        return -1 if x < 0 and self.powers[0] % 2 else 1

    def minimax(self) -> list[mp.mpf]:
        """Remez's exchange on the points."""
        points = [x for x in self.points() if x != 0]
        n = len(self.powers)
        chosen = [points[round(i * (len(points) - 1) / n)] for i in range(n + 1)]
        for _ in range(30):
            rows, right = [], []
            for sign, x in enumerate(chosen):
                weight = self.weight(x)
                rows.append([x**k / weight for k in self.powers] + [self.side(x) * (-1) ** sign])
                right.append(self.target(x) / weight)
            solution = mp.lu_solve(mp.matrix(rows), mp.matrix(right))
            coefficients, level = list(solution)[:n], abs(solution[n])
            errors = [self.side(x) * self.error(coefficients, x) / self.weight(x) for x in points]
            if max(map(abs, errors)) <= level * mp.mpf("1.0001"):
                break
            chosen = self.extrema(points, errors, n + 1)
        return coefficients

    @staticmethod
    def extrema(points: list, errors: list, count: int) -> list:
        """The largest error of each run of one sign; of more than `count`, the best run of them."""
        runs: list[int] = []
        for i, error in enumerate(errors):
            if runs and (errors[runs[-1]] > 0) == (error > 0):
                if abs(error) > abs(errors[runs[-1]]):
                    runs[-1] = i
            else:
                runs.append(i)
        while len(runs) > count:
            runs.pop(0 if abs(errors[runs[0]]) < abs(errors[runs[-1]]) else -1)
        return [points[i] for i in runs]


def artanh_ratio(z: mp.mpf) -> mp.mpf:
    """(2·artanh s)/s − 2 for z = s²."""
    if z == 0:
        return mp.mpf(0)
    s = mp.sqrt(z)
    return 2 * mp.atanh(s) / s - 2


LN2 = mp.log(2)
# f ends at √2 − 1, so that s = f/(2 + f) ends at 3 − 2√2.
LARGEST_Z = (3 - 2 * mp.sqrt(2)) ** 2


def square(x: mp.mpf) -> mp.mpf:
    return x * x


def after_first_order(r: mp.mpf) -> mp.mpf:
    return mp.expm1(r) - r


def after_second_order(r: mp.mpf) -> mp.mpf:
    return mp.expm1(r) - r - r * r / 2


POLYNOMIALS = {
    "exp_f32.inc.h": [
        Polynomial(
            name="exp of floats",
            prefix="EXP_",
            powers=range(2, 7),
            target=after_first_order,
            interval=(-LN2 / 2, LN2 / 2),
            weight=mp.exp,
            bound=mp.mpf(2) ** -28,
            size=mp.exp,
            close=mp.mpf("1.1"),  # coefficients of 24 bits
        )
    ],
    "exp_f64.inc.h": [
        Polynomial(
            name="exp of doubles",
            prefix="EXP_",
            powers=range(3, 8),
            target=after_second_order,
            interval=(-LN2 / 16, LN2 / 16),
            weight=square,
            bound=mp.mpf(2) ** -55,
            close=mp.mpf("1.7"),  # the rounding of the exponential is the larger error
        )
    ],
    "vmath.inc.h": [
        Polynomial(
            name="vd_exp_reduced, relative",
            prefix="REDUCED_",
            powers=range(3, 13),
            target=after_second_order,
            interval=(mp.mpf("-0.35"), mp.mpf("0.35")),
            weight=square,
            bound=mp.mpf(2) ** -61,
            size=mp.exp,
            close=mp.mpf("1.7"),  # the rounding of the exponential is the larger error
        ),
        Polynomial(
            name="log1p",
            prefix="LOG_",
            powers=range(1, 8),
            target=artanh_ratio,
            interval=(mp.mpf(0), LARGEST_Z),
            weight=one,
            bound=mp.mpf(2) ** mp.mpf("-58.45"),
        ),
        Polynomial(
            name="log1p short, relative",
            prefix="LOG_SHORT_",
            powers=range(1, 6),
            target=artanh_ratio,
            interval=(mp.mpf(0), LARGEST_Z),
            weight=mp.mpf,
            bound=mp.mpf(2) ** -43,
            size=lambda z: artanh_ratio(z) + 2,
        ),
    ],
}


def check_constants() -> list[str]:
    """Names of constants and tables that the headers have otherwise."""
    f32, f64, vmath = header("exp_f32.inc.h"), header("exp_f64.inc.h"), header("vmath.inc.h")
    real_f32, real_f64 = header("real_f32.h"), header("real_f64.h")
    wrong = []

    def compare(name: str, found: object, expected: object) -> None:
        if found != expected:
            wrong.append(f"{name}: {found}, expected {expected}")

    values, errors = exp_tables(8)
    compare("exp_table", table(f64, "exp_table"), values)
    compare("exp_table_error", table(f64, "exp_table_error"), errors)
    compare("LOG2_E", constant(real_f32, "LOG2_E"), rounded(1 / LN2, 24))
    compare("LOG2_E", constant(real_f64, "LOG2_E"), rounded(1 / LN2, 53))
    for text, prefix, first, bits in (
        (vmath, "LN2_HI LN2_LO", 53, 53),
        (f32, "LN2F_HI LN2F_LO", 24, 24),
        (vmath, "LN2_UPPER LN2_LOWER", 32, 53),
    ):
        upper, lower = prefix.split()
        high = constant(text, upper)
        # LN2_UPPER is truncated, so that LN2_LOWER is positive.
        truncated = float(mp.floor(LN2 * 2**32) / 2**32)
        compare(upper, high, truncated if first == 32 else rounded(LN2, first))
        compare(lower, constant(text, lower), rounded(LN2 - high, bits))
    return wrong


def main() -> int:
    wrong = check_constants()
    print(f"{'log2 of the error of':30} {'found':>9} {'bound':>7}   over the least")
    for name, polynomials in POLYNOMIALS.items():
        text = header(name)
        for p in polynomials:
            coefficients = [mp.mpf(constant(text, f"{p.prefix}{k}")) for k in p.powers]
            found = p.worst(coefficients, p.size)
            excess = p.worst(coefficients, p.weight) / p.worst(p.minimax(), p.weight)
            logs = [float(mp.log(x, 2)) for x in (found, p.bound)]
            print(f"{p.name:30} {logs[0]:9.3f} {logs[1]:7.2f}   {float(excess):.4f}")
            if found > p.bound:
                wrong.append(f"{p.name}: the error exceeds the bound")
            if excess > p.close:
                wrong.append(f"{p.name}: the error is not the least")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

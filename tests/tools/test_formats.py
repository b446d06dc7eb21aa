"""How times, ratios and sizes are written, and the labels and marks of pictures."""

import pytest
from every import every

from pyce._bench import formats
from pyce._bench.report import style


@every(
    ("seconds", "text"),
    [
        *((1.0, "1 s"), (1.5, "1.5 s"), (75.25, "75.2 s"), (0.999, "999 ms"), (1e-3, "1 ms")),
        *((0.0123456, "12.3 ms"), (0.000999, "999 µs"), (1.5e-6, "1.5 µs"), (2e-8, "0.02 µs")),
    ],
)
def test_times(seconds, text):
    assert formats.duration(seconds) == text


@every(
    ("value", "text"),
    [(0.12345, "0.123"), (1.0, "1"), (99.95, "100"), (100.0, "100"), (12345.6, "12346")],
)
def test_ratios_have_no_exponent(value, text):
    assert formats.ratio(value) == text


@every(
    ("count", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB")),
        *((2**20, "1 MiB"), (5 * 2**20, "5 MiB"), (2**30, "1 GiB"), (2**31, "2 GiB")),
    ],
)
def test_numbers_of_bytes(count, text):
    assert formats.memory(count) == text


@every(
    ("value", "text"),
    [
        *((0.0, "0"), (0.001, "0.001"), (0.005, "0.005"), (0.5, "0.5"), (1.0, "1"), (1.25, "1.25")),
        *((999.0, "999"), (1000.0, "1 000"), (20_000.0, "20 000"), (999_999.0, "999 999")),
        *((1e6, "10⁶"), (1e12, "10¹²"), (1e-4, "10⁻⁴"), (0.000999, "10⁻³")),
    ],
)
def test_labels_of_ticks(value, text):
    assert formats.tick(value) == text


@every(
    ("value", "text"),
    [(0.5, "0.5"), (999.0, "999"), (1000.0, "10³"), (0.01, "10⁻²"), (1e-9, "10⁻⁹"), (1e4, "10⁴")],
)
def test_powers_of_ten(value, text):
    assert formats.power_of_ten(value) == text


def test_names_in_a_sentence():
    assert formats.listed([]) == ""
    assert formats.listed(["a"]) == "a"
    assert formats.listed(["a", "b"]) == "a and b"
    assert formats.listed(["a", "b", "c", "d"], "or") == "a, b, c or d"


@every("most", [2, 3, 5, 7, 10, 40])
@every("ends", [(1.0, 9.9), (0.9, 1.3), (3.0, 4.0), (0.02, 700.0), (1e-3, 1e9), (0.5, 5.0)])
def test_ticks_are_different_numbers_in_order(ends, most):
    found = style.ticks(*ends, most)
    assert 1 <= len(found) <= most
    assert found == sorted(set(found))
    assert ends[0] <= found[0] * (1 + 1e-9) and found[-1] <= ends[1]


def test_ticks_are_round_numbers():
    assert style.ticks(1, 99, 3) == [1, 10]
    assert style.ticks(1, 40, 4) == pytest.approx([1, 3, 10, 30])
    assert style.ticks(1, 9, 3) == [1, 2, 5]
    assert style.ticks(1, 9) == [1, 1.5, 2, 3, 5, 7]
    assert style.ticks(1, 9, 10) == [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8]


def test_long_names_are_shortened():
    assert style.words("x" * 44) == "x" * 44
    assert style.words("x" * 45) == "x" * 43 + "…"
    assert style.words("a\x00b\nc") == "a�b�c"


def test_every_candidate_has_a_look_of_its_own():
    """A candidate without one gets it by its place among the others."""
    known = {style.look(name) for name in style.LOOKS}
    assert len(known) == len(style.LOOKS) - 1  # PyTorch has two names
    names = ["pyce c", "first", "second", "third"]
    found = [style.look(name, names) for name in names]
    assert found[0] == style.look("pyce c")
    assert len(set(found)) == 4 and not set(found[1:]) & known
    assert style.look("elsewhere", names) == found[1]

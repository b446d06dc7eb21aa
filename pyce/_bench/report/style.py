"""The style of the pictures: colours, markers, legends, logarithmic axes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyce._bench.formats import tick

# {name: (colour on light, on dark)}. Okabe and Ito's palette, safe for the colour-blind.
THEME = {
    "paper": ("#ffffff", "#14171b"),
    "ink": ("#1b1e23", "#e9ebee"),
    "muted": ("#5c636d", "#a3abb6"),
    "grid": ("#dcdfe3", "#333942"),
    "shade": ("#f0f1f4", "#20252c"),
    "blue": ("#0072b2", "#4aa3df"),
    "orange": ("#e69f00", "#f2b136"),
    "green": ("#009e73", "#2cc39a"),
    "vermillion": ("#d55e00", "#ff8a4c"),
    "purple": ("#cc79a7", "#e79cc6"),
    "sky": ("#56b4e9", "#a9defc"),
    "grey": ("#7b7f86", "#8f969f"),
}
PAPER, INK, MUTED, GRID, SHADE, *_ = (light for light, _ in THEME.values())
SLOWER, FASTER = THEME["vermillion"][0], THEME["blue"][0]

# {candidate: (colour, marker)}; markers distinguish what colours distinguish.
LOOKS = {
    "floor": ("ink", "_"),
    "pyce c": ("blue", "o"),
    "pyce numba": ("orange", "s"),
    "pyce numpy": ("green", "^"),
    "torch": ("vermillion", "v"),
    "PyTorch": ("vermillion", "v"),
    "torch.compile": ("purple", "D"),
    "JAX + optax": ("sky", "P"),
    "scikit-learn": ("grey", "X"),
}
OTHERS = [("purple", "<"), ("grey", ">"), ("sky", "h"), ("vermillion", "p"), ("muted", "*")]


def look(name: str, names: Sequence[str] = ()) -> tuple[str, str]:
    """Colour and marker of a candidate; an unknown one gets them by its position in `names`."""
    if name not in LOOKS:
        unknown = [other for other in names if other not in LOOKS]
        color, marker = OTHERS[unknown.index(name) % len(OTHERS) if name in unknown else 0]
    else:
        color, marker = LOOKS[name]
    return THEME[color][0], marker


def words(text: str, most: int = 44) -> str:
    """A name from a file as text for a picture: printable characters, shortened."""
    text = "".join(c if c.isprintable() else "�" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


@contextmanager
def drawing() -> Iterator[None]:
    """Use matplotlib's defaults and this style inside the context, whatever the user's settings.

    Names come from files, so that text is never parsed as formulas.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.parse_math": False,
                "font.size": 9,
                "axes.titlesize": 10,
                "axes.titleweight": "bold",
                "figure.titlesize": 12,
                "axes.edgecolor": MUTED,
                "axes.labelcolor": INK,
                "text.color": INK,
                "xtick.color": INK,
                "ytick.color": INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "axes.facecolor": "none",
                "legend.frameon": False,
                "grid.color": GRID,
                "svg.fonttype": "path",
                "svg.hashsalt": "pyce",
            }
        )
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure(width: float, height: float) -> Any:
    """An empty figure with a size in inches, without a window or a backend of matplotlib."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def legend(made: Any, panels: Sequence[Any], columns: int = 5) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    made.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(columns, max(1, len(handles))),
    )


# ---------------------------------------------------------------------------------------------
# Logarithmic axes

# Ticks of a decade, from few to many.
_STEPS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    tuple(i / 10 for i in range(10, 100)),
    tuple(i / 100 for i in range(100, 1000)),
)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from low to high, at most `most`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for steps in _STEPS:
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [value for value in found if low <= value * (1 + 1e-9) and value <= high]
        if len(found) > most and best:
            break
        best = found[:: math.ceil(len(found) / most)] if found else best
    return best


def logarithmic(axis: Any, low: float, high: float, most: int = 7) -> None:
    """Make the axis logarithmic from low to high, with labels at round numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    name = axis.axis_name
    getattr(axis.axes, f"set_{name}scale")("log")
    getattr(axis.axes, f"set_{name}lim")(low, high)
    axis.set_major_locator(FixedLocator(ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))

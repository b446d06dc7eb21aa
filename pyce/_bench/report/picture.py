"""A picture as a PNG file, and as SVG that follows the light or dark theme of a page."""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyce._bench.report.style import MUTED, PAPER, THEME, drawing
from pyce._cli import write_whole

_FOOTER = 0.25  # inches
_DPI = 144


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    name    name of the file, without suffix
    title   heading on the page
    alt     alternative text for readers who cannot see it
    caption how to read it
    figure  matplotlib's figure
    aside   whether the page shows it only on request
    """

    name: str
    title: str
    alt: str
    caption: str
    figure: Any
    aside: bool = False

    def save(self, folder: Path, footer: str = "") -> Path:
        """Write it as PNG with the light theme, with `footer` below it; returns the path."""
        path = folder / f"{self.name}.png"
        stream = io.BytesIO()
        with drawing():
            if not footer:
                self.figure.savefig(stream, format="png", dpi=_DPI, facecolor=PAPER)
                write_whole(path, stream.getvalue())
                return path
            from matplotlib.transforms import Bbox

            figure = self.figure
            width, height = figure.get_size_inches()
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # The layout does not expect a line below the figure.
            for legend in figure.legends:  # They would follow the edge of what is saved.
                legend.set_bbox_to_anchor((0, 0, 1, 1), figure.transFigure)
            at = 0.99, -0.75 * _FOOTER / height
            figure.text(*at, footer, color=MUTED, size=8, ha="right")
            whole = Bbox.from_extents(0, -_FOOTER, width, height)
            figure.savefig(stream, format="png", dpi=_DPI, facecolor=PAPER, bbox_inches=whole)
        write_whole(path, stream.getvalue())
        return path

    def svg(self) -> str:
        """An SVG element for a page that defines the names of THEME as CSS variables."""
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with drawing():
            self.figure.savefig(stream, format="svg", facecolor="none", metadata=nothing)
        return themed(stream.getvalue(), self.name, self.alt)


def themed(svg: str, name: str, alt: str) -> str:
    """Reduce matplotlib's file to its svg element, for a page with other pictures.

    Colours become CSS variables, ids become unique on the page, and invisible parts are removed.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    size = re.findall(r'viewBox="([^"]+)"', svg)[0]
    head = f'<svg viewBox="{size}" role="img" aria-label="{html.escape(alt)}">'
    svg = head + svg[svg.index(">") + 1 :]
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    ids = {old: f"{name}-{number}" for number, old in enumerate(used)}
    svg = re.sub(
        r'\sid="([^"]+)"', lambda one: f' id="{ids[one[1]]}"' if one[1] in ids else "", svg
    )
    svg = re.sub(
        r'(?:\sxlink:href="#|\b(url)\(#)([^")]+)',
        lambda one: ("url(#" if one[1] else ' href="#') + ids[one[2]],
        svg,
    )
    variables = {light: f"var(--{variable})" for variable, (light, _) in THEME.items()}
    svg = re.sub(
        r"\b(fill|stroke): ?(#[0-9a-f]{6})\b",
        lambda one: f"{one[1]}: {variables.get(one[2], one[2])}",
        svg,
    )
    svg = re.sub(r'(\b(?:x|y|d)="|translate\()[^")]+', lambda one: _rounded(one[0]), svg)
    svg = re.sub(r"<defs>\s*</defs>|\s+(?=/?>)", "", svg)
    return re.sub(r">\s+<", "><", svg).replace("\n", " ")


def standalone(svg: str) -> str:
    """A file of an element whose colours are CSS variables, as that of `themed`."""
    light, dark = (
        "".join(f"--{name}: {colors[i]}; " for name, colors in THEME.items()) for i in range(2)
    )
    style = (
        f"<style>svg {{ {light}}} @media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }} "
        '.paper { fill: var(--paper); }</style><rect class="paper" width="100%" height="100%"/>'
    )
    head, rest = svg.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}>{style}{rest}\n"


def _rounded(numbers: str) -> str:
    """Numbers rounded to hundredths of a point."""
    return re.sub(r"(\.\d\d)\d+", r"\1", numbers)

"""The drawings of the documentation: their texts neither leave the picture nor cross each other.

They are measured in DejaVu Sans, the widest of the fonts that the drawings name.
"""

from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

DRAWINGS = sorted((Path(__file__).parents[2] / "docs" / "drawings").glob("*.svg"))
SMALL, USUAL = 13, 15  # pixels, as the style of the drawings says
LEFT_OF = {"end": 1.0, "mid": 0.5}  # part of a text's width that is left of its x


def boxes(path):
    """(text, left, right, bottom) of each text; pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text"):
        classes = set(text.get("class", "").split())
        font = FontProperties(
            family="DejaVu Sans",
            size=SMALL if "small" in classes else USUAL,
            weight="bold" if "name" in classes else "normal",
        )
        words = "".join(text.itertext())
        width = TextPath((0, 0), words, prop=font).get_extents().width
        before = next((LEFT_OF[name] for name in classes & LEFT_OF.keys()), 0.0)
        left = float(text.get("x")) - before * width
        yield words, left, left + width, float(text.get("y"))


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_texts_fit(path):
    assert len(DRAWINGS) == 4
    width = float(ElementTree.parse(path).getroot().get("viewBox").split()[2])
    placed = list(boxes(path))
    for words, left, right, _ in placed:
        assert left >= 4 and right <= width - 4, (words, left, right)
    for i, (words, left, right, bottom) in enumerate(placed):
        for other, start, end, below in placed[:i]:
            if abs(bottom - below) < SMALL:
                assert right + 2 < start or end + 2 < left, (words, other)

"""Files of goals: which goals a run meets, as lines to show.

    {"goals": [{"about": str, "workload": str, "figure": float, "limit": str, "met": bool}, …]}

The report shows such a file in a section of its own. What the goals are is not its business:
pyce's own are in bench/goals.py, which writes this file and is not part of the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pyce._bench.formats import ratio


class Line(NamedTuple):
    """One goal on one workload: the figure measured, its limit as "≤ 1.25" or "≥ 7"."""

    about: str
    workload: str
    figure: float
    limit: str
    met: bool

    @property
    def measured(self) -> str:
        """The figure with three digits, or with more if a missed limit has the same three."""
        limit = float(self.limit.split()[1])
        digits = 3
        while not self.met and float(f"{self.figure:.{digits}g}") == limit and digits < 17:
            digits += 1
        return f"{self.figure:.{digits}g}" if digits > 3 else ratio(self.figure)


def content_of(lines: list[Line]) -> dict[str, Any]:
    return {"goals": [line._asdict() for line in lines]}


def is_goals(content: Any) -> bool:
    try:
        return all(set(goal) == set(Line._fields) for goal in content["goals"])
    except (KeyError, TypeError):
        return False


def lines_of(content: dict[str, Any]) -> list[Line]:
    return [Line(**goal) for goal in content["goals"]]

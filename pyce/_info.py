"""What pyce is running on: the backends, the instruction sets, the threads."""

from __future__ import annotations

from typing import Any

from pyce import _backends, _threads
from pyce._version import __version__


def info() -> dict[str, Any]:
    """Version, backends and hardware as pyce sees them.

    Returns
    -------
    dict
        - `version`: of pyce
        - `backend`: the one that a call made now runs on
        - `backends`: a dict, name: None, or why it can't be used; in order of preference
        - `isas`: the instruction sets that the C backend can run on this machine, widest first
        - `isa`: the one in use; None without the C backend
        - `threads`: how many a large call may use
        - `compiler`: that built the C backend; None without it

    Raises
    ------
    ValueError
        When an environment variable names what is not available.

    Examples
    --------
    >>> print(pyce.info()["backends"]["numpy"])
    None
    """
    backend = _backends.current()
    report: dict[str, Any] = {
        "version": __version__,
        "backend": backend.NAME,
        "backends": {name: _backends.why_not(name) for name in _backends.NAMES},
        "isas": [],
        "isa": None,
        "threads": _threads.budget(),
        "compiler": None,
    }
    if report["backends"]["c"] is None:
        from pyce._backends import c

        report["isas"] = c.isas()
        report["isa"] = c.isa()
        report["compiler"] = c.compiler()
    return report


def describe() -> str:
    """The same as lines of text, with a warning where the C extension is missing."""
    report = info()
    lines = [f"pyce {report['version']}"]
    for name, reason in report["backends"].items():
        mark = "in use" if name == report["backend"] else ("not available" if reason else "ready")
        lines.append(f"  backend {name:6} {mark}" + (f": {reason}" if reason else ""))
    if report["isa"]:
        others = ", ".join(report["isas"])
        lines.append(f"  instructions   {report['isa']} (this machine runs {others})")
        lines.append(f"  compiler       {report['compiler']}")
    lines.append(f"  threads        {report['threads']}")
    reason = report["backends"]["c"]
    if reason:
        lines += [
            "",
            "WARNING: pyce runs WITHOUT its C kernels, many times slower than it could.",
            f"WARNING: {reason}",
        ]
    return "\n".join(lines)

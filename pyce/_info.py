"""The report on the backends, instruction sets and threads that pyce uses."""

from __future__ import annotations

from typing import TypedDict, cast

from pyce import _backends, _threads
from pyce._types import BackendName
from pyce._version import __version__


class Info(TypedDict):
    """The result of `info`."""

    version: str
    backend: BackendName
    reason: str
    backends: dict[str, str | None]
    isas: list[str]
    isa: str | None
    threads: int
    compiler: str | None


def info() -> Info:
    """The version of pyce and the backends, instruction sets and threads that it uses.

    Returns
    -------
    dict
        - `version`: the version of pyce
        - `backend`: the backend that a call made now, in this thread and task, runs on
        - `reason`: why it runs on that backend
        - `backends`: for each backend in order of preference, None if it can be used on this
          machine, else why not
        - `isas`: the instruction sets that the C backend can run on this machine, widest first
        - `isa`: the one that the C backend uses; None without the C backend
        - `threads`: the number of threads that a large call may use
        - `compiler`: the compiler that built the C backend; None without the C backend

    Raises
    ------
    ValueError
        If PYCE_BACKEND, PYCE_ISA or PYCE_NUM_THREADS is set to a value that is unknown or cannot be
        used here.

    Examples
    --------
    >>> print(pyce.info()["backends"]["numpy"])
    None
    """
    backend = _backends.current()
    report: Info = {
        "version": __version__,
        "backend": cast(BackendName, backend.NAME),
        "reason": _backends.reason(),
        "backends": {name: _backends.why_not(name) for name in _backends.preference()},
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
    """The report of `info` as lines of text, with a warning if the C extension is missing."""
    report = info()
    lines = [f"pyce {report['version']}"]
    for name, missing in report["backends"].items():
        if name == report["backend"]:
            mark = f"in use: {report['reason']}"
        else:
            mark = f"not available: {missing}" if missing else "ready"
        lines.append(f"  backend {name:6} {mark}")
    if report["isa"]:
        others = ", ".join(report["isas"])
        lines.append(f"  instructions   {report['isa']} (this machine runs {others})")
        lines.append(f"  compiler       {report['compiler']}")
    lines.append(f"  threads        {report['threads']}")
    missing = report["backends"]["c"]
    if missing:
        much = "many times slower" if report["backend"] == "numpy" else "slower"
        lines += [
            "",
            f"WARNING: pyce runs WITHOUT its C kernels, {much} than it could.",
            f"WARNING: {missing}",
        ]
    if _other_distribution():
        lines += [
            "",
            "WARNING: the distribution pyce is installed besides pyce-kernels, and has files in",
            "WARNING: the same folder: pip uninstall both, then install pyce-kernels again",
        ]
    return "\n".join(lines)


def _other_distribution() -> bool:
    """Whether a distribution is installed that shares the name of the import, but not its own."""
    from importlib import metadata  # which takes longer to import than pyce

    try:
        metadata.distribution("pyce")
    except metadata.PackageNotFoundError:
        return False
    return True

"""What the commands share: tables, messages, and exit statuses."""

from __future__ import annotations

import argparse
import codecs
import errno
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyce

# Exit statuses. INTERRUPTED is the shell's for Ctrl-C.
FINE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


class Unusable(Exception):
    """The command can't be carried out as it was given; the message says why."""


def require(command: str, *modules: str, extra: str = "bench") -> None:
    """Raise `Unusable` that names what to install unless all modules can be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Unusable(
            f"`python -m pyce {command}` needs {', '.join(missing)}: pip install 'pyce[{extra}]'"
        )


def writable(path: Path) -> None:
    """Raise `Unusable` unless a file can be written there: to be asked before minutes of work.

    Nothing is written or removed: what is there may be the only one, or a device.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unusable(f"can't write {path}: {error.strerror}") from None
    if path.is_dir():
        raise Unusable(f"can't write {path}: {os.strerror(errno.EISDIR)}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise Unusable(f"can't write {path}: {os.strerror(errno.EACCES)}")


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Unusable(f"can't write {path}: {error.strerror}") from None


def names(text: str) -> list[str]:
    """What an option lists, separated by commas; each once."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("nothing is listed")
    return list(dict.fromkeys(found))


def listed(choices: tuple[str, ...]) -> Any:
    """The type of an option that lists some of the choices."""

    def some(text: str) -> list[str]:
        found = names(text)
        for name in found:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return found

    return some


def run(command: Callable[[Any], int], options: Any) -> int:
    """The command's exit status, whatever happens to it."""
    _open_streams()
    try:
        status = command(options)
        sys.stdout.flush()
        return status
    except Unusable as error:
        print(f"pyce: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("pyce: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        silence()
        return FINE
    except OSError as error:
        if error.filename is not None:
            raise  # a file's error is for the command to explain
        print(f"pyce: can't write: {error.strerror}", file=sys.stderr)
        silence()
        return UNUSABLE


def info() -> dict[str, Any]:
    """`pyce.info()`; `Unusable` where an environment variable of pyce's can't be."""
    try:
        return pyce.info()
    except ValueError as error:
        raise Unusable(str(error)) from None


# What to print in the place of characters that the terminal's encoding has not.
_PLAIN = {"µ": "u", "μ": "u", "−": "-", "–": "-", "×": "x", "…": "..."}


def _open_streams() -> None:
    """Closed streams take what is printed, and none stumbles over a character."""
    codecs.register_error("pyce", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for the rest of the program
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pyce")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end


def silence() -> None:
    """The reader of what is printed has seen enough: no more of it, and no complaint at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(**options: Any) -> Any:
    """A rich console; it prints no colours where NO_COLOR is set or no terminal is there."""
    from rich.console import Console

    def stop() -> None:
        raise BrokenPipeError  # for `run`; rich itself would end the program with status 1

    made: Any = Console(highlight=False, **options)
    made.on_broken_pipe = stop
    if not made.is_terminal:
        made.width = 120  # of a file, which has no width of its own
    return made


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table, the first column only where it changes; with rich if that is installed.

    The first `left` columns hold words, the others figures.
    """
    cells: list[list[str]] = []
    before = None
    for row in rows:
        cells.append(["" if row[0] == before else row[0], *row[1:]])
        before = row[0]
    if importlib.util.find_spec("rich") is None:
        widths = [max(len(row[i]) for row in [headers, *cells]) for i in range(len(headers))]
        print(title)
        for row in [list(headers), *cells]:
            padded = (
                cell.ljust(width) if i < left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join(padded).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for i, header in enumerate(headers):
        made.add_column(Text(header), justify="left" if i < left else "right", no_wrap=True)
    for row in cells:
        made.add_row(*map(Text, row))
    out = console()
    # A terminal wraps what is too wide for it; rich would cut it off.
    wide = out.options.update(width=1000)
    out.width = max(out.width, Measurement.get(out, wide, made).maximum)
    out.print(made)

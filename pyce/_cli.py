"""Tables, messages, options and exit statuses that all commands of `python -m pyce` share."""

from __future__ import annotations

import argparse
import codecs
import errno
import importlib.util
import os
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyce
from pyce._extras import advice
from pyce._info import Info

# Exit statuses. A shell reports INTERRUPTED for a program that Ctrl-C ends.
FINE, FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


class Unusable(Exception):
    """The command cannot be carried out; the message says why."""


def line(text: str) -> str:
    """The text as one line: line breaks and other control characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def require(command: str, *modules: str, extra: str = "bench") -> None:
    """Raise `Unusable` that says what to install, unless all modules can be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        what = ", ".join(missing)
        raise Unusable(f"`python -m pyce {command}` needs {what}: {advice(extra)}")


def writable(path: Path) -> None:
    """Raise `Unusable` unless a file can be written at `path`, to know before minutes of work.

    Creates the folder, but writes and removes nothing else: the file may be valuable or a device.
    """
    asked = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError:
            is_folder, asked = False, path.parent
    except OSError as error:  # also of a name that is too long
        raise Unusable(f"can't write {path}: {error.strerror}") from None
    if is_folder:
        raise Unusable(f"can't write {path}: {os.strerror(errno.EISDIR)}")
    if not os.access(asked, os.W_OK):
        raise Unusable(f"can't write {path}: {os.strerror(errno.EACCES)}")


def write(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise Unusable(f"can't write {path}: {error.strerror}") from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file. After an error, on a full disk for example, it is as it was before.

    Devices, pipes and files in a folder that cannot be written to are written directly.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        target.write_bytes(content)  # a device or a pipe, which must not be replaced by a file
        return
    part = target.with_name(f".pyce-{os.getpid()}-{time.time_ns()}")
    try:
        try:
            part.write_bytes(content)
        except PermissionError:  # the folder is read-only, not the file
            target.write_bytes(content)
            return
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def names(text: str) -> list[str]:
    """The values of an option that are separated by commas, each once."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("the list is empty")
    return list(dict.fromkeys(found))


def listed(choices: tuple[str, ...]) -> Any:
    """The argparse type of an option that takes some of the choices, separated by commas."""

    def some(text: str) -> list[str]:
        found = names(text)
        for name in found:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(choices)}")
        return found

    return some


def run(command: Callable[[Any], int], options: Any) -> int:
    """Run a command; returns its exit status, after a message for expected exceptions."""
    _open_streams()
    try:
        try:
            status = command(options)
        except SystemExit:  # of argparse, after help or a message
            sys.stdout.flush()
            _say("")
            raise
        sys.stdout.flush()
        return status
    except Unusable as error:
        _say(str(error))
        return UNUSABLE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        silence()
        return FINE
    except OSError as error:
        if error.filename is not None:
            raise  # the command itself must explain errors of files
        _say(f"can't write: {error.strerror}")
        silence()
        return UNUSABLE


def _say(text: str) -> None:
    """Print a message, or what is left to print. If that fails, the exit status says enough."""
    try:
        print(f"pyce: {line(text)}\n" if text else "", end="", file=sys.stderr, flush=True)
    except OSError:
        silence("stderr")


def info() -> Info:
    """`pyce.info()`. Raises `Unusable` if an environment variable of pyce has an invalid value."""
    try:
        return pyce.info()
    except ValueError as error:
        raise Unusable(str(error)) from None


@contextmanager
def reporting_without_c() -> Iterator[None]:
    """Give no warning that the C kernels are missing: the report of the command says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pyce runs on", RuntimeWarning)
        yield


# Replacements of characters that the encoding of the terminal lacks.
_PLAIN = {"µ": "u", "μ": "u", "−": "-", "–": "-", "×": "x", "…": "..."}


def _open_streams() -> None:
    """Discard the output of closed streams, and replace characters that a stream cannot encode."""
    codecs.register_error("pyce", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="pyce")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in text), error.end


def silence(name: str = "stdout") -> None:
    """Discard all further output, without an error at exit, since nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


def console(**options: Any) -> Any:
    """A rich console, without colours if NO_COLOR is set or the output is not a terminal."""
    from rich.console import Console

    def stop() -> None:
        raise BrokenPipeError  # handled by `run`; rich would exit with status 1

    made: Any = Console(highlight=False, **options)
    made.on_broken_pipe = stop
    if not made.is_terminal:
        made.width = 120  # a file has no width of its own
    return made


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table, with rich if it is installed.

    The first `left` columns hold words, aligned left; the others hold numbers. A value of the first
    column is printed only if it differs from the line before.
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
    # A terminal wraps lines that are too wide; rich would cut them off.
    wide = out.options.update(width=1000)
    out.width = max(out.width, Measurement.get(out, wide, made).maximum)
    out.print(made)

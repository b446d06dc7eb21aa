"""What the commands of `python -m pyce` share: help, missing extras, tables, closed pipes."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyce
from pyce import __main__ as pyce_main
from pyce import _cli
from pyce._cli import FINE, INTERRUPTED, UNUSABLE
from pyce._extras import advice

ROOT = Path(pyce.__file__).parents[1]


@pytest.mark.parametrize("command", [(), ("bench",), ("check",), ("report",), ("compare",)])
def test_help_needs_no_extra(run_python, command):
    hide = "for name in ('pytest', 'pytest_benchmark', 'rich', 'matplotlib', 'jinja2', 'scipy'):\n"
    code = f"import sys\n{hide}    sys.modules[name] = None\n"
    code += f"from pyce.__main__ import main; main([*{command!r}, '--help'])"
    assert "usage: python -m pyce" in run_python("-c", code).stdout


@pytest.mark.parametrize("command", sorted(pyce_main.COMMANDS))
def test_help_fits_into_the_terminal(command, monkeypatch, capsys):
    """The description too, whose paragraphs are kept."""
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        pyce_main.main([command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 60
    described = text.partition("\n\n")[2].partition("options:")[0]
    assert described.count("\n\n") >= 2


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("pytest_benchmark", ["bench"]), ("scipy", ["compare", "a.json", "b.json"])],
)
def test_a_missing_extra(run_python, module, arguments):
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += f"from pyce.__main__ import main; sys.exit(main({arguments!r}))"
    done = run_python("-c", code, check=False)
    assert done.returncode == UNUSABLE
    assert f"needs {module}" in done.stderr
    assert advice("bench") in done.stderr


def test_tables_without_rich(run_python):
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from pyce._cli import table\n"
        "table('Title', ('name', 'figure'), [('a', '1.5'), ('a', '22')])"
    )
    expected = ["Title", "name  figure", "a        1.5", "          22"]
    assert run_python("-c", code).stdout.splitlines() == expected


def test_tables_with_rich(capsys):
    pytest.importorskip("rich")
    _cli.table("Title", ("name", "figure"), [("longer", "1.5"), ("longer", "22"), ("b", "3")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip(" ─-")]
    assert lines[0].strip() == "Title"
    assert [line.split() for line in lines[1:]] == [
        ["name", "figure"], ["longer", "1.5"], ["22"], ["b", "3"]
    ]  # fmt: skip
    # Words are aligned left, and numbers right.
    assert len({len(line.rstrip()) for line in lines[1:]}) == 1
    assert lines[1].index("name") == lines[2].index("longer") == lines[4].index("b")


def test_a_terminal_shows_numbers_as_text():
    pytest.importorskip("rich")
    shown = io.StringIO()
    _cli.console(file=shown, force_terminal=True).print("22 rows")
    assert shown.getvalue() == "22 rows\n"


def test_folders_of_a_file_to_write_are_created(tmp_path):
    path = tmp_path / "new" / "folder" / "report.json"
    _cli.writable(path)
    assert path.parent.is_dir()
    assert not path.exists()
    with pytest.raises(_cli.Unusable, match="can't write"):
        _cli.writable(path.parent)


def test_paths_that_the_system_refuses(tmp_path):
    """A name that is too long, and a link that leads to itself."""
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / ("x" * 300), tmp_path / "loop"):
        with pytest.raises(_cli.Unusable, match="can't write"):
            _cli.writable(path)
        assert pyce_main.main(["compare", str(path), str(path)]) == UNUSABLE


def test_a_file_is_written_whole_or_stays(tmp_path):
    resource = pytest.importorskip("resource")
    path, link = tmp_path / "kept.json", tmp_path / "link.json"
    path.write_text("as it was")
    path.chmod(0o640)
    link.symlink_to(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as if the disk was full then
    try:
        for place in (path, link, tmp_path / "new.json"):
            with pytest.raises(_cli.Unusable, match="can't write"):
                _cli.write(place, "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "as it was"
    assert sorted(tmp_path.iterdir()) == [path, link]
    _cli.write(link, "new")
    assert link.is_symlink()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o640)


@pytest.mark.parametrize("arguments", [(), ("bench", "--list")])
def test_a_closed_pipe(arguments):
    """As with `python -m pyce | head -0`: no error message."""
    ends = os.pipe()
    os.close(ends[0])
    command = [sys.executable, "-m", "pyce", *arguments]
    done = subprocess.run(
        command, stdout=ends[1], stderr=subprocess.PIPE, cwd=ROOT, timeout=600, check=False
    )
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (FINE, b"")


def test_the_status_without_a_command(capsys):
    for arguments in ([], ["--json"]):
        assert pyce_main.main(arguments) == FINE
    assert pyce.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--help >/dev/full", "can't write"),
        ("compare a b 2>/dev/full", ""),
        ("compare 2>/dev/full", ""),
    ],
)
def test_messages_that_cannot_be_written(command, said):
    """`--help`, which ends by SystemExit, and the message of an error."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    # Without a buffer, argparse takes no notice of the error.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        f"{sys.executable} -m pyce {command}",
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == UNUSABLE
    assert len(done.stderr.splitlines()) == bool(said)
    assert said in done.stderr


def test_ctrl_c_during_imports(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(pyce_main, "parser", stop)
    assert pyce_main.main(["bench"]) == INTERRUPTED
    assert capsys.readouterr().err == "pyce: interrupted\n"


def test_an_error_is_one_line(capsys):
    """Also with a file name that has line breaks or could control the terminal."""
    assert pyce_main.main(["report", "a\nb\r\x1b[2Jc\u2028d"]) == UNUSABLE
    said = capsys.readouterr().err
    assert said.startswith(r"pyce: can't read a\nb\r\x1b[2Jc\u2028d: ")
    assert len(said.splitlines()) == 1

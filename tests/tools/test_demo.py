"""`python -m pyce demo`: images, training on every backend, options and errors."""

import itertools
import json
import os
import re
import signal
import subprocess

import numpy as np
import pytest
from programs import running

import pyce
from pyce.__main__ import main
from pyce._bench import demo
from pyce._cli import FAILED, FINE, INTERRUPTED, UNUSABLE
from pyce._extras import advice

pytest.importorskip("sklearn")
pillow = pytest.importorskip("PIL.Image")
threadpoolctl = pytest.importorskip("threadpoolctl")
pytest.importorskip("matplotlib")


# BLAS spins idle threads between the small products of the demo, at the expense of all that runs
# at the same time.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def _one_blas_thread():
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images, written once."""
    place = tmp_path_factory.mktemp("digits")
    demo.write_images(place, np.random.default_rng(0))
    return place


@pytest.fixture(scope="module")
def images(folder):
    return demo.read_images(folder)


@pytest.fixture
def ready(images, monkeypatch):
    """The command without files, with few images, and with a goal that a short training reaches."""
    monkeypatch.setattr(demo, "images", lambda rng: (images[0][:800], images[1][:800]))
    monkeypatch.setattr(demo, "WANTED", 0.5)


# ---------------------------------------------------------------------------------------------
# Images


def test_the_images_have_different_sizes(folder):
    paths = list(folder.glob("*/*.png"))
    assert len(paths) == 1797
    sizes = set()
    for path in paths[::10]:
        with pillow.open(path) as image:
            assert image.mode == "L"
            sizes.add(image.size)
    assert len(sizes) > 100
    assert {side for size in sizes for side in size} <= set(range(16, 49))


def test_the_images_are_those_of_scikit_learn(images):
    from sklearn.datasets import load_digits

    x, y = images
    digits = load_digits()
    np.testing.assert_array_equal(y, digits.target)
    assert x.shape == (1797, 16, 16) and x.dtype == np.float32
    small = x.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)) * 16
    assert np.abs(small - digits.images).mean() < 1
    for one, other in zip(small[::50], digits.images[::50], strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


def test_the_images_are_the_same_each_time(folder, tmp_path):
    demo.write_images(tmp_path, np.random.default_rng(0))
    for path in sorted(folder.glob("*/*.png"))[::100]:
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()


# ---------------------------------------------------------------------------------------------
# Training


def test_the_demo_reaches_97_percent(tmp_path, capsys):
    """The complete demo with its defaults."""
    assert main(["demo", "--output", str(tmp_path / "new")]) == FINE
    text, errors = capsys.readouterr()
    assert errors == ""
    assert "1797 images of 16 to 48 pixels a side, read at 16 by 16; 360 are held out" in text
    for name in ("softmax regression", "hidden layer"):
        assert re.search(rf"(?m)^{name}: learning rate 0\.\d+, the steepest descent; ", text)
    numbers = r"loss \d\.\d{4}, held out \d\.\d{4}; accuracy [01]\.\d{4}, held out [01]\.\d{4}"
    epochs = re.findall(rf"(?m)^epoch +(\d+)/20: {numbers}$", text)
    assert epochs == [str(i) for i in range(1, 21)] * 2
    found = re.search(
        r"held-out accuracy: softmax regression (0\.\d+), hidden layer (0\.\d+)", text
    )
    assert float(found[1]) > 0.93 and float(found[2]) >= 0.97
    for name in ("learning-rate.png", "training.png"):
        with pillow.open(tmp_path / "new" / name) as image:
            image.load()
            assert image.width > 1000
        assert str(tmp_path / "new" / name) in text.splitlines()[-1]


def learnt(images, epochs=2):
    x, y = images
    data = demo.Data(x, y, np.random.default_rng(1).permutation(len(x)))
    return [demo.learn(name, data, epochs, 0, None) for name in (demo.LINEAR, demo.NETWORK)]


@pytest.fixture(scope="module")
def reference(images):
    with pyce.use_backend("numpy"):
        return learnt(images)


def test_every_backend_gives_the_same_curves(backend, images, reference):
    """Up to rounding in float32: gradients are accurate, but not the same bytes."""
    if backend.isa not in (None, pyce.info()["isas"][0]):
        return  # the next test shows that the other instruction sets give the same bytes
    for ours, expected in zip(learnt(images), reference, strict=True):
        assert ours.curve.steepest == expected.curve.steepest
        for name, numbers in vars(ours.history).items():
            # One held-out digit may be classified differently.
            close = {"rtol": 1e-5} if "loss" in name else {"rtol": 0, "atol": 1.5 / demo.HELD_OUT}
            np.testing.assert_allclose(numbers, getattr(expected.history, name), **close)
        # With too large a rate, rounding errors grow.
        some = slice(len(ours.curve.rates) // 2)
        np.testing.assert_allclose(ours.curve.losses[some], expected.curve.losses[some], rtol=1e-5)


def test_every_instruction_set_gives_the_same_bytes(images, c_backends):
    found = []
    for backend in c_backends:
        with backend.selected():
            found.append([(one.history, one.curve.losses.tolist()) for one in learnt(images, 1)])
    assert all(one == found[0] for one in found)


def test_the_search_for_a_rate_restores_the_model(images):
    from pyce.training import LinearClassifier

    model = LinearClassifier(256, 10, seed=0)
    before = model.state_dict()
    x, y = images
    demo.find_rate(model, demo.Data(x, y, np.arange(len(x))), 0)
    np.testing.assert_equal(model.state_dict(), before)


def test_held_out_images_are_not_trained_on():
    x = np.arange(1000)
    data = demo.Data(x, x, np.random.default_rng(0).permutation(1000))
    assert len(data.held_out[0]) == 360
    assert sorted([*data.seen[0], *data.held_out[0]]) == x.tolist()
    np.testing.assert_array_equal(*data.seen)


# ---------------------------------------------------------------------------------------------
# Options and errors


def test_json_prints_nothing_else(ready, tmp_path, capsys):
    assert main(["demo", "--json", "--epochs", "2", "-b", "numpy", "-o", str(tmp_path)]) == FINE
    text, errors = capsys.readouterr()
    found = json.loads(text)
    assert errors == ""
    assert found["backend"] == "numpy"
    assert found["written"] == [str(tmp_path / f"{name}.png") for name in demo.PICTURES]
    assert list(found["models"]) == ["softmax regression", "hidden layer"]
    for about in found["models"].values():
        assert about["steepest"] in about["rates"]
        assert len(about["rates"]) == len(about["losses"]) > 50
        assert {len(numbers) for numbers in about["epochs"].values()} == {2}


def test_nonfinite_numbers_are_null_in_json(ready, tmp_path, capsys, monkeypatch):
    """A training that diverges is reported, and fails."""
    monkeypatch.setattr(demo, "_falling", lambda rate: lambda done: 1e30)
    with np.errstate(all="ignore"):
        assert main(["demo", "--json", "--epochs", "1", "-o", str(tmp_path)]) == FAILED
    text = capsys.readouterr().out
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["models"]["hidden layer"]["epochs"]["loss"] == [None]


def test_too_low_an_accuracy_fails(ready, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "WANTED", 0.999)
    folder = tmp_path / "two\x85lines"
    assert main(["demo", "--epochs", "1", "-o", str(folder)]) == FAILED
    text, errors = capsys.readouterr()
    assert errors == "pyce: hidden layer: held-out accuracy below 0.999\n"
    assert "written" in text and len(list(folder.iterdir())) == 2
    assert text.count(r"two\x85lines") == 2


def test_no_rate_is_found(ready, tmp_path, capsys, monkeypatch):
    x = np.zeros((500, 16, 16), np.float32)
    monkeypatch.setattr(demo, "images", lambda rng: (x, np.zeros(500, int)))
    # With uniform targets, the initial model is already optimal.
    monkeypatch.setattr(demo, "SMOOTHING", 1.0)
    assert main(["demo", "--epochs", "1", "-o", str(tmp_path)]) == UNUSABLE
    assert "softmax regression: no learning rate was found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--epochs", "two"], "'two' is not a whole number"),
        (["--seed", "-1"], "seed"),
        (["--seed", "1.5"], "'1.5' is not a whole number of at least 0"),
    ],
)
def test_invalid_options(option, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", *option])
    assert ended.value.code == UNUSABLE
    assert words in capsys.readouterr().err


def test_seeds_differ(images, folder, tmp_path):
    demo.write_images(tmp_path, np.random.default_rng(1))
    path = next(folder.glob("3/*.png")).relative_to(folder)
    assert (tmp_path / path).read_bytes() != (folder / path).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "fortran"], "fortran"),
        (["--output", "{file}"], "can't write {file}"),
        (["--output", "{file}/inside"], "can't write {file}/inside"),
    ],
)
def test_errors_are_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "images", lambda rng: pytest.fail("the error must come first"))
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *(word.format(file=place) for word in arguments)]) == UNUSABLE
    text, errors = capsys.readouterr()
    assert text == "" and len(errors.splitlines()) == 1
    assert errors.startswith("pyce: ") and words.format(file=place) in errors


def test_pictures_that_cannot_be_written(ready, tmp_path, capsys, monkeypatch):
    """The disk is full after the training."""

    def full(picture, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyce._bench.report.picture.Picture.save", full)
    assert main(["demo", "--epochs", "1", "-o", str(tmp_path)]) == UNUSABLE
    assert "No space left on device" in capsys.readouterr().err


def test_no_room_for_the_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert main(["demo", "-o", str(tmp_path)]) == UNUSABLE
    assert "can't write temporary files: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["sklearn", "PIL", "matplotlib"])
def test_a_missing_extra(run_python, module):
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += "from pyce.__main__ import main; sys.exit(main(['demo']))"
    done = run_python("-c", code, check=False)
    assert (done.returncode, done.stdout) == (UNUSABLE, "")
    wanted = f"pyce: `python -m pyce demo` needs {module}: {advice('training')}\n"
    assert done.stderr == wanted


def test_help_needs_no_extra(run_python):
    hide = "for name in ('sklearn', 'PIL', 'matplotlib', 'pyce.training'):\n"
    code = f"import sys\n{hide}    sys.modules[name] = None\n"
    code += "from pyce.__main__ import main; main(['demo', '--help'])"
    assert "usage: python -m pyce demo" in run_python("-c", code).stdout


def test_invalid_environment_variables(run_python):
    done = run_python("-m", "pyce", "demo", check=False, PYCE_BACKEND="fortran")
    assert done.returncode == UNUSABLE
    assert done.stderr.startswith("pyce: PYCE_BACKEND must be")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c(tmp_path):
    """During the training: one line, and no files are left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    place = str(tmp_path / "pictures")
    with running(
        *("demo", "-b", "numpy", "-o", place, "--epochs", "100000"),
        env={**os.environ, **ONE_BLAS_THREAD, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait() == INTERRUPTED
    assert errors == "pyce: interrupted\n"
    assert list(scratch.iterdir()) == list((tmp_path / "pictures").iterdir()) == []


def test_a_closed_pipe(tmp_path):
    """As with `python -m pyce demo | head -1`, on a terminal with ASCII only."""
    with running(
        *("demo", "-b", "numpy", "-o", str(tmp_path), "--epochs", "100000"),
        env={**os.environ, **ONE_BLAS_THREAD, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
    ) as process:
        lines = itertools.islice(process.stdout, 4)
        assert all(line.isascii() and b"\x1b" not in line for line in lines)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == FINE

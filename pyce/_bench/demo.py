"""Train two classifiers on images in files, and draw the learning curves.

The demo writes scikit-learn's 1797 handwritten digits as PNG files of different sizes and shapes,
and reads them back at one size. It finds a learning rate for softmax regression and for a network
with one hidden layer, and trains both. Exit status: 0 if the network recognises 97 % of the
held-out digits, 1 if it does not, 2 if the demo cannot run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

import pyce
from pyce import _cli
from pyce._bench.report import style
from pyce._bench.report.picture import Picture
from pyce._cli import Unusable
from pyce._types import BackendChoice, BackendName

if TYPE_CHECKING:
    from pyce._bench.workloads import Array
    from pyce.training import HiddenLayerClassifier, History, LinearClassifier, LRCurve

OUTPUT = Path("pyce-demo")
EPOCHS, SEED = 20, 0
WANTED = 0.97  # held-out accuracy of the network
HELD_OUT = 360
SIDES = (16, 48)  # of the files' images
SIDE, HIDDEN, BATCH = 16, 128, 32
SMOOTHING = 0.1
OPTIONS: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
LINEAR, NETWORK = "softmax regression", "hidden layer"
PICTURES = ("learning-rate", "training")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="FOLDER",
        help=f"folder to write the two pictures to (default: {OUTPUT}/)",
    )
    add("-b", "--backend", help="c, numba or numpy (default: the fastest)")
    add("--epochs", type=_at_least(1), default=EPOCHS, help=f"default: {EPOCHS}")
    add(
        "--seed",
        type=_at_least(0),
        default=SEED,
        help=f"seed of sizes, held-out images, initial weights and order (default: {SEED})",
    )
    add("--json", action="store_true", help="print the curves as JSON and nothing else")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


@dataclass(frozen=True)
class Trained:
    """A model: the search for its learning rate, and its training with that rate."""

    name: str
    curve: LRCurve
    history: History


def main(options: argparse.Namespace) -> int:
    _cli.require("demo", "sklearn", "PIL", "matplotlib", extra="training")
    _cli.info()
    backend = _available(options.backend)
    for name in PICTURES:
        _cli.writable(options.output / f"{name}.png")
    rng = np.random.default_rng(options.seed)
    x, y = images(rng)
    data = Data(x, y, rng.permutation(len(x)))
    with pyce.use_backend(backend):
        if not options.json:
            print(
                f"{len(x)} images of {SIDES[0]} to {SIDES[1]} pixels a side, read at {SIDE} by "
                f"{SIDE}; {HELD_OUT} are held out"
            )
        trained = [
            learn(name, data, options.epochs, options.seed, None if options.json else sys.stdout)
            for name in (LINEAR, NETWORK)
        ]
    written = _draw(trained, options.output)
    accuracy = {one.name: one.history.held_out_accuracy[-1] for one in trained}
    if options.json:
        print(json.dumps(_facts(backend, trained, written), indent=1))
    else:
        found = ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items())
        print(f"\nheld-out accuracy: {found}")
        print(_cli.line(f"written: {' and '.join(map(str, written))}"))
    if not accuracy[NETWORK] >= WANTED:
        print(f"pyce: {NETWORK}: held-out accuracy below {WANTED}", file=sys.stderr)
        return _cli.FAILED
    return _cli.FINE


def _available(backend: BackendChoice | None) -> BackendName:
    if backend is None:
        return pyce.get_backend()
    try:
        with pyce.use_backend(backend):
            return pyce.get_backend()
    except ValueError as error:
        raise Unusable(str(error)) from None


def _facts(backend: str, trained: list[Trained], written: list[Path]) -> dict[str, Any]:
    def listed(numbers: Iterable[float]) -> list[float | None]:
        return [number if math.isfinite(number) else None for number in numbers]

    models = {
        one.name: {
            "steepest": one.curve.steepest,
            "before_rise": one.curve.before_rise,
            "rates": one.curve.rates.tolist(),
            "losses": listed(one.curve.losses.tolist()),
            "epochs": {name: listed(numbers) for name, numbers in vars(one.history).items()},
        }
        for one in trained
    }
    return {"backend": backend, "models": models, "written": [str(path) for path in written]}


# ---------------------------------------------------------------------------------------------
# Images


def images(rng: np.random.Generator) -> tuple[Array, Array]:
    """Images and labels, written to temporary files and read back."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), rng)
            return read_images(Path(folder))
    except OSError as error:
        raise Unusable(f"can't write temporary files: {error.strerror}") from None


def write_images(folder: Path, rng: np.random.Generator) -> None:
    """Write every digit as FOLDER/LABEL/NUMBER.png, enlarged to a random size and shape."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in set(digits.target.tolist()):
        (folder / str(label)).mkdir()
    sizes = rng.integers(SIDES[0], SIDES[1] + 1, (len(digits.images), 2)).tolist()
    for number, (image, label, size) in enumerate(
        zip(digits.images, digits.target.tolist(), sizes, strict=True)
    ):
        gray = Image.fromarray((image * (255 / 16)).astype(np.uint8))
        enlarged = gray.resize(size, Image.Resampling.BICUBIC)
        enlarged.save(folder / str(label) / f"{number:04}.png", compress_level=1)


def read_images(folder: Path) -> tuple[Array, Array]:
    """Read the files as images (N, SIDE, SIDE) in 0…1, and labels (N,)."""
    from pyce.training import presize

    paths = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    # Each was stretched in its own way; squashing restores the original shape.
    return presize(paths, SIDE, "squash"), np.array([int(path.parent.name) for path in paths])


# ---------------------------------------------------------------------------------------------
# Training


class Data:
    """Images and labels, of which the first HELD_OUT of the order are held out."""

    def __init__(self, x: Array, y: Array, order: Array) -> None:
        others, seen = order[:HELD_OUT], order[HELD_OUT:]
        self.seen = x[seen], y[seen]
        self.held_out = x[others], y[others]


def learn(name: str, data: Data, epochs: int, seed: int, out: TextIO | None) -> Trained:
    """Find a learning rate and train with it; print the progress to `out`."""
    from pyce.training import SGD, HiddenLayerClassifier, LinearClassifier, train

    model = (
        LinearClassifier(SIDE * SIDE, 10, seed=seed)
        if name == LINEAR
        else HiddenLayerClassifier(SIDE * SIDE, HIDDEN, 10, seed=seed)
    )
    curve = find_rate(model, data, seed)
    if curve.steepest is None:
        raise Unusable(f"{name}: no learning rate was found: {curve!r}")
    if out:
        edge = "" if curve.before_rise is None else f"; the loss rises from {curve.before_rise:.2g}"
        print(f"\n{name}: learning rate {curve.steepest:.2g}, the steepest descent{edge}", file=out)
    history = train(
        model,
        *data.seen,
        SGD(model.parameters, curve.steepest, **OPTIONS),
        epochs=epochs,
        batch_size=BATCH,
        label_smoothing=SMOOTHING,
        held_out=data.held_out,
        schedule=_falling(curve.steepest),
        seed=seed,
        progress=out or False,
    )
    return Trained(name, curve, history)


def _falling(rate: float) -> Callable[[float], float]:
    """A schedule from the rate to 0: with a constant rate, the last epochs would fluctuate."""
    return lambda done: rate * (1 - done)


def find_rate(model: LinearClassifier | HiddenLayerClassifier, data: Data, seed: int) -> LRCurve:
    """The range test on the batches of `train`; the model is restored afterwards."""
    from pyce.training import SGD, lr_find, minibatches

    optimizer = SGD(model.parameters, lr=0.0, **OPTIONS)
    rng = np.random.default_rng(seed)

    def endless() -> Iterator[tuple[Array, Array]]:
        while True:
            yield from minibatches(*data.seen, BATCH, rng)

    batches = endless()

    def step(lr: float) -> Any:
        optimizer.lr = lr
        loss, gradients = model.loss_and_gradients(*next(batches), label_smoothing=SMOOTHING)
        optimizer.step(gradients)
        return loss

    return lr_find(step, start=1e-5, state=[model, optimizer])


# ---------------------------------------------------------------------------------------------
# Pictures


# In inches: two panels, one above the other, which stay legible on a narrow page.
_SIZE = 7, 7.6


def _draw(trained: list[Trained], folder: Path) -> list[Path]:
    import matplotlib
    from cycler import cycler

    with style.drawing():
        matplotlib.rcParams["axes.prop_cycle"] = cycler(color=_colors())
        pictures = [_rates(trained), _curves(trained)]
    try:
        return [picture.save(folder) for picture in pictures]
    except OSError as error:
        raise Unusable(f"can't write to {folder}: {error.strerror}") from None


def _colors() -> list[str]:
    return [style.THEME[name][0] for name in ("blue", "vermillion", "green")]


def _rates(trained: list[Trained]) -> Picture:
    made = style.figure(*_SIZE)
    panels = made.subplots(len(trained), 1)
    for panel, one in zip(panels, trained, strict=True):
        one.curve.plot(panel)
        style.logarithmic(panel.xaxis, one.curve.rates[0] / 1.3, one.curve.rates[-1] * 1.3)
        panel.set_title(one.name)
        panel.grid(axis="y")
    return Picture(PICTURES[0], "", "", "", made)


def _curves(trained: list[Trained]) -> Picture:
    made = style.figure(*_SIZE)
    loss, accuracy = made.subplots(2, 1)
    for color, one in zip(_colors(), trained, strict=False):
        epochs = range(1, len(one.history.loss) + 1)
        for panel, trains, held_out in (
            (loss, one.history.loss, one.history.held_out_loss),
            (accuracy, one.history.accuracy, one.history.held_out_accuracy),
        ):
            panel.plot(epochs, trains, ":", color=color, label=f"{one.name}, training")
            panel.plot(
                epochs, held_out, "o-", color=color, markersize=4, label=f"{one.name}, held out"
            )
    accuracy.axhline(
        WANTED, color=style.MUTED, linewidth=1, linestyle="--", label=f"goal: {WANTED}"
    )
    for panel, what in ((loss, "loss"), (accuracy, "accuracy")):
        panel.set_title(f"{what} after each epoch")
        panel.set_xlabel("epoch")
        panel.set_ylabel(what)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(axis="y")
    style.legend(made, (accuracy,), columns=2)
    return Picture(PICTURES[1], "", "", "", made)

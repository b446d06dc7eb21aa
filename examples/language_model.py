"""Train a small GPT with PyTorch's cross-entropy and with pyce's: equal losses, less time.

    python examples/language_model.py                     # some minutes
    python examples/language_model.py --loss pyce-linear  # only with head and loss in one function
    python examples/language_model.py --help

The text is the source code of Python's standard library, which every machine has. The sections are
the text, the model, a training step with the time of its parts, the trainings, and the report. All
of it is plain PyTorch; inside `pyce.torch.patched()` the same code runs on pyce's loss. With
`pyce.torch.linear_cross_entropy` the step never holds all logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from byte_pairs import BytePairs
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import pyce.torch


@dataclass(frozen=True)
class Settings:
    vocabulary: int = 32768
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 128  # tokens of a sequence
    batch: int = 8  # sequences
    steps: int = 300
    learning_rate: float = 1e-3
    modules: int | None = None  # of the standard library; None for all
    seed: int = 0


SMALL = Settings(512, width=32, layers=2, heads=2, context=32, batch=4, steps=12, modules=40)


# ---------------------------------------------------------------------------------------------
# Text

# Installed packages, tests, tables of characters, and files that describe the machine.
LEFT_OUT = re.compile(
    r"(^|/)(\w+-packages|(\w+_)?tests?|encodings|config-[^/]*)/|(^|/)_sysconfigdata"
)


def standard_library(most: int | None = None) -> list[bytes]:
    """The source of each module, sorted by path. No module is imported."""
    home = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(home).as_posix(): path for path in home.rglob("*.py")}
    names = sorted(name for name in paths if not LEFT_OUT.search(name))[:most]
    if len(names) < 10:
        sys.exit(f"the sources of the standard library are not in {home}")
    return [paths[name].read_bytes() for name in names]


def split(settings: Settings) -> tuple[list[bytes], list[bytes]]:
    """The modules to train on, and one in ten that is held out."""
    texts = standard_library(settings.modules)
    held_out = texts[9::10]
    del texts[9::10]
    return texts, held_out


def batches(tokens: Tensor, settings: Settings, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random sequences of the text, and the next token of each position; fixed by the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    last, shape = len(tokens) - settings.context, (settings.batch, 1)
    for _ in range(count):
        starts = torch.randint(last, shape, generator=generator)
        sequences = tokens[starts + torch.arange(settings.context + 1)]
        yield sequences[:, :-1], sequences[:, 1:]


# ---------------------------------------------------------------------------------------------
# Model


class Block(nn.Module):
    """Causal self-attention and a two-layer MLP, both with layer norm and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:  # (batch, context, width)
        of_heads = self.attention(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = of_heads.permute(2, 0, 3, 1, 4)  # (batch, heads, context, width/heads)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder with learned positions; the head has the weights of the embedding, as in GPT-2."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(settings.vocabulary, settings.width)
        self.position = nn.Embedding(settings.context, settings.width)
        blocks = (Block(settings.width, settings.heads) for _ in range(settings.layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(settings.width)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    @property
    def head(self) -> Tensor:
        """The weight of the last layer, (vocabulary, width)."""
        return self.embedding.weight

    def hidden(self, tokens: Tensor) -> Tensor:  # (batch, context) to (…, width)
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x))

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, context) to (…, vocabulary)
        return F.linear(self.hidden(tokens), self.head)


def save(path: Path, model: GPT, settings: Settings, coding: BytePairs) -> None:
    """Write a trained model and its tokens to a file."""
    merges = list(coding.merges)
    saved = {"settings": asdict(settings), "merges": merges, "weights": model.state_dict()}
    torch.save(saved, path)


def load(path: Path) -> tuple[GPT, Settings, BytePairs]:
    """The model, the settings and the tokens that `save` wrote."""
    saved = torch.load(path, weights_only=True)
    settings = Settings(**saved["settings"])
    model = GPT(settings)
    model.load_state_dict(saved["weights"])
    merges = {pair: token for token, pair in enumerate(saved["merges"], 256)}
    return model, settings, BytePairs(merges)


# ---------------------------------------------------------------------------------------------
# A training step, and the time of its parts

PARTS = ("model", "head", "loss", "optimizer")


class Training:
    """A model and its optimizer, and for each step its loss, seconds and memory.

    If `fused`, one function computes the product with the head and the loss, without all logits;
    the time of both is that of the loss.
    """

    def __init__(self, settings: Settings, fused: bool = False) -> None:
        torch.manual_seed(settings.seed)
        self.fused = fused
        self.model = GPT(settings)
        parameters, warm_up = self.model.parameters(), 1 + settings.steps // 10
        self.optimizer = torch.optim.AdamW(
            parameters, settings.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / warm_up)
        )
        self.losses: list[float] = []
        self.seconds: list[dict[str, float]] = []
        self.memory: list[int] = []

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        moments = [perf_counter()]

        def lap(_: object = None) -> None:
            moments.append(perf_counter())

        hidden = self.model.hidden(inputs)
        lap()
        loss, before = self.loss_of(hidden, targets, lap)
        lap()
        before.register_hook(lap)  # called as soon as its gradient is computed
        hidden.register_hook(lap)
        loss.backward()
        lap()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        lap()
        forward, head_forward, loss_forward, loss_backward, head_backward, backward, update = (
            b - a for a, b in pairwise(moments)
        )
        head, of_loss = head_forward + head_backward, loss_forward + loss_backward
        times = (forward + backward, head, of_loss, update)
        self.seconds.append(dict(zip(PARTS, times, strict=True)))
        self.losses.append(loss.item())

    def loss_of(
        self, hidden: Tensor, targets: Tensor, lap: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and what it is computed from; `lap` is called between the head and the loss."""
        if self.fused:
            lap()
            loss = pyce.torch.linear_cross_entropy(
                hidden.flatten(0, 1), self.model.head, targets.flatten()
            )
            return loss, hidden
        logits = F.linear(hidden, self.model.head)
        lap()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits

    @torch.no_grad()
    def mean_loss(self, tokens: Tensor, settings: Settings, count: int = 20) -> float:
        return fmean(
            self.loss_of(self.model.hidden(inputs), targets)[0].item()
            for inputs, targets in batches(tokens, settings, count)
        )


def added_memory(call: Callable[[], None]) -> int:
    """Peak memory of the process in the call, minus that before it, in bytes; 0 if not Linux."""

    def status(field: str) -> int:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(text.partition(f"{field}:")[2].split()[0])

    try:
        Path("/proc/self/clear_refs").write_text(
            "5", encoding="utf-8"
        )  # the high-water mark starts anew
    except OSError:
        call()
        return 0
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before)


# ---------------------------------------------------------------------------------------------
# The trainings, step by step in turn


class Loss(NamedTuple):
    """The context of a step, and whether one function computes head and loss."""

    context: Callable = nullcontext
    fused: bool = False


# The last training shows the effect of rounding: PyTorch's loss, with one bit of a weight changed.
NUDGED = "PyTorch, one bit changed"
LOSSES = {
    "PyTorch": Loss(),
    "pyce": Loss(pyce.torch.patched),
    "pyce-linear": Loss(fused=True),
    NUDGED: Loss(),
}
OURS = ("pyce", "pyce-linear")


def train(
    tokens: Tensor, settings: Settings, losses: dict[str, Loss] = LOSSES
) -> dict[str, Training]:
    """A training with each loss, from the same start on the same batches, one step each in turn."""
    trainings = {name: Training(settings, loss.fused) for name, loss in losses.items()}
    if NUDGED in trainings:
        with torch.no_grad():
            weight = trainings[NUDGED].model.blocks[0].attention.weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    order, began = list(losses), perf_counter()
    for number, batch in enumerate(batches(tokens, settings, settings.steps), 1):
        for name in order:
            training = trainings[name]
            with losses[name].context():
                training.memory.append(added_memory(partial(training.step, *batch)))
        order.append(order.pop(0))  # so that no training is always the first
        left = (perf_counter() - began) / number * (settings.steps - number)
        progress(number, settings.steps, f"loss {training.losses[-1]:.3f}, {left:.0f} s left")
    return trainings


def progress(number: int, steps: int, text: str) -> None:
    """Print one line that is updated; if not on a terminal, a line for each tenth of the steps."""
    if sys.stdout.isatty():
        end = "\n" if number == steps else ""
        print(f"\r\033[Kstep {number}/{steps}, {text}", end=end, flush=True)
    elif number * 10 // steps > (number - 1) * 10 // steps:
        print(f"step {number}/{steps}, {text}", flush=True)


def measure(settings: Settings, ours: Sequence[str] = OURS, model: Path | None = None) -> dict:
    """Train with PyTorch's loss and with each of `ours`, and return all figures, with the loss on
    held-out text. Save the first model to the file `model`.
    """
    losses = {name: loss for name, loss in LOSSES.items() if name not in OURS or name in ours}
    (texts, held_out), began = split(settings), perf_counter()
    coding = BytePairs.train(texts, settings.vocabulary)
    seen, unseen = (torch.tensor(coding.encode(b"\n".join(part))) for part in (texts, held_out))
    about = (
        f"{len(seen):,} tokens of {len(texts)} modules; {len(coding.bytes):,} of the "
        f"{settings.vocabulary:,} in the vocabulary are used"
    )
    print(f"{about} ({perf_counter() - began:.0f} s)", flush=True)
    trainings = train(seen, settings, losses)
    if model:
        save(model, trainings["PyTorch"].model, settings, coding)
    figures = {}
    for name, training in trainings.items():
        pairs = zip(training.losses, trainings["PyTorch"].losses, strict=True)
        with losses[name].context():
            held_out_loss = training.mean_loss(unseen, settings)
        figures[name] = {
            "step": median(sum(step.values()) for step in training.seconds),
            "head and loss": median(step["head"] + step["loss"] for step in training.seconds),
            "share": median(
                (step["head"] + step["loss"]) / sum(step.values()) for step in training.seconds
            ),
            **{part: median(step[part] for step in training.seconds) for part in PARTS},
            "memory": median(training.memory),
            "held_out": held_out_loss,
            "losses": training.losses,
            "differences": [abs(ours - theirs) for ours, theirs in pairs],
        }
    return {
        "settings": asdict(settings),
        "text": about,
        "parameters": sum(p.numel() for p in trainings["PyTorch"].model.parameters()),
        "machine": machine(),
        "trainings": figures,
    }


def machine() -> str:
    """When, at which commit and on what is measured."""
    folder = Path(__file__).parent
    try:
        command = ["git", "rev-parse", "--short=9", "HEAD"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        commit = f" at commit {found.stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        commit = ""
    cpuinfo = Path("/proc/cpuinfo")
    name = (
        re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8"))
        if cpuinfo.exists()
        else None
    )
    return (
        f"{date.today()}{commit} on {name[1] if name else platform.machine()} "
        f"with {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"pyce {pyce.__version__} ({pyce.info()['isa'] or pyce.info()['backend']})"
    )


# ---------------------------------------------------------------------------------------------
# The report


def report(figures: dict) -> str:
    """The measured figures in Markdown: a paragraph and a table."""
    trainings = dict(figures["trainings"])
    nudged = trainings.pop(NUDGED)
    theirs = trainings["PyTorch"]

    def row(what: str, figure: str, form: str, scale: float = 1, times: bool = True) -> list[str]:
        cells = [what]
        for name, training in trainings.items():
            value = training[figure]
            ratio = theirs[figure] / value if times and value and training is not theirs else None
            fused = figure == "loss" and LOSSES[name].fused
            cells.append("" if fused else form.format(scale * value))
            if ratio and not fused:
                cells[-1] += f" ({ratio:.3g} ×)"
        return cells

    settings = figures["settings"]
    rows = [
        ["", *trainings],
        ["---", *["---:"] * len(trainings)],
        row("a training step", "step", "{:.1f} ms", 1e3),
        row("in it head and loss, forward and backward", "head and loss", "{:.1f} ms", 1e3),
        row("in it the loss alone", "loss", "{:.2f} ms", 1e3),
        row("the share of head and loss in the step", "share", "{:.1f} %", 100, False),
        row("loss on held-out text", "held_out", "{:.5f}", 1, False),
    ]
    if theirs["memory"]:
        rows.append(row("memory that a step adds, at most", "memory", "{:.0f} MiB", 2**-20))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join(
        "".join(f"| {cell:{'>' if i else '<'}{widths[i]}} " for i, cell in enumerate(cells)) + "|"
        for cells in rows
    )
    apart = [
        f"The losses of PyTorch and {name} are apart by {training['differences'][0]:.1g} at the "
        f"first step and by {max(training['differences']):.1g} at most."
        for name, training in trainings.items()
        if training is not theirs
    ]
    return f"""\
Measured on {figures["machine"]}. {figures["parameters"] / 1e6:.1f} million parameters; \
{settings["steps"]} steps with {settings["batch"] * settings["context"]} × \
{settings["vocabulary"]} logits; {figures["text"]}. Medians over the steps. In brackets: how many \
times as much PyTorch takes.

{table}

{" ".join(apart)} Those of two trainings with PyTorch's own function, one of which begins with the \
last bit of one weight changed: by {max(nudged["differences"]):.1g} at most.
"""


# Colors of Okabe and Ito, which people with color blindness can distinguish: for each training its
# own, and for the other parts of its steps.
COLORS = {"PyTorch": "#d55e00", "pyce": "#0072b2", "pyce-linear": "#009e73"}
GREY, LIGHT = "#7b7f86", "#c9cdd3"


def draw(figures: dict, path: Path) -> None:
    """Plot the losses, their differences, and the time of the parts and the memory of a step."""
    trainings = dict(figures["trainings"])
    nudged = trainings.pop(NUDGED)
    steps = range(1, len(nudged["losses"]) + 1)
    has_memory = any(training["memory"] for training in trainings.values())
    picture = Figure(figsize=(8, 10.4 if has_memory else 8.9), layout="constrained")
    heights = (3, 2, 1.7, 1.2) if has_memory else (3, 2, 1.7)
    panels = picture.subplots(len(heights), 1, height_ratios=heights)
    losses, apart, times = panels[:3]
    # On the logarithmic axis, differences of 0 are not drawn.
    label = "PyTorch and PyTorch, one bit of a weight changed"
    apart.plot(steps, nudged["differences"], ".", color=GREY, markersize=4, label=label)
    for number, (name, training) in enumerate(trainings.items()):
        color, theirs = COLORS[name], name == "PyTorch"
        style = {"linewidth": 6, "alpha": 0.4} if theirs else {"linewidth": 2 / number}
        losses.plot(steps, training["losses"], color=color, label=name, **style)
        if not theirs:
            label = f"PyTorch and {name}"
            apart.plot(steps, training["differences"], ".", color=color, markersize=4, label=label)
    losses.set(ylabel="nats per token", xlim=(0, len(steps)))
    apart.set(yscale="log", ylabel="nats per token", xlabel="step", xlim=(0, len(steps)))

    longest = 0.0
    for y, (name, training) in enumerate(reversed(trainings.items())):
        end = 0.0
        for part, shade in zip(PARTS, (LIGHT, COLORS[name], COLORS[name], GREY), strict=True):
            width = 1e3 * training[part]
            alpha = 0.55 if part == "head" else 1
            times.barh(y, width, left=end, color=shade, alpha=alpha, height=0.6)
            if name == "PyTorch":
                times.text(end + width / 2, y + 0.4, part, ha="center")
            end += width
        times.text(end, y, f"  {training['share']:.0%} in head and loss", va="center")
        longest = max(longest, end)
    times.set(xlabel="ms", xlim=(0, 1.3 * longest), ylim=(-0.5, len(trainings) - 0.2))
    times.set_yticks(range(len(trainings)), list(reversed(trainings)))

    for panel in panels[3:]:
        for y, (name, training) in enumerate(reversed(trainings.items())):
            added = training["memory"] / 2**20
            panel.barh(y, added, color=COLORS[name], height=0.6)
            panel.text(added, y, f"  {added:.0f} MiB", va="center")
        most = max(training["memory"] for training in trainings.values()) / 2**20
        panel.set(xlabel="MiB", xlim=(0, 1.3 * most))
        panel.set_yticks(range(len(trainings)), list(reversed(trainings)))

    titles = ["Training loss", "How far two losses are apart", "Time of a training step"]
    titles += ["Memory that a step adds, at most"][: len(panels) - 3]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left", weight="bold")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in (losses, apart):
        panel.grid(color="#e4e6e9")
        panel.legend(framealpha=0.9, edgecolor="none")  # legible over the points
    picture.savefig(path, dpi=110)
    Image.open(path).quantize(64).save(path, optimize=True)  # a third of the size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--steps", type=int, help=f"of each training (default: {Settings.steps})")
    add("--loss", action="append", choices=OURS, help="besides PyTorch's (default: all)")
    add("--seed", type=int, default=0, help="of the weights and the batches (default: 0)")
    add("--threads", type=int, help="of PyTorch and pyce (default: every processor)")
    add("--small", action="store_true", help="a tiny model and little text: seconds")
    add("--output", type=Path, default=Path("build/language-model"), metavar="FOLDER")
    add("--json", type=Path, metavar="FILE", help="every figure (default: figures.json there)")
    options = parser.parse_args()
    if any(count is not None and count < 1 for count in (options.steps, options.threads)):
        parser.error("steps and threads must be at least 1")
    settings = replace(SMALL if options.small else Settings(), seed=options.seed)
    if options.steps:
        settings = replace(settings, steps=options.steps)
    if options.threads:
        torch.set_num_threads(options.threads)
        pyce.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    figures = measure(settings, options.loss or OURS, options.output / "model.pt")
    (options.json or options.output / "figures.json").write_text(json.dumps(figures), "utf-8")
    (options.output / "report.md").write_text(report(figures), encoding="utf-8")
    draw(figures, options.output / "language-model.png")
    print(f"\n{report(figures)}\nPicture, figures and model are in {options.output}")


if __name__ == "__main__":
    main()

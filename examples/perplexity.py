"""Perplexity of a language model, token by token, without all of its logits.

    python examples/perplexity.py              # the model of language_model.py on held-out text
    python examples/perplexity.py --text FILE
    python examples/perplexity.py --help

The surprise of a token is −log p(token | the tokens before it), in nats: the cross-entropy of its
row of logits. The perplexity is the exponential of its mean. PyTorch's way multiplies the hidden
states by the head and takes the cross-entropy of all logits; pyce's computes the logits in chunks.
Both are called in turn with the same hidden states, and must agree within rounding.
"""

from __future__ import annotations

import argparse
import codecs
import ctypes
import html
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from byte_pairs import BytePairs
from language_model import (
    GPT,
    SMALL,
    Loss,
    Settings,
    added_memory,
    load,
    machine,
    save,
    split,
    train,
)
from rich.progress import track
from torch import Tensor

import pyce
import pyce.torch

# ---------------------------------------------------------------------------------------------
# The model and the text


def trained(path: Path, settings: Settings) -> tuple[GPT, Settings, BytePairs]:
    """The model in a file. If there is none, train one with pyce's loss, and write the file."""
    if path.exists():
        return load(path)
    print(f"{path} does not exist: training a model first", flush=True)
    texts, _ = split(settings)
    coding = BytePairs.train(texts, settings.vocabulary)
    tokens = torch.tensor(coding.encode(b"\n".join(texts)))
    model = train(tokens, settings, {"pyce": Loss(pyce.torch.patched)})["pyce"].model
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, model, settings, coding)
    return model, settings, coding


def windows(count: int, context: int) -> list[tuple[int, int]]:
    """(start, skipped) of sequences of up to `context` tokens that cover `count` tokens.

    Each sequence begins half a context after the one before it, and its first `skipped` predictions
    are those of other sequences: so every token but the first is predicted once, from at least half
    a context of tokens before it, unless the text begins there.
    """
    context = min(context, count - 1)
    found, done = [], 0  # predictions
    while done < count - 1:
        start = min(max(0, done - context // 2), count - 1 - context)
        found.append((start, done - start))
        done = start + context
    return found


@torch.no_grad()
def hidden_states(
    model: GPT, tokens: Tensor, context: int, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The hidden states (n, width) of predictions, and the tokens (n,) to predict, in the order of
    the text, from at most `rows` positions at a time.
    """
    found = windows(len(tokens), context)
    context = min(context, len(tokens) - 1)
    together = max(1, rows // context)
    for first in range(0, len(found), together):
        starts, skipped = torch.tensor(found[first : first + together]).T[..., None]
        at = torch.arange(context)
        scored = at >= skipped
        sequences = tokens[starts + torch.arange(context + 1)]
        yield model.hidden(sequences[:, :-1])[scored], sequences[:, 1:][scored]


# ---------------------------------------------------------------------------------------------
# Two ways to the surprise of each token

Way = Callable[[Tensor, Tensor, Tensor], np.ndarray]


@torch.no_grad()
def by_pytorch(hidden: Tensor, head: Tensor, targets: Tensor) -> np.ndarray:
    """−log p of each target, from all logits."""
    return F.cross_entropy(F.linear(hidden, head), targets, reduction="none").numpy()


def by_pyce(hidden: Tensor, head: Tensor, targets: Tensor) -> np.ndarray:
    """−log p of each target, from chunks of logits. The arrays share the memory of the tensors."""
    arrays = (tensor.detach().numpy() for tensor in (hidden, head, targets))
    return pyce.linear_cross_entropy(*arrays, reduction="none")


WAYS: dict[str, Way] = {"PyTorch, all logits": by_pytorch, "pyce, in chunks": by_pyce}


def bound(hidden: Tensor, head: Tensor) -> float:
    """The most by which two values of a loss may differ through rounding.

    Both have logits that differ from the exact ones by at most γ·|h|·|W_c|, γ = n·u/(1 − n·u) with
    n = D + 1 and u = 2⁻²⁴, and so losses that differ by at most four times that. PyTorch adds up
    the exponentials of a row and subtracts in float32, which 2⁻¹⁶ allows for.
    """
    product = float(hidden.norm(dim=1).max()) * float(head.norm(dim=1).max())
    gamma = (hidden.shape[1] + 1) * 2**-24
    return 4 * gamma / (1 - gamma) * product + 2**-16


def return_free_memory() -> None:
    """Give what was freed back to the system, so that a call cannot use it unseen."""
    with suppress(OSError, AttributeError, TypeError):  # a C library without this function
        ctypes.CDLL(None).malloc_trim(0)


def measure(
    model: GPT,
    tokens: Tensor,
    context: int,
    rows: int,
    ways: dict[str, Way] = WAYS,
) -> dict:
    """The surprise of each token but the first, and for each way its seconds and its memory."""
    batches = hidden_states(model, tokens, context, rows)
    count = math.ceil(len(windows(len(tokens), context)) / max(1, rows // context))
    seconds = dict.fromkeys(ways, 0.0)
    memory = dict.fromkeys(ways, 0)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    largest, allowed = 0.0, 0.0
    order = list(ways)
    for hidden, targets in track(batches, "surprise of each token", total=count):
        head = model.head.detach()
        if not parts[order[0]]:  # threads start, and libraries load, before anything is timed
            for way in ways.values():
                way(hidden[:8], head, targets[:8])

        def call(name: str, arguments: tuple[Tensor, ...]) -> None:
            began = perf_counter()
            parts[name].append(ways[name](*arguments))
            seconds[name] += perf_counter() - began

        for name in order:
            return_free_memory()
            added = added_memory(partial(call, name, (hidden, head, targets)))
            memory[name] = max(memory[name], added)
        order.append(order.pop(0))
        a, b = (parts[name][-1].astype(np.float64) for name in ways)
        difference, rounding = float(np.abs(a - b).max()), bound(hidden, head)
        if not difference <= rounding:
            sys.exit(f"{' and '.join(ways)} differ by {difference:.2g}, more than {rounding:.2g}")
        largest, allowed = max(largest, difference), max(allowed, rounding)
    surprise = np.concatenate(parts[list(ways)[-1]]).astype(np.float64)
    return {
        "ways": {name: {"seconds": seconds[name], "memory": memory[name]} for name in ways},
        "perplexity": {name: perplexity(np.concatenate(parts[name])) for name in ways},
        "difference": largest,
        "bound": allowed,
        "surprise": surprise.tolist(),
    }


def perplexity(surprise: np.ndarray) -> float:
    return math.exp(surprise.mean(dtype=np.float64))


# ---------------------------------------------------------------------------------------------
# The report and the picture


def report(figures: dict) -> str:
    """The measured figures in Markdown: a paragraph and a table."""
    names = list(figures["ways"])
    theirs, ours = figures["ways"].values()

    def row(what: str, *cells: str) -> list[str]:
        return [what, *cells]

    def figure(key: str, form: str, scale: float) -> list[str]:
        a, b = (scale * way[key] for way in (theirs, ours))
        return [form.format(a), form.format(b), f"{a / b:.3g} ×" if b else ""]

    rows = [
        row("", *names, "PyTorch / pyce"),
        row("---", "---:", "---:", "---:"),
        row("perplexity", *(f"{p:.4f}" for p in figures["perplexity"].values()), ""),
        row("time of head and loss", *figure("seconds", "{:.2f} s", 1)),
    ]
    if theirs["memory"]:
        rows.append(row("memory added, at most", *figure("memory", "{:.0f} MiB", 2**-20)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "\n".join(
        "".join(f"| {cell:{'>' if i else '<'}{widths[i]}} " for i, cell in enumerate(cells)) + "|"
        for cells in rows
    )
    surprise = figures["surprise"]
    bits = sum(surprise) / math.log(2) / figures["bytes"]
    return f"""\
Measured on {figures["machine"]}. {len(surprise):,} tokens of {figures["text"]}; a vocabulary of \
{figures["vocabulary"]:,}; up to {figures["rows"]:,} positions at a time. {bits:.3f} bits per byte.

{table}

The surprise of a token differs by at most {figures["difference"]:.1g} nats between the two ways; \
rounding explains up to {figures["bound"]:.1g}.
"""


COLUMNS, LINES = 92, 36  # of the picture
WIDTH, HEIGHT, EDGE, TOP = 8.0, 19, 12, 64  # of a character; the margins, in pixels
STEP, SHADES = 1.5, 8  # nats of a shade, and their number
STYLE = """\
  .paper { fill: #ffffff; }
  text { font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1b1e23; }
  .code { white-space: pre; }
  .plain { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
  .title { font-weight: 600; }
  .mark { fill: #d55e00; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #14171b; }
    text { fill: #e9ebee; }
  }
"""


def shade(nats: float) -> int:
    return min(SHADES - 1, int(nats / STEP))


def placed(pieces: list[bytes]) -> Iterator[tuple[int, int, int, str]]:
    """(token, line, column, text) of the parts of tokens on a page; a new line is shown as ↵.

    A character whose bytes belong to several tokens is shown as part of the last of them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    line = column = 0
    for token, piece in enumerate(pieces):
        text = decoder.decode(piece, final=token == len(pieces) - 1).replace("\t", "    ")
        for part in text.replace("\n", "↵\n").splitlines(keepends=True):
            shown = "".join(c if c.isprintable() else "·" for c in part.rstrip("\n"))
            while shown:
                if column == COLUMNS:
                    line, column = line + 1, 0
                now = shown[: COLUMNS - column]
                yield token, line, column, now
                column, shown = column + len(now), shown[len(now) :]
            if part.endswith("\n"):
                line, column = line + 1, 0


def draw(pieces: list[bytes], surprise: list[float], title: str, path: Path) -> None:
    """Write the beginning of the text as SVG, each token on a colour that tells its surprise.

    The colours are the same transparent one on a light and on a dark page.
    """
    marks: list[str] = []
    texts: dict[int, str] = {}
    for token, line, column, text in placed(pieces):
        if line == LINES:
            break
        texts[line] = texts.get(line, "").ljust(column) + text
        x, y = EDGE + WIDTH * column, TOP + HEIGHT * line
        place = f'x="{x:g}" y="{y}" width="{WIDTH * len(text) - 0.6:g}" height="{HEIGHT - 2}"'
        marks.append(f'<rect class="mark s{shade(surprise[token])}" {place}/>')
    width, height = 2 * EDGE + WIDTH * COLUMNS, TOP + HEIGHT * (max(texts) + 1) + EDGE
    shades = "".join(
        f"  .s{i} {{ fill-opacity: {0.6 * i / (SHADES - 1):.3f}; }}\n" for i in range(SHADES)
    )
    legend = []
    for i in range(SHADES):
        x = EDGE + 52 * i
        label = f"{STEP * i:g}" + ("" if i < SHADES - 1 else " and more nats")
        legend.append(f'<rect class="mark s{i}" x="{x}" y="36" width="50" height="17"/>')
        legend.append(f'<text class="plain" x="{x + 4}" y="49">{label}</text>')
    lines = [
        f'<text class="code" xml:space="preserve" x="{EDGE}" y="{TOP + HEIGHT * line + 13}" '
        f'textLength="{WIDTH * len(text):g}" lengthAdjust="spacingAndGlyphs">'
        f"{html.escape(text)}</text>"
        for line, text in texts.items()
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" '
        f'width="{width:g}" height="{height}" role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{STYLE}{shades}</style>",
        '<rect class="paper" width="100%" height="100%"/>',
        f'<text class="plain title" x="{EDGE}" y="24">{html.escape(title)}</text>',
        *legend,
        *marks,
        *lines,
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="default: modules that the model has not seen")
    add("--tokens", type=int, default=32768, help="of the text, at most (default: %(default)s)")
    add("--rows", type=int, default=8192, help="positions at a time (default: %(default)s)")
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="written by language_model.py; trained first if it does not exist "
        "(default: model.pt in the folder)",
    )
    add("--threads", type=int, help="of PyTorch and pyce (default: every processor)")
    add("--small", action="store_true", help="if a model is trained, a tiny one: seconds")
    add("--output", type=Path, default=Path("build/language-model"), metavar="FOLDER")
    options = parser.parse_args()
    if min(options.tokens - 1, options.rows, options.threads or 1) < 1:
        parser.error("tokens must be at least 2, rows and threads at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
        pyce.set_num_threads(options.threads)
    path = options.model or options.output / "model.pt"
    model, settings, coding = trained(path, SMALL if options.small else Settings())
    text = options.text.read_bytes() if options.text else b"\n".join(split(settings)[1])
    tokens = coding.encode(text)[: options.tokens]
    if len(tokens) < 2:
        parser.error(f"{options.text} has fewer than two tokens")
    figures = measure(model, torch.tensor(tokens), settings.context, options.rows)
    pieces = [coding.bytes[token] for token in tokens[1:]]
    figures |= {
        "machine": machine(),
        "text": options.text.name if options.text else "modules that were held out",
        "vocabulary": settings.vocabulary,
        "rows": options.rows,
        "bytes": sum(map(len, pieces)),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    said = report(figures)
    (options.output / "perplexity.json").write_text(json.dumps(figures), encoding="utf-8")
    (options.output / "perplexity.md").write_text(said, encoding="utf-8")
    value = list(figures["perplexity"].values())[-1]
    title = f"Surprise of each token, −log p; perplexity of the whole text: {value:.1f}"
    draw(pieces, figures["surprise"], title, options.output / "perplexity.svg")
    print(f"\n{said}\nPicture and figures are in {options.output}")


if __name__ == "__main__":
    main()

"""The training on digits: the loss of each step, and its difference between backends."""

from __future__ import annotations

from pyce._bench.formats import duration
from pyce._bench.report.picture import Picture
from pyce._bench.report.plots.panels import WIDTH
from pyce._bench.report.style import figure, look, words
from pyce._bench.report.summaries import Shown


def digits(shown: Shown) -> Picture:
    """The loss of every training step, and its relative difference from the reference's."""
    made = figure(WIDTH, 4)
    left, right = made.subplots(1, 2)
    items = shown.training
    reference = items.get("numpy")
    # In this order and with these widths, equal curves are all visible.
    styles = {"numpy": ("-", 6), "numba": ("--", 3.5), "c": (":", 2)}
    names = [f"pyce {backend}" for backend in items]
    for backend in [b for b in styles if b in items] + [b for b in items if b not in styles]:
        item = items[backend]
        style, width = styles.get(backend, ("-.", 2))
        color, marker = look(f"pyce {backend}", names)
        label = f"{words(backend)}: {duration(item.seconds)}, {item.about['accuracy']:.1%} right"
        losses = item.about["losses"]
        left.plot(losses, style, linewidth=width, color=color, label=label)
        if reference and item is not reference:
            pairs = zip(losses, reference.about["losses"], strict=False)
            apart = [abs(a - b) / b for a, b in pairs]
            right.plot(
                apart,
                linestyle="none",
                marker=marker,
                markersize=2.2,
                markeredgewidth=0,
                color=color,
                label=words(backend),
            )
    left.set_ylabel("training loss (nats)")
    left.set_title("loss, training time, held-out accuracy")
    right.set_ylabel("relative difference of the loss")
    right.set_title("difference from the NumPy reference")
    right.ticklabel_format(axis="y", style="plain")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")
    for panel in (left, right):
        panel.set_xlabel("step")
        panel.grid()
        panel.set_ylim(0, panel.get_ylim()[1] * 1.2)  # room for the legend
        if panel.get_legend_handles_labels()[0]:
            panel.legend(loc="upper right", markerscale=2.5)
    text = "; ".join(
        f"{name} took {duration(item.seconds)} and got {item.about['accuracy']:.1%} right"
        for name, item in items.items()
    )
    return Picture(
        "digits",
        "Training on digits",
        f"Training loss by step, one curve for each backend; {text}.",
        "Logistic regression on scikit-learn's digits. The curves of all backends should coincide; "
        "the right panel shows their differences.",
        made,
    )

"""Real logits, in addition to the generated regimes: (rows, classes) in float64, and labels."""

from __future__ import annotations

import numpy as np

from pyce._check.oracle import Array

TITLES = {"text": "real: letters of a text", "digits": "real: handwritten digits"}


def text() -> tuple[Array, Array]:
    """Logarithms of how often a byte follows another in Python's documentation; −inf for never.

    If the documentation is not installed, the text is the docstrings of built-in types.
    """
    try:
        from pydoc_data.topics import topics

        words = "".join(topics.values())
    except ImportError:
        words = "".join(
            str(vars(kind)[name].__doc__) for kind in (str, dict) for name in vars(kind)
        )
    letters = np.frombuffer(words.encode(), np.uint8)
    counts = np.zeros((256, 256))
    np.add.at(counts, (letters[:-1], letters[1:]), 1)
    some = np.linspace(0, len(letters) - 2, 100).astype(int)
    with np.errstate(divide="ignore"):
        return np.log(counts[letters[some]]), letters[some + 1].astype(np.int64)


def digits() -> tuple[Array, Array]:
    """Logits of a softmax regression on scikit-learn's digits after 200 steps.

    Raises ImportError without scikit-learn.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = np.hstack([images / 16, np.ones((len(images), 1))])
    w = np.zeros((x.shape[1], 10))
    for _ in range(200):
        e = np.exp(x @ w)
        e /= e.sum(1, keepdims=True)
        e[np.arange(len(x)), labels] -= 1
        w -= 2.0 / len(x) * (x.T @ e)
    return x @ w, labels


DATA = {"text": text, "digits": digits}

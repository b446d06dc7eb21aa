"""What pyce promises: error bounds, the other promises in words, and known results.

docs/semantics.md states the promises; `python -m pyce check` prints them in these words.
"""

from __future__ import annotations

# The largest error allowed, in units in the last place (ULP). The unit of a gradient is taken at
# its own size, or at the larger of its two terms where these can cancel: with probabilities as
# targets, and with label smoothing.
LIMITS = {
    "cross-entropy": {"loss": 2.0, "gradient": 4.0, "softmax": 4.0, "log_softmax": 4.0},
    "binary cross-entropy": {"loss": 4.0, "gradient": 6.0},
}
# The other promises, as the command prints them.
ISAS = "the same bytes on every instruction set"
THREADS = "the same bytes with any number of threads"
PLACE = "the same bytes for a row alone and for every position of the class axis"
MACHINES = "the same bytes as on other machines"
HALF = "half types: the float32 result rounded once"
LABELS = "a label out of range raises IndexError and no output is written"
SPECIAL = "special values: NaN, infinities, a single class, no valid row"

HALF_TYPES = ("float16", "bfloat16")

# SHA-256 of `same_bytes.known_results` for each dtype: the same on every machine.
#
# tests/golden.json freezes the same kernels on other inputs. Its table tells which operation has
# changed, but is too large to install; these four digests let an installed package compare itself
# with all other machines. Neither follows from the other, so a change of the kernels' bytes renews
# both. `python -m pyce check -b c` shows the digests to enter here when it fails.
KNOWN = {
    "float16": "26f473b7ad3c94cdc92d8fcd7b06e323a7f66954edce8f3a8f926ac14fdf4d5e",
    "bfloat16": "cf5f60385ffd13d165ea7c4bfa2b0daf5917c725368e4643666df36b453a83d7",
    "float32": "f598317b2b78f3477ba64b13c16c548416df2520052a2a3c289604ec6a4643dd",
    "float64": "53e7e2dfe8053ad9df8ab2ecf43c8a27bb5b1ed0c45f91829c7673a01958c41e",
}

"""The promises of pyce: error bounds, the other promises in words, and known results.

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
    "float16": "cda5f41fab856750d6cb74f30ec40d5d0ae4d61bc5f3aa851f46e946542c0145",
    "bfloat16": "01fd3b904794df0dd629cc379d583dd6c1dbf528c3c239521a2ca9ab9ac32c33",
    "float32": "59be4873c7e687b43ba724c99251d1c8054d125c99a72b7ba2492abe6739739f",
    "float64": "cc081bd758f79a393a68fe4c58ceeec524c5ece781f02b2ccd144e99d4e7ff6e",
}

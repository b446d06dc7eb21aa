"""The dtypes of logits that pyce computes with.

To add a dtype, add a line to `_COMPUTE`; every backend then has to compute with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# The dtype that the arithmetic is done in, which is the loss's dtype too. Results of half types
# are float32 results, rounded once.
_COMPUTE: dict[str, np.dtype[Any]] = {
    "float16": _FLOAT32,
    "bfloat16": _FLOAT32,
    "float32": _FLOAT32,
    "float64": _FLOAT64,
}
# Names of the dtypes met so far: a look-up in a dict is the fastest way to recognise a dtype.
NAMES: dict[Any, str] = {np.dtype(n): n for n in ("float16", "float32", "float64")}


def dtype_name(dtype: Any) -> str | None:
    """The name of a dtype that logits may have, if it is in native byte order; else None."""
    name = NAMES.get(dtype)
    if name is None and dtype.name == "bfloat16" and dtype.isnative:
        # The type of ml_dtypes, recognised by its name so that pyce does not import ml_dtypes.
        NAMES[dtype] = name = "bfloat16"
    return name


def compute_dtype(name: str) -> np.dtype[Any]:
    """float32 or float64: the dtype of the arithmetic, and of the loss, for the named dtype."""
    return _COMPUTE[name]

"""Types for annotations: arrays, losses, and the names that arguments may have."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# An array whose dtype is that of an input, which only run time knows.
Array = npt.NDArray[Any]
# A loss, and one loss for each row: float64 for float64 inputs, else float32.
Scalar = np.float32 | np.float64
Losses = npt.NDArray[np.float32] | npt.NDArray[np.float64]

Reduction = Literal["mean", "sum", "none"]
ToScalar = Literal["mean", "sum"]

BackendName = Literal["c", "numba", "numpy"]
BackendChoice = Literal["auto", "c", "numba", "numpy"]

"""The time of a kernel that only moves bytes: elementwise chains, norms, softmax, copies, casts, optimizer steps.

Source: Williams et al., "Roofline" (CACM 2009). The constants are those of matrix products: their share of the
memory's bandwidth is measured on products that are bound by it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .gpu import MICROSECOND, Gpu


def moved_seconds(nbytes: ArrayLike, gpu: Gpu) -> NDArray[np.float64]:
    """One kernel that reads and writes so many bytes in all, in seconds."""
    c = gpu.matmuls["fp16"]
    rate = gpu.memory_rate * c.memory
    time: NDArray[np.float64] = np.asarray(nbytes, dtype=np.float64) / rate + c.launch_us * MICROSECOND
    return time


def quantize_seconds(elements: ArrayLike, gpu: Gpu) -> NDArray[np.float64]:
    """Casting 16-bit elements to 8 bits, with a scale for each row, in seconds: they are read, and written."""
    rate = gpu.memory_rate * gpu.matmuls["fp8"].memory
    time: NDArray[np.float64] = 3 * np.asarray(elements, dtype=np.float64) / rate
    return time

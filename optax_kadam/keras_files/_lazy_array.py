"""`LazyArray`: an array that stands in a file, and is read when it is asked for."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

_ALIGNMENT = 64  # Bytes: on a CPU, JAX uses memory that is aligned so without copying it.


@dataclasses.dataclass(frozen=True, slots=True)
class LazyArray:
    """An array that stands in a file. `read` reads it, and raises a ValueError if it is not there as a whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    offset: int | None = None  # Where its bytes begin in an HDF5 file; None in a checkpoint.


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised array in memory that JAX can use without a copy."""
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + count].view(dtype).reshape(shape)

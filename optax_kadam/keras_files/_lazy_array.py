"""Arrays in a file, not read yet, and how they are read: straight into place, one at a time."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np

_ALIGNMENT = 64  # Bytes: JAX takes over host memory without a copy if it is aligned so.


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file, not read yet. `read` raises a ValueError if it cannot be read whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    offset: int | None = None  # Where its bytes stand in an HDF5 file.


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`np.empty` of memory that JAX can take over."""
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + count].view(dtype).reshape(shape)


def read_into_place(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the array whose bytes stand from `offset` of the file at `path`, in the machine's byte order."""
    array = aligned_empty(shape, dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        place, done = array.reshape(-1).view(np.uint8).data, 0
        while done < len(place):  # One call reads 2 GiB at most.
            count = file.readinto(place[done:])
            if not count:
                raise ValueError(
                    f"An array must lie within its file. Received: {str(path)!r}, which ends {len(place) - done} bytes "
                    f"too early for an array of shape {shape}. The file was cut off: copy it again."
                )
            done += count
    return array.astype(dtype.newbyteorder("="), copy=False)

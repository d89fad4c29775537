"""`LazyArray`: an array that stands in a file, and is read when it is asked for."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import numpy as np

_ALIGNMENT = 64  # Bytes: on a CPU, JAX uses memory that is aligned so without copying it.


@dataclasses.dataclass(frozen=True)
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


def read_into_place(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Read the array that begins at byte `offset` of the file at `path`, and return it in the machine's byte order."""
    array = aligned_empty(shape, dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        place, done = array.reshape(-1).view(np.uint8).data, 0
        while done < len(place):  # The system reads at most 2 GiB in one call.
            count = file.readinto(place[done:])
            if not count:
                raise ValueError(
                    f"An array must lie within its file. Received: {str(path)!r}, which ends {len(place) - done} bytes "
                    f"too early for an array of shape {shape}. The file was cut off: copy it again."
                )
            done += count
    return array.astype(dtype.newbyteorder("="), copy=False)

"""How far two arrays are apart: in ULP, and as a share of how large they are or of how far they have moved."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 1 << 20  # How many elements are compared at a time, so that the widened copies stay small.


class Distance(NamedTuple):
    """How far two arrays of one shape and dtype are apart."""

    ulp: float  # An integer, or infinity where a NaN meets a number.
    share: float
    zeros: int  # How many zeros differ in their sign alone.


def distance(a: np.ndarray, b: np.ndarray, start: np.ndarray | None = None) -> Distance:
    """Return the largest distance of two elements.

    NaN is at no distance from NaN, whatever their bits are, and 0 at none from -0. The share is the largest distance
    over the largest element, or with `start` over the largest change since then, in `a` or `b`.

    Args:
      a: an array.
      b: an array of the same shape and dtype.
      start: an array of the same shape.
    """
    ulp, furthest, scale, zeros = 0, 0.0, 0.0, 0
    for x, y, origin in _chunks(a, b, start):
        both_nan = (x != x) & (y != y)
        ulp = max(ulp, _ulp(x, y, both_nan))
        same = (x == y) | both_nan
        with np.errstate(invalid="ignore", over="ignore"):
            wide_x, wide_y, wide_origin = (part.astype(np.float64) for part in (x, y, origin))
            apart = np.where(same, 0.0, np.abs(wide_x - wide_y))
            moved = np.abs(np.stack([wide_x, wide_y]) - wide_origin)
        furthest = max(furthest, float(np.nan_to_num(apart, nan=math.inf, posinf=math.inf).max(initial=0.0)))
        scale = max(scale, float(moved.max(initial=0.0, where=np.isfinite(moved))))
        zeros += int(np.count_nonzero((x == 0) & (y == 0) & (np.signbit(wide_x) != np.signbit(wide_y))))
    # Without a finite change there is no distance, or an infinite one.
    return Distance(ulp, furthest / scale if scale else furthest, zeros)


def plain_array(leaf: Any) -> np.ndarray:
    """Return a leaf as an array of numpy's; a key of JAX's gives its numbers."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _chunks(
    a: np.ndarray, b: np.ndarray, start: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the elements of the arrays piece by piece, complex numbers as pairs; without `start`, it is zero."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (a, b, a if start is None else start)]
    flat = [array.view(f"f{array.dtype.itemsize // 2}") if array.dtype.kind == "c" else array for array in flat]
    for place in range(0, flat[0].size, _CHUNK):
        x, y, origin = (array[place : place + _CHUNK] for array in flat)
        yield x, y, np.zeros_like(origin) if start is None else origin


def _ulp(x: np.ndarray, y: np.ndarray, both_nan: np.ndarray) -> float:
    """Return the largest distance of two elements in units in the last place, and of two integers as it is."""
    if bool(((x != x) != (y != y)).any()):
        return math.inf
    a, b = _ordered(x), _ordered(y)
    return int(np.where(both_nan, np.uint64(0), np.where(a > b, a - b, b - a)).max(initial=np.uint64(0)))


def _ordered(x: np.ndarray) -> np.ndarray:
    """Return integers that are in the order of the numbers, and count from one number to the next; 0 and -0 are one."""
    middle = np.uint64(1 << 63)
    if x.dtype.kind in "biu":
        return x.astype(np.uint64) + (np.uint64(0) if x.dtype.kind == "u" else middle)
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    sign = np.uint64(1 << (8 * x.dtype.itemsize - 1))
    return np.where(bits >= sign, middle - (bits & (sign - np.uint64(1))), middle + bits)

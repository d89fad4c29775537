"""Distances: from number to number it is one ULP in every dtype, and a share is of the size or of the movement."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_kadam.keras_files.comparing import _distance
from optax_kadam.keras_files.comparing._distance import distance, plain_array

from ...helpers import ulp


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn"])
def test_ulp_count_from_number_to_number(name):
    dtype = jnp.dtype(name)
    bits = np.arange(1 << 8 if dtype.itemsize == 1 else 1 << 16).astype(f"u{min(dtype.itemsize, 2)}")
    with np.errstate(invalid="ignore"):
        numbers = bits.view(dtype if dtype.itemsize < 4 else np.float16).astype(np.float64)
    finite = np.sort(numbers[np.isfinite(numbers) & (numbers != 0)]).astype(dtype)
    if dtype.itemsize < 4:  # These are all of its numbers but zero, in order.
        below = len(finite) // 2
        assert (
            distance(finite[: below - 1], finite[1:below]).ulp
            == 1
            == distance(finite[below:-1], finite[below + 1 :]).ulp
        )
        assert distance(finite[:1], finite[-1:]).ulp == len(finite)
    else:
        for toward in (-math.inf, math.inf):
            next_ = np.nextafter(finite, dtype.type(toward))
            assert distance(finite, next_).ulp == 1 == distance(next_, finite).ulp
            assert distance(finite, np.nextafter(next_, dtype.type(toward))).ulp == 2
    zero, tiny = np.zeros(1, dtype), np.ones(1, f"u{dtype.itemsize}").view(dtype)
    assert distance(-tiny, tiny).ulp == 2 and distance(zero, tiny).ulp == 1 == distance(-zero, tiny).ulp


def test_ulp_are_those_of_the_other_tests():
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-7, 2.0):
        a = rng.normal(size=1000).astype("f4")
        b = a + (rng.normal(size=1000) * scale).astype("f4")
        assert distance(a, b).ulp == distance(b, a).ulp == ulp(a, b) > 0


def test_the_furthest_numbers_of_float64_have_a_distance():
    low, high = np.array([-np.inf]), np.array([np.inf])
    assert distance(low, high).ulp == 2 * int(np.array(np.inf).view(np.int64))


def test_integers_and_bools_count_as_they_are():
    for dtype in ("int8", "int32", "int64", "uint8"):
        assert distance(np.array([1, 5], dtype), np.array([3, 4], dtype)).ulp == 2
    assert distance(np.array([-3]), np.array([4])).ulp == 7
    assert distance(np.array([True]), np.array([False])).ulp == 1
    assert distance(np.array([1 + 2j]), np.array([1 + np.nextafter(2.0, 3.0) * 1j])).ulp == 1


def test_nan_equals_nan_and_nothing_else():
    quiet, other = (np.array([bits, 0], np.uint32).view(np.float32) for bits in (0x7FC00000, 0xFFC00001))
    assert distance(quiet, other) == (0, 0.0, 0)
    found = distance(quiet, np.ones(2, "f4"))
    assert found.ulp == math.inf and found.share == math.inf
    assert distance(np.array([1.0, np.nan]), np.array([np.nan, 1.0])).ulp == math.inf


def test_infinity_equals_itself_and_is_one_ulp_from_the_largest_number():
    top = np.array([np.finfo("f4").max, 1], "f4")
    infinite = np.array([np.inf, 1], "f4")
    assert distance(infinite, infinite) == (0, 0.0, 0) and distance(infinite, -infinite).share == math.inf
    assert distance(infinite, top)[:2] == (1, math.inf)
    assert distance(infinite[:1], -infinite[:1]).share == math.inf


def test_zeros_that_differ_in_sign_are_counted():
    assert distance(np.array([0.0, -0.0, 0.0, 1.0]), np.array([-0.0, 0.0, 0.0, -1.0])) == (
        2 * int(np.array(1.0).view(np.int64)),
        2.0,
        2,
    )


def test_a_share_is_of_the_largest_number_or_of_the_largest_change():
    a, b, start = np.array([1.0, -4.0]), np.array([1.5, -4.0]), np.array([1.0, -2.0])
    assert distance(a, b).share == 0.5 / 4 == distance(b, a).share
    assert distance(a, b, start).share == 0.5 / 2
    assert distance(a, np.array([9.0, -4.0]), start).share == 1.0  # The change of either counts.
    assert distance(a, a, a) == (0, 0.0, 0) and distance(a, b, a).share == 1.0


def test_large_arrays_are_looked_at_to_the_end(monkeypatch):
    monkeypatch.setattr(_distance, "_CHUNK", 3)
    for place in range(8):
        a = np.ones((2, 4), "f4")
        b, start = a.copy(), np.zeros((2, 4), "f4")
        b.flat[place] = np.nextafter(np.float32(1), np.float32(2))
        start.flat[(place + 4) % 8] = -7
        assert distance(a, b)[0] == 1 and distance(a.T, b.T, start.T).share == np.float32(2**-23) / 8


def test_empty_arrays_and_scalars_have_distances():
    assert distance(np.zeros((0, 3)), np.zeros((0, 3))) == (0, 0.0, 0)
    assert distance(np.float32(1)[()], np.asarray(np.float32(1))) == (0, 0.0, 0)


def test_a_key_is_its_numbers():
    one, two = (plain_array(jax.random.key(seed)) for seed in (1, 2))
    assert distance(one, one).ulp == 0 and distance(one, two).ulp == 1

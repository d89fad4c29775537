"""Ids that name no row are refused on the host, and under `jit` through checkify."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import optax_kadam as ok


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_ids_that_name_rows_come_back(dtype):
    ids = np.array([[0, 4], [2, 3]], dtype)
    assert ok.check_ids(ids, 5) is ids
    assert ok.check_ids(ids[:0], 5).size == 0
    assert ok.check_ids(ids, 1000) is ids


@pytest.mark.parametrize("wrong", [-1, 5, 2**32 + 2])
def test_an_id_that_names_no_row_is_refused(wrong):
    ids = np.array([[0, 4], [wrong, -7]])
    with pytest.raises(ValueError, match=rf"`ids` must be >= 0 and < 5. Received: {wrong}, and 2 of 4 such. Name what"):
        ok.check_ids(ids, 5)


def test_padding_that_is_named_is_let_through():
    assert ok.check_ids([0, -1], 5, padding=-1) == [0, -1]
    with pytest.raises(ValueError, match="Received: -1, and 1 of 2 such"):
        ok.check_ids([0, -1], 5, padding=5)


def test_traced_ids_are_checked_by_checkify():
    def look_up(values, ids):
        return values[ok.check_ids(ids, len(values), padding=-1)]

    values = jnp.arange(5.0)
    checked = jax.jit(checkify.checkify(look_up))
    error, found = checked(values, jnp.array([3, -1, 0]))
    error.throw()
    assert found[0] == 3
    error, _ = checked(values, jnp.array([3, 9, -2]))
    with pytest.raises(checkify.JaxRuntimeError, match="`ids` must be >= 0 and < 5. Received: 9. Name what"):
        error.throw()
    checked(values, jnp.zeros((0,), jnp.int32))[0].throw()
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(look_up)(values, jnp.array([3]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5], 5), TypeError, "`indices` must be integers"),
        (([0], 0), ValueError, "`rows` must be an integer >= 1"),
        (([0], 5, "a"), TypeError, "`padding` must be an integer"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    ids, rows, *padding = arguments
    with pytest.raises(error, match=message):
        ok.check_ids(ids, rows, padding=padding[0] if padding else None)

"""Weight decay: which masks are refused, and in which dtypes it may be given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_kadam as ok

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`weight_decay_mask` must be a tree of bools that fits the parameters"):
        ok.kadamw(weight_decay_mask={"other": True}).init(PARAMS)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"`weight_decay_mask` must be a tree of bools .* Received: 1 at \"\['w'\]\""):
        ok.kadamw(weight_decay_mask={"w": 1}).init({"w": jnp.ones(3)})


@pytest.mark.parametrize("mask", [True, np.bool_(False), jnp.array(True), np.array([True, False])])
def test_a_mask_that_is_no_tree_is_refused_where_it_is_given(mask):
    with pytest.raises(TypeError, match="must be a tree of bools, or a function to one. Received: weight_decay_mask="):
        ok.kadamw(weight_decay_mask=mask)


@pytest.mark.parametrize("of_params", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of_decay", ["float32", "float64"])
def test_a_weight_decay_may_be_an_array_of_another_dtype_than_the_parameters(of_decay, of_params):
    with jax.enable_x64(True):
        params = jnp.array([8.0, -4.0], of_params)
        tx = ok.kadamw(0.5, weight_decay=jnp.asarray(0.25, of_decay))
        updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
        assert updates.dtype == params.dtype
        np.testing.assert_array_equal(updates, np.array([-1.0, 0.5], params.dtype))

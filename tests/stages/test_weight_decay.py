"""Weight decay: which masks are refused."""

import jax.numpy as jnp
import pytest

import optax_kadam as ok

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`weight_decay_mask` must be a tree of bools that fits the parameters"):
        ok.kadamw(weight_decay_mask={"other": True}).init(PARAMS)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"`weight_decay_mask` must be a tree of bools .* Received: 1 at \"\['w'\]\""):
        ok.kadamw(weight_decay_mask={"w": 1}).init({"w": jnp.ones(3)})

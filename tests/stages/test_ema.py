"""The average of the parameters: where it starts, and when it becomes them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok


def test_the_average_starts_where_each_generation_starts_it():
    params = jnp.array([10.0])
    for generation, first in (("keras3", 9.9), ("tf_keras", 0.75 * 10.0 + 0.25 * 9.9)):
        tx = ok.kadam(0.1, use_ema=True, ema_momentum=0.75, generation=generation)
        _, state = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(ok.averaged_params(state), [first], rtol=1e-6)


def test_the_average_becomes_the_parameters_at_every_third_step():
    tx = ok.kadam(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    params, overwritten = jnp.array([8.0]), []
    state = tx.init(params)
    for step in range(1, 8):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        if step > 1 and params == ok.averaged_params(state):  # The first average is the parameter itself.
            overwritten.append(step)
    assert overwritten == [3, 6]


def test_an_infinite_average_does_not_poison_the_parameters_between_overwrites():
    params = jnp.array([1.0])
    tx = ok.kadam(0.1, use_ema=True, ema_overwrite_frequency=5)
    state = optax.tree.set(tx.init(params), average=jnp.array([jnp.inf]), iterations=1)
    updates, _ = tx.update(params, state, params)
    assert np.isfinite(updates).all()


def test_a_state_without_an_average_is_refused():
    with pytest.raises(ValueError, match=r"`state` must hold an average .* Build .* use_ema=True"):
        ok.averaged_params(ok.kadam().init(jnp.ones(2)))

"""The learning rate and the step count in the state: set by hand, placed, at their end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..helpers import ulp
from ..test_hyperparameter import GRADIENT, PARAMS, run


@pytest.mark.parametrize("value", [3e-4, jnp.float32(3e-4), np.float32(3e-4), np.float64(3e-4), jnp.asarray(3e-4)])
def test_setting_the_rate_of_the_state_does_not_recompile(value):
    def each(state, i):
        return optax.tree.set(state, learning_rate=value) if i == 2 else state

    params, rates, traces = run(ok.kadam(0.1), 4, each=each)
    assert rates == [np.float32(0.1), np.float32(0.1), np.float32(3e-4), np.float32(3e-4)]
    assert traces == 1
    scheduled, _, _ = run(ok.kadam(ok.schedules.PiecewiseConstantDecay([1], [0.1, 3e-4])), 4)
    assert ulp(params, scheduled) == 0


def test_setting_the_count_keeps_its_type():
    state = optax.tree.set(ok.kadam().init(PARAMS), iterations=1000)
    assert (state.iterations.dtype, state.iterations.weak_type) == (jnp.int32, False)
    assert int(optax.tree.get(ok.kadam().update(GRADIENT, state, PARAMS)[1], "iterations")) == 1001


def test_a_set_rate_keeps_its_placement():
    device = jax.devices()[3]
    state = jax.device_put(ok.kadam().init(PARAMS), device)
    assert optax.tree.get(optax.tree.set(state, learning_rate=0.5), "learning_rate").devices() == {device}


def test_an_array_is_not_donated_with_the_state():
    rate = jnp.float32(0.5)
    run(ok.kadam(rate), 3)
    assert float(rate) == 0.5


def test_the_count_saturates():
    top = np.iinfo(np.int32).max
    state = optax.tree.set(ok.kadam(amsgrad=True, use_ema=True).init(PARAMS), iterations=top)
    updates, state = ok.kadam(amsgrad=True, use_ema=True).update(GRADIENT, state, PARAMS)
    assert int(optax.tree.get(state, "iterations")) == top
    assert np.isfinite(updates).all()

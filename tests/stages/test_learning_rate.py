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


@pytest.mark.parametrize(
    ("count", "error", "match"),
    [
        (-1, ValueError, "`iterations` must be an integer >= 0. Received: iterations=-1."),
        (2**31, ValueError, "`iterations` must be an integer < 2.*31, where the steps end. Received: iterations=2147"),
        (2.5, TypeError, "`iterations` must be an integer >= 0. Received: iterations=2.5."),
        (True, TypeError, "`iterations` must be an integer >= 0. Received: iterations=True."),
    ],
)
def test_a_count_that_is_none_cannot_be_set(count, error, match):
    with pytest.raises(error, match=match):
        optax.tree.set(ok.kadam().init(PARAMS), iterations=count)


def test_a_set_rate_keeps_its_placement():
    device = jax.devices()[3]
    state = jax.device_put(ok.kadam().init(PARAMS), device)
    assert optax.tree.get(optax.tree.set(state, learning_rate=0.5), "learning_rate").devices() == {device}


def test_an_array_is_not_donated_with_the_state():
    rate = jnp.float32(0.5)
    run(ok.kadam(rate), 3)
    jax.jit(lambda state: state, donate_argnums=0)(ok.kadam(rate).init(PARAMS))  # It donates what it does not use too.
    assert float(rate) == 0.5


def test_the_count_saturates():
    top = np.iinfo(np.int32).max
    state = optax.tree.set(ok.kadam(amsgrad=True, use_ema=True).init(PARAMS), iterations=top)
    updates, state = ok.kadam(amsgrad=True, use_ema=True).update(GRADIENT, state, PARAMS)
    assert int(optax.tree.get(state, "iterations")) == top
    assert np.isfinite(updates).all()


PERIODIC = {
    "accumulation": ({"gradient_accumulation_steps": 3}, 3),
    "overwriting": ({"use_ema": True, "ema_overwrite_frequency": 4}, 4),
    "both": ({"use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 3}, 6),
    "seldom": ({"use_ema": True, "ema_overwrite_frequency": 32, "gradient_accumulation_steps": 4}, 128),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", PERIODIC)
def test_windows_go_on_where_the_count_ends(name, x64):
    """The steps around the largest count are those of a smaller one at the same place of the window.

    Keras's count wraps there, and its parameters become NaN.
    """
    arguments, period = PERIODIC[name]
    top, tx = np.iinfo(np.int32).max, ok.kadam(0.1, **arguments)

    @jax.jit
    def after_each(start):
        def step(carry, gradient):
            params, state = carry
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state.iterations)

        state = optax.tree.set(tx.init(PARAMS), iterations=start)
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(4 * period, 3)), jnp.float32)
        return jax.lax.scan(step, (PARAMS, state), gradients)[1]

    with jax.enable_x64(x64):
        found, counts = after_each(jnp.int32(top - period))
        expected, _ = after_each(jnp.int32(top - period - 2**10 * period))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(counts, [top - period + 1 + i % period for i in range(4 * period)])


@pytest.mark.parametrize(("micro_steps", "after"), [(2, 0), (3, 2**31 - 3)])
def test_a_window_that_no_count_holds_ends_as_a_count_does(micro_steps, after):
    """All counts there are make one window of 2**31; of a longer one, the accumulation alone goes on."""
    tx = ok.kadam(use_ema=True, ema_overwrite_frequency=2**30, gradient_accumulation_steps=micro_steps)
    state = optax.tree.set(tx.init(PARAMS), iterations=np.iinfo(np.int32).max)
    assert int(tx.update(GRADIENT, state, PARAMS)[1].iterations) == after


@pytest.mark.parametrize("kind", [lambda step: 1, lambda step: jnp.bfloat16(0.3), lambda step: np.int64(2)])
def test_the_rate_of_a_schedule_is_a_float32_of_whatever_it_gives(kind):
    rate = float(kind(0))
    found, rates, traces = run(ok.kadam(kind), 3)
    assert ulp(found, run(ok.kadam(rate), 3)[0]) == 0 and rates == [rate] * 3 and traces == 1
    state = ok.kadam(kind).init(PARAMS)
    assert optax.tree.get(state, "learning_rate").dtype == jnp.float32


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_a_beta_of_bfloat16_is_taken_from_one_in_float32(name):
    """In bfloat16, 1 - 0.01 would be 0.988."""
    beta = jnp.bfloat16(0.01)
    found, _, _ = run(ok.kadam(0.1, **{name: lambda step: beta}), 3, jit=False)
    assert ulp(found, run(ok.kadam(0.1, **{name: float(beta)}), 3, jit=False)[0]) == 0

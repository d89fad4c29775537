"""Hyperparameters may move: by a schedule, by a callable, as traced arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from .helpers import ulp

PARAMS = jnp.array([1.0, -2.0, 0.5])
GRADIENT = jnp.array([0.3, -0.1, 2.0])


def run(tx, steps, jit=True, each=lambda state, i: state):
    """Return the parameters after some steps, the rates that were used, and how often the step was traced."""
    traces, rates = [], []

    def step(state, params):
        traces.append(1)
        updates, state = tx.update(GRADIENT, state, params)
        return state, optax.apply_updates(params, updates)

    step = jax.jit(step, donate_argnums=(0,)) if jit else step
    state, params = tx.init(PARAMS), PARAMS
    for i in range(steps):
        state, params = step(each(state, i), params)
        rates.append(float(optax.tree.get(state, "learning_rate")))
    return np.asarray(params), rates, len(traces)


@pytest.mark.parametrize("jit", [False, True])
def test_a_callable_is_asked_once_a_step(jit):
    values = iter([0.1, 0.2, 0.3, 0.4])
    params, rates, traces = run(ok.kadam(lambda: next(values)), 4, jit)
    assert rates == [np.float32(x) for x in (0.1, 0.2, 0.3, 0.4)]
    assert traces == (1 if jit else 4)
    scheduled, _, _ = run(ok.kadam(ok.schedules.PiecewiseConstantDecay([0, 1, 2], [0.1, 0.2, 0.3, 0.4])), 4, jit)
    assert ulp(params, scheduled) == 0


def test_a_callable_beta_is_asked_once_for_all_dtypes():
    with jax.enable_x64(True):
        asked = []
        tx = ok.kadam(beta_1=lambda: asked.append(1) or 0.9)
        params = [jnp.ones(2, "float32"), jnp.ones(2, "float64")]
        tx.update(params, tx.init(params), params)
        assert len(asked) == 1


def test_a_default_argument_does_not_make_a_schedule():
    assert run(ok.kadam(lambda rate=0.25: rate), 2)[1] == [0.25, 0.25]
    assert run(ok.kadam(lambda *step: jnp.float32(0.5) + step[0].astype("float32")), 2)[1] == [0.5, 1.5]


def test_the_rate_and_the_betas_may_be_traced():
    @jax.jit
    def after(rate, beta_1, beta_2):
        tx = ok.kadam(rate, beta_1, beta_2)
        return optax.apply_updates(PARAMS, tx.update(GRADIENT, tx.init(PARAMS), PARAMS)[0])

    expected, _, _ = run(ok.kadam(0.5, 0.8, 0.9), 1)
    np.testing.assert_allclose(after(0.5, 0.8, 0.9), expected, atol=5e-6)  # `1 - beta` of an array is in float32.
    assert (after(0.25, 0.8, 0.9) != expected).all()


@pytest.mark.parametrize("name", ["beta_1", "beta_2"])
def test_the_betas_may_move(name):
    start = {"beta_1": 0.9, "beta_2": 0.999}[name]
    values = [start, 0.5, 0.7]
    by_schedule, _, _ = run(ok.kadam(0.1, **{name: lambda step: jnp.asarray(values, jnp.float32)[step]}), 3)
    answers = iter(values)
    by_callable, _, _ = run(ok.kadam(0.1, **{name: lambda: next(answers)}), 3)
    fixed, _, _ = run(ok.kadam(0.1), 3)
    assert ulp(by_schedule, by_callable) == 0
    assert np.abs(by_schedule - fixed).max() > 1e-3

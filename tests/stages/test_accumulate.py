"""Accumulation: the gradients of some micro-steps make one step on their mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..test_hyperparameter import run


def primitives(jaxpr):
    """Return the names of a jaxpr's primitives but those in its branches, and the branches."""
    names, branches = set(), []
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for parameter in equation.params.values():
            if equation.primitive.name == "cond" and isinstance(parameter, tuple):
                branches += [branch.jaxpr for branch in parameter if hasattr(branch, "jaxpr")]
            elif hasattr(parameter, "jaxpr"):
                inner_names, inner_branches = primitives(parameter.jaxpr)
                names, branches = names | inner_names, branches + inner_branches
    return names, branches


def test_a_micro_step_evaluates_nothing_of_adam():
    tx = ok.kadam(gradient_accumulation_steps=4, clipnorm=1.0, weight_decay=0.1)
    params = jnp.ones(8)
    names, branches = primitives(jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr)
    assert not names & {"sqrt", "pow", "div", "reduce_sum"}
    collect, step = (primitives(branch)[0] for branch in branches)
    assert "sqrt" in step
    assert not collect & {"sqrt", "pow", "div", "mul", "reduce_sum"}


@pytest.mark.parametrize("jit", [False, True])
def test_a_window_is_one_step_on_the_mean_and_a_nan_does_not_outlive_it(jit):
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    tx, plain = ok.kadam(0.1, gradient_accumulation_steps=2), ok.kadam(0.1)
    update = jax.jit(tx.update) if jit else tx.update
    first = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array(1.0)}
    second = {"a": jnp.array([3.0, 1.0]), "b": jnp.array(0.0)}
    nothing, state = update(first, tx.init(params), params)
    assert not any(u.any() for u in jax.tree.leaves(nothing))
    updates, state = update(second, state, params)
    mean = {"a": jnp.array([2.0, jnp.nan]), "b": jnp.array(0.5)}
    expected, _ = plain.update(mean, plain.init(params), params)
    np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], expected["b"], rtol=1e-6)
    assert not any(a.any() for a in jax.tree.leaves(optax.tree.get(state, "accumulator")))
    _, state = update(second, state, params)
    np.testing.assert_array_equal(optax.tree.get(state, "accumulator")["a"], second["a"])


def test_schedules_see_the_micro_steps():
    seen = []

    def schedule(step):
        seen.append(int(step))
        return 0.1

    run(ok.kadam(schedule, gradient_accumulation_steps=2), 4, jit=False)
    assert seen == [0, 0, 1, 2, 3]  # `init` asks for the rate of step 0 too.


@pytest.mark.parametrize("of_gradients", ["bfloat16", "float32"])
def test_bfloat16_parameters_with_weight_decay_are_computed_in_float32(of_gradients):
    """Sums and moments are rounded to bfloat16, means and steps to the dtype of the gradients, and nothing between."""

    def rounded(x, dtype="bfloat16"):
        return np.asarray(jnp.asarray(x).astype(dtype), np.float32)

    wide, rng = np.float32, np.random.default_rng(0)
    params, *gradients = (jnp.asarray(rng.normal(size=50), wide).astype("bfloat16") for _ in range(4))
    tx = ok.kadamw(0.3, weight_decay=0.37, gradient_accumulation_steps=3)
    state, total, updates = tx.init(params), np.zeros(50, wide), params
    for gradient in gradients:
        gradient = (gradient.astype(wide) * jnp.float32(1.1)).astype(of_gradients)
        updates, state = tx.update(gradient, state, params)
        total = rounded(total + np.asarray(gradient, wide))
    p, g = np.asarray(params, wide), rounded(total * wide(1 / 3), of_gradients)
    m, v = g * wide(1 - 0.9), g * g * wide(1 - 0.999)
    alpha = wide(0.3) * np.sqrt(1 - wide(0.999)) / (1 - wide(0.9))
    step = rounded(m * alpha / (np.sqrt(v) + wide(1e-7)), of_gradients)
    expected = ((p - p * wide(0.37) * wide(0.3)) - step) - p
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates, jnp.asarray(expected).astype("bfloat16"))
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), jnp.asarray(m).astype("bfloat16"))
    assert optax.tree.get(state, "accumulator").dtype == optax.tree.get(state, "mu").dtype == jnp.bfloat16


def test_gradients_of_float64_are_added_in_float64():
    """Each sum is rounded once, to the float32 of the parameters."""
    with jax.enable_x64(True):
        tx, params = ok.kadam(gradient_accumulation_steps=4), jnp.zeros(50, "float32")
        state, total = tx.init(params), np.zeros(50, np.float32)
        for gradient in np.random.default_rng(0).normal(size=(3, 50)):
            _, state = tx.update(jnp.asarray(gradient), state, params)
            total = (total + gradient).astype(np.float32)
        np.testing.assert_array_equal(optax.tree.get(state, "accumulator"), total)

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


def test_bfloat16_parameters_with_weight_decay_are_computed_in_float32():
    """Each sum, mean and update is rounded to bfloat16 once, and nothing in between is."""
    low, wide = jnp.bfloat16, np.float32
    params, *gradients = jnp.array([[1.0, -2.0, 256.0], [0.3, 1.0, -5.0], [1e-3, 3e-3, 0.7], [0.7, 1e-2, 9.0]], low)
    tx = ok.kadamw(0.3, weight_decay=0.37, gradient_accumulation_steps=3)
    state, total, updates = tx.init(params), np.zeros(3, wide), params
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        total = np.asarray(jnp.asarray(total + np.asarray(gradient, wide)).astype(low), wide)
    p, g = np.asarray(params, wide), np.asarray(jnp.asarray(total * wide(1 / 3)).astype(low), wide)
    m, v = g * wide(1 - 0.9), g * g * wide(1 - 0.999)
    alpha = wide(0.3) * np.sqrt(1 - wide(0.999)) / (1 - wide(0.9))
    step = np.asarray(jnp.asarray(m * alpha / (np.sqrt(v) + wide(1e-7))).astype(low), wide)
    expected = ((p - p * wide(0.37) * wide(0.3)) - step) - p
    assert updates.dtype == low
    np.testing.assert_array_equal(updates, jnp.asarray(expected).astype(low))
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), jnp.asarray(m).astype(low))
    assert optax.tree.get(state, "accumulator").dtype == optax.tree.get(state, "mu").dtype == low

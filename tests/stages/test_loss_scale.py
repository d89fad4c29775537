"""Loss scaling: what is skipped, how the scale moves, which dtypes it passes through."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..sparing import quick_jit


def test_dynamic_loss_scale_scales_any_optax_transformation():
    tx = ok.dynamic_loss_scale(optax.sgd(1.0), initial_scale=4.0, dynamic_growth_steps=2)
    params = jnp.array([1.0])
    state, scales, steps = tx.init(params), [], []
    for gradient in (4.0, 4.0, jnp.nan, 8.0):
        updates, state = quick_jit(tx.update)(jnp.array([gradient]), state, params)
        scales.append(float(state.dynamic_scale))
        steps.append(float(updates[0]))
    assert scales == [4.0, 8.0, 4.0, 4.0]
    assert steps == [-1.0, -1.0, 0.0, -2.0]


@pytest.mark.parametrize("generation", ["keras3", "tf_keras", "legacy"])
@pytest.mark.parametrize("jit", [False, True])
def test_the_skipped_steps_are_counted(generation, jit):
    tx = ok.dynamic_loss_scale(ok.kadam(generation=generation), 4.0, 2, generation=generation)
    update, params = quick_jit(tx.update) if jit else tx.update, jnp.array([1.0])
    state, counts = tx.init(params), []
    for gradient in (4.0, jnp.inf, 4.0, jnp.nan, -jnp.inf, 4.0):
        _, state = update(jnp.array([gradient]), state, params)
        counts.append(int(optax.tree.get(state, "skipped_steps")))
    assert counts == [0, 1, 1, 2, 3, 3] and optax.tree.get(state, "skipped_steps").dtype == jnp.int32


def test_the_count_of_skipped_steps_never_overflows():
    tx, params = ok.dynamic_loss_scale(optax.sgd(1.0), 4.0), jnp.array([1.0])
    state = optax.tree.set(tx.init(params), skipped_steps=jnp.int32(2**31 - 1))
    _, state = tx.update(jnp.array([jnp.inf]), state, params)
    assert int(optax.tree.get(state, "skipped_steps")) == 2**31 - 1


@pytest.mark.parametrize("factor", [0.5, 1024.0])
def test_gradients_are_divided_by_a_fixed_scale_of_any_size(factor):
    params, gradient = jnp.ones(2), jnp.array([0.3, -1.0])
    tx = ok.kadam(loss_scale_factor=factor)
    _, state = tx.update(gradient * factor, tx.init(params), params)
    plain = ok.kadam()
    _, expected = plain.update(gradient, plain.init(params), params)
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), optax.tree.get(expected, "mu"))


@pytest.mark.parametrize("generation", ["tf_keras", "legacy"])
def test_the_older_generations_count_skipped_steps_and_stop_at_a_scale_of_one(generation):
    inner = ok.kadam(generation=generation)
    tx = ok.dynamic_loss_scale(inner, initial_scale=1.0, generation=generation)
    params = jnp.array([1.0])
    updates, state = quick_jit(tx.update)(jnp.array([jnp.inf]), tx.init(params), params)
    assert (float(state.dynamic_scale), int(optax.tree.get(state, "iterations")), float(updates[0])) == (1.0, 1, 0.0)


@pytest.mark.filterwarnings("ignore:The second moments of float16:UserWarning")
@pytest.mark.parametrize("generation", ["keras3", "legacy"])
def test_a_scale_beyond_float16_does_not_swallow_its_gradients(generation):
    params, gradient = jnp.ones(2, "float16"), jnp.array([512.0, -1.0], "float16")
    tx = ok.dynamic_loss_scale(ok.kadam(mu_dtype="float32", generation=generation), 2.0**20, generation=generation)
    updates, state = tx.update(gradient, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu"), 0.1 * np.array([512.0, -1.0]) / 2**20, rtol=1e-6)
    assert updates.dtype == "float16" and np.isfinite(updates).all()


def test_a_loss_scale_looks_at_the_values_of_rows():
    tx = ok.dynamic_loss_scale(ok.kadam(0.1), 8.0)
    table = jnp.ones((17, 5))
    gradient = ok.RowUpdates(jnp.array([3]), jnp.full((1, 5), jnp.inf))
    updates, state = tx.update(gradient, tx.init(table), table)
    assert not updates.any() and optax.tree.get(state, "dynamic_scale") == 4.0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: ok.dynamic_loss_scale(ok.kadam(), 0.0),
            ValueError,
            "`initial_scale` must be a finite number > 0. Received: initial",
        ),
        (
            lambda: ok.dynamic_loss_scale(ok.kadam(), 1.0, 0),
            ValueError,
            "`dynamic_growth_steps` must be an integer >= 1. Received",
        ),
        (
            lambda: ok.dynamic_loss_scale("adam"),
            TypeError,
            "`inner` must be an optax transformation. Received: inner='adam'.",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()

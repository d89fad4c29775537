"""The average of the parameters: where it starts, and when it becomes them."""

import jax
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


@pytest.mark.parametrize(("dtype", "x64"), [("float32", False), ("float32", True), ("float64", True)])
@pytest.mark.parametrize("frequency", [None, 2])
def test_the_average_of_tf_keras_passes_over_what_has_no_gradient(dtype, x64, frequency):
    """`avg -= (1 - momentum) * (avg - p)` of tf_keras goes over the variables that have a gradient alone."""
    with jax.enable_x64(x64):
        # In the precision of the parameters, 1 - 0.99 of the number is another one than that of the rounded number.
        momentum = jnp.float32(0.99) if dtype == "float64" else 0.99
        tx = ok.kadam(
            0.1, use_ema=True, ema_momentum=momentum, ema_overwrite_frequency=frequency, generation="tf_keras"
        )
        kept, added = np.asarray(momentum, dtype), np.asarray(1 - momentum, dtype)
        params = {"moved": jnp.array([1.0, -3.0], dtype), "still": jnp.array([5.0, 7.0], dtype)}
        # The overwriting is exact near the parameters; an average of 0 shows each bit of what is added to it.
        average = np.zeros(2, dtype) if frequency is None else np.asarray(params["moved"])
        state = optax.tree.set(tx.init(params), average={"moved": jnp.asarray(average), "still": jnp.ones(2, dtype)})
        for step in range(1, 4):
            before = np.asarray(params["moved"])
            updates, state = tx.update({"moved": params["moved"], "still": None}, state, params)
            params = optax.apply_updates(params, updates)
            is_overwritten = frequency is not None and step % frequency == 0
            if not is_overwritten:
                average = kept * average + added * np.asarray(params["moved"])
                np.testing.assert_array_equal(ok.averaged_params(state)["moved"], average)
            else:
                np.testing.assert_array_equal(params["moved"], ok.averaged_params(state)["moved"])
                average = np.asarray(params["moved"])
            assert (np.asarray(params["moved"]) != before).all()
            assert params["moved"].dtype == ok.averaged_params(state)["moved"].dtype == dtype
            np.testing.assert_array_equal(params["still"], [5.0, 7.0])
            np.testing.assert_array_equal(ok.averaged_params(state)["still"], [1.0, 1.0])


def test_an_infinite_average_does_not_poison_the_parameters_between_overwrites():
    params = jnp.array([1.0])
    tx = ok.kadam(0.1, use_ema=True, ema_overwrite_frequency=5)
    state = optax.tree.set(tx.init(params), average=jnp.array([jnp.inf]), iterations=1)
    updates, _ = tx.update(params, state, params)
    assert np.isfinite(updates).all()


def test_a_state_without_an_average_is_refused():
    with pytest.raises(ValueError, match=r"`state` must hold an average .* Build .* use_ema=True"):
        ok.averaged_params(ok.kadam().init(jnp.ones(2)))

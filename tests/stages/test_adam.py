"""The equation: its epsilons, and where the learning rate is folded in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_kadam as ok


def test_adaptive_epsilon_is_the_epsilon_of_optax():
    params, gradient = jnp.array([1.0, 2.0]), jnp.array([1e-6, 1.0])
    tx = ok.kadam(0.1, epsilon=1e-3, adaptive_epsilon=True, generation="tf_keras")
    updates, _ = tx.update(gradient, tx.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = optax.adam(0.1, eps=1e-3).update(gradient, optax.adam(0.1).init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


def test_legacy_takes_an_epsilon_of_zero_for_the_default():
    params = jnp.array([1.0])
    for epsilon in (0, None, 1e-7):
        tx = ok.kadam(0.1, epsilon=epsilon, generation="legacy")
        assert float(tx.update(jnp.array([0.0]), tx.init(params), params)[0][0]) == 0.0


def test_the_part_and_a_scaling_by_the_rate_are_kadam_but_for_rounding():
    """`kadam` folds the rate into a scalar of the step, as Keras does; the part leaves it to `optax`."""
    params, gradient = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, -0.1, 2.0])
    alone = optax.chain(ok.scale_by_kadam(), optax.scale_by_learning_rate(0.1))
    updates, _ = alone.update(gradient, alone.init(params))
    assembled, _ = ok.kadam(0.1).update(gradient, ok.kadam(0.1).init(params))
    np.testing.assert_allclose(updates, assembled, rtol=3e-7)

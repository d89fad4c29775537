"""The clips by norm and by value, one array or all arrays at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..helpers import keras_rules
from ..sparing import mostly_slow


@pytest.mark.parametrize(
    ("count", "jit"), mostly_slow([(3, False), (3, True), (450, False), (450, True)], lambda count, jit: count == 3)
)
def test_a_global_norm_of_many_gradients_is_summed_up_as_keras_does(count, jit):
    random = np.random.default_rng(0)
    gradients = [jnp.asarray(random.normal(size=(3, 5)), jnp.float32) for _ in range(count)]

    def keras(gradients):  # `clip_by_global_norm` in keras/src/optimizers/base_optimizer.py (Keras 3.15).
        norm = jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(g)) for g in gradients])))
        scale = 0.7 * jnp.minimum(1.0 / norm, 1.0 / 0.7) + (norm - norm)
        return [g * scale for g in gradients]

    def ours(gradients):
        return ok.clip_by_global_norm(0.7).update(gradients, optax.EmptyState())[0]

    expected, found = (jax.jit(f)(gradients) if jit else f(gradients) for f in (keras, ours))
    assert all(jax.tree.map(np.array_equal, found, expected))


def test_a_compiled_sum_of_many_norms_takes_200_at_a_time():
    """XLA fuses a sum with all that it adds up, in a time that grows with the square of their number."""
    gradients = [jax.ShapeDtypeStruct((2,), jnp.float32)] * 450
    lowered = jax.jit(lambda g: ok.clip_by_global_norm(0.7).update(g, optax.EmptyState())[0]).lower(gradients)
    lengths = re.findall(r"stablehlo.concatenate.*-> tensor<(\d+)xf32>", lowered.as_text())
    assert max(map(int, lengths)) == 200


@pytest.mark.parametrize("clip", [41.0, 49.0, 1.7, 2.3])
@pytest.mark.parametrize("length", [0.01, 0.6, 100.0])
def test_a_clip_alone_scales_as_keras_3_does(clip, length):
    """Below the limit too: by `c * (1 / c)`, which is 0.99999994 for 41, with the reciprocal of Keras's generation."""
    keras = pytest.importorskip("keras")
    gradients = [length * jnp.array([0.6, 0.0]), length * jnp.array([[0.8]])]
    with keras_rules():
        expected = keras.optimizers.Adam(global_clipnorm=clip)._clip_gradients(gradients)
    found, _ = ok.clip_by_global_norm(clip).update(gradients, optax.EmptyState())
    assert all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize("make", [ok.clip_by_value, ok.clip_by_norm, ok.clip_by_global_norm])
@pytest.mark.parametrize("of_gradient", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of_clip", ["float32", "float64"])
def test_a_clip_may_be_an_array_of_another_dtype_than_the_gradients(make, of_clip, of_gradient):
    with jax.enable_x64(True):
        gradient = jnp.array([8.0], of_gradient)
        found, _ = make(jnp.asarray(0.5, of_clip)).update(gradient, optax.EmptyState())
        assert found.dtype == of_gradient and found.tolist() == [0.5]


@pytest.mark.parametrize("generation", ["keras3", "tf_keras", "legacy"])
@pytest.mark.parametrize("clip", [1.7, 2.3])
def test_a_global_norm_takes_the_reciprocal_of_its_generation(clip, generation):
    """That of the Python float in Keras 3, and that of the float32 in the two older ones."""
    gradient = jnp.array([0.006, 0.008])
    reciprocals = {"keras3": np.float32(1.0 / clip)}
    tx = ok.kadam(beta_1=0.0, global_clipnorm=clip, generation=generation)
    _, state = tx.update(gradient, tx.init(gradient), gradient)
    scale = np.float32(clip) * reciprocals.get(generation, np.float32(1) / np.float32(clip))
    assert reciprocals["keras3"] != np.float32(1) / np.float32(clip)
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), np.asarray(gradient) * scale)


def test_the_slope_of_a_clip_is_finite_at_a_gradient_of_zero():
    """The root has an infinite slope at 0, which would be NaN behind a selection; Keras guards its root likewise."""
    zero = {"a": jnp.zeros(3), "b": jnp.array([3.0, 4.0])}

    def total(gradients):
        clipped, _ = ok.clip_by_norm(2.0).update(gradients, optax.EmptyState())
        return jnp.sum(clipped["a"]) + jnp.sum(clipped["b"])

    slope = jax.grad(total)(zero)
    np.testing.assert_array_equal(slope["a"], np.ones(3))
    np.testing.assert_allclose(slope["b"], 2 * (np.ones(2) / 5 - 7 * np.array([3.0, 4.0]) / 125), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "applied"),
    [
        ({"clipnorm": 1.0, "clipvalue": 0.3}, {"clipnorm": 1.0}),
        ({"global_clipnorm": 1.5, "clipvalue": 0.3}, {"global_clipnorm": 1.5}),
        ({"clipnorm": 0.0, "clipvalue": 0.3}, {"clipvalue": 0.3}),
        ({"global_clipnorm": 0.0, "clipvalue": 0.3}, {"clipvalue": 0.3}),
        ({"clipvalue": 0.0}, {}),
    ],
)
def test_tf_keras_clips_once_and_takes_0_for_off(given, applied):
    """tf_keras's `_clip_gradients` asks for one clip after the other, and applies the first that is on."""
    gradients = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([0.5])}
    found, expected = (
        tx.update(gradients, tx.init(gradients), gradients)[1]
        for tx in (ok.kadam(**given, generation="tf_keras"), ok.kadam(**applied))
    )
    for a, b in zip(*(jax.tree.leaves(optax.tree.get(state, "mu")) for state in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7)

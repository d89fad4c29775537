"""The clips by norm and by value, one array or all arrays at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

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

"""Both clips by norm at once are the two in a chain, for one read of the gradients and one sum less."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..helpers import ulp

BOUND = 8  # ULP, as the docstring has it; 6 measured.


def both(clipnorm, global_clipnorm, gradients):
    chain = optax.chain(ok.clip_by_norm(clipnorm), ok.clip_by_global_norm(global_clipnorm))
    at_once = ok.clip_by_norms(clipnorm, global_clipnorm)
    return [jax.jit(tx.update)(gradients, tx.init(None))[0] for tx in (at_once, chain)]


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_chain(seed):
    rng = np.random.default_rng(seed)
    shapes = [(), (1,), (30, 7), (5, 4, 3), (10**5,)]
    gradients = [jnp.asarray(rng.normal(size=s) * 10 ** rng.uniform(-5, 5), jnp.float32) for s in shapes]
    found, expected = both(10 ** rng.uniform(-4, 4), 10 ** rng.uniform(-4, 4), gradients)
    assert max(map(ulp, found, expected)) <= BOUND


@pytest.mark.parametrize("clipnorm", [0.0, 1e-5, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("global_clipnorm", [1e-6, 1.0, 1e6])
def test_what_is_zero_infinite_or_nan_is_what_the_chain_makes_of_it(clipnorm, global_clipnorm):
    """Squares overflow from 1e19 on, and the product with `clipnorm` later; below 1e-19 squares are nothing."""
    numbers = [0.0, 1.0, -np.inf, np.nan, 1e25, 3e38, 1e-30]
    rows = np.array(list(itertools.product(numbers, repeat=3)), np.float32)
    gradients = [jnp.asarray(rows[:, :2]), jnp.asarray(rows[:, 2:])]
    chain = optax.chain(ok.clip_by_norm(clipnorm), ok.clip_by_global_norm(global_clipnorm))
    at_once = ok.clip_by_norms(clipnorm, global_clipnorm)
    found, expected = (jax.vmap(lambda g: tx.update(g, tx.init(None))[0])(gradients) for tx in (at_once, chain))  # noqa: B023
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_low_precision_and_rows():
    """The chain rounds to bfloat16 in between. Rows are clipped as what they stand for."""
    g = jnp.array([[3.0, 4.0], [0.0, 0.5]], jnp.bfloat16)
    found, expected = both(1.0, 0.5, [g, g[0]])
    assert all(f.dtype == jnp.bfloat16 for f in found)
    np.testing.assert_allclose(*(np.asarray(x[0], np.float32) for x in (found, expected)), rtol=2**-7)
    table, tx = jnp.ones((4, 2)), ok.clip_by_norms(1.0, 0.5)
    rows = ok.RowUpdates(jnp.array([1, 1, -1]), jnp.array([[1.0, 2.0], [2.0, 2.0], [9.0, 9.0]]))
    clipped, _ = tx.update(rows, tx.init(table), table)
    assert clipped.indices[0] == 1
    np.testing.assert_allclose(clipped.values[0], [0.3, 0.4], rtol=1e-6)


def test_refused():
    with pytest.raises(ValueError, match="`clipnorm` must be a finite number >= 0. Received: clipnorm=-1.0. Use None"):
        ok.clip_by_norms(-1.0, 1.0)
    with pytest.raises(
        ValueError, match="`global_clipnorm` must be a finite number > 0. Received: global_clipnorm=0.0."
    ):
        ok.clip_by_norms(1.0, 0.0)


@pytest.mark.parametrize("count", [3, 450])
@pytest.mark.parametrize("jit", [False, True])
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

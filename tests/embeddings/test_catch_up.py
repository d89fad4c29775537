"""The mathematics of deferred rows: a few nodes give the sum over any absence, and tables the powers of the betas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_kadam.embeddings import _catch_up

from .test_deferred import BETAS

WINDOWS = [(172, 3), (180, 5), (227, 12), (438, 10), (1888, 6), (1, 1)]  # The steps and nodes for each pair of betas.


@pytest.mark.parametrize(("betas", "window"), list(zip(BETAS, WINDOWS, strict=True)))
def test_nodes_give_the_sum_of_any_absence(betas, window):
    """The sums are right for many ratios c of epsilon to the root, and for every length of an absence."""
    nodes, weights, history, _ = _catch_up.window_of(*betas, False)
    assert weights.shape == window
    assert history == 2**15
    j = np.arange(1.0, len(weights) + 1)[:, None]
    ratio = betas[0] / np.sqrt(betas[1])
    assert ratio ** len(weights) <= 2.0**-26
    for c in (0.0, *np.geomspace(1e-6, 1e4, 60)):
        terms = betas[0] ** j / (betas[1] ** (j / 2) + c)
        errors = np.abs(terms - weights.astype(float) @ (1 / (nodes.astype(float) + c))[:, None])
        assert (np.cumsum(errors) <= 2e-7 * np.cumsum(terms)).all()  # Most of it is the weights' rounding to float32.
        magnitudes = np.abs(weights) @ (1 / (nodes + c))
        assert magnitudes.sum() <= 8 * terms.sum()  # The weighted nodes cancel little.


def test_the_window_of_amsgrad_is_exact():
    nodes, weights, *_ = _catch_up.window_of(0.9, 0.5, True)  # Without AMSGrad these betas are refused.
    np.testing.assert_array_equal(nodes, [1.0])
    np.testing.assert_array_equal(weights[:, 0], np.float32(0.9 ** np.arange(1.0, 173)))
    assert len(weights) == 172


@pytest.mark.parametrize(
    ("rows", "decays", "kibibytes"),
    [(1, False, 12), (513, False, 24), (8192, False, 192), (10**7, False, 384), (10**7, True, 640)],
)
def test_a_small_table_has_a_short_ring(rows, decays, kibibytes):
    """Two entries for each row are enough: then one row takes its turn at each step, and all within half a ring."""
    window = _catch_up.window_of(0.9, 0.999, False)
    missed = jax.eval_shape(lambda: _catch_up.no_steps(window, decays, rows))
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(missed)) == kibibytes * 1024
    assert missed.history >= min(2 * rows, 2**15) and missed.history >= 4 * len(window.weights)


def test_powers_of_the_betas_are_those_of_float64():
    for power in _catch_up.window_of(0.9, 0.999, False).powers:
        k = np.arange(2**15)
        exact = {0.9: 0.9**k, 0.999: 0.999**k}[round(float(power.low[1]), 4)]
        normal = exact > 1e-30
        np.testing.assert_allclose(power(jnp.asarray(k))[normal], exact[normal], rtol=2e-7)

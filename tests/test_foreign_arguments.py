"""A part means the same whatever a caller hands to `update` beside the gradients, the state and the parameters."""

import inspect

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from .sparing import quick_jit

PARTS = {
    "scale_by_kadam": lambda: ok.scale_by_kadam(),
    "scale_by_kadam amsgrad": lambda: ok.scale_by_kadam(0.8, 0.9, 1e-3, amsgrad=True, adaptive_epsilon=True),
    "clip_by_value": lambda: ok.clip_by_value(0.1),
    "clip_by_norm": lambda: ok.clip_by_norm(0.1),
    "clip_by_global_norm": lambda: ok.clip_by_global_norm(0.1),
    "kadam": lambda: ok.kadam(0.01),
    "kadam schedule": lambda: ok.kadam(ok.schedules.InverseTimeDecay(0.1, 2, 0.5), use_ema=True),
    "kadam legacy": lambda: ok.kadam(0.01, decay=0.1, clipnorm=1.0, generation="legacy"),
    "kadamw": lambda: ok.kadamw(0.01),
    "dynamic_loss_scale": lambda: ok.dynamic_loss_scale(ok.kadam(0.01), 4.0, 2),
}
FOREIGN = {"learning_rate": 0.5, "iterations": jnp.array(7), "value": 1.0, "loss": 2.0}

random = np.random.default_rng(0)
PARAMS, GRADIENTS = ({"w": jnp.asarray(random.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)} for _ in range(2))


def two_steps(tx, jit, **extra_args):
    update = quick_jit(tx.update) if jit else tx.update
    _, state = update(GRADIENTS, tx.init(PARAMS), PARAMS, **extra_args)
    return update(GRADIENTS, state, PARAMS, **extra_args)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_foreign_arguments_change_nothing(part, jit):
    tx = PARTS[part]()
    chex.assert_trees_all_equal(two_steps(tx, jit, **FOREIGN), two_steps(tx, jit))


@pytest.mark.parametrize("jit", [False, True])
def test_a_chain_with_a_rate_of_its_own_descends_whatever_rate_it_is_handed(jit):
    tx = optax.chain(ok.scale_by_kadam(), optax.scale_by_learning_rate(0.1))
    updates, _ = two_steps(tx, jit, learning_rate=jnp.float32(0.1))
    assert (updates["b"] * GRADIENTS["b"] < 0).all()


@pytest.mark.parametrize(
    ("part", "argument"),
    [
        (ok.scale_by_kadam, "own_count"),
        (ok.scale_by_kadam, "float32_betas"),
        (ok.clip_by_global_norm, "float32_reciprocal"),
    ],
)
def test_what_only_the_chain_needs_is_no_argument_of_a_public_part(part, argument):
    assert argument not in inspect.signature(part).parameters

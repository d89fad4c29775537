"""Inside `shard_map`, what sums over gradients is told the axes that they vary over, or that a shard's own is meant."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_kadam as ok

from ..sparing import quick_jit
from .meshes import P, mesh_of

AXES = {"data": 4, "model": 2}
SUMMING = {
    "clip_by_norm": lambda names: ok.clip_by_norm(0.5, axis_name=names),
    "clip_by_global_norm": lambda names: ok.clip_by_global_norm(0.5, axis_name=names),
    "kadam global_clipnorm": lambda names: ok.kadam(0.1, global_clipnorm=0.5, axis_name=names),
    "kadamw clipnorm": lambda names: ok.kadamw(
        0.1, clipnorm=0.5, gradient_accumulation_steps=2, use_ema=True, axis_name=names
    ),
    "dynamic_loss_scale": lambda names: ok.dynamic_loss_scale(ok.kadam(0.1), 4.0, axis_name=names),
}
OWN = {
    "clip_by_value": lambda: ok.clip_by_value(0.1),
    "kadam": lambda: ok.kadam(0.1, amsgrad=True),
    "kadam clipvalue": lambda: ok.kadam(0.1, clipvalue=0.1),
    "scale_by_kadam": lambda: ok.scale_by_kadam(),
}
GRADIENTS = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
# How the gradients lie, the axes that are named, and one that is missing.
MISSING = [
    (P("data"), None, "data"),
    (P("data"), "model", "data"),
    (P("model"), ("data",), "model"),
    (P("data", "model"), "data", "model"),
    (P("data", "model"), ("model",), "data"),
]
summing = pytest.mark.parametrize("name", SUMMING)


def updated(tx, spec, check_vma=True, gradients=GRADIENTS):
    """The updates of a first step, of which each shard takes its own, and makes its own state."""
    step = lambda g: tx.update(g, tx.init(g), g)[0]  # noqa: E731
    return quick_jit(jax.shard_map(step, mesh=mesh_of(AXES), in_specs=spec, out_specs=spec, check_vma=check_vma))(
        gradients
    )


@pytest.mark.parametrize(("spec", "names", "missing"), MISSING)
@summing
def test_a_sum_over_gradients_that_vary_over_an_axis_not_named_is_refused(name, spec, names, missing):
    tx = SUMMING[name](names)
    with pytest.raises(ValueError, match=rf"(?s)`axis_name`.*'{missing}'.*Received: axis_name=.*axis_name=\(\)"):
        updated(tx, spec)


@summing
def test_an_empty_tuple_means_each_shard_s_own(name):
    found = updated(SUMMING[name](()), P("data"))
    shards = [SUMMING[name](None) for _ in range(AXES["data"])]
    alone = [
        quick_jit(lambda g, tx=tx: tx.update(g, tx.init(g), g)[0])(g)
        for tx, g in zip(shards, jnp.split(GRADIENTS, AXES["data"]), strict=True)
    ]
    np.testing.assert_array_equal(found, jnp.concatenate(alone))


@summing
def test_gradients_that_are_the_same_on_all_shards_need_no_axis(name):
    tx = SUMMING[name](None)
    expected = quick_jit(lambda g: tx.update(g, tx.init(g), g)[0])(GRADIENTS)
    np.testing.assert_array_equal(updated(tx, P()), expected)


@summing
def test_an_axis_along_which_gradients_are_the_same_may_be_named_beside_the_others(name):
    found = updated(SUMMING[name](("data", "model")), P("data"))
    np.testing.assert_array_equal(found, updated(SUMMING[name]("data"), P("data")))


@pytest.mark.parametrize("name", OWN)
def test_what_sums_over_nothing_needs_no_axis(name):
    tx = OWN[name]()
    expected = quick_jit(lambda g: tx.update(g, tx.init(g), g)[0])(GRADIENTS)
    np.testing.assert_array_equal(updated(tx, P("data", "model")), expected)


@summing
def test_without_check_vma_nothing_tells_what_varies(name):
    updated(SUMMING[name](None), P("data"), check_vma=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_by_norm", "clip_by_global_norm", "kadamw clipnorm", "dynamic_loss_scale"])
def test_rows_that_vary_over_an_axis_not_named_are_refused(name):
    tx, table = SUMMING[name](None), jnp.ones((9, 4))

    def step(indices, values):
        return tx.update(ok.RowUpdates(indices, values), tx.init(table), table)[0]

    sharded = jax.shard_map(step, mesh=mesh_of(AXES), in_specs=(P("data"), P("data")), out_specs=P("data"))
    with pytest.raises(ValueError, match=r"(?s)`axis_name`.*'data'.*Received: axis_name=None.*axis_name=\(\)"):
        quick_jit(sharded)(jnp.arange(8), GRADIENTS)


def test_one_gradient_of_many_that_varies_is_enough():
    tx = ok.clip_by_global_norm(0.5)
    gradients = {"replicated": jnp.ones(3), "divided": GRADIENTS}
    specs = {"replicated": P(), "divided": P("data")}
    step = lambda g: tx.update(g, optax.EmptyState())[0]  # noqa: E731
    with pytest.raises(ValueError, match=r"(?s)`axis_name`.*'data'.*Received: axis_name=None"):
        quick_jit(jax.shard_map(step, mesh=mesh_of(AXES), in_specs=(specs,), out_specs=specs))(gradients)

"""JAX's tools for finding NaN and infinity find none in a step whose gradients are finite, and change no bit of it."""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify

import optax_kadam as ok

from .sparing import quick_jit

OPTIMIZERS = {
    "kadam": lambda: ok.kadam(0.1, beta_1=lambda step: jnp.where(step < 1, 0.9, 0.5)),
    "kadamw amsgrad": lambda: ok.kadamw(0.1, amsgrad=True, weight_decay_mask={"table": True, "bias": False}),
    "clipnorm average": lambda: ok.kadam(0.1, clipnorm=0.5, use_ema=True, ema_overwrite_frequency=2),
    "global_clipnorm": lambda: ok.kadam(0.1, global_clipnorm=0.5),
    "accumulation": lambda: ok.kadam(0.1, gradient_accumulation_steps=2, loss_scale_factor=8.0, clipvalue=0.5),
    "dynamic loss scale": lambda: ok.dynamic_loss_scale(ok.kadam(0.1), 4.0, 2),
    "tf_keras": lambda: ok.kadam(0.1, use_ema=True, global_clipnorm=0.5, adaptive_epsilon=True, generation="tf_keras"),
    "legacy": lambda: ok.kadam(0.1, clipvalue=0.5, global_clipnorm=0.5, decay=0.1, generation="legacy"),
    "rows": lambda: ok.kadam(0.1, gradient_accumulation_steps=2),
    "rows legacy": lambda: ok.kadam(0.1, global_clipnorm=0.5, generation="legacy"),
}
SCHEDULES = {
    "ExponentialDecay": ok.schedules.ExponentialDecay(0.1, 10, 0.5, staircase=True),
    "ExponentialDecay to 0": ok.schedules.ExponentialDecay(0.1, 10, 0.0),
    "InverseTimeDecay": ok.schedules.InverseTimeDecay(0.1, 10, 0.5),
    "PiecewiseConstantDecay": ok.schedules.PiecewiseConstantDecay([1, 5], [0.1, 0.2, 0.3]),
    "PolynomialDecay": ok.schedules.PolynomialDecay(0.1, 10, 0.0, power=0.5),
    "PolynomialDecay cycle": ok.schedules.PolynomialDecay(0.1, 10, power=2.0, cycle=True),
    "CosineDecay": ok.schedules.CosineDecay(0.1, 10),
    "CosineDecay warmup": ok.schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5),
    "CosineDecay warmup of no step": ok.schedules.CosineDecay(0.05, 10, warmup_target=0.1, warmup_steps=0),
    "CosineDecayRestarts": ok.schedules.CosineDecayRestarts(0.1, 10),
    "CosineDecayRestarts of one length": ok.schedules.CosineDecayRestarts(0.1, 10, t_mul=1.0, m_mul=0.5),
}
TABLES = {"beta_1 is 0": {"beta_1": 0.0, "weight_decay": 0.1}, "a short history": {"beta_1": 0.5, "beta_2": 0.9}}
SHAPES = {"table": (4, 3), "bias": (3,)}
random = np.random.default_rng(0)
PARAMS, DENSE = ({k: jnp.asarray(random.normal(size=s), jnp.float32) for k, s in SHAPES.items()} for _ in range(2))
ZERO = jax.tree.map(jnp.zeros_like, DENSE)

OP_BY_OP = pytest.param(False, id="op by op", marks=pytest.mark.slow)
by_mode = pytest.mark.parametrize("jit", [OP_BY_OP, pytest.param(True, id="jitted")])


@contextlib.contextmanager
def debugging():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def watched(function, jit):
    """The function, checked to find nothing under the tools, and to give the bits that it gives without.

    Op by op, `debug_nans` and `debug_infs` look at every operation; jitted, at what comes out. There `checkify` looks
    at every operation, for a NaN or a division by zero.
    """
    checked = quick_jit(checkify.checkify(function, errors=checkify.float_checks))
    alone = quick_jit(function) if jit else function

    def call(*arguments):
        with debugging():
            found = alone(*arguments)
        if jit:
            error, expected = checked(*arguments)
            error.throw()
        else:
            expected = alone(*arguments)
        chex.assert_trees_all_equal(found, expected)
        return found

    return call


@by_mode
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step(optimizer, jit):
    tx, gradients, params = OPTIMIZERS[optimizer](), (ZERO, DENSE, ZERO), PARAMS
    if optimizer.startswith("rows"):  # The indices name one row twice, and padding.
        indices = jnp.array([1, 3, 1, -1])
        gradients = [g | {"table": ok.RowUpdates(indices, g["table"])} for g in gradients]
    state, update = watched(tx.init, jit)(params), watched(tx.update, jit)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)


@by_mode
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule(schedule, jit):
    schedule = watched(SCHEDULES[schedule], jit)
    for step in (0, 1, 4, 5, 6, 10, 11, 25, 1000):
        schedule(jnp.int32(step))


@by_mode
@pytest.mark.parametrize("arguments", TABLES)
def test_a_deferred_table(arguments, jit):
    table_of = ok.deferred_rows(0.1, **TABLES[arguments])
    table, update = table_of.init(jnp.ones((8, 3))), watched(table_of.update, jit)
    for gradient in (jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.zeros((2, 3))):
        table = update(table, jnp.array([5, -1]), gradient)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_shapes_alone_has_the_types_of_a_state(optimizer):
    tx = OPTIMIZERS[optimizer]()
    of_shapes = tx.init(jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS))
    chex.assert_trees_all_equal_shapes_and_dtypes(of_shapes, tx.init(PARAMS))


def test_the_average_of_shapes_is_shapes_where_it_starts_from_the_parameters():
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), PARAMS)
    state = ok.kadam(use_ema=True, generation="tf_keras").init(shapes)
    assert optax.tree.get(state, "average") == shapes

"""optax's own tools and Flax's optimizer: `inject_hyperparams`, `optax.tree.set`, `nnx.Optimizer`."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok

from .sparing import quick_jit

random = np.random.default_rng(0)
PARAMS, GRADIENTS = ({"w": jnp.asarray(random.normal(size=(2, 3)), jnp.float32), "b": jnp.ones(3)} for _ in range(2))


def step_of(tx):
    return quick_jit(lambda state, params: tx.update(GRADIENTS, state, params))


def is_matrix(tree):
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def is_not_vector(tree):
    return jax.tree.map(lambda x: x.ndim != 1, tree)


KADAMW = {
    "default": {},
    "clipnorm": {"clipnorm": 1.0, "use_ema": True, "nu_dtype": "float32"},
    "tf_keras": {"generation": "tf_keras", "adaptive_epsilon": True, "clipvalue": 0.5},
    "mask": {"weight_decay_mask": {"w": True, "b": False}},
    "mask function": {"weight_decay_mask": is_matrix},
}


@pytest.mark.parametrize("name", KADAMW)
def test_kadamw_under_inject_hyperparams_is_kadamw(name):
    injected = optax.inject_hyperparams(ok.kadamw, static_args=("weight_decay_mask",))(0.1, 0.5, **KADAMW[name])
    alone = ok.kadamw(0.1, 0.5, **KADAMW[name])
    found, _ = step_of(injected)(injected.init(PARAMS), PARAMS)
    wanted, _ = step_of(alone)(alone.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5)  # `1 - beta` of an array is in float32.


def test_kadamw_spells_out_every_argument_of_kadam():
    kadam, kadamw = (inspect.signature(function).parameters for function in (ok.kadam, ok.kadamw))
    assert {name: p.kind for name, p in kadamw.items()} == {name: p.kind for name, p in kadam.items()}
    differ = {name for name in kadam if kadam[name].default != kadamw[name].default}
    assert differ == {"weight_decay", "name"}


# optax takes each of these for a schedule and hands over what it makes of a step: False, True, and an array.
@pytest.mark.parametrize("mask", [is_matrix, is_not_vector, lambda tree: jnp.bool(True)])
@pytest.mark.parametrize("make", [ok.kadam, ok.kadamw])
def test_a_mask_that_optax_took_for_a_schedule_is_refused(make, mask):
    tx = optax.inject_hyperparams(make)(weight_decay=0.1, weight_decay_mask=mask)
    with pytest.raises(TypeError, match="(?s)`weight_decay_mask`.*Received: .*static_args"):
        tx.init(PARAMS)


def test_a_static_mask_function_is_taken():
    tx = optax.inject_hyperparams(ok.kadam, static_args=("weight_decay_mask",))
    found = [
        step_of(tx)(tx.init(PARAMS), PARAMS)[0]
        for tx in (make(0.1, weight_decay=0.5, weight_decay_mask=is_matrix) for make in (tx, ok.kadam))
    ]
    chex.assert_trees_all_close(*found, rtol=1e-5)


OWNERS = {
    "a schedule": lambda: ok.kadam(ok.schedules.ExponentialDecay(0.1, 10, 0.5)),
    "a schedule of optax": lambda: ok.kadam(optax.linear_schedule(0.1, 0.0, 10)),
    "a callable": lambda: ok.kadam(lambda: 0.1),
    "an array": lambda: ok.kadam(jnp.array(0.1)),
    "decay": lambda: ok.kadam(0.1, decay=0.5, generation="legacy"),
    "kadamw": lambda: ok.kadamw(ok.schedules.ExponentialDecay(0.1, 10, 0.5)),
    "a loss scale": lambda: ok.dynamic_loss_scale(ok.kadam(ok.schedules.ExponentialDecay(0.1, 10, 0.5))),
    "a chain": lambda: optax.chain(optax.identity(), ok.kadam(lambda: 0.1)),
}
REFUSED = r"(?s)`learning_rate` .*Received: learning_rate=0\.5.* number"


@pytest.mark.parametrize("owner", OWNERS)
def test_a_rate_that_the_state_does_not_own_cannot_be_set(owner):
    tx = OWNERS[owner]()
    state = tx.init(PARAMS)
    for before in (state, step_of(tx)(state, PARAMS)[1]):
        with pytest.raises(ValueError, match=REFUSED):
            optax.tree.set(before, learning_rate=0.5)


@pytest.mark.parametrize("owner", OWNERS)
def test_the_count_can_be_set_whoever_owns_the_rate(owner):
    state = optax.tree.set(OWNERS[owner]().init(PARAMS), iterations=7)
    assert int(optax.tree.get(state, "iterations")) == 7


@pytest.mark.parametrize("make", [ok.kadam, lambda rate: ok.dynamic_loss_scale(ok.kadam(rate)), ok.kadamw])
def test_a_number_can_be_set_without_a_recompile(make):
    tx = make(0.1)
    state, step = tx.init(PARAMS), step_of(tx)
    step(state, PARAMS)
    changed = optax.tree.set(state, learning_rate=0.5)
    assert jax.tree.map(jax.typeof, changed) == jax.tree.map(jax.typeof, state)
    updates, _ = step(changed, PARAMS)
    chex.assert_trees_all_equal(updates, step_of(make(0.5))(make(0.5).init(PARAMS), PARAMS)[0])
    assert step._cache_size() == 1


@pytest.mark.parametrize("make", [ok.kadam, ok.kadamw])
def test_a_rate_that_inject_hyperparams_owns_can_be_set(make):
    tx = optax.inject_hyperparams(make)(learning_rate=0.1)
    state = optax.tree.set(tx.init(PARAMS), learning_rate=0.5)
    alone = make(0.5)
    updates, _ = step_of(tx)(state, PARAMS)
    chex.assert_trees_all_close(updates, step_of(alone)(alone.init(PARAMS), PARAMS)[0], rtol=1e-5)


def table_of(rate):
    rows_of = ok.deferred_rows(rate, beta_1=0.0)
    return rows_of, rows_of.init(jnp.ones((8, 2)))


def test_the_rate_of_a_table_can_be_set():
    rows_of, table = table_of(0.1)
    table = rows_of.update(optax.tree.set(table, learning_rate=0.5), jnp.array([3]), jnp.ones((1, 2)))
    np.testing.assert_allclose(table.values[3], 0.5, rtol=1e-5)


@pytest.mark.parametrize("rate", [ok.schedules.ExponentialDecay(0.1, 10, 0.5), lambda: 0.1, jnp.array(0.1)], ids=type)
def test_the_rate_of_a_table_cannot_be_set_where_it_does_not_own_it(rate):
    rows_of, table = table_of(rate)
    for before in (table, rows_of.update(table, jnp.array([3]), jnp.ones((1, 2)))):
        with pytest.raises(ValueError, match=REFUSED):
            optax.tree.set(before, learning_rate=0.5)


def trained(tx):
    """A Flax optimizer, and a step of it, whose gradients are all 1 and which says how far the parameters went."""
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    traces = []

    @nnx.jit
    def update(model, optimizer):
        traces.append(1)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))

    def step():
        before = jnp.array(model.bias[...])
        update(model, optimizer)
        return before - model.bias[...]

    return optimizer, step, traces


@pytest.mark.parametrize("value", [3e-4, jnp.float32(3e-4), np.float64(3e-4)], ids=type)
@pytest.mark.parametrize("make", [ok.kadam, lambda rate: ok.dynamic_loss_scale(ok.kadam(rate), 1.0)])
def test_the_rate_can_be_set_in_flax_s_optimizer(make, value):
    optimizer, step, traces = trained(make(0.1))
    step()
    optimizer.opt_state = optax.tree.set(optimizer.opt_state, learning_rate=value)
    np.testing.assert_allclose(step(), 3e-4, rtol=1e-3)
    np.testing.assert_allclose(step(), 3e-4, rtol=1e-3)
    assert len(traces) == 1


def test_the_count_can_be_set_in_flax_s_optimizer():
    optimizer, step, traces = trained(ok.kadam(0.1))
    step()
    optimizer.opt_state = optax.tree.set(optimizer.opt_state, iterations=1000)
    step()
    assert int(optax.tree.get(optimizer.opt_state, "iterations")[...]) == 1001
    assert len(traces) == 1


@pytest.mark.parametrize("rate", [ok.schedules.ExponentialDecay(0.1, 10, 0.5), lambda: 0.1, jnp.array(0.1)], ids=type)
def test_a_rate_that_the_state_does_not_own_cannot_be_set_in_flax_s_optimizer(rate):
    optimizer, step, _ = trained(ok.kadam(rate))
    step()
    with pytest.raises(ValueError, match=REFUSED):
        optax.tree.set(optimizer.opt_state, learning_rate=0.5)

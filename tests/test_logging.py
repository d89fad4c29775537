"""What a step did, read off the state for the log, wherever in the state the optimizer stands."""

import functools
from typing import NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok

from .sparing import quick_jit

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
GRADIENTS = {"w": jnp.full((2, 3), 2.0), "b": jnp.zeros(3).at[0].set(5.0)}
SCHEDULE = ok.schedules.ExponentialDecay(0.1, 1, 0.5)
RATES = [np.float32(0.1) * np.float32(0.5) ** step for step in range(3)]


def is_field(path, value):
    """The filter of docs/recipes/logging.md."""
    return isinstance(path[-1], optax.tree_utils.NamedTupleKey)


def label(params):
    return jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params)


# An optimizer, and the learning rates of its first three steps.
ALONE = {
    "a number": (lambda: ok.kadam(0.1), [0.1] * 3),
    "a schedule": (lambda: ok.kadam(SCHEDULE), RATES),
    "a chain": (lambda: optax.chain(optax.clip(1e3), ok.kadamw(SCHEDULE), optax.identity()), RATES),
    "injected": (lambda: optax.inject_hyperparams(ok.kadam)(0.1), [0.1] * 3),
    "an injected schedule": (lambda: optax.inject_hyperparams(ok.kadam)(learning_rate=SCHEDULE), RATES),
    "an injected schedule in a chain": (
        lambda: optax.chain(optax.identity(), optax.inject_hyperparams(ok.kadamw)(learning_rate=SCHEDULE)),
        RATES,
    ),
    "a loss scale": (lambda: ok.dynamic_loss_scale(ok.kadam(SCHEDULE), 1.0), RATES),
    "accumulation": (lambda: ok.kadam(SCHEDULE, gradient_accumulation_steps=2), RATES),
    "legacy": (lambda: ok.kadam(0.1, decay=1.0, generation="legacy"), [0.1, 0.05, 0.1 / 3]),
    "a part": (lambda: optax.partition({"a": ok.kadam(SCHEDULE), "b": optax.sgd(1.0)}, label), RATES),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_recipe_reads_the_learning_rate_of_the_last_step(name):
    make, rates = ALONE[name]
    tx = make()
    step, state = quick_jit(lambda state: tx.update(GRADIENTS, state, PARAMS)[1]), tx.init(PARAMS)
    for rate in rates:
        state = step(state)
        assert float(optax.tree.get(state, "learning_rate", filtering=is_field)) == pytest.approx(rate, rel=1e-6)


class Model(nnx.Module):
    def __init__(self):
        self.w, self.b = nnx.Param(PARAMS["w"]), nnx.Param(PARAMS["b"])


@nnx.jit
def train(model, optimizer):
    optimizer.update(model, nnx.State({name: nnx.Param(g) for name, g in GRADIENTS.items()}))


@pytest.mark.parametrize("name", ALONE)
def test_the_recipe_reads_it_in_flax_s_optimizer(name):
    make, rates = ALONE[name]
    model = Model()
    optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)
    for rate in rates:
        train(model, optimizer)
        found = float(optax.tree.get(optimizer.opt_state, "learning_rate", filtering=is_field))
        assert found == pytest.approx(rate, rel=1e-6)


def test_of_several_parts_the_recipe_reads_the_one_that_is_named():
    parts = {"a": optax.inject_hyperparams(ok.kadam)(learning_rate=SCHEDULE), "b": ok.kadam(0.3)}
    tx = optax.partition(parts, label)
    _, state = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
    for part, rate in {"a": 0.1, "b": 0.3}.items():
        found = optax.tree.get(state.inner_states[part], "learning_rate", filtering=is_field)
        assert float(found) == pytest.approx(rate)
    with pytest.raises(KeyError, match="multiple values"):
        optax.tree.get(state, "learning_rate", filtering=is_field)
    all_rates = optax.tree.get_all_with_path(state, "learning_rate", filtering=is_field)
    assert [float(rate) for _, rate in all_rates] == pytest.approx([0.1, 0.3])


def test_a_rate_that_is_set_is_read():
    for make in (lambda: ok.kadam(0.1), lambda: optax.inject_hyperparams(ok.kadam)(0.1)):
        tx = make()
        state = optax.tree.set(tx.init(PARAMS), learning_rate=0.5)
        for _ in range(2):
            assert float(optax.tree.get(state, "learning_rate", filtering=is_field)) == 0.5
            _, state = tx.update(GRADIENTS, state, PARAMS)


# --- The norm that a clip computes, in Flax.


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm"])
def test_the_norm_in_flax_s_optimizer(clip):
    model = Model()
    optimizer = nnx.Optimizer(model, ok.kadam(**{clip: 1.0}), wrt=nnx.Param)
    for _ in range(2):
        train(model, optimizer)
        norm = optax.tree.get(nnx.as_pure(optimizer.opt_state), "gradient_norm")
        if clip == "clipnorm":
            assert {name: float(x) for name, x in norm.items()} == pytest.approx({"w": 24**0.5, "b": 5.0})
        else:
            assert float(optax.tree.get(optimizer.opt_state, "gradient_norm")) == pytest.approx(7.0)


def test_the_skipped_steps_in_flax_s_optimizer():
    model = Model()
    optimizer = nnx.Optimizer(model, ok.dynamic_loss_scale(ok.kadam(clipnorm=1.0), 4.0), wrt=nnx.Param)
    train(model, optimizer)
    optimizer.update(model, nnx.State({"w": nnx.Param(jnp.full((2, 3), jnp.nan)), "b": nnx.Param(jnp.ones(3))}))
    read = functools.partial(optax.tree.get, optimizer.opt_state)
    assert (int(read("skipped_steps")), float(read("dynamic_scale"))) == (1, 2.0)
    norm = optax.tree.get(nnx.as_pure(optimizer.opt_state), "gradient_norm")
    assert {name: float(x) for name, x in norm.items()} == pytest.approx({"w": 24**0.5 / 4, "b": 5.0 / 4})


def test_a_norm_is_not_divided_as_its_parameter_is():
    """Flax says of a variable how it is divided; said of a number, that could not be followed."""
    init = nnx.with_partitioning(nnx.initializers.ones, (None, "model"))
    with jax.set_mesh(jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))):
        model = nnx.Linear(2, 4, kernel_init=init, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, ok.kadam(clipnorm=1.0), wrt=nnx.Param)
        state = nnx.state(optimizer.opt_state)
        specs = nnx.as_pure(nnx.get_partition_spec(state))
        for path, spec in jax.tree.leaves_with_path(specs, is_leaf=lambda node: isinstance(node, jax.P)):
            names = jax.tree_util.keystr(path)
            if "kernel" in names:
                assert spec == (jax.P() if "gradient_norm" in names else jax.P(None, "model")), names
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    norm = optax.tree.get(nnx.as_pure(optimizer.opt_state), "gradient_norm")
    assert {name: float(x) for name, x in norm.items()} == pytest.approx({"kernel": 8**0.5, "bias": 2.0})


def test_a_norm_in_the_boxes_of_linen():
    boxed = {"w": flax.linen.Partitioned(PARAMS["w"], (None, "model")), "b": PARAMS["b"]}
    tx, gradients = ok.kadam(clipnorm=1.0), jax.tree.map(jnp.ones_like, boxed)
    _, state = tx.update(gradients, tx.init(boxed), boxed)
    norm = optax.tree.get(state, "gradient_norm")
    assert {name: float(x) for name, x in norm.items()} == pytest.approx({"w": 6**0.5, "b": 3**0.5})


# --- Keras's files hold no norms and no skipped steps.


class Names(NamedTuple):
    """Parameters that are called as parts of a state are."""

    mu: jax.Array
    iterations: jax.Array


def test_norms_begin_at_zero_in_a_training_from_keras():
    numbers = {name: np.full(2, i, np.float32) for i, name in enumerate(("mu", "iterations"), 1)}
    training = ok.KerasTraining(
        generation="keras3",
        config=None,
        iterations=7,
        learning_rate=0.5,
        variables=numbers,
        mu=numbers,
        nu=numbers,
        nu_max=None,
        average=None,
        accumulator=None,
    )
    tx = ok.dynamic_loss_scale(ok.kadam(0.1, clipnorm=1.0))
    params, state = training.restore(Names(jnp.zeros(2), jnp.zeros(2)), tx=tx)
    assert optax.tree.get(state, "gradient_norm", filtering=is_field) == Names(0.0, 0.0)
    assert int(optax.tree.get(state, "skipped_steps")) == 0
    assert params.mu.tolist() == [1.0, 1.0]
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))

"""Calls that would do something else than they say are refused by name, and those beside them that are right pass."""

import dataclasses
import inspect
import warnings
from typing import Any

import chex
import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import optax_kadam as ok

from .helpers import keras_rules
from .sparing import quick_jit

random = np.random.default_rng(0)
PARAMS, GRADIENTS = ({"w": jnp.asarray(random.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)} for _ in range(2))
jit = pytest.mark.parametrize("jit", [False, True])


def updated(tx, gradients, state, params=PARAMS, jit=False):
    return (quick_jit(tx.update) if jit else tx.update)(gradients, state, params)


# --- A state of another configuration.

KEPT = {
    "plain": lambda: ok.kadam(),
    "amsgrad": lambda: ok.kadam(amsgrad=True),
    "average": lambda: ok.kadam(use_ema=True),
    "accumulator": lambda: ok.kadam(gradient_accumulation_steps=2),
    "all": lambda: ok.kadamw(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
    "part": lambda: ok.scale_by_kadam(),
    "part amsgrad": lambda: ok.scale_by_kadam(amsgrad=True),
    "loss scale": lambda: ok.dynamic_loss_scale(ok.kadam()),
    "loss scale amsgrad": lambda: ok.dynamic_loss_scale(ok.kadam(amsgrad=True)),
    "adam": lambda: optax.adam(0.1),
    "scale_by_adam": lambda: optax.scale_by_adam(),
}
# What keeps, whose state it is handed, what the message says is kept, and what it says was received.
STATES = [
    ("plain", "amsgrad", "mu", "nu_max"),
    ("amsgrad", "plain", "nu_max", "mu"),
    ("plain", "average", "mu", "average"),
    ("average", "plain", "average", "mu"),
    ("plain", "accumulator", "mu", "accumulator"),
    ("accumulator", "plain", "accumulator", "mu"),
    ("all", "plain", "accumulator", "mu"),
    ("plain", "all", "mu", "accumulator"),
    ("average", "accumulator", "average", "accumulator"),
    ("plain", "adam", "mu", "nu"),
    ("plain", "part", "mu", "count"),
    ("part", "plain", "count", "iterations"),
    ("part", "part amsgrad", "mu", "nu_max"),
    ("part amsgrad", "part", "nu_max", "mu"),
    ("part", "scale_by_adam", "mu", "nu"),
    ("loss scale", "plain", "dynamic_scale", "learning_rate"),
    ("plain", "loss scale", "learning_rate", "dynamic_scale"),
    ("loss scale", "loss scale amsgrad", "mu", "nu_max"),
    ("loss scale amsgrad", "loss scale", "nu_max", "mu"),
]


@pytest.mark.parametrize(("kept", "given", "keeps", "received"), STATES)
def test_a_state_of_another_configuration_is_refused(kept, given, keeps, received):
    state = KEPT[given]().init(PARAMS)
    for jit in (False, True):
        with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{keeps}\b.*Received: .*\b{received}\b"):
            updated(KEPT[kept](), GRADIENTS, state, jit=jit)


NO_STATES = {
    "None.": None,
    f"dict of {', '.join(PARAMS)}.": PARAMS,
    "tuple, which keeps nothing.": (),
    "EmptyState, which keeps nothing.": optax.EmptyState(),
    "str.": "state",
}


@pytest.mark.parametrize(("received", "given"), NO_STATES.items(), ids=NO_STATES)
@pytest.mark.parametrize("kept", ["plain", "all", "part amsgrad", "loss scale"])
def test_what_is_no_state_is_refused(kept, received, given):
    with pytest.raises(ValueError, match=f"`state` must be .* Received: {received} Call `init`"):
        KEPT[kept]().update(GRADIENTS, given, PARAMS)


@pytest.mark.parametrize(("kept", "given", "keeps", "received"), STATES[:6])
def test_a_state_of_another_configuration_is_refused_in_flax_s_optimizer(kept, given, keeps, received):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    of = {name: nnx.Optimizer(model, KEPT[name](), wrt=nnx.Param) for name in (kept, given)}
    of[kept].opt_state = of[given].opt_state
    with pytest.raises((ValueError, TypeError), match=rf"(?s)\b{keeps}\b.*Received: .*\b{received}\b"):
        of[kept].update(model, nnx.state(model, nnx.Param))


def restored(state):
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, [np.array(leaf) for leaf in leaves])


WRAPPED = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "loss scale": ok.dynamic_loss_scale,
}


@pytest.mark.parametrize(
    ("kept", "wrapper"), [*(("amsgrad", wrapper) for wrapper in WRAPPED), ("all", "alone"), ("part", "alone")]
)
def test_a_state_of_its_own_passes_wherever_it_has_been(kept, wrapper):
    tx = WRAPPED[wrapper](KEPT[kept]())
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps and apply_if_finite do not run under the strict one.
        step = quick_jit(tx.update, donate_argnums=1)
        _, state = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)
        _, state = step(GRADIENTS, restored(state), PARAMS)
        updates, state = step(GRADIENTS, state, PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(PARAMS))
    assert all(np.isfinite(u).all() for u in jax.tree.leaves(updates))


# --- Gradients and parameters of the wrong kind.


@jit
@pytest.mark.parametrize("kept", ["plain", "accumulator", "part", "loss scale"])
def test_integer_gradients_are_refused(kept, jit):
    tx = KEPT[kept]()
    gradients = GRADIENTS | {"b": jnp.ones(3, jnp.int32)}
    with pytest.raises(TypeError, match=r"(?s)gradient.*Received: int32.* at .*\['b'\]"):
        updated(tx, gradients, tx.init(PARAMS), jit=jit)


def halved(gradient):
    return jax.tree.map(lambda x: x / 2, gradient)


def averaged(gradient):
    pmean = lambda tree: jax.tree.map(lambda x: jax.lax.pmean(x, "shard"), tree)  # noqa: E731
    each = jax.tree.map(lambda x: jnp.stack([x, x]), gradient)
    return jax.vmap(pmean, axis_name="shard", out_axes=None)(each)


@pytest.mark.parametrize("change", [halved, averaged])
@pytest.mark.parametrize(
    "make",
    [
        *(KEPT[kept] for kept in ("plain", "accumulator", "part", "loss scale")),
        lambda: ok.clip_by_value(0.1),
        lambda: ok.clip_by_norm(0.1),
        lambda: ok.clip_by_global_norm(0.1),
    ],
)
def test_indices_that_were_computed_with_are_refused(make, change):
    gradients = GRADIENTS | {"w": ok.RowUpdates(jnp.array([1, 3]), jnp.ones((2, 3)))}
    tx = make()
    state = tx.init(PARAMS)
    for jit in (False, True):
        with pytest.raises(TypeError, match=r"(?s)indices.*Received: float32.*tree\.map.*pmean.*ok\.scale_gradients"):
            updated(tx, change(gradients), state, jit=jit)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A pytree with arrays, functions and integers for leaves, and a call, as those of equinox are."""

    weight: Any
    bias: Any
    activation: Any = None
    size: Any = None

    def __call__(self, x):
        raise AssertionError("A module is not a function of the parameters.")


class Tensor:
    """An array as torch has it: numpy can read it, but it is none of numpy's or JAX's, and its dtype is its own."""

    shape, dtype = (3,), "torch.float32"

    def __array__(self, dtype=None, copy=None):
        return np.ones(3, np.float32)


def module_of_equinox():
    return equinox.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))


def variable_of_keras():
    with keras_rules():
        return {"w": keras.Variable(np.ones(3, np.float32))}


FILTER = r"eqx\.filter\(model, eqx\.is_inexact_array\)"
LEAVES = {
    "a Python float": (lambda: {"w": 1.0}, r"float.* at .*\['w'\].*jnp\.asarray"),
    "a tensor": (lambda: {"w": Tensor()}, r"Tensor.* at .*\['w'\]"),
    "a Keras variable": (variable_of_keras, r"Variable.* at .*\['w'\]"),
    "a string": (lambda: {"w": "kernel"}, r"str.* at .*\['w'\]"),
    "a function": (lambda: Module(jnp.ones((4, 3)), jnp.ones(3), jax.nn.relu), rf" at .*\.activation.*{FILTER}"),
    "an integer": (lambda: Module(jnp.ones((4, 3)), jnp.ones(3), jnp.tanh, 3), rf" at .*\.(activation|size).*{FILTER}"),
    "an equinox module": (module_of_equinox, rf" at .*activation.*{FILTER}"),
}


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("kept", ["all", "part", "loss scale"])
def test_parameters_of_another_kind_are_refused_by_their_path(kept, leaf):
    make, match = LEAVES[leaf]
    with pytest.raises(TypeError, match=rf"(?s)`params` must hold .*Received: .*{match}"):
        KEPT[kept]().init(make())


def test_the_arrays_of_an_equinox_module_are_taken():
    params = equinox.filter(module_of_equinox(), equinox.is_inexact_array)
    tx = ok.kadamw(amsgrad=True)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)


# --- Numbers.

RETURNED = {"a vector": jnp.full(3, 0.5), "one element": jnp.full(1, 0.5), "nothing": None, "a string": "0.5"}


@jit
@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize("name", ["learning_rate", "beta_1", "beta_2"])
def test_a_schedule_that_returns_no_scalar_is_named(name, returned, jit):
    tx = ok.kadam(**{name: lambda step: RETURNED[returned]})
    with pytest.raises((ValueError, TypeError), match=rf"(?s)`{name}`.* scalar.*Received: "):
        updated(tx, GRADIENTS, tx.init(PARAMS), jit=jit)


@pytest.mark.parametrize("name", ["learning_rate", "beta_1", "beta_2"])
def test_a_callable_that_returns_no_scalar_is_named(name):
    tx = ok.kadam(**{name: lambda: np.full(3, 0.5)})
    with pytest.raises(Exception, match=rf"(?s)`{name}`.* scalar.*Received: "):  # JAX wraps what a callback raises.
        tx.update(GRADIENTS, tx.init(PARAMS), PARAMS)


def test_a_schedule_of_a_table_that_returns_no_scalar_is_named():
    rows_of = ok.deferred_rows(lambda step: jnp.full(3, 0.5), beta_1=0.0)
    with pytest.raises(ValueError, match=r"(?s)`learning_rate`.* scalar.*Received: "):
        rows_of.update(rows_of.init(jnp.ones((8, 2))), jnp.array([3]), jnp.ones((1, 2)))


@jit
@pytest.mark.parametrize("kept", ["all", "part"])
@pytest.mark.parametrize("of", ["parameters", "gradients", "both"])
def test_numpy_s_float64_is_taken_as_float32(of, kept, jit):
    """As optax does: without x64, JAX makes float32 of it wherever it meets it."""
    wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)  # noqa: E731
    params = PARAMS if of == "gradients" else wide(PARAMS)
    gradients = GRADIENTS if of == "parameters" else wide(GRADIENTS)
    tx = KEPT[kept]()
    state = tx.init(params)
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, tx.init(PARAMS))
    chex.assert_trees_all_equal(
        updated(tx, gradients, state, params, jit=jit), updated(tx, GRADIENTS, tx.init(PARAMS), jit=jit)
    )


# --- A mask that can be called.


@pytest.mark.parametrize(
    "mask",
    [
        Module(True, False),
        jax.tree_util.Partial(lambda tree: Module(True, False)),
        jax.tree_util.Partial(lambda limit, tree: jax.tree.map(lambda x: x.ndim > limit, tree), 1),
    ],
    ids=["tree", "function", "function with an argument"],
)
def test_a_mask_that_is_a_tree_is_not_called_and_a_function_is(mask):
    params = Module(jnp.ones((4, 3)), jnp.ones(3))
    tx = ok.kadamw(0.1, 0.5, weight_decay_mask=mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates.weight.any() and not updates.bias.any()


# --- Names of other libraries, and misspelt ones.

NAMES = {
    ok.kadam: {
        "b1": "beta_1",
        "b2": "beta_2",
        "eps": "epsilon",
        "lr": "learning_rate",
        "betas": "beta_1",
        "mask": "weight_decay_mask",
        "exclude_from_weight_decay": "weight_decay_mask",
        "global_norm": "global_clipnorm",
        "clip_norm": "clipnorm",
        "learningrate": "learning_rate",
        "beta1": "beta_1",
    },
    ok.scale_by_kadam: {"b1": "beta_1", "b2": "beta_2", "eps": "epsilon", "betas": "beta_1", "ams_grad": "amsgrad"},
    ok.deferred_rows: {
        "b1": "beta_1",
        "b2": "beta_2",
        "eps": "epsilon",
        "lr": "learning_rate",
        "betas": "beta_1",
        "weightdecay": "weight_decay",
    },
}
NAMES[ok.kadamw] = NAMES[ok.kadam]


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [(make, *pair) for make, pairs in NAMES.items() for pair in pairs.items()],
)
def test_a_foreign_name_is_answered_with_the_right_one(make, wrong, right):
    with pytest.raises(TypeError, match=rf"(?s)`{right}`.*Received: {wrong}|Received: {wrong}.*`{right}`"):
        make(**{wrong: 0.9})


@pytest.mark.parametrize("make", NAMES)
def test_a_name_like_no_other_is_refused_too(make):
    with pytest.raises(TypeError, match="xyzzy"):
        make(xyzzy=1)


@pytest.mark.parametrize("make", NAMES)
def test_the_signature_names_every_argument(make):
    parameters = inspect.signature(make).parameters
    kinds = {p.kind for p in parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert set(NAMES[make].values()) <= set(parameters) and not set(NAMES[make]) & set(parameters)


# --- float16.


def low(dtype):
    return PARAMS | {"b": jnp.ones(3, dtype), "c": jnp.ones(2, dtype)}


@pytest.mark.parametrize("kept", ["plain", "all", "part", "loss scale"])
def test_squares_in_float16_are_warned_of_once(kept):
    with pytest.warns(UserWarning, match='nu_dtype="float32"') as caught:
        KEPT[kept]().init(low("float16"))
    assert len(caught) == 1


@pytest.mark.parametrize("make", [ok.kadam, ok.kadamw, ok.scale_by_kadam])
@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        ("float16", {"nu_dtype": "float32"}),
        ("float16", {"nu_dtype": "bfloat16"}),
        ("float16", {"nu_dtype": "float16"}),
        ("bfloat16", {}),
        ("float32", {}),
    ],
)
def test_nothing_is_warned_of_where_squares_are_kept_or_a_dtype_was_chosen(make, dtype, arguments):
    """bfloat16 has the exponents of float32: small squares lose digits there, but do not vanish."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**arguments).init(low(dtype))

"""Masks by name: what an expression is searched in, in each kind of tree, and that none is found nowhere unnoticed."""

from typing import NamedTuple

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict

import optax_kadam as ok

from .helpers import keras_rules, ulp
from .sparing import quick_jit


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)])
        self.value = nnx.Linear(3, 1, rngs=rngs)  # Flax calls the array in a variable `value` too.


class Variable(NamedTuple):  # It is none of Flax's.
    kernel: jax.Array
    bias: jax.Array


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        divided = flax.linen.with_partitioning(flax.linen.initializers.ones, ("a", "b"))
        return flax.linen.LayerNorm()(flax.linen.Dense(3, kernel_init=divided)(x))


def nnx_params():
    return nnx.state(Model(), nnx.Param)


def equinox_params():
    model = equinox.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    return equinox.filter(model, equinox.is_inexact_array)


def linen_params():
    return jax.eval_shape(Linen().init, jax.random.key(0), jnp.ones((1, 2)))


ONE = jnp.ones(2)
NESTED = {"dense": {"kernel": ONE, "bias": ONE}, "LayerNorm_0": {"scale": ONE, "bias": ONE}}
# A tree, the expressions, and the paths that are not decayed and that are.
TREES = {
    "dict": (NESTED, ("bias",), "LayerNorm_0/bias dense/bias", "LayerNorm_0/scale dense/kernel"),
    "layer": (NESTED, ("LayerNorm",), "LayerNorm_0/bias LayerNorm_0/scale", "dense/bias dense/kernel"),
    "two": (NESTED, ("LayerNorm", "bias"), "LayerNorm_0/bias LayerNorm_0/scale dense/bias", "dense/kernel"),
    "expression": (NESTED, (r"^LayerNorm_\d+/(scale|gamma)$",), "LayerNorm_0/scale", None),
    "frozen": (FrozenDict(NESTED), ("dense/",), "dense/bias dense/kernel", None),
    "list": ([ONE, {"a": ONE}, (ONE,)], ("1/a", "^2"), "1/a 2/0", "0"),
    "named tuple": ({"x": Variable(ONE, ONE)}, ("kernel",), "x/kernel", "x/bias"),
    "nnx": (nnx_params(), ("bias$", "layers/1"), "layers/0/bias layers/1/bias layers/1/scale value/bias", None),
    "nnx named value": (nnx_params(), ("value",), "value/bias value/kernel", None),
    "pure nnx": (nnx.as_pure(nnx_params()), ("value",), "value/bias value/kernel", None),
    "linen": (linen_params(), ("LayerNorm", "kernel$"), None, "params/Dense_0/bias"),
    "equinox": (equinox_params(), ("bias",), "layers/0/bias layers/1/bias", "layers/0/weight layers/1/weight"),
    "rows": ({"table": ok.RowUpdates(jnp.array([1]), jnp.ones((1, 2))), "w": ONE}, ("table",), "table", "w"),
    "rows by no other name": ({"table": ok.RowUpdates(jnp.array([1]), jnp.ones((1, 2))), "w": ONE}, ("w",), "w", None),
}


@pytest.mark.parametrize("name", TREES)
def test_an_expression_is_searched_in_the_whole_path(name):
    params, names, excluded, decayed = TREES[name]
    mask = ok.except_names(*names)(params)
    found: dict[bool, list[str]] = {True: [], False: []}
    for path, keeps in jax.tree.leaves_with_path(mask):
        found[keeps].append(jax.tree_util.keystr(path, simple=True, separator="/"))
    assert excluded is None or sorted(found[False]) == excluded.split()
    assert decayed is None or sorted(found[True]) == decayed.split()
    assert found[False] and all(type(keeps) is bool for keeps in jax.tree.leaves(mask))
    jax.tree.map(lambda keeps, param: None, mask, params)  # It is a prefix of the parameters.


def test_a_flag_of_one_expression_is_none_of_the_others():
    mask = ok.except_names("(?i)layernorm", "BIAS|kernel")(NESTED)
    assert mask == {"dense": {"kernel": False, "bias": True}, "LayerNorm_0": {"scale": False, "bias": False}}


# --- What is not found.

LARGE = {f"layer{i:02}": ONE for i in range(40)}
REFUSED = [
    (NESTED, ("bias", "LayerNrom"), "Received: 'LayerNrom'. The paths are .*LayerNorm_0/bias, .*dense/kernel. If the"),
    (NESTED, ("bias:0",), "Received: 'bias:0'."),
    (nnx_params(), ("/value$",), r"(?s)Received: '/value\$'. The paths are layers/0/bias, .*value/kernel"),
    (LARGE, ("bias",), "layer28, layer29 and 10 more. If"),
    (
        jnp.ones(3),
        ("bias",),
        "must be given a tree whose parameters have paths. Received: one array alone. .*static_args",
    ),
]


@pytest.mark.parametrize(("params", "names", "match"), REFUSED)
def test_an_expression_that_is_not_found_is_refused(params, names, match):
    tx = ok.kadamw(weight_decay_mask=ok.except_names(*names))
    with pytest.raises(ValueError, match=match):
        tx.init(params)


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ((), ValueError, "At least one expression must be given to `except_names`. Received: none. Leave"),
        ((["bias"],), TypeError, r"`except_names` must be given strings. Received: \['bias'\]. Write except_names\('b"),
        (("bias", ""), ValueError, "regular expressions that are not empty. Received: ''. Leave it out"),
        (("bias[",), ValueError, r"(?s)must be given regular expressions .*Received: 'bias\[': unterminated"),
    ],
)
def test_what_is_no_expression_is_refused_where_it_is_given(names, error, match):
    with pytest.raises(error, match=match):
        ok.except_names(*names)


def test_a_mask_that_optax_took_for_a_schedule_is_refused_and_a_static_one_is_taken():
    mask = ok.except_names("bias")
    tx = optax.inject_hyperparams(ok.kadamw)(weight_decay=0.5, weight_decay_mask=mask)
    with pytest.raises(ValueError, match='name it: static_args="weight_decay_mask"'):
        tx.init(NESTED)
    tx = optax.inject_hyperparams(ok.kadamw, static_args="weight_decay_mask")(weight_decay=0.5, weight_decay_mask=mask)
    assert is_decayed(tx, NESTED) == mask(NESTED)


def test_it_says_what_it_is():
    assert "weight_decay_mask=except_names('bias', 'norm'))" in repr(
        ok.kadamw(weight_decay_mask=ok.except_names("bias", "norm"))
    )


# --- In optax and Flax.


def is_decayed(tx, params, gradients=None, update=None):
    """Return which parameters a step without gradients changes."""
    gradients = jax.tree.map(jnp.zeros_like, params) if gradients is None else gradients
    updates, _ = (update or tx.update)(gradients, tx.init(params), params)
    return jax.tree.map(lambda u: bool(u.any()), updates)


def test_what_is_named_is_not_decayed_under_jit_either():
    mask = ok.except_names("bias")
    tx = ok.kadamw(0.1, 0.5, weight_decay_mask=mask)
    assert is_decayed(tx, NESTED) == is_decayed(tx, NESTED, update=quick_jit(tx.update)) == mask(NESTED)


def test_a_gradient_of_rows_beside_a_mask():
    tx, params = ok.kadamw(0.1, 0.5, weight_decay_mask=ok.except_names("table")), {"table": jnp.ones((3, 2)), "w": ONE}
    gradients = {"table": ok.RowUpdates(jnp.array([1]), jnp.zeros((1, 2))), "w": jnp.zeros(2)}
    assert is_decayed(tx, params, gradients) == {"table": False, "w": True}


def test_a_part_of_a_partition_knows_the_names_of_the_others():
    """Each part is handed a tree in which `optax.MaskedNode` stands for what is not its own."""
    make = lambda: ok.kadamw(0.1, 0.5, weight_decay_mask=ok.except_names("bias", "LayerNorm"))  # noqa: E731
    labels = {"dense": {"kernel": "a", "bias": "b"}, "LayerNorm_0": {"scale": "b", "bias": "a"}}
    found = is_decayed(optax.partition({"a": make(), "b": make()}, labels), NESTED)
    assert found == ok.except_names("bias", "LayerNorm")(NESTED)


def test_labels_of_subtrees_hide_the_names_in_them():
    labels, mask = {"dense": "a", "LayerNorm_0": "b"}, ok.except_names("scale")
    parts = {name: ok.kadamw(0.1, 0.5, weight_decay_mask=mask) for name in "ab"}
    with pytest.raises(ValueError, match=r"Received: 'scale'. The paths are LayerNorm_0, dense/bias.*jax.tree.broadc"):
        optax.partition(parts, labels).init(NESTED)
    assert is_decayed(optax.partition(parts, jax.tree.broadcast(labels, NESTED)), NESTED) == mask(NESTED)


def test_a_part_without_parameters_has_nothing_to_find():
    decay = ok.kadamw(0.1, 0.5, weight_decay_mask=ok.except_names("bias"))
    assert is_decayed(optax.partition({"a": decay, "b": decay}, "a"), NESTED) == ok.except_names("bias")(NESTED)


def test_it_is_a_mask_of_optax_s_own_too():
    mask = ok.except_names("bias")
    rest = ok.except_names("kernel", "scale")
    assert is_decayed(optax.masked(ok.kadamw(0.1, 0.5), mask), NESTED) == mask(NESTED)
    with jax.numpy_dtype_promotion("standard"):
        assert is_decayed(optax.adamw(0.1, weight_decay=0.5, mask=rest), NESTED) == rest(NESTED)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("masks", ["by name", "tree", "partition"])
def test_in_flax_s_optimizer(jit, masks):
    """Its `init` is handed variables, its `update` the arrays in them: a tree of bools must fit both."""
    model, mask = Model(), ok.except_names("bias$", "layers/1")
    expected = mask(nnx_params())
    tx = ok.kadamw(0.1, 0.5, weight_decay_mask=expected if masks == "tree" else mask)
    if masks == "partition":
        tx = optax.partition({True: tx, False: tx}, ok.except_names("kernel"))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for param in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda node: isinstance(node, nnx.Variable)):
        param[...] = jnp.ones_like(param[...])

    def step(model, optimizer):
        optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))

    (nnx.jit(step) if jit else step)(model, optimizer)
    found = jax.tree.map(lambda param: bool((param != 1).any()), nnx.as_pure(nnx.state(model, nnx.Param)))
    assert nnx.to_pure_dict(found) == nnx.to_pure_dict(expected)


def test_in_a_module_of_equinox():
    params = equinox_params()
    tx = ok.kadamw(0.1, 0.5, weight_decay_mask=ok.except_names("bias"))
    found = is_decayed(tx, params)
    assert [(layer.weight, layer.bias) for layer in found.layers] == [(True, False)] * 2


def test_a_layer_without_a_bias_has_its_name():
    """Equinox keeps None where a layer has no bias: a model may be built with and without."""
    params = equinox.filter(equinox.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0)), equinox.is_inexact_array)
    assert is_decayed(ok.kadamw(0.1, 0.5, weight_decay_mask=ok.except_names("bias")), params).weight


def test_a_masked_state_can_be_divided_on_a_mesh():
    """`zero1_shardings` asks `init` with trees that hold no parameters."""
    tx = ok.kadamw(weight_decay_mask=ok.except_names("bias"))
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    assert optax.tree.get(ok.zero1_shardings(tx, NESTED, mesh), "mu")["dense"]["bias"].spec == jax.P("data")


# --- Beside Keras.


@pytest.mark.parametrize("jit", [False, True])
def test_excluded_by_name_as_in_keras_to_the_bit(jit):
    keras = pytest.importorskip("keras")
    random, names = np.random.default_rng(0), ["bias", "gamma|beta"]
    with keras_rules():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.LayerNormalization()])
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.3)
        optimizer.exclude_from_weight_decay(var_names=names)
        for variable in model.trainable_variables:
            variable.assign(random.normal(size=variable.shape) + 3.0)
        params = {variable.path: jnp.array(variable.value) for variable in model.trainable_variables}
        optimizer.build(model.trainable_variables)
        used = {variable.path: optimizer._use_weight_decay(variable) for variable in model.trainable_variables}
    mask = ok.except_names(*names)
    assert mask(params) == used and sum(used.values()) == 1

    draw = lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32)  # noqa: E731
    gradients = [{path: draw(p) for path, p in params.items()} for _ in range(10)]
    tx = ok.kadamw(0.01, weight_decay=0.3, weight_decay_mask=mask)
    state, slots, expected = tx.init(params), [v.value for v in optimizer.variables], list(params.values())
    theirs = lambda slots, g, params: optimizer.stateless_apply(slots, g, params)  # noqa: E731

    def ours(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    if jit:
        theirs, ours = jax.jit(theirs), jax.jit(ours)
    for g in gradients:
        with keras_rules():
            expected, slots = theirs(slots, list(g.values()), expected)
        params, state = ours(g, state, params)
    assert [ulp(params[path], q) for path, q in zip(used, expected, strict=True)] == [0] * 4


def test_keras_3_on_jax_does_not_search_the_name_of_a_layer():
    """The difference that the documentation names."""
    keras = pytest.importorskip("keras")
    with keras_rules():
        model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization(name="LayerNorm")])
        optimizer = keras.optimizers.AdamW()
        optimizer.exclude_from_weight_decay(var_names=["LayerNorm"])
        assert all(optimizer._use_weight_decay(variable) for variable in model.trainable_variables)
    params = {variable.path: jnp.array(variable.value) for variable in model.trainable_variables}
    assert not any(ok.except_names("LayerNorm")(params).values())

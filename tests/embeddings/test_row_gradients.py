"""Sums, multiples and norms of gradients of rows are those of the dense gradients that they stand for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import sparse

import optax_kadam as ok

from ..sparing import quick_jit

ROWS, ROW = 7, (3,)
random = np.random.default_rng(0)


def dense():
    return jnp.asarray(random.normal(size=(ROWS, *ROW)), jnp.float32)


def rows(*indices):
    """Rows of a gradient; those of padding are NaN, as nothing may look at them."""
    values = random.normal(size=(len(indices), *ROW)).astype(np.float32)
    values[np.array(indices, int) < 0] = np.nan
    return ok.RowUpdates(jnp.array(indices, jnp.int32), jnp.asarray(values))


def bcoo(*indices):
    gradient = rows(*indices)
    return sparse.BCOO((gradient.values, gradient.indices[:, None]), shape=(ROWS, *ROW))


ONES = {
    "array": dense(),
    "another array": dense(),
    "rows": rows(2, 5, 2, -1),
    "other rows": rows(5, 0),
    "batch of rows": ok.RowUpdates(jnp.array([[4, 1, 4], [0, 4, 6]]), jnp.ones((2, 3, *ROW))),
    "no rows": rows(),
    "BCOO": bcoo(3, 5, 3),
    "None": None,
}
SUMS = [
    ("array", "another array"),
    ("rows", "other rows"),
    ("rows", "batch of rows"),
    ("rows", "rows"),
    ("rows", "no rows"),
    ("rows", "BCOO"),
    ("BCOO", "BCOO"),
    ("rows", "array"),
    ("array", "batch of rows"),
    ("array", "BCOO"),
    ("None", "array"),
    ("rows", "None"),
    ("None", "BCOO"),
    ("rows",),
    ("rows", "None", "other rows", "BCOO"),
    ("array", "rows", "None", "array", "other rows"),
]


def is_gradient(node):
    return node is None or isinstance(node, (ok.RowUpdates, sparse.BCOO))


def made_dense(gradient):
    if isinstance(gradient, sparse.BCOO):
        gradient = ok.RowUpdates(gradient.indices[:, 0], gradient.data)
    if not isinstance(gradient, ok.RowUpdates):
        return np.zeros((ROWS, *ROW), np.float32) if gradient is None else np.asarray(gradient)
    result = np.zeros((ROWS, *ROW), np.float32)
    inside = np.asarray((gradient.indices >= 0) & (gradient.indices < ROWS))
    np.add.at(result, np.asarray(gradient.indices)[inside], np.asarray(gradient.values)[inside])
    return result


def tree_of(gradient):
    return {"table": gradient, "dense": {"bias": jnp.arange(3.0), "frozen": None}}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("names", SUMS, ids=" + ".join)
def test_a_sum_is_the_sum_of_the_dense_gradients(names, jit):
    trees = [tree_of(ONES[name]) for name in names]
    found = (quick_jit(ok.add_gradients) if jit else ok.add_gradients)(*trees)
    np.testing.assert_allclose(made_dense(found["table"]), sum(made_dense(ONES[name]) for name in names), rtol=1e-6)
    np.testing.assert_array_equal(found["dense"]["bias"], len(names) * jnp.arange(3.0))
    assert found["dense"]["frozen"] is None


@pytest.mark.parametrize("names", SUMS, ids=" + ".join)
def test_a_sum_stays_rows_unless_one_is_dense(names):
    found = ok.add_gradients(*(tree_of(ONES[name]) for name in names))["table"]
    assert isinstance(found, jax.Array) if "array" in names else is_gradient(found)


def test_trees_of_two_structures_have_no_sum():
    with pytest.raises(ValueError, match="`trees` must have one structure. Received: .*'a'.* and .*'b'.* Put None"):
        ok.add_gradients({"a": jnp.ones(3)}, {"b": jnp.ones(3)})
    with pytest.raises(ValueError, match="`add_gradients` must be given a tree of gradients. Received: none."):
        ok.add_gradients()


def test_a_sum_of_none_is_none():
    assert ok.add_gradients({"a": None}, {"a": None}) == {"a": None}


def test_a_sum_of_rows_keeps_each_of_them():
    """A norm clip of the two older generations sees rows as they come: nothing is added up before."""
    first, second = ONES["rows"], ONES["other rows"]
    found = ok.add_gradients(first, second)
    assert found.indices.tolist() == [2, 5, 2, -1, 5, 0]
    np.testing.assert_array_equal(found.values, jnp.concatenate([first.values, second.values]))


@pytest.mark.parametrize("by", [0.5, jnp.float32(0.5), np.float32(0.5)], ids=type)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_multiple_keeps_dtypes_and_indices(dtype, by):
    gradient = ONES["rows"]
    tree = tree_of(ok.RowUpdates(gradient.indices, gradient.values.astype(dtype)))
    found = ok.scale_gradients(tree, by)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, tree)
    np.testing.assert_array_equal(found["table"].indices, gradient.indices)
    values, wanted = (
        x.astype("float32") for x in (found["table"].values, tree["table"].values * jnp.asarray(0.5, dtype))
    )
    np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ONES)
def test_a_multiple_is_that_of_the_dense_gradient(name, jit):
    found = (quick_jit(ok.scale_gradients) if jit else ok.scale_gradients)(tree_of(ONES[name]), 0.25)
    np.testing.assert_array_equal(made_dense(found["table"]), 0.25 * made_dense(ONES[name]))
    np.testing.assert_array_equal(found["dense"]["bias"], 0.25 * jnp.arange(3.0))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", ONES)
def test_a_norm_is_that_of_the_dense_gradients(name, jit):
    found = (quick_jit(ok.global_norm) if jit else ok.global_norm)(tree_of(ONES[name]))
    wanted = optax.tree.norm(tree_of(jnp.asarray(made_dense(ONES[name]))))
    assert found.shape == () and found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_norm_of_no_gradient_is_zero():
    assert float(ok.global_norm({"a": None})) == 0.0


def test_a_mean_over_micro_batches_steps_as_the_dense_mean():
    table = jnp.ones((ROWS, *ROW))
    tx, batches = ok.kadam(0.1, global_clipnorm=1.0), [ONES["rows"], ONES["batch of rows"]]
    mean = ok.scale_gradients(ok.add_gradients(*batches), 0.5)
    found, _ = tx.update(mean, tx.init(table), table)
    wanted, _ = tx.update(jnp.asarray(sum(map(made_dense, batches)) / 2), tx.init(table), table)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def loss_of(rows, params, targets, power=2):
    return jnp.mean(jnp.abs(rows["a"].sum(1) @ params["w"] - rows["b"] - targets) ** power)


def looked_up(tables, ids):
    return {name: tables[name][ids[name]] for name in tables}


@pytest.mark.parametrize("wrap", [lambda x: x, np.asarray, nnx.Param], ids=["jax", "numpy", "nnx.Param"])
@pytest.mark.parametrize("has_aux", [False, True])
def test_tables_and_dense_parameters_have_their_gradients(wrap, has_aux):
    tables, params = {"a": dense(), "b": jnp.arange(4.0)}, {"w": jnp.array([1.0, -1.0, 0.5])}
    ids, targets = {"a": jnp.array([[1, 1], [6, 0]]), "b": jnp.array([3, 3])}, jnp.array([0.5, 2.0])
    with_aux = lambda rows, *rest, **power: (loss_of(rows, *rest, **power), rows["b"])  # noqa: E731
    function = ok.value_and_row_grad(with_aux if has_aux else loss_of, (1, 0), has_aux=has_aux)
    value, (of_params, of_tables) = function(jax.tree.map(wrap, tables), ids, params, targets, power=2)
    if has_aux:
        value, aux = value
        np.testing.assert_array_equal(aux, [3.0, 3.0])
    wanted, (tables_g, params_g) = jax.value_and_grad(
        lambda tables, params: loss_of(looked_up(tables, ids), params, targets), (0, 1)
    )(tables, params)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(of_params["w"], params_g["w"], rtol=1e-6)
    for name, table in tables.items():
        found = ok.add_gradients(of_tables[name], jnp.zeros_like(table))
        np.testing.assert_allclose(found, tables_g[name], rtol=1e-6, atol=1e-7)


def test_padding_reads_as_zeros_and_an_array_alone_is_one_table():
    (value, rows), gradient = ok.value_and_row_grad(lambda rows: (rows.sum(), rows), has_aux=True)(
        nnx.Param(jnp.ones((3, 2))), [2, -1, 3]
    )
    assert value == 2 and rows[1:].sum() == 0 and gradient.indices.tolist() == [2, -1, 3]


ROWS_ONLY = ok.value_and_row_grad(lambda rows: sum(x.sum() for x in jax.tree.leaves(rows)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ROWS_ONLY(None, [0]),
            TypeError,
            "`table` must be an array of floating-point rows.*NoneType. Hand over",
        ),
        (lambda: ROWS_ONLY(3.0, [0]), TypeError, "Received: float. Hand over"),
        (lambda: ROWS_ONLY(jnp.float32(3), [0]), TypeError, r"Received: float32\[\]"),
        (lambda: ROWS_ONLY(jnp.ones((2, 2), int), [0]), TypeError, r"Received: int32\[2, 2\]"),
        (lambda: ROWS_ONLY(jnp.ones((0, 2)), [0]), ValueError, r"`table` must have at least one row. .*shape \(0, 2\)"),
        (lambda: ROWS_ONLY({"a": [1.0]}, {"a": [[0]]}), TypeError, "Received: float"),
        (
            lambda: ROWS_ONLY(ok.deferred_rows().init(np.ones((2, 2))), [0]),
            TypeError,
            "DeferredTable. .*what `read` gives",
        ),
        (lambda: ROWS_ONLY({"a": np.ones((2, 2))}, {"b": [0]}), ValueError, "`indices` must have the structure.*'b'"),
        (lambda: ROWS_ONLY({"a": np.ones((2, 2))}, jnp.array([0])), ValueError, "`indices` must have the structure"),
        (lambda: ROWS_ONLY(np.ones((2, 2)), [0.5]), TypeError, "`indices` must be integers"),
        (lambda: ok.value_and_row_grad(loss_of, 1), ValueError, "`argnums` must have 0, the rows. Received: argnums=1"),
    ],
)
def test_what_is_no_table_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()

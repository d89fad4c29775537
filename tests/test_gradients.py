"""Gradients of a few rows give the dense result without a dense gradient, and meet TensorFlow's runs on rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import sparse

import optax_kadam as ok

from .helpers import CASES, INPUTS, build, flatten, golden, share, split, ulp
from .hlo import aliased

ROWS, ROW = 17, (5,)
KWARGS = {
    "default": {},
    "amsgrad": {"amsgrad": True},
    "clipvalue": {"clipvalue": 0.1},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "decay_ema": {"weight_decay": 0.01, "use_ema": True, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 3},
    "loss_scale": {"loss_scale_factor": 4.0},
    "tf_keras": {"generation": "tf_keras", "amsgrad": True},
    "legacy": {"generation": "legacy"},
}


def gradients(rng):
    """Return rows with duplicates and padding of both kinds, and the dense gradient that they stand for."""
    indices = rng.integers(-3, ROWS + 3, size=(4, 3))
    values = rng.normal(size=(4, 3, *ROW)).astype(np.float32)
    dense = np.zeros((ROWS, *ROW), np.float32)
    inside = (indices >= 0) & (indices < ROWS)
    np.add.at(dense, indices[inside], values[inside])
    values[~inside] = np.nan  # A result would be NaN if it looked at the padding.
    return ok.RowUpdates(jnp.asarray(indices), jnp.asarray(values)), jnp.asarray(dense)


def run(tx, params, trees, jit):
    def step(gradient, state, params):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(1, 2)) if jit else step
    state, params = tx.init(params), jax.tree.map(jnp.copy, params)
    for tree in trees:
        params, state = step(tree, state, params)
    return params, state


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", KWARGS)
def test_rows_give_the_dense_result(name, jit):
    """The distance is 0 ULP, but with a norm, which sums the rows in another order than the table."""
    rng = np.random.default_rng(0)
    params = {"table": jnp.asarray(rng.normal(size=(ROWS, *ROW)), jnp.float32), "bias": jnp.ones(3)}
    rows, dense = [], []
    for _ in range(7):
        sparse_one, dense_one = gradients(rng)
        bias = jnp.asarray(rng.normal(size=3), jnp.float32)
        rows.append({"table": sparse_one, "bias": bias})
        dense.append({"table": dense_one, "bias": bias})
    tx = ok.kadam(0.01, **KWARGS[name])
    found, wanted = run(tx, params, rows, jit), run(tx, params, dense, jit)
    assert jax.tree.map(jax.typeof, found) == jax.tree.map(jax.typeof, wanted)
    furthest = max(
        share(a, b, max(1e-30, np.abs(b).max()))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    )
    assert furthest <= (4e-7 if "norm" in name else 0.0)


def test_a_bcoo_gradient_is_taken_by_every_part():
    rng = np.random.default_rng(1)
    rows, dense = gradients(rng)
    inside = np.asarray((rows.indices >= 0) & (rows.indices < ROWS))
    bcoo = sparse.BCOO((rows.values[inside], rows.indices[inside][:, None]), shape=(ROWS, *ROW))
    table = jnp.ones((ROWS, *ROW))
    for tx in (ok.kadam(0.1), ok.dynamic_loss_scale(ok.kadam(0.1), 8.0), ok.clip_by_value(0.1), ok.scale_by_kadam()):
        if tx.init(table) == optax.EmptyState():
            tx = optax.chain(tx, ok.scale_by_kadam())
        wanted, _ = tx.update(dense, tx.init(table), table)
        found, _ = tx.update(bcoo, tx.init(table), table)
        assert ulp(found, wanted) == 0
    with pytest.raises(ValueError, match="n_batch=0, n_sparse=1. Received: n_batch=0, n_sparse=2"):
        tx.update(sparse.BCOO.fromdense(dense), tx.init(table), table)


@pytest.mark.parametrize("make", [ok.clip_by_value, ok.clip_by_norm, ok.clip_by_global_norm])
def test_a_clip_of_rows_gives_rows(make):
    rows, dense = gradients(np.random.default_rng(2))
    tree, params = {"table": rows, "bias": jnp.ones(3)}, {"table": jnp.ones((ROWS, *ROW)), "bias": jnp.ones(3)}
    found, _ = make(0.1).update(tree, optax.EmptyState(), params)
    wanted, _ = make(0.1).update(tree | {"table": dense}, optax.EmptyState(), params)
    assert isinstance(found["table"], ok.RowUpdates) and isinstance(found["bias"], jax.Array)
    made_dense = jnp.zeros((ROWS, *ROW)).at[found["table"].indices].add(found["table"].values, mode="drop")
    np.testing.assert_allclose(made_dense, wanted["table"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The second moments of float16:UserWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rows_of_every_dtype_give_the_dense_result(dtype):
    with jax.enable_x64(dtype == "float64"):
        values = jnp.array([[0.1, -2.0], [3.0, 1e-3], [jnp.nan, jnp.nan]], dtype)
        dense = jnp.zeros((3, 2), dtype).at[jnp.array([2, 0])].set(values[:2])
        tx, table = ok.kadam(0.1), jnp.ones((3, 2), dtype)
        found, state = tx.update(ok.RowUpdates(jnp.array([2, 0, -1]), values), tx.init(table), table)
        wanted, wanted_state = tx.update(dense, tx.init(table), table)
        assert found.dtype == dtype
        for a, b in zip(jax.tree.leaves((found, state)), jax.tree.leaves((wanted, wanted_state)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.compiler
@pytest.mark.parametrize("amsgrad", [False, True])
def test_no_dense_gradient_is_made(amsgrad):
    """The rows are never added up into an array of the table's shape: only the moments are scattered into."""
    table = jnp.zeros((1000, 8))
    gradient = ok.RowUpdates(jnp.arange(16), jnp.ones((16, 8)))
    tx = ok.kadam(amsgrad=amsgrad, global_clipnorm=1.0)
    lowered = jax.jit(tx.update, donate_argnums=1).lower(gradient, tx.init(table), table)
    scatters = re.findall(r'"stablehlo.scatter".*?\) -> tensor<([\dx]+)xf32>', lowered.as_text(), re.DOTALL)
    assert sorted(shape for shape in scatters if shape == "1000x8") == ["1000x8"] * 2
    adding = re.findall(
        r'"stablehlo.scatter"(?:(?!stablehlo.return).)*?stablehlo.add.*?-> tensor<([\dx]+)xf32>',
        lowered.as_text(),
        re.DOTALL,
    )
    assert "1000x8" not in adding
    assert aliased(lowered.compile().as_text()) >= (5 if amsgrad else 4)  # The moments, the count, the learning rate.


@pytest.mark.parametrize("steps", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("runner", ["tfk-eager", "legacy-eager"])
@pytest.mark.parametrize(
    "case_id", ["sparse_dup", "sparse_nodup", "sparse_dup_clipvalue", "sparse_dup_global_clipnorm"]
)
def test_recorded_runs_of_rows_are_met_within_their_bounds(case_id, runner, steps):
    """TensorFlow clips rows before it adds them up, and its formula for rows rounds otherwise than the dense one."""
    case, recorded = CASES[case_id], golden(case_id)
    tx = build(case, runner.split("-")[0])
    params = [jnp.asarray(p) for p in split(INPUTS["init"])]
    state, start = tx.init(params), flatten(split(INPUTS["init"]))
    for step in range(1, steps + 1):
        tree = [jnp.asarray(g) for g in split(INPUTS[case["grads"]][step - 1])]
        tree[2] = ok.RowUpdates(*(jnp.asarray(INPUTS[f"{case['grads']}_{part}"][step - 1]) for part in ("idx", "val")))
        updates, state = tx.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        if step in case["snapshots"]:
            wanted = recorded[f"{runner}/p"][case["snapshots"].index(step)]
            movement = np.abs(recorded[f"{runner}/p"] - start).max()
            assert share(flatten(params), wanted, movement) <= BOUNDS[runner]


BOUNDS = {"tfk-eager": 1e-6, "legacy-eager": 1e-6}


def test_an_embedding_of_flax_trains_in_three_lines():
    model = nnx.Embed(ROWS, 5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ok.kadam(0.1), wrt=nnx.Param)
    ids = jnp.array([[1, 2], [2, 16]])

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = ok.value_and_row_grad(lambda rows: jnp.mean((rows - 1.0) ** 2))(model.embedding[...], ids)
        optimizer.update(model, nnx.State({"embedding": nnx.Param(gradient)}))
        return loss

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.01 * losses[0]


def test_rows_of_padding_are_read_as_zero_and_have_no_gradient():
    table = jnp.arange(6.0).reshape(3, 2)
    _, gradient = ok.value_and_row_grad(lambda rows: jnp.sum(rows**2))(table, jnp.array([-1, 3, 1]))
    assert gradient.values.tolist() == [[0.0, 0.0], [0.0, 0.0], [4.0, 6.0]]


def test_the_parts_of_a_gradient_of_rows_go_by_their_names():
    gradient = ok.RowUpdates(jnp.arange(2), jnp.ones((2, 3)))
    paths = [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree.leaves_with_path(gradient)]
    assert paths == [(".indices", (2,)), (".values", (2, 3))]


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
@pytest.mark.parametrize("name", KWARGS)
def test_all_rows_of_a_table_without_any_are_padding(name, dtype):
    tx, params = ok.kadam(0.1, **KWARGS[name]), {"table": jnp.zeros((0, 2)), "bias": jnp.ones(3)}
    rows = ok.RowUpdates(jnp.array([0, 3], dtype), jnp.full((2, 2), jnp.nan))
    state, updates = tx.init(params), params
    for _ in range(3):
        updates, state = tx.update({"table": rows, "bias": jnp.ones(3)}, state, params)
    assert updates["table"].shape == (0, 2) and jnp.isfinite(updates["bias"]).all()


def test_rows_are_looked_up_by_indices_that_do_not_reach_the_last():
    _, gradient = ok.value_and_row_grad(lambda rows: jnp.sum(rows**2))(jnp.ones((300, 2)), jnp.array([7, 255], "uint8"))
    np.testing.assert_array_equal(gradient.values, np.full((2, 2), 2.0))


BAD = {
    r"`indices` must be integers. Received: float32\[2\]": (
        TypeError,
        lambda: ok.RowUpdates(jnp.zeros(2), jnp.zeros((2, 5))),
    ),
    "`values` must be floating-point numbers. Received: int32": (
        TypeError,
        lambda: ok.RowUpdates(jnp.arange(2), jnp.ones((2, 5), jnp.int32)),
    ),
    r"values of shape \(3, 5\) for indices of shape \(2,\)": (
        ValueError,
        lambda: ok.RowUpdates(jnp.arange(2), jnp.zeros((3, 5))),
    ),
    r"rows of shape \(4,\) for a table of shape \(17, 5\)": (
        ValueError,
        lambda: update(ok.RowUpdates(jnp.arange(2), jnp.zeros((2, 4)))),
    ),
    "must be of a dtype that reaches every row. Received: int8, which ends at 127, for a table of 300 rows": (
        ValueError,
        lambda: update(ok.RowUpdates(jnp.arange(2, dtype=jnp.int8), jnp.zeros((2, 5))), jnp.zeros((300, 5))),
    ),
    "`params` must be given: a gradient of rows needs to know how many rows there are": (
        ValueError,
        lambda: update(ok.RowUpdates(jnp.arange(2), jnp.zeros((2, 5))), None),
    ),
}


def update(gradient, params=0):
    tx, table = ok.kadam(), jnp.zeros((ROWS, *ROW))
    params = table if isinstance(params, int) else params
    return tx.update(gradient, tx.init(table if params is None else params), params)


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_refused(message):
    error, call = BAD[message]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("dtype", "rows"), [("int8", 128), ("uint8", 256), ("int8", 127)])
def test_an_index_reaches_the_last_row_of_its_dtype(dtype, rows):
    indices = np.array([0, rows - 1, jnp.iinfo(dtype).max], dtype)
    gradient = ok.RowUpdates(indices, jnp.ones((3, 2)))
    tx, table = ok.kadam(0.1), jnp.zeros((rows, 2))
    updates, _ = tx.update(gradient, tx.init(table), table)
    inside = [i for i in {0, rows - 1, int(jnp.iinfo(dtype).max)} if i < rows]
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(updates)[:, 0]), sorted(inside))
    rows_of = ok.deferred_rows(0.1)
    kept = rows_of.update(rows_of.init(table), indices, jnp.ones((3, 2)))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(kept.values)[:, 0]), sorted(inside))
    longer = jnp.zeros((jnp.iinfo(dtype).max + 2, 2))
    with pytest.raises(ValueError, match="`indices` must be of a dtype that reaches every row"):
        tx.update(gradient, tx.init(longer), longer)

"""Models with several features and tables train as their dense counterparts do, with one count and one clip."""

import functools
import inspect
import itertools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_kadam as ok

from ..helpers import share
from ..hlo import aliased, opcodes
from ..sparing import mostly_slow, quick_jit

# Two users' features, three of items', of which two share a table.
FEATURES = {"user": "users", "country": "countries", "item": "items", "shop": "shops", "liked": "items"}
ROWS, WIDTH, BATCH, STEPS, CLIP = {"users": 64, "countries": 8, "items": 48, "shops": 16}, 8, 16, 60, 0.02


def batch_of(seed):
    """Return ids, `liked` of three items each and padded, and clicks."""
    random = np.random.default_rng(seed)
    shape_of = {"liked": (BATCH, 3)}
    ids = {
        feature: random.integers(0, ROWS[table], shape_of.get(feature, (BATCH,))).astype(np.int32)
        for feature, table in FEATURES.items()
    }
    ids["liked"][:, 2] = np.where(random.random(BATCH) < 0.5, -1, ids["liked"][:, 2])
    return ids, random.integers(0, 2, BATCH).astype(np.float32)


BATCHES = [batch_of(seed) for seed in range(STEPS)]


def start():
    random = np.random.default_rng(9)
    return {name: random.normal(0, 0.3, (rows, WIDTH)).astype(np.float32) for name, rows in ROWS.items()}


def in_nnx(values, rate):
    class TwoTowers(nnx.Module):
        def __init__(self, rngs):
            self.user = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
            self.item = nnx.Linear(3 * WIDTH, WIDTH, rngs=rngs)

        def __call__(self, r):
            user = self.user(jnp.concatenate([r["user"], r["country"]], -1))
            item = self.item(jnp.concatenate([r["item"], r["shop"], r["liked"].mean(1)], -1))
            return (user * item).sum(-1)

    embeddings, clip = ok.Embeddings(ok.deferred_rows(rate), FEATURES), ok.clip_by_global_norm(CLIP)
    towers, tables = TwoTowers(nnx.Rngs(0)), embeddings.init(values)
    optimizer = nnx.Optimizer(towers, ok.kadam(rate), wrt=nnx.Param)

    @functools.partial(nnx.jit, donate_argnums=2)
    def step(towers, optimizer, tables, ids, clicks):
        loss_of = lambda towers, rows: optax.sigmoid_binary_cross_entropy(towers(rows), clicks).mean()  # noqa: E731
        loss, (towers_g, rows_g) = nnx.value_and_grad(loss_of, argnums=(0, 1))(towers, embeddings.read(tables, ids))
        params = nnx.state(towers, nnx.Param), tables.values
        (towers_g, tables_g), _ = clip.update((towers_g, embeddings.gradients(ids, rows_g)), clip.init(None), params)
        optimizer.update(towers, towers_g)
        return embeddings.update(tables, tables_g), loss

    return embeddings, tables, lambda tables, *batch: step(towers, optimizer, tables, *batch)


class LinenTowers(linen.Module):
    @linen.compact
    def __call__(self, r):
        user = linen.Dense(WIDTH)(jnp.concatenate([r["user"], r["country"]], -1))
        item = linen.Dense(WIDTH)(jnp.concatenate([r["item"], r["shop"], r["liked"].mean(1)], -1))
        return (user * item).sum(-1)


def in_linen(values, rate):
    embeddings, tx, clip = ok.Embeddings(ok.deferred_rows(rate), FEATURES), ok.kadam(rate), ok.clip_by_global_norm(CLIP)
    tables = embeddings.init(values)
    params = LinenTowers().init(jax.random.key(0), embeddings.read(tables, BATCHES[0][0]))
    held = [params, tx.init(params)]

    @functools.partial(jax.jit, donate_argnums=2)
    def step(params, state, tables, ids, clicks):
        def loss_of(params, rows):
            return optax.sigmoid_binary_cross_entropy(LinenTowers().apply(params, rows), clicks).mean()

        loss, (params_g, rows_g) = jax.value_and_grad(loss_of, (0, 1))(params, embeddings.read(tables, ids))
        gradients = params_g, embeddings.gradients(ids, rows_g)
        (params_g, tables_g), _ = clip.update(gradients, clip.init(None), (params, tables.values))
        updates, state = tx.update(params_g, state, params)
        return optax.apply_updates(params, updates), state, embeddings.update(tables, tables_g), loss

    def advance(tables, *batch):
        *held[:], tables, loss = step(*held, tables, *batch)
        return tables, loss

    return embeddings, tables, advance


@functools.cache
def dense_losses(flax):
    """The losses of the same model under one `kadam` over towers and whole tables."""
    tables = jax.tree.map(jnp.asarray, start())
    look_up = lambda tables, ids: {  # noqa: E731
        feature: tables[FEATURES[feature]].at[jnp.where(i < 0, 10**6, i)].get(mode="fill", fill_value=0)
        for feature, i in ids.items()
    }
    if flax == "linen":
        towers = LinenTowers().init(jax.random.key(0), look_up(tables, BATCHES[0][0]))
        apply = lambda towers, r: LinenTowers().apply(towers, r)  # noqa: E731
    else:
        rngs = nnx.Rngs(0)
        layers = {"user": nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs), "item": nnx.Linear(3 * WIDTH, WIDTH, rngs=rngs)}
        towers = {name: {"kernel": layer.kernel[...], "bias": layer.bias[...]} for name, layer in layers.items()}

        def in_plain_jax(towers, r):
            linear = lambda name, x: x @ towers[name]["kernel"] + towers[name]["bias"][None]  # noqa: E731
            user = linear("user", jnp.concatenate([r["user"], r["country"]], -1))
            item = linear("item", jnp.concatenate([r["item"], r["shop"], r["liked"].mean(1)], -1))
            return (user * item).sum(-1)

        apply = in_plain_jax
    tx = ok.kadam(0.01, global_clipnorm=CLIP)

    @jax.jit
    def step(params, state, ids, clicks):
        def loss_of(params):
            logits = apply(params["towers"], look_up(params["tables"], ids))
            return optax.sigmoid_binary_cross_entropy(logits, clicks).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = {"towers": towers, "tables": tables}
    state, losses = tx.init(params), []
    for batch in BATCHES:
        params, state, loss = step(params, state, *batch)
        losses.append(float(loss))
    return losses, params["tables"]


@pytest.mark.parametrize(
    ("build", "devices"),
    mostly_slow(itertools.product((in_nnx, in_linen), (1, 8)), lambda *case: case == (in_nnx, 1)),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_two_towers_train_as_the_dense_model_does(build, devices):
    wanted, wanted_tables = dense_losses(build.__name__.removeprefix("in_"))
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    put = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))  # noqa: E731
    embeddings, tables, step = build(jax.tree.map(put, start()) if devices > 1 else start(), 0.01)
    losses = []
    for batch in BATCHES:
        tables, loss = step(tables, *(jax.tree.map(put, batch) if devices > 1 else batch))
        losses.append(float(loss))
    assert np.abs(np.subtract(losses, wanted)).max() <= 1e-6
    assert min(wanted[-10:]) < wanted[0] - 0.03  # They do train.
    assert tables.iterations == STEPS
    if devices > 1:
        assert tables.values["users"].addressable_shards[0].data.shape == (8, WIDTH)
    flushed = embeddings.flush(tables).values
    for name, values in flushed.items():
        movement = np.abs(wanted_tables[name] - start()[name]).max()
        assert share(np.asarray(values), np.asarray(wanted_tables[name]), movement) <= 2e-4


@pytest.mark.parametrize("sources", [(in_nnx,), (LinenTowers, in_linen)], ids=["nnx", "linen"])
def test_a_model_of_four_tables_takes_few_lines(sources):
    """What the model needs: without blank lines, without the function around and what only the test asks for."""
    lines = [line for source in sources for line in textwrap.dedent(inspect.getsource(source)).splitlines()]
    of_the_test = ("return embeddings, tables", "def in_", "def advance", "*held[:]", "held =", "return tables, loss")
    kept = [line for line in lines if line.strip() and not line.strip().startswith(of_the_test)]
    assert len(kept) <= 20


def small(**arguments):
    embeddings = ok.Embeddings(ok.deferred_rows(0.1, epsilon=1e-3, **arguments), {"a": "x", "b": "x", "c": "y"})
    return embeddings, embeddings.init({"x": jnp.arange(10.0).reshape(5, 2), "y": jnp.ones((4, 3))})


@pytest.mark.parametrize(("jit", "arguments"), [(False, {}), (True, {"amsgrad": True}), (True, {"weight_decay": 0.1})])
def test_each_table_moves_as_one_alone(jit, arguments):
    """Also in a step whose batch has none of its features; features of one table take one step together."""
    embeddings, tables = small(**arguments)
    of = embeddings.of
    update = quick_jit(embeddings.update) if jit else embeddings.update
    x, y = of.init(jnp.arange(10.0).reshape(5, 2)), of.init(jnp.ones((4, 3)))
    none = jnp.zeros((0,), jnp.int32), jnp.zeros((0, 3))
    for i in range(6):
        ids = {"a": jnp.array([i % 5, 1]), "b": jnp.array([[1], [4], [-1]])}
        of_rows = {"a": jnp.full((2, 2), 0.5), "b": jnp.arange(6.0).reshape(3, 1, 2)}
        if i % 3 == 0:
            ids["c"], of_rows["c"] = jnp.array([2]), jnp.ones((1, 3))
        tables = update(tables, embeddings.gradients(ids, of_rows))
        both = (
            jnp.concatenate([ids["a"], ids["b"].ravel()]),
            jnp.concatenate([of_rows["a"], of_rows["b"].reshape(3, 2)]),
        )
        x, y = of.update(x, *both), of.update(y, *((ids["c"], of_rows["c"]) if "c" in ids else none))
    for name, wanted in (("x", x), ("y", y)):
        found = embeddings.table(tables, name)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6 if jit else 0, atol=1e-7 if jit else 0)
    assert tables.iterations == 6
    if not jit:
        wide = {"a": np.array([0], np.int64), "b": np.array([1], np.uint8)}
        found = embeddings.gradients(wide, {"a": jnp.ones((1, 2)), "b": jnp.ones((1, 2))})
        assert found["x"].indices.tolist() == [0, 1]


def test_micro_batches_are_added_up():
    embeddings, tables = small()
    batches = [{"a": jnp.array([1, 2])}, {"b": jnp.array([2]), "c": jnp.array([3])}]
    micro = [embeddings.gradients(ids, embeddings.read(tables, ids)) for ids in batches]
    mean = ok.scale_gradients(ok.add_gradients(*micro), 0.5)
    together = embeddings.gradients(batches[0] | batches[1], embeddings.read(tables, batches[0] | batches[1]))
    found, wanted = (embeddings.update(tables, g) for g in (mean, ok.scale_gradients(together, 0.5)))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_one_call_sets_the_rate_of_all_tables():
    embeddings, tables = small()
    tables = optax.tree.set(tables, learning_rate=0.5)
    gradients = {"x": ok.RowUpdates([0], jnp.ones((1, 2))), "y": ok.RowUpdates([0], jnp.ones((1, 3)))}
    moved = embeddings.update(tables, gradients)
    for name in ("x", "y"):
        np.testing.assert_allclose(tables.values[name][0] - moved.values[name][0], 0.5, rtol=0.05)
    assert optax.tree.get(moved, "iterations") == 1


def test_a_callable_is_asked_once_a_step_for_all_tables():
    answers = iter([0.1, 0.2, 0.3])
    embeddings = ok.Embeddings(ok.deferred_rows(lambda: next(answers)), {"a": "x", "b": "y"})
    tables = embeddings.init({"x": jnp.ones((2, 1)), "y": jnp.ones((2, 1))})
    rates = []
    for _ in range(3):
        tables = embeddings.update(tables, {"x": None, "y": None})
        rates.append(float(tables.learning_rate))
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3], rtol=1e-6)


def test_values_come_in_parts_up_to_date():
    embeddings, tables = small()
    for i in range(3):
        tables = embeddings.update(tables, embeddings.gradients({"a": jnp.array([i])}, {"a": jnp.ones((1, 2))}))
    flushed = embeddings.flush(tables).values
    found = {"x": np.full((5, 2), np.nan), "y": np.full((4, 3), np.nan)}
    sizes = []
    for name, first, rows in embeddings.values(tables, rows=2):
        found[name][first : first + len(rows)] = rows
        sizes.append(len(rows))
    assert sizes == [2, 2, 1, 2, 2]
    for name, values in found.items():
        np.testing.assert_allclose(values, flushed[name], rtol=1e-6)


AXIS_TYPES = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_features_of_one_table_are_added_up_on_a_mesh(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    embeddings, clip = ok.Embeddings(ok.deferred_rows(0.1), FEATURES), ok.clip_by_global_norm(CLIP)

    @quick_jit
    def step(tables, ids):
        of_rows = jax.grad(lambda rows: sum((x**2).sum() for x in rows.values()))(embeddings.read(tables, ids))
        gradients, _ = clip.update(embeddings.gradients(ids, of_rows), clip.init(None), tables.values)
        return embeddings.update(tables, gradients)

    put = lambda x: jax.device_put(x, NamedSharding(mesh, P("data")))  # noqa: E731
    ids, _ = BATCHES[0]
    wanted = step(embeddings.init(start()), ids)
    found = step(embeddings.init(jax.tree.map(put, start())), jax.tree.map(put, ids))
    for name, values in found.values.items():
        np.testing.assert_allclose(values, wanted.values[name], rtol=1e-6, atol=1e-7)
        assert values.sharding.is_equivalent_to(put(start()[name]).sharding, 2)
    parts = [np.asarray(rows) for name, _, rows in embeddings.values(found, rows=20) if name == "users"]
    np.testing.assert_allclose(np.concatenate(parts), found.values["users"], rtol=1e-6)


@pytest.mark.parametrize("axis_type", AXIS_TYPES)
def test_random_tables_are_made_in_parts_on_a_mesh(axis_type):
    embeddings = ok.Embeddings(ok.deferred_rows(), {"a": "x", "b": "y"})
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    arguments = jax.random.key(0), {"x": (64, 4), "y": (32, 2)}, jax.nn.initializers.normal(0.1)
    tables = embeddings.init_random(*arguments, sharding=NamedSharding(mesh, P("data")))
    for field in (tables.values, tables.mu, tables.nu):
        assert field["x"].addressable_shards[0].data.shape == (8, 4)
    assert tables.last_visit["y"].addressable_shards[0].data.shape == (4,)
    alone = embeddings.init_random(*arguments)
    jax.tree.map(np.testing.assert_array_equal, tables.values, alone.values)
    assert abs(float(alone.values["x"].std()) - 0.1) < 0.02 and tables.iterations == 0


@pytest.mark.compiler
def test_donated_tables_are_updated_in_place_together():
    embeddings = ok.Embeddings(ok.deferred_rows(0.1, amsgrad=True), {"a": "x", "b": "x", "c": "y"})

    def step(tables, ids):
        return embeddings.update(tables, embeddings.gradients(ids, embeddings.read(tables, ids)))

    shape = jax.ShapeDtypeStruct
    tables = jax.eval_shape(embeddings.init, {"x": shape((90_000, 8), "float32"), "y": shape((70_000, 4), "float32")})
    ids = {name: shape((64,), "int32") for name in "abc"}
    text = jax.jit(step, donate_argnums=0).lower(tables, ids).compile().as_text()
    # Nothing else gives an array as long as a table: none is copied, and no row is computed that was not touched.
    assert opcodes(text, 90_000) | opcodes(text, 70_000) <= {"parameter", "scatter", "fusion", "tuple"}
    assert aliased(text) == len(jax.tree.leaves(tables))


DEFERRED = ok.deferred_rows()
ONE = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e, t: ok.Embeddings(ok.kadam(), {"a": "x"}), TypeError, "`of` must be `deferred_rows"),
        (lambda e, t: ok.Embeddings(DEFERRED, ["a"]), TypeError, "`features` must map.*Received: features="),
        (lambda e, t: ok.Embeddings(DEFERRED, {"a": 1}), TypeError, "`features` must map"),
        (lambda e, t: ok.Embeddings(DEFERRED, {}), ValueError, "`features` must name a feature"),
        (lambda e, t: e.init({"x": ONE}), ValueError, "`values` must name each table.*Received: no 'y'. The tables"),
        (lambda e, t: e.init({"x": ONE, "y": ONE, "z": ONE}), ValueError, "Received: 'z', which is none"),
        (lambda e, t: e.init(ONE), TypeError, "`values` must be a dict by the name of a table. Received: ndarray"),
        (lambda e, t: e.init_random(None, {"x": (1, 2)}, None), ValueError, "`shapes` must name each table"),
        (lambda e, t: e.read(t, {"x": [0]}), ValueError, "`ids` must name a feature.*Received: 'x', which is none"),
        (
            lambda e, t: e.read({"x": 1}, {"a": [0]}),
            TypeError,
            "`tables` must be what `init`.*Received: dict.*template",
        ),
        (lambda e, t: e.read(e.table(t, "x"), {"a": [0]}), TypeError, "`tables` must be what `init`"),
        (lambda e, t: e.gradients({"a": [0]}, {}), ValueError, "`of_rows` must name each feature.*no 'a'"),
        (lambda e, t: e.gradients({"a": [0.5]}, {"a": ONE}), TypeError, "`indices` must be integers"),
        (lambda e, t: e.update(t, {"x": None}), ValueError, "`gradients` must name each table.*no 'y'"),
        (lambda e, t: e.update(t, {"x": None, "y": ONE}), TypeError, "must hold `RowUpdates` or None.*ndarray for 'y'"),
        (lambda e, t: e.table(t, "z"), ValueError, "`name` must name a table"),
        (lambda e, t: list(e.values(t, 0)), ValueError, "`rows` must be an integer >= 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call(*small())


def test_tables_of_other_names_are_refused():
    embeddings, _ = small()
    _, other = small()
    renamed = ok.Embeddings(DEFERRED, {"a": "x"}).init({"x": ONE})
    with pytest.raises(ValueError, match="`tables` must name each table.*no 'y'"):
        embeddings.read(renamed, {"a": jnp.array([0])})
    assert embeddings.read(other, {"a": jnp.array([0])})["a"].shape == (1, 2)
    assert repr(embeddings) == "Embeddings({'a': 'x', 'b': 'x', 'c': 'y'})"

"""Deferred rows have the values of the dense sweep at every step, in place, and are closer to it in float64.

`python -m tests.embeddings.test_deferred` prints the errors for every schedule, betas and epsilon.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optax_kadam as ok
from optax_kadam.embeddings import _catch_up
from optax_kadam.embeddings._deferred import DeferredRows, deferred_rows

from ..helpers import share
from ..hlo import aliased, computations, opcodes
from ..sparing import mostly_slow, quick_jit

BETAS = [(0.9, 0.999), (0.9, 0.99), (0.9, 0.95), (0.95, 0.98), (0.99, 0.999), (0.0, 0.999)]
# What may give an array as long as a table: nothing that computes each of its rows, and no copy.
LOOK_UPS_AND_SCATTERS = {"parameter", "scatter", "fusion", "tuple"}

EPSILONS = [1e-8, 1e-7, 1e-3, 1.0]
SCHEDULES = {
    "constant": lambda step: jnp.full(step.shape, 1e-2, jnp.float32),
    "staircase": ok.schedules.ExponentialDecay(1e-2, 150, 0.7, staircase=True),
    "exponential": ok.schedules.ExponentialDecay(1e-2, 500, 0.5),
    "inverse time": ok.schedules.InverseTimeDecay(1e-2, 300, 1.0),
    "jumps": ok.schedules.PiecewiseConstantDecay([100, 107, 900, 1300], [1e-2, 1e-4, 3e-2, 0.0, 1e-2]),
    "polynomial": ok.schedules.PolynomialDecay(1e-2, 400, 1e-4, 2.0, cycle=True),
    "cosine": ok.schedules.CosineDecay(0.0, 1500, warmup_target=2e-2, warmup_steps=100),
    "restarts": ok.schedules.CosineDecayRestarts(1e-2, 300),
}


def zipf(steps, rows=3000, width=4, touched=64, seed=0):
    """Return a table, and indices and gradients for each step; the gradients are of many magnitudes."""
    random = np.random.default_rng(seed)
    likelihood = 1.0 / np.arange(1, rows + 1)
    indices = random.choice(rows, (steps, touched), p=likelihood / likelihood.sum())
    gradients = 10.0 ** random.uniform(-4, 0, (steps, touched, 1)) * random.normal(size=(steps, touched, width))
    values = 0.1 * random.normal(size=(rows, width))
    return values.astype(np.float32), (indices.astype(np.int32), gradients.astype(np.float32))


def dense(values, batches, cases, beta_1, beta_2, weight_decay=0.0, dtype=np.float64):
    """Return the values after every row took every step, in Keras's order, for each (rates, epsilon, amsgrad)."""
    cast, one = dtype, dtype(1)
    ps = [values.astype(dtype) for _ in cases]
    m, v, v_max = (np.zeros_like(ps[0]) for _ in range(3))
    o1, o2 = cast(1 - beta_1), cast(1 - beta_2)
    for i, (indices, gradients) in enumerate(zip(*batches, strict=True)):
        g, t = np.zeros_like(m), cast(i + 1)
        inside = (indices >= 0) & (indices < len(g))
        np.add.at(g, indices[inside], gradients[inside].astype(dtype))
        m += (g - m) * o1
        v += (g * g - v) * o2
        m[np.abs(m) < 1.2e-38], v[v < 1.2e-38] = 0, 0  # JAX flushes denormals; numpy would compute with them, slowly.
        v_max = np.maximum(v_max, v)
        roots = np.sqrt(v), np.sqrt(v_max)
        root, bias = np.sqrt(one - np.power(cast(beta_2), t)), one - np.power(cast(beta_1), t)
        for p, (rates, epsilon, amsgrad) in zip(ps, cases, strict=True):
            rate = cast(rates[i])
            if weight_decay:
                p -= p * cast(weight_decay) * rate
            p -= (m * (rate * root / bias)) / (roots[amsgrad] + cast(epsilon))
    return ps


def run(values, batches, rates, epsilon, beta_1, beta_2, amsgrad=False, weight_decay=None):
    """Read and update at every step; return the values at the end, the table, and the rows that were read."""
    table_of = deferred_rows(lambda step: rates[step], beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay)

    def step(table, batch):
        rows = table_of.read(table, batch[0])
        return table_of.update(table, *batch), rows

    table, rows = jax.lax.scan(step, table_of.init(values), batches)
    return *table_of.flush(table), rows


train = jax.jit(run, static_argnums=(4, 5, 6, 7))
quick_train = quick_jit(run, static_argnums=(4, 5, 6, 7))  # For what is compared within a tolerance.


def rates_of(schedule, steps):
    return np.asarray(SCHEDULES[schedule](jnp.arange(steps)))


def errors(steps, rows, schedules, betas, epsilons, weight_decay=None):
    """Yield the largest errors against the float64 sweep, of the deferred values and of the float32 sweep's.

    The first pair is of the rows that had a gradient in less than half of the steps, the second of all rows. A row that
    has one at every step is computed alike in both; which of them is nearer to float64 is then the luck of rounding.
    """
    values, batches = zipf(steps, rows)
    names = list(itertools.product(schedules, epsilons, (False, True)))
    cases = [(rates_of(schedule, steps), epsilon, amsgrad) for schedule, epsilon, amsgrad in names]
    exact = dense(values, batches, cases, *betas, weight_decay=weight_decay or 0.0)
    swept = dense(values, batches, cases, *betas, weight_decay=weight_decay or 0.0, dtype=np.float32)
    is_rare = np.bincount(np.concatenate([np.unique(i) for i in batches[0]]), minlength=rows) < steps / 2
    for name, (rates, epsilon, amsgrad), e, s in zip(names, cases, exact, swept, strict=True):
        ours, *_ = train(values, batches, rates, jnp.float32(epsilon), *betas, amsgrad, weight_decay)
        ours, theirs = (np.abs(p - e).max(axis=1) for p in (np.asarray(ours), s))
        yield name, (ours[is_rare].max(), theirs[is_rare].max()), (ours.max(), theirs.max())


def check_errors(*arguments, **options):
    for name, (ours, theirs), (ours_of_all, theirs_of_all) in errors(*arguments, **options):
        assert ours <= theirs, name
        assert ours_of_all <= 1.3 * theirs_of_all, name


@pytest.mark.parametrize("betas", mostly_slow(zip(BETAS), lambda betas: betas == (0.9, 0.999)))
def test_error_is_no_larger_than_that_of_the_float32_sweep(betas):
    check_errors(2000, 1000, ["jumps"], betas, [1e-8, 1.0])


@pytest.mark.parametrize("schedule", ["jumps", pytest.param("staircase", marks=pytest.mark.slow)])
def test_weight_decay_is_the_dense_one(schedule):
    check_errors(500, 1000, [schedule], (0.9, 0.999), [1e-7], weight_decay=0.5)


@pytest.mark.parametrize(
    ("amsgrad", "weight_decay"),
    mostly_slow(
        itertools.product((False, True), (None, 0.5)), lambda amsgrad, weight_decay: amsgrad == bool(weight_decay)
    ),
)
def test_what_is_read_is_the_dense_table_at_every_step(amsgrad, weight_decay):
    values, (indices, gradients) = zipf(40, rows=50, touched=4)
    rates = rates_of("cosine", 40)
    *_, rows = quick_train(values, (indices, gradients), rates, jnp.float32(1e-3), 0.9, 0.99, amsgrad, weight_decay)
    for i in range(40):
        batches = indices[:i], gradients[:i]
        (p,) = dense(values, batches, [(rates, 1e-3, amsgrad)], 0.9, 0.99, weight_decay or 0.0)
        np.testing.assert_allclose(rows[i], p[indices[i]], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(("amsgrad", "weight_decay"), [(False, 0.5), pytest.param(True, None, marks=pytest.mark.slow)])
def test_absences_longer_than_the_history_are_caught_up(monkeypatch, amsgrad, weight_decay):
    """Most rows have gradients early, and never again; the history, of 256 steps here, is overwritten eight times."""
    monkeypatch.setattr(_catch_up, "_LONG_HISTORY", 256)
    assert _catch_up.window_of(0.5, 0.8, amsgrad).history == 256
    values, (indices, gradients) = zipf(2000, rows=700, touched=8)
    indices[60:] = 20 + indices[60:] % 40
    for i in range(60):
        indices[i] = np.arange(8 * i, 8 * i + 8)
    rates = 0.1 * rates_of("jumps", 2000)
    quick_train.clear_cache()  # What was compiled before has the longer history in it.
    batches = indices, gradients
    ours, table, _ = quick_train(values, batches, rates, jnp.float32(1e-3), 0.5, 0.8, amsgrad, weight_decay)
    quick_train.clear_cache()
    (p,) = dense(values, batches, [(rates, 1e-3, amsgrad)], 0.5, 0.8, weight_decay or 0.0)
    is_rare = ~np.isin(np.arange(700), indices[60:])
    np.testing.assert_allclose(ours[is_rare], p[is_rare], rtol=3e-6, atol=3e-8)
    np.testing.assert_allclose(ours[~is_rare], p[~is_rare], rtol=1e-5, atol=1e-6)
    assert (table.last_visit == 2000).all()


@pytest.mark.parametrize("weight_decay", [None, 0.5])
def test_a_short_ring_gives_the_bits_of_a_long_one(weight_decay):
    """The ring of a small table is overwritten five times here, that of `Embeddings` with a large table never."""
    values, (indices, gradients) = zipf(700, rows=60, touched=2)
    indices[:30], indices[30:] = np.arange(60).reshape(30, 2), indices[30:] % 20
    embeddings = ok.Embeddings(deferred_rows(0.01, 0.5, 0.8, weight_decay=weight_decay), {"a": "small", "b": "large"})
    tables = embeddings.init({"small": values, "large": np.zeros((600, 1), np.float32)})
    alone = embeddings.of.init(values)
    assert (alone.history, tables.history) == (128, 2048)

    def after(table):
        table, _ = jax.lax.scan(lambda t, batch: (embeddings.of.update(t, *batch), None), table, (indices, gradients))
        return embeddings.of.flush(table)[1]

    short, long = (jax.jit(after)(table) for table in (alone, embeddings.table(tables, "small")))
    jax.tree.map(np.testing.assert_array_equal, short[:6], long[:6])
    assert (short.values != values).all()


@pytest.mark.parametrize(
    ("amsgrad", "weight_decay", "x64"),
    mostly_slow(
        [(False, 0.1, False), (False, 0.1, True), (True, None, False), (True, None, True)],
        lambda amsgrad, weight_decay, x64: amsgrad == x64,
    ),
)
def test_nothing_accelerates_where_the_count_ends(monkeypatch, amsgrad, weight_decay, x64):
    """A table goes on around the largest count as around a smaller one, through two histories of 256 steps."""
    monkeypatch.setattr(_catch_up, "_LONG_HISTORY", 256)
    table_of = deferred_rows(0.01, 0.5, 0.8, 1e-3, amsgrad, weight_decay=weight_decay)
    values, batches = zipf(370, rows=100, touched=2)

    @quick_jit
    def after(start):
        def step(table, batch):
            rows = table_of.read(table, batch[0])
            return table_of.update(table, *batch), (rows, table.iterations)

        table = optax.tree.set(table_of.init(values), iterations=start)
        table = table._replace(last_visit=jnp.full_like(table.last_visit, start))
        table, seen = jax.lax.scan(step, table, batches)
        return table_of.flush(table), seen

    top = np.iinfo(np.int32).max
    with jax.enable_x64(x64):
        (found, table), (rows, counts) = after(jnp.int32(top - 100))
        (expected, _), (expected_rows, _) = after(jnp.int32(top - 100 - 2**20))
    np.testing.assert_allclose(rows, expected_rows, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=1e-7)
    np.testing.assert_array_equal(counts[:102], np.append(np.arange(top - 100, top + 1), top - 255))
    assert (table.last_visit == table.iterations).all() and counts[101 + 256] == top - 255


def jitted(*arguments, **options):
    return DeferredRows(*(quick_jit(function) for function in deferred_rows(*arguments, **options)))


@functools.cache
def small():
    return jitted(0.1, epsilon=1e-3), jnp.arange(10.0).reshape(5, 2)


def test_duplicates_are_summed_before_they_are_squared():
    table_of, values = small()
    ones = jnp.ones((4, 2))
    twice = table_of.update(table_of.init(values), jnp.array([3, 1, 3, 3]), ones)
    once = table_of.update(table_of.init(values), jnp.array([1, 3]), jnp.array([[1.0, 1.0], [3.0, 3.0]]))
    jax.tree.map(np.testing.assert_array_equal, twice, once)


def test_indices_out_of_range_are_padding():
    table_of, values = small()
    padded, g = jnp.array([-1, 2, 5, -5, 1000, -(2**31), 2**31 - 1]), jnp.full((7, 2), 9.0).at[1].set(1.0)
    table = table_of.update(table_of.init(values), padded, g)
    alone = table_of.update(table_of.init(values), jnp.array([2]), jnp.ones((1, 2)))
    jax.tree.map(np.testing.assert_array_equal, table, alone)
    rows = table_of.read(table, padded)
    np.testing.assert_array_equal(rows, jnp.zeros((7, 2)).at[1].set(table.values[2]))


@pytest.mark.parametrize("jit", [False, True])
def test_an_update_takes_the_gradient_of_rows_as_one(jit):
    table_of = deferred_rows(0.1, epsilon=1e-3)
    update = quick_jit(table_of.update) if jit else table_of.update
    table, indices, gradients = table_of.init(jnp.ones((5, 2))), jnp.array([3, 1, -1]), jnp.ones((3, 2))
    found = update(table, ok.RowUpdates(indices, gradients))
    jax.tree.map(np.testing.assert_array_equal, found, update(table, indices, gradients))


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ((ok.RowUpdates(np.ones(1, np.int32), np.ones((1, 2))), np.ones((1, 2))), "RowUpdates and gradients"),
        ((np.ones(1, np.int32),), "ndarray and no gradients"),
    ],
)
def test_a_call_of_update_in_neither_form_is_refused(arguments, received):
    table_of = deferred_rows()
    with pytest.raises(TypeError, match=f"`update` must be called with indices.*Received: {received}. Call"):
        table_of.update(table_of.init(np.ones((5, 2), np.float32)), *arguments)


def test_rows_that_were_not_read_are_caught_up_by_update():
    values, (indices, gradients) = zipf(30, rows=20, touched=3)
    table_of = jitted(0.1, epsilon=1e-3)
    table = table_of.init(values)
    for batch in zip(indices, gradients, strict=True):
        table = table_of.update(table, *batch)
    (p,) = dense(values, (indices, gradients), [(np.full(30, 0.1), 1e-3, False)], 0.9, 0.999)
    np.testing.assert_allclose(table_of.flush(table)[0], p, rtol=3e-6, atol=1e-7)


def test_flush_changes_nothing_but_the_time_of_the_visit():
    table_of, values = small()
    g = jnp.ones((1, 2))
    table = table_of.init(values)
    for row in (0, 1, 2, 0):
        table = table_of.update(table, jnp.array([row]), g)
    flushed, after = table_of.flush(table)
    np.testing.assert_array_equal(flushed, table_of.read(table, jnp.arange(5)))
    np.testing.assert_array_equal(after.values, flushed)
    np.testing.assert_array_equal(table_of.flush(after)[0], flushed)
    np.testing.assert_array_equal(after.last_visit, [4] * 5)
    one, other = (table_of.flush(table_of.update(t, jnp.array([1]), g))[0] for t in (table, after))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_learning_rates_set_by_hand_count_from_then_on():
    values, (indices, gradients) = zipf(60, rows=20, touched=2)
    rates = np.repeat([1e-2, 1e-1, 1e-3], 20).astype(np.float32)
    table_of = deferred_rows(1e-2, 0.9, 0.99, 1e-3)
    update = quick_jit(table_of.update)
    table = table_of.init(values)
    for i, batch in enumerate(zip(indices, gradients, strict=True)):
        if i in (20, 40):
            table = optax.tree.set(table, learning_rate=float(rates[i]))
        table = update(table, *batch)
    assert update._cache_size() == 1
    (p,) = dense(values, (indices, gradients), [(rates, 1e-3, False)], 0.9, 0.99)
    np.testing.assert_allclose(table_of.flush(table)[0], p, rtol=3e-6, atol=1e-7)


def test_every_kind_of_learning_rate_gives_the_same_table():
    expected = None
    for rate in (0.1, jnp.float32(0.1), optax.constant_schedule(0.1), lambda: 0.1):
        table_of = deferred_rows(rate)
        table = table_of.init(jnp.ones((3, 2)))
        for row in (0, 0, 1):
            table = quick_jit(table_of.update)(table, jnp.array([row]), jnp.ones((1, 2)))
        assert optax.tree.get(table, "learning_rate") == np.float32(0.1)
        assert optax.tree.get(table, "iterations") == 3
        values = table_of.flush(table)[0]
        expected = values if expected is None else expected
        np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_table_is_stepped_as_kadam_steps_it(amsgrad):
    """The two differ by the rounding of `1 - beta_2**t` in float32, 1.3e-5 at first."""
    values, (indices, gradients) = zipf(20, rows=10)
    arguments = {"learning_rate": 0.01, "epsilon": 1e-4, "amsgrad": amsgrad, "weight_decay": 0.1}
    table_of, tx = jitted(**arguments), ok.kadam(**arguments)
    table, params = table_of.init(values), jnp.asarray(values)
    state = tx.init(params)
    for i, g in zip(indices, gradients, strict=True):
        table = table_of.update(table, i, g)
        updates, state = tx.update(jnp.zeros_like(params).at[i].add(g), state, params)
        params = optax.apply_updates(params, updates)
    flushed, table = table_of.flush(table)
    np.testing.assert_allclose(flushed, params, atol=2e-6)
    for name in ("mu", "nu") + (("nu_max",) if amsgrad else ()):
        np.testing.assert_allclose(optax.tree.get(table, name), optax.tree.get(state, name), rtol=1e-5, atol=1e-9)
    assert amsgrad or optax.tree.get(table, "nu_max") is None


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_low_precision_tables_have_float32_moments(dtype):
    values, batches = zipf(300, rows=50)
    rates = rates_of("constant", 300)
    (p,) = dense(values, batches, [(rates, 1e-7, False)], 0.9, 0.999)
    ours, table, rows = quick_train(jnp.asarray(values, dtype), batches, rates, jnp.float32(1e-7), 0.9, 0.999)
    assert ours.dtype == table.values.dtype == rows.dtype == dtype
    assert table.mu.dtype == table.nu.dtype == jnp.float32
    np.testing.assert_allclose(ours.astype(jnp.float32), p, atol=0.05 if dtype == "bfloat16" else 0.01)


@pytest.mark.parametrize(
    ("shape", "row_shape"),
    mostly_slow(itertools.product(((), (2, 3)), ((), (2, 2))), lambda shape, row_shape: bool(shape) == bool(row_shape)),
)
def test_shapes_and_types_are_kept(shape, row_shape):
    table_of = jitted(0.1)
    table = table_of.init(np.ones((6, *row_shape), np.float32))
    indices = jnp.full(shape, 2)
    rows = table_of.read(table, indices)
    assert rows.shape == shape + row_shape
    new = table_of.update(table, indices, rows)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert describe(new) == describe(table) == describe(table_of.flush(new)[1])
    assert (np.asarray(new.values)[2] < 1).all()
    assert table_of.update(table, jnp.zeros((0,), jnp.int32), jnp.zeros((0, *row_shape))).iterations == 1


@pytest.mark.compiler
@pytest.mark.parametrize(
    "options",
    mostly_slow(
        zip([{}, {"amsgrad": True}, {"weight_decay": 0.1}, {"beta_2": 0.95}]), lambda options: len(options) == 0
    ),
)
def test_donated_tables_are_updated_in_place(options):
    """The compiled step sweeps no table and aliases every array, also with more rows than the history has steps."""
    table_of, rows = deferred_rows(0.1, **options), 200_000

    def step(table, indices, targets):
        return table_of.update(table, indices, table_of.read(table, indices) - targets)

    table = jax.eval_shape(table_of.init, jax.ShapeDtypeStruct((rows, 8), jnp.float32))
    batch = jax.ShapeDtypeStruct((64,), jnp.int32), jax.ShapeDtypeStruct((64, 8), jnp.float32)
    compiled = jax.jit(step, donate_argnums=0).lower(table, *batch).compile()
    text = compiled.as_text()
    assert opcodes(text, rows) <= LOOK_UPS_AND_SCATTERS
    assert aliased(text) == len(jax.tree.leaves(table))
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * rows * 8 * 4
    read = jax.jit(table_of.read).lower(table, batch[0]).compile()
    assert opcodes(read.as_text(), rows) <= LOOK_UPS_AND_SCATTERS
    assert read.memory_analysis().output_size_in_bytes == 64 * 8 * 4  # Without donation too, it returns the rows alone.


@pytest.mark.compiler
def test_moments_are_looked_up_in_vectors():
    """A kernel that looks moments up computes something as well: one that only moves them moves number by number."""
    table_of, width = deferred_rows(0.1, amsgrad=True), 64
    table = jax.eval_shape(table_of.init, jax.ShapeDtypeStruct((1000, width), jnp.float32))
    batch = jax.ShapeDtypeStruct((64,), jnp.int32), jax.ShapeDtypeStruct((64, width), jnp.float32)
    text = jax.jit(table_of.update, donate_argnums=0).lower(table, *batch).compile().as_text()
    looks_up = lambda one: one.opcode == "gather" and one.results[0].shape[-1] == width  # noqa: E731
    kernels = [kernel for kernel in computations(text) if any(map(looks_up, kernel.values()))]
    assert len(kernels) >= 3  # The moments; the values are looked up where the step is added to them.
    assert all("divide" in {one.opcode for one in kernel.values()} for kernel in kernels)


def test_a_row_costs_its_moments_and_four_bytes():
    bytes_of = lambda rows: sum(  # noqa: E731
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(deferred_rows().init, jax.ShapeDtypeStruct((rows, 8), jnp.float32)))
    )
    assert bytes_of(11_000) - bytes_of(10_000) == 1000 * (3 * 8 * 4 + 4)


def test_donating_the_table_leaves_the_callers_arrays():
    values, rate = jnp.ones((3, 2)), jnp.float32(0.1)
    table_of = deferred_rows(rate)
    jax.jit(table_of.update, donate_argnums=0)(table_of.init(values), jnp.array([1]), jnp.ones((1, 2)))
    assert values.sum() == 6
    assert rate == np.float32(0.1)


def test_rows_may_be_divided_over_devices():
    """Each device takes the indices of its own rows; those of other devices are padding to it."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    inside, table_of = (make(0.1, epsilon=1e-3) for make in (deferred_rows, jitted))
    values, (indices, gradients) = zipf(30, rows=64, touched=8)
    divided = P("rows")
    table = table_of.init(jnp.asarray(values))
    specs = jax.tree.map(lambda leaf: divided if leaf.shape[:1] == (64,) else P(), table)

    @quick_jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs, P(), P()), out_specs=(P(), specs), check_vma=False)
    def step(table, indices, gradients):
        own = indices - 8 * jax.lax.axis_index("rows")
        return jax.lax.psum(inside.read(table, own), "rows"), inside.update(table, own, gradients)

    alone = table
    for batch in zip(indices, gradients, strict=True):
        rows, table = step(table, *batch)
        np.testing.assert_allclose(rows, table_of.read(alone, batch[0]), rtol=1e-6, atol=1e-7)
        alone = table_of.update(alone, *batch)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta_1": 0.9995}, ValueError, "`beta_1` must be well below sqrt.*beta_1=0.9995, beta_2=0.999.*never end"),
        ({"beta_1": 0.9994}, ValueError, "`beta_1` must be well below sqrt.*matter for 180345 steps, at most 32768"),
        ({"beta_1": 0.9, "beta_2": 0.85}, ValueError, "`beta_1` must be well below sqrt.*more than 32 nodes.*`kadam`"),
        ({"beta_1": 0.9, "beta_2": 0.0}, ValueError, "`beta_1` must be well below sqrt"),
        ({"beta_1": 0.9999, "amsgrad": True}, ValueError, "`beta_1` is too close to 1. Received: beta_1=0.9999. They"),
        ({"beta_1": 1.0}, ValueError, "`beta_1` must be a finite number >= 0 and < 1"),
        ({"beta_1": jnp.float32(0.9)}, TypeError, "`beta_1` must be a number that never changes"),
        ({"beta_2": lambda step: 0.9}, TypeError, "`beta_2` must be a number that never changes"),
        ({"epsilon": 0.0}, ValueError, "`epsilon` must be a finite number > 0.*0 / 0"),
        ({"epsilon": "1"}, TypeError, "`epsilon` must be"),
        ({"amsgrad": 1}, TypeError, "`amsgrad` must be True or False"),
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be a finite number >= 0"),
        ({"learning_rate": "1"}, TypeError, "`learning_rate` must be"),
        (
            {"learning_rate": 0.5, "weight_decay": 2},
            ValueError,
            "`weight_decay . learning_rate` must be < 1.*Received: weight_decay=2.0, learning_rate=0.5.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        deferred_rows(**arguments)


def test_betas_at_the_edge_are_taken():
    deferred_rows(beta_1=0.0, beta_2=0.0)
    deferred_rows(beta_1=0.9, beta_2=0.9)
    deferred_rows(beta_1=0.99, beta_2=0.5, amsgrad=True)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            np.ones((3, 2), np.int32),
            TypeError,
            r"`values` must be float32, bfloat16 or float16. Received: int32\[3, 2\]",
        ),
        (np.float32(1), ValueError, r"`values` must have at least one row.*shape \(\)"),
        (np.ones((0, 2), np.float32), ValueError, r"`values` must have at least one row.*shape \(0, 2\)"),
    ],
)
def test_bad_tables_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        deferred_rows().init(values)


def test_float64_tables_are_refused():
    with jax.enable_x64(True), pytest.raises(TypeError, match=r"Received: float64\[3, 2\].*astype"):
        deferred_rows().init(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("indices", "gradients", "error", "message"),
    [
        (np.ones(2, np.float32), np.ones((2, 2)), TypeError, r"`indices` must be integers. Received: float32\[2\]"),
        (np.ones(2, bool), np.ones((2, 2)), TypeError, r"`indices` must be integers. Received: bool\[2\]"),
        (np.ones(2, np.int8), np.ones((2, 2)), ValueError, "reaches every row. Received: int8, which ends at 127"),
        (np.ones(2, np.int32), np.ones((3, 2)), ValueError, r"\(2, 2\). Received: \(3, 2\) .* of shape \(300, 2\)"),
        (
            np.ones(2, np.int32),
            np.ones((2, 3)),
            ValueError,
            r"\(2, 2\). Received: \(2, 3\) for indices of shape \(2,\)",
        ),
        (np.ones(2, np.int32), np.ones((2, 2), np.int32), TypeError, "`gradients` must be floating-point numbers"),
    ],
)
def test_bad_gradients_are_refused(indices, gradients, error, message):
    table_of = deferred_rows()
    table = table_of.init(np.ones((300, 2), np.float32))
    with pytest.raises(error, match=message):
        quick_jit(table_of.update)(table, indices, gradients)


OTHERS = {
    "betas": ({"beta_2": 0.99}, "one of beta_1=0.9, beta_2=0.99, amsgrad=False and no weight decay. Call"),
    "amsgrad": ({"amsgrad": True}, "one of beta_1=0.9, beta_2=0.999, amsgrad=True"),
    "weight decay": ({"weight_decay": 0.1}, "and some weight decay"),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("other", OTHERS)
def test_a_table_of_another_algorithm_is_refused(other, jit):
    arguments, received = OTHERS[other]
    table_of, indices = deferred_rows(), jnp.array([1])
    table = deferred_rows(**arguments).init(jnp.ones((3, 2)))
    must = "`table` must have been made with beta_1=0.9, beta_2=0.999, amsgrad=False and no weight decay. Received: "
    calls = {table_of.read: (indices,), table_of.update: (indices, jnp.ones((1, 2))), table_of.flush: ()}
    for function, rest in calls.items():
        with pytest.raises(ValueError, match=must + ".*" + received):
            (jax.jit(function) if jit else function)(table, *rest)


def test_what_is_no_table_is_refused():
    table_of = deferred_rows()
    as_dict = table_of.init(jnp.ones((3, 2)))._asdict()
    with pytest.raises(TypeError, match="`table` must be what `init` gives. Received: dict of values, mu, .*template"):
        table_of.read(as_dict, jnp.array([1]))
    with pytest.raises(TypeError, match="Received: ArrayImpl. If"):
        table_of.flush(jnp.ones((3, 2)))
    several = ok.Embeddings(table_of, {"a": "x", "b": "y"}).init({"x": np.ones((3, 2)), "y": np.ones((3, 2))})
    with pytest.raises(TypeError, match="`read` must be called with one table. .*'x', 'y'. Call `Embeddings.read`"):
        table_of.read(several, jnp.array([1]))
    with pytest.raises(TypeError, match="dict of `RowUpdates` by table. Received: .*. Call `Embeddings.update`"):
        table_of.update(several, jnp.array([1]), jnp.ones((1, 2)))


def test_the_algorithms_of_equal_arguments_share_their_tables():
    """Also where another rate, epsilon or amount of weight decay goes on from a table."""
    table = deferred_rows(0.1, weight_decay=0.1).init(jnp.ones((3, 2)))
    deferred_rows(0.2, epsilon=1e-3, weight_decay=0.2).update(table, jnp.array([1]), jnp.ones((1, 2)))


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0, 3.0])
def test_a_weight_decay_of_all_a_parameter_stays_finite(share):
    """A row that misses steps that take much of it, or all, ends where the dense sweep does, near zero."""
    steps, weight_decay = 120, share / 0.01
    values, (indices, gradients) = zipf(steps, rows=6, touched=2)
    rates = np.full(steps, 0.01, np.float32)
    indices[:6, 0], indices[6:] = np.arange(6), 0
    ours, table, _ = quick_train(
        values, (indices, gradients), rates, jnp.float32(1e-3), 0.9, 0.999, False, weight_decay
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(table))
    if share < 1:
        (p,) = dense(values, (indices, gradients), [(rates, 1e-3, False)], 0.9, 0.999, weight_decay)
        np.testing.assert_allclose(ours[1:], p[1:], atol=1e-6)
    else:
        assert np.abs(ours[1:]).max() < 0.1


def test_one_clip_goes_over_dense_parameters_and_a_table():
    """The norm goes over all gradients of a model that has both, and the steps are those of one `kadam` over all."""
    rng = np.random.default_rng(0)
    dense, values = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 3), (50, 4)))
    clip, tx, rows_of = ok.clip_by_global_norm(0.5), ok.kadam(0.01), ok.deferred_rows(0.01)

    def loss(rows, dense, target):
        return jnp.mean((rows @ dense - target) ** 2)

    @functools.partial(quick_jit, donate_argnums=(1, 2))
    def step(dense, state, table, ids, target):
        of_rows, of_dense = jax.grad(loss, (0, 1))(rows_of.read(table, ids), dense, target)
        params = {"dense": dense, "table": table.values}
        gradients = {"dense": of_dense, "table": ok.RowUpdates(ids, of_rows)}
        clipped, _ = clip.update(gradients, clip.init(params), params)
        updates, state = tx.update(clipped["dense"], state, dense)
        table = rows_of.update(table, clipped["table"])
        return optax.apply_updates(dense, updates), state, table

    whole = ok.kadam(0.01, global_clipnorm=0.5)

    @quick_jit
    def whole_step(params, state, ids, target):
        gradients = jax.grad(lambda params: loss(params["table"][ids], params["dense"], target))(params)
        updates, state = whole.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {"dense": dense, "table": values}
    state, whole_state, table = tx.init(dense), whole.init(params), rows_of.init(values)
    for _ in range(300):
        ids = jnp.asarray(rng.integers(0, 50, size=8))
        target = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
        dense, state, table = step(dense, state, table, ids, target)
        params, whole_state = whole_step(params, whole_state, ids, target)
    final, table = rows_of.flush(table)
    movement = np.abs(params["table"] - values).max()
    assert share(np.asarray(final), np.asarray(params["table"]), movement) <= 2e-5  # 8.2e-6 was measured.
    assert share(np.asarray(dense), np.asarray(params["dense"]), movement) <= 2e-5
    assert table.iterations == optax.tree.get(state, "iterations") == 300


def main():
    print("betas          schedule       eps   amsgrad  of rare rows, deferred/swept  of all rows")
    for betas in BETAS:
        for (schedule, epsilon, amsgrad), *pairs in errors(2000, 3000, SCHEDULES, betas, EPSILONS):
            print(f"{betas!s:14} {schedule:13} {epsilon:<6g} {'amsgrad' if amsgrad else '':8}", end="")
            print(*(f"{ours:.2e} {swept:.2e} {ours / swept:.3f}  " for ours, swept in pairs), flush=True)


if __name__ == "__main__":
    main()

"""A table whose rows take their steps when they are read: dense Adam, at the price of the rows that are touched.

A step is taken by the rows that have a gradient; all others fall one step behind. Whoever needs a row, to read it or to
give it a gradient, first gives it what it missed, in closed form (`_catch_up`). So that no row stays away for longer
than the sums of missed steps reach back, a few rows in turn take each step whether or not they have a gradient, on a
gradient of zero if need be: 1 in 16384, with most betas.
"""

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._hyperparameter import Hyperparameter, at_step, takes_no_argument
from optax_kadam._mesh import in_auto_axes, spec_of, spec_of_rows, zeros_like
from optax_kadam.embeddings._catch_up import Missed, Moments, Window, catch_up, no_steps, record_step, window_of
from optax_kadam.stages._adam import _Scalars, adam_moments, adam_step


class _DeferredTable(NamedTuple):
    values: jax.Array  # p, shape=(rows, ...): each row as of its last visit.
    mu: jax.Array  # m, float32, likewise.
    nu: jax.Array  # v, float32, likewise.
    nu_max: jax.Array | None  # The running maximum of v, float32; None without AMSGrad.
    last_visit: jax.Array  # shape=(rows,), dtype=int32: the steps that a row has taken.
    iterations: jax.Array  # shape=(), dtype=int32: the steps that the table has taken.
    learning_rate: jax.Array  # shape=(), dtype=float32: what the last step used; before the first, what it will use.
    missed: Missed  # What the steps since each possible last visit add up to.


class DeferredTable(_DeferredTable):
    """The state of `deferred_rows`: the table, its moments, and what its rows have yet to catch up with."""

    __slots__ = ()

    # A NamedTuple calls it final, and it is where `optax.tree.set` can be met.
    def _replace(self, **fields: Any) -> "DeferredTable":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set fields as `optax.tree.set` does, keeping the arrays' dtype and placement: a new type is a recompile."""
        if "learning_rate" in fields and isinstance(self.learning_rate, jax.Array):
            fields["learning_rate"] = jnp.full_like(self.learning_rate, fields["learning_rate"])
        return super()._replace(**fields)


class _Rows(NamedTuple):
    """What a table has for each row, for some rows or for all."""

    values: jax.Array
    moments: Moments
    last_visit: jax.Array


class _Init(Protocol):
    def __call__(self, values: jax.Array) -> DeferredTable: ...


class _Read(Protocol):
    def __call__(self, table: DeferredTable, indices: jax.Array) -> tuple[jax.Array, DeferredTable]: ...


class _Update(Protocol):
    def __call__(self, table: DeferredTable, indices: jax.Array, gradients: jax.Array) -> DeferredTable: ...


class _Flush(Protocol):
    def __call__(self, table: DeferredTable) -> tuple[jax.Array, DeferredTable]: ...


class DeferredRows(NamedTuple):
    """What can be done with a table: pure functions."""

    init: _Init  # values -> table
    read: _Read  # table, indices -> rows, table
    update: _Update  # table, indices, gradients -> table
    flush: _Flush  # table -> values, table


def deferred_rows(
    learning_rate: Hyperparameter = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    *,
    weight_decay: float | None = None,
) -> DeferredRows:
    """Keras's Adam for a large table of rows, at the price of the rows that a step touches.

    Every row takes every step, as in Keras and unlike in a "lazy" or "sparse" Adam: one without a gradient goes on on
    its momentum. But it does so only when it is next read or given a gradient. Then it makes up for all `k` steps it
    missed since step `s`, in closed form and to float32's resolution:

        m_k = beta_1**k * m,   v_k = beta_2**k * v,
        p_k = p - sum_(j=1..k) alpha_(s+j) * beta_1**j * m / (beta_2**(j/2) * sqrt(v) + epsilon),

    with the `alpha` of `kadam`, of whatever learning rate was in force at each of these steps; only is it rounded less:
    Keras's `1 - beta_2**t` is 1.3e-5 off in float32 at the first steps. With AMSGrad, the square root is that of the
    maximum of `v`, which stands still. With weight decay, the parameter is multiplied by
    `1 - weight_decay * learning_rate` before each step.

    The functions are pure. Jit them, donating the table, to have it updated in place:

    - `init(values)` gives the table. The first axis of `values` is that of the rows.
    - `read(table, indices)` gives the rows as they are by now, and the table. An index that is negative or past the end
      is padding, and reads as zeros. `table.values` itself is out of date. Nothing is written: the table is returned as
      it is, and reading twice is no different from reading once.
    - `update(table, indices, gradients)` takes one step. `gradients` has the shape of what `read` gave. Rows need not
      have been read before. The gradients of an index that occurs more than once are summed; those of padding are
      ignored. No index is an error under `jit`, where its value is not known.
    - `flush(table)` gives all values as they are by now, for an evaluation or for saving, and the table so caught up.
      It needs the memory of up to two tables more while it runs; where there is none, `read` rows part by part.

    A row costs its values, its moments in float32, and 4 bytes. To clip these gradients together with those of other
    parameters, hand them to `clip_by_global_norm` as `RowUpdates`, with `table.values` as the parameter; what it
    returns has the indices and the gradients for `update`.

    Args:
      learning_rate: a number, kept in the table, where `optax.tree.set(table, learning_rate=...)` changes it for the
        steps to come; a scalar array; a schedule (of the steps so far); or a callable without arguments, asked at every
        step.
      beta_1: decay of the first moment, in [0, 1). Without AMSGrad, well below `sqrt(beta_2)`.
      beta_2: decay of the second moment, in [0, 1).
      epsilon: epsilon-hat, > 0.
      amsgrad: whether to divide by the root of the running maximum of `v`.
      weight_decay: share of a parameter that it loses per unit of learning rate, >= 0; `weight_decay * learning_rate`
        must stay below 1. None or 0 for no decay.

    Returns:
      The four functions.

    Raises:
      ValueError: if an argument is out of its range; if the missed steps of these betas do not fade within 32768 steps,
        or cannot be summed at 32 nodes; if a shape does not fit, or a dtype of indices cannot name every row.
      TypeError: if an argument is not a number, values are not float32, bfloat16 or float16, or indices not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> table_of = deferred_rows(learning_rate=0.1)
      >>> table = table_of.init(jnp.ones((1000, 2)))
      >>> for row in (7, 7, 3, 3, 3):
      ...     table = table_of.update(table, jnp.array([row]), jnp.array([[1.0, -1.0]]))
      >>> print(f"{table.values[7, 0]:.4f}")  # As of its last gradient: two steps.
      0.8000
      >>> rows, table = table_of.read(table, jnp.array([7, -1]))
      >>> print(f"{rows[0, 0]:.4f} {rows[1, 0]:.4f}")  # By now: three more, on its momentum; and padding.
      0.6059 0.0000

    References:
      Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1; `scale_by_kadam`, for the equation of a step.
    """
    beta_1, beta_2 = _known("beta_1", beta_1), _known("beta_2", beta_2)
    epsilon_hat = _check.number(
        "epsilon", epsilon, (">", 0.0), remedy="With 0, a row that had no gradient yet would be 0 / 0."
    )
    _check.boolean("amsgrad", amsgrad)
    decay = None if weight_decay is None else _check.number("weight_decay", weight_decay, (">=", 0.0))
    decays = isinstance(decay, jax.Array) or bool(decay)
    rate_at = at_step("learning_rate", learning_rate)
    lives_in_state = not callable(learning_rate) and not isinstance(learning_rate, jax.Array)
    window = window_of(beta_1, beta_2, bool(amsgrad))

    def rate_of(iterations: jax.Array) -> jax.Array:
        return jnp.asarray(rate_at(iterations)).astype(jnp.float32)

    def caught_up(table: DeferredTable, rows: _Rows) -> tuple[jax.Array, Moments]:
        return catch_up(window, table.missed, epsilon_hat, *rows, table.iterations)

    def init(values: jax.Array) -> DeferredTable:
        values = _table_values(values)
        iterations = jnp.zeros((), jnp.int32)
        if callable(learning_rate) and takes_no_argument(learning_rate):
            rate = jnp.zeros((), jnp.float32)  # Not asked before the first step: asking may change what it answers.
        else:
            rate = jnp.array(rate_of(iterations), copy=True)
        zeros = lambda: zeros_like(values, jnp.float32)  # noqa: E731
        nu_max = zeros() if amsgrad else None
        last_visit = zeros_like(jnp.sum(values, tuple(range(1, values.ndim))), jnp.int32)
        missed = no_steps(window, decays)
        return DeferredTable(values, zeros(), zeros(), nu_max, last_visit, iterations, rate, missed)

    def read(table: DeferredTable, indices: jax.Array) -> tuple[jax.Array, DeferredTable]:
        indices = jnp.asarray(indices)
        return in_auto_axes(rows_of, spec_of_rows(table.values, indices), table, indices), table

    def rows_of(table: DeferredTable, indices: jax.Array) -> jax.Array:
        indices = _in_range(table, indices)
        rows = _gather(table, indices)
        change, _ = caught_up(table, rows)
        return (rows.values + change).astype(table.values.dtype)

    def update(table: DeferredTable, indices: jax.Array, gradients: jax.Array) -> DeferredTable:
        return in_auto_axes(step, jax.tree.map(spec_of, table), table, indices, gradients)

    def step(table: DeferredTable, indices: jax.Array, gradients: jax.Array) -> DeferredTable:
        indices = _in_range(table, indices)
        indices, gradients = _sum_duplicates(table, indices, gradients, _whose_turn(table, window))
        rate = table.learning_rate if lives_in_state else rate_of(table.iterations)
        iterations = jnp.asarray(optax.safe_increment(table.iterations))
        scalars = _scalars(beta_1, beta_2, epsilon_hat, rate, iterations)
        rows = _gather(table, indices)
        change, moments = caught_up(table, rows)
        if decay is not None:
            change = change - (rows.values + change) * decay * rate
        mu, nu = adam_moments(gradients, moments.mu, moments.nu, scalars)
        leaf = adam_step(mu, nu, moments.nu_max, scalars)
        moments = Moments(leaf.mu, leaf.nu, leaf.nu_max if amsgrad else None)
        last_visit = _after(rows.last_visit, gradients, iterations)
        table = _scatter(table, indices, _Rows(rows.values + (change - leaf.step), moments, last_visit))
        decayed = decay * rate if decay is not None and decays else None
        missed = record_step(window, table.missed, table.iterations, scalars.alpha, decayed)
        return table._replace(iterations=iterations, learning_rate=rate, missed=missed)

    def flush(table: DeferredTable) -> tuple[jax.Array, DeferredTable]:
        table = in_auto_axes(caught_up_table, jax.tree.map(spec_of, table), table)
        return table.values, table

    def caught_up_table(table: DeferredTable) -> DeferredTable:
        rows = _in_float32(_rows_of(table))
        change, moments = caught_up(table, rows)
        last_visit = jnp.maximum(rows.last_visit, table.iterations)  # Not `full_like`: it lies as it did.
        return _with_rows(table, _Rows((rows.values + change).astype(table.values.dtype), moments, last_visit))

    return DeferredRows(init, read, update, flush)


def _known(name: str, beta: Any) -> float:
    """Return a beta as a float: the window is laid out when the functions are built."""
    if callable(beta) or isinstance(beta, jax.Array):
        raise TypeError(f"`{name}` must be a number that never changes. Received: {name}={beta!r}. Pass a float.")
    return float(_check.number(name, beta, (">=", 0.0), ("<", 1.0)))


def _table_values(values: Any) -> jax.Array:
    values = jnp.array(values, copy=True)  # The table may be donated; a caller's array may not.
    if values.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise TypeError(
            f"`values` must be float32, bfloat16 or float16. Received: {values.dtype.name}{list(values.shape)}. Missed "
            "steps are summed to float32's resolution: convert with `astype(jnp.float32)`."
        )
    if values.ndim == 0 or not 0 < values.shape[0] < jnp.iinfo(jnp.int32).max:
        raise ValueError(
            f"`values` must have at least one row, and fewer than {jnp.iinfo(jnp.int32).max}. Received: shape "
            f"{values.shape}. The first axis is that of the rows."
        )
    return values


def _in_range(table: DeferredTable, indices: Any) -> jax.Array:
    """Return `indices` as int32, with all padding past the end: a negative one would count from there."""
    indices, rows = jnp.asarray(indices), table.values.shape[0]
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(
            f"`indices` must be integers. Received: {indices.dtype.name}{list(indices.shape)}. Convert them with "
            "`astype(jnp.int32)`."
        )
    if rows - 1 > jnp.iinfo(indices.dtype).max:
        raise ValueError(
            f"`indices` must have a dtype that can name each of {rows} rows. Received: {indices.dtype.name}, which "
            f"ends at {jnp.iinfo(indices.dtype).max}. Convert them with `astype(jnp.int32)`."
        )
    is_padding = (indices < 0) | (indices > rows - 1)
    return jnp.where(is_padding, jnp.int32(rows), indices.astype(jnp.int32))


def _sum_duplicates(
    table: DeferredTable, indices: jax.Array, gradients: Any, more: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the distinct indices in order, filled up with distinct padding, and the summed gradient of each.

    The indices of `more` are among them, and add a gradient of zero.
    """
    gradients, row_shape = jnp.asarray(gradients), table.values.shape[1:]
    if not jnp.issubdtype(gradients.dtype, jnp.floating):
        raise TypeError(f"`gradients` must be floating-point numbers. Received: {gradients.dtype.name}.")
    if gradients.shape != indices.shape + row_shape:
        raise ValueError(
            f"`gradients` must have the shape of the rows that `indices` name, {indices.shape + row_shape}. Received: "
            f"{gradients.shape} for indices of shape {indices.shape} into a table of shape {table.values.shape}. "
            "Differentiate with respect to what `read` returned."
        )
    rows, size = table.values.shape[0], indices.size + more.size
    every = jnp.concatenate([indices.ravel(), more])
    distinct, place = jnp.unique(every, return_inverse=True, size=size, fill_value=rows)
    gradients = gradients.astype(jnp.float32).reshape((indices.size, *row_shape))
    sums = jax.ops.segment_sum(gradients, place[: indices.size], size)
    return jnp.where(distinct < rows, distinct, rows + jnp.arange(size, dtype=jnp.int32)), sums


def _scalars(
    beta_1: float, beta_2: float, epsilon: float | jax.Array, rate: jax.Array, iterations: jax.Array
) -> _Scalars:
    """Return what the equation of `_adam` needs, in float32."""
    # Not `1 - power(beta, t)`, as in `scale_by_kadam`: in float32 that is 1.3e-5 off at the first steps for Keras's
    # beta_2, which is most of what a float32 sweep is off by.
    t = iterations.astype(jnp.float32)
    bias_1, bias_2 = (-jnp.expm1(t * (math.log(beta) if beta else -math.inf)) for beta in (beta_1, beta_2))
    alpha = rate * jnp.sqrt(bias_2) / bias_1
    return _Scalars(alpha, *(jnp.asarray(scalar, jnp.float32) for scalar in (1 - beta_1, 1 - beta_2, epsilon)))


def _rows_of(table: DeferredTable) -> _Rows:
    """Return what the table has for each row."""
    return _Rows(table.values, Moments(table.mu, table.nu, table.nu_max), table.last_visit)


def _with_rows(table: DeferredTable, rows: _Rows) -> DeferredTable:
    return table._replace(values=rows.values, **rows.moments._asdict(), last_visit=rows.last_visit)


def _gather(table: DeferredTable, indices: jax.Array) -> _Rows:
    """Return the rows, zeros for padding."""
    return _in_float32(jax.tree.map(lambda array: array.at[indices].get(mode="fill", fill_value=0), _rows_of(table)))


def _in_float32(rows: _Rows) -> _Rows:
    return rows._replace(values=rows.values.astype(jnp.float32))


def _scatter(table: DeferredTable, indices: jax.Array, rows: _Rows) -> DeferredTable:
    """Put the rows at distinct indices in order."""

    def put(array: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(array.dtype)
        return array.at[indices].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    return _with_rows(table, jax.tree.map(put, _rows_of(table), rows))


def _after(last_visit: jax.Array, gradients: jax.Array, iterations: jax.Array) -> jax.Array:
    """Return `iterations` for each row, in a way that makes it depend on the last visit and on the gradients.

    As everything else does that is put into the table: otherwise the compiler does not see that the rows are read
    before they are written, here and in `read`, and copies this array at every step.
    """
    is_nan = jnp.isnan(gradients).any(axis=tuple(range(1, gradients.ndim)))
    return jnp.minimum(jnp.maximum(last_visit, iterations) + is_nan.astype(jnp.int32), iterations)


def _whose_turn(table: DeferredTable, window: Window) -> jax.Array:
    """Return the rows that take this step whether or not they have a gradient: all have been after half a history."""
    rows = table.values.shape[0]
    size = -(-2 * rows // window.history)
    turns = -(-rows // size)
    return table.iterations % turns * size + jnp.arange(size, dtype=jnp.int32)

"""A table whose rows take their steps when they are read: dense Adam, at the price of the rows that are touched.

A step is taken by the rows that have a gradient; all others fall one step behind. Whoever needs a row, to read it or to
give it a gradient, first gives it what it missed, in closed form (`_catch_up`). So that no row stays away for longer
than the sums of missed steps reach back, a few rows in turn take each step whether or not they have a gradient, on a
gradient of zero if need be: 1 in 16384, with most betas, or one row alone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_kadam import _call, _check
from optax_kadam._gradients import RowUpdates
from optax_kadam._hyperparameter import Hyperparameter
from optax_kadam._mesh import in_auto_axes, spec_of, spec_of_rows
from optax_kadam._xla import moved_in_vectors, zeros_like
from optax_kadam.embeddings import _table
from optax_kadam.embeddings._catch_up import Moments, catch_up, no_steps, record_step, window_of
from optax_kadam.embeddings._from_keras import Training, table_from_keras
from optax_kadam.embeddings._table import ComputedDeferredTable, DeferredTable, MadeBy, TableRows
from optax_kadam.stages._adam import Scalars, adam_maximum, adam_moments, adam_step
from optax_kadam.stages._learning_rate import learning_rate_of, next_count


class DeferredRows(NamedTuple):
    """What can be done with a table: pure functions."""

    init: Callable[[jax.Array], DeferredTable]  # values -> table
    read: Callable[[DeferredTable, jax.Array], jax.Array]  # table, indices -> rows
    update: Callable[..., DeferredTable]  # table, indices, gradients -> table; or table, RowUpdates -> table
    flush: Callable[[DeferredTable], tuple[jax.Array, DeferredTable]]  # table -> values, table

    def from_keras(
        self, training: Training, path: str, *, sharding: jax.sharding.Sharding | None = None
    ) -> DeferredTable:
        """Return a table that goes on from where Keras left one of its variables: rows, moments and count.

        The rest of the model is restored by `training.restore`. The way back is `flush`, and `save_keras` with the
        table among its `tables`.

        Args:
          training: what `load_keras` gives.
          path: Keras's path of the variable: a key of `training.mu`.
          sharding: how the rows and moments lie on a mesh. None for the default device.

        Raises:
          ValueError: if the file holds no moments, or no variable of this path; if the configuration of its optimizer
            has other betas, another epsilon or weight decay, or differs in AMSGrad; if it averages or accumulates.

        Example:
          >>> from optax_kadam import load_keras
          >>> table_of = deferred_rows(0.01)
          >>> table = table_of.from_keras(load_keras("tests/golden/files/k3j/adam.keras"), "m/emb/embeddings")
          >>> print(table.values.shape, table.iterations, table.learning_rate)
          (11, 4) 20 0.01
        """
        return table_from_keras(self.init, training, path, sharding)


@_call.named
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
    - `read(table, indices)` gives the rows as they are by now. An index that is negative or past the end is padding,
      and reads as zeros. Nothing is written, and reading twice is no different from reading once. `table.values` itself
      is out of date.
    - `update(table, indices, gradients)` takes one step, and so does `update(table, RowUpdates(indices, gradients))`.
      `gradients` has the shape of what `read` gave. Rows need not have been read before. The gradients of an index that
      occurs more than once are summed; those of padding are ignored. No index is an error under `jit`, where its value
      is not known.
    - `flush(table)` gives all values as they are by now, for an evaluation or for saving, and the table so caught up.
      It needs the memory of up to two tables more while it runs; where there is none, `read` rows part by part.

    The count of the steps never overflows: after 2**31 - 1 it goes on through its last 32768 values (or more, where the
    betas fade slowly, or fewer, where the table is small), and a schedule sees these.

    On a TPU, let a row have a multiple of 128 numbers: tables of narrower ones are copied at every step.

    A row costs its values, its moments in float32, and 4 bytes. A table has besides a ring of its last steps, which the
    checkpoint holds too. It has an entry for each of 32768 steps if the table has more than 8192 rows, and about two to
    four for each row of a smaller one, but no less than four times the steps that still matter to a row:

        betas          steps that matter   bytes an entry   smallest ring   largest
        (0.9, 0.999)                 172               12          12 KiB   384 KiB
        (0.9, 0.99)                  180               20          20 KiB   640 KiB
        (0.9, 0.95)                  227               48          48 KiB   1.5 MiB
        (0.99, 0.999)               1888               24         192 KiB   768 KiB
        amsgrad, 0.9                 172                4           4 KiB   128 KiB

    With weight decay an entry has 8 bytes more. `Embeddings` keep one ring for all tables. A checkpoint is restored
    with what `init` gives as the template. It stores the ring under a name that tells the betas: into a table of others
    it does not go.

    To clip these gradients together with those of other parameters, hand them to `clip_by_global_norm` as `RowUpdates`,
    with `table.values` as the parameter, and what it returns to `update`. `Embeddings` do it for several tables.

    Args:
      learning_rate: a number, kept in the table, where `optax.tree.set(table, learning_rate=...)` changes it for the
        steps to come; a scalar array; a schedule (of the steps so far); or a callable without arguments, asked at every
        step.
      beta_1: decay of the first moment, in [0, 1). Without AMSGrad, well below `sqrt(beta_2)`.
      beta_2: decay of the second moment, in [0, 1).
      epsilon: epsilon-hat, > 0.
      amsgrad: whether to divide by the root of the running maximum of `v`.
      weight_decay: share of a parameter that it loses per unit of learning rate, >= 0; `weight_decay * learning_rate`
        must stay below 1. Where a schedule, an array or `optax.tree.set` takes it to 1 or beyond, a row that misses
        that step loses all of its value; nothing becomes NaN. None or 0 for no decay.

    Returns:
      The four functions.

    Raises:
      ValueError: if an argument is out of its range; if the missed steps of these betas do not fade within 32768 steps,
        or cannot be summed at 32 nodes; if a shape does not fit, or a dtype of indices cannot name every row; if a
        table was made with other betas, or differs in whether it has AMSGrad or weight decay.
      TypeError: if an argument is not a number, values are not float32, bfloat16 or float16, or indices not integers;
        if a table is none, such as the dict that a checkpoint gives without a template.

    Example:
      >>> import jax.numpy as jnp
      >>> table_of = deferred_rows(learning_rate=0.1)
      >>> table = table_of.init(jnp.ones((1000, 2)))
      >>> for row in (7, 7, 3, 3, 3):
      ...     table = table_of.update(table, jnp.array([row]), jnp.array([[1.0, -1.0]]))
      >>> print(f"{table.values[7, 0]:.4f}")  # As of its last gradient: two steps.
      0.8000
      >>> rows = table_of.read(table, jnp.array([7, -1]))
      >>> print(f"{rows[0, 0]:.4f} {rows[1, 0]:.4f}")  # By now: three more, on its momentum; and padding.
      0.6059 0.0000

    References:
      Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1; `scale_by_kadam`, for the equation of a step.
      The Adam of NVIDIA's HugeCTR with `update_type=LazyGlobal`, https://github.com/NVIDIA-Merlin/HugeCTR, also makes
      up for missed steps, but nearly: all of them have today's learning rate, and the `v` and the bias correction of
      the last visit; it keeps 8 bytes for each number of a row, and a row that is read is not caught up.
    """
    beta_1, beta_2 = _known("beta_1", beta_1), _known("beta_2", beta_2)
    epsilon_hat = _check.number(
        "epsilon", epsilon, (">", 0.0), remedy="With 0, a row that had no gradient yet would be 0 / 0."
    )
    _check.boolean("amsgrad", amsgrad)
    decay = None if weight_decay is None else _check.number("weight_decay", weight_decay, (">=", 0.0))
    decays = isinstance(decay, jax.Array) or bool(decay)
    owner = learning_rate_of(learning_rate)
    if decays and not callable(learning_rate) and not isinstance(learning_rate, jax.Array):
        _check_share(decay, learning_rate)
    window = window_of(beta_1, beta_2, bool(amsgrad))
    of_floats = (x if isinstance(x, float) else None for x in (epsilon_hat, decay))
    made_by = MadeBy(beta_1, beta_2, bool(amsgrad), decays, *of_floats)

    def caught_up(table: DeferredTable, rows: TableRows) -> tuple[jax.Array, Moments]:
        return catch_up(window, table.missed[made_by], epsilon_hat, *rows, table.iterations)

    def init(values: jax.Array) -> DeferredTable:
        values = _table.table_values(values)
        mu, nu, nu_max = (zeros_like(values, jnp.float32) for _ in range(3))
        last_visit = zeros_like(jnp.sum(values, tuple(range(1, values.ndim))), jnp.int32)
        make = DeferredTable if owner.is_held else ComputedDeferredTable
        missed = {made_by: no_steps(window, decays, values.shape[0])}
        iterations = jnp.zeros((), jnp.int32)
        return make(values, mu, nu, nu_max if amsgrad else None, last_visit, iterations, owner.first(), missed)

    def read(table: DeferredTable, indices: jax.Array) -> jax.Array:
        _table.check_table(table, made_by)
        if isinstance(table.values, dict):
            raise TypeError(
                "`read` must be called with one table. Received: the state of several, "
                f"{', '.join(map(repr, table.values))}. Call `Embeddings.read`."
            )
        indices = jnp.asarray(indices)
        return in_auto_axes(rows_of, spec_of_rows(table.values, indices), table, indices)

    def rows_of(table: DeferredTable, indices: jax.Array) -> jax.Array:
        indices = _table.in_range(table, indices)
        rows = _table.rows_at(table, indices)
        change, _ = caught_up(table, rows)
        return (rows.values + change).astype(table.values.dtype)

    def update(
        table: DeferredTable, indices: jax.Array | RowUpdates, gradients: jax.Array | None = None
    ) -> DeferredTable:
        _table.check_table(table, made_by)
        by_table = _table.gradients_by_table(table, indices, gradients)
        return in_auto_axes(step, jax.tree.map(spec_of, table), table, by_table)

    def step(table: DeferredTable, by_table: dict[str, tuple[jax.Array, jax.Array]]) -> DeferredTable:
        # Once for all tables: a callable that is asked again may answer otherwise.
        rate = owner.at(table.learning_rate, table.iterations)
        iterations = next_count(table.iterations, table.history)
        scalars = _scalars(beta_1, beta_2, epsilon_hat, rate, iterations)
        moved = {
            name: with_step(part, *by_table[name], rate, iterations, scalars)
            for name, part in _table.parts_of(table).items()
        }
        decayed = decay * rate if decay is not None and decays else None
        missed = record_step(window, table.missed[made_by], table.iterations, scalars.alpha, decayed)
        table = _table.joined(moved)
        return table._make((*table[:5], iterations, rate, {made_by: missed}))

    def with_step(
        table: DeferredTable,
        indices: jax.Array,
        gradients: jax.Array,
        rate: jax.Array,
        iterations: jax.Array,
        scalars: Scalars,
    ) -> DeferredTable:
        indices = _table.in_range(table, indices)
        indices, gradients = _table.distinct_gradients(table, indices, gradients, _whose_turn(table))
        rows = _table.rows_at(table, indices)
        rows = rows._replace(moments=jax.tree.map(moved_in_vectors, rows.moments))  # Several kernels use them.
        change, moments = caught_up(table, rows)
        if decay is not None:
            change = change - (rows.values + change) * decay * rate
        mu, nu = adam_moments(gradients, moments.mu, moments.nu, scalars)
        nu_max = None if moments.nu_max is None else adam_maximum(moments.nu_max, nu)
        change = change - adam_step(mu, nu if nu_max is None else nu_max, scalars)
        last_visit = _table.visited_at(iterations, rows, gradients)
        rows = TableRows(rows.values + change, Moments(mu, nu, nu_max), last_visit)
        return _table.with_rows_at(table, indices, rows)

    def flush(table: DeferredTable) -> tuple[jax.Array, DeferredTable]:
        _table.check_table(table, made_by)
        table = in_auto_axes(caught_up_tables, jax.tree.map(spec_of, table), table)
        return table.values, table

    def caught_up_tables(table: DeferredTable) -> DeferredTable:
        return _table.joined({name: caught_up_table(part) for name, part in _table.parts_of(table).items()})

    def caught_up_table(table: DeferredTable) -> DeferredTable:
        rows = _table.in_float32(_table.all_rows(table))
        change, moments = caught_up(table, rows)
        # Not `full_like`: computed from the last visits, these lie as they did.
        last_visit = jnp.where(rows.last_visit == table.iterations, rows.last_visit, table.iterations)
        return _table.with_all_rows(
            table, TableRows((rows.values + change).astype(table.values.dtype), moments, last_visit)
        )

    return DeferredRows(init, read, update, flush)


def _check_share(decay: float | jax.Array | None, learning_rate: object) -> None:
    """Raise if a step would take all of a parameter, or more, where both numbers are known."""
    if isinstance(decay, float) and decay * float(learning_rate) >= 1:  # pyright: ignore[reportArgumentType]: checked.
        raise ValueError(
            "`weight_decay * learning_rate` must be < 1: it is the share of a parameter that a step takes. "
            f"Received: weight_decay={decay}, learning_rate={learning_rate}."
        )


def _known(name: str, beta: object) -> float:
    """Return a beta as a float: the window is laid out when the functions are built."""
    if callable(beta) or isinstance(beta, jax.Array):
        raise TypeError(f"`{name}` must be a number that never changes. Received: {name}={beta!r}. Pass a float.")
    return float(_check.number(name, beta, (">=", 0.0), ("<", 1.0)))


def _scalars(
    beta_1: float, beta_2: float, epsilon: float | jax.Array, rate: jax.Array, iterations: jax.Array
) -> Scalars:
    """Return what the equation of `_adam` needs, in float32."""
    # Not `1 - power(beta, t)`, as in `scale_by_kadam`: in float32 that is 1.3e-5 off at the first steps for Keras's
    # beta_2, which is most of what a float32 sweep is off by.
    t = iterations.astype(jnp.float32)
    bias_1, bias_2 = (-jnp.expm1(t * math.log(beta)) if beta else jnp.ones_like(t) for beta in (beta_1, beta_2))
    alpha = rate * jnp.sqrt(bias_2) / bias_1
    return Scalars(alpha, *(jnp.asarray(scalar, jnp.float32) for scalar in (1 - beta_1, 1 - beta_2, epsilon)))


def _whose_turn(table: DeferredTable) -> jax.Array:
    """Return the rows that take this step whether or not they have a gradient: all have been after half a history."""
    rows = table.values.shape[0]
    size = -(-2 * rows // table.history)
    turns = -(-rows // size)
    return table.iterations % turns * size + jnp.arange(size, dtype=jnp.int32)

"""A table of rows, each as of its last visit, with its moments and what its rows have yet to catch up with."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_kadam._gradients import Rows, RowUpdates, Tree, check_indices, distinct_rows, within
from optax_kadam._xla import zero_after
from optax_kadam.embeddings._catch_up import Missed, Moments
from optax_kadam.stages._learning_rate import RateComputed, RateHeld


@dataclasses.dataclass(frozen=True)
class MadeBy:
    """What the mathematics of a table depends on.

    It is the key of a dict in the table: part of its structure, which is known under `jit`, and of its paths, by which
    a checkpoint stores it: what was saved by other betas has no such path.
    """

    beta_1: float
    beta_2: float
    amsgrad: bool
    decays: bool  # Whether there is weight decay.
    # A table may go on with others of these; None for an array, whose value may not be known.
    epsilon: float | None = dataclasses.field(compare=False)
    weight_decay: float | None = dataclasses.field(compare=False)

    def __str__(self) -> str:
        decay = "some" if self.decays else "no"
        return f"beta_1={self.beta_1}, beta_2={self.beta_2}, amsgrad={self.amsgrad} and {decay} weight decay"


class _Fields(NamedTuple):
    values: jax.Array  # p, shape=(rows, ...): each row as of its last visit.
    mu: jax.Array  # m, float32, likewise.
    nu: jax.Array  # v, float32, likewise.
    nu_max: jax.Array | None  # The running maximum of v, float32; None without AMSGrad.
    last_visit: jax.Array  # shape=(rows,), dtype=int32: the steps that a row has taken.
    iterations: jax.Array  # shape=(), dtype=int32: the steps that the table has taken.
    learning_rate: jax.Array  # shape=(), dtype=float32: what the last step used; before the first, what it will use.
    missed: dict[MadeBy, Missed]  # What the steps since each possible last visit add up to; one entry.


class DeferredTable(RateHeld, _Fields):
    """The state of `deferred_rows`: the table, its moments, and what its rows have yet to catch up with.

    It is a NamedTuple. For `Embeddings`, the fields that have a row for each of the table's are dicts by its name.

    Args:
      values: each row as of its last visit, shape=(rows, ...). `read` and `flush` give rows as they are by now.
      mu: the first moments, float32, in the shape of `values`.
      nu: the second moments, likewise.
      nu_max: the running maxima of the second moments; None without AMSGrad.
      last_visit: how many steps each row has taken, shape=(rows,), int32.
      iterations: how many steps the table has taken, shape=(), int32.
      learning_rate: what the last step used, shape=(), float32. `optax.tree.set` changes it.
      missed: what the steps since each possible last visit add up to, in a dict of one entry. Its key says by which
        betas and switches the table was made: a part of the structure, and of what a checkpoint calls the arrays.
    """

    __slots__ = ()

    @property
    def history(self) -> int:
        """The entries of the ring: more than the steps that any row may stay away."""
        (missed,) = self.missed.values()
        return missed.history


class ComputedDeferredTable(RateComputed, DeferredTable):
    """The same, where the learning rate of each step is computed."""

    __slots__ = ()


class TableRows(NamedTuple):
    """What a table has for each row, for some rows or for all."""

    values: jax.Array
    moments: Moments
    last_visit: jax.Array


def table_values(values: jax.typing.ArrayLike) -> jax.Array:
    """Return a copy of the values of a new table, or raise where they are none."""
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


def in_range(table: DeferredTable, indices: jax.typing.ArrayLike) -> jax.Array:
    """Return `indices` with all padding one past the end: a negative one would count from there."""
    indices = jnp.asarray(indices)
    check_indices(indices, table.values.shape[0])
    return within(indices, table.values.shape[0])


def check_table(table: object, made_by: MadeBy) -> None:
    """Raise if something is no table, or one that was made for another algorithm."""
    if not isinstance(table, DeferredTable):
        keys = f" of {', '.join(map(str, table))}" if isinstance(table, Mapping) else ""
        raise TypeError(
            f"`table` must be what `init` gives. Received: {type(table).__name__}{keys}. If a checkpoint gave it, "
            "restore with what `init` gives as the template."
        )
    if made_by not in table.missed:
        raise ValueError(
            f"`table` must have been made with {made_by}. Received: one of {made_by_of(table)}. "
            "Call `deferred_rows` with the arguments that the table was made with."
        )


def made_by_of(table: DeferredTable) -> MadeBy:
    """Return what a table was made by."""
    (made_by,) = table.missed
    return made_by


def parts_of(table: DeferredTable) -> dict[str, DeferredTable]:
    """Return the tables in a state of several, by name, each with what they share; one alone under an empty name."""
    if not isinstance(table.values, dict):
        return {"": table}

    def part(name: str) -> DeferredTable:
        return table._make((*(field and field[name] for field in table[:5]), *table[5:]))

    return {name: part(name) for name in table.values}


def joined(parts: dict[str, DeferredTable]) -> DeferredTable:
    """Return the state whose parts these are. What tables share is the same in all, but for the ring of new ones."""
    one = max(parts.values(), key=lambda part: part.history)
    if "" in parts:
        return one
    by_row: list[Tree] = [
        dict(zip(parts, field, strict=True)) for field in zip(*(p[:5] for p in parts.values()), strict=True)
    ]
    values, mu, nu, nu_max, last_visit = by_row
    return one._make((values, mu, nu, nu_max if one.nu_max is not None else None, last_visit, *one[5:]))


def gradients_by_table(
    table: DeferredTable, indices: Tree, gradients: jax.typing.ArrayLike | None
) -> dict[str, tuple[jax.Array, jax.typing.ArrayLike]]:
    """Return the indices and gradients of each table, from what `update` was called with, in either of its forms."""
    if not isinstance(table.values, dict):
        return {"": _indices_and_gradients(indices, gradients)}
    if not isinstance(indices, Mapping):
        raise TypeError(
            "`update` of several tables must be called with a dict of `RowUpdates` by table. "
            f"Received: {type(indices).__name__}. Call `Embeddings.update`."
        )
    nothing = {name: (jnp.zeros((0,), jnp.int32), jnp.zeros((0, *x.shape[1:]))) for name, x in table.values.items()}
    return {name: nothing[name] if rows is None else (rows.indices, rows.values) for name, rows in indices.items()}


def _indices_and_gradients(
    indices: jax.Array | RowUpdates, gradients: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.typing.ArrayLike]:
    if isinstance(indices, RowUpdates) and gradients is None:
        return indices.indices, indices.values
    if isinstance(indices, RowUpdates) or gradients is None:
        received = f"{type(indices).__name__} and {'no gradients' if gradients is None else 'gradients'}"
        raise TypeError(
            "`update` must be called with indices and their gradients, or with `RowUpdates` alone. "
            f"Received: {received}. Call `update(table, indices, gradients)`, or `update(table, RowUpdates(...))`."
        )
    return indices, gradients


def distinct_gradients(
    table: DeferredTable, indices: jax.Array, gradients: jax.typing.ArrayLike, also: jax.Array
) -> Rows:
    """Return the distinct indices in order, filled up with distinct padding, and the summed gradient of each.

    The indices of `also` are among them, with a gradient of zero.
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
    count = table.values.shape[0]
    gradients = gradients.astype(jnp.float32).reshape((indices.size, *row_shape))
    found, sums = distinct_rows(Rows(indices.reshape(-1), gradients), count, also)
    return Rows(jnp.where(found < count, found, count + jnp.arange(found.size, dtype=found.dtype)), sums)


def all_rows(table: DeferredTable) -> TableRows:
    """Return what the table has for each row."""
    return TableRows(table.values, Moments(table.mu, table.nu, table.nu_max), table.last_visit)


def with_all_rows(table: DeferredTable, rows: TableRows) -> DeferredTable:
    """Return the table with other rows, all of them."""
    return table._replace(values=rows.values, **rows.moments._asdict(), last_visit=rows.last_visit)


def rows_at(table: DeferredTable, indices: jax.Array) -> TableRows:
    """Return the rows at some indices, in float32, and zeros for padding."""
    return in_float32(jax.tree.map(lambda array: array.at[indices].get(mode="fill", fill_value=0), all_rows(table)))


def in_float32(rows: TableRows) -> TableRows:
    """Return the rows with values in float32, as the moments are."""
    return rows._replace(values=rows.values.astype(jnp.float32))


def with_rows_at(table: DeferredTable, indices: jax.Array, rows: TableRows) -> DeferredTable:
    """Return the table with other rows at distinct indices, which are in order."""

    def put(array: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(array.dtype)
        return array.at[indices].set(new, mode="drop", unique_indices=True, indices_are_sorted=True)

    return with_all_rows(table, jax.tree.map(put, all_rows(table), rows))


def visited_at(iterations: jax.Array, rows: TableRows, gradients: jax.Array) -> jax.Array:
    """Return `iterations` as the last visit of each row, computed so that the table is written in place."""
    return jnp.full_like(rows.last_visit, 0) + iterations + zero_after(rows.last_visit, gradients)

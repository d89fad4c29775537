"""How a model uses the rows of a table: their gradient, and arithmetic on trees that hold such gradients."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, overload

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam import _check
from optax_kadam._gradients import (
    RowUpdates,
    Tree,
    arrays_of,
    check_indices,
    distinct_rows,
    is_gradient,
    is_rows,
    map_values,
    normal_rows,
    within,
)
from optax_kadam._mesh import in_auto_axes, spec_of_rows
from optax_kadam._precision import arithmetic_dtype
from optax_kadam.embeddings._table import DeferredTable

_Arguments = ParamSpec("_Arguments")


@overload
def value_and_row_grad(
    function: Callable[Concatenate[jax.Array, _Arguments], jax.Array],
) -> Callable[Concatenate[jax.Array, jax.Array, _Arguments], tuple[jax.Array, RowUpdates]]: ...
@overload
def value_and_row_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]: ...
def value_and_row_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """`jax.value_and_grad` with respect to a table of which the function uses a few rows, and only their gradient.

    Args:
      function: from rows, and any further arguments, to a scalar, or to a scalar and something else.
      argnums: with respect to which arguments of `function`, as in `jax.value_and_grad`: 0 for the rows, `(0, 1)` for
        those and the argument that follows, such as the dense parameters. 0 must be among them.
      has_aux: whether `function` returns a pair, whose second is handed on.

    Returns:
      A function of `(table, indices, *arguments)`, which looks up the rows and returns the value of
      `function(rows, *arguments)` (with `has_aux`, the pair) and its gradient: `RowUpdates` for the table. With several
      `argnums`, a tuple of gradients. A table is an array, or what holds one, such as an `nnx.Param`; several tables
      are a dict, or another tree; then `indices`, the rows and the gradient are trees of that structure. The rows of
      padding are zero.

    Raises:
      ValueError: if `argnums` lacks 0, if the structures of tables and indices differ, or a table has no rows.
      TypeError: if a table is no array of floating-point rows, or indices are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> table, ids = jnp.arange(6.0).reshape(3, 2), jnp.array([2, 0, 2])
      >>> loss, gradient = value_and_row_grad(lambda rows, target: jnp.sum((rows - target) ** 2))(table, ids, 1.0)
      >>> print(loss, gradient.indices, gradient.values[0])
      51.0 [2 0 2] [6. 8.]
      >>> def scaled(rows, scale):
      ...     return jnp.sum(scale * rows["items"]), rows["items"].shape
      >>> gradients_of = value_and_row_grad(scaled, argnums=(0, 1), has_aux=True)
      >>> (loss, shape), (of_tables, of_scale) = gradients_of({"items": table}, {"items": ids}, 2.0)
      >>> print(loss, shape, of_tables["items"].values[0], of_scale)
      38.0 (3, 2) [2. 2.] 19.0
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if 0 not in numbers:
        raise ValueError(
            f"`argnums` must have 0, the rows. Received: argnums={argnums!r}. Without them, use `jax.value_and_grad`."
        )

    def look_up(table: jax.Array, indices: jax.Array) -> jax.Array:
        inside = within(indices, len(table))
        return in_auto_axes(_rows_of, spec_of_rows(table, indices), table, inside)

    def value_and_gradient(table: Tree, indices: Tree, *arguments: Any, **keywords: Any) -> tuple[Tree, Tree]:
        tables, treedef = jax.tree.flatten(table, is_leaf=_is_one_table)
        tables = [_as_table(leaf) for leaf in tables]
        try:
            ids = [jnp.asarray(leaf) for leaf in treedef.flatten_up_to(indices)]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`indices` must have the structure of the tables, {treedef}. Received: "
                f"{jax.tree.structure(indices)}. Name the ids of each table as the table is named."
            ) from error
        for leaf in ids:
            check_indices(leaf)
        rows = treedef.unflatten(map(look_up, tables, ids))
        value, gradients = jax.value_and_grad(function, numbers, has_aux=has_aux)(rows, *arguments, **keywords)
        of_rows = treedef.unflatten(map(RowUpdates, ids, treedef.flatten_up_to(gradients[numbers.index(0)])))
        if isinstance(argnums, int):
            return value, of_rows
        return value, tuple(of_rows if n == 0 else g for n, g in zip(numbers, gradients, strict=True))

    return value_and_gradient


def _rows_of(table: jax.Array, indices: jax.Array) -> jax.Array:
    return table.at[indices].get(mode="fill", fill_value=0)


def _is_one_table(node: object) -> bool:
    """Return whether a node is to be a table, or is taken for one: a tree ends there."""
    return node is None or isinstance(node, DeferredTable) or hasattr(node, "__jax_array__")


def _as_table(leaf: Tree) -> jax.Array:
    """Return the array of a table, or raise if it is none."""
    if not isinstance(leaf, jax.Array) and hasattr(leaf, "__jax_array__"):
        leaf = leaf.__jax_array__()
    if isinstance(leaf, (jax.Array, np.ndarray)) and leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating):
        if not len(leaf):
            raise ValueError(
                f"`table` must have at least one row. Received: shape {leaf.shape}. The first axis is that of the rows."
            )
        return jnp.asarray(leaf)
    is_array = isinstance(leaf, (jax.Array, np.ndarray))
    received = f"{leaf.dtype.name}{list(leaf.shape)}" if is_array else type(leaf).__name__
    remedy = "Hand over the array of its rows, or a dict of such."
    if isinstance(leaf, DeferredTable):
        remedy = "Its values are out of date: differentiate with respect to what `read` gives."
    raise TypeError(
        f"`table` must be an array of floating-point rows, or a tree of them. Received: {received}. {remedy}"
    )


def add_gradients(*trees: optax.Updates) -> optax.Updates:
    """Add up trees of gradients, such as those of micro-batches: arrays are added, rows are concatenated.

    Args:
      *trees: at least one, all of one structure. None counts as zero; where one tree has rows of a table and another
        its dense gradient, the sum is dense.

    Returns:
      The sum. A row that several trees name stands in it several times, which means the sum of its values.

    Raises:
      ValueError: if no tree is given, or their structures differ.

    Example:
      >>> import jax.numpy as jnp
      >>> one, two = (RowUpdates(jnp.array([row]), jnp.ones((1, 2))) for row in (3, 5))
      >>> total = add_gradients({"table": one, "bias": jnp.ones(2)}, {"table": two, "bias": jnp.ones(2)})
      >>> print(total["table"].indices, total["bias"])
      [3 5] [2. 2.]
    """
    if not trees:
        raise ValueError("`add_gradients` must be given a tree of gradients. Received: none. Pass one or more.")
    first, *others = (jax.tree.flatten(arrays_of(tree), is_leaf=is_gradient) for tree in trees)
    for _, treedef in others:
        if treedef != first[1]:
            raise ValueError(
                f"`trees` must have one structure. Received: {first[1]} and {treedef}. Put None where a gradient lacks."
            )
    sums = (functools.reduce(_added, leaves) for leaves in zip(first[0], *(other[0] for other in others), strict=True))
    return jax.tree.unflatten(first[1], list(sums))


def scale_gradients(tree: optax.Updates, by: jax.typing.ArrayLike) -> optax.Updates:
    """Multiply all gradients of a tree by one number, such as `1 / n` after `add_gradients` of n micro-batches.

    Args:
      tree: gradients: arrays, None, `RowUpdates` or `BCOO`.
      by: a number, or a scalar array.

    Returns:
      The gradients, each in its own dtype; indices of rows are left as they are.

    Raises:
      ValueError: if `by` is not finite, or no scalar.
      TypeError: if `by` is no number.

    Example:
      >>> import jax.numpy as jnp
      >>> half = scale_gradients([jnp.array([2.0, 4.0]), RowUpdates(jnp.array([7]), jnp.array([6.0]))], 0.5)
      >>> print(half[0], half[1].indices, half[1].values)
      [1. 2.] [7] [3.]
    """
    factor = _check.number("by", by)
    return map_values(lambda g: g * jnp.asarray(factor, g.dtype), arrays_of(tree))


def global_norm(tree: optax.Updates) -> jax.Array:
    """Return the Euclidean norm of all gradients together, as if those of rows were dense.

    `optax.tree.norm` counts the indices of rows in, and the values of a row that stands twice as those of two.

    Args:
      tree: gradients: arrays, None, `RowUpdates` or `BCOO`. A negative index is padding; the norm does not know how
        many rows there are, so that one past the end counts.

    Returns:
      shape=(), in float32, or in float64 if a gradient is: 0 for no gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> print(global_norm([jnp.array([2.0]), RowUpdates(jnp.array([5, 5, -1]), jnp.array([1.0, 2.0, 9.0]))]))
      3.6055512
    """
    arrays = jax.tree.leaves(jax.tree.map(_without_duplicates, arrays_of(tree), is_leaf=is_rows))
    return jnp.asarray(optax.tree.norm([array.astype(arithmetic_dtype(*arrays)) for array in arrays]))


def _added(a: Tree, b: Tree) -> Tree:
    """Return the sum of two gradients of one leaf."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, RowUpdates) and isinstance(b, RowUpdates):
        flat = [(g.indices.reshape(-1), g.values.reshape(-1, *g.values.shape[g.indices.ndim :])) for g in (a, b)]
        return RowUpdates(*(jnp.concatenate(parts) for parts in zip(*flat, strict=True)))
    rows, dense = (a, b) if isinstance(a, RowUpdates) else (b, a)
    if not isinstance(rows, RowUpdates):
        return a + b
    normal = normal_rows(rows, dense.shape)
    return dense.at[normal.indices].add(normal.values.astype(dense.dtype), mode="drop")


def _without_duplicates(gradient: Tree) -> Tree:
    """Return the values of distinct rows, whose norm is that of the dense gradient; an array as it is."""
    if not isinstance(gradient, RowUpdates):
        return gradient
    largest = jnp.iinfo(jnp.int32).max
    normal = normal_rows(gradient, (largest, *gradient.values.shape[gradient.indices.ndim :]))
    return distinct_rows(normal, largest).values

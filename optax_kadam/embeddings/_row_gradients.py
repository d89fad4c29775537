"""How a model uses the rows of a table: their gradient, and arithmetic on trees that hold such gradients."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._gradients import (
    RowUpdates,
    Tree,
    arrays_of,
    distinct_rows,
    is_gradient,
    is_rows,
    map_values,
    normal_rows,
    within,
)
from optax_kadam._mesh import in_auto_axes, spec_of_rows
from optax_kadam._precision import arithmetic_dtype

_Arguments = ParamSpec("_Arguments")


def value_and_row_grad(
    function: Callable[Concatenate[jax.Array, _Arguments], jax.Array],
) -> Callable[Concatenate[jax.Array, jax.Array, _Arguments], tuple[jax.Array, RowUpdates]]:
    """`jax.value_and_grad` with respect to a table of which the function uses a few rows, and only their gradient.

    Args:
      function: from rows, and any further arguments, to a scalar.

    Returns:
      A function of `(table, indices, *arguments)`, which looks up the rows and returns the value of
      `function(rows, *arguments)` and its gradient: `RowUpdates` for the table. The rows of padding are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> table, ids = jnp.arange(6.0).reshape(3, 2), jnp.array([2, 0, 2])
      >>> loss, gradient = value_and_row_grad(lambda rows, target: jnp.sum((rows - target) ** 2))(table, ids, 1.0)
      >>> print(loss, gradient.indices, gradient.values[0])
      51.0 [2 0 2] [6. 8.]
    """

    def look_up(table: jax.Array, indices: jax.Array) -> jax.Array:
        return table.at[indices].get(mode="fill", fill_value=0)

    def value_and_gradient(
        table: jax.Array, indices: jax.Array, *arguments: _Arguments.args, **keywords: _Arguments.kwargs
    ) -> tuple[jax.Array, RowUpdates]:
        indices = jnp.asarray(indices)
        rows = in_auto_axes(look_up, spec_of_rows(table, indices), table, within(indices, len(table)))
        value, gradient = jax.value_and_grad(function)(rows, *arguments, **keywords)
        return value, RowUpdates(indices, gradient)

    return value_and_gradient


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

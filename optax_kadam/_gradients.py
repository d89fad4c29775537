"""What may stand in a tree of gradients: an array, None, or the gradient of some rows of a table.

The gradient of a lookup is zero but for the rows that were looked up. `RowUpdates` holds those alone, and may stand
where the dense gradient would: the result is the dense one, to which every row belongs, for Keras's sparse Adam moves
the rows without a gradient too, on their momentum.

`accept` stands at the outermost door of each transformation. Behind it there are floating-point JAX arrays, None, and
`Rows`, the one normal form of what came as `RowUpdates` or as JAX's `BCOO`.

Source: `_resource_apply_sparse_duplicate_indices` in `tf_keras/src/optimizers/legacy/optimizer_v2.py` (2.21).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from optax_kadam import _check
from optax_kadam._mesh import in_auto_axes, spec_of

# A tree, or a node of one. optax types trees as unions so wide that nothing can be taken out of them.
Tree: TypeAlias = Any


@jax.tree_util.register_pytree_with_keys_class
class RowUpdates:
    """The gradient of some rows of a table, in the place of its dense gradient.

    A row that is named more than once has the sum of its values as gradient. An index that is negative, or past the end
    of the table, is padding: what belongs to it is ignored. Indices are not looked at when they are traced, so that one
    out of range cannot raise: it is padding.

    `jax.tree.map` and `jax.lax.pmean` go over the indices too, and ruin them: `add_gradients`, `scale_gradients` and
    `global_norm` go over trees of gradients instead.

    Args:
      indices: integers, of any shape, such as a batch of token ids.
      values: floating-point numbers of shape `indices.shape + row_shape`: the gradient of `table[indices]`.

    Raises:
      TypeError: if the indices are not integers, or the values not floating-point numbers.
      ValueError: if the shape of the values does not begin with that of the indices.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_kadam import kadam
      >>> tx, table = kadam(0.1), jnp.ones((3, 2))
      >>> gradient = RowUpdates(jnp.array([1, 1, -1]), jnp.array([[1.0, 2.0], [1.0, -2.0], [9.0, 9.0]]))
      >>> updates, state = tx.update(gradient, tx.init(table), table)
      >>> print(optax.apply_updates(table, updates))
      [[1.  1. ]
       [0.9 1. ]
       [1.  1. ]]
    """

    def __init__(self, indices: jax.typing.ArrayLike, values: jax.typing.ArrayLike):
        self.indices, self.values = jnp.asarray(indices), jnp.asarray(values)
        _check_dtypes(self)
        if self.values.shape[: self.indices.ndim] != self.indices.shape:
            raise ValueError(
                f"`values` must have the shape of `indices` and then of a row. Received: values of shape "
                f"{self.values.shape} for indices of shape {self.indices.shape}."
            )

    def __iter__(self) -> Iterator[jax.Array]:
        """Yield the indices, then the values: an iterable of arrays is one of optax's `Updates` to a type checker."""
        return iter((self.indices, self.values))

    def __repr__(self) -> str:
        return f"RowUpdates(indices={self.indices!r}, values={self.values!r})"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[object, jax.Array], ...], None]:
        """Return the two arrays under their names."""
        names = jax.tree_util.GetAttrKey("indices"), jax.tree_util.GetAttrKey("values")
        return ((names[0], self.indices), (names[1], self.values)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Sequence[Tree]) -> "RowUpdates":
        """Return it without the checks: a transformation may hold anything in the place of an array."""
        updates = object.__new__(cls)
        updates.indices, updates.values = children
        return updates


class Rows(NamedTuple):
    """The normal form of a gradient of rows: those of padding are zeros, and their indices one past the end."""

    indices: jax.Array  # shape=(n,), dtype=int32, or int64 for a table of more than 2**31 rows.
    values: jax.Array  # shape=(n, *row_shape).


def accept(
    inner: optax.GradientTransformationExtraArgs, *, distinct: bool = True, scope: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Bring what is handed to `inner` into normal form, or refuse it: gradients, and parameters that are not JAX's.

    Args:
      inner: a transformation of arrays, None and `Rows`.
      distinct: whether the rows of a gradient are summed up, so that each index stands once; see `sum_duplicates`.
      scope: the `jax.named_scope` of the update.

    Returns:
      A transformation of what users have. `Rows` that leave `inner` are `RowUpdates` again.
    """

    def init_fn(params: optax.Params) -> optax.OptState:
        _check.floating_leaves("params", params)
        return inner.init(params)

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, params = arrays_of(updates), jax.tree.map(_as_jax, params)
        has_rows = any(isinstance(leaf, RowUpdates) for leaf in jax.tree.leaves(updates, is_leaf=is_rows))
        if has_rows:
            updates = _with_normal_rows(updates, params)
        if distinct:
            updates = sum_duplicates(updates, params)
        updates, state = inner.update(updates, state, params, **extra_args)
        return _with_row_updates(updates) if has_rows else updates, state

    named_update = update_fn if scope is None else jax.named_scope(scope)(update_fn)
    return optax.GradientTransformationExtraArgs(init_fn, named_update)


def arrays_of(updates: optax.Updates) -> optax.Updates:
    """Return the gradients as JAX arrays, None and `RowUpdates`, or raise if one is not of floating-point numbers."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=is_gradient)
    leaves = [_from_bcoo(leaf) if _is_bcoo(leaf) else _as_jax(leaf) for leaf in leaves]
    for leaf in leaves:
        if isinstance(leaf, RowUpdates):
            _check_dtypes(leaf)
        elif leaf is not None and not (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            _check.floating_leaves("gradients", updates, is_leaf=is_rows)
    return jax.tree.unflatten(treedef, leaves)


def is_rows(node: object) -> bool:
    """Return whether a node of a tree is a gradient of rows, in whatever form."""
    return isinstance(node, (RowUpdates, Rows)) or _is_bcoo(node)


def map_values(function: Callable[[jax.Array], jax.Array], updates: optax.Updates) -> optax.Updates:
    """Return `jax.tree.map(function, updates)`, which leaves the indices of rows as they are."""

    def apply(gradient: Tree) -> Tree:
        if isinstance(gradient, RowUpdates):
            return RowUpdates.tree_unflatten(None, (gradient.indices, function(gradient.values)))
        return gradient._replace(values=function(gradient.values)) if is_rows(gradient) else function(gradient)

    return jax.tree.map(apply, updates, is_leaf=is_rows)


def values_of(updates: optax.Updates) -> list[jax.Array]:
    """Return the arrays of the gradients, without the indices of rows."""
    return [leaf.values if is_rows(leaf) else leaf for leaf in jax.tree.leaves(updates, is_leaf=is_rows)]


def sum_duplicates(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    """Return the gradients with each index of `Rows` once, in order, and padding after them."""
    if not any(isinstance(leaf, Rows) for leaf in jax.tree.leaves(updates, is_leaf=is_rows)):
        return updates

    def summed(gradient: Tree, param: Tree) -> Tree:
        if not isinstance(gradient, Rows):
            return gradient
        sum_up = functools.partial(distinct_rows, count=param.shape[0])
        return in_auto_axes(sum_up, _specs_of(gradient.values, 1), gradient)

    return jax.tree.map(summed, updates, params, is_leaf=lambda node: node is None or is_rows(node))


def distinct_rows(rows: Rows, count: int, also: jax.Array | None = None) -> Rows:
    """Return the rows of a table of `count` with each index once, in order; the rest is padding.

    The indices of `also` are among them, and add zeros.
    """
    indices = rows.indices if also is None else jnp.concatenate([rows.indices, also])
    ordered = jnp.sort(indices)
    is_repeated = jnp.diff(ordered, prepend=-1) == 0
    # Not `jnp.unique`, which also sorts the places: XLA's CPU compiler sorts one array five times as fast as a pair.
    found = jnp.sort(jnp.where(is_repeated, count, ordered))
    places = jnp.searchsorted(found, rows.indices, method="scan_unrolled")
    return Rows(found, jax.ops.segment_sum(rows.values, places, num_segments=indices.size))


def check_indices(indices: jax.Array, count: int | None = None) -> None:
    """Raise if `indices` are not integers, of a dtype that can name each of `count` rows."""
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(
            f"`indices` must be integers. Received: {indices.dtype.name}{list(indices.shape)}. Convert them with "
            "`astype(jnp.int32)`; if `jax.tree.map` or `jax.lax.pmean` went over a gradient of rows, indices and all, "
            "use `ok.scale_gradients` and `ok.add_gradients` in its place."
        )
    largest = jnp.iinfo(indices.dtype).max
    if count is not None and count - 1 > largest:
        raise ValueError(
            f"`indices` must be of a dtype that reaches every row. Received: {indices.dtype.name}, which ends at "
            f"{largest}, for a table of {count} rows. Convert them with `astype(jnp.int32)`."
        )


def within(indices: jax.Array, count: int) -> jax.Array:
    """Return the indices with those of padding one past the end: JAX would count negative ones from there."""
    dtype = jnp.int32 if count < 2**31 else jnp.int64
    # Both are compared in the dtype of the indices, which `count` itself may not fit. Without rows, 0 is past the end.
    last = min(max(count, 1) - 1, jnp.iinfo(indices.dtype).max)
    is_inside = (indices >= 0) & (indices <= last)
    return jnp.where(is_inside, indices.astype(dtype), jnp.asarray(count, dtype))


def _with_normal_rows(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    _check.params_given(params, "a gradient of rows", "needs to know how many rows there are")
    _check.same_trees({"gradient": updates}, {"params": params})

    def normal(gradient: Tree, param: Tree) -> Tree:
        if not isinstance(gradient, RowUpdates):
            return gradient
        return normal_rows(gradient, param.shape)

    return jax.tree.map(normal, updates, params, is_leaf=lambda node: node is None or is_rows(node))


def normal_rows(gradient: RowUpdates, shape: tuple[int, ...]) -> Rows:
    """Return the normal form of a gradient of rows of a table of this shape, or raise if it is none."""
    row_shape = gradient.values.shape[gradient.indices.ndim :]
    if not shape or row_shape != tuple(shape[1:]):
        raise ValueError(
            f"The rows of a gradient must have the shape of the table's. Received: rows of shape {row_shape} for a "
            f"table of shape {tuple(shape)}."
        )
    check_indices(gradient.indices, shape[0])

    def flat(indices: jax.Array, values: jax.Array) -> Rows:
        indices = within(indices.reshape(-1), shape[0])
        values = values.reshape(-1, *row_shape)
        is_padding = (indices == shape[0]).reshape(-1, *(1 for _ in row_shape))
        return Rows(indices, jnp.where(is_padding, jnp.zeros((), values.dtype), values))

    specs = _specs_of(gradient.values, gradient.indices.ndim)
    return in_auto_axes(flat, specs, gradient.indices, gradient.values)


def _specs_of(values: jax.Array, index_axes: int) -> Rows:
    """Return how rows lie on a mesh once they are sorted: all on every device, each divided as it was."""
    return Rows(PartitionSpec(), PartitionSpec(None, *spec_of(values)[index_axes:]))  # pyright: ignore


def _with_row_updates(updates: optax.Updates) -> optax.Updates:
    def public(node: Tree) -> Tree:
        return RowUpdates.tree_unflatten(None, node) if isinstance(node, Rows) else node

    return jax.tree.map(public, updates, is_leaf=is_rows)


def _check_dtypes(gradient: RowUpdates) -> None:
    check_indices(gradient.indices)
    if not jnp.issubdtype(gradient.values.dtype, jnp.floating):
        raise TypeError(
            f"`values` must be floating-point numbers. Received: {gradient.values.dtype.name}. Convert them with "
            "`astype` to the dtype of the table."
        )


def is_gradient(node: object) -> bool:
    """Return whether a node of a tree is one gradient that is no array: None, or a gradient of rows."""
    return node is None or is_rows(node)


def _is_bcoo(node: object) -> bool:
    """Return whether a node is JAX's `BCOO`, told by what it has: importing it takes longer than all the rest."""
    return hasattr(node, "n_sparse")


def _as_jax(leaf: Tree) -> Tree:
    return jnp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf


def _from_bcoo(gradient: Tree) -> RowUpdates:
    if gradient.n_batch or gradient.n_sparse != 1:
        raise ValueError(
            "A BCOO gradient must be sparse in its rows alone: n_batch=0, n_sparse=1. "
            f"Received: n_batch={gradient.n_batch}, n_sparse={gradient.n_sparse}."
        )
    return RowUpdates(gradient.indices[:, 0], gradient.data)

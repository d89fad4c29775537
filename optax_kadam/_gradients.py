"""Gradients of a few rows of a table.

The gradient of a lookup is zero but for the rows that were looked up. `RowUpdates` holds those alone, and may stand in
a tree of gradients where the dense gradient would: the result is the dense one, to which every row belongs, for Keras's
sparse Adam moves the rows without a gradient too, on their momentum.

Source: `_resource_apply_sparse_duplicate_indices` in `tf_keras/src/optimizers/legacy/optimizer_v2.py` (2.21).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from optax_kadam import _check
from optax_kadam._mesh import in_auto_axes, spec_of, spec_of_rows


@jax.tree_util.register_pytree_with_keys_class
class RowUpdates:
    """The gradient of some rows of a table, in the place of its dense gradient.

    A row that is named more than once has the sum of its values as gradient. An index that is negative, or past the end
    of the table, is padding: what belongs to it is ignored. Indices are not looked at when they are traced, so that one
    out of range cannot raise: it is padding.

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

    def __init__(self, indices: jax.Array, values: jax.Array):
        self.indices, self.values, self.prepared = jnp.asarray(indices), jnp.asarray(values), ""
        if not jnp.issubdtype(self.indices.dtype, jnp.integer):
            raise TypeError(
                f"`indices` must be integers. Received: {self.indices.dtype.name}{list(self.indices.shape)}. "
                "Convert them with `astype(jnp.int32)`."
            )
        if not jnp.issubdtype(self.values.dtype, jnp.floating):
            raise TypeError(f"`values` must be floating-point numbers. Received: {self.values.dtype.name}.")
        if self.values.shape[: self.indices.ndim] != self.indices.shape:
            raise ValueError(
                f"`values` must have the shape of `indices` and then of a row. Received: values of shape "
                f"{self.values.shape} for indices of shape {self.indices.shape}."
            )

    def __repr__(self) -> str:
        return f"RowUpdates(indices={self.indices!r}, values={self.values!r})"

    def tree_flatten_with_keys(self) -> tuple[Any, str]:
        """Return the arrays, and what is known of them."""
        keys = jax.tree_util.GetAttrKey("indices"), jax.tree_util.GetAttrKey("values")
        return ((keys[0], self.indices), (keys[1], self.values)), self.prepared

    @classmethod
    def tree_unflatten(cls, prepared: str, children: Any) -> "RowUpdates":
        """Return it without the checks: a transformation may hold anything in the place of an array."""
        updates = object.__new__(cls)
        updates.indices, updates.values = children
        updates.prepared = prepared  # "", "masked": without padding, or "summed": without duplicates either.
        return updates


def value_and_row_grad(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, RowUpdates]]:
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

    def value_and_gradient(table: jax.Array, indices: jax.Array, *arguments: Any) -> tuple[jax.Array, RowUpdates]:
        indices = jnp.asarray(indices)
        look_up = lambda table, indices: table.at[indices].get(mode="fill", fill_value=0)  # noqa: E731
        rows = in_auto_axes(look_up, spec_of_rows(table, indices), table, _within(indices, len(table)))
        value, gradient = jax.value_and_grad(function)(rows, *arguments)
        return value, RowUpdates(indices, gradient)

    return value_and_gradient


def is_rows(gradient: Any) -> bool:
    """Tell whether it is the gradient of some rows, ours or JAX's."""
    return isinstance(gradient, RowUpdates) or _is_bcoo(gradient)


def _is_bcoo(gradient: Any) -> bool:
    """Tell JAX's `BCOO` by what it has: importing it takes longer than all the rest."""
    return hasattr(gradient, "n_sparse")


def map_values(function: Callable[[jax.Array], jax.Array], updates: optax.Updates) -> optax.Updates:
    """`jax.tree.map` that leaves indices alone."""

    def apply(gradient: Any) -> Any:
        gradient = _from_bcoo(gradient) if _is_bcoo(gradient) else gradient
        if not isinstance(gradient, RowUpdates):
            return function(gradient)
        return RowUpdates.tree_unflatten(gradient.prepared, (gradient.indices, function(gradient.values)))

    return jax.tree.map(apply, updates, is_leaf=is_rows)


def values_of(updates: optax.Updates) -> list[jax.Array]:
    """Return the gradients without indices."""
    leaves = jax.tree.leaves(updates, is_leaf=is_rows)
    return [leaf.values if isinstance(leaf, RowUpdates) else leaf.data if _is_bcoo(leaf) else leaf for leaf in leaves]


def prepare_rows(updates: optax.Updates, params: optax.Params | None, *, summed: bool = True) -> optax.Updates:
    """Return the gradients with their rows freed of padding, and of duplicates if `summed`.

    Raises:
      ValueError: if there are rows and no parameters, or indices or rows that do not fit the parameter.
    """
    if not any(map(is_rows, jax.tree.leaves(updates, is_leaf=is_rows))):
        return updates
    _check.params_given(params, "a gradient of rows", "needs to know how many rows there are")

    def prepare(gradient: Any, param: Any) -> Any:
        if not is_rows(gradient) or getattr(gradient, "prepared", ""):  # A stage outside has chosen.
            return gradient
        return summed_rows(gradient, param.shape) if summed else _masked_rows(gradient, param.shape)

    return jax.tree.map(prepare, updates, params, is_leaf=lambda node: node is None or is_rows(node))


def accept_rows(inner: optax.GradientTransformationExtraArgs, *, summed: bool) -> optax.GradientTransformationExtraArgs:
    """Prepare the rows among the gradients for the stages of `inner`."""

    def update_fn(updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any) -> Any:
        return inner.update(prepare_rows(updates, params, summed=summed), state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def summed_rows(gradient: Any, shape: tuple[int, ...]) -> RowUpdates:
    """Return the gradient with each row once, in order; the rest is padding: one past the end, with zeros."""
    masked = _masked_rows(gradient, shape)
    if masked.prepared == "summed":
        return masked

    def add_up(masked: RowUpdates) -> RowUpdates:
        size = masked.indices.size
        indices, places = jnp.unique(masked.indices, size=size, fill_value=shape[0], return_inverse=True)
        values = jax.ops.segment_sum(masked.values, places.reshape(-1), num_segments=size)
        return RowUpdates.tree_unflatten("summed", (indices, values))

    return in_auto_axes(add_up, _specs_of_rows("summed", masked), masked)


def _masked_rows(gradient: Any, shape: tuple[int, ...]) -> RowUpdates:
    """Return the gradient with indices in one axis, those of padding one past the end, and zeros in its rows."""
    gradient = _from_bcoo(gradient) if _is_bcoo(gradient) else gradient
    if gradient.prepared:
        return gradient
    check_rows(gradient, shape)

    def mask(gradient: RowUpdates) -> RowUpdates:
        indices = _within(gradient.indices.reshape(-1), shape[0])
        values = gradient.values.reshape(-1, *shape[1:])
        is_padding = (indices == shape[0]).reshape(-1, *(1 for _ in shape[1:]))
        values = jnp.where(is_padding, jnp.zeros((), values.dtype), values)
        return RowUpdates.tree_unflatten("masked", (indices, values))

    return in_auto_axes(mask, _specs_of_rows("masked", gradient), gradient)


def _specs_of_rows(prepared: str, gradient: RowUpdates) -> RowUpdates:
    """How rows lie on a mesh that have been sorted: all on every device, each divided as it was."""
    whole, of_row = PartitionSpec(), spec_of(gradient.values)[gradient.indices.ndim :]
    return RowUpdates.tree_unflatten(prepared, (whole, PartitionSpec(None, *of_row)))


def check_rows(gradient: RowUpdates, shape: tuple[int, ...]) -> None:
    """Raise if the gradient is not one of rows of a table of this shape."""
    row_shape = gradient.values.shape[gradient.indices.ndim :]
    if not shape or row_shape != tuple(shape[1:]):
        raise ValueError(
            f"The rows of a gradient must have the shape of the table's. Received: rows of shape {row_shape} for a "
            f"table of shape {tuple(shape)}."
        )
    largest = jnp.iinfo(gradient.indices.dtype).max
    if shape[0] - 1 > largest:
        raise ValueError(
            f"`indices` must be of a dtype that reaches every row. Received: {gradient.indices.dtype.name}, which ends "
            f"at {largest}, for a table of {shape[0]} rows. Convert them with `astype(jnp.int32)`."
        )


def _within(indices: jax.Array, count: int) -> jax.Array:
    """Return the indices with those of padding one past the end: JAX would count negative ones from there."""
    dtype = jnp.int32 if count < 2**31 else jnp.int64
    is_inside = (indices >= 0) & (indices < min(count, jnp.iinfo(indices.dtype).max + 1))
    return jnp.where(is_inside, indices.astype(dtype), jnp.asarray(count, dtype))


def _from_bcoo(gradient: Any) -> RowUpdates:
    if gradient.n_batch or gradient.n_sparse != 1:
        raise ValueError(
            "A BCOO gradient must be sparse in its rows alone: n_batch=0, n_sparse=1. "
            f"Received: n_batch={gradient.n_batch}, n_sparse={gradient.n_sparse}."
        )
    return RowUpdates(gradient.indices[:, 0], gradient.data)

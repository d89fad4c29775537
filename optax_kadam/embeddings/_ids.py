"""An error in the place of padding: ids that no table has a row for."""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from optax_kadam import _check
from optax_kadam._gradients import check_indices
from optax_kadam._xla import is_traced

Ids = TypeVar("Ids")


def check_ids(ids: Ids, rows: int, *, padding: int | None = None) -> Ids:
    """Return `ids` if each names a row of a table of `rows` rows; otherwise raise, where a table would see padding.

    Under `jit` the ids are not known when the check is made. Wrap the function in `jax.experimental.checkify.checkify`
    there, whose error tells; without it, JAX refuses to compile the check.

    Args:
      ids: integers, of any shape.
      rows: how many rows the table has, such as `table.values.shape[0]`.
      padding: an id that is let through though it names no row, such as -1. None for none.

    Raises:
      ValueError: if an id is negative or not below `rows`.
      TypeError: if the ids are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> print(check_ids(jnp.array([3, 0, -1]), 5, padding=-1))
      [ 3  0 -1]
      >>> check_ids(jnp.array([3, 5]), 5)
      Traceback (most recent call last):
      ValueError: `ids` must be >= 0 and < 5. Received: 5, and 1 of 2 such. Name what is to pass as `padding`.
    """
    count = _check.integer("rows", rows, 1)
    allowed = None if padding is None else _check.integer("padding", padding, -(2**31))
    traced = is_traced(ids)
    array: Any = ids if traced else np.asarray(ids)  # Not JAX's: it would cut int64 down to int32.
    check_indices(array)
    info = jnp.iinfo(array.dtype)
    is_wrong = (array < 0) | (array > min(count - 1, info.max))
    if allowed is not None and info.min <= allowed <= info.max:
        is_wrong = is_wrong & (array != allowed)
    must, remedy = f"`ids` must be >= 0 and < {count}.", "Name what is to pass as `padding`."
    if traced:
        from jax.experimental import checkify  # It takes long to import, and few need it.

        first = array.reshape(-1)[jnp.argmax(is_wrong)] if array.size else jnp.zeros((), array.dtype)
        checkify.check(~jnp.any(is_wrong), must + " Received: {id}. " + remedy, id=first)
    elif is_wrong.any():
        raise ValueError(f"{must} Received: {array[is_wrong][0]}, and {is_wrong.sum()} of {array.size} such. {remedy}")
    return ids

"""Keras's three clips.

Each computes what Keras does also where nothing is clipped, and where the norm is zero, infinite or NaN; the clips of
optax leave a gradient below the threshold alone, and round otherwise above it.

Source: `BaseOptimizer._clip_gradients` in `keras/src/optimizers/base_optimizer.py` (Keras 3.15), and
`tensorflow/python/ops/clip_ops.py` for the two older generations.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._gradients import map_values, prepare_rows, values_of
from optax_kadam._mesh import sum_over_shards
from optax_kadam._precision import arithmetic_dtype


def clip_by_value(clipvalue: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Limit each element of the gradients to `[-clipvalue, clipvalue]`; a NaN passes.

    Args:
      clipvalue: the limit, >= 0.

    Raises:
      ValueError: if `clipvalue` is negative or not finite.
      TypeError: if it is not a number.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_value(0.5)
      >>> print(tx.update(jnp.array([-2.0, 0.25, jnp.inf]), tx.init(None))[0])
      [-0.5   0.25  0.5 ]
    """
    limit = _check.number("clipvalue", clipvalue, (">=", 0.0), remedy=_NO_CLIP)

    def clip(g: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, g.dtype)
        return jnp.clip(g, -bound, bound)

    return _stateless(lambda updates: map_values(clip, updates))


def clip_by_norm(
    clipnorm: float | jax.Array, *, axis_name: str | tuple[str, ...] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scale each gradient down to a Euclidean norm of at most `clipnorm`, each by its own norm.

    `g * clipnorm / max(norm(g), clipnorm)`, multiplied first. A gradient whose squares overflow becomes 0; an infinite
    element becomes NaN and the finite ones beside it 0; a NaN makes all of that gradient NaN.

    Args:
      clipnorm: the largest norm of a gradient, >= 0. At 0, a zero gradient becomes NaN.
      axis_name: inside `jax.shard_map`, the mesh axes over which the gradients are divided, as in `jax.lax.psum`. A
        gradient that is the same along one of them is not summed over it; with `check_vma=False` nothing tells which
        those are, and there must be none. Under `jit` alone, None: norms are those of whole arrays there anyway.

    Raises:
      ValueError: if `clipnorm` is negative or not finite; in `update`, if there is no such mesh axis.
      TypeError: if it is not a number, or `axis_name` is no name.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_norm(1.0)
      >>> gradients = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.25])}
      >>> print(tx.update(gradients, tx.init(None))[0])
      {'bias': Array([0.25], dtype=float32), 'kernel': Array([0.6, 0.8], dtype=float32)}
    """
    limit = _check.number("clipnorm", clipnorm, (">=", 0.0), remedy=_NO_CLIP)
    names = _check.axis_names(axis_name)

    def clip_each(updates: optax.Updates) -> optax.Updates:
        wide = [g.astype(arithmetic_dtype(g)) for g in values_of(updates)]
        squares = sum_over_shards([jnp.sum(jnp.square(g), keepdims=True) for g in wide], names)
        norms = map(_root, squares)
        return _map_with(lambda g, norm: _scaled_to(limit, g, norm).astype(g.dtype), updates, norms)

    return _stateless(clip_each)


def clip_by_global_norm(
    global_clipnorm: float | jax.Array,
    *,
    float32_reciprocal: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale all gradients by one factor, to a Euclidean norm of the whole tree of at most `global_clipnorm`.

    `g * scale` with `scale = c * min(1 / norm, 1 / c)`, not always exactly 1 below the threshold (for c = 49 it is
    0.99999994). If the norm is infinite or NaN, an overflow of the squares included, every gradient becomes NaN.

    Args:
      global_clipnorm: the largest norm of the tree, c, > 0; with `float32_reciprocal` also 0.
      float32_reciprocal: whether `1 / c` is taken of the float32 `c`, as TensorFlow does; Keras 3 takes that of the
        Python float.
      axis_name: see `clip_by_norm`.

    Raises:
      ValueError: if `global_clipnorm` is not positive or not finite; in `update`, if there is no such mesh axis.
      TypeError: if it is not a number, or `axis_name` is no name.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_global_norm(1.0)
      >>> print(tx.update([jnp.array([3.0]), jnp.array([4.0])], tx.init(None))[0])
      [Array([0.6], dtype=float32), Array([0.8], dtype=float32)]
    """
    lowest = (">=" if float32_reciprocal else ">", 0.0)
    limit = _check.number("global_clipnorm", global_clipnorm, lowest, remedy=_NO_CLIP)
    names = _check.axis_names(axis_name)

    def clip_all(updates: optax.Updates) -> optax.Updates:
        leaves = values_of(updates)
        if not leaves:
            return updates
        dtype = arithmetic_dtype(*leaves)
        wide = [g.astype(dtype) for g in leaves]
        squares = sum_over_shards([jnp.sum(jnp.square(g)) for g in wide], names)
        scale = _global_scale(limit, jnp.sqrt(_sum(squares)), float32_reciprocal)
        return map_values(lambda g: (g.astype(dtype) * scale).astype(g.dtype), updates)

    return _stateless(clip_all)


def clip_by_norms(
    clipnorm: float | jax.Array, global_clipnorm: float | jax.Array, *, axis_name: str | tuple[str, ...] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scale each gradient down to a norm of at most `clipnorm`, then all of them to one of at most `global_clipnorm`.

    `clip_by_norm` and then `clip_by_global_norm`, for one more read of the gradients and one all-reduce instead of two
    of each: the norm of the whole tree after the first clip is that of the `min(norm(g), clipnorm)` of its gradients.
    What is zero, infinite or NaN becomes what the two in a chain make of it; all else is within 8 ULP of that.

    Args:
      clipnorm: the largest norm of a gradient, on its own, >= 0.
      global_clipnorm: the largest norm of all gradients together, > 0.
      axis_name: see `clip_by_norm`.

    Raises:
      ValueError: if a norm is out of its range; in `update`, if there is no such mesh axis.
      TypeError: if a norm is not a number, or `axis_name` is no name.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_norms(1.0, 1.0)
      >>> print(tx.update([jnp.array([3.0, 4.0]), jnp.array([0.75])], tx.init(None))[0])  # Of norm 1 and 0.75, then 1.
      [Array([0.48, 0.64], dtype=float32), Array([0.6], dtype=float32)]
    """
    limit = _check.number("clipnorm", clipnorm, (">=", 0.0), remedy=_NO_CLIP)
    global_limit = _check.number("global_clipnorm", global_clipnorm, (">", 0.0), remedy=_NO_CLIP)
    names = _check.axis_names(axis_name)

    def clip_both(updates: optax.Updates) -> optax.Updates:
        leaves = values_of(updates)
        if not leaves:
            return updates
        dtype = arithmetic_dtype(*leaves)

        def sum_of_squares(g: jax.Array) -> jax.Array:
            wide = g.astype(arithmetic_dtype(g))
            # An element that the first clip makes infinite or NaN, as it does not one whose square alone overflows.
            is_lost = ~jnp.isfinite(wide * jnp.asarray(limit, wide.dtype))
            return jnp.sum(jnp.square(jnp.where(is_lost, jnp.nan, wide)), keepdims=True)

        def clipped_norm(norm: jax.Array) -> jax.Array:
            bound = jnp.asarray(limit, norm.dtype)
            return jnp.where(jnp.isinf(norm), 0.0, norm * (bound / jnp.maximum(norm, bound)))

        norms = [_root(squares) for squares in sum_over_shards([sum_of_squares(g) for g in leaves], names)]
        squares = [jnp.sum(jnp.square(clipped_norm(norm).astype(dtype))) for norm in norms]
        scale = _global_scale(global_limit, jnp.sqrt(_sum(squares)))

        def clip(g: jax.Array, norm: jax.Array) -> jax.Array:
            return (_scaled_to(limit, g, norm).astype(dtype) * scale).astype(g.dtype)

        return _map_with(clip, updates, norms)

    return _stateless(clip_both)


_AT_A_TIME = 200
_NO_CLIP = "Use None for no clipping."


def _root(squares: jax.Array) -> jax.Array:
    """The norm, from the sum of squares, as Keras guards it against the gradient of the root at 0."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, jnp.ones_like(squares))), squares)


def _sum(squares: list[jax.Array]) -> jax.Array:
    """`jnp.sum(jnp.stack(squares))`.

    XLA merges it with all that it adds up, one after the other, in a time that grows with the square of their number.
    So of very many it gets some at a time, to be added up in the same order.
    """
    if len(squares) <= _AT_A_TIME or not isinstance(squares[0], jax.core.Tracer):
        return jnp.sum(jnp.stack(squares))
    collected = jnp.zeros(len(squares), squares[0].dtype)
    for start in range(0, len(squares), _AT_A_TIME):
        some = jnp.stack(squares[start : start + _AT_A_TIME])
        collected = jax.lax.dynamic_update_slice(collected, some, (start,))
    return functools.reduce(jnp.add, list(collected))


def _scaled_to(limit: float | jax.Array, g: jax.Array, norm: jax.Array) -> jax.Array:
    """`g`, which is of this norm, scaled down to one of at most `limit`, in the dtype of the norm."""
    bound = jnp.asarray(limit, norm.dtype)
    return (g.astype(norm.dtype) * bound) / jnp.maximum(norm, bound)


def _global_scale(limit: float | jax.Array, norm: jax.Array, float32_reciprocal: bool = False) -> jax.Array:
    bound = jnp.asarray(limit, norm.dtype)
    reciprocal = 1.0 / (bound if float32_reciprocal else limit)
    scale = bound * jnp.minimum(1.0 / norm, jnp.asarray(reciprocal, norm.dtype))
    scale += norm - norm  # Nothing for a finite norm, NaN for any other.
    # A bare scalar that comes from another slice keeps the TPU compiler from updating m, v and p in one pass.
    return jax.lax.optimization_barrier(scale.reshape(1)).reshape(())


def _map_with(function: Any, updates: optax.Updates, others: Iterable[jax.Array]) -> optax.Updates:
    """`map_values` of a function that takes one of `others` too, which are in the order of `values_of`."""
    remaining = iter(others)
    return map_values(lambda g: function(g, next(remaining)), updates)


def _stateless(clip: Any) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.stateless(lambda updates, params: clip(prepare_rows(updates, params))))

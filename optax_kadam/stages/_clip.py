"""Keras's three clips: as public parts, and as the stages behind them.

Each computes what Keras does also where nothing is clipped, and where the norm is zero, infinite or NaN; the clips of
optax leave a gradient below the threshold alone, and round otherwise above it. A clip by norm keeps the norms that it
computes in its state, for the log.

Source: `BaseOptimizer._clip_gradients` in `keras/src/optimizers/base_optimizer.py` (Keras 3.15), and
`tensorflow/python/ops/clip_ops.py` for the two older generations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _call, _check
from optax_kadam._flax import is_wrapper
from optax_kadam._gradients import Tree, accept, is_gradient, map_values, values_of
from optax_kadam._mesh import sum_over_shards
from optax_kadam._precision import arithmetic_dtype
from optax_kadam._xla import kept_apart, sum_of_many

_NO_CLIP = "Use None for no clipping."


class ClipByNormState(NamedTuple):
    """The state of `clip_by_norm`: the norms of the last step's gradients, before the clip."""

    gradient_norm: Tree  # A tree like the parameters, of shape=(), dtype=float32; 0 where there was no gradient.


class ClipByGlobalNormState(NamedTuple):
    """The state of `clip_by_global_norm`: the norm of the last step's gradients, before the clip."""

    gradient_norm: jax.Array  # shape=(), dtype=float32; 0 before the first step.


@_call.named
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
    return accept(limit_values(clipvalue))


@_call.named
def clip_by_norm(
    clipnorm: float | jax.Array, *, axis_name: str | tuple[str, ...] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scale each gradient down to a Euclidean norm of at most `clipnorm`, each by its own norm.

    `g * clipnorm / max(norm(g), clipnorm)`, multiplied first. A gradient whose squares overflow becomes 0; an infinite
    element becomes NaN and the finite ones beside it 0; a NaN makes all of that gradient NaN.

    `optax.tree.get(state, "gradient_norm")` is a tree like the parameters, of the norms of the last step's gradients
    before the clip, in float32: 0 before the first step, and for a gradient that is None.

    Args:
      clipnorm: the largest norm of a gradient, >= 0. At 0, a zero gradient becomes NaN.
      axis_name: inside `jax.shard_map`, the mesh axes over which the gradients are divided, as in `jax.lax.psum`; `()`
        for the norm of each shard alone, which the state does not keep. A gradient that is the same along one of them
        is not summed over it; with `check_vma=False` nothing tells which those are, and there must be none. Under `jit`
        alone, None: norms are those of whole arrays there anyway.

    Raises:
      ValueError: if `clipnorm` is negative or not finite; in `update`, if there is no such mesh
        axis, or the gradients vary along one that is not named.
      TypeError: if it is not a number, or `axis_name` is no name.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_norm(1.0)
      >>> gradients = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.25])}
      >>> clipped, state = tx.update(gradients, tx.init(gradients))
      >>> print(clipped)
      {'bias': Array([0.25], dtype=float32), 'kernel': Array([0.6, 0.8], dtype=float32)}
      >>> print({name: float(norm) for name, norm in state.gradient_norm.items()})
      {'bias': 0.25, 'kernel': 5.0}
    """
    return accept(limit_norms(clipnorm, axis_name))


@_call.named
def clip_by_global_norm(
    global_clipnorm: float | jax.Array, *, axis_name: str | tuple[str, ...] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scale all gradients by one factor, to a Euclidean norm of the whole tree of at most `global_clipnorm`.

    `g * scale` with `scale = c * min(1 / norm, 1 / c)`, not always exactly 1 below the threshold (for c = 41 it is
    0.99999994). If the norm is infinite or NaN, an overflow of the squares included, every gradient becomes NaN.

    `optax.tree.get(state, "gradient_norm")` is the norm of the last step's gradients before the clip, in float32; 0
    before the first step.

    Args:
      global_clipnorm: the largest norm of the tree, c, > 0.
      axis_name: see `clip_by_norm`.

    Raises:
      ValueError: if `global_clipnorm` is not positive or not finite; in `update`, if there is no such
        mesh axis, or the gradients vary along one that is not named.
      TypeError: if it is not a number, or `axis_name` is no name.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_global_norm(1.0)
      >>> gradients = [jnp.array([3.0]), jnp.array([4.0])]
      >>> clipped, state = tx.update(gradients, tx.init(gradients))
      >>> print(clipped, state.gradient_norm)
      [Array([0.6], dtype=float32), Array([0.8], dtype=float32)] 5.0
    """
    return accept(limit_global_norm(global_clipnorm, axis_name))


def limit_values(clipvalue: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Return the stage behind `clip_by_value`."""
    limit = _check.number("clipvalue", clipvalue, (">=", 0.0), remedy=_NO_CLIP)

    def clip(g: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, g.dtype)
        return jnp.clip(g, -bound, bound)

    return optax.with_extra_args_support(optax.stateless(lambda updates, params: map_values(clip, updates)))


def limit_norms(
    clipnorm: float | jax.Array, axis_name: str | tuple[str, ...] | None
) -> optax.GradientTransformationExtraArgs:
    """Return the stage behind `clip_by_norm`."""
    limit = _check.number("clipnorm", clipnorm, (">=", 0.0), remedy=_NO_CLIP)
    names = _check.axis_names(axis_name)

    def scaled_down(g: jax.Array, norm: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, norm.dtype)
        return ((g.astype(norm.dtype) * bound) / jnp.maximum(norm, bound)).astype(g.dtype)

    def init_fn(params: optax.Params) -> ClipByNormState | optax.EmptyState:
        if params is None or names == ():
            return optax.EmptyState()
        # `optax.tree.map_params` asks with an empty tree what is like the parameters: norms are not.
        of_params = params if jax.tree.leaves(params) else 0.0
        zeros = jax.tree.map(lambda _: jnp.zeros((), jnp.float32), of_params, is_leaf=is_wrapper)
        return ClipByNormState(zeros)

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, Tree]:
        wide = [g.astype(arithmetic_dtype(g)) for g in values_of(updates)]
        squares = sum_over_shards([jnp.sum(jnp.square(g), keepdims=True) for g in wide], names)
        norms = [_root(x) for x in squares]
        if _keeps_norm(state, ClipByNormState):
            state = ClipByNormState(_by_gradient(norms, updates, state.gradient_norm))
        each = iter(norms)
        return map_values(lambda g: scaled_down(g, next(each)), updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def limit_global_norm(
    global_clipnorm: float | jax.Array, axis_name: str | tuple[str, ...] | None, *, float32_reciprocal: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Return the stage behind `clip_by_global_norm`.

    Args:
      global_clipnorm: the largest norm of the tree, c, > 0; with `float32_reciprocal` also 0.
      axis_name: see `clip_by_norm`.
      float32_reciprocal: whether `1 / c` is taken of the float32 `c`, as TensorFlow does; Keras 3 takes that of the
        Python float.
    """
    lowest = (">=" if float32_reciprocal else ">", 0.0)
    limit = _check.number("global_clipnorm", global_clipnorm, lowest, remedy=_NO_CLIP)
    names = _check.axis_names(axis_name)

    def scale_of(norm: jax.Array) -> jax.Array:
        bound = jnp.asarray(limit, norm.dtype)
        reciprocal = jnp.asarray(1.0 / (bound if float32_reciprocal else limit), norm.dtype)
        # A norm of 0 has no reciprocal. That of the smallest number is larger than `reciprocal`, as infinity is.
        scale = bound * jnp.minimum(1.0 / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny), reciprocal)
        scale += norm - norm  # Nothing for a finite norm, NaN for any other.
        return kept_apart(scale)

    def init_fn(params: optax.Params) -> ClipByGlobalNormState | optax.EmptyState:
        return optax.EmptyState() if names == () else ClipByGlobalNormState(jnp.zeros((), jnp.float32))

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, Tree]:
        leaves = values_of(updates)
        norm = jnp.zeros((), jnp.float32)
        if leaves:
            dtype = arithmetic_dtype(*leaves)
            squares = sum_over_shards([jnp.sum(jnp.square(g.astype(dtype))) for g in leaves], names)
            norm = jnp.sqrt(sum_of_many(squares))
            scale = scale_of(norm)
            updates = map_values(lambda g: (g.astype(dtype) * scale).astype(g.dtype), updates)
        if _keeps_norm(state, ClipByGlobalNormState):
            state = ClipByGlobalNormState(norm.astype(jnp.float32))
        return updates, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _keeps_norm(state: object, kind: type) -> bool:
    """Return whether a state keeps norms: a clip may be used without, and then has no state; or raise."""
    _check.state(state, (kind, optax.EmptyState, type(None)), ("gradient_norm",))
    return isinstance(state, kind)


def _by_gradient(norms: Sequence[jax.Array], gradients: optax.Updates, like: Tree) -> Tree:
    """Return a tree like `like`, with the norm of each gradient; without a gradient it is 0."""
    if not norms:
        return jax.tree.map(jnp.zeros_like, like)
    each = iter(norms)

    def norm_of(_: jax.Array, gradient: Tree) -> jax.Array:
        is_given = bool(values_of(gradient))
        return next(each).reshape(()).astype(jnp.float32) if is_given else jnp.zeros((), jnp.float32)

    _check.norms_fit(like, gradients, lambda node: is_gradient(node) or is_wrapper(node))
    return jax.tree.map(norm_of, like, gradients)


def _root(squares: jax.Array) -> jax.Array:
    """Return the norm, from the sum of squares, as Keras guards it against the gradient of the root at 0."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, jnp.ones_like(squares))), squares)

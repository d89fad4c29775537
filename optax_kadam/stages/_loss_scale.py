"""Loss scaling, fixed and dynamic.

The loss is multiplied by a scale before its gradient is taken, so that small gradients survive in float16; the
gradients are divided by it before anything else is done to them.

Source: `keras/src/optimizers/base_optimizer.py` and `loss_scale_optimizer.py` (Keras 3.15);
`tf_keras/src/mixed_precision/loss_scale_optimizer.py` (2.21).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from optax_kadam import _call, _check, _generations, _xla
from optax_kadam._generations import Generation
from optax_kadam._gradients import Tree, arrays_of, map_values, values_of
from optax_kadam._mesh import sum_over_shards
from optax_kadam._precision import arithmetic_dtype


def unscale(loss_scale_factor: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Divide the gradients by `loss_scale_factor`, > 0, by which the loss was multiplied."""
    factor = _check.number("loss_scale_factor", loss_scale_factor, (">", 0.0), remedy="Use None for no loss scale.")
    return optax.with_extra_args_support(
        optax.stateless(lambda updates, params: map_values(lambda g: _widened(g) / factor, updates))
    )


def _widened(g: jax.Array) -> jax.Array:
    """Return `g` in the precision of the arithmetic.

    float16 cannot hold a scale above 65504, and unscaled gradients would underflow in it.
    """
    return g.astype(arithmetic_dtype(g))


class DynamicLossScaleState(NamedTuple):
    """The state of `dynamic_loss_scale`; the first two are called as in Keras."""

    step_counter: jax.Array  # shape=(), dtype=int32: finite steps since the scale last changed.
    dynamic_scale: jax.Array  # shape=(), dtype=float32: by which the next loss is to be multiplied.
    skipped_steps: jax.Array  # shape=(), dtype=int32: steps skipped since `init`, which Keras does not count.
    inner_state: optax.OptState


@_call.named
def dynamic_loss_scale(
    inner: optax.GradientTransformation,
    initial_scale: float = 2.0**15,
    dynamic_growth_steps: int = 2000,
    *,
    generation: Generation = "keras3",
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradients by a scale that grows while they are finite, and skip the step where they are not.

    After `dynamic_growth_steps` finite steps in a row the scale doubles; where a gradient is not finite it halves, and
    neither the parameters nor the state of `inner` change. Keras's `LossScaleOptimizer`. Multiply the loss by
    `optax.tree.get(state, "dynamic_scale")` before taking its gradient. `optax.tree.get(state, "skipped_steps")` is how
    many steps were skipped since `init`; no file of Keras's holds it.

    Args:
      inner: the transformation to protect.
      initial_scale: the first scale, > 0.
      dynamic_growth_steps: finite steps to a doubling, >= 1.
      generation: `"keras3"`; or `"tf_keras"` and `"legacy"`, whose optimizer counts the skipped steps in its
        `iterations` and whose scale never falls below 1.
      axis_name: inside `jax.shard_map`, the mesh axes over which the gradients are divided, so that all devices skip
        the same steps: see `clip_by_norm`.

    Raises:
      ValueError: if a number is out of its range, or `generation` is unknown.
      TypeError: if `inner` is not an optax transformation, or an argument is not a number.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_kadam import kadam
      >>> tx = dynamic_loss_scale(kadam(0.1), initial_scale=8.0)
      >>> params = jnp.array(1.0)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(jnp.array(jnp.inf), state, params)
      >>> print(updates, *(optax.tree.get(state, name) for name in ("dynamic_scale", "skipped_steps", "iterations")))
      0.0 4.0 1 0
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"`inner` must be an optax transformation. Received: inner={inner!r}.")
    first_scale = _check.number("initial_scale", initial_scale, (">", 0.0))
    growth_steps = _check.integer("dynamic_growth_steps", dynamic_growth_steps, 1)
    counts_skipped_steps = _generations.rules_of(generation).counts_skipped_steps
    names = _check.axis_names(axis_name)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> DynamicLossScaleState:
        scale = jnp.asarray(first_scale, jnp.float32)
        return DynamicLossScaleState(jnp.zeros((), jnp.int32), scale, jnp.zeros((), jnp.int32), inner.init(params))

    def guard(
        cond: Callable[..., Tree],
        updates: optax.Updates,
        state: DynamicLossScaleState,
        params: optax.Params | None,
        extra_args: dict[str, Tree],
    ) -> tuple[optax.Updates, DynamicLossScaleState]:
        counter, scale, skipped, inner_state = state

        def apply() -> tuple[optax.Updates, DynamicLossScaleState]:
            unscaled = map_values(lambda g: _widened(g) / scale.astype(arithmetic_dtype(g)), updates)
            new, new_inner_state = inner.update(unscaled, inner_state, params, **extra_args)
            is_due = counter >= growth_steps - 1
            doubled = scale * 2.0
            if counts_skipped_steps:
                doubled = jnp.where(jnp.isfinite(doubled), doubled, scale)
            return new, DynamicLossScaleState(
                jnp.where(is_due, 0, counter + 1), jnp.where(is_due, doubled, scale), skipped, new_inner_state
            )

        def skip() -> tuple[optax.Updates, DynamicLossScaleState]:
            zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: apply()[0]))
            now_skipped = jnp.asarray(optax.safe_increment(skipped))
            state = DynamicLossScaleState(jnp.zeros_like(counter), scale * 0.5, now_skipped, inner_state)
            if not counts_skipped_steps:
                return zeros, state
            counted = optax.safe_increment(optax.tree.get(inner_state, "iterations"))
            return zeros, state._replace(
                dynamic_scale=jnp.maximum(scale / 2.0, 1.0), inner_state=optax.tree.set(inner_state, iterations=counted)
            )

        lost = [jnp.any(~jnp.isfinite(g)).astype(jnp.int32) for g in values_of(updates)]
        is_finite = ~jnp.any(jnp.stack(sum_over_shards(lost, names)))
        return cond(is_finite, apply, skip)

    if counts_skipped_steps:
        guarded = functools.partial(guard, _xla.cond)
    else:
        # Keras 3 on JAX compiles both branches even in an eager run. They are jitted here once: an eager `lax.cond`
        # would be compiled again at every step.
        guarded = jax.jit(functools.partial(guard, lax.cond))

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, DynamicLossScaleState]:
        if not isinstance(state, DynamicLossScaleState):
            _check.state(state, DynamicLossScaleState, DynamicLossScaleState._fields)
        return guarded(arrays_of(updates), state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

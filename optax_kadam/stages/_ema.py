"""The exponential moving average of the parameters (`use_ema`), and its return into them.

    average = momentum * average + (1 - momentum) * p

Keras 3 starts from zeros with a momentum of 0, so that the first average is the first p; tf_keras starts from the
initial parameters. Every `overwrite_frequency` steps the average becomes the parameters. Keras on JAX does so by
multiplying with a flag, so that an infinite average poisons the parameters at every other step too; here it is
selected.

Source: `BaseOptimizer._update_model_variables_moving_average` and `keras/src/backend/jax/optimizer.py` (Keras 3.15);
`tf_keras/src/optimizers/optimizer.py` (2.21).
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._gradients import Tree
from optax_kadam._precision import arithmetic_dtype
from optax_kadam._xla import zeros_like

T = TypeVar("T")


class AverageParamsState(NamedTuple):
    """The state of `average_params`."""

    average: optax.Params  # In the shapes and dtypes of the parameters.


def average_params(
    momentum: float | jax.Array,
    overwrite_frequency: int | None,
    *,
    micro_steps: int,
    start_from_params: bool,
) -> optax.GradientTransformationExtraArgs:
    """Keep a moving average of the updated parameters.

    Updates pass unchanged, except at steps where the average replaces the parameters.
    `update` needs the parameters, and the `iterations` so far as an extra argument.

    Args:
      momentum: share of the average that is kept at a step, in [0, 1].
      overwrite_frequency: after how many steps the parameters are set to their average, >= 1; None for never.
      micro_steps: how many `iterations` make a step: Keras counts the accumulated ones.
      start_from_params: whether the average starts from the parameters handed to `init`, and stands still where there
        is no gradient, as in tf_keras; otherwise it starts from the parameters after the first step.

    Raises:
      ValueError: if `momentum` is outside [0, 1], `overwrite_frequency` is below 1, or `params` are not handed over.
      TypeError: if `momentum` is not a number, or `overwrite_frequency` not an integer.
    """
    momentum = _check.number("ema_momentum", momentum, (">=", 0.0), ("<=", 1.0))
    if overwrite_frequency is not None:
        _check.integer("ema_overwrite_frequency", overwrite_frequency, 1, "Use None to never overwrite.")

    def init_fn(params: optax.Params) -> AverageParamsState:
        return AverageParamsState(jax.tree.map(_copy if start_from_params else zeros_like, params))

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, AverageParamsState]:
        _check.params_given(params, "the moving average", "averages the parameters themselves")
        _check.same_trees({"parameter": params}, {"average": state.average})
        step = extra_args["iterations"] // micro_steps

        def average(mean: jax.Array, p: jax.Array, u: jax.Array | None) -> jax.Array:
            if u is None and start_from_params:
                return mean
            dtype = arithmetic_dtype(p)
            new = _updated(p, u).astype(dtype)
            if start_from_params:
                kept, added = jnp.asarray(momentum, dtype), jnp.asarray(1 - momentum).astype(dtype)
            else:
                kept = (step != 0).astype(dtype) * jnp.asarray(momentum, dtype)
                added = 1 - kept
            return (kept * mean.astype(dtype) + added * new).astype(mean.dtype)

        def overwrite(mean: jax.Array, p: jax.Array, u: jax.Array | None) -> jax.Array | None:
            if u is None and start_from_params:
                return None
            return jnp.where(is_due, mean.astype(p.dtype) - p, jnp.zeros_like(p) if u is None else u.astype(p.dtype))

        mean = jax.tree.map(average, state.average, params, updates)
        if overwrite_frequency is not None:
            is_due = step % overwrite_frequency == overwrite_frequency - 1
            updates = jax.tree.map(overwrite, mean, params, updates)
        return updates, AverageParamsState(mean)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _copy(p: jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
    """Return a copy, for the state may be donated; the average of the shape and dtype of a parameter is the same."""
    return p if isinstance(p, jax.ShapeDtypeStruct) else jnp.array(p, copy=True)


def _updated(p: jax.Array, u: jax.Array | None) -> jax.Array:
    """Return the parameter as `optax.apply_updates` will leave it."""
    return p if u is None else p + u.astype(p.dtype)


def averaged_params(state: optax.OptState) -> optax.Params:
    """Return the average of the parameters: what Keras's `finalize_variable_values` leaves in the model after `fit`.

    Args:
      state: the state of a `kadam(..., use_ema=True)`, or one that holds such a state.

    Raises:
      ValueError: if `state` holds no average.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_kadam import kadam
      >>> tx = kadam(0.1, use_ema=True, ema_momentum=0.5)
      >>> params = jnp.array(10.0)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{params:.3f} {averaged_params(state):.3f}")
      9.800 9.850
    """
    average = optax.tree.get(state, "average")
    if average is None:
        raise ValueError(
            "`state` must hold an average of the parameters. Received: a state without one. "
            "Build the optimizer with use_ema=True."
        )
    return average

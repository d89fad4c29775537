"""Who owns the step count and the learning rate.

Keras folds the learning rate into Adam's step size before it touches an array, and weight decay reads the same number.
So one outer stage owns both it and the count, and hands them to the stages inside as the extra arguments `iterations`
and `learning_rate`. A float lives in the state, where `optax.tree.set` changes it without a recompile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_kadam import _check
from optax_kadam._hyperparameter import Hyperparameter, at_step, takes_no_argument
from optax_kadam.schedules import inverse_time


class _LearningRateState(NamedTuple):
    iterations: jax.Array  # shape=(), dtype=int32: calls of `update` so far; Keras's `optimizer.iterations`.
    learning_rate: jax.Array  # shape=(), dtype=float32: what the last step used; before the first, what it will use.
    inner_state: optax.OptState


class LearningRateState(_LearningRateState):
    """The state of `with_learning_rate`: `iterations`, `learning_rate`, `inner_state`."""

    __slots__ = ()

    # A NamedTuple calls it final, and it is where `optax.tree.set` can be met.
    def _replace(self, **fields: Any) -> "LearningRateState":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set fields as `optax.tree.set` does, keeping the arrays' dtype and placement: a new type is a recompile."""
        for name in ("iterations", "learning_rate"):
            if name in fields and isinstance(getattr(self, name), jax.Array):
                fields[name] = jnp.full_like(getattr(self, name), fields[name])
        return super()._replace(**fields)


def with_learning_rate(
    learning_rate: Hyperparameter, inner: optax.GradientTransformationExtraArgs, decay: float | jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Count the steps, and hand `iterations` and `learning_rate` to the stages of `inner`.

    A float is kept in the state, in float32. A schedule sees the calls of `update` so far (with accumulation: the
    micro-steps, as in Keras). A callable without arguments is asked at every step. With the legacy `decay`, the rate is
    divided by `1 + decay * iterations`, on top of a schedule too.

    What leaves is ready for `optax.apply_updates`: in the dtype of the parameters, and a zero for a parameter whose
    gradient is None.
    """
    decay_rate = 0.0 if decay is None else _check.number("decay", decay, (">=", 0.0))
    is_decayed = isinstance(decay_rate, jax.Array) or decay_rate > 0.0
    rate_at = at_step("learning_rate", learning_rate)
    lives_in_state = not callable(learning_rate) and not isinstance(learning_rate, jax.Array) and not is_decayed

    def rate_of(iterations: jax.Array) -> jax.Array:
        rate = jnp.asarray(rate_at(iterations)).astype(jnp.float32)
        return inverse_time(rate, decay_rate, iterations) if is_decayed else rate

    def init_fn(params: optax.Params) -> LearningRateState:
        iterations = jnp.zeros((), jnp.int32)
        if callable(learning_rate) and takes_no_argument(learning_rate):
            rate = jnp.zeros((), jnp.float32)  # Not asked before the first step: asking may change what it answers.
        else:
            rate = jnp.array(rate_of(iterations), copy=True)  # The state may be donated; a caller's array may not.
        return LearningRateState(iterations, rate, inner.init(params))

    def update_fn(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, LearningRateState]:
        rate = state.learning_rate if lives_in_state else rate_of(state.iterations)
        extra_args |= {"iterations": state.iterations, "learning_rate": rate}
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if params is not None:
            updates = jax.tree.map(_ready_to_add, params, updates)
        return updates, LearningRateState(jnp.asarray(optax.safe_increment(state.iterations)), rate, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _ready_to_add(param: jax.Array, update: jax.Array | None) -> jax.Array:
    return jnp.zeros_like(param) if update is None else update.astype(param.dtype)

"""Who owns the step count and the learning rate.

Keras folds the learning rate into Adam's step size before it touches an array, and weight decay reads the same number.
So one outer stage owns both it and the count, and hands them to the stages inside as the extra arguments `iterations`
and `learning_rate`. A float lives in the state, where `optax.tree.set` changes it without a recompile.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam import _check
from optax_kadam._gradients import Tree
from optax_kadam._hyperparameter import Hyperparameter, at_step, takes_no_argument
from optax_kadam._schedule import inverse_time


class LearningRate(NamedTuple):
    """The owner of a learning rate, for the chain and for a table of rows."""

    first: Callable[[], jax.Array]  # What a new state holds: shape=(), dtype=float32.
    at: Callable[[jax.Array, jax.Array], jax.Array]  # From what the state holds and the iterations to the step's rate.
    is_held: bool  # Whether the state holds the rate, so that setting it there takes effect.


def learning_rate_of(learning_rate: Hyperparameter, decay: float | jax.Array | None = None) -> LearningRate:
    """Return the owner of `learning_rate`: the state of a number, the caller of an array, a schedule or a callable.

    With the legacy `decay`, the rate is divided by `1 + decay * iterations`, on top of a schedule too.
    """
    decay_rate = 0.0 if decay is None else _check.number("decay", decay, (">=", 0.0))
    is_decayed = isinstance(decay_rate, jax.Array) or decay_rate > 0.0
    rate_at = at_step("learning_rate", learning_rate)
    is_held = not callable(learning_rate) and not isinstance(learning_rate, jax.Array) and not is_decayed

    def rate_of(iterations: jax.Array) -> jax.Array:
        rate = jnp.asarray(rate_at(iterations)).astype(jnp.float32)
        return inverse_time(rate, decay_rate, iterations) if is_decayed else rate

    def first() -> jax.Array:
        if callable(learning_rate) and takes_no_argument(learning_rate):
            return jnp.zeros((), jnp.float32)  # It is not asked before the first step: asking may change its answer.
        return jnp.array(rate_of(jnp.zeros((), jnp.int32)), copy=True)  # A state may be donated, a caller's array not.

    return LearningRate(first, lambda held, iterations: held if is_held else rate_of(iterations), is_held)


def next_count(iterations: jax.Array, period: int) -> jax.Array:
    """Return the count after one more step; at the largest number it goes on through its last `period` values.

    So a count never overflows, and what happens at every n-th step goes on to do so, where n divides `period`.
    """
    largest = jnp.iinfo(iterations.dtype).max
    return jnp.where(iterations < largest, iterations + 1, jnp.asarray(largest - (period - 1), iterations.dtype))


class RateHeld:
    """A state in which `optax.tree.set` sets the step count and the learning rate; a mixin for a NamedTuple."""

    __slots__ = ()

    def _replace(self, **fields: Tree) -> Self:
        """Set fields, keeping the arrays' dtype and placement, for another type would be a recompile.

        `optax.tree.set` calls `_replace` with every field; overriding it is the only way to keep the dtype.
        """
        for name in {"iterations", "learning_rate"} & fields.keys():
            fields[name] = _like(name, getattr(self, name), fields[name])
        return super()._replace(**fields)  # pyright: ignore[reportAttributeAccessIssue]: the NamedTuple beside it.


class RateComputed(RateHeld):
    """A state that only shows the learning rate of the last step, as something else decides on it at every step."""

    __slots__ = ()

    def _replace(self, **fields: Tree) -> Self:
        """Set fields, but not the learning rate."""
        if fields.get("learning_rate", rate := getattr(self, "learning_rate")) is not rate:  # noqa: B009
            raise ValueError(
                "`learning_rate` must have been given as a number to be set in a state. "
                f"Received: learning_rate={fields['learning_rate']}, where a schedule, a callable, an array or `decay` "
                "gives the rate of every step. Build the optimizer with a number, or with "
                "`optax.inject_hyperparams(kadam)(learning_rate=...)`."
            )
        return super()._replace(**fields)


def _like(name: str, current: Tree, value: Tree) -> Tree:
    """Return `value` in the place of `current`, an array or a wrapper of one, as a variable of Flax is."""
    if value is current or not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)):
        return value  # Something else in the place of an array, such as its sharding.
    if name == "iterations" and not isinstance(value, (jax.Array, np.ndarray)):
        _check.integer(name, value, 0)
    number = _check.number(name, value)
    return jax.tree.map(lambda x: jnp.full_like(x, number) if isinstance(x, jax.Array) else value, current)


class _Fields(NamedTuple):
    iterations: jax.Array  # shape=(), dtype=int32: calls of `update` so far; Keras's `optimizer.iterations`.
    learning_rate: jax.Array  # shape=(), dtype=float32: what the last step used; before the first, what it will use.
    inner_state: optax.OptState


class LearningRateState(RateHeld, _Fields):
    """The state of `with_learning_rate`: `iterations`, `learning_rate`, `inner_state`."""

    __slots__ = ()


class ComputedLearningRateState(RateComputed, _Fields):
    """The same, where the learning rate of each step is computed."""

    __slots__ = ()


def with_learning_rate(
    learning_rate: Hyperparameter,
    inner: optax.GradientTransformationExtraArgs,
    decay: float | jax.Array | None,
    *,
    period: int,
    kept: tuple[str, ...],
    is_injected: bool,
) -> optax.GradientTransformationExtraArgs:
    """Count the steps, and hand `iterations` and `learning_rate` to the stages of `inner`.

    The updates can go straight to `optax.apply_updates`: they are in the dtype of the parameters, and zero for a
    parameter whose gradient is None.

    Args:
      learning_rate: a number is kept in the state, in float32. A schedule sees the calls of `update` so far, with
        accumulation the micro-steps, as in Keras. A callable without arguments is asked at every step.
      inner: what is handed both.
      decay: see `learning_rate_of`.
      period: of how many steps the stages of `inner` count the place of this one: see `next_count`.
      kept: the names of what `inner` keeps in its states, in order.
      is_injected: whether `optax.inject_hyperparams` hands over the rate at every step. Its own state is where the rate
        is set then; the same call of `optax.tree.set` meets this state too, and must not fail.
    """
    owner = learning_rate_of(learning_rate, decay)
    make = LearningRateState if owner.is_held or is_injected else ComputedLearningRateState

    def init_fn(params: optax.Params) -> LearningRateState | ComputedLearningRateState:
        return make(jnp.zeros((), jnp.int32), owner.first(), inner.init(params))

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, LearningRateState | ComputedLearningRateState]:
        _check.state(state, _Fields, ("iterations", "learning_rate", *kept))
        rate = owner.at(state.learning_rate, state.iterations)
        extra_args |= {"iterations": state.iterations, "learning_rate": rate}
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if params is not None:
            updates = jax.tree.map(_ready_to_add, params, updates)
        return updates, make(next_count(state.iterations, period), rate, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _ready_to_add(param: jax.Array, update: jax.Array | None) -> jax.Array:
    return jnp.zeros_like(param) if update is None else update.astype(param.dtype)

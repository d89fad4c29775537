"""What Keras's six schedules share: the class above them, and the formulas that eager Keras compiles."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp

from optax_kadam import _check
from optax_kadam._xla import opaque, rounded


def inverse_time(rate: jax.Array, decay: float | jax.Array, iterations: jax.Array) -> jax.Array:
    """Return `rate / (1 + decay * iterations)`: the `decay` of legacy Keras (`OptimizerV2._decayed_lr`)."""
    return rate / (1.0 + rounded(opaque(decay) * iterations.astype(jnp.float32)))


def half_cosine(fraction: jax.Array) -> jax.Array:
    """Return half a cosine, from 1 down to 0."""
    return 0.5 * (1.0 + jnp.cos(opaque(math.pi) * fraction))


# An eager Keras chooses between the two formulas of each of these with `ops.cond`, which compiles both. So they are
# compiled here too, multiply-adds and all: `tests/test_schedules.py::test_recorded_grid`.


@jax.jit
def warmup_then_cosine(step, warmup_steps, decay_steps, initial, target, share, alpha):
    """Return the rate of a linear warmup, or of the cosine that follows."""
    warming = (target - initial) * (step / jnp.where(warmup_steps == 0, 1.0, warmup_steps)) + initial
    decaying = target * (share * half_cosine((step - warmup_steps) / decay_steps) + alpha)
    return jnp.where(step < warmup_steps, warming, decaying)


@jax.jit
def restarts_of(fraction, t_mul):
    """Return how many periods have passed, and the share of the present one that has."""
    is_equal, equal = t_mul == 1.0, jnp.floor(fraction)
    t_mul = jnp.where(is_equal, 2.0, t_mul)  # The formulas below divide by 0 for 1; then they are not used.
    geometric = jnp.floor(jnp.log(1.0 - fraction * (1.0 - t_mul)) / jnp.log(t_mul))
    growth = jnp.power(t_mul, geometric)
    before = (1.0 - growth) / (1.0 - t_mul)
    return jnp.where(is_equal, equal, geometric), jnp.where(is_equal, fraction - equal, (fraction - before) / growth)


class KerasSchedule:
    """What the six schedules share: the checks, `get_config` and `from_config`."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]: each schedule is a dataclass.
            value = getattr(self, field.name)
            if field.type in (float, int) or (field.type == float | None and value is not None):
                _check.number(field.name, value, *([(">", 0.0)] if field.name.endswith("decay_steps") else []))

    def get_config(self) -> dict[str, Any]:
        """Return Keras's `get_config()` of this schedule: its arguments by name."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the schedule that `config`, a `get_config()` of Keras's or ours, describes."""
        return cls(**config)

    def __call__(self, step: jax.typing.ArrayLike) -> jax.Array:
        """Return the learning rate of `step`, counted from 0: float32, of the shape of `step`."""
        return self._rate(jnp.asarray(step))

    def _rate(self, step: jax.Array) -> jax.Array:
        """Return the learning rate of `step`; each schedule has its own."""
        raise NotImplementedError

    def _cast(self, value: float) -> jax.Array:
        """Return `value` as Keras casts it: to the type of `initial_learning_rate`, so that an int truncates it."""
        initial = getattr(self, "initial_learning_rate")  # noqa: B009
        return opaque(int(value) if isinstance(initial, int) else value)

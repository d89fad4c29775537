"""Keras's learning-rate schedules, as callables from a step to a float32.

Each is a frozen dataclass whose fields are Keras's arguments, so that `get_config` pastes back into Keras, and
whose instances are optax schedules. The arithmetic is that of Keras run op by op. Compiled, Keras divides by a
constant through its reciprocal, which moves a staircase or a restart by a whole period and turns
`PolynomialDecay(power=0.5)` into NaN past its end; `opaque` and `rounded` keep the compiler from either, so
these schedules give one answer, jitted or not.

Source: `keras/src/optimizers/schedules/learning_rate_schedule.py` (Keras 3.15).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_kadam._schedule import KerasSchedule, half_cosine, restarts_of, warmup_then_cosine
from optax_kadam._xla import opaque, rounded

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
]


@dataclasses.dataclass(frozen=True)
class ExponentialDecay(KerasSchedule):
    """Multiply the learning rate by `decay_rate` every `decay_steps` steps, smoothly or in stairs.

    `initial_learning_rate * decay_rate ** p`, with `p = step / decay_steps`, or its floor with `staircase`.

    Args:
      initial_learning_rate: the learning rate of step 0.
      decay_steps: steps to one factor of `decay_rate`, > 0.
      decay_rate: the factor. A rate of 0 gives 0 from step 1 on (in optax it means a constant).
      staircase: whether the exponent is floored.
      name: Keras's name for it; kept for `get_config`.

    Raises:
      ValueError: if `decay_steps` is not > 0.
      TypeError: if an argument is not a number.

    Example:
      >>> schedule = ExponentialDecay(0.1, decay_steps=10, decay_rate=0.5, staircase=True)
      >>> [float(round(schedule(step), 4)) for step in (0, 9, 10, 25)]
      [0.1, 0.1, 0.05, 0.025]
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = "ExponentialDecay"

    def _rate(self, step: jax.Array) -> jax.Array:
        p = step.astype(jnp.float32) / self._cast(self.decay_steps)
        if self.staircase:
            p = jnp.floor(p)
        return self._cast(self.initial_learning_rate) * jnp.power(self._cast(self.decay_rate), p)


@dataclasses.dataclass(frozen=True)
class InverseTimeDecay(KerasSchedule):
    """Divide the learning rate by a denominator that grows linearly with the step.

    `initial_learning_rate / (1 + decay_rate * p)`, with `p = step / decay_steps`, or its floor with `staircase`.

    Args:
      initial_learning_rate: the learning rate of step 0.
      decay_steps: steps in which the denominator grows by `decay_rate`, > 0.
      decay_rate: what the denominator grows by.
      staircase: whether `p` is floored.
      name: Keras's name for it; kept for `get_config`.

    Raises:
      ValueError: if `decay_steps` is not > 0.
      TypeError: if an argument is not a number.

    Example:
      >>> schedule = InverseTimeDecay(0.1, decay_steps=10, decay_rate=1.0)
      >>> [float(round(schedule(step), 4)) for step in (0, 10, 30)]
      [0.1, 0.05, 0.025]
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = "InverseTimeDecay"

    def _rate(self, step: jax.Array) -> jax.Array:
        p = step.astype(jnp.float32) / self._cast(self.decay_steps)
        if self.staircase:
            p = jnp.floor(p)
        return self._cast(self.initial_learning_rate) / (1.0 + rounded(self._cast(self.decay_rate) * p))


@dataclasses.dataclass(frozen=True)
class PiecewiseConstantDecay(KerasSchedule):
    """Keep the learning rate constant between boundaries; a boundary still belongs to the piece before it.

    `values[0]` while `step <= boundaries[0]`, then `values[i]` while `boundaries[i-1] < step <= boundaries[i]`, then
    `values[-1]`. The change comes one step later than in `optax.piecewise_constant_schedule`.

    Args:
      boundaries: steps, increasing. For an integer step they are truncated to integers, as in Keras.
      values: the learning rates, one more than `boundaries`.
      name: Keras's name for it; kept for `get_config`.

    Raises:
      ValueError: if the lengths do not fit, or there is no boundary.

    Example:
      >>> schedule = PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.25])
      >>> [float(schedule(step)) for step in (10, 11, 20, 21)]
      [1.0, 0.5, 0.5, 0.25]
    """

    boundaries: Sequence[float]
    values: Sequence[float]
    name: str | None = "PiecewiseConstant"

    def __post_init__(self) -> None:
        if not self.boundaries or len(self.boundaries) != len(self.values) - 1:
            raise ValueError(
                "`boundaries` must hold at least one step, and be one shorter than `values`. "
                f"Received: boundaries={list(self.boundaries)}, values={list(self.values)}."
            )
        # Tuples, so that the schedule can be hashed: `jax.jit` asks for it.
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        object.__setattr__(self, "values", tuple(self.values))

    def get_config(self) -> dict[str, Any]:
        """Return Keras's `get_config()` of this schedule: its arguments by name."""
        return super().get_config() | {"boundaries": list(self.boundaries), "values": list(self.values)}

    def _rate(self, step: jax.Array) -> jax.Array:
        boundaries = [jnp.asarray(boundary).astype(step.dtype) for boundary in self.boundaries]
        first, *middle, last = (opaque(value) for value in self.values)
        # A sum, not a search: Keras adds up what overlaps where boundaries are not sorted.
        rate = jnp.where(step <= boundaries[0], first, 0.0) + jnp.where(step > boundaries[-1], last, 0.0)
        for low, high, value in zip(boundaries[:-1], boundaries[1:], middle, strict=True):
            rate += jnp.where((step > low) & (step <= high), value, 0.0)
        return rate


@dataclasses.dataclass(frozen=True)
class PolynomialDecay(KerasSchedule):
    """Lower the learning rate to an end value along a power of the time left, once or in cycles.

    `(initial - end) * (1 - p) ** power + end`, with `p = min(step, decay_steps) / decay_steps`. With `cycle`,
    `decay_steps` is stretched to its first multiple at or above `step` instead, so that the rate climbs again one step
    after each multiple.

    Args:
      initial_learning_rate: the learning rate of step 0.
      decay_steps: steps to the end value, > 0.
      end_learning_rate: the end value.
      power: the power; 1 is a straight line.
      cycle: whether to start again past the end.
      name: Keras's name for it; kept for `get_config`.

    Raises:
      ValueError: if `decay_steps` is not > 0.
      TypeError: if an argument is not a number.

    Example:
      >>> schedule = PolynomialDecay(0.1, decay_steps=60, end_learning_rate=0.0, power=0.5)
      >>> [float(round(schedule(step), 4)) for step in (0, 45, 60, 1000)]
      [0.1, 0.05, 0.0, 0.0]
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = "PolynomialDecay"

    def _rate(self, step: jax.Array) -> jax.Array:
        step = step.astype(jnp.float32)
        initial, end = self._cast(self.initial_learning_rate), self._cast(self.end_learning_rate)
        decay_steps = self._cast(self.decay_steps)
        if self.cycle:
            cycles = jnp.ceil(step / opaque(self.decay_steps))
            decay_steps *= jnp.where(step == 0.0, 1.0, cycles)
        else:
            step = jnp.minimum(step, decay_steps)
        remaining = jnp.power(1.0 - step / decay_steps, self._cast(self.power))
        return rounded((initial - end) * remaining) + end


@dataclasses.dataclass(frozen=True)
class CosineDecay(KerasSchedule):
    """Lower the learning rate along half a cosine, after an optional linear warmup.

    Without `warmup_target`: `initial * ((1 - alpha) * 0.5 * (1 + cos(pi * s / decay_steps)) + alpha)`, with
    `s = min(step, decay_steps)`. With it: a straight line from `initial_learning_rate` to `warmup_target` in
    `warmup_steps`, then the cosine from `warmup_target`. `decay_steps` does not include the warmup, and `alpha` is a
    share of `warmup_target`; in `optax.warmup_cosine_decay_schedule` it does, and the end value is absolute.
    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5.

    Args:
      initial_learning_rate: the learning rate of step 0.
      decay_steps: steps of the cosine, > 0.
      alpha: the lowest learning rate, as a share of the highest.
      name: Keras's name for it; kept for `get_config`.
      warmup_target: the learning rate after the warmup, or None for no warmup.
      warmup_steps: steps of the warmup, >= 0; ignored without `warmup_target`.

    Raises:
      ValueError: if `decay_steps` is not > 0.
      TypeError: if an argument is not a number.

    Example:
      >>> schedule = CosineDecay(0.0, decay_steps=100, warmup_target=0.1, warmup_steps=10)
      >>> [float(round(schedule(step), 4)) for step in (0, 5, 10, 60, 110)]
      [0.0, 0.05, 0.1, 0.05, 0.0]
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str | None = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: int = 0

    def _rate(self, step: jax.Array) -> jax.Array:
        step = step.astype(jnp.float32)
        initial, decay_steps = self._cast(self.initial_learning_rate), self._cast(self.decay_steps)
        share, alpha = opaque(1 - self.alpha), opaque(self.alpha)
        if self.warmup_target is None:
            cosine = half_cosine(jnp.minimum(step, decay_steps) / decay_steps)
            return initial * (rounded(share * cosine) + alpha)
        target, warmup_steps = self._cast(self.warmup_target), self._cast(self.warmup_steps)
        step = jnp.minimum(step, decay_steps + warmup_steps)
        return warmup_then_cosine(step, warmup_steps, decay_steps, initial, target, share, alpha)


@dataclasses.dataclass(frozen=True)
class CosineDecayRestarts(KerasSchedule):
    """Lower the learning rate along half a cosine again and again, in periods that grow by `t_mul`.

    With `f = step / first_decay_steps` and `i` restarts so far (`i = floor(f)` for `t_mul = 1`, else
    `i = floor(log(1 - f * (1 - t_mul)) / log(t_mul))`), `f` is made the share of the period gone, and the rate is
    `initial * ((1 - alpha) * 0.5 * m_mul ** i * (1 + cos(pi * f)) + alpha)`. The logarithm is float32's, as in Keras,
    so that for some `t_mul` a restart comes one step early or late.
    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5.

    Args:
      initial_learning_rate: the learning rate of step 0.
      first_decay_steps: steps of the first period, > 0.
      t_mul: how much longer each period is than the one before.
      m_mul: how much higher each period starts than the one before.
      alpha: the lowest learning rate, as a share of `initial_learning_rate` (`m_mul` does not scale it).
      name: Keras's name for it; kept for `get_config`.

    Raises:
      ValueError: if `first_decay_steps` is not > 0.
      TypeError: if an argument is not a number.

    Example:
      >>> schedule = CosineDecayRestarts(0.1, first_decay_steps=10, t_mul=1.0, m_mul=0.5)
      >>> [float(round(schedule(step), 4)) for step in (0, 5, 10, 15, 20)]
      [0.1, 0.05, 0.05, 0.025, 0.025]
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str | None = "SGDRDecay"

    def _rate(self, step: jax.Array) -> jax.Array:
        initial, alpha = self._cast(self.initial_learning_rate), self._cast(self.alpha)
        fraction = step.astype(jnp.float32) / self._cast(self.first_decay_steps)
        restarts, fraction = restarts_of(fraction, self._cast(self.t_mul))
        height = jnp.power(self._cast(self.m_mul), restarts)
        cosine = 0.5 * height * (1.0 + jnp.cos(opaque(math.pi) * fraction))
        return initial * (rounded((1.0 - alpha) * cosine) + alpha)

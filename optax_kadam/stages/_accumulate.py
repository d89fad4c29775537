"""Gradient accumulation: one step of what is inside for every k calls, on the mean of their gradients.

At the other calls the accumulator grows by the gradient and nothing inside is evaluated, unless XLA makes selections of
the two branches, as it does on GPUs; `optax.MultiSteps` evaluates it every time. As in Keras, the accumulator is a sum,
divided at the step and set to zero then, whatever it held: a NaN does not outlive the step.

Source: `JaxOptimizer._backend_apply_gradients` in `keras/src/backend/jax/optimizer.py` (Keras 3.15).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_kadam import _check
from optax_kadam._gradients import Rows, Tree
from optax_kadam._mesh import in_auto_axes, spec_of
from optax_kadam._precision import arithmetic_dtype
from optax_kadam._xla import cond, rounded, zeros_like


class AccumulateGradientsState(NamedTuple):
    """The state of `accumulate_gradients`."""

    accumulator: optax.Updates  # The sum of the gradients since the last step, in shape and dtype as the parameters.
    inner_state: optax.OptState


def accumulate_gradients(
    steps: int, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Hand `inner` the mean gradient of every `steps` calls, and return zeros at the others.

    `update` needs the `iterations` so far as an extra argument; `inner` is handed its own, `iterations // steps`. A
    gradient that is None at the step leaves its accumulator as it is, to the next step, as in Keras on JAX.

    Args:
      steps: calls to a step, >= 2.
      inner: what is evaluated at the step, so at the last of these calls.
    """

    def init_fn(params: optax.Params) -> AccumulateGradientsState:
        return AccumulateGradientsState(jax.tree.map(zeros_like, params), inner.init(params))

    def update_fn(
        updates: optax.Updates, state: Tree, params: Tree = None, **extra_args: Tree
    ) -> tuple[optax.Updates, AccumulateGradientsState]:
        iterations: jax.Array = extra_args["iterations"]
        _check.same_trees({"gradient": updates}, {"accumulator": state.accumulator})
        is_last = iterations % steps == steps - 1
        # The sum stands outside the branches, so that the one that only collects hands it through: XLA adds in place.
        sums = jax.tree.map(_added, state.accumulator, updates)

        def zeros() -> optax.Updates:
            return jax.tree.map(lambda a, g: None if g is None else jnp.zeros_like(a, _dtype(g)), sums, updates)

        def means() -> optax.Updates:
            return jax.tree.map(lambda a, g: None if g is None else _mean(a, steps).astype(_dtype(g)), sums, updates)

        def step() -> tuple[optax.Updates, AccumulateGradientsState]:
            # The means have a branch of their own, as in Keras: next to Adam, XLA would merge the multiplication in.
            gradients = cond(is_last, means, zeros)
            of_inner = extra_args | {"iterations": iterations // steps}
            new, inner_state = inner.update(gradients, state.inner_state, params, **of_inner)
            # The zeros are computed from the means, so that XLA writes them in the accumulator's place.
            emptied = jax.tree.map(lambda a, g: a if g is None else zeros_like(g, a.dtype), sums, gradients)
            return new, AccumulateGradientsState(emptied, inner_state)

        def collect() -> tuple[optax.Updates, AccumulateGradientsState]:
            return zeros(), AccumulateGradientsState(sums, state.inner_state)

        return cond(is_last, step, collect)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _added(accumulator: jax.Array, g: jax.Array | Rows | None) -> jax.Array:
    """Return the sum, in the dtype of the accumulator."""
    if g is None:
        return accumulator
    values = g.values if isinstance(g, Rows) else g
    dtype = arithmetic_dtype(accumulator, values)
    # Keras's gradients come from another program, so a multiplication that made one is never merged into the sum.
    wide, values = accumulator.astype(dtype), rounded(values.astype(dtype))
    if isinstance(g, Rows):
        total = in_auto_axes(_with_rows_added, spec_of(accumulator), wide, g.indices, values)
    else:
        total = values + wide
    return total.astype(accumulator.dtype)


def _with_rows_added(table: jax.Array, indices: jax.Array, values: jax.Array) -> jax.Array:
    return table.at[indices].add(values, mode="drop")


def _mean(accumulator: jax.Array, steps: int) -> jax.Array:
    # Multiply by 1/k, as XLA does when Keras divides by k.
    return accumulator.astype(arithmetic_dtype(accumulator)) * (1 / steps)


def _dtype(g: jax.Array | Rows) -> np.dtype:
    return g.values.dtype if isinstance(g, Rows) else g.dtype

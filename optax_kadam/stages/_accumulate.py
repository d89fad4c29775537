"""Gradient accumulation: one step of what is inside for every k calls, on the mean of their gradients.

At the other calls the accumulator grows by the gradient and nothing inside is evaluated, unless XLA makes selections of
the two branches, as it does on GPUs; `optax.MultiSteps` evaluates it every time. As in Keras, the accumulator is a sum,
divided at the end of the window and set to zero then, whatever it held: a NaN does not outlive its window.

Source: `JaxOptimizer._backend_apply_gradients` in `keras/src/backend/jax/optimizer.py` (Keras 3.15).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax
from jax import lax

from optax_kadam import _check
from optax_kadam._gradients import RowUpdates
from optax_kadam._mesh import in_auto_axes, spec_of, zeros_like
from optax_kadam._precision import arithmetic_dtype


class AccumulateGradientsState(NamedTuple):
    """The state of `accumulate_gradients`."""

    accumulator: optax.Updates  # The sum of the gradients of this window so far, in shape and dtype as the parameters.
    inner_state: optax.OptState


def accumulate_gradients(
    steps: int, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """Hand `inner` the mean gradient of every `steps` calls, and return zeros at the others.

    `update` needs the `iterations` so far as an extra argument; `inner` is handed its own, `iterations // steps`. A
    gradient that is None at the end of a window leaves its accumulator to the next, as in Keras on JAX.

    Args:
      steps: calls to a step, >= 2.
      inner: what is evaluated at the end of each window.
    """

    def init_fn(params: optax.Params) -> AccumulateGradientsState:
        return AccumulateGradientsState(jax.tree.map(zeros_like, params), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateGradientsState]:
        iterations: jax.Array = extra_args["iterations"]
        _check.same_tree(updates, state.accumulator, "accumulator")
        is_last = iterations % steps == steps - 1
        # Outside the branches, so that the one that only collects hands it through: XLA then adds in place.
        lowest = -jnp.exp(200.0 + iterations.astype(jnp.float32))  # -infinity, but the compiler does not know.
        grown = jax.tree.map(lambda a, g: a if g is None else _sum(a, g, lowest), state.accumulator, updates)

        def zeros() -> optax.Updates:
            return jax.tree.map(lambda a, g: None if g is None else jnp.zeros_like(a, _dtype(g)), grown, updates)

        def step() -> tuple[optax.Updates, AccumulateGradientsState]:
            def mean(a: jax.Array, g: Any) -> jax.Array | None:
                # Times the reciprocal: so XLA divides by a constant, in eager Keras too.
                return None if g is None else (a.astype(arithmetic_dtype(a)) * (1 / steps)).astype(_dtype(g))

            # A branch of its own, as in Keras: next to Adam, XLA would merge the multiplication into it.
            means = choose(is_last, lambda: jax.tree.map(mean, grown, updates), lambda: zeros())
            of_inner = extra_args | {"iterations": iterations // steps}
            new, inner_state = inner.update(means, state.inner_state, params, **of_inner)
            # Zeros that come after the means: so XLA writes them in the accumulator's place.
            emptied = jax.tree.map(lambda a, mean: a if mean is None else zeros_like(mean, a.dtype), grown, means)
            return new, AccumulateGradientsState(emptied, inner_state)

        def collect() -> tuple[optax.Updates, AccumulateGradientsState]:
            return zeros(), AccumulateGradientsState(grown, state.inner_state)

        return choose(is_last, step, collect)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _sum(accumulator: jax.Array, g: Any, lowest: jax.Array) -> jax.Array:
    """The sum, in the dtype of the accumulator."""
    values = g.values if isinstance(g, RowUpdates) else g
    dtype = arithmetic_dtype(accumulator, values)
    # Nothing is below -infinity. Without it, XLA would merge a multiplication that made the gradient into the sum.
    wide, values = accumulator.astype(dtype), jnp.maximum(values.astype(dtype), lowest.astype(dtype))
    if isinstance(g, RowUpdates):
        add = lambda table, indices, values: table.at[indices].add(values, mode="drop")  # noqa: E731
        grown = in_auto_axes(add, spec_of(accumulator), wide, g.indices, values)
    else:
        grown = values + wide
    return grown.astype(accumulator.dtype)


def _dtype(g: Any) -> Any:
    return g.values.dtype if isinstance(g, RowUpdates) else g.dtype


def choose(condition: jax.Array, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """`lax.cond`; where the condition is known, Python chooses, so that the branch runs op by op like eager Keras."""
    if isinstance(condition, jax.core.Tracer):
        return lax.cond(condition, on_true, on_false)
    return on_true() if condition else on_false()

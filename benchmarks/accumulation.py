"""A call that accumulates a gradient, one of 7 in 8: it must read the gradient, and read and write the sum.

The calls that take a step are not counted. `optax.MultiSteps` runs Adam at every call, and throws the result away.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_kadam as ok
from benchmarks import _steps
from benchmarks._race import Contender, Session
from benchmarks.dense import LIMIT, trees

EVERY = 8


def run(session: Session) -> None:
    """Measure the calls on one leaf and on a transformer."""
    multi_steps = optax.MultiSteps(optax.adam(1e-3), EVERY).gradient_transformation()
    txs = {"kadam": ok.kadam(gradient_accumulation_steps=EVERY), "optax.MultiSteps": multi_steps}
    for tree, shapes in trees(session).items():
        if tree == "ResNet-50":
            continue
        gradients = _steps.gradients(shapes)
        size = _steps.size_of(gradients)
        builders = {name: partial(_call, tx, gradients) for name, tx in txs.items()}
        builders[LIMIT] = partial(_steps.limit, session, 3 * size)
        session.race(tree, builders, [("kadam", "optax.MultiSteps"), ("kadam", LIMIT)], needs=15 * size)


def _call(tx: optax.GradientTransformation, gradients: Any) -> Contender:
    """Return the contender that goes through a window, and counts all calls but the last."""
    state, inputs = _steps.start(tx, gradients), jax.tree.map(jnp.asarray, gradients)
    call = jax.jit(_steps.apply(tx), donate_argnums=0).lower(state, inputs).compile()

    def measure() -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(EVERY - 1):
            state = jax.block_until_ready(call(state, inputs))
        seconds = time.perf_counter() - started
        state = jax.block_until_ready(call(state, inputs))
        return seconds / (EVERY - 1)

    return measure

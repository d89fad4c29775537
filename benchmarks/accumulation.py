"""A call that accumulates a gradient, one of 7 in 8: it must read the gradient, and read and write the sum.

It is measured without the calls that take a step, and these are measured too: "the 8th". `optax.MultiSteps` runs Adam
at every call, and throws the result away.
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_kadam as ok
from benchmarks import _hlo, _steps
from benchmarks._race import Aim
from benchmarks._side_by_side import Contender, Session
from benchmarks.dense import LIMIT, trees

EVERY = 8
ARRAYS = 3


def run(session: Session) -> None:
    """Measure the calls on one leaf and on a transformer."""
    multi_steps = optax.MultiSteps(optax.adam(1e-3), EVERY).gradient_transformation()
    txs = {"kadam": ok.kadam(gradient_accumulation_steps=EVERY), "optax.MultiSteps": multi_steps}
    for tree, shapes in trees(session).items():
        if tree == "ResNet-50":
            continue
        gradients = _steps.gradients(shapes)
        size = _steps.size_of(gradients)
        builders = {name: partial(_call, session, tx, gradients) for name, tx in txs.items()}
        builders |= {
            f"{name}, the 8th": partial(_call, session, tx, gradients, is_last=True) for name, tx in txs.items()
        }
        builders[LIMIT] = partial(_steps.limit, session, ARRAYS * size)
        aims = (Aim("kadam", "optax.MultiSteps", 1.0), Aim("kadam", LIMIT))
        references = "optax.MultiSteps", LIMIT
        session.race(f"Adam, {tree}", builders, references, aims, moves=ARRAYS * size, needs=25 * size)


def _call(session: Session, tx: optax.GradientTransformation, gradients: Any, is_last: bool = False) -> Contender:
    """Return the contender that goes through a window, and counts the last call alone or all others."""
    state, inputs = _steps.start(tx, gradients), jax.tree.map(jnp.asarray, gradients)
    call = jax.jit(_steps.apply(tx), donate_argnums=0).lower(state, inputs).compile()

    def seconds(calls: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(calls):
            state = jax.block_until_ready(call(state, inputs))
        return time.perf_counter() - started

    def measure() -> float:
        collecting, last = seconds(EVERY - 1), seconds(1)
        return last if is_last else collecting / (EVERY - 1)

    return Contender(measure, _hlo.work(call.as_text() or "", branch=int(is_last)))

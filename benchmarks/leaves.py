"""2,000 leaves of 1,000 numbers: what it takes to compile a step, and to take it.

The limit hands all arrays to a program and back, and computes nothing.
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
from benchmarks.dense import LIMIT


def run(session: Session) -> None:
    """Measure the compilation, and then the step."""
    txs = {
        "kadam": ok.kadam(),
        "optax.adam": optax.adam(1e-3),
        "kadam global_clipnorm": ok.kadam(global_clipnorm=1.0),
        "optax.adam clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    }
    pairs = [("kadam", "optax.adam"), ("kadam global_clipnorm", "optax.adam clipped")]
    count = 5 if session.quick else 2_000
    gradients = {f"leaf{index}": jnp.full(1000, 0.01) for index in range(count)}
    compiled: dict[str, Any] = {}

    def compiling(name: str) -> Contender:
        def measure() -> float:
            started = time.perf_counter()
            step = jax.jit(_steps.apply(txs[name]), donate_argnums=0)
            compiled[name] = step.lower(_steps.start(txs[name], gradients), gradients).compile()
            return time.perf_counter() - started

        return measure

    session.race(
        f"compiling {count:,} leaves", {name: partial(compiling, name) for name in txs}, pairs, rounds=3, warm_up=0
    )

    def stepping(name: str) -> Contender:
        return session.stepping(compiled[name], _steps.start(txs[name], gradients), gradients)

    def limit() -> Contender:
        handed = jax.jit(lambda state, gradients: state, donate_argnums=0, keep_unused=True)
        state = _steps.start(txs["kadam"], gradients)
        return session.stepping(handed.lower(state, gradients).compile(), state, gradients)

    builders = {name: partial(stepping, name) for name in txs} | {LIMIT: limit}
    session.race(f"{count:,} leaves", builders, [*pairs, ("kadam", LIMIT)])

"""Many small leaves, of 1,000 numbers each: what it takes to compile a step, and to take it.

2,000 leaves are compiled once, as that takes half a minute, and so their ratio has no quartiles; 500 several times. The
limit hands all arrays to a program and back, and computes nothing.
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
    many, fewer = (5, 3) if session.quick else (2_000, 500)
    trees = {count: {f"leaf{index}": jnp.full(1000, 0.01) for index in range(count)} for count in (many, fewer)}
    compiled: dict[str, Any] = {}

    def compiling(name: str, count: int) -> Contender:
        state = _steps.start(txs[name], trees[count])

        def measure() -> float:
            started = time.perf_counter()
            step = jax.jit(_steps.apply(txs[name]), donate_argnums=0)
            compiled[name] = step.lower(state, trees[count]).compile()
            return time.perf_counter() - started

        return measure

    for count, rounds in ((fewer, 5), (many, 1)):
        builders = {name: partial(compiling, name, count) for name in txs}
        session.race(f"compiling {count:,} leaves", builders, pairs, rounds=rounds, warm_up=0)

    def stepping(name: str) -> Contender:
        return session.stepping(compiled[name], _steps.start(txs[name], trees[many]), trees[many])

    def limit() -> Contender:
        handed = jax.jit(lambda state, gradients: state, donate_argnums=0, keep_unused=True)
        state = _steps.start(txs["kadam"], trees[many])
        return session.stepping(handed.lower(state, trees[many]).compile(), state, trees[many])

    builders = {name: partial(stepping, name) for name in txs} | {LIMIT: limit}
    session.race(f"{many:,} leaves", builders, [*pairs, ("kadam", LIMIT)])

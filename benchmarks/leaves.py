"""Many small leaves: what it takes to compile a step, and to run it.

Each contender is compiled in a process of its own, which measures how long that took, by the clock and in processor
time, and by how much its largest resident set grew. Ours and optax's compile at the same time; then the processes take
turns at stepping. The limit is a program that hands all arrays back, and computes nothing.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_kadam as ok
from benchmarks import _hlo, _memory, _steps
from benchmarks._race import Aim, Race
from benchmarks._side_by_side import Contender, Session
from benchmarks.dense import ADAM, LIMIT

ELEMENTS = 1000
PAIRS = ("kadam", "optax.adam"), ("kadam global_clipnorm", "optax.adam clipped")
UNITS = {"compilation": "s", "compilation, processors' time": "CPU s", "compilation, peak of memory": "MB"}


def txs() -> dict[str, optax.GradientTransformation]:
    """Return what is compared."""
    return {
        "kadam": ok.kadam(),
        "optax.adam": optax.adam(1e-3),
        "kadam global_clipnorm": ok.kadam(global_clipnorm=1.0),
        "optax.adam clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    }


def run(session: Session) -> None:
    """Measure 100, 500 and 2,000 leaves."""
    references, counts = tuple(theirs for _, theirs in PAIRS), (5,) if session.quick else (100, 500, 2_000)
    for count in counts:
        aims = tuple(Aim(*pair, 1.0) for pair in PAIRS if count == counts[-1])
        with contextlib.ExitStack() as stack:
            groups = *PAIRS, (LIMIT,)
            workers = {name: _Worker(name, count, session.quick, stack) for name in itertools.chain(*groups)}
            builders = {
                name: partial(workers[name].contender, [workers[other] for other in group])
                for group in groups
                for name in group
            }
            rounds, work = session.measure(f"{count:,} leaves", builders)
        moves = ADAM * 4 * ELEMENTS * count
        title = f"{count:,} leaves: a step"
        limit = (Aim("kadam", LIMIT),) if aims else ()
        session.keep(Race(title, rounds, (*references, LIMIT), aims + limit, size=count, moves=moves, work=work))
        for what, unit in UNITS.items():
            figures = {name: workers[name].report[what] for name in itertools.chain(*PAIRS)}
            session.keep(Race(f"{count:,} leaves: {what}", [figures], references, aims, unit, size=count))


class _Worker:
    """The process of a contender."""

    def __init__(self, name: str, count: int, quick: bool, stack: contextlib.ExitStack):
        self.program = [sys.executable, "-m", "benchmarks.leaves", name, str(count), str(int(quick))]
        self.stack = stack
        self.process: subprocess.Popen[str] | None = None
        self.report: dict[str, Any] = {}

    def start(self) -> None:
        """Start compiling."""
        if not self.process:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = self.stack.enter_context(subprocess.Popen(self.program, **pipes))

    def contender(self, pair: list["_Worker"]) -> Contender:
        """Start the processes that are compared, at once, so that a busy machine slows both, and wait for this one."""
        for worker in pair:
            worker.start()
        self.report = self.answer()
        kernels, copies, operations = self.report["work"]
        return Contender(self.measure, _hlo.Work(kernels, copies, set(operations)))

    def measure(self) -> float:
        """Let it take steps."""
        assert self.process and self.process.stdin
        print(file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Return what it says."""
        assert self.process and self.process.stdout
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"This process ended: {' '.join(self.program)}")
        return json.loads(line)


def _serve(name: str, count: int, quick: bool) -> None:
    """Compile the step of a contender, say what it took, and measure steps as often as a line is read."""
    gradients = {f"leaf{index}": jnp.full(ELEMENTS, 0.01) for index in range(count)}
    tx = txs().get(name, optax.adam(1e-3))
    step = (lambda state, gradients: state) if name == LIMIT else _steps.apply(tx)
    state = jax.block_until_ready(_steps.start(tx, gradients))
    before, started, processors = _memory.peak(), time.perf_counter(), time.process_time()
    compiled = jax.jit(step, donate_argnums=0, keep_unused=True).lower(state, gradients).compile()
    figures = time.perf_counter() - started, time.process_time() - processors, _memory.peak() - before
    kernels, copies, operations = _hlo.work(compiled.as_text() or "")
    print(
        json.dumps({**dict(zip(UNITS, figures, strict=True)), "work": [kernels, copies, list(operations)]}), flush=True
    )

    def advance() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, gradients))

    contender = Session("", quick=quick).timed(advance)
    for _ in sys.stdin:
        print(contender.measure(), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), bool(int(sys.argv[3])))

"""Contenders side by side: each takes its turn in every round, in an order that is drawn for each round."""

import importlib
import itertools
import random
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import _memory
from benchmarks._hlo import Work, work
from benchmarks._race import Aim, Race, Round

WARM_UP, LEAST_ROUNDS = 2, 3


class Contender(NamedTuple):
    """What takes steps."""

    measure: Callable[[], float]  # Returns the seconds of a step.
    work: Work | None = None  # What the compiler made of the step.


Builder = Callable[[], Contender | None]  # None where a library is missing.


class Session:
    """One question being measured: what it was asked to do, and what it has found."""

    def __init__(self, label: str, rounds: int = 21, seconds: float = 10.0, quick: bool = False):
        self.label, self.rounds, self.seconds, self.quick = label, rounds, seconds, quick
        self.races: list[Race] = []
        self.notes: list[str] = []
        self.one_table = False  # Whether the cases of all sizes are shown in one table.
        self._errors = Console(stderr=True)

    def race(
        self,
        title: str,
        builders: Mapping[str, Builder],
        references: tuple[str, ...],
        aims: tuple[Aim, ...] = (),
        *,
        moves: int | None = None,
        needs: int = 0,
    ) -> None:
        """Measure the contenders and keep what was found, unless so many bytes of memory are not there."""
        rounds, work = self.measure(title, builders, needs)
        if rounds:
            self.keep(Race(title, rounds, references, aims, moves=moves, work=work))

    def keep(self, race: Race) -> None:
        """Put figures among those of this question."""
        references = tuple(name for name in race.references if name in race.names)
        aims = tuple(aim for aim in race.aims if race.ratio(aim.name, aim.reference))
        self.races.append(race._replace(references=references, aims=aims))

    def measure(
        self, title: str, builders: Mapping[str, Builder], needs: int = 0
    ) -> tuple[list[Round], dict[str, Work]]:
        """Build the contenders, and let each take its turn in every round."""
        if needs > (available := _memory.available()):
            self.note(f"{title}: left out, needs {needs / 1e9:.1f} GB of memory where {available / 1e9:.1f} are free")
            return [], {}
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        hidden = not self._errors.is_terminal
        if hidden:
            self._errors.print(f"{self.label}: {title}", markup=False)
        with Progress(*columns, console=self._errors, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=len(builders) + WARM_UP + self.rounds)

            def doing(what: str) -> None:
                progress.update(task, description=f"{self.label}: {title}: {what}", advance=1)

            contenders: dict[str, Contender] = {}
            for name, build in builders.items():
                doing(f"setting up {name}")
                if (contender := build()) is not None:
                    contenders[name] = contender
            rounds = self._rounds(contenders, doing)
        return rounds, {name: contender.work for name, contender in contenders.items() if contender.work}

    def _rounds(self, contenders: dict[str, Contender], doing: Callable[[str], None]) -> list[Round]:
        # The order is drawn, because a step suffers from what ran before it: threads that still spin, and full caches.
        draw, rounds, started = random.Random(0), [], 0.0
        for number in range(-WARM_UP, self.rounds):
            if number == 0:
                started = time.perf_counter()
            elif number >= LEAST_ROUNDS and time.perf_counter() - started > self.seconds:
                break
            doing("warming up" if number < 0 else "measuring")
            order = draw.sample(list(contenders), len(contenders))
            measured = {name: contenders[name].measure() for name in order}
            if number >= 0:
                rounds.append({name: measured[name] for name in contenders})
        return rounds

    def note(self, text: str) -> None:
        """Say something beside the tables, once."""
        if text not in self.notes:
            self.notes.append(text)

    def peer(self, name: str) -> ModuleType | None:
        """Return a library, or None and a note where it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            self.note(f"{name} is left out: {error}")
            return None

    def timed(self, step: Callable[[], Any], work: Work | None = None) -> Contender:
        """Return the contender that takes a step, or as many steps as are needed to time them well."""
        at_least = 0.0 if self.quick else 0.02

        def measure() -> float:
            seconds = _seconds(step, 1)
            if seconds >= at_least:
                return seconds
            # That step is not counted: threads of the contender before it may still have been spinning.
            steps = int(at_least / seconds) + 1
            return _seconds(step, steps) / steps

        return Contender(measure, work)

    def jitted(self, step: Callable[..., Any], state: Any, *inputs: Any) -> Contender:
        """Return the contender that steps from state to state, donated, with each of the inputs in turn."""
        compiled = jax.jit(step, donate_argnums=0).lower(state, inputs[0]).compile()
        turns = itertools.cycle(inputs)

        def advance() -> None:
            nonlocal state
            state = jax.block_until_ready(compiled(state, next(turns)))

        return self.timed(advance, work(compiled.as_text() or ""))


def _seconds(step: Callable[[], Any], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started

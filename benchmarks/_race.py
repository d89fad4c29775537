"""Contenders take turns, each once in every round, and are compared within the rounds.

What slows a machine for a while slows a round, and hardly the ratio of two times in it. So a ratio is the median over
the rounds of the ratio within a round, which is not the ratio of the medians; its quartiles go with it.
"""

import importlib
import itertools
import os
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax

WARM_UP = 2  # Rounds that are not counted.
SHORTEST = 0.02  # Seconds: a shorter step is repeated.
Contender = Callable[[], float]  # Takes a turn, and returns the seconds of a step.
Builder = Callable[[], Contender | None]  # Returns None where a library is missing.
Round = dict[str, float]


class Ratio(NamedTuple):
    """The times of one contender over those of another, in the rounds of a case."""

    case: str
    ours: str
    peer: str
    ours_least: float  # Seconds, as is the next.
    peer_least: float
    median: float
    lower: float  # The quartiles about the median.
    upper: float

    @property
    def of_least(self) -> float:
        """The ratio of the least times, which a busy machine disturbs least."""
        return self.ours_least / self.peer_least


def ratio(case: str, rounds: Sequence[Round], ours: str, peer: str) -> Ratio:
    """Return the ratio of two contenders."""
    within = [measured[ours] / measured[peer] for measured in rounds]
    lower, median, upper = statistics.quantiles(within, n=4, method="inclusive") if within[1:] else within * 3
    ours_least, peer_least = (min(measured[name] for measured in rounds) for name in (ours, peer))
    return Ratio(case, ours, peer, ours_least, peer_least, median, lower, upper)


class Session:
    """A question that is being measured: how, and what was found."""

    def __init__(self, question: str, rounds: int = 15, quick: bool = False):
        self.question, self.rounds, self.quick = question, rounds, quick
        self.ratios: list[Ratio] = []
        self.raw: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def race(
        self,
        case: str,
        builders: Mapping[str, Builder],
        pairs: Sequence[tuple[str, str]],
        *,
        needs: int = 0,
        rounds: int | None = None,
        warm_up: int = WARM_UP,
    ) -> None:
        """Measure the contenders, and keep the ratio of each pair whose libraries are there.

        Args:
          case: what is measured, in words.
          builders: by their names, the functions that set the contenders up.
          pairs: the names of ours and of the peer.
          needs: how many bytes of memory must be free; without them the case is left out, with a note.
          rounds: how many are counted, if fewer than the session's.
          warm_up: how many come before these.
        """
        if needs > (free := _free_memory()):
            return self.note(f"{case}: left out, needs {needs / 1e9:.1f} GB of memory where {free / 1e9:.1f} are free")
        case = f"{self.question}: {case}"
        print(case, file=sys.stderr, flush=True)
        contenders = {name: contender for name, build in builders.items() if (contender := build())}
        # The order is drawn, because a step suffers from what ran before it: threads that still spin, and full caches.
        draw, measured = random.Random(0), []
        for _ in range(warm_up + min(rounds or self.rounds, self.rounds)):
            order = draw.sample(list(contenders), len(contenders))
            times = {name: contenders[name]() for name in order}
            measured.append({name: times[name] for name in contenders})
        found = [ratio(case, measured[warm_up:], *pair) for pair in pairs if contenders.keys() >= {*pair}]
        self.ratios += found
        self.raw.append({"case": case, "rounds": measured[warm_up:], "ratios": [one._asdict() for one in found]})
        return None

    def note(self, text: str) -> None:
        """Say something below the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def peer(self, name: str) -> ModuleType | None:
        """Return a library, or None and a note where it is not installed."""
        try:
            return importlib.import_module(name)
        except ImportError as error:
            return self.note(f"{name} is left out: {error}")

    def timed(self, step: Callable[[], Any]) -> Contender:
        """Return the contender that takes a step, or as many steps as are needed to time them well."""

        def measure() -> float:
            seconds = _seconds(step, 1)
            if self.quick or seconds >= SHORTEST:
                return seconds
            # That step is not counted: threads of the contender before it may still have been spinning.
            steps = int(SHORTEST / seconds) + 1
            return _seconds(step, steps) / steps

        return measure

    def stepping(self, compiled: Callable[[Any, Any], Any], state: Any, *inputs: Any) -> Contender:
        """Return the contender that steps from state to state with each of the inputs in turn."""
        turns = itertools.cycle(inputs)

        def advance() -> None:
            nonlocal state
            state = jax.block_until_ready(compiled(state, next(turns)))

        return self.timed(advance)

    def jitted(self, step: Callable[[Any, Any], Any], state: Any, *inputs: Any) -> Contender:
        """Return the contender that compiles a step, and takes it with a donated state."""
        return self.stepping(jax.jit(step, donate_argnums=0).lower(state, inputs[0]).compile(), state, *inputs)


def _seconds(step: Callable[[], Any], steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - started


def _free_memory() -> int:
    """Return the bytes that can be allocated where arrays live."""
    device = jax.devices()[0]
    if device.platform != "cpu" and (held := device.memory_stats()):
        return held["bytes_limit"] - held["bytes_in_use"]
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except OSError:  # It is no Linux.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

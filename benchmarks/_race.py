"""Figures of contenders, and what they are compared by: the ratios within a round.

A machine that is busy, hot or throttled slows a whole round, and hardly the ratio of two times in it. So contenders are
compared by the median over the rounds of the ratio within a round, which is not the ratio of the medians.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks._hlo import Work

Round = dict[str, float]


class Aim(NamedTuple):
    """A ratio that the summary tells, and what it should be at most, if anything was set."""

    name: str
    reference: str
    at_most: float | None = None


class Spread(NamedTuple):
    """The median of some figures, and the quartiles about it."""

    median: float
    lower: float
    upper: float


class Race(NamedTuple):
    """What was measured on one case."""

    title: str
    rounds: list[Round]  # The raw figures; not all contenders need be in each.
    references: tuple[str, ...]  # Those to which the ratios of all are shown.
    aims: tuple[Aim, ...] = ()
    unit: str = "ms"
    size: float | None = None  # Where the cases of a question differ in a size.
    moves: int | None = None  # The bytes that a step must read and write.
    work: dict[str, Work] = {}  # What the compiler made of the steps, where it says so.

    @property
    def names(self) -> list[str]:
        """The contenders, in order."""
        return list(dict.fromkeys(name for measured in self.rounds for name in measured))

    def figures(self, name: str) -> list[float]:
        """Return what was measured of a contender."""
        return [measured[name] for measured in self.rounds if name in measured]

    def ratio(self, name: str, reference: str) -> Spread | None:
        """Return a contender's ratio to another in the rounds that have both; None if there is none."""
        both = self._with_both(name, reference)
        return spread([measured[name] / measured[reference] for measured in both]) if both else None

    def ratio_of_least(self, name: str, reference: str) -> float | None:
        """Return the ratio of the least figures of both in these rounds; None if there is none."""
        both = self._with_both(name, reference)
        least = lambda name: min(measured[name] for measured in both)  # noqa: E731
        return least(name) / least(reference) if both else None

    def _with_both(self, name: str, reference: str) -> list[Round]:
        return [measured for measured in self.rounds if {name, reference} <= measured.keys()]


def spread(figures: Sequence[float]) -> Spread:
    """Return the median and the quartiles."""
    lower, median, upper = statistics.quantiles(figures, n=4, method="inclusive") if figures[1:] else [figures[0]] * 3
    return Spread(median, lower, upper)

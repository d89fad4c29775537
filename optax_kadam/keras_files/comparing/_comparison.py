"""`Comparison`: what `compare` found, and how it prints."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_WIDTH, _SHOWN = 80, 20  # Columns of the text, and rows in its table of arrays.


class ArrayDifference(NamedTuple):
    """How far an array is from its counterpart.

    Args:
      slot: `weights`, `mu`, `nu`, `nu_max`, `average` or `accumulator`; `state` for what else an optimizer keeps.
      path: the path in `a`, or in `b` if it is there alone; empty if one side has no such slot at all.
      ulp: the largest distance of two elements in units in the last place, infinite where a NaN meets a number; None
        if there is a `problem`.
      share: the largest distance over the largest element or, with `start`, over the largest change since then.
      zeros: how many zeros differ in their sign, which is no distance.
      problem: why the two have no distance: one side lacks the array, or shapes or dtypes differ.
    """

    slot: str
    path: str
    ulp: float | None = None
    share: float | None = None
    zeros: int = 0
    problem: str = ""

    def is_within(self, ulp: float | None, share: float | None) -> bool:
        """Return whether the distance is within both bounds; None is no bound."""
        if self.ulp is None or self.share is None:
            return False
        return (ulp is None or self.ulp <= ulp) and (share is None or self.share <= share)


class NumberDifference(NamedTuple):
    """A number of both sides: a count, a rate, a scale, or an argument of the configuration.

    Args:
      name: what it is called.
      a: the value in `a`, None if it has none.
      b: the value in `b`.
      decides: whether another value makes the trainings differ. It does not where one side cannot hold the number, or
        follows from a schedule.
    """

    name: str
    a: Any
    b: Any
    decides: bool = True

    @property
    def is_equal(self) -> bool:
        """Whether both are the same; floats are compared in float32, and NaN is NaN."""
        if isinstance(self.a, float) and isinstance(self.b, float):
            return bool(np.array_equal(np.float32(self.a), np.float32(self.b), equal_nan=True))
        return bool(self.a == self.b)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found. It prints as a table of at most 80 columns.

    Args:
      a: what the first side is, in words.
      b: what the second side is.
      arrays: all arrays of both sides, the worst first.
      numbers: the counts, rates and scales of both.
      configuration: the arguments of the optimizer that differ; None if a side has no configuration.
      since_start: whether shares are of the movement since `start`, and not of the largest element.
    """

    a: str
    b: str
    arrays: tuple[ArrayDifference, ...]
    numbers: tuple[NumberDifference, ...]
    configuration: tuple[NumberDifference, ...] | None
    since_start: bool = False

    @property
    def equal(self) -> bool:
        """Whether all arrays, numbers and, where both sides have one, the configurations are equal."""
        return self.within(ulp=0)

    def within(self, *, ulp: float | None = None, share: float | None = None) -> bool:
        """Return whether all arrays are as near as the bounds say that are given, and all else is equal.

        Args:
          ulp: the largest distance in units in the last place, >= 0.
          share: the largest distance as a share, >= 0: see `ArrayDifference`.

        Raises:
          ValueError: if a bound is negative or NaN, or none is given.
        """
        bounds = {name: bound for name, bound in (("ulp", ulp), ("share", share)) if bound is not None}
        for name, bound in bounds.items():
            if not bound >= 0:
                raise ValueError(f"`{name}` must be a number >= 0. Received: {name}={bound!r}.")
        if not bounds:
            raise ValueError("`ulp` or `share` must be given. Received: neither. For no distance at all, ask `equal`.")
        numbers = [*self.numbers, *(self.configuration or ())]
        return all(n.is_equal for n in numbers if n.decides) and all(row.is_within(ulp, share) for row in self.arrays)

    def __str__(self) -> str:
        lines = [f"a  {fitting(self.a, _WIDTH - 3)}", f"b  {fitting(self.b, _WIDTH - 3)}", ""]
        table = [("", "a", "b", "")]
        for number in (*self.numbers, *(self.configuration or ())):
            verdict = "" if number.is_equal else "different" if number.decides else "not compared"
            table.append((number.name, _shown(number.a), _shown(number.b), verdict))
        if len(table) > 1:
            lines += [*_aligned(table), ""]
        configurations = "the same" if self.configuration == () else "different"
        lines += [f"configurations: {'not in both' if self.configuration is None else configurations}", ""]
        lines += self._shown_arrays()
        both = [row for row in self.arrays if row.ulp is not None]
        equal = sum(row.is_within(0, None) for row in both)
        lines.append(f"{len(both)} arrays are in both, {equal} of them equal.")
        if zeros := sum(row.zeros for row in self.arrays):
            lines.append(f"{zeros} zeros differ in their sign, which is no distance.")
        lines.append(f"The trainings are {'equal' if self.equal else 'not equal'}.")
        return "\n".join(lines)

    def _shown_arrays(self) -> list[str]:
        """Return the lines about the arrays that are not equal: first those that have no distance."""
        apart = [row for row in self.arrays if not row.is_within(0, None)]
        lines = []
        lone, measured = [row for row in apart if row.problem], [row for row in apart if not row.problem]
        for row in lone[:_SHOWN]:
            end = f": {row.problem}" if row.path else row.problem
            path = fitting(row.path, max(_WIDTH - 13 - len(end), 16))
            lines.append(f"{row.slot:<11}  {path}{end}"[:_WIDTH])
        lines += [f"and {len(lone) - _SHOWN} more"] * (len(lone) > _SHOWN) + [""] * bool(lone)
        if measured:
            lines.append(f"{'slot':<11}  {'ULP':>10}  {'share':>7}  array")
            for row in measured[:_SHOWN]:
                path = fitting(row.path, _WIDTH - 34)
                lines.append(f"{row.slot:<11}  {_counted(row.ulp):>10}  {row.share:>7.1e}  {path}")
            scale = "change since the start" if self.since_start else "number in it"
            lines += [f"and {len(measured) - _SHOWN} more"] * (len(measured) > _SHOWN)
            lines += [f"A share is of the largest {scale}.", ""]
        return lines


def fitting(text: str, width: int) -> str:
    """Return the text, or its end if it is longer than `width`, which is what tells one path from another."""
    return text if len(text) <= width else f"...{text[len(text) - width + 3 :]}"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _shown(value: object) -> str:
    """Return a short text for a value; a float as float32 writes it, as Keras keeps it so."""
    if value is None:
        return "-"
    return fitting(str(np.float32(value)) if isinstance(value, float) else str(value), 18)


def _counted(ulp: float | None) -> str:
    """Return a distance in ULP; a large one in a shorter form."""
    return "NaN" if ulp == math.inf else f"{ulp}" if ulp is not None and ulp < 10**9 else f"{ulp:.1e}"

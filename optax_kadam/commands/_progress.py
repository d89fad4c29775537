"""Progress bars on stderr, by bytes, shown if stderr is a terminal and rich is installed."""

import contextlib
import dataclasses
import datetime
import functools
import math
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._lazy_array import LazyArray

_INTERVAL = 0.1  # Seconds between two looks at a folder that grows.


@contextlib.contextmanager
def watched(contents: Contents) -> Iterator[Contents]:
    """Yield `contents` with arrays that move a bar when they are read."""
    with bars(reading=sum(map(size, lazy_arrays(contents)))) as report:
        yield reporting(contents, functools.partial(report, "reading"))


@contextlib.contextmanager
def bars(**totals: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar for each of the works in `totals`, and yield the function that moves one: of a name, by bytes.

    Each bar tells the remaining time of its own work alone: what is read fast may be written slowly.
    """
    if not sys.stderr.isatty():
        yield lambda name, count: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text
    except ImportError:
        yield lambda name, count: None
        return
    paces = {name: Pace(total) for name, total in totals.items()}

    class Remaining(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            seconds = paces[task.description].remaining(time.monotonic())
            shown = "-:--:--" if seconds is None else str(datetime.timedelta(seconds=math.ceil(seconds)))
            return Text(f"{shown} left", style="progress.remaining")

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {name: progress.add_task(name, total=total) for name, total in totals.items()}

        def report(name: str, count: int) -> None:
            paces[name].advance(count, time.monotonic())
            progress.update(tasks[name], completed=paces[name].done)

        yield report


@dataclasses.dataclass
class Pace:
    """How fast a work goes, counted from its first hundredth on: what comes before it is slow, and tells nothing."""

    total: int  # In bytes, as `done`.
    done: int = 0
    _first: tuple[int, float] | None = None  # What was done when a hundredth was, and at what time.

    def advance(self, count: int, now: float) -> None:
        """Add the bytes that were done until the time `now`, in seconds."""
        self.done = min(self.done + count, self.total)
        if self._first is None and 100 * self.done >= self.total:
            self._first = self.done, now

    def remaining(self, now: float) -> float | None:
        """Return how many seconds are left at the mean rate until now; None if there is no rate yet."""
        if self.done == self.total:
            return 0.0
        done, start = self._first or (self.done, now)
        return (self.total - self.done) * (now - start) / (self.done - done) if self.done > done else None


def size(array: LazyArray) -> int:
    """Return how many bytes an array has."""
    return math.prod(array.shape) * array.dtype.itemsize


def lazy_arrays(contents: Contents) -> Iterator[LazyArray]:
    """Yield the arrays of the variables, then those of the optimizer."""
    for variable in contents.variables:
        yield variable.array
    for arrays in contents.slots.arrays().values() if contents.slots else ():
        yield from arrays


def reporting(contents: Contents, report: Callable[[int], None]) -> Contents:
    """Return `contents` with arrays that report their bytes when they have been read."""

    def wrapped(lazy: LazyArray) -> LazyArray:
        def read() -> np.ndarray:
            array = lazy.read()
            report(size(lazy))
            return array

        return dataclasses.replace(lazy, read=read)

    slots = contents.slots
    if slots is not None:
        slots = dataclasses.replace(
            slots, **{name: list(map(wrapped, arrays)) for name, arrays in slots.arrays().items()}
        )
    variables = [dataclasses.replace(variable, array=wrapped(variable.array)) for variable in contents.variables]
    return dataclasses.replace(contents, variables=variables, slots=slots)


@contextlib.contextmanager
def reporting_growth(folder: pathlib.Path, report: Callable[[int], None]) -> Iterator[None]:
    """Report the bytes by which the files in `folder` grow, again and again until the context ends."""
    ended, before = threading.Event(), _bytes_in(folder)

    def look() -> None:
        seen, last = before, False
        while not last:
            last = ended.wait(_INTERVAL)
            now = _bytes_in(folder)
            report(now - seen)
            seen = now

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bytes_in(folder: pathlib.Path) -> int:
    """Return how many bytes the files in `folder` have, but for those that vanish meanwhile."""
    count = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            count += path.stat().st_size if path.is_file() else 0
    return count

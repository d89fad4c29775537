"""A progress bar on stderr, shown while a file is read if stderr is a terminal and rich is installed."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np

from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._lazy_array import LazyArray


@contextlib.contextmanager
def watched(contents: Contents) -> Iterator[Contents]:
    """Yield `contents` with arrays that move the bar when they are read."""
    if not sys.stderr.isatty():
        yield contents
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield contents
        return
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=sum(map(size, lazy_arrays(contents))))
        yield _reporting(contents, lambda count: progress.advance(task, count))


def size(array: LazyArray) -> int:
    """Return how many bytes an array has."""
    return math.prod(array.shape) * array.dtype.itemsize


def lazy_arrays(contents: Contents) -> Iterator[LazyArray]:
    """Yield the arrays of the variables, then those of the optimizer."""
    for variable in contents.variables:
        yield variable.array
    for arrays in contents.slots.arrays().values() if contents.slots else ():
        yield from arrays


def _reporting(contents: Contents, report: Callable[[int], None]) -> Contents:
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

"""`Source`: the bytes of one open file, or of a part of it, read through one descriptor.

A file may be replaced while it is loaded, as a checkpoint beside a training is. Hence each is opened once (`Files`),
all of it is read through that descriptor, and a file that is written to meanwhile is refused. No byte may belong to two
things (`Claims`), so that the time and the memory of a load are bounded by the length of the file, whatever it holds.
"""

import contextlib
import errno
import math
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO, Self

import numpy as np

from optax_kadam.keras_files._lazy_array import aligned_empty

DAMAGED = "The file is damaged or cut off: copy it again."
UNTRUSTED = "The file is damaged, or no Keras wrote it: do not trust it."
_CHUNK = 1 << 20  # Bytes.
_LARGEST_EXPANSION, _SMALL = 100, 1 << 26  # A file may be this much larger than what it takes on a disk.


class Source:
    """The `size` bytes from `start` of an open file, which messages call `name`."""

    def __init__(self, file: BinaryIO, name: str, start: int, size: int):
        self._file, self.name, self._start, self.size = file, name, start, size

    def part(self, start: int, size: int, name: str) -> "Source":
        """Return the `size` bytes from `start` of this source, as a source that messages call `name`."""
        self._check(start, size)
        return Source(self._file, name, self._start + start, size)

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        """Return `count` bytes from `start`; all of them from there without `count`."""
        count = self.size - start if count is None else count
        self._check(start, count)
        data = bytearray(count)
        self._read_into(start, memoryview(data))
        return bytes(data)

    def read_array(self, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return the array that begins at byte `start`."""
        self._check(start, math.prod(shape) * dtype.itemsize)
        try:
            array = aligned_empty(shape, dtype)
        except MemoryError as error:
            must = "An array must fit into the memory of this machine."
            received = f"one of {math.prod(shape) * dtype.itemsize} bytes"
            raise self.refusal(must, received, "Load it on a machine with more memory.") from error
        self._read_into(start, array.reshape(-1).view(np.uint8).data)
        return array

    def chunks(self) -> Iterator[memoryview]:
        """Yield all bytes piece by piece. A piece may be looked at until the next one is asked for."""
        place = memoryview(bytearray(min(_CHUNK, self.size)))
        for start in range(0, self.size, _CHUNK):
            piece = place[: self.size - start]
            self._read_into(start, piece)
            yield piece

    def refusal(self, must: str, received: str, remedy: str = DAMAGED) -> ValueError:
        """Return the error that says what must hold, what was received in this file, and the remedy."""
        return ValueError(f"{must} Received: {self.name!r}, {received}. {remedy}")

    def _check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise self.refusal(
                "A part must lie within its file.", f"bytes {start} to {start + count} of the {self.size} there"
            )

    def _read_into(self, start: int, place: memoryview) -> None:
        self._file.seek(self._start + start)
        done = 0
        while done < len(place):  # The system reads at most 2 GiB in one call.
            count = self._file.readinto(place[done:])  # pyright: ignore[reportAttributeAccessIssue]: it is a raw file.
            if not count:
                raise self.refusal("A file must not become shorter while it is read.", f"which ends at {start + done}")
            done += count


class Claims:
    """The parts of a source that something was read from. No byte may be part of two."""

    def __init__(self, source: Source):
        self._source, self._left = source, source.size
        self._parts: list[tuple[int, int]] = []

    def take(self, start: int, count: int) -> None:
        """Claim `count` bytes from `start`, or raise if more is claimed than the source holds."""
        self._left -= count
        if self._left < 0 or start < 0 or count < 0 or start + count > self._source.size:
            raise self._refusal(start, start + count)
        self._parts.append((start, start + count))

    def check_apart(self) -> None:
        """Raise if two parts overlap."""
        last = 0
        for start, end in sorted(self._parts):
            if start < last:
                raise self._refusal(start, min(end, last))
            last = end

    def _refusal(self, start: int, end: int) -> ValueError:
        return self._source.refusal(
            "Each byte of a file must belong to one thing in it.",
            f"bytes {start} to {end}, which belong to two or lie outside",
            UNTRUSTED,
        )


class Files:
    """The files of one load, each of which is opened once. None may be written to before all is read."""

    def __init__(self) -> None:
        self._until_closed = contextlib.ExitStack()
        self._opened: list[tuple[pathlib.Path, int, os.stat_result]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._until_closed.close()

    def open(self, path: pathlib.Path) -> Source:
        """Return the file at `path` as a source, or raise if it is a device or a pipe, which need not end."""
        file = self._until_closed.enter_context(open(path, "rb", buffering=0, opener=_open_at_once))
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(
                f"`path` must be of a file. Received: {str(path)!r}, which is a device or a pipe. "
                "Copy what it gives to a file."
            )
        _check_written(file.fileno(), path, status)
        self._opened.append((path, file.fileno(), status))
        return Source(file, str(path), 0, status.st_size)

    def given(self, file: BinaryIO) -> Source:
        """Return a file that the caller has opened, which is not closed."""
        if not all(hasattr(file, name) for name in ("readinto", "seek", "tell")):
            raise TypeError(
                "`path` must be a path, or a file that is open for reading bytes and can seek. "
                f"Received: path={file!r}. Hand over `open(path, 'rb')`, or `io.BytesIO(content)`."
            )
        return Source(file, str(getattr(file, "name", type(file).__name__)), 0, file.seek(0, os.SEEK_END))

    def keep(self, file: BinaryIO) -> BinaryIO:
        """Close `file` with the others."""
        return self._until_closed.enter_context(file)

    def check_unchanged(self) -> None:
        """Raise if a file was written to, or if one of several was replaced, since it was opened."""
        for path, descriptor, then in self._opened:
            now = os.fstat(descriptor)
            is_same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
            if len(self._opened) > 1 and is_same:
                is_same = path.exists() and os.path.samestat(path.stat(), then)
            if not is_same:
                raise ValueError(
                    f"A file must not change while it is read. Received: {str(path)!r}, which was written to "
                    "meanwhile. Load it again, or copy it first."
                )


def _open_at_once(path: str, flags: int) -> int:
    """Open `path` without waiting for a pipe's other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_written(descriptor: int, path: pathlib.Path, status: os.stat_result) -> None:
    """Raise if nearly all of a large file is holes, which take no room on a disk and are read as zeros.

    A file of 1 TB that is one hole would fill the memory. Real files have few holes, where moments are still zero. Some
    file systems count blocks only after a while, so the count alone decides nothing: the holes are looked for.
    """
    least = (status.st_size - _SMALL) // _LARGEST_EXPANSION
    if not hasattr(os, "SEEK_DATA") or getattr(status, "st_blocks", least) * 512 >= least:
        return
    written = end = 0
    try:
        while written < least:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            written += end - start
    except OSError as error:
        if error.errno != errno.ENXIO:  # This system does not look for holes.
            return
        raise ValueError(
            f"A file must have been written. Received: {str(path)!r}, {written} of whose {status.st_size} bytes were, "
            f"and the others are holes. {DAMAGED}"
        ) from error

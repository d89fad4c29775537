"""`attribute_patches`: what h5py would write into an HDF5 file to change an attribute.

An attribute of another length moves within its file, which is left to h5py. It is given the file as it will be, and its
writes are kept in memory: so they can be made to another file, and an error of the disk never meets h5py, which loses
such errors where Python writes for it.
"""

import io
from collections.abc import Mapping
from typing import Any

from optax_kadam.keras_files._source import Source


def attribute_patches(source: Source, attributes: Mapping[str, str]) -> tuple[list[tuple[int, bytes]], int]:
    """Return the writes, as places and bytes in order, that set attributes of the root of `source`, and the new size.

    Raises:
      ImportError: if h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "h5py must be installed to change the learning rate in a `.h5` file. "
            f"Received: {source.name!r}, and no h5py. `pip install h5py`, or save as `.keras` or `.weights.h5`."
        ) from error
    patched = _Patched(source)
    with h5py.File(patched, "r+") as file:
        for name, text in attributes.items():
            file.attrs.modify(name, text)  # An assignment makes a new one, and the file grows with every save.
    return patched.patches, patched.size


class _Patched(io.RawIOBase):
    """A source with what was written to it, which is kept in memory."""

    def __init__(self, source: Source):
        self._source, self._at = source, 0
        self.patches: list[tuple[int, bytes]] = []
        self.size = source.size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        written = bytes(data)
        self.patches.append((self._at, written))
        self._at += len(written)
        self.size = max(self.size, self._at)
        return len(written)

    def readinto(self, buffer: Any) -> int:
        start, end = self._at, min(self._at + len(buffer), self.size)
        data = bytearray(max(0, end - start))
        stored = max(0, min(end, self._source.size) - start)
        data[:stored] = self._source.read(start, stored) if stored else b""
        for place, patch in self.patches:
            first, last = max(place, start), min(place + len(patch), end)
            if first < last:
                data[first - start : last - start] = patch[first - place : last - place]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

"""The program that opens HDF5 files; `_hdf5` runs it as another process.

libhdf5 crashes on some damaged files, or never returns (on 3 of 20,000 files with a flipped bit), and would take the
process of the user with it. This program reads requests as lines of JSON from stdin; for each it writes a line of JSON
to stdout, with the groups, the attributes and the places of the datasets. `_hdf5` then reads the datasets by itself.

The program imports nothing of the package, so that it starts fast.
"""

import contextlib
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import h5py
from h5py import h5a, h5d, h5o, h5t  # pyright: ignore[reportAttributeAccessIssue]: it has no types.

_MOST_STRINGS = 1_000_000  # A model of a million layers has no more in one attribute.


class FoundArray(TypedDict):
    """The place of a dataset; `created` is larger for one that was created later."""

    shape: Sequence[int]
    dtype: str
    offset: int  # The first byte, counted from the start of the HDF5 file.
    bytes: int
    attrs: Mapping[str, str | list[str]]
    created: int


class FoundGroup(TypedDict):
    """A group. HDF5 fills a hole now and then, so that `created` is the highest address of the group and all in it."""

    attrs: Mapping[str, str | list[str]]
    arrays: Mapping[str, FoundArray]
    groups: Mapping[str, "FoundGroup"]
    created: int


class _FilePart(io.RawIOBase):
    """The `size` bytes from `start` of the file at `path`, as a file: they may be an HDF5 file inside an archive."""

    def __init__(self, path: str, start: int, size: int):
        self._file, self._start, self._size, self._at = open(path, "rb"), start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def contents(path: str, start: int, size: int) -> FoundGroup:
    """Return the root group of the HDF5 file in the `size` bytes from `start` of the file at `path`."""
    with contextlib.closing(_FilePart(path, start, size)) as part, h5py.File(part, "r") as file:
        return _group(file, "", size, set())


def _group(group: h5py.Group, name: str, size: int, above: set[int]) -> FoundGroup:
    address = h5o.get_info(group.id).addr
    if address in above:
        raise ValueError(f"A group must not stand inside itself. Received: {name!r}.")
    attrs, arrays, groups = _attributes(group, name), {}, {}
    for key in group:
        inner = f"{name}/{key}"
        link = group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(
                f"Every link must lead to something in the same file. Received: {type(link).__name__} at {inner!r}. "
                "No Keras wrote this: do not trust it."
            )
        item = group[key]
        if isinstance(item, h5py.Group):
            groups[key] = _group(item, inner, size, above | {address})
        elif isinstance(item, h5py.Dataset):
            arrays[key] = _dataset(item, inner, size)
        else:
            raise ValueError(
                f"A group must hold groups and datasets. Received: {type(item).__name__} at {inner!r}. "
                "No Keras wrote this: do not trust it."
            )
    created = max([address, *(part["created"] for part in [*arrays.values(), *groups.values()])])
    return {"attrs": attrs, "arrays": arrays, "groups": groups, "created": created}


def _dataset(dataset: h5py.Dataset, name: str, size: int) -> FoundArray:
    created = dataset.id.get_create_plist()
    if created.get_layout() != h5d.CONTIGUOUS or created.get_external_count() or created.get_nfilters():
        raise ValueError(
            f"A dataset must be stored in one piece, uncompressed, in the file itself, as Keras writes it. "
            f"Received: another layout at {name!r}. Change it with h5repack."
        )
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or dtype.kind not in "fiubV":
        raise ValueError(f"A dataset must hold numbers. Received: {dtype} at {name!r}.")
    count = math.prod(shape) * dtype.itemsize
    offset = dataset.id.get_offset() if count else 0
    if offset is None or offset < 0 or offset + count > size:
        raise ValueError(
            f"A dataset must lie within its file. Received: {name!r} of shape {shape}, "
            f"in a file of {size} bytes. The file is damaged or cut off: copy it again."
        )
    return {
        "shape": shape,
        "dtype": "opaque" if dtype.kind == "V" else dtype.str,
        "offset": offset,
        "bytes": count,
        "attrs": _attributes(dataset, name),
        "created": h5o.get_info(dataset.id).addr,
    }


def _attributes(item: h5py.Group | h5py.Dataset, name: str) -> dict[str, str | list[str]]:
    """Return the attributes: strings and lists of strings. Keras writes no others but empty lists."""
    found: dict[str, str | list[str]] = {}
    for index in range(h5a.get_num_attrs(item.id)):
        attribute = h5a.open(item.id, index=index)
        key = attribute.name.decode()
        if 0 in attribute.shape:
            found[key] = []
            continue
        # Reading a damaged attribute of another type crashed libhdf5, hence the type is checked first.
        if attribute.get_type().get_class() != h5t.STRING or math.prod(attribute.shape) > _MOST_STRINGS:
            raise ValueError(f"An attribute must be a string, or a list of them. Received: {key!r} of {name!r}.")
        value: Any = item.attrs[key]
        found[key] = _text(value) if isinstance(value, str | bytes) else [_text(text) for text in value.ravel()]
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def main() -> None:
    """Answer each line of stdin until it ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))  # A damaged length must not use up the memory.
    for line in sys.stdin:
        try:
            answer = {"contents": contents(*json.loads(line))}
        except Exception as error:  # h5py raises errors of any kind on damaged files.
            answer = {"error": " ".join(str(error).split()), "named": type(error) is ValueError}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Keras's zip archives (`.keras`) are opened without unpacking, and the shards of a `.weights.json` are put together.

A zip archive carries a CRC-32 of each member, which is verified before anything in the member is used.
"""

import pathlib
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping

from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files._source import Files, Source
from optax_kadam.keras_files.containers._hdf5 import read_hdf5

WEIGHTS = "model.weights.h5"
ZIP_SIGNATURE = b"PK\x03\x04"
_CHUNK = 1 << 22
# Keras compresses nothing. A member that someone compressed expands less than this, unless it is small.
_LARGEST_EXPANSION, _SMALL = 100, 1 << 26


class Folder:
    """A `.keras` archive that someone unpacked."""

    def __init__(self, path: pathlib.Path, files: Files):
        self._path, self._files = path, files

    def names(self) -> list[str]:
        """Return the names of the files in it."""
        return [path.name for path in self._path.iterdir()]

    def json(self, name: str) -> dict[str, object]:
        """Return the JSON object in the file `name`."""
        source = self._files.open(self._path / name)
        return parse_json(source.read(), source.name)

    def hdf5(self, name: str) -> Group:
        """Return the root group of the HDF5 file `name`."""
        return read_hdf5(self._files.open(self._path / name))


class Archive:
    """A `.keras` archive."""

    def __init__(self, source: Source, files: Files):
        self._source, self._files = source, files
        self._zip = zipfile.ZipFile(files.keep(source.as_file()))
        self._check_names()

    def names(self) -> list[str]:
        """Return the names of the members."""
        return self._zip.namelist()

    def json(self, name: str) -> dict[str, object]:
        """Return the JSON object in the member `name`."""
        member = self._member(name)
        return parse_json(self._zip.read(member), f"{self._source.name}/{name}")

    def hdf5(self, name: str) -> Group:
        """Return the root group of the HDF5 file in the member `name`, whose checksum is verified first."""
        return read_hdf5(self.read(name))

    def read(self, name: str) -> Source:
        """Return the bytes of the member `name`, whose checksum has been verified."""
        member = self._member(name)
        where = f"{self._source.name}/{name}"
        if member.compress_type != zipfile.ZIP_STORED:
            unpacked = self._files.keep(tempfile.TemporaryFile())
            with self._zip.open(member) as source:
                shutil.copyfileobj(source, unpacked, _CHUNK)
            return Source(unpacked, where, 0, member.file_size)
        with self._zip.open(member) as source:  # Reading to the end compares the checksum.
            while source.read(_CHUNK):
                pass
        return self._source.part(self._start_of(member), member.file_size, where)

    def _check_names(self) -> None:
        names = self._zip.namelist()
        for name in names:
            parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or name.startswith(("/", "\\")) or ":" in name:
                raise ValueError(
                    f"A member of an archive must stay inside it. Received: {name!r} in {self._source.name!r}. "
                    "No Keras wrote this: do not trust it."
                )
            if names.count(name) > 1:
                raise ValueError(
                    f"A member must stand in an archive once. Received: {name!r}, {names.count(name)} times, "
                    f"in {self._source.name!r}. No Keras wrote this: do not trust it."
                )

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._zip.namelist():
            raise ValueError(
                f"A `.keras` archive must hold {name!r}. Received: {self.names()} in {self._source.name!r}. "
                "Save it again with Keras's `model.save`."
            )
        member = self._zip.getinfo(name)
        if member.file_size > max(_SMALL, _LARGEST_EXPANSION * member.compress_size):
            raise ValueError(
                f"A member of an archive must not expand more than {_LARGEST_EXPANSION} times. Received: {name!r}, "
                f"{member.compress_size} to {member.file_size} bytes, in {self._source.name!r}, which is a zip bomb. "
                "Pack it again without compression if you trust it."
            )
        return member

    def _start_of(self, member: zipfile.ZipInfo) -> int:
        """Return where the bytes of an uncompressed member begin: behind its own header, whose length only it tells."""
        name_length, extra_length = struct.unpack("<26x2H", self._source.read(member.header_offset, 30))
        return member.header_offset + 30 + name_length + extra_length


def read_shards(index: Mapping[str, object], where: str, read: Callable[[str], Group]) -> Group:
    """Return the root group of the file that was cut into the shards of a `.weights.json`.

    Args:
      index: the JSON object in that file; its `weight_map` leads from the path of a group to the name of its shard, or
        to a list of names.
      where: the name of that file, for messages.
      read: the function from the name of a shard to its root group.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"The index of shards must hold a `weight_map`. Received: weight_map={weight_map!r} in {where!r}. "
            "Hand over the `.weights.json` that Keras wrote."
        )
    listed = {group: [names] if isinstance(names, str) else names for group, names in weight_map.items()}
    shards: dict[str, Group] = {}
    for names in listed.values():
        for name in names:
            if not isinstance(name, str) or pathlib.PurePath(name.replace("\\", "/")).name != name:
                raise ValueError(
                    f"A shard must stand beside its index. Received: {name!r} in {where!r}. "
                    "No Keras wrote this: do not trust it."
                )
    for name in sorted({name for names in listed.values() for name in names}):
        shards[name] = read(name)
    found: dict[str, list[str]] = {}
    for name, shard in shards.items():
        for group in _groups_with_arrays(shard, ""):
            found.setdefault(group, []).append(name)
    if {group: sorted(names) for group, names in listed.items()} != found:
        wrong = sorted(set(listed) ^ set(found)) or [group for group in listed if sorted(listed[group]) != found[group]]
        raise ValueError(
            f"The shards must hold what their index lists. Received: {wrong[0]!r}, which is in "
            f"{found.get(wrong[0], [])} but listed in {listed.get(wrong[0], [])}, in {where!r}. "
            "Copy the index and all shards again."
        )
    merged = Group({}, {}, {}, 0)
    for shard in shards.values():
        merged = _merged(merged, shard, where)
    return merged


def _groups_with_arrays(group: Group, name: str) -> Iterator[str]:
    if group.arrays:
        yield name
    for key, inner in group.groups.items():
        yield from _groups_with_arrays(inner, f"{name}/{key}")


def _merged(group: Group, other: Group, where: str) -> Group:
    """Return both groups as one. What is in `other` counts as created later."""
    if repeated := set(group.arrays) & set(other.arrays):
        raise ValueError(f"An array must stand in one shard. Received: {min(repeated)!r} twice, in {where!r}.")
    groups = dict(group.groups)
    last = max((inner.created for inner in groups.values()), default=0)
    for key, inner in other.groups.items():
        groups[key] = (
            _merged(groups[key], inner, where)
            if key in groups
            else Group(inner.attrs, inner.arrays, inner.groups, last + inner.created)
        )
    return Group({**other.attrs, **group.attrs}, {**group.arrays, **other.arrays}, groups, group.created)

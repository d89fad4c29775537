"""HDF5 files are read in this process, in the one layout in which h5py writes them for Keras.

That is the oldest one: a superblock of version 0 leads to the header of the root group. A header lists messages. Those
of a group lead to a B-tree of its members and to a heap with their names; those of a dataset give its shape, its type
and its place. This layout carries no checksum, so that a flipped bit in a number goes unnoticed. All else is held
against what Keras writes: types are compared byte by byte, a dataset must fill its shape, and no byte of the file may
belong to two things (`Claims`), which leaves no room for cycles, for many links to one dataset, and for datasets that
overlap.

Source: "HDF5 File Format Specification Version 3.0" (The HDF Group), sections II.A, III.A to III.E, IV.A.
"""

import functools
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Attributes, Group
from optax_kadam.keras_files._source import UNTRUSTED, Claims, Source

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSIONS = bytes([0, 0, 0, 0, 0, 8, 8, 0])  # All versions are 0; an address and a length have 8 bytes.
_HARMLESS = 0b101  # Flags of a message: it never changes, and it must not be shared, as HDF5 1.10 says of attributes.
_NOWHERE = 2**64 - 1  # The address of what is not stored.
_NO_MORE = 1  # The address behind the last free part of a heap.
_MOST_LEVELS = 100  # Groups inside groups: a model of 30 nested models has 60.
_LONGEST_PATH = 10_000  # Without this bound, 10^4 members of a group with a name of 10 MB had paths of 100 GB.
_HIGHEST_RANK = 32  # HDF5's own bound.
_PACK = "`h5repack --low=0 --high=0 --filter=NONE --layout=CONTI old.h5 new.h5`"
_REPACK = f"Pack it anew: {_PACK}."

# The kinds of messages in a header.
_NIL, _SPACE, _LINK_INFO, _TYPE, _FILL, _LINK, _EXTERNAL, _LAYOUT = 0, 1, 2, 3, 5, 6, 7, 8
_GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOLS, _TIME = 10, 11, 12, 16, 17, 18
_MAY_REPEAT = {_ATTRIBUTE, _LINK}
# What must and what may describe a dataset, a group, and a group with a name that is not ASCII.
_DATASET = ({_SPACE, _TYPE, _LAYOUT}, {_FILL, _TIME, _ATTRIBUTE})
_GROUP = ({_SYMBOLS}, {_ATTRIBUTE})
_GROUP_OF_LINKS = ({_LINK_INFO, _GROUP_INFO}, {_LINK, _ATTRIBUTE})


def _integer(size: int, *, is_signed: bool) -> bytes:
    return struct.pack("<BBxxIHH", 0x10, 8 * is_signed, size, 0, 8 * size)


def _float(size: int, exponent: int) -> bytes:
    mantissa = 8 * size - 1 - exponent
    places = struct.pack("<HH4BI", 0, 8 * size, mantissa, exponent, 0, mantissa, 2 ** (exponent - 1) - 1)
    return struct.pack("<BBBxI", 0x11, 0x20, 8 * size - 1, size) + places


def _dtypes() -> Iterator[tuple[bytes, np.dtype]]:
    """Yield the types of Keras's arrays, each behind the message that says it."""
    for size in (1, 2, 4, 8):
        yield _integer(size, is_signed=False), np.dtype(f"<u{size}")
        yield _integer(size, is_signed=True), np.dtype(f"<i{size}")
    for size, exponent in ((2, 5), (4, 8), (8, 11)):
        yield _float(size, exponent), np.dtype(f"<f{size}")
    names = b"FALSE\0\0\0TRUE\0\0\0\0\0\1"
    yield struct.pack("<BHxI", 0x18, 2, 1) + _integer(1, is_signed=True) + names, np.dtype(bool)
    yield struct.pack("<BxxxI", 0x15, 2), np.dtype(jnp.bfloat16)  # HDF5 has no such type: Keras writes opaque bytes.


_DTYPES = {message.ljust(-len(message) % 8 + len(message), b"\0"): dtype for message, dtype in _dtypes()}

# A string is stored in place, behind its type and its size, or in a heap; the two of each kind are ASCII and UTF-8.
_TEXT_HERE = {b"\x13\x01\0\0", b"\x13\x11\0\0"}
_TEXT_IN_HEAP = {struct.pack("<BBBxI", 0x19, 1, code, 16) + _integer(1, is_signed=False) for code in (0, 1)}
_EMPTY = _float(8, 11)  # The type of an empty list, which is numpy's.


class _Message(NamedTuple):
    kind: int
    data: bytes


class _Link(NamedTuple):
    """A member of a group: its name, the address of its header, and, for a group, where that says its members are."""

    name: str
    address: int
    members: bytes | None


def read_hdf5(source: Source) -> Group:
    """Return the root group of the HDF5 file `source`. Its arrays are read when they are asked for.

    Raises:
      ValueError: if the file is damaged, or holds something that Keras does not write.
    """
    return _Reader(source).root()


class _Reader:
    """Reads the groups of one file, and claims each part of it that it reads."""

    def __init__(self, source: Source):
        self._source, self._claims = source, Claims(source)
        self._heaps: dict[int, dict[int, bytes]] = {}
        if source.size < 96:
            raise source.refusal("An HDF5 file must be whole.", f"of {source.size} bytes")
        head = self._take(0, 56)
        if head[:8] == SIGNATURE and head[8] in (1, 2, 3):
            must = "An HDF5 file must have a superblock of version 0, as Keras's have."
            raise source.refusal(must, f"which has version {head[8]}", _REPACK)
        leaf, node, flags, base, free, end, driver = self._unpack("<HHI4Q", head, 16)
        if head[:16] != SIGNATURE + _VERSIONS or flags or base or free != _NOWHERE or driver != _NOWHERE:
            raise self._untrusted("An HDF5 file must begin as h5py lets it begin.", f"bytes {head.hex()}")
        if end != source.size:
            raise source.refusal("An HDF5 file must be whole.", f"of {source.size} bytes in the place of {end}")
        self._most_symbols, self._node_size = 2 * leaf, 24 + 8 * (4 * node + 1)

    def root(self) -> Group:
        _, address, members = self._symbol(self._take(56, 40), "")
        root = self._object(_Link("", address, members), "", 0)
        self._claims.check_apart()
        if not isinstance(root, Group):
            raise self._untrusted("The root of an HDF5 file must be a group.", "where it is a dataset")
        return root

    def _object(self, link: _Link, path: str, level: int) -> Group | LazyArray:
        """Return the group or the dataset at `link`."""
        messages = self._messages(link.address, path)
        found = {message.kind: message.data for message in messages}
        if _EXTERNAL in found or _FILTERS in found:
            raise self._not_in_one_piece(path)
        must, may = _DATASET if _LAYOUT in found else _GROUP_OF_LINKS if _LINK_INFO in found else _GROUP
        once = [message.kind for message in messages if message.kind not in _MAY_REPEAT]
        if not must <= set(found) <= must | may or len(once) != len(set(once)):
            received = f"messages of the kinds {sorted(found)} for {path!r}, or one of them twice"
            raise self._untrusted("An object must be described as h5py describes it.", received)
        attributes = dict(self._attribute(message.data, path) for message in messages if message.kind == _ATTRIBUTE)
        if len(attributes) < sum(message.kind == _ATTRIBUTE for message in messages):
            raise self._untrusted("An attribute must be there once.", f"two of one name of {path!r}")
        if _LAYOUT in found:
            return self._dataset(found, attributes, path)
        if level > _MOST_LEVELS:
            raise self._untrusted(f"Groups may be nested {_MOST_LEVELS} times.", f"one at {path[:50]!r}... with more")
        if _SYMBOLS in found:
            if link.members not in (None, found[_SYMBOLS]):
                raise self._untrusted("A group must be where its name leads.", f"{path!r}, which is elsewhere")
            tree, heap = self._unpack("<QQ", found[_SYMBOLS])
            links = self._links(tree, heap, path)
        else:
            links = self._links_in(found[_LINK_INFO], [m.data for m in messages if m.kind == _LINK], path)
        arrays: dict[str, LazyArray] = {}
        groups: dict[str, Group] = {}
        for inner in links:
            if inner.name in ("", ".") or "/" in inner.name or len(path) + len(inner.name) > _LONGEST_PATH:
                must = f"A member must have a name, and a path of at most {_LONGEST_PATH} characters."
                raise self._untrusted(must, f"{inner.name[:50]!r} in {path[:50]!r}")
            if inner.name in arrays or inner.name in groups:
                raise self._untrusted("A name must stand in a group once.", f"{inner.name!r} twice in {path!r}")
            item = self._object(inner, f"{path}/{inner.name}", level + 1)
            if isinstance(item, Group):
                groups[inner.name] = item
            else:
                arrays[inner.name] = item
        return Group(attributes, arrays, groups)

    def _messages(self, address: int, path: str) -> list[_Message]:
        """Return the messages of the header at `address`, which stand in a block behind it and in more elsewhere."""
        version, count, references, size = self._unpack("<BxHIIxxxx", self._take(address, 16))
        if version != 1 or references != 1:
            received = f"version {version} and {references} for {path!r}"
            raise self._untrusted("A header must have version 1 and one link that leads to it.", received)
        messages: list[_Message] = []
        blocks, left = [(address + 16, size)], count
        while blocks:
            block, at = self._take(*blocks.pop()), 0
            while at < len(block):
                kind, length, flags = self._unpack("<HHBxxx", block, at)
                data, at = self._part(block, at + 8, length), at + 8 + length
                left -= 1
                if flags & ~_HARMLESS:
                    raise self._untrusted("A header must hold its own messages.", f"a shared one for {path!r}")
                if left < 0:
                    break
                if kind == _CONTINUATION:
                    blocks.append(self._unpack("<QQ", data))
                elif kind != _NIL:
                    messages.append(_Message(kind, data))
        if left:
            raise self._untrusted("A header must hold as many messages as it counts.", f"{count} for {path!r}")
        return messages

    # The members of a group.

    def _links(self, tree: int, heap: int, path: str) -> Iterator[_Link]:
        """Yield the members of a group from its B-tree and its heap of names."""
        signature, size, free, place = self._unpack("<8s3Q", self._take(heap, 32))
        if signature != b"HEAP\0\0\0\0":
            raise self._untrusted("A group must have a heap of names.", f"{signature!r} for {path!r}")
        names, left, last = self._take(place, size), size, b""
        unused = bytearray(names)
        for table in self._tables(tree, path):
            signature, count = self._unpack("<6sH", table)
            if signature != b"SNOD\1\0":
                raise self._untrusted("The leaves of a B-tree must be tables of symbols.", f"{signature!r} of {path!r}")
            for index in range(count):
                start, address, members = self._symbol(self._part(table, 8 + 40 * index, 40), path)
                end = names.find(b"\0", start)
                left -= end + 1 - start
                if start % 8 or end < start or left < 0 or names[start:end] <= last:
                    raise self._untrusted("The names in a group must ascend.", f"one at {start} of {path!r}")
                last = names[start:end]
                unused[start:end] = bytes(end - start)
                yield _Link(self._text(last, path), address, members)
        while free != _NO_MORE:
            start, (free, count) = free, self._unpack("<QQ", names, free)
            unused[start : start + count] = bytes(len(self._part(names, start, count)))
            left -= count
            if count < 16 or left < 0:
                raise self._untrusted("The free parts of a heap must lie apart.", f"one at {start} of {path!r}")
        if any(unused):  # A count is too small, or h5py deleted a link here.
            must = "Each name in a group must lead to a member."
            remedy = f"If h5py edited it, pack it anew: {_PACK}. If not, it is damaged: copy it again."
            raise self._source.refusal(must, f"one in {path or '/'!r} that leads nowhere", remedy)

    def _tables(self, address: int, path: str, level: int | None = None) -> Iterator[bytes]:
        """Yield the tables of symbols below the node at `address` of a B-tree, in order."""
        node = self._take(address, self._node_size)
        signature, found, count = self._unpack("<5sBH", node)
        if signature != b"TREE\0" or level not in (None, found):
            raise self._untrusted("A B-tree must consist of nodes.", f"{signature!r} of level {found} for {path!r}")
        for index in range(count):
            (child,) = self._unpack("<Q", node, 32 + 16 * index)
            if found:
                yield from self._tables(child, path, found - 1)
            else:
                yield self._take(child, 8 + 40 * self._most_symbols)

    def _symbol(self, entry: bytes, path: str) -> tuple[int, int, bytes | None]:
        """Return where the name of a member is in its heap, where its header is, and where a group's members are."""
        start, address, kind, members = self._unpack("<QQIxxxx16s", entry)
        if kind > 1:
            raise self._not_a_hard_link(path)
        return start, address, members if kind else None

    def _links_in(self, info: bytes, links: list[bytes], path: str) -> Iterator[_Link]:
        """Yield the members of a group that lists them in its own header, as it does if a name is not ASCII."""
        _, flags = self._unpack("<BB", info)
        if self._unpack("<QQ", info, 2 + 8 * (flags & 1)) != (_NOWHERE, _NOWHERE):
            raise self._source.refusal(
                "A group of more than 8 members must have names in ASCII.", repr(path), "Save it with such names."
            )
        for link in links:
            version, flags = self._unpack("<BB", link)
            if version != 1 or flags & 8 and link[2:3] != b"\0":
                raise self._not_a_hard_link(path)
            at = 2 + bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
            size = 1 << (flags & 3)
            length = int.from_bytes(self._part(link, at, size), "little")
            name = self._part(link, at + size, length)
            (address,) = self._unpack("<Q", link, at + size + length)
            yield _Link(self._text(name, path), address, None)

    # Datasets and attributes.

    def _dataset(self, found: dict[int, bytes], attributes: Attributes, path: str) -> LazyArray:
        shape, message = self._shape(found[_SPACE], path), found[_TYPE]
        if message not in _DTYPES:
            raise self._untrusted("A dataset must hold numbers.", f"type {message.hex()} of {path!r}")
        dtype = _DTYPES[message]
        if "dtype" in attributes and attributes["dtype"] != dtype.name:
            received = f"dtype={attributes['dtype']!r} of {path!r}, which is {dtype.name}"
            raise self._untrusted("The attribute `dtype` must be the dataset's type.", received)
        version, layout = self._unpack("<BB", found[_LAYOUT])
        if (version, layout) != (3, 1):
            raise self._not_in_one_piece(path)
        offset, size = self._unpack("<QQ", found[_LAYOUT], 2)
        if size != math.prod(shape) * dtype.itemsize or math.prod(max(n, 1) for n in shape) >= 2**56:
            received = f"{size} bytes of {path!r} for {dtype}{list(shape)}"
            raise self._untrusted("A dataset must fill its shape.", received)
        if size:
            self._claims.take(offset, size)
        else:
            offset = 0  # Nothing is stored.
        return LazyArray(shape, dtype, functools.partial(self._source.read_array, offset, shape, dtype), offset)

    def _shape(self, message: bytes, path: str) -> tuple[int, ...]:
        version, rank, has_limits = self._unpack("<BBBxxxxx", message)
        is_whole = rank <= _HIGHEST_RANK and has_limits <= 1 and len(message) == 8 + 8 * rank * (1 + has_limits)
        shape, limits = message[8 : 8 + 8 * rank], message[8 + 8 * rank :]
        if version != 1 or not is_whole or has_limits and limits != shape:
            raise self._untrusted("A shape must be that of an array.", f"{message[:80].hex()} of {path!r}")
        return self._unpack(f"<{rank}Q", shape)

    def _attribute(self, message: bytes, path: str) -> tuple[str, str | list[str]]:
        """Return the name and the value of an attribute: a string or a list of strings. Keras writes no others."""
        version, *sizes = self._unpack("<BxHHH", message)
        at, parts = 8, []
        for size in sizes:
            parts.append(self._part(message, at, size))
            at += _padded(size)
        name, kind, shape = self._text(parts[0].removesuffix(b"\0"), path), parts[1], self._shape(parts[2], path)
        is_in_heap, is_here = kind in _TEXT_IN_HEAP, len(kind) == 8 and kind[:4] in _TEXT_HERE
        is_text = is_in_heap or is_here or shape == (0,) and kind == _EMPTY
        width = 16 if is_in_heap else int.from_bytes(kind[4:8], "little")
        size = math.prod(shape) * width
        if version != 1 or not is_text or not width or len(shape) > 1 or len(message) != _padded(at + size):
            raise self._untrusted("An attribute must be a string or a list of strings.", f"{name!r} of {path!r}")
        values = [message[start : start + width] for start in range(at, at + size, width)]
        texts = [self._text(self._in_heap(value) if is_in_heap else value.rstrip(b"\0"), path) for value in values]
        return name, texts if shape else texts[0]

    def _in_heap(self, place: bytes) -> bytes:
        """Return a string that stands in a heap which serves all the file. None is asked for twice."""
        length, address, index = self._unpack("<IQI", place)
        if not length:
            return b""
        if address not in self._heaps:
            self._heaps[address] = dict(self._objects(address))
        text = self._heaps[address].pop(index, None)
        if text is None or len(text) != length:
            raise self._untrusted("A string must be in its heap.", f"{length} bytes at {index} of {address}")
        return text

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        signature, size = self._unpack("<5sxxxQ", self._source.read(address, 16))
        if signature != b"GCOL\1":
            raise self._untrusted("A string must be in a heap.", f"{signature!r}")
        heap, at = self._take(address, size), 16
        while at + 16 <= size:
            index, length = self._unpack("<HxxxxxxQ", heap, at)
            if not index:  # What follows is free.
                return
            yield index, self._part(heap, at + 16, length)
            at += 16 + _padded(length)

    # Bytes.

    def _take(self, start: int, count: int) -> bytes:
        self._claims.take(start, count)
        return self._source.read(start, count)

    def _part(self, data: bytes, start: int, count: int) -> bytes:
        if start + count > len(data):
            received = f"bytes {start} to {start + count} of {len(data)}"
            raise self._untrusted("A part must lie within its whole.", received)
        return data[start : start + count]

    def _unpack(self, layout: str, data: bytes, start: int = 0) -> tuple[Any, ...]:
        return struct.unpack(layout, self._part(data, start, struct.calcsize(layout)))

    def _text(self, text: bytes, path: str) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise self._untrusted("A name must be text.", f"{text[:50]!r} in {path!r}") from error

    def _untrusted(self, must: str, received: str) -> ValueError:
        return self._source.refusal(must, received, UNTRUSTED)

    def _not_in_one_piece(self, path: str) -> ValueError:
        must = "A dataset must be stored in one piece, uncompressed, in the file itself, as Keras writes it."
        return self._source.refusal(must, f"another layout of {path!r}", _REPACK)

    def _not_a_hard_link(self, path: str) -> ValueError:
        must = "Every link must lead to something in the same file."
        return self._untrusted(must, f"a soft or an external one in {path or '/'!r}")


def _padded(size: int) -> int:
    return -size % 8 + size

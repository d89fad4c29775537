"""Zip files are read in the one layout in which Python's `zipfile` writes them for Keras.

A zip file describes each of its members twice: in a header before the bytes of the member, and in an entry of the
directory behind all members. Readers differ in which of the two they believe, and Python's `zipfile` lets members
overlap before 3.11.8. Hence both must agree here, members follow one another from the first byte to the directory, and
the record of where that is ends the file. Members that someone compressed are inflated by `zlib`. The checksum of a
member is verified before the member is used.

Source: "APPNOTE.TXT - .ZIP File Format Specification" 6.3.10 (PKWARE), sections 4.3, 4.4 and 4.5.3.
"""

import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from optax_kadam.keras_files._source import UNTRUSTED, Files, Source

SIGNATURE = b"PK\x03\x04"
_HEADER, _ENTRY = struct.Struct("<4s2xHH4sIIIHH"), struct.Struct("<4s4xHH4sIIIHHHH6xI")
# The record of where the directory is, and the two before it in an archive of 2 GiB or more (ZIP64).
_END, _WIDE_ENDS = struct.Struct("<4sHHHHIIH"), struct.Struct("<4sQ4xIIQQQQ4sIQI")
_MOST_16, _MOST_32 = 2**16 - 1, 2**32 - 1  # Each stands for a number that is elsewhere, as it is too large.

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_BEHIND, _UTF8, _HARMLESS = 1 | 1 << 6 | 1 << 13, 1 << 3, 1 << 11, 1 << 1 | 1 << 2 | 1 << 11
# The extra fields that a member may have: large sizes, times and owners. Keras writes the first alone.
_SIZES = 1
_EXTRA_FIELDS = {_SIZES, 0x000A, 0x5455, 0x5855, 0x7875}
_PLAIN = r"(?!\.\.?(?:/|$))[^/\\:\0-\x1f\x7f]+"  # What is between two slashes of a name.
_INSIDE = re.compile(f"{_PLAIN}(?:/{_PLAIN})*/?")
_LONGEST_DIRECTORY = 1 << 21  # Bytes. 20,000 members need 1.5 MB.
_MOST_MORE = 1 << 23  # Bytes that all members may have beyond twice those of the archive.
_AT_A_TIME = 1 << 20  # Bytes that are inflated in one call.
_UNCOMPRESSED = "Pack it again without compression if you trust it."
_BY_PYTHON = "Pack it again with Python's `zipfile` if you trust it."


class _Member(NamedTuple):
    """A member, as it must be described in both places."""

    name: bytes
    flags: int
    method: int
    time: bytes
    checksum: int
    stored: int  # Its size in the archive.
    size: int


class ZipReader:
    """Reads the members of a zip file. All that describes them is checked at once."""

    def __init__(self, source: Source, files: Files):
        self._source, self._files = source, files
        self._unpacked: BinaryIO | None = None
        self._verified: dict[str, Source] = {}
        self._members: dict[str, tuple[_Member, int]] = {}  # Each with the place of its bytes.
        self._read_directory(*self._place_of_directory())

    def names(self) -> Sequence[str]:
        """Return the names of the members."""
        return list(self._members)

    def read(self, name: str) -> Source:
        """Return the bytes of the member `name`, whose checksum has been verified when it was asked for first."""
        if name not in self._verified:
            self._verified[name] = self._verify(name)
        return self._verified[name]

    def _verify(self, name: str) -> Source:
        member, start = self._members[name]
        source = self._source.part(start, member.stored, f"{self._source.name}/{name}")
        if member.method == _DEFLATED:
            source = self._inflate(source, member.size)
        checksum = 0
        for piece in source.chunks():
            checksum = zlib.crc32(piece, checksum)
        if checksum != member.checksum:
            received = f"whose checksum is {checksum:08x} in the place of {member.checksum:08x}"
            raise source.refusal("A member must have the checksum that its archive holds.", received)
        return source

    def _inflate(self, source: Source, size: int) -> Source:
        """Return the `size` bytes that `source` inflates to, behind those of other members in a temporary file."""
        if self._unpacked is None:
            self._unpacked = self._files.keep(tempfile.TemporaryFile())
        start, done = self._unpacked.seek(0, 2), 0
        for piece in _inflated(source):
            done += len(piece)
            if done > size:
                break
            self._unpacked.write(piece)
        if done != size:
            received = f"which inflates to {'more' if done > size else done} in the place of {size} bytes"
            raise source.refusal("A member must inflate to the size that its archive holds.", received, UNTRUSTED)
        self._unpacked.flush()
        return Source(self._unpacked, source.name, start, size)

    # Where the directory is.

    def _place_of_directory(self) -> tuple[int, int, int]:
        """Return where the directory is, how long it is, and how many members it lists."""
        at = self._source.size - _END.size
        if at >= 0:
            signature, disk, first_disk, here, count, length, place, comment = _END.unpack(self._source.read(at))
            if (signature, disk, first_disk, here, comment) == (b"PK\5\6", 0, 0, count, 0):
                if place + length == at:
                    return place, length, count
                wide = self._wide_place_of_directory(at - _WIDE_ENDS.size)
                narrow = (place, _MOST_32), (length, _MOST_32), (count, _MOST_16)
                if wide and all(number in (most, given) for (number, most), given in zip(narrow, wide, strict=True)):
                    return wide
        raise self._source.refusal(
            "An archive must end with its directory and the record of where that is.",
            "which is cut off, or has a comment or something else behind",
            "Copy it again, or pack it again without a comment if you trust it.",
        )

    def _wide_place_of_directory(self, at: int) -> tuple[int, int, int] | None:
        """Return the same from the records of a large archive, or None if they do not stand at `at`."""
        if at < 0:
            return None
        signature, rest, disk, first_disk, here, count, length, place, *locator = _WIDE_ENDS.unpack(
            self._source.read(at, _WIDE_ENDS.size)
        )
        is_there = (signature, rest, disk, first_disk, here) == (b"PK\6\6", 44, 0, 0, count)
        is_there &= locator == [b"PK\6\7", 0, at, 1] and place + length == at
        return (place, length, count) if is_there else None

    # What is in the directory, and in the headers of the members.

    def _read_directory(self, place: int, length: int, count: int) -> None:
        if length > _LONGEST_DIRECTORY:
            must = f"The directory of an archive may have {_LONGEST_DIRECTORY} bytes."
            raise self._untrusted(must, f"whose directory has {length}")
        directory = self._source.read(place, length)
        at = end = 0
        while at < length:
            member, header, at = self._entry(directory, at)
            if header != end:
                raise self._misplaced(header, end)
            start = self._start(header, member)
            end = start + member.stored
            name = self._text(member)
            if name in self._members:
                raise self._untrusted("A member must be in an archive once.", f"which holds {name[:100]!r} twice")
            self._members[name] = member, start
        if end != place:
            raise self._misplaced(place, end)
        if len(self._members) != count:
            received = f"which counts {count} and holds {len(self._members)}"
            raise self._untrusted("An archive must hold as many members as it counts.", received)
        expanded = sum(member.size for member, _ in self._members.values())
        if expanded > 2 * self._source.size + _MOST_MORE:
            must = f"The members of an archive may expand to twice its size and {_MOST_MORE} bytes."
            received = f"whose {self._source.size} bytes expand to {expanded}"
            raise self._source.refusal(must, received, _UNCOMPRESSED)

    def _entry(self, directory: bytes, at: int) -> tuple[_Member, int, int]:
        """Return the member that the entry at `at` describes, where its header is, and where the next entry is."""
        signature, flags, method, time, checksum, stored, size, *lengths, disk, header = _ENTRY.unpack(
            self._part(directory, at, _ENTRY.size)
        )
        length, extra, comment = lengths
        at += _ENTRY.size
        name = self._part(directory, at, length)
        if signature != b"PK\1\2" or comment or disk:
            received = f"in which that of {name[:100]!r} is none, or has a comment"
            raise self._untrusted("A directory must consist of entries without comments.", received)
        size, stored, header = self._widened(self._part(directory, at + length, extra), size, stored, header)
        member = _Member(name, flags, method, time, checksum, stored, size)
        self._check_kind(member)
        return member, header, at + length + extra

    def _start(self, header: int, member: _Member) -> int:
        """Return where the bytes of a member begin, whose header must describe it as `member`."""
        head = self._source.read(header, _HEADER.size + len(member.name))
        signature, flags, method, time, checksum, stored, size, length, extra = _HEADER.unpack_from(head)
        size, stored = self._widened(self._source.read(header + len(head), extra), size, stored)
        here = _Member(head[_HEADER.size :], flags, method, time, checksum, stored, size)
        if signature != SIGNATURE or length != len(member.name) or here != member:
            must = "An archive must describe a member alike in its directory and in front of the member."
            raise self._untrusted(must, f"which does not for {member.name[:100]!r}")
        return header + len(head) + extra

    def _widened(self, extra: bytes, *narrow: int) -> Sequence[int]:
        """Return the numbers of a description; those that are too large for it are in the extra fields."""
        if not extra and _MOST_32 not in narrow:
            return narrow
        fields: dict[int, bytes] = {}
        at = 0
        while at < len(extra):
            kind, length = struct.unpack("<HH", self._part(extra, at, 4))
            if kind not in _EXTRA_FIELDS or kind in fields:
                must = "Only large sizes, times and owners may describe a member further, each once."
                raise self._source.refusal(must, f"in which the field {kind:#06x} does", _BY_PYTHON)
            fields[kind] = self._part(extra, at + 4, length)
            at += 4 + length
        wide = fields.get(_SIZES, b"")
        is_elsewhere = [number == _MOST_32 for number in narrow]
        if len(wide) == 8 * len(narrow):  # `zipfile` before 3.11.4 gives both sizes there and here.
            is_elsewhere = [True] * len(narrow)
        if len(wide) != 8 * sum(is_elsewhere):
            must = "The field of large sizes must hold those that are too large for their places."
            raise self._untrusted(must, f"in which one has {len(wide)} bytes for {sum(is_elsewhere)} numbers")
        given = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
        numbers = [next(given) if elsewhere else number for number, elsewhere in zip(narrow, is_elsewhere, strict=True)]
        if any(here not in (_MOST_32, number) for here, number in zip(narrow, numbers, strict=True)):
            raise self._untrusted("A member must have one size.", f"in which one has {narrow} and {numbers}")
        return numbers

    def _check_kind(self, member: _Member) -> None:
        """Raise if a member is neither stored nor deflated, or in a way that Keras and usual programs do not use."""
        which = f"in which {member.name[:100]!r}"
        if member.flags & _ENCRYPTED:
            remedy = "Pack it again without a password."
            raise self._source.refusal("A member must not be encrypted.", f"{which} is", remedy)
        if member.flags & _SIZES_BEHIND:
            must = "The sizes of a member must be in front of it."
            raise self._source.refusal(must, f"{which} has them behind", _BY_PYTHON)
        if member.flags & ~_HARMLESS or member.method not in (_STORED, _DEFLATED):
            received = f"{which} has method {member.method} and flags {member.flags:#06x}"
            raise self._source.refusal("A member must be stored or deflated.", received, _UNCOMPRESSED)
        if member.method == _STORED and member.stored != member.size:
            received = f"{which} has {member.size} bytes of which {member.stored} are there"
            raise self._untrusted("A stored member must be there in full.", received)

    def _text(self, member: _Member) -> str:
        try:
            name = member.name.decode("utf-8" if member.flags & _UTF8 else "cp437")
        except UnicodeDecodeError as error:
            must = "The name of a member must be in UTF-8 if the archive says so."
            raise self._untrusted(must, f"in which one is {member.name[:100]!r}") from error
        if not _INSIDE.fullmatch(name):
            must = "The name of a member must lead to a file inside the archive."
            raise self._untrusted(must, f"in which one is {name[:100]!r}")
        return name

    def _part(self, data: bytes, start: int, count: int) -> bytes:
        if start + count > len(data):
            received = f"in which one ends at {len(data)} in the place of {start + count}"
            raise self._untrusted("What describes a member must lie within its place.", received)
        return data[start : start + count]

    def _misplaced(self, start: int, end: int) -> ValueError:
        must = "The members of an archive must follow one another without a gap, and the directory follows them."
        return self._untrusted(must, f"in which {start} follows {end}")

    def _untrusted(self, must: str, received: str) -> ValueError:
        return self._source.refusal(must, received, UNTRUSTED)


def _inflated(source: Source) -> Iterator[bytes]:
    """Yield what `source` inflates to, at most `_AT_A_TIME` bytes at once."""
    inflater, is_longer = zlib.decompressobj(-zlib.MAX_WBITS), False
    for piece in source.chunks():
        left = bytes(piece)
        is_longer = inflater.eof
        while left and not inflater.eof:
            try:
                yield inflater.decompress(left, _AT_A_TIME)
            except zlib.error as error:
                raise source.refusal("A compressed member must be deflated.", f"of which zlib says {error}") from error
            left = inflater.unconsumed_tail
        if is_longer:
            break
    yield inflater.flush()
    if not inflater.eof or inflater.unused_data or is_longer:
        raise source.refusal("A deflated member must end with its last byte.", "which ends earlier or later", UNTRUSTED)

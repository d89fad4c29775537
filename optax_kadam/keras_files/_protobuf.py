"""Messages in protobuf's wire format are read without the descriptions that protobuf compiles.

Source: "Encoding" in the documentation of Protocol Buffers (protobuf.dev).
"""

from collections.abc import Iterator
from typing import TypeVar

from optax_kadam.keras_files._source import Source

_Bytes = TypeVar("_Bytes", bytes, memoryview)
_FIXED = {1: 8, 5: 4}  # How many bytes a number takes in the wire types of a fixed length.


def read_varint(data: bytes | memoryview, at: int, source: Source) -> tuple[int, int]:
    """Return the number that begins at byte `at` of `data`, with seven bits in each byte, and where it ends.

    Raises:
      ValueError: if there is no end, or the number has more than 64 bits. Messages name `source`, here and below.
    """
    if at < len(data) and data[at] < 0x80:  # This is how most numbers are.
        return data[at], at + 1
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80 and value < 2**64:
            return value, at + i + 1
    raise source.refusal("A number must end, and have at most 64 bits.", f"one at byte {at} of {len(data)}")


def read_fields(data: _Bytes, source: Source) -> Iterator[tuple[int, int | _Bytes]]:
    """Yield the fields of a message: the number of each, and what it holds, which is a number or a part of `data`."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at, source)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(data, at, source)
            yield field, value
            continue
        if kind == 2:
            size, at = read_varint(data, at, source)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise source.refusal("A message must be of protobuf's wire types.", f"type {kind} of field {field}")
        part = data[at : at + size]
        if len(part) != size:
            raise source.refusal(
                "A part must lie within its whole.", f"bytes {at} to {at + size} of a message of {len(data)}"
            )
        at += size
        yield field, part if kind == 2 else int.from_bytes(part, "little")


class Message:
    """A protobuf message. Its fields are read by their numbers; the last one counts if a field is not repeated."""

    __slots__ = ("_source", "_numbers", "_parts")

    def __init__(self, data: bytes, source: Source):
        self._source = source
        self._numbers: dict[int, int] = {}
        self._parts: dict[int, list[bytes]] = {}
        for field, value in read_fields(data, source):
            if isinstance(value, int):
                self._numbers[field] = value
            else:
                self._parts.setdefault(field, []).append(value)

    def has(self, field: int) -> bool:
        """Return whether the field is there."""
        return field in self._numbers or field in self._parts

    def count(self, field: int) -> int:
        """Return how many messages there are in a repeated field."""
        return len(self._parts.get(field, ()))

    def number(self, field: int) -> int:
        """Return a number, which is 0 if it is not there. All that are read here are signed."""
        value = self._numbers.get(field, 0)
        return value - 2**64 if value >= 2**63 else value

    def part(self, field: int) -> bytes:
        """Return the bytes of a field, which are none if it is not there."""
        return self._parts.get(field, [b""])[-1]

    def text(self, field: int) -> str:
        """Return a text, or raise if it is not UTF-8."""
        try:
            return self.part(field).decode()
        except UnicodeDecodeError as error:
            raise self._source.refusal("A text must be UTF-8.", f"{self.part(field)[:50]!r}") from error

    def message(self, field: int) -> "Message":
        """Return the message in a field."""
        return Message(self.part(field), self._source)

    def messages(self, field: int) -> Iterator["Message"]:
        """Yield the messages in a repeated field."""
        return (Message(part, self._source) for part in self._parts.get(field, ()))

"""The index of a TensorFlow checkpoint is a LevelDB table: blocks of keys and values, which a last block lists.

Each block carries a CRC-32C, which is verified before anything in it is used.

Source: `tensorflow/core/lib/io/{format,block,table}.cc` and LevelDB's `doc/table_format.md` (the table);
`tensorflow/core/lib/hash/crc32c.h` (the mask).
"""

from collections.abc import Iterator

import numpy as np

from optax_kadam.keras_files._protobuf import read_varint
from optax_kadam.keras_files._source import UNTRUSTED, Claims, Source

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # Bytes: the places of two blocks, padding, the magic number.
# TensorFlow's entries have 53 to 64 bytes each, as every key ends in `/.ATTRIBUTES/VARIABLE_VALUE`. Keys begin alike,
# and are written without that beginning: with it they are as long as the index, or three times that if names are long.
_LEAST_PER_ENTRY, _MOST_OF_KEYS, _SMALL = 32, 8, 1 << 12


def crc32c(data: bytes | np.ndarray, value: int = 0) -> int:
    """Return the CRC-32C of `data` or, if `value` is the CRC-32C of a message, of that message followed by `data`.

    An array is not copied.

    Raises:
      ImportError: if google-crc32c is missing.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise ImportError(
            "google-crc32c must be installed to read a checkpoint. Received: no module google_crc32c. "
            "Install it: pip install google-crc32c"
        ) from error
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)  # Buffers know neither bfloat16 nor arrays without a dimension.
    return google_crc32c.extend(value, data)  # pyright: ignore[reportArgumentType]: it takes arrays too.


def unmask(masked: int) -> int:
    """Return the checksum that TensorFlow and LevelDB store as `masked`."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def read_table(source: Source) -> dict[bytes, bytes]:
    """Return the values in a table by their keys, which ascend."""
    data = source.read()
    if data[-8:] != _MAGIC or len(data) < _FOOTER:
        raise source.refusal("An index must end in the magic number of a table.", f"which ends in {data[-8:].hex()!r}")
    reader = _Reader(data, source)
    footer = data[-_FOOTER:]
    filters, at = reader.handle(footer, 0)
    blocks, end = reader.handle(footer, at)
    if list(reader.block(*filters)) or footer[end:-8].strip(b"\0"):
        raise source.refusal("An index must list its blocks alone.", f"which ends in {footer.hex()}", UNTRUSTED)
    table: dict[bytes, bytes] = {}
    last = None
    for separator, place in reader.block(*blocks):
        handle, end = reader.handle(place, 0)
        for key, value in reader.block(*handle):
            if last is not None and key <= last:
                raise source.refusal("The keys of an index must ascend.", f"{key!r} after {last!r}")
            table[key], last = value, key
        if end != len(place) or last is None or last > separator:
            raise source.refusal("A block must hold keys up to its separator.", f"{last!r} before {separator!r}")
    reader.claims.check_apart()
    return table


class _Reader:
    """Reads the blocks of one table, and claims each."""

    def __init__(self, data: bytes, source: Source):
        self._data, self._source, self.claims = data, source, Claims(source)
        self.claims.take(len(data) - _FOOTER, _FOOTER)
        self._entries = _SMALL + len(data) // _LEAST_PER_ENTRY  # How many there may still be,
        self._letters = _SMALL + len(data) * _MOST_OF_KEYS  # and how many bytes of keys.

    def handle(self, data: bytes, at: int) -> tuple[tuple[int, int], int]:
        """Return the offset and the size of a block, which begin at byte `at` of `data`, and where they end."""
        offset, at = read_varint(data, at, self._source)
        size, at = read_varint(data, at, self._source)
        return (offset, size), at

    def block(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values of a block. A byte for its kind and its checksum follow the block."""
        self.claims.take(offset, size + 5)
        block, checksum = self._data[offset : offset + size + 1], self._data[offset + size + 1 : offset + size + 5]
        if crc32c(block) != unmask(int.from_bytes(checksum, "little")):
            raise self._source.refusal("A block must match its checksum.", f"bytes {offset} to {offset + size}")
        if block[size]:
            kind = "with Snappy" if block[size] == 1 else f"in an unknown way, {block[size]}"
            raise self._source.refusal(
                "A block must not be compressed.", f"compressed {kind}", "Save the checkpoint again with TensorFlow."
            )
        restarts = int.from_bytes(block[max(size - 4, 0) : size], "little")
        end = size - 4 - 4 * restarts
        if end < 0:
            raise self._source.refusal("A part must lie within its whole.", f"{restarts} restarts in {size} bytes")
        at, key = 0, b""
        while at < end:
            shared, at = read_varint(block, at, self._source)
            unshared, at = read_varint(block, at, self._source)
            count, at = read_varint(block, at, self._source)
            middle, last = at + unshared, at + unshared + count
            self._entries -= 1
            self._letters -= shared + unshared
            if shared > len(key) or last > end or min(self._entries, self._letters) < 0:
                received = f"a key of {shared + unshared} bytes, entry at byte {offset + at}"
                raise self._source.refusal("The keys of an index must be names.", received, UNTRUSTED)
            key = key[:shared] + block[at:middle]
            yield key, block[middle:last]
            at = last

"""CRC-32C, the checksum of TensorFlow's checkpoints, at the speed of numpy.

A polynomial x^a + x^b + ... + 1 that the Castagnoli polynomial divides lets a byte be taken out of a message if it is
added (xor) to those a-b, ..., a bytes further on: the remainder stays. With such multiples of few terms whole pieces
of a message move at once, until what is left is short enough for the usual table. The square of a multiple is one too,
so every distance may be scaled by a power of two: in bits by 8, for bytes, and by more.

Source: RFC 3720, appendix B.4 (the checksum); `tensorflow/core/lib/hash/crc32c.h` (the mask).
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first.
_MULTIPLE = (4323, 5259, 5685)  # x^5685 + x^1362 + x^426 + 1
_SHORT_MULTIPLE = (454, 505, 510, 532, 563)  # x^563 + x^109 + x^58 + x^53 + x^31 + 1
_DISTANCES = (*(tuple(scale * d for d in _MULTIPLE) for scale in (64, 8, 1)), _SHORT_MULTIPLE)
_CHUNK = 4 << 20  # Bytes copied at a time, because they are changed: small enough for a cache.
_ALL_ONES = 0xFFFFFFFF
_MASK = 0xA282EAD8


def _table() -> list[int]:
    entries = list(range(256))
    for _ in range(8):
        entries = [entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0) for entry in entries]
    return entries


_TABLE = _table()


def crc32c(data: bytes | memoryview | np.ndarray, value: int = 0) -> int:
    """Return the CRC-32C of `data`, or, where `value` is that of a message, of the message followed by `data`."""
    message = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    state = value ^ _ALL_ONES
    for start in range(0, len(message), _CHUNK):
        piece = message[start : start + _CHUNK]
        if len(piece) > _SHORT_MULTIPLE[-1]:
            piece = piece.copy()
            piece[:4] ^= np.frombuffer(state.to_bytes(4, "little"), np.uint8)
            piece, state = _fold(piece), 0
        for byte in piece.tobytes():
            state = _TABLE[(state ^ byte) & 0xFF] ^ state >> 8
    return state ^ _ALL_ONES


def _fold(message: np.ndarray) -> np.ndarray:
    """Return the end of `message`, at most 563 bytes, changed so that its remainder is that of the whole."""
    for distances in _DISTANCES:
        start = 0
        while (count := min(distances[0], len(message) - distances[-1] - start)) > 0:
            moved = message[start : start + count]
            for distance in distances:
                message[start + distance : start + distance + count] ^= moved
            start += count
        message = message[start:]
    return message


def unmask(masked: int) -> int:
    """Return the checksum that TensorFlow and LevelDB store as `masked`."""
    rotated = (masked - _MASK) & _ALL_ONES
    return (rotated >> 17 | rotated << 15) & _ALL_ONES

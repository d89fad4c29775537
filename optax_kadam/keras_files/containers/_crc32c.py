"""CRC-32C, the checksum of TensorFlow's checkpoints, computed at the speed of numpy.

The checksum is the remainder of the message, taken as a polynomial, on division by the Castagnoli polynomial. Let
x^a + x^b + ... + 1 be a multiple of that. Then the remainder stays the same if a bit is removed from the message and
added (xor) to the bits that stand a - b, ..., a places further on. The square of a multiple is a multiple too, so the
distances may be multiplied by any power of two: by 8, to move bytes. A multiple of few terms moves whole pieces of a
message at once, until the rest is short enough for the usual table.

Source: RFC 3720, appendix B.4 (the checksum); `tensorflow/core/lib/hash/crc32c.h` (the mask).
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, with the lowest bit first.
_MULTIPLE = (4323, 5259, 5685)  # x^5685 + x^1362 + x^426 + 1
_SHORT_MULTIPLE = (454, 505, 510, 532, 563)  # x^563 + x^109 + x^58 + x^53 + x^31 + 1
# In bytes, for each round of `_fold`; the last of a tuple is the largest.
_FOLD_DISTANCES = (*(tuple(scale * d for d in _MULTIPLE) for scale in (64, 8, 1)), _SHORT_MULTIPLE)
_CHUNK = 4 << 20  # Bytes that are copied at a time, to be changed: few enough for a cache.
_ALL_ONES = 0xFFFFFFFF
_MASK = 0xA282EAD8


def _table() -> list[int]:
    entries = list(range(256))
    for _ in range(8):
        entries = [entry >> 1 ^ (_POLYNOMIAL if entry & 1 else 0) for entry in entries]
    return entries


_TABLE = _table()


def crc32c(data: bytes | memoryview | np.ndarray, value: int = 0) -> int:
    """Return the CRC-32C of `data` or, if `value` is the CRC-32C of a message, of that message followed by `data`."""
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
    """Return at most 563 bytes that have the remainder of `message`, which is changed."""
    for distances in _FOLD_DISTANCES:
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

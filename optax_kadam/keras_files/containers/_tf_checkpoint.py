"""TensorFlow's checkpoints are read without TensorFlow, as no maintained library does that.

A checkpoint `ck` has an index, `ck.index`, and data files, `ck.data-00000-of-00001` and so on. The index is a LevelDB
table: it leads from the name of each tensor to a protobuf message that says where in a data file its bytes are. One of
the tensors is a string, the graph of the objects that were saved. CRC-32C checksums cover all that is read, and are
verified. Tensors of complex or quantized numbers, and of no numbers (strings, variants, resources), are left out.

Source: `tensorflow/core/util/tensor_bundle/tensor_bundle.cc`, `tensorflow/core/util/saved_tensor_slice_util.cc`;
`tensorflow/core/lib/io/{format,block,table}.cc`, LevelDB's table; `tensorflow/core/protobuf/{tensor_bundle,
trackable_object_graph}.proto`; `tensorflow/core/framework/{tensor_shape,types,versions}.proto`.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Checkpoint, Node
from optax_kadam.keras_files._source import Files, Source
from optax_kadam.keras_files.containers._crc32c import crc32c, unmask

_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # Bytes: the places of two blocks, padding, the magic number.
_VERSION = 1
_DTYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool"}
_DTYPES |= {14: "bfloat16", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64"}
_MOST_DIMENSIONS = 32  # An array in numpy 1 has no more.
_FIXED = {1: 8, 5: 4}  # How many bytes a number takes in protobuf's wire types of a fixed length.


def read_checkpoint(prefix: pathlib.Path, files: Files) -> Checkpoint:
    """Return the checkpoint that TensorFlow names `prefix`. Each array is verified when it is read.

    Raises:
      FileNotFoundError: if there is no index.
      ValueError: if a data file is missing, a file is damaged, or the checkpoint has no graph of objects.
    """
    index = pathlib.Path(f"{prefix}.index")
    if not index.is_file():
        raise FileNotFoundError(
            f"A checkpoint must have an index. Received: {str(prefix)!r}, and no file {index.name!r}. "
            "Hand over the path as TensorFlow takes it, and keep all its files together."
        )
    with _refusals_name(index):
        table = _read_table(files.open(index).read())
        data_files = _DataFiles(prefix, _Message(table.pop(b"", memoryview(b""))), files)
        entries = {key: _read_entry(key, _Message(value)) for key, value in table.items()}
        tensors = {}
        for key, entry in entries.items():
            source = data_files.find(entry)
            if entry.dtype is not None:
                read = functools.partial(_read, source, entry, entry.dtype)
                tensors[key.decode()] = LazyArray(entry.shape, entry.dtype, read)
        if _GRAPH not in entries:
            raise _Refusal(
                "A checkpoint must hold the graph of its objects.",
                "which holds names alone, as a checkpoint of TensorFlow 1 does",
                "Restore it in TensorFlow, and save it with `tf.train.Checkpoint` or `save_weights` of TensorFlow 2.",
            )
    source = data_files.source(entries[_GRAPH].file)
    with _refusals_name(pathlib.Path(source.name)):
        return Checkpoint(tensors, _read_graph(_Message(_read_string(source, entries[_GRAPH]))))


class _Refusal(Exception):
    """A refusal that does not name the file yet: `_refusals_name` does."""

    def __init__(self, must: str, received: str, remedy: str = "The file is damaged: copy it again."):
        super().__init__(must, received, remedy)


@contextlib.contextmanager
def _refusals_name(path: pathlib.Path) -> Iterator[None]:
    """Turn a refusal, and any error that a damaged file leads to, into a ValueError that names the file."""
    try:
        yield
    except (_Refusal, ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, UnicodeError) as error:
        refusal = error if isinstance(error, _Refusal) else _Refusal("A checkpoint must be whole.", repr(error))
        must, received, remedy = refusal.args
        raise ValueError(f"{must} Received: {str(path)!r}, {received}. {remedy}") from error


# The index is a LevelDB table: blocks of keys and values, which a last block lists.


def _read_table(data: bytes) -> dict[bytes, memoryview]:
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise _Refusal("An index must end in the magic number of a table.", f"which ends in {data[-8:].hex()!r}")
    footer, at = memoryview(data)[-_FOOTER:], 0
    for _ in range(2):  # This is the place of another list, which is always empty.
        _, at = _read_varint(footer, at)
    table: dict[bytes, memoryview] = {}
    last = None
    for _, handle in _read_block(data, footer[at:]):
        for key, value in _read_block(data, handle):
            if last is not None and key <= last:
                raise _Refusal("The keys of an index must ascend.", f"{key!r} after {last!r}")
            table[key], last = value, key
    return table


def _read_block(data: bytes, handle: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the keys and values of the block at `handle`. A byte for its kind and its checksum follow the block."""
    offset, at = _read_varint(handle, 0)
    size, _ = _read_varint(handle, at)
    block = _part(memoryview(data), offset, size + 5)
    if crc32c(block[:-4]) != unmask(int.from_bytes(block[-4:], "little")):
        raise _Refusal("A block of an index must match its checksum.", f"bytes {offset} to {offset + size}")
    if block[size]:
        kind = "with Snappy" if block[size] == 1 else f"in an unknown way, {block[size]}"
        raise _Refusal(
            "A block of an index must not be compressed.", f"compressed {kind}", "Save it again with TensorFlow."
        )
    restarts = int.from_bytes(_part(block, size - 4, 4), "little")
    entries = _part(block, 0, size - 4 - 4 * restarts)
    at, key, budget = 0, b"", 2**16 + 2**8 * size  # Keys share beginnings: a small file could give gigabytes of them.
    while at < len(entries):
        shared, at = _read_varint(entries, at)
        unshared, at = _read_varint(entries, at)
        count, at = _read_varint(entries, at)
        key = bytes(_part(memoryview(key), 0, shared)) + _part(entries, at, unshared)
        budget -= len(key)
        if budget < 0:
            raise _Refusal("The keys of an index must be names.", f"one of {len(key)} bytes")
        yield key, _part(entries, at + unshared, count)
        at += unshared + count


def _part(data: memoryview, start: int, count: int) -> memoryview:
    """Return `count` bytes of `data` from `start`, or raise if there are fewer."""
    if start < 0 or count < 0 or start + count > len(data):
        raise _Refusal("A part must lie within its whole.", f"bytes {start} to {start + count} of {len(data)}")
    return data[start : start + count]


# The messages are in protobuf's wire format.


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, with seven bits in each byte, and where it ends."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise _Refusal("A number must end.", f"one at byte {at} of {len(data)} that does not")


class _Message:
    """A protobuf message. Its fields are read by their numbers; the last one counts if a field is not repeated."""

    def __init__(self, data: memoryview):
        self._numbers: dict[int, int] = {}
        self._chunks: dict[int, list[memoryview]] = {}
        at = 0
        while at < len(data):
            tag, at = _read_varint(data, at)
            field, kind = tag >> 3, tag & 7
            if kind == 0:
                value, at = _read_varint(data, at)
                self._numbers[field] = (value + 2**63) % 2**64 - 2**63  # All numbers that are read here are signed.
            elif kind == 2:
                count, at = _read_varint(data, at)
                self._chunks.setdefault(field, []).append(_part(data, at, count))
                at += count
            elif kind in _FIXED:
                self._numbers[field] = int.from_bytes(_part(data, at, _FIXED[kind]), "little")
                at += _FIXED[kind]
            else:
                raise _Refusal("A message must be of protobuf's wire types.", f"type {kind} of field {field}")

    def number(self, field: int) -> int:
        return self._numbers.get(field, 0)

    def has(self, field: int) -> bool:
        return field in self._numbers or field in self._chunks

    def text(self, field: int) -> str:
        return str(self._chunks.get(field, [b""])[-1], "utf-8")

    def messages(self, field: int) -> list["_Message"]:
        return [_Message(chunk) for chunk in self._chunks.get(field, [])]

    def message(self, field: int) -> "_Message":
        return _Message(self._chunks.get(field, [memoryview(b"")])[-1])


# The index says where each tensor is.


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The place of a tensor."""

    kind: int
    dtype: np.dtype | None  # None for a tensor that is left out.
    shape: tuple[int, ...]
    file: int
    offset: int
    size: int
    checksum: int

    @property
    def place(self) -> str:
        return f"bytes {self.offset} to {self.offset + self.size}"


def _read_entry(key: bytes, message: _Message) -> _Entry:
    if key.startswith(b"\0") or message.has(7):  # Only the key of a slice begins so.
        raise _Refusal(
            "A variable must be stored in one piece.",
            f"which holds slices of {key[1:].partition(bytes(1))[0].decode()!r}",
            "Restore it in TensorFlow, and save it without a partitioner or a sharding callback.",
        )
    tensor_shape = message.message(2)
    shape = tuple(dimension.number(1) for dimension in tensor_shape.messages(2))
    is_absurd = len(shape) > _MOST_DIMENSIONS or math.prod(max(n, 1) for n in shape) >= 2**56
    if is_absurd or any(n < 0 for n in shape) or tensor_shape.number(3):
        raise _Refusal("A tensor must have the shape of an array.", f"one of shape {shape}")
    kind, (file, offset, size) = message.number(1), (message.number(field) for field in (3, 4, 5))
    dtype = jnp.dtype(_DTYPES[kind]) if kind in _DTYPES else None
    return _Entry(kind, dtype, shape, file, offset, size, unmask(message.number(6)))


class _DataFiles:
    """The data files of a checkpoint."""

    def __init__(self, prefix: pathlib.Path, header: _Message, files: Files):
        self._prefix, self._count, self._files = prefix, header.number(1), files
        self._sources: dict[int, Source] = {}
        self._unclaimed: dict[int, int] = {}  # The bytes of each data file that no entry covers yet.
        version = header.message(3)
        if header.number(2):
            remedy = "Restore it in TensorFlow on a little-endian machine, and save it again."
            raise _Refusal("A checkpoint must be little-endian.", "which is big-endian", remedy)
        if version.number(2) > _VERSION or version.has(3):
            must = f"A checkpoint must be of version {_VERSION} of its format."
            asked = version.number(2)
            received = f"which asks for version {asked}" if asked > _VERSION else "which excludes that version"
            raise _Refusal(must, received, "Save it with TensorFlow 2.21 or an earlier one.")
        if self._count < 1:
            raise _Refusal("An index must begin with its header.", f"num_shards={self._count}")

    def find(self, entry: _Entry) -> Source:
        """Return the data file of `entry`, or raise if its bytes cannot be there."""
        if not 0 <= entry.file < self._count:
            raise _Refusal("A tensor must stand in a data file.", f"one in file {entry.file} of {self._count}")
        if entry.dtype is not None and entry.size != math.prod(entry.shape) * entry.dtype.itemsize:
            raise _Refusal("A tensor must fill its shape.", f"{entry.size} bytes for {entry.shape} of {entry.dtype}")
        source = self.source(entry.file)
        length = source.size
        unclaimed = self._unclaimed[entry.file] = self._unclaimed.get(entry.file, length) - entry.size
        if min(entry.offset, entry.size, unclaimed, length - entry.offset - entry.size) < 0:
            raise _Refusal(
                "A data file must hold what its index lists.",
                f"which lists {entry.place} of the {length} of {source.name!r}",
                "The data file was cut off, or is of another checkpoint: copy both again.",
            )
        return source

    def source(self, number: int) -> Source:
        """Return the data file of this number."""
        if number not in self._sources:
            path = pathlib.Path(f"{self._prefix}.data-{number:05d}-of-{self._count:05d}")
            if not path.is_file():
                must = "A checkpoint must have all its files."
                raise _Refusal(must, f"and no file {path.name!r}", "Copy it there too.")
            self._sources[number] = self._files.open(path)
        return self._sources[number]


# The data files hold the bytes of the tensors.


def _read(source: Source, entry: _Entry, dtype: np.dtype) -> np.ndarray:
    with _refusals_name(pathlib.Path(source.name)):
        array = source.read_array(entry.offset, entry.shape, dtype)
        if crc32c(array) != entry.checksum:
            raise _Refusal("A tensor must match its checksum.", entry.place)
        return array


def _read_string(source: Source, entry: _Entry) -> memoryview:
    """Return the string in a tensor of one string.

    Its bytes follow its length, and the checksum of its length as an integer of 4 or 8 bytes.
    """
    if entry.kind != 7 or entry.shape:
        raise _Refusal("The graph of the objects must be a string.", f"dtype {entry.kind} of shape {entry.shape}")
    data = memoryview(source.read(entry.offset, entry.size))
    length, at = _read_varint(data, 0)
    masked, text = _part(data, at, 4), _part(data, at + 4, length)
    checksum = crc32c(length.to_bytes(4 if length < 2**32 else 8, "little"))
    is_sound = checksum == unmask(int.from_bytes(masked, "little")) and at + 4 + length == entry.size
    if not is_sound or crc32c(text, crc32c(masked, checksum)) != entry.checksum:
        raise _Refusal("The graph of the objects must match its checksum.", entry.place)
    return text


def _read_graph(graph: _Message) -> list[Node]:
    messages = graph.messages(1)

    def index(message: _Message, field: int) -> int:
        if not 0 <= message.number(field) < len(messages):
            raise _Refusal("An object must be in the graph.", f"object {message.number(field)} of {len(messages)}")
        return message.number(field)

    nodes = []
    for message in messages:
        children = {child.text(2): index(child, 1) for child in message.messages(1)}
        variable = next((a for a in message.messages(2) if a.text(1) == "VARIABLE_VALUE"), None)
        full_name, key = (variable.text(2), variable.text(3)) if variable else (None, None)
        slots = [(index(slot, 1), slot.text(2), index(slot, 3)) for slot in message.messages(3)]
        nodes.append(Node(children, full_name, key, slots))
    return nodes

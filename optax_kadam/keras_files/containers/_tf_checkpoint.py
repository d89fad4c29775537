"""TensorFlow's checkpoints are read without TensorFlow, as no maintained library does that.

A checkpoint `ck` has an index, `ck.index`, and data files, `ck.data-00000-of-00001` and so on. The index leads from the
key of each tensor to a protobuf message that says where in a data file its bytes are. One of the tensors is a string,
the graph of the objects that were saved. CRC-32C checksums cover all that is read, and are verified.

TensorFlow writes much twice, and here it is compared: the key of a tensor is the path to its object in the graph, each
tensor belongs to one object, and each object is a child or a slot of another. So no byte is read twice, and only
strings, and the tables and iterators that stand beside a model, are left out.

Source: `tensorflow/core/util/tensor_bundle/tensor_bundle.cc`, `tensorflow/core/util/saved_tensor_slice_util.cc`;
`tensorflow/core/protobuf/{tensor_bundle,trackable_object_graph}.proto`; `tensorflow/core/framework/{tensor_shape,types,
versions}.proto`; `tensorflow/python/trackable/{constants,trackable_utils}.py`, `tensorflow/python/checkpoint/util.py`.
"""

import dataclasses
import functools
import math
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_kadam.keras_files._lazy_array import LazyArray
from optax_kadam.keras_files._named_arrays import Checkpoint
from optax_kadam.keras_files._protobuf import Message, read_varint
from optax_kadam.keras_files._source import Claims, Files, Source
from optax_kadam.keras_files.containers._leveldb import crc32c, read_table, unmask
from optax_kadam.keras_files.containers._object_graph import read_graph

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VERSION = 1
_STRING = 7
_DTYPES = {1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool"}
_DTYPES |= {14: "bfloat16", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64"}
_MOST_DIMENSIONS = 32  # An array in numpy 1 has no more.
# An object that is no variable may hold tensors too, whose keys end so: those of a table, and of an iterator.
_SUFFIXES = {
    "table": ("-keys", "-values"),
    "ITERATOR": ("", "_STATE"),
    "OBJECT_CONFIG_JSON": ("",),
    "py_state": ("",),
}


def read_checkpoint(prefix: pathlib.Path, files: Files) -> Checkpoint:
    """Return the checkpoint that TensorFlow names `prefix`. Each array is verified when it is read.

    Raises:
      FileNotFoundError: if there is no index.
      ValueError: if a data file is missing, a file is damaged, or the checkpoint has no graph of objects.
      ImportError: if google-crc32c is missing.
    """
    path = pathlib.Path(f"{prefix}.index")
    if not path.is_file():
        raise FileNotFoundError(
            f"A checkpoint must have an index. Received: {str(prefix)!r}, and no file {path.name!r}. "
            "Hand over the path as TensorFlow takes it, and keep all its files together."
        )
    index = files.open(path)
    bundle = _Bundle(prefix, index, files)
    place = bundle.take(_GRAPH)
    if place is None:
        raise index.refusal(
            "A checkpoint must hold the graph of its objects.",
            "which holds names alone, as a checkpoint of TensorFlow 1 does",
            "Restore it in TensorFlow, and save it with `tf.train.Checkpoint` or `save_weights` of TensorFlow 2.",
        )
    nodes, attributes = read_graph(_read_string(place), place.source, len(bundle.table))
    tensors = {}
    for attribute in attributes:
        if attribute.name == "VARIABLE_VALUE":
            array = _variable(bundle, attribute.key)
            if array is not None:
                tensors[attribute.key] = array
        else:
            found = [bundle.take(attribute.key + suffix) for suffix in _SUFFIXES.get(attribute.name, ())]
            if not any(found):
                raise _missing(bundle, attribute.key)
    bundle.check_taken()
    return Checkpoint(tensors, nodes)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where the bytes of a tensor are, and what they are."""

    source: Source
    kind: int
    dtype: np.dtype | None  # None for what is no array here.
    shape: tuple[int, ...]
    offset: int
    size: int
    checksum: int

    def __str__(self) -> str:
        return f"bytes {self.offset} to {self.offset + self.size}"


class _DataFile(NamedTuple):
    source: Source
    claims: Claims


class _Bundle:
    """The tensors of a checkpoint. Each is taken once."""

    def __init__(self, prefix: pathlib.Path, index: Source, files: Files):
        self._prefix, self._files, self.index = prefix, files, index
        self.table = read_table(index)
        self._data_files: dict[int, _DataFile] = {}
        header = Message(self.table.pop(b"", b""), index)
        self._count, version = header.number(1), header.message(3)
        if header.number(2):
            remedy = "Restore it in TensorFlow on a little-endian machine, and save it again."
            raise index.refusal("A checkpoint must be little-endian.", "which is big-endian", remedy)
        if version.number(2) > _VERSION or version.has(3):
            must = f"A checkpoint must be of version {_VERSION} of its format."
            asked = version.number(2)
            received = f"which asks for version {asked}" if asked > _VERSION else "which excludes that version"
            raise index.refusal(must, received, "Save it with TensorFlow 2.21 or an earlier one.")
        if self._count < 1:
            raise index.refusal("An index must begin with its header.", f"num_shards={self._count}")

    def take(self, key: str) -> _Place | None:
        """Return where the tensor of this key is, or None if it is not there, or was taken before."""
        value = self.table.pop(key.encode(), None)
        return None if value is None else self._place(key, Message(value, self.index))

    def check_taken(self) -> None:
        """Raise if a tensor was not taken, or if two of them overlap."""
        if self.table:
            first = min(self.table)
            if first.startswith(b"\0"):  # Only the key of a slice begins so.
                raise self._sliced(first[1:].partition(b"\0")[0])
            raise self.index.refusal("A tensor must belong to an object of the graph.", f"one named {first!r}")
        for file in self._data_files.values():
            file.claims.check_apart()

    def _sliced(self, name: object) -> ValueError:
        return self.index.refusal(
            "A variable must be stored in one piece.",
            f"which holds slices of {name!r}",
            "Restore it in TensorFlow, and save it without a partitioner or a sharding callback.",
        )

    def _place(self, key: str, message: Message) -> _Place:
        if message.has(7):
            raise self._sliced(key)
        tensor_shape = message.message(2)
        shape = tuple(dimension.number(1) for dimension in tensor_shape.messages(2))
        is_absurd = len(shape) > _MOST_DIMENSIONS or math.prod(max(n, 1) for n in shape) >= 2**56
        if is_absurd or any(n < 0 for n in shape) or tensor_shape.number(3):
            raise self.index.refusal("A tensor must have the shape of an array.", f"one of shape {shape[:40]}")
        kind, number, offset, size = (message.number(field) for field in (1, 3, 4, 5))
        dtype = jnp.dtype(_DTYPES[kind]) if kind in _DTYPES else None
        if dtype is not None and size != math.prod(shape) * dtype.itemsize:
            raise self.index.refusal("A tensor must fill its shape.", f"{size} bytes for {shape} of {dtype}")
        if not 0 <= number < self._count:
            raise self.index.refusal("A tensor must stand in a data file.", f"one in file {number} of {self._count}")
        if number not in self._data_files:
            self._data_files[number] = self._open(number)
        source, claims = self._data_files[number]
        if min(offset, size, source.size - offset - size) < 0:
            raise self.index.refusal(
                "A data file must hold what its index lists.",
                f"which lists bytes {offset} to {offset + size} of the {source.size} of {source.name!r}",
                "The data file was cut off, or is of another checkpoint: copy both again.",
            )
        claims.take(offset, size)
        return _Place(source, kind, dtype, shape, offset, size, unmask(message.number(6)))

    def _open(self, number: int) -> _DataFile:
        path = pathlib.Path(f"{self._prefix}.data-{number:05d}-of-{self._count:05d}")
        if not path.is_file():
            must = "A checkpoint must have all its files."
            raise self.index.refusal(must, f"and no file {path.name!r}", "Copy it there too.")
        source = self._files.open(path)
        return _DataFile(source, Claims(source))


def _missing(bundle: _Bundle, key: str) -> ValueError:
    return bundle.index.refusal("An object of the graph must have its own tensor.", f"none for {key!r}")


def _variable(bundle: _Bundle, key: str) -> LazyArray | None:
    """Return the array of a variable, or None if it is a string, which no training needs."""
    place = bundle.take(key)
    if place is None:
        raise _missing(bundle, key)
    if place.dtype is None:
        if place.kind == _STRING:
            return None
        raise bundle.index.refusal(
            f"A variable must be of one of the dtypes {', '.join(sorted(_DTYPES.values()))}.",
            f"number {place.kind} in `types.proto` for {key!r}",
            "Save the checkpoint without it.",
        )
    return LazyArray(place.shape, place.dtype, functools.partial(_read, place, place.dtype))


def _read(place: _Place, dtype: np.dtype) -> np.ndarray:
    array = place.source.read_array(place.offset, place.shape, dtype)
    if crc32c(array) != place.checksum:
        raise place.source.refusal("A tensor must match its checksum.", str(place))
    return array


def _read_string(place: _Place) -> bytes:
    """Return the string in a tensor of one string.

    Its bytes follow its length, and the checksum of its length as an integer of 4 or 8 bytes.
    """
    source = place.source
    if place.kind != _STRING or place.shape:
        received = f"dtype {place.kind} of shape {place.shape}"
        raise source.refusal("The graph of the objects must be a string.", received)
    data = source.read(place.offset, place.size)
    length, at = read_varint(data, 0, source)
    masked, text = data[at : at + 4], data[at + 4 :]
    checksum = crc32c(length.to_bytes(4 if length < 2**32 else 8, "little"))
    is_sound = len(text) == length and checksum == unmask(int.from_bytes(masked, "little"))
    if not is_sound or crc32c(text, crc32c(masked, checksum)) != place.checksum:
        raise source.refusal("The graph of the objects must match its checksum.", str(place))
    return text

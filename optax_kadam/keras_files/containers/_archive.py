"""Keras's archives (`.keras`) are opened: zip files, and the folders that someone unpacked them to."""

import pathlib
from collections.abc import Callable, Collection

from optax_kadam.keras_files._json import LONGEST, read_json
from optax_kadam.keras_files._named_arrays import Group
from optax_kadam.keras_files._source import UNTRUSTED, Files, Source
from optax_kadam.keras_files.containers._hdf5 import read_hdf5
from optax_kadam.keras_files.containers._shards import read_shards
from optax_kadam.keras_files.containers._zip import ZipReader

WEIGHTS = "model.weights.h5"
_METADATA, _INDEX, _PICKLED = "metadata.json", "model.weights.json", "model.weights.npz"


class Archive:
    """The files that Keras saved a model in.

    Args:
      path: where they are, for messages.
      size: how many bytes they have, all together.
      names: their names.
      read: the function from the name of one to its bytes.
    """

    def __init__(self, path: str, size: int, names: Collection[str], read: Callable[[str], Source]):
        self._path, self._names, self._read = path, names, read
        self._json_left = LONGEST + size // 16  # A model with large weights may have a long configuration.

    @classmethod
    def zipped(cls, source: Source, files: Files) -> "Archive":
        """Return the archive in a zip file."""
        reader = ZipReader(source, files)
        return cls(source.name, source.size, reader.names(), reader.read)

    @classmethod
    def unpacked(cls, folder: pathlib.Path, files: Files) -> "Archive":
        """Return the archive that someone unpacked to `folder`."""
        paths = {path.name: path for path in folder.iterdir() if path.is_file()}
        size = sum(path.stat().st_size for path in paths.values())
        return cls(str(folder), size, paths.keys(), lambda name: files.open(paths[name]))

    def names(self) -> Collection[str]:
        """Return the names of the files."""
        return self._names

    def read(self, name: str) -> Source:
        """Return the bytes of the file `name`, whose checksum has been verified if the archive holds one."""
        if name not in self._names:
            some = ", ".join(repr(other[:50]) for other in sorted(self._names)[:5])
            raise ValueError(
                f"An archive of Keras's must hold {name!r}. Received: {self._path!r}, which holds "
                f"{len(self._names)} other files: {some}. "
                "Copy or unpack it again, or save it again with Keras's `model.save`."
            )
        return self._read(name)

    def json(self, name: str) -> dict[str, object]:
        """Return the JSON object in the file `name`."""
        source = self.read(name)
        parsed = read_json(source, self._json_left)
        self._json_left -= source.size
        return parsed

    def keras_version(self) -> str:
        """Return the version of the Keras that wrote the archive."""
        version = self.json(_METADATA).get("keras_version")
        if not isinstance(version, str):
            raise ValueError(
                f"An archive must say which Keras wrote it. Received: {self._path!r}, whose {_METADATA!r} has no "
                "`keras_version`. Save it again with Keras's `model.save`."
            )
        return version

    def weights(self) -> Group:
        """Return the root group of the weights, which are one HDF5 file, or shards."""
        found = [name for name in (WEIGHTS, _INDEX, _PICKLED) if name in self._names]
        if len(found) > 1:
            raise ValueError(
                f"The weights must be in an archive once. Received: {self._path!r}, which holds "
                f"{' and '.join(map(repr, found))}. {UNTRUSTED}"
            )
        if found == [_PICKLED]:
            raise ValueError(
                f"The weights in an archive must be HDF5. Received: {self._path!r}, which holds {_PICKLED!r}: pickled "
                "objects, and unpickling runs code. "
                'Save the model again with `keras.saving.save_model(..., weights_format="h5")`.'
            )
        if found == [_INDEX]:
            return self._shards()
        return self._hdf5(WEIGHTS)

    def _shards(self) -> Group:
        shards = {name for name in self._names if name.endswith(".weights.h5") and "/" not in name}

        def read(name: str) -> Group:
            shards.discard(name)
            return self._hdf5(name)

        root = read_shards(self.json(_INDEX), f"{self._path}/{_INDEX}", read)
        if shards:
            raise ValueError(
                f"The index of shards must list each shard of its archive. Received: {self._path!r}, in which it does "
                f"not list {min(shards)[:100]!r}. {UNTRUSTED}"
            )
        return root

    def _hdf5(self, name: str) -> Group:
        return read_hdf5(self.read(name))

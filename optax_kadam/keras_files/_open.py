"""`opened`: a path is opened by the container and the layout of the format that is found there.

This is the only file that knows both: a container reads named arrays out of bytes, a layout makes `Contents` of them.
"""

import contextlib
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

from optax_kadam.keras_files._contents import Contents
from optax_kadam.keras_files._json import parse_json
from optax_kadam.keras_files.containers._archive import WEIGHTS, Archive, open_archive, read_shards
from optax_kadam.keras_files.containers._hdf5 import SIGNATURE, read_hdf5
from optax_kadam.keras_files.containers._tf_checkpoint import read_checkpoint
from optax_kadam.keras_files.layouts._graphs import graph_contents
from optax_kadam.keras_files.layouts._named import named_contents
from optax_kadam.keras_files.layouts._numbered import numbered_contents
from optax_kadam.keras_files.layouts._saved_model import optimizer_config

# The errors that the readers raise on damaged bytes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, MemoryError, OSError)
_DAMAGE += (TypeError, LookupError, AttributeError, OverflowError)


@contextlib.contextmanager
def opened(
    path: pathlib.Path, config: Mapping[str, object] | None = None, trainable: Sequence[str] | None = None
) -> Iterator[Contents]:
    """Yield the contents of the file at `path`. Their arrays can be read until the context is left.

    The arguments are those of `load_keras`.
    """
    with contextlib.ExitStack() as until_left:
        try:
            contents = _contents(path, config, trainable, until_left)
        except (FileNotFoundError, PermissionError):
            raise
        except _DAMAGE as error:
            raise ValueError(
                f"A Keras file must be whole: {' '.join(str(error).split()) or type(error).__name__}. "
                f"Received: path={str(path)!r}. The file is damaged or cut off: copy it again."
            ) from error
        yield contents


def _contents(
    path: pathlib.Path,
    config: Mapping[str, object] | None,
    trainable: Sequence[str] | None,
    until_left: contextlib.ExitStack,
) -> Contents:
    if path.is_dir() and (path / "saved_model.pb").exists():
        return graph_contents(read_checkpoint(path / "variables" / "variables"), config or optimizer_config(path))
    if path.is_dir() and (path / "config.json").exists() or path.is_file() and _starts_with(path, b"PK\x03\x04"):
        return _archived(until_left.enter_context(open_archive(path)), config, trainable)
    if path.is_dir() and (path / "checkpoint").exists():
        return graph_contents(read_checkpoint(_latest(path)), config)
    if path.suffix == ".index" and path.is_file():
        return graph_contents(read_checkpoint(path.with_suffix("")), config)
    if not path.exists() and path.with_name(f"{path.name}.index").exists():
        return graph_contents(read_checkpoint(path), config)
    if not path.exists():
        raise FileNotFoundError(
            f"There must be a file, a SavedModel's folder or a checkpoint at `path`. Received: path={str(path)!r}."
        )
    if path.is_file() and _starts_with(path, SIGNATURE):
        root = read_hdf5(path)
        is_named = root.at("model_weights") or "layer_names" in root.attrs or "layer_names0" in root.attrs
        return named_contents(root, config) if is_named else numbered_contents(root, None, config, None, trainable)
    if path.name.endswith(".json") and path.is_file():
        shards = read_shards(
            parse_json(path.read_bytes(), path), str(path), lambda name: read_hdf5(_beside(path, name))
        )
        return numbered_contents(shards, None, config, None, trainable)
    raise ValueError(
        f"`path` must be a file that Keras saved. Received: path={str(path)!r}, which has none of Keras's formats. "
        "Save the model with `model.save('model.keras')`."
    )


def _starts_with(path: pathlib.Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature


def _beside(path: pathlib.Path, name: str) -> pathlib.Path:
    shard = path.with_name(name)
    if not shard.is_file():
        raise ValueError(
            f"A shard must stand beside its index. Received: {str(path)!r} without {name!r}. Copy the shard there too."
        )
    return shard


def _latest(folder: pathlib.Path) -> pathlib.Path:
    """Return the prefix of the checkpoint that is named in the file `checkpoint` of a folder."""
    text = (folder / "checkpoint").read_text(errors="replace").partition("\n")[0]
    name = text.removeprefix('model_checkpoint_path: "').removesuffix('"')
    if pathlib.PurePath(name).name != name or not (folder / f"{name}.index").exists():
        raise ValueError(
            f"`checkpoint` must name a checkpoint in its folder. Received: {text!r} in {str(folder)!r}. "
            "Hand over the path of the checkpoint itself, without `.index`."
        )
    return folder / name


def _archived(archive: Archive, config: Mapping[str, object] | None, trainable: Sequence[str] | None) -> Contents:
    version = str(archive.json("metadata.json").get("keras_version"))
    model = archive.json("config.json")
    compiled = model.get("compile_config")
    found = compiled.get("optimizer") if isinstance(compiled, dict) else None
    names = archive.names()
    if WEIGHTS not in names and "model.weights.npz" in names:
        raise ValueError(
            "The weights of a `.keras` archive must be HDF5. Received: 'model.weights.npz', which holds pickled "
            "objects, and unpickling runs code. "
            'Save the model again with `keras.saving.save_model(..., weights_format="h5")`.'
        )
    if WEIGHTS not in names and "model.weights.json" in names:
        root = read_shards(archive.json("model.weights.json"), "model.weights.json", archive.hdf5)
    else:
        root = archive.hdf5(WEIGHTS)
    return numbered_contents(root, model, config or found, version, trainable)
